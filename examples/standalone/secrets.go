package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/examples/internal/dsn"
)

// This file has where passwords come from. The sources live as long as the process: SIGHUP has their files read, and does not
// put others in their place, which would not know what a password was before.

// sources are asked in order, until one knows the user.
type sources []pgmoor.SecretSource

// Secret asks them.
func (s sources) Secret(ctx context.Context, user string) (pgmoor.Secret, error) {
	return s.first(func(src pgmoor.SecretSource) (pgmoor.Secret, error) { return src.Secret(ctx, user) })
}

// Refresh asks them anew.
func (s sources) Refresh(ctx context.Context, user string) (pgmoor.Secret, error) {
	return s.first(func(src pgmoor.SecretSource) (pgmoor.Secret, error) {
		if r, ok := src.(pgmoor.Refresher); ok {
			return r.Refresh(ctx, user)
		}
		return src.Secret(ctx, user)
	})
}

func (s sources) first(ask func(pgmoor.SecretSource) (pgmoor.Secret, error)) (pgmoor.Secret, error) {
	for _, src := range s {
		if secret, err := ask(src); !errors.Is(err, pgmoor.ErrNoSecret) {
			return secret, err
		}
	}
	return pgmoor.Secret{}, pgmoor.ErrNoSecret
}

// Validate has files read, too.
func (s sources) Validate() error {
	for _, src := range s {
		if v, ok := src.(interface{ Validate() error }); ok {
			if err := v.Validate(); err != nil {
				return err
			}
		}
	}
	return nil
}

// fileTTL is how long it is not asked what the files say, which is in memory.
const fileTTL = time.Millisecond

// secrets is what the flags say of passwords.
type secrets struct {
	users     string
	authQuery string
	authSQL   string
	grace     time.Duration

	files   *pgmoor.FileSecrets // nil: there are none
	query   *pgmoor.AuthQuery   // nil: there is none
	caches  []*pgmoor.CachedSecrets
	sources sources
}

func (s *secrets) resolve(servers *dsn.DSN, requireTLS bool) error {
	if s.grace < 0 {
		return errors.New("-password-grace must not be negative; 0 means not at all")
	}
	if s.users != "" {
		s.files = &pgmoor.FileSecrets{Path: s.users}
		if err := s.files.Validate(); err != nil {
			return fmt.Errorf(`-users: %s`, plain(err))
		}
		s.add(&pgmoor.CachedSecrets{Source: s.files, TTL: fileTTL, UnknownTTL: fileTTL, RefreshInterval: fileTTL})
	}
	if servers.Password != "" {
		s.sources = append(s.sources, pgmoor.StaticSecrets{servers.User: pgmoor.NewSecret(servers.Password)})
	}
	return s.resolveQuery(requireTLS)
}

func (s *secrets) add(c *pgmoor.CachedSecrets) {
	if c.Grace = s.grace; c.Grace == 0 {
		c.Grace = -1
	}
	s.caches, s.sources = append(s.caches, c), append(s.sources, c)
}

func (s *secrets) resolveQuery(requireTLS bool) error {
	name, text := "-auth-query", s.authQuery
	if text == "" {
		name, text = "PGMOOR_AUTH_QUERY", os.Getenv("PGMOOR_AUTH_QUERY")
	}
	if text == "" {
		if s.authSQL != "" {
			return errors.New("-auth-query-sql needs -auth-query")
		}
		return nil
	}
	d, err := dsn.Parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if d.User == "" {
		return fmt.Errorf("%s: it names no user: say who asks", name)
	}
	up, err := d.Upstream()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if requireTLS && up.SSLMode == "" {
		up.SSLMode = "require"
	}
	s.query = &pgmoor.AuthQuery{Upstream: up, User: d.User, Database: d.Database, Query: s.authSQL}
	if d.Password != "" {
		s.query.Secrets = pgmoor.StaticSecrets{d.User: pgmoor.NewSecret(d.Password)}
	}
	cache := &pgmoor.CachedSecrets{Source: s.query}
	s.add(cache)
	if !requireTLS {
		return nil
	}
	_, err = pgmoor.New(nil, pgmoor.Config{Upstream: up, Secrets: cache, RequireTLS: true, TLS: new(tls.Config)}) // only checks
	if err != nil {
		return fmt.Errorf("%s: -require-tls is for its server too: set sslmode to require, verify-ca or verify-full", name)
	}
	return nil
}

// logTo has everything that happens later said to log.
func (s *secrets) logTo(log *slog.Logger) {
	if s.files != nil {
		s.files.Logger = log
	}
	if s.query != nil {
		s.query.Logger = log
	}
	for _, c := range s.caches {
		c.Logger = log
	}
}

// close ends the connection of -auth-query.
func (s *secrets) close() {
	if s.query != nil {
		_ = s.query.Close()
	}
}

// fileUsers returns how many users the files have.
func (s *secrets) fileUsers() int {
	if s.files == nil {
		return 0
	}
	return s.files.Users()
}
