package pgmoor

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/puddle/v2"

	"github.com/pgmoor/pgmoor/internal/wire"
)

// poolKey is what server connections must have in common to be lent to the same clients: everything that is decided when
// a connection starts.
type poolKey struct {
	database, user string
	params         string // startup parameters in order: name, 0, value, 0
}

// sorted returns the key with the parameters by name. Some drivers send them in another order each time, which is all the same to
// the server, save for the order of those with one name, and of a role and session_authorization, which decide what others may be set.
func (k poolKey) sorted() poolKey {
	var all []string
	for rest := []byte(k.params); len(rest) > 0; {
		param := rest
		name, _, _ := wire.CString(param)
		switch foldName(name) {
		case settingAuthorization, settingRole:
			return k
		}
		_, rest, _ = wire.CString(param[len(name)+1:])
		all = append(all, string(param[:len(param)-len(rest)]))
	}
	slices.SortStableFunc(all, func(a, b string) int { return strings.Compare(paramName(a), paramName(b)) })
	k.params = strings.Join(all, "")
	return k
}

// paramName returns the name by which the server knows a startup parameter.
func paramName(param string) string {
	name, _, _ := strings.Cut(param, "\x00")
	return foldName([]byte(name))
}

// puddleCeiling is puddle's own limit, which cannot be changed and is never reached: the live limit is the budget's.
const puddleCeiling = 1 << 16

// pool lends the server connections of one key. Puddle holds the inventory: it creates, destroys and counts. The pool
// holds every connection, Acquired in puddle's eyes, and chooses who gets which: waiters are served strictly in the
// order in which they came. It knows sessions only as waiters.
type pool struct {
	outdated       outdated
	renewed        renewals       // of prepared statements
	statementEpoch atomic.Uint64  // counts the plans that the server has refused
	meanings       *atomic.Uint64 // of the database, see env.meaningsOf

	key     poolKey // as the first client had it
	account *account
	env     *env
	budget  *budget
	shares  []*budget // narrower ones that it is part of, besides
	inv     *puddle.Pool[*server]

	asked atomic.Bool // sessions of this pool ask for values of sequences that they got before

	ctx  context.Context // ends with the pool; carries the opener's permission to construct
	stop context.CancelFunc
	wake chan struct{}
	wg   sync.WaitGroup // keeper, openers, goroutines of the server connections

	mu           sync.Mutex // never held across I/O; taken inside a session's, takes none
	idle         []*server  // the last is the most recently used
	open         map[*server]struct{}
	servers      int      // how many are open
	using        int      // of those, how many are lent
	opening      int      // openers at work
	dialing      int      // of those, how many hold a token of the budget
	first        *Session // waiters, oldest first
	last         *Session
	waiting      int
	wishes       []wish       // oldest first
	logins       []chan error // clients that wait for the pool's first connection
	use          demand
	kept         int       // of the idle ones, how many stay beyond the idle timeout
	welcome      []byte    // ParameterStatus messages of the latest login; nil before the first
	base         settings  // what Config.InitQuery set at it
	armed        bool      // the keeper's timer will look at the waiters
	starved      bool      // the budget had nothing for us
	failing      bool      // the latest login to the server failed
	refusedSince time.Time // since when the server refuses the password; zero: it does not
	backoff      time.Duration
	retryAt      time.Time
	askedAt      time.Time // when pinned sessions were last asked about because others wait
	asksAt       time.Time // when they are to be
	refs         int       // sessions
	ear          *listener // nil: nobody has listened yet
	lent         int64
	closed       bool

	loginsCtx  context.Context // of logins that begin now; from ctx
	stopLogins context.CancelCauseFunc
}

