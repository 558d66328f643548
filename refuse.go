package pgmoor

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/pgmoor/pgmoor/internal/stmts"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file lets a policy refuse a statement. The server gets a text in its place that no grammar accepts, so that a
// transaction fails and a batch is skipped as after any other error; the server's error is then exchanged for the policy's.

// refusalMark begins the texts that stand for refused statements; a number and padding follow.
const refusalMark = "'pgmoor: refused "

// maxRefusals bounds how many refusals may wait for their errors.
const maxRefusals = 1000

// refuse puts a message in front of the next one that the server answers with an error, and remembers what that stands for.
func (s *Session) refuse(msg []byte, e *Error) {
	var reply []byte
	if name, _, _ := statementName(msg); msg[0] == wire.Describe {
		reply = s.toldParams(stmts.Cut(name))
	}
	reply = short(e).append(reply, "ERROR")
	if s.refusals == nil {
		s.refusals = make(map[uint64][]byte)
	}
	id := s.env.statementIDs.Add(1)
	s.refusals[id] = reply
	text := fmt.Sprintf("%s%d %s'", refusalMark, id, strings.Repeat(".", len(reply))) // the server's error is no shorter than ours
	if msg[0] == wire.Query {
		s.prefix = wire.AppendQuery(s.prefix, text)
		return
	}
	name := []byte("pgmoor refused") // a Bind, which leaves the unnamed statement as it is
	if msg[0] == wire.Parse {
		name, _, _ = wire.CString(msg[wire.HeaderLen:])
	}
	s.prefix = wire.AppendHeader(s.prefix, wire.Parse, len(name)+1+len(text)+1+2)
	s.prefix = append(append(s.prefix, name...), 0)
	s.prefix = append(append(s.prefix, text...), 0, 0, 0)
}

// maxRefusal bounds each text in a policy's error.
const maxRefusal = 1000

// short returns e with no text longer than maxRefusal.
func short(e *Error) *Error {
	c := *e
	for _, t := range []*string{&c.Message, &c.Detail, &c.Hint} {
		if len(*t) > maxRefusal {
			*t = strings.ToValidUTF8((*t)[:maxRefusal], "")
		}
	}
	return &c
}

// refused returns what the client gets in place of an ErrorResponse; nil where that is the server's own.
func (s *Session) refused(msg []byte) []byte {
	if len(s.refusals) == 0 {
		return nil
	}
	_, rest, ok := bytes.Cut(msg, []byte(refusalMark))
	if !ok {
		return nil
	}
	digits, _, _ := bytes.Cut(rest, []byte(" "))
	id, err := strconv.ParseUint(string(digits), 10, 64)
	if err != nil {
		return nil
	}
	reply := s.refusals[id]
	delete(s.refusals, id)
	return reply
}
