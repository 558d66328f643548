package pgmoor

import (
	"bytes"

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
	asks                    // a query of the proxy's own is sent
	tells                   // a ReadyForQuery is withheld, see tell
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
	gone := s.gone || s.hushed
	s.mu.Unlock()
	told := b[:out]
	if sc.extra != nil {
		told, sc.extra = append(bytes.Clone(told), sc.extra...), nil
	}
	if len(told) > 0 && !gone {
		if w, err := s.link.TryWrite(told); err == nil && w < len(told) {
			sc.rest, sc.whose = append([]byte(nil), told[w:]...), s
			sc.what = what
			return n, link.Leave
		}
	}
	if what == tells {
		sc.whose, sc.what = s, what
		return n, link.Leave
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
	case asks:
		s.written()
		sc.sendAsked(s)
	case tells:
		sc.tell(s)
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
		if !sc.drops {
			out = n
		}
	}
	private := s.turn.Injected()
	for len(b)-n >= wire.HeaderLen {
		l := int(wire.Length(b[n:])) + 1
		if l < wire.HeaderLen || l > wire.MaxMessage+1 {
			return n, out, lost
		}
		have := min(l, len(b)-n)
		if have < l && (l <= link.BufferSize || have < errorHead) {
			return n, out, goOn
		}
		if b[n] == wire.ParameterDescription && (sc.kept.whole || s.keeps) {
			switch skip := sc.describesInVain(s, b[n:], l); {
			case skip < 0:
				return n, out, goOn
			case skip > 0:
				return n + skip, out, s.sendsHealed()
			}
		}
		verdict := turn.Forward
		if t := b[n]; private || t != wire.DataRow && t != wire.CopyData {
			if verdict, what = sc.note(s, b[n:n+have], private); what == lost {
				return n + have, out, lost
			}
			private = s.turn.Injected()
		}
		told := false
		if verdict == turn.Parsed {
			b[n], verdict = wire.ParseComplete, turn.Forward
		}
		switch {
		case verdict != turn.Forward:
		case b[n] == wire.ErrorResponse && (len(s.refusals) > 0 || sc.prepared.Len() > 0 || s.ownErr != nil || s.toldFirst != ""):
			var k int
			k, told = s.tell(sc, b[out:], b[n:n+have])
			out += k
		case out != n:
			copy(b[out:], b[n:n+have])
			fallthrough
		default:
			out += have
		}
		n += have
		sc.body, sc.drops = l-have, verdict != turn.Forward || told
		if what != goOn || sc.extra != nil {
			return n, out, what
		}
	}
	return n, out, goOn
}

// errorHead is how much of a message larger than any buffer must be there before it is passed on: the fields of an
// error that matter stand at its start.
const errorHead = 512

