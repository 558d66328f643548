package pgmoor

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strconv"
	"time"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file makes process ids mean what they mean without a proxy. A client knows its session by the process id of its cancel
// key, which no server process has (firstPid and above). Where a statement that passes through the proxy names such an
// id to one of the functions that take a process id, it is replaced, digit by digit, by that of the server connection which
// the session in question holds at that moment. A session that holds none is not blocked and blocks nobody; one that is
// to be terminated or cancelled lends its name to an idle server connection, so that the server decides who may.

// targetedFor is how long a session that another one was about to terminate takes the end of its server for that.
const targetedFor = 10 * time.Second

// translate replaces the process ids of sessions in the text of a statement about processes.
func (s *Session) translate(text []byte, signals bool) {
	for i := 0; i < len(text); {
		n := digits(text[i:])
		if n == 0 {
			i++
			continue
		}
		if n >= len(strconv.Itoa(firstPid)) && (i == 0 || !isWordByte(text[i-1])) {
			if v, err := strconv.ParseUint(string(text[i:i+n]), 10, 32); err == nil {
				if real, ok := s.realPid(uint32(v), signals); ok {
					putDigits(text[i:i+n], real)
				}
			}
		}
		i += n
	}
}

// signals reports whether the text of a statement, with a zero byte behind it, calls a function that sends a signal to a
// process.
func (s *Session) signals(text []byte) bool {
	t, _, _ := wire.CString(text)
	return sqlscan.Mentions(t, s.strings, "pg_terminate_backend", "pg_cancel_backend")
}

// maySignal reports whether a signal of s for t is worth a server connection: PostgreSQL lets users end their own
// sessions, and superusers all. What it lets others do ends with what they can reach without the proxy's help.
func (s *Session) maySignal(t *Session) bool {
	a, b := s.pool.key, t.pool.key
	return a.user == b.user && a.database == b.database || s.srv != nil && s.srv.base["is_superuser"] == "on"
}

// digits returns how many digits b begins with.
func digits(b []byte) int {
	n := 0
	for n < len(b) && b[n] >= '0' && b[n] <= '9' {
		n++
	}
	return n
}

func isWordByte(c byte) bool {
	return c == '_' || c == '$' || c == '.' || c >= 0x80 || c|0x20 >= 'a' && c|0x20 <= 'z'
}

// putDigits writes n in decimal with leading zeros.
func putDigits(dst []byte, n uint32) {
	for i := len(dst) - 1; i >= 0; i-- {
		dst[i] = '0' + byte(n%10)
		n /= 10
	}
}

// realPid returns the process id of the server connection that the session known as pid holds, or that stands for it; 0 if there
// is none. ok is false if there is no such session. signals says that it is wanted for a signal.
func (s *Session) realPid(pid uint32, signals bool) (real uint32, ok bool) {
	if pid < firstPid {
		return 0, false
	}
	t := s.env.session(pid)
	if t == nil {
		return 0, false
	}
	if s.seeks {
		s.lacks = signals && s.maySignal(t) && !s.gaveUp && t.pool.wants(t, s) || s.lacks
		return 0, false
	}
	if signals = signals && s.maySignal(t); signals {
		t.targeted.Store(s.env.now().UnixNano())
	}
	if signals {
		return t.pool.standIn(t), true
	}
	return t.backend.Load(), true
}

// namePid replaces, in a NotificationResponse, the process id of a server connection by that of the session which holds it or
// held it last.
func (e *env) namePid(msg []byte) {
	if len(msg) < wire.HeaderLen+4 {
		return
	}
	if sc, ok := e.backends.Load(binary.BigEndian.Uint32(msg[wire.HeaderLen:])); ok {
		if pid := sc.(*server).holder.Load(); pid != 0 {
			binary.BigEndian.PutUint32(msg[wire.HeaderLen:], pid)
		}
	}
}

// endsItself takes note that a session is about to send a signal to its own server connection.
func (s *Session) endsItself(text []byte) {
	if t, _, _ := wire.CString(text); s.signals(text) && sqlscan.Mentions(t, s.strings, "pg_backend_pid") {
		s.targeted.Store(s.env.now().UnixNano())
	}
}

// isTargeted reports whether another session was about to terminate this one a moment ago.
func (s *Session) isTargeted() bool {
	at := s.targeted.Load()
	return at != 0 && s.env.now().UnixNano()-at < int64(targetedFor)
}

