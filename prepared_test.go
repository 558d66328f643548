package pgmoor_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// carrying starts a proxy whose connections are lent in turn, with room for few statements on each, and a table to change.
func carrying(t *testing.T, version, statements int) (*pgmoor.Proxy, *client) {
	t.Helper()
	cluster := pgtest.Shared(t, version)
	cluster.Exec(t, "DROP TABLE IF EXISTS carried; CREATE TABLE carried (i int, t text); INSERT INTO carried VALUES (1, 'one'); GRANT ALL ON carried TO public")
	cfg := pgmoor.WithRotation(trusting(cluster))
	cfg.MaxConnections, cfg.MaxStatements, cfg.Logger = 3, statements, quiet
	return startProxy(t, cfg), directly(t, cluster, "postgres")
}

func parseOf(name, sql string, types ...uint32) *pgproto3.Parse {
	return &pgproto3.Parse{Name: name, Query: sql, ParameterOIDs: types}
}

// again executes a statement that has a name.
func again(c *client, name string, parameters ...string) reply {
	c.t.Helper()
	c.send(run(name, parameters...)...)
	return c.reply()
}

// prepares prepares a statement under a name.
func prepares(c *client, name, sql string) reply {
	c.t.Helper()
	c.send(parseOf(name, sql), &pgproto3.Sync{})
	return c.reply()
}

// TestBugClass2PreparedStatementDesync is about what other poolers have taken for prepared and was not, or the other way round.
func TestBugClass2PreparedStatementDesync(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		t.Run("names of others", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			clients := []*client{over(t, p), over(t, p), over(t, p), over(t, p)}
			for i, c := range clients {
				require.Nil(t, prepares(c, "s", fmt.Sprintf("SELECT %d", i)).err)
			}
			for range 5 {
				for i, c := range clients {
					require.Equal(t, []string{fmt.Sprint(i)}, again(c, "s").rows)
				}
			}
			require.Equal(t, "26000", again(over(t, p), "s").code())
			require.Equal(t, "42P05", prepares(clients[0], "s", "SELECT 5").code())
			pinnedBy(t, p)
		})
		t.Run("eviction within a batch", func(t *testing.T) {
			p, _ := carrying(t, version, 1)
			c := over(t, p)
			c.send(parseOf("a", "SELECT 1"), parseOf("b", "SELECT 2"), &pgproto3.Bind{PreparedStatement: "a"}, &pgproto3.Execute{},
				&pgproto3.Bind{PreparedStatement: "b"}, &pgproto3.Execute{}, &pgproto3.Bind{PreparedStatement: "a"}, &pgproto3.Execute{}, &pgproto3.Sync{})
			require.Equal(t, []string{"1", "2", "1"}, c.reply().rows)
			require.Positive(t, p.Stats().StatementsEvicted)
		})
		t.Run("a Parse that fails", func(t *testing.T) {
			p, direct := carrying(t, version, 0)
			c := over(t, p)
			require.Equal(t, "42P01", prepares(c, "a", "SELECT * FROM nowhere").code())
			require.Equal(t, "26000", again(c, "a").code())
			direct.ok("DROP TABLE IF EXISTS nowhere; CREATE TABLE nowhere (i int); GRANT ALL ON nowhere TO public")
			defer direct.ok("DROP TABLE nowhere")
			require.Nil(t, prepares(c, "a", "SELECT * FROM nowhere").err)
			require.Nil(t, again(c, "a").err)
		})
		t.Run("a Parse that is skipped", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			c := over(t, p)
			require.Nil(t, prepares(c, "known", "SELECT 17").err)
			c.send(&pgproto3.Bind{PreparedStatement: "unknown"}, parseOf("a", "SELECT 17"), parseOf("b", "SELECT 18"), &pgproto3.Sync{},
				&pgproto3.Bind{PreparedStatement: "a"}, &pgproto3.Sync{}, &pgproto3.Bind{PreparedStatement: "b"}, &pgproto3.Sync{})
			for range 3 {
				require.Equal(t, "26000", c.reply().code())
			}
		})
		t.Run("a client that dies before Sync", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			for range 9 {
				c := over(t, p)
				c.send(parseOf("a", "SELECT 1"), parseOf("b", "SELECT 1/0"), &pgproto3.Bind{PreparedStatement: "b"}, &pgproto3.Execute{}, &pgproto3.Flush{})
				require.NoError(t, c.conn.Close())
			}
			c := over(t, p)
			for range 4 {
				require.Equal(t, "26000", again(c, "a").code())
			}
			require.Nil(t, prepares(c, "a", "SELECT 1").err)
			for range 4 {
				require.Equal(t, []string{"1"}, again(c, "a").rows)
			}
		})
		t.Run("DEALLOCATE ALL and DISCARD ALL by another", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			c, other := over(t, p), over(t, p)
			require.Nil(t, prepares(c, "a", "SELECT 1").err)
			c.ok("PREPARE b AS SELECT 2")
			for _, sql := range []string{"DEALLOCATE ALL", "DISCARD ALL", "DISCARD PLANS", "PREPARE a AS SELECT 3", "DEALLOCATE a", "DEALLOCATE ALL"} {
				other.ok(sql)
				require.Equal(t, []string{"1"}, again(c, "a").rows, sql)
				require.Equal(t, "2", c.ok("EXECUTE b"), sql)
			}
			pinnedBy(t, p)
		})
		t.Run("types and search_path", func(t *testing.T) {
			p, direct := carrying(t, version, 0)
			direct.ok("DROP SCHEMA IF EXISTS elsewhere CASCADE; CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.carried AS SELECT 2 AS i; GRANT ALL ON SCHEMA elsewhere TO public; GRANT ALL ON elsewhere.carried TO public")
			defer direct.ok("DROP SCHEMA elsewhere CASCADE")
			c, other := over(t, p), over(t, p)
			other.ok("SET search_path = elsewhere")
			for _, c := range []*client{c, other} {
				require.Nil(t, prepares(c, "i", "SELECT i FROM carried").err)
			}
			c.send(parseOf("type", "SELECT pg_typeof($1)", 23), &pgproto3.Sync{})
			require.Nil(t, c.reply().err)
			other.send(parseOf("type", "SELECT pg_typeof($1)", 25), &pgproto3.Sync{})
			require.Nil(t, other.reply().err)
			for range 4 {
				require.Equal(t, []string{"1"}, again(c, "i").rows)
				require.Equal(t, []string{"2"}, again(other, "i").rows)
				require.Equal(t, []string{"integer"}, again(c, "type", "1").rows)
				require.Equal(t, []string{"text"}, again(other, "type", "1").rows)
			}
		})
	})
}

