package pgmoor_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// This file is about what sessions that share a server connection's statements must not have of each other: regressions of an attack.

// TestANameInOtherLettersIsNobodyElses has names that fold, are encoded or are cut in other ways than those of ASCII.
func TestANameInOtherLettersIsNobodyElses(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		t.Run("sql", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			a, b := over(t, p), over(t, p)
			everywhere(func() { a.ok("PREPARE É AS SELECT 'secret'"); a.ok("DEALLOCATE É") })
			a.ok("PREPARE É AS SELECT 'secret'")
			everywhere(func() { a.ok("EXECUTE É") })
			everywhere(func() { require.Equal(t, "26000", b.query(`EXECUTE "É"`).code()) })
			everywhere(func() { require.Equal(t, "26000", again(b, "É").code()) })
		})
		t.Run("both", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			a := over(t, p)
			a.ok("PREPARE É AS SELECT 'upper'", "PREPARE é AS SELECT 'lower'")
			everywhere(func() {
				require.Equal(t, "upper", a.ok("EXECUTE É"))
				require.Equal(t, "lower", a.ok("EXECUTE é"))
			})
		})
		t.Run("encoding", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			a, b := over(t, p), over(t, p)
			a.ok("SET client_encoding = 'LATIN1'")
			require.Nil(t, prepares(a, "\xe9", "SELECT 'secret'").err)
			everywhere(func() { require.Nil(t, again(a, "\xe9").err) })
			everywhere(func() { require.Equal(t, "26000", again(b, "é").code()) })
			require.Nil(t, prepares(b, "é", "SELECT 'mine'").err)
			everywhere(func() { require.Equal(t, []string{"mine"}, again(b, "é").rows) })
		})
		t.Run("long", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			a := over(t, p)
			long := "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgg" // 62
			a.ok("PREPARE " + long + "éx AS SELECT 1")
			everywhere(func() { a.ok("EXECUTE " + long + "éy"); require.Nil(t, again(a, long).err) })
		})
	})
}

// TestAStatementThatIsExecutedByAnotherIsTheSessionsOwn has a session execute one that executes one, of a name that only others have.
func TestAStatementThatIsExecutedByAnotherIsTheSessionsOwn(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := carrying(t, version, 0)
		theirs, c := over(t, p), over(t, p)
		require.Nil(t, prepares(c, "calls", "EXECUTE inner_one").err)
		require.Nil(t, prepares(c, "drops", "DEALLOCATE inner_one").err)
		theirs.ok("PREPARE inner_one AS SELECT 'theirs'")
		everywhere(func() { theirs.ok("EXECUTE inner_one") })
		everywhere(func() { require.Equal(t, "26000", c.query("EXECUTE calls").code()) })
		everywhere(func() { theirs.ok("EXECUTE inner_one") })
		everywhere(func() { require.Equal(t, "26000", c.query("EXECUTE drops").code()) })
		c.ok("PREPARE inner_one AS SELECT 'mine'")
		everywhere(func() { require.Equal(t, "mine", c.ok("EXECUTE calls")) })
		everywhere(func() { require.Equal(t, "theirs", theirs.ok("EXECUTE inner_one")) })
	})
}

// TestATemporaryTableIsFoundByASharedStatement has a session hide the table of a statement that was prepared for another one.
func TestATemporaryTableIsFoundByASharedStatement(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := carrying(t, version, 0)
		direct.ok("DROP TABLE IF EXISTS shadowed; CREATE TABLE shadowed AS SELECT 'public'::text AS x; GRANT ALL ON shadowed TO public")
		c, other := over(t, p), over(t, p)
		const text = "SELECT x FROM shadowed"
		everywhere(func() { other.ok("CREATE TEMP TABLE warm (i int)", "DROP TABLE warm") })
		require.Nil(t, prepares(other, "o", text).err)
		everywhere(func() { require.Equal(t, []string{"public"}, again(other, "o").rows) })
		c.ok("CREATE TEMP TABLE shadowed AS SELECT 'temp'::text AS x")
		require.Nil(t, prepares(c, "s", text).err)
		require.Equal(t, []string{"temp"}, again(c, "s").rows)
	})
}

