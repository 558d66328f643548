package pgmoor

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file listens: one server connection for each pool, outside of the budget, hears for all sessions of the pool what their
// channels are notified of, and puts it into their queues. What a session listens to is in listen.go.

// listenerPatience is how long the server may take to answer on a listening connection before that counts as lost.
const listenerPatience = 10 * time.Second

// maxHeard bounds the bytes of notifications that wait for a session. One that has more ends.
const maxHeard = 1 << 20

// listener is what listens for the sessions of a pool. Its goroutine, run, exists while a session listens; it is the only one
// that reads, writes and closes the connection.
type listener struct {
	pool *pool
	wake chan struct{} // ends a pause between two attempts; capacity 1

	// Owned by run.
	epoch   uint64 // under which the connection was opened
	order   *order // sent and not answered yet
	tame    bool   // the first one was sent
	broken  bool   // the connection was lost, or is of no use
	backoff time.Duration
	since   time.Time // when nothing was heard any more, without pauses of the proxy's; zero: all is well
	stirred []*ears   // scratch

	mu      sync.Mutex // never held across I/O; taken inside a session's, takes a pool's
	ears    map[*ears]struct{}
	subs    map[string]map[*ears]struct{}
	on      map[string]struct{} // channels that the server listens to
	missing map[string]struct{} // channels of subs that it does not listen to yet
	surplus map[string]struct{} // channels of on that nobody wants any more
	asked   []*hearing          // not part of an order yet
	link    *link.Link          // nil while there is no connection
	deaf    bool                // a connection was lost and its channels are not all listened to again
	running bool
	closed  bool
}

// tameTimeouts ends what an idle connection may be ended by, whatever the client's startup parameters say.
const tameTimeouts = `SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) ` +
	`ANY ('{idle_session_timeout,statement_timeout,lock_timeout,transaction_timeout,idle_in_transaction_session_timeout}'::text[]);`

// listening returns the pool's listener.
func (p *pool) listening() *listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ear == nil {
		p.ear = &listener{
			pool: p, wake: make(chan struct{}, 1), closed: p.closed,
			ears: make(map[*ears]struct{}), subs: make(map[string]map[*ears]struct{}),
			on: make(map[string]struct{}), missing: make(map[string]struct{}), surplus: make(map[string]struct{}),
		}
	}
	return p.ear
}

// startLocked starts run, unless it runs or the pool is closed.
func (l *listener) startLocked() bool {
	if l.running {
		return true
	}
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	if l.pool.closed {
		return false
	}
	l.running = true
	l.pool.wg.Add(1)
	go l.run()
	return true
}

// nudgeLocked makes run look for something to do.
func (l *listener) nudgeLocked() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
	if l.link != nil {
		l.link.Interrupt()
	}
}

func (l *listener) subscribeLocked(e *ears, name string, committed bool) {
	e.subs[name] = committed || e.subs[name]
	m := l.subs[name]
	if m == nil {
		m = make(map[*ears]struct{})
		l.subs[name] = m
		delete(l.surplus, name)
		if _, on := l.on[name]; !on {
			l.missing[name] = struct{}{}
		}
	}
	m[e] = struct{}{}
}

func (l *listener) unsubscribeLocked(e *ears, name string) {
	delete(e.subs, name)
	delete(l.subs[name], e)
	if len(l.subs[name]) > 0 {
		return
	}
	delete(l.subs, name)
	delete(l.missing, name)
	if _, on := l.on[name]; on {
		l.surplus[name] = struct{}{}
	}
}

// settle makes names what e listens to, and forgets what was heard of other channels. The caller holds the session's mu.
func (l *listener) settle(e *ears, names map[string]struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := range e.subs {
		if _, stays := names[n]; !stays {
			l.unsubscribeLocked(e, n)
		}
	}
	for n := range names {
		if _, known := e.subs[n]; !known { // a function listens: what came meanwhile was missed
			e.lost = true
			e.some.Store(true)
		}
		l.subscribeLocked(e, n, true)
	}
	e.filterLocked()
	if len(names) == 0 {
		delete(l.ears, e)
		e.admitLocked()
	} else {
		l.ears[e] = struct{}{}
		l.startLocked() // nobody has asked for what a function listens to
	}
	if len(l.missing)+len(l.surplus) > 0 || len(l.ears) == 0 {
		l.nudgeLocked()
	}
}

// release ends what is put into e's queue, and leaves what is there.
func (l *listener) release(e *ears) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := range e.subs {
		l.unsubscribeLocked(e, n)
	}
	delete(l.ears, e)
	e.admitLocked()
	l.nudgeLocked()
}

// admitLocked has the client told that some may be missing, which otherwise waits until the listener listens again: it is not the listener any
// more that listens for it. The caller holds the listener's mu.
func (e *ears) admitLocked() {
	if e.missed {
		e.lost, e.missed = true, false
		e.some.Store(true)
	}
}

