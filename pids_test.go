package pgmoor_test

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// bound runs a statement with one parameter by the extended protocol.
func (c *client) bound(sql, name string, format int16, value []byte) reply {
	c.t.Helper()
	c.send(&pgproto3.Parse{Name: name, Query: sql}, &pgproto3.Bind{PreparedStatement: name, ParameterFormatCodes: []int16{format}, Parameters: [][]byte{value}},
		&pgproto3.Execute{}, &pgproto3.Sync{})
	return c.reply()
}

func TestAProcessIDOfACancelKeyNamesItsSession(t *testing.T) {
	const terminate = "SELECT pg_terminate_backend($1)"
	for way, end := range map[string]func(by, c *client) reply{
		"literal": func(by, c *client) reply { return by.query(fmt.Sprintf("SELECT pg_terminate_backend(%d)", c.pid)) },
		"text":    func(by, c *client) reply { return by.bound(terminate, "", 0, fmt.Append(nil, c.pid)) },
		"binary": func(by, c *client) reply {
			return by.bound(terminate, "", 1, binary.BigEndian.AppendUint32(nil, c.pid))
		},
		"named": func(by, c *client) reply { return by.bound(terminate, "a", 0, fmt.Append(nil, c.pid)) },
	} {
		for state, prepare := range map[string]func(c *client){
			"idle":             func(c *client) {},
			"in a transaction": func(c *client) { c.ok("BEGIN") },
			"in a query":       func(c *client) { c.ask("SELECT pg_sleep(1000)") },
			"pinned":           func(c *client) { c.ok("SELECT pg_advisory_lock(1)") },
		} {
			t.Run(way+"/"+state, func(t *testing.T) {
				p := startProxy(t, trusting(pgtest.Shared(t, 18)))
				c, by, bystander := over(t, p), overAs(t, p, "app"), over(t, p)
				c.ok("SELECT 1")
				by.ok("BEGIN") // a connection of its own; the one that c had is idle
				bystander.ok("SET work_mem = '5MB'")
				used := func() int { return p.Stats().Servers - p.Stats().ServersIdle }
				require.Eventually(t, func() bool { return used() == 1 }, patience, time.Millisecond)
				if prepare(c); state != "idle" {
					require.Eventually(t, func() bool { return used() == 2 }, patience, time.Millisecond)
				}
				got := end(by, c)
				require.Nil(t, got.err)
				require.Equal(t, []string{"t"}, got.rows)
				c.ended("57P01")
				require.Equal(t, "5MB", bystander.ok("SHOW work_mem"))
				by.ok("COMMIT")
			})
		}
	}
}

// TestATerminatedSessionAnswersNothingMore has idle sessions ask for something as soon as another one was told that they are terminated.
func TestATerminatedSessionAnswersNothingMore(t *testing.T) {
	p := startProxy(t, trusting(pgtest.Shared(t, 18)))
	by := over(t, p)
	for range 50 {
		c := over(t, p)
		by.ok("BEGIN")
		c.ok("SELECT 1") // on another connection
		require.Equal(t, "t", by.ok(fmt.Sprintf("SELECT pg_terminate_backend(%d)", c.pid)))
		_ = c.conn.SetDeadline(time.Now().Add(patience))
		c.Send(&pgproto3.Query{String: "SELECT 1"})
		_ = c.Flush() // it may have ended
		c.ended("57P01")
		by.ok("COMMIT")
	}
}

// TestALateSignalHitsNobodyElse has a statement that terminates a session run so long after its process id was replaced that the session's server
// connection has been given back: nobody else may have got that.
func TestALateSignalHitsNobodyElse(t *testing.T) {
	for name, prepare := range map[string]func(by *client, sql string) []pgproto3.FrontendMessage{
		"unnamed": func(by *client, sql string) []pgproto3.FrontendMessage {
			by.send(parseOf("", sql), &pgproto3.Sync{})
			require.Nil(by.t, by.reply().err)
			return run("")
		},
		"portal": func(by *client, sql string) []pgproto3.FrontendMessage {
			by.send(parseOf("", sql), &pgproto3.Bind{DestinationPortal: "p"}, &pgproto3.Sync{})
			require.Nil(by.t, by.reply().err)
			return []pgproto3.FrontendMessage{&pgproto3.Execute{Portal: "p"}, &pgproto3.Sync{}}
		},
	} {
		for _, late := range []time.Duration{0, 11 * time.Second} {
			t.Run(fmt.Sprint(name, late), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var hit atomic.Int64
					server := &fake{sent: func(_ uint32, sql string) {
						if pid, ok := strings.CutPrefix(sql, "SELECT pg_terminate_backend("); ok {
							n, _ := strconv.Atoi(strings.TrimSuffix(pid, ")"))
							hit.Store(int64(n))
						}
					}}
					r := newRig(t, pgmoor.Config{MaxConnections: 2}, server)
					by, c, other := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
					c.ok("BEGIN")
					was := c.ok("pid")
					by.ok("BEGIN")
					rest := prepare(by, fmt.Sprintf("SELECT pg_terminate_backend(%d)", c.pid))
					time.Sleep(late)
					c.ok("COMMIT")
					other.ask("BEGIN") // waits, if c's connection still stands for c
					synctest.Wait()
					by.send(rest...)
					require.Nil(t, by.reply().err)
					require.Equal(t, was, strconv.FormatInt(hit.Load(), 10), "the signal is for the connection that c had")
					require.Nil(t, other.reply().err)
					require.NotEqual(t, was, other.ok("pid"))
				})
			})
		}
	}
}

