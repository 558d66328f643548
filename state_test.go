package pgmoor_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// stateRow is a row of the table in docs/pinning.md: what a client does, and what that comes to.
type stateRow struct {
	title  string
	before string   // what there has to be
	do     []string // each a simple Query
	reason string   // why the session is pinned then; empty: it is not
	look   string   // a query by which the session sees what it did, whatever connections it gets
	want   string
	end    []string // what ends the pin; nil: nothing but the end of the session
	how    string   // the same, in words
}

var stateRows = []stateRow{
	{title: "`SET x = v`", do: []string{"SET work_mem = '5MB'"}, look: "SHOW work_mem", want: "5MB"},
	{title: "`SET TIME ZONE`, `SET NAMES`, `SET SESSION CHARACTERISTICS`", do: []string{
		"SET TIME ZONE 'Asia/Tokyo'", "SET NAMES 'latin1'", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
	}, look: "SELECT concat_ws(' ', current_setting('TimeZone'), current_setting('client_encoding'), current_setting('default_transaction_read_only'))", want: "Asia/Tokyo LATIN1 on"},
	{title: "`SET ROLE`", do: []string{"SET ROLE state_role"}, look: "SELECT current_user", want: "state_role"},
	{title: "`SET SESSION AUTHORIZATION`", do: []string{"SET SESSION AUTHORIZATION state_role"}, look: "SELECT session_user", want: "state_role"},
	{title: "`RESET x`, `RESET ALL`", do: []string{"SET work_mem = '5MB'; SET enable_sort = off", "RESET work_mem", "RESET ALL"}, look: "SELECT concat_ws(' ', current_setting('work_mem'), current_setting('enable_sort'))", want: "4MB on"},
	{title: "`set_config(name, value, false)`", do: []string{"SELECT set_config('app.tenant', '17', false)"}, look: "SELECT current_setting('app.tenant')", want: "17"},
	{title: "the same with a name computed in SQL", do: []string{"SELECT set_config('app.' || 'tenant', '17', false)"}, reason: "untracked_setting", look: "SELECT current_setting('app.tenant')", want: "17", end: []string{"DISCARD ALL"}, how: "`DISCARD ALL`"},
	{title: "`SET` undone by `ROLLBACK` or `ROLLBACK TO`", do: []string{"BEGIN; SET work_mem = '5MB'; SAVEPOINT a; SET work_mem = '6MB'", "ROLLBACK TO a", "COMMIT"}, look: "SHOW work_mem", want: "5MB"},
	{title: "a function that sets what the server reports", before: "CREATE OR REPLACE FUNCTION state_zone() RETURNS text LANGUAGE sql AS 'SELECT set_config(''TimeZone'', ''Asia/Tokyo'', false)'", do: []string{"SELECT state_zone()"}, look: "SHOW TimeZone", want: "Asia/Tokyo"},
	{title: "`SET LOCAL`, `set_config(…, true)`, `SET TRANSACTION`, `SET CONSTRAINTS`", do: []string{"BEGIN; SET LOCAL work_mem = '5MB'; SELECT set_config('enable_sort', 'off', true); SET TRANSACTION READ ONLY; SET CONSTRAINTS ALL DEFERRED", "COMMIT"}, look: "SHOW work_mem", want: "4MB"},
	{title: "a Parse without a name", do: nil},
	{title: "`PREPARE`, `EXECUTE`, `DEALLOCATE`", do: []string{"PREPARE b AS SELECT 1", "PREPARE a AS SELECT 17", "EXECUTE b", "DEALLOCATE b"}, look: "EXECUTE a", want: "17"},
	{title: "`PREPARE` of a statement that pins when it is executed", do: []string{"PREPARE a AS SELECT pg_advisory_lock(4712)"}, reason: "prepare", look: "EXPLAIN (COSTS OFF) EXECUTE a", want: "Result", end: []string{"DEALLOCATE a"}, how: "`DEALLOCATE`, `DISCARD ALL`"},
	{title: "a look at `pg_prepared_statements`", do: []string{"PREPARE a AS SELECT 17", "SELECT name FROM pg_prepared_statements"}, look: "SELECT string_agg(name, ' ') FROM pg_prepared_statements", want: "a"},
	{title: "`DEALLOCATE ALL`, `CLOSE ALL`, `UNLISTEN *`, `DISCARD ALL` without anything to end", do: []string{"DEALLOCATE ALL", "CLOSE ALL", "UNLISTEN *", "DISCARD ALL"}, look: "SELECT 1", want: "1"},
	{title: "`LISTEN`, `UNLISTEN`", do: []string{"LISTEN b", "LISTEN a", "UNLISTEN b"}, look: "SELECT pg_listening_channels()", want: "a"},
	{title: "`LISTEN` undone by `ROLLBACK` or `ROLLBACK TO`", do: []string{"BEGIN; LISTEN a; SAVEPOINT s; LISTEN b", "ROLLBACK TO s", "COMMIT", "BEGIN; LISTEN c", "ROLLBACK"}, look: "SELECT string_agg(c, '') FROM pg_listening_channels() c", want: "a"},
	{title: "`LISTEN` in `DO` or a function, found by verification", before: "CREATE OR REPLACE FUNCTION state_listen() RETURNS void LANGUAGE plpgsql AS 'BEGIN LISTEN a; END'", do: []string{"SELECT state_listen(), pg_try_advisory_lock(1), pg_advisory_unlock(1)"}, reason: "listen", look: "SELECT pg_listening_channels()", want: "a", end: []string{"UNLISTEN a"}, how: "`UNLISTEN`, `DISCARD ALL`"},
	{title: "`NOTIFY`", do: []string{"NOTIFY a"}, look: "SELECT 1", want: "1"},
	{title: "`CREATE TEMP TABLE`, `SELECT INTO TEMP`, …", do: []string{"CREATE TEMP TABLE a AS SELECT 17 AS x"}, reason: "temp_object", look: "SELECT x FROM a", want: "17", end: []string{"DROP TABLE a"}, how: "`DROP`, when none is left"},
	{title: "a temporary function", do: []string{"CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 17'"}, reason: "temp_object", look: "SELECT pg_temp.f()", want: "17", end: []string{"DROP FUNCTION pg_temp.f()"}, how: "the same"},
	{title: "`CREATE TABLE` while `pg_temp` leads the search_path", do: []string{"SET search_path = pg_temp, public", "CREATE TABLE a AS SELECT 17 AS x"}, reason: "temp_object", look: "SELECT x FROM a", want: "17", end: []string{"DROP TABLE a"}, how: "the same"},
	{title: "a temporary table with `ON COMMIT DROP`", do: []string{"BEGIN; CREATE TEMP TABLE a (x int) ON COMMIT DROP", "COMMIT"}, look: "SELECT to_regclass('a') IS NULL", want: "t"},
	{title: "a temporary table whose transaction is rolled back", do: []string{"BEGIN; CREATE TEMP TABLE a (x int)", "ROLLBACK"}, look: "SELECT to_regclass('a') IS NULL", want: "t"},
	{title: "`DECLARE` without `HOLD`", do: []string{"BEGIN; DECLARE a CURSOR FOR SELECT 17", "COMMIT"}, look: "SELECT count(*) FROM pg_cursors", want: "0"},
	{title: "`DECLARE … WITH HOLD`", do: []string{"DECLARE a CURSOR WITH HOLD FOR SELECT 17 FROM generate_series(1, 9)"}, reason: "holdable_cursor", look: "FETCH 1 FROM a", want: "17", end: []string{"CLOSE a"}, how: "`CLOSE`, when none is left"},
	{title: "`pg_advisory_lock`", do: []string{"SELECT pg_advisory_lock(4711)"}, reason: "advisory_lock", look: "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()", want: "1", end: []string{"SELECT pg_advisory_unlock(4711)"}, how: "`pg_advisory_unlock`, when none is left"},
	{title: "`pg_try_advisory_lock` that gets it", do: []string{"SELECT pg_try_advisory_lock(4711)"}, reason: "advisory_lock", look: "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()", want: "1", end: []string{"SELECT pg_advisory_unlock_all()"}, how: "the same"},
	{title: "`pg_try_advisory_lock` that does not", do: []string{"SELECT pg_try_advisory_lock(1), pg_advisory_unlock(1)", "SELECT 1"}, look: "SELECT 1", want: "1"},
	{title: "`pg_advisory_xact_lock`", do: []string{"SELECT pg_advisory_xact_lock(4711)"}, look: "SELECT 1", want: "1"},
	{title: "`nextval`, `setval`", before: "CREATE SEQUENCE IF NOT EXISTS state_seq", do: []string{"SELECT setval('state_seq', 16)", "SELECT nextval('state_seq')"}, look: "SELECT last_value > 16 FROM state_seq", want: "t"},
	{title: "`currval`, `lastval` in the request or block that got the value", before: "CREATE SEQUENCE IF NOT EXISTS state_seq", do: []string{"SELECT nextval('state_seq'); SELECT lastval()"}, look: "SELECT CASE WHEN nextval('state_seq') > 0 THEN currval('state_seq') = lastval() END", want: "t"},
	{title: "a value after `currval` or `lastval` of an earlier one found none (55000)", before: "CREATE SEQUENCE IF NOT EXISTS state_seq", do: []string{"SELECT lastval()", "SELECT nextval('state_seq')"}, reason: "sequence", look: "SELECT currval('state_seq') = lastval()", want: "t", end: []string{"DISCARD SEQUENCES"}, how: "`DISCARD SEQUENCES`, `DISCARD ALL`"},
	{title: "`LOAD`", do: []string{"LOAD 'plpgsql'"}, reason: "load", look: "SELECT 1", want: "1"},
	{title: "`setseed`", do: []string{"SELECT setseed(0.5)"}, reason: "random_seed", look: "SELECT 1", want: "1"},
	{title: "`COPY`, fastpath calls, large objects", do: []string{"COPY (SELECT 1) TO STDOUT", "SELECT lo_unlink(lo_create(0))"}, look: "SELECT 1", want: "1"},
	{title: "`SET pgmoor.pin = on`", do: []string{"SET pgmoor.pin = on"}, reason: "requested", look: "SHOW pgmoor.pin", want: "on", end: []string{"SET pgmoor.pin = off"}, how: "`SET pgmoor.pin = off`, `DISCARD ALL`"},
	{title: "a text that cannot be read with certainty", do: []string{"SELECT U&'\\0061' UESCAPE '!'"}, reason: "unclassified", look: "SELECT 1", want: "1"},
}

