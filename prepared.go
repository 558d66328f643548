package pgmoor

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/stmts"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file carries named prepared statements from one server connection to another. A session's statements are known by
// name, text, parameter types and the settings under which they were prepared; on a server connection the same statement is
// prepared once for all sessions, as a rule under the name that the first of them gave it. What is prepared and closed
// counts when the server has answered: for that the server is sent, at the very point of the stream, a message that it
// answers, or ignores after an error, as it would the client's own.

// A stmtOp is a Parse or Close of a named statement that the server has not answered yet, in the order of turn.TakeNamed.
type stmtOp struct {
	kind  stmtOpKind
	batch uint32 // in which it was sent
	name  string // of the session's statement
	st    stmts.Statement
	p     *stmts.Prepared // on the server connection; may be nil
	act   act
}

type stmtOpKind byte

const (
	opNothing  stmtOpKind = iota // the server knows best
	opParse                      // the session has the statement
	opClose                      // it has it no more
	opPrepare                    // the connection has it
	opEvict                      // it has it no more
	opDescribe                   // the session is told its shape
	opCheck                      // the proxy is told its shape
)

// Limits of what a session may have prepared and have carried. One with more keeps its server connection.
const (
	maxNames     = 10_000
	maxNameBytes = 64 << 20
	maxOps       = 10_000 // under way at once; what comes behind waits
)

// statementName returns the name of the prepared statement that a message is about, and where it begins in msg; empty for the
// unnamed one and for messages that are about none. ok is false where the end of the name is not there.
func statementName(msg []byte) (name []byte, at int, ok bool) {
	at = wire.HeaderLen
	switch msg[0] {
	case wire.Bind:
		portal, _, ok := wire.CString(msg[at:])
		if !ok {
			return nil, 0, false
		}
		at += len(portal) + 1
	case wire.Describe, wire.Close:
		if len(msg) <= at || msg[at] != 'S' {
			return nil, 0, true
		}
		at++
	case wire.Parse:
	default:
		return nil, 0, true
	}
	name, _, ok = wire.CString(msg[at:])
	return name, at, ok
}

// findStatement returns the statement of a name as it will be when the server has read what was sent, if no error comes first. The
// caller has seen to it that nothing of an earlier batch is under way.
func (s *Session) findStatement(name []byte) (st stmts.Statement, a act, known bool) {
	st, _, a, known = s.lookUp(name)
	return st, a, known
}

// lookUp is findStatement with what the session was told of the statement: nothing, while its Parse is under way.
func (s *Session) lookUp(name []byte) (st stmts.Statement, told stmts.Shape, a act, known bool) {
	for i := len(s.sqlOps) - 1; i >= 0; i-- {
		switch op := &s.sqlOps[i]; {
		case op.kind == sqlscan.RefDeallocateAll, op.kind == sqlscan.RefDeallocate && op.name == string(name):
			return stmts.Statement{}, stmts.Shape{}, act{}, false
		case op.name == string(name):
			return op.st, stmts.Shape{}, act{}, true
		}
	}
	for i := len(s.ops) - 1; i >= 0; i-- {
		switch op := &s.ops[i]; {
		case op.kind != opParse && op.kind != opClose || op.name != string(name):
		case op.kind == opClose:
			return stmts.Statement{}, stmts.Shape{}, act{}, false
		default:
			return op.st, stmts.Shape{}, op.act, true
		}
	}
	st, told, known = s.names.Lookup(name)
	return st, told, s.acts[string(name)], known
}

// named sees to it that a Bind, Describe or Close of a named statement means on the session's server connection what it
// means to the session.
func (s *Session) named(msg, name []byte, at int, first bool) stop {
	key := stmts.Cut(name)
	st, told, a, known := s.lookUp(key)
	sc := s.srv
	switch {
	case known && st == stmts.Statement{}: // on this connection only
		if msg[0] == wire.Close {
			s.enter(stmtOp{kind: opClose, name: string(key), p: sc.prepared.ByName(key)})
		}
		if msg[0] == wire.Bind && s.refPortals != nil { // the portal is of another statement from now on
			s.bindRefs(nil, msg)
		}
		return stopNot
	case msg[0] == wire.Close: // the connection keeps it for others
		op := stmtOp{}
		if known {
			op = stmtOp{kind: opClose, name: string(key)}
		}
		s.enter(op)
		msg[at] = noName
		return stopNot
	case !known: // the server is to say so
		return s.vacate(key, first)
	}
	if why := s.bySQL(a.info, false, first); why != stopNot {
		return why
	}
	var described string
	if msg[0] == wire.Describe { // before msg is changed
		described = string(key)
	}
	provide := s.provide
	if s.failsAnyhow(msg[0], a, st, told) || misfits(msg, name, at, told) || s.returnsNothing(msg[0], st, told) {
		provide = s.provideFailing
	}
	p, why := provide(msg, name, at, st, told, first)
	if why != stopNot || s.refusal != nil {
		return why
	}
	if msg[0] == wire.Describe && p != nil {
		s.enter(stmtOp{kind: opDescribe, name: described, p: p})
		s.described = true
	}
	if msg[0] == wire.Bind {
		s.bindNamed(a, s.renamed(msg, first))
	}
	return stopNot
}

