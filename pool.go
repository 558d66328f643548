package pgmoor

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/puddle/v2"
)

// poolKey is what server connections must have in common to be lent to the same clients: everything that is decided when
// a connection starts.
type poolKey struct {
	database, user string
	params         string // startup parameters in order: name, 0, value, 0
}

// puddleCeiling is puddle's own limit, which cannot be changed and is never reached: the live limit is the budget's.
const puddleCeiling = 1 << 16

// Back-off between failed logins.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
)

// pool lends the server connections of one key. Puddle holds the inventory: it creates, destroys and counts. The pool
// holds every connection, Acquired in puddle's eyes, and chooses who gets which: waiters are served strictly in the
// order in which they came. It knows sessions only as waiters.
type pool struct {
	key    poolKey
	up     *upstream
	env    *env
	budget *budget
	inv    *puddle.Pool[*server]

	ctx  context.Context // ends with the pool; carries the opener's permission to construct
	stop context.CancelFunc
	wake chan struct{}
	wg   sync.WaitGroup // keeper, openers, goroutines of the server connections

	mu      sync.Mutex // never held across I/O; taken inside a session's, takes none
	idle    []*server  // the last is the most recently used
	open    map[*server]struct{}
	servers int      // how many are open
	opening int      // openers at work
	dialing int      // of those, how many hold a token of the budget
	first   *Session // waiters, oldest first
	last    *Session
	waiting int
	logins  []chan error // clients that wait for the pool's first connection
	welcome []byte       // ParameterStatus messages of the latest login; nil before the first
	armed   bool         // the keeper's timer will look at the waiters
	starved bool         // the budget had nothing for us
	failing bool         // the latest login to the server failed
	backoff time.Duration
	retryAt time.Time
	refs    int // sessions
	lent    int64
	closed  bool
}

type openerKey struct{}

var errNotOpener = errors.New("pgmoor: only the opener may construct")

func newPool(key poolKey, up *upstream, e *env, b *budget) (*pool, error) {
	p := &pool{key: key, up: up, env: e, budget: b, wake: make(chan struct{}, 1), open: make(map[*server]struct{})}
	p.ctx, p.stop = context.WithCancel(context.WithValue(context.Background(), openerKey{}, p))
	inv, err := puddle.NewPool(&puddle.Config[*server]{
		Constructor: p.construct, Destructor: (*server).destroy, MaxSize: puddleCeiling,
	})
	if err != nil {
		p.stop()
		return nil, err
	}
	p.inv = inv
	p.wg.Add(1)
	go p.keep()
	return p, nil
}

// construct is puddle's constructor. It refuses everyone but the opener: puddle alone would dial once for each waiter.
func (p *pool) construct(ctx context.Context) (*server, error) {
	if ctx.Value(openerKey{}) != p {
		return nil, errNotOpener
	}
	li, err := p.up.open(p.ctx, &p.key)
	if err != nil {
		return nil, err
	}
	return newServer(li, p), nil
}

// borrow lends s an idle server connection, or puts s in the queue and returns nil. The caller holds s.mu.
func (p *pool) borrow(s *Session) *server {
	for {
		sc := p.take(s)
		if sc == nil || !sc.stale() {
			return sc
		}
		sc.kill()
	}
}

func (p *pool) take(s *Session) *server {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		i := n - 1
		if p.env.rotate {
			i = 0
		}
		sc := p.idle[i]
		p.idle = append(p.idle[:i], p.idle[i+1:]...)
		sc.lendLocked()
		return sc
	}
	p.enqueueLocked(s)
	return nil
}

// enqueue puts s at the end of the queue.
func (p *pool) enqueue(s *Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enqueueLocked(s)
}

func (p *pool) enqueueLocked(s *Session) {
	s.queued, s.queuedAt = true, p.env.now()
	s.prev, s.next = p.last, nil
	if p.last == nil {
		p.first = s
	} else {
		p.last.next = s
	}
	p.last = s
	p.waiting++
	if !p.armed || p.wantsLocked() > 0 {
		p.nudge()
	}
}