// note acts on one message of the server that is not a row, or, where it is private, belongs to the answer to a query of the
// proxy's own.
func (sc *server) note(s *Session, msg []byte, private bool) (turn.Verdict, outcome) {
	var arg byte
	if len(msg) > wire.HeaderLen {
		arg = msg[wire.HeaderLen]
	}
	switch msg[0] {
	case wire.ErrorResponse:
		sc.failed = true
		if !s.turn.Ours() { // the Describe is skipped
			s.toldFirst = ""
		}
		if s.seq.heeds&heedAsks != 0 && !private {
			s.missed(sc, msg[wire.HeaderLen:])
		}
		if !private && sc.noteFatal(s, msg[wire.HeaderLen:]) {
			return turn.Swallow, lost
		}
	case wire.CommandComplete:
		s.publish(s.ends > 0) // a text may commit long before it is over
		if (arg == 'D' || arg == 'P') && !private && !s.turn.Ours() {
			s.completedSQL(sc, bytes.TrimSuffix(msg[wire.HeaderLen:], []byte{0}))
		}
		if (s.cand|s.pins != 0 || len(s.dirty) > 0 || s.ears != nil) && !private && !s.turn.Ours() {
			s.completed(string(bytes.TrimSuffix(msg[wire.HeaderLen:], []byte{0})))
		}
	case wire.ParameterStatus:
		sc.noteStatus(s, msg, private)
	case wire.NotificationResponse:
		if s.ears != nil && !s.deafened() { // the listener hears it too
			return turn.Swallow, goOn
		}
		s.env.namePid(msg)
	case wire.CopyInResponse, wire.CopyOutResponse:
		sc.kept.whole = false
	case wire.ParameterDescription, wire.RowDescription, wire.NoData:
		if sc.kept.sql != nil { // the EXECUTE is running
			sc.kept.whole = false
		}
		if len(s.ops) > 0 && (s.ops[0].kind == opDescribe || s.ops[0].kind == opCheck) {
			noteShape(&s.shape, msg)
		}
	}
	if private && len(sc.own) > 0 && sc.own[0].hear(msg) {
		return turn.Swallow, sc.endedOwn()
	}
	if msg[0] == wire.ErrorResponse && (sc.kept.whole || s.keeps) && !private && s.heals(sc, msg) {
		return turn.Swallow, s.sendsHealed()
	}
	v := s.turn.Received(msg[0], arg)
	unprimed := msg[0] == wire.ErrorResponse && s.turn.TakeUnprimed() // which is no error of a statement with a name
	if len(s.ops) > 0 {
		s.answeredNamed(sc)
	}
	if s.holds&holdsAnswers != 0 && msg[0] != wire.ReadyForQuery {
		s.goOnIfKnown()
	}
	if msg[0] == wire.ErrorResponse && !private && v == turn.Forward {
		s.failed = true
		s.noteStale(sc, msg[wire.HeaderLen:])
		s.settlePids(true)
	}
	if msg[0] == wire.ErrorResponse && !private && v == turn.Swallow {
		s.failedOwn(msg[wire.HeaderLen:], unprimed)
	}
	if private && msg[0] == wire.ReadyForQuery {
		sc.answeredOwn(s)
	}
	switch {
	case msg[0] == wire.ReadyForQuery && v == turn.Swallow && !private: // between a Parse of the proxy's and the client's batch
		sc.endedInFront(s)
	case msg[0] == wire.ReadyForQuery:
		return sc.noteReady(s, v, private)
	case unprimed:
		s.primed, s.primeless = false, true
	case msg[0] == wire.CopyInResponse && s.gone && !s.sending:
		return v, copyGone
	}
	return v, goOn
}

// noteFatal looks whether an error ends the server's session, and reports whether for a reason that is none of the
// client's: the server was shut down, crashed, or the backend was terminated.
func (sc *server) noteFatal(s *Session, body []byte) bool {
	switch string(wire.ErrorField(body, 'V')) {
	case "FATAL", "PANIC":
	default:
		return false
	}
	switch string(wire.ErrorField(body, 'C')) {
	case codeAdminShutdown, codeCrashShutdown, codeCannotConnectNow:
		if s.pins == 0 && !s.isTargeted() {
			return true
		} // a pinned session ends with its server, and one that was terminated gets what it would get directly
	}
	sc.fatal = true
	return false
}

// noteReady decides at a ReadyForQuery whether it is passed on, and whether the turn is over. v is what the turn says of it.
func (sc *server) noteReady(s *Session, v turn.Verdict, private bool) (turn.Verdict, outcome) {
	if s.cancelled = false; s.cancelLater != nil && private {
		sc.cancelNow(s)
	}
	if len(s.sqlOps) > 0 && !private {
		s.endedSQL()
	}
	if s.holds&holdsAnswers != 0 {
		s.goOnIfKnown()
	}
	s.publish(s.turn.Status() == 'I' || s.ends > 0)
	switch {
	case s.withhold(private):
		return turn.Swallow, tells
	case s.turn.Quiet():
		s.active = s.active || !private
		return v, sc.atRest(s)
	case private:
	case s.turn.Ready() == 0:
		if s.turn.Status() == 'I' {
			s.ends += 2
		}
		s.writing = true
		return v, boundary
	case s.turn.Status() == 'I': // what was run before this and what was run behind it can no longer be told apart
		s.ends += 2
	}
	return v, goOn
}