// leave forgets e.
func (l *listener) leave(e *ears) {
	l.release(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	e.queue, e.count = nil, 0
}

// run is the goroutine of the listener.
func (l *listener) run() {
	defer l.pool.wg.Done()
	for l.since = (time.Time{}); l.wanted(); {
		l.epoch = l.pool.env.epoch.Load()
		li, err := l.pool.env.config().up.open(l.pool.ctx, &l.pool.key)
		if err != nil {
			if l.pool.ctx.Err() == nil {
				l.pool.noteFailure(err)
			}
			l.giveUp(true)
		} else if l.serve(li); !l.broken {
			continue
		}
		l.vain(err)
		l.pause()
	}
}

// wanted reports whether run has anything to do; if not, it is over.
func (l *listener) wanted() bool {
	l.mu.Lock()
	if !l.closed && len(l.ears) > 0 {
		l.mu.Unlock()
		return true
	}
	l.running = false
	asked := l.asked
	l.asked, l.deaf = nil, false
	l.mu.Unlock()
	for _, h := range asked {
		h.over(true)
	}
	return false
}

// pause waits between two attempts, as the opener does, and for the end of a pause of the proxy's, until nobody listens any more.
func (l *listener) pause() {
	l.backoff = min(max(2*l.backoff, minBackoff), maxBackoff)
	t := time.NewTimer(l.backoff/2 + rand.N(l.backoff))
	defer t.Stop()
	for over := false; l.needed() && (!over || l.pool.env.gate.isShut()); {
		shut := l.pool.env.gate.isShut()
		select {
		case <-t.C:
			over = true
		case <-l.pool.ctx.Done():
			return
		case <-l.wake:
		}
		if shut {
			l.since = l.pool.env.now()
		}
	}
}

func (l *listener) needed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.closed && len(l.ears) > 0
}

// serve listens on a connection until it ends or nobody wants it any more.
func (l *listener) serve(li *loggedIn) {
	lk := link.New(li.conn, !l.pool.env.config().plainIO)
	defer func() { _ = li.conn.Close() }()
	defer lk.Release()
	defer l.down()
	defer l.recover()
	l.order, l.tame, l.broken = nil, false, false
	l.mu.Lock()
	l.link = lk
	l.mu.Unlock()
	l.pool.env.count.listeners.Add(1)
	defer l.pool.env.count.listeners.Add(-1)
	for !l.broken {
		wanted, err := l.instruct(lk)
		if err == nil && !wanted {
			lk.TryTerminate()
			return
		}
		if err == nil {
			err = lk.Run(l.heard)
		}
		l.broken = l.broken || err != nil && !link.Interrupted(err)
	}
}

// recover takes the end of a connection over which something panicked: it is made again, as if it were lost.
func (l *listener) recover() {
	if r := recover(); r != nil {
		l.broken = true
		l.pool.env.log.Error("pgmoor: panic on a listening connection", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	}
}

// instruct writes the next order, if there is something to order and none is under way. wanted is false when the connection
// is of no use any more.
func (l *listener) instruct(lk *link.Link) (wanted bool, err error) {
	if l.epoch != l.pool.env.epoch.Load() {
		return true, errAbandoned
	}
	now := l.pool.env.now()
	var limit time.Time
	if l.order != nil {
		if limit = l.order.limit; !now.Before(limit) {
			return true, errAbandoned
		}
	}
	if err = lk.Conn().SetReadDeadline(limit); err != nil { // before l is looked at: nudgeLocked does it the other way round
		return true, err
	}
	o, wanted := l.next()
	if o == nil {
		return wanted, nil
	}
	l.order, l.tame, o.limit = o, true, now.Add(listenerPatience)
	if err = lk.Conn().SetWriteDeadline(o.limit); err == nil {
		_, err = lk.Write(wire.AppendQuery(nil, o.text))
	}
	if err == nil {
		lk.Interrupt() // and back here, with the limit of the order
	}
	return true, err
}

// heard is the handler of the connection's link.
func (l *listener) heard(b []byte) (n int, next link.Next) {
	for len(b)-n >= wire.HeaderLen {
		size := int(wire.Length(b[n:])) + 1
		if size < wire.HeaderLen || size > link.BufferSize {
			l.broken = true
			return len(b), link.Leave
		}
		if size > len(b)-n {
			break
		}
		msg := b[n : n+size]
		n += size
		switch msg[0] {
		case wire.NotificationResponse:
			l.notified(msg)
		case wire.ErrorResponse:
			if l.order != nil {
				l.order.failed = true
			}
		case wire.ReadyForQuery:
			l.answered()
			return n, link.Leave
		}
	}
	return n, link.Again // the end of the stream may have come along
}

// notified puts a notification into the queues of those who listen.
func (l *listener) notified(msg []byte) {
	if len(msg) < wire.HeaderLen+4 {
		return
	}
	channel, _, ok := wire.CString(msg[wire.HeaderLen+4:])
	if !ok {
		return
	}
	l.pool.env.namePid(msg)
	stirred := l.stirred[:0]
	l.mu.Lock()
	for e := range l.subs[string(channel)] {
		if e.putLocked(msg) {
			stirred = append(stirred, e)
		}
	}
	l.mu.Unlock()
	for _, e := range stirred {
		e.s.stir(e)
	}
	clear(stirred)
	l.stirred = stirred
}

// down takes the end of the connection.
func (l *listener) down() {
	l.mu.Lock()
	l.link = nil
	clear(l.on)
	clear(l.surplus)
	for n := range l.subs {
		l.missing[n] = struct{}{}
	}
	listening := l.broken && len(l.ears) > 0 && !l.closed
	if listening {
		l.deaf = true
		for e := range l.ears {
			e.missed = true
		}
	}
	again, over := l.order.split()
	l.asked, l.order = append(again, l.asked...), nil
	l.mu.Unlock()
	for _, h := range over {
		h.over(true)
	}
	l.giveUp(false)
	if listening {
		l.pool.env.count.listenersLost.Add(1)
		l.pool.env.log.Warn("pgmoor: listening connection lost", slog.String("user", l.pool.key.user), slog.String("database", l.pool.key.database))
	}
}

// close makes run end. The pool waits for it.
func (l *listener) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.nudgeLocked()
}
