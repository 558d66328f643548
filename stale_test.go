package pgmoor_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// onBothSides runs f with a client of the proxy, on each of its connections, and with one of the server itself, each before the table
// has changed and after that, and returns what they got after it: that of the server last.
func onBothSides(t *testing.T, version int, change string, before, after func(c *client) []string) (got [][]string) {
	t.Helper()
	p, direct := opened(t, version)
	own := over(t, p)
	server := directly(t, pgtest.Shared(t, version), "postgres")
	before(own)
	before(server)
	direct.ok(change)
	everywhere(func() { got = append(got, after(own)) })
	pinnedBy(t, p)
	return append(got, after(server))
}

// TestADescribeOfAStatementThatHasChangedTellsItsParameters is about the message that PostgreSQL sends before it finds that the
// columns are others.
func TestADescribeOfAStatementThatHasChangedTellsItsParameters(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		describe := func(c *client) []string {
			c.send(&pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Sync{})
			return c.answer()
		}
		got := onBothSides(t, version, "ALTER TABLE carried ADD COLUMN more int", func(c *client) []string {
			require.Nil(t, prepares(c, "s", "SELECT * FROM carried WHERE i = $1").err)
			return describe(c)
		}, describe)
		require.Equal(t, []string{
			"*pgproto3.ParameterDescription", "*pgproto3.ErrorResponse", "cached plan must not change result type",
			"*pgproto3.ReadyForQuery", "I",
		}, got[0])
		for _, g := range got {
			require.Equal(t, got[0], g)
		}
	})
}

// TestTheTypesOfParametersStayWhatTheyWere is about parameters whose types the client left open: PostgreSQL finds them once.
func TestTheTypesOfParametersStayWhatTheyWere(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		describe := func(c *client) []string {
			c.send(&pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Sync{})
			return c.answer()
		}
		got := onBothSides(t, version, "ALTER TABLE carried ALTER COLUMN i TYPE bigint", func(c *client) []string {
			require.Nil(t, prepares(c, "s", "SELECT t FROM carried WHERE i = $1").err)
			return describe(c)
		}, func(c *client) []string {
			c.send(append([]pgproto3.FrontendMessage{&pgproto3.Describe{ObjectType: 'S', Name: "s"}}, run("s", "1")...)...)
			return c.answer()
		})
		require.NotContains(t, got[0], "*pgproto3.ErrorResponse")
		for _, g := range got {
			require.Equal(t, got[0], g)
		}
	})
}

// TestWhatIsPreparedAgainAfterTheTypesOfParametersChangedIsNew is about a session whose statement was kept as it was.
func TestWhatIsPreparedAgainAfterTheTypesOfParametersChangedIsNew(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := opened(t, version)
		c := over(t, p)
		const text = "SELECT t FROM carried WHERE i = $1 AND pg_typeof($1)::text = 'integer'"
		c.send(parseOf("s", text), &pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Sync{})
		require.Nil(t, c.reply().err)
		direct.ok("ALTER TABLE carried ALTER COLUMN i TYPE bigint")
		everywhere(func() { require.Equal(t, []string{"one"}, again(c, "s", "1").rows) })
		c.send(&pgproto3.Close{ObjectType: 'S', Name: "s"}, &pgproto3.Sync{})
		require.Nil(t, c.reply().err)
		require.Nil(t, prepares(c, "s", text).err)
		everywhere(func() { require.Empty(t, again(c, "s", "1").rows, "bigint") })
		everywhere(func() {
			other := over(t, p)
			require.Nil(t, prepares(other, "s", text).err)
			require.Empty(t, again(other, "s", "1").rows, "bigint")
		})
	})
}

