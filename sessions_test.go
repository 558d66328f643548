package pgmoor_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

func TestSessionsSayWhoTheyAreAndWhatTheyDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 4, Verify: pgmoor.VerifyNever}, new(fake))
		idle := r.connect(t, "u", "database", "d", "application_name", "me")
		txn, failed, busy, waiting, pinned := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		pinned.ok("SELECT pg_advisory_lock(1)")
		txn.ok("BEGIN")
		failed.ok("BEGIN")
		failed.query("fail")
		busy.ask("hang")
		synctest.Wait()
		waiting.ask("SELECT 1")
		synctest.Wait()
		got := map[uint32]pgmoor.SessionInfo{}
		var order []uint32
		for s := range r.Sessions() {
			in := s.Info()
			order = append(order, in.PID)
			got[in.PID] = in
		}
		require.Equal(t, []uint32{idle.pid, txn.pid, failed.pid, busy.pid, waiting.pid, pinned.pid}, order)
		first := got[idle.pid]
		require.Equal(t, "u d me", first.User+" "+first.Database+" "+first.ApplicationName)
		require.NotNil(t, first.Addr)
		for c, want := range map[*client]pgmoor.SessionState{
			idle: pgmoor.StateIdle, txn: pgmoor.StateInTransaction, failed: pgmoor.StateFailedTransaction,
			busy: pgmoor.StateActive, waiting: pgmoor.StateWaiting, pinned: pgmoor.StateIdle,
		} {
			in := got[c.pid]
			require.Equal(t, want, in.State, "%v", in.State)
			holds := c != idle && c != waiting
			require.Equal(t, holds, in.Backend != 0)
			require.Equal(t, c == pinned, in.Pinned == pgmoor.EffectAdvisoryLock)
			require.Equal(t, c == pinned, in.PinReason == "advisory_lock")
		}
		for range r.Sessions() {
			break
		}
	})
}

func TestTheNameOfAnApplicationIsTheLastOneThatItSaid(t *testing.T) {
	p := startProxy(t, trusting(pgtest.Shared(t, 18)))
	c := overAs(t, p, "app", "application_name", "first")
	name := func() string { return slices.Collect(p.Sessions())[0].Info().ApplicationName }
	require.Equal(t, "first", name())
	c.ok("SET application_name = 'second'")
	require.Eventually(t, func() bool { return name() == "second" }, patience, time.Millisecond) // the server is asked
	c.ok("RESET application_name")
	require.Eventually(t, func() bool { return name() == "first" }, patience, time.Millisecond)
}

// TestKillEndsASessionInTheMiddleOfWhateverItDoes has one server connection, which is clean for the next client.
func TestKillEndsASessionInTheMiddleOfWhateverItDoes(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cluster := pgtest.Shared(t, version)
		for name, begin := range map[string]func(c *client){
			"idle":         func(*client) {},
			"query":        func(c *client) { c.ask("SELECT pg_sleep(100)") },
			"transaction":  func(c *client) { c.ok("BEGIN", "LOCK TABLE pg_class IN SHARE MODE") },
			"failed":       func(c *client) { c.ok("BEGIN"); c.query("nonsense") },
			"in a query":   func(c *client) { c.ok("BEGIN"); c.ask("SELECT pg_sleep(100)") },
			"half a batch": func(c *client) { c.send(&pgproto3.Parse{Query: "SELECT 1"}) },
			"copy": func(c *client) {
				c.ok("CREATE TEMP TABLE gone (i int)")
				c.ask("COPY gone FROM STDIN")
				m, err := c.Receive()
				require.NoError(c.t, err)
				require.IsType(c.t, &pgproto3.CopyInResponse{}, m)
			},
			"pinned":        func(c *client) { c.ok("SELECT pg_advisory_lock(4711)", "SET work_mem = '1MB'") },
			"pinned, query": func(c *client) { c.ok("SELECT pg_advisory_lock(4711)"); c.ask("SELECT pg_sleep(100)") },
			"listening":     func(c *client) { c.ok("LISTEN gone") },
		} {
			t.Run(name, func(t *testing.T) {
				cfg := trusting(cluster)
				cfg.MaxConnections, cfg.Logger = 1, quiet
				p := startProxy(t, cfg)
				c, next := overAs(t, p, "postgres"), overAs(t, p, "postgres")
				begin(c)
				if c.pid != 0 {
					time.Sleep(20 * time.Millisecond) // for the request to be under way; it is right, too, where it is not
				}
				require.True(t, p.Kill(c.pid))
				got := c.reply()
				for got.status != 0 {
					got = c.reply()
				}
				require.NotNil(t, got.err)
				require.Equal(t, "FATAL 57P01", got.err.Severity+" "+got.err.Code)
				requireFresh(t, next)
				require.Equal(t, 1, p.Stats().Clients)
				require.False(t, p.Kill(c.pid))
			})
		}
	})
}

