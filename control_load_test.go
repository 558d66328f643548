package pgmoor_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// A crowd is clients that go on until they are told to stop, and must not see an error.
type crowd struct {
	t     *testing.T
	addr  string
	stop  atomic.Bool
	trips atomic.Int64
	wg    sync.WaitGroup
}

// gather starts n clients of each kind.
func gather(t *testing.T, addr string, n int, kinds ...func(c *crowd, i int) error) *crowd {
	c := &crowd{t: t, addr: addr}
	for _, kind := range kinds {
		for i := range n {
			c.wg.Go(func() { assert.NoError(t, kind(c, i)) })
		}
	}
	return c
}

// disperse stops the clients, and returns how often they did what they do.
func (c *crowd) disperse() int64 {
	c.stop.Store(true)
	c.wg.Wait()
	return c.trips.Load()
}

func (c *crowd) connect() (*pgx.Conn, error) {
	return pgx.Connect(context.Background(), "postgres://app@"+c.addr+"/app?sslmode=disable&application_name=crowd")
}

// each does something over and over on one connection.
func (c *crowd) each(first string, do func(conn *pgx.Conn) error) error {
	ctx := context.Background()
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, first); err != nil {
		return err
	}
	for !c.stop.Load() {
		if err := do(conn); err != nil {
			return err
		}
		c.trips.Add(1)
	}
	return nil
}

// transacts runs transactions of some statements with a setting of its own.
func transacts(c *crowd, i int) error {
	want := fmt.Sprintf("%dMB", i+5)
	return c.each("SET work_mem = '"+want+"'", func(conn *pgx.Conn) error {
		ctx := context.Background()
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		var one, two string
		for range 3 {
			if err := tx.QueryRow(ctx, "SELECT pg_backend_pid()::text, current_setting('work_mem')").Scan(&one, &two); err != nil {
				return err
			}
			if two != want {
				return fmt.Errorf("work_mem is %s, not %s", two, want)
			}
		}
		return tx.Commit(ctx)
	})
}

// pins keeps a temporary table, and counts in it.
func pins(c *crowd, _ int) error {
	n := 0
	return c.each("CREATE TEMP TABLE kept (n int)", func(conn *pgx.Conn) error {
		if _, err := conn.Exec(context.Background(), "INSERT INTO kept VALUES (1)"); err != nil {
			return err
		}
		n++
		var sum int
		if err := conn.QueryRow(context.Background(), "SELECT sum(n) FROM kept").Scan(&sum); err != nil || sum != n {
			return fmt.Errorf("%d of %d: %w", sum, n, err)
		}
		return nil
	})
}

// pipelines pipelines prepared statements.
func pipelines(c *crowd, i int) error {
	return c.each(fmt.Sprintf("LISTEN crowd_%d", i), func(conn *pgx.Conn) error {
		b := new(pgx.Batch)
		for k := range 5 {
			b.Queue(fmt.Sprintf("SELECT $1::int + %d", k), i)
		}
		return conn.SendBatch(context.Background(), b).Close()
	})
}

// comes connects anew each time.
func comes(c *crowd, _ int) error {
	for !c.stop.Load() {
		conn, err := c.connect()
		if err != nil {
			return err
		}
		if _, err := conn.Exec(context.Background(), "SELECT 1"); err != nil {
			return err
		}
		if err := conn.Close(context.Background()); err != nil {
			return err
		}
		c.trips.Add(1)
	}
	return nil
}

// progress waits for the crowd to do something.
func (c *crowd) progress() {
	c.t.Helper()
	before := c.trips.Load()
	require.Eventually(c.t, func() bool { return c.trips.Load() >= before+20 || c.t.Failed() }, time.Minute, time.Millisecond)
}