// TestABindInAFailedBlockFailsAsSuch is about statements that the server connection does not have, and where they cannot be prepared.
func TestABindInAFailedBlockFailsAsSuch(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := carrying(t, version, 0)
		c := over(t, p)
		c.send(parseOf("one", "SELECT t FROM carried WHERE i = $1"), parseOf("none", "SELECT 1"), parseOf("end", "ROLLBACK"), &pgproto3.Sync{})
		require.Nil(t, c.reply().err)
		everywhere(func() {
			c.ok("BEGIN")
			require.NotNil(t, c.query("SELECT 1/0").err)
			for _, m := range []*pgproto3.Bind{
				{PreparedStatement: "one", Parameters: [][]byte{[]byte("1")}}, {PreparedStatement: "none"}, {PreparedStatement: "one", Parameters: [][]byte{nil}},
			} {
				c.send(m, &pgproto3.Execute{}, &pgproto3.Sync{})
				r := c.reply()
				require.Equal(t, "25P02", r.code())
				require.Equal(t, "exec_bind_message", r.err.Routine)
			}
			require.Equal(t, "08P01", again(c, "one").code())
			require.Equal(t, "08P01", again(c, "none", "1").code())
			require.Nil(t, again(c, "end").err)
			require.Equal(t, []string{"one"}, again(c, "one", "1").rows)
			require.Equal(t, []string{"1"}, again(c, "none").rows)
		})
		pinnedBy(t, p)
	})
}

// TestADescribeOfAStatementThatCannotBePreparedAnewTellsItsParameters is the same where the table is gone, and what comes before fails.
func TestADescribeOfAStatementThatCannotBePreparedAnewTellsItsParameters(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		describe := func(c *client) []string {
			c.send(&pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Sync{})
			return c.answer()
		}
		got := onBothSides(t, version, "ALTER TABLE carried RENAME COLUMN i TO j", func(c *client) []string {
			require.Nil(t, prepares(c, "fails", "SELECT 1/$1::int").err)
			require.Nil(t, prepares(c, "s", "SELECT * FROM carried WHERE i = $1").err)
			return describe(c)
		}, func(c *client) []string {
			c.send(run("fails", "0")[0], &pgproto3.Execute{}, &pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Sync{})
			return append(c.answer(), describe(c)...)
		})
		for _, g := range got {
			require.Equal(t, got[len(got)-1], g)
		}
	})
}

// TestAnEmptyStatementCanBePreparedInAFailedBlock is about one that the server connection has under another name.
func TestAnEmptyStatementCanBePreparedInAFailedBlock(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := opened(t, version)
		other := over(t, p)
		require.Nil(t, prepares(other, "theirs", "  ").err)
		everywhere(func() { require.Nil(t, again(other, "theirs").err) })
		everywhere(func() {
			c := over(t, p)
			c.ok("BEGIN")
			require.NotNil(t, c.query("SELECT 1/0").err)
			require.Nil(t, prepares(c, "mine", "  ").err)
			require.Equal(t, "25P02", prepares(c, "more", "SELECT 1").code())
			c.ok("ROLLBACK")
			require.Nil(t, again(c, "mine").err)
		})
	})
}

// TestADescribeOfAStatementThatReturnsNothingTellsThat is about one whose table is gone: PostgreSQL does not look at it.
func TestADescribeOfAStatementThatReturnsNothingTellsThat(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		describe := func(c *client) []string {
			c.send(&pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Sync{})
			return c.answer()
		}
		got := onBothSides(t, version, "DROP TABLE carried", func(c *client) []string {
			require.Nil(t, prepares(c, "s", "UPDATE carried SET t = $1 WHERE i = $2").err)
			return describe(c)
		}, func(c *client) []string {
			return append(describe(c), again(c, "s", "a", "1").code())
		})
		require.Contains(t, got[0], "*pgproto3.NoData")
		require.Equal(t, "42P01", got[0][len(got[0])-1])
		for _, g := range got {
			require.Equal(t, got[len(got)-1], g)
		}
	})
}

// TestOneOfTwoStatementsOfATextIsPreparedAnew has a client close one of two statements of the same text, and prepare it as the table is now.
func TestOneOfTwoStatementsOfATextIsPreparedAnew(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		const text = "SELECT * FROM carried"
		got := onBothSides(t, version, "ALTER TABLE carried ADD COLUMN more int", func(c *client) []string {
			require.Nil(t, prepares(c, "first", text).err)
			require.Nil(t, prepares(c, "second", text).err)
			c.send(&pgproto3.Close{ObjectType: 'S', Name: "second"}, &pgproto3.Sync{})
			return c.answer()
		}, func(c *client) []string {
			c.send(parseOf("second", text), &pgproto3.Describe{ObjectType: 'S', Name: "second"}, &pgproto3.Close{ObjectType: 'S', Name: "second"}, &pgproto3.Sync{})
			return c.answer()
		})
		for _, g := range got {
			require.Equal(t, got[len(got)-1], g)
		}
	})
}