// TestKillEndsASessionInTheMiddleOfALargeResult has a client that reads, and one that does not.
func TestKillEndsASessionInTheMiddleOfALargeResult(t *testing.T) {
	for _, configure := range []func(pgmoor.Config) pgmoor.Config{func(c pgmoor.Config) pgmoor.Config { return c }, pgmoor.WithPlainIO} {
		for _, row := range []string{"1000", "100000"} { // the latter is larger than any buffer
			cfg := trusting(pgtest.Shared(t, 18))
			cfg.MaxConnections, cfg.Logger = 1, quiet
			p := startProxy(t, configure(cfg))
			reads, stuck, next := over(t, p), over(t, p), over(t, p)
			for _, c := range []*client{reads, stuck} {
				c.ask("SELECT repeat('x', " + row + ") FROM generate_series(1, 1000000)")
				_, err := c.Receive()
				require.NoError(t, err)
				require.True(t, p.Kill(c.pid))
				if c == reads {
					got := c.reply()
					require.Zero(t, got.status)
					require.Contains(t, []string{"57P01", ""}, got.code())
				}
				next.ok("SELECT 1")
			}
			require.Eventually(t, func() bool { return p.Stats().Clients == 1 }, patience, time.Millisecond)
		}
	}
}

func TestKillEndsASessionThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, new(fake))
		holder, waiting := r.connect(t, "u"), r.connect(t, "u")
		holder.ok("BEGIN")
		waiting.ask("SELECT 1")
		synctest.Wait()
		require.True(t, r.Kill(waiting.pid))
		waiting.ended("57P01")
		require.Zero(t, r.Stats().Waiting)
		holder.ok("COMMIT")
	})
}

// TestKillRacesWithTheEndOfAQuery kills clients that do one query after the other, at any moment.
func TestKillRacesWithTheEndOfAQuery(t *testing.T) {
	cfg := trusting(pgtest.Shared(t, 18))
	cfg.MaxConnections, cfg.Logger = 2, quiet
	p := startProxy(t, cfg)
	other := over(t, p)
	for i := range 100 {
		c := over(t, p)
		c.ok("SELECT 1")
		for range i % 5 {
			c.ask("SELECT 2")
		}
		require.True(t, p.Kill(c.pid))
		got := c.reply()
		for got.status != 0 {
			got = c.reply()
		}
		require.Equal(t, "57P01", got.code(), "%d: %+v", i, got)
		require.Equal(t, "3", other.ok("SELECT 3"))
	}
	require.Eventually(t, func() bool { return p.Stats().Clients == 1 }, patience, time.Millisecond)
}

func TestKillEndsASessionThatNobodyServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := unserved(t, new(fake))
		c, s := accepted(t, p)
		require.Equal(t, c.pid, s.Info().PID)
		s.Kill()
		require.Zero(t, c.reply().status)
	})
}
