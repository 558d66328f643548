package pgmoor

import (
	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/turn"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file moves the server's messages to the client, on the goroutine of the server connection, and decides when the
// connection is free.

// fromServer is the handler of the server connection's link.
func (sc *server) fromServer(b []byte) (int, link.Next) {
	done := 0
	next := link.Park
	for done < len(b) {
		s := sc.sess.Load()
		var n int
		if s == nil {
			n, next = sc.unasked(b[done:])
		} else {
			n, next = sc.relay(s, b[done:])
		}
		done += n
		if n == 0 || next == link.Leave {
			break
		}
	}
	return done, next
}

// outcome is what follows when the messages that digest looked at were written to the client.
type outcome byte

const (
	goOn     outcome = iota // nothing
	turnEnds                // the server connection is given back
	boundary                // nothing is owed, and the session keeps the server connection
	copyGone                // the server wants COPY data from a client that is gone
	winding                 // the client is gone and nothing is owed
	lost                    // the server ended the session
)

// relay passes on what the server said to the session that holds it.
func (sc *server) relay(s *Session, b []byte) (int, link.Next) {
	s.mu.Lock()
	if s.srv != sc { // given back a moment ago, by the goroutine that sent the last bytes
		s.mu.Unlock()
		if sc.sess.Load() == s {
			return sc.abandon(len(b))
		}
		return sc.fromServer(b)
	}
	n, out, what := sc.digest(s, b)
	more := s.turn.Owed() || s.ending || sc.fatal // or the end of the stream, which may have come along
	gone := s.gone
	s.mu.Unlock()
	if out > 0 && !gone {
		if w, err := s.link.TryWrite(b[:out]); err == nil && w < out {
			sc.rest, sc.whose = append([]byte(nil), b[w:out]...), s
			sc.what = what
			return n, link.Leave
		}
	}
	return n, sc.follow(s, what, more)
}

// follow does what comes after the replies were written.
func (sc *server) follow(s *Session, what outcome, more bool) link.Next {
	switch what {
	case turnEnds:
		sc.endTurn(s)
	case boundary:
		s.written()
	case copyGone:
		s.mu.Lock()
		sc.windUp(s, s.fixLocked())
	case winding:
		sc.wind(s)
	case lost:
		sc.gone = errAbandoned
		return link.Leave
	}
	if more {
		return link.Again
	}
	return link.Park
}

// digest looks at the server's messages at the start of b, as far as they are complete or too large for any buffer. It
// returns how many bytes it looked at, and how many bytes at the start of b, from which the answers to the proxy's own
// messages were cut out, go to the client. The caller holds s.mu.
func (sc *server) digest(s *Session, b []byte) (n, out int, what outcome) {
	fine := false
	defer func() { s.unlockUnless(fine) }()
	n, out, what = sc.digestMessages(s, b)
	fine = true
	return n, out, what
}

func (sc *server) digestMessages(s *Session, b []byte) (n, out int, what outcome) {
	if sc.body > 0 {
		n = min(sc.body, len(b))
		sc.body -= n
		out = n
	}
	for len(b)-n >= wire.HeaderLen {
		l := int(wire.Length(b[n:])) + 1
		if l < wire.HeaderLen || l > wire.MaxMessage+1 {
			return n, out, lost
		}
		have := min(l, len(b)-n)
		if have < l && (l <= link.BufferSize || have < errorHead) {
			return n, out, goOn
		}
		verdict := turn.Forward
		if t := b[n]; t != wire.DataRow && t != wire.CopyData {
			if verdict, what = sc.note(s, b[n:n+have]); what == lost {
				return n + have, out, lost
			}
		}
		if verdict == turn.Forward {
			if out != n {
				copy(b[out:], b[n:n+have])
			}
			out += have
		}
		n += have
		sc.body = l - have
		if what != goOn {
			return n, out, what
		}
	}
	return n, out, goOn
}

// errorHead is how much of a message larger than any buffer must be there before it is passed on: the fields of an
// error that matter stand at its start.
const errorHead = 512

// note acts on one message of the server that is not a row.
func (sc *server) note(s *Session, msg []byte) (turn.Verdict, outcome) {
	var arg byte
	if len(msg) > wire.HeaderLen {
		arg = msg[wire.HeaderLen]
	}
	switch msg[0] {
	case wire.ErrorResponse:
		sc.failed = true
		if sc.noteFatal(msg[wire.HeaderLen:]) {
			return turn.Swallow, lost
		}
	case wire.ParameterStatus:
		sc.noteStatus(msg)
	}
	v := s.turn.Received(msg[0], arg)
	switch {
	case msg[0] == wire.ReadyForQuery:
		return v, sc.noteReady(s)
	case msg[0] == wire.ErrorResponse && s.turn.TakeUnprimed():
		s.primed = false
	case msg[0] == wire.CopyInResponse && s.gone && !s.sending:
		return v, copyGone
	}
	return v, goOn
}

// noteFatal looks whether an error ends the server's session, and reports whether for a reason that is none of the
// client's: the server was shut down, crashed, or the backend was terminated.
func (sc *server) noteFatal(body []byte) bool {
	switch string(wire.ErrorField(body, 'V')) {
	case "FATAL", "PANIC":
	default:
		return false
	}
	switch string(wire.ErrorField(body, 'C')) {
	case codeAdminShutdown, codeCrashShutdown, codeCannotConnectNow:
		return true
	}
	sc.fatal = true
	return false
}

// noteReady decides at a ReadyForQuery whether the turn is over.
func (sc *server) noteReady(s *Session) outcome {
	if !s.turn.Quiet() {
		if s.turn.Ready() == 0 {
			s.writing = true
			return boundary
		}
		return goOn
	}
	s.risk = false
	idle := s.turn.Status() == 'I'
	if idle {
		s.portalRisk = false
	}
	switch {
	case s.gone:
		return winding
	case s.turn.Lost():
		s.pinFor(EffectProtocol)
	case len(sc.drift) > 0 && idle:
		s.pinFor(EffectUntrackedSetting)
	case s.turn.Unnamed() == turn.UnnamedOlder && idle:
		s.pinFor(EffectUnnamedStatement)
	}
	if s.pins == 0 && s.turn.Releasable() {
		s.finishing = true
		return turnEnds
	}
	s.writing = true
	return boundary
}

// written ends the writing of the last reply that was owed to a session that keeps its server connection.
func (s *Session) written() {
	s.mu.Lock()
	s.writing = false
	wake := s.held && !s.sending || s.closing != nil
	if wake {
		s.held = false
	}
	s.mu.Unlock()
	if wake {
		s.interrupt()
	}
}

// wind takes the next step in cleaning up sc after the client of the session that holds it left: roll back, discard, give
// back. Nothing is owed when it is called. Where somebody is still writing to sc, the step is left to them.
func (sc *server) wind(s *Session) {
	s.mu.Lock()
	if s.sending {
		s.finish = true
		s.mu.Unlock()
		return
	}
	var q []byte
	sc.winds++
	switch {
	case sc.winds > maxWinds || sc.fatal || s.turn.Lost() || sc.reset && sc.failed:
		s.mu.Unlock()
		sc.kill()
		return
	case s.turn.Status() != 'I':
		q = wire.AppendQuery(nil, "ROLLBACK")
	case s.pins != 0 && !sc.reset:
		q = wire.AppendQuery(nil, "DISCARD ALL")
		sc.reset, sc.failed = true, false
	default:
		s.primed = true
		sc.failed = true // whatever unnamed statement there is is nobody's
		s.dropLocked(sc)
		sc.none = sc.reset
		s.mu.Unlock()
		sc.link.ClearInterrupt()
		s.env.count.recycled.Add(1)
		sc.pool.giveBack(sc, nil)
		return
	}
	s.turn.Sent(wire.Query, false)
	sc.windUp(s, q)
}

// maxWinds is how many steps wind may need: roll back, discard, give back, and one for an error.
const maxWinds = 4

// windUp writes q, which cleans up after a client that left, and unlocks. It takes the next step if the answer came before
// the write was over.
func (sc *server) windUp(s *Session, q []byte) {
	s.sending = true
	s.mu.Unlock()
	sc.limitWind()
	if len(q) > 0 {
		if n, err := sc.link.TryWrite(q); err == nil && n < len(q) {
			sc.kill() // it reads nothing any more
		}
	}
	s.mu.Lock()
	s.sending = false
	next := s.finish
	s.finish = false
	s.mu.Unlock()
	if next {
		sc.wind(s)
	}
}
