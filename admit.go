package pgmoor

import (
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
		case l > link.BufferSize && len(b)-n > largeHead:
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
		case l > len(b)-n && (l <= link.BufferSize || len(b)-n <= largeHead):
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
	if !s.turn.Skipping() && !s.turn.CopyIn() {
		switch typ {
		case wire.Parse:
			unnamed = len(msg) > wire.HeaderLen && msg[wire.HeaderLen] == 0
		case wire.Close:
			unnamed = isUnnamedStatement(msg)
		}
		if why := s.prime(typ, unnamed, first); why != stopNot {
			return why
		}
		switch typ {
		case wire.Query:
			s.queried = true // it drops whatever unnamed statement there is
			if !s.primed {
				s.srv.unnamed = 0
			}
			s.risk = s.risk || s.turn.Status() == 'I'
			s.text(msg[wire.HeaderLen:], l-wire.HeaderLen)
		case wire.Parse:
			s.parse(msg, l, unnamed)
		case wire.Bind:
			s.bind(msg)
		case wire.Execute:
			s.risk = s.risk || s.portalRisk
		case wire.FunctionCall:
			s.risk = s.risk || s.turn.Status() == 'I'
		}
	}
	if typ == wire.Sync && s.turn.Status() == 'I' {
		s.risk = true
	}
	if !s.turn.Sent(typ, unnamed) {
		return stopTooMany
	}
	return stopNot
}

// isUnnamedStatement reports whether a Close means the unnamed statement.
func isUnnamedStatement(msg []byte) bool {
	return len(msg) == wire.HeaderLen+2 && msg[wire.HeaderLen] == 'S' && msg[wire.HeaderLen+1] == 0
}

// parse looks at a Parse.
func (s *Session) parse(msg []byte, l int, unnamed bool) {
	body := msg[wire.HeaderLen:]
	if !unnamed {
		s.nameRisk = true
		s.pinFor(EffectNamedStatement)
		_, text, ok := wire.CString(body)
		if !ok { // the end of the name is yet to come
			s.pinFor(EffectUnclassified)
			return
		}
		s.text(text, l-len(msg)+len(text))
		return
	}
	s.unnamedID = s.env.statementIDs.Add(1)
	if l > len(msg) {
		s.pinFor(EffectUnnamedStatement)
		s.unnamed = nil
	} else {
		s.unnamed = append(s.unnamed[:0], msg...)
	}
	risk := s.risk
	s.risk = false
	s.text(body[1:], l-len(msg)+len(body)-1)
	s.stmtRisk = s.risk || l > len(msg)
	s.risk = risk
}

// bind looks at a Bind.
func (s *Session) bind(msg []byte) {
	_, rest, ok := wire.CString(msg[wire.HeaderLen:]) // the portal's name
	switch {
	case !ok || len(rest) == 0:
		s.portalRisk = true
	case rest[0] != 0:
		s.portalRisk = s.portalRisk || s.nameRisk
	default:
		s.portalRisk = s.portalRisk || s.stmtRisk
	}
}

// prime makes sure, before the first message of the extended protocol after the session got its server connection, that the
// connection's unnamed statement is the session's own: another session may have left one, and this session's may have
// been made on another connection. It cannot wait for a message that uses the statement, because by then the server may
// be ignoring everything up to Sync.
func (s *Session) prime(typ byte, unnamed, first bool) stop {
	if s.primed {
		return stopNot
	}
	switch typ {
	case wire.Parse, wire.Bind, wire.Describe, wire.Execute, wire.Close:
	default:
		return stopNot
	}
	if !first {
		return stopPrime
	}
	s.primed = true
	s.prefix = append(s.scratch[:0], closeUnnamed...) // scratch: the next Parse may overwrite s.unnamed before this is written
	s.turn.InjectClose()
	if s.turn.Unnamed() == turn.UnnamedLast && !s.queried && (typ != wire.Parse || !unnamed) {
		s.prefix = append(s.prefix, s.unnamed...)
		s.turn.InjectParse()
	}
	return stopNot
}

var closeUnnamed = []byte{wire.Close, 0, 0, 0, 6, 'S', 0}

// text classifies the zero-terminated statement text at the start of b, the rest of a body of which n bytes are still to
// be taken together with it.
func (s *Session) text(b []byte, n int) {
	if n > len(b) {
		s.big = new(sqlscan.Scanner)
		s.big.Reset(s.strings)
		s.feedText(b, false)
		return
	}
	if t, _, ok := wire.CString(b); ok {
		b = t
	}
	if s.opaque {
		s.effect(sqlscan.Unsure)
		return
	}
	s.effect(sqlscan.Classify(b, s.strings))
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

// feedText classifies a further piece of a large statement text.
func (s *Session) feedText(b []byte, last bool) {
	t, _, ends := wire.CString(b)
	if ends {
		b = t
	}
	s.big.Feed(b)
	if ends || last {
		s.effect(s.big.Finish())
		s.big = nil
	}
}

// effect acts on what a statement's text may do.
func (s *Session) effect(e sqlscan.Effect) {
	if e == 0 {
		return
	}
	if e&mayCommit != 0 {
		s.risk, s.stmtRisk = true, true
	}
	if e&pinningScan != 0 {
		s.pinFor(effectsOf(e))
	}
}

// pinFor pins the session for those of the effects that the policy says, and those that are not up to it.
func (s *Session) pinFor(e Effects) {
	if e &^= s.pins; e != 0 {
		s.pin(s.env.policy.Pin(s, e)&e | e&mandatory)
	}
}
