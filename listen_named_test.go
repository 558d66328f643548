package pgmoor_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// newly is a statement that is prepared under a name, executed and, with last, ended by a Sync.
func newly(name, sql string, last bool) []pgproto3.FrontendMessage {
	m := append([]pgproto3.FrontendMessage{parseOf(name, sql)}, run(name)...)
	if !last {
		m = m[:len(m)-1]
	}
	return m
}

// tags returns the next messages up to the n-th ReadyForQuery, without those that only acknowledge.
func (c *client) tags(n int) (all []string) {
	c.t.Helper()
	for n > 0 {
		switch m := c.next(); m {
		case "*pgproto3.ParseComplete", "*pgproto3.BindComplete", "*pgproto3.CloseComplete", "*pgproto3.NoData", "*pgproto3.RowDescription":
		case "ready I", "ready T", "ready E":
			n--
			all = append(all, m)
		default:
			all = append(all, m)
		}
	}
	return all
}

func TestANamedStatementThatListensIsCarried(t *testing.T) {
	for how, do := range map[string]func(c *client, name string) reply{
		"by Bind":    func(c *client, name string) reply { return again(c, name) },
		"by EXECUTE": func(c *client, name string) reply { return c.query("EXECUTE " + name) },
		"by EXECUTE, extended": func(c *client, name string) reply {
			return c.extended("EXECUTE " + name)
		},
	} {
		t.Run(how, func(t *testing.T) {
			onBoth(t, func(t *testing.T, version int) {
				p, _ := carrying(t, version, 0)
				c, n := over(t, p), over(t, p)
				require.Nil(t, prepares(c, "l", "LISTEN named").err)
				require.Nil(t, prepares(c, "u", "UNLISTEN named").err)
				n.ok("NOTIFY named, 'too early'")
				for range 5 {
					require.Nil(t, do(c, "l").err)
					require.Equal(t, []string{"named"}, listening(c, ""))
					require.Equal(t, "NOTIFY, named:own, ready I", c.whole("NOTIFY named, 'own'"))
					n.ok("NOTIFY named, 'other'")
					require.Equal(t, "named:other", c.said(1))
					c.ok("BEGIN")
					require.Nil(t, do(c, "u").err)
					c.ok("ROLLBACK")
					require.Equal(t, "NOTIFY, named:still, ready I", c.whole("NOTIFY named, 'still'"))
					require.Nil(t, do(c, "u").err)
					require.Equal(t, "NOTIFY, ready I", c.whole("NOTIFY named, 'lost'"))
					c.ok("BEGIN")
					require.Nil(t, do(c, "l").err)
					c.ok("ROLLBACK")
					require.Equal(t, "NOTIFY, ready I", c.whole("NOTIFY named, 'lost'"))
				}
				require.Empty(t, p.Stats().PinsTotal)
			})
		})
	}
}

func TestAnUnlistenThatIsNotReachedIsNone(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := carrying(t, version, 0)
		c := over(t, p)
		c.ok("LISTEN reached")
		require.Nil(t, prepares(c, "u", "UNLISTEN *").err)
		for _, sql := range []string{
			"DO $$BEGIN RAISE 'no'; END$$; UNLISTEN *", "DO $$BEGIN RAISE 'no'; END$$; EXECUTE u", "EXECUTE u; DO $$BEGIN RAISE 'no'; END$$",
		} {
			require.Equal(t, "P0001", c.query(sql).code(), sql)
			require.Equal(t, "NOTIFY, reached:still, ready I", c.whole("NOTIFY reached, 'still'"), sql)
		}
		require.Empty(t, p.Stats().PinsTotal)
	})
}

func TestAListenBehindACommitInItsBatchIsAwaited(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := carrying(t, version, 0)
		c, n := over(t, p), over(t, p)
		c.ok("LISTEN before")
		for range 5 {
			c.ok("UNLISTEN behind", "BEGIN", "NOTIFY before, 'own'")
			c.send(
				&pgproto3.Parse{Query: "COMMIT"}, &pgproto3.Bind{}, &pgproto3.Execute{},
				&pgproto3.Parse{Query: "LISTEN behind"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{},
			)
			require.Equal(t, []string{"COMMIT", "LISTEN", "before:own", "ready I"}, c.tags(1))
			n.ok("NOTIFY behind, 'other'")
			require.Equal(t, "behind:other", c.said(1))
		}
	})
}