// TestBugClass2AStatementWhoseTableHasChanged is about clients that were told of columns and parameters which the statement no
// longer has: they must not get others.
func TestBugClass2AStatementWhoseTableHasChanged(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := carrying(t, version, 0)
		c, fresh := over(t, p), over(t, p)
		describe := []pgproto3.FrontendMessage{parseOf("all", "SELECT * FROM carried"), &pgproto3.Describe{ObjectType: 'S', Name: "all"}, &pgproto3.Sync{}}
		c.send(describe...)
		require.Nil(t, c.reply().err)
		c.send(parseOf("one", "SELECT t FROM carried WHERE i = $1"), &pgproto3.Describe{ObjectType: 'S', Name: "one"}, &pgproto3.Sync{})
		require.Nil(t, c.reply().err)
		for range 4 {
			require.Nil(t, again(c, "all").err)
			require.Nil(t, again(c, "one", "1").err)
		}
		direct.ok("ALTER TABLE carried ADD COLUMN more int; ALTER TABLE carried ALTER COLUMN i TYPE bigint")
		for range 4 {
			require.Equal(t, "0A000", again(c, "all").code())
		}
		fresh.send(describe...)
		if got := fresh.reply(); got.err != nil { // the plan that the server connection had
			require.Equal(t, "0A000", got.code())
			fresh.send(&pgproto3.Close{ObjectType: 'S', Name: "all"}, &pgproto3.Sync{})
			require.Nil(t, fresh.reply().err)
			fresh.send(describe...)
			require.Nil(t, fresh.reply().err)
		}
		for range 4 {
			require.Nil(t, again(fresh, "all").err)
			require.Equal(t, "0A000", again(c, "all").code(), "the other one was told something else")
			require.Equal(t, "RevalidateCachedQuery", again(c, "all").err.Routine, "drivers look for it")
		}
		c.send(&pgproto3.Close{ObjectType: 'S', Name: "all"}, &pgproto3.Sync{})
		require.Nil(t, c.reply().err)
		c.send(describe...)
		require.Nil(t, c.reply().err)
		for range 4 {
			require.Nil(t, again(c, "all").err)
		}
		pinnedBy(t, p)
	})
}

