package pgmoor_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// TestTheUnnamedStatementAfterABatchThatFailed is about which one the session has when those that were to replace it were skipped:
// it is the same on every server connection, and nobody is pinned for it.
func TestTheUnnamedStatementAfterABatchThatFailed(t *testing.T) {
	parse := func(sql string) []pgproto3.FrontendMessage {
		return []pgproto3.FrontendMessage{&pgproto3.Parse{Query: sql}}
	}
	ran := func(sql string) []pgproto3.FrontendMessage {
		return append(parse(sql), &pgproto3.Bind{}, &pgproto3.Execute{})
	}
	bad := []pgproto3.FrontendMessage{&pgproto3.Bind{PreparedStatement: "no such"}}
	sync := []pgproto3.FrontendMessage{&pgproto3.Sync{}}
	const fails = "SELECT 1 / (SELECT 0)"
	for name, tc := range map[string]struct {
		batch [][]pgproto3.FrontendMessage
		want  string // the row, or the code of the error
	}{
		"the one before it":         {[][]pgproto3.FrontendMessage{ran("SELECT 'b'"), ran("SELECT 'c'"), bad, ran("SELECT 'd'")}, "c"},
		"of two that are skipped":   {[][]pgproto3.FrontendMessage{ran("SELECT 'b'"), bad, ran("SELECT 'c'"), ran("SELECT 'd'")}, "b"},
		"from before the batch":     {[][]pgproto3.FrontendMessage{bad, parse("SELECT 'b'"), parse("SELECT 'c'")}, "a"},
		"the same text again":       {[][]pgproto3.FrontendMessage{ran("SELECT 'b'"), ran("SELECT 'b'"), bad, ran("SELECT 'b'"), ran("SELECT 'c'")}, "b"},
		"one that cannot be run":    {[][]pgproto3.FrontendMessage{ran(fails), parse("SELECT 'c'")}, "22012"},
		"one that cannot be parsed": {[][]pgproto3.FrontendMessage{ran("SELECT 'b'"), parse("SELEC 'c'"), parse("SELECT 'd'")}, "26000"},
		"in the first of batches":   {[][]pgproto3.FrontendMessage{ran("SELECT 'b'"), bad, parse("SELECT 'c'"), sync, bad, parse("SELECT 'd'")}, "b"},
		"in the last of batches":    {[][]pgproto3.FrontendMessage{ran("SELECT 'b'"), sync, bad, parse("SELECT 'c'"), parse("SELECT 'd'")}, "b"},
		"closed, then skipped":      {[][]pgproto3.FrontendMessage{{&pgproto3.Close{ObjectType: 'S'}}, bad, parse("SELECT 'c'")}, "26000"},
		"a Close that is skipped":   {[][]pgproto3.FrontendMessage{ran("SELECT 'b'"), bad, {&pgproto3.Close{ObjectType: 'S'}}, parse("SELECT 'c'")}, "b"},
		"many that are read one by one": {slices.Concat(slices.Repeat([][]pgproto3.FrontendMessage{
			ran("SELECT 'b'"), ran("SELECT 'c'"), {&pgproto3.Flush{}},
		}, 100), [][]pgproto3.FrontendMessage{bad, ran("SELECT 'd'")}), "c"},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, version int) {
				p := turning(t, pgtest.Shared(t, version), 3)
				c := over(t, p)
				require.Nil(t, c.prepare("SELECT 'a'").err)
				batch := append(slices.Concat(tc.batch...), sync...)
				c.send(batch...)
				for range strings.Count(name, "batches") + 1 {
					c.reply()
				}
				for range 4 {
					r := c.run()
					require.Equal(t, tc.want, r.code()+strings.Join(r.rows, ""))
				}
				require.Empty(t, p.Stats().PinsTotal)
			})
		})
	}
}
