package pgmoor

import (
	"fmt"
	"log/slog"
	"time"
)

// register gives the session its process id, by which cancel requests find it, and counts it.
func (e *env) register(s *Session) {
	number := e.number()
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		if s.pid = e.nextPidLocked(number); e.byPid[s.pid] == nil {
			break
		}
	}
	e.byPid[s.pid] = s
	if s.client.tls != nil {
		e.encrypted++
	}
	e.count.clients.Add(1)
}

// unregister undoes register.
func (e *env) unregister(s *Session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byPid[s.pid] != s {
		return
	}
	delete(e.byPid, s.pid)
	if s.client.tls != nil {
		e.encrypted--
	}
	if len(e.byPid) == 0 && e.empty != nil {
		close(e.empty)
		e.empty = nil
	}
}

// forget takes a session that is over out of the books.
func (e *env) forget(s *Session) {
	e.unregister(s)
	s.pool.unref()
}

// maxReasons bounds how many reasons of policies are counted apart.
const maxReasons = 64

// pinned counts a session that was pinned for a reason, or is no longer.
func (e *env) pinned(reason string, n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, known := e.pins[reason]; !known && len(e.pins) >= maxReasons {
		reason = EffectPolicy.String()
	}
	e.pinnedNow.Add(int32(n))
	c := e.pins[reason]
	c.now += n
	if n > 0 {
		c.total++
	} else {
		e.unpins++
	}
	e.pins[reason] = c
}

// pinCount counts the pins for one reason.
type pinCount struct {
	now   int
	total int64
}

func (e *env) session(pid uint32) *Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.byPid[pid]
}

func (e *env) all() []*Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]*Session, 0, len(e.byPid))
	for _, s := range e.byPid {
		out = append(out, s)
	}
	return out
}

// whenEmpty returns a channel that is closed when no session is left.
func (e *env) whenEmpty() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.byPid) == 0 {
		c := make(chan struct{})
		close(c)
		return c
	}
	if e.empty == nil {
		e.empty = make(chan struct{})
	}
	return e.empty
}

// logAttrs says who a log line is about.
func (s *Session) logAttrs(sc *server) []any {
	out := []any{
		slog.Uint64("session", s.id), slog.String("client", fmt.Sprint(s.client.RemoteAddr())),
		slog.String("user", s.client.user), slog.String("database", s.client.database),
	}
	if sc != nil {
		out = append(out, slog.Uint64("backend", uint64(sc.pid)))
	}
	return out
}

// finishNow ends a session whether it is served or not.
func (s *Session) finishNow() error {
	s.mu.Lock()
	served := s.served
	s.mu.Unlock()
	if served {
		s.end(errShutdown)
		return nil
	}
	return s.Close()
}

// Stats returns a snapshot. It takes the pools' locks one after the other, each for a moment.
func (p *Proxy) Stats() Stats {
	c := &p.env.count
	st := Stats{
		ClientsTotal: c.clients.Load(), ServersOpened: c.servers.Load(), ServersClosed: c.serversClosed.Load(),
		BorrowTimeouts: c.borrowTimeouts.Load(), Cancels: c.cancels.Load(), CancelsPassedOn: c.passedOn.Load(), LoginFailures: c.loginFailures.Load(),
		OpenFailures: c.openFailures.Load(), SettingsMoved: c.setUps.Load(), Verifications: c.verifications.Load(),
		StatementsPrepared: c.stmtsPrepared.Load(), StatementsShared: c.stmtsShared.Load(), StatementsEvicted: c.stmtsEvicted.Load(),
		StatementsHealed: c.stmtsHealed.Load(),
		Listeners:        int(c.listeners.Load()), ListenersLost: c.listenersLost.Load(), Notifications: c.notifications.Load(),
		PinnedBy: map[string]int{}, PinsTotal: map[string]int64{},
	}
	st.Paused = p.env.gate.isShut()
	p.env.stats(&st)
	_, st.ServersGranted = p.budget.usage()
	p.mu.Lock()
	st.Handshaking = len(p.shaking)
	st.Transactions = p.retired
	pools := make([]*pool, 0, len(p.pools))
	for _, pl := range p.pools {
		pools = append(pools, pl)
	}
	p.mu.Unlock()
	for _, pl := range pools {
		pl.stats(&st)
	}
	return st
}

func (e *env) stats(st *Stats) {
	e.mu.Lock()
	defer e.mu.Unlock()
	st.Clients, st.ClientsTLS = len(e.byPid), e.encrypted
	st.Unpins = e.unpins
	for reason, c := range e.pins {
		if c.now > 0 {
			st.PinnedBy[reason] = c.now
			st.Pinned += c.now
		}
		st.PinsTotal[reason] = c.total
	}
}

func (p *pool) stats(st *Stats) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st.Waiting += p.waiting
	if p.first != nil {
		st.OldestWait = max(st.OldestWait, p.env.now().Sub(p.first.queuedAt))
	}
	st.Servers += p.servers + p.dialing
	st.ServersIdle += len(p.idle)
	st.Transactions += p.lent
}

// waitHintLocked is what a client is told that waited since then in vain, with so many others.
func (p *pool) waitHintLocked(since time.Time, others int) string {
	hint := ""
	if waited := p.env.now().Sub(since).Round(time.Millisecond); waited > 0 {
		hint = fmt.Sprintf("Waited for %v; others waiting: %d. ", waited, others)
	}
	used, limit := p.budget.usage()
	switch {
	case limit == 0 && used == 0:
		return hint + "This instance was granted no server connection: see Config.Budget."
	case (p.failing || p.env.config().up.logins.unreachable()) && !p.starved:
		return hint + "Logging in to the server failed: see the proxy's log."
	case used < limit || p.dialing > 0 && !p.starved:
		return hint + fmt.Sprintf("%d of %d server connections are open or being opened: logging in to the server takes its time.", used, limit)
	}
	hint += fmt.Sprintf("All %d of %d server connections are in use", used, limit)
	if n := p.env.pinnedSessions(); n > 0 {
		hint += fmt.Sprintf(", kept by pinned sessions: %d, see docs/pinning.md", n)
	}
	return hint + "."
}

func (e *env) pinnedSessions() (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.pins {
		n += c.now
	}
	return n
}
