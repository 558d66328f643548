package pgmoor_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// answer returns the kinds of the messages up to the next ReadyForQuery, and the rows.
func (c *client) answer() []string { c.t.Helper(); return c.answerTo(nil) }

// answerTo is answer up to the end of the answer to a message that was flushed.
func (c *client) answerTo(flushed pgproto3.FrontendMessage) (all []string) {
	c.t.Helper()
	require.NoError(c.t, c.conn.SetReadDeadline(time.Now().Add(patience)))
	for {
		m, err := c.Receive()
		require.NoError(c.t, err)
		all = append(all, fmt.Sprintf("%T", m))
		switch m := m.(type) {
		case *pgproto3.DataRow:
			all = append(all, fmt.Sprintf("%q", m.Values))
		case *pgproto3.RowDescription:
			for _, f := range m.Fields {
				all = append(all, string(f.Name))
			}
		case *pgproto3.ErrorResponse:
			all = append(all, m.Message)
		case *pgproto3.ReadyForQuery:
			return append(all, string(m.TxStatus))
		}
		switch m.(type) {
		case *pgproto3.ErrorResponse, *pgproto3.ParseComplete, *pgproto3.BindComplete, *pgproto3.CommandComplete:
			if flushed != nil {
				return all
			}
		case *pgproto3.RowDescription:
			if _, describe := flushed.(*pgproto3.Describe); describe {
				return all
			}
		}
	}
}

// opened is carrying, with all of the proxy's connections open.
func opened(t *testing.T, version int) (*pgmoor.Proxy, *client) {
	t.Helper()
	p, direct := carrying(t, version, 0)
	holders := []*client{over(t, p), over(t, p), over(t, p)}
	for _, h := range holders {
		h.ok("BEGIN")
	}
	for _, h := range holders {
		h.ok("ROLLBACK")
	}
	return p, direct
}

// everywhere runs f, which takes one turn, on each of the proxy's connections, which are lent in turn.
func everywhere(f func()) {
	for range 3 {
		f()
	}
}

// TestAStatementFromBeforeAChangeIsHealed is about sessions that prepare what other sessions prepared before the database changed:
// they must not see the difference.
func TestAStatementFromBeforeAChangeIsHealed(t *testing.T) {
	const text = "SELECT * FROM carried"
	describe := &pgproto3.Describe{ObjectType: 'S', Name: "all"}
	for name, use := range map[string]func(c *client) []string{
		"described": func(c *client) []string {
			c.send(parseOf("all", text), describe, &pgproto3.Sync{})
			return c.answer()
		},
		"in one batch": func(c *client) []string {
			c.send(append([]pgproto3.FrontendMessage{parseOf("all", text)}, run("all")...)...)
			return c.answer()
		},
		"bound before it fails": func(c *client) []string {
			require.Nil(c.t, prepares(c, "other", "SELECT 'other'").err)
			c.send(&pgproto3.Bind{DestinationPortal: "p", PreparedStatement: "other"}, parseOf("all", text),
				&pgproto3.Bind{PreparedStatement: "all"}, &pgproto3.Describe{ObjectType: 'P'}, &pgproto3.Execute{}, &pgproto3.Execute{Portal: "p"}, &pgproto3.Sync{})
			return c.answer()
		},
		"behind unnamed ones that replace each other": func(c *client) []string {
			require.Nil(c.t, prepares(c, "other", "SELECT 'other'").err)
			c.send(&pgproto3.Bind{DestinationPortal: "o", PreparedStatement: "other"}, parseOf("", "SELECT 'A'"), &pgproto3.Bind{DestinationPortal: "p"},
				parseOf("", "SELECT 'B'"), &pgproto3.Bind{DestinationPortal: "q"}, parseOf("all", text), &pgproto3.Bind{PreparedStatement: "all"}, &pgproto3.Execute{},
				&pgproto3.Execute{Portal: "o"}, &pgproto3.Execute{Portal: "p"}, &pgproto3.Execute{Portal: "q"}, &pgproto3.Sync{})
			return c.answer()
		},
		"with a Flush": func(c *client) []string {
			c.send(parseOf("all", text), &pgproto3.Flush{}, describe, &pgproto3.Flush{}, &pgproto3.Sync{})
			return c.answer()
		},
		"with a Flush, as it comes": func(c *client) (all []string) {
			for _, m := range []pgproto3.FrontendMessage{parseOf("all", text), describe, &pgproto3.Bind{PreparedStatement: "all"}, &pgproto3.Execute{}} {
				c.send(m, &pgproto3.Flush{})
				all = append(all, c.answerTo(m)...)
			}
			c.send(&pgproto3.Sync{})
			return append(all, c.answer()...)
		},
		"in a transaction": func(c *client) []string {
			c.ok("BEGIN")
			c.send(append([]pgproto3.FrontendMessage{parseOf("all", text), describe}, run("all")...)...)
			all := c.answer()
			c.ok("COMMIT")
			return all
		},
		"behind another statement": func(c *client) []string {
			c.send(append([]pgproto3.FrontendMessage{parseOf("first", "SELECT 1"), &pgproto3.Bind{PreparedStatement: "first"}, &pgproto3.Execute{}, parseOf("all", text), describe}, run("all")...)...)
			return c.answer()
		},
		"later": func(c *client) []string {
			c.send(parseOf("all", text), &pgproto3.Sync{})
			parsed := c.answer()
			c.send(run("all")...)
			return append(parsed, c.answer()...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, version int) {
				p, direct := opened(t, version)
				old := over(t, p)
				require.Nil(t, prepares(old, "all", text).err)
				everywhere(func() { require.Nil(t, again(old, "all").err) })
				direct.ok("ALTER TABLE carried ADD COLUMN more int")
				want := use(directly(t, pgtest.Shared(t, version), "postgres"))
				require.NotContains(t, want, "*pgproto3.ErrorResponse")
				everywhere(func() {
					c := over(t, p)
					require.Equal(t, want, use(c))
					require.Nil(t, again(c, "all").err)
				})
				if !strings.HasPrefix(name, "in a trans") && !strings.HasPrefix(name, "behind") { // where it is prepared anew at once
					require.Positive(t, p.Stats().StatementsHealed)
				}
				pinnedBy(t, p)
			})
		})
	}
}

