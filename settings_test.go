package pgmoor_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// moving starts a proxy that lends three connections in turn, and a client that makes a mess on them.
func moving(t *testing.T, cluster *pgtest.Cluster) (*pgmoor.Proxy, func()) {
	t.Helper()
	cfg := pgmoor.WithRotation(trusting(cluster))
	cfg.MaxConnections, cfg.Logger = 3, quiet
	p := startProxy(t, cfg)
	return p, messAround(t, p, "postgres")
}

// literal is a string constant whose meaning depends on no setting.
func literal(s string) string {
	return "E'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}

func TestSettingsKeepTheirValues(t *testing.T) {
	hundred := map[string]string{}
	for i := range 40 {
		hundred[fmt.Sprintf("app.s%d", i)] = fmt.Sprint("value ", i)
	}
	for name, c := range map[string]struct {
		set    map[string]string
		reason string
	}{
		"quotes":              {set: map[string]string{"app.a": `it's "quoted"`, "application_name": "'"}},
		"backslashes":         {set: map[string]string{"app.a": `a\b\\c\'`, "app.b": `\`, "search_path": `"a\b", "c""d"`}},
		"other letters":       {set: map[string]string{"app.a": "Ünïcödé 日本語 🎈", "search_path": `"schéma", public`}},
		"nothing":             {set: map[string]string{"app.a": "", "search_path": "", "application_name": "", "temp_tablespaces": ""}},
		"an empty name":       {set: map[string]string{"search_path": `""`}},
		"lists":               {set: map[string]string{"search_path": `"$user", "a b", "c,d", public`, "DateStyle": "SQL, DMY"}},
		"units":               {set: map[string]string{"work_mem": "7MB", "statement_timeout": "90s", "lock_timeout": "1h"}},
		"temporary buffers":   {set: map[string]string{"temp_buffers": "1MB"}, reason: "untracked_setting"},
		"names":               {set: map[string]string{"app.tenant_1.x": "a", "TimeZone": "<-08>+08", "IntervalStyle": "iso_8601"}},
		"several lines":       {set: map[string]string{"app.a": "one\ntwo\r\n\tthree;--/*$$"}},
		"strings as of old":   {set: map[string]string{"standard_conforming_strings": "off", "app.a": `a\b'c`}},
		"4 KB":                {set: map[string]string{"app.a": strings.Repeat("x", 4000)}},
		"5 KiB":               {set: map[string]string{"app.a": strings.Repeat("x", 5<<10)}, reason: "untracked_setting"},
		"forty":               {set: hundred},
		"LATIN1":              {set: map[string]string{"client_encoding": "LATIN1", "app.a": "plain"}},
		"LATIN1, other words": {set: map[string]string{"client_encoding": "LATIN1", "app.a": "caf\xe9"}, reason: "untracked_setting"},
		"a deferrable reader": {set: map[string]string{"default_transaction_deferrable": "on"}, reason: "untracked_setting"},
		"the planner's":       {set: map[string]string{"enable_sort": "off", "random_page_cost": "1.1", "plan_cache_mode": "force_custom_plan"}},
	} {
		for _, version := range versions {
			t.Run(fmt.Sprintf("%s/%d", name, version), func(t *testing.T) {
				cluster := pgtest.Shared(t, version)
				p, mess := moving(t, cluster)
				c1, direct := overAs(t, p, "postgres"), directly(t, cluster, "postgres")
				names := slices.Sorted(maps.Keys(c.set))
				if i := slices.Index(names, "client_encoding"); i > 0 {
					names[0], names[i] = names[i], names[0]
				}
				for i, n := range names {
					sql := fmt.Sprintf("SELECT set_config(%s, %s, false)", literal(n), literal(c.set[n]))
					if i == 0 {
						mess()
					}
					direct.ok(sql)
					c1.ok(sql)
				}
				if c.reason == "" {
					pinnedBy(t, p)
				} else {
					pinnedBy(t, p, c.reason)
				}
				for range 3 {
					mess()
					require.Equal(t, direct.state(), c1.state())
					for _, n := range names[:min(len(names), 5)] {
						require.Equal(t, c.set[n], c1.ok("SELECT current_setting("+literal(n)+")"), n)
					}
				}
				require.Equal(t, direct.told, c1.told)
				direct.ok("DISCARD ALL")
				c1.ok("DISCARD ALL")
				pinnedBy(t, p)
				require.Equal(t, direct.state(), c1.state())
			})
		}
	}
}

func TestSettingsSurviveTheirServer(t *testing.T) {
	for _, version := range versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			cluster := pgtest.Shared(t, version)
			p, mess := moving(t, cluster)
			c := overAs(t, p, "postgres", "application_name", fmt.Sprint("survivor", version))
			c.ok("SET work_mem = '5MB'; SET app.tenant = '17'; SET search_path = seq, public; SET ROLE app")
			c.ok("BEGIN; SET work_mem = '6MB'; SET TimeZone = 'Asia/Tokyo'", "COMMIT")
			want := c.state()
			for range 3 {
				mess()
				killed := cluster.Exec(t, fmt.Sprintf("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'survivor%d'", version))
				require.NotEmpty(t, killed)
				require.Equal(t, want, c.state())
				require.Contains(t, unnamed("SHOW work_mem")(c), "6MB")
			}
			require.Equal(t, "app", c.ok("SELECT current_user"))
		})
	}
}

