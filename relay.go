package pgmoor

import (
	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/turn"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file moves bytes: fromClient on the client's goroutine, fromServer on the server connection's. Messages are looked
// at by their headers; only a Query's and a Parse's text is read, and never changed.

// fromClient is the handler of the client's link.
func (s *Session) fromClient(b []byte) (int, link.Next) {
	done := 0
	for done < len(b) {
		n, next := s.step(b[done:], done)
		if s.took {
			s.took = false
			return 0, next
		}
		done += n
		if n == 0 || next == link.Leave {
			return done, next
		}
	}
	return done, link.Park
}

// leaveFor makes the handler leave after n bytes.
func (s *Session) leaveFor(why leaveWhy, n int) (int, link.Next) {
	s.why = why
	return n, link.Leave
}

// step passes on as much of b as can be passed on in one go. b begins at done in what the handler was given.
func (s *Session) step(b []byte, done int) (int, link.Next) {
	if s.local.active {
		return s.answerLocally(b)
	}
	s.mu.Lock()
	switch {
	case s.bad != nil: // the server will end the session; nothing behind it counts
		s.mu.Unlock()
		return len(b), link.Park
	case s.axed || s.waitErr != nil || s.lostErr != nil: // interrupted comes first
		return s.keepLocked(b, done)
	case s.waiting || s.sending || s.finishing:
		return s.keepLocked(b, done)
	case s.srv != nil:
		return s.directLocked(b)
	}
	return s.borrowLocked(b, done)
}

// directLocked writes b to the server connection that the session holds.
func (s *Session) directLocked(b []byte) (int, link.Next) {
	sc := s.srv
	n, stop := s.feed(b)
	prefix := s.prefix
	s.prefix = nil
	s.sending = n > 0
	s.mu.Unlock()
	if n == 0 {
		return s.stopped(stop, b)
	}
	if !s.transmit(sc, prefix, b[:n]) {
		return s.leaveFor(leaveUnsent, n)
	}
	s.sent(sc)
	return n, link.Park
}

// transmit writes to the server, and reports false where the rest is in unsent. Errors are the server goroutine's
// business: it will read the end of the stream.
func (s *Session) transmit(sc *server, prefix, b []byte) bool {
	if len(prefix) > 0 {
		b = append(prefix, b...)
		if s.scratch = nil; cap(b) <= maxScratch {
			s.scratch = b[:0]
		}
	}
	n, err := sc.link.TryWrite(b)
	if err != nil || n == len(b) {
		return true
	}
	s.unsent = append([]byte(nil), b[n:]...)
	return false
}

// maxScratch bounds the scratch space that a session keeps.
const maxScratch = 4 << 10

// sent ends a write to the server: if the turn ended meanwhile, the connection is given back.
func (s *Session) sent(sc *server) {
	s.mu.Lock()
	s.sending = false
	end := s.finish || s.srv == sc && !s.finishing && s.releasableLocked()
	s.finish = false
	resume := !end && !s.pending.empty() && s.srv == sc && sc != nil
	if resume {
		s.sending = true
	}
	c := s.pending
	if resume {
		s.pending = chunk{}
	}
	gone := s.gone && s.srv == sc && sc != nil
	held := s.held && !end && !resume
	if held {
		s.held = false
	}
	s.mu.Unlock()
	switch {
	case gone:
		c.free()
		sc.kill()
	case end:
		sc.endTurn(s)
	case resume:
		s.push(sc, c, false)
	case held:
		s.interrupt()
	}
}

// stopped says what follows when the next message, at the start of b, is not a request.
func (s *Session) stopped(stop stop, b []byte) (int, link.Next) {
	switch stop {
	case stopTerminate:
		return s.terminate(0)
	case stopMalformed:
		return s.malformed(b)
	case stopTooMany:
		return s.fatal(errPipeline, 0)
	}
	return 0, link.Park
}

// malformed ends the session because of a header that PostgreSQL would not accept. While the server still has something to
// say, the header goes to the server, whose answer then comes in its place behind the others.
func (s *Session) malformed(b []byte) (int, link.Next) {
	e := badHeader(b)
	s.mu.Lock()
	sc := s.srv
	if sc == nil || s.turn.Quiet() || s.sending || s.finishing {
		s.mu.Unlock()
		return s.fatal(e, 0)
	}
	s.bad = e
	s.pinFor(EffectProtocol)
	s.sending = true
	s.mu.Unlock()
	if !s.transmit(sc, nil, b[:wire.HeaderLen]) {
		return s.leaveFor(leaveUnsent, len(b))
	}
	s.sent(sc)
	return len(b), link.Park
}

// badHeader says what is wrong with the header at the start of b, in PostgreSQL's words.
func badHeader(b []byte) *Error {
	if _, known := wire.FrontendLimit(b[0]); !known {
		return fatalf(codeProtocolViolation, "invalid frontend message type %d", b[0])
	}
	return fatalf(codeProtocolViolation, "invalid message length")
}

// terminate ends the session once every ReadyForQuery that is owed was delivered: what is owed beyond them PostgreSQL would
// not deliver either.
func (s *Session) terminate(n int) (int, link.Next) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.srv != nil && s.turn.Ready() > 0 || s.finishing || s.waiting {
		s.held = true
		return n, link.Park
	}
	return s.leaveFor(leaveTerminate, n)
}

