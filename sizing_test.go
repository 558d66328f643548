package pgmoor_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

func TestTheLimitIsAPercentageOfWhatTheServerHas(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  pgmoor.Config
		max  [3]int
		want int
	}{
		"of all":             {pgmoor.Config{MaxConnectionsPercent: 100}, [3]int{20, 3, 2}, 15},
		"before 16":          {pgmoor.Config{MaxConnectionsPercent: 100}, [3]int{20, 3, -1}, 17},
		"of some":            {pgmoor.Config{MaxConnectionsPercent: 40}, [3]int{20, 3, 2}, 6},
		"at least one":       {pgmoor.Config{MaxConnectionsPercent: 1}, [3]int{20, 3, 2}, 1},
		"the other is less":  {pgmoor.Config{MaxConnectionsPercent: 40, MaxConnections: 4}, [3]int{20, 3, 2}, 4},
		"the other is more":  {pgmoor.Config{MaxConnectionsPercent: 40, MaxConnections: 7}, [3]int{20, 3, 2}, 6},
		"more than reserved": {pgmoor.Config{MaxConnectionsPercent: 100}, [3]int{3, 3, 2}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &fake{max: tc.max}
				r := newRig(t, tc.cfg, server)
				var all []*client
				for range 20 {
					c := r.connect(t, "u")
					c.ask("sleep 1s")
					all = append(all, c)
				}
				for _, c := range all {
					require.Nil(t, c.reply().err)
				}
				_, most, _, _ := server.counts()
				require.Equal(t, tc.want, most)
				require.Equal(t, tc.want, r.Stats().ServersGranted)
			})
		})
	}
}

func TestTheLimitFollowsAServerThatWasRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{max: [3]int{8, 0, 0}}
		r := newRig(t, pgmoor.Config{MaxConnectionsPercent: 50}, server)
		holders := []*client{r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")}
		for _, c := range holders {
			c.ok("BEGIN")
		}
		for _, c := range holders[1:] {
			c.ok("COMMIT")
		}
		require.Equal(t, 4, r.Stats().Servers)
		server.setMax([3]int{4, 0, 0}) // the pool learns of it at its next login
		other := r.connect(t, "v")
		other.ok("SELECT 1")
		synctest.Wait()
		require.Equal(t, 2, r.Stats().ServersGranted)
		require.LessOrEqual(t, r.Stats().Servers, 2, "idle ones beyond it are closed")
		server.setMax([3]int{40, 0, 0})
		holders[0].ok("COMMIT")
		r.connect(t, "w").ok("SELECT 1")
		synctest.Wait()
		require.Equal(t, 20, r.Stats().ServersGranted)
	})
}

func TestConnectionsInUseBeyondASmallerLimitAreClosedWhenTheyComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{max: [3]int{4, 0, 0}}
		r := newRig(t, pgmoor.Config{MaxConnectionsPercent: 100}, server)
		var all []*client
		for range 3 {
			c := r.connect(t, "u")
			c.ok("BEGIN")
			all = append(all, c)
		}
		server.setMax([3]int{2, 0, 0})
		other := r.connect(t, "v")
		other.ask("SELECT 1")
		for _, c := range all {
			c.ok("SELECT 1", "COMMIT")
		}
		require.Nil(t, other.reply().err)
		synctest.Wait()
		require.LessOrEqual(t, r.Stats().Servers, 2)
		for _, c := range all { // waits have survived
			c.ask("sleep 1s")
		}
		for _, c := range all {
			require.Nil(t, c.reply().err)
		}
	})
}

