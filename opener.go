package pgmoor

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/puddle/v2"
)

// This file opens the server connections of a pool: never more logins at once than are wanted and allowed.

type openerKey struct{}

var errNotOpener = errors.New("pgmoor: only the opener may construct")

// construct is puddle's constructor. It refuses everyone but the opener: puddle alone would dial once for each waiter.
func (p *pool) construct(ctx context.Context) (*server, error) {
	if ctx.Value(openerKey{}) != p {
		return nil, errNotOpener
	}
	begun := p.loginContext()
	epoch := p.env.epoch.Load() // before the configuration: Update does it the other way round
	li, err := p.env.config().up.open(begun, &p.key)
	if err != nil {
		if errors.Is(context.Cause(begun), errCut) {
			return nil, errCut
		}
		return nil, err
	}
	sc := newServer(li, p)
	sc.epoch = epoch
	return sc, nil
}

// Back-off between failed logins.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
)

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
		p.budget.unclaim(p)
	}
}

// startOpeners reports whether the pool wants nothing more than it has.
func (p *pool) startOpeners() (sated bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.env.now().Before(p.retryAt) {
		return false
	}
	n := p.wantsLocked()
	sated = n <= 0 && p.opening == 0 && !p.starved
	for ; n > 0; n-- {
		p.opening++
		p.wg.Add(1)
		go p.opener()
	}
	return sated
}

// opener logs in once and hands the connection to whoever waits longest.
func (p *pool) opener() {
	defer p.wg.Done()
	if !p.mayDial() {
		return
	}
	res, err := p.inv.Acquire(p.ctx)
	if err != nil {
		p.budget.give()
		p.openFailed(err)
		return
	}
	p.opened(res)
}

// mayDial takes a token of the budget, or leaves the pool starved until one is given back.
func (p *pool) mayDial() bool {
	p.mu.Lock()
	p.starved = true // before the budget is asked: a token given back from here on wakes us
	p.mu.Unlock()
	ok := p.budget.take(p)
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

func (p *pool) opened(res *puddle.Resource[*server]) {
	sc := res.Value()
	p.mu.Lock()
	sc.res = res
	p.opening--
	p.dialing--
	p.servers++
	p.open[sc] = struct{}{}
	p.backoff, p.retryAt, p.failing = 0, time.Time{}, false
	p.welcome = sc.welcome
	p.wg.Add(1)
	p.mu.Unlock()
	p.env.count.servers.Add(1)
	go sc.serve()
	p.giveBack(sc, nil)
	p.mu.Lock()
	p.tellLoginsLocked(nil) // now that their requests will find sc
	p.mu.Unlock()
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
	p.backoff = min(max(2*p.backoff, minBackoff), maxBackoff)
	p.retryAt = p.env.now().Add(p.backoff/2 + rand.N(p.backoff))
	var refused []*Session
	if isPermanent(err) || p.closed {
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
