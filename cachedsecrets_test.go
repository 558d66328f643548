package pgmoor_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/memconn"
)

// says requires that a source gives a user the secret s, or an error where s is none.
func says(t *testing.T, src pgmoor.SecretSource, user string, s pgmoor.Secret) {
	t.Helper()
	got, err := src.Secret(t.Context(), user)
	if s.IsZero() {
		require.Error(t, err)
		return
	}
	require.NoError(t, err)
	require.True(t, pgmoor.SameSecret(s, got))
}

func TestACacheAsksOnceAndAgainWhenTheTimeHasCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := pgmoor.NewSecret("one"), pgmoor.NewSecret("two")
		v := &vault{slow: time.Second}
		v.set("u", one)
		c := &pgmoor.CachedSecrets{Source: v, TTL: 30 * time.Second, UnknownTTL: 4 * time.Second, Grace: 20 * time.Second}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				got, err := c.Secret(t.Context(), "u")
				assert.NoError(t, err)
				assert.True(t, pgmoor.SameSecret(one, got))
			})
		}
		wg.Wait()
		asked, _ := v.times()
		require.Equal(t, 1, asked)
		v.set("u", two)
		time.Sleep(29 * time.Second)
		says(t, c, "u", one)
		time.Sleep(2 * time.Second)
		says(t, c, "u", two)
		got, err := c.Secret(t.Context(), "u")
		require.NoError(t, err)
		again, err := c.Secret(t.Context(), "u")
		require.NoError(t, err)
		require.True(t, got == again, "nothing is made anew")
		require.True(t, pgmoor.SameSecret(one, pgmoor.PreviousOf(got)))
		time.Sleep(21 * time.Second)
		got, err = c.Secret(t.Context(), "u")
		require.NoError(t, err)
		require.True(t, pgmoor.PreviousOf(got).IsZero(), "the grace is over")
		asked, _ = v.times()
		require.Equal(t, 2, asked)

		says(t, c, "x", pgmoor.Secret{})
		_, err = c.Secret(t.Context(), "x")
		require.ErrorIs(t, err, pgmoor.ErrNoSecret)
		asked, _ = v.times()
		require.Equal(t, 3, asked)
		v.set("x", one)
		time.Sleep(5 * time.Second)
		says(t, c, "x", one)
	})
}

func TestACacheKeepsWhatItKnowsWhileItsSourceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logBuffer
		one := pgmoor.NewSecret("one")
		v := new(vault)
		v.set("u", one)
		c := &pgmoor.CachedSecrets{Source: v, TTL: time.Minute, StaleFor: time.Minute, Logger: slog.New(slog.NewTextHandler(&log, nil))}
		says(t, c, "u", one)
		v.fail(errors.New("on fire"))
		time.Sleep(90 * time.Second)
		for range 5 {
			says(t, c, "u", one)
		}
		asked, _ := v.times()
		require.Equal(t, 2, asked, "it is not asked at every login")
		require.Contains(t, log.text(), "on fire")
		_, err := c.Secret(t.Context(), "stranger")
		require.ErrorContains(t, err, "on fire")
		require.NotErrorIs(t, err, pgmoor.ErrNoSecret)
		time.Sleep(31 * time.Second)
		_, err = c.Secret(t.Context(), "u")
		require.ErrorContains(t, err, "on fire")
		v.fail(nil)
		time.Sleep(time.Second)
		says(t, c, "u", one)

		v.fail(pgmoor.ErrNoSecret) // which is no failure
		time.Sleep(61 * time.Second)
		_, err = c.Secret(t.Context(), "u")
		require.ErrorIs(t, err, pgmoor.ErrNoSecret)
	})
}

func TestACacheIsRefreshedNoMoreOftenThanItMayBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := new(vault)
		v.set("u", pgmoor.NewSecret("one"))
		c := &pgmoor.CachedSecrets{Source: v, RefreshInterval: 3 * time.Second}
		says(t, c, "u", pgmoor.NewSecret("one"))
		v.set("u", pgmoor.NewSecret("two"))
		for range 5 {
			s, err := c.Refresh(t.Context(), "u")
			require.NoError(t, err)
			require.True(t, pgmoor.SameSecret(s, pgmoor.NewSecret("one")))
		}
		time.Sleep(3 * time.Second)
		s, err := c.Refresh(t.Context(), "u")
		require.NoError(t, err)
		require.True(t, pgmoor.SameSecret(s, pgmoor.NewSecret("two")))
		asked, _ := v.times()
		require.Equal(t, 2, asked)
	})
}

func TestOneThatGivesUpDoesNotSpoilTheCacheForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &vault{slow: 2 * time.Second}
		v.set("u", pgmoor.NewSecret("one"))
		c := &pgmoor.CachedSecrets{Source: v, Logger: quiet}
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := c.Secret(ctx, "u")
			assert.ErrorIs(t, err, context.DeadlineExceeded)
		})
		synctest.Wait()
		says(t, c, "u", pgmoor.NewSecret("one"))
		wg.Wait()
		v.mu.Lock()
		v.slow = time.Hour
		v.mu.Unlock()
		start := time.Now()
		_, err := c.Secret(t.Context(), "other")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, pgmoor.DefaultSecretTimeout, time.Since(start))
	})
}

func TestACacheRemembersSoManyUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := new(vault)
		c := &pgmoor.CachedSecrets{Source: v, MaxUsers: 10}
		for i := range 5 {
			v.set(fmt.Sprint("u", i), pgmoor.NewSecret("x"))
			says(t, c, fmt.Sprint("u", i), pgmoor.NewSecret("x"))
		}
		for i := range 1000 {
			says(t, c, fmt.Sprint("stranger ", i), pgmoor.Secret{})
			require.LessOrEqual(t, pgmoor.RememberedUsers(c), 10)
		}
		before, _ := v.times()
		for i := range 5 {
			says(t, c, fmt.Sprint("u", i), pgmoor.NewSecret("x"))
		}
		after, _ := v.times()
		require.Equal(t, before, after, "strangers give way first")
		for i := range 100 {
			v.set(fmt.Sprint("n", i), pgmoor.NewSecret("x"))
			says(t, c, fmt.Sprint("n", i), pgmoor.NewSecret("x"))
		}
		require.LessOrEqual(t, pgmoor.RememberedUsers(c), 10)
	})
}

// TestASourceThatHangsKeepsNobodyOutWhoIsKnown is about clients that do not know the password: of each the source would be asked anew.
func TestASourceThatHangsKeepsNobodyOutWhoIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := new(vault)
		v.set("u", pgmoor.NewSecret("one"))
		r := newRig(t, pgmoor.Config{
			Authenticator: pgmoor.AuthenticatorFunc(guessing), MaxHandshakes: 5,
			Secrets: &pgmoor.CachedSecrets{Source: v, TTL: time.Hour, Logger: quiet},
		}, new(fake))
		l := memconn.Listen()
		require.NoError(t, r.AddListener(l))
		try := func(password string) string {
			conn, err := l.DialContext(t.Context(), "", "")
			require.NoError(t, err)
			code := make(chan string, 1)
			sayCode(t, conn, "u", password, code)
			return <-code
		}
		require.Empty(t, try("right"))
		time.Sleep(2 * time.Second)
		v.mu.Lock()
		v.slow = time.Hour
		v.mu.Unlock()
		start := time.Now()
		for range 10 {
			require.Equal(t, "28P01", try("wrong"))
		}
		require.Empty(t, try("right"))
		require.Less(t, time.Since(start), time.Second)
	})
}