func TestExitOnErrorIsTheClientsOwn(t *testing.T) {
	for _, version := range versions {
		cluster := pgtest.Shared(t, version)
		p, mess := moving(t, cluster)
		c := overAs(t, p, "postgres")
		c.ok("SET work_mem = '5MB'; SET exit_on_error = on")
		for range 3 {
			mess()
			require.Equal(t, "on", c.ok("SHOW exit_on_error"))
			require.Equal(t, "5MB", c.ok("SHOW work_mem"))
		}
		r := c.query("SELECT 1/0")
		require.Equal(t, "22012", r.code())
		require.Equal(t, "FATAL", r.err.Severity)
		require.Zero(t, r.status)
		mess()
		require.Equal(t, "off", overAs(t, p, "postgres").ok("SHOW exit_on_error"))
		pinnedBy(t, p)
	}
}

func TestTheShortestTimeoutOfAnotherClientStopsNothing(t *testing.T) {
	for _, version := range versions {
		cfg := trusting(pgtest.Shared(t, version))
		cfg.MaxConnections, cfg.Logger = 2, quiet
		p := startProxy(t, cfg)
		hasty, c := overAs(t, p, "postgres"), overAs(t, p, "postgres")
		many := "SET app.tenant = '17'"
		for i := range 60 {
			many += fmt.Sprintf("; SET app.s%d = '%d'", i, i)
		}
		c.ok(many)
		for _, timeout := range []string{"statement_timeout", "lock_timeout", "transaction_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"} {
			for range 20 {
				if hasty.query("SET "+timeout+" = '1ms'; SELECT 1").status != 0 {
					require.Equal(t, "17", c.ok("SELECT current_setting('app.tenant'), pg_sleep(0.005)"))
				}
				require.NoError(t, hasty.conn.Close()) // which the last timeout might have done
				hasty = overAs(t, p, "postgres")
				require.Equal(t, "17", c.ok("SELECT current_setting('app.tenant'), pg_sleep(0.005)"))
			}
		}
		pinnedBy(t, p)
	}
}

func TestARoleThatIsGoneIsToldOnTheNextRequest(t *testing.T) {
	for name, ask := range map[string]func(c *client) reply{
		"simple":   func(c *client) reply { return c.query("INSERT INTO role_log VALUES (1)") },
		"extended": func(c *client) reply { return c.extended("INSERT INTO role_log VALUES (1)") },
		"a block":  func(c *client) reply { return c.query("BEGIN; INSERT INTO role_log VALUES (1); COMMIT") },
		"a pipeline": func(c *client) reply {
			c.send(&pgproto3.Query{String: "INSERT INTO role_log VALUES (1)"}, &pgproto3.Query{String: "INSERT INTO role_log VALUES (2)"})
			first, second := c.reply(), c.reply()
			require.NotNil(c.t, first.err)
			return second
		},
	} {
		for _, set := range []string{"SET ROLE %s", "SET SESSION AUTHORIZATION %s"} {
			for _, version := range versions {
				t.Run(fmt.Sprintf("%s/%s/%d", name, set, version), func(t *testing.T) {
					cluster := pgtest.Shared(t, version)
					cluster.Exec(t, `DROP ROLE IF EXISTS short_lived; CREATE ROLE short_lived; DROP TABLE IF EXISTS role_log; CREATE TABLE role_log (i int); GRANT ALL ON role_log TO PUBLIC`)
					p, mess := moving(t, cluster)
					c, other := overAs(t, p, "postgres"), overAs(t, p, "postgres")
					c.ok("SET work_mem = '5MB'", fmt.Sprintf(set, "short_lived"))
					require.Equal(t, "short_lived", c.ok("SELECT current_user"))
					other.ok("SET app.tenant = '17'")
					mess()
					cluster.Exec(t, "DROP ROLE short_lived")
					for range 3 { // whatever connection it gets
						mess()
						r := ask(c)
						require.Equal(t, "22023", r.code())
						require.Equal(t, "ERROR", r.err.Severity)
						require.Contains(t, r.err.Message, `role "short_lived" does not exist`)
						require.Equal(t, 1, r.errs)
						require.EqualValues(t, 'I', r.status)
						require.Equal(t, "17", other.ok("SELECT current_setting('app.tenant')"))
					}
					require.Equal(t, "0", cluster.Exec(t, "SELECT count(*) FROM role_log")[0][0], "it was run")
				})
			}
		}
	}
}