// requeue puts s back to where the queue's next is taken from: the server connection that it was about to get has ended.
func (p *pool) requeue(s *Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.queued = true
	s.prev, s.next = nil, p.first
	if p.first == nil {
		p.last = s
	} else {
		p.first.prev = s
	}
	p.first = s
	p.waiting++
	p.nudge()
}

// forget takes s out of the queue and reports whether it was there.
func (p *pool) forget(s *Session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.forgetLocked(s)
}

func (p *pool) forgetLocked(s *Session) bool {
	if !s.queued {
		return false
	}
	s.queued = false
	if s.prev == nil {
		p.first = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		p.last = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.next, s.prev = nil, nil
	p.waiting--
	return true
}

// nudge wakes the keeper.
func (p *pool) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// giveBack takes sc back from a session that is done with it, and lends it at once to whoever waits longest. The session
// again, if not nil, joins the queue first. Any goroutine may call it that has just detached sc from its session.
func (p *pool) giveBack(sc *server, again *Session) {
	for {
		next := p.release(sc, again)
		if next == nil || sc.attach(next) {
			return
		}
		again = nil
	}
}

// release returns the session that sc, now free, is for, or nil after putting sc away.
func (p *pool) release(sc *server, again *Session) *Session {
	p.mu.Lock()
	if again != nil {
		p.enqueueLocked(again)
	}
	used := sc.lent
	if used {
		sc.lent = false
		p.lent++
	}
	if sc.cancels > 0 { // invariant 3: whoever sends the cancel request calls giveBack when it is done
		sc.parked = true
		p.mu.Unlock()
		return nil
	}
	// A connection that was just opened serves somebody before it may be claimed: pools that take turns would else do
	// nothing but log in.
	if p.closed || sc.retired() || (used || p.first == nil) && p.budget.mustYield(p, p.servers, p.first == nil) {
		p.mu.Unlock()
		sc.kill()
		return nil
	}
	if s := p.first; s != nil {
		p.forgetLocked(s)
		sc.lendLocked()
		p.mu.Unlock()
		return s
	}
	sc.idleSince = p.env.now()
	p.idle = append(p.idle, sc)
	p.mu.Unlock()
	return nil
}

// holdForCancel keeps sc, which s holds, from being lent to anyone else until cancelDone.
func (p *pool) holdForCancel(sc *server) {
	p.mu.Lock()
	sc.cancels++
	p.mu.Unlock()
}

// cancelDone undoes holdForCancel.
func (p *pool) cancelDone(sc *server) {
	p.mu.Lock()
	sc.cancels--
	free := sc.cancels == 0 && sc.parked
	if free {
		sc.parked = false
	}
	p.mu.Unlock()
	if free {
		p.giveBack(sc, nil)
	}
}

// lost takes sc out of the inventory; sc's own goroutine calls it last, when nobody uses sc any more.
func (p *pool) lost(sc *server) {
	p.mu.Lock()
	p.dropIdleLocked(sc)
	p.servers--
	delete(p.open, sc)
	p.mu.Unlock()
	sc.res.Destroy()
	p.env.count.serversClosed.Add(1)
	p.nudge()
}

func (p *pool) dropIdleLocked(sc *server) {
	for i, other := range p.idle {
		if other == sc {
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
			return
		}
	}
}

// evict gives up the connection that has been idle longest, and reports whether there was one.
func (p *pool) evict() bool {
	p.mu.Lock()
	if len(p.idle) == 0 {
		p.mu.Unlock()
		return false
	}
	sc := p.idle[0]
	p.idle = append(p.idle[:0], p.idle[1:]...)
	p.mu.Unlock()
	sc.kill()
	return true
}

// wantsLocked returns how many more logins should be under way.
func (p *pool) wantsLocked() int {
	if p.starved {
		return 0
	}
	want := p.waiting
	if p.welcome == nil && len(p.logins) > 0 {
		want = max(want, 1)
	}
	return min(want-p.opening, p.env.cfg.maxOpening()-p.opening)
}

// keep is the pool's keeper: it starts openers, ends waits that took too long, and retires idle connections.
func (p *pool) keep() {
	defer p.wg.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
		}
		p.openMore()
		p.retireIdle()
		if d := p.expire(); d >= 0 {
			timer.Reset(d)
		}
	}
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
	} else {
		p.noteFailure(err)
	}
	p.mu.Lock()
	p.failing = true
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

