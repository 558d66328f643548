package pgmoor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// This file stops all sessions at a boundary between transactions, lets them go on, and has server connections made anew.

// errResumed is why Pause ends where Resume was called meanwhile.
var errResumed = errors.New("pgmoor: Resume was called before every session had stopped")

// An UnfinishedError is why [Proxy.Pause], [Proxy.Reconnect] or [Proxy.Shutdown] did not get done what it was to do before its context
// ended. It says what the clients were doing that it waited for. errors.As finds it, and errors.Is the context's error in it.
type UnfinishedError struct {
	Op            string // "pause", "reconnect" or "shutdown"
	Active        int    // clients for which a server was at work, also to clean up behind them
	InTransaction int    // clients that had a transaction open and nothing under way in it
	Waiting       int    // clients whose request waited for a server connection
	Idle          int    // clients between two transactions; for Reconnect these are pinned ones
	Err           error  // the context's
}

// Clients returns how many there were.
func (e *UnfinishedError) Clients() int { return e.Active + e.InTransaction + e.Waiting + e.Idle }

// Error says how many clients did what.
func (e *UnfinishedError) Error() string {
	var what []string
	for _, w := range []struct {
		n    int
		text string
	}{{e.Active, "active"}, {e.InTransaction, "in a transaction"}, {e.Waiting, "waiting"}, {e.Idle, "idle"}} {
		if w.n > 0 {
			what = append(what, fmt.Sprintf("%d %s", w.n, w.text))
		}
	}
	return fmt.Sprintf("pgmoor: %s: %v: clients that were not done: %d (%s)", e.Op, e.Err, e.Clients(), strings.Join(what, ", "))
}

// Unwrap returns the context's error.
func (e *UnfinishedError) Unwrap() error { return e.Err }

// add counts a client in a state.
func (e *UnfinishedError) add(st SessionState) {
	switch st {
	case StateInTransaction, StateFailedTransaction:
		e.InTransaction++
	case StateWaiting:
		e.Waiting++
	case StateIdle:
		e.Idle++
	default:
		e.Active++
	}
}

// gate is what Pause shuts. While it is shut no server connection is lent and none is opened, no wait for one times out, and a session
// that keeps its server connection stops at its next boundary (holdPaused).
type gate struct {
	shut atomic.Bool // looked at under the mu of the pool, or session, whose affair it is

	mu    sync.Mutex    // taken inside all others; takes none
	since time.Time     // when it was last shut
	until time.Time     // when it was last opened
	news  chan struct{} // closed when something has come to rest
}

func (g *gate) isShut() bool { return g.shut.Load() }

// close shuts the gate, and reports whether it was open.
func (g *gate) close(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut.Load() {
		return false
	}
	g.since = now
	g.shut.Store(true)
	return true
}

// shutSince returns since when the gate is shut, if it is.
func (g *gate) shutSince() (since time.Time, shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.since, g.shut.Load()
}

// open opens the gate, and reports whether it was shut.
func (g *gate) open(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.until = now
	return g.shut.Swap(false)
}

// heldUp reports whether the gate was shut at any time since start.
func (g *gate) heldUp(start time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut.Load() || g.until.After(start)
}

