package pgmoor

import (
	"log/slog"
	"math/bits"
	"time"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file decides for how long a session keeps its server connection. What statements may have done is collected while
// they run and looked at when their transaction is over; what is left then pins the session. A pin ends when the
// server says, asked at a boundary between transactions, that its reason is gone.

// An act is a statement that was prepared or is run: what its text may do, and what was decided about that. The zero value is
// a statement of no interest.
type act struct {
	info *sqlscan.Info // nil: nothing of interest
	deed *deed         // nil: nothing to decide about
}

// A deed is what was decided about the effects of a statement.
type deed struct {
	pins    Effects // to be pinned for
	share   Effects // neither followed nor looked for
	forever bool
	unpin   bool
	reason  string // the policy's
	digest  string // for the log; empty where nothing new pins
}

// shares reports whether the policy wants e to be shared.
func (a act) shares(e Effects) bool { return a.deed != nil && a.deed.share&e != 0 }

// judge decides what running a statement means. text may be the beginning of a text of size bytes only. The caller holds
// mu.
func (s *Session) judge(in *sqlscan.Info, text []byte, size int, use textUse) (act, *Error) {
	e := effectsOf(in.Effects)
	if use == preparesNamed && !s.env.config().defaultPolicy {
		e |= EffectNamedStatement
	}
	if size > strictTextSize {
		e |= EffectStatementTooLarge
	}
	if e == 0 && in.Effects&noted == 0 && (s.ears == nil || in.Effects&attuning == 0) {
		return act{}, nil
	}
	if e == 0 {
		return act{info: in}, nil
	}
	st := &Statement{Effects: e, Size: size, text: text, strings: s.strings}
	dec := s.env.config().policy.Decide(s, st)
	if dec.Refuse != nil {
		return act{}, dec.Refuse
	}
	d := &deed{
		pins: e&^(carried|guarded)&^dec.Share | e&dec.Pin | e&mandatory, share: dec.Share,
		forever: dec.Forever, unpin: dec.Unpin, reason: dec.Reason,
	}
	if d.reason != "" {
		d.pins |= EffectPolicy
	}
	listens := in.Effects&sqlscan.Listen != 0 && dec.Share&EffectListen == 0
	if listens && !s.carries(act{info: in, deed: d}) {
		d.pins |= EffectListen
	}
	if d.pins&^s.pins != 0 || listens { // whose pin may turn out later to be necessary
		d.digest = st.Digest()
	}
	return act{info: in, deed: d}, nil
}

// do takes note of an act that is done. The caller holds mu.
func (s *Session) do(a act) {
	in := a.info
	if in == nil {
		return
	}
	if in.Effects&mayCommit != 0 {
		s.risk = true
	}
	if in.Effects&sqlscan.Discard != 0 && s.pins&EffectSequence == 0 {
		s.seq.misses = 0
	}
	if a.deed != nil {
		s.undertake(a)
	}
	s.doSettings(a)
	s.listens(a)
	if in.Effects&sqlscan.Release != 0 {
		s.mayUnpin = true
	}
	if in.Effects&(sqlscan.Discard|sqlscan.Deallocate) != 0 { // which statements are left is not looked into
		s.pidNames = nil
	}
	s.renews = s.renews || in.Effects&sqlscan.Prepare != 0 && in.Effects&sqlscan.Sequence != 0
	s.discards = in.Effects&sqlscan.Discard != 0 && in.Statements == 1
	if in.Effects&(sqlscan.Create|sqlscan.Define) != 0 {
		s.define(in.Effects&sqlscan.Define != 0)
	}
	if in.Effects&sqlscan.Create != 0 && !a.shares(EffectTempObject) { // in the temporary schema, if that comes first in a search_path
		s.doubt(EffectTempObject)
	}
	if in.Effects&sqlscan.Listed != 0 && s.env.config().Verify == VerifyListed {
		s.doubt(EffectTempObject | EffectAdvisoryLock)
	}
	switch {
	case in.Effects&sqlscan.Call != 0, in.Effects&sqlscan.TxnEnd != 0 && in.Statements > 1:
		s.ends += 2
	case in.Effects&sqlscan.TxnEnd != 0:
		s.ends++
	}
}

// undertake collects what an act pins for. Whether a lock that was tried for was got only the server knows.
func (s *Session) undertake(a act) {
	d, pins := a.deed, a.deed.pins
	if a.info.Effects&(sqlscan.TryLock|sqlscan.AdvisoryLock) == sqlscan.TryLock && !d.forever && s.env.config().Verify != VerifyNever {
		if pins&EffectAdvisoryLock != 0 {
			s.doubt(EffectAdvisoryLock)
		}
		pins &^= EffectAdvisoryLock
	}
	if d.digest != "" {
		s.digest = d.digest
	}
	s.cand |= pins
	s.candForever = s.candForever || d.forever && pins != 0
	s.unpin = s.unpin || d.unpin
	if d.reason != "" {
		s.reason = d.reason
	}
}

// doSettings takes note of the settings that an act changes.
func (s *Session) doSettings(a act) {
	if !a.shares(EffectSetting) {
		s.touchRefs(a)
	}
	if a.info.Effects&sqlscan.UnknownSetting != 0 && !a.shares(EffectUntrackedSetting) {
		s.untell()
	}
	s.lexical = s.lexical || a.info.Effects&sqlscan.Lexical != 0
}

// doubt takes note that what was run may have left e: only the server knows.
func (s *Session) doubt(e Effects) {
	if s.env.config().Verify != VerifyNever {
		s.doubtful = true
		s.maybe |= e
	}
}

// touchRefs remembers which settings a statement may change.
func (s *Session) touchRefs(a act) {
	in := a.info
	s.allReset = s.allReset || in.AllSettings
	if in.Effects&sqlscan.Prepare != 0 { // it happens whenever what was prepared is executed
		s.stick(a)
	}
	for _, r := range in.Settings {
		switch {
		case r.Param != 0: // Bind tells
		case r.Reset:
			s.touch(r.Name, touchReset)
		default:
			s.touch(r.Name, touchSet)
		}
	}
}

// touchBound remembers the settings that a Bind of a names by its parameters.
func (s *Session) touchBound(a act, bind []byte) {
	for _, r := range a.info.Settings {
		if r.Param == 0 || a.shares(EffectSetting) {
			continue
		}
		name, ok := boundText(bind, r.Param)
		switch n := foldName(name); {
		case ok:
			if n == settingSeed && !a.shares(EffectRandomSeed) {
				s.cand |= EffectRandomSeed
			}
			if n == settingAuthorization { // which ends the role
				s.touch(settingRole, touchReset)
			}
			s.touch(n, touchSet)
		case !a.shares(EffectUntrackedSetting):
			s.untell()
		}
	}
}

// boundText returns the value of parameter n, counted from 1, of a whole Bind message, if it is a string: text looks the same
// in either format.
func boundText(msg []byte, n int) ([]byte, bool) {
	_, b, ok := wire.CString(msg[wire.HeaderLen:])
	if ok {
		_, b, ok = wire.CString(b)
	}
	if !ok || len(b) < 2 {
		return nil, false
	}
	formats := 2 + 2*(int(b[0])<<8|int(b[1]))
	if len(b) < formats+2 {
		return nil, false
	}
	count := int(b[formats])<<8 | int(b[formats+1])
	b = b[formats+2:]
	for i := 1; i <= count && len(b) >= 4; i++ {
		l := int(int32(uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])))
		b = b[4:]
		if l < 0 {
			l = 0
		}
		if l > len(b) {
			break
		}
		if i == n {
			return b[:l], true
		}
		b = b[l:]
	}
	return nil, false
}