// standIn returns the process id of the server connection that stands for t from now on: the one that t holds, or an idle one. If the
// server ends that connection, t ends, and what t asks for meanwhile is run there; nobody else gets it, who might be hit in t's
// place. 0 if none is idle.
func (p *pool) standIn(t *Session) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if sc, ok := p.env.backends.Load(t.backend.Load()); ok { // it is given back under mu, after backend was cleared
		sc.(*server).standFor(t)
		return sc.(*server).pid
	}
	if sc := t.standIn.Load(); sc != nil && !sc.ended.Load() && p.env.now().Before(sc.standsUntil) {
		return sc.pid
	}
	if t.departed.Load() {
		return 0
	}
	n := len(p.idle)
	if n == 0 {
		return 0
	}
	sc := p.idle[n-1]
	p.idle = p.idle[:n-1]
	sc.standFor(t)
	sc.standBy(t)
	return sc.pid
}

// standFor makes sc stand for t. The caller holds pool.mu.
func (sc *server) standFor(t *Session) {
	sc.standsFor.Store(t)
	sc.standsUntil = sc.pool.env.now().Add(targetedFor)
}

// A wish is that a server connection, which none was idle to do, stands for a session because of a message that waits for it.
type wish struct {
	t, by *Session
	until time.Time
}

// standInPatience is how long a message waits for a server connection to stand for a session.
const standInPatience = time.Second

// wants reports whether no connection stands for t or could from now on. Then by is told when one does, or when none will.
func (p *pool) wants(t, by *Session) bool {
	if p.standIn(t) != 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	if slices.ContainsFunc(p.wishes, func(w wish) bool { return w.t == t && w.by == by }) {
		return true
	}
	p.wishes = append(p.wishes, wish{t: t, by: by, until: p.env.now().Add(standInPatience)})
	p.nudge()
	return true
}

// fulfilLocked has sc, which is free, stand for the session for which that has been wished for longest, if for any. It returns who is to
// be told.
func (p *pool) fulfilLocked(sc *server) (of []*Session, used bool) {
	for len(p.wishes) > 0 && !used {
		w := p.wishes[0]
		if p.wishes = p.wishes[1:]; len(p.wishes) == 0 {
			p.wishes = nil
		}
		of = append(of, w.by)
		if used = !w.t.departed.Load() && !w.by.departed.Load() && w.t.standIn.Load() == nil && w.t.backend.Load() == 0; used {
			sc.standFor(w.t)
			sc.standBy(w.t)
		}
	}
	return of, used
}

// fulfils is fulfilLocked that tells whom it concerns, for which mu is given up in between. Where it has used sc it does not take mu again.
func (p *pool) fulfils(sc *server) (used bool) {
	of, used := p.fulfilLocked(sc)
	p.mu.Unlock()
	for _, s := range of {
		s.sought(false)
	}
	if !used {
		p.mu.Lock()
	}
	return used
}

// giveUpLocked takes out the wishes that are not fulfilled by a time, and returns whose they are.
func (p *pool) giveUpLocked(by time.Time) (of []*Session) {
	for len(p.wishes) > 0 && !by.Before(p.wishes[0].until) {
		of = append(of, p.wishes[0].by)
		p.wishes = p.wishes[1:]
	}
	return of
}

// sought ends the session's wait for a connection that stands for another one.
func (s *Session) sought(inVain bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds&holdStandIn != 0 {
		s.gaveUp = inVain
		s.goOn(holdStandIn)
	}
}

// seek makes a message wait whose signals, which f translates, are for sessions that hold no server connection, until one stands for each
// of them. The caller holds mu.
func (s *Session) seek(f func()) stop {
	s.seeks, s.lacks = true, false
	f()
	if s.seeks = false; s.lacks {
		return s.hold(holdStandIn)
	}
	s.gaveUp = false
	return stopNot
}

// seekIn is seek for a text, with a zero byte behind it, of which a is known.
func (s *Session) seekIn(a act, text []byte) stop {
	if !aboutPids(a.info) || !s.signals(text) {
		return stopNot
	}
	return s.seek(func() { s.translate(text, true) })
}

