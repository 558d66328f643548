package pgmoor_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// deciding is a policy that looks at nothing but the statement.
func deciding(f func(st *pgmoor.Statement) pgmoor.Decision) pgmoor.PinningPolicy {
	return pgmoor.PinningPolicyFunc(func(_ *pgmoor.Session, st *pgmoor.Statement) pgmoor.Decision { return f(st) })
}

// always is a policy of one decision.
func always(d pgmoor.Decision) pgmoor.PinningPolicy {
	return deciding(func(*pgmoor.Statement) pgmoor.Decision { return d })
}

// underPolicy starts a proxy with n server connections for each version.
func underPolicy(t *testing.T, n int, policy pgmoor.PinningPolicy, f func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster)) {
	for _, version := range versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			cluster := pgtest.Shared(t, version)
			cfg := trusting(cluster)
			cfg.MaxConnections, cfg.Pinning, cfg.Logger = n, policy, quiet
			f(t, startProxy(t, cfg), cluster)
		})
	}
}

// pinnedBy waits until the sessions that are pinned are so for these reasons; no more than one for each.
func pinnedBy(t testing.TB, p *pgmoor.Proxy, reasons ...string) {
	t.Helper()
	want := map[string]int{}
	for _, r := range reasons {
		want[r] = 1
	}
	require.Eventually(t, func() bool { return fmt.Sprint(p.Stats().PinnedBy) == fmt.Sprint(want) }, 10*time.Second, time.Millisecond,
		"pinned by %v, not %v", p.Stats().PinnedBy, want)
}

func TestWhatAPolicySharesStaysWithTheServerConnection(t *testing.T) {
	const shared = pgmoor.EffectSetting | pgmoor.EffectTempObject | pgmoor.EffectAdvisoryLock
	underPolicy(t, 1, always(pgmoor.Decision{Share: shared}), func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, other := overAs(t, p, "postgres"), overAs(t, p, "postgres")
		c.ok("SET work_mem = '5MB'", "CREATE TEMP TABLE shared AS SELECT 17 AS x", "SELECT pg_advisory_lock(808)")
		require.Equal(t, "5MB", other.ok("SHOW work_mem"))
		require.Equal(t, "17", other.ok("SELECT x FROM shared"))
		require.Equal(t, "t", other.ok("SELECT pg_advisory_unlock(808)"))
		pinnedBy(t, p)
		require.Empty(t, p.Stats().PinsTotal)
		unnamed("SELECT pg_blocking_pids(1)")(c)
		named("a", "SELECT pg_blocking_pids(1)")(c) // which cannot be shared
		pinnedBy(t, p, "named_statement")
		require.NoError(t, c.conn.Close())
		require.Equal(t, "4MB", other.ok("SHOW work_mem"), "the session was reset")
	})
}

func TestAPolicyPinsForWhatCouldBeCarried(t *testing.T) {
	underPolicy(t, 2, deciding(func(st *pgmoor.Statement) pgmoor.Decision {
		return pgmoor.Decision{Pin: st.Effects & (pgmoor.EffectSetting | pgmoor.EffectCursor)}
	}), func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, other := over(t, p), over(t, p)
		c.ok("SELECT 1", "SET LOCAL work_mem = '5MB'", "BEGIN", "SET work_mem = '5MB'", "ROLLBACK")
		pinnedBy(t, p)
		c.ok("SET work_mem = '5MB'")
		pinnedBy(t, p, "setting")
		other.ok("SET work_mem = '6MB'")
		require.Equal(t, "5MB", c.ok("SHOW work_mem"))
		require.Zero(t, p.Stats().SettingsMoved)
	})
}