// settle turns what was done since the last boundary into pins. It is called when a transaction is over, with nothing owed.
func (s *Session) settle(sc *server) {
	if s.ears != nil {
		s.ears.follow(s.undone())
	}
	if s.undone() && s.pins == 0 && !s.asksAgain { // what was touched is as it was
		s.dirty, s.allReset = nil, false
	}
	s.noticeChanges(sc)
	if s.cand != 0 {
		if s.undone() {
			s.cand, s.candUntold = s.cand&^transactional, false
		}
		s.untold = s.untold || s.candUntold
		s.forever = s.forever || s.candForever && s.cand != 0
		s.pin(s.cand)
	}
	if s.unpin {
		s.letGo(EffectPolicy)
	}
	if s.seq.heeds != 0 {
		s.settleSequences()
	}
	s.cand, s.candUntold, s.lexical, s.discards = 0, false, false, false
	s.candForever, s.ends, s.failed, s.rolledBack, s.unpin = false, 0, false, false, false
	if !s.doubtful { // else for what verification finds
		s.digest = ""
	}
	s.portals, s.refPortals, s.refusals = s.portals[:0], nil, nil
}

// undone reports whether the transaction that is over was rolled back as a whole.
func (s *Session) undone() bool {
	return s.failed && s.ends == 0 || s.rolledBack && s.ends <= 1
}

