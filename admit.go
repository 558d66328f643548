package pgmoor

import (
	"encoding/binary"

	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/turn"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file looks at the client's messages on their way to the server: what they will be answered with, which unnamed
// statement they mean, what their texts may do to the session.

// stop is why feed stopped before the end of what it was given.
type stop byte

const (
	stopNot       stop = iota // it did not, or the rest is an incomplete message
	stopTerminate             // the next message is Terminate
	stopMalformed             // the next message cannot be one
	stopTooMany               // too many answers would be owed
	stopPrime                 // the next message needs something in front of it
	stopHold                  // the next message has to wait, see hold
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
		case l > link.BufferSize && enough(b[n:]):
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

// maxWaitedName is how much of a message larger than any buffer is waited for at most to have its statement's name whole.
const maxWaitedName = 1 << 10

// enough reports whether what is there of a message larger than any buffer can be passed on.
func enough(b []byte) bool {
	if len(b) <= largeHead {
		return false
	}
	if len(b) > maxWaitedName {
		return true
	}
	_, _, ok := statementName(b)
	return ok
}

// feed records the messages at the start of b as sent and returns how many bytes of b to write now, after prefix. The
// caller holds mu.
func (s *Session) feed(b []byte) (n int, why stop) {
	fine := false
	defer func() { s.unlockUnless(fine) }()
	n, why = s.feedMessages(b)
	fine = true
	return n, why
}

// unlockUnless unlocks mu on the way out of a panic, so that the session can be ended.
func (s *Session) unlockUnless(fine bool) {
	if !fine {
		s.mu.Unlock()
	}
}

func (s *Session) feedMessages(b []byte) (n int, why stop) {
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
		case l > len(b)-n && (l <= link.BufferSize || !enough(b[n:])):
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
	isNamed := false // it is about a named statement
	s.seq.asking, s.headLen, s.begins = false, 0, false
	if !s.turn.Skipping() && !s.turn.CopyIn() {
		switch typ {
		case wire.Parse:
			unnamed = len(msg) > wire.HeaderLen && msg[wire.HeaderLen] == 0
		case wire.Close:
			unnamed = isUnnamedStatement(msg)
		}
		name, at, ok := statementName(msg)
		switch isNamed = len(name) > 0; {
		case !ok && l > len(msg):
			return stopTooMany
		case isNamed && len(s.ops) >= maxOps: // an op takes more memory than the turn's entry for it
			return s.hold(holdAll)
		case isNamed && s.mustWait():
			return s.hold(holdBatch)
		case isNamed:
			s.begins = s.beginsBatch()
		}
		if s.ears != nil {
			if why := s.harken(msg, name, l, first); why != stopNot {
				return why
			}
		}
		if why := s.prime(msg, unnamed, first); why != stopNot {
			return why
		}
		if isNamed && typ != wire.Parse {
			if why := s.named(msg, name, at, first); why != stopNot {
				return why
			}
		}
		m := s.renamed(msg, first)
		if why := s.consider(m, name, l-len(msg)+len(m), first); why != stopNot {
			return why
		}
	}
	if typ == wire.Sync {
		s.risk = s.risk || s.turn.Status() == 'I'
		s.parsedHere = false
	}
	if s.seq.asking {
		s.ask(msg, unnamed, first)
	}
	if e := s.refusal; e != nil {
		s.refusal = nil
		if !first {
			return stopPrime
		}
		if len(s.refusals) >= maxRefusals {
			return stopTooMany
		}
		s.prefix = s.prefix[:len(s.prefix)-s.headLen]
		s.begins, s.keeps = false, false
		s.refuse(msg, e)
		s.instead = len(msg)
	}
	if s.begins {
		s.keepFrom(nil)
	}
	if s.keeps {
		s.keep(msg, l, first)
	}
	if !s.record(typ, unnamed, isNamed) {
		return stopTooMany
	}
	return stopNot
}

// consider looks at what a message does that the server will not ignore. name is that of the statement that it is about.
func (s *Session) consider(msg, name []byte, l int, first bool) stop {
	switch msg[0] {
	case wire.Query:
		return s.considerQuery(msg, l, first)
	case wire.Parse:
		switch {
		case len(name) > 0:
			return s.parseNamed(msg, name, l, first)
		case len(msg) > wire.HeaderLen && msg[wire.HeaderLen] == 0:
			return s.parse(msg, l, first)
		}
		s.cand |= EffectUnclassified // its name has no end
		s.pidNames = nil
	case wire.Close:
		s.forgetClosed(msg)
	case wire.Bind:
		if s.pidNames != nil && l == len(msg) {
			if why := s.bindPids(msg, first); why != stopNot {
				return why
			}
		}
		return s.bind(msg, first)
	case wire.Execute:
		if s.refPortals != nil {
			if why := s.executeRefs(msg, first); why != stopNot {
				return why
			}
		}
		s.risk = s.risk || s.portalRisk
		for _, a := range s.portals {
			s.do(a)
		}
	case wire.FunctionCall:
		s.risk = s.risk || s.turn.Status() == 'I'
		s.call(msg)
	}
	return stopNot
}

// considerQuery is consider for a simple Query.
func (s *Session) considerQuery(msg []byte, l int, first bool) stop {
	a, big := s.text(msg[wire.HeaderLen:], l-wire.HeaderLen, runsAtOnce)
	if why := s.seekIn(a, msg[wire.HeaderLen:]); why != stopNot {
		return why
	}
	if s.refusal == nil {
		if why := s.beforeQuery(a, big, first); why != stopNot {
			return why
		}
	}
	s.queried = true // it drops whatever unnamed statement there is
	if !s.primed {
		s.srv.unnamed = 0
	}
	s.risk = s.risk || s.turn.Status() == 'I'
	if a.info != nil && len(a.info.Refs) > 0 && a.info.Statements == 1 && s.refusal == nil && s.beginsBatch() {
		s.keepFrom(a.info)
	}
	if !big {
		s.do(a)
	}
	s.forgetPids(nil)
	if aboutPids(a.info) {
		s.endsItself(msg[wire.HeaderLen:])
		s.translate(msg[wire.HeaderLen:], s.signals(msg[wire.HeaderLen:]))
	}
	return stopNot
}

// beforeQuery sees to what a simple Query that does a finds on the server connection, and to what it has to wait for: that first, for
// nothing may have been put in front of a message that waits.
func (s *Session) beforeQuery(a act, big, first bool) stop {
	if why := s.waitsForSQL(a.info); why != stopNot {
		return why
	}
	if !big && (s.ears != nil || a.info != nil && a.info.Effects&(sqlscan.Listen|sqlscan.Execute) != 0) {
		if why := s.harkQuery(a); why != stopNot {
			return why
		}
	}
	if why := s.bySQL(a.info, true, first); why != stopNot || s.ears == nil {
		return why
	}
	return s.attuneAll(a.info, first, 0)
}

// record enters a message that is sent in the books of what is owed. It reports false when that would be too much.
func (s *Session) record(typ byte, unnamed, isNamed bool) bool {
	switch typ {
	case wire.Parse:
		switch {
		case s.faked:
			s.faked = false
			return s.turn.SentFaked()
		case !unnamed && !isNamed && !s.turn.Skipping() && !s.turn.CopyIn(): // it has no end, and will be an error
			s.enter(stmtOp{})
		}
	case wire.Close:
		if isNamed {
			return s.turn.SentClose()
		}
	case wire.Describe:
		if s.described {
			s.described = false
			return s.turn.SentDescribe()
		}
	case wire.Sync, wire.Query, wire.FunctionCall:
		s.batch++
	}
	return s.turn.Sent(typ, unnamed)
}

// isUnnamedStatement reports whether a Close means the unnamed statement.
func isUnnamedStatement(msg []byte) bool {
	return len(msg) == wire.HeaderLen+2 && msg[wire.HeaderLen] == 'S' && msg[wire.HeaderLen+1] == 0
}

// parse looks at a Parse of the unnamed statement. Nothing has an effect yet.
func (s *Session) parse(msg []byte, l int, first bool) stop {
	body, was := msg[wire.HeaderLen:], s.seq.unnamed
	a, big := s.text(body[1:], l-len(msg)+len(body)-1, preparesUnnamed)
	if why := s.seekIn(a, body[1:]); why != stopNot {
		return why
	}
	if why := s.bySQL(a.info, false, first); why != stopNot {
		return why
	}
	s.replaceUnnamed(msg, a, was)
	s.forgetPids(nil)
	s.parsedHere = true
	s.queried = false // it would have dropped the one before
	s.unnamedID = s.env.statementIDs.Add(1)
	s.primeless = false
	s.stmt = act{}
	if l > len(msg) {
		s.cand |= EffectUnnamedStatement
		s.unnamed = nil
	} else {
		s.unnamed = append(s.unnamed[:0], msg...)
	}
	s.lexical = s.lexical || a.info != nil && a.info.Effects&sqlscan.Lexical != 0
	if s.stmt = a; aboutPids(a.info) {
		s.parsePids(msg)
	}
	s.stmtRisk = big || l > len(msg) || a.info != nil && a.info.Effects&mayCommit != 0
	return stopNot
}

// remember takes what a named statement may do as done: the session is pinned as long as it has one.
func (s *Session) remember(a act) {
	if a.info == nil {
		return
	}
	risk := s.risk
	if a.info.Effects&(sqlscan.Listen|sqlscan.Unlisten) != 0 && !a.shares(EffectListen) { // whenever it is executed
		s.namedListens = true
		s.cand |= EffectListen
	}
	s.do(a)
	s.risk = risk
	s.renews = s.renews || a.info.Effects&sqlscan.Sequence != 0
	s.stick(a)
}

// stick remembers which settings a statement with a name may change whenever it is run.
func (s *Session) stick(a act) {
	if a.shares(EffectSetting) {
		return
	}
	for _, r := range a.info.Settings {
		switch {
		case r.Param != 0 || len(s.sticky) >= maxTouched:
			if !a.shares(EffectUntrackedSetting) {
				s.untell()
			}
		case s.sticky == nil:
			s.sticky = map[string]touch{r.Name: touchSet}
		default:
			s.sticky[r.Name] |= touchSet
		}
	}
}

// bind looks at a Bind.
func (s *Session) bind(msg []byte, first bool) stop {
	_, rest, ok := wire.CString(msg[wire.HeaderLen:]) // the portal's name
	switch {
	case !ok || len(rest) == 0:
		s.portalRisk = true
	case rest[0] != 0:
		s.portalRisk = s.portalRisk || s.nameRisk
	default:
		s.portalRisk = s.portalRisk || s.stmtRisk
		if s.refPortals != nil || s.stmt.info != nil && len(s.stmt.info.Refs) > 0 {
			s.bindRefs(s.stmt.info, msg)
		}
		s.seq.heeds |= s.seq.unnamed
		s.seq.asking = asksFor(s.stmt)
		s.olderRisk = s.olderRisk || !s.parsedHere && s.turn.Unnamed() == turn.UnnamedOlder
		if in := s.stmt.info; in != nil {
			if why := s.bySQL(in, false, first); why != stopNot {
				return why
			}
			s.touchBound(s.stmt, msg)
			s.bindAct(s.stmt)
		}
	}
	return stopNot
}

// maxPortals bounds how many acts of portals are kept apart.
const maxPortals = 64

// bindAct remembers what running a portal of a statement may do.
func (s *Session) bindAct(a act) {
	switch n := len(s.portals); {
	case n > 0 && s.portals[n-1] == a:
	case n >= maxPortals:
		s.do(a)
	default:
		s.portals = append(s.portals, a)
	}
}

// prime makes sure, before the first message of the extended protocol after the session got its server connection, that the
// connection's unnamed statement is the session's own: another session may have left one, and this session's may have
// been made on another connection. It cannot wait for a message that uses the statement, because by then the server may
// be ignoring everything up to Sync.
func (s *Session) prime(msg []byte, unnamed, first bool) stop {
	if s.primed {
		return stopNot
	}
	typ := msg[0]
	switch typ {
	case wire.Parse, wire.Bind, wire.Describe, wire.Execute, wire.Close:
	default:
		return stopNot
	}
	makes := s.turn.Unnamed() == turn.UnnamedLast && !s.queried && (typ != wire.Parse || !unnamed)
	again := makes && s.primeless && !s.beginsBatch()
	switch {
	case again && !usesUnnamed(msg): // it could not be made before: to fail again would undo what the client has done since
		return stopNot
	case !first:
		return stopPrime
	}
	s.primed = !again // else the server may be ignoring it
	s.front()         // scratch: the next Parse may overwrite s.unnamed before this is written
	at := len(s.prefix)
	s.prefix = append(s.prefix, closeUnnamed...)
	s.turn.InjectClose()
	if makes {
		s.prefix = append(s.prefix, s.unnamed...)
		if aboutPids(s.stmt.info) {
			s.translate(s.prefix[at+len(closeUnnamed)+wire.HeaderLen:], s.signals(s.unnamed[wire.HeaderLen+1:]))
		}
		apart := !usesUnnamed(msg)
		if apart { // the batch must not begin with a snapshot that it would not have
			s.prefix = append(s.prefix, wire.Sync, 0, 0, 0, 4)
		}
		s.turn.InjectParse(apart)
	}
	return stopNot
}

// usesUnnamed reports whether a message uses the unnamed statement.
func usesUnnamed(msg []byte) bool {
	body := msg[wire.HeaderLen:]
	switch msg[0] {
	case wire.Bind:
		_, rest, ok := wire.CString(body)
		return ok && len(rest) > 0 && rest[0] == 0
	case wire.Describe:
		return len(body) == 2 && body[0] == 'S' && body[1] == 0
	}
	return false
}

var closeUnnamed = []byte{wire.Close, 0, 0, 0, 6, 'S', 0}

// textUse is what a message does with the statement text in it.
type textUse byte

const (
	runsAtOnce textUse = iota
	preparesUnnamed
	preparesNamed
)

// text judges the zero-terminated statement text at the start of b, the rest of a body of which n bytes are still to
// be taken together with it. Where they are more than are at hand, that happens when the last of them has come: big.
func (s *Session) text(b []byte, n int, use textUse) (a act, big bool) {
	if n > len(b) {
		s.big = &bigText{ambiguous: s.ambiguous(), use: use}
		s.big.scan.Reset(s.strings)
		s.heedText(unclassified, act{}, use)
		s.feedText(b, false)
		return act{}, true
	}
	if t, _, ok := wire.CString(b); ok {
		b = t
	}
	in := unclassified
	if !s.opaque && (!s.ambiguous() || !dependsOnSettings(b)) {
		in = s.env.config().texts.Inspect(b, s.strings)
	}
	a, refuse := s.judge(in, b, len(b), use)
	if refuse != nil {
		s.refusal = refuse
	}
	s.heedText(in, a, use)
	return a, false
}

// unclassified is what is known of a text that cannot be read.
var unclassified = &sqlscan.Info{Effects: sqlscan.Unsure, Statements: 1}

// ambiguous reports whether what decides how texts are read may have been changed by a statement that has not been
// answered yet, or in a batch: the server reports such a change at the end of that.
func (s *Session) ambiguous() bool {
	return (s.lexical || s.allReset || s.candUntold) && (s.turn.OwedToClient() || s.turn.Open())
}

// dependsOnSettings reports whether a text may be read in more than one way.
func dependsOnSettings(text []byte) bool {
	for _, c := range text {
		if c == '\\' || c >= 0x80 {
			return true
		}
	}
	return false
}

// call looks at a FunctionCall (PostgreSQL documentation, "Function Call"), which names its function by an oid: those of
// large objects leave nothing behind, of all others nothing is known.
func (s *Session) call(msg []byte) {
	if len(msg) < wire.HeaderLen+4 || !largeObjects[binary.BigEndian.Uint32(msg[wire.HeaderLen:])] {
		s.cand |= EffectUnclassified
		s.seq.heeds |= heedAsks | heedGets | heedKeeps
	}
}

// largeObjects are the functions of PostgreSQL's large object interface that libpq calls this way (pg_proc.dat), and two that leave nothing either.
var largeObjects = map[uint32]bool{
	715: true, 952: true, 953: true, 954: true, 955: true, 956: true, 957: true, 958: true, 964: true, 1004: true,
	3170: true, 3171: true, 3172: true,
	177: true, 1598: true, // int4pl, random
}

// hidesASCII reports whether characters of a client encoding may contain bytes of ASCII characters, so that only a
// server can tell where a string ends (PostgreSQL documentation, "Character Set Support": the client-only encodings).
func hidesASCII(encoding string) bool {
	switch encoding {
	case "SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004":
		return true
	}
	return false
}

// bigText is a text larger than any buffer, while it passes.
type bigText struct {
	scan      sqlscan.Scanner
	use       textUse
	size      int
	head      []byte // its beginning, for the policy
	ambiguous bool
}

// bigHead is how much of a big text a policy can see.
const bigHead = 512

// feedText looks at a further piece of a big text.
func (s *Session) feedText(b []byte, last bool) {
	t, _, ends := wire.CString(b)
	if ends {
		b = t
	}
	s.big.scan.Feed(b)
	s.big.size += len(b)
	s.big.head = append(s.big.head, b[:min(len(b), bigHead-len(s.big.head))]...)
	if ends || last {
		big := s.big
		s.big = nil
		s.bigRead(big)
	}
}

// bigRead acts on what a big text may do.
func (s *Session) bigRead(big *bigText) {
	e := big.scan.Finish()
	if s.opaque || big.ambiguous {
		e = sqlscan.Unsure
	}
	if e&(sqlscan.Setting|sqlscan.Discard) != 0 {
		e |= sqlscan.Setting | sqlscan.UnknownSetting
	}
	in := &sqlscan.Info{Effects: e, Verb: big.scan.Verb(), Statements: big.scan.Statements()}
	a, refuse := s.judge(in, big.head, big.size, big.use)
	if refuse == nil && asksFor(a) && s.srv.foreign && s.seq.clear < clearInBlock { // nothing was put in front of it
		refuse = errForeignValue
	}
	switch {
	case refuse != nil: // the server gets no end of it
		s.axed, s.closing = true, refuse
		s.srv.kill()
		s.interrupt()
	case big.use == runsAtOnce:
		s.do(a)
	case big.use == preparesNamed:
		s.remember(a)
	default:
		s.stmt = a
	}
}
