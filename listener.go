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

// maxOrder bounds the text of one command, so that any socket buffer takes it.
const maxOrder = safeRequest - 1<<10

// listener is what listens for the sessions of a pool. Its goroutine, run, exists while a session listens; it is the only one
// that reads, writes and closes the connection.
type listener struct {
	pool *pool
	wake chan struct{} // ends a pause between two attempts; capacity 1

	// Owned by run.
	order   *order // sent and not answered yet
	tame    bool   // the first one was sent
	broken  bool   // the connection was lost, or is of no use
	backoff time.Duration
	stirred []*ears // scratch

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

// A hearing is a request to the listener: to listen to channels, and to have read all that was notified before.
type hearing struct {
	ears   *ears
	names  []string
	holds  bool          // a message of the session waits for it
	lost   bool          // a connection was lost over it; owned by run
	failed bool          // set before done is closed
	done   chan struct{} // closed when it is over, by run or by whoever asks
}

// An order is what the server is told at once.
type order struct {
	text     string
	on, off  []string
	hearings []*hearing
	failed   bool
	limit    time.Time
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

// ask enters a request and subscribes its session to the channels. It reports false where there is no hope. The caller
// holds the session's mu.
func (l *listener) ask(h *hearing) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || !l.startLocked() {
		return false
	}
	l.ears[h.ears] = struct{}{}
	for _, n := range h.names {
		l.subscribeLocked(h.ears, n, false)
	}
	l.asked = append(l.asked, h)
	l.nudgeLocked()
	return true
}

// barrier returns a request to read all that was notified before, nil where nothing is heard at the moment.
func (l *listener) barrier(e *ears) *hearing {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.link == nil || l.closed {
		return nil
	}
	h := &hearing{ears: e, done: make(chan struct{})}
	l.asked = append(l.asked, h)
	l.nudgeLocked()
	return h
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
	l.nudgeLocked()
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
	for l.wanted() {
		li, err := l.pool.up.open(l.pool.ctx, &l.pool.key)
		if err != nil {
			if l.pool.ctx.Err() == nil {
				l.pool.noteFailure(err)
			}
			l.giveUp(true)
			l.pause()
			continue
		}
		l.serve(li)
		if l.broken {
			l.pause()
		}
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

// pause waits between two attempts, as the opener does, until nobody listens any more.
func (l *listener) pause() {
	l.backoff = min(max(2*l.backoff, minBackoff), maxBackoff)
	t := time.NewTimer(l.backoff/2 + rand.N(l.backoff))
	defer t.Stop()
	for l.needed() {
		select {
		case <-t.C:
			return
		case <-l.pool.ctx.Done():
			return
		case <-l.wake:
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
	lk := link.New(li.conn, !l.pool.env.cfg.plainIO)
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

// next returns what is to be ordered now, if anything.
func (l *listener) next() (o *order, wanted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, false
	case l.order != nil:
		return nil, true
	}
	o = new(order)
	if !l.tame {
		o.text = tameTimeouts
	}
	if l.fillLocked(o) {
		return o, true
	}
	return nil, len(l.ears) > 0
}

// fillLocked makes an order of what was asked and of the channels that are missing or not wanted any more. It reports false
// if there is nothing to order.
func (l *listener) fillLocked(o *order) bool {
	on := make(map[string]struct{})
	for len(l.asked) > 0 {
		h := l.asked[0]
		for _, n := range h.names {
			if _, missing := l.missing[n]; missing && !o.listen(n, on) {
				return true // the rest comes with the next one
			}
		}
		o.hearings = append(o.hearings, h)
		l.asked = l.asked[1:]
	}
	for n := range l.missing {
		if !o.listen(n, on) {
			break
		}
	}
	for n := range l.surplus {
		if o.add("UNLISTEN ", n) {
			o.off = append(o.off, n)
		}
	}
	return len(o.on)+len(o.off)+len(o.hearings) > 0
}

// listen adds a channel to be listened to, if it is not there already. It reports false if it does not fit.
func (o *order) listen(name string, on map[string]struct{}) bool {
	if _, known := on[name]; known {
		return true
	}
	if !o.add("LISTEN ", name) {
		return false
	}
	on[name] = struct{}{}
	o.on = append(o.on, name)
	return true
}

func (o *order) add(verb, name string) bool {
	if len(o.text)+len(quoteChannel(name))+channelCost > maxOrder {
		return false
	}
	o.text += verb + quoteChannel(name) + ";"
	return true
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

// answered takes the end of the answer to an order.
func (l *listener) answered() {
	o := l.order
	if l.order = nil; o == nil {
		return
	}
	if o.failed {
		for _, h := range o.hearings {
			h.over(true)
		}
		l.broken = true // nothing can be listened to on it
		return
	}
	l.backoff = 0
	l.mu.Lock()
	l.carriedOutLocked(o)
	stirred := l.restoredLocked()
	l.mu.Unlock()
	for _, h := range o.hearings {
		h.over(false)
	}
	for _, e := range stirred {
		e.s.stir(e)
	}
}

// carriedOutLocked takes note of what the server has done.
func (l *listener) carriedOutLocked(o *order) {
	for _, n := range o.on {
		delete(l.missing, n)
		l.on[n] = struct{}{}
		if len(l.subs[n]) == 0 {
			l.surplus[n] = struct{}{}
		}
	}
	for _, n := range o.off {
		delete(l.surplus, n)
		delete(l.on, n)
		if len(l.subs[n]) > 0 {
			l.missing[n] = struct{}{}
		}
	}
	for _, h := range o.hearings {
		if len(h.names) > 0 {
			h.ears.filterLocked() // what the session has not listened to yet counts from here on
		}
	}
}

// restoredLocked returns who has to be told that notifications may have been missed, when all is listened to again.
func (l *listener) restoredLocked() (stirred []*ears) {
	if !l.deaf || len(l.missing) > 0 {
		return nil
	}
	l.deaf = false
	for e := range l.ears {
		if e.missed {
			e.missed, e.lost = false, true
			if !e.some.Swap(true) {
				stirred = append(stirred, e)
			}
		}
	}
	return stirred
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

// split returns, of the requests in an order that was lost, those that are tried once more and those that were.
func (o *order) split() (again, over []*hearing) {
	if o == nil {
		return nil, nil
	}
	for _, h := range o.hearings {
		if h.lost {
			over = append(over, h)
		} else {
			again = append(again, h)
		}
		h.lost = true
	}
	return again, over
}

// giveUp ends the requests that cannot be met without a connection: all, or those that do not ask for channels.
func (l *listener) giveUp(all bool) {
	l.mu.Lock()
	var rest, over []*hearing
	for _, h := range l.asked {
		if all || !h.holds {
			over = append(over, h)
		} else {
			rest = append(rest, h)
		}
	}
	l.asked = rest
	l.mu.Unlock()
	for _, h := range over {
		h.over(true)
	}
}

// over ends a request.
func (h *hearing) over(failed bool) {
	h.failed = failed
	close(h.done)
	if h.holds {
		h.ears.s.ready(h)
	}
}

// close makes run end. The pool waits for it.
func (l *listener) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.nudgeLocked()
}
