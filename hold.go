package pgmoor

import "github.com/pgmoor/pgmoor/internal/wire"

// This file holds back the client's messages. A message that cannot be sent before something is known stays where it is, in pending
// or with the link, and everything behind it. Who looks at messages (admit and what it calls) asks for that with hold; who
// does something during which no message may be sent sets a bit of Session.holds, and clears it when that is over. The message goes on
// when no bit is left: it is then looked at again, and may be held back for something else.

// holds is what the session's next message waits for.
type holds uint16

const (
	holdBatch   holds = 1 << iota // what earlier batches do to named statements, and PREPAREs under way
	holdAll                       // that, all of this batch, every ReadyForQuery that is owed, and the session's settings if they are asked for
	holdReady                     // every ReadyForQuery that is owed
	holdHearing                   // that the listener hears what the session is about to listen to (hark)
	holdTold                      // that the client is told a ReadyForQuery, which notifications come in front of (withhold)
	holdAsked                     // that the server connection says what it listens to (askWhat)
	holdFresh                     // that the server connection is made fresh (cleanUp), or is given what a RESET returns to (resetsBase)
	holdStandIn                   // that a server connection stands for a session that is to be signalled (seek)
	holdPaused                    // the end of a pause (stopLocked)
)

const (
	// holdsAnswers are those that end with what the server answers to the client's messages.
	holdsAnswers = holdBatch | holdAll | holdReady
	// holdsNamed are those for which the server may have to be asked to answer in the middle of a batch.
	holdsNamed = holdBatch | holdAll
)

// hold makes the message that is being looked at wait. The caller passes on what it returns. The caller holds mu.
func (s *Session) hold(why holds) stop {
	s.holds |= why
	return stopHold
}

// mustWait reports whether what earlier batches do decides what a message about a named statement means.
func (s *Session) mustWait() bool {
	return len(s.ops) > 0 && s.ops[0].batch != s.batch || len(s.sqlOps) > 0
}

// known returns which answers nobody has to wait for any more. Where the server ignores what comes up to a Sync, or reads COPY
// data, no message means anything.
func (s *Session) known() (over holds) {
	if s.turn.Skipping() || s.turn.CopyIn() {
		return holdsAnswers
	}
	if !s.mustWait() {
		over |= holdBatch
	}
	if s.turn.Ready() == 0 {
		over |= holdReady
		if len(s.ops)+len(s.sqlOps) == 0 && !s.readsBack() {
			over |= holdAll
		}
	}
	return over
}

// goOnIfKnown lets the message go on that waited for what the server answers. The caller holds mu.
func (s *Session) goOnIfKnown() {
	if over := s.holds & holdsAnswers & s.known(); over != 0 {
		s.goOn(over)
	}
}

// goOn ends what the next message waits for, and has Serve's goroutine send it if nothing is left of that. The caller holds mu.
func (s *Session) goOn(over holds) {
	if s.holds &^= over; s.holds == 0 {
		s.held = true
		s.interrupt()
	}
}

// sendableLocked reports whether the pending request can be sent now, by whoever asks, or a server connection be taken for it.
func (s *Session) sendableLocked() bool {
	return !s.pending.empty() && s.holds == 0 && !s.waiting && !s.sending && !s.finishing && !s.gone
}

// proceedLocked sends the pending request, which is sendable, and unlocks. A session that gave its server connection back while the
// request was held takes another one. It runs on Serve's goroutine.
func (s *Session) proceedLocked() {
	switch {
	case s.srv != nil:
		if !s.pushLocked(s.srv, true) {
			s.sendUnsent()
		}
	case !s.borrowPending():
		s.mu.Unlock()
	}
}

// borrowPending takes a server connection for the pending request, sends it there and unlocks. Where none is free it reports
// false: the session is in the queue for one.
func (s *Session) borrowPending() bool {
	s.waiting = true
	for sc := s.lend(); sc != nil; sc = s.lend() {
		if s.holdLocked(sc) {
			if !s.pushLocked(sc, true) {
				s.sendUnsent()
			}
			return true
		}
	}
	return false
}

// heldBack appends what is sent while the next message waits for the answers.
func (s *Session) heldBack(out []byte) []byte {
	if len(s.prefix) > 0 { // of a batch that the message belongs to
		s.turn.Begin()
	}
	out = append(append(out, s.prefix...), flush...)
	s.prefix = nil
	return out
}

var flush = []byte{wire.Flush, 0, 0, 0, 4}

// wantsFlush reports whether the server has to be made to answer what it was sent of a batch, since the next message waits for that.
func (s *Session) wantsFlush() bool {
	return s.holds&holdsNamed != 0 && (s.turn.Open() || len(s.prefix) > 0)
}

// flushHeld makes the server answer where that is necessary.
func (s *Session) flushHeld(sc *server) {
	s.mu.Lock()
	if s.srv != sc || s.sending || !s.wantsFlush() {
		s.mu.Unlock()
		return
	}
	out := s.heldBack(nil)
	s.sending = true
	s.mu.Unlock()
	if !s.transmit(sc, nil, out) {
		s.mu.Lock()
		s.resume = true
		s.mu.Unlock()
		s.interrupt()
		return
	}
	s.sent(sc)
}