func TestAPolicyPinsForItsOwnReasonAndEndsThat(t *testing.T) {
	policy := deciding(func(st *pgmoor.Statement) pgmoor.Decision {
		switch d := st.Digest(); {
		case strings.HasPrefix(d, "set app.batch to"):
			return pgmoor.Decision{Reason: "batch run"}
		case strings.HasPrefix(d, "reset app.batch"):
			return pgmoor.Decision{Unpin: true}
		}
		return pgmoor.Decision{}
	})
	underPolicy(t, 2, policy, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, other := over(t, p), over(t, p)
		c.ok("SET app.batch TO 'x'")
		pinnedBy(t, p, "batch run")
		backend := c.ok("SELECT pg_backend_pid()")
		for range 3 {
			other.ok("SELECT 1")
			require.Equal(t, backend, c.ok("SELECT pg_backend_pid()"))
		}
		c.ok("BEGIN", "RESET app.batch")
		pinnedBy(t, p, "batch run")
		c.ok("COMMIT")
		pinnedBy(t, p)
		for _, do := range []request{unnamed("SET app.batch TO 'x'"), unnamed("RESET app.batch")} {
			do(c)
		}
		pinnedBy(t, p)
		require.Equal(t, map[string]int64{"batch run": 2}, p.Stats().PinsTotal)
		require.EqualValues(t, 2, p.Stats().Unpins)
		c.ok("SET app.batch TO 'x'", "SELECT pg_advisory_lock(1)", "RESET app.batch") // one reason ends, one stays
		require.NotEmpty(t, p.Stats().PinnedBy)
		c.ok("SELECT pg_advisory_unlock(1)")
		pinnedBy(t, p)
	})
}

func TestAPolicyPinsForEver(t *testing.T) {
	underPolicy(t, 2, always(pgmoor.Decision{Forever: true}), func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c := over(t, p)
		c.ok("SET work_mem = '5MB'") // carried all the same
		pinnedBy(t, p)
		c.ok("SELECT pg_advisory_lock(1)")
		pinnedBy(t, p, "advisory_lock")
		c.ok("SELECT pg_advisory_unlock(1)", "DISCARD ALL", "SELECT 1")
		require.Never(t, func() bool { return p.Stats().Pinned == 0 }, 1500*time.Millisecond, 50*time.Millisecond)
		require.NoError(t, c.conn.Close())
		pinnedBy(t, p)
	})
}

