package pgmoor_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// execDatabase is where pgtest's Exec works.
const execDatabase = "app"

// asking is a source that asks the cluster as its superuser.
func asking(t *testing.T, c *pgtest.Cluster) *pgmoor.AuthQuery {
	q := &pgmoor.AuthQuery{Upstream: trusting(c).Upstream, User: "postgres", Database: execDatabase, Logger: quiet}
	require.NoError(t, q.Validate())
	t.Cleanup(func() { require.NoError(t, q.Close()) })
	return q
}

// role makes a role that did not exist before.
func role(t *testing.T, c *pgtest.Cluster, name, options string) {
	t.Helper()
	c.Exec(t, fmt.Sprintf("DROP ROLE IF EXISTS %s", name))
	c.Exec(t, fmt.Sprintf("CREATE ROLE %s %s", name, options))
}

// entering returns the code with which a user is refused, and otherwise who it is on the server.
func entering(t *testing.T, p *pgmoor.Proxy, user, password, extra string) (who, code string) {
	t.Helper()
	conn, err := pgconn.Connect(t.Context(), fmt.Sprintf("postgres://%s:%s@%s/app?%s", user, password, p.Addr(), extra))
	if err != nil {
		require.NotEmpty(t, codeOf(err), "%v", err)
		return "", codeOf(err)
	}
	defer conn.Close(context.Background())
	res, err := conn.Exec(t.Context(), "SELECT session_user").ReadAll()
	require.NoError(t, err)
	return string(res[0].Rows[0][0]), ""
}

// eachMethod runs a test with every way of asking for a password.
func eachMethod(t *testing.T, c *pgtest.Cluster, test func(t *testing.T, p *pgmoor.Proxy)) {
	for name, method := range map[string]func(pgmoor.SecretSource) pgmoor.Authenticator{
		"SCRAM": pgmoor.SCRAM, "MD5": pgmoor.MD5, "Cleartext": pgmoor.Cleartext,
	} {
		t.Run(name, func(t *testing.T) {
			q := asking(t, c)
			cfg := trusting(c)
			cfg.Secrets, cfg.Authenticator, cfg.Logger = q, method(q), quiet
			cfg.TLS, _ = certified(t)
			test(t, startProxy(t, cfg))
		})
	}
}

// TestCVE_2015_6817 has users that the query does not find: PgBouncer logged them in as its auth_user.
func TestCVE_2015_6817_UnknownUserIsNotTheOneWhoAsks(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		c := pgtest.Shared(t, version)
		role(t, c, "aq_known", "LOGIN PASSWORD 'sesame'")
		role(t, c, "aq_group", "NOLOGIN PASSWORD 'sesame'")
		role(t, c, "aq_nopw", "LOGIN")
		long := strings.Repeat("l", 63)
		role(t, c, long, "LOGIN PASSWORD 'sesame'")
		eachMethod(t, c, func(t *testing.T, p *pgmoor.Proxy) {
			who, code := entering(t, p, "aq_known", "sesame", "sslmode=require")
			require.Equal(t, []string{"aq_known", ""}, []string{who, code})
			who, code = entering(t, p, long+"x", "sesame", "sslmode=require") // whom PostgreSQL takes for the same, whose password it is
			require.Equal(t, []string{long, ""}, []string{who, code})
			_, code = entering(t, p, long+"x", "x", "sslmode=require")
			require.Equal(t, "28P01", code)
			for _, user := range []string{"aq_nobody", "aq_group", "aq_nopw", "postgres", "$1", "aq_known'%20OR%20'1'='1", "%C3%28"} {
				for _, pw := range []string{"sesame", "x"} {
					_, code := entering(t, p, user, pw, "sslmode=require")
					require.Equal(t, "28P01", code, "%s with %s", user, pw)
				}
			}
		})
	})
}

// TestCVE_2025_2291 has passwords that are not valid any more: PgBouncer let them in.
func TestCVE_2025_2291_ValidUntilCounts(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		c := pgtest.Shared(t, version)
		role(t, c, "aq_past", "LOGIN PASSWORD 'sesame' VALID UNTIL '2001-01-01'")
		role(t, c, "aq_future", "LOGIN PASSWORD 'sesame' VALID UNTIL '2999-01-01'")
		role(t, c, "aq_forever", "LOGIN PASSWORD 'sesame' VALID UNTIL 'infinity'")
		eachMethod(t, c, func(t *testing.T, p *pgmoor.Proxy) {
			_, code := entering(t, p, "aq_past", "sesame", "sslmode=require")
			require.Equal(t, "28P01", code)
			for _, user := range []string{"aq_future", "aq_forever"} {
				who, _ := entering(t, p, user, "sesame", "sslmode=require")
				require.Equal(t, user, who)
			}
		})
	})
}

