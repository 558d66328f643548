package pgmoor_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

func TestAnUpdatedPercentageCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 3}, &fake{max: [3]int{20, 0, 0}})
		c := r.connect(t, "u")
		c.ok("SELECT 1")
		granted := func(cfg pgmoor.Config, want int) {
			t.Helper()
			r.change(t, cfg)
			require.Equal(t, want, r.Stats().ServersGranted)
		}
		granted(pgmoor.Config{MaxConnectionsPercent: 50}, 3)
		synctest.Wait()
		require.Zero(t, r.Stats().Servers, "it did not say how many there are")
		c.ok("SELECT 1")
		require.Equal(t, 10, r.Stats().ServersGranted)
		granted(pgmoor.Config{MaxConnectionsPercent: 25}, 5)
		granted(pgmoor.Config{MaxConnectionsPercent: 25, MaxConnections: 4}, 4)
		granted(pgmoor.Config{MaxConnections: 6}, 6)
		granted(pgmoor.Config{}, pgmoor.DefaultMaxConnections)
		synctest.Wait()
		require.Equal(t, 1, r.Stats().Servers)
	})
}

func TestOfAllLimitsTheSmallestCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, shares := granted()
		cfg.MaxConnectionsPercent = 50
		r := newRig(t, cfg, &fake{max: [3]int{20, 0, 0}})
		s := <-shares
		require.Zero(t, r.Stats().ServersGranted)
		s.Grant(30)
		require.Equal(t, 1, r.Stats().ServersGranted, "the server was not asked yet")
		r.connect(t, "u").ok("SELECT 1")
		require.Equal(t, 10, r.Stats().ServersGranted)
		require.Equal(t, pgmoor.Demand{Granted: 30, Open: 1, Idle: 1}, s.Demand())
		s.Grant(4)
		require.Equal(t, 4, r.Stats().ServersGranted)
		cfg.MaxConnections = 2
		r.change(t, cfg)
		require.Equal(t, 2, r.Stats().ServersGranted)
	})
}

func TestLimitsOfUsersAndDatabasesFollowUpdate(t *testing.T) {
	for name, limited := range map[string]pgmoor.Config{
		"user": {MaxConnections: 9, MaxConnectionsPerUser: 1}, "database": {MaxConnections: 9, MaxConnectionsPerDatabase: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pgmoor.Config{MaxConnections: 9}, new(fake))
				a, b, c := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
				a.ok("BEGIN")
				b.ok("BEGIN")
				c.ok("SELECT 1")
				r.change(t, limited)
				synctest.Wait()
				require.Zero(t, r.Stats().ServersIdle)
				a.ok("COMMIT")
				synctest.Wait()
				require.Equal(t, 1, r.Stats().Servers)
				c.ask("SELECT 1")
				synctest.Wait()
				require.Equal(t, 1, r.Stats().Waiting)
				r.change(t, pgmoor.Config{MaxConnections: 9})
				require.Nil(t, c.reply().err)
				b.ok("COMMIT")
			})
		})
	}
}

func TestLimitsOnClientsFollowUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{}, new(fake))
		a, b := r.connect(t, "u"), r.connect(t, "u")
		r.change(t, pgmoor.Config{MaxClients: 2})
		require.Equal(t, "53300", r.dialClient(t).startup("u").code(), "those from before count")
		require.NoError(t, a.conn.Close())
		synctest.Wait()
		r.connect(t, "u")
		r.change(t, pgmoor.Config{ConnectionRate: 1, IdleClientTimeout: time.Minute})
		r.connect(t, "u")
		require.Equal(t, "53300", r.dialClient(t).startup("u").code())
		time.Sleep(63 * time.Second)
		b.ended("57P05")
	})
}

func TestWhatIsKnownOfAHostOutlivesAnUpdateUnlessTheHostsAreOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		server.setDown(true)
		r := newRig(t, pgmoor.Config{}, server)
		c := r.loginsOf(t, 1)[0]
		time.Sleep(time.Minute)
		attempts := func() int {
			synctest.Wait()
			_, _, _, all := server.counts()
			return len(all)
		}
		before := attempts()
		for range 10 {
			r.change(t, pgmoor.Config{})
		}
		require.Equal(t, before, attempts(), "it is kept from")
		server.setDown(false)
		start := time.Now()
		r.change(t, pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{"other"}}})
		require.EqualValues(t, 'I', c.reply().status)
		require.Less(t, time.Since(start), 10*time.Millisecond)
	})
}

func TestMaxOpeningFollowsUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{slow: time.Second}
		r := newRig(t, pgmoor.Config{MaxConnections: 100, MaxOpening: 1}, server)
		all := r.loginsOf(t, 21)
		time.Sleep(500 * time.Millisecond)
		start := time.Now()
		r.change(t, pgmoor.Config{MaxConnections: 100, MaxOpening: 20})
		for _, c := range all {
			require.EqualValues(t, 'I', c.reply().status)
		}
		require.Less(t, time.Since(start), 3*time.Second)
		_, _, busiest, _ := server.counts()
		require.Equal(t, 20, busiest)
	})
}

func TestAnUpdatedInitQueryIsRunOnNewConnections(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cfg := trusting(pgtest.Shared(t, version))
		cfg.MaxConnections, cfg.InitQuery, cfg.Logger = 1, "SET work_mem = '7MB'", quiet
		p := startProxy(t, cfg)
		before, pinned := over(t, p), over(t, p)
		pinned.ok("BEGIN")
		cfg.InitQuery = "SET work_mem = '8MB'"
		require.NoError(t, p.Update(cfg))
		pinned.ok("SELECT 1", "COMMIT")
		require.Equal(t, "7MB", before.ok("SHOW work_mem"), "a session keeps what it began with")
		require.EqualValues(t, 2, p.Stats().ServersOpened)
		after := over(t, p)
		require.Equal(t, "8MB", after.ok("SHOW work_mem"))
		before.ok("SET work_mem = '9MB'", "RESET work_mem")
		require.Equal(t, "7MB", before.ok("SHOW work_mem"))
		after.ok("SET work_mem = '9MB'", "RESET work_mem")
		require.Equal(t, "8MB", after.ok("SHOW work_mem"))
		require.Empty(t, reasons(p))
	})
}

func TestTheClientsOfAPauseAreNotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 2, Verify: pgmoor.VerifyNever, IdleClientTimeout: time.Minute, MinConnections: 1}, new(fake))
		free, pinned := r.connect(t, "u"), r.connect(t, "u")
		pinned.ok("SELECT pg_advisory_lock(1)")
		require.NoError(t, r.Pause(t.Context()))
		free.ask("SELECT 1")
		pinned.ask("SELECT 2")
		time.Sleep(3 * time.Minute)
		r.Resume()
		require.Nil(t, free.reply().err)
		require.Nil(t, pinned.reply().err)
	})
}