func TestNothingIsMissedBehindANamedStatementThatListens(t *testing.T) {
	listens(t, 2, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		for _, how := range []string{"EXECUTE l", "BEGIN; EXECUTE l; COMMIT", "EXECUTE m; EXECUTE l"} {
			for i := range 20 {
				c, n := over(t, p), over(t, p)
				require.Nil(t, prepares(c, "l", "LISTEN missed").err)
				require.Nil(t, prepares(c, "m", "LISTEN other").err)
				c.ok(how)
				n.ok(fmt.Sprintf("NOTIFY missed, '%d'", i)) // the answer says that it is listened to
				require.Equal(t, fmt.Sprintf("missed:%d", i), c.said(1), how)
				require.NoError(t, c.conn.Close())
			}
		}
		require.Empty(t, p.Stats().PinsTotal)
	})
}

func TestAPrepareOfListenIsRefusedByTheServer(t *testing.T) {
	listens(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c := over(t, p)
		require.Equal(t, "42601", c.query("PREPARE l AS LISTEN a").code())
		require.Equal(t, "26000", c.query("EXECUTE l").code())
		require.Equal(t, "LISTEN, ready I", c.whole("LISTEN b"))
		require.Equal(t, "42601", c.query("PREPARE l AS LISTEN a").code())
		require.Equal(t, []string{"b"}, listening(c, ""))
		require.Empty(t, p.Stats().PinsTotal)
	})
}

func TestPipelinesOfListenAndNamedStatements(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := carrying(t, version, 0)
		for round := range 10 {
			c := over(t, p)
			var m []pgproto3.FrontendMessage
			m = append(m, newly("s", "SELECT 1", true)...)
			m = append(m, &pgproto3.Query{String: "NOTIFY piped, 'too early'"})
			m = append(m, newly("l", "LISTEN piped", true)...)
			m = append(m, newly("n", "NOTIFY piped, 'named'", false)...)
			m = append(m, run("s")...)
			m = append(m, &pgproto3.Query{String: "BEGIN; NOTIFY piped, 'in a block'; PREPARE q AS SELECT 2"})
			m = append(m, run("s")...)
			m = append(m, &pgproto3.Query{String: "EXECUTE q; COMMIT"}, &pgproto3.Query{String: "NOTIFY piped, 'last'"})
			m = append(m, newly("u", "UNLISTEN piped", true)...)
			m = append(m, run("n")...)
			c.send(m...)
			row := "*pgproto3.DataRow"
			require.Equal(t, []string{
				row, "SELECT 1", "ready I", "NOTIFY", "ready I", "LISTEN", "ready I",
				"NOTIFY", row, "SELECT 1", "piped:named", "ready I",
				"BEGIN", "NOTIFY", "PREPARE", "ready T", row, "SELECT 1", "ready T",
				row, "SELECT 1", "COMMIT", "piped:in a block", "ready I",
				"NOTIFY", "piped:last", "ready I", "UNLISTEN", "ready I", "NOTIFY", "ready I",
			}, c.tags(10), "round %d", round)
			require.NoError(t, c.conn.Close())
		}
		require.Empty(t, p.Stats().PinsTotal)
	})
}