func TestSettingsFollowTransactionsAsTheyDoDirectly(t *testing.T) {
	const deferred = "CREATE TEMP TABLE d (i int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP"
	for name, script := range map[string][]string{
		"PREPARE TRANSACTION": {"BEGIN", "SET work_mem = '5MB'", "CREATE TABLE IF NOT EXISTS two_phase (i int)", "PREPARE TRANSACTION 'settings'", "SHOW work_mem", "SET lock_timeout = '1h'", "COMMIT PREPARED 'settings'", "SHOW work_mem"},
		"ROLLBACK PREPARED":   {"BEGIN", "SET work_mem = '5MB'", "PREPARE TRANSACTION 'settings'", "ROLLBACK PREPARED 'settings'"},
		"PREPARE TRANSACTION that fails": {
			"BEGIN", "SET work_mem = '5MB'", "CREATE TEMP TABLE d (i int) ON COMMIT DROP", "PREPARE TRANSACTION 'settings'",
		},
		"a COMMIT that fails":           {"SET work_mem = '5MB'", "BEGIN", "SET work_mem = '6MB'; SET TimeZone = 'Asia/Tokyo'", deferred, "INSERT INTO d VALUES (1), (1)", "SET lock_timeout = '1h'", "COMMIT"},
		"the same in one text":          {"BEGIN; SET work_mem = '6MB'; " + deferred + "; INSERT INTO d VALUES (1), (1); COMMIT; SET work_mem = '7MB'"},
		"a text with an error":          {"SET work_mem = '5MB'", "SET work_mem = '6MB'; SET TimeZone = 'Asia/Tokyo'; SELECT 1/0; SET work_mem = '7MB'"},
		"a text that commits on itself": {"BEGIN; SET work_mem = '6MB'; COMMIT; SET TimeZone = 'Asia/Tokyo'; SELECT 1/0"},
		"COMMIT AND CHAIN":              {"BEGIN", "SET work_mem = '5MB'", "COMMIT AND CHAIN", "SET work_mem = '6MB'; SET TimeZone = 'Asia/Tokyo'", "ROLLBACK AND CHAIN", "SET lock_timeout = '1h'", "COMMIT"},
		"savepoints":                    {"BEGIN", "SAVEPOINT a", "SET work_mem = '5MB'", "SAVEPOINT b", "SET work_mem = '6MB'; SET app.tenant = '1'", "ROLLBACK TO b", "SELECT 1/0", "ROLLBACK TO b", "SET TimeZone = 'Asia/Tokyo'", "RELEASE a", "COMMIT"},
		"SET LOCAL over SET":            {"BEGIN", "SET work_mem = '5MB'", "SET LOCAL work_mem = '6MB'", "COMMIT", "BEGIN", "SET LOCAL work_mem = '7MB'", "SET work_mem = '8MB'", "COMMIT"},
		"RESET inside":                  {"SET work_mem = '5MB'; SET TimeZone = 'Asia/Tokyo'", "BEGIN", "RESET work_mem", "ROLLBACK", "BEGIN", "RESET TimeZone", "COMMIT"},
		"RESET ALL undone":              {"SET work_mem = '5MB'; SET TimeZone = 'Asia/Tokyo'; SET app.tenant = '5'", "BEGIN", "RESET ALL", "SET work_mem = '6MB'", "ROLLBACK"},
		"an encoding undone":            {"BEGIN", "SET client_encoding = 'LATIN1'", "SET standard_conforming_strings = off", "SELECT 1/0", "COMMIT"},
		"a role undone":                 {"BEGIN", "SET ROLE app", "ROLLBACK", "BEGIN", "SET SESSION AUTHORIZATION app", "COMMIT", "RESET SESSION AUTHORIZATION", "SET ROLE app"},
		"a value that does not exist":   {"SET work_mem = 'nonsense'", "SET nonsense = 1", "SET TimeZone = 'Nowhere/Land'", "SET ROLE nobody", "SET work_mem TO DEFAULT"},
		"a function with SET":           {"CREATE OR REPLACE FUNCTION with_set() RETURNS text LANGUAGE sql SET work_mem = '9MB' AS 'SELECT current_setting(''work_mem'')'", "SELECT with_set()"},
	} {
		for _, way := range []string{"simple", "extended"} {
			for _, version := range versions {
				t.Run(fmt.Sprintf("%s/%s/%d", name, way, version), func(t *testing.T) {
					cluster := pgtest.Shared(t, version)
					p, mess := moving(t, cluster)
					direct, c := directly(t, cluster, "postgres"), overAs(t, p, "postgres")
					want := direct.heard(way, script, func() {})
					mess()
					require.Equal(t, want, c.heard(way, script, mess))
					for range 3 {
						mess()
						require.Equal(t, direct.state(), c.state())
					}
					pinnedBy(t, p)
				})
			}
		}
	}
}