// fatal ends the session with an error, unless the server's goroutine is in the middle of a reply.
func (s *Session) fatal(e *Error, n int) (int, link.Next) {
	s.mu.Lock()
	quiet := s.srv == nil || !s.turn.Owed() && !s.finishing
	s.mu.Unlock()
	s.reply = nil
	if quiet {
		s.reply = e.append(nil, "FATAL")
	}
	return s.leaveFor(leaveFatal, n)
}

// borrowLocked takes a server connection for b, or leaves b's whole messages in the queue for one.
func (s *Session) borrowLocked(b []byte, done int) (int, link.Next) {
	if n := s.dropStale(b); n > 0 {
		s.mu.Unlock()
		return n, link.Park
	}
	whole, stop := wholeMessages(b)
	if whole == 0 {
		s.mu.Unlock()
		return s.stopped(stop, b)
	}
	s.waiting = true
	s.setPending(b, whole, done)
	for sc := s.pool.borrow(s); sc != nil; sc = s.pool.borrow(s) {
		if s.holdLocked(sc) {
			return s.lentLocked(sc, whole)
		}
	}
	s.mu.Unlock()
	return s.consumed(whole), link.Park
}

// consumed is how many bytes the handler says it consumed after setPending.
func (s *Session) consumed(n int) int {
	if s.took {
		return 0
	}
	return n
}

// setPending makes the first n bytes of b, which begin at done in what the handler was given, the pending request.
func (s *Session) setPending(b []byte, n, done int) {
	if n <= smallRequest {
		small := smallChunks.Get().(*[smallRequest]byte)
		copy(small[:], b[:n])
		s.pending = chunk{small: small, size: n}
		return
	}
	buf, off := s.link.TakeBuffer(done + n)
	s.pending = chunk{big: buf, off: off + done, size: n}
	s.took = true
}

// lentLocked sends the request for which a server connection was there at once.
func (s *Session) lentLocked(sc *server, whole int) (int, link.Next) {
	c := s.pending
	s.pending = chunk{}
	s.sending = true
	s.mu.Unlock()
	if !s.push(sc, c, true) {
		return s.leaveFor(leaveUnsent, s.consumed(whole))
	}
	return s.consumed(whole), link.Park
}

// dropStale drops messages that PostgreSQL ignores outside of a COPY, and a Flush with nothing to flush, so that they do
// not borrow a server connection. It returns how many bytes they are.
func (s *Session) dropStale(b []byte) (n int) {
	if s.body > 0 {
		n = min(s.body, len(b))
		s.body -= n
		return n
	}
	for len(b)-n >= wire.HeaderLen {
		switch b[n] {
		case wire.CopyData, wire.CopyDone, wire.CopyFail, wire.Flush:
		default:
			return n
		}
		l, ok := frontendLength(b[n:])
		if !ok {
			return n
		}
		if l > len(b)-n {
			if l > link.BufferSize {
				s.body = l - (len(b) - n)
				return len(b)
			}
			return n
		}
		n += l
	}
	return n
}

// keepLocked keeps b for later: the first request becomes pending, what comes behind it stays with the link.
func (s *Session) keepLocked(b []byte, done int) (int, link.Next) {
	defer s.mu.Unlock()
	if s.pending.empty() && s.body == 0 && !s.axed && s.waitErr == nil && s.lostErr == nil && !s.resume {
		if whole, stop := wholeMessages(b); whole > 0 {
			s.setPending(b, whole, done)
			return s.consumed(whole), link.Park
		} else if stop == stopNot && len(b)+done < link.BufferSize {
			return 0, link.Park
		}
	}
	s.held = true
	if len(b)+done >= link.BufferSize {
		return s.leaveFor(leaveHeld, 0)
	}
	return 0, link.Park
}