func newPool(key poolKey, e *env, a *account, b *budget, shares []*budget) (*pool, error) {
	p := &pool{key: key, account: a, env: e, budget: b, shares: shares, meanings: e.meaningsOf(key.database), wake: make(chan struct{}, 1), open: make(map[*server]struct{})}
	p.ctx, p.stop = context.WithCancel(context.WithValue(context.Background(), openerKey{}, p))
	p.loginsCtx, p.stopLogins = context.WithCancelCause(p.ctx)
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

// borrow lends s an idle server connection, or puts s in the queue and returns nil. The caller holds s.mu.
func (p *pool) borrow(s *Session) *server {
	for {
		sc := p.take(s)
		if sc == nil && s.waitErr != nil {
			s.interrupt()
		}
		if sc == nil || !sc.stale() {
			return sc
		}
		sc.kill()
	}
}

func (p *pool) take(s *Session) *server {
	p.mu.Lock()
	defer p.mu.Unlock()
	// While others wait, what is idle is theirs: a pause has just ended (see serveWaiting).
	if i := p.pickLocked(s); i >= 0 && p.first == nil && !p.env.gate.isShut() {
		sc := p.idle[i]
		p.idle = append(p.idle[:i], p.idle[i+1:]...)
		sc.lendLocked()
		p.noteUseLocked()
		return sc
	}
	if s.waitErr = p.fullLocked(); s.waitErr == nil {
		p.enqueueLocked(s)
	}
	return nil
}

// maxPicked is among how many idle connections one with the right settings is looked for.
const maxPicked = 64

// pickLocked returns which idle connection is lent to s next, -1 if there is none: in turn, or of those used last the one
// that has the session's values of sequences, if it minds, or the settings, or else the last.
func (p *pool) pickLocked(s *Session) int {
	last := len(p.idle) - 1
	if p.env.config().RoundRobin {
		return min(last, 0)
	}
	if s.minds() {
		for i := last; i >= 0 && i > last-maxPicked; i-- {
			if s.gotOn(p.idle[i]) {
				return i
			}
		}
	}
	for i := last; i >= 0 && i > last-maxPicked; i-- {
		if p.idle[i].set == s.set {
			return i
		}
	}
	return last
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
	p.noteUseLocked()
	if !p.armed || p.wantsLocked() > 0 || p.env.pinnedNow.Load() > 0 {
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
	used, shut := sc.lent, p.env.gate.isShut()
	if used {
		sc.lent = false
		p.using--
		p.lent++
	}
	if again != nil { // behind using, or it would be counted twice
		p.enqueueLocked(again)
	}
	if shut {
		p.env.gate.stir()
	}
	if sc.cancels > 0 { // invariant 3: whoever sends the cancel request calls giveBack when it is done
		sc.parked = true
		p.mu.Unlock()
		return nil
	}
	if t := sc.stands(); t != nil && !p.closed {
		defer p.mu.Unlock()
		if !shut && p.forgetLocked(t) {
			sc.lendLocked()
			return t
		}
		sc.standBy(t)
		return nil
	}
	if len(p.wishes) > 0 && !p.closed && !sc.retired() && p.fulfils(sc) {
		return nil
	}
	// A connection that was just opened serves somebody before it may be claimed: pools that take turns would else do
	// nothing but log in.
	if p.closed || sc.retired() || p.mustShrink() || (used || p.first == nil) && p.mustYield(p.first == nil) {
		p.mu.Unlock()
		sc.kill()
		return nil
	}
	if s := p.first; s != nil && !shut {
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
	if p.servers--; sc.lent {
		p.using--
	}
	delete(p.open, sc)
	p.mu.Unlock()
	sc.res.Destroy()
	close(sc.closed)
	if p.env.gate.isShut() {
		p.env.gate.stir()
	}
	p.env.count.serversClosed.Add(1)
	p.nudge()
}

func (p *pool) dropIdleLocked(sc *server) (was bool) {
	for i, other := range p.idle {
		if other == sc {
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
			return true
		}
	}
	return false
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
		p.serveWaiting()
		p.openMore()
		p.reconsiderPinned()
		p.retireIdle()
		if d := p.expire(); d >= 0 {
			timer.Reset(d)
		}
	}
}

// hungry reports whether somebody waits for a server connection.
func (p *pool) hungry() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting > 0 || p.claimed()
}

// reconsiderPinned asks, while somebody waits, whether those that keep a server connection still need it.
func (p *pool) reconsiderPinned() {
	if !p.hungry() || p.env.pinnedNow.Load() == 0 {
		return
	}
	p.mu.Lock()
	now := p.env.now()
	p.asksAt = time.Time{}
	if next := p.askedAt.Add(hungryInterval); next.After(now) {
		p.asksAt = next
		p.mu.Unlock()
		return
	}
	p.askedAt = now
	all := slices.Collect(maps.Keys(p.open))
	p.mu.Unlock()
	for _, sc := range all {
		if s := sc.sess.Load(); s != nil && s.pinsView.Load() != 0 {
			s.reconsider()
		}
	}
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

// expire ends the waits that took longer than the borrow timeout, and returns how long the keeper may sleep; negative
// without a limit.
func (p *pool) expire() time.Duration {
	limit := max(p.env.config().borrowTimeout(), 0)
	now := p.env.now()
	text := timedOut
	if limit == 0 {
		text = noneIdle
	}
	var late []*Session
	var told []*Error
	p.mu.Lock()
	for p.first != nil && now.Sub(p.first.queuedAt) >= limit && !p.env.gate.isShut() {
		hint := p.waitHintLocked(p.first.queuedAt, p.waiting-1+len(late)+len(p.logins))
		late, told = append(late, p.first), append(told, &Error{Code: codeConnectionException, Message: text, Hint: hint})
		p.forgetLocked(p.first)
	}
	vain := p.giveUpLocked(now)
	sleep := p.sleepLocked(now, limit)
	p.mu.Unlock()
	for _, s := range vain {
		s.sought(true)
	}
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
	p.armed = p.first != nil && !p.env.gate.isShut()
	if p.armed {
		sooner(p.first.queuedAt.Add(limit).Sub(now))
	}
	if len(p.wishes) > 0 {
		sooner(p.wishes[0].until.Sub(now))
	}
	if p.asksAt.After(now) {
		sooner(p.asksAt.Sub(now))
	}
	if p.retryAt.After(now) {
		sooner(p.retryAt.Sub(now))
	}
	switch t, past := p.env.config().idleTimeout(), 0; {
	case t < 0 || p.servers == 0:
	default:
		if past = p.pastLocked(now, t); past < len(p.idle) {
			sooner(p.idle[past].idleSince.Add(t).Sub(now))
		} else { // none of the others can be idle for so long before then
			sooner(t)
		}
	}
	return sleep
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
	ear := p.ear
	p.mu.Unlock()
	for _, s := range refused {
		s.waitFailed(asError(ErrProxyClosed))
	}
	if ear != nil {
		ear.close()
	}
	for _, sc := range all {
		sc.kill()
	}
	p.stop()
	p.wg.Wait()
	p.inv.Close()
}
