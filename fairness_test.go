package pgmoor_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// many is how many there are of something in a bubble: a tenth under the race detector, which such a crowd can bring down (golang/go#78156).
func many(n int) int {
	if raceEnabled {
		return n / 10
	}
	return n
}

// waits returns how long n transactions of a client took, one after the other with pauses between them.
func waits(t *testing.T, c *client, n int, work, pause time.Duration) (all []time.Duration) {
	t.Helper()
	for range n {
		start := time.Now()
		require.Nil(t, c.query("sleep "+work.String()).err)
		all = append(all, time.Since(start)-work)
		time.Sleep(pause)
	}
	slices.Sort(all)
	return all
}

// keepAsking has a client ask until stop is closed, and counts its answers.
func keepAsking(t *testing.T, c *client, sql string, answers *atomic.Int64, stop <-chan struct{}, done *sync.WaitGroup) {
	defer done.Done()
	for {
		select {
		case <-stop:
			return
		default:
			if r := c.query(sql); r.err != nil {
				t.Errorf("%s: %s", sql, r.err.Message)
				return
			}
			answers.Add(1)
		}
	}
}

// A thousand clients of one user want everything. The quiet user is alone first, with what it may wait for: a login, since its
// connections have been taken away.
func TestAQuietUserWaitsLittleLongerThanAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const work = 20 * time.Millisecond
		r := newRig(t, pgmoor.Config{MaxConnections: 20, IdleTimeout: 10 * time.Millisecond}, &fake{slow: 10 * time.Millisecond})
		quiet := r.connect(t, "quiet")
		alone := waits(t, quiet, many(200), work, 50*time.Millisecond)
		stop := make(chan struct{})
		var flood sync.WaitGroup
		for range many(1000) {
			c := r.connect(t, "flood")
			flood.Add(1)
			go keepAsking(t, c, "sleep "+work.String(), new(atomic.Int64), stop, &flood)
		}
		time.Sleep(time.Second)
		crowded := waits(t, quiet, many(200), work, 50*time.Millisecond)
		close(stop)
		flood.Wait()
		p99 := len(alone) * 99 / 100
		t.Logf("p99 alone %v, beside the flood %v", alone[p99], crowded[p99])
		require.Less(t, crowded[p99], 5*alone[p99])
	})
}

// Users with much and with little demand: nobody gets less than he wants and his share.
func TestConnectionsAreSharedFairly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const work = 100 * time.Millisecond
		r := newRig(t, pgmoor.Config{MaxConnections: 12}, &fake{slow: time.Millisecond})
		stop := make(chan struct{})
		var all sync.WaitGroup
		served := map[string]*atomic.Int64{}
		for user, clients := range map[string]int{"small": 2, "middle": 30, "large": 200} {
			served[user] = new(atomic.Int64)
			for range clients {
				all.Add(1)
				go keepAsking(t, r.connect(t, user), "sleep "+work.String(), served[user], stop, &all)
			}
		}
		time.Sleep(time.Duration(many(60)) * time.Second)
		close(stop)
		all.Wait()
		for user, connections := range map[string]int64{"small": 2, "middle": 4, "large": 4} { // a third of 12, or what is wanted
			require.Greater(t, served[user].Load(), connections*int64(many(600))*8/10, user)
		}
	})
}

func TestThousandsOfWaitersAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		server := &fake{sent: func(_ uint32, sql string) { order = append(order, sql) }}
		r := newRig(t, pgmoor.Config{MaxConnections: 20}, server)
		holders := make([]*client, 20)
		for i := range holders {
			holders[i] = r.connect(t, "u")
			holders[i].ok("BEGIN")
		}
		waiters := make([]*client, many(5000))
		for i := range waiters {
			waiters[i] = r.connect(t, "u")
			waiters[i].ask(fmt.Sprint("turn ", i))
			synctest.Wait()
		}
		require.Equal(t, len(waiters), r.Stats().Waiting)
		opened := r.Stats().ServersOpened
		order = nil
		holders[0].ok("COMMIT") // one connection serves them all
		for i, c := range waiters {
			require.Equal(t, []string{fmt.Sprint("turn ", i)}, c.reply().tags)
		}
		require.Equal(t, "COMMIT", order[0])
		for i, sql := range order[1:] {
			require.Equal(t, fmt.Sprint("turn ", i), sql)
		}
		require.Equal(t, opened, r.Stats().ServersOpened)
	})
}
