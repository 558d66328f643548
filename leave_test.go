package pgmoor_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

func TestWhatAClientLeavesIsCleanedUp(t *testing.T) {
	const asks, resets = "SELECT pg_catalog.left(pg_catalog.current_setting('a',true),4097)", "RESET SESSION AUTHORIZATION;RESET ROLE"
	half := []byte{'Q', 0, 0, 0, 50, 'S', 'E'}
	for name, c := range map[string]struct {
		leave   func(c *client)
		sent    []string
		cancels int64
		opened  int64
	}{
		"idle":                {func(*client) {}, nil, 0, 1},
		"in a transaction":    {func(c *client) { c.ok("BEGIN") }, []string{"BEGIN", "ROLLBACK"}, 0, 1},
		"in a query":          {func(c *client) { c.ask("hang") }, []string{"hang"}, 1, 1},
		"in a query in a txn": {func(c *client) { c.ok("BEGIN"); c.ask("hang") }, []string{"BEGIN", "hang", "ROLLBACK"}, 1, 1},
		"with a setting":      {func(c *client) { c.ok("SET a = 1") }, []string{"SET a = 1", asks}, 0, 1},
		"pinned":              {func(c *client) { c.ok("SELECT pg_advisory_lock(1)") }, []string{"SELECT pg_advisory_lock(1)", resets, "DISCARD ALL"}, 0, 1},
		"pinned, in a transaction": {
			func(c *client) { c.ok("SELECT pg_advisory_lock(1)", "BEGIN") },
			[]string{"SELECT pg_advisory_lock(1)", "BEGIN", "ROLLBACK", resets, "DISCARD ALL"},
			0, 1,
		},
		"in the middle of a message": {
			func(c *client) { _, _ = c.conn.Write(half) }, nil, 0, 1,
		},
		"in the middle of a message in a transaction": {
			func(c *client) { c.ok("BEGIN"); _, _ = c.conn.Write(half) }, []string{"BEGIN", "ROLLBACK"}, 0, 1,
		},
		"in the middle of a large message": {
			func(c *client) {
				_, _ = c.conn.Write(append([]byte{'Q', 0, 1, 0, 0}, make([]byte, 40000)...))
			}, nil, 1, 2,
		},
		"before a Sync": {
			func(c *client) { c.send(&pgproto3.Parse{Query: "SELECT 1"}, &pgproto3.Bind{}, &pgproto3.Execute{}) },
			[]string{"SELECT 1"},
			0, 1,
		},
		"after an error before the Sync": {
			func(c *client) { c.send(&pgproto3.Parse{Query: "fail"}, &pgproto3.Bind{}, &pgproto3.Execute{}) },
			[]string{"fail"},
			0, 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var sent []string
				server := &fake{sent: func(_ uint32, sql string) { sent = append(sent, sql) }}
				r := newRig(t, pgmoor.Config{MaxConnections: 1}, server)
				leaver, next := r.connect(t, "u"), r.connect(t, "u")
				c.leave(leaver)
				synctest.Wait()
				leaver.conn.Close()
				synctest.Wait()
				require.Equal(t, c.sent, sent)
				require.Equal(t, 1, r.Stats().Clients)
				require.Equal(t, c.cancels, r.Stats().Cancels)
				next.ok("SELECT 1")
				require.Equal(t, c.opened, r.Stats().ServersOpened)
			})
		})
	}
}