// renamed returns a message as it is after rename: it begins later where it got a shorter name.
func (s *Session) renamed(msg []byte, first bool) []byte {
	if !first || s.headLen > 0 { // it was not moved, or what is sent in its place is in the prefix
		return msg
	}
	return msg[s.instead:]
}

// noName is the first byte of the names of statements that do not exist.
const noName = 1

// provide makes a message use the statement st as the server connection has it, and prepares it there if need be.
func (s *Session) provide(msg, name []byte, at int, st stmts.Statement, told stmts.Shape, first bool) (*stmts.Prepared, stop) {
	p := s.current(st)
	s.toldFirst = ""
	changed, fresh := told != stmts.Shape{} && (p == nil || p.Shape != told), true
	switch {
	case (p == nil || changed) && s.turn.Ready() > 0: // whether it is in a failed transaction is not known yet
		return nil, s.hold(holdAll)
	case (p == nil || changed) && !first:
		return nil, stopPrime
	case p == nil:
		if p = s.srv.prepared.Find(st); p != nil {
			s.evict(p)
		}
		p = s.prepareFor(stmts.Cut(name), st)
	default:
		fresh = false
		s.srv.prepared.Touch(p)
	}
	switch {
	case changed && s.compared == p && s.spell(stmts.Cut(name), p, told):
		st, _ = s.names.Find(stmts.Cut(name))
		return s.provide(msg, name, at, st, told, first)
	case changed:
		if msg[0] == wire.Describe && s.turn.Status() != 'E' { // there it fails before
			s.toldFirst = told.Params
		}
		return p, s.compare(stmts.Cut(name), p, fresh)
	}
	if s.compared != nil {
		s.compared = nil
	}
	return p, s.rename(msg, name, at, p.Name, first)
}

// compare has the shape of a statement looked at that may not be what the session was told: of one that was prepared just now,
// since only that is as the database is.
func (s *Session) compare(name []byte, p *stmts.Prepared, fresh bool) stop {
	if s.compared == p {
		s.compared = nil
		s.refusal = errShape
		return stopNot
	}
	if !fresh { // one of this session's, too: it may have been prepared before the change, and described elsewhere after that
		s.evict(p)
		p = s.prepareFor(name, p.St)
	}
	s.check(p)
	s.compared = p
	return s.hold(holdAll)
}

// rename exchanges the name that begins at at in msg.
func (s *Session) rename(msg, name []byte, at int, to string, first bool) stop {
	switch {
	case string(stmts.Cut(name)) == to:
		return stopNot
	case len(name) == len(to):
		copy(msg[at:], to)
		return stopNot
	case !first:
		return stopPrime
	}
	l := int(wire.Length(msg)) - len(name) + len(to)
	head := make([]byte, 0, 128)
	head = wire.AppendHeader(head, msg[0], l-4)
	head = append(head, msg[wire.HeaderLen:at]...)
	head = append(head, to...)
	s.replace(msg, at+len(name), head)
	return stopNot
}

// replace puts head in the place of the first n bytes of msg, which is the first of what is sent.
func (s *Session) replace(msg []byte, n int, head []byte) {
	if s.instead = n - len(head); s.instead >= 0 {
		copy(msg[s.instead:], head)
		return
	}
	s.instead = n
	s.front()
	s.prefix = append(s.prefix, head...)
	s.headLen = len(head)
}

// front begins the prefix of the next message, where nothing has done that before.
func (s *Session) front() {
	if s.prefix == nil {
		s.prefix = s.scratch[:0]
	}
}

// enter notes an op that the next message stands for.
func (s *Session) enter(op stmtOp) {
	op.batch = s.batch
	s.ops = append(s.ops, op)
}