// holdLocked makes sc the server connection that the session holds. It reports false, and changes nothing, if sc has ended
// before a byte of the session's reached it.
func (s *Session) holdLocked(sc *server) bool {
	sc.sess.Store(s)
	if sc.ended.Load() {
		sc.sess.Store(nil)
		return false
	}
	s.srv = sc
	s.waiting = false
	s.primed = sc.unnamed != 0 && sc.unnamed == s.unnamedID && s.turn.Unnamed() == turn.UnnamedLast
	sc.failed, sc.winds, sc.reset = false, 0, false
	return true
}

// attach gives the connection to a session that waited for one and sends its request. It reports false if the session
// does not want it any more. The caller is the only one who knows sc.
func (sc *server) attach(s *Session) bool {
	s.mu.Lock()
	if s.gone || !s.waiting || s.pending.empty() {
		s.mu.Unlock()
		return false
	}
	if !s.holdLocked(sc) {
		s.mu.Unlock()
		s.pool.requeue(s)
		return false
	}
	c := s.pending
	s.pending = chunk{}
	s.sending = true
	s.mu.Unlock()
	s.push(sc, c, false)
	return true
}

// push sends a chunk of requests and reports whether all of it was written. The caller has set sending and passes it on:
// to sent, or, where the socket does not take everything, to the session's own goroutine with the rest in unsent. Only
// that goroutine may wait for the server to read; own says that the caller is it.
func (s *Session) push(sc *server, c chunk, own bool) bool {
	s.mu.Lock()
	out, stop := s.feedAll(c.bytes())
	s.mu.Unlock()
	n := 0
	if own || sc.link.Fast() || len(out) <= safeRequest {
		var err error
		if n, err = sc.link.TryWrite(out); err != nil {
			n = len(out) // the server's goroutine will read the end of the stream
		}
	}
	done := n == len(out)
	if !done {
		s.unsent = append([]byte(nil), out[n:]...)
	}
	c.free()
	switch {
	case stop != stopNot: // wholeMessages has let nothing else through
		s.end(errPipeline)
	case done:
		s.sent(sc)
	case !own:
		s.mu.Lock()
		s.resume = true
		s.mu.Unlock()
		s.interrupt()
	}
	return done
}

// feedAll feeds b, which holds whole messages or the beginning of a large one, and returns what is to be written.
func (s *Session) feedAll(b []byte) (out []byte, stop stop) {
	for len(b) > 0 {
		n, stop := s.feed(b)
		if n == 0 {
			return out, stop
		}
		if out == nil && s.prefix == nil && n == len(b) {
			return b, stopNot
		}
		out = append(append(out, s.prefix...), b[:n]...)
		s.prefix = nil
		b = b[n:]
	}
	return out, stopNot
}

// endTurn gives sc back after the last reply of a turn was written. The caller's goroutine is the server's, or the one that
// sent the session's last bytes.
func (sc *server) endTurn(s *Session) {
	s.mu.Lock()
	s.finishing = false
	if s.srv != sc {
		s.mu.Unlock()
		return
	}
	if s.sending {
		s.finish = true
		s.mu.Unlock()
		return
	}
	if s.body > 0 { // of a message that the server ignores; sent ends the turn behind it
		wake := s.held
		s.held = false
		s.mu.Unlock()
		if wake {
			s.interrupt()
		}
		return
	}
	s.dropLocked(sc)
	again := !s.pending.empty() && !s.gone
	s.waiting = again
	wake := s.held && !again || s.closing != nil
	s.held = s.held && again
	s.mu.Unlock()
	if again {
		s.pool.enqueue(s)
	}
	if wake {
		s.interrupt()
	}
	sc.pool.giveBack(sc)
}

// dropLocked ends the session's hold on sc.
func (s *Session) dropLocked(sc *server) {
	if s.primed {
		sc.unnamed = 0
		if s.turn.Unnamed() == turn.UnnamedLast && !sc.failed {
			sc.unnamed = s.unnamedID
		}
	}
	s.srv = nil
	sc.sess.Store(nil)
}

// releasableLocked reports whether the session may go on with another server connection.
func (s *Session) releasableLocked() bool {
	return s.pins == 0 && s.body == 0 && s.turn.Releasable()
}

// stop is why feed stopped before the end of what it was given.
type stop byte

const (
	stopNot       stop = iota // it did not, or the rest is an incomplete message
	stopTerminate             // the next message is Terminate
	stopMalformed             // the next message cannot be one
	stopTooMany               // too many answers would be owed
	stopPrime                 // the next message needs something in front of it
)

// frontendLength returns the length of the frontend message at the start of b, which holds a header; false if there can
// be no such message.
func frontendLength(b []byte) (n int, ok bool) {
	limit, known := wire.FrontendLimit(b[0])
	l := wire.Length(b)
	return int(l) + 1, known && l >= 4 && l <= limit
}

