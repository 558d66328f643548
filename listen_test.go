package pgmoor_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// listens runs a test on each version with a pool of n connections.
func listens(t *testing.T, n int, test func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster)) {
	for _, version := range versions {
		t.Run(fmt.Sprint("PostgreSQL", version), func(t *testing.T) {
			cluster := pgtest.Shared(t, version)
			cfg := trusting(cluster)
			cfg.MaxConnections, cfg.Logger = n, quiet
			test(t, startProxy(t, cfg), cluster)
		})
	}
}

// next returns the next message in a few words.
func (c *client) next() string {
	c.t.Helper()
	require.NoError(c.t, c.conn.SetReadDeadline(time.Now().Add(patience)))
	m, err := c.Receive()
	if err != nil {
		return "end"
	}
	return said(m)
}

// said is a message in a few words.
func said(m pgproto3.BackendMessage) string {
	switch m := m.(type) {
	case *pgproto3.NotificationResponse:
		return m.Channel + ":" + m.Payload
	case *pgproto3.CommandComplete:
		return string(m.CommandTag)
	case *pgproto3.ReadyForQuery:
		return "ready " + string(m.TxStatus)
	case *pgproto3.NoticeResponse:
		return m.Severity + " " + m.Code
	case *pgproto3.ErrorResponse:
		return m.Severity + " " + m.Code
	}
	return fmt.Sprintf("%T", m)
}

// said returns the n next messages.
func (c *client) said(n int) string {
	c.t.Helper()
	var all []string
	for range n {
		all = append(all, c.next())
	}
	return strings.Join(all, ", ")
}

// whole sends a query and returns its whole answer.
func (c *client) whole(sql string) string {
	c.t.Helper()
	c.ask(sql)
	all := []string{c.next()}
	for !strings.HasPrefix(all[len(all)-1], "ready") && all[len(all)-1] != "end" {
		all = append(all, c.next())
	}
	return strings.Join(all, ", ")
}

func TestListenersShareAConnection(t *testing.T) {
	listens(t, 1, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
		a, b, n := over(t, p), over(t, p), over(t, p)
		require.Equal(t, "LISTEN, ready I", a.whole("LISTEN one"))
		require.Equal(t, "LISTEN, ready I", b.whole("LISTEN one"))
		require.Equal(t, "LISTEN, ready I", b.whole(`LISTEN "Two"`))
		require.Equal(t, "NOTIFY, ready I", n.whole("NOTIFY one, 'x'"))
		require.Equal(t, "NOTIFY, ready I", n.whole(`NOTIFY "Two", 'y'`))
		require.Equal(t, "one:x", a.said(1))
		require.Equal(t, "one:x, Two:y", b.said(2))
		require.Equal(t, "UNLISTEN, ready I", b.whole(`UNLISTEN "Two"`))
		require.Equal(t, "NOTIFY, ready I", n.whole(`NOTIFY "Two", 'z'; NOTIFY one`)[len("NOTIFY, "):])
		require.Equal(t, "one:", a.said(1))
		require.Equal(t, "one:", b.said(1))
		st := p.Stats()
		require.Zero(t, st.Pinned)
		require.Empty(t, st.PinsTotal)
		require.Equal(t, 1, st.Servers)
		require.Equal(t, 1, st.Listeners)
		require.EqualValues(t, 5, st.Notifications)
	})
}

// TestBugClass13SubscriptionsAreCountedBySession has sessions listen more often than once, and stop before others do.
func TestBugClass13SubscriptionsAreCountedBySession(t *testing.T) {
	listens(t, 2, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		a, b, n := over(t, p), over(t, p), over(t, p)
		a.ok("LISTEN one", "LISTEN one", "BEGIN; LISTEN one; COMMIT")
		b.ok("LISTEN one")
		n.ok("NOTIFY one, 'x'")
		require.Equal(t, "one:x", a.said(1))
		require.Equal(t, "one:x", b.said(1))
		a.ok("UNLISTEN one") // however often it has listened
		n.ok("NOTIFY one, 'y'")
		require.Equal(t, "one:y", b.said(1))
		require.Equal(t, "SELECT 0, ready I", a.whole("SELECT WHERE false")[len("*pgproto3.RowDescription, "):], "told twice, or after its UNLISTEN")
		require.NoError(t, b.conn.Close())
		a.ok("LISTEN one")
		n.ok("NOTIFY one, 'z'")
		require.Equal(t, "one:z", a.said(1))
		require.Empty(t, p.Stats().PinsTotal)
	})
}