// TestAStatementThatItsOwnSessionDroppedIsHealed is about drivers that drop all statements when they see the database change, and prepare
// them again: the plans that were made for them before, on other server connections, are not theirs any more.
func TestAStatementThatItsOwnSessionDroppedIsHealed(t *testing.T) {
	const text = "SELECT * FROM carried"
	for _, drop := range []string{"DEALLOCATE ALL", "DISCARD ALL", "DEALLOCATE all_of_it"} {
		t.Run(drop, func(t *testing.T) {
			onBoth(t, func(t *testing.T, version int) {
				p, direct := opened(t, version)
				c := over(t, p)
				require.Nil(t, prepares(c, "all_of_it", text).err)
				everywhere(func() { require.Nil(t, again(c, "all_of_it").err) })
				direct.ok("ALTER TABLE carried ADD COLUMN more int")
				c.ok(drop)
				require.Nil(t, prepares(c, "all_of_it", text).err)
				for range 2 {
					everywhere(func() { require.Nil(t, again(c, "all_of_it").err) })
				}
				pinnedBy(t, p)
			})
		})
	}
}

// TestAStatementWhoseTypeWasMadeAgainIsHealed is about plans that name a type which is not there any more.
func TestAStatementWhoseTypeWasMadeAgainIsHealed(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := opened(t, version)
		const text = "SELECT 'b'::carried_type"
		for range 3 {
			direct.ok("DROP TYPE IF EXISTS carried_type; CREATE TYPE carried_type AS ENUM ('a', 'b')")
			everywhere(func() {
				c := over(t, p)
				c.send(parseOf("s", text), &pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Sync{})
				require.Nil(t, c.reply().err)
				got := again(c, "s")
				require.Nil(t, got.err)
				require.Equal(t, []string{"b"}, got.rows)
			})
		}
		require.Positive(t, p.Stats().StatementsHealed)
		pinnedBy(t, p)
	})
}

