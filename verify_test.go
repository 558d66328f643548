package pgmoor_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// hides makes functions, procedures and a trigger that leave state in the session, which their calls do not show.
const hides = `DROP SCHEMA IF EXISTS hides CASCADE; CREATE SCHEMA hides; GRANT ALL ON SCHEMA hides TO PUBLIC;
	CREATE FUNCTION hides.run(text) RETURNS int LANGUAGE plpgsql AS 'BEGIN EXECUTE $1; RETURN 17; END';
	CREATE FUNCTION hides.lock() RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_lock(505); RETURN 17; END';
	CREATE PROCEDURE hides.proc() LANGUAGE plpgsql AS 'BEGIN CREATE TEMP TABLE hidden (i int); COMMIT; END';
	CREATE FUNCTION hides.conf(name text, value text) RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM set_config(name, value, false); RETURN 17; END';
	CREATE FUNCTION hides.trig() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN CREATE TEMP TABLE IF NOT EXISTS hidden (i int); RETURN NEW; END';
	CREATE TABLE hides.rows (i int);
	CREATE TRIGGER t BEFORE INSERT ON hides.rows FOR EACH ROW EXECUTE FUNCTION hides.trig()`

// hiddenState is what VerifyAlways finds; without a reason it is carried.
var hiddenState = map[string]struct {
	do     request
	reason string
	look   string
	want   string
	end    string
}{
	"a temporary table": {simple("SELECT hides.run('CREATE TEMP TABLE hidden AS SELECT 17 AS x')"), "temp_object", "SELECT x FROM hidden", "17", "DROP TABLE hidden"},
	"a temporary type":  {simple("SELECT hides.run('CREATE TYPE pg_temp.hidden AS (x int)')"), "temp_object", "SELECT (ROW(17)::pg_temp.hidden).x", "17", "DROP TYPE pg_temp.hidden"},
	"a temporary function, ended by another": {
		unnamed("SELECT hides.run($1)", "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 17'"),
		"temp_object", "SELECT pg_temp.f()", "17", "SELECT hides.run('DROP FUNCTION pg_temp.f()')",
	},
	"a lock":                  {simple("SELECT hides.lock()"), "advisory_lock", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()", "1", "SELECT pg_advisory_unlock(505)"},
	"a channel":               {simple("SELECT hides.run('LISTEN hidden')"), "listen", "SELECT pg_listening_channels()", "hidden", "UNLISTEN *"},
	"a prepared statement":    {simple("SELECT hides.run('PREPARE hidden AS SELECT 17')"), "prepare", "EXECUTE hidden", "17", "DEALLOCATE hidden"},
	"a DO block":              {simple("DO $$ BEGIN PERFORM pg_advisory_lock(506); END $$"), "advisory_lock", "SELECT 1", "1", "DO $$ BEGIN PERFORM pg_advisory_unlock(506); END $$"},
	"a procedure":             {unnamed("CALL hides.proc()"), "temp_object", "SELECT count(*) FROM hidden", "0", "DROP TABLE hidden"},
	"a trigger":               {unnamed("INSERT INTO hides.rows VALUES ($1)", "1"), "temp_object", "SELECT count(*) FROM hidden", "0", "DROP TABLE hidden"},
	"a setting":               {simple("SELECT hides.conf('work_mem', '5MB')"), "", "SHOW work_mem", "5MB", "RESET work_mem"},
	"a setting in a DO block": {simple("DO $$ BEGIN SET enable_sort = off; END $$"), "", "SHOW enable_sort", "off", "RESET ALL"},
	"a reported setting":      {unnamed("SELECT hides.conf('TimeZone', 'Asia/Tokyo')"), "", "SHOW TimeZone", "Asia/Tokyo", "RESET TimeZone"},
	"the search_path":         {simple("SELECT hides.run('SET search_path = hides, \"x y\"')"), "", "SHOW search_path", `hides, "x y"`, "RESET search_path"},
}

// verifying starts a proxy that lends connections in turn, after another client has made a mess on each.
func verifying(t *testing.T, cluster *pgtest.Cluster, mode pgmoor.VerifyMode, functions ...string) (*pgmoor.Proxy, func()) {
	cluster.Exec(t, hides)
	cfg := pgmoor.WithRotation(trusting(cluster))
	cfg.MaxConnections, cfg.Logger, cfg.Verify, cfg.VerifyFunctions = 4, quiet, mode, functions
	p := startProxy(t, cfg)
	return p, messAround(t, p, "postgres")
}

func TestVerifyAlwaysFindsHiddenState(t *testing.T) {
	for name, h := range hiddenState {
		for _, version := range versions {
			t.Run(fmt.Sprintf("%s/%d", name, version), func(t *testing.T) {
				p, mess := verifying(t, pgtest.Shared(t, version), pgmoor.VerifyAlways)
				c := overAs(t, p, "postgres")
				mess()
				require.Contains(t, h.do(c), `"" I`)
				if h.reason == "" {
					pinnedBy(t, p)
				} else {
					pinnedBy(t, p, h.reason)
				}
				for range 3 {
					mess()
					require.Equal(t, h.want, c.ok(h.look))
				}
				c.ok(h.end)
				pinnedBy(t, p)
				mess()
				require.EqualValues(t, p.Stats().Unpins, total(p.Stats().PinsTotal))
				require.Equal(t, h.reason != "", p.Stats().Unpins > 0)
				require.Equal(t, directly(t, pgtest.Shared(t, version), "postgres").fresh(), c.fresh())
			})
		}
	}
}

// fresh is what a session looks like that has done nothing yet. It needs hides. That the server process has had temporary objects
// before can be seen otherwise.
func (c *client) fresh() string {
	c.t.Helper()
	return c.state() + strings.Join([]string{
		c.ok("SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass AND refobjid = pg_my_temp_schema()"),
		c.query("SELECT hides.run('SELECT lastval()')").code(), c.query("EXECUTE hidden").code(), c.query("FETCH 1 FROM hidden").code(),
		c.query("SELECT * FROM hidden").code(), c.ok("SHOW transaction_isolation"), c.ok("SHOW transaction_read_only"),
	}, " ")
}

func TestVerifyListedLooksAtWhatIsListed(t *testing.T) {
	for _, version := range versions {
		for call, found := range map[string]bool{
			"SELECT hides.lock()": true, "SELECT HIDES . LOCK ( )": true, `SELECT "hides"."lock"()`: true, "SELECT 1 WHERE hides.lock() > 0": true,
			"SET search_path = hides; SELECT lock()": true, "SELECT hides.run('SELECT pg_advisory_lock(505)')": false,
			"SELECT 'lock', pg_catalog.upper('lock()')": false, "CREATE FUNCTION hides.lock(int) RETURNS int LANGUAGE sql AS 'SELECT 1'": false,
		} {
			t.Run(fmt.Sprintf("%s/%d", call, version), func(t *testing.T) {
				p, _ := verifying(t, pgtest.Shared(t, version), pgmoor.VerifyListed, "lock", "proc")
				c := overAs(t, p, "postgres")
				c.ok("SELECT 1", "BEGIN", "SELECT 2", "COMMIT")
				require.Zero(t, p.Stats().Verifications)
				c.ok(call)
				if !found {
					pinnedBy(t, p)
					return
				}
				pinnedBy(t, p, "advisory_lock")
				c.ok("SELECT pg_advisory_unlock_all()")
				pinnedBy(t, p)
				unnamed("CALL hides.proc()")(c)
				pinnedBy(t, p, "temp_object")
				c.ok("BEGIN", "DROP TABLE hidden")
				pinnedBy(t, p, "temp_object")
				c.ok("ROLLBACK")
				pinnedBy(t, p, "temp_object")
				c.ok("DROP TABLE hidden")
				pinnedBy(t, p)
			})
		}
	}
}

func TestWithoutVerificationPinsEndByDiscardOnly(t *testing.T) {
	for reason, do := range map[string]struct{ begin, end string }{
		"listen":            {"LISTEN ä", "UNLISTEN *"},
		"temp_object":       {"CREATE TEMP TABLE hidden (i int)", "DROP TABLE hidden"},
		"advisory_lock":     {"SELECT pg_try_advisory_lock(507)", "SELECT pg_advisory_unlock_all()"},
		"holdable_cursor":   {"DECLARE hidden CURSOR WITH HOLD FOR SELECT 1", "CLOSE ALL"},
		"prepare":           {"PREPARE hidden AS SELECT set_config('app.y', '1', false)", "DEALLOCATE ALL"},
		"untracked_setting": {"SELECT set_config('app.' || 'x', '1', false)", "RESET ALL"},
		"requested":         {"SET pgmoor.pin = on", "SELECT 1"},
	} {
		t.Run(reason, func(t *testing.T) {
			p, _ := verifying(t, pgtest.Shared(t, 18), pgmoor.VerifyNever)
			c := overAs(t, p, "postgres")
			c.ok(do.begin)
			pinnedBy(t, p, reason)
			c.ok(do.end, "SELECT 1")
			require.Never(t, func() bool { return p.Stats().Pinned == 0 }, 2*time.Second, 100*time.Millisecond)
			c.ok("DISCARD ALL")
			pinnedBy(t, p)
			require.Equal(t, directly(t, pgtest.Shared(t, 18), "postgres").fresh(), c.fresh())
			require.Zero(t, p.Stats().Verifications)
		})
	}
}

func TestWhatIsDoneBehindADiscardStillPins(t *testing.T) {
	for name, c := range map[string]struct {
		sql    []string // sent in one go
		reason string
	}{
		"an untracked setting": {[]string{"DISCARD ALL", "SELECT set_config('app.' || 'x', '1', false)"}, "untracked_setting"},
		"a request":            {[]string{"DISCARD ALL", "SET pgmoor.pin = on"}, "requested"},
		"a channel":            {[]string{"DISCARD ALL", strings.Repeat("LISTEN a;", 65)}, "listen"},
		"a temporary table":    {[]string{"DISCARD TEMP", "CREATE TEMP TABLE a (i int)"}, "temp_object"},
		"a lock":               {[]string{"DISCARD ALL", "SELECT pg_advisory_lock(510)"}, "advisory_lock"},
	} {
		for _, before := range []string{"SELECT 1", "SELECT pg_advisory_lock(1)"} {
			t.Run(name+"/"+before, func(t *testing.T) {
				cluster := pgtest.Shared(t, 18)
				cfg := trusting(cluster)
				cfg.MaxConnections, cfg.Logger = 2, quiet
				p := startProxy(t, cfg)
				client := overAs(t, p, "postgres")
				client.ok(before)
				for _, sql := range c.sql {
					client.Send(&pgproto3.Query{String: sql})
				}
				require.NoError(t, client.Flush())
				for range c.sql {
					require.Nil(t, client.reply().err)
				}
				if c.reason == "requested" { // which the server is asked about
					pinnedBy(t, p, c.reason)
				}
				require.Never(t, func() bool { return p.Stats().Pinned != 1 }, 50*time.Millisecond, 5*time.Millisecond, "not pinned for %s", c.reason)
				if before == "SELECT 1" {
					pinnedBy(t, p, c.reason)
				}
			})
		}
	}
}

func TestPinsEndAtAnInterval(t *testing.T) {
	for name, c := range map[string]struct {
		interval time.Duration
		left     string
		asked    []time.Duration // when the server is asked, at the latest; the client does something 18 s later
		ends     bool
	}{
		"by default":       {0, "", []time.Duration{3 * time.Second}, true},
		"after a while":    {10 * time.Second, "", []time.Duration{12 * time.Second}, true},
		"but not for ever": {-1, "", nil, false},
		"if it may":        {10 * time.Second, "l", []time.Duration{12 * time.Second, 33 * time.Second, 54 * time.Second}, false},
		"something else":   {10 * time.Second, "t", []time.Duration{12 * time.Second, 33 * time.Second, 54 * time.Second}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := new(fake)
				server.left.Store(c.left)
				r := newRig(t, pgmoor.Config{MaxConnections: 1, UnpinInterval: c.interval}, server)
				client := r.connect(t, "u")
				begin := time.Now()
				client.ok("SELECT pg_advisory_lock(1)")
				require.Equal(t, map[string]int{"advisory_lock": 1}, r.Stats().PinnedBy)
				for i, at := range c.asked {
					if i == 0 { // later the interval is over already when the client does something
						time.Sleep(time.Until(begin.Add(at - 3*time.Second)))
						require.Zero(t, r.Stats().Verifications, "before %v", at)
					}
					time.Sleep(time.Until(begin.Add(at)))
					require.EqualValues(t, i+1, r.Stats().Verifications, "after %v", at)
					time.Sleep(time.Until(begin.Add(at + 18*time.Second)))
					require.EqualValues(t, i+1, r.Stats().Verifications, "nothing has happened since")
					client.ok("SELECT 1")
				}
				if !c.ends {
					time.Sleep(time.Minute)
				}
				require.Equal(t, c.ends, r.Stats().Pinned == 0)
			})
		})
	}
}