// TestAListenerPreparesItsStatementsAnew has a session that listens use its statements where others have taken their places, and after
// their table was changed.
func TestAListenerPreparesItsStatementsAnew(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := carrying(t, version, 2)
		c, n := over(t, p), over(t, p)
		c.send(parseOf("all", "SELECT * FROM carried"), &pgproto3.Describe{ObjectType: 'S', Name: "all"}, &pgproto3.Sync{})
		require.Nil(t, c.reply().err)
		names := map[string]string{
			"one": "SELECT t FROM carried WHERE i = $1", "l": "LISTEN anew", "b": "BEGIN", "e": "COMMIT", "n": "NOTIFY anew, 'own'",
			"channels": "SELECT pg_listening_channels()",
		}
		for name, sql := range names {
			require.Nil(t, prepares(c, name, sql).err)
		}
		require.Nil(t, again(c, "l").err)
		use := func(code string) {
			for i := range 6 {
				require.Nil(t, prepares(n, fmt.Sprint("other", i), fmt.Sprint("SELECT ", i)).err)
				require.Equal(t, code, again(c, "all").code())
				require.Equal(t, []string{"one"}, again(c, "one", "1").rows)
				c.send(slices.Concat(run("b"), run("n"), run("channels"), run("e"), run("one", "1"))...)
				require.Equal(t, []string{
					"BEGIN", "ready T", "NOTIFY", "ready T", "*pgproto3.DataRow", "SELECT 1", "ready T", "COMMIT", "anew:own", "ready I",
					"*pgproto3.DataRow", "SELECT 1", "ready I",
				}, c.tags(5))
				require.Nil(t, again(n, fmt.Sprint("other", i)).err)
				n.send(&pgproto3.Close{ObjectType: 'S', Name: fmt.Sprint("other", i)}, &pgproto3.Sync{})
				require.Nil(t, n.reply().err)
				n.ok("NOTIFY anew, 'other'")
				require.Equal(t, "anew:other", c.said(1))
			}
		}
		use("")
		direct.ok("ALTER TABLE carried ADD COLUMN more int")
		use("0A000")
		require.Empty(t, p.Stats().PinsTotal)
		require.Positive(t, p.Stats().StatementsEvicted)
	})
}

// TestAMessageIsNotHeldBackWhereTheServerReadsCopyData has messages wait for an answer that does not come, because the server
// wants data first.
func TestAMessageIsNotHeldBackWhereTheServerReadsCopyData(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := carrying(t, version, 0)
		for _, before := range []string{"SELECT 1", "LISTEN held"} {
			for name, behind := range map[string]pgproto3.FrontendMessage{
				"a Parse": parseOf("known", "SELECT 1"), "a Sync": &pgproto3.Sync{}, "an EXECUTE": &pgproto3.Query{String: "EXECUTE known"},
			} {
				t.Run(before+", "+name, func(t *testing.T) {
					answers := func(c *client) (codes []string) {
						c.ok(before)
						require.Nil(t, prepares(c, "known", "SELECT 1").err)
						c.send(&pgproto3.Close{ObjectType: 'S', Name: "known"}, &pgproto3.Sync{})
						require.Nil(t, c.reply().err)
						c.send(
							&pgproto3.Query{String: "COPY carried FROM STDIN"}, behind, &pgproto3.CopyData{Data: []byte("7\tx\n")},
							&pgproto3.CopyDone{}, &pgproto3.Sync{}, &pgproto3.Query{String: "SELECT 3"},
						)
						for { // up to the answer to the last
							r := c.reply()
							codes = append(codes, r.code())
							if r.status == 0 || len(r.rows) > 0 {
								return codes
							}
						}
					}
					require.Equal(t, answers(directly(t, pgtest.Shared(t, version), "postgres")), answers(overAs(t, p, "postgres")))
				})
			}
		}
		require.Equal(t, "4", direct.ok("SELECT count(*) FROM carried WHERE i = 7"))
	})
}