// TestTheOrderOfParametersWithOneMeaningCounts has two names of one setting in the startup packet.
func TestTheOrderOfParametersWithOneMeaningCounts(t *testing.T) {
	cluster := pgtest.Shared(t, 18)
	p := startProxy(t, trusting(cluster))
	login := func(addr, params string) *client {
		c := newClient(t, dialTCP(t, addr))
		body := "\x00\x03\x00\x00user\x00app\x00database\x00app\x00" + strings.ReplaceAll(params, ",", "\x00") + "\x00\x00"
		n := len(body) + 4
		_, err := c.conn.Write(append([]byte{0, 0, byte(n >> 8), byte(n)}, body...))
		require.NoError(t, err)
		require.Nil(t, c.reply().err)
		return c
	}
	for _, params := range []string{"work_mem,5MB,sort_mem,8MB", "sort_mem,8MB,work_mem,5MB"} {
		require.Equal(t, login(cluster.Addr(), params).ok("SHOW work_mem"), login(p.Addr().String(), params).ok("SHOW work_mem"), params)
	}
}

// TestAStatementIsThatOfTheNamesWhenItWasPrepared has what a text means change between two clients' Parses of it, while the statement of
// the first stays as good as ever.
func TestAStatementIsThatOfTheNamesWhenItWasPrepared(t *testing.T) {
	const table, function = "SELECT x FROM tt", "SELECT which(1)"
	const asNumeric = `FUNCTION which(numeric) RETURNS text LANGUAGE sql AS 'SELECT ''numeric'''`
	const asInt = `FUNCTION which(int) RETURNS text LANGUAGE sql AS 'SELECT ''int'''`
	for _, c := range []struct {
		name, before, text, was, is string
		change                      []string
	}{
		{"create", "", table, "s2", "s1", []string{"CREATE TABLE s1.tt AS SELECT 's1'::text AS x"}},
		{"select into", "", table, "s2", "s1", []string{"SELECT 's1'::text AS x INTO s1.tt"}},
		{"create in a block", "", table, "s2", "s1", []string{"BEGIN", "CREATE VIEW s1.tt AS SELECT 's1'::text AS x", "COMMIT"}},
		{"create in a text", "", table, "s2", "s1", []string{"BEGIN; CREATE TABLE s1.tt AS SELECT 's1'::text AS x; COMMIT; BEGIN", "COMMIT"}},
		{"do", "", table, "s2", "s1", []string{"DO $$ BEGIN CREATE TABLE s1.tt AS SELECT 's1'::text AS x; END $$"}},
		{"rename", "CREATE TABLE s1.other AS SELECT 's1'::text AS x", table, "s2", "s1", []string{"ALTER TABLE s1.other RENAME TO tt"}},
		{"schema", "CREATE SCHEMA s3; CREATE TABLE s3.tt AS SELECT 's1'::text AS x", table, "s2", "s1", []string{"ALTER TABLE s3.tt SET SCHEMA s1"}},
		{"overload", "CREATE " + asNumeric, function, "numeric", "int", []string{"CREATE " + asInt}},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, version int) {
				p, direct := carrying(t, version, 0)
				direct.ok("DROP SCHEMA IF EXISTS s1 CASCADE; DROP SCHEMA IF EXISTS s2 CASCADE; DROP SCHEMA IF EXISTS s3 CASCADE; CREATE SCHEMA s1 AUTHORIZATION app; CREATE SCHEMA s2 AUTHORIZATION app; " +
					"GRANT CREATE ON DATABASE app TO app; SET ROLE app; CREATE TABLE s2.tt AS SELECT 's2'::text AS x; SET search_path = s2; " + c.before)
				a, others := over(t, p), []*client{over(t, p), overAs(t, p, "postgres")}
				a.ok("SET search_path = s1, s2")
				for _, one := range others {
					one.ok("SET search_path = s1, s2")
					require.Nil(t, prepares(one, "before", c.text).err)
					everywhere(func() { require.Equal(t, []string{c.was}, again(one, "before").rows) })
				}
				a.ok(c.change...)
				for _, one := range append(others, a) {
					require.Nil(t, prepares(one, "", c.text).err)
					require.Nil(t, prepares(one, "s", c.text).err)
					everywhere(func() { require.Equal(t, []string{c.is}, again(one, "").rows) })
					everywhere(func() { require.Equal(t, []string{c.is}, again(one, "s").rows) })
				}
				direct.ok("SET ROLE app; DROP SCHEMA s1, s2 CASCADE; DROP SCHEMA IF EXISTS s3 CASCADE")
			})
		})
	}
}

