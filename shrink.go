package pgmoor

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"
)

// This file changes the limit of a budget at run time.

// errCut is why a login under way is given up.
var errCut = errors.New("pgmoor: the budget was cut")

// setOwn changes what Config allows to what now makes of it; now must not block.
func (b *budget) setOwn(now func(was int) int) {
	b.mu.Lock()
	b.own = now(b.own)
	b.setLimit()
}

// grant changes what Config.Budget grants.
func (b *budget) grant(n int) {
	b.mu.Lock()
	b.granted = n
	b.setLimit()
}

// setLimit changes the limit to the smaller of both, and unlocks mu. Of connections beyond it those that are idle are closed, and those
// that are in use when they are given back. Waiters get what has become free.
func (b *budget) setLimit() {
	n := b.own
	if b.changed != nil {
		n = min(n, b.granted)
	}
	if n == b.limit {
		b.mu.Unlock()
		return
	}
	b.limit = n
	b.noteSurplusLocked()
	b.noteLocked()
	clear(b.starved) // they try again
	b.starving.Store(0)
	pools := b.poolsLocked()
	b.mu.Unlock()
	b.shed(pools)
	refill(pools)
	if b.surplus.Load() > 0 { // pinned sessions may not need to be
		for _, p := range pools {
			p.nudge()
		}
	}
}

// noteSurplusLocked takes note of how many connections are beyond the limit and not being closed.
func (b *budget) noteSurplusLocked() {
	b.surplus.Store(int32(max(0, b.used-b.shrinking-b.limit)))
}

// mustShrink reports whether there is one connection too many. The caller closes one.
func (b *budget) mustShrink() bool {
	if b.surplus.Load() == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used-b.shrinking <= b.limit {
		return false
	}
	b.shrinking++
	b.noteSurplusLocked()
	return true
}

// keepOne undoes mustShrink for a caller that found none to close.
func (b *budget) keepOne() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shrinking = max(0, b.shrinking-1)
	b.noteSurplusLocked()
}

// shed closes idle connections, as long as there are too many.
func (b *budget) shed(pools []*pool) {
	for b.mustShrink() {
		if b.evictFor(nil, pools) {
			continue
		}
		b.keepOne()
		idle := func(p *pool) bool { return p.spare() > 0 }
		if !slices.ContainsFunc(pools, idle) { // nor did any become idle between the look and keepOne
			return
		}
	}
}

// cut closes what is beyond the limit, in use or not.
func (b *budget) cut() {
	b.mu.Lock()
	pools := b.poolsLocked()
	b.mu.Unlock()
	b.shed(pools)
	for _, p := range pools {
		for _, sc := range p.surplus() {
			sc.kill()
		}
	}
	if b.surplus.Load() > 0 {
		for _, p := range pools {
			p.cutLogins()
		}
	}
}

// surplus returns the pool's connections that are to be closed since there are too many.
func (p *pool) surplus() (out []*server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for sc := range p.open {
		if sc.killed.Load() {
			continue
		}
		if !p.budget.mustShrink() {
			break
		}
		out = append(out, sc)
	}
	return out
}

// cutLogins gives up the logins to the server that are under way.
func (p *pool) cutLogins() {
	p.mu.Lock()
	stop := p.stopLogins
	p.loginsCtx, p.stopLogins = context.WithCancelCause(p.ctx)
	p.mu.Unlock()
	stop(errCut)
}

// loginContext is the context of a login to the server that begins now.
func (p *pool) loginContext() context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.loginsCtx
}

// partLimit bounds how long a server may take to close its side of a connection that the proxy is done with, and partPatience how
// long before it is sent a cancel request for what it may still do.
const (
	partLimit    = time.Second
	partPatience = 100 * time.Millisecond
)

// part closes the connection so that the server is done with it, too, before the budget learns of it: another instance
// may be about to open one in its place. A connection of an Upstream.Dialer that cannot be closed by halves is closed at once.
func (sc *server) part() {
	conn := sc.link.Conn()
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = conn.SetDeadline(sc.pool.env.now().Add(partPatience))
		_ = c.CloseWrite()
		if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
			_ = conn.SetReadDeadline(sc.pool.env.now().Add(partLimit))
			ctx, stop := context.WithTimeout(context.Background(), partLimit)
			_ = sc.pool.env.sendCancel(ctx, sc)
			stop()
			_, _ = io.Copy(io.Discard, conn)
		}
	}
	_ = conn.Close()
}
