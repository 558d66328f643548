package pgmoor

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/puddle/v2"
)

// This file opens the server connections of a pool: never more logins at once than are wanted and allowed.

type (
	openerKey struct{}
	turnKey   struct{}
)

// loginTurn is one login's permission to begin.
type loginTurn struct {
	*ticket
	up    *upstream
	epoch uint64
}

var errNotOpener = errors.New("pgmoor: only the opener may construct")

// construct is puddle's constructor. It refuses everyone but the opener: puddle alone would dial once for each waiter.
func (p *pool) construct(ctx context.Context) (*server, error) {
	if ctx.Value(openerKey{}) != p {
		return nil, errNotOpener
	}
	begun, t := p.loginContext(), ctx.Value(turnKey{}).(*loginTurn)
	li, err := t.up.openAt(begun, t.ticket, &p.key, t.up.prepare)
	if err != nil {
		if errors.Is(context.Cause(begun), errCut) {
			return nil, errCut
		}
		return nil, err
	}
	p.learn(li)
	sc := newServer(li, p)
	sc.epoch = t.epoch
	p.noteLogin(sc, li.with)
	return sc, nil
}

// wantsLocked returns how many more logins should be under way.
func (p *pool) wantsLocked() int {
	if p.starved || p.env.gate.isShut() {
		return 0
	}
	want := p.waiting + len(p.wishes)
	if p.welcome == nil && len(p.logins) > 0 {
		want = max(want, 1)
	}
	return min(want-p.opening, p.env.config().maxOpening()-p.opening)
}

// openMore starts as many openers as are wanted, unless the last login failed a moment ago.
func (p *pool) openMore() {
	if sated := p.startOpeners(); sated {
		p.unclaim()
	}
}

// startOpeners reports whether the pool wants nothing more than it has, or could make no use of it for the moment.
func (p *pool) startOpeners() (sated bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return false
	case p.env.now().Before(p.retryAt):
		if p.opening > 0 {
			return false
		}
		p.starved = false // it asks again then, without a claim until then
		return true
	}
	n := p.wantsLocked()
	sated = n <= 0 && p.opening == 0 && !p.starved
	for ; n > 0; n-- {
		p.openLocked(false)
	}
	for n = p.mayOpenSpareLocked(); n > 0; n-- {
		p.openLocked(true)
	}
	return sated
}

func (p *pool) openLocked(spare bool) {
	p.opening++
	p.wg.Add(1)
	go p.opener(spare)
}

// opener logs in once and hands the connection to whoever waits longest. A spare one is for nobody yet.
func (p *pool) opener(spare bool) {
	defer p.wg.Done()
	t, err := p.enter()
	if err != nil {
		return // the pool is closed
	}
	defer t.leave()
	if may := p.stillWanted(spare) && (spare && p.maySpare() || !spare && p.mayDial()); !may {
		return
	}
	// The login ends with the pool. Acquire must not end before: then the token would be given back here, and once more by a connection
	// that was opened all the same.
	res, err := p.inv.Acquire(context.WithValue(context.WithoutCancel(p.ctx), turnKey{}, t))
	if err != nil {
		p.openFailed(err) // before the token is there again: it says when the next login may begin
		p.giveToken()
		return
	}
	p.opened(res)
}

// enter waits for a login's turn, under the configuration that counts then.
func (p *pool) enter() (*loginTurn, error) {
	for {
		was := p.env.config().up.logins
		t, err := was.enter(p.ctx)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return nil, err
		}
		epoch := p.env.epoch.Load() // before the configuration: Update does it the other way round
		if up := p.env.config().up; up.logins == was {
			return &loginTurn{t, up, epoch}, nil
		}
		t.leave()
	}
}

// stillWanted reports whether a login is of use to anybody after it may have waited for its turn, and may begin: in a pause none
// does. With NoWait nobody waits who has found nothing, but is served the next time.
func (p *pool) stillWanted(spare bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := spare || p.waiting+len(p.wishes)+len(p.logins) > 0 || p.env.config().BorrowTimeout == NoWait
	if wanted && !p.env.gate.isShut() {
		return true
	}
	p.opening--
	p.nudge() // a claim that is of no use any more is in the way of others
	return false
}

