package pgmoor

import (
	"container/list"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// This file bounds the logins that are under way at each host, over all pools, and keeps from hosts that cannot be reached: one
// login at a time tries such a host, after a pause.

// Back-off between failed logins.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
)

// backOff returns the next back-off, and how long to pause: about as long, so that those who failed together do not try together.
func backOff(last time.Duration) (next, pause time.Duration) {
	next = min(max(2*last, minBackoff), maxBackoff)
	return next, next/2 + rand.N(next)
}

// logins lets logins in, in the order in which they came. An Update that changes the hosts puts others in their place.
type logins struct {
	moved chan struct{} // closed when there are others in their place

	mu    sync.Mutex
	limit int       // for each host
	hosts []host    // as Upstream.Hosts
	queue list.List // of chan struct{}, capacity 1: logins that wait, of which the first looks for a host
}

// host is what is known of one of the servers.
type host struct {
	busy    int  // logins under way
	down    bool // the latest that ended could not reach it
	backoff time.Duration
	retryAt time.Time
}

// ticket is one login's permission to be under way at a host. Its owner calls leave when it is over.
type ticket struct {
	logins *logins
	host   int
}

func newLogins(hosts, limit int) *logins {
	return &logins{moved: make(chan struct{}), limit: limit, hosts: make([]host, hosts)}
}

// setLimit changes how many logins may be under way at a host.
func (g *logins) setLimit(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = n
	g.wakeLocked()
}

// enter waits until a login may begin. It begins at the first host that can be reached, as far as is known.
func (g *logins) enter(ctx context.Context) (*ticket, error) {
	wake := make(chan struct{}, 1)
	g.mu.Lock()
	place := g.queue.PushBack(wake)
	for {
		pause := time.Duration(-1)
		if g.queue.Front() == place {
			var h int
			if h, pause = g.findLocked(time.Now()); h >= 0 {
				g.hosts[h].busy++
				g.removeLocked(place)
				g.mu.Unlock()
				return &ticket{g, h}, nil
			}
		}
		g.mu.Unlock()
		err := g.await(ctx, wake, pause)
		g.mu.Lock()
		if err != nil {
			g.removeLocked(place)
			g.mu.Unlock()
			return nil, err
		}
	}
}

// errMoved is why a login does not begin.
var errMoved = errors.New("pgmoor: Config.Upstream.Hosts was changed")

// await waits to be woken, for a time, for ever if that is negative, or until ctx ends or the hosts are others, which is an error.
func (g *logins) await(ctx context.Context, wake <-chan struct{}, d time.Duration) error {
	var after <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-wake:
	case <-after:
	case <-g.moved:
		return errMoved
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// findLocked returns the host that a login goes to first, or -1 and how long to wait for one; negative until a login ends.
func (g *logins) findLocked(now time.Time) (i int, pause time.Duration) {
	pause = -1
	for i := range g.hosts {
		switch h := &g.hosts[i]; {
		case !h.down && h.busy < g.limit, h.down && h.busy == 0 && !now.Before(h.retryAt):
			return i, 0
		case !h.down: // its turn comes; the next host is for when this one is down
			return -1, pause
		case h.busy == 0:
			if d := h.retryAt.Sub(now); pause < 0 || d < pause {
				pause = d
			}
		}
	}
	return -1, pause
}

// removeLocked takes a login out of the queue, and has the first look.
func (g *logins) removeLocked(place *list.Element) {
	g.queue.Remove(place)
	g.wakeLocked()
}

func (g *logins) wakeLocked() {
	if first := g.queue.Front(); first != nil {
		select {
		case first.Value.(chan struct{}) <- struct{}{}:
		default:
		}
	}
}

// unreachable reports whether no host can be reached, as far as is known.
func (g *logins) unreachable() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.hosts {
		if !g.hosts[i].down {
			return false
		}
	}
	return true
}

var errHostDown = errors.New("not tried: it could not be reached a moment ago")

// move goes on to another host, after the one before did not let the login in, and waits for its turn there, in front of those that
// are under way nowhere yet. Hosts are gone through in order, so that no two wait for each other.
func (t *ticket) move(ctx context.Context, to int) error {
	if to == t.host {
		return nil
	}
	t.verdict(false)
	g := t.logins
	g.mu.Lock()
	defer g.mu.Unlock()
	for h := &g.hosts[to]; ; {
		switch {
		case h.down && (h.busy > 0 || time.Now().Before(h.retryAt)):
			return errHostDown
		case h.busy < g.limit:
			g.hosts[t.host].busy--
			h.busy++
			t.host = to
			g.wakeLocked()
			return nil
		}
		wake := make(chan struct{}, 1)
		place := g.queue.PushFront(wake)
		g.mu.Unlock()
		err := g.await(ctx, wake, -1)
		g.mu.Lock()
		g.removeLocked(place)
		if err != nil {
			return err
		}
	}
}

// verdict takes note whether the host could be reached.
func (t *ticket) verdict(reached bool) {
	g := t.logins
	g.mu.Lock()
	defer g.mu.Unlock()
	h := &g.hosts[t.host]
	if reached {
		if h.backoff = 0; h.down { // others need not wait until this login is over: Config.InitQuery is still to come
			h.down = false
			g.wakeLocked()
		}
		return
	}
	var pause time.Duration
	if now := time.Now(); !h.down || !now.Before(h.retryAt) { // once for those that failed together
		h.backoff, pause = backOff(h.backoff)
		h.down, h.retryAt = true, now.Add(pause)
	}
}

// leave ends the login.
func (t *ticket) leave() {
	g := t.logins
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hosts[t.host].busy--
	g.wakeLocked()
}
