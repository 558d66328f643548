package pgmoor_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

func TestTheLossOfAnIdleServerConnectionIsNotNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, new(fake))
		c := r.connect(t, "u")
		require.Equal(t, "1", c.ok("pid"))
		synctest.Wait()
		r.server.kill(1)
		synctest.Wait()
		require.Zero(t, r.Stats().Servers)
		require.Equal(t, "2", c.ok("pid"))
	})
}

func TestTheLossOfAServerIsToldByWhatWasUnderWay(t *testing.T) {
	for _, how := range []string{"die", "terminate"} {
		for name, c := range map[string]struct {
			before []string
			ask    func(c *client)
			code   string
			failed bool // as in a failed transaction from then on
		}{
			"a statement of its own": {
				ask: func(c *client) { c.ask(how) }, code: "08007",
			},
			"an extended statement of its own": {
				ask: func(c *client) {
					c.send(&pgproto3.Parse{Query: how}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
				},
				code: "08007",
			},
			"in a transaction": {
				before: []string{"BEGIN"}, ask: func(c *client) { c.ask(how) }, code: "40001", failed: true,
			},
			"an extended statement in a transaction": {
				before: []string{"BEGIN"},
				ask: func(c *client) {
					c.send(&pgproto3.Parse{Query: how}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
				},
				code: "40001", failed: true,
			},
			"a commit": {
				before: []string{"BEGIN", "SELECT 1"}, ask: func(c *client) { c.ask(how + "; COMMIT") }, code: "08007",
			},
		} {
			t.Run(how+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					server := &fake{}
					r := newRig(t, pgmoor.Config{MaxConnections: 1}, server)
					client := r.connect(t, "u")
					client.ok(c.before...)
					c.ask(client)
					got := client.reply()
					require.Equal(t, c.code, got.code())
					require.Equal(t, "ERROR", got.err.Severity)
					require.Equal(t, 1, got.errs)
					if c.failed {
						require.EqualValues(t, 'E', got.status)
						client.staysFailed()
					} else {
						require.EqualValues(t, 'I', got.status)
					}
					require.Equal(t, "2", client.ok("pid"))
					require.Zero(t, r.Stats().Pinned)
				})
			})
		}
	}
}

// staysFailed requires that everything is refused until the transaction is rolled back.
func (c *client) staysFailed() {
	c.t.Helper()
	for _, got := range []reply{c.query("SELECT 1"), c.extended("SELECT 1"), c.query("BEGIN")} {
		require.Equal(c.t, "25P02", got.code())
		require.Equal(c.t, 1, got.errs)
		require.EqualValues(c.t, 'E', got.status)
	}
	got := c.query("ROLLBACK")
	require.Equal(c.t, []string{"ROLLBACK"}, got.tags)
	require.EqualValues(c.t, 'I', got.status)
}

func TestATransactionWhoseServerIsLostWhileItIsIdleHasToBeRolledBack(t *testing.T) {
	for name, end := range map[string]func(c *client) reply{
		"COMMIT":            func(c *client) reply { return c.query("COMMIT") },
		"ROLLBACK":          func(c *client) reply { return c.query("ROLLBACK") },
		"extended COMMIT":   func(c *client) reply { return c.extended("COMMIT") },
		"extended ROLLBACK": func(c *client) reply { return c.extended("ROLLBACK") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pgmoor.Config{MaxConnections: 1}, new(fake))
				c := r.connect(t, "u")
				c.ok("BEGIN", "SELECT 1")
				r.server.kill(1)
				synctest.Wait()
				got := c.query("SELECT 2")
				require.Equal(t, "40001", got.code())
				require.EqualValues(t, 'E', got.status)
				require.Equal(t, "25P02", c.query("SELECT 3").code())
				got = end(c)
				require.Nil(t, got.err)
				require.Equal(t, []string{"ROLLBACK"}, got.tags)
				require.EqualValues(t, 'I', got.status)
				require.Equal(t, "2", c.ok("pid"))
			})
		})
	}
}

// TestACommitOfWhatWasLostFails has the client learn of the loss by its COMMIT: that must not look as if it had done anything.
func TestACommitOfWhatWasLostFails(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(c *client) reply
		code string
	}{
		"COMMIT":            {func(c *client) reply { return c.query("COMMIT") }, "40001"},
		"END and more":      {func(c *client) reply { return c.query("END; SELECT 2") }, "40001"},
		"extended COMMIT":   {func(c *client) reply { return c.extended("COMMIT") }, "40001"},
		"ROLLBACK":          {func(c *client) reply { return c.query("ROLLBACK") }, ""},
		"extended ROLLBACK": {func(c *client) reply { return c.extended("ROLLBACK") }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pgmoor.Config{MaxConnections: 1}, new(fake))
				c := r.connect(t, "u")
				c.ok("BEGIN", "SELECT 1")
				r.server.kill(1)
				synctest.Wait()
				got := tc.end(c)
				require.Equal(t, tc.code, got.code())
				require.EqualValues(t, 'I', got.status)
				require.Equal(t, "2", c.ok("pid"))
				c.ok("BEGIN")
				r.server.kill(2)
				synctest.Wait()
				require.Equal(t, "40001", c.query("SELECT 3").code(), "the next loss is told anew")
			})
		})
	}
}