// noticeChanges looks for settings that changed without a statement that says so: the server reports some. It answers, for the
// same ones, what a statement may have changed.
func (s *Session) noticeChanges(sc *server) {
	if s.allReset {
		s.touchAll()
	}
	for _, name := range sc.changed {
		if s.dirty[name] == 0 && s.expected(sc, name) != sc.reports[name] {
			s.touch(name, touchReset)
		}
	}
	sc.changed = sc.changed[:0]
	if len(s.dirty) == 0 || s.pins != 0 {
		return
	}
	for name, t := range s.dirty {
		if _, known := sc.reports[name]; !known || t&touchReset != 0 {
			return
		}
	}
	m := s.set.values()
	for name := range s.dirty {
		m[name] = sc.reports[name]
	}
	if set, ok := s.checked(m); ok {
		s.set, sc.set, s.dirty = set, set, nil
	}
}

// expected returns the value that a reported setting has if nothing but the session's own settings changed it.
func (s *Session) expected(sc *server, name string) string {
	if s.set != (settings{}) {
		if v, ok := s.set.values()[name]; ok {
			return v
		}
	}
	return sc.base[name]
}

// pin makes the session keep its server connection. The caller holds mu.
func (s *Session) pin(e Effects) {
	s.going &^= e
	if e &^= s.pins; e == 0 {
		return
	}
	first := s.pins == 0
	s.pins |= e
	s.pinsView.Store(uint32(s.pins))
	if !first || s.gone {
		return
	}
	s.pinnedAt = s.env.now()
	s.label()
	s.env.log.Warn("pgmoor: session pinned to its server connection", append(s.logAttrs(s.srv),
		slog.String("reason", s.pinned), slog.String("statement", s.digest), slog.String("advice", advice[bits.TrailingZeros32(uint32(e))]))...)
}

// label makes the first effect that the session is pinned for the reason that is shown and counted.
func (s *Session) label() {
	s.pinnedFor = s.pins & -s.pins
	s.pinned = s.pinnedFor.name()
	if s.pinnedFor == EffectPolicy && s.reason != "" {
		s.pinned = s.reason
	}
	s.env.pinned(s.pinned, 1)
}

// letGo ends the pins for e, of which something else than the server's answer says that they have no reason any more. Before
// the last pin ends the server is asked all the same: there may be state that no pin names.
func (s *Session) letGo(e Effects) {
	switch {
	case s.pins&e == 0 || s.forever:
	case s.pins&^e == 0 && s.env.config().Verify != VerifyNever:
		s.going |= e
		s.doubtful = true
	default:
		s.drop(e)
	}
}

// drop ends the pins for e.
func (s *Session) drop(e Effects) {
	if s.pins&e == 0 || s.forever || s.gone {
		return
	}
	s.pins &^= e
	s.pinsView.Store(uint32(s.pins))
	if s.pins != 0 {
		if s.pinnedFor&e != 0 { // another reason is left
			s.env.pinned(s.pinned, -1)
			s.label()
		}
		return
	}
	s.unmoor = true
	s.env.pinned(s.pinned, -1)
	s.env.log.Info("pgmoor: session is no longer pinned", append(s.logAttrs(s.srv),
		slog.String("reason", s.pinned), slog.Duration("after", s.env.now().Sub(s.pinnedAt).Round(time.Millisecond)))...)
	s.pinned, s.reason = "", ""
}

// advice says for each effect what an application can do to avoid the pin.
var advice = [numEffects]string{
	"the policy pins for settings: use SET LOCAL, or ALTER ROLE … SET",
	"name settings in set_config with a literal or a bound parameter",
	"name channels in plain LISTEN statements, not in functions; UNLISTEN when done",
	"create temporary tables with ON COMMIT DROP inside a transaction, or drop them when done",
	"declare cursors WITHOUT HOLD inside a transaction, or close them when done",
	"use pg_advisory_xact_lock, or unlock when done",
	"DEALLOCATE what was PREPAREd when done",
	"the policy pins for statements prepared by SQL: prepare by the protocol",
	"the policy pins for cursors",
	"the policy pins for DISCARD: do not reset connections when they go back to a pool",
	"do without named statements, or close them",
	"do not replace an unnamed statement within a pipeline that fails",
	"use RETURNING rather than currval or lastval, or DISCARD SEQUENCES when done",
	"load libraries by session_preload_libraries",
	"compute random numbers in the application",
	"close the connection when done",
	"use smaller statements",
	"use plain quotes and an encoding such as UTF8",
	"",
	"",
	"the application or its policy asked for it",
}