// TestAStatementThatIsClosedAndPreparedInOneBatchIsAsTheTableIs is about a Close that is not answered yet when its statement is prepared again.
func TestAStatementThatIsClosedAndPreparedInOneBatchIsAsTheTableIs(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		const text = "SELECT * FROM carried"
		got := onBothSides(t, version, "ALTER TABLE carried ADD COLUMN more int", func(c *client) []string {
			require.Nil(t, prepares(c, "s", text).err)
			everywhere(func() { require.Nil(t, again(c, "s").err) })
			return nil
		}, func(c *client) []string {
			c.send(&pgproto3.Close{ObjectType: 'S', Name: "s"}, parseOf("s", text), &pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Sync{}, &pgproto3.Sync{}) // behind which it is too late to run it once more
			return append(c.answer(), c.answer()...)
		})
		for _, g := range got {
			require.Equal(t, got[len(got)-1], g)
		}
	})
}

// TestAnUnnamedStatementThatCannotBeMadeAgainUndoesNothing has batches and blocks that do not use it, and come in pieces.
func TestAnUnnamedStatementThatCannotBeMadeAgainUndoesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := opened(t, version)
		direct.ok("DROP TABLE IF EXISTS kept; CREATE TABLE kept (i int); GRANT ALL ON kept TO public")
		c, other := over(t, p), over(t, p)
		require.Nil(t, prepares(c, "put", "INSERT INTO kept VALUES (1)").err)
		require.Nil(t, prepares(c, "begin", "BEGIN").err)
		require.Nil(t, prepares(c, "commit", "COMMIT").err)
		require.Nil(t, prepares(c, "", "SELECT * FROM carried").err)
		direct.ok("DROP TABLE carried")
		everywhere(func() {
			c.send(&pgproto3.Bind{PreparedStatement: "put"}, &pgproto3.Execute{}, &pgproto3.Flush{})
			for range 20 { // in which time it has been tried to make it
				other.ok("SELECT 1")
			}
			require.Nil(t, again(c, "put").err)
		})
		require.Equal(t, "6", direct.ok("SELECT count(*) FROM kept"))
		everywhere(func() {
			for _, name := range []string{"begin", "put", "put", "commit"} {
				require.Nil(t, again(c, name).err)
			}
		})
		require.Equal(t, "12", direct.ok("SELECT count(*) FROM kept"))
		require.Equal(t, "42P01", again(c, "").code())
		direct.ok("DROP TABLE kept")
	})
}

// TestWhatIsSaidOfTheUnnamedStatementIsSaidOfNoOther has a batch begin with a statement that does not exist, while the unnamed one cannot be
// made again.
func TestWhatIsSaidOfTheUnnamedStatementIsSaidOfNoOther(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := opened(t, version)
		c := over(t, p)
		require.Nil(t, prepares(c, "s", "SELECT i FROM carried").err)
		require.Nil(t, prepares(c, "", "SELECT t FROM carried").err)
		direct.ok("DROP TABLE carried")
		everywhere(func() {
			c.send(&pgproto3.Bind{PreparedStatement: "unknown"}, &pgproto3.Execute{}, &pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}, &pgproto3.Sync{})
			require.Equal(t, "26000", c.reply().code())
		})
	})
}

// TestTheUnnamedStatementThatCannotBeMadeAgainFailsAsItWould has a batch in which something comes before the Bind of it.
func TestTheUnnamedStatementThatCannotBeMadeAgainFailsAsItWould(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := opened(t, version)
		c, other := over(t, p), over(t, p)
		require.Nil(t, prepares(c, "", "SELECT * FROM carried").err)
		direct.ok("DROP TABLE carried")
		everywhere(func() {
			c.send(&pgproto3.Flush{})
			for range 20 { // in which time it has been tried to make it
				other.ok("SELECT 1")
			}
			require.Equal(t, "42P01", again(c, "").code())
		})
	})
}
