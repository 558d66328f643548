package pgmoor

import (
	"maps"
	"math"
)

// This file has the limits for one user and one database, each of which is a budget among the pools that it is about.

// takeSpare takes a token that nobody else wants, for a connection that is to be there before somebody waits for it.
func (b *budget) takeSpare() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit-b.used <= len(b.claims)+len(b.starved) {
		return false
	}
	b.used++
	b.noteLocked()
	return true
}

// undo gives back a token that was of no use, because another budget had none. Only those wake who found none meanwhile: the one
// that undoes waits for the other.
func (b *budget) undo(p *pool) {
	b.mu.Lock()
	b.used--
	b.noteSurplusLocked()
	b.noteLocked()
	delete(b.starved, p)
	var pools []*pool
	for o := range b.starved {
		pools = append(pools, o)
	}
	clear(b.starved)
	b.starving.Store(0)
	b.mu.Unlock()
	refill(pools)
}

// takeToken takes a token of every budget that the pool is part of, the narrower ones first; with spare, only where nobody else
// wants one. Where one budget has none, the pool gives up its claims on those behind it, which it could make no use of. Pools do so one
// after the other, the caller holds budget.taking: who found a token missing that another only gives back would wake the other again in its turn, without an end.
func (p *pool) takeToken(spare bool) bool {
	for i := range len(p.shares) + 1 {
		b := p.budget
		if i < len(p.shares) {
			b = p.shares[i]
		}
		if spare && b.takeSpare() || !spare && b.take(p) {
			continue
		}
		for _, o := range p.shares[:i] {
			o.undo(p)
		}
		if !spare {
			p.disclaimFrom(i + 1)
		}
		return false
	}
	return true
}

// giveToken gives them back.
func (p *pool) giveToken() {
	for _, b := range p.shares {
		b.give()
	}
	p.budget.give()
}

// mustYield reports whether the pool has to give up the connection that has just come back (see budget.mustYield). The caller
// holds mu.
func (p *pool) mustYield(idle bool) bool {
	for _, b := range p.shares {
		if b.mustYield(p, p.servers, idle) {
			return true
		}
	}
	return p.budget.mustYield(p, p.servers, idle)
}

// mustShrink reports whether the pool has to give up the connection that has just come back, since there are too many (see
// budget.mustShrink).
func (p *pool) mustShrink() bool {
	for _, b := range p.shares {
		if b.mustShrink() {
			return true
		}
	}
	return p.budget.mustShrink()
}

// claimed reports whether somebody else may want a connection of the pool's.
func (p *pool) claimed() bool {
	for _, b := range p.shares {
		if b.claimed() {
			return true
		}
	}
	return p.budget.claimed()
}

func (b *budget) claimed() bool { return b.starving.Load() > 0 || b.surplus.Load() > 0 }

// unclaim gives up the pool's claims.
func (p *pool) unclaim() {
	for _, b := range p.shares {
		b.unclaim(p)
	}
	p.budget.unclaim(p)
}

// disclaimFrom gives up the pool's claims on its budgets but for the first i.
func (p *pool) disclaimFrom(i int) {
	for ; i < len(p.shares); i++ {
		p.shares[i].disclaim(p)
	}
	if i == len(p.shares) {
		p.budget.disclaim(p)
	}
}

// shareKey names a budget of one user or one database.
type shareKey struct {
	ofDatabase bool
	name       string
}

func (k *poolKey) shares() [2]shareKey { return [2]shareKey{{false, k.user}, {true, k.database}} }

// limitShare has a budget of one user or one database follow the configuration.
func (e *env) limitShare(k shareKey, b *budget) {
	b.setOwn(func(int) int {
		if k.ofDatabase {
			return orDefault(e.config().MaxConnectionsPerDatabase, math.MaxInt32)
		}
		return orDefault(e.config().MaxConnectionsPerUser, math.MaxInt32)
	})
}

// limitAll has all budgets follow the configuration.
func (p *Proxy) limitAll() {
	p.env.limit(p.budget)
	p.mu.Lock()
	shares := maps.Clone(p.narrow)
	p.mu.Unlock()
	for k, b := range shares {
		p.env.limitShare(k, b)
	}
}

// sharesOf returns the narrower budgets that a new pool is part of. The caller holds mu.
func (p *Proxy) sharesOf(k *poolKey) (all []*budget) {
	for _, k := range k.shares() {
		b := p.narrow[k]
		if b == nil {
			if b = new(budget); p.narrow == nil {
				p.narrow = make(map[shareKey]*budget)
			}
			p.narrow[k] = b
			p.env.limitShare(k, b)
		}
		all = append(all, b)
	}
	return all
}

// join makes a new pool part of its budgets and its account.
func (p *Proxy) join(pl *pool) {
	p.joinAccount(pl)
	for _, b := range pl.shares {
		b.add(pl)
	}
	p.budget.add(pl)
}

// part undoes join, for a pool that is closed or about to be.
func (p *Proxy) part(pl *pool) {
	for _, b := range pl.shares {
		b.remove(pl)
	}
	p.budget.remove(pl)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.partAccount(pl)
	for _, k := range pl.key.shares() {
		if b := p.narrow[k]; b != nil && b.empty() {
			delete(p.narrow, k)
		}
	}
}

func (b *budget) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.pools) == 0
}
