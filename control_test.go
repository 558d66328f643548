package pgmoor_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// pause pauses r, in which nothing is under way.
func (r *rig) pause(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, r.Pause(ctx))
}

// background runs f, such as one that waits in r, and returns what will bring its error.
func background(f func(context.Context) error) <-chan error {
	result := make(chan error, 1)
	go func() { result <- f(context.Background()) }()
	return result
}

func within(d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return f(ctx)
}

func TestRequestsWaitForTheEndOfAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		server := &fake{sent: func(_ uint32, sql string) { order = append(order, sql) }}
		r := newRig(t, pgmoor.Config{MaxConnections: 1, BorrowTimeout: 7 * time.Second}, server)
		clients := make([]*client, 6)
		for i := range clients {
			clients[i] = r.connect(t, "u")
			clients[i].ok("SELECT 1")
		}
		r.pause(t)
		require.True(t, r.Stats().Paused)
		synctest.Wait()
		order = nil
		var want []string
		for i, c := range clients {
			want = append(want, fmt.Sprintf("SELECT %d", i))
			c.ask(want[i])
			synctest.Wait()
		}
		time.Sleep(time.Hour) // far longer than they would wait
		require.Empty(t, order)
		require.Equal(t, len(clients), r.Stats().Waiting)
		require.Equal(t, time.Hour, r.Stats().OldestWait)
		require.NoError(t, r.Pause(t.Context()), "again")
		r.Resume()
		for i, c := range clients {
			require.Equal(t, []string{want[i]}, c.reply().tags)
		}
		synctest.Wait()
		require.Equal(t, want, order)
		require.Zero(t, r.Stats().BorrowTimeouts)
		require.False(t, r.Stats().Paused)
		r.Resume()
		clients[0].ok("SELECT 1")
	})
}

// TestAPauseIsNoPartOfAWait has a client wait for 4 s before a pause, which has 3 s left behind it.
func TestAPauseIsNoPartOfAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1, BorrowTimeout: 7 * time.Second}, new(fake))
		holder, early, late := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		holder.ok("BEGIN")
		early.ask("SELECT 1")
		time.Sleep(4 * time.Second)
		paused := background(r.Pause)
		time.Sleep(time.Minute)
		late.ask("SELECT 2")
		time.Sleep(time.Minute)
		require.Empty(t, paused)
		r.Resume()
		require.ErrorContains(t, <-paused, "Resume was called")
		start := time.Now()
		got := early.reply()
		require.Equal(t, 3*time.Second, time.Since(start))
		require.Equal(t, "08000", got.code())
		require.Equal(t, "08000", late.reply().code())
		require.Equal(t, 7*time.Second, time.Since(start))
	})
}

func TestAPauseWaitsForTheEndOfTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 3}, new(fake))
		txn, busy, other := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		txn.ok("BEGIN")
		busy.ask("sleep 10s")
		synctest.Wait()
		paused := background(r.Pause)
		synctest.Wait()
		other.ask("SELECT 1")
		txn.ok("SELECT 1", "SELECT 2")
		require.Nil(t, busy.reply().err)
		synctest.Wait()
		require.Empty(t, paused)
		txn.ok("COMMIT")
		require.NoError(t, <-paused)
		txn.ask("BEGIN")
		synctest.Wait()
		require.Equal(t, 2, r.Stats().Waiting)
		r.Resume()
		require.Nil(t, other.reply().err)
		require.EqualValues(t, 'T', txn.reply().status)
		txn.ok("COMMIT")
	})
}

func TestAPauseThatTakesTooLongIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 4, Verify: pgmoor.VerifyNever}, new(fake))
		txn, failed, busy, pinned, other := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		txn.ok("BEGIN")
		failed.ok("BEGIN")
		require.EqualValues(t, 'E', failed.query("fail").status)
		busy.ask("sleep 1m")
		pinned.ok("SELECT pg_advisory_lock(1)")
		other.ask("SELECT 1")
		synctest.Wait()
		err := within(10*time.Second, r.Pause)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var unfinished *pgmoor.UnfinishedError
		require.ErrorAs(t, err, &unfinished)
		require.Equal(t, &pgmoor.UnfinishedError{Op: "pause", Active: 1, InTransaction: 2, Err: context.DeadlineExceeded}, unfinished)
		require.EqualError(t, err, "pgmoor: pause: context deadline exceeded: clients that were not done: 3 (1 active, 2 in a transaction)")
		require.False(t, r.Stats().Paused)
		txn.ok("COMMIT")
		require.Nil(t, other.reply().err)
		pinned.ok("SELECT 2")

		failed.ok("ROLLBACK")
		require.Nil(t, busy.reply().err)
		r.pause(t)
		txn.ask("SELECT 3")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.NoError(t, r.Pause(ctx), "it is paused")
		require.True(t, r.Stats().Paused)
		r.Resume()
		require.Nil(t, txn.reply().err)
	})
}