// vacate sees to it that the server connection has no statement of a name.
func (s *Session) vacate(name []byte, first bool) stop {
	if isWide(name) { // which another one may be in another encoding
		return s.vacateWide(first)
	}
	p := s.srv.prepared.ByName(name)
	switch {
	case p == nil:
		return stopNot
	case !first:
		return stopPrime
	}
	s.evict(p)
	return stopNot
}

// vacateWide is vacate for all names that are not of ASCII characters alone.
func (s *Session) vacateWide(first bool) (why stop) {
	s.srv.prepared.All(func(p *stmts.Prepared) bool {
		switch {
		case p.St == stmts.Statement{} || !isWide([]byte(p.Name)):
		case !first:
			why = stopPrime
		default:
			s.evict(p)
		}
		return why == stopNot
	})
	return why
}

// isWide reports whether a name is not of ASCII characters alone: the server keeps it in its own encoding.
func isWide(name []byte) bool {
	return slices.ContainsFunc(name, func(c byte) bool { return c >= 0x80 })
}

// evict closes a statement of the server connection in front of the next message. What uses it has been sent before.
func (s *Session) evict(p *stmts.Prepared) {
	s.front()
	s.prefix = wire.AppendHeader(s.prefix, wire.Close, len(p.Name)+2)
	s.prefix = append(append(append(s.prefix, 'S'), p.Name...), 0)
	s.turn.InjectEvict()
	s.srv.prepared.Remove(p)
	s.enter(stmtOp{kind: opEvict, p: p})
	s.env.count.stmtsEvicted.Add(1)
}

// prepare prepares a statement on the server connection, under a name that is free, in front of the next message.
func (s *Session) prepare(name string, st stmts.Statement) *stmts.Prepared {
	s.makeRoom()
	s.front()
	tail := st.Tail()
	s.prefix = wire.AppendHeader(s.prefix, wire.Parse, len(name)+1+len(tail))
	s.prefix = append(append(s.prefix, name...), 0)
	s.prefix = append(s.prefix, tail...)
	s.turn.InjectPrepare()
	p := s.srv.prepared.Add(name, st, s.id, s.env.statementIDs.Add(1))
	s.enter(stmtOp{kind: opPrepare, p: p})
	s.env.count.stmtsPrepared.Add(1)
	return p
}

// prepareFor prepares a statement that the session knows by name; if it can be, then under another name if the server
// connection has that.
func (s *Session) prepareFor(name []byte, st stmts.Statement) *stmts.Prepared {
	if st.SQL() {
		return s.prepareAs(name, st)
	}
	return s.prepare(s.freeName(name), st)
}

// makeRoom closes what the server connection has too many of.
func (s *Session) makeRoom() {
	for sc := s.srv; sc.prepared.Len() >= s.env.config().maxStatements(); {
		p := sc.prepared.Oldest()
		if p == nil {
			return
		}
		s.evict(p)
	}
}

// full reports whether makeRoom has something to do.
func (s *Session) full() bool { return s.srv.prepared.Len() >= s.env.config().maxStatements() }

// freeName returns name, or another one if the server connection has a statement of that name. It is as long where that is
// possible: then it can be exchanged in place.
func (s *Session) freeName(name []byte) string {
	sc := s.srv
	if sc.prepared.ByName(name) == nil && name[0] != noName && !isWide(name) {
		return string(name)
	}
	for {
		sc.aliases++
		n := strconv.FormatUint(sc.aliases, 36)
		alias := "~" + strings.Repeat("0", max(0, len(name)-1-len(n))) + n
		if sc.prepared.ByName([]byte(alias)) == nil {
			return alias
		}
	}
}

// parseNamed looks at the Parse of a named statement.
func (s *Session) parseNamed(msg, name []byte, l int, first bool) stop {
	key, body := stmts.Cut(name), msg[wire.HeaderLen:]
	tail := body[len(name)+1:]
	_, _, known := s.findStatement(key)
	if known && s.srv.prepared.ByName(key) == nil && !first || !known && s.srv.prepared.ByName(key) != nil && !first {
		return stopPrime
	}
	a, big := s.text(tail, l-len(msg)+len(tail), preparesNamed)
	if why := s.seekIn(a, tail); why != stopNot {
		return why
	}
	switch {
	case s.refusal != nil: // admit sends something else
		if first {
			s.enter(stmtOp{})
		}
		return stopNot
	case known: // the server is to say so, or what else is wrong with it
		s.occupy(key)
		s.enter(stmtOp{})
		return stopNot
	}
	if why := s.bySQL(a.info, false, first); why != stopNot {
		return why
	}
	switch {
	case big || l > len(msg) || aboutPids(a.info) || s.names.Len() >= maxNames || s.names.Bytes()+len(tail) > maxNameBytes:
		return s.parsePrivate(msg, key, a, big, first)
	}
	if a.deed != nil {
		s.cand |= a.deed.pins & EffectNamedStatement
		s.candForever = s.candForever || a.deed.forever && a.deed.pins&EffectNamedStatement != 0
	}
	s.seq.asking = false // until it is bound
	return s.parseShared(msg, name, tail, a, first)
}

