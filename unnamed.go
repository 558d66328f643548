package pgmoor

import (
	"bytes"

	"github.com/pgmoor/pgmoor/internal/turn"
)

// This file keeps the unnamed statements that others of the same batch were to replace. Where a message between fails, the server
// skips the others, and goes on with the one before: that is then the session's, on whatever server connection.

// replaced is an unnamed statement that another one was to replace.
type replaced struct {
	parse []byte // the message
	at    uint64 // which of the session's it is
	id    uint64
	act   act
	risk  bool
	heed  heed
}

const (
	maxReplaced     = 32      // how many are kept
	maxReplacedSize = 4 << 10 // of each
)

// replaceUnnamed keeps the unnamed statement that the Parse in msg is to replace. That one does a, and heed is what the one at hand has
// to do with sequences.
func (s *Session) replaceUnnamed(msg []byte, a act, was heed) {
	next := s.turn.UnnamedSent() + 1
	switch {
	case s.unnamedAt == next: // it was looked at before
	case !s.turn.Open(): // as the first of its batch it is not skipped
		s.replaced, s.unnamedAt = nil, next
	case bytes.Equal(s.unnamed, msg): // whichever the server has
	case !s.keepsUnnamed() || !movable(a):
		s.replaced, s.unnamedAt = nil, next
	default:
		s.replaced = append(s.replaced, replaced{s.unnamed, s.unnamedAt, s.unnamedID, s.stmt, s.stmtRisk, was})
		s.unnamed, s.unnamedAt = nil, next
	}
}

// keepsUnnamed reports whether the unnamed statement can be kept, and makes room for it.
func (s *Session) keepsUnnamed() bool {
	n := 0
	for n+1 < len(s.replaced) && s.replaced[n+1].at <= s.turn.UnnamedHas() {
		n++
	}
	s.replaced = s.replaced[n:]
	return len(s.replaced) < maxReplaced && len(s.unnamed) > 0 && len(s.unnamed) <= maxReplacedSize && movable(s.stmt)
}

// movable reports whether a statement means the same wherever and whenever it is prepared.
func movable(a act) bool { return a.info == nil || !aboutPids(a.info) && len(a.info.Refs) == 0 }

// recall makes the unnamed statement that which the server has, at rest. It reports false where it is not known any more, or
// something was run that may have been it.
func (s *Session) recall() bool {
	has := s.turn.UnnamedHas()
	if s.olderRisk {
		return false
	}
	for i := len(s.replaced) - 1; i >= 0 && has < s.unnamedAt; i-- {
		r := &s.replaced[i]
		s.unnamed, s.unnamedAt, s.unnamedID = r.parse, r.at, r.id
		s.stmt, s.stmtRisk, s.seq.unnamed = r.act, r.risk, r.heed
	}
	if has < s.unnamedAt || len(s.unnamed) == 0 {
		return false
	}
	s.turn.Recall()
	return true
}

// settleUnnamed finds out which unnamed statement the session has, at rest.
func (s *Session) settleUnnamed() {
	if s.turn.Unnamed() == turn.UnnamedOlder && !s.recall() {
		s.fallBack()
	}
	s.replaced, s.olderRisk = nil, false
}
