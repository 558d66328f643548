package pgmoor

import (
	"fmt"
	"runtime/debug"
)

// serverLost is called on the goroutine of sc, the server connection that the session held, which has ended. What the
// client is told is written by the session's own goroutine.
func (s *Session) serverLost(sc *server) {
	s.mu.Lock()
	if s.srv != sc {
		s.mu.Unlock()
		return
	}
	if s.gone {
		s.dropLocked(sc)
		s.mu.Unlock()
		return
	}
	partial := sc.body > 0 // in the middle of a message: nothing can be said any more
	unsure := s.unsureLocked(sc)
	l := s.lossLocked(sc)
	s.dropLocked(sc)
	s.finish, s.finishing, s.writing, s.big = false, false, false, nil
	s.resume, s.sending, s.unsent, s.unsentTo = false, false, nil, nil
	switch {
	case partial || sc.fatal:
		s.axed, s.closing = true, nil
	case s.isTargeted(): // the server's last words may have been lost
		s.axed, s.closing = true, errShutdown
	case s.ending:
		s.axed, s.closing = true, s.endWith
	case s.pins != 0:
		s.axed, s.closing = true, lostPinned(s.pinned)
	case unsure:
		s.axed, s.closing = true, lostPinned(EffectSetting.String())
	default:
		s.lostErr = l
	}
	s.body = 0
	s.mu.Unlock()
	s.env.log.Warn("pgmoor: server connection lost under a client", s.logAttrs(sc)...)
	s.interrupt()
}

// unsureLocked reports whether a setting may have been made, for good, whose value was not read back yet.
func (s *Session) unsureLocked(sc *server) bool {
	touched := (len(s.dirty) > 0 || s.allReset && s.set != settings{}) && (s.turn.Status() == 'I' || s.risk)
	for _, o := range sc.own {
		touched = touched || len(o.dirty) > 0
	}
	s.dirty, s.allReset = nil, false
	return touched && sc.setUpErr == nil
}

// lossLocked says what the loss of sc means (architecture, invariant 6) and forgets what was owed.
func (s *Session) lossLocked(sc *server) *lostErr {
	l := &lostErr{body: s.body, skip: s.turn.Skipping() && s.turn.Ready() == 0, done: s.withheld}
	s.loseEars()
	status, risk := s.turn.Status(), s.risk
	l.ready, l.cut = s.turn.Abandon()
	l.block = status != 'I'
	switch {
	case sc.setUpErr != nil: // nothing was run
		l.err, l.block = sc.setUpErr, false
	case risk && (l.ready > 0 || l.cut):
		l.err = errLostUnknown
		l.block = false
	case l.block:
		l.err = errLostInTransaction
	case l.ready > 0:
		l.err = errLostUnknown
	default:
		l.err = errLost
	}
	s.risk, s.portalRisk = false, false
	s.lexical, s.candUntold, s.discards, s.going, s.unmoor, s.unmooring = false, false, false, 0, false, false
	s.strings = s.expected(sc, settingStrings) != "off"
	s.opaque = hidesASCII(s.expected(sc, settingEncoding))
	s.cand, s.doubtful, s.mayUnpin, s.ends, s.failed, s.rolledBack, s.portals = 0, false, false, 0, false, false, nil
	sc.own, sc.ask, s.refusals, s.cancelLater, s.asksLater = nil, nil, nil, false, false
	return l
}

// recover ends a session in which something panicked; its connections are closed, nobody else notices.
func (s *Session) recover(err *error) {
	if r := recover(); r != nil {
		s.env.log.Error("pgmoor: panic in a session", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		*err = fmt.Errorf("pgmoor: panic: %v", r)
	}
}

// recoverAttach ends s and sc after a panic over s's request, on whatever goroutine gave sc to s.
func (sc *server) recoverAttach(s *Session) {
	if r := recover(); r != nil {
		s.env.log.Error("pgmoor: panic in a session", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		s.end(nil)
		sc.kill()
	}
}

// recover ends a server connection whose goroutine panicked, and the session that held it.
func (sc *server) recover() {
	r := recover()
	if r == nil {
		return
	}
	sc.pool.env.log.Error("pgmoor: panic on a server connection", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	sc.killed.Store(true)
	if s := sc.sess.Load(); s != nil {
		s.end(nil)
	}
	if sc.res == nil {
		_ = sc.link.Conn().Close()
		return
	}
	sc.pool.lost(sc)
}