// TestASessionIsTerminatedThoughNoConnectionIsIdle has one opened for that, and says that it could not where there is no room for one.
func TestASessionIsTerminatedThoughNoConnectionIsIdle(t *testing.T) {
	for name, terminate := range map[string]func(by *client, pid uint32) reply{
		"literal": func(by *client, pid uint32) reply {
			return by.query(fmt.Sprintf("SELECT pg_terminate_backend(%d)", pid))
		},
		"bound": func(by *client, pid uint32) reply {
			return by.bound("SELECT pg_terminate_backend($1)", "", 0, fmt.Append(nil, pid))
		},
		"named": func(by *client, pid uint32) reply {
			return by.bound("SELECT pg_terminate_backend($1)", "a", 0, fmt.Append(nil, pid))
		},
		"prepared": func(by *client, pid uint32) reply {
			sql := fmt.Sprintf("SELECT pg_terminate_backend(%d)", pid)
			by.send(&pgproto3.Parse{Query: sql}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
			return by.reply()
		},
	} {
		for _, room := range []bool{true, false} {
			t.Run(fmt.Sprint(name, room), func(t *testing.T) {
				cfg := trusting(pgtest.Shared(t, 18))
				if !room {
					cfg.MaxConnections = 1
				}
				p := startProxy(t, cfg)
				by, c, waits := over(t, p), over(t, p), over(t, p)
				by.ok("BEGIN")
				got := terminate(by, c.pid)
				require.Nil(t, got.err)
				if !room {
					require.Equal(t, []string{"f"}, got.rows)
					_ = by.conn.Close() // a named statement pins
					c.ok("SELECT 1")
					return
				}
				require.Equal(t, []string{"t"}, got.rows)
				c.ended("57P01")
				by.ok("COMMIT")
				waits.ok("SELECT 1")
			})
		}
	}
}

// TestProcessIDsInAnArrayAreTranslated is how pgx terminates several sessions at once.
func TestProcessIDsInAnArrayAreTranslated(t *testing.T) {
	p := startProxy(t, trusting(pgtest.Shared(t, 18)))
	by, a, b := over(t, p), over(t, p), over(t, p)
	by.ok("BEGIN")
	for _, c := range []*client{a, b} {
		c.ok("BEGIN")
	}
	for _, c := range []*client{a, b} {
		c.ok("COMMIT")
	}
	ids := binary.BigEndian.AppendUint32(nil, 1) // dimension
	for _, n := range []uint32{1, 23, 3, 1, 4, a.pid, 1<<32 - 1, 4, b.pid} {
		ids = binary.BigEndian.AppendUint32(ids, n)
	}
	got := by.bound("SELECT pg_terminate_backend(n) FROM unnest($1::int[]) n WHERE n IS NOT NULL", "", 1, ids)
	require.Equal(t, []string{"t", "t"}, got.rows, "%v", got.err)
	a.ended("57P01")
	b.ended("57P01")
}

func TestTerminatingNeedsTheServersPermission(t *testing.T) {
	cluster := pgtest.Shared(t, 18)
	p := startProxy(t, trusting(cluster))
	owner, by := overAs(t, p, "postgres"), over(t, p)
	terminate := fmt.Sprintf("SELECT pg_terminate_backend(%d)", owner.pid)
	for range 3 {
		owner.ok("BEGIN")
		require.Equal(t, "42501", by.query(terminate).code())
		owner.ok("COMMIT")
		require.Eventually(t, func() bool { return p.Stats().ServersIdle == p.Stats().Servers }, patience, time.Millisecond)
		require.Equal(t, "f", by.ok(terminate), "no connection stands for an idle session of another user")
		owner.ok("SELECT 1")
	}
}

func TestACancelByProcessIDReachesItsSession(t *testing.T) {
	p := startProxy(t, trusting(pgtest.Shared(t, 15)))
	c, by := over(t, p), over(t, p)
	c.ask("SELECT pg_sleep(1000)")
	require.Eventually(t, func() bool { return p.Stats().Servers > p.Stats().ServersIdle }, patience, time.Millisecond)
	require.Eventually(t, func() bool {
		return by.ok(fmt.Sprintf("SELECT pg_cancel_backend(%d)", c.pid)) == "t"
	}, patience, 10*time.Millisecond)
	require.Equal(t, "57014", c.reply().code())
	c.ok("SELECT 1")
}

func TestWhoBlocksWhomIsAskedByProcessID(t *testing.T) {
	cluster := pgtest.Shared(t, 18)
	cluster.Exec(t, "CREATE TABLE IF NOT EXISTS blocked (i int)")
	p := startProxy(t, trusting(cluster))
	holder, blocked, watch := overAs(t, p, "postgres"), overAs(t, p, "postgres"), overAs(t, p, "postgres")
	watch.send(&pgproto3.Parse{Name: "w", Query: fmt.Sprintf("SELECT pg_isolation_test_session_is_blocked($1, '{%d,%d}')", holder.pid, blocked.pid)}, &pgproto3.Sync{})
	require.Nil(t, watch.reply().err)
	waits := func() []string {
		watch.send(&pgproto3.Bind{PreparedStatement: "w", Parameters: [][]byte{fmt.Append(nil, blocked.pid)}}, &pgproto3.Execute{}, &pgproto3.Sync{})
		got := watch.reply()
		require.Nil(t, got.err)
		return got.rows
	}
	require.Equal(t, []string{"f"}, waits())
	holder.ok("BEGIN", "LOCK TABLE blocked")
	blocked.ask("SELECT * FROM blocked")
	require.Eventually(t, func() bool { return waits()[0] == "t" }, patience, 10*time.Millisecond)
	holder.ok("COMMIT")
	require.Nil(t, blocked.reply().err)
	require.Equal(t, []string{"f"}, waits())
}