// TestClientsNoticeNothingOfWhatIsDoneToTheProxy pauses, resumes, reconnects and updates under load.
func TestClientsNoticeNothingOfWhatIsDoneToTheProxy(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cluster := pgtest.Shared(t, version)
		cfg := trusting(cluster)
		cfg.MaxConnections, cfg.Logger = 6, quiet
		p := startProxy(t, cfg)
		c := gather(t, p.Addr().String(), 2, transacts, pins, pipelines, comes)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for i := range 8 {
			c.progress()
			require.NoError(t, p.Pause(ctx))
			require.Equal(t, [][]string{{"0"}}, cluster.Exec(t, // a server process says so a moment after it has answered
				"SELECT pg_sleep(0.02); SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crowd' AND state <> 'idle'"))
			before := c.trips.Load()
			if i%2 == 0 { // the pinned ones keep theirs
				_ = within(10*time.Millisecond, p.Reconnect)
			}
			cfg.MaxConnections = 4 + i%3*2
			require.NoError(t, p.Update(cfg))
			require.LessOrEqual(t, c.trips.Load(), before+8, "clients go on in a pause")
			p.Resume()
			c.progress()
			_ = within(10*time.Millisecond, p.Reconnect)
			cfg.MaxConnections = 8 - i%3*2
			require.NoError(t, p.Update(cfg))
		}
		require.Greater(t, c.disperse(), int64(300))
		require.Zero(t, p.Stats().BorrowTimeouts)
		require.NoError(t, p.Reconnect(ctx))
	})
}

func TestAServerIsRestartedInAPauseAndNobodyNotices(t *testing.T) {
	cluster := pgtest.Start(t, 18)
	cfg := trusting(cluster)
	cfg.MaxConnections, cfg.Logger = 4, quiet
	p := startProxy(t, cfg)
	c := gather(t, p.Addr().String(), 3, transacts, comes)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c.progress()
	require.NoError(t, p.Pause(ctx))
	require.NoError(t, cluster.Restart(pgtest.Fast))
	p.Resume()
	c.progress()
	c.disperse()
}

func TestClientsThatListenGoOnBehindAReconnect(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cluster := pgtest.Shared(t, version)
		cfg := trusting(cluster)
		cfg.Logger = quiet
		p := startProxy(t, cfg)
		c := over(t, p)
		c.ok("LISTEN again")
		require.NoError(t, p.Reconnect(t.Context()))
		m, err := c.Receive()
		require.NoError(t, err)
		require.Equal(t, "01000", m.(*pgproto3.NoticeResponse).Code)
		cluster.Exec(t, "NOTIFY again, 'hello'")
		if m, err = c.Receive(); err == nil {
			require.Equal(t, "hello", m.(*pgproto3.NotificationResponse).Payload)
		}
		require.NoError(t, err)
		require.EqualValues(t, 1, p.Stats().ListenersLost)
	})
}

// TestADatabaseIsRenamedInAPause is what needs a database without connections.
func TestADatabaseIsRenamedInAPause(t *testing.T) {
	cluster := pgtest.Shared(t, 18)
	cluster.Exec(t, "DROP DATABASE IF EXISTS before")
	cluster.Exec(t, "DROP DATABASE IF EXISTS after")
	cluster.Exec(t, "CREATE DATABASE before")
	cfg := trusting(cluster)
	cfg.Logger = quiet
	p := startProxy(t, cfg)
	conn, err := pgconn.Connect(t.Context(), "postgres://postgres@"+p.Addr().String()+"/before?sslmode=disable")
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "SELECT 1; SELECT 2").ReadAll()
	require.NoError(t, err)
	require.NoError(t, p.Pause(t.Context()))
	require.NoError(t, p.Reconnect(t.Context()))
	cluster.Exec(t, "ALTER DATABASE before RENAME TO after")
	cluster.Exec(t, "CREATE DATABASE before TEMPLATE after")
	p.Resume()
	_, err = conn.Exec(t.Context(), "SELECT 1").ReadAll()
	require.NoError(t, err)
}
