package pgmoor

import (
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgmoor/pgmoor/internal/turn"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file tells clients what they were notified of: while they are idle, or in front of a ReadyForQuery. It is written by
// whoever may write to the client at that moment: the goroutine of the server connection that the session holds, or Serve's
// where it holds none.

var errSlowListener = &Error{
	Severity: "FATAL", Code: codeQueryCanceled,
	Message: "terminating connection because its client does not take its notifications",
	Detail:  "More than 1 MiB of them are waiting.",
	Hint:    "Read from the connection, do not stay in a transaction, or listen on a connection of its own.",
}

// missedNotice is what a client is told when notifications may be missing.
var missedNotice = mustEncode(&pgproto3.NoticeResponse{
	Severity: "NOTICE", SeverityUnlocalized: "NOTICE", Code: codeWarning,
	Message: "notifications may have been missed: the connection that listens was lost",
})

func mustEncode(m pgproto3.BackendMessage) []byte {
	b, err := m.Encode(nil)
	if err != nil {
		panic(err)
	}
	return b
}

// withhold keeps the ReadyForQuery at the end of a transaction back until the notifications in front of it are known.
// It reports false if there is no need. The caller holds mu, on the goroutine of the server connection.
func (s *Session) withhold(private bool) bool {
	switch {
	case s.gone:
		return false
	case private:
		return s.holds&holdTold != 0 && s.turn.Quiet()
	case s.ears == nil || s.deafened() && !s.ears.stays() || s.turn.Status() != 'I':
		return false
	}
	s.holds |= holdTold
	s.writing, s.active, s.ears.met = true, true, false
	if !s.turn.Quiet() {
		s.ends += 2
	}
	return true
}

// stays reports whether it is still the listener that hears what the session listened to before it was pinned to its server connection for that:
// the connection is made to listen to it only when it can be asked. The caller holds the session's mu.
func (e *ears) stays() bool { return len(e.names) > 0 && !e.whole }

// tell passes on the ReadyForQuery that was withheld, behind the notifications that come before it. It runs on the goroutine of
// the server connection, outside of the handler.
func (sc *server) tell(s *Session) {
	s.meet()
	s.mu.Lock()
	if s.srv != sc || s.gone {
		s.mu.Unlock()
		return
	}
	switch {
	case s.ears != nil && s.ears.dirty && s.turn.Lost():
		s.guess()
	case s.ears != nil && s.ears.dirty && s.deafened() && s.turn.Quiet(): // what came of it is heard by the server connection itself
		s.ears.follow(s.undone())
		s.hears()
	case !s.mayAskWhat():
	case s.sending:
		s.ears.later = true
		s.mu.Unlock()
		return
	default:
		s.ears.follow(s.undone())
		s.askWhat(sc)
		s.mu.Unlock()
		sc.sendAsked(s) // tell is called again behind the answer
		return
	}
	e := s.ears
	out := wire.AppendReady(s.take(), 'I')
	s.mu.Unlock()
	_, _ = s.link.Write(out) // a client that is gone is its own goroutine's business
	s.mu.Lock()
	s.heardBy(e)
	if s.srv != sc {
		s.mu.Unlock()
		return
	}
	s.holds &^= holdTold
	s.writing = false
	what := boundary
	if s.turn.Quiet() {
		what = sc.atRest(s)
	}
	s.mu.Unlock()
	sc.follow(s, what, false)
}

// meet waits until the listener has read all that was notified before the ReadyForQuery that is withheld; at the latest
// its patience ends that.
func (s *Session) meet() {
	s.mu.Lock()
	e := s.ears
	first := e != nil && !e.met && !s.gone
	if first {
		e.met = true
	}
	s.mu.Unlock()
	if !first {
		return
	}
	if h := e.l.barrier(e); h != nil {
		<-h.done
	}
}

// tellNow has tell called again, now that nobody is sending any more, if it waits for that. The caller holds mu.
func (s *Session) tellNow() {
	if s.ears != nil && s.ears.later {
		s.srv.link.Interrupt() // and on to notify
	}
}

// mayAskWhat reports whether the server connection has to be asked what it listens to, and can be.
func (s *Session) mayAskWhat() bool {
	return s.ears != nil && s.ears.dirty && !s.deafened() && s.turn.Quiet() && s.body == 0 &&
		s.turn.Unnamed() != turn.UnnamedOlder
}

// take returns what the client is to be told, unless what it listens to is not known at the moment. The caller holds mu,
// writes it and calls heardBy.
func (s *Session) take() (out []byte) {
	e := s.ears
	if e == nil || e.dirty || s.holds&holdAsked != 0 {
		return nil
	}
	e.l.mu.Lock()
	defer e.l.mu.Unlock()
	if e.lost {
		out = append(out, missedNotice...)
	}
	s.env.count.notifications.Add(int64(e.count))
	out = append(out, e.queue...)
	e.queue, e.count, e.before, e.lost, e.busy = nil, 0, 0, false, true
	e.some.Store(false)
	return out
}

// heardBy ends the writing of what take returned. The caller holds mu.
func (s *Session) heardBy(e *ears) {
	if e == nil {
		return
	}
	e.l.mu.Lock()
	e.busy = false
	e.l.mu.Unlock()
	if s.ears == e {
		s.dropEars()
	}
}

// putLocked puts a notification into the queue, and reports whether the session has to be told that there is something. The
// caller holds the listener's mu.
func (e *ears) putLocked(msg []byte) (stir bool) {
	switch {
	case e.over:
		return false
	case len(e.queue)+len(msg) > maxHeard:
		e.queue, e.count, e.before, e.over = nil, 0, 0, true
		return true
	}
	e.queue = append(e.queue, msg...)
	e.count++
	return !e.some.Swap(true)
}

// filterLocked drops from the queue what was heard of channels that are not committed. The caller holds the listener's mu.
func (e *ears) filterLocked() {
	kept, count, before := e.queue[:0], 0, 0
	for b, i := e.queue, 0; len(b) > 0; i++ {
		n := int(wire.Length(b)) + 1
		if channel, _, _ := wire.CString(b[wire.HeaderLen+4 : n]); e.subs[string(channel)] {
			kept = append(kept, b[:n]...)
			if count++; i < e.before {
				before = count
			}
		}
		b = b[n:]
	}
	if e.queue, e.count, e.before = kept, count, before; count == 0 {
		e.queue = nil
		e.some.Store(e.lost)
	}
}

// divide takes note of what e has heard before its server connection listens too.
func (l *listener) divide(e *ears) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.before = e.count
}

