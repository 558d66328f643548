package pgmoor_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

func TestARequestWaitsExactlyAsLongAsTheBorrowTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1, BorrowTimeout: 7 * time.Second}, new(fake))
		holder, waiter, extended := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		holder.ok("BEGIN")
		start := time.Now()
		got := waiter.query("SELECT 1")
		require.Equal(t, 7*time.Second, time.Since(start))
		require.Equal(t, "08000", got.err.Code)
		require.Equal(t, "ERROR", got.err.Severity)
		require.Equal(t, "timed out waiting to acquire a database connection", got.err.Message)
		require.Equal(t, "Waited for 7s; others waiting: 0. All 1 of 1 server connections are in use.", got.err.Hint)
		require.EqualValues(t, 'I', got.status)
		got = extended.extended("SELECT 1")
		require.Equal(t, "08000", got.err.Code)
		require.Equal(t, 1, got.errs)
		require.EqualValues(t, 'I', got.status)

		holder.ok("COMMIT")
		waiter.ok("SELECT 1")
		require.Equal(t, []string{"SELECT 2"}, extended.extended("SELECT 2").tags)
		require.EqualValues(t, 2, r.Stats().BorrowTimeouts)
	})
}

func TestHintsOfBorrowTimeoutsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 2, BorrowTimeout: 7 * time.Second, Verify: pgmoor.VerifyNever}, new(fake))
		pinned, holder, first, second := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		pinned.ok("SELECT pg_advisory_lock(1)")
		holder.ok("BEGIN")
		first.ask("SELECT 1")
		time.Sleep(2 * time.Second)
		second.ask("SELECT 2")
		synctest.Wait()
		st := r.Stats()
		require.Equal(t, 2, st.Waiting)
		require.Equal(t, 2*time.Second, st.OldestWait)
		require.Equal(t, map[string]int{"advisory_lock": 1}, st.PinnedBy)
		require.Equal(t, "Waited for 7s; others waiting: 1. All 2 of 2 server connections are in use, kept by pinned sessions: 1, see docs/pinning.md.",
			first.reply().err.Hint)
		require.Equal(t, "Waited for 7s; others waiting: 0. All 2 of 2 server connections are in use, kept by pinned sessions: 1, see docs/pinning.md.",
			second.reply().err.Hint)
	})
}

func TestHintsOfBorrowTimeoutsTellASlowServerFromOneThatIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxConnections: 2, BorrowTimeout: 7 * time.Second}, server)
		holder, waiter := r.connect(t, "u"), r.connect(t, "u")
		holder.ok("BEGIN")
		server.setSlow(time.Minute)
		require.Equal(t, "Waited for 7s; others waiting: 0. 2 of 2 server connections are open or being opened: logging in to the server takes its time.",
			waiter.query("SELECT 1").err.Hint)
		time.Sleep(time.Minute) // for the login to time out
		server.setDown(true)
		require.Equal(t, "Waited for 7s; others waiting: 0. Logging in to the server failed: see the proxy's log.", waiter.query("SELECT 1").err.Hint)
		server.setDown(false)
		server.setSlow(0)
		waiter.ok("SELECT 1")
		waiter.ok("BEGIN")
		require.Equal(t, "Waited for 7s; others waiting: 0. All 2 of 2 server connections are in use.", r.connect(t, "u").query("SELECT 1").err.Hint)
	})
}

func TestWithNoWaitABusyPoolRefusesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1, BorrowTimeout: pgmoor.NoWait}, new(fake))
		holder, other := r.connect(t, "u"), r.connect(t, "u")
		holder.ok("BEGIN")
		start := time.Now()
		got := other.query("SELECT 1")
		require.Equal(t, "08000", got.code())
		require.Equal(t, "no server connection is idle", got.err.Message)
		require.Equal(t, "All 1 of 1 server connections are in use.", got.err.Hint)
		require.Zero(t, time.Since(start))
		holder.ok("COMMIT")
		synctest.Wait()
		other.ok("SELECT 1")
	})
}

