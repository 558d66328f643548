package pgmoor

import (
	"bytes"
	"maps"

	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/turn"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file lets a session mend itself whose settings cannot be made any more, because a role that it has SET was dropped for
// example. A request that does nothing but set or reset them runs on a connection without those that it sets or resets: without a
// proxy it would not need them either. That is tried only after the server has refused the settings, since such a connection
// does not report what the client would hear of the change.

// mendable returns a copy of a request that consists of one SET, RESET or DISCARD; nil if it is something else.
func (s *Session) mendable(request []byte) []byte {
	if len(request) > smallRequest || s.mendedBy(request) == nil {
		return nil
	}
	return bytes.Clone(request)
}

// mended returns the settings that sc needs for a request. If they are not all that the session has, the session's messages
// wait for the end of the request.
func (s *Session) mended(request []byte) settings {
	if s.unmade != s.set || s.unmade == (settings{}) {
		return s.set
	}
	in := s.mendedBy(request)
	if in == nil {
		return s.set
	}
	m := s.set.values()
	for _, r := range in.Settings {
		delete(m, r.Name)
	}
	if in.AllSettings {
		discards := in.Effects&sqlscan.Discard != 0
		maps.DeleteFunc(m, func(name, _ string) bool { // RESET ALL keeps the role
			return discards || name != settingRole && name != settingAuthorization
		})
	}
	want := newSettings(m)
	s.mending = want != s.set
	return want
}

// mendedBy returns what is known of a request that consists of one SET, RESET or DISCARD; nil if it is something else.
func (s *Session) mendedBy(request []byte) *sqlscan.Info {
	text, ok := s.loneText(request)
	if !ok || s.opaque {
		return nil
	}
	in := s.env.config().texts.Inspect(text, s.strings)
	if in.Statements != 1 || in.Verb != sqlscan.VerbSet || in.Effects&(sqlscan.UnknownSetting|sqlscan.Unsure) != 0 {
		return nil
	}
	return in
}

// loneText returns the only text that a request runs: that of a Query, or of the unnamed statement, with a Sync behind it.
func (s *Session) loneText(request []byte) (text []byte, ok bool) {
	if s.turn.Unnamed() == turn.UnnamedLast {
		text, ok = parsedText(s.unnamed)
	}
	for b := request; len(b) >= wire.HeaderLen; {
		n, fine := frontendLength(b)
		if !fine || n > len(b) {
			return nil, false
		}
		msg := b[:n]
		b = b[n:]
		switch msg[0] {
		case wire.Query:
			text, _, fine = wire.CString(msg[wire.HeaderLen:])
			return text, fine && len(b) == 0 && len(msg) == len(request)
		case wire.Sync:
			return text, ok && len(b) == 0
		case wire.Parse:
			text, ok = parsedText(msg)
			if len(msg)+len(b) != len(request) { // not the first
				return nil, false
			}
		case wire.Bind, wire.Describe, wire.Execute:
		default:
			return nil, false
		}
	}
	return nil, false
}

// parsedText returns the text of a Parse of the unnamed statement.
func parsedText(msg []byte) ([]byte, bool) {
	if len(msg) <= wire.HeaderLen || msg[wire.HeaderLen] != 0 {
		return nil, false
	}
	text, _, ok := wire.CString(msg[wire.HeaderLen+1:])
	return text, ok
}

// mendedOrNot is called at the end of such a request, and reports whether it has failed: then the connection is given back at once,
// for the session's settings are not on it. Else the server is asked for those that it has set, as ever.
func (s *Session) mendedOrNot(sc *server) (failed bool) {
	s.mending = false
	if !s.failed {
		s.set = sc.set
		return false
	}
	if s.ears != nil && s.ears.dirty { // what the connection listens to is not asked any more
		sc.killed.Store(true)
		s.hears()
	}
	s.dirty, s.allReset, s.cand, s.doubtful, sc.changed = nil, false, 0, false, sc.changed[:0]
	return true
}

// repeatLocked has the request sent once more over which sc was lost, if it may mend what the server refused. The
// session waits for a server connection then.
func (s *Session) repeatLocked(sc *server, l *lostErr) bool {
	again := s.again
	s.again = nil
	if sc.setUpErr == nil {
		return false
	}
	known := s.unmade == s.set // and the request has been tried without
	s.unmade = s.set
	if known || again == nil || l.ready != 1 || l.cut || l.skip || l.body > 0 || !s.pending.empty() {
		return false
	}
	small := smallChunks.Get().(*[smallRequest]byte)
	s.pending = chunk{small: small, size: copy(small[:], again)}
	s.waiting = true
	s.pool.enqueue(s)
	return true
}

// holdBackLocked leaves b with the link until the session's state changes.
func (s *Session) holdBackLocked(b []byte, done int) (int, link.Next) {
	s.held = true
	s.mu.Unlock()
	if len(b)+done >= link.BufferSize {
		return s.leaveFor(leaveHeld, 0)
	}
	return 0, link.Park
}
