package pgmoor

import (
	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file answers requests that no server will see: those of a client whose wait was in vain, and those inside a
// transaction whose server connection was lost. All of it runs on the goroutine of the client's connection.

// localMode says what is answered here. Its zero value is nothing.
type localMode struct {
	active bool   // any of the others
	skip   bool   // everything up to Sync is ignored
	failed bool   // as in a failed transaction block, until it is ended
	first  *Error // what the first request in that block is told
	ends   bool   // the last Parse was of a statement that ends the block
	commit bool   // of one that was to commit it
	ended  bool   // and it was executed
	body   int    // bytes of a large message that are dropped
}

func (m *localMode) settle() { m.active = m.skip || m.failed || m.body > 0 }

// answerLocally is step for a session in a local mode.
func (s *Session) answerLocally(b []byte) (int, link.Next) {
	n, out, stop := s.local.answer(b, nil, s.strings)
	s.reply = out
	switch {
	case stop == stopTerminate && len(out) == 0:
		return s.leaveFor(leaveTerminate, n)
	case stop == stopMalformed:
		s.reply = badHeader(b[n:]).append(out, "FATAL")
		return s.leaveFor(leaveFatal, n)
	case len(out) > 0:
		return s.leaveFor(leaveReply, n)
	}
	return n, link.Park
}

// refuseLocked answers the pending request with an error, and unlocks.
func (s *Session) refuseLocked(e *Error) (goOn bool) {
	c := s.pending
	s.pending = chunk{}
	s.mu.Unlock()
	_, out, _ := s.local.answer(c.bytes(), e, s.strings)
	c.free()
	if len(out) == 0 {
		return true
	}
	_, err := s.link.Write(out)
	return err == nil
}

// takeLossLocked tells the client that its server connection was lost, and unlocks. What the client sent behind is
// answered here if it belongs to a lost transaction, and goes to another server connection if not.
func (s *Session) takeLossLocked() (goOn bool) {
	l := s.lostErr
	s.lostErr, s.held = nil, false
	var out []byte
	if l.done {
		out = wire.AppendReady(nil, 'I')
	}
	status := byte('I')
	if l.block {
		status = 'E'
		s.local.failed, s.local.first = true, l.err
	}
	for range l.ready {
		out = wire.AppendReady(l.err.append(out, "ERROR"), status)
		s.local.first = nil
	}
	if l.cut {
		out = l.err.append(out, "ERROR")
		s.local.first = nil
	}
	s.local.skip = l.cut || l.skip
	s.local.body = l.body
	s.local.settle()
	if s.local.active || s.pending.empty() {
		goOn = s.replyLocked(out)
		return goOn
	}
	s.waiting = true
	s.mu.Unlock()
	_, err := s.link.Write(out)
	s.pool.enqueue(s)
	return err == nil
}

// replyLocked unlocks, writes out, and answers the pending request locally.
func (s *Session) replyLocked(out []byte) (goOn bool) {
	c := s.pending
	s.pending = chunk{}
	s.mu.Unlock()
	n, more, _ := s.local.answer(c.bytes(), nil, s.strings)
	if out = append(out, more...); len(out) > 0 {
		if _, err := s.link.Write(out); err != nil {
			c.free()
			return false
		}
	}
	if n == c.size {
		c.free()
		return true
	}
	c.off, c.size = c.off+n, c.size-n // behind the end of the block: a server's business again
	s.mu.Lock()
	s.pending, s.waiting = c, true
	s.mu.Unlock()
	s.pool.enqueue(s)
	return true
}

// answer answers the messages at the start of b: every request with refuse if that is not nil, else while a local mode is
// active. It returns how many bytes it dealt with and the replies.
func (m *localMode) answer(b []byte, refuse *Error, strings bool) (n int, out []byte, why stop) {
	if m.body > 0 {
		n = min(m.body, len(b))
		m.body -= n
		m.settle()
	}
	for (m.active || refuse != nil) && m.body == 0 && len(b)-n >= wire.HeaderLen {
		l, ok := frontendLength(b[n:])
		switch {
		case !ok:
			return n, out, stopMalformed
		case b[n] == wire.Terminate:
			return n, out, stopTerminate
		case l > len(b)-n && l <= link.BufferSize:
			return n, out, stopNot
		}
		msg := b[n:min(n+l, len(b))]
		var consumed bool
		if out, consumed = m.message(out, msg, refuse, strings); !consumed {
			return n, out, stopNot
		}
		n += len(msg)
		m.body = l - len(msg)
		m.settle()
	}
	return n, out, stopNot
}

// message answers one message. It does not consume a message that ends the local mode and is a server's business.
func (m *localMode) message(out, msg []byte, refuse *Error, strings bool) (_ []byte, consumed bool) {
	switch typ := msg[0]; {
	case typ == wire.Sync:
		m.skip = false
		return wire.AppendReady(out, m.status()), true
	case m.skip, typ == wire.Flush, typ == wire.CopyData, typ == wire.CopyDone, typ == wire.CopyFail:
		return out, true
	case typ == wire.Query && refuse == nil:
		return m.query(out, msg, strings)
	case typ == wire.Query || typ == wire.FunctionCall:
		return wire.AppendReady(m.error(out, refuse), m.status()), true
	case refuse == nil:
		return m.extended(out, msg, strings), true
	}
	m.skip = true
	return m.error(out, refuse), true
}

// status ends the block where it was ended, and returns the transaction status.
func (m *localMode) status() byte {
	if m.ended {
		m.failed, m.ended, m.ends = false, false, false
	}
	m.settle()
	if m.failed {
		return 'E'
	}
	return 'I'
}

// error appends refuse, or what a request in a failed block is told.
func (m *localMode) error(out []byte, refuse *Error) []byte {
	e := refuse
	if e == nil {
		e = errFailedTransaction
	}
	if m.failed && m.first != nil {
		e, m.first = m.first, nil
	}
	return e.append(out, "ERROR")
}

// query answers a simple Query in a failed block.
func (m *localMode) query(out, msg []byte, strings bool) (_ []byte, consumed bool) {
	verb, n, e := verbOf(msg[wire.HeaderLen:], strings)
	switch {
	case n == 0:
		return wire.AppendReady(append(out, wire.EmptyQueryResponse, 0, 0, 0, 4), 'E'), true
	case !endsBlock(verb) || e&sqlscan.TxnBegin != 0:
		return wire.AppendReady(m.error(out, nil), 'E'), true
	}
	m.ended = true
	if verb == sqlscan.VerbCommit && m.first != nil { // it fails: nobody has said yet that there is nothing to commit
		out = m.error(out, nil)
		return wire.AppendReady(out, m.status()), true
	}
	m.first = nil
	status := m.status()
	if n > 1 { // outside of a transaction the first statement only warns
		return out, false
	}
	return wire.AppendReady(wire.AppendComplete(out, "ROLLBACK"), status), true
}

func endsBlock(v sqlscan.Verb) bool { return v == sqlscan.VerbRollback || v == sqlscan.VerbCommit }

// verbOf returns the verb of the first statement of a zero-terminated text, how many statements it has, and what they may do.
func verbOf(text []byte, strings bool) (sqlscan.Verb, int, sqlscan.Effect) {
	if t, _, ok := wire.CString(text); ok {
		text = t
	}
	var sc sqlscan.Scanner
	sc.Reset(strings)
	sc.Feed(text)
	e := sc.Finish()
	return sc.Verb(), sc.Statements(), e
}

// extended answers a message of the extended protocol in a failed block, where only a statement that ends the block can
// be prepared and executed.
func (m *localMode) extended(out, msg []byte, strings bool) []byte {
	body := msg[wire.HeaderLen:]
	switch msg[0] {
	case wire.Parse:
		_, text, _ := wire.CString(body)
		verb, n, e := verbOf(text, strings)
		m.commit = verb == sqlscan.VerbCommit
		if m.ends = n == 1 && endsBlock(verb) && e&sqlscan.TxnBegin == 0; m.ends {
			return append(out, wire.ParseComplete, 0, 0, 0, 4)
		}
	case wire.Close:
		return append(out, wire.CloseComplete, 0, 0, 0, 4)
	}
	if !m.ends {
		m.skip = true
		return m.error(out, nil)
	}
	switch msg[0] {
	case wire.Bind:
		return append(out, wire.BindComplete, 0, 0, 0, 4)
	case wire.Describe:
		if len(body) > 0 && body[0] == 'S' {
			out = append(out, wire.ParameterDescription, 0, 0, 0, 6, 0, 0)
		}
		return append(out, wire.NoData, 0, 0, 0, 4)
	case wire.Execute:
		m.ended = true
		if m.commit && m.first != nil {
			m.skip = true
			return m.error(out, nil)
		}
		m.first = nil
		return wire.AppendComplete(out, "ROLLBACK")
	}
	return out
}
