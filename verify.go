package pgmoor

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pgmoor/pgmoor/internal/turn"
)

// This file asks the server what is left of a session's state, and makes its connection fresh when nothing is.

// question decides what has to be asked before the session's next step. The caller holds mu; nothing is owed.
func (s *Session) question() ownKind {
	switch {
	case s.turn.Lost(): // its answer could not be told from others
	case s.turn.Unnamed() == turn.UnnamedOlder: // a question would drop it
	case s.ears != nil && s.pins&EffectListen != 0 && len(s.ears.names) > 0:
		return ownListen
	case s.ears != nil && s.pins&EffectListen == 0 && s.ears.dirty:
		return ownChannels
	case s.wantsVerification():
		return ownVerify
	case len(s.dirty) > 0 && (s.pins == 0 || s.dirty[settingPin] != 0):
		return ownReadBack
	case s.unmoor && s.pins == 0: // when the settings are known: they end with it
		return ownCleanUp
	}
	return ownNothing
}

// inquire asks it. Nobody is sending.
func (s *Session) inquire(sc *server, k ownKind) outcome {
	switch k {
	case ownCleanUp:
		return s.cleanUp(sc)
	case ownVerify:
		return s.verify(sc)
	case ownChannels:
		return s.askWhat(sc)
	case ownListen:
		s.holds |= holdAsked
		return s.askLocked(sc, &own{kind: ownListen}, listenTo(s.ears.names))
	default:
		return s.readBackLocked(sc)
	}
}

// wantsVerification reports whether the server is to be asked what the session has left behind.
func (s *Session) wantsVerification() bool {
	switch mode := s.env.config().Verify; {
	case mode == VerifyNever, s.forever:
		return false
	case s.doubtful, mode == VerifyAlways && s.active && s.pins&verifiable == 0:
		return true
	}
	return s.mayEnd() && s.active && (s.mayUnpin || s.env.now().Sub(s.verifiedAt) >= hungryInterval && s.pool.hungry())
}

// hungryInterval is how often at most a session is asked about because others wait.
const hungryInterval = 20 * time.Millisecond

// mayEnd reports whether an answer of the server could end a pin.
func (s *Session) mayEnd() bool {
	return s.pins&verifiable != 0 && s.pins&unresettable == 0 && !s.forever && s.env.config().Verify != VerifyNever
}

// verification is the question for what is left of a session's state; the names that it asks for besides are appended. Its rows
// are a kind, a name and a value. (PostgreSQL documentation, "System Views"; objects in the temporary schema are
// found by their dependency on it.)
const verification = `SELECT 't', NULL, NULL WHERE EXISTS (SELECT 1 FROM pg_catalog.pg_depend ` +
	`WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()) ` +
	`UNION ALL SELECT 'l', NULL, NULL WHERE EXISTS (SELECT 1 FROM pg_catalog.pg_locks ` +
	`WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()) ` +
	`UNION ALL SELECT 'h', NULL, NULL WHERE EXISTS (SELECT 1 FROM pg_catalog.pg_cursors WHERE is_holdable) ` +
	`UNION ALL SELECT 'n', NULL, NULL WHERE EXISTS (SELECT 1 FROM pg_catalog.pg_listening_channels()) ` +
	`UNION ALL SELECT 'p', name, NULL FROM pg_catalog.pg_prepared_statements WHERE from_sql ` +
	`UNION ALL SELECT 'q', name, NULL FROM pg_catalog.pg_prepared_statements WHERE NOT from_sql ` +
	`UNION ALL SELECT 's', name, pg_catalog.left(pg_catalog.current_setting(name), 4097) FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session'`

// verificationKinds says what the kinds of rows mean.
var verificationKinds = map[string]Effects{
	"t": EffectTempObject, "l": EffectAdvisoryLock, "h": EffectHoldableCursor, "n": EffectListen,
	"p": EffectSQLPrepare, "q": EffectNamedStatement,
}

// verify asks what is left of the session's state. The caller holds mu.
func (s *Session) verify(sc *server) outcome {
	o := &own{kind: ownVerify, dirty: s.dirty, maybe: s.maybe}
	s.dirty, s.maybe, s.doubtful, s.mayUnpin, s.active = nil, 0, false, false, false
	s.verifiedAt = s.env.now()
	s.env.count.verifications.Add(1)
	names := s.set.values()
	for n := range o.dirty {
		names[n] = ""
	}
	for n := range s.sticky {
		names[n] = ""
	}
	q := verification
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if strings.Contains(n, ".") || n == settingRole || n == settingAuthorization {
			q += ` UNION ALL SELECT 's', ` + quote(n) + `, ` + shown(n)
		}
	}
	return s.askLocked(sc, o, q)
}