func TestAPinEndsAtOnceWhereAnotherClientWaits(t *testing.T) {
	for name, user := range map[string]string{"of the same pool": "u", "of another pool": "v"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := new(fake)
				server.left.Store("l")
				r := newRig(t, pgmoor.Config{MaxConnections: 2, UnpinInterval: -1}, server)
				c, other, third := r.connect(t, "u"), r.connect(t, user), r.connect(t, user)
				third.ok("BEGIN")
				c.ok("SELECT pg_advisory_lock(1)", "SELECT 1")
				other.ask("pid")
				time.Sleep(10 * time.Second)
				require.Equal(t, map[string]int{"advisory_lock": 1}, r.Stats().PinnedBy)
				server.left.Store("")
				c.ask("sleep 1s") // the answer of the server has changed
				begin := time.Now()
				require.Nil(t, c.reply().err)
				require.Nil(t, other.reply().err)
				require.LessOrEqual(t, time.Since(begin), 1100*time.Millisecond)
				require.Zero(t, r.Stats().Pinned)

				c.ok("SELECT pg_advisory_lock(1)")
				require.Equal(t, 1, r.Stats().Pinned)
				begin = time.Now()
				other.ok("pid")
				require.LessOrEqual(t, time.Since(begin), 100*time.Millisecond)
			})
		})
	}
}

