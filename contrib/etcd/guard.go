package etcd

import (
	"context"
	"sync"
	"time"

	"github.com/pgmoor/pgmoor"
)

// guard stands between the member and its Proxy: what a lease stands for is granted only as long as the lease certainly lasts, whatever
// the member is waiting for.
type guard struct {
	share *pgmoor.Share
	reset chan struct{} // until has changed; capacity 1

	mu    sync.Mutex
	until time.Time // when to stop using what is leased
	over  bool      // that has been done
	floor int       // usable without a lease
	most  int       // usable of what is leased
}

// allow grants floor connections, and most more while the lease lasts.
func (g *guard) allow(floor, most int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.floor, g.most = floor, most
	g.grantLocked()
}

func (g *guard) grantLocked() {
	if time.Now().Before(g.until) {
		g.share.Grant(g.floor + g.most)
	} else {
		g.share.Grant(g.floor)
	}
}

// extend takes note that the lease lasts until a time at least.
func (g *guard) extend(until time.Time) {
	g.mu.Lock()
	g.until, g.over = until, false
	g.grantLocked()
	g.mu.Unlock()
	select {
	case g.reset <- struct{}{}:
	default:
	}
}

// end closes what is beyond the floor, now.
func (g *guard) end() {
	g.mu.Lock()
	g.until, g.most, g.over = time.Time{}, 0, true
	g.grantLocked()
	g.mu.Unlock()
	g.share.Cut()
}

// expire is end if the time has come. It returns how long the lease lasts; negative if it is over.
func (g *guard) expire() (left time.Duration, ended bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over || g.until.IsZero() {
		return -1, false
	}
	if left = time.Until(g.until); left > 0 {
		return left, false
	}
	g.over = true
	g.grantLocked()
	g.share.Cut()
	return -1, true
}

// watch is the goroutine that sees to the end of the lease.
func (g *guard) watch(ctx context.Context, ended func()) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		left, now := g.expire()
		if now {
			ended()
		}
		if left < 0 {
			left = time.Hour // until reset
		}
		timer.Reset(left)
		select {
		case <-ctx.Done():
			return
		case <-g.reset:
		case <-timer.C:
		}
	}
}

// setFloor changes the floor alone.
func (g *guard) setFloor(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.floor = n
	g.grantLocked()
}