func TestAPolicyPinsForListen(t *testing.T) {
	pins := pgmoor.PinningPolicyFunc(func(_ *pgmoor.Session, st *pgmoor.Statement) pgmoor.Decision {
		return pgmoor.Decision{Pin: st.Effects & pgmoor.EffectListen}
	})
	refuses := pgmoor.PinningPolicyFunc(func(_ *pgmoor.Session, st *pgmoor.Statement) (d pgmoor.Decision) {
		if st.Effects&pgmoor.EffectListen != 0 {
			d.Refuse = &pgmoor.Error{Code: "42501", Message: "no"}
		}
		return d
	})
	listen := map[string]func(c *client) reply{
		"simple":   func(c *client) reply { return c.query("LISTEN a") },
		"extended": func(c *client) reply { return c.extended("LISTEN a") },
		"named": func(c *client) reply {
			c.send(newly("l", "LISTEN a", true)...)
			return c.reply()
		},
		"in a block": func(c *client) reply {
			c.ok("BEGIN")
			r := c.query("LISTEN a")
			c.query("COMMIT")
			return r
		},
	}
	for name, do := range listen {
		t.Run(name, func(t *testing.T) {
			for _, version := range versions {
				cfg := trusting(pgtest.Shared(t, version))
				cfg.MaxConnections, cfg.Logger, cfg.Pinning = 2, quiet, pins
				p := startProxy(t, cfg)
				c, n := over(t, p), over(t, p)
				require.Nil(t, do(c).err)
				require.Eventually(t, func() bool { return p.Stats().PinnedBy["listen"] == 1 }, patience, time.Millisecond)
				n.ok("NOTIFY a, 'x'")
				require.Equal(t, "a:x", c.said(1))
				require.Zero(t, p.Stats().Listeners)

				cfg.Pinning = refuses
				p = startProxy(t, cfg)
				c, n = over(t, p), over(t, p)
				require.Equal(t, "42501", do(c).code())
				n.ok("NOTIFY a, 'x'")
				require.Equal(t, "NOTIFY, ready I", c.whole("NOTIFY a"))
				require.Empty(t, p.Stats().PinsTotal)
				require.Zero(t, p.Stats().Listeners)
			}
		})
	}
}

func TestASessionGoesOnListeningWithoutItsServer(t *testing.T) {
	listens(t, 2, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
		c, n := over(t, p), over(t, p)
		c.send(&pgproto3.Query{String: "LISTEN lost"}, &pgproto3.Query{String: "SELECT pg_sleep(1000) AS lost"})
		require.Nil(t, c.reply().err)
		asleep(t, cluster, "lost")
		cluster.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%AS lost'")
		require.Equal(t, "08007", c.reply().code())
		n.ok("NOTIFY lost, 'x'")
		require.Equal(t, "lost:x", c.said(1))
		require.Equal(t, "NOTIFY, lost:y, ready I", c.whole("NOTIFY lost, 'y'"))
	})
}

// TestAPipelineThatPinsAListenerTellsNothingTwice ends a batch so that its unnamed statement cannot be made again elsewhere: from then on
// the session's server connection, which was made to listen in front of the batch, is the one that listens.
func TestAPipelineThatPinsAListenerTellsNothingTwice(t *testing.T) {
	listens(t, 2, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		for range 20 {
			c, n := over(t, p), over(t, p)
			c.ok("LISTEN once")
			c.send(
				&pgproto3.Parse{Query: "LISTEN once" + strings.Repeat(" ", 5000)}, &pgproto3.Bind{}, &pgproto3.Execute{}, // too large to be kept
				&pgproto3.Bind{Parameters: [][]byte{nil}},
				&pgproto3.Parse{Query: "SELECT 1"}, &pgproto3.Sync{},
			)
			require.Equal(t, "08P01", c.reply().code())
			require.Equal(t, "NOTIFY, once:own, ready I", c.whole("NOTIFY once, 'own'"))
			require.Equal(t, "NOTIFY, once:again, ready I", c.whole("NOTIFY once, 'again'"))
			n.ok("NOTIFY once, 'other'")
			require.Equal(t, "once:other", c.said(1))
			require.Equal(t, "*pgproto3.EmptyQueryResponse, ready I", c.whole(""))
			require.NoError(t, c.conn.Close())
		}
		require.NotEmpty(t, p.Stats().PinsTotal)
	})
}

// TestAListenerWhoseAnswersCannotBeForetold has a COPY take a Sync: such a session is pinned, and can be asked nothing any more.
func TestAListenerWhoseAnswersCannotBeForetold(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		for _, before := range []string{"SELECT 1", "LISTEN foretold"} {
			p, _ := carrying(t, version, 0)
			c := over(t, p)
			c.ok(before)
			c.send(
				&pgproto3.Parse{Query: "COPY carried FROM STDIN"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{},
				&pgproto3.CopyFail{}, &pgproto3.Sync{},
			)
			require.Equal(t, "57014", c.reply().code())
			c.ok("LISTEN foretold")
			for range 5 {
				require.Equal(t, "NOTIFY, foretold:x, ready I", c.whole("NOTIFY foretold, 'x'"))
			}
		}
	})
}
