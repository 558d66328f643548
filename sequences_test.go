package pgmoor_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// A request is something that a driver sends at once; it returns what came back, without what differs between connections.
type request func(c *client) string

// told renders a reply.
func told(r reply) string { return fmt.Sprintf("%q %q %q %c", r.rows, r.tags, r.code(), r.status) }

// simple is a simple Query.
func simple(sql string) request { return func(c *client) string { return told(c.query(sql)) } }

// unnamed is a statement without a name, with bound parameters.
func unnamed(sql string, parameters ...string) request { return named("", sql, parameters...) }

// named prepares a statement and runs it.
func named(name, sql string, parameters ...string) request {
	return func(c *client) string {
		c.send(append([]pgproto3.FrontendMessage{&pgproto3.Parse{Name: name, Query: sql}}, run(name, parameters...)...)...)
		return told(c.reply())
	}
}

// run is the rest of an extended statement, behind its Parse.
func run(name string, parameters ...string) []pgproto3.FrontendMessage {
	b := &pgproto3.Bind{PreparedStatement: name}
	for _, v := range parameters {
		b.Parameters = append(b.Parameters, []byte(v))
	}
	return []pgproto3.FrontendMessage{b, &pgproto3.Describe{ObjectType: 'P'}, &pgproto3.Execute{}, &pgproto3.Sync{}}
}

// inFrontOf pipelines a simple Query in front of a statement.
func inFrontOf(reset, sql string) request {
	return func(c *client) string {
		c.send(append([]pgproto3.FrontendMessage{&pgproto3.Query{String: reset}, &pgproto3.Parse{Query: sql}}, run("")...)...)
		return told(c.reply()) + told(c.reply())
	}
}