// standBy has sc wait for t, or for its end.
func (sc *server) standBy(t *Session) {
	sc.spent.Store(true)
	_ = sc.link.Conn().SetReadDeadline(sc.standsUntil)
	t.standIn.Store(sc)
}

// stands returns the session for which sc, free again, goes on standing. The caller holds pool.mu.
func (sc *server) stands() *Session {
	t := sc.standsFor.Load()
	if t != nil && (t.departed.Load() || !sc.pool.env.now().Before(sc.standsUntil)) {
		sc.standsFor.Store(nil)
		sc.spent.Store(true) // a signal may still be on its way to it, which is not meant for anybody else
		return nil
	}
	return t
}

// lapsed reports whether sc has stood by for long enough, and if so takes it away from the session that might still use it. Where it goes
// on, the deadline for that may have been lost to an interruption and is set anew. serve calls it.
func (sc *server) lapsed() bool {
	if !sc.spent.Load() {
		return false
	}
	p := sc.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	t := sc.standsFor.Load()
	switch {
	case t == nil || t.standIn.Load() != sc:
		return false
	case p.env.now().Before(sc.standsUntil):
		_ = sc.link.Conn().SetReadDeadline(sc.standsUntil)
		return false
	}
	return t.standIn.CompareAndSwap(sc, nil)
}

// lend takes a server connection for the session's request, or queues for one.
func (s *Session) lend() *server {
	if s.standIn.Load() == nil || s.env.gate.isShut() {
		return s.pool.borrow(s)
	}
	sc := s.standIn.Swap(nil)
	if sc == nil || sc.ended.Load() {
		return s.pool.borrow(s)
	}
	_ = sc.link.Conn().SetReadDeadline(time.Time{})
	return sc
}

// mourn ends the session for which sc stood, where the server ended sc because somebody asked for it.
func (sc *server) mourn(msg []byte) {
	if t := sc.standsFor.Load(); t != nil && msg[0] == wire.ErrorResponse &&
		string(wire.ErrorField(msg[wire.HeaderLen:], 'C')) == codeAdminShutdown {
		t.end(errShutdown)
	}
}

// pidStatement is a named statement about processes: which process ids its text has to hold changes from use to use.
type pidStatement struct {
	parse   []byte // the client's Parse
	sent    []byte // as it was sent last
	signals bool
	sure    bool // no error came between the Parse and the next time at rest
}

// maxPidStatement bounds the size of a statement in which process ids are looked for.
const maxPidStatement = 4 << 10

// maxPidStatements bounds how many of a session's statements are kept up to date.
const maxPidStatements = 16

// parsePids translates the text in a whole Parse of a statement about processes, and remembers a named one.
func (s *Session) parsePids(msg []byte) {
	name, text, ok := wire.CString(msg[wire.HeaderLen:])
	if !ok {
		return
	}
	if len(msg) > maxPidStatement {
		return
	}
	st := &pidStatement{parse: bytes.Clone(msg), signals: s.signals(text)}
	s.endsItself(text)
	s.translate(text, st.signals)
	st.sent = bytes.Clone(msg)
	if s.pidNames == nil {
		s.pidNames = make(map[string]*pidStatement)
	}
	if _, known := s.pidNames[string(name)]; known || len(s.pidNames) < maxPidStatements {
		s.pidNames[string(name)] = st
	}
}

// forgetPids takes note that a name, empty for the unnamed statement, is about to mean another statement, or none. What a
// later Parse says of it is remembered anew.
func (s *Session) forgetPids(name []byte) {
	if s.pidNames != nil {
		delete(s.pidNames, string(name))
	}
}

// forgetClosed is forgetPids for the statement that a Close names.
func (s *Session) forgetClosed(msg []byte) {
	if len(msg) > wire.HeaderLen && msg[wire.HeaderLen] == 'S' {
		if name, _, ok := wire.CString(msg[wire.HeaderLen+1:]); ok {
			s.forgetPids(name)
		}
	}
}

// settlePids forgets, after an error, the statements that may not have come to be: those prepared since the session was at
// rest. Without one they are there from now on.
func (s *Session) settlePids(failed bool) {
	for name, st := range s.pidNames {
		if failed && !st.sure {
			delete(s.pidNames, name)
		}
		st.sure = true
	}
}