func TestStrictPinningPinsUntilDisconnect(t *testing.T) {
	large := "SELECT 1 /*" + strings.Repeat("x", 17<<10) + "*/"
	for name, c := range map[string]struct {
		do     request
		reason string
	}{
		"SET":                 {simple("SET work_mem = '5MB'"), "setting"},
		"SET unnamed":         {unnamed("SET work_mem = '5MB'"), "setting"},
		"SET TIME ZONE":       {simple("SET TIME ZONE 'UTC'"), "setting"},
		"SET ROLE":            {simple("SET ROLE app"), "setting"},
		"RESET":               {simple("RESET work_mem"), "setting"},
		"set_config":          {unnamed("SELECT set_config($1, 'x', false)", "app.x"), "setting"},
		"LISTEN":              {simple("LISTEN a"), "listen"},
		"CREATE TEMP TABLE":   {simple("CREATE TEMP TABLE strict (i int)"), "temp_object"},
		"SELECT INTO TEMP":    {simple("SELECT 1 AS x INTO TEMP strict"), "temp_object"},
		"DECLARE":             {simple("BEGIN; DECLARE a CURSOR FOR SELECT 1; COMMIT"), "cursor"},
		"DECLARE WITH HOLD":   {simple("DECLARE a CURSOR WITH HOLD FOR SELECT 1"), "holdable_cursor"},
		"pg_advisory_lock":    {simple("SELECT pg_advisory_lock_shared(4242)"), "advisory_lock"},
		"PREPARE":             {simple("PREPARE a AS SELECT 1"), "prepare"},
		"DISCARD ALL":         {simple("DISCARD ALL"), "discard"},
		"DISCARD PLANS":       {simple("DISCARD PLANS"), "discard"},
		"DEALLOCATE ALL":      {simple("DEALLOCATE ALL"), "execute"},
		"nextval":             {simple("SELECT nextval('strict_seq')"), "sequence"},
		"setval":              {simple("SELECT setval('strict_seq', 7)"), "sequence"},
		"currval":             {simple("SELECT nextval('strict_seq'), currval('strict_seq')"), "sequence"},
		"lastval":             {unnamed("SELECT lastval() FROM nextval('strict_seq')"), "sequence"},
		"LOAD":                {simple("LOAD 'plpgsql'"), "load"},
		"a named statement":   {named("a", "SELECT 1"), "named_statement"},
		"a text of 17 KiB":    {simple(large), "statement_too_large"},
		"the same, extended":  {unnamed(large), "unnamed_statement"}, // which comes first
		"a lock that is held": {simple("SELECT pg_try_advisory_lock(4243)"), "advisory_lock"},
	} {
		t.Run(name, func(t *testing.T) {
			underPolicy(t, 2, pgmoor.StrictPinning{}, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
				cluster.Exec(t, "CREATE SEQUENCE IF NOT EXISTS strict_seq")
				client := overAs(t, p, "postgres")
				client.ok("SELECT 1")
				require.Empty(t, p.Stats().PinnedBy)
				require.Contains(t, c.do(client), ` "" I`)
				pinnedBy(t, p, c.reason)
				backend := client.ok("SELECT pg_backend_pid()")
				client.ok("RESET ROLE", "UNLISTEN *", "CLOSE ALL", "SELECT pg_advisory_unlock_all()", "DEALLOCATE ALL", "RESET ALL", "DISCARD ALL", "SELECT 1")
				pinnedBy(t, p, c.reason)
				overAs(t, p, "postgres").ok("SELECT 1")
				require.Equal(t, backend, client.ok("SELECT pg_backend_pid()"))
				require.NoError(t, client.conn.Close())
				pinnedBy(t, p)
				require.EqualValues(t, 1, p.Stats().Unpins)
			})
		})
	}
}

func TestASessionPinsItselfWhereItAsksForIt(t *testing.T) {
	for on, off := range map[string]string{
		"SET pgmoor.pin = on": "SET pgmoor.pin = off", "SET pgmoor.pin TO 'true'": "RESET pgmoor.pin", "SET pgmoor.pin = 1": "DISCARD ALL",
		"SELECT set_config('pgmoor.pin', 'yes', false)": "SELECT set_config('pgmoor.pin', 'no', false)", "SET PGMOOR.PIN TO ON": "RESET ALL",
		"BEGIN; SET pgmoor.pin = on; COMMIT": "SET pgmoor.pin = ''",
	} {
		t.Run(on, func(t *testing.T) {
			underPolicy(t, 2, nil, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
				c, other := over(t, p), over(t, p)
				c.ok("BEGIN; SET pgmoor.pin = on; ROLLBACK", "SET LOCAL pgmoor.pin = on")
				pinnedBy(t, p)
				c.ok(on)
				pinnedBy(t, p, "requested")
				backend := c.ok("SELECT pg_backend_pid()")
				for range 3 {
					other.ok("SET work_mem = '5MB'", "SELECT 1")
					require.Equal(t, backend, c.ok("SELECT pg_backend_pid()"))
				}
				c.ok(off)
				pinnedBy(t, p)
				c.ok("SELECT 1")
				require.Equal(t, map[string]int64{"requested": 1}, p.Stats().PinsTotal)
				unnamed(on)(c)
				require.NoError(t, c.conn.Close())
				pinnedBy(t, p)
			})
		})
	}
}

// noisy wraps DefaultPinning: channels are nobody's business here, and temporary tables need an application that may.
type noisy struct{ pgmoor.DefaultPinning }

func (n noisy) Decide(s *pgmoor.Session, st *pgmoor.Statement) pgmoor.Decision {
	d := n.DefaultPinning.Decide(s, st)
	d.Share |= st.Effects & pgmoor.EffectListen
	if app, _ := s.Client().Parameter("application_name"); st.Effects&pgmoor.EffectTempObject != 0 && app != "reports" {
		d.Refuse = &pgmoor.Error{Code: "42501", Message: "temporary tables are for reports"}
	}
	return d
}