func TestWaitForNotification(t *testing.T) {
	listens(t, 1, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
		cfg, err := pgconn.ParseConfig("host=127.0.0.1 user=app dbname=app sslmode=disable")
		require.NoError(t, err)
		cfg.DialFunc = p.DialContext
		var got *pgconn.Notification
		cfg.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) { got = n }
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		conn, err := pgconn.ConnectConfig(ctx, cfg)
		require.NoError(t, err)
		defer conn.Close(ctx)
		require.NoError(t, conn.Exec(ctx, "LISTEN waited").Close())
		over(t, p).ok("NOTIFY waited, 'for'")
		require.NoError(t, conn.WaitForNotification(ctx))
		require.Equal(t, "for", got.Payload)
	})
}

// hears reports which of the channels c hears of, by notifying each and, last, one that c certainly listens to.
func (c *client) hears(n *client, channels ...string) string {
	c.t.Helper()
	for _, ch := range append(channels, "certain") {
		n.ok("NOTIFY " + ch)
	}
	var all []string
	for {
		m := c.next()
		if m == "certain:" {
			return strings.Join(all, " ")
		}
		all = append(all, strings.TrimSuffix(m, ":"))
	}
}

// script runs statements, those that begin with "x " by the extended protocol, those with "p " without waiting for the answer to the one
// before.
func (c *client) script(statements ...string) {
	c.t.Helper()
	for i, sql := range statements {
		if how, rest, _ := strings.Cut(sql, " "); how == "x" {
			c.send(&pgproto3.Parse{Query: rest}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
		} else {
			c.ask(strings.TrimPrefix(sql, "p "))
		}
		if i == len(statements)-1 || !strings.HasPrefix(statements[i+1], "p ") {
			c.reply()
		}
	}
	for i := range statements {
		if i > 0 && strings.HasPrefix(statements[i], "p ") {
			c.reply()
		}
	}
}

func TestBugClass13ListenFollowsCommitAndRollback(t *testing.T) {
	for name, row := range map[string]struct {
		do   []string
		want string
	}{
		"autocommit":            {[]string{"LISTEN a"}, "a"},
		"extended":              {[]string{"x LISTEN a"}, "a"},
		"several statements":    {[]string{"LISTEN a; SELECT 1; LISTEN b"}, "a b"},
		"and an error":          {[]string{"LISTEN a; SELECT 1/0"}, ""},
		"a block":               {[]string{"BEGIN", "LISTEN a", "COMMIT"}, "a"},
		"a block, extended":     {[]string{"x BEGIN", "x LISTEN a", "x COMMIT"}, "a"},
		"a block at once":       {[]string{"BEGIN; LISTEN a; COMMIT"}, "a"},
		"pipelined":             {[]string{"BEGIN", "p LISTEN a", "p COMMIT", "p LISTEN b"}, "a b"},
		"rolled back":           {[]string{"BEGIN", "LISTEN a", "ROLLBACK"}, ""},
		"rolled back, extended": {[]string{"x BEGIN", "x LISTEN a", "x ROLLBACK"}, ""},
		"failed":                {[]string{"BEGIN", "LISTEN a", "SELECT 1/0", "COMMIT"}, ""},
		"savepoint":             {[]string{"BEGIN", "LISTEN a", "SAVEPOINT s", "LISTEN b", "ROLLBACK TO s", "COMMIT"}, "a"},
		"savepoint released":    {[]string{"BEGIN; SAVEPOINT s; LISTEN b; RELEASE s", "END"}, "b"},
		"unlisten":              {[]string{"LISTEN a", "LISTEN b", "UNLISTEN a"}, "b"},
		"unlisten, extended":    {[]string{"LISTEN a", "x UNLISTEN a"}, ""},
		"unlisten in a block":   {[]string{"LISTEN a", "BEGIN", "UNLISTEN a", "COMMIT"}, ""},
		"unlisten rolled back":  {[]string{"LISTEN a", "BEGIN", "UNLISTEN a", "ROLLBACK"}, "a"},
		"unlisten, savepoint":   {[]string{"LISTEN a", "BEGIN", "SAVEPOINT s", "UNLISTEN a", "ROLLBACK TO s", "COMMIT"}, "a"},
		"unlisten, pipelined":   {[]string{"LISTEN a", "SELECT 1", "p UNLISTEN a", "p SELECT 1"}, ""},
		"unlisten and listen":   {[]string{"LISTEN a", "UNLISTEN a; LISTEN b; LISTEN a; UNLISTEN b"}, "a"},
		"twice":                 {[]string{"LISTEN a", "LISTEN a; LISTEN a", "BEGIN", "LISTEN a", "ROLLBACK"}, "a"},
		"folded":                {[]string{`LISTEN B`, `LISTEN "a"`}, "a b"},
		"not so":                {[]string{`LISTEN "B"`, `LISTEN "a "`}, ""},
		"refused":               {[]string{"LISTEN a", "LISTEN", "UNLISTEN ,", "LISTEN select"}, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			listens(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
				c, n := over(t, p), over(t, p)
				c.ok("LISTEN certain")
				c.script(row.do...)
				require.Equal(t, row.want, c.hears(n, "a", "b"))
				require.Equal(t, slices.Sorted(slices.Values(strings.Fields("certain "+row.want))), listening(c, name))
				c.ok("BEGIN")
				require.Equal(t, slices.Sorted(slices.Values(strings.Fields("certain "+row.want))), listening(c, name))
				c.ok("COMMIT")
				require.Empty(t, listening(n, ""))
				require.Empty(t, p.Stats().PinsTotal)
			})
		})
	}
}