// bindPids sees to the process ids in a whole Bind and in the statement that it uses.
func (s *Session) bindPids(msg []byte, first bool) stop {
	_, rest, ok := wire.CString(msg[wire.HeaderLen:])
	if !ok {
		return stopNot
	}
	name, _, ok := wire.CString(rest)
	st := s.pidNames[string(name)]
	if !ok || st == nil {
		return stopNot
	}
	if st.signals {
		if why := s.seek(func() { s.translateBound(msg, true) }); why != stopNot {
			return why
		}
	}
	if why := s.renew(name, st, first); why != stopNot {
		return why
	}
	s.translateBound(msg, st.signals)
	return stopNot
}

// renew puts a new Parse in front of a Bind to a statement about processes whose process ids have changed.
func (s *Session) renew(name []byte, st *pidStatement, first bool) stop {
	now := bytes.Clone(st.parse)
	if _, text, ok := wire.CString(now[wire.HeaderLen:]); ok {
		s.translate(text, st.signals)
	}
	if len(name) == 0 || bytes.Equal(now, st.sent) {
		return stopNot
	}
	if !first {
		return stopPrime
	}
	st.sent = now
	s.prefix = wire.AppendHeader(s.prefix, wire.Close, len(name)+2)
	s.prefix = append(append(append(s.prefix, 'S'), name...), 0)
	s.prefix = append(s.prefix, now...)
	s.turn.InjectClose()
	s.turn.InjectParse(false)
	return stopNot
}

// translateBound replaces the process ids of sessions among the parameters of a whole Bind, in place.
func (s *Session) translateBound(msg []byte, signals bool) {
	_, b, _ := wire.CString(msg[wire.HeaderLen:])
	_, b, ok := wire.CString(b)
	if !ok || len(b) < 2 {
		return
	}
	formats := int(binary.BigEndian.Uint16(b))
	if len(b) < 4+2*formats {
		return
	}
	codes, b := b[2:2+2*formats], b[2+2*formats:]
	count := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	for i := 0; i < count && len(b) >= 4; i++ {
		l := int(int32(binary.BigEndian.Uint32(b)))
		b = b[4:]
		if l < 0 {
			continue
		}
		if l > len(b) {
			return
		}
		s.translateValue(b[:l], formatOf(codes, i), signals)
		b = b[l:]
	}
}

// formatOf returns the format of parameter i of a Bind, 1 being binary.
func formatOf(codes []byte, i int) uint16 {
	switch {
	case len(codes) == 0:
		return 0
	case len(codes) == 2:
		i = 0
	case len(codes) < 2*i+2:
		return 0
	}
	return binary.BigEndian.Uint16(codes[2*i:])
}

func (s *Session) translateValue(v []byte, format uint16, signals bool) {
	switch {
	case format == 0:
		s.translate(v, signals)
	case len(v) == 4:
		if real, ok := s.realPid(binary.BigEndian.Uint32(v), signals); ok {
			binary.BigEndian.PutUint32(v, real)
		}
	case len(v) > 20 && binary.BigEndian.Uint32(v[8:]) == oidInt4:
		s.translateArray(v, signals)
	case len(v) == 8 && binary.BigEndian.Uint64(v) < 1<<31:
		if real, ok := s.realPid(uint32(binary.BigEndian.Uint64(v)), signals); ok {
			binary.BigEndian.PutUint64(v, uint64(real))
		}
	}
}

// oidInt4 is the type of process ids.
const oidInt4 = 23

// translateArray is translateValue for an array of integers in binary format: dimensions, whether there are nulls, and the type, then the length
// and lower bound of each dimension, then the elements, each behind its length.
func (s *Session) translateArray(v []byte, signals bool) {
	dimensions := uint64(binary.BigEndian.Uint32(v))
	if dimensions > 6 || uint64(len(v)) < 12+8*dimensions {
		return
	}
	for v = v[12+8*dimensions:]; len(v) >= 4; {
		l := int(int32(binary.BigEndian.Uint32(v)))
		v = v[4:]
		switch {
		case l < 0:
			continue
		case l != 4 || l > len(v):
			return
		}
		s.translateValue(v[:l], 1, signals)
		v = v[l:]
	}
}

// aboutPids reports whether a statement is about processes.
func aboutPids(in *sqlscan.Info) bool { return in != nil && in.Effects&sqlscan.Pid != 0 }
