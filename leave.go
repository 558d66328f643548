package pgmoor

import (
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file cleans up after clients that are gone: what runs is cancelled, what is open is rolled back, what is left is discarded.

// leave gives up what the session holds, after its client is gone. The server connection is returned when it is clean again:
// what runs is cancelled, what is open is rolled back, and what a pinned session left behind is discarded.
func (s *Session) leave() {
	s.pool.forget(s)
	s.mu.Lock()
	s.gone = true
	s.departed.Store(true)
	s.dropCancel()
	if sc := s.standIn.Swap(nil); sc != nil {
		sc.kill()
	}
	if s.pinned != "" {
		s.env.pinned(s.pinned, -1)
	}
	s.waiting = false
	s.pending.free()
	if s.ears != nil {
		s.ears.l.leave(s.ears)
	}
	sc := s.srv
	busy := s.sending || s.finishing
	kill := false
	if sc != nil {
		kill = s.unfitLocked()
	}
	cancel := sc != nil && s.turn.OwedToClient() && !s.turn.Injected()
	if cancel {
		s.pool.holdForCancel(sc)
		defer s.env.cancelBackend(sc)
	}
	s.link.AbortWrites()
	switch {
	case sc == nil:
		s.mu.Unlock()
	case kill:
		s.mu.Unlock()
		defer sc.kill()
	case busy: // whoever writes goes on with wind; under mu, for the connection may be somebody else's behind it
		sc.limitWind()
		s.mu.Unlock()
	default:
		s.cleanLocked(sc)
	}
	s.link.Release()
}

// cleanLocked begins to clean sc up, and unlocks.
func (s *Session) cleanLocked(sc *server) {
	if fix := s.fixLocked(); len(fix) > 0 || s.turn.Owed() {
		sc.windUp(s, fix)
		return
	}
	s.mu.Unlock()
	sc.wind(s)
}

// unfitLocked reports whether the server connection cannot be made clean again.
func (s *Session) unfitLocked() bool {
	return s.body > 0 || s.resume || s.unsentTo != nil || s.sending && s.axed || s.turn.Lost() || s.pins&unresettable != 0 || s.srv.fatal || s.srv.res == nil
}

// fixLocked returns the messages that end what the client left half done.
func (s *Session) fixLocked() (fix []byte) {
	if s.turn.CopyIn() {
		const why = "the client is gone"
		fix = append(fix, 'f', 0, 0, 0, byte(4+len(why)+1))
		fix = append(append(fix, why...), 0)
		s.turn.Sent('f', false)
	}
	if s.turn.Open() || s.turn.Skipping() {
		fix = append(fix, 'S', 0, 0, 0, 4)
		s.turn.Sent('S', false)
	}
	return fix
}

// over is the last thing that happens to a session.
func (s *Session) over() {
	_ = s.client.conn.Close()
	s.env.forget(s)
	s.env.discharge(s.client)
	close(s.done)
}

// stained reports whether the session may have left something on sc that others must not meet.
func (s *Session) stained() bool {
	return s.pins|s.cand != 0 || s.doubtful || len(s.dirty) > 0 || s.allReset || s.unmoor || s.holds&(holdFresh|holdAsked) != 0 ||
		s.ears != nil && s.ears.dirty || s.srv != nil && len(s.srv.changed) > 0 || s.active && s.env.config().Verify == VerifyAlways
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
	case s.stained() && !sc.reset:
		q = wire.AppendQuery(wire.AppendQuery(nil, resetRole), discardAll)
		s.turn.Sent(wire.Query, false) // one of the two
		if init := sc.initial; init != nil {
			q = append(q, init.query...)
			s.turn.Sent(wire.Query, false)
		}
		sc.reset, sc.failed, sc.set = true, false, sc.fresh
		sc.prepared.Clear()
	default:
		s.primed = true
		sc.failed = true // whatever unnamed statement there is is nobody's
		s.dropLocked(sc)
		if sc.none = sc.reset; sc.reset {
			sc.gotBy, sc.foreign = 0, false
		}
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