func TestASlowClientDisturbsNobody(t *testing.T) {
	for _, version := range versions {
		c := pgtest.Shared(t, version)
		cfg := trusting(c)
		cfg.MaxConnections, cfg.Logger = 2, quiet
		p := startProxy(t, cfg)
		slow, quick := over(t, p), over(t, p)
		slow.ask("SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
		for range 50 {
			quick.ok("SELECT 1")
		}
		require.NoError(t, slow.conn.Close())
		quick.ok("SELECT 1")
	}
}

func TestNothingIsLeftOfAClientThatIsGone(t *testing.T) {
	for _, version := range versions {
		c := pgtest.Shared(t, version)
		for name, leave := range map[string]func(c *client){
			"query":       func(c *client) { c.ask("SELECT pg_sleep(100)") },
			"transaction": func(c *client) { c.ok("BEGIN", "LOCK TABLE pg_class IN SHARE MODE") },
			"copy": func(c *client) {
				c.ok("CREATE TEMP TABLE gone (i int)")
				c.ask("COPY gone FROM STDIN")
				m, err := c.Receive()
				require.NoError(c.t, err)
				require.IsType(c.t, &pgproto3.CopyInResponse{}, m)
				c.send(&pgproto3.CopyData{Data: []byte("1\n")})
			},
			"copy in a transaction": func(c *client) {
				c.ok("BEGIN", "CREATE TABLE never (i int)")
				c.ask("COPY never FROM STDIN")
				m, err := c.Receive()
				require.NoError(c.t, err)
				require.IsType(c.t, &pgproto3.CopyInResponse{}, m)
			},
			"setting":   func(c *client) { c.ok("SET search_path = nowhere", "SET work_mem = '1MB'") },
			"temporary": func(c *client) { c.ok("CREATE TEMP TABLE gone (i int)") },
			"lock":      func(c *client) { c.ok("SELECT pg_advisory_lock(4711)") },
			"listen":    func(c *client) { c.ok("LISTEN gone") },
			"prepare":   func(c *client) { c.ok("PREPARE gone AS SELECT 1") },
			"named": func(c *client) {
				c.send(&pgproto3.Parse{Name: "gone", Query: "SELECT 1"}, &pgproto3.Sync{})
				require.Nil(c.t, c.reply().err)
			},
			"cursor": func(c *client) { c.ok("DECLARE gone CURSOR WITH HOLD FOR SELECT 1") },
			"role":   func(c *client) { c.ok("SET ROLE other") },
			"auth":   func(c *client) { c.ok("SET SESSION AUTHORIZATION other") },
			"big":    func(c *client) { c.ask("SELECT repeat('x', 1000) FROM generate_series(1, 100000)") },
		} {
			t.Run(fmt.Sprintf("%s/%d", name, version), func(t *testing.T) {
				cfg := trusting(c)
				cfg.MaxConnections, cfg.Logger = 1, quiet
				p := startProxy(t, cfg)
				leaver := overAs(t, p, "postgres", "application_name", "pgmoor leave")
				next := overAs(t, p, "postgres", "application_name", "pgmoor leave")
				leave(leaver)
				require.NoError(t, leaver.conn.Close())
				require.Nil(t, next.query("SELECT 1").err)
				requireFresh(t, next)
				require.Equal(t, [][]string{{"0"}}, c.Exec(t,
					"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmoor leave' AND state <> 'idle'"))
				require.Equal(t, [][]string{{"0"}}, c.Exec(t, `SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
					WHERE application_name = 'pgmoor leave'`))
				c.Exec(t, "NOTIFY gone")
				got := next.query("SELECT 1")
				require.Nil(t, got.err)
			})
		}
	}
}

// requireFresh looks for what another client may have left in the session.
func requireFresh(t testing.TB, c *client) {
	t.Helper()
	for sql, want := range map[string]string{
		"SHOW search_path":                     `"$user", public`,
		"SHOW work_mem":                        "4MB",
		"SELECT current_user":                  "postgres",
		"SELECT session_user":                  "postgres",
		"SELECT now() = statement_timestamp()": "t",
		"SELECT count(*) FROM pg_prepared_statements WHERE name <> ''":                         "0",
		"SELECT count(*) FROM pg_cursors WHERE name <> ''":                                     "0",
		"SELECT count(*) FROM pg_listening_channels()":                                         "0",
		"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()": "0",
		"SELECT to_regclass('gone') IS NULL AND to_regclass('never') IS NULL":                  "t",
		"SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()":               "0",
	} {
		require.Equal(t, want, c.ok(sql), sql)
	}
}

func TestEnvironmentVariablesChangeNothing(t *testing.T) {
	for name, value := range map[string]string{
		"PGPASSWORD": "wrong", "PGOPTIONS": "-c work_mem=1MB", "PGAPPNAME": "nonsense", "PGHOST": "nowhere", "PGPORT": "1",
		"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nonexistent", "PGSERVICE": "nonsense", "PGSERVICEFILE": "/nonexistent",
		"PGDATABASE": "nonsense", "PGUSER": "nonsense", "PGTARGETSESSIONATTRS": "standby", "PGCONNECT_TIMEOUT": "nonsense",
		"PGPASSFILE": "/nonexistent", "PGCHANNELBINDING": "require", "PGTZ": "Asia/Tokyo", "PGREQUIREAUTH": "md5",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, value)
			p := startProxy(t, trusting(pgtest.Shared(t, 15)))
			c := over(t, p)
			require.Equal(t, "4MB", c.ok("SHOW work_mem"))
			require.Equal(t, "", c.ok("SHOW application_name"))
			require.Equal(t, "app", c.ok("SELECT current_database()"))
		})
	}
}