// TestBugClass2AParameterWhoseTypeHasChanged is the same for parameters, which a client sends as it was told, on connections that
// have not prepared the statement yet.
func TestBugClass2AParameterWhoseTypeHasChanged(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := carrying(t, version, 0)
		holders := []*client{over(t, p), over(t, p)} // two of three connections
		c := over(t, p)
		for _, h := range holders {
			h.ok("BEGIN")
		}
		c.send(parseOf("one", "SELECT t FROM carried WHERE i = $1"), &pgproto3.Describe{ObjectType: 'S', Name: "one"}, &pgproto3.Sync{})
		require.Nil(t, c.reply().err)
		for _, h := range holders {
			h.ok("ROLLBACK")
		}
		direct.ok("ALTER TABLE carried ALTER COLUMN i TYPE text")
		codes := map[string]int{}
		for range 6 {
			codes[again(c, "one", "1").code()]++
		}
		require.Equal(t, map[string]int{"42883": 6}, codes, "text = integer, as directly")
	})
}

// TestANameThatGetsShorterLeavesTheParametersWhereTheyAre is about Binds of statements that are known under shorter names on the server
// connections: what they set and prepare has to be read all the same.
func TestANameThatGetsShorterLeavesTheParametersWhereTheyAre(t *testing.T) {
	const set, prepare = "SELECT set_config($1, $2, false)", "PREPARE carried_sql AS SELECT 'sql'"
	onBoth(t, func(t *testing.T, version int) {
		p, _ := carrying(t, version, 0)
		long, other := over(t, p), over(t, p)
		for _, c := range []*client{other, long} { // the one with the short names has them on each connection
			name := map[*client]string{other: "s", long: "much_longer"}[c]
			require.Nil(t, prepares(c, name, set).err)
			for range 4 {
				require.Nil(t, again(c, name, "work_mem", "5MB").err)
			}
		}
		require.Nil(t, again(long, "much_longer", "work_mem", "7MB").err)
		for range 4 {
			require.Equal(t, "7MB", long.ok("SHOW work_mem"))
			require.Equal(t, "5MB", other.ok("SHOW work_mem"))
		}
		for range 3 {
			for i, c := range []*client{other, long} {
				name := []string{"p", "much_longer_p"}[i]
				require.Nil(t, prepares(c, name, prepare).err)
				require.Nil(t, again(c, name).err)
				for range 4 {
					require.Equal(t, "sql", c.ok("EXECUTE carried_sql"))
				}
				c.ok("DEALLOCATE carried_sql", "DEALLOCATE "+name)
			}
		}
		require.Empty(t, p.Stats().PinsTotal)
	})
}

// TestBugClass3ReadyForQueryMiscount is about pipelines in which named statements are prepared, fail and are dropped.
func TestBugClass3ReadyForQueryMiscount(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := carrying(t, version, 0)
		c, other := over(t, p), over(t, p)
		require.Nil(t, prepares(other, "a", "SELECT 'other'").err)
		for range 5 {
			c.send(parseOf("a", "SELECT 1/0"), &pgproto3.Close{ObjectType: 'S', Name: "a"}, parseOf("a", "SELECT 1"), &pgproto3.Flush{})
			c.send(&pgproto3.Bind{PreparedStatement: "a"}, &pgproto3.Execute{}, &pgproto3.Sync{}, &pgproto3.Query{String: "SELECT 2"},
				&pgproto3.Bind{PreparedStatement: "none"}, &pgproto3.Close{ObjectType: 'S', Name: "a"}, &pgproto3.Sync{},
				&pgproto3.Query{String: "PREPARE b AS SELECT 3; EXECUTE b; DEALLOCATE b"},
				&pgproto3.Bind{PreparedStatement: "a"}, &pgproto3.Execute{}, &pgproto3.Sync{}, &pgproto3.Query{String: "DEALLOCATE a"})
			require.Equal(t, []string{"1"}, c.reply().rows)
			require.Equal(t, []string{"2"}, c.reply().rows)
			require.Equal(t, "26000", c.reply().code())
			require.Equal(t, []string{"3"}, c.reply().rows)
			require.Equal(t, []string{"1"}, c.reply().rows)
			require.Nil(t, c.reply().err)
			require.Equal(t, []string{"other"}, again(other, "a").rows)
		}
		pinnedBy(t, p)
	})
}

