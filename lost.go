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
	unsure := s.unsureLocked(sc).name()
	l := s.lossLocked(sc)
	s.dropLocked(sc)
	s.finish, s.finishing, s.writing, s.big = false, false, false, nil
	s.resume, s.sending, s.unsent, s.unsentTo = false, false, nil, nil
	switch {
	case partial || sc.fatal:
		s.axed, s.closing = true, nil
	case s.axed: // it ends anyway, and its client is told why
	case s.isTargeted(): // the server's last words may have been lost
		s.axed, s.closing = true, errShutdown
	case s.ending:
		s.axed, s.closing = true, s.endWith
	case s.pins != 0:
		s.axed, s.closing = true, lostPinned(s.pinned)
	case unsure != "":
		s.axed, s.closing = true, lostPinned(unsure)
	case s.repeatLocked(sc, l):
	default:
		s.lostErr = l
	}
	s.body = 0
	s.mu.Unlock()
	s.env.log.Warn("pgmoor: server connection lost under a client", s.logAttrs(sc)...)
	s.interrupt()
}

// unsureLocked returns what the session may have made for good on sc, and not been pinned for yet: a setting whose value was
// not read back, or whatever else the client may count upon because it was acknowledged.
func (s *Session) unsureLocked(sc *server) Effects {
	commits := s.turn.Status() == 'I' || s.risk
	left := s.cand | s.maybe
	if !commits {
		left &^= transactional
	}
	touched := (len(s.dirty) > 0 || s.allReset && s.set != settings{}) && commits
	for _, o := range sc.own { // asked between two transactions
		touched = touched || len(o.dirty) > 0
		left |= o.maybe
	}
	s.dirty, s.allReset = nil, false
	switch {
	case sc.setUpErr != nil: // nothing was run
		return 0
	case touched:
		left |= EffectSetting
	}
	return left
}

// lossLocked says what the loss of sc means (architecture, invariant 6) and forgets what was owed.
func (s *Session) lossLocked(sc *server) *lostErr {
	l := &lostErr{body: s.body, skip: s.turn.Skipping() && s.turn.Ready() == 0, done: s.holds&holdTold != 0}
	s.holds = 0
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
	s.risk, s.portalRisk, s.mending = false, false, false
	s.lexical, s.candUntold, s.discards, s.going, s.unmoor = false, false, false, 0, false
	s.strings = s.expected(sc, settingStrings) != "off"
	s.opaque = hidesASCII(s.expected(sc, settingEncoding))
	s.maybe, s.olderRisk, s.parsedHere = 0, false, false
	s.cand, s.doubtful, s.mayUnpin, s.ends, s.failed, s.rolledBack, s.portals = 0, false, false, 0, false, false, nil
	s.ops, s.sqlOps, s.refPortals, s.faked, s.prefix, s.instead = nil, nil, nil, false, nil, 0
	s.ownErr, s.toldFirst, s.compared, s.standNames = nil, "", nil, nil
	s.seq.heeds, s.seq.lost = 0, false
	sc.own, sc.ask, s.refusals, s.cancelled, s.overruled, s.asksLater = nil, nil, nil, false, false, false
	s.dropCancel()
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