// listening returns what the server says the session listens to.
func listening(c *client, name string) (channels []string) {
	for _, ch := range c.query("SELECT pg_listening_channels() ORDER BY 1").rows {
		if name != "not so" || ch == "certain" {
			channels = append(channels, ch)
		}
	}
	return channels
}

func TestUnlistenAllEndsTheListener(t *testing.T) {
	for _, end := range []string{"UNLISTEN *", "DISCARD ALL", "BEGIN; UNLISTEN *; COMMIT", "leave"} {
		t.Run(end, func(t *testing.T) {
			listens(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
				c, n := over(t, p), over(t, p)
				c.ok("LISTEN a", "LISTEN b")
				require.Equal(t, 1, p.Stats().Listeners)
				if end == "leave" {
					require.NoError(t, c.conn.Close())
				} else {
					c.ok(end)
					require.Empty(t, listening(c, ""))
				}
				require.Eventually(t, func() bool { return p.Stats().Listeners == 0 }, patience, time.Millisecond)
				n.ok("NOTIFY a", "LISTEN a")
				require.Equal(t, 1, p.Stats().Listeners)
				require.Equal(t, "NOTIFY, a:, ready I", n.whole("NOTIFY a"))
				require.Zero(t, p.Stats().ListenersLost)
			})
		})
	}
}

