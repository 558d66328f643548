package pgmoor

import (
	"log/slog"
	"math/bits"
	"slices"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/turn"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file keeps apart what currval and lastval tell. PostgreSQL remembers on each server connection which values of
// sequences were got there; nobody can ask it who got them, and an INSERT does not show that it got one. So a connection
// that another session has used is foreign (server.foreign), and before a session asks a foreign connection for such values, DISCARD SEQUENCES
// is put in front of its request: what it is told then is its own, or the server's error 55000. Its own values are lost as well where it
// got them before, so that a session that was seen to ask has them discarded in front of everything that may get new
// ones, and one that was told 55000 all the same keeps its connection from then on.

// heed is what the statements since the last boundary may have to do with sequences.
type heed byte

const (
	heedAsks  heed = 1 << iota // they may ask for values
	heedGets                   // they may get values that are asked for later, or begin a block of statements that do
	heedKeeps                  // they may pin the session, which may ask as long as it is pinned
)

// clearance says whether DISCARD SEQUENCES can be put in front of what is being fed.
type clearance byte

const (
	notClear     clearance = iota
	clearButFor            // it would drop the session's unnamed statement
	clearInBlock           // it would drop values that the session got in the same transaction
	clearToStart
)

// sequences is what a session has to do with values of sequences. Its mu guards it.
type sequences struct {
	last    uint64 // the connection that it used last (server.serial): on any other its values may be old
	heeds   heed
	clear   clearance
	asking  bool // the message that is being looked at asks
	asked   bool // the session asks at times
	got     bool // it may have got values
	lost    bool // values of the open transaction were discarded
	misses  int  // how often it was told that there is none
	unnamed heed // what the unnamed statement has to do with them
}

// discardSequences makes currval and lastval fail until there are new values.
const discardSequences = "DISCARD SEQUENCES"

// hold is called when s gets sc.
func (s *Session) holdSequences(sc *server) {
	sc.foreign = sc.foreign || sc.gotBy != 0 && !s.gotOn(sc)
	s.seq.heeds = 0
}

// gotOn reports whether the session's latest values, if it has any, are on sc.
func (s *Session) gotOn(sc *server) bool { return sc.gotBy == s.id && sc.serial == s.seq.last }

// heedText takes note of what a text has to do with sequences.
func (s *Session) heedText(in *sqlscan.Info, a act, use textUse) {
	var h heed
	if in.Verb == sqlscan.VerbInsert || in.Statements > 1 || in.Effects&(sqlscan.TxnBegin|sqlscan.Call|sqlscan.Execute) != 0 {
		h |= heedGets
	}
	if in.Effects&(sqlscan.Unsure|sqlscan.Listed) != 0 || s.env.config().Verify == VerifyAlways { // they may ask by a function
		h |= heedAsks | heedGets
	}
	if d := a.deed; d != nil {
		h |= heedDeed(in, d)
	}
	if use == preparesUnnamed {
		s.seq.unnamed = h
	}
	s.seq.heeds |= h
	s.seq.asking = asksFor(a)
}

func heedDeed(in *sqlscan.Info, d *deed) (h heed) {
	if d.pins != 0 {
		h |= heedKeeps
	}
	if d.share&EffectSequence == 0 && in.Effects&sqlscan.Sequence != 0 {
		h |= heedGets
	}
	if d.share&EffectSequence == 0 && in.Effects&sqlscan.LastValue != 0 {
		h |= heedAsks
	}
	return h
}

// asksFor reports whether running a statement asks for values.
func asksFor(a act) bool {
	return a.info != nil && a.info.Effects&sqlscan.LastValue != 0 && !a.shares(EffectSequence)
}

// clearance says whether DISCARD SEQUENCES can be put in front of b, which is about to be fed.
func (s *Session) clearance(b []byte) clearance {
	t := &s.turn
	switch {
	case !t.AtRest() || t.Lost() || t.Status() == 'E' || s.body > 0: // it would fail, or come in between
		return notClear
	case s.primed && t.Unnamed() != turn.UnnamedNone && !replacesUnnamed(b):
		return clearButFor
	case t.Status() == 'T':
		return clearInBlock
	}
	return clearToStart
}

// replacesUnnamed reports whether the message at the start of b does away with the unnamed statement.
func replacesUnnamed(b []byte) bool {
	return b[0] == wire.Query || b[0] == wire.Parse && len(b) > wire.HeaderLen && b[wire.HeaderLen] == 0
}

// ask is called for a message that asks for values. Where those of others are in the way and cannot be discarded, the
// message is refused: in a pipeline, behind other requests, that would also hit values that these have got.
func (s *Session) ask(msg []byte, unnamed, first bool) {
	q := &s.seq
	q.asking = false
	if !s.srv.foreign || s.refusal != nil {
		return
	}
	if q.clear == clearButFor && first && s.prefix == nil && s.instead == 0 && s.turn.Unnamed() == turn.UnnamedLast { // it is made again
		if s.primed = false; s.prime(msg, unnamed, true) == stopNot {
			if q.clear = clearToStart; s.turn.Status() == 'T' {
				q.clear = clearInBlock
			}
		}
	}
	if q.clear < clearInBlock {
		s.refusal = errForeignValue
		q.asked = true
	}
}

// errForeignValue is what a session is told that asks for a value in the middle of a pipeline.
var errForeignValue = &Error{
	Code: codeNotInState, Message: "currval or lastval is not yet defined in this session",
	Hint: "The pooler did not know that this session asks for such values. Repeat the transaction, or use RETURNING.",
}

// shield returns what is to be written in front of what was just fed, so that the session meets no value of another; nil if that
// is nothing. sc is foreign.
func (s *Session) shield(sc *server) []byte {
	q := &s.seq
	if !s.wantsShield() || !s.turn.InjectQueryInFront() {
		return nil
	}
	if q.heeds&heedAsks != 0 {
		if !q.asked && (q.got || q.clear == clearInBlock) { // the next session of this kind shall not be taken by surprise
			s.pool.asked.Store(true)
		}
		q.lost = q.lost || q.clear == clearInBlock
	}
	at := len(sc.own)
	if at > 0 && sc.own[at-1].kind == ownAttune { // it stands in front of the message itself
		at--
	}
	sc.own = slices.Insert(sc.own, at, &own{kind: ownDiscard})
	sc.foreign = false
	if !s.primed {
		sc.unnamed = 0
	}
	return wire.AppendQuery(nil, discardSequences)
}

func (s *Session) wantsShield() bool {
	q := &s.seq
	switch {
	case q.clear < clearInBlock:
		return false
	case q.heeds&heedAsks != 0:
		return true
	case q.clear == clearInBlock: // values that it got count more than those that it may ask for
		return false
	}
	return q.heeds&heedKeeps != 0 || q.heeds&heedGets != 0 && s.minds() || q.misses > 0
}

// minds reports whether the session may ask for values in a later request than that by which it gets them.
func (s *Session) minds() bool { return s.seq.asked || s.pool.asked.Load() }

// missed is called for an error while the session may be asking for values.
func (s *Session) missed(sc *server, body []byte) {
	q := &s.seq
	if string(wire.ErrorField(body, 'C')) != codeNotInState || q.lost || s.pins&EffectSequence != 0 {
		return
	}
	switch string(wire.ErrorField(body, 'R')) { // PostgreSQL's sequence.c
	case "lastval", "currval_oid":
	default:
		return
	}
	if q.misses++; q.misses == 1 {
		s.env.log.Warn("pgmoor: currval or lastval found no value; the session is pinned from its next value on", append(s.logAttrs(sc),
			slog.String("advice", advice[bits.TrailingZeros32(uint32(EffectSequence))]))...)
	}
}

// settleSequences is called at a boundary. A session that asked in vain keeps its connection once it may have got a value; one that
// asked in vain again, at once: it gets values by functions.
func (s *Session) settleSequences() {
	q := &s.seq
	if q.misses > 1 || q.misses > 0 && q.heeds&heedGets != 0 {
		s.pin(EffectSequence)
	}
	q.got = q.got || q.heeds&heedGets != 0
	q.asked = q.asked || q.heeds&heedAsks != 0
	q.heeds, q.lost = 0, false
}
