package pgmoor_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

func TestAnIdleClientIsDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{IdleClientTimeout: time.Minute, MaxConnections: 2}, new(fake))
		idle, open, busy, active := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		open.ok("BEGIN")
		busy.ask("sleep 90s")
		for range 5 {
			time.Sleep(10 * time.Second)
			active.send(&pgproto3.Flush{})
		}
		require.Equal(t, 4, r.Stats().Clients)
		time.Sleep(12 * time.Second)
		synctest.Wait()
		require.Equal(t, 2, r.Stats().Clients)
		for _, c := range []*client{idle, open} {
			got := c.reply()
			require.Equal(t, "57P05", got.code())
			require.Equal(t, "FATAL", got.err.Severity)
		}
		active.ok("SELECT 1") // on the connection of the one that was in a transaction
		require.Nil(t, busy.reply().err)
		busy.ok("SELECT 1")
		time.Sleep(62 * time.Second)
		busy.ended("57P05")
	})
}

func TestIdleClientsMayStayForHalfAnHourUnlessTheirTimeIsUnlimited(t *testing.T) {
	for limit, gone := range map[time.Duration]bool{0: true, -1: false} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pgmoor.Config{IdleClientTimeout: limit}, new(fake))
				c := r.connect(t, "u")
				time.Sleep(30*time.Minute - time.Second)
				synctest.Wait()
				require.Equal(t, 1, r.Stats().Clients)
				time.Sleep(3 * time.Second)
				synctest.Wait()
				if gone {
					c.ended("57P05")
					return
				}
				c.ok("SELECT 1")
			})
		})
	}
}

func TestAClientIsDisconnectedAtItsMaximumAgeWhenItsTransactionIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxClientLifetime: time.Hour, IdleClientTimeout: -1, Verify: pgmoor.VerifyNever}, new(fake))
		idle, open, pinned := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		open.ok("BEGIN")
		pinned.ok("SELECT pg_advisory_lock(1)")
		time.Sleep(time.Hour - 2*time.Second)
		idle.ok("SELECT 1")
		time.Sleep(10 * time.Second)
		young := r.connect(t, "u")
		idle.ended("57P01")
		pinned.ended("57P01")
		open.ok("SELECT 1", "COMMIT")
		open.ended("57P01")
		young.ok("SELECT 1")
	})
}

func TestAServerConnectionIsReplacedAtItsMaximumAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxServerLifetime: time.Hour, IdleTimeout: -1, IdleClientTimeout: -1}, server)
		c, open := r.connect(t, "u"), r.connect(t, "u")
		first := open.ok("BEGIN", "pid")
		second := c.ok("BEGIN", "pid")
		c.ok("COMMIT")
		time.Sleep(54*time.Minute - 2*time.Second)
		require.Equal(t, second, c.ok("pid"))
		time.Sleep(6*time.Minute + 4*time.Second)
		synctest.Wait()
		require.Equal(t, 1, r.Stats().Servers, "the idle one is closed")
		require.Equal(t, first, open.ok("pid"))
		third := c.ok("pid")
		require.NotContains(t, []string{first, second}, third)
		synctest.Wait() // until the pool knows that it has as many as it wanted
		open.ok("COMMIT")
		synctest.Wait()
		require.Equal(t, 1, r.Stats().Servers)
		require.Equal(t, third, open.ok("pid"))
	})
}

func TestConnectionsOpenedTogetherAreNotRetiredTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxServerLifetime: 10 * time.Hour, IdleTimeout: -1, IdleClientTimeout: -1}, new(fake))
		var all []*client
		for range 20 {
			all = append(all, r.connect(t, "u"))
			all[len(all)-1].ok("BEGIN")
		}
		for _, c := range all {
			c.ok("COMMIT")
		}
		time.Sleep(9*time.Hour - 2*time.Second)
		synctest.Wait()
		require.Equal(t, 20, r.Stats().Servers)
		most := 0
		for range 62 {
			before := r.Stats().Servers
			time.Sleep(time.Minute)
			synctest.Wait()
			most = max(most, before-r.Stats().Servers)
		}
		require.Zero(t, r.Stats().Servers)
		require.Less(t, most, 10)
	})
}

func TestMoreClientsThanMaxClientsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxClients: 2}, new(fake))
		one := r.connect(t, "u")
		r.connect(t, "v")
		third := r.dialClient(t)
		got := third.startup("u")
		require.Equal(t, "53300", got.code())
		require.Equal(t, "FATAL", got.err.Severity)
		require.Equal(t, "the maximum number of client connections to the proxy exceeded 2", got.err.Message)
		r.cancelFor(one) // is no client
		one.send(&pgproto3.Terminate{})
		one.ended("")
		synctest.Wait()
		r.connect(t, "w").ok("SELECT 1")
		require.Equal(t, "53300", r.dialClient(t).startup("u").code())
	})
}

func TestClientsThatAreRefusedDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{refuse: func(p map[string]string) *pgproto3.ErrorResponse {
			if p["user"] == "good" {
				return nil
			}
			return &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "28000", Message: "no"}
		}}
		r := newRig(t, pgmoor.Config{MaxClients: 1}, server)
		for range 3 {
			require.Equal(t, "28000", r.dialClient(t).startup("bad").code())
			synctest.Wait()
		}
		r.connect(t, "good")
		require.Equal(t, "53300", r.dialClient(t).startup("good").code())
	})
}

func TestTheRateOfNewClientsIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{ConnectionRate: 10}, new(fake))
		enter := func(n int) (in int) {
			for range n {
				c := r.dialClient(t)
				if got := c.startup("u"); got.err == nil {
					in++
				} else {
					require.Equal(t, "53300", got.code())
					require.Equal(t, "the rate of connections to the proxy exceeded 10 per second", got.err.Message)
				}
			}
			return in
		}
		require.Equal(t, 10, enter(30))
		time.Sleep(500 * time.Millisecond)
		require.Equal(t, 5, enter(30))
		time.Sleep(time.Hour)
		require.Equal(t, 10, enter(30))
	})
}

func TestTheQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1, MaxWaiting: 2}, new(fake))
		holder, one, two, three := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		holder.ok("BEGIN")
		one.ask("SELECT 1")
		two.ask("SELECT 2")
		synctest.Wait()
		start := time.Now()
		for range 3 {
			got := three.query("SELECT 3")
			require.Equal(t, "53300", got.code())
			require.Equal(t, "ERROR", got.err.Severity)
			require.EqualValues(t, 'I', got.status)
		}
		require.Equal(t, "53300", three.extended("SELECT 3").code())
		require.Zero(t, time.Since(start))
		holder.ok("COMMIT")
		require.Equal(t, []string{"SELECT 1"}, one.reply().tags)
		require.Equal(t, []string{"SELECT 2"}, two.reply().tags)
		three.ok("SELECT 3")
	})
}

func TestClientsThatLogInAreBoundedAsTheQueueIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		server.setDown(true)
		r := newRig(t, pgmoor.Config{MaxWaiting: 1}, server)
		first := r.dialClient(t)
		first.send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "u"}})
		synctest.Wait()
		got := r.dialClient(t).startup("u")
		require.Equal(t, "53300", got.code())
		require.Equal(t, "FATAL", got.err.Severity)
		server.setDown(false)
		require.EqualValues(t, 'I', first.reply().status)
	})
}

func TestAUserOrADatabaseHasALimitOfItsOwn(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg           pgmoor.Config
		same, another []string
	}{
		"user":     {pgmoor.Config{MaxConnections: 5, MaxConnectionsPerUser: 2}, []string{"u", "database", "d2"}, []string{"v", "database", "d1"}},
		"database": {pgmoor.Config{MaxConnections: 5, MaxConnectionsPerDatabase: 2}, []string{"v", "database", "d1"}, []string{"u", "database", "d2"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, tc.cfg, new(fake))
				one, two := r.connect(t, "u", "database", "d1"), r.connect(t, "u", "database", "d1")
				three, four := r.connect(t, tc.same[0], tc.same[1:]...), r.connect(t, tc.another[0], tc.another[1:]...)
				one.ok("BEGIN")
				two.ok("BEGIN")
				three.ask("SELECT 1")
				time.Sleep(time.Second)
				synctest.Wait()
				require.Equal(t, 1, r.Stats().Waiting)
				four.ok("BEGIN", "COMMIT")
				start := time.Now()
				one.ok("COMMIT")
				require.Nil(t, three.reply().err)
				one.ok("SELECT 1")
				three.ok("SELECT 1")
				require.Zero(t, time.Since(start), "what is idle makes room at once")
				two.ok("COMMIT")
			})
		})
	}
}

// The total is full, and so is what one user may have: nobody may wait for ever, and nothing may spin.
func TestLimitsWithinEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxConnections: 4, MaxConnectionsPerUser: 3, MaxConnectionsPerDatabase: 3}, server)
		var all []*client
		for i := range 60 {
			all = append(all, r.connect(t, fmt.Sprint("u", i%3), "database", fmt.Sprint("d", i%2)))
			all[i].ask("sleep 100ms")
		}
		start := time.Now()
		for _, c := range all {
			require.Nil(t, c.reply().err)
		}
		require.Less(t, time.Since(start), 4*time.Second)
		_, most, _, _ := server.counts()
		require.LessOrEqual(t, most, 4)
	})
}
