package pgmoor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Defaults of [CachedSecrets].
const (
	DefaultSecretTTL        = time.Minute
	DefaultUnknownSecretTTL = 5 * time.Second
	DefaultStaleSecretTime  = time.Hour
	DefaultSecretGrace      = 5 * time.Minute
	DefaultSecretRefresh    = time.Second
	DefaultSecretTimeout    = 10 * time.Second
	DefaultMaxCachedSecrets = 10000
)

// failureLogInterval is how often a source that goes on failing is mentioned in the log.
const failureLogInterval = 10 * time.Second

// CachedSecrets is a [SecretSource] in front of another one that is slow, or that may fail: it asks for a user once at a time,
// however many clients log in, and remembers the answer. Where a secret changes it gives the one from before with it (see
// [Secret.WithPrevious]) for a while. It is a [Refresher]: where a server or the proxy refuses a password, Source is asked anew
// before TTL is over. Its methods may be called from any goroutine; use it by pointer, and change no field once it is used.
//
// It is not for a Source that makes a new secret for each login, such as a token.
type CachedSecrets struct {
	// Source is what is asked. It may itself give a previous version, which then counts instead of the remembered one. Required.
	Source SecretSource

	// TTL is how long an answer counts before Source is asked again. If zero, DefaultSecretTTL.
	TTL time.Duration

	// UnknownTTL is the same for the answer that there is no such user. If zero, DefaultUnknownSecretTTL.
	UnknownTTL time.Duration

	// StaleFor is for how long beyond TTL an answer counts while Source fails. That a user does not exist is no failure. If zero,
	// DefaultStaleSecretTime; if negative, it does not count beyond TTL.
	StaleFor time.Duration

	// Grace is how long after a change the secret from before counts as well. If zero, DefaultSecretGrace; if negative, it does not.
	Grace time.Duration

	// RefreshInterval is the least time between two questions for one user that are asked before TTL is over, because somebody has
	// refused a password, or because Source has failed. If zero, DefaultSecretRefresh.
	RefreshInterval time.Duration

	// Timeout bounds one question. If zero, DefaultSecretTimeout.
	Timeout time.Duration

	// MaxUsers is how many users are remembered. Those that do not exist give way first. If zero, DefaultMaxCachedSecrets.
	MaxUsers int

	// Logger is told when Source fails. If nil, slog.Default.
	Logger *slog.Logger

	mu     sync.Mutex // never held while Source is asked
	users  map[string]*cachedSecret
	logged time.Time
}

// cachedSecret is what is remembered of one user.
type cachedSecret struct {
	asking   chan struct{} // closed when Source has answered who is being asked; nil: nobody is
	secret   Secret        // none: there is no such user, or it is not known
	both     Secret        // with that from before
	bothTill time.Time
	told     time.Time // when Source said so; zero: never
	answers  int       // how often it has answered
	askedAt  time.Time // when it did last
	next     time.Time // when it is asked again
	err      error     // what it said last
}

// Validate returns an error where a field makes no sense. [New] and [Proxy.Update] call it.
func (c *CachedSecrets) Validate() error {
	if c.Source == nil {
		return errors.New("pgmoor: CachedSecrets.Source is missing: say whose answers are to be remembered")
	}
	for name, d := range map[string]time.Duration{
		"TTL": c.TTL, "UnknownTTL": c.UnknownTTL, "RefreshInterval": c.RefreshInterval, "Timeout": c.Timeout, "MaxUsers": time.Duration(c.MaxUsers),
	} {
		if d < 0 {
			return fmt.Errorf("pgmoor: CachedSecrets.%s must not be negative", name)
		}
	}
	if v, ok := c.Source.(interface{ Validate() error }); ok {
		return v.Validate()
	}
	return nil
}

// check looks at Source.
func (c *CachedSecrets) check(cfg *Config) error { return checkPart(c.Source, cfg) }

// Secret returns what is remembered of the user, or what Source says.
func (c *CachedSecrets) Secret(ctx context.Context, user string) (Secret, error) {
	return c.get(ctx, user, false)
}

// Refresh asks Source, unless it was asked within RefreshInterval.
func (c *CachedSecrets) Refresh(ctx context.Context, user string) (Secret, error) {
	return c.get(ctx, user, true)
}

// get returns the answer after one question at most. Who comes while it is asked waits for the answer, too; where the one that asks
// gives up, the next one asks.
func (c *CachedSecrets) get(ctx context.Context, user string, anew bool) (Secret, error) {
	for {
		c.mu.Lock()
		e, now := c.entryLocked(user), time.Now()
		asking := e.asking
		if asking == nil && !c.dueLocked(e, now, anew) {
			defer c.mu.Unlock()
			return c.answerLocked(e, now)
		}
		if asking == nil {
			e.asking = make(chan struct{})
			c.mu.Unlock()
			return c.ask(ctx, user, e)
		}
		before := e.answers
		c.mu.Unlock()
		select {
		case <-asking:
		case <-ctx.Done():
			return Secret{}, context.Cause(ctx)
		}
		c.mu.Lock()
		if e.answers != before {
			defer c.mu.Unlock()
			return c.answerLocked(e, time.Now())
		}
		c.mu.Unlock()
	}
}

