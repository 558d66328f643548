package pgmoor

import (
	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/turn"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file moves the client's messages to a server connection, on the client's goroutine, or, for a request that waited
// for one, on that of whoever gave the connection back. Messages are changed only where they name a prepared statement or a process.

// fromClient is the handler of the client's link.
func (s *Session) fromClient(b []byte) (int, link.Next) {
	s.touched.Store(true)
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
		if n, next := s.answerLocally(b); n > 0 || next == link.Leave || s.local.active {
			return n, next
		}
	}
	s.mu.Lock()
	switch {
	case s.ending: // the server will end the session; nothing behind it counts
		s.mu.Unlock()
		return len(b), link.Park
	case s.axed || s.waitErr != nil || s.lostErr != nil: // interrupted comes first
		return s.keepLocked(b, done)
	case s.mending: // before the next: nothing may become pending
		return s.holdBackLocked(b, done)
	case s.waiting || s.sending || s.finishing || s.holds != 0 || !s.pending.empty():
		return s.keepLocked(b, done)
	case s.srv != nil:
		return s.directLocked(b, done)
	}
	return s.borrowLocked(b, done)
}

// directLocked writes b, which begins at done in what the handler was given, to the server connection that the session holds.
func (s *Session) directLocked(b []byte, done int) (int, link.Next) {
	sc := s.srv
	if sc.foreign {
		s.seq.clear = s.clearance(b)
	}
	n, stop := s.feed(b)
	if n == 0 {
		if stop == stopHold {
			n, next := s.keepLocked(b, done)
			s.flushHeld(sc)
			return n, next
		}
		s.mu.Unlock()
		return s.stopped(stop, b)
	}
	prefix, out := s.prefix, b[s.instead:n]
	s.prefix, s.instead = nil, 0
	if stop == stopPrime { // in one write all the same
		rest, k, _ := s.feedRest(append(append([]byte(nil), prefix...), out...), b[n:])
		prefix, out, n = nil, rest, n+k
	}
	if len(s.prefix) > 0 { // what the message that waits waits for
		out = s.heldBack(out)
	} else {
		s.holds = 0 // what is behind is looked at again
	}
	if sc.foreign && s.seq.heeds != 0 {
		prefix = append(s.shield(sc), prefix...)
	}
	s.sending = true
	s.mu.Unlock()
	if !s.transmit(sc, prefix, out) {
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
	s.unsent, s.unsentTo = append([]byte(nil), b[n:]...), sc
	return false
}

// feedRest appends to out what is to be written of b, and returns how many bytes of b that stands for.
func (s *Session) feedRest(out, b []byte) (all []byte, done int, why stop) {
	for done < len(b) {
		var n int
		n, why = s.feed(b[done:])
		if n == 0 {
			break
		}
		out = append(append(out, s.prefix...), b[done+s.instead:done+n]...)
		s.prefix, s.instead = nil, 0
		done += n
	}
	return out, done, why
}

// maxScratch bounds the scratch space that a session keeps.
const maxScratch = 4 << 10

// sent ends a write to the server: if the turn ended meanwhile, the connection is given back.
func (s *Session) sent(sc *server) {
	s.mu.Lock()
	if s.srv != sc { // lost meanwhile, and with it the right to send
		s.mu.Unlock()
		return
	}
	s.sending = false
	s.tellNow()
	if s.asksLater && !s.gone && s.body == 0 {
		s.asksLater = false
		if sc.ask != nil {
			s.sending = true
			s.mu.Unlock()
			sc.sendAsked(s)
			return
		}
		if k := s.question(); k != ownNothing && s.turn.Quiet() && s.turn.Status() == 'I' {
			s.inquire(sc, k)
			s.mu.Unlock()
			sc.sendAsked(s)
			return
		}
	}
	end := s.finish || !s.finishing && s.releasableLocked()
	s.finish = false
	switch {
	case s.gone:
		s.mu.Unlock()
		sc.kill()
	case end:
		s.finishing = true // or the session's goroutine might send something before the connection is given back
		s.mu.Unlock()
		sc.endTurn(s)
	case s.sendableLocked(): // else it goes on from endTurn
		s.pushLocked(sc, false)
	case s.held || s.closing != nil:
		s.held = false
		s.mu.Unlock()
		s.interrupt()
	default:
		s.mu.Unlock()
	}
}

// stopped says what follows when the next message, at the start of b, is not a request.
func (s *Session) stopped(stop stop, b []byte) (int, link.Next) {
	switch stop {
	case stopTerminate:
		return s.terminate(b)
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
	switch {
	case s.finishing || s.writing || s.waiting || s.sending: // first things first
		s.held = true
		s.mu.Unlock()
		return 0, link.Park
	case sc == nil || s.turn.AtRest():
		s.mu.Unlock()
		return s.fatal(e, 0)
	}
	s.endWith = e
	return s.lastWordLocked(sc, b)
}

// badHeader says what is wrong with the header at the start of b, in PostgreSQL's words.
func badHeader(b []byte) *Error {
	if _, known := wire.FrontendLimit(b[0]); !known {
		return fatalf(codeProtocolViolation, "invalid frontend message type %d", b[0])
	}
	return fatalf(codeProtocolViolation, "invalid message length")
}

// terminate ends the session once every ReadyForQuery that is owed was delivered. In the middle of a batch or of a COPY the
// server gets the Terminate: errors that it has not reported yet come before the end.
func (s *Session) terminate(b []byte) (int, link.Next) {
	s.mu.Lock()
	sc := s.srv
	switch {
	case s.finishing || s.writing || s.waiting || sc != nil && s.turn.Ready() > 0 && !s.turn.CopyIn():
		s.held = true
		s.mu.Unlock()
		return 0, link.Park
	case sc != nil && !s.turn.AtRest() && !s.sending:
		return s.lastWordLocked(sc, b)
	}
	s.mu.Unlock()
	return s.leaveFor(leaveTerminate, 0)
}

// lastWordLocked passes on the header at the start of b, with which the server ends the session, and unlocks.
func (s *Session) lastWordLocked(sc *server, b []byte) (int, link.Next) {
	s.ending = true
	s.pin(EffectProtocol)
	s.sending = true
	s.mu.Unlock()
	if !s.transmit(sc, nil, b[:wire.HeaderLen]) {
		return s.leaveFor(leaveUnsent, len(b))
	}
	s.sent(sc)
	return len(b), link.Park
}

// fatal ends the session with an error, unless the server's goroutine is in the middle of a reply.
func (s *Session) fatal(e *Error, n int) (int, link.Next) {
	s.mu.Lock()
	quiet := s.srv == nil || !s.turn.OwedToClient() && !s.finishing && !s.writing
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
	for sc := s.lend(); sc != nil; sc = s.lend() {
		if s.holdLocked(sc) {
			if !s.pushLocked(sc, true) {
				return s.leaveFor(leaveUnsent, s.consumed(whole))
			}
			return s.consumed(whole), link.Park
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
	s.backend.Store(sc.pid)
	sc.holder.Store(s.pid)
	s.waiting = false
	s.primed = sc.none && s.turn.Unnamed() == turn.UnnamedNone || sc.unnamed != 0 && sc.unnamed == s.unnamedID && s.turn.Unnamed() == turn.UnnamedLast
	s.queried, s.keeps, sc.kept.whole = false, false, false
	s.holdSequences(sc)
	sc.failed, sc.winds, sc.reset, sc.changed = false, 0, false, sc.changed[:0]
	return true
}

// attach gives the connection to a session that waited for one and sends its request. It reports false if the session
// does not want it any more. The caller is the only one who knows sc.
func (sc *server) attach(s *Session) (done bool) {
	done = true
	defer sc.recoverAttach(s)
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
	s.pushLocked(sc, false)
	return true
}

// pushLocked sends the pending request, unlocks, and reports whether all of it was written. Whoever calls it sends for the
// session until sent; where the socket does not take everything that passes to the session's own goroutine, with the rest in unsent.
// Only that goroutine may wait for the server to read; own says that the caller is it.
func (s *Session) pushLocked(sc *server, own bool) bool {
	c := s.pending
	s.pending = chunk{}
	s.sending = true
	front := s.setUp(sc, c.bytes())
	if sc.foreign {
		s.seq.clear = s.clearance(c.bytes())
	}
	out, fed, stop := s.feedAll(c.bytes())
	if stop == stopHold {
		rest := c
		rest.off, rest.size = c.off+fed, c.size-fed
		s.pending, c = rest, chunk{}
		if s.wantsFlush() {
			out = s.heldBack(out)
		}
	}
	if sc.foreign && s.seq.heeds != 0 {
		front = append(front, s.shield(sc)...)
	}
	s.mu.Unlock()
	if front != nil {
		out = append(front, out...)
	}
	n := 0
	if own || sc.link.Fast() || len(out) <= safeRequest {
		var err error
		if n, err = sc.link.TryWrite(out); err != nil {
			n = len(out) // the server's goroutine will read the end of the stream
		}
	}
	done := n == len(out)
	if !done {
		done = !s.postpone(sc, out[n:], own)
	}
	c.free()
	switch {
	case stop != stopNot && stop != stopHold: // wholeMessages has let nothing else through
		s.end(errPipeline)
	case n == len(out):
		s.sent(sc)
	}
	return done
}

// postpone leaves rest to the session's own goroutine; it reports false if sc was lost meanwhile.
func (s *Session) postpone(sc *server, rest []byte, own bool) bool {
	s.mu.Lock()
	held := s.srv == sc
	if held {
		s.unsent, s.unsentTo = append([]byte(nil), rest...), sc
		s.resume = !own
	}
	s.mu.Unlock()
	if held && !own {
		s.interrupt()
	}
	return held
}

// feedAll feeds b, which holds whole messages or the beginning of a large one, and returns what is to be written and for how many bytes of b that stands.
func (s *Session) feedAll(b []byte) (out []byte, n int, stop stop) {
	n, stop = s.feed(b)
	if n == len(b) && s.prefix == nil {
		out = b[s.instead:]
		s.instead = 0
		return out, n, stopNot
	}
	if n == 0 {
		return nil, 0, stop
	}
	out = append(append([]byte(nil), s.prefix...), b[s.instead:n]...)
	s.prefix, s.instead = nil, 0
	out, k, stop := s.feedRest(out, b[n:])
	if n+k == len(b) {
		stop = stopNot
	}
	return out, n + k, stop
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
	if s.gone {
		s.mu.Unlock()
		sc.wind(s)
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
	again := !s.pending.empty() && !s.gone && s.holds == 0
	s.waiting = again
	wake := s.held && !again || s.closing != nil || s.told()
	s.held = s.held && again
	s.mu.Unlock()
	if wake {
		s.interrupt()
	}
	if again {
		sc.pool.giveBack(sc, s)
		return
	}
	sc.pool.giveBack(sc, nil)
}

// dropLocked ends the session's hold on sc.
func (s *Session) dropLocked(sc *server) {
	if s.primed {
		sc.none = s.turn.Unnamed() == turn.UnnamedNone && !sc.failed
		sc.unnamed = 0
		if s.turn.Unnamed() == turn.UnnamedLast && !sc.failed {
			sc.unnamed = s.unnamedID
		}
	}
	sc.gotBy, s.seq.last = s.id, sc.serial
	s.publish(true)
	s.defined, s.defines, s.primeless = 0, false, false
	s.holds &^= holdPaused // it waits in the queue from here on
	s.srv = nil
	s.backend.Store(0)
	sc.sess.Store(nil)
	if s.freed != nil {
		close(s.freed)
		s.freed = nil
	}
}

// releasableLocked reports whether the session may go on with another server connection.
func (s *Session) releasableLocked() bool {
	if s.holds&(holdTold|holdAsked) != 0 || s.ears != nil && s.ears.dirty {
		return false
	}
	return s.pins == 0 && s.cand == 0 && len(s.dirty) == 0 && !s.allReset && !s.unmoor && s.body == 0 && s.turn.Releasable()
}
