package pgmoor_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/memconn"
)

// guessing is an Authenticator for which the application_name is the password. It takes a while.
func guessing(ctx context.Context, c *pgmoor.Client) error {
	time.Sleep(time.Millisecond)
	switch pw, _ := c.Parameter("application_name"); pw {
	case "right":
		return nil
	case "broken":
		return errors.New("the directory is on fire")
	}
	return &pgmoor.Error{Code: "28P01", Message: "wrong"}
}

// tryFrom logs in from an address and returns the SQLSTATE.
func tryFrom(t *testing.T, r *rig, address, user, password string) string {
	t.Helper()
	return <-tryingFrom(t, r, address, user, password)
}

func tryingFrom(t *testing.T, r *rig, address, user, password string) <-chan string {
	t.Helper()
	l := memconn.Listen()
	require.NoError(t, r.AddListener(&elsewhere{l, foreignAddr(address)}))
	conn, err := l.DialContext(t.Context(), "", "")
	require.NoError(t, err)
	code := make(chan string, 1)
	go sayCode(t, conn, user, password, code)
	return code
}

func sayCode(t *testing.T, conn net.Conn, user, password string, code chan<- string) {
	got := newClient(t, conn).startup(user, "application_name", password)
	_ = conn.Close()
	code <- got.code()
}

func throttled(t *testing.T, f func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		auth := pgmoor.Throttle(pgmoor.AuthenticatorFunc(guessing), 3, 10*time.Second)
		f(t, newRig(t, pgmoor.Config{Authenticator: auth}, new(fake)))
	})
}

func TestGuessesAreBounded(t *testing.T) {
	throttled(t, func(t *testing.T, r *rig) {
		const attacker, elsewhere = "192.0.2.1:1", "192.0.2.2:1"
		for range 3 {
			require.Equal(t, "28P01", tryFrom(t, r, attacker, "alice", "wrong"))
		}
		for range 10 {
			require.Equal(t, "53300", tryFrom(t, r, attacker, "alice", "right"), "asked though it was refused")
		}
		require.Empty(t, tryFrom(t, r, attacker, "bob", "right"), "another user at the same address")
		require.Empty(t, tryFrom(t, r, elsewhere, "alice", "right"), "the user from elsewhere")
		time.Sleep(10 * time.Second)
		require.Empty(t, tryFrom(t, r, attacker, "alice", "right"))
		require.Equal(t, "28P01", tryFrom(t, r, attacker, "alice", "wrong"))
		require.Equal(t, "53300", tryFrom(t, r, attacker, "alice", "wrong"))
		time.Sleep(30 * time.Second)
		for range 3 {
			require.Equal(t, "28P01", tryFrom(t, r, attacker, "alice", "wrong"))
		}
	})
}

func TestANetworkOfIPv6IsOneOrigin(t *testing.T) {
	throttled(t, func(t *testing.T, r *rig) {
		for i := range 3 {
			require.Equal(t, "28P01", tryFrom(t, r, fmt.Sprintf("[2001:db8::%d]:1", i), "alice", "wrong"))
		}
		require.Equal(t, "53300", tryFrom(t, r, "[2001:db8::ffff]:1", "alice", "right"))
		require.Empty(t, tryFrom(t, r, "[2001:db8:0:1::1]:1", "alice", "right"))
		for range 3 {
			require.Equal(t, "28P01", tryFrom(t, r, "[::ffff:192.0.2.1]:1", "alice", "wrong"))
		}
		require.Equal(t, "53300", tryFrom(t, r, "192.0.2.1:9", "alice", "right"))
	})
}

func TestOneWhoTriesEveryUserDoesNotKeepOutThoseWhoAreKnown(t *testing.T) {
	throttled(t, func(t *testing.T, r *rig) {
		const shared = "192.0.2.1:1"
		require.Empty(t, tryFrom(t, r, shared, "known", "right"))
		for i := range 30 {
			require.Equal(t, "28P01", tryFrom(t, r, shared, fmt.Sprint("u", i), "wrong"))
		}
		require.Equal(t, "53300", tryFrom(t, r, shared, "stranger", "right"))
		require.Empty(t, tryFrom(t, r, shared, "known", "right"))
		time.Sleep(10 * time.Second)
		require.Empty(t, tryFrom(t, r, shared, "stranger", "right"))
	})
}

func TestGuessesAtOnceAreBoundedToo(t *testing.T) {
	throttled(t, func(t *testing.T, r *rig) {
		codes := map[string]int{}
		var tries []<-chan string
		for range 50 {
			tries = append(tries, tryingFrom(t, r, "192.0.2.1:1", "alice", "wrong"))
		}
		for _, c := range tries {
			codes[<-c]++
		}
		require.Equal(t, map[string]int{"28P01": 3, "53300": 47}, codes)
	})
}

func TestGuessesAtOnceOfOneWhoIsKnownAreBoundedToo(t *testing.T) {
	throttled(t, func(t *testing.T, r *rig) {
		require.Empty(t, tryFrom(t, r, "192.0.2.1:1", "alice", "right"))
		codes := map[string]int{}
		var tries []<-chan string
		for range 200 {
			tries = append(tries, tryingFrom(t, r, "192.0.2.1:1", "alice", "wrong"))
		}
		for _, c := range tries {
			codes[<-c]++
		}
		require.Equal(t, map[string]int{"28P01": 30, "53300": 170}, codes)
		time.Sleep(4*time.Minute + 41*time.Second)
		require.Empty(t, tryFrom(t, r, "192.0.2.1:1", "alice", "right"))
	})
}

