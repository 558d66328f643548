package pgmoor_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// This file is about what must not tell who exists.

// saltOf returns the salt that a user is shown.
func saltOf(t *testing.T, address, user string) (s string) {
	t.Helper()
	answers(t, address, user, func(f *pgproto3.Frontend, m pgproto3.BackendMessage) {
		switch m := m.(type) {
		case *pgproto3.AuthenticationSASL:
			f.Send(&pgproto3.SASLInitialResponse{AuthMechanism: "SCRAM-SHA-256", Data: []byte("n,,n=,r=abcdefghijklmnop")})
		case *pgproto3.AuthenticationSASLContinue:
			_, s, _ = strings.Cut(string(m.Data), ",s=")
			f.Send(&pgproto3.SASLResponse{Data: []byte("x")})
		}
	})
	require.NotEmpty(t, s)
	return s
}

func TestUsersSeeTheSameSaltEveryTime(t *testing.T) {
	secrets, server := someSecrets(t), new(fake)
	secrets["twin"] = secrets["clear"]
	r := newRig(t, pgmoor.Config{Secrets: secrets}, server)
	address, before := r.listenTCP(t), map[string]string{}
	users := []string{"nobody", "verifier", "clear"}
	for _, user := range users {
		before[user] = saltOf(t, address, user)
		require.Equal(t, before[user], saltOf(t, address, user), user)
	}
	require.NotEqual(t, saltOf(t, address, "nobody"), saltOf(t, address, "somebody"))
	require.NotEqual(t, before["clear"], saltOf(t, address, "twin"), "that two have the same password")
	methods := pgmoor.StandardMethods(secrets, nil)
	standard, err := methods("scram-sha-256", nil)
	require.NoError(t, err)
	for name, auth := range map[string]pgmoor.Authenticator{"other secrets": nil, "SCRAM": pgmoor.SCRAM(secrets), "StandardMethods": standard} {
		cfg := pgmoor.Config{Secrets: someSecrets(t), Authenticator: auth, Logger: quiet}
		cfg.Secrets.(pgmoor.StaticSecrets)["verifier"] = secrets["verifier"]
		cfg.Upstream = pgmoor.Upstream{Hosts: []string{"fake"}, SSLMode: "disable", Dialer: pgmoor.DialerFunc(server.dial)}
		require.NoError(t, r.Update(cfg))
		for _, user := range users {
			require.Equal(t, before[user], saltOf(t, address, user), "%s after an Update with %s", user, name)
		}
	}
}

func TestACleartextLoginCostsTheSameWhoeverItIs(t *testing.T) {
	secrets := someSecrets(t)
	secrets["changed"] = verifierOf(t, right).WithPrevious(verifierOf(t, "before"))
	cfg := pgmoor.Config{Authenticator: pgmoor.Cleartext(secrets)}
	cfg.TLS, _ = certified(t)
	address := newRig(t, cfg, new(fake)).listenTCP(t)
	before := pgmoor.CleartextCost(cfg.Authenticator)
	require.NoError(t, logIn(t, address, "clear", right, "sslmode=require"))
	require.Zero(t, before)
	require.NoError(t, logIn(t, address, "verifier", right, "sslmode=require"))
	require.EqualValues(t, 4096, pgmoor.CleartextCost(cfg.Authenticator))
	require.NoError(t, logIn(t, address, "changed", "before", "sslmode=require"))
	require.EqualValues(t, 8192, pgmoor.CleartextCost(cfg.Authenticator))
	for _, user := range []string{"clear", "md5", "nobody", "none", "verifier"} {
		work := testing.AllocsPerRun(1, func() { pgmoor.SpendCleartext(cfg.Authenticator, secrets[user], right) })
		require.Greater(t, work, 5.0, user)
	}
}