// wholeMessages returns how many bytes of b can be passed on: whole messages, and what there is of a last one that is
// larger than any buffer. It stops before Terminate.
func wholeMessages(b []byte) (n int, stop stop) {
	for len(b)-n >= wire.HeaderLen {
		l, ok := frontendLength(b[n:])
		switch {
		case !ok:
			return n, stopMalformed
		case b[n] == wire.Terminate:
			return n, stopTerminate
		case l <= len(b)-n:
			n += l
		case l > link.BufferSize && len(b)-n > largeHead:
			return len(b), stopNot
		default:
			return n, stopNot
		}
	}
	return n, stopNot
}

// largeHead is how much of a message larger than any buffer must be there before it is passed on: its header and the
// first byte of its body.
const largeHead = wire.HeaderLen

// feed records the messages at the start of b as sent and returns how many bytes of b to write now, after prefix. The
// caller holds mu.
func (s *Session) feed(b []byte) (n int, why stop) {
	s.fed = true
	if s.body > 0 {
		n = s.feedBody(b)
	}
	for len(b)-n >= wire.HeaderLen {
		l, ok := frontendLength(b[n:])
		switch {
		case !ok:
			return n, stopMalformed
		case b[n] == wire.Terminate:
			return n, stopTerminate
		case l > len(b)-n && (l <= link.BufferSize || len(b)-n <= largeHead):
			return n, stopNot
		}
		msg := b[n:min(n+l, len(b))]
		if why := s.admit(msg, l, n == 0); why != stopNot {
			return n, why
		}
		n += len(msg)
		s.body = l - len(msg)
	}
	return n, stopNot
}

// feedBody passes on the body of a large message.
func (s *Session) feedBody(b []byte) int {
	n := min(s.body, len(b))
	s.body -= n
	if s.big != nil {
		s.feedText(b[:n], s.body == 0)
	}
	return n
}

// admit records one message as sent; l is its whole length, of which msg may hold only the beginning. first says that
// something can still be put in front of it.
func (s *Session) admit(msg []byte, l int, first bool) stop {
	typ, unnamed := msg[0], false
	if !s.turn.Skipping() && !s.turn.CopyIn() {
		switch typ {
		case wire.Query:
			s.primed = true
			s.risk = s.risk || s.turn.Status() == 'I'
			s.text(msg[wire.HeaderLen:], l-wire.HeaderLen)
		case wire.Parse:
			unnamed = msg[wire.HeaderLen] == 0
			s.parse(msg, l, unnamed)
		case wire.Bind:
			if why := s.bind(msg, first); why != stopNot {
				return why
			}
		case wire.Describe, wire.Close:
			if unnamed = isUnnamedStatement(msg); unnamed {
				if typ == wire.Close {
					s.primed = true
				} else if why := s.prime(first); why != stopNot {
					return why
				}
			}
		case wire.FunctionCall:
			s.risk = s.risk || s.turn.Status() == 'I'
		}
	}
	if typ == wire.Sync && s.turn.Status() == 'I' {
		s.risk = true
	}
	if !s.turn.Sent(typ, unnamed) {
		return stopTooMany
	}
	return stopNot
}

// isUnnamedStatement reports whether a Describe or Close means the unnamed statement.
func isUnnamedStatement(msg []byte) bool {
	return len(msg) == wire.HeaderLen+2 && msg[wire.HeaderLen] == 'S' && msg[wire.HeaderLen+1] == 0
}

// parse looks at a Parse.
func (s *Session) parse(msg []byte, l int, unnamed bool) {
	body := msg[wire.HeaderLen:]
	if !unnamed {
		s.nameRisk = true
		s.pinFor(EffectNamedStatement)
		_, text, ok := wire.CString(body)
		if !ok { // the name alone fills a buffer: the server will say no
			return
		}
		s.text(text, l-len(msg)+len(text))
		return
	}
	s.primed = true
	s.unnamedID = s.env.statementIDs.Add(1)
	if l > len(msg) {
		s.pinFor(EffectUnnamedStatement)
		s.unnamed = nil
	} else {
		s.unnamed = append(s.unnamed[:0], msg...)
	}
	risk := s.risk
	s.risk = false
	s.text(body[1:], l-len(msg)+len(body)-1)
	s.stmtRisk = s.risk || l > len(msg)
	s.risk = risk
}