func TestNotificationsReachOnlyTheirListener(t *testing.T) {
	for _, version := range versions {
		cluster := pgtest.Shared(t, version)
		cfg := trusting(cluster)
		cfg.MaxConnections = 2
		p := startProxy(t, cfg)
		listener, other := over(t, p), over(t, p)
		channel := fmt.Sprintf("only_%d_%d", version, time.Now().UnixNano())
		listener.ok("LISTEN " + channel)
		other.ok("NOTIFY " + channel + ", 'hello'")
		m, err := listener.Receive()
		require.NoError(t, err)
		require.Equal(t, "hello", m.(*pgproto3.NotificationResponse).Payload)
		require.NoError(t, listener.conn.Close())
		require.Eventually(t, func() bool { return p.Stats().Pinned == 0 }, 10*time.Second, time.Millisecond)
		other.ok("NOTIFY " + channel)
		require.NoError(t, other.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		m, err = other.Receive()
		var timeout net.Error
		require.ErrorAs(t, err, &timeout, "%v", m)
		require.True(t, timeout.Timeout())
	}
}

func TestReplicationClientsGetAWalsender(t *testing.T) {
	for _, version := range versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			c := pgtest.Start(t, version, "wal_level=replica", "max_wal_senders=4")
			cfg := trusting(c)
			cfg.MaxConnections = 1
			p := startProxy(t, cfg)
			for _, mode := range []string{"true", "database"} {
				r := overAs(t, p, "postgres", "replication", mode)
				got := r.query("IDENTIFY_SYSTEM")
				require.Nil(t, got.err)
				require.Len(t, got.rows, 1)
				require.Equal(t, map[string]int{"replication": 1}, p.Stats().PinnedBy)
				r.ask("START_REPLICATION PHYSICAL " + c.Exec(t, "SELECT pg_current_wal_flush_lsn()")[0][0])
				m, err := r.Receive()
				require.NoError(t, err)
				require.IsType(t, &pgproto3.CopyBothResponse{}, m)
				c.Exec(t, "CREATE TABLE IF NOT EXISTS replicated AS SELECT 1")
				m, err = r.Receive()
				require.NoError(t, err)
				require.IsType(t, &pgproto3.CopyData{}, m)
				over(t, p).ok("SELECT 1")
				require.NoError(t, r.conn.Close())
				require.Eventually(t, func() bool { return p.Stats().Pinned == 0 }, 10*time.Second, time.Millisecond)
				require.Eventually(t, func() bool {
					return c.Exec(t, "SELECT count(*) FROM pg_stat_replication")[0][0] == "0"
				}, 20*time.Second, 20*time.Millisecond)
			}
		})
	}
}

func TestAClientInTheSameProcessNeedsNoPassword(t *testing.T) {
	cfg := trusting(pgtest.Shared(t, 18))
	cfg.Authenticator = nil
	p := startProxy(t, cfg)
	conn, err := p.DialContext(context.Background(), "", "")
	require.NoError(t, err)
	c := newClient(t, conn)
	require.EqualValues(t, 'I', c.startup("app").status)
	require.Equal(t, "app", c.ok("SELECT current_user"))
}