func TestAPolicyWrapsDefaultPinning(t *testing.T) {
	underPolicy(t, 4, noisy{}, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, reports := over(t, p), overAs(t, p, "app", "application_name", "reports")
		c.ok("LISTEN a")
		pinnedBy(t, p)
		require.Equal(t, "42501", c.query("CREATE TEMP TABLE a (i int)").code())
		reports.ok("CREATE TEMP TABLE a (i int)")
		pinnedBy(t, p, "temp_object")
	})
}

func TestADigestHoldsNoLiteral(t *testing.T) {
	const secret = "s3cr3t"
	large := strings.Repeat(" ", 17<<10)
	for _, sql := range []string{
		"SET app.password = 's3cr3t'", "SELECT set_config('app.s3cr3t', 's3cr3t', false)",
		"SELECT set_config('app.x', E's3cr3t\\'s3cr3t', false)", "SELECT set_config('app.x', $$s3cr3t$$, false)",
		"SELECT set_config('app.x', $tag$s3cr3t$tag$, false)", "SELECT set_config('app.x', U&'s3cr3t', false)",
		"LISTEN ä /* s3cr3t */ -- s3cr3t", "PREPARE a AS SELECT 's3cr3t' 's3cr3t'", "SELECT setseed(0.5), 'it''s3cr3t'",
		"SELECT pg_advisory_lock(1), 's3cr3t', 's3cr3t", "SET a.b = 's3cr3t'; LISTEN \"ä\"; LISTEN ä", "SELECT N's3cr3t', B'1', X'ff', lastval()",
		"LISTEN a; SET app.x = 's3cr3t" + large + "s3cr3t'", "LOAD 's3cr3t'", "CREATE TEMP TABLE a AS SELECT 's3cr3t\\' AS x, 's3cr3t'",
	} {
		t.Run(sql[:min(len(sql), 60)], func(t *testing.T) {
			var digests []string
			log := new(logBuffer)
			cfg := trusting(pgtest.Shared(t, 18))
			cfg.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			cfg.Pinning = deciding(func(st *pgmoor.Statement) pgmoor.Decision {
				digests = append(digests, st.Digest())
				return pgmoor.Decision{Reason: "seen"}
			})
			p := startProxy(t, cfg)
			c := over(t, p)
			c.query(sql)
			require.Len(t, digests, 1)
			require.NotContains(t, strings.Join(digests, " "), secret)
			require.LessOrEqual(t, len(digests[0]), 203)
			c.send(&pgproto3.Parse{Query: sql}, &pgproto3.Sync{})
			c.reply()
			require.Len(t, digests, 2)
			require.NoError(t, c.conn.Close())
			require.NoError(t, p.Close())
			require.NotContains(t, log.text(), secret)
		})
	}
}

func TestAPolicySeesTheBeginningOfALargeText(t *testing.T) {
	for name, cfg := range variants(pgtest.Shared(t, 18)) {
		t.Run(name, func(t *testing.T) {
			var digests []string
			cfg.Logger = quiet
			cfg.Pinning = deciding(func(st *pgmoor.Statement) pgmoor.Decision {
				digests = append(digests, fmt.Sprint(st.Digest(), " ", st.Effects, " ", st.Size))
				return pgmoor.Decision{}
			})
			c := over(t, startProxy(t, cfg))
			large := "SET app.name = 'x'" + strings.Repeat(" ", 17<<10)
			c.ok(large)
			unnamed(large)(c)
			named("a", large)(c)
			require.Len(t, digests, 3)
			for i, d := range digests {
				effects := []string{"", "", "named_statement,"}[i]
				require.Equal(t, fmt.Sprint("set app.name = $1 setting,untracked_setting,", effects, "statement_too_large ", len(large)), d)
			}
		})
	}
}