// entryLocked returns what is remembered of the user, and makes room for it.
func (c *CachedSecrets) entryLocked(user string) *cachedSecret {
	if e := c.users[user]; e != nil {
		return e
	}
	if c.users == nil {
		c.users = make(map[string]*cachedSecret)
	}
	if len(c.users) >= orDefault(c.MaxUsers, DefaultMaxCachedSecrets) {
		c.makeRoomLocked()
	}
	e := new(cachedSecret)
	c.users[user] = e
	return e
}

// makeRoomLocked forgets all users that do not exist, or any one if all do.
func (c *CachedSecrets) makeRoomLocked() {
	victim, any := "", false
	before := len(c.users)
	for user, e := range c.users {
		switch {
		case e.asking != nil:
		case e.secret.IsZero():
			delete(c.users, user)
		default:
			victim, any = user, true
		}
	}
	if any && len(c.users) == before {
		delete(c.users, victim)
	}
}

// dueLocked reports whether Source is to be asked.
func (c *CachedSecrets) dueLocked(e *cachedSecret, now time.Time, anew bool) bool {
	if anew && now.Sub(e.askedAt) >= orDefault(c.RefreshInterval, DefaultSecretRefresh) {
		return true
	}
	return !now.Before(e.next)
}

// answerLocked returns what is remembered.
func (c *CachedSecrets) answerLocked(e *cachedSecret, now time.Time) (Secret, error) {
	stale := max(0, orDefault(c.StaleFor, DefaultStaleSecretTime))
	switch {
	case e.err == nil, !errors.Is(e.err, ErrNoSecret) && !e.secret.IsZero() && now.Before(e.told.Add(c.ttl()+stale)):
		if now.Before(e.bothTill) {
			return e.both, nil
		}
		return e.secret, nil
	}
	return Secret{}, e.err
}

func (c *CachedSecrets) ttl() time.Duration { return orDefault(c.TTL, DefaultSecretTTL) }

// ask asks Source for the user of e, and returns its answer. Those who wait are woken, whatever happens.
func (c *CachedSecrets) ask(ctx context.Context, user string, e *cachedSecret) (Secret, error) {
	defer c.asked(e)
	limited, cancel := context.WithTimeout(ctx, orDefault(c.Timeout, DefaultSecretTimeout))
	defer cancel()
	s, err := c.Source.Secret(limited, user)
	if err != nil && !errors.Is(err, ErrNoSecret) && ctx.Err() != nil {
		return Secret{}, context.Cause(ctx) // of the one that asks only
	}
	if err == nil && s.IsZero() {
		err = ErrNoSecret
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	e.askedAt, e.err = now, err
	e.answers++
	switch {
	case err == nil:
		c.tookLocked(e, s, now)
	case errors.Is(err, ErrNoSecret):
		e.secret, e.both, e.bothTill, e.told = Secret{}, Secret{}, time.Time{}, now
		e.next = now.Add(orDefault(c.UnknownTTL, DefaultUnknownSecretTTL))
	default:
		e.next = now.Add(orDefault(c.RefreshInterval, DefaultSecretRefresh))
		c.logLocked(user, err, now)
	}
	return c.answerLocked(e, now)
}

// asked wakes those who wait.
func (c *CachedSecrets) asked(e *cachedSecret) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(e.asking)
	e.asking = nil
}

// tookLocked takes note of what Source has given.
func (c *CachedSecrets) tookLocked(e *cachedSecret, s Secret, now time.Time) {
	e.told, e.next = now, now.Add(c.ttl())
	was := e.secret.alone()
	switch {
	case was.same(s):
		if e.secret = was.WithPrevious(s.previous()); e.secret != was {
			e.bothTill = time.Time{}
		}
		return
	case was.IsZero():
		e.secret = s.toldBy(c)
		return
	}
	e.secret = s.toldBy(c)
	if grace := orDefault(c.Grace, DefaultSecretGrace); grace > 0 && s.previous().IsZero() {
		e.both, e.bothTill = e.secret.WithPrevious(was), now.Add(grace)
	} else {
		e.both, e.bothTill = Secret{}, time.Time{}
	}
}

// logLocked says that Source fails, not more often than now and then.
func (c *CachedSecrets) logLocked(user string, err error, now time.Time) {
	if now.Sub(c.logged) < failureLogInterval {
		return
	}
	c.logged = now
	orDefault(c.Logger, slog.Default()).Warn("pgmoor: a source of secrets fails; what it said before counts for a while", slog.String("user", user), slog.Any("err", err))
}
