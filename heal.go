package pgmoor

import (
	"slices"

	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/stmts"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file runs a batch once more whose statement the server refuses for a reason that is none of the client's: it was prepared for
// another session, before the database changed, or is not there any more. The client prepared it later and would not see that directly.

// A kept is a batch as it was written to a server connection: from its first message, about a named statement, to its Sync; or a
// single EXECUTE. The holding session's mu guards it.
type kept struct {
	msgs  []byte
	owed  int           // how many of msgs, the Sync included, are answered
	batch uint32        // the session's number of it
	whole bool          // its end is there
	ran   bool          // something in it was executed
	bound bool          // it has a Bind
	fixed bool          // and behind that a Parse or Close: what was bound before cannot be bound again
	sql   *sqlscan.Info // of the EXECUTE

	refused *stmts.Prepared // what the error was about, if it is not healed
}

// maxKept bounds the bytes of a batch that may be run once more.
const maxKept = 8 << 10

// keepFrom begins to keep what is sent, with the message that is recorded next.
func (s *Session) keepFrom(in *sqlscan.Info) {
	k := &s.srv.kept
	*k = kept{msgs: k.msgs[:0], batch: s.batch, sql: in}
	s.keeps = true
}

// beginsBatch reports whether nothing is under way that was sent before.
func (s *Session) beginsBatch() bool { return s.turn.AtRest() && s.turn.Status() == 'I' }

// keep takes a message that was recorded as it is written: first says that its beginning may stand at the end of s.prefix.
func (s *Session) keep(msg []byte, l int, first bool) {
	k := &s.srv.kept
	typ := msg[0]
	switch typ {
	case wire.Parse, wire.Bind, wire.Describe, wire.Execute, wire.Close, wire.Flush, wire.Sync, wire.Query:
	default:
		s.keeps = false
	}
	if s.keeps = s.keeps && l <= len(msg) && len(k.msgs)+l+s.headLen <= maxKept && !s.turn.CopyIn(); !s.keeps {
		return
	}
	at := len(k.msgs)
	if first {
		k.msgs = append(k.msgs, s.prefix[len(s.prefix)-s.headLen:]...)
		msg = msg[s.instead:]
	}
	k.msgs = append(k.msgs, msg...)
	if typ != wire.Flush {
		k.owed++
	}
	switch typ {
	case wire.Bind:
		k.bound = true
	case wire.Parse, wire.Close:
		k.fixed = k.fixed || k.bound && !harmless(k.msgs[at:])
	case wire.Execute:
		k.ran = true
	case wire.Sync, wire.Query:
		k.whole, s.keeps = true, false
	}
}

// mayHeal reports whether the error of a Describe or Bind that comes behind what is kept could be healed. Elsewhere a Parse must not be left
// out: what the connection has of a statement may be older than a change of the database.
func (s *Session) mayHeal() bool { return s.begins || s.keeps && !s.srv.kept.ran && !s.srv.kept.fixed }

// heals has the batch that is under way run once more, in place of the error in msg, where that is right: then the error is to be
// swallowed, and what is to be written is in sc.ask.
func (s *Session) heals(sc *server, msg []byte) bool {
	k := &sc.kept
	missing := string(wire.ErrorField(msg[wire.HeaderLen:], 'C')) == codeNoStatement
	switch {
	case !missing && !refusesPlan(msg[wire.HeaderLen:]):
		return false
	case len(wire.ErrorField(msg[wire.HeaderLen:], 'W')) > 0: // it comes from within what the statement has run
		return false
	case s.holds != 0 || s.gone || s.prefix != nil || sc.ask != nil:
		return false
	case k.whole && k.batch+1 == s.batch && s.turn.Ready() == 1 && !s.turn.Open():
	case s.keeps && k.batch == s.batch && s.turn.Ready() == 0 && s.turn.Open():
	default:
		return false
	}
	open := s.keeps
	k.whole, s.keeps = false, false // once only
	if k.sql != nil {
		return s.healQuery(sc, k, missing)
	}
	return s.healBatch(sc, k, open, missing)
}

// stays is for a batch that the client has cancelled meanwhile: it is not run once more, and the client is told why.
func (s *Session) stays() bool {
	s.overruled = true
	return false
}

// refusesPlan reports whether an error says that a statement can no longer be run as it was prepared: its result would be another, or something
// that it is about is not there any more.
func refusesPlan(body []byte) bool {
	switch string(wire.ErrorField(body, 'C')) {
	case codeNotSupported:
		return string(wire.ErrorField(body, 'R')) == replans
	case codeInternal: // cache lookup failed for type, for example
		return true
	}
	return false
}

// older reports whether a statement that the server refuses was not prepared for this session, which was not told its shape
// either, or is missing though it was prepared.
func (s *Session) older(p *stmts.Prepared, missing bool) bool {
	if p == nil || p.St == (stmts.Statement{}) {
		return false
	}
	if missing {
		return true
	}
	name, known := s.nameOf(p.St)
	return known && !s.madeFor(p) && s.names.Shape([]byte(name)) == stmts.Shape{}
}

// healBatch is heals for a batch of the extended protocol; open says that its Sync was not sent yet. What was answered and dropped again is a portal at most: what the
// answered Parse and Close messages did stays.
func (s *Session) healBatch(sc *server, k *kept, open, missing bool) bool {
	done, rest, p := s.splitKept(sc, k.msgs, k.owed-s.turn.Unanswered())
	if p == nil {
		return false
	}
	if !s.older(p, missing) || !redoable(rest, len(s.ops)) {
		k.refused = p
		return false
	}
	if s.cancelled {
		k.refused = p
		return s.stays()
	}
	described := slices.Clone(s.ops)
	s.abortKept(sc, open)
	fresh := s.renewed(sc, p)
	for len(done) > 0 {
		m := int(wire.Length(done)) + 1
		if done[0] == wire.Bind {
			s.turn.InjectBind()
			s.prefix = append(s.prefix, done[:m]...)
		}
		done = done[m:]
	}
	s.redo(rest, described, p, fresh)
	s.sendsAgain(sc, open)
	return true
}

// splitKept returns the messages that were answered before the error, nil where they cannot be run again unseen, those from the
// one that failed on, and the statement of that.
func (s *Session) splitKept(sc *server, msgs []byte, answered int) (done, rest []byte, p *stmts.Prepared) {
	at, binds := 0, false
	for n := 0; at < len(msgs); {
		m := msgs[at : at+int(wire.Length(msgs[at:]))+1]
		if n == answered && m[0] != wire.Flush {
			if name, _, ok := statementName(m); ok && len(name) > 0 && (m[0] == wire.Bind || m[0] == wire.Describe) {
				p = sc.prepared.ByName(stmts.Cut(name))
			}
			return msgs[:at:at], msgs[at:], p
		}
		switch m[0] {
		case wire.Bind:
			binds = true
			n++
		case wire.Parse, wire.Close:
			if binds && !harmless(m) {
				return nil, nil, nil
			}
			n++
		case wire.Flush:
		default: // the client has seen what it brought
			return nil, nil, nil
		}
		at += len(m)
	}
	return nil, nil, nil
}

// harmless reports whether a message is the Close of nothing that was sent in the place of another.
func harmless(msg []byte) bool {
	return msg[0] == wire.Close && len(msg) > wire.HeaderLen+1 && msg[wire.HeaderLen] == 'S' && msg[wire.HeaderLen+1] == noName
}

// redoable reports whether messages, among them named Describes at most as what ops stand for, may simply be sent again.
func redoable(msgs []byte, ops int) bool {
	for len(msgs) > 0 {
		n := int(wire.Length(msgs)) + 1
		switch name, _, _ := statementName(msgs[:n]); {
		case msgs[0] == wire.Parse, msgs[0] == wire.Close && (len(name) > 0 || isUnnamedStatement(msgs[:n])):
			return false
		case msgs[0] == wire.Describe && len(name) > 0:
			ops--
		}
		msgs = msgs[n:]
	}
	return ops == 0
}

// abortKept takes note of the error, whose ReadyForQuery is swallowed; where the client has not sent a Sync for that yet, the proxy does.
func (s *Session) abortKept(sc *server, open bool) {
	s.turn.Received(wire.ErrorResponse, 0)
	s.answeredNamed(sc)
	s.turn.Redo()
	s.prefix = make([]byte, 0, maxScratch) // scratch may be being written
	if open {
		s.prefix = append(s.prefix, wire.Sync, 0, 0, 0, 4)
		return
	}
	s.batch-- // what is entered from here on belongs to the same batch
}

// renewed prepares p anew.
func (s *Session) renewed(sc *server, p *stmts.Prepared) *stmts.Prepared {
	s.pool.outdated.set(p.St, s.env.statementIDs.Add(1))
	s.evict(p)
	s.env.count.stmtsHealed.Add(1)
	if p.St.SQL() {
		return s.prepareAs([]byte(p.Name), p.St)
	}
	return s.prepare(p.Name, p.St)
}

// redo enters messages again as sent, and the ops of those that describe a statement.
func (s *Session) redo(msgs []byte, described []stmtOp, was, fresh *stmts.Prepared) {
	s.prefix = append(s.prefix, msgs...)
	for len(msgs) > 0 {
		n := int(wire.Length(msgs)) + 1
		if name, _, _ := statementName(msgs[:n]); msgs[0] == wire.Describe && len(name) > 0 {
			op := described[0]
			described = described[1:]
			if op.p == was {
				op.p = fresh
			}
			s.enter(op)
			s.turn.SentDescribe()
		} else {
			s.turn.Sent(msgs[0], false)
		}
		msgs = msgs[n:]
	}
}

// healQuery is heals for an EXECUTE.
func (s *Session) healQuery(sc *server, k *kept, missing bool) bool {
	var all []*stmts.Prepared
	for _, r := range k.sql.Refs {
		if p := sc.prepared.ByName([]byte(r.Name)); r.Kind == sqlscan.RefExecute && s.older(p, missing) {
			all = append(all, p)
		}
	}
	if len(all) == 0 || len(s.ops) > 0 {
		return false
	}
	if s.cancelled {
		return s.stays()
	}
	s.abortKept(sc, false)
	for _, p := range all {
		s.renewed(sc, p)
	}
	s.prefix = append(s.prefix, wire.Sync, 0, 0, 0, 4)
	s.turn.InjectSync()
	s.prefix = append(s.prefix, k.msgs...)
	s.turn.Sent(wire.Query, false)
	s.sendsAgain(sc, false)
	return true
}

// sendsAgain hands over what is to be written to whoever sends for the session next.
func (s *Session) sendsAgain(sc *server, open bool) {
	if !open {
		s.batch++
	}
	sc.ask, s.prefix = s.prefix, nil
	s.asksLater, s.sending = s.sending, true
}

// sendsHealed is what follows when a batch is run once more.
func (s *Session) sendsHealed() outcome {
	if s.asksLater { // by whoever sends now
		return goOn
	}
	return asks
}

// describesInVain looks at a ParameterDescription of l bytes at the start of b: the server sends it before it finds that the rest of
// the answer to the Describe would be another than it was. It returns how many bytes the client is not to see of both because
// the batch is run once more, and -1 where what follows is not there yet.
func (sc *server) describesInVain(s *Session, b []byte, l int) int {
	if l > link.BufferSize/4 { // who knows whether what follows finds room
		return sc.toldShape(s)
	}
	next := b[l:]
	switch {
	case len(next) == 0:
		return -1
	case next[0] == wire.RowDescription || next[0] == wire.NoData:
		return 0
	case next[0] != wire.ErrorResponse:
		return sc.toldShape(s)
	case len(next) < wire.HeaderLen:
		return -1
	}
	k := int(wire.Length(next)) + 1
	switch {
	case k > link.BufferSize/4:
		return sc.toldShape(s)
	case k > len(next):
		return -1
	case s.heals(sc, next[:k]):
		sc.failed = true
		return l + k
	}
	return sc.toldShape(s)
}

// toldShape takes note that the client is told something that it would be told again if the batch were run once more.
func (sc *server) toldShape(s *Session) int {
	sc.kept.whole, s.keeps = false, false
	return 0
}