func TestAPinnedSessionStopsBetweenTwoTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		server := &fake{sent: func(_ uint32, sql string) { sent = append(sent, sql) }}
		r := newRig(t, pgmoor.Config{MaxConnections: 4, Verify: pgmoor.VerifyNever}, server)
		idle, txn, busy, eager := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		pids := map[*client]string{}
		for _, c := range []*client{idle, txn, busy, eager} {
			c.ok("SELECT pg_advisory_lock(1)")
			pids[c] = c.ok("pid")
		}
		txn.ok("BEGIN")
		busy.ask("sleep 10s")
		eager.ask("sleep 11s")
		synctest.Wait()
		paused := background(r.Pause)
		synctest.Wait()
		idle.ask("pid")
		eager.ask("pid") // is not sent in front of the answer, and may be sent before the pause where the server's is full duplex
		require.Nil(t, busy.reply().err)
		busy.ask("pid")
		require.Nil(t, eager.reply().err)
		synctest.Wait()
		require.Empty(t, paused)
		sent = nil
		txn.ok("COMMIT")
		require.NoError(t, <-paused)
		time.Sleep(time.Hour)
		require.Equal(t, []string{"COMMIT"}, sent)
		require.Equal(t, 4, r.Stats().Pinned)
		r.Resume()
		for _, c := range []*client{idle, busy} {
			require.Equal(t, []string{pids[c]}, c.reply().rows)
		}
		for _, c := range []*client{idle, txn, busy} {
			require.Equal(t, pids[c], c.ok("pid"))
		}
	})
}

func TestClientsThatLeaveInAPauseAreCleanedUpBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 2, Verify: pgmoor.VerifyNever}, new(fake))
		pinned, txn, waiting := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		pinned.ok("SELECT pg_advisory_lock(1)")
		txn.ok("BEGIN")
		paused := background(r.Pause)
		synctest.Wait()
		pinned.ask("SELECT 1")
		waiting.ask("SELECT 1")
		synctest.Wait()
		for _, c := range []*client{pinned, txn, waiting} {
			c.conn.Close()
		}
		require.NoError(t, <-paused)
		synctest.Wait()
		require.Zero(t, r.Stats().Clients)
		require.Equal(t, 2, r.Stats().ServersIdle)
		r.Resume()
		r.connect(t, "u").ok("SELECT 1")
	})
}

func TestClientsLogInDuringAPauseAsFarAsTheyCan(t *testing.T) {
	for _, kind := range [][]string{nil, {"replication", "true"}} {
		for _, borrow := range []time.Duration{7 * time.Second, pgmoor.NoWait} {
			synctest.Test(t, func(t *testing.T) {
				server := new(fake)
				r := newRig(t, pgmoor.Config{BorrowTimeout: borrow, IdleTimeout: -1}, server)
				r.connect(t, "u").ok("SELECT 1")
				r.pause(t)
				c := r.connect(t, "u")
				first := r.dialClient(t)
				got := background(func(context.Context) error {
					if rep := first.startup("v", kind...); rep.err != nil {
						return errors.New(rep.err.Message)
					}
					return nil
				})
				time.Sleep(5 * time.Minute)
				require.Empty(t, got)
				_, _, _, attempts := server.counts()
				require.Len(t, attempts, 1, "a connection was opened")
				r.Resume()
				require.NoError(t, <-got)
				c.ok("SELECT 1")
				first.ok("SELECT 1")
			})
		}
	}
}

func TestAServerMayGoAndComeDuringAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxConnections: 2, BorrowTimeout: time.Second}, server)
		clients := []*client{r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")}
		for _, c := range clients {
			c.ok("SELECT 1")
		}
		r.pause(t)
		server.setDown(true)
		server.kill(1)
		server.kill(2)
		for _, c := range clients {
			c.ask("SELECT 2")
		}
		time.Sleep(time.Hour)
		_, _, _, attempts := server.counts()
		require.LessOrEqual(t, len(attempts), 2)
		server.setDown(false)
		r.Resume()
		for _, c := range clients {
			require.Nil(t, c.reply().err)
		}
	})
}

func TestACancelRequestEndsAWaitInAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{}, new(fake))
		c := r.connect(t, "u")
		c.ok("SELECT 1")
		r.pause(t)
		c.ask("SELECT 2")
		synctest.Wait()
		r.cancelFor(c)
		require.Equal(t, "57014", c.reply().code())
		r.Resume()
		c.ok("SELECT 3")
	})
}

func TestShutdownInAPauseEndsThoseThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		server := &fake{sent: func(_ uint32, sql string) { sent = append(sent, sql) }}
		r := newRig(t, pgmoor.Config{MaxConnections: 2, Verify: pgmoor.VerifyNever}, server)
		idle, waiting, pinned := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		pinned.ok("SELECT pg_advisory_lock(1)")
		r.pause(t)
		synctest.Wait()
		sent = nil
		waiting.ask("SELECT 1")
		pinned.ask("SELECT 2")
		synctest.Wait()
		done := background(r.Shutdown)
		for _, c := range []*client{idle, waiting, pinned} {
			c.ended("57P01")
		}
		require.NoError(t, <-done)
		synctest.Wait()
		require.NotContains(t, sent, "SELECT 1")
		require.NotContains(t, sent, "SELECT 2")
		require.ErrorIs(t, r.Pause(t.Context()), pgmoor.ErrProxyClosed)
		require.ErrorIs(t, r.Reconnect(t.Context()), pgmoor.ErrProxyClosed)
		require.ErrorIs(t, r.Update(pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{"x"}}}), pgmoor.ErrProxyClosed)
		r.Resume()
	})
}

func TestCloseEndsAPauseThatIsNotDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{}, new(fake))
		txn, old := r.connect(t, "u"), r.connect(t, "u")
		txn.ok("BEGIN")
		old.ok("BEGIN")
		paused, reconnected := background(r.Pause), background(r.Reconnect)
		synctest.Wait()
		require.NoError(t, r.Close())
		require.ErrorIs(t, <-paused, pgmoor.ErrProxyClosed)
		require.ErrorIs(t, <-reconnected, pgmoor.ErrProxyClosed)
	})
}

func TestShutdownSaysWhomItLeavesBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 3}, new(fake))
		txn, busy, other, waiting := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		txn.ok("BEGIN")
		other.ok("BEGIN")
		busy.ask("sleep 1h")
		synctest.Wait()
		waiting.ask("SELECT 1")
		synctest.Wait()
		err := within(time.Second, r.Shutdown)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var left *pgmoor.UnfinishedError
		require.ErrorAs(t, err, &left)
		require.Equal(t, &pgmoor.UnfinishedError{Op: "shutdown", Active: 1, InTransaction: 2, Waiting: 1, Err: context.DeadlineExceeded}, left)
		require.Equal(t, 4, left.Clients())
	})
}

func TestReconnectReplacesServerConnectionsWhenTheyAreFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxConnections: 4, Verify: pgmoor.VerifyPinned}, server)
		a, b, txn, pinned := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		server.left.Store("l") // a lock is left
		pinned.ok("SELECT pg_advisory_lock(1)")
		old := pinned.ok("pid")
		txn.ok("BEGIN")
		inTxn := txn.ok("pid")
		a.ask("sleep 1s")
		b.ask("sleep 1s")
		require.Nil(t, a.reply().err)
		require.Nil(t, b.reply().err)
		require.EqualValues(t, 4, r.Stats().ServersOpened)
		done := background(r.Reconnect)
		synctest.Wait()
		require.EqualValues(t, 2, r.Stats().ServersClosed, "the idle ones")
		require.Greater(t, a.ok("pid"), "4")
		require.Equal(t, inTxn, txn.ok("pid"))
		require.Equal(t, old, pinned.ok("pid"))
		txn.ok("COMMIT")
		synctest.Wait()
		require.EqualValues(t, 3, r.Stats().ServersClosed)
		require.Greater(t, txn.ok("pid"), "4")

		err := within(time.Second/3, r.Reconnect) // before the server is asked whether the lock is still there
		var left *pgmoor.UnfinishedError
		require.ErrorAs(t, err, &left)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 1, left.Clients())
		require.Equal(t, 1, left.Idle)
		require.Equal(t, old, pinned.ok("pid"))
		require.Empty(t, done)

		server.left.Store("")
		pinned.ok("SELECT pg_advisory_unlock(1)")
		require.NoError(t, <-done)
		require.NotEqual(t, old, pinned.ok("pid"))
		require.Zero(t, r.Stats().Pinned)
	})
}

func TestAConnectionThatWasBeingOpenedIsReplacedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{slow: time.Second}
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, server)
		c := r.connect(t, "u")
		server.kill(1)
		synctest.Wait()
		c.ask("pid")
		time.Sleep(time.Second / 2)
		require.NoError(t, r.Reconnect(t.Context()))
		require.Equal(t, []string{"3"}, c.reply().rows)
	})
}

// TestInAPauseNoServerConnectionIsLeftAfterReconnect is what a database is renamed under.
func TestInAPauseNoServerConnectionIsLeftAfterReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxConnections: 3}, server)
		a, b := r.connect(t, "u"), r.connect(t, "u")
		a.ok("BEGIN")
		b.ok("SELECT 1")
		paused := background(r.Pause)
		synctest.Wait()
		b.ask("SELECT 2")
		a.ok("COMMIT")
		require.NoError(t, <-paused)
		require.NoError(t, r.Reconnect(t.Context()))
		time.Sleep(time.Minute)
		open, _, _, _ := server.counts()
		require.Zero(t, open)
		r.Resume()
		require.Nil(t, b.reply().err)
	})
}