// bind looks at a Bind.
func (s *Session) bind(msg []byte, first bool) stop {
	_, rest, ok := wire.CString(msg[wire.HeaderLen:]) // the portal's name
	if !ok || len(rest) == 0 {
		return stopNot
	}
	if rest[0] != 0 {
		s.risk = s.risk || s.nameRisk
		return stopNot
	}
	s.risk = s.risk || s.stmtRisk
	return s.prime(first)
}

// prime makes sure that the server connection's unnamed statement is the session's own before it is referred to: another
// session may have left one, and this session's may have been made on another connection.
func (s *Session) prime(first bool) stop {
	if s.primed {
		return stopNot
	}
	if !first {
		return stopPrime
	}
	s.primed = true
	if s.turn.Unnamed() == turn.UnnamedLast {
		s.prefix = append(s.scratch[:0], s.unnamed...) // the next Parse may overwrite s.unnamed before this is written
		s.turn.InjectParse()
		return stopNot
	}
	s.prefix = append(s.scratch[:0], closeUnnamed...)
	s.turn.InjectClose()
	return stopNot
}

var closeUnnamed = []byte{wire.Close, 0, 0, 0, 6, 'S', 0}

// text classifies the zero-terminated statement text at the start of b, the rest of a body of which n bytes are still to
// be taken together with it.
func (s *Session) text(b []byte, n int) {
	if n > len(b) {
		s.big = new(sqlscan.Scanner)
		s.big.Reset(s.strings)
		s.feedText(b, false)
		return
	}
	if t, _, ok := wire.CString(b); ok {
		b = t
	}
	s.effect(sqlscan.Classify(b, s.strings))
}

// feedText classifies a further piece of a large statement text.
func (s *Session) feedText(b []byte, last bool) {
	t, _, ends := wire.CString(b)
	if ends {
		b = t
	}
	s.big.Feed(b)
	if ends || last {
		s.effect(s.big.Finish())
		s.big = nil
	}
}

// effect acts on what a statement's text may do.
func (s *Session) effect(e sqlscan.Effect) {
	if e == 0 {
		return
	}
	if e&mayCommit != 0 {
		s.risk, s.stmtRisk = true, true
	}
	if e&pinningScan != 0 {
		s.pinFor(effectsOf(e))
	}
}

// pinFor pins the session for those of the effects that the policy says, and those that are not up to it.
func (s *Session) pinFor(e Effects) {
	if e &^= s.pins; e != 0 {
		s.pin(s.env.policy.Pin(s, e)&e | e&mandatory)
	}
}

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
	boundary                // the session wants to know that nothing is owed
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
	owed := s.turn.Owed()
	gone := s.gone
	s.mu.Unlock()
	if out > 0 && !gone {
		if w, err := s.link.TryWrite(b[:out]); err == nil && w < out {
			sc.rest = append([]byte(nil), b[w:out]...)
			sc.what = what
			return n, link.Leave
		}
	}
	return n, sc.follow(s, what, owed)
}

// follow does what comes after the replies were written.
func (sc *server) follow(s *Session, what outcome, owed bool) link.Next {
	switch what {
	case turnEnds:
		sc.endTurn(s)
	case boundary:
		s.interrupt()
	case winding:
		sc.wind(s)
	case lost:
		sc.gone = errAbandoned
		return link.Leave
	}
	if owed {
		return link.Again
	}
	return link.Park
}

// digest looks at the server's messages at the start of b, as far as they are complete or too large for any buffer. It
// returns how many bytes it looked at, and how many bytes at the start of b, from which the answers to the proxy's own
// messages were cut out, go to the client. The caller holds s.mu.
func (sc *server) digest(s *Session, b []byte) (n, out int, what outcome) {
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
	if msg[0] == wire.ReadyForQuery {
		return v, sc.noteReady(s)
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
		if s.held && !s.sending && s.turn.Ready() == 0 {
			s.held = false
			return boundary
		}
		return goOn
	}
	s.risk = false
	switch {
	case s.gone:
		return winding
	case s.turn.Lost():
		s.pinFor(EffectProtocol)
	case len(sc.drift) > 0 && s.turn.Status() == 'I':
		s.pinFor(EffectUntrackedSetting)
	}
	if s.pins == 0 && s.turn.Releasable() {
		s.finishing = true
		return turnEnds
	}
	if s.held && !s.sending || s.closing != nil {
		s.held = false
		return boundary
	}
	return goOn
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
		s.mu.Unlock()
		sc.link.ClearInterrupt()
		s.env.count.recycled.Add(1)
		sc.pool.giveBack(sc)
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
	_ = sc.link.Conn().SetReadDeadline(s.env.now().Add(windLimit))
	if n, err := sc.link.TryWrite(q); err == nil && n < len(q) {
		sc.kill() // it reads nothing any more
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
