package pgmoor_test

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// change updates the rig's configuration, which began as cfg.
func (r *rig) change(t testing.TB, cfg pgmoor.Config) {
	t.Helper()
	require.NoError(t, r.Update(r.reaching(cfg)))
}

// reaching returns cfg with the rig's server.
func (r *rig) reaching(cfg pgmoor.Config) pgmoor.Config {
	if cfg.Upstream.Hosts == nil {
		cfg.Upstream.Hosts = []string{"fake"}
	}
	cfg.Upstream.SSLMode, cfg.Upstream.Dialer = "disable", pgmoor.DialerFunc(r.server.dial)
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	return cfg
}

func TestUpdateRefusesWhatMakesNoSenseAndWhatCannotBeChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1, BorrowTimeout: time.Second}, new(fake))
		a, b := r.connect(t, "u"), r.connect(t, "u")
		for name, tc := range map[string]struct {
			change func(c *pgmoor.Config)
			says   string
		}{
			"no host":       {func(c *pgmoor.Config) { c.Upstream.Hosts = []string{} }, "Config.Upstream.Hosts is empty"},
			"long wait":     {func(c *pgmoor.Config) { c.BorrowTimeout = time.Hour }, "Config.BorrowTimeout is 1h0m0s"},
			"no connection": {func(c *pgmoor.Config) { c.MaxConnections = -1 }, "Config.MaxConnections is -1: it must be 0 or more"},
			"no TLS":        {func(c *pgmoor.Config) { c.RequireTLS = true }, "Config.RequireTLS needs"},
			"handshakes":    {func(c *pgmoor.Config) { c.MaxHandshakes = 5 }, "Config.MaxHandshakes cannot be changed by Update: it is 1000, not 5"},
		} {
			cfg := pgmoor.Config{MaxConnections: 9, BorrowTimeout: 2 * time.Second}
			tc.change(&cfg)
			require.ErrorContains(t, r.Update(r.reaching(cfg)), tc.says, name)
		}
		a.ok("BEGIN")
		start := time.Now()
		require.Equal(t, "08000", b.query("SELECT 1").code(), "nothing of them counts")
		require.Equal(t, time.Second, time.Since(start))
		r.change(t, pgmoor.Config{MaxHandshakes: pgmoor.DefaultMaxHandshakes})
	})
}

func TestUpdatedTimeoutsCountForThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1, BorrowTimeout: time.Minute}, new(fake))
		holder, waiting := r.connect(t, "u"), r.connect(t, "u")
		holder.ok("BEGIN")
		waiting.ask("SELECT 1")
		time.Sleep(20 * time.Second)
		r.change(t, pgmoor.Config{MaxConnections: 1, BorrowTimeout: 30 * time.Second})
		start := time.Now()
		require.Equal(t, "08000", waiting.reply().code())
		require.Equal(t, 10*time.Second, time.Since(start))
		waiting.ask("SELECT 1")
		r.change(t, pgmoor.Config{MaxConnections: 1, BorrowTimeout: 90 * time.Second})
		require.Equal(t, "08000", waiting.reply().code())
		require.Equal(t, 100*time.Second, time.Since(start))
		holder.ok("COMMIT")

		r.change(t, pgmoor.Config{MaxConnections: 1, IdleTimeout: 10 * time.Second})
		time.Sleep(11 * time.Second)
		require.Zero(t, r.Stats().Servers)
	})
}

func TestAGreaterLimitGivesThoseWhoWaitMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, new(fake))
		clients := make([]*client, 5)
		for i := range clients {
			clients[i] = r.connect(t, string(rune('a'+i%2))) // of two pools
		}
		clients[0].ok("BEGIN")
		start := time.Now()
		for _, c := range clients[1:] {
			c.ask("sleep 1s")
		}
		synctest.Wait()
		require.Equal(t, 4, r.Stats().Waiting)
		r.change(t, pgmoor.Config{MaxConnections: 5})
		for _, c := range clients[1:] {
			require.Nil(t, c.reply().err)
		}
		require.Equal(t, time.Second, time.Since(start))
		_, most, _, _ := r.server.counts()
		require.Equal(t, 5, most)
	})
}

func TestASmallerLimitClosesWhatIsBeyondIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 6, MaxOpening: 6}, new(fake))
		var idle, txn []*client
		for i := range 3 {
			idle = append(idle, r.connect(t, string(rune('a'+i))))
			txn = append(txn, r.connect(t, "t"))
		}
		for i := range 3 {
			idle[i].ok("SELECT 1")
			txn[i].ok("BEGIN")
		}
		require.Equal(t, 6, r.Stats().Servers)
		waiting := r.connect(t, "t")
		waiting.ask("SELECT 1")
		require.Nil(t, waiting.reply().err) // in place of an idle one
		synctest.Wait()
		r.change(t, pgmoor.Config{MaxConnections: 2, MaxOpening: 6})
		synctest.Wait()
		require.Equal(t, 3, r.Stats().Servers, "those in use stay")
		require.Zero(t, r.Stats().ServersIdle)
		waiting.ask("SELECT 2")
		synctest.Wait()
		txn[0].ok("COMMIT") // is beyond the limit, whoever waits
		synctest.Wait()
		require.Equal(t, 2, r.Stats().Servers)
		require.Equal(t, 1, r.Stats().Waiting)
		txn[1].ok("COMMIT")
		require.Nil(t, waiting.reply().err)
		txn[2].ok("COMMIT")
		synctest.Wait()
		require.Equal(t, 2, r.Stats().Servers)
		for _, c := range append(idle, txn...) {
			c.ok("SELECT 3")
		}
		open, _, _, _ := r.server.counts()
		require.LessOrEqual(t, open, 2)
		r.change(t, pgmoor.Config{MaxConnections: 1})
		r.change(t, pgmoor.Config{MaxConnections: 7, MaxOpening: 7})
		for _, c := range append(idle, txn...) {
			c.ok("BEGIN")
		}
		require.GreaterOrEqual(t, r.Stats().Servers, 6) // one more may be idle, of another user
	})
}

func TestWithOtherHostsServerConnectionsAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 3}, new(fake))
		c, txn := r.connect(t, "u"), r.connect(t, "u")
		txn.ok("BEGIN")
		c.ok("SELECT 1")
		require.EqualValues(t, 2, r.Stats().ServersOpened)
		r.change(t, pgmoor.Config{MaxConnections: 3, BorrowTimeout: time.Second})
		synctest.Wait()
		require.Zero(t, r.Stats().ServersClosed)
		r.change(t, pgmoor.Config{MaxConnections: 3, Upstream: pgmoor.Upstream{Hosts: []string{"other"}}})
		synctest.Wait()
		require.EqualValues(t, 1, r.Stats().ServersClosed)
		require.Equal(t, "3", c.ok("pid"))
		require.Equal(t, "1", txn.ok("pid"))
		txn.ok("COMMIT")
		synctest.Wait()
		require.EqualValues(t, 2, r.Stats().ServersClosed)
	})
}

func TestUpdatedPoliciesCountForStatementsFromThenOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logBuffer
		refuses := pgmoor.PinningPolicyFunc(func(_ *pgmoor.Session, st *pgmoor.Statement) pgmoor.Decision {
			if st.Effects&pgmoor.EffectAdvisoryLock != 0 {
				return pgmoor.Decision{Refuse: &pgmoor.Error{Code: "0A000", Message: "no locks"}}
			}
			return pgmoor.Decision{}
		})
		r := newRig(t, pgmoor.Config{Verify: pgmoor.VerifyNever}, new(fake))
		c := r.connect(t, "u")
		c.ok("SELECT pg_advisory_lock(1)")
		require.Empty(t, log.text())
		r.change(t, pgmoor.Config{Verify: pgmoor.VerifyNever, Pinning: refuses, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		require.Equal(t, 1, r.Stats().Pinned)
		other := r.connect(t, "u")
		var asked []string
		r.server.mu.Lock()
		r.server.sent = func(_ uint32, sql string) { asked = append(asked, sql) }
		r.server.mu.Unlock()
		other.query("SELECT pg_advisory_lock(1)")
		synctest.Wait()
		require.Contains(t, strings.Join(asked, "\n"), "pgmoor: refused")

		r.change(t, pgmoor.Config{Verify: pgmoor.VerifyListed, VerifyFunctions: []string{"f"}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		other.ok("SELECT f()")
		synctest.Wait()
		require.EqualValues(t, 1, r.Stats().Verifications)
		other.ok("CREATE TEMP TABLE x (i int)")
		require.Contains(t, log.text(), "session pinned")
	})
}

func TestUpdatedSecretsAndCertificatesCountForThoseWhoLogIn(t *testing.T) {
	secret := func(pw string) pgmoor.StaticSecrets { return pgmoor.StaticSecrets{"u": pgmoor.NewSecret(pw)} }
	first, firstRoots := certified(t)
	second, secondRoots := certified(t)
	r := newRig(t, pgmoor.Config{Secrets: secret("one"), TLS: first}, new(fake))
	address := r.listenTCP(t)
	login := func(pw string, roots *x509.CertPool) (*pgconn.PgConn, error) {
		host, port, err := net.SplitHostPort(address)
		require.NoError(t, err)
		pc, err := pgconn.ParseConfig("host=" + host + " port=" + port + " user=u dbname=d sslmode=require password=" + pw)
		require.NoError(t, err)
		pc.TLSConfig = &tls.Config{RootCAs: roots, ServerName: "localhost"}
		return pgconn.ConnectConfig(t.Context(), pc)
	}
	stays, err := login("one", firstRoots)
	require.NoError(t, err)
	r.change(t, pgmoor.Config{Secrets: secret("two"), TLS: second})
	_, err = login("one", secondRoots)
	require.Equal(t, "28P01", codeOf(err))
	_, err = login("two", firstRoots)
	require.ErrorContains(t, err, "certificate")
	conn, err := login("two", secondRoots)
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	_, err = stays.Exec(t.Context(), "SELECT 1").ReadAll()
	require.NoError(t, err)
	r.change(t, pgmoor.Config{Secrets: secret("two"), TLS: second, Authenticator: pgmoor.Trust()})
	conn, err = login("three", secondRoots)
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	require.NoError(t, stays.Close(t.Context()))
}

// TestEveryFieldIsKnownToTheTableOfUpdates is for those who add one.
func TestEveryFieldIsKnownToTheTableOfUpdates(t *testing.T) {
	for _, typ := range []reflect.Type{reflect.TypeFor[pgmoor.Config](), reflect.TypeFor[pgmoor.Upstream]()} {
		for f := range typ.NumField() {
			if field := typ.Field(f); field.IsExported() {
				require.NotEmpty(t, updates[typ.Name()+"."+field.Name], "say in updates what Proxy.Update does with Config's %s", field.Name)
			}
		}
	}
}