func TestNotificationsWaitForTheEndOfATransaction(t *testing.T) {
	listens(t, 2, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, n := over(t, p), over(t, p)
		c.ok("LISTEN a", "BEGIN")
		n.ok("NOTIFY a, '1'")
		require.Equal(t, "*pgproto3.RowDescription, *pgproto3.DataRow, SELECT 1, ready T", c.whole("SELECT 1"))
		n.ok("NOTIFY a, '2'")
		require.Equal(t, "COMMIT, a:1, a:2, ready I", c.whole("COMMIT"))
		c.ok("BEGIN")
		n.ok("NOTIFY a, '3'")
		require.Equal(t, "ERROR 22012, ready E", strings.TrimPrefix(c.whole("SELECT 1/0"), "*pgproto3.RowDescription, "))
		n.ok("NOTIFY a, '4'")
		require.Equal(t, "ROLLBACK, a:3, a:4, ready I", c.whole("ROLLBACK"))
	})
}

func TestOwnNotificationsComeBeforeReadyForQuery(t *testing.T) {
	listens(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, other := over(t, p), over(t, p)
		for range 20 {
			require.Equal(t, "BEGIN, LISTEN, NOTIFY, COMMIT, a:1, ready I", c.whole("BEGIN; LISTEN a; NOTIFY a, '1'; COMMIT"))
			require.Equal(t, "NOTIFY, a:2, ready I", c.whole("NOTIFY a, '2'"))
			require.Equal(t, "DO, a:3, ready I", c.whole("DO $$ BEGIN PERFORM pg_notify('a', '3'); END $$"))
			require.Equal(t, "BEGIN, NOTIFY, NOTIFY, ready T", c.whole("BEGIN; NOTIFY a, '4'; NOTIFY a, '5'"))
			require.Equal(t, "COMMIT, a:4, a:5, ready I", c.whole("COMMIT"))
			require.Equal(t, "UNLISTEN, NOTIFY, ready I", c.whole("UNLISTEN a; NOTIFY a, '6'"))
			other.ok("SELECT 1")
		}
		c.send(&pgproto3.Parse{Query: "LISTEN a"}, &pgproto3.Bind{}, &pgproto3.Execute{},
			&pgproto3.Parse{Query: "NOTIFY a, '7'"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
		require.Equal(t, "*pgproto3.ParseComplete, *pgproto3.BindComplete, LISTEN, *pgproto3.ParseComplete, *pgproto3.BindComplete, NOTIFY, a:7, ready I", c.said(8))
		c.ask("NOTIFY a, '8'")
		c.ask("NOTIFY a, '9'")
		require.Equal(t, "NOTIFY, a:8, ready I, NOTIFY, a:9, ready I", c.said(6))
	})
}

func TestNotificationsNameTheirSender(t *testing.T) {
	listens(t, 2, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, n := over(t, p), over(t, p)
		sender := func() uint32 {
			m, err := c.Receive()
			require.NoError(t, err)
			return m.(*pgproto3.NotificationResponse).PID
		}
		c.ok("LISTEN a")
		n.ok("NOTIFY a")
		require.Equal(t, n.pid, sender())
		c.ask("NOTIFY a")
		require.Equal(t, "NOTIFY", c.next())
		require.Equal(t, c.pid, sender())
	})
}

func TestNotificationsKeepTheirOrder(t *testing.T) {
	listens(t, 3, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, n := over(t, p), over(t, p)
		c.ok("LISTEN a", "LISTEN b")
		n.ok("DO $$ BEGIN FOR i IN 0..499 LOOP PERFORM pg_notify(CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END, i::text); END LOOP; END $$")
		for i := 500; i < 1000; i++ {
			n.ok(fmt.Sprintf("NOTIFY %s, '%d'", []string{"a", "b"}[i%2], i))
		}
		for i := range 1000 {
			require.Equal(t, fmt.Sprintf("%s:%d", []string{"a", "b"}[i%2], i), c.next())
		}
	})
}

