package pgmoor

import (
	"bytes"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/stmts"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file carries what PREPARE, EXECUTE and DEALLOCATE are about. Their names are in the texts of the statements: so the server
// connection is to have the session's statements, and no others, under the very names that a text mentions before it is run.

// A sqlOp is a PREPARE, DEALLOCATE or DISCARD ALL under way. It counts when the server says that it is complete.
type sqlOp struct {
	kind  sqlscan.RefKind
	batch uint32
	name  string
	st    stmts.Statement
}

// maxSQLOps bounds how many of them are followed at once.
const maxSQLOps = 256

// prepareAs prepares a statement under the very name by which the session knows it.
func (s *Session) prepareAs(name []byte, st stmts.Statement) *stmts.Prepared {
	sc := s.srv
	if s.shelter == shelterWanted {
		s.takeShelter()
	}
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
	p := sc.prepared.Add(string(name), st, s.id, s.env.statementIDs.Add(1))
	s.enter(stmtOp{kind: opPrepare, p: p})
	s.env.count.stmtsPrepared.Add(1)
	return p
}

// A shelter keeps what the proxy prepares in front of the client's message from failing the client's transaction. ROLLBACK TO does not undo a
// PREPARE.
type shelter byte

const (
	shelterNot    shelter = iota
	shelterWanted         // before anything is prepared
	shelterTaken
)

func (s *Session) takeShelter() {
	s.shelter = shelterTaken
	s.runInFront(`SAVEPOINT "pgmoor"`)
	s.syncInFront()
}

func (s *Session) leaveShelter() {
	s.shelter = shelterWanted
	s.syncInFront()
	s.runInFront(`ROLLBACK TO SAVEPOINT "pgmoor"`)
	s.runInFront(`RELEASE SAVEPOINT "pgmoor"`)
}

// setApart makes what stands in the prefix from was on a batch of its own, if none of the client's has begun.
func (s *Session) setApart(was int) {
	if len(s.prefix) == was || s.turn.Open() {
		return
	}
	if s.shelter == shelterTaken {
		s.leaveShelter()
	}
	s.syncInFront()
}

// runInFront runs a statement in front of the next message.
func (s *Session) runInFront(text string) {
	s.front()
	s.prefix = appendRun(s.prefix, text)
	s.turn.InjectRun()
	s.enter(stmtOp{})
}

// syncInFront ends a batch of the proxy's own.
func (s *Session) syncInFront() {
	s.prefix = append(s.prefix, wire.Sync, 0, 0, 0, 4)
	s.turn.InjectSync()
}

// appendRun appends messages that run text, a statement without parameters, by a statement and a portal of their own.
func appendRun(dst []byte, text string) []byte {
	const name = "\x01p"
	closing := func(kind byte) {
		dst = wire.AppendHeader(dst, wire.Close, len(name)+2)
		dst = append(append(append(dst, kind), name...), 0)
	}
	closing('P') // which an error may have left
	closing('S')
	dst = wire.AppendHeader(dst, wire.Parse, len(name)+1+len(text)+1+2)
	dst = append(append(dst, name...), 0)
	dst = append(append(dst, text...), 0, 0, 0)
	dst = wire.AppendHeader(dst, wire.Bind, 2*(len(name)+1)+6)
	dst = append(append(append(append(dst, name...), 0), name...), 0, 0, 0, 0, 0, 0, 0)
	dst = wire.AppendHeader(dst, wire.Execute, len(name)+1+4)
	dst = append(append(dst, name...), 0, 0, 0, 0, 0)
	closing('P')
	closing('S')
	return dst
}

// occupy sees to it that there is a statement of a name which the session has. Which one it is does not matter: an empty one can be
// prepared in a failed transaction, too.
func (s *Session) occupy(key []byte) {
	if s.srv.prepared.ByName(key) == nil {
		s.prepare(string(key), emptyStatement)
	}
}

var emptyStatement = stmts.Intern([]byte{0, 0, 0}, "")

// bySQL sees to it that the prepared statements which a text uses by SQL are on the server connection under their own names,
// and no others of those names. runs says that what the text makes and drops is to be followed, too.
func (s *Session) bySQL(in *sqlscan.Info, runs, first bool) stop {
	if !isBySQL(in) {
		return stopNot
	}
	if why := s.waitsForSQL(in); why != stopNot {
		return why
	}
	if !first {
		return stopPrime
	}
	was := len(s.prefix)
	s.shelter = shelterNot
	if s.turn.Status() == 'T' && !s.turn.Open() {
		s.shelter = shelterWanted
	}
	s.referAll(in, runs, 0)
	if in.Effects&sqlscan.PrepView != 0 {
		s.evictOthers()
		s.expose()
	}
	s.setApart(was)
	s.shelter = shelterNot
	return stopNot
}

// isBySQL reports whether a text uses prepared statements, or looks at them.
func isBySQL(in *sqlscan.Info) bool {
	return in != nil && (len(in.Refs) > 0 || in.Effects&sqlscan.PrepView != 0)
}

// waitsForSQL makes a message wait whose text uses prepared statements by SQL, until it is known what they are.
func (s *Session) waitsForSQL(in *sqlscan.Info) stop {
	switch {
	case !isBySQL(in):
	case s.mustWait():
		return s.hold(holdBatch)
	case s.turn.Ready() > 0, len(s.ops) > 0 && s.mayReach(in), in.Effects&sqlscan.Prepare != 0 && s.readsBack():
		return s.hold(holdAll)
	}
	return stopNot
}

// maxNested bounds how deep statements that execute others are followed.
const maxNested = 4

// referAll makes the statements that a text names what they are to the session, and those that these name in their turn: what the protocol
// prepares may be an EXECUTE or DEALLOCATE.
func (s *Session) referAll(in *sqlscan.Info, runs bool, depth int) {
	if depth > maxNested || in.Effects&sqlscan.PrepView != 0 && depth > 0 {
		s.evictOthers()
		return
	}
	for _, r := range in.Refs {
		s.refer(in, r, runs)
		if r.Kind != sqlscan.RefExecute {
			continue
		}
		if _, a, known := s.findStatement([]byte(r.Name)); known && isBySQL(a.info) {
			s.referAll(a.info, false, depth+1)
		}
	}
}

// mayReach reports whether a text may reach more of the session's statements than it names.
func (s *Session) mayReach(in *sqlscan.Info) bool {
	if in.Effects&sqlscan.PrepView != 0 {
		return true
	}
	for _, a := range s.executed(in) {
		if isBySQL(a.info) {
			return true
		}
	}
	return false
}

// executed returns what the statements do that a text executes by name, as far as that is of interest.
func (s *Session) executed(in *sqlscan.Info) (acts []act) {
	if in == nil {
		return nil
	}
	for _, r := range in.Refs {
		if r.Kind != sqlscan.RefExecute {
			continue
		}
		if _, a, known := s.findStatement([]byte(r.Name)); known && a.info != nil {
			acts = append(acts, a)
		}
	}
	return acts
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
	case r.Kind == sqlscan.RefExecute && st != stmts.Statement{} && (p == nil || p.St != st || s.current(st) == nil):
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

// evictOthers leaves no statements on the server connection but the session's own, under their own names.
func (s *Session) evictOthers() {
	sc := s.srv
	sc.prepared.All(func(p *stmts.Prepared) bool {
		st, _, known := s.findStatement([]byte(p.Name))
		if known && st == p.St {
			return true
		}
		if _, own := s.nameOf(p.St); own && s.turn.Status() == 'E' { // it could not be prepared again
			return true
		}
		s.evict(p)
		return true
	})
}

// expose prepares all the session's own statements on the server connection, under their own names.
func (s *Session) expose() {
	sc := s.srv
	if s.turn.Status() == 'E' { // nothing can be prepared
		return
	}
	s.names.All(func(name string, st stmts.Statement) bool {
		if p := sc.prepared.ByName([]byte(name)); p == nil && st != (stmts.Statement{}) && sc.prepared.Len() < maxExposed {
			was := len(s.prefix)
			s.prepareAs([]byte(name), st)
			s.setApart(was) // one that fails hides no other
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
		sc.prepared.Add(op.name, op.st, s.id, s.env.statementIDs.Add(1))
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