func TestWaitersAreServedInTheOrderInWhichTheyCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		server := &fake{sent: func(_ uint32, sql string) { order = append(order, sql) }}
		r := newRig(t, pgmoor.Config{MaxConnections: 2}, server)
		holders := []*client{r.connect(t, "u"), r.connect(t, "u")}
		holders[0].ok("BEGIN")
		holders[1].ok("BEGIN")
		waiters := make([]*client, 50)
		var want []string
		for i := range waiters {
			waiters[i] = r.connect(t, "u")
			want = append(want, fmt.Sprintf("sleep %dms", 1000+i)) // one after the other, in spite of two connections
			waiters[i].ask(want[i])
			synctest.Wait()
		}
		order = nil
		holders[0].ok("COMMIT")
		time.Sleep(500 * time.Millisecond)
		holders[1].ok("COMMIT")
		for _, w := range waiters {
			require.Nil(t, w.reply().err)
		}
		synctest.Wait()
		got := order[:0]
		for _, sql := range order {
			if sql != "COMMIT" {
				got = append(got, sql)
			}
		}
		require.Equal(t, want, got)
		_, most, _, _ := server.counts()
		require.Equal(t, 2, most)
	})
}

func TestACancelEndsTheWaitForAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{onCancel: func(uint32) { t.Error("the server got a cancel request") }}
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, server)
		holder, waiter, next := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		holder.ok("BEGIN")
		waiter.ask("SELECT 1")
		synctest.Wait()
		next.ask("SELECT 2")
		synctest.Wait()
		require.Equal(t, 2, r.Stats().Waiting)
		r.cancelFor(waiter)
		got := waiter.reply()
		require.Equal(t, "57014", got.code())
		require.EqualValues(t, 'I', got.status)
		require.Equal(t, 1, r.Stats().Waiting)
		holder.ok("COMMIT")
		require.Equal(t, []string{"SELECT 2"}, next.reply().tags)
		waiter.ok("SELECT 3")
	})
}

func TestAClientThatLeavesLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{sent: func(_ uint32, sql string) { require.NotEqual(t, "SELECT 'left'", sql) }}
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, server)
		holder, leaver, next := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		holder.ok("BEGIN")
		leaver.ask("SELECT 'left'")
		synctest.Wait()
		next.ask("SELECT 2")
		synctest.Wait()
		require.Equal(t, 2, r.Stats().Waiting)
		leaver.conn.Close()
		synctest.Wait()
		require.Equal(t, 1, r.Stats().Waiting)
		require.Equal(t, 2, r.Stats().Clients)
		holder.ok("COMMIT")
		require.Equal(t, []string{"SELECT 2"}, next.reply().tags)
	})
}

func TestWaitersAreServedWhenAPinnedClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		r := newRig(t, pgmoor.Config{MaxConnections: 1, Verify: pgmoor.VerifyNever}, &fake{sent: func(_ uint32, sql string) { sent = append(sent, sql) }})
		pinned, waiter := r.connect(t, "u"), r.connect(t, "u")
		pinned.ok("SELECT pg_advisory_lock(1)")
		waiter.ask("SELECT 1")
		synctest.Wait()
		pinned.send(&pgproto3.Terminate{})
		require.Equal(t, []string{"SELECT 1"}, waiter.reply().tags)
		require.Equal(t, []string{"SELECT pg_advisory_lock(1)", "RESET SESSION AUTHORIZATION;RESET ROLE", "DISCARD ALL", "SELECT 1"}, sent)
		require.Zero(t, r.Stats().Pinned)
	})
}

func TestWaitersAreServedWhenAServerThatWasDownIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxConnections: 2}, server)
		c := r.connect(t, "u")
		server.setDown(true)
		server.kill(1)
		synctest.Wait()
		start := time.Now()
		c.ask("SELECT 1")
		time.Sleep(30 * time.Second)
		server.setDown(false)
		require.Nil(t, c.reply().err)
		require.Less(t, time.Since(start), 34*time.Second)
		_, _, _, attempts := server.counts()
		require.Less(t, len(attempts), 60, "no back-off")
		require.Greater(t, len(attempts), 10)
	})
}

func TestClientsThatLogInWaitForAServerThatIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		server.setDown(true)
		r := newRig(t, pgmoor.Config{BorrowTimeout: 10 * time.Second}, server)
		c := r.dialClient(t)
		start := time.Now()
		got := c.startup("u")
		require.Equal(t, "08000", got.code())
		require.Equal(t, "FATAL", got.err.Severity)
		require.Equal(t, 10*time.Second, time.Since(start))
		require.Equal(t, "Waited for 10s; others waiting: 0. Logging in to the server failed: see the proxy's log.", got.err.Hint)

		later := r.dialClient(t)
		later.send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "u"}})
		time.Sleep(5 * time.Second)
		server.setDown(false)
		require.EqualValues(t, 'I', later.reply().status)
	})
}

func TestTheServersRefusalReachesTheClient(t *testing.T) {
	for _, code := range []string{"3D000", "28P01", "28000", "42704"} {
		t.Run(code, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &fake{refuse: func(p map[string]string) *pgproto3.ErrorResponse {
					if p["database"] == "good" {
						return nil
					}
					return &pgproto3.ErrorResponse{
						Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: "no", Detail: "none at all", Hint: "ask",
						File: "auth.c", Line: 7, Routine: "refuse",
					}
				}}
				r := newRig(t, pgmoor.Config{}, server)
				c := r.dialClient(t)
				start := time.Now()
				got := c.startup("u", "database", "bad")
				require.Zero(t, time.Since(start))
				require.Equal(t, &pgproto3.ErrorResponse{
					Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: "no", Detail: "none at all", Hint: "ask",
					File: "auth.c", Line: 7, Routine: "refuse",
				}, got.err)
				require.Zero(t, got.status)
				r.connect(t, "u", "database", "good").ok("SELECT 1")
			})
		})
	}
}

func TestLoginsAreBoundedAndSoAreConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{slow: time.Second}
		r := newRig(t, pgmoor.Config{MaxConnections: 10, MaxOpening: 3}, server)
		clients := make([]*client, 40)
		for i := range clients {
			clients[i] = r.connect(t, "u")
		}
		for _, c := range clients {
			c.ask("sleep 10s")
		}
		for _, c := range clients {
			require.Nil(t, c.reply().err)
		}
		_, most, busiest, _ := server.counts()
		require.Equal(t, 10, most)
		require.Equal(t, 3, busiest)
	})
}

func TestClientsWhoseStartupParametersDifferInOrderOnlyShareConnections(t *testing.T) {
	for name, tc := range map[string]struct {
		one, two []string
		shared   bool
	}{
		"two names":              {[]string{"a", "1", "b", "2"}, []string{"b", "2", "a", "1"}, true},
		"a value that is a name": {[]string{"a", "b", "b", "a"}, []string{"b", "a", "a", "b"}, true},
		"one name":               {[]string{"a", "1", "a", "2"}, []string{"a", "2", "a", "1"}, false},
		"one name in two cases":  {[]string{"A", "1", "a", "2"}, []string{"a", "2", "A", "1"}, false},
		"another value":          {[]string{"a", "1", "b", "2"}, []string{"b", "1", "a", "2"}, false},
		"authorization":          {[]string{"role", "x", "session_authorization", "y"}, []string{"session_authorization", "y", "role", "x"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pgmoor.Config{}, new(fake))
				ask := func(params []string) string {
					c := r.dialClient(t)
					_, err := c.conn.Write(packet(version30, "user\x00u\x00"+strings.Join(params, "\x00")+"\x00\x00"))
					require.NoError(t, err)
					require.Nil(t, c.reply().err)
					return c.ok("pid")
				}
				require.Equal(t, tc.shared, ask(tc.one) == ask(tc.two))
			})
		})
	}
}

func TestAnIdleConnectionOfOneUserMakesRoomForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, server)
		a := r.connect(t, "a")
		a.ok("SELECT 1")
		start := time.Now()
		b := r.connect(t, "b")
		b.ok("SELECT 1")
		a.ok("SELECT 1")
		b.ok("SELECT 1")
		require.Zero(t, time.Since(start))
		_, most, _, _ := server.counts()
		require.Equal(t, 1, most)
	})
}

