package pgmoor

import (
	"slices"
	"sync"
	"sync/atomic"
)

// budget shares the limit on server connections among the pools of all keys. A token is taken before a dial and given
// back when the socket is closed. A pool that finds no token left gets one from the pool with the most idle connections;
// where none is idle, a pool with less than its fair share has the first claim on a connection of one with more.
type budget struct {
	changed chan struct{} // tells Config.Budget; nil: there is none
	// fair, while somebody has a claim, is the number of connections from which on a pool must give one up; else 0.
	fair atomic.Int32
	// starving is the number of pools that found no token since one was last given back.
	starving atomic.Int32
	// surplus is the number of connections beyond the limit that are not being closed.
	surplus atomic.Int32

	retiring  sync.Mutex // taken by who counts idle connections and takes some away, before any pool's
	mu        sync.Mutex // taken inside a pool's; takes none
	own       int        // what Config allows, see setOwn
	granted   int        // by Config.Budget
	limit     int        // the smaller of both where there is a Budget; changed by setLimit only
	used      int
	yielding  int // connections that were given up for claims and are not closed yet
	shrinking int // connections that were given up for the limit and are not closed yet
	pools     []*pool
	claims    []*pool // oldest first
	starved   map[*pool]struct{}
}

func (b *budget) poolsLocked() []*pool { return slices.Clone(b.pools) }

// take takes a token for p. Where it does not, p is woken when a token is given back.
func (b *budget) take(p *pool) bool {
	b.mu.Lock()
	b.noteLocked()
	free := b.limit - b.used
	first := slices.Index(b.claims, p)
	if free > len(b.claims) || first >= 0 && free > first {
		b.used++
		b.unclaimLocked(p)
		b.mu.Unlock()
		return true
	}
	if b.starved == nil {
		b.starved = make(map[*pool]struct{})
	}
	b.starved[p] = struct{}{}
	b.starving.Store(int32(len(b.starved)))
	pools, limit := b.poolsLocked(), b.limit
	b.mu.Unlock()
	if !b.evictFor(p, pools) { // what is free, if anything, is spoken for
		b.claim(p, pools, limit)
		for _, o := range pools { // their pinned sessions may not need to be
			if o != p {
				o.nudge()
			}
		}
	}
	return false
}

// evictFor makes the pool with the most idle connections give one up.
func (b *budget) evictFor(p *pool, pools []*pool) bool {
	richest, most := (*pool)(nil), 0
	for _, o := range pools {
		if n := o.spare(); n > most && o != p {
			richest, most = o, n
		}
	}
	return richest != nil && richest.evict()
}

// claim gives p a claim if it has less than its fair share.
func (b *budget) claim(p *pool, pools []*pool, limit int) {
	wanting := 0
	for _, o := range pools {
		if o.wanting() {
			wanting++
		}
	}
	fair := limit / max(1, wanting) // 0 where there are more pools than connections: then they take turns
	var sated []*pool               // those that have their share, now that it is smaller
	for _, o := range pools {
		if o.size() >= max(1, fair) {
			sated = append(sated, o)
		}
	}
	if slices.Contains(sated, p) {
		return
	}
	b.mu.Lock()
	had := len(b.claims)
	b.claims = slices.DeleteFunc(b.claims, func(o *pool) bool { return slices.Contains(sated, o) })
	moved := len(b.claims) < had
	if !slices.Contains(b.claims, p) {
		b.claims = append(b.claims, p)
	}
	b.fair.Store(int32(fair) + 1)
	b.mu.Unlock()
	if moved { // what was free and spoken for may be p's now, or that of one behind it
		refill(pools)
	}
}

// unclaim gives p's claim up, and wakes the pools that waited behind it.
func (b *budget) unclaim(p *pool) {
	b.mu.Lock()
	claimed := slices.Contains(b.claims, p)
	b.unclaimLocked(p)
	pools := b.poolsLocked()
	b.mu.Unlock()
	if claimed {
		refill(pools)
	}
}

// disclaim is unclaim for a pool that waits all the same: another opener of its may have found no token here.
func (b *budget) disclaim(p *pool) {
	b.mu.Lock()
	claimed := slices.Contains(b.claims, p)
	b.dropClaimLocked(p)
	pools := b.poolsLocked()
	b.mu.Unlock()
	if claimed {
		refill(pools)
	}
}

func (b *budget) unclaimLocked(p *pool) {
	delete(b.starved, p)
	b.starving.Store(int32(len(b.starved)))
	b.dropClaimLocked(p)
}

func (b *budget) dropClaimLocked(p *pool) {
	if i := slices.Index(b.claims, p); i >= 0 {
		b.claims = slices.Delete(b.claims, i, i+1)
	}
	if len(b.claims) == 0 {
		b.fair.Store(0)
	}
}

// mustYield reports whether a pool with that many connections has to give up the one that has just come back; idle says
// that nobody in the pool waits for it. Each claim costs one connection, and each pool that found no token one that is idle.
func (b *budget) mustYield(p *pool, servers int, idle bool) bool {
	f := b.fair.Load()
	if (f == 0 || !idle && servers < int(f)) && (!idle || b.starving.Load() == 0) {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	others := len(b.claims)
	if slices.Contains(b.claims, p) {
		others--
	}
	if idle { // some may have a claim and try again at the moment, and others have none yet
		for o := range b.starved {
			if o != p && !slices.Contains(b.claims, o) {
				others++
			}
		}
	}
	if b.limit-b.used+b.yielding >= others {
		return false
	}
	b.yielding++
	return true
}

// give gives a token back and wakes the pools that went without.
func (b *budget) give() {
	b.mu.Lock()
	b.used--
	b.yielding = max(0, b.yielding-1)
	b.shrinking = max(0, b.shrinking-1)
	b.noteSurplusLocked()
	b.noteLocked()
	clear(b.starved) // they try again
	b.starving.Store(0)
	pools := b.poolsLocked()
	b.mu.Unlock()
	refill(pools)
}

// usage returns how many tokens are taken, of how many.
func (b *budget) usage() (used, limit int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.limit
}

func refill(pools []*pool) {
	for _, p := range pools {
		p.refill()
	}
}

func (b *budget) add(p *pool) {
	b.mu.Lock()
	b.pools = append(b.pools, p)
	b.mu.Unlock()
}

func (b *budget) remove(p *pool) {
	b.unclaim(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.pools, p); i >= 0 {
		b.pools = slices.Delete(b.pools, i, i+1)
	}
}

// spare returns how many idle connections the pool has.
func (p *pool) spare() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle)
}

// size returns how many connections the pool has or is about to have.
func (p *pool) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.servers + p.dialing
}

// wanting reports whether the pool uses connections or wants some.
func (p *pool) wanting() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.servers > len(p.idle) || p.waiting > 0 || len(p.logins) > 0
}

// refill wakes the keeper of a pool for which the budget had nothing.
func (p *pool) refill() {
	p.mu.Lock()
	starved := p.starved
	p.starved = false
	p.mu.Unlock()
	if starved {
		p.nudge()
	}
}