// wait waits until the gate is open.
func (g *gate) wait(ctx context.Context) error {
	for {
		news := g.watch()
		if !g.isShut() {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watch returns a channel that is closed by the next stir.
func (g *gate) watch() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.news == nil {
		g.news = make(chan struct{})
	}
	return g.news
}

// stir tells those who watch.
func (g *gate) stir() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.news != nil {
		close(g.news)
		g.news = nil
	}
}

// Pause stops all sessions at a boundary between transactions, and returns when no server connection is in use. Transactions that are open
// go on until their end; every request that would begin another one waits for [Proxy.Resume], and no wait for a server connection
// ends by Config.BorrowTimeout meanwhile (with [NoWait] it is over at Resume, where none is idle then). A pinned session that is between two
// transactions counts as stopped: it keeps its server connection, and its next request waits. Clients may log in, save for the first ones of a
// database, user and startup parameters, who wait too. Cleaning up behind clients that leave is waited for. What is no pooled connection
// goes on: connections that listen, and those of replication clients.
//
// Where ctx ends first, the pause is undone, unless an earlier call had begun it, and the error is an *[UnfinishedError]. Pause returns
// [ErrProxyClosed] after [Proxy.Shutdown] or [Proxy.Close], and an error where Resume was called before it was done. Idle
// server connections stay open; to have none, for a database that is to be renamed or a server that is to be replaced, call
// [Proxy.Reconnect] when Pause has returned: while it lasts none is opened. Shutdown in a pause ends clients that wait.
func (p *Proxy) Pause(ctx context.Context) error {
	if p.isClosing() {
		return ErrProxyClosed
	}
	first := p.env.gate.close(p.env.now())
	if first {
		p.env.log.Info("pgmoor: pausing")
	}
	for _, s := range p.env.all() {
		s.stop()
	}
	for {
		news := p.env.gate.watch()
		busy := p.running()
		switch {
		case !p.env.gate.isShut():
			return errResumed
		case busy.Clients() == 0:
			return nil
		}
		select {
		case <-news:
		case <-p.done:
			return ErrProxyClosed
		case <-ctx.Done():
			if first {
				p.Resume()
			}
			busy.Op, busy.Err = "pause", ctx.Err()
			return busy
		}
	}
}

// Resume ends a [Proxy.Pause]: requests that waited are sent, in the order in which they came. It does nothing where there is no pause.
func (p *Proxy) Resume() {
	since, shut := p.env.gate.shutSince()
	if !shut {
		return
	}
	for _, pl := range p.allPools() { // before any wait can time out again
		pl.excuse(since)
	}
	if !p.env.gate.open(p.env.now()) { // somebody else does the rest
		return
	}
	p.env.log.Info("pgmoor: resumed")
	p.env.gate.stir() // for a Pause that is not done yet
	for _, pl := range p.allPools() {
		pl.serveWaiting()
		pl.nudge()
		pl.nudgeListener()
	}
	// Those who found no token before the pause try again: what has become idle meanwhile was for others, who may have left since.
	refill(p.allPools())
	for _, s := range p.env.all() {
		s.resumed()
	}
}

// running counts those that use a server connection and have not stopped.
func (p *Proxy) running() *UnfinishedError {
	e := new(UnfinishedError)
	for _, pl := range p.allPools() {
		for _, sc := range pl.inUse() {
			if st, stopped := sc.use(); !stopped {
				e.add(st)
			}
		}
	}
	return e
}

// inUse returns the server connections that are lent.
func (p *pool) inUse() (all []*server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for sc := range p.open {
		if sc.lent || sc.sess.Load() != nil {
			all = append(all, sc)
		}
	}
	return all
}

// use returns what the session does that holds sc, and whether it has stopped.
func (sc *server) use() (st SessionState, stopped bool) {
	s := sc.sess.Load()
	if s == nil { // about to be lent, or to be closed
		return StateActive, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.srv != sc || s.gone {
		return StateActive, false
	}
	return s.stateLocked(), s.holds&holdPaused != 0 && s.turn.Quiet()
}

// stop is stopLocked, for any goroutine.
func (s *Session) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopLocked()
}

// stopLocked has the session's next request wait while the gate is shut, if it keeps its server connection and is at a boundary: one that
// holds none waits in the queue. The caller holds mu.
func (s *Session) stopLocked() {
	stays := s.srv != nil && s.srv.res != nil && !s.finishing && !s.releasableLocked()
	if stays && s.turn.Quiet() && s.turn.Status() == 'I' && s.env.gate.isShut() {
		s.holds |= holdPaused
		s.env.gate.stir()
	}
}

// resumed lets the session go on, unless the gate is shut again.
func (s *Session) resumed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds&holdPaused != 0 && !s.env.gate.isShut() {
		s.goOn(holdPaused)
	}
}