func TestManyGoodLoginsAtOnceAreAllLetIn(t *testing.T) {
	throttled(t, func(t *testing.T, r *rig) {
		var tries []<-chan string
		for range 50 {
			tries = append(tries, tryingFrom(t, r, "192.0.2.1:1", "alice", "right"))
		}
		for _, c := range tries {
			require.Empty(t, <-c)
		}
	})
}

func TestWhatIsNobodysGuessIsNotCounted(t *testing.T) {
	throttled(t, func(t *testing.T, r *rig) {
		for range 20 {
			require.Equal(t, "28P01", tryFrom(t, r, "192.0.2.1:1", "alice", "broken"))
			require.Equal(t, "28P01", tryFrom(t, r, "tunnel", "alice", "wrong"))
		}
		require.Empty(t, tryFrom(t, r, "192.0.2.1:1", "alice", "right"))
		require.Empty(t, tryFrom(t, r, "tunnel", "alice", "right"))
	})
}

func TestWhatIsRememberedOfFailuresIsBounded(t *testing.T) {
	throttle := pgmoor.Throttle(pgmoor.AuthenticatorFunc(func(context.Context, *pgmoor.Client) error {
		return &pgmoor.Error{Code: "28P01"}
	}), 3, time.Hour)
	for i := range 30000 {
		c := pgmoor.ClientFrom(foreignAddr(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255)), strings.Repeat("x", i%100))
		require.Error(t, throttle.Authenticate(t.Context(), c))
	}
	require.LessOrEqual(t, pgmoor.RememberedOrigins(throttle), 10000)
}

func TestAnUpdateHandsFailuresOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := pgmoor.Config{Authenticator: pgmoor.Throttle(pgmoor.AuthenticatorFunc(guessing), 2, time.Minute)}
		server := new(fake)
		r := newRig(t, cfg, server)
		for range 2 {
			require.Equal(t, "28P01", tryFrom(t, r, "192.0.2.1:1", "u", "wrong"))
		}
		cfg.Upstream = pgmoor.Upstream{Hosts: []string{"fake"}, SSLMode: "disable", Dialer: pgmoor.DialerFunc(server.dial)}
		cfg.Logger = quiet
		cfg.Authenticator = pgmoor.Throttle(pgmoor.AuthenticatorFunc(guessing), 2, time.Minute)
		require.NoError(t, r.Update(cfg))
		require.Equal(t, "53300", tryFrom(t, r, "192.0.2.1:1", "u", "right"))
		require.Empty(t, tryFrom(t, r, "192.0.2.2:1", "u", "right"))
	})
}

func TestNamesAloneMakeAThrottleForgetNobody(t *testing.T) {
	ask := errors.New("the client hung up")
	throttle := pgmoor.Throttle(pgmoor.AuthenticatorFunc(func(_ context.Context, c *pgmoor.Client) error {
		if c.User() == "shy" {
			return ask
		}
		return &pgmoor.Error{Code: "28P01"}
	}), 3, time.Hour)
	codeFrom := func(address, user string) string {
		var e *pgmoor.Error
		require.ErrorAs(t, throttle.Authenticate(t.Context(), pgmoor.ClientFrom(foreignAddr(address), user)), &e)
		return e.Code
	}
	for range 3 {
		require.Equal(t, "28P01", codeFrom("192.0.2.1:1", "alice"))
	}
	require.Equal(t, "53300", codeFrom("192.0.2.1:1", "alice"))
	for i := range 12000 { // from another address, where no more are asked by then
		_ = codeFrom("192.0.2.2:1", fmt.Sprint("u", i))
	}
	require.Equal(t, "53300", codeFrom("192.0.2.1:1", "alice"), "it was forgotten")
	before := pgmoor.RememberedOrigins(throttle)
	for i := range 100 {
		c := pgmoor.ClientFrom(foreignAddr(fmt.Sprintf("198.51.100.%d:1", i)), "shy")
		require.ErrorIs(t, throttle.Authenticate(t.Context(), c), ask)
	}
	require.Equal(t, before, pgmoor.RememberedOrigins(throttle), "of those who have guessed nothing")
}

func TestAnothersCertificateIsNoGuess(t *testing.T) {
	cert, pool := identity(t)
	secrets := someSecrets(t)
	cfg := pgmoor.Config{Authenticator: pgmoor.Throttle(pgmoor.RequireCertificate(pgmoor.CommonName, nil, pgmoor.SCRAM(secrets)), 2, time.Hour)}
	cfg.TLS, _ = certified(t)
	cfg.TLS.ClientAuth, cfg.TLS.ClientCAs = tls.VerifyClientCertIfGiven, pool
	address := newRig(t, cfg, new(fake)).listenTCP(t)
	for range 3 {
		require.Equal(t, "28P01", codeOf(showing(t, address, "verifier", right, &cert)))
	}
}
