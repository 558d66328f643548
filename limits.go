package pgmoor

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// This file keeps clients and server connections to their numbers and ages. Ages are looked at by the sweeper: no message costs a
// timer or a look at the clock for them.

// admission counts the clients that may come in.
type admission struct {
	mu      sync.Mutex
	clients int
	tokens  float64
	filled  time.Time // when tokens was right
}

// enter lets a client in, or says why not. The caller calls leave when a client that was let in is gone.
// There may be most clients, and rate more each second; 0: any number.
func (a *admission) enter(now time.Time, most, rate int) *Error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if most > 0 && a.clients >= most {
		return &Error{
			Severity: "FATAL", Code: codeTooManyConnections, Message: fmt.Sprintf("the maximum number of client connections to the proxy exceeded %d", most),
			Hint: "Connect again when others have left, or raise Config.MaxClients.",
		}
	}
	if rate > 0 {
		if a.filled.IsZero() {
			a.tokens = float64(rate)
		} else {
			a.tokens = min(float64(rate), a.tokens+now.Sub(a.filled).Seconds()*float64(rate))
		}
		if a.filled = now; a.tokens < 1 {
			return &Error{
				Severity: "FATAL", Code: codeTooManyConnections, Message: fmt.Sprintf("the rate of connections to the proxy exceeded %d per second", rate),
				Hint: "Connect again in a moment, or keep connections open for longer.",
			}
		}
		a.tokens--
	}
	a.clients++
	return nil
}

func (a *admission) leave() {
	a.mu.Lock()
	a.clients--
	a.mu.Unlock()
}

// admit counts a client that is about to authenticate, or refuses it.
func (p *Proxy) admit(c *Client, cfg *live) error {
	if e := p.env.admission.enter(p.env.now(), cfg.MaxClients, cfg.ConnectionRate); e != nil {
		return e
	}
	c.admitted.Store(true)
	return nil
}

// discharge undoes admit for a client that is gone.
func (e *env) discharge(c *Client) {
	if c.admitted.Swap(false) {
		e.admission.leave()
	}
}

var (
	errIdleClient = &Error{
		Severity: "FATAL", Code: codeIdleSession, Message: "terminating connection due to idle-session timeout",
		Hint: "The proxy disconnects clients that send nothing for long: see Config.IdleClientTimeout.",
	}
	errOldClient = &Error{
		Severity: "FATAL", Code: codeAdminShutdown, Message: "terminating connection because it has been open for too long",
		Hint: "Connect again: the proxy disconnects clients of a certain age, see Config.MaxClientLifetime.",
	}
)

// age ends the session if its client is too old, or has been idle for too long. The sweeper calls it, before sweep.
func (s *Session) age(now time.Time) {
	cfg := s.env.config()
	s.mu.Lock()
	if !s.served || s.axed {
		s.mu.Unlock()
		return
	}
	if s.touched.Load() || s.busyLocked() {
		s.activeAt = now
	}
	idle, life := cfg.idleClientTimeout(), cfg.maxClientLifetime()
	switch {
	case idle > 0 && now.Sub(s.activeAt) >= idle:
		s.axed, s.closing = true, errIdleClient // a request that comes from here on is not sent any more
	case life > 0 && now.Sub(s.bornAt) >= life && !s.expired && s.closing == nil:
		s.expired, s.closing = true, errOldClient
	default:
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	s.interrupt()
}

// busyLocked reports whether the client waits for something.
func (s *Session) busyLocked() bool {
	return s.waiting || s.sending || s.finishing || s.writing || s.holds&holdPaused != 0 || s.turn.Owed() || s.lostErr != nil || s.waitErr != nil
}

// retireAt returns when a connection that is opened now is too old; zero: never.
func (e *env) retireAt() time.Time {
	life := e.config().maxServerLifetime()
	if life <= 0 {
		return time.Time{}
	}
	return e.now().Add(life - rand.N(life/10+1))
}

// age retires the connections that are too old: those that are idle now, the others when they are given back.
func (p *pool) age(now time.Time) {
	var old []*server
	p.mu.Lock()
	for sc := range p.open {
		if !sc.retireAt.IsZero() && !now.Before(sc.retireAt) && !sc.aged.Swap(true) && p.dropIdleLocked(sc) {
			old = append(old, sc)
		}
	}
	p.mu.Unlock()
	for _, sc := range old {
		sc.kill()
	}
}

// ageAll is the sweeper's look at all pools.
func (p *Proxy) ageAll(now time.Time) {
	for _, pl := range p.allPools() {
		pl.age(now)
		pl.tick(now)
	}
}

// full returns the error of a request or a login for which there is no room in the queue any more, or nil. The caller holds mu.
func (p *pool) fullLocked() *Error {
	most := p.env.config().MaxWaiting
	if most == 0 || p.waiting+len(p.logins) < most {
		return nil
	}
	return &Error{
		Code: codeTooManyConnections, Message: fmt.Sprintf("too many clients wait for a database connection: %d", most),
		Hint: p.waitHintLocked(p.env.now(), p.waiting+len(p.logins)),
	}
}