// TestCVE_2025_12819 has a client choose where unqualified names lead: in PgBouncer its search_path reached the connection of the
// auth_query. The query here is unqualified, and a schema, which is also the default of the role that asks, has what it mentions.
func TestCVE_2025_12819_NothingOfAClientReachesTheConnectionThatAsks(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		c := pgtest.Shared(t, version)
		role(t, c, "aq_victim", "LOGIN PASSWORD 'sesame'")
		c.Exec(t, "DROP SCHEMA IF EXISTS aq_evil CASCADE")
		c.Exec(t, "DROP ROLE IF EXISTS aq_asks")
		c.Exec(t, "CREATE ROLE aq_asks LOGIN SUPERUSER")
		c.Exec(t, "ALTER ROLE aq_asks SET search_path = aq_evil, pg_catalog")
		c.Exec(t, "CREATE SCHEMA aq_evil")
		c.Exec(t, "CREATE TABLE aq_evil.pg_authid AS SELECT rolname, 'evil'::text AS rolpassword, NULL::timestamptz AS rolvaliduntil, true AS rolcanlogin FROM pg_catalog.pg_authid")
		c.Exec(t, "CREATE FUNCTION aq_evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz'")
		var seen []string
		for _, query := range []string{"", strings.ReplaceAll(pgmoor.DefaultAuthQuery, "pg_catalog.", "")} {
			q := asking(t, c)
			q.User, q.Query = "aq_asks", query
			cfg := trusting(c)
			cfg.Secrets, cfg.Authenticator, cfg.Logger = q, nil, quiet
			p := startProxy(t, cfg)
			const evil = "sslmode=disable&search_path=aq_evil%2Cpg_catalog&options=-csearch_path%3Daq_evil%2Cpg_catalog&application_name=evil&role=aq_victim"
			_, code := entering(t, p, "aq_victim", "evil", evil)
			require.Equal(t, "28P01", code)
			who, _ := entering(t, p, "aq_victim", "sesame", evil)
			require.Equal(t, "aq_victim", who)
			for _, row := range c.Exec(t, "SELECT application_name FROM pg_stat_activity WHERE usename = 'aq_asks' AND state = 'idle'") {
				seen = append(seen, row[0])
			}
		}
		require.NotEmpty(t, seen)
		for _, name := range seen {
			require.Equal(t, "pgmoor", name)
		}
	})
}

func TestAnAuthQueryOfAFunctionNeedsNoSuperuser(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		c := pgtest.Shared(t, version)
		role(t, c, "aq_victim", "LOGIN PASSWORD 'sesame'")
		c.Exec(t, "DROP SCHEMA IF EXISTS pgmoor CASCADE")
		role(t, c, "aq_plain", "LOGIN")
		for _, sql := range strings.Split(strings.TrimSpace(docsBlock(t, "CREATE SCHEMA pgmoor")), ";\n") {
			if sql = strings.ReplaceAll(sql, "asks", "aq_plain"); !strings.HasPrefix(sql, "CREATE ROLE") {
				c.Exec(t, sql)
			}
		}
		defer c.Exec(t, "DROP SCHEMA pgmoor CASCADE")
		q := asking(t, c)
		q.User = "aq_plain"
		_, err := q.Secret(t.Context(), "aq_victim")
		require.ErrorContains(t, err, "42501")
		f := asking(t, c)
		f.User, f.Query = "aq_plain", "SELECT name, secret FROM pgmoor.secret_of($1)"
		s, err := f.Secret(t.Context(), "aq_victim")
		require.NoError(t, err)
		require.False(t, s.IsZero())
		_, err = f.Secret(t.Context(), "aq_nobody")
		require.ErrorIs(t, err, pgmoor.ErrNoSecret)
	})
}

func TestAnAuthQueryComesBackAfterItsConnectionIsLost(t *testing.T) {
	c := pgtest.Shared(t, 18)
	role(t, c, "aq_known", "LOGIN PASSWORD 'sesame'")
	q := asking(t, c)
	for range 3 {
		_, err := q.Secret(t.Context(), "aq_known")
		require.NoError(t, err)
		c.Exec(t, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'pgmoor' AND usename = 'postgres'")
	}
	q.Query, q.Timeout = "SELECT 'a', pg_catalog.pg_sleep(10)::text WHERE $1 <> ''", 200*time.Millisecond
	start := time.Now()
	_, err := q.Secret(t.Context(), "aq_known")
	require.Error(t, err)
	require.Less(t, time.Since(start), 5*time.Second)
	q.Query, q.Timeout = "SELECT rolname, 'x' FROM pg_catalog.pg_authid WHERE rolname <> $1", 0
	_, err = q.Secret(t.Context(), "aq_known")
	require.ErrorContains(t, err, "at most one row")
	require.NoError(t, q.Close())
	_, err = q.Secret(t.Context(), "aq_known")
	require.ErrorContains(t, err, "closed")
	require.NoError(t, q.Close())
}

func TestTheOneWhoAsksHasItsOwnPassword(t *testing.T) {
	c := pgtest.Shared(t, 15)
	q := asking(t, c)
	q.User, q.Query = "pw_scram", "SELECT 'u', 'x' WHERE $1 = 'u'"
	_, err := q.Secret(t.Context(), "u")
	require.ErrorContains(t, err, "28P01")
	require.Empty(t, codeOf(err), "no client is to be told what is between the proxy and its server")
	q = asking(t, c)
	q.User, q.Query = "pw_scram", "SELECT 'u', 'x' WHERE $1 = 'u'"
	q.Secrets = pgmoor.StaticSecrets{"pw_scram": pgmoor.NewSecret("old").WithPrevious(pgmoor.NewSecret(pgtest.Password))}
	says(t, q, "u", pgmoor.NewSecret("x"))
}
