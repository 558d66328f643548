package pgmoor

import "time"

// This file is about what the listener is asked for, and what it tells the server for that (listener.go).

// maxOrder bounds the text of one command, so that any socket buffer takes it.
const maxOrder = safeRequest - 1<<10

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
	l.backoff, l.since = 0, time.Time{}
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