// parsePrivate lets the server have a statement that cannot be prepared elsewhere: the session keeps the connection as long
// as it has it.
func (s *Session) parsePrivate(msg, key []byte, a act, big, first bool) stop {
	if why := s.vacate(key, first); why != stopNot {
		return why
	}
	s.nameRisk = true
	s.cand |= EffectNamedStatement
	s.forgetPids(key)
	s.seq.heeds |= heedKeeps
	if !big {
		s.remember(a)
	}
	if aboutPids(a.info) {
		s.parsePids(msg)
	}
	s.enter(stmtOp{kind: opParse, name: string(key), p: s.srv.prepared.Add(string(key), stmts.Statement{}, s.id, s.env.statementIDs.Add(1))})
	return stopNot
}

// parseShared prepares a statement that other sessions may use as well; if the server connection has it already, nothing is
// sent but what is answered at the same point.
func (s *Session) parseShared(msg, name, tail []byte, a act, first bool) stop {
	sc := s.srv
	if s.readsBack() { // what it means is not known yet
		return s.hold(holdAll)
	}
	under := s.readUnder()
	if e := s.pool.statementEpoch.Load(); e != 0 {
		under += "\x04" + strconv.FormatUint(e, 10)
	}
	under = s.meaning(under)
	if a.info != nil && len(a.info.Refs) > 0 || (s.pins|s.cand|s.maybe)&EffectTempObject != 0 { // it means what the session's statements or temporary tables are
		under += "\x01" + strconv.FormatUint(s.id, 10)
	}
	st := s.newest(tail, under)
	if other, twice := s.nameOf(st); twice && other != string(stmts.Cut(name)) { // an error must tell them apart
		st = s.newest(tail, under+"\x02"+string(stmts.Cut(name)))
	}
	p := s.current(st)
	inFailed := s.turn.Status() == 'E' && (a.info == nil || a.info.Effects&sqlscan.TxnEnd == 0) && !s.isEmpty(tail)
	key := string(stmts.Cut(name))
	switch {
	case p != nil && s.turn.Ready() > 0: // whether it is in a failed transaction is not known yet
		return s.hold(holdAll)
	case (p != nil || sc.prepared.Find(st) != nil) && !first:
		return stopPrime
	case p != nil && !inFailed && s.mayHeal():
		sc.prepared.Touch(p)
		if p.By == s.id { // it has prepared it again since
			p.By = 0
		}
		s.fake(msg)
		s.enter(stmtOp{kind: opParse, name: key, st: st, act: a})
		s.env.count.stmtsShared.Add(1)
		return stopNot
	case p != nil && inFailed: // it will fail, whatever its name
		s.enter(stmtOp{})
		return s.rename(msg, name, wire.HeaderLen, p.Name, first)
	case s.full() && !first:
		return stopPrime
	}
	if p = sc.prepared.Find(st); p != nil {
		s.evict(p)
	}
	s.makeRoom()
	to := s.freeName(stmts.Cut(name))
	if why := s.rename(msg, name, wire.HeaderLen, to, first); why != stopNot {
		return why
	}
	s.enter(stmtOp{kind: opParse, name: key, st: st, p: sc.prepared.Add(to, st, s.id, s.env.statementIDs.Add(1)), act: a})
	s.env.count.stmtsPrepared.Add(1)
	return stopNot
}

// fake puts a Close of nothing in the place of a Parse.
func (s *Session) fake(msg []byte) {
	s.replace(msg, len(msg), closeNothing)
	s.faked = true
}

var closeNothing = []byte{wire.Close, 0, 0, 0, 7, 'S', noName, 0}

// bindNamed looks at the Bind of a named statement that is carried.
func (s *Session) bindNamed(a act, msg []byte) {
	if s.refPortals != nil || a.info != nil && len(a.info.Refs) > 0 {
		s.bindRefs(a.info, msg)
	}
	s.seq.heeds |= heedGets // its text was seen long ago, and may be an INSERT
	if a.info == nil {
		return
	}
	if s.seq.asking = asksFor(a); s.seq.asking {
		s.seq.heeds |= heedAsks
	}
	s.portalRisk = s.portalRisk || a.info.Effects&mayCommit != 0
	s.touchBound(a, msg)
	s.bindAct(a)
}