// excuse makes the pause, which began at since, no part of anybody's wait.
func (p *pool) excuse(since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.env.now()
	for s := p.first; s != nil; s = s.next {
		s.queuedAt = now.Add(-max(0, since.Sub(s.queuedAt)))
	}
}

// serveWaiting lends what is idle to those who wait: behind a pause, or where somebody waits again whose connection has ended.
func (p *pool) serveWaiting() {
	for sc := p.wanted(); sc != nil; sc = p.wanted() {
		if sc.stale() {
			sc.kill()
			continue
		}
		p.giveBack(sc, nil)
	}
}

// wanted takes an idle connection for those who wait out of the pool.
func (p *pool) wanted() *server {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle)
	if p.first == nil || n == 0 || p.closed || p.env.gate.isShut() {
		return nil
	}
	sc := p.idle[n-1]
	p.idle = p.idle[:n-1]
	return sc
}

// Reconnect has all server connections made anew, without a client's noticing: idle ones are closed at once, those in use when they are
// given back, and that of a pinned session when its pin ends. Connections that listen are made anew at once; clients that listen are told by a
// NOTICE that notifications may be missing. Those of replication clients stay. Reconnect returns when the last of the old ones is closed.
// Where ctx ends first, the error is an *[UnfinishedError]; the rest is closed all the same when it is given back. After
// [Proxy.Close] it returns [ErrProxyClosed].
func (p *Proxy) Reconnect(ctx context.Context) error {
	if p.isClosed() {
		return ErrProxyClosed
	}
	old := p.retire()
	for _, sc := range old {
		select {
		case <-sc.closed:
		case <-p.done:
			return ErrProxyClosed
		case <-ctx.Done():
			return unclosed(old, ctx.Err())
		}
	}
	return nil
}

// unclosed counts those that are still open; nil if none is.
func unclosed(old []*server, err error) error {
	e := &UnfinishedError{Op: "reconnect", Err: err}
	for _, sc := range old {
		select {
		case <-sc.closed:
		default:
			st, _ := sc.use()
			e.add(st)
		}
	}
	if e.Clients() == 0 {
		return nil
	}
	return e
}

// retire begins a new epoch, and returns the server connections of earlier ones.
func (p *Proxy) retire() (old []*server) {
	epoch := p.env.epoch.Add(1)
	for _, pl := range p.allPools() {
		old = append(old, pl.retire(epoch)...)
	}
	return old
}

// retire closes the idle connections that were opened before epoch, and returns all of those.
func (p *pool) retire(epoch uint64) (old []*server) {
	old = p.retireIf(func(sc *server) bool { return sc.epoch < epoch })
	p.nudgeListener()
	return old
}

// retireIf closes the idle connections that are old, and returns all that are. Others are not lent again, see server.retired.
func (p *pool) retireIf(isOld func(*server) bool) (old []*server) {
	var unused []*server
	p.mu.Lock()
	for sc := range p.open {
		if isOld(sc) {
			old = append(old, sc)
		}
	}
	kept := p.idle[:0]
	for _, sc := range p.idle {
		if isOld(sc) {
			unused = append(unused, sc)
		} else {
			kept = append(kept, sc)
		}
	}
	clear(p.idle[len(kept):])
	p.idle = kept
	p.mu.Unlock()
	for _, sc := range unused {
		sc.kill()
	}
	return old
}

// nudgeListener makes the pool's listener, if there is one, look at the gate and the epoch.
func (p *pool) nudgeListener() {
	p.mu.Lock()
	l := p.ear
	p.mu.Unlock()
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nudgeLocked()
}

// undrained counts the clients that are left when Shutdown gives up. If none is, Shutdown has done what it was to do.
func (p *Proxy) undrained(err error) error {
	e := &UnfinishedError{Op: "shutdown", Err: err}
	for _, s := range p.env.all() {
		e.add(s.Info().State)
	}
	if e.Clients() == 0 {
		return p.Close()
	}
	return e
}