// TestWhatHasRunIsNotRunAgain has functions raise what the server says of plans, and texts that came from another session.
func TestWhatHasRunIsNotRunAgain(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := opened(t, version)
		direct.ok("CREATE TABLE IF NOT EXISTS ran (i int); GRANT ALL ON ran TO public; CREATE SEQUENCE IF NOT EXISTS ran_seq; GRANT ALL ON SEQUENCE ran_seq TO public")
		for _, code := range []string{"XX000", "26000", "0A000"} {
			direct.ok("CREATE OR REPLACE FUNCTION raises(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('ran_seq'); IF n > 2 THEN RAISE 'no' USING ERRCODE = '" + code + "'; END IF; RETURN n; END $$")
			old, c := over(t, p), over(t, p)
			for _, sql := range []string{"SELECT n, raises(n) FROM generate_series(1, 5) n", "SELECT raises(3)"} {
				old.ok("PREPARE q AS "+sql, "PREPARE other AS SELECT 1")
				everywhere(func() { require.Equal(t, code, old.query("EXECUTE q").code()) })
				c.ok("PREPARE q AS " + sql)
				everywhere(func() {
					direct.ok("SELECT setval('ran_seq', 1)")
					require.Equal(t, code, c.query("EXECUTE q").code())
					require.Equal(t, map[bool]string{true: "4", false: "2"}[sql[7] == 'n'], direct.ok("SELECT last_value FROM ran_seq"))
				})
				old.ok("DEALLOCATE ALL")
				c.ok("DEALLOCATE ALL")
			}
		}
		require.Zero(t, p.Stats().StatementsHealed)
	})
}

// TestWhatIsNotHealed is about errors that a client would see directly.
func TestWhatIsNotHealed(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := opened(t, version)
		c, other := over(t, p), over(t, p)
		const text = "SELECT * FROM carried"
		require.Nil(t, prepares(other, "all", text).err)
		everywhere(func() { require.Nil(t, again(other, "all").err) })
		c.send(parseOf("all", text), &pgproto3.Describe{ObjectType: 'S', Name: "all"}, &pgproto3.Sync{})
		require.Nil(t, c.reply().err)
		direct.ok("ALTER TABLE carried ADD COLUMN more int")
		everywhere(func() { require.Equal(t, "0A000", again(c, "all").code(), "it was told the columns") })

		c.ok("BEGIN")
		require.Nil(t, prepares(c, "inside", text).err)
		got := again(c, "inside")
		c.ok("ROLLBACK")
		if got.err != nil {
			require.Equal(t, "0A000", got.code())
		}
		everywhere(func() { require.Nil(t, again(c, "inside").err) })
		pinnedBy(t, p)
	})
}

// TestExecuteOfAStatementFromBeforeAChangeIsHealed is the same for PREPARE and EXECUTE.
func TestExecuteOfAStatementFromBeforeAChangeIsHealed(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := opened(t, version)
		old, c := over(t, p), over(t, p)
		old.ok("PREPARE q AS SELECT * FROM carried")
		everywhere(func() { old.ok("EXECUTE q") })
		direct.ok("ALTER TABLE carried ADD COLUMN more int")
		c.ok("PREPARE q AS SELECT * FROM carried")
		for range 6 {
			c.ok("EXECUTE q")
		}
		require.Positive(t, p.Stats().StatementsHealed)
		direct.ok("ALTER TABLE carried ADD COLUMN again int")
		codes := map[string]bool{}
		for range 6 {
			codes[c.query("EXECUTE q").code()] = true
		}
		require.Contains(t, codes, "0A000", "what was prepared for this very session")
		pinnedBy(t, p)
	})
}

// TestAStatementThatAnotherSessionHasDroppedIsHealed is about DEALLOCATE where no proxy can see it.
func TestAStatementThatAnotherSessionHasDroppedIsHealed(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := opened(t, version)
		c, other := over(t, p), over(t, p)
		require.Nil(t, prepares(c, "s", "SELECT 'mine'").err)
		c.ok("PREPARE q AS SELECT 'q'")
		everywhere(func() {
			require.Nil(t, again(c, "s").err)
			c.ok("EXECUTE q")
			c.ok("SELECT 1")
		})
		everywhere(func() { other.ok("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$") })
		everywhere(func() {
			require.Equal(t, []string{"mine"}, again(c, "s").rows)
			require.Equal(t, []string{"q"}, c.query("EXECUTE q").rows)
			c.ok("SELECT 1")
		})
		require.Positive(t, p.Stats().StatementsHealed)
		pinnedBy(t, p)
	})
}