func TestAPinnedClientIsEndedWithItsServer(t *testing.T) {
	for _, when := range []string{"idle", "busy", "in a transaction"} {
		t.Run(when, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pgmoor.Config{MaxConnections: 2}, new(fake))
				c, other := r.connect(t, "u"), r.connect(t, "u")
				c.ok("SELECT pg_advisory_lock(1)")
				switch when {
				case "busy":
					c.ask("sleep 1h")
				case "in a transaction":
					c.ok("BEGIN")
				}
				synctest.Wait()
				r.server.kill(1)
				got := c.reply()
				require.Zero(t, got.status)
				require.Equal(t, "57P01", got.code())
				require.Equal(t, "FATAL", got.err.Severity)
				require.Contains(t, got.err.Detail, "advisory_lock")
				other.ok("SELECT 1")
				synctest.Wait()
				require.Equal(t, 1, r.Stats().Clients)
				require.Zero(t, r.Stats().Pinned)
			})
		})
	}
}

func TestAClientWhoseReplyBreaksOffInsideOfAMessageIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, new(fake))
		c, other := r.connect(t, "u"), r.connect(t, "u")
		c.ask("half")
		require.NoError(t, c.conn.SetReadDeadline(time.Now().Add(patience)))
		var err error
		for b := make([]byte, 4096); err == nil; {
			_, err = c.conn.Read(b)
		}
		require.ErrorContains(t, err, "EOF")
		other.ok("SELECT 1")
	})
}

func TestEverySyncOfALostPipelineIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, new(fake))
		c := r.connect(t, "u")
		for _, sql := range []string{"SELECT 1", "die", "SELECT 2", "SELECT 3"} {
			c.SendParse(&pgproto3.Parse{Query: sql})
			c.SendBind(&pgproto3.Bind{})
			c.SendExecute(&pgproto3.Execute{})
			c.SendSync(&pgproto3.Sync{})
		}
		c.send(&pgproto3.Query{String: "SELECT 4"})
		require.Equal(t, []string{"SELECT 1"}, c.reply().tags)
		for range 4 {
			got := c.reply()
			require.Equal(t, "08007", got.code())
			require.EqualValues(t, 'I', got.status)
		}
		require.Equal(t, "2", c.ok("pid"))
	})
}

func TestABatchThatIsCutOffIsIgnoredUpToItsSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 1}, new(fake))
		c := r.connect(t, "u")
		c.send(&pgproto3.Parse{Query: "SELECT 1"}, &pgproto3.Flush{})
		synctest.Wait()
		r.server.kill(1)
		synctest.Wait()
		c.send(&pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
		got := c.reply()
		require.Equal(t, "08006", got.code())
		require.Equal(t, 1, got.errs)
		require.EqualValues(t, 'I', got.status)
		require.Equal(t, "2", c.ok("pid"))
	})
}

func TestLossesOfARealServerAreSurvived(t *testing.T) {
	for _, version := range versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			c := pgtest.Start(t, version)
			cfg := trusting(c)
			cfg.Logger, cfg.MaxConnections = quiet, 3
			p := startProxy(t, cfg)
			const terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'app' AND pid <> pg_backend_pid()"
			idle, txn, pinned, busy := over(t, p), over(t, p), over(t, p), over(t, p)
			idle.ok("SELECT 1")
			txn.ok("BEGIN", "CREATE TABLE lost (i int)")
			pinned.ok("SELECT pg_advisory_lock(1)")
			idle.ok("SET work_mem = '5MB'")
			busy.ask("SELECT pg_sleep(100)")
			require.Eventually(t, func() bool {
				return c.Exec(t, "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'pg_sleep' AND pid <> pg_backend_pid()")[0][0] == "1"
			}, 20*time.Second, 5*time.Millisecond)
			c.Exec(t, terminate)
			require.Equal(t, "08007", busy.reply().code())
			require.Equal(t, "40001", txn.query("SELECT 1").code())
			txn.staysFailed()
			pinned.ended("57P01")
			require.Equal(t, "5MB", idle.ok("SHOW work_mem"))
			busy.ok("SELECT 1")
			require.Equal(t, "42P01", txn.query("SELECT * FROM lost").code())

			txn.ok("BEGIN")
			require.NoError(t, c.Kill())
			require.Equal(t, "40001", txn.query("INSERT INTO lost VALUES (1)").code())
			txn.ok("ROLLBACK")
			busy.ask("SELECT 1") // waits
			require.NoError(t, c.Restart(pgtest.Fast))
			require.Nil(t, busy.reply().err)
			txn.ok("SELECT 1")
		})
	}
}

// over logs in over TCP to the database app.
func over(t testing.TB, p *pgmoor.Proxy) *client {
	t.Helper()
	return overAs(t, p, "app")
}

func overAs(t testing.TB, p *pgmoor.Proxy, user string, params ...string) *client {
	t.Helper()
	c := newClient(t, dialTCP(t, p.Addr().String()))
	got := c.startup(user, append([]string{"database", "app"}, params...)...)
	require.Nil(t, got.err)
	require.EqualValues(t, 'I', got.status)
	return c
}
