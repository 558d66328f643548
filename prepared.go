package pgmoor

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"sync"

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

// A sqlOp is a PREPARE, DEALLOCATE or DISCARD ALL under way. It counts when the server says that it is complete.
type sqlOp struct {
	kind  sqlscan.RefKind
	batch uint32
	name  string
	st    stmts.Statement
}

// maxSQLOps bounds how many of them are followed at once.
const maxSQLOps = 256

// findStatement returns the statement of a name as it will be when the server has read what was sent, if no error comes first. The
// caller has seen to it that nothing of an earlier batch is under way.
func (s *Session) findStatement(name []byte) (st stmts.Statement, a act, known bool) {
	for i := len(s.sqlOps) - 1; i >= 0; i-- {
		switch op := &s.sqlOps[i]; {
		case op.kind == sqlscan.RefDeallocateAll, op.kind == sqlscan.RefDeallocate && op.name == string(name):
			return stmts.Statement{}, act{}, false
		case op.name == string(name):
			return op.st, act{}, true
		}
	}
	for i := len(s.ops) - 1; i >= 0; i-- {
		switch op := &s.ops[i]; {
		case op.kind != opParse && op.kind != opClose || op.name != string(name):
		case op.kind == opClose:
			return stmts.Statement{}, act{}, false
		default:
			return op.st, op.act, true
		}
	}
	st, known = s.names.Find(name)
	return st, s.acts[string(name)], known
}

// mustWait reports whether what was sent before decides what a message about a named statement means.
func (s *Session) mustWait() bool {
	if s.waitsForAll && (len(s.ops) > 0 || s.turn.Ready() > 0) {
		return true
	}
	return len(s.ops) > 0 && s.ops[0].batch != s.batch || len(s.sqlOps) > 0
}