func TestAPinStaysWhereTheRoleMayNotSeeWhatIsLeft(t *testing.T) {
	for _, version := range versions {
		for i, what := range []string{
			"SELECT ON pg_locks", "SELECT ON pg_cursors", "SELECT ON pg_prepared_statements", "SELECT ON pg_settings", "SELECT ON pg_depend",
			"EXECUTE ON FUNCTION pg_listening_channels()",
		} {
			t.Run(fmt.Sprintf("%s/%d", what, version), func(t *testing.T) {
				cluster := pgtest.Shared(t, version)
				database := fmt.Sprint("blind", i)
				admin := directly(t, cluster, "postgres")
				admin.ok("DROP DATABASE IF EXISTS "+database, "CREATE DATABASE "+database)
				directly(t, cluster, "postgres", "database", database).ok("REVOKE " + what + " FROM PUBLIC")
				cfg := trusting(cluster)
				cfg.MaxConnections, cfg.Logger, cfg.UnpinInterval = 2, quiet, time.Millisecond
				p := startProxy(t, cfg)
				c, other := overAs(t, p, "app", "database", database), overAs(t, p, "app", "database", database)
				do, end, reason := "SELECT pg_advisory_lock(1)", "SELECT pg_advisory_unlock(1)", "advisory_lock"
				if strings.Contains(what, "listening") {
					do, end, reason = "LISTEN a", "UNLISTEN a", "listen"
				}
				c.ok(do)
				pinnedBy(t, p, reason)
				backend := c.ok("SELECT pg_backend_pid()")
				for range 3 {
					c.query(end)
					c.ok("SELECT 1")
					other.ok("SELECT 1")
					require.Equal(t, backend, c.ok("SELECT pg_backend_pid()"))
				}
				require.Positive(t, p.Stats().Verifications)
				pinnedBy(t, p, reason)
				c.send(&pgproto3.Terminate{})
				pinnedBy(t, p)
				other.ok("SELECT 1")
				require.NoError(t, p.Close())
			})
		}
	}
}