// atRest decides what follows when nothing is owed.
func (sc *server) atRest(s *Session) outcome {
	s.risk, s.lexical, s.cancelled, s.overruled, s.ownErr, s.standNames = false, false, false, false, nil, nil
	s.dropCancel()
	if s.sqlOps = nil; len(s.ops) > 0 { // nothing is owed: they should have been answered
		s.ops = nil
		s.turn.Lose()
	}
	if s.gone {
		return winding
	}
	if s.turn.Lost() {
		s.pin(EffectProtocol)
	}
	s.settleUnnamed()
	s.settlePids(false)
	if s.turn.Status() == 'I' {
		s.portalRisk = false
		s.defined, s.defines = 0, false
		if s.mending && s.mendedOrNot(sc) {
			s.settle(sc)
			s.finishing = true
			return turnEnds
		}
		if s.turn.Unnamed() == turn.UnnamedOlder {
			s.pin(EffectUnnamedStatement)
		}
		s.settle(sc)
		s.listensItself()
		switch k := s.question(); {
		case k == ownNothing:
		case s.sending || s.body > 0: // whoever sends asks when it is done
			s.asksLater, s.writing = true, true
			return boundary
		default:
			s.writing = true // until the reply before is written
			return s.inquire(sc, k)
		}
	}
	if s.releasableLocked() {
		s.finishing = true
		return turnEnds
	}
	s.stopLocked()
	s.writing = true
	return boundary
}

// fallBack takes note that the unnamed statement is not that of the last Parse, which failed or was skipped, but an earlier
// one, of whose text nothing is known any more. Where a batch of the pipeline used it as that of the last one, it was run.
func (s *Session) fallBack() {
	s.unnamed = nil
	if s.stmt.info != unclassified {
		a, refuse := s.judge(unclassified, nil, 0, preparesUnnamed)
		if refuse != nil { // the policy's refusals are of texts
			a = act{info: unclassified, deed: &deed{pins: EffectUnclassified}}
		}
		s.stmt, s.stmtRisk = a, true
	}
	if s.olderRisk {
		s.do(s.stmt)
	}
}

// completed takes note of a command that was completed while something may pin.
func (s *Session) completed(tag string) {
	s.rolledBack = tag == "ROLLBACK"
	if !s.discards || tag != "DISCARD ALL" && tag != "DISCARD SEQUENCES" { // or something was sent behind it
		return
	}
	gone := EffectSequence
	if s.renews && (s.pins|s.cand)&(EffectNamedStatement|EffectSQLPrepare) != 0 { // one of which may use a sequence again
		gone = 0
	}
	if tag == "DISCARD ALL" {
		if gone = discarded; s.reason != requested { // a policy's own pin ends when the policy says so
			gone &^= EffectPolicy
		}
		s.untold = false
	}
	s.seq.misses = 0
	s.letGo(gone)
}

// tell puts what the client is told in the place of an error at dst, and returns its length and whether it is anything else than the error. What would be longer than that is in sc.extra instead.
func (s *Session) tell(sc *server, dst, msg []byte) (n int, told bool) {
	if s.overruled {
		sc.extra, s.overruled = errQueryCanceled.append(nil, "ERROR"), false
		return 0, true
	}
	if s.toldFirst != "" {
		sc.extra, s.toldFirst = append(appendParams(nil, s.toldFirst), msg...), ""
		return 0, true
	}
	if reply := s.refused(msg); reply != nil && len(reply) <= len(msg) {
		return copy(dst, reply), true
	}
	if s.ownErr != nil && string(wire.ErrorField(msg[wire.HeaderLen:], 'C')) == codeNoStatement {
		sc.extra, s.ownErr = wire.WithoutErrorField(s.ownErr, 'P'), nil // it is in another text
		return 0, true
	}
	if sc.extra = s.callByName(sc, msg); sc.extra != nil {
		return 0, true
	}
	return copy(dst, msg), false
}

// written ends the writing of the last reply that was owed to a session that keeps its server connection.
func (s *Session) written() {
	s.mu.Lock()
	s.writing = false
	if s.srv != nil && s.sendableLocked() {
		s.pushLocked(s.srv, false)
		return
	}
	if s.srv != nil && s.hearsNow() {
		s.srv.link.Interrupt() // and on to notify
	}
	wake := s.held && !s.sending || s.closing != nil || s.srv == nil && s.told()
	if wake {
		s.held = false
	}
	s.mu.Unlock()
	if wake {
		s.interrupt()
	}
}
