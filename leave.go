package pgmoor

import (
	"time"

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
	if sc != nil && s.turn.OwedToClient() {
		s.freed = make(chan struct{})
		now := s.cancelsLeft(sc)
		s.pool.wg.Add(1) // the goroutine of sc keeps the pool from being closed
		go sc.cancelLeft(s, s.freed, now)
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

// cancelPause is how long a cancel request for what a client has left has to show an effect at first.
const cancelPause = 20 * time.Millisecond

// cancelLeft is the goroutine that cancels what runs for the client of s, which is gone, until freed is closed because sc is not the session's
// any more. A cancel request that overtakes what it is meant for, or comes when the server is between two messages, does nothing. now says
// that the first one is due and holdForCancel was called for it.
func (sc *server) cancelLeft(s *Session, freed <-chan struct{}, now bool) {
	defer sc.pool.wg.Done()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for wait := cancelPause; ; wait *= 2 {
		if now {
			sc.pool.env.cancelBackend(sc)
		}
		pause.Reset(wait)
		select {
		case <-freed:
			return
		case <-sc.pool.ctx.Done():
			return
		case <-pause.C:
		}
		s.mu.Lock()
		now = s.srv == sc && s.cancelsLeft(sc)
		s.mu.Unlock()
	}
}

// cancelsLeft reports whether what sc runs for a client that is gone is to be cancelled now: not what the proxy cleans up with. If so, it calls
// holdForCancel. The caller holds mu.
func (s *Session) cancelsLeft(sc *server) bool {
	if sc.winds > 0 || !s.turn.OwedToClient() || s.turn.Injected() || s.turn.Between() {
		return false
	}
	s.pool.holdForCancel(sc)
	return true
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