// driverSequences are what drivers and frameworks say when they connect and when they put a connection back into their own pool
// (reference/rds-proxy.md, 8.4), with the reasons for which that pins for a while.
var driverSequences = []struct {
	name  string
	steps []request
	pins  []string
}{
	{name: "Rails ActiveRecord", steps: []request{
		simple("SET client_min_messages TO 'warning'"), simple("SET standard_conforming_strings = on"),
		simple("SET intervalstyle = iso_8601"), simple("SET SESSION timezone TO 'UTC'"),
		simple(`SET search_path TO "seq", public`), simple("SET SESSION statement_timeout TO '30s'"),
		unnamed("SELECT '1 day 02:03:04'::interval WHERE $1 = 1", "1"),
	}},
	{name: "Rails with variables that go back to their defaults", steps: []request{
		simple("SET SESSION statement_timeout TO DEFAULT"), simple("SET lock_timeout = 5000; SET lock_timeout TO DEFAULT"),
	}},
	{name: "Django", steps: []request{
		simple("SELECT set_config('TimeZone', 'UTC', false)"),
		unnamed("SELECT set_config('TimeZone', $1, false)", "Europe/Paris"),
		unnamed("SELECT set_config($1, $2, $3)", "TimeZone", "Asia/Tokyo", "false"),
		unnamed("SELECT '2001-02-03 04:05:06+00'::timestamptz"),
	}},
	{name: "Django outside of transactions, .iterator()", pins: []string{"holdable_cursor"}, steps: []request{
		simple(`DECLARE "_django_curs_1_sync_1" NO SCROLL CURSOR WITH HOLD FOR SELECT * FROM generate_series(1, 5)`),
		simple(`FETCH FORWARD 2 FROM "_django_curs_1_sync_1"`), simple(`FETCH FORWARD 9 FROM "_django_curs_1_sync_1"`),
		simple(`CLOSE "_django_curs_1_sync_1"`), simple(`FETCH 1 FROM "_django_curs_1_sync_1"`),
	}},
	{name: "Prisma", steps: []request{
		simple(`SET search_path = "public"; SET NAMES 'UTF8';`), simple(`SET search_path = "seq";`),
		unnamed("SELECT current_schema()"),
	}},
	{name: "Npgsql", steps: []request{
		simple("SET work_mem = '7MB'; SET application_name = 'npgsql'"), simple("DISCARD ALL"),
		simple("SET work_mem = '8MB'"), inFrontOf("DISCARD ALL", "SHOW work_mem"), inFrontOf("DISCARD ALL", "SELECT 1"),
	}},
	{name: "asyncpg", steps: []request{
		unnamed("SELECT current_setting('jit') AS cur, set_config('jit', 'off', false) AS new"), unnamed("SHOW jit"),
		unnamed("SELECT set_config('jit', $1, false)", "on"), unnamed("SELECT current_setting('jit')"),
		simple("SET extra_float_digits = 0; SET app.tenant = 'x'"),
		simple("SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;"), unnamed("SHOW extra_float_digits"),
		simple("SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;"),
	}},
	{name: "psycopg", steps: []request{
		simple("DEALLOCATE ALL"), unnamed("SELECT $1::int + 1", "2"), simple("BEGIN"), simple("ROLLBACK"), unnamed("DEALLOCATE ALL"),
	}},
	{name: "psycopg with named statements", steps: []request{
		named("_pg3_0", "SELECT $1::int + 1", "2"), named("_pg3_1", "SELECT 2"), simple("DEALLOCATE ALL"), named("_pg3_0", "SELECT 3"), simple("DEALLOCATE ALL"),
	}},
	{name: "pgjdbc", steps: []request{
		unnamed("SET extra_float_digits = 3"), unnamed("SET application_name = 'PostgreSQL JDBC Driver'"),
		unnamed("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"), unnamed("SHOW TRANSACTION ISOLATION LEVEL"),
		unnamed("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"), unnamed("SHOW transaction_read_only"), unnamed("CREATE TABLE seq.never (i int)"),
		unnamed("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"), unnamed("SET SESSION search_path TO 'seq'"),
		unnamed("BEGIN"), unnamed("SELECT current_schema()"), unnamed("COMMIT"),
	}},
	{name: "psqlODBC", steps: []request{
		simple("SET DateStyle = 'ISO';SET extra_float_digits = 2;SHOW transaction_isolation"), simple("SELECT '2001-02-03'::date, 0.1::float8"),
		simple("SET DateStyle = 'German'"), simple("SELECT '2001-02-03'::date"),
	}},
	{name: "golang-migrate", pins: []string{"advisory_lock"}, steps: []request{
		unnamed("SELECT pg_advisory_lock($1)", "7071"), simple("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"),
		simple("CREATE TABLE IF NOT EXISTS schema_migrations (version bigint not null primary key, dirty boolean not null)"),
		simple("BEGIN"), simple("TRUNCATE schema_migrations"), unnamed("INSERT INTO schema_migrations VALUES ($1, $2)", "1", "f"), simple("COMMIT"),
		unnamed("SELECT pg_advisory_unlock($1)", "7071"), simple("SELECT version FROM schema_migrations"),
	}},
	{name: "PHP without named statements", steps: []request{
		simple("DEALLOCATE pdo_stmt_00000001"), unnamed("DEALLOCATE pdo_stmt_00000001"), unnamed("SELECT 1"),
	}},
	{name: "PHP", steps: []request{
		named("pdo_stmt_00000001", "SELECT 17"), simple("DEALLOCATE pdo_stmt_00000001"), simple("DEALLOCATE pdo_stmt_00000001"),
		named("pdo_stmt_00000002", "SET work_mem = '5MB'"), simple("DEALLOCATE pdo_stmt_00000002"),
	}},
}