// named sees to it that a Bind, Describe or Close of a named statement means on the session's server connection what it
// means to the session.
func (s *Session) named(msg, name []byte, at int, first bool) stop {
	key := stmts.Cut(name)
	st, a, known := s.findStatement(key)
	sc := s.srv
	switch {
	case known && st == stmts.Statement{}: // on this connection only
		if msg[0] == wire.Close {
			s.enter(stmtOp{kind: opClose, name: string(key), p: sc.prepared.ByName(key)})
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
	if why := s.provide(msg, name, at, st, first); why != stopNot || s.refusal != nil {
		return why
	}
	if p := sc.prepared.Find(st); msg[0] == wire.Describe && p != nil {
		s.enter(stmtOp{kind: opDescribe, name: string(key), p: p})
		s.described = true
	}
	if msg[0] == wire.Bind {
		s.bindNamed(a, msg)
	}
	return stopNot
}

// errShape is what PostgreSQL says of a statement whose result would be another than when it was prepared.
var errShape = &Error{Code: codeNotSupported, Message: "cached plan must not change result type"}

// check asks for the shape of a statement, in front of the next message.
func (s *Session) check(p *stmts.Prepared) {
	s.front()
	s.prefix = wire.AppendHeader(s.prefix, wire.Describe, len(p.Name)+2)
	s.prefix = append(append(append(s.prefix, 'S'), p.Name...), 0)
	s.turn.InjectDescribe()
	s.enter(stmtOp{kind: opCheck, p: p})
}

// noteShape takes a message of the answer to a Describe of a statement into account.
func (s *Session) noteShape(msg []byte) {
	body := msg[wire.HeaderLen:]
	var h maphash.Hash
	h.SetSeed(shapeSeed)
	if msg[0] == wire.ParameterDescription {
		_, _ = h.Write(body)
		s.shape = h.Sum64() | 1
		return
	}
	var prior [8]byte
	binary.BigEndian.PutUint64(prior[:], s.shape)
	_, _ = h.Write(prior[:])
	for len(body) > 2 && msg[0] == wire.RowDescription && len(msg) > int(wire.Length(msg)) {
		name, rest, ok := wire.CString(body[2:])
		if !ok || len(rest) < columnLen {
			break
		}
		_, _ = h.Write(name)
		_, _ = h.Write(rest[6:columnLen]) // the table may be another one of the same kind
		body = rest[columnLen-2:]
	}
	s.shape = h.Sum64() | 1
}

// columnLen is what stands behind the name of a column in a RowDescription.
const columnLen = 18

var shapeSeed = maphash.MakeSeed()

// noName is the first byte of the names of statements that do not exist.
const noName = 1

// provide makes a message use the statement st as the server connection has it, and prepares it there if need be.
func (s *Session) provide(msg, name []byte, at int, st stmts.Statement, first bool) stop {
	p := s.srv.prepared.Find(st)
	shape := s.names.Shape(stmts.Cut(name))
	switch {
	case (p == nil || shape != 0 && p.Shape == 0) && !first:
		return stopPrime
	case p == nil:
		p = s.prepareFor(stmts.Cut(name), st)
	default:
		s.srv.prepared.Touch(p)
	}
	switch {
	case shape == 0 || shape == p.Shape:
	case p.Shape == 0: // it may have changed since the session was told
		s.check(p)
		s.waitsForAll = true
		return stopHold
	default:
		s.refusal = errShape
		return stopNot
	}
	return s.rename(msg, name, at, p.Name, first)
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
	p := s.srv.prepared.Add(name, st)
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

// prepareAs prepares a statement under the very name by which the session knows it.
func (s *Session) prepareAs(name []byte, st stmts.Statement) *stmts.Prepared {
	sc := s.srv
	if p := sc.prepared.ByName(name); p != nil {
		s.evict(p)
	}
	if p := sc.prepared.Find(st); p != nil {
		s.evict(p)
	}
	if !st.SQL() {
		return s.prepare(string(name), st)
	}
	s.makeRoom()
	s.front()
	s.prefix = appendRun(s.prefix, st.Tail())
	s.turn.InjectRun()
	p := sc.prepared.Add(string(name), st)
	s.enter(stmtOp{kind: opPrepare, p: p})
	s.env.count.stmtsPrepared.Add(1)
	return p
}

// appendRun appends messages that run text, a statement without parameters, by a statement and a portal of their own.
func appendRun(dst []byte, text string) []byte {
	const name = "\x01p"
	dst = wire.AppendHeader(dst, wire.Parse, len(name)+1+len(text)+1+2)
	dst = append(append(dst, name...), 0)
	dst = append(append(dst, text...), 0, 0, 0)
	dst = wire.AppendHeader(dst, wire.Bind, 2*(len(name)+1)+6)
	dst = append(append(append(append(dst, name...), 0), name...), 0, 0, 0, 0, 0, 0, 0)
	dst = wire.AppendHeader(dst, wire.Execute, len(name)+1+4)
	dst = append(append(dst, name...), 0, 0, 0, 0, 0)
	for _, kind := range []byte{'P', 'S'} {
		dst = wire.AppendHeader(dst, wire.Close, len(name)+2)
		dst = append(append(append(dst, kind), name...), 0)
	}
	return dst
}

// makeRoom closes what the server connection has too many of.
func (s *Session) makeRoom() {
	for sc := s.srv; sc.prepared.Len() >= s.env.maxStatements; {
		p := sc.prepared.Oldest()
		if p == nil {
			return
		}
		s.evict(p)
	}
}

// full reports whether makeRoom has something to do.
func (s *Session) full() bool { return s.srv.prepared.Len() >= s.env.maxStatements }

// freeName returns name, or another one if the server connection has a statement of that name. It is as long where that is
// possible: then it can be exchanged in place.
func (s *Session) freeName(name []byte) string {
	sc := s.srv
	if sc.prepared.ByName(name) == nil && name[0] != noName {
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

// occupy sees to it that there is a statement of a name which the session has.
func (s *Session) occupy(key []byte) {
	if s.srv.prepared.ByName(key) != nil {
		return
	}
	if st, _, _ := s.findStatement(key); st != (stmts.Statement{}) {
		s.prepareAs(key, st)
	}
}

// bySQL sees to it that the prepared statements which a text uses by SQL are on the server connection under their own names,
// and no others of those names. runs says that what the text makes and drops is to be followed, too.
func (s *Session) bySQL(in *sqlscan.Info, runs, first bool) stop {
	if in == nil || len(in.Refs) == 0 && in.Effects&sqlscan.PrepView == 0 {
		return stopNot
	}
	switch {
	case s.mustWait():
		return stopHold
	case s.turn.Ready() > 0, in.Effects&sqlscan.PrepView != 0 && len(s.ops) > 0:
		s.waitsForAll = true
		return stopHold
	case !first:
		return stopPrime
	}
	was := len(s.prefix)
	for _, r := range in.Refs {
		s.refer(in, r, runs)
	}
	if in.Effects&sqlscan.PrepView != 0 {
		s.expose()
	}
	if len(s.prefix) > was && !s.turn.Open() {
		s.prefix = append(s.prefix, wire.Sync, 0, 0, 0, 4)
		s.turn.InjectSync()
	}
	return stopNot
}

// refer makes a statement that is named by SQL what it is to the session.
func (s *Session) refer(in *sqlscan.Info, r sqlscan.StatementRef, runs bool) {
	key, sc := []byte(r.Name), s.srv
	st, a, known := s.findStatement(key)
	p := sc.prepared.ByName(key)
	switch {
	case r.Kind == sqlscan.RefDeallocateAll:
	case !known && p != nil && !s.makesNow(r.Name):
		s.evict(p)
	case !known || s.makesNow(r.Name):
	case s.turn.Status() == 'E': // nothing can be prepared
	case r.Kind == sqlscan.RefExecute && st != stmts.Statement{} && (p == nil || p.St != st):
		s.prepareAs(key, st)
	case p == nil:
		s.occupy(key)
	default:
		sc.prepared.Touch(p)
	}
	switch {
	case !runs:
		return
	case r.Kind == sqlscan.RefExecute:
		s.do(a)
		return
	}
	op := sqlOp{kind: r.Kind, batch: s.batch, name: r.Name}
	switch {
	case r.Kind != sqlscan.RefPrepare:
	case in.Effects&noted&^(sqlscan.Prepare|sqlscan.Execute|sqlscan.Deallocate|sqlscan.Release|sqlscan.Lexical|sqlscan.TxnEnd) != 0:
		s.cand |= EffectSQLPrepare // whatever the statement does it does whenever it is executed
	default:
		op.st = stmts.InternSQL([]byte(r.Text), s.readUnder())
	}
	if s.sqlOps = append(s.sqlOps, op); len(s.sqlOps) > maxSQLOps {
		s.cand |= EffectUnclassified
	}
}

// makesNow reports whether a statement under way prepares or drops one of a name.
func (s *Session) makesNow(name string) bool {
	for i := range s.sqlOps {
		if op := &s.sqlOps[i]; op.name == name || op.kind == sqlscan.RefDeallocateAll {
			return true
		}
	}
	return false
}

// expose leaves the session's own statements on the server connection, under their own names, and no others.
func (s *Session) expose() {
	sc := s.srv
	sc.prepared.All(func(p *stmts.Prepared) bool {
		if st, _, known := s.findStatement([]byte(p.Name)); !known || st != p.St {
			s.evict(p)
		}
		return true
	})
	if s.turn.Status() == 'E' { // nothing can be prepared
		return
	}
	s.names.All(func(name string, st stmts.Statement) bool {
		if p := sc.prepared.ByName([]byte(name)); p == nil && st != (stmts.Statement{}) && sc.prepared.Len() < maxExposed {
			s.prepareAs([]byte(name), st)
		}
		return true
	})
}

// maxExposed bounds how many statements are prepared to be looked at.
const maxExposed = 1000

// completedSQL takes note of a PREPARE, DEALLOCATE or DISCARD ALL that is complete.
func (s *Session) completedSQL(sc *server, tag []byte) {
	switch string(tag) {
	case "PREPARE", "DEALLOCATE", "DEALLOCATE ALL", "DISCARD ALL":
	default:
		return
	}
	if len(s.sqlOps) == 0 { // of a portal from before
		s.cand |= EffectUnclassified
		if bytes.HasSuffix(tag, []byte(" ALL")) {
			s.deallocated(sc, true)
		}
		return
	}
	op := s.sqlOps[0]
	s.sqlOps = s.sqlOps[1:]
	p := sc.prepared.ByName([]byte(op.name))
	switch op.kind {
	case sqlscan.RefPrepare:
		s.names.Set(op.name, op.st)
		delete(s.acts, op.name)
		sc.prepared.Add(op.name, op.st)
	case sqlscan.RefDeallocate:
		s.noteClosed(op.name)
		s.names.Delete(op.name)
		delete(s.acts, op.name)
		if p != nil {
			sc.prepared.Remove(p)
		}
	default:
		s.deallocated(sc, true)
	}
}

// goOnIfKnown lets the message go on that waited for what the server answers.
func (s *Session) goOnIfKnown() {
	if s.mustWait() && !s.turn.Skipping() {
		return
	}
	s.holding, s.waitsForAll, s.held = false, false, true
	s.interrupt()
}

// heldBack appends what is sent while the next message waits for the answers.
func (s *Session) heldBack(out []byte) []byte {
	out = append(append(out, s.prefix...), flush...)
	s.prefix = nil
	return out
}

var flush = []byte{wire.Flush, 0, 0, 0, 4}

// flushHeld makes the server answer what it has been sent of a batch, since the next message waits for that.
func (s *Session) flushHeld(sc *server) {
	s.mu.Lock()
	if s.srv != sc || !s.holding || !s.turn.Open() || s.sending {
		s.mu.Unlock()
		return
	}
	out := s.heldBack(nil)
	s.sending = true
	s.mu.Unlock()
	if !s.transmit(sc, nil, out) {
		s.mu.Lock()
		s.resume = true
		s.mu.Unlock()
		s.interrupt()
		return
	}
	s.sent(sc)
}

// endedSQL forgets what was not completed by the statements that the server has done with.
func (s *Session) endedSQL() {
	over := s.batch - uint32(s.turn.Ready())
	n := 0
	for n < len(s.sqlOps) && s.sqlOps[n].batch < over {
		n++
	}
	if s.sqlOps = s.sqlOps[n:]; len(s.sqlOps) == 0 {
		s.sqlOps = nil
	}
}

// parsePrivate lets the server have a statement that cannot be prepared elsewhere: the session keeps the connection as long
// as it has it.
func (s *Session) parsePrivate(msg, key []byte, a act, big, first bool) stop {
	if why := s.vacate(key, first); why != stopNot {
		return why
	}
	s.nameRisk = true
	s.cand |= EffectNamedStatement
	s.seq.heeds |= heedKeeps
	if !big {
		s.remember(a)
	}
	if aboutPids(a.info) {
		s.parsePids(msg)
	}
	s.enter(stmtOp{kind: opParse, name: string(key), p: s.srv.prepared.Add(string(key), stmts.Statement{})})
	return stopNot
}

// parseShared prepares a statement that other sessions may use as well; if the server connection has it already, nothing is
// sent but what is answered at the same point.
func (s *Session) parseShared(msg, name, tail []byte, a act, first bool) stop {
	sc := s.srv
	under := s.readUnder()
	if e := s.pool.statementEpoch.Load(); e != 0 {
		under += "\x04" + strconv.FormatUint(e, 10)
	}
	if a.info != nil && len(a.info.Refs) > 0 { // it means what the session's statements are
		under += "\x01" + strconv.FormatUint(s.id, 10)
	}
	st := s.newest(tail, under)
	if other, twice := s.nameOf(st); twice && other != string(stmts.Cut(name)) { // an error must tell them apart
		st = stmts.Intern(tail, under+"\x02"+string(stmts.Cut(name)))
	}
	p := sc.prepared.Find(st)
	inFailed := s.turn.Status() == 'E' && (a.info == nil || a.info.Effects&sqlscan.TxnEnd == 0)
	key := string(stmts.Cut(name))
	switch {
	case p != nil && s.turn.Ready() > 0: // whether it is in a failed transaction is not known yet
		s.waitsForAll = true
		return stopHold
	case p != nil && !first:
		return stopPrime
	case p != nil && !inFailed:
		sc.prepared.Touch(p)
		s.fake(msg)
		s.enter(stmtOp{kind: opParse, name: key, st: st, act: a})
		s.env.count.stmtsShared.Add(1)
		return stopNot
	case p != nil: // it will fail, whatever its name
		s.enter(stmtOp{})
		return s.rename(msg, name, wire.HeaderLen, p.Name, first)
	case s.full() && !first:
		return stopPrime
	}
	s.makeRoom()
	to := s.freeName(stmts.Cut(name))
	if why := s.rename(msg, name, wire.HeaderLen, to, first); why != stopNot {
		return why
	}
	s.enter(stmtOp{kind: opParse, name: key, st: st, p: sc.prepared.Add(to, st), act: a})
	s.env.count.stmtsPrepared.Add(1)
	return stopNot
}

// newest returns the statement of a Parse. A client that prepares again what it has closed before wants it as the database is now:
// from then on everybody's is a new one.
func (s *Session) newest(tail []byte, under string) stmts.Statement {
	base := stmts.Intern(tail, under)
	of := func(generation uint64) stmts.Statement {
		if generation == 0 {
			return base
		}
		return stmts.Intern(tail, under+"\x03"+strconv.FormatUint(generation, 10))
	}
	st := of(s.pool.renewed.get(base))
	if i := slices.Index(s.closed, st); i >= 0 {
		s.closed = slices.Delete(s.closed, i, i+1)
		st = of(s.pool.renewed.next(base))
	}
	return st
}

// maxClosed bounds how many statements a session remembers to have closed.
const maxClosed = 8

// noteClosed remembers that the session closed a statement.
func (s *Session) noteClosed(name string) {
	st, known := s.names.Find([]byte(name))
	if !known || st == (stmts.Statement{}) {
		return
	}
	if len(s.closed) >= maxClosed {
		s.closed = slices.Delete(s.closed, 0, 1)
	}
	s.closed = append(s.closed, st)
}

// A renewals counts how often statements were prepared anew because the database may have changed under them. It is safe for
// concurrent use. The zero value is ready.
type renewals struct {
	mu    sync.Mutex
	last  uint64
	count map[stmts.Statement]uint64
}

// maxRenewals bounds what is remembered. A statement that is forgotten is at worst prepared as it was before.
const maxRenewals = 4096

func (r *renewals) get(st stmts.Statement) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count[st]
}

func (r *renewals) next(st stmts.Statement) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count == nil || len(r.count) >= maxRenewals {
		r.count = make(map[stmts.Statement]uint64)
	}
	r.last++
	r.count[st] = r.last
	return r.last
}

// noteStale takes note that the server has refused a plan because the database has changed under it: what is prepared from now on
// is new to all of the pool.
func (s *Session) noteStale(body []byte) {
	if string(wire.ErrorField(body, 'C')) == codeNotSupported && string(wire.ErrorField(body, 'R')) == "RevalidateCachedQuery" {
		s.pool.statementEpoch.Add(1)
	}
}

// fake puts a Close of nothing in the place of a Parse.
func (s *Session) fake(msg []byte) {
	s.replace(msg, len(msg), closeNothing)
	s.faked = true
}

var closeNothing = []byte{wire.Close, 0, 0, 0, 7, 'S', noName, 0}

// readsDifferently are the settings that decide what a text means when it is prepared: those of the analysis of names and
// constants, of rights, and of what the planner may do with it. A statement is shared among sessions that have them alike.
var readsDifferently = map[string]bool{
	"search_path": true, settingRole: true, settingAuthorization: true, "row_security": true, settingStrings: true, settingEncoding: true,
	"datestyle": true, "intervalstyle": true, "timezone": true, "lc_monetary": true, "lc_numeric": true, "lc_time": true, "lc_messages": true,
	"bytea_output": true, "xmloption": true, "xmlbinary": true, "array_nulls": true, "backslash_quote": true, "escape_string_warning": true,
	"transform_null_equals": true, "default_text_search_config": true, "extra_float_digits": true, "quote_all_identifiers": true,
	"plan_cache_mode": true, "from_collapse_limit": true, "join_collapse_limit": true, "constraint_exclusion": true,
	"default_transaction_isolation": true, "default_transaction_read_only": true, "default_transaction_deferrable": true,
	"default_table_access_method": true, "default_tablespace": true, "cursor_tuple_fraction": true, "jit": true,
	"random_page_cost": true, "seq_page_cost": true, "cpu_tuple_cost": true, "cpu_index_tuple_cost": true, "cpu_operator_cost": true,
	"effective_cache_size": true, "work_mem": true, "hash_mem_multiplier": true, "max_parallel_workers_per_gather": true,
}

// readUnder returns the settings of the session that decide what a text means. While they may be changing it is a value that no
// other session has.
func (s *Session) readUnder() string {
	if len(s.dirty) > 0 || s.allReset || s.candUntold || s.untold {
		return strconv.FormatUint(s.env.statementIDs.Add(1), 10)
	}
	if s.set != s.underOf {
		m := s.set.values()
		for name := range m {
			if !readsDifferently[name] && !strings.HasPrefix(name, "enable_") && !strings.Contains(name, ".") {
				delete(m, name)
			}
		}
		s.underOf, s.under = s.set, ""
		if len(m) > 0 {
			s.under = newSettings(m).text.Value()
		}
	}
	return s.under
}

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
	s.touchBound(a.info, msg)
	s.bindAct(a)
}

// bindRefs remembers that a portal prepares or drops statements by SQL when it is executed.
func (s *Session) bindRefs(in *sqlscan.Info, msg []byte) {
	portal, _, _ := wire.CString(msg[wire.HeaderLen:])
	switch {
	case in == nil || len(in.Refs) == 0:
		delete(s.refPortals, string(portal))
		return
	case s.refPortals == nil:
		s.refPortals = make(map[string]*sqlscan.Info)
	}
	if len(s.refPortals) < maxPortals {
		s.refPortals[string(portal)] = in
	}
}

// executeRefs follows what the portal of an Execute prepares or drops.
func (s *Session) executeRefs(msg []byte, first bool) stop {
	portal, _, _ := wire.CString(msg[wire.HeaderLen:])
	return s.bySQL(s.refPortals[string(portal)], true, first)
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
	}
}

// callByName returns an ErrorResponse that calls a prepared statement by its name on the server connection, with the session's name
// for it instead; nil for any other.
func (s *Session) callByName(sc *server, msg []byte) []byte {
	const what = `prepared statement "`
	head, rest, ok := bytes.Cut(msg, []byte(what))
	there, rest, quoted := bytes.Cut(rest, []byte{'"'})
	p := sc.prepared.ByName(there)
	if !ok || !quoted || p == nil {
		return nil
	}
	if st, _, known := s.findStatement(there); known && st == p.St {
		return nil
	}
	name, known := s.nameOf(p.St)
	if !known {
		return nil
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
