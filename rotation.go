package pgmoor

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// This file is about servers that are logged in to while the password of a user is changed.

// Refresher is a [SecretSource] that remembers what it was told, as [CachedSecrets] does, and can ask anew.
type Refresher interface {
	SecretSource
	// Refresh is called when somebody has refused what the source gave last: a server the proxy's login, or the proxy a
	// client's, which may know of a change before the source does. It asks anew, unless that was done a moment ago, and returns
	// what the user's secret is then.
	Refresh(ctx context.Context, user string) (Secret, error)
}

// staticLine stands for all StaticSecrets: an Update puts one in the place of another.
var staticLine any = new(byte)

// secret returns the zero Secret where none is known.
func (u *upstream) secret(ctx context.Context, user string) (Secret, error) {
	if u.secrets == nil {
		return Secret{}, nil
	}
	s, err := lookup(ctx, u.secrets, user)
	if _, static := u.secrets.(StaticSecrets); static && err == nil {
		s = s.toldBy(staticLine)
	}
	return s, err
}

// withSecret logs in as a user by logIn: with what the source says, once more if it says something else when it is asked anew, and then
// with what that was before. The Secret is the one that the server took, or the one that it refused first.
func (u *upstream) withSecret(ctx context.Context, user string, logIn func(Secret) error) (Secret, error) {
	secret, err := u.secret(ctx, user)
	if err != nil {
		return secret, err
	}
	err = logIn(secret)
	if !isRefusedPassword(err) {
		return secret, err
	}
	tried := []Secret{secret}
	for _, other := range u.others(ctx, user, secret) {
		if _, clear := other.password(); !clear || contains(tried, other) {
			continue
		}
		if err := logIn(other); !isRefusedPassword(err) {
			return other, err
		}
		tried = append(tried, other)
	}
	return secret, err
}

// others returns what is tried where a server has refused the secret, in order.
func (u *upstream) others(ctx context.Context, user string, refused Secret) []Secret {
	r, ok := u.secrets.(Refresher)
	if !ok {
		return []Secret{refused.previous()}
	}
	fresh, err := r.Refresh(ctx, user)
	if err != nil { // the source says so itself, or the server's words are the better ones
		fresh = Secret{}
	}
	return []Secret{fresh.alone(), fresh.previous(), refused.previous()}
}

func contains(all []Secret, s Secret) bool {
	for _, o := range all {
		if o.same(s) {
			return true
		}
	}
	return false
}

// refreshTime bounds what is done for a client that is gone already.
const refreshTime = 10 * time.Second

// doubt has the source asked anew whether the password that a client did not know is still the right one: the client may know of a
// change before the source does, and its next attempt then succeeds. The client has its answer: time does not tell it anything.
func (p *Proxy) doubt(c *Client, err error) {
	r, ok := p.env.config().Secrets.(Refresher)
	var e *Error
	if !ok || !errors.As(err, &e) || e.Code != codeBadPassword || c.local {
		return
	}
	if _, busy := p.doubted.LoadOrStore(c.user, struct{}{}); busy { // a source that hangs is not to keep more places of Config.MaxHandshakes
		return
	}
	defer p.doubted.Delete(c.user)
	ctx, cancel := context.WithTimeout(p.ctx, refreshTime)
	defer cancel()
	_, _ = r.Refresh(ctx, c.user)
}

// account is what all pools of one user have in common: the secret with which the server let the latest of them in.
type account struct {
	era atomic.Uint64 // server connections that were opened in an earlier one are not lent any more

	mu     sync.Mutex // may be taken inside a pool's or the Proxy's; takes none
	latest Secret     // none: nobody was let in yet
	pools  map[*pool]struct{}
}

// accountOf returns the account that a new pool is part of. The caller holds mu.
func (p *Proxy) accountOf(k *poolKey) *account {
	a := p.accounts[k.user]
	if a == nil {
		if a = (&account{pools: make(map[*pool]struct{})}); p.accounts == nil {
			p.accounts = make(map[string]*account)
		}
		p.accounts[k.user] = a
	}
	return a
}

// joinAccount makes a new pool part of its account. The caller holds mu.
func (p *Proxy) joinAccount(pl *pool) {
	pl.account.mu.Lock()
	defer pl.account.mu.Unlock()
	pl.account.pools[pl] = struct{}{}
}

// partAccount undoes joinAccount. The caller holds mu.
func (p *Proxy) partAccount(pl *pool) {
	a := pl.account
	a.mu.Lock()
	defer a.mu.Unlock()
	if delete(a.pools, pl); len(a.pools) == 0 && p.accounts[pl.key.user] == a {
		delete(p.accounts, pl.key.user)
	}
}

// opened takes note of a login with s, and returns its era. Where s has taken the place of what the server took before, a new one
// begins.
func (a *account) opened(s Secret) (era uint64, began bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case s.replaces(a.latest):
		a.latest = s
		return a.era.Add(1), true
	case !a.latest.replaces(s): // else it is of one that began before the change
		a.latest = s
	}
	return a.era.Load(), false
}

// worked reports whether the server has taken a secret of the user's.
func (a *account) worked() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.latest.IsZero()
}

func (a *account) allPools() []*pool {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]*pool, 0, len(a.pools))
	for pl := range a.pools {
		all = append(all, pl)
	}
	return all
}

// noteLogin gives a new connection its era. With the first one of a new version of the user's secret, all that were opened with
// earlier ones are retired: idle ones at once, others when they come back.
func (p *pool) noteLogin(sc *server, s Secret) {
	era, began := p.account.opened(s)
	sc.era = era
	if !began {
		return
	}
	n := 0
	for _, o := range p.account.allPools() {
		n += len(o.retireIf(func(other *server) bool { return other.era < era }))
	}
	p.env.log.Info("pgmoor: the server took a new version of a user's secret: server connections of the old one are closed when nobody uses them",
		slog.String("user", p.key.user), slog.Int("servers", n))
}

// rotationPatience is how long clients that wait are not told that the server refuses a password that it took before: whoever
// changes it may change it there first, and where the proxy finds it a moment later.
const rotationPatience = 10 * time.Second

// mayRotateLocked reports whether a login failed because the user's password is being changed, for all that is known. The caller holds
// mu, and calls it for every failed login.
func (p *pool) mayRotateLocked(err error) bool {
	if !isRefusedPassword(err) || !p.account.worked() {
		return false
	}
	if p.refusedSince.IsZero() {
		p.refusedSince = p.env.now()
	}
	return p.env.now().Sub(p.refusedSince) < rotationPatience
}