// dropTwice drops from e's queue what its server connection tells the client itself.
func (l *listener) dropTwice(e *ears) {
	l.mu.Lock()
	defer l.mu.Unlock()
	end := 0
	for range e.before {
		end += int(wire.Length(e.queue[end:])) + 1
	}
	if e.queue, e.count = e.queue[:end], e.before; end == 0 {
		e.queue = nil
		e.some.Store(e.lost || e.over)
	}
}

// stir has what is in the queue written, if the client is between two transactions. It is called on the listener's goroutine.
func (s *Session) stir(e *ears) {
	e.l.mu.Lock()
	over, busy := e.over, e.busy
	e.l.mu.Unlock()
	switch {
	case over && busy: // whoever writes is stuck
		s.end(errSlowListener)
		return
	case over:
		s.drain(errSlowListener)
		return
	}
	s.mu.Lock()
	sc := s.srv
	hears := s.hearsNow()
	s.mu.Unlock()
	switch {
	case sc == nil:
		s.interrupt()
	case hears:
		sc.link.Interrupt()
	}
}

// told reports whether there is something for the client.
func (s *Session) told() bool { return s.ears != nil && s.ears.some.Load() }

// hearsNow reports whether notifications may be written: nothing is owed to the client, and no transaction is open. The
// caller holds mu.
func (s *Session) hearsNow() bool {
	e := s.ears
	switch {
	case !s.told() || e.dirty || s.holds&^holdPaused != 0, s.gone || s.axed || s.finishing || s.writing:
		return false
	case s.srv == nil:
		return !s.waiting && s.pending.empty()
	}
	return s.turn.AtRest() && s.turn.Status() == 'I' && s.body == 0
}

// notifyLocked writes notifications to the client of a session that holds no server connection, and unlocks. It runs on Serve's
// goroutine.
func (s *Session) notifyLocked() (goOn bool) {
	e := s.ears
	out := s.take()
	s.mu.Unlock()
	var err error
	if len(out) > 0 {
		_, err = s.link.Write(out)
	}
	s.mu.Lock()
	s.heardBy(e)
	s.mu.Unlock()
	return err == nil
}

// notify writes notifications to the client of the session that holds sc, or goes on with tell, on the goroutine of sc.
func (sc *server) notify() {
	s := sc.sess.Load()
	if s == nil || sc.sayLastWord(s) {
		return
	}
	s.mu.Lock()
	e := s.ears
	if e != nil && s.srv == sc && e.later && !s.sending {
		e.later = false
		s.mu.Unlock()
		sc.tell(s)
		return
	}
	if s.srv != sc || !s.hearsNow() {
		s.mu.Unlock()
		return
	}
	out := s.take()
	s.writing = true
	s.mu.Unlock()
	if len(out) > 0 {
		_, _ = s.link.Write(out) // a client that is gone is its own goroutine's business
	}
	s.mu.Lock()
	s.heardBy(e)
	s.mu.Unlock()
	s.written()
}