// noteFailure counts and logs a login to the server that failed. What the server has against a user or a database is the
// client's mistake more often than the operator's.
func (p *pool) noteFailure(err error) {
	p.env.count.openFailures.Add(1)
	level := slog.LevelError
	if isPermanent(err) {
		level = slog.LevelInfo
	}
	attrs := []any{slog.String("user", p.key.user), slog.String("database", p.key.database), slog.Any("err", err)}
	var open *openError
	if errors.As(err, &open) && open.hint != "" {
		attrs = append(attrs, slog.String("hint", open.hint))
	}
	p.env.log.Log(p.ctx, level, "pgmoor: login to the server failed", attrs...)
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

// expire ends the waits that took longer than the borrow timeout, and returns how long the keeper may sleep; negative
// without a limit.
func (p *pool) expire() time.Duration {
	limit := max(p.env.cfg.borrowTimeout(), 0)
	now := p.env.now()
	text := timedOut
	if limit == 0 {
		text = noneIdle
	}
	var late []*Session
	var told []*Error
	p.mu.Lock()
	for p.first != nil && now.Sub(p.first.queuedAt) >= limit {
		hint := p.waitHintLocked(p.first.queuedAt, p.waiting-1+len(late)+len(p.logins))
		late, told = append(late, p.first), append(told, &Error{Code: codeConnectionException, Message: text, Hint: hint})
		p.forgetLocked(p.first)
	}
	sleep := p.sleepLocked(now, limit)
	p.mu.Unlock()
	for i, s := range late {
		p.env.count.borrowTimeouts.Add(1)
		s.waitFailed(told[i])
	}
	return sleep
}

func (p *pool) sleepLocked(now time.Time, limit time.Duration) time.Duration {
	sleep := time.Duration(-1)
	sooner := func(d time.Duration) {
		if d = max(d, 0); sleep < 0 || d < sleep {
			sleep = d
		}
	}
	p.armed = p.first != nil
	if p.armed {
		sooner(p.first.queuedAt.Add(limit).Sub(now))
	}
	if p.retryAt.After(now) {
		sooner(p.retryAt.Sub(now))
	}
	switch t := p.env.cfg.idleTimeout(); {
	case t < 0:
	case len(p.idle) > 0:
		sooner(p.idle[0].idleSince.Add(t).Sub(now))
	case p.servers > 0: // none of them can be idle for so long before then
		sooner(t)
	}
	return sleep
}

// retireIdle closes the connections that nobody used for the idle timeout.
func (p *pool) retireIdle() {
	t := p.env.cfg.idleTimeout()
	if t < 0 {
		return
	}
	var old []*server
	p.mu.Lock()
	for now := p.env.now(); len(p.idle) > 0 && now.Sub(p.idle[0].idleSince) >= t; {
		old = append(old, p.idle[0])
		p.idle = append(p.idle[:0], p.idle[1:]...)
	}
	p.mu.Unlock()
	for _, sc := range old {
		sc.kill()
	}
}

// close ends the pool: waiters fail, server connections are closed. It returns when no goroutine of the pool is left.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	all := slices.Collect(maps.Keys(p.open))
	p.idle = nil
	var refused []*Session
	for p.first != nil {
		refused = append(refused, p.first)
		p.forgetLocked(p.first)
	}
	p.tellLoginsLocked(ErrProxyClosed)
	p.mu.Unlock()
	for _, s := range refused {
		s.waitFailed(asError(ErrProxyClosed))
	}
	for _, sc := range all {
		sc.kill()
	}
	p.stop()
	p.wg.Wait()
	p.inv.Close()
}