func TestBugClass13ListenersOfDatabasesDoNotMix(t *testing.T) {
	listens(t, 3, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		a, b := over(t, p), overAs(t, p, "app", "database", "postgres")
		a.ok("LISTEN x")
		b.ok("LISTEN x")
		require.Equal(t, 2, p.Stats().Listeners)
		require.Equal(t, "NOTIFY, x:a, ready I", a.whole("NOTIFY x, 'a'"))
		require.Equal(t, "NOTIFY, x:b, ready I", b.whole("NOTIFY x, 'b'"))
		require.Equal(t, "NOTIFY, x:c, ready I", a.whole("NOTIFY x, 'c'"))
	})
}

// endListener has the server end the connection with that application_name that is not the one which c has now.
func endListener(t *testing.T, cluster *pgtest.Cluster, name string, c *client) {
	t.Helper()
	pooled := c.ok("SELECT pg_backend_pid()")
	require.Len(t, cluster.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '"+name+"' AND pid <> "+pooled), 1)
}

func TestBugClass13ALostListenerIsMadeAgainAndSaidSo(t *testing.T) {
	listens(t, 1, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
		name := fmt.Sprint("lost ", time.Now().UnixNano())
		c, busy, n := overAs(t, p, "app", "application_name", name), overAs(t, p, "app", "application_name", name), overAs(t, p, "app", "application_name", name)
		c.ok("LISTEN a")
		busy.ok("LISTEN b")
		endListener(t, cluster, name, n)
		require.Equal(t, "NOTICE 01000", c.said(1))
		require.Equal(t, "NOTICE 01000", busy.said(1))
		require.Equal(t, "a", func() string { n.ok("NOTIFY a"); return strings.TrimSuffix(c.next(), ":") }())
		require.Equal(t, "NOTIFY, b:, ready I", busy.whole("NOTIFY b"))
		require.EqualValues(t, 1, p.Stats().ListenersLost)
		require.Equal(t, 1, p.Stats().Listeners)
		require.Zero(t, p.Stats().Pinned)
	})
}

func TestASlowListenerEndsAndOthersGoOn(t *testing.T) {
	for _, how := range []string{"in a transaction", "does not read"} {
		t.Run(how, func(t *testing.T) {
			listens(t, 3, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
				slow, quick, n := over(t, p), over(t, p), over(t, p)
				slow.ok("LISTEN a")
				quick.ok("LISTEN a")
				if how == "in a transaction" {
					slow.ok("BEGIN")
				}
				const rounds = 40
				for i := 0; i < rounds || how != "in a transaction" && p.Stats().Clients == 3; i++ {
					n.ok(fmt.Sprintf("DO $$ BEGIN FOR i IN 1..100 LOOP PERFORM pg_notify('a', '%d ' || i || repeat('x', 7000)); END LOOP; END $$", i))
					for j := range 100 {
						require.True(t, strings.HasPrefix(quick.next(), fmt.Sprintf("a:%d %dx", i, j+1)))
					}
				}
				if how == "in a transaction" {
					require.Equal(t, "COMMIT, ready I, FATAL 57014, end", slow.whole("COMMIT")+", "+slow.said(2))
				}
				require.Eventually(t, func() bool { return p.Stats().Clients == 2 }, patience, time.Millisecond)
				require.Equal(t, "NOTIFY, a:, ready I", quick.whole("NOTIFY a"))
			})
		})
	}
}