// mayDial takes a token of the budget, or leaves the pool starved until one is given back. Openers that began together with one that found
// none do not ask: two pools with two openers each would wake each other without an end.
func (p *pool) mayDial() bool {
	p.budget.taking.Lock()
	defer p.budget.taking.Unlock()
	p.mu.Lock()
	if p.starved {
		p.opening--
		p.mu.Unlock()
		return false
	}
	p.starved = true // before the budget is asked: a token given back from here on wakes us
	p.mu.Unlock()
	ok := p.takeToken(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	if ok {
		p.starved = false
		p.dialing++
		return true
	}
	p.opening--
	if !p.starved {
		p.nudge()
	}
	return false
}

// maySpare is mayDial for a spare connection: it takes nothing from anybody.
func (p *pool) maySpare() bool {
	p.budget.taking.Lock()
	ok := !p.othersAreAbout() && p.takeToken(true)
	p.budget.taking.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if ok {
		p.dialing++
		return true
	}
	p.opening--
	p.use.target = 0
	if p.waiting+len(p.wishes)+len(p.logins) > 0 { // somebody counts on it by now
		p.nudge()
	}
	return false
}

// othersAreAbout reports whether an opener of another pool under the same limits is about to ask for a token for somebody who waits. As long as it has
// not, no budget knows of it: a spare connection would be opened in its place, taken away for it, and opened again before its turn.
func (p *pool) othersAreAbout() bool {
	for _, b := range append(slices.Clone(p.shares), p.budget) {
		b.mu.Lock()
		pools := b.poolsLocked()
		b.mu.Unlock()
		for _, o := range pools {
			if o != p && o.isAbout() {
				return true
			}
		}
	}
	return false
}

func (p *pool) isAbout() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opening > p.dialing && p.waiting+len(p.wishes)+len(p.logins) > 0
}

func (p *pool) opened(res *puddle.Resource[*server]) {
	sc := res.Value()
	p.mu.Lock()
	sc.res = res
	p.opening--
	p.dialing--
	p.servers++
	p.open[sc] = struct{}{}
	p.backoff, p.retryAt, p.failing, p.refusedSince = 0, time.Time{}, false, time.Time{}
	outdated := sc.retired() // by an Update or a Reconnect since the login began: it will be closed, and nobody begins with what it says
	if !outdated {
		p.welcome, p.base = sc.welcome, sc.fresh
	}
	p.wg.Add(1)
	p.mu.Unlock()
	p.env.count.servers.Add(1)
	go sc.serve()
	p.giveBack(sc, nil)
	if !outdated {
		p.mu.Lock()
		p.tellLoginsLocked(nil) // now that their requests will find sc
		p.mu.Unlock()
	}
	p.nudge() // more may be wanted
}

func (p *pool) openFailed(err error) {
	if p.ctx.Err() != nil {
		err = ErrProxyClosed
	} else if !errors.Is(err, errCut) {
		p.noteFailure(err)
	}
	p.mu.Lock()
	p.failing = !errors.Is(err, errCut)
	p.opening--
	p.dialing--
	if p.env.config().up.logins.unreachable() { // which pauses for all pools
		p.backoff, p.retryAt = 0, time.Time{}
	} else {
		var pause time.Duration
		p.backoff, pause = backOff(p.backoff)
		p.retryAt = p.env.now().Add(pause)
	}
	var refused []*Session
	if isPermanent(err) && !p.mayRotateLocked(err) || p.closed {
		p.tellLoginsLocked(err)
		for p.servers == 0 && p.first != nil {
			refused = append(refused, p.first)
			p.forgetLocked(p.first)
		}
	}
	p.mu.Unlock()
	for _, s := range refused {
		s.waitFailed(asError(err))
	}
	p.nudge()
}

func (p *pool) tellLoginsLocked(err error) {
	for _, c := range p.logins {
		c <- err
	}
	p.logins = nil
}

// known returns the ParameterStatus messages of the latest login; nil before the first.
func (p *pool) known() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.welcome
}

// statuses returns the ParameterStatus messages for a client that logs in. The first client of a pool waits until
// the server has let somebody in with these parameters, and gets the server's error where it does not.
func (p *pool) statuses(ctx context.Context) ([]byte, error) {
	p.mu.Lock()
	if p.welcome != nil {
		defer p.mu.Unlock()
		return p.welcome, nil
	}
	if e := p.fullLocked(); e != nil {
		defer p.mu.Unlock()
		return nil, e
	}
	c := make(chan error, 1)
	p.logins = append(p.logins, c)
	since := p.env.now()
	p.nudge()
	p.mu.Unlock()
	var err error
	select {
	case err = <-c:
	case <-ctx.Done():
		if err = context.Cause(ctx); errors.Is(err, context.Canceled) {
			err = ErrProxyClosed
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = &Error{Code: codeConnectionException, Message: timedOut, Hint: p.waitHintLocked(since, len(p.logins)-1+p.waiting)}
		}
		for i, o := range p.logins {
			if o == c {
				p.logins = append(p.logins[:i], p.logins[i+1:]...)
				break
			}
		}
	}
	return p.welcome, err
}
