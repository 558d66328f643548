package pgmoor

import (
	"cmp"
	"iter"
	"net"
	"slices"
)

// This file shows who is there, and ends one of them.

// SessionState says what a session does at the moment, as pg_stat_activity.state does for a server process.
type SessionState uint8

const (
	// StateIdle means that the client has asked for nothing, and has no transaction open.
	StateIdle SessionState = iota
	// StateWaiting means that a request of the client's waits for a server connection, or for the end of a pause.
	StateWaiting
	// StateActive means that a server is at work for the client.
	StateActive
	// StateInTransaction means that the client has a transaction open, and has asked for nothing.
	StateInTransaction
	// StateFailedTransaction is the same, of a transaction that has failed.
	StateFailedTransaction
)

// String returns the state in pg_stat_activity's words; there is none for StateWaiting.
func (st SessionState) String() string {
	switch st {
	case StateIdle:
		return "idle"
	case StateWaiting:
		return "waiting"
	case StateActive:
		return "active"
	case StateInTransaction:
		return "idle in transaction"
	case StateFailedTransaction:
		return "idle in transaction (aborted)"
	}
	return "unknown"
}

// SessionInfo is a snapshot of a session, as [Session.Info] returns it.
type SessionInfo struct {
	PID             uint32 // by which the client knows itself, cancel requests find it, and Kill
	User, Database  string
	ApplicationName string // as last set, as far as it is known
	Addr            net.Addr
	State           SessionState
	Pinned          Effects // all reasons for which it keeps its server connection; zero: none
	PinReason       string  // the first of them, as Stats.PinnedBy counts it
	Backend         uint32  // the process id of the server connection that it holds; 0: none
}

// Info returns who the session is and what it does at this moment. It may be called from any goroutine.
func (s *Session) Info() SessionInfo {
	in := SessionInfo{PID: s.pid, User: s.client.user, Database: s.client.database, Addr: s.client.RemoteAddr()}
	in.ApplicationName, _ = s.client.Parameter(settingApplication)
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.set.values()[settingApplication]; ok {
		in.ApplicationName = v
	}
	in.State, in.Pinned = s.stateLocked(), s.pins
	if s.pins != 0 {
		in.PinReason = s.pinned
	}
	if s.srv != nil {
		in.Backend = s.srv.pid
	}
	return in
}

const settingApplication = "application_name"

// stateLocked returns what the session does. The caller holds mu.
func (s *Session) stateLocked() SessionState {
	switch {
	case s.waiting, s.holds&holdPaused != 0 && !s.pending.empty():
		return StateWaiting
	case s.srv == nil && s.pending.empty():
		return StateIdle
	case s.sending || s.finishing || s.writing || !s.pending.empty() || !s.turn.AtRest():
		return StateActive
	case s.turn.Status() == 'T':
		return StateInTransaction
	case s.turn.Status() == 'E':
		return StateFailedTransaction
	}
	return StateIdle
}

// Sessions iterates over the sessions that are logged in, in the order in which they came. It takes no lock while it yields.
func (p *Proxy) Sessions() iter.Seq[*Session] {
	return func(yield func(*Session) bool) {
		all := p.env.all()
		slices.SortFunc(all, func(a, b *Session) int { return cmp.Compare(a.id, b.id) })
		for _, s := range all {
			if !yield(s) {
				return
			}
		}
	}
}

// Kill ends the session whose client knows itself by the process id pid, as [Session.Kill] does, and reports whether there was one.
func (p *Proxy) Kill(pid uint32) bool {
	s := p.env.session(pid)
	if s != nil {
		s.Kill()
	}
	return s != nil
}

// Kill ends the session in the middle of whatever it does, as pg_terminate_backend does: its client is told 57P01, unless a message
// is half sent, what runs is cancelled, what is open rolled back, and the server connection made clean or closed. Kill does not wait
// for that. Any goroutine may call it, more than once. A session that is not being served ends without a word.
func (s *Session) Kill() {
	s.mu.Lock()
	if !s.served {
		s.mu.Unlock()
		_ = s.finishNow()
		return
	}
	if !s.axed {
		s.lastWord, s.closing = errShutdown, errShutdown // the latter where it comes to a boundary first
		_ = s.client.conn.SetWriteDeadline(s.env.now().Add(goodbyeLimit))
		if s.srv != nil { // it may be in the middle of a reply: its goroutine says it
			s.srv.link.Interrupt()
		}
	}
	s.mu.Unlock()
	s.interrupt()
}

// sayLastWord tells the client of a session that was killed why, in front of an answer or behind it, and ends the session. It runs on
// the goroutine of sc, which writes to the client while replies are owed, outside of the handler, and reports false where there is
// nothing to say.
func (sc *server) sayLastWord(s *Session) bool {
	s.mu.Lock()
	e := s.lastWord
	if e == nil || s.srv != sc || s.gone {
		s.mu.Unlock()
		return false
	}
	s.lastWord, s.hushed = nil, true
	s.mu.Unlock()
	if sc.body == 0 {
		_, _ = s.link.Write(e.append(nil, "FATAL")) // a client that is gone is its own goroutine's business
	}
	s.end(nil)
	return true
}