func TestIdleConnectionsAreKeptUpToTheirPercentage(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  pgmoor.Config
		want int
	}{
		"half":           {pgmoor.Config{MaxConnectionsPercent: 100}, 5},
		"given":          {pgmoor.Config{MaxConnectionsPercent: 100, MaxIdleConnectionsPercent: 20}, 2},
		"of a part":      {pgmoor.Config{MaxConnectionsPercent: 80, MaxIdleConnectionsPercent: 30}, 3},
		"none":           {pgmoor.Config{MaxConnectionsPercent: 100, MaxIdleConnectionsPercent: pgmoor.NoIdle}, 0},
		"of an absolute": {pgmoor.Config{MaxConnections: 10, MaxIdleConnectionsPercent: 40}, 4},
		"not given":      {pgmoor.Config{MaxConnections: 10}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tc.cfg.Verify = pgmoor.VerifyNever
				r := newRig(t, tc.cfg, &fake{max: [3]int{10, 0, 0}})
				var all []*client
				for i := range 8 {
					c := r.connect(t, fmt.Sprint("u", i%2))
					c.ok("BEGIN")
					all = append(all, c)
				}
				for _, c := range all {
					c.ok("COMMIT")
				}
				time.Sleep(5*time.Minute + 20*time.Second)
				synctest.Wait()
				require.Equal(t, tc.want, r.Stats().Servers)
				time.Sleep(20 * time.Minute)
				synctest.Wait()
				require.Equal(t, tc.want, r.Stats().Servers)
			})
		})
	}
}

func TestAPoolThatHasClientsKeepsItsLeastNumberOfConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MinConnections: 3, IdleTimeout: time.Minute, IdleClientTimeout: -1}, server)
		c := r.connect(t, "u")
		synctest.Wait()
		require.Equal(t, 3, r.Stats().Servers)
		time.Sleep(time.Hour)
		require.Equal(t, 3, r.Stats().Servers)
		server.kill(1)
		synctest.Wait()
		require.Equal(t, 3, r.Stats().Servers)
		server.setDown(true)
		for pid := range uint32(10) {
			server.kill(pid)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Zero(t, r.Stats().Servers)
		server.setDown(false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Equal(t, 3, r.Stats().Servers)
		c.conn.Close()
		time.Sleep(2 * time.Minute)
		require.Zero(t, r.Stats().Servers)
	})
}

func TestConnectionsThatAreKeptReadyTakeNothingFromOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MinConnections: 3, MaxConnections: 4}, server)
		a := r.connect(t, "a")
		synctest.Wait()
		b := r.connect(t, "b")
		synctest.Wait()
		require.Equal(t, 4, r.Stats().Servers)
		opened := r.Stats().ServersOpened
		for range 10 {
			a.ok("SELECT 1")
			b.ok("SELECT 1")
			time.Sleep(time.Minute)
		}
		require.Equal(t, opened, r.Stats().ServersOpened)
		c := r.connect(t, "c") // for a client that waits they make room
		c.ok("BEGIN")
		require.Equal(t, 4, r.Stats().Servers)
	})
}

func TestConnectionsAreOpenedAheadWhileUseGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{slow: 100 * time.Millisecond}
		r := newRig(t, pgmoor.Config{MaxConnections: 100}, server)
		for i := range 40 {
			c := r.connect(t, "u")
			start := time.Now()
			c.ok("BEGIN")
			if i >= 4 {
				require.Zero(t, time.Since(start), "client %d has waited", i)
			}
			time.Sleep(100 * time.Millisecond)
		}
		require.LessOrEqual(t, r.Stats().Servers, 50)
	})
}

func TestWhatWasOpenedAheadIsClosedWhenUseShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 100}, new(fake))
		var all []*client
		for range 20 {
			c := r.connect(t, "u")
			c.ok("BEGIN")
			all = append(all, c)
		}
		for _, c := range all {
			c.ok("COMMIT")
		}
		synctest.Wait()
		opened := r.Stats().ServersOpened
		for range 400 { // one is enough from here on
			all[0].ok("SELECT 1")
			time.Sleep(time.Second)
		}
		require.Equal(t, 1, r.Stats().Servers)
		require.Equal(t, opened, r.Stats().ServersOpened)
	})
}

func TestWithoutWaitingOnlyIdleConnectionsAreLent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{slow: 100 * time.Millisecond}
		r := newRig(t, pgmoor.Config{BorrowTimeout: pgmoor.NoWait, MaxConnections: 10}, server)
		one, two := r.connect(t, "u"), r.connect(t, "u")
		one.ok("BEGIN")
		start := time.Now()
		got := two.query("SELECT 1")
		require.Zero(t, time.Since(start))
		require.Equal(t, "08000", got.code())
		require.Equal(t, "no server connection is idle", got.err.Message)
		require.Equal(t, 1, r.Stats().ServersIdle+1, "far below the limit")
		time.Sleep(200 * time.Millisecond) // one was opened all the same
		two.ok("SELECT 1")
	})
}