func TestDriversConnectAndResetAsTheyDoDirectly(t *testing.T) {
	for _, version := range versions {
		cluster := pgtest.Shared(t, version)
		cluster.Exec(t, "CREATE SCHEMA IF NOT EXISTS seq; DROP TABLE IF EXISTS schema_migrations")
		for _, seq := range driverSequences {
			t.Run(fmt.Sprintf("%s/%d", seq.name, version), func(t *testing.T) {
				direct := directly(t, cluster, "postgres")
				var want []string
				for range 2 {
					for _, do := range seq.steps {
						want = append(want, do(direct), direct.state())
					}
				}
				cfg := pgmoor.WithRotation(trusting(cluster))
				cfg.MaxConnections, cfg.Logger = 3, quiet
				p := startProxy(t, cfg)
				c, mess := overAs(t, p, "postgres"), messAround(t, p, "postgres")
				var got []string
				for range 2 {
					for _, do := range seq.steps {
						mess()
						got = append(got, do(c))
						mess()
						got = append(got, c.state())
					}
				}
				require.Equal(t, want, got)
				require.Equal(t, direct.told, c.told)
				require.Eventually(t, func() bool { return len(p.Stats().PinnedBy) == 0 }, patience, time.Millisecond)
				require.Equal(t, seq.pins, reasons(p))
				require.EqualValues(t, 3, p.Stats().ServersOpened)
				require.EqualValues(t, p.Stats().Unpins, total(p.Stats().PinsTotal))
			})
		}
	}
}

// directly logs in to the server itself.
func directly(t testing.TB, cluster *pgtest.Cluster, user string, params ...string) *client {
	t.Helper()
	c := newClient(t, dialTCP(t, cluster.Addr()))
	got := c.startup(user, append([]string{"database", "app"}, params...)...)
	require.Nil(t, got.err)
	return c
}

// state is every setting of the session that is its own and not the default, and what else a session may have. A placeholder that was ever set on
// a server connection stays there as an empty string, which cannot be told from none here.
func (c *client) state() string {
	c.t.Helper()
	return c.ok(`SELECT pg_catalog.concat_ws(' ', current_user, session_user, current_schemas(false), pg_catalog.current_setting('role'),
		'tenant ' || coalesce(pg_catalog.current_setting('app.tenant', true), ''),
		(SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', name, setting, source, reset_val), '|' ORDER BY name)
			FROM pg_catalog.pg_settings WHERE source NOT IN ('default', 'configuration file', 'override', 'command line') AND setting <> reset_val),
		'prepared', (SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_statements WHERE name <> ''),
		'cursors', (SELECT pg_catalog.count(*) FROM pg_catalog.pg_cursors WHERE name <> ''),
		'locks', (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()),
		'channels', (SELECT pg_catalog.count(*) FROM pg_catalog.pg_listening_channels()))`)
}

// messAround returns a function by which another client changes what it can on every connection of p, without being pinned.
func messAround(t testing.TB, p *pgmoor.Proxy, user string) func() {
	t.Helper()
	openServers(t, p, user, 3)
	other, times := overAs(t, p, user), 0
	return func() {
		other.ok("SET work_mem = '9MB'; SET TimeZone = 'America/Lima'; SET DateStyle = 'SQL, DMY'; SET IntervalStyle = 'sql_standard'",
			"SET search_path = pg_catalog; SET application_name = 'mess'; SET client_min_messages = 'error'; SET app.tenant = 'mess'",
			"SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, ISOLATION LEVEL REPEATABLE READ", "SET standard_conforming_strings = off",
			"SET extra_float_digits = 0; SET jit = on; SET statement_timeout = '1h'; SET client_encoding = 'LATIN1'", "SELECT 1", "SELECT 2", "SELECT 3")
		if times++; times%2 == 0 {
			other.ok("RESET ALL", "SELECT 1", "SELECT 2")
		}
	}
}

// openServers makes p open n server connections for a user, so that they can be lent in turn.
func openServers(t testing.TB, p *pgmoor.Proxy, user string, n int) {
	t.Helper()
	var all []*client
	for range n {
		c := overAs(t, p, user)
		c.ok("BEGIN")
		all = append(all, c)
	}
	for _, c := range all {
		c.ok("COMMIT")
	}
	require.Eventually(t, func() bool { st := p.Stats(); return st.ServersIdle == n && st.Servers == n }, 10*time.Second, time.Millisecond)
	for _, c := range all {
		require.NoError(t, c.conn.Close())
	}
}

// reasons are the reasons for which anybody was ever pinned; nil if there was none.
func reasons(p *pgmoor.Proxy) (all []string) {
	for r := range p.Stats().PinsTotal {
		all = append(all, r)
	}
	return all
}

func total(counts map[string]int64) (n int64) {
	for _, v := range counts {
		n += v
	}
	return n
}