func TestAConnectionThatBecomesIdleMakesRoomForAnotherUser(t *testing.T) {
	for _, limit := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pgmoor.Config{MaxConnections: limit}, new(fake))
				holders := make([]*client, limit)
				for i := range holders {
					holders[i] = r.connect(t, fmt.Sprint("a", i))
				}
				b := r.connect(t, "b")
				for _, h := range holders {
					h.ok("BEGIN")
				}
				b.ask("SELECT 1")
				time.Sleep(5 * time.Second)
				start := time.Now()
				holders[0].ok("COMMIT")
				require.Nil(t, b.reply().err)
				require.Zero(t, time.Since(start))
			})
		})
	}
}

func TestABusyUserYieldsToAStarvedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxConnections: 4}, server)
		quiet := r.connect(t, "b")
		busy := make([]*client, 20)
		for i := range busy {
			busy[i] = r.connect(t, "a")
			busy[i].ask("sleep 1s")
		}
		time.Sleep(100 * time.Millisecond)
		start := time.Now()
		require.Nil(t, quiet.query("SELECT 1").err)
		require.LessOrEqual(t, time.Since(start), time.Second)
		for _, c := range busy {
			require.Nil(t, c.reply().err)
		}
		_, most, _, _ := server.counts()
		require.LessOrEqual(t, most, 4)
	})
}

func TestTwoUsersTakeTurnsOnOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const turn = 100 * time.Millisecond
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, &fake{slow: 10 * time.Millisecond})
		quiet := r.connect(t, "b")
		crowd := make([]*client, 200)
		for i := range crowd {
			crowd[i] = r.connect(t, "a")
			crowd[i].ask("sleep " + turn.String())
		}
		for i := range 10 {
			start := time.Now()
			require.Nil(t, quiet.query("SELECT 1").err)
			require.LessOrEqual(t, time.Since(start), 2*turn, "turn %d", i)
			time.Sleep(turn / 2)
		}
		start := time.Now()
		for _, c := range crowd {
			require.Nil(t, c.reply().err)
		}
		require.LessOrEqual(t, time.Since(start), 201*turn)
	})
}

func TestAClientThatLeavesBeforeThereIsAServerIsForgotten(t *testing.T) {
	server := new(fake)
	r := newRig(t, pgmoor.Config{Authenticator: pgmoor.Trust()}, server)
	server.setDown(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, r.AddListener(l))
	for name, dial := range map[string]func() (net.Conn, error){
		"in process": func() (net.Conn, error) { return r.DialContext(t.Context(), "", "") },
		"tcp":        func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) },
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := dial()
			require.NoError(t, err)
			c := newClient(t, conn)
			c.send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "u"}})
			waits := func() bool { return strings.Contains(strings.Join(goroutines(), ""), ").awaitStatuses(") }
			require.Eventually(t, waits, patience, time.Millisecond)
			require.NoError(t, conn.Close())
			require.Eventually(t, func() bool { return !waits() }, patience, time.Millisecond)
		})
	}
}

func TestWhatAClientSendsBeforeThereIsAServerIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		server.setDown(true)
		r := newRig(t, pgmoor.Config{}, server)
		c := r.dialClient(t)
		c.send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "u"}})
		synctest.Wait()
		c.ask("early")
		time.Sleep(5 * time.Second)
		server.setDown(false)
		require.EqualValues(t, 'I', c.reply().status)
		require.Equal(t, []string{"early"}, c.reply().tags)
	})
}

func TestAClaimOfAPoolThatWantsNothingAnyMoreIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, server)
		a, b, c := r.connect(t, "a"), r.connect(t, "b"), r.connect(t, "c")
		a.ok("BEGIN")
		b.ask("SELECT 1")
		synctest.Wait()
		c.ask("SELECT 2")
		synctest.Wait()
		b.conn.Close()
		synctest.Wait()
		start := time.Now()
		require.Equal(t, "40001", a.query("die").code())
		require.Nil(t, c.reply().err)
		require.Less(t, time.Since(start), time.Second)
	})
}

