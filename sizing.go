package pgmoor

import (
	"math"
	"slices"
	"time"
)

// This file decides how many connections a pool keeps ready: as many as were used at once in the time just past, and some more
// where that is growing, so that they are there before somebody waits for them. Those are opened with tokens that nobody else wants.

// demand is how many connections of a pool were in use or waited for at once, at most, in each part of a window of time. The
// pool's mu guards it.
type demand struct {
	peaks  [demandParts]int
	at     int // the part that is now
	since  time.Time
	top    int // of all parts
	target int // how many connections are to be open, ahead of need; 0: there are
}

const (
	demandParts  = 8
	demandWindow = 2 * time.Minute
	// aheadOf says how many connections in use have one more opened while use grows.
	aheadOf = 4
)

// noteUseLocked takes note of how many connections are in use and waited for. It is called where that may have grown, and costs a
// comparison unless it has.
func (p *pool) noteUseLocked() {
	n := p.using + p.waiting
	d := &p.use
	if n <= d.peaks[d.at] {
		return
	}
	d.peaks[d.at] = n
	if n <= d.top {
		return
	}
	d.top = n
	if d.target = n + n/aheadOf; p.spareWantedLocked() > 0 {
		p.nudge()
	}
}

// tick moves the window on, and looks whether connections are missing. The sweeper calls it.
func (p *pool) tick(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := &p.use; now.Sub(d.since) >= demandWindow/demandParts {
		d.since = now
		d.at = (d.at + 1) % demandParts
		d.peaks[d.at] = p.using + p.waiting
		d.top = slices.Max(d.peaks[:])
		p.kept = 0
	}
	if p.spareWantedLocked() > 0 {
		p.nudge()
	}
}

// warmLocked returns how many connections are to be open though nobody may need them.
func (p *pool) warmLocked() int {
	if p.refs == 0 || p.welcome == nil {
		return 0
	}
	return p.env.config().MinConnections
}

// spareWantedLocked returns how many connections are to be opened that nobody waits for.
func (p *pool) spareWantedLocked() int {
	if p.env.gate.isShut() {
		return 0
	}
	if p.failing || p.servers >= p.use.target {
		p.use.target = 0
	}
	n := max(p.use.target, p.warmLocked()) - p.servers - max(p.opening, p.waiting+len(p.wishes))
	return min(n, p.env.config().maxOpening()-p.opening)
}

// mayOpenSpareLocked is spareWantedLocked, as far as the budgets have tokens that nobody else wants.
func (p *pool) mayOpenSpareLocked() int {
	n := p.spareWantedLocked()
	if n <= 0 {
		return 0
	}
	for _, b := range p.shares {
		n = min(n, b.room())
	}
	if n = min(n, p.budget.room()); n <= 0 {
		p.use.target = 0
	}
	return n
}

// room returns how many tokens there are that nobody wants.
func (b *budget) room() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limit - b.used - len(b.claims) - len(b.starved)
}

// pastLocked returns how many connections have been idle for t.
func (p *pool) pastLocked(now time.Time, t time.Duration) (n int) {
	for n < len(p.idle) && now.Sub(p.idle[n].idleSince) >= t {
		n++
	}
	return n
}

// retireIdle closes the connections that nobody used for the idle timeout, save for those that may stay.
func (p *pool) retireIdle() {
	t := p.env.config().idleTimeout()
	if t < 0 {
		return
	}
	now := p.env.now()
	p.mu.Lock()
	past := p.pastLocked(now, t)
	p.kept = min(p.kept, past)
	same := past == p.kept
	p.mu.Unlock()
	if same {
		return
	}
	for _, sc := range p.takeSurplus(now, t) {
		sc.kill()
	}
}

// takeSurplus takes those connections away that were idle for t and may not stay. Pools do so in turn, or each would take what is too much
// in all.
func (p *pool) takeSurplus(now time.Time, t time.Duration) []*server {
	p.budget.retiring.Lock()
	defer p.budget.retiring.Unlock()
	surplus := p.budget.idleSurplus(&p.env.config().Config, now, t)
	p.mu.Lock()
	defer p.mu.Unlock()
	past := p.pastLocked(now, t)
	n := max(min(past, surplus, p.servers-p.warmLocked()), 0)
	old := slices.Clone(p.idle[:n])
	p.idle = slices.Delete(p.idle, 0, n)
	p.kept = past - n
	return old
}

// idleSurplus returns how many of the connections that were idle for t are more than may stay, over all pools.
func (b *budget) idleSurplus(c *Config, now time.Time, t time.Duration) int {
	percent := c.maxIdlePercent()
	if percent == 0 {
		return math.MaxInt
	}
	b.mu.Lock()
	most := b.limit * percent / orDefault(c.MaxConnectionsPercent, 100)
	pools := slices.Clone(b.pools)
	b.mu.Unlock()
	for _, p := range pools {
		p.mu.Lock()
		most -= p.pastLocked(now, t)
		p.mu.Unlock()
	}
	return max(-most, 0)
}
