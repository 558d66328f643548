package pgmoor

import (
	"context"
	"errors"
)

// Budget says how many server connections a [Proxy] may hold, where several instances share what one server has room for.
// [StaticShare] divides a fixed number; contrib/etcd lends shares that follow demand.
type Budget interface {
	// Share grants server connections to the Proxy whose s is, by s.Grant, as long as ctx lasts: nothing is granted before the first
	// call. The Proxy calls it once, when it begins to accept clients, on a goroutine of its own. ctx ends when [Proxy.Close] has
	// closed all server connections, so what was granted may then be given to others; Close waits for Share to return. If it
	// returns before, the last grant stands for good, and an error is logged. s is not to be used after Share has returned.
	// A Budget that has a method Validate() error is asked by [New] whether it can be.
	Share(ctx context.Context, s *Share) error
}

// BudgetFunc is a function that is a [Budget].
type BudgetFunc func(ctx context.Context, s *Share) error

// Share calls f.
func (f BudgetFunc) Share(ctx context.Context, s *Share) error { return f(ctx, s) }

// Share is what a [Budget] knows of the [Proxy] that it grants server connections to, and how it does so. Its methods may be
// called from any goroutine.
type Share struct {
	budget  *budget
	most    int // Config.MaxConnections; 0: as many as granted
	changed chan struct{}
}

// Demand is what a [Proxy] makes of its share at one moment. The fields but Open and Granted are read one pool after the other.
type Demand struct {
	// Granted is what Grant was told last. Where MaxConnections or MaxConnectionsPercent allow less, less is used.
	Granted int
	// Open is how many connections count: those that are open, being opened or being closed. It is not greater than Granted, except
	// while there is surplus from before the last Grant. It never grows beyond Granted, so what an instance can still make use of is the
	// greater of both: only what is beyond that may be granted to another instance.
	Open int
	// Idle is how many of them no client uses.
	Idle int
	// Waiting is how many clients wait for a connection.
	Waiting int
}

// Grant sets how many server connections the Proxy may hold from now on, at most Config.MaxConnections where that is not zero;
// n < 0 counts as 0. More of them wake waiting clients. Where there are more connections than n, those that are idle are closed
// at once, and those that are in use when they are given back, at the end of a transaction or of a pin: Demand tells when that
// has come to pass.
func (s *Share) Grant(n int) {
	n = max(n, 0)
	if s.most > 0 {
		n = min(n, s.most)
	}
	s.budget.grant(n)
}

// Most returns the greatest grant of which the Proxy makes use, Config.MaxConnections; 0 if there is none.
func (s *Share) Most() int { return s.most }

// Cut closes at once what is open beyond the last grant, also connections that clients use, who are told that their
// connection was lost, and logins that are under way. It returns before they are closed, which takes at most a second where the
// server can be reached. It is for a Budget whose grant is about to become somebody else's.
func (s *Share) Cut() { s.budget.cut() }

// Demand returns what the Proxy makes of its share now.
func (s *Share) Demand() Demand { return s.budget.demand() }

// Changed returns a channel that has a value when a connection was opened, closed or wanted in vain since one was last taken from it. How
// many are idle, and how many clients wait, changes without: who wants to follow that asks for Demand from time to time.
func (s *Share) Changed() <-chan struct{} { return s.changed }

// noteLocked tells the Budget, where there is one, that something has changed.
func (b *budget) noteLocked() {
	if b.changed == nil {
		return
	}
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

func (b *budget) demand() Demand {
	b.mu.Lock()
	d := Demand{Granted: b.granted, Open: b.used}
	pools := b.poolsLocked()
	b.mu.Unlock()
	for _, p := range pools {
		p.mu.Lock()
		d.Idle += len(p.idle)
		d.Waiting += p.waiting + len(p.logins)
		p.mu.Unlock()
	}
	return d
}

// newBudget makes the budget that cfg asks for.
func newBudget(cfg *Config) *budget {
	b := &budget{own: cfg.ownLimit(0, 1)}
	if cfg.Budget != nil {
		b.changed = make(chan struct{}, 1)
		return b
	}
	b.limit = b.own
	return b
}

// share is the goroutine of Config.Budget.
func (p *Proxy) share(ctx context.Context) {
	defer p.shares.Done()
	err := p.env.config().Budget.Share(ctx, &Share{budget: p.budget, most: p.env.config().MaxConnections, changed: p.budget.changed})
	switch {
	case ctx.Err() == nil:
		p.env.log.Error("pgmoor: the budget has ended: what it granted last stands", "granted", p.budget.demand().Granted, "err", err)
	case err != nil && !errors.Is(err, context.Canceled):
		p.env.log.Warn("pgmoor: the budget", "err", err)
	}
}

// startShareLocked starts the goroutine of Config.Budget, if there is one.
func (p *Proxy) startShareLocked() {
	if p.env.config().Budget == nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	p.stopShare = stop
	p.shares.Add(1)
	go p.share(ctx)
}

// endShare ends the goroutine of Config.Budget and waits for it. No server connection is open any more.
func (p *Proxy) endShare() {
	p.mu.Lock()
	stop := p.stopShare
	p.mu.Unlock()
	if stop != nil {
		stop()
	}
	p.shares.Wait()
}