// TestWhatATransactionDefinesIsFoundInIt has a session prepare a text of everybody's behind definitions of its own that nobody else sees yet.
func TestWhatATransactionDefinesIsFoundInIt(t *testing.T) {
	const text = "SELECT x FROM within"
	onBoth(t, func(t *testing.T, version int) {
		p, direct := carrying(t, version, 0)
		direct.ok("DROP TABLE IF EXISTS within; CREATE TABLE within AS SELECT 'public'::text AS x; GRANT ALL ON within TO public",
			"DROP SCHEMA IF EXISTS mine CASCADE; CREATE SCHEMA mine; GRANT ALL ON SCHEMA mine TO public")
		a, b := over(t, p), over(t, p)
		for _, c := range []*client{a, b} {
			c.ok("SET search_path = mine, public")
			require.Nil(t, prepares(c, "before", text).err)
			everywhere(func() { require.Equal(t, []string{"public"}, again(c, "before").rows) })
		}
		for i, change := range []string{"CREATE TEMP TABLE within ON COMMIT DROP AS SELECT 'mine'::text AS x", "CREATE TABLE mine.within AS SELECT 'mine'::text AS x"} {
			name := fmt.Sprint("s", i)
			a.ok("BEGIN", change)
			require.Nil(t, prepares(a, name, text).err)
			require.Equal(t, []string{"mine"}, again(a, name).rows)
			require.Nil(t, prepares(b, name, text).err)
			everywhere(func() { require.Equal(t, []string{"public"}, again(b, name).rows) })
			a.ok("ROLLBACK")
			everywhere(func() { require.Equal(t, []string{"public"}, again(a, name).rows) })
		}
		pipeline := append([]pgproto3.FrontendMessage{parseOf("", "CREATE TABLE mine.within AS SELECT 'mine'::text AS x")}, run("")...)
		pipeline = append(append(pipeline, parseOf("p", text)), run("p")...)
		a.send(pipeline...)
		require.Nil(t, a.reply().err)
		require.Equal(t, []string{"mine"}, a.reply().rows)
		a.ok("DROP TABLE mine.within")
		direct.ok("DROP SCHEMA mine; DROP TABLE within")
	})
}

// TestWhatATransactionDefinedIsFoundWhenAnotherSessionCommitsIt has a text prepared while what it is to mean waits for its COMMIT PREPARED.
func TestWhatATransactionDefinedIsFoundWhenAnotherSessionCommitsIt(t *testing.T) {
	const text = "SELECT x FROM within"
	onBoth(t, func(t *testing.T, version int) {
		p, direct := carrying(t, version, 0)
		direct.ok("DROP TABLE IF EXISTS within; CREATE TABLE within AS SELECT 'public'::text AS x; GRANT ALL ON within TO public",
			"DROP SCHEMA IF EXISTS mine CASCADE; CREATE SCHEMA mine; GRANT ALL ON SCHEMA mine TO public")
		maker, early, committer := over(t, p), over(t, p), over(t, p)
		for _, c := range []*client{maker, early, committer} {
			c.ok("SET search_path = mine, public")
		}
		maker.ok("BEGIN", "CREATE TABLE mine.within AS SELECT 'mine'::text AS x", "PREPARE TRANSACTION 'defines'")
		require.Nil(t, prepares(early, "s", text).err)
		everywhere(func() { require.Equal(t, []string{"public"}, again(early, "s").rows) })
		committer.ok("COMMIT PREPARED 'defines'")
		for _, c := range []*client{maker, committer} {
			require.Nil(t, prepares(c, "s", text).err)
			everywhere(func() { require.Equal(t, []string{"mine"}, again(c, "s").rows) })
		}
		direct.ok("DROP SCHEMA mine CASCADE; DROP TABLE within")
	})
}

// TestAStatementIsReadUnderASettingThatIsStillAskedFor has a text prepared directly behind a SET of what the server reports to nobody, by
// the session that sets it before and after others that do not.
func TestAStatementIsReadUnderASettingThatIsStillAskedFor(t *testing.T) {
	const text = "SELECT count(*) FROM (VALUES (NULL::int)) v(x) WHERE x = NULL"
	for name, w := range map[string]struct {
		prepare, use func(c *client) reply
	}{
		"parse":   {func(c *client) reply { return prepares(c, "s", text) }, func(c *client) reply { return again(c, "s") }},
		"prepare": {func(c *client) reply { return c.query("PREPARE s AS " + text) }, func(c *client) reply { return c.query("EXECUTE s") }},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, version int) {
				p, _ := carrying(t, version, 0)
				for _, first := range []bool{true, false} {
					a, b := over(t, p), over(t, p)
					prepare := func(c *client, set string) {
						if set != "" {
							c.ok(set)
						}
						require.Nil(t, w.prepare(c).err)
					}
					if !first {
						prepare(b, "")
					}
					prepare(a, "SET transform_null_equals = on")
					if first {
						prepare(b, "")
					}
					everywhere(func() {
						require.Equal(t, []string{"1"}, w.use(a).rows)
						require.Equal(t, []string{"0"}, w.use(b).rows)
					})
				}
				pinnedBy(t, p)
			})
		})
	}
}
