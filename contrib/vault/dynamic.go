package vault

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	"golang.org/x/sync/singleflight"

	"github.com/pgmoor/pgmoor"
)

// Dynamic is a pgmoor.SecretSource of the database engine's dynamic roles: passwords that Vault makes when they are asked for, and which are good as
// long as their lease. It holds one for each user, which Run renews until Vault does not renew it any more; then, or where nobody runs
// Run, the next login gets a new one before the old one ends. What is said in the package's documentation of users holds. Leases are left to
// Vault in the end, since server connections may need them. It must not be copied or changed while a Proxy uses it.
type Dynamic struct {
	Client *api.Client              // of Vault. Required
	Mount  string                   // of the engine. If empty, "database"
	Role   func(user string) string // Vault's role for a user; "": none. Required; see Named
	Logger *slog.Logger             // hears of leases that cannot be renewed. If nil, slog.Default()

	asking singleflight.Group // by user
	mu     sync.Mutex
	leases map[string]*lease // by user; of those that Vault knows
	wake   chan struct{}     // of Run: there is another lease; capacity 1
}

// lease is a password that ends. It is not changed, but replaced.
type lease struct {
	id     string // "": it is not renewed any more
	secret pgmoor.Secret
	whole  time.Duration // how long it was granted for at first
	due    time.Time     // when to renew it
	stale  time.Time     // when to get another in its place
	end    time.Time
}

// grant returns l as it is after Vault has granted it for a time.
func (l lease) grant(from time.Time, renewable bool, granted time.Duration) *lease {
	if l.whole == 0 {
		l.whole = granted
	}
	l.due, l.stale, l.end = from.Add(granted*2/3), from.Add(granted*5/6), from.Add(granted)
	if !renewable || granted < l.whole/2 { // it nears the end of its longest life
		l.id, l.stale = "", from.Add(granted/2)
	}
	return &l
}

// Secret returns the password of a user, from memory where there is one that is good for a while, and pgmoor.ErrNoSecret where Vault has no such
// role.
func (d *Dynamic) Secret(ctx context.Context, user string) (pgmoor.Secret, error) {
	for {
		if s, ok := d.fresh(user); ok {
			return s, nil
		}
		v, err, shared := d.asking.Do(user, func() (any, error) { return d.fetch(ctx, user) })
		switch {
		case err == nil:
			return v.(pgmoor.Secret), nil
		case ctx.Err() == nil && shared && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)):
			continue // it was another's time that ran out
		}
		return pgmoor.Secret{}, err
	}
}

// fresh returns a password that is good for a while.
func (d *Dynamic) fresh(user string) (pgmoor.Secret, bool) {
	l := d.held(user)
	if l == nil || !time.Now().Before(l.stale) {
		return pgmoor.Secret{}, false
	}
	return l.secret, true
}

func (d *Dynamic) held(user string) *lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.leases[user]
}

// fetch gets a new password, unless somebody else just did. While Vault cannot be reached, one that is still good will do.
func (d *Dynamic) fetch(ctx context.Context, user string) (pgmoor.Secret, error) {
	if s, ok := d.fresh(user); ok {
		return s, nil
	}
	began := time.Now()
	found, err := credentials(ctx, d.Client, d.Mount, "creds", d.Role, user)
	if err != nil && found != nil && found.LeaseID != "" {
		err = errors.Join(err, d.Client.Sys().RevokeWithContext(ctx, found.LeaseID)) // or every login would leave one
	}
	if old := d.held(user); err != nil && !errors.Is(err, pgmoor.ErrNoSecret) && old != nil && time.Now().Before(old.end) {
		d.logger().Warn("pgmoor/vault: no new credentials; the old ones are used on", "user", user, "until", old.end, "err", err)
		return old.secret, nil
	}
	if err != nil {
		return pgmoor.Secret{}, err
	}
	secret, err := passwordOf(found.Data, user)
	if err != nil {
		return pgmoor.Secret{}, err
	}
	l := lease{id: found.LeaseID, secret: secret}
	d.hold(user, l.grant(began, found.Renewable, time.Duration(found.LeaseDuration)*time.Second))
	return secret, nil
}

// hold takes a lease in the place of the user's last.
func (d *Dynamic) hold(user string, l *lease) {
	d.mu.Lock()
	if d.leases == nil {
		d.leases = make(map[string]*lease)
	}
	d.leases[user] = l
	wake := d.wakeLocked()
	d.mu.Unlock()
	select {
	case wake <- struct{}{}:
	default:
	}
}

func (d *Dynamic) wakeLocked() chan struct{} {
	if d.wake == nil {
		d.wake = make(chan struct{}, 1)
	}
	return d.wake
}

func (d *Dynamic) logger() *slog.Logger { return orDefault(d.Logger) }

// retry is how soon a renewal that failed is tried again, at the earliest.
const retry = time.Second

// Run renews leases until ctx ends, and returns its error. It may be called once.
func (d *Dynamic) Run(ctx context.Context) error {
	d.mu.Lock()
	wake := d.wakeLocked()
	d.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		case <-timer.C:
		}
		timer.Reset(d.renewDue(ctx))
	}
}

// renewDue renews what is due, forgets what has ended, and returns when to look again.
func (d *Dynamic) renewDue(ctx context.Context) time.Duration {
	wait := time.Hour
	for user, l := range d.all() {
		switch now := time.Now(); {
		case !now.Before(l.end):
			d.replace(user, l, nil)
			continue
		case l.id != "" && !now.Before(l.due):
			l = d.renew(ctx, user, l)
		}
		next := l.end
		if l.id != "" {
			next = l.due
		}
		wait = min(wait, max(time.Until(next), time.Millisecond))
	}
	return wait
}

func (d *Dynamic) all() map[string]*lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make(map[string]*lease, len(d.leases))
	for user, l := range d.leases {
		all[user] = l
	}
	return all
}

// renew renews a lease, and returns what there is then.
func (d *Dynamic) renew(ctx context.Context, user string, l *lease) *lease {
	began := time.Now()
	renewed, err := d.Client.Sys().RenewWithContext(ctx, l.id, int(l.whole.Seconds()))
	var next *lease
	var refused *api.ResponseError
	if errors.As(err, &refused) && (refused.StatusCode == http.StatusBadRequest || refused.StatusCode == http.StatusNotFound) {
		d.logger().Warn("pgmoor/vault: a lease is no more", "user", user, "err", err)
		d.replace(user, l, nil)
		return &lease{end: l.end}
	}
	if err != nil {
		again := *l
		again.due = time.Now().Add(max(time.Until(l.end)/4, retry))
		next = &again
		d.logger().Warn("pgmoor/vault: a lease cannot be renewed", "user", user, "until", l.end, "err", err)
	} else {
		next = l.grant(began, renewed.Renewable, time.Duration(renewed.LeaseDuration)*time.Second)
	}
	d.replace(user, l, next)
	return next
}

// replace puts next, or nothing, in the place of a lease, unless there is another by now.
func (d *Dynamic) replace(user string, l, next *lease) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.leases[user] != l:
	case next == nil:
		delete(d.leases, user)
	default:
		d.leases[user] = next
	}
}