// TestStateTable does what the rows say on a pool of connections that are lent in turn while another client makes a mess, and
// compares the table of docs/pinning.md with the outcome.
func TestStateTable(t *testing.T) {
	for _, version := range versions {
		cluster := pgtest.Shared(t, version)
		cluster.Exec(t, `DO $$ BEGIN CREATE ROLE state_role; EXCEPTION WHEN duplicate_object THEN END $$; GRANT ALL ON SCHEMA public TO state_role`)
		for _, row := range stateRows {
			t.Run(fmt.Sprintf("%d/%s", version, row.title), func(t *testing.T) { row.run(t, cluster) })
		}
	}
	requirePart(t, "pinning.md", "state", stateTable())
}

func (row stateRow) run(t *testing.T, cluster *pgtest.Cluster) {
	if row.before != "" {
		cluster.Exec(t, row.before)
	}
	cfg := pgmoor.WithRotation(trusting(cluster))
	cfg.MaxConnections, cfg.Logger = 3, quiet
	p := startProxy(t, cfg)
	c, other := overAs(t, p, "postgres"), overAs(t, p, "postgres")
	mess := func() {
		other.ok("SET work_mem = '9MB'", "SET TIME ZONE 'America/Lima'", "SET app.tenant = 'other'", "SELECT 1", "RESET ALL", "SET ROLE state_role", "SELECT 1", "RESET ROLE")
	}
	mess()
	if row.do == nil {
		for range 5 {
			require.Nil(t, c.extended("SELECT 17").err)
		}
		require.Empty(t, p.Stats().PinnedBy)
		return
	}
	for _, sql := range row.do {
		r := c.query(sql)
		require.True(t, r.err == nil || strings.Contains(sql, "U&") || r.code() == "55000", sql)
	}
	want := map[string]int{}
	if row.reason != "" {
		want[row.reason] = 1
	}
	require.Eventually(t, func() bool { return fmt.Sprint(p.Stats().PinnedBy) == fmt.Sprint(want) }, 10*time.Second, time.Millisecond,
		"%v, not %v", p.Stats().PinnedBy, want)
	for range 5 {
		mess()
		require.Equal(t, row.want, c.ok(row.look))
	}
	require.Equal(t, want, p.Stats().PinnedBy)
	if row.end != nil {
		c.ok(row.end...)
		require.Eventually(t, func() bool { return len(p.Stats().PinnedBy) == 0 }, 10*time.Second, time.Millisecond)
		c.ok("SELECT 1")
	}
}

// stateTable is the table as it stands in the document.
func stateTable() string {
	var b strings.Builder
	b.WriteString("| the client says | pinned for | until |\n|---|---|---|\n")
	for _, r := range stateRows {
		reason, until := "–", "–"
		switch {
		case r.reason == "":
		case r.how == "":
			reason, until = "`"+r.reason+"`", "it disconnects"
		default:
			reason, until = "`"+r.reason+"`", r.how
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", strings.ReplaceAll(r.title, "|", `\|`), reason, until)
	}
	return b.String()
}