// answeredNamed applies what the server answered to what was sent about named statements. The caller holds mu.
func (s *Session) answeredNamed(sc *server) {
	did, undid := s.turn.TakeNamed()
	if did+undid == 0 {
		return
	}
	if did+undid > len(s.ops) {
		s.turn.Lose()
		return
	}
	for i := range s.ops[:did] {
		s.applyOp(sc, &s.ops[i])
	}
	for i := did + undid - 1; i >= did; i-- { // the last first
		s.undoOp(sc, &s.ops[i])
	}
	n := copy(s.ops, s.ops[did+undid:])
	clear(s.ops[n:])
	if s.ops = s.ops[:n]; n == 0 && cap(s.ops) > keptOps {
		s.ops = nil
	}
}

// keptOps is up to how many ops an idle session keeps room for.
const keptOps = 8

func (s *Session) applyOp(sc *server, op *stmtOp) {
	switch op.kind {
	case opParse:
		s.names.Set(op.name, op.st)
		delete(s.acts, op.name)
		if op.act.info != nil {
			if s.acts == nil {
				s.acts = make(map[string]act)
			}
			s.acts[op.name] = op.act
		}
	case opClose:
		s.noteClosed(op.name)
		s.names.Delete(op.name)
		delete(s.acts, op.name)
		if op.p != nil {
			sc.prepared.Remove(op.p)
		}
	case opDescribe:
		s.names.SetShape([]byte(op.name), s.shape)
		op.p.Shape = s.shape
	case opCheck:
		op.p.Shape = s.shape
	case opNothing, opPrepare, opEvict:
	}
}

func (s *Session) undoOp(sc *server, op *stmtOp) {
	switch op.kind {
	case opParse, opPrepare:
		if op.p != nil {
			sc.prepared.Remove(op.p)
		}
	case opEvict:
		sc.prepared.Restore(op.p)
	case opNothing, opClose, opDescribe, opCheck:
	}
}

// deallocated takes note that the server has dropped all prepared statements, for the session or for its clean-up.
func (s *Session) deallocated(sc *server, forSession bool) {
	sc.prepared.Clear()
	if forSession {
		s.names.Clear()
		s.acts = nil
		s.droppedAt = s.env.statementIDs.Add(1)
	}
}

// madeFor reports whether a server connection's statement was prepared there for what the session has prepared, which is then as old.
func (s *Session) madeFor(p *stmts.Prepared) bool { return p.By == s.id && p.At >= s.droppedAt }

// callByName returns an ErrorResponse that calls a prepared statement by its name on the server connection, with the session's name
// for it instead; nil for any other.
func (s *Session) callByName(sc *server, msg []byte) []byte {
	const what = `prepared statement "`
	head, rest, ok := bytes.Cut(msg, []byte(what))
	there, rest, quoted := bytes.Cut(rest, []byte{'"'})
	p := sc.prepared.ByName(there)
	if !ok || !quoted || p == nil || string(wire.ErrorField(msg[wire.HeaderLen:], 'C')) == codeDuplicateStatement {
		return nil // that one is of the name in the client's own Parse
	}
	if st, _, known := s.findStatement(there); known && st == p.St {
		return nil
	}
	name, known := s.nameOf(p.St)
	if !known {
		if name, known = s.standNames[p.St]; !known {
			return nil
		}
	}
	out := append(bytes.Clone(head), what...)
	out = append(append(append(out, name...), '"'), rest...)
	binary.BigEndian.PutUint32(out[1:], uint32(len(out)-1))
	return out
}

// nameOf returns a name of the session's for a statement.
func (s *Session) nameOf(st stmts.Statement) (name string, known bool) {
	for i := range s.ops {
		if op := &s.ops[i]; op.kind == opParse && op.st == st {
			return op.name, true
		}
	}
	s.names.All(func(n string, has stmts.Statement) bool {
		if has == st {
			name, known = n, true
		}
		return !known
	})
	return name, known
}

// dropPrivate forgets the statements that only one server connection had.
func (s *Session) dropPrivate() {
	s.names.Keep(func(_ string, st stmts.Statement) bool { return st != stmts.Statement{} })
}

// unshared reports whether a statement that was found on the server connection is none of those that it has for everybody.
func (sc *server) unshared(name []byte) bool {
	p := sc.prepared.ByName(name)
	return p == nil || p.St == stmts.Statement{}
}