func TestIdleConnectionsAndPoolsWithoutClientsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{IdleTimeout: time.Minute}, server)
		for i := range 200 {
			c := r.connect(t, "u", "application_name", fmt.Sprint("program ", i))
			c.ok("SELECT 1")
			c.send(&pgproto3.Terminate{})
			c.ended("")
		}
		synctest.Wait()
		open, most, _, _ := server.counts()
		require.LessOrEqual(t, most, pgmoor.DefaultMaxConnections)
		require.Positive(t, open)
		time.Sleep(time.Minute + 2*time.Second)
		synctest.Wait()
		open, _, _, _ = server.counts()
		require.Zero(t, open)
		require.Zero(t, r.Stats().Servers)
		require.EqualValues(t, 200, r.Stats().Transactions)
		require.Len(t, goroutines(), 2, "of Serve and the sweeper")
	})
}

func TestAnIdleConnectionIsClosedAfterExactlyTheIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{IdleTimeout: time.Minute}, server)
		c := r.connect(t, "u")
		c.ok("SELECT 1")
		time.Sleep(time.Minute - time.Millisecond)
		require.Equal(t, 1, r.Stats().Servers)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.Zero(t, r.Stats().Servers)
		c.ok("SELECT 1")
	})
}

func TestAConnectionThatWasBusyForLongIsClosedAfterExactlyTheIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{IdleTimeout: time.Minute, MaxConnections: 1}, new(fake))
		c := r.connect(t, "u")
		c.ok("BEGIN")
		time.Sleep(130 * time.Second)
		c.ok("COMMIT")
		time.Sleep(time.Minute - time.Millisecond)
		require.Equal(t, 1, r.Stats().Servers)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.Zero(t, r.Stats().Servers)
	})
}

func TestTheFirstClientOpensOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 50 {
			r := newRig(t, pgmoor.Config{}, new(fake))
			c := r.connect(t, "u")
			c.ok("SELECT 1")
			synctest.Wait()
			require.EqualValues(t, 1, r.Stats().ServersOpened)
		}
	})
}

func TestWhichIdleConnectionIsLent(t *testing.T) {
	for name, inTurn := range map[string]bool{"the one used last": false, "in turn": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pgmoor.Config{MaxConnections: 3, RoundRobin: inTurn}, new(fake))
				clients := []*client{r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")}
				for _, c := range clients {
					c.ok("BEGIN")
				}
				var idle []string // the one that has been idle longest first
				for _, c := range clients {
					idle = append(idle, c.ok("pid"))
					c.ok("COMMIT")
					synctest.Wait() // until it is given back
				}
				for i := range 7 {
					want := idle[2]
					if inTurn {
						want = idle[i%3]
					}
					require.Equal(t, want, clients[i/4].ok("pid"))
					synctest.Wait()
				}
			})
		})
	}
}

func TestAConnectionWithACancelUnderWayIsNotLent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{onCancel: func(uint32) { time.Sleep(3 * time.Second) }}
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, server)
		c, next := r.connect(t, "u"), r.connect(t, "u")
		c.ask("sleep 1s")
		synctest.Wait()
		next.ask("sleep 10s")
		synctest.Wait()
		start := time.Now()
		go r.cancelFor(c)
		require.Nil(t, c.reply().err)
		require.Equal(t, time.Second, time.Since(start))
		require.Nil(t, next.reply().err, "the cancel hit somebody else")
		require.Equal(t, 13*time.Second, time.Since(start))
	})
}

// A server that freezes: Close waits for cancel requests to it.
func TestCloseDoesNotWaitForAFrozenServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{onCancel: func(uint32) { time.Sleep(time.Hour) }}
		r := newRig(t, pgmoor.Config{}, server)
		c := r.connect(t, "u")
		c.ask("sleep 2h")
		synctest.Wait()
		start := time.Now()
		require.NoError(t, r.Close())
		require.Less(t, time.Since(start), time.Second, "%v", time.Since(start))
	})
}