func TestAConnectionIsAsFreshAsANewOneAfterAPin(t *testing.T) {
	for _, version := range versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			cluster := pgtest.Shared(t, version)
			cluster.Exec(t, hides+"; CREATE SEQUENCE IF NOT EXISTS fresh_seq")
			cfg := trusting(cluster)
			cfg.MaxConnections, cfg.Logger = 1, quiet
			p := startProxy(t, cfg)
			c, other := overAs(t, p, "postgres"), overAs(t, p, "postgres")
			backend := c.ok("SELECT pg_backend_pid()")
			want := directly(t, cluster, "postgres").fresh()
			c.ok("CREATE TEMP TABLE hidden AS SELECT 1 AS x", "LISTEN a", "SELECT pg_advisory_lock(508), pg_advisory_lock_shared(509)",
				"DECLARE hidden CURSOR WITH HOLD FOR SELECT 1", "PREPARE hidden AS SELECT 1", "SELECT nextval('fresh_seq')",
				"CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 17'")
			named("hidden_too", "SELECT 1")(c)
			c.ok("SET work_mem = '5MB'; SET app.tenant = '17'; SET TimeZone = 'Asia/Tokyo'; SET client_encoding = 'LATIN1'; SET search_path = hides",
				"SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SELECT hides.conf('enable_sort', 'off')")
			c.ok("DISCARD SEQUENCES", "CLOSE ALL", "DEALLOCATE ALL", "UNLISTEN *", "SELECT pg_advisory_unlock_all()", "SET default_transaction_read_only = off",
				"DROP TABLE pg_temp.hidden", "DROP FUNCTION pg_temp.f()", "SET ROLE app")
			pinnedBy(t, p)
			require.Equal(t, want, other.fresh())
			require.Equal(t, backend, other.ok("SELECT pg_backend_pid()"))
			require.Equal(t, "5MB 17 Asia/Tokyo LATIN1 hides off app", c.ok(`SELECT concat_ws(' ', current_setting('work_mem'), current_setting('app.tenant'), current_setting('TimeZone'),
				current_setting('client_encoding'), current_setting('search_path'), current_setting('enable_sort'), current_user)`))
			require.Equal(t, want, other.fresh())
		})
	}
}