func TestAParseOfAKnownStatementIsAnsweredWithFlushOnly(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := carrying(t, version, 0)
		first, c := over(t, p), over(t, p)
		require.Nil(t, prepares(first, "a", "SELECT 1").err)
		for i := range 4 {
			name := fmt.Sprint("s", i)
			c.send(parseOf(name, "SELECT 1"), &pgproto3.Flush{})
			require.NoError(t, c.conn.SetReadDeadline(time.Now().Add(patience)))
			m, err := c.Receive()
			require.NoError(t, err)
			require.IsType(t, &pgproto3.ParseComplete{}, m)
			c.send(&pgproto3.Sync{})
			require.Nil(t, c.reply().err)
		}
		require.Positive(t, p.Stats().StatementsShared)
	})
}

func TestALongNameIsExchangedForAShortOneInErrorsToo(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := carrying(t, version, 0)
		a, b := over(t, p), over(t, p)
		require.Nil(t, prepares(a, "s", "SELECT 1").err)
		const long = "a_name_that_is_longer_than_the_one_on_the_server_connection"
		for range 4 {
			require.Nil(t, prepares(b, long, "SELECT 1").err)
			got := again(b, long, "too", "many")
			require.Equal(t, "08P01", got.code())
			require.Contains(t, got.err.Message, long)
			require.NotEmpty(t, got.err.Routine)
			b.send(&pgproto3.Close{ObjectType: 'S', Name: long}, &pgproto3.Sync{})
			require.Nil(t, b.reply().err)
		}
	})
}

// TestAStatementThatCannotBePreparedAgainSaysWhy is about EXECUTE on another connection than the one where PREPARE was.
func TestAStatementThatCannotBePreparedAgainSaysWhy(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := opened(t, version)
		c := over(t, p)
		c.ok("PREPARE a AS SELECT t FROM carried")
		direct.ok("DROP TABLE carried")
		for range 4 {
			got := c.query("EXECUTE a")
			require.Equal(t, "42P01", got.code())
			require.Contains(t, got.err.Message, "carried")
		}
		direct.ok("CREATE TABLE carried AS SELECT 'again'::text AS t; GRANT ALL ON carried TO public")
		for range 4 {
			require.Equal(t, "again", c.ok("EXECUTE a"))
		}
	})
}

// TestADescribeUnderAnotherNameIsOfItsOwnStatement has names that the proxy exchanges for others that the client has, too.
func TestADescribeUnderAnotherNameIsOfItsOwnStatement(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := carrying(t, version, 0)
		other, c := over(t, p), over(t, p)
		for i, sql := range []string{"SELECT 1::int8", "SELECT 'a', 'b'", "SELECT true"} {
			require.Nil(t, prepares(other, fmt.Sprint("S_", i+7), sql).err)
		}
		for i, sql := range []string{"SELECT true", "SELECT 'a', 'b'", "SELECT 1::int8", "SELECT 2"} {
			name := fmt.Sprint("S_", i+8)
			c.send(parseOf(name, sql), &pgproto3.Describe{ObjectType: 'S', Name: name}, &pgproto3.Sync{})
			require.Nil(t, c.reply().err)
		}
		for range 5 {
			for i := range 4 {
				require.Nil(t, again(c, fmt.Sprint("S_", i+8)).err)
			}
		}
	})
}

func TestALongPipelineOfNamedStatementsIsBounded(t *testing.T) {
	p, _ := carrying(t, 18, 0)
	c := over(t, p)
	for range 25_000 {
		c.SendClose(&pgproto3.Close{ObjectType: 'S', Name: "none"})
	}
	c.send(&pgproto3.Sync{})
	require.Nil(t, c.reply().err)
}