func TestListenIsPinnedWhereItCannotBeCarried(t *testing.T) {
	many := ""
	for i := range 64 {
		many += fmt.Sprintf("LISTEN a%063d;", i)
	}
	for name, c := range map[string]struct {
		before, do []string
		policy     pgmoor.PinningPolicy
	}{
		"the policy says so":    {do: []string{"LISTEN a"}, policy: pgmoor.StrictPinning{}},
		"too many":              {do: []string{"LISTEN a; " + strings.ReplaceAll(many, "LISTEN a", "LISTEN b"), many}},
		"not to be told":        {do: []string{"LISTEN ä; LISTEN a"}},
		"another encoding":      {before: []string{"SET client_encoding = 'latin1'"}, do: []string{"LISTEN a"}},
		"another encoding soon": {do: []string{"LISTEN a", "SET client_encoding = 'latin1'", "SELECT 1"}},
		"carried before":        {do: []string{"LISTEN a", "LISTEN ä"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, version := range versions {
				cfg := trusting(pgtest.Shared(t, version))
				cfg.MaxConnections, cfg.Logger, cfg.Pinning = 2, quiet, c.policy
				p := startProxy(t, cfg)
				l, n := over(t, p), over(t, p)
				for _, sql := range slices.Concat(c.before, c.do) {
					l.ok(sql)
				}
				require.Equal(t, 1, p.Stats().Pinned)
				l.ok("LISTEN a")
				require.Equal(t, "NOTIFY, a:1, ready I", l.whole("NOTIFY a, '1'"))
				n.ok("NOTIFY a, '2'")
				require.Equal(t, "a:2", l.said(1))
				require.Eventually(t, func() bool { return p.Stats().Listeners == 0 }, patience, time.Millisecond)
				if c.policy == nil {
					l.ok("UNLISTEN *")
					require.Eventually(t, func() bool { return p.Stats().Pinned == 0 }, patience, time.Millisecond)
				}
			}
		})
	}
}

func TestListenIsPinnedWhereTheListenerMayNotLogIn(t *testing.T) {
	for _, version := range versions {
		cluster := pgtest.Shared(t, version)
		cluster.Exec(t, "DROP ROLE IF EXISTS listen_limited; CREATE ROLE listen_limited LOGIN CONNECTION LIMIT 1")
		cfg := trusting(cluster)
		cfg.MaxConnections, cfg.Logger = 1, quiet
		p := startProxy(t, cfg)
		c := overAs(t, p, "listen_limited")
		require.Equal(t, "LISTEN, ready I", c.whole("LISTEN a"))
		require.Equal(t, map[string]int{"listen": 1}, p.Stats().PinnedBy)
		require.Equal(t, "NOTIFY, a:, ready I", c.whole("NOTIFY a"))
		c.ok("BEGIN", "LISTEN b", "COMMIT")
		require.Equal(t, "NOTIFY, b:, ready I", c.whole("NOTIFY b"))
		require.Zero(t, p.Stats().Listeners)
	}
}

func TestAPinnedSessionHearsWhileItIsIdle(t *testing.T) {
	listens(t, 2, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, n := over(t, p), over(t, p)
		c.ok("LISTEN a", "SET pgmoor.pin = on", "LISTEN b")
		for range 20 {
			n.ok("NOTIFY a", "NOTIFY b")
			require.Equal(t, "a:, b:", c.said(2))
			require.Equal(t, "NOTIFY, a:, ready I", c.whole("NOTIFY a"))
		}
		require.Equal(t, map[string]int{"requested": 1}, p.Stats().PinnedBy)
		c.ok("SET pgmoor.pin = off")
		require.Equal(t, "NOTIFY, a:, ready I", c.whole("NOTIFY a"))
		require.Eventually(t, func() bool { return p.Stats().Pinned == 0 }, patience, time.Millisecond)
		require.Equal(t, "NOTIFY, a:, ready I", c.whole("NOTIFY a"))
	})
}

func TestListenersEndWithTheProxy(t *testing.T) {
	for _, version := range versions {
		cfg := trusting(pgtest.Shared(t, version))
		cfg.Logger = quiet
		p := startProxy(t, cfg)
		a, b := over(t, p), over(t, p)
		a.ok("LISTEN a")
		b.ok("LISTEN a", "BEGIN")
		done := make(chan error, 1)
		go func() { done <- p.Shutdown(context.Background()) }()
		a.ended("57P01")
		require.Equal(t, "NOTIFY, COMMIT, a:, ready I", b.whole("NOTIFY a; COMMIT"))
		b.ended("57P01")
		require.NoError(t, <-done)
		require.Zero(t, p.Stats().Listeners)
		require.Eventually(t, func() bool { return len(goroutines()) == 0 }, patience, time.Millisecond)
	}
}