// verified takes the answer: pins whose reason is gone end, others may begin, and the settings are known.
func (s *Session) verified(sc *server, o *own) {
	if o.cancelled() {
		s.doubtful = true
		s.maybe |= o.maybe
		s.asksAgain = true
		for n, t := range o.dirty {
			s.touch(n, t)
		}
		return
	}
	if o.failed() { // perhaps the role may not read one of the views
		s.env.log.Debug("pgmoor: verification failed", s.logAttrs(sc)...)
		s.asksAgain = true
		for n, t := range o.dirty {
			s.touch(n, t)
		}
		s.going = 0
		s.pin(EffectUntrackedSetting)
		return
	}
	var found Effects
	m := make(map[string]string)
	for _, r := range o.rows {
		if len(r) != 3 {
			continue
		}
		if k := string(r[0]); (k == "p" || k == "q") && !sc.unshared(r[1]) {
			continue
		}
		if found |= verificationKinds[string(r[0])]; string(r[0]) == "s" && r[2] != nil && !ofTransaction[string(r[1])] {
			m[foldName(r[1])] = string(r[2])
		}
	}
	s.forgetDefaults(m, o.dirty)
	set, ok := s.checked(m)
	if ok {
		s.set, sc.set, s.asksAgain = s.restored(sc, set, o.dirty), set, false
	} else {
		found |= EffectUntrackedSetting
		for n, t := range o.dirty {
			s.touch(n, t)
		}
	}
	if s.untold {
		found |= EffectUntrackedSetting
	}
	s.pin(found &^ s.pins)
	if o.dirty[settingPin] != 0 || s.sticky[settingPin] != 0 {
		s.pinOnRequest(set.values()[settingPin])
	}
	s.drop(s.pins & (verifiable&^found | s.going))
	s.going = 0
	if s.pins == 0 {
		s.sticky, s.renews, s.namedListens = nil, false, false
	}
}

// forgetDefaults drops what only looks like a setting of the session's own.
func (s *Session) forgetDefaults(m map[string]string, dirty map[string]touch) {
	for _, name := range []string{settingRole, settingAuthorization} {
		if s.isReset(name, m[name], dirty[name], nil) {
			delete(m, name)
		}
	}
}

// cleanUp makes the connection fresh again, now that nothing on it is the session's. The session's messages wait meanwhile, so
// that none of them runs without the session's settings. The caller holds mu.
func (s *Session) cleanUp(sc *server) outcome {
	s.unmoor = false
	s.holds |= holdFresh
	queries := []string{resetRole, discardAll}
	if init := sc.initial; init != nil {
		queries = append(queries, init.text)
	}
	return s.askLocked(sc, &own{kind: ownCleanUp}, queries...)
}

// What makes a server connection fresh again. DISCARD ALL does not touch a role, and wants to be alone.
const (
	resetRole  = "RESET SESSION AUTHORIZATION;RESET ROLE"
	discardAll = "DISCARD ALL"
)

// cleaned takes the answer to either query of cleanUp.
func (sc *server) cleaned(s *Session, o *own) {
	if o.err != nil {
		sc.killed.Store(true) // it is not lent again
	}
	sc.set, sc.foreign = sc.fresh, false
	s.deallocated(sc, false)
	s.dropPrivate()
	if len(sc.own) == 0 {
		s.holds &^= holdFresh
	}
}

// reconsiderAfter is reconsider for a session that was not asked about for so long; a negative d is for ever.
func (s *Session) reconsiderAfter(d time.Duration) {
	s.mu.Lock()
	due := d >= 0 && s.env.now().Sub(s.verifiedAt) >= d && s.env.now().Sub(s.pinnedAt) >= d
	s.mu.Unlock()
	if due {
		s.reconsider()
	}
}

// reconsider asks whether the session is still pinned for a reason, if it is at rest. Any goroutine may call it, without locks.
func (s *Session) reconsider() {
	s.mu.Lock()
	sc := s.srv
	rests := sc != nil && s.mayEnd() && s.active && !s.gone && !s.sending && !s.finishing && !s.writing && s.holds == 0 &&
		s.body == 0 && s.turn.Quiet() && s.turn.Status() == 'I' && s.turn.Unnamed() != turn.UnnamedOlder
	if !rests {
		s.mu.Unlock()
		return
	}
	s.verify(sc)
	s.mu.Unlock()
	sc.sendAsked(s)
}
