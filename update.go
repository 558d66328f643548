package pgmoor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
)

// This file exchanges the configuration of a Proxy that runs.

// live is the configuration that counts, with what was made of it. It is never changed: Update puts another one in its place.
// Whoever needs two fields that belong together takes both from one.
type live struct {
	Config
	up            *upstream
	policy        PinningPolicy
	defaultPolicy bool
	auth          Authenticator
	tls           *tls.Config
	texts         *sqlscan.Cache // what is known of statement texts
}

// config returns the configuration that counts at the moment.
func (e *env) config() *live { return e.live.Load() }

// newLive checks cfg and makes what is made of it. was is what it takes the place of; nil in New.
func newLive(cfg Config, was *live) (*live, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	up, err := newUpstream(&cfg)
	if err != nil {
		return nil, err
	}
	l := &live{Config: cfg, up: up, policy: cfg.pinning(), defaultPolicy: cfg.pinning() == DefaultPinning{}, tls: serverTLS(cfg.TLS)}
	if was != nil {
		l.plainIO, l.texts, l.up.proofs = was.plainIO, was.texts, was.up.proofs
		if slices.Equal(was.Upstream.Hosts, l.Upstream.Hosts) {
			l.up.logins = was.up.logins // with what is known of the hosts
		}
	}
	if was == nil || !slices.Equal(was.VerifyFunctions, l.VerifyFunctions) {
		l.texts = sqlscan.NewCache(cachedTexts, cfg.VerifyFunctions...)
	}
	l.auth = l.authenticator()
	return l, nil
}

// authenticator returns what Config.Authenticator and Secrets say together.
func (l *live) authenticator() Authenticator {
	switch {
	case l.Authenticator != nil:
		return l.Authenticator
	case l.Secrets != nil:
		return &scramAuth{secrets: l.Secrets}
	}
	return AuthenticatorFunc(refuseAll)
}

// Update puts cfg in the place of the Proxy's configuration, without losing a session. It is as a whole what [New] would be given: take the
// one that New was given, change it, and hand it over. What it points to must not be changed afterwards.
//
// Where cfg makes no sense, changes [Config].MaxHandshakes, or has a Budget or Peers where there was none, or none where there was one, Update returns
// an error that names the field, and changes nothing. Another Budget or other Peers than those of New are no error and do nothing: those of New stay. After [Proxy.Close] it returns [ErrProxyClosed].
//
// Limits and timeouts count at once, also for clients that wait. With a smaller MaxConnections, idle server connections beyond it are
// closed at once and others when they come back; with a greater one, clients that wait get more. TLS, RequireTLS, Authenticator,
// Secrets and HandshakeTimeout count for clients, and Secrets and Upstream for server connections, that log in from then on. Pinning,
// Verify and VerifyFunctions count for statements from then on: what was prepared before stays judged as it was, and pins stay until they end. With
// other Upstream.Hosts, another SSLMode or InitQuery, or the first MaxConnectionsPercent, all server connections are retired as by
// [Proxy.Reconnect]. So that no two transactions run on
// the old servers and on the new ones at once, call [Proxy.Pause] before and [Proxy.Resume] afterwards. docs/configuration.md has
// a table of all fields.
func (p *Proxy) Update(cfg Config) error {
	p.updating.Lock()
	defer p.updating.Unlock()
	was := p.env.config()
	next, err := newLive(cfg, was)
	if err != nil {
		return err
	}
	if was.maxHandshakes() != next.maxHandshakes() {
		return fmt.Errorf("pgmoor: Config.MaxHandshakes cannot be changed by Update: it is %d, not %d, until there is a new Proxy",
			was.maxHandshakes(), next.maxHandshakes())
	}
	if (was.Budget == nil) != (next.Budget == nil) || (was.Peers == nil) != (next.Peers == nil) {
		return errors.New("pgmoor: Config.Budget and Config.Peers cannot be changed by Update, until there is a new Proxy")
	}
	if p.isClosed() {
		return ErrProxyClosed
	}
	next.Budget, next.Peers = was.Budget, was.Peers
	inheritFailures(next.auth, was.auth)
	p.env.live.Store(next)
	if was.up.logins != next.up.logins {
		close(was.up.logins.moved)
	}
	next.up.logins.setLimit(next.maxOpening())
	if !was.sameServers(next) {
		p.retire()
	}
	p.limitAll()
	for _, pl := range p.allPools() { // their timers and limits
		pl.nudge()
	}
	return nil
}

// sameServers reports whether server connections under either configuration lead to the same servers in the same way, and are asked and
// told the same there.
func (l *live) sameServers(o *live) bool {
	return l.InitQuery == o.InitQuery && (l.up.asksMax || !o.up.asksMax) && slices.Equal(l.Upstream.Hosts, o.Upstream.Hosts) && l.sslMode() == o.sslMode()
}

func (p *Proxy) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

func (p *Proxy) allPools() []*pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*pool, 0, len(p.pools))
	for _, pl := range p.pools {
		all = append(all, pl)
	}
	return all
}

// liveHandler hands every line of the log to the Logger of the configuration that counts.
type liveHandler struct{ env *env }

// Enabled asks that Logger's handler.
func (h liveHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.env.config().logger().Handler().Enabled(ctx, level)
}

// Handle hands r over.
func (h liveHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.env.config().logger().Handler().Handle(ctx, r)
}

// WithAttrs returns the handler of the moment, with attributes.
func (h liveHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.env.config().logger().Handler().WithAttrs(attrs)
}

// WithGroup returns the handler of the moment, in a group.
func (h liveHandler) WithGroup(name string) slog.Handler {
	return h.env.config().logger().Handler().WithGroup(name)
}
