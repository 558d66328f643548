package pgmoor_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// TestWhatIsPreparedInFrontOfARequestFailsIt has the proxy prepare, where a session goes on, a statement that waits for a lock for too long.
func TestWhatIsPreparedInFrontOfARequestFailsIt(t *testing.T) {
	for name, use := range map[string]func(c *client) reply{
		"simple":   func(c *client) reply { return c.query("EXECUTE a") },
		"extended": func(c *client) reply { return c.extended("EXECUTE a") },
		"by Bind":  func(c *client) reply { return again(c, "n") },
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, version int) {
				p, direct := opened(t, version)
				c := over(t, p)
				c.ok("PREPARE a AS SELECT t FROM carried")
				require.Nil(t, prepares(c, "n", "SELECT t FROM carried").err)
				everywhere(func() {
					for _, setting := range []struct{ set, code string }{{"lock_timeout", "55P03"}, {"statement_timeout", "57014"}} {
						c.ok("BEGIN", "SET LOCAL "+setting.set+" = 20")
						direct.ok("BEGIN", "LOCK TABLE carried")
						got := use(c)
						require.Equal(t, setting.code, got.code())
						require.EqualValues(t, 'E', got.status)
						require.Equal(t, "25P02", use(c).code())
						direct.ok("ROLLBACK")
						c.ok("ROLLBACK")
					}
				})
				everywhere(func() { require.Equal(t, []string{"one"}, use(c).rows) })
				pinnedBy(t, p)
			})
		})
	}
}

// TestWhatCannotBePreparedUndoesNothing has the proxy prepare a statement whose table is gone in a transaction of the client's, which
// goes on, or ends before the statement is executed.
func TestWhatCannotBePreparedUndoesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := opened(t, version)
		direct.ok("DROP TABLE IF EXISTS kept; CREATE TABLE kept (i int); GRANT ALL ON kept TO public")
		c := over(t, p)
		c.ok("PREPARE a AS SELECT t FROM carried", "PREPARE b AS SELECT 'b'")
		direct.ok("DROP TABLE carried")
		everywhere(func() {
			c.ok("BEGIN", "SAVEPOINT pgmoor", "INSERT INTO kept VALUES (1)")
			require.Contains(t, c.query("SELECT name FROM pg_prepared_statements").rows, "b")
			c.ok("ROLLBACK TO pgmoor", "INSERT INTO kept VALUES (2)")
			require.Equal(t, "b", c.ok("EXECUTE b"))
			got := c.query("COMMIT; EXECUTE a")
			require.Equal(t, []string{"COMMIT"}, got.tags)
			require.Equal(t, "42P01", got.code())
		})
		require.Equal(t, []string{"2", "2", "2"}, direct.query("SELECT i FROM kept").rows)
		pinnedBy(t, p)
	})
}

// TestACancelRequestThatHitsWhatIsPreparedInFront has a client cancel what it waits for while the server is busy with a statement of the
// proxy's own, which waits for a lock.
func TestACancelRequestThatHitsWhatIsPreparedInFront(t *testing.T) {
	for name, use := range map[string][]pgproto3.FrontendMessage{
		"EXECUTE":                        {&pgproto3.Query{String: "EXECUTE a"}},
		"Bind":                           run("n"),
		"Bind of the unnamed":            run(""),
		"another one than the unnamed":   run("sleeps"),
		"another one than the unnamed's": append([]pgproto3.FrontendMessage{parseOf("m", "SELECT pg_sleep(1000)")}, run("m")...),
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, version int) {
				p, direct := opened(t, version)
				c, other := over(t, p), over(t, p)
				c.ok("PREPARE a AS SELECT t FROM carried")
				require.Nil(t, prepares(c, "sleeps", "SELECT pg_sleep(1000)").err)
				require.Nil(t, prepares(c, "n", "SELECT t FROM carried").err)
				require.Nil(t, prepares(c, "", "SELECT t FROM carried").err)
				direct.ok("BEGIN", "LOCK TABLE carried")
				c.send(use...)
				require.Eventually(t, func() bool {
					return direct.ok("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'carried'::regclass") == "1"
				}, patience, time.Millisecond)
				c.requestCancel(dialTCP(t, p.Addr().String()))
				require.Equal(t, "57014", c.reply().code())
				direct.ok("ROLLBACK")
				everywhere(func() {
					other.ok("SELECT 1")
					require.Equal(t, "one", c.ok("EXECUTE a"))
					require.Equal(t, []string{"one"}, again(c, "n").rows)
				})
				pinnedBy(t, p)
			})
		})
	}
}

// TestWhatCouldNotBePreparedIsForgottenWithItsServer has a server connection end between the failure of what the proxy prepares in front of a
// request and the answer to that. The next request, on another one, fails for a reason of its own.
func TestWhatCouldNotBePreparedIsForgottenWithItsServer(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := opened(t, version)
		cluster := pgtest.Shared(t, version)
		c := over(t, p)
		c.ok("PREPARE a AS SELECT t FROM carried")
		direct.ok("DROP TABLE carried")
		c.ask("SELECT pg_sleep(1000); EXECUTE a -- AS forgotten")
		asleep(t, cluster, "forgotten")
		cluster.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%AS forgotten'")
		require.Equal(t, "08007", c.reply().code())
		require.Equal(t, "26000", c.query("EXECUTE nothing").code())
		require.Equal(t, "42P01", c.query("EXECUTE a").code())
		pinnedBy(t, p)
	})
}