func TestASettingWhoseChangeIsUndoneIsNotTheSessionsOwn(t *testing.T) {
	for name, script := range map[string][]string{
		"ROLLBACK":           {"BEGIN", "SET work_mem = '5MB'", "SET TimeZone = 'Asia/Tokyo'", "ROLLBACK"},
		"an error":           {"SET work_mem = '5MB'; SET TimeZone = 'Asia/Tokyo'; SELECT 1/0"},
		"SET TO its default": {"SET work_mem = '5MB'; SET TimeZone = 'Asia/Tokyo'", "SET work_mem TO DEFAULT", "SET TimeZone TO DEFAULT"},
	} {
		t.Run(name, func(t *testing.T) {
			p, mess := moving(t, pgtest.Shared(t, 18))
			c := overAs(t, p, "postgres")
			for _, sql := range script {
				c.query(sql)
			}
			for range 2 {
				mess()
				require.Equal(t, "0", c.ok("SELECT count(*) FROM pg_settings WHERE source = 'session'"))
			}
		})
	}
}

// heard runs a script and returns the replies, with what was reported of parameters in between. It calls between where no
// transaction is open.
func (c *client) heard(way string, script []string, between func()) (all []string) {
	c.t.Helper()
	for _, sql := range script {
		clear(c.told)
		do := simple(sql)
		if way == "extended" && !strings.Contains(sql, ";") {
			do = unnamed(sql)
		}
		got := do(c)
		all = append(all, fmt.Sprint(sql, " ", got, " ", c.told)) // fmt sorts maps
		if strings.HasSuffix(got, "I") {
			between()
		}
	}
	return all
}

func TestACancelDoesNotHitTheProxysOwnQuery(t *testing.T) {
	for name, c := range map[string]struct {
		before string // what the client says
		own    string // how the query begins that the proxy asks for itself, behind or in front of something
		ask    string
		code   string
	}{
		"in front of a request": {"SET a = 1", "SET exit_on_error", "hang", "57014"},
		"behind a request":      {"SELECT 1", "SELECT pg_catalog.left", "SET a = 2", ""},
		"verification":          {"SELECT pg_advisory_lock(1)", "SELECT 't'", "SELECT pg_advisory_unlock(1)", ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cancels := 0
				asked, goOn := make(chan struct{}), make(chan struct{})
				server := &fake{onCancel: func(uint32) { cancels++ }}
				armed := false
				server.sent = func(_ uint32, sql string) {
					if armed && strings.HasPrefix(sql, c.own) {
						armed = false
						close(asked)
						<-goOn
					}
				}
				r := newRig(t, pgmoor.Config{MaxConnections: 1, UnpinInterval: -1}, server)
				client, other := r.connect(t, "u"), r.connect(t, "u")
				client.ok(c.before)
				if c.ask != "SELECT pg_advisory_unlock(1)" {
					other.ok("SELECT 1", "SET b = 1")
				}
				synctest.Wait()
				armed = true
				client.ask(c.ask)
				<-asked
				r.cancelFor(client)
				synctest.Wait()
				require.Zero(t, cancels)
				close(goOn)
				require.Equal(t, c.code, client.reply().code())
				synctest.Wait()
				require.Equal(t, c.code != "", cancels == 1)
				if cancels == 0 { // nor does it come later
					require.Nil(t, client.query("sleep 1s").err)
				}
				client.ok("SELECT 1")
				other.ok("SELECT 1")
			})
		})
	}
}
