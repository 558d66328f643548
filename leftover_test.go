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

// executes are the messages that run statements without names, up to a Sync.
func executes(texts ...string) (all []pgproto3.FrontendMessage) {
	for _, sql := range texts {
		all = append(all, &pgproto3.Parse{Query: sql}, &pgproto3.Bind{}, &pgproto3.Execute{})
	}
	return append(all, &pgproto3.Sync{})
}

// TestWhatASessionNotifiesItselfIsNotLostWhenItsServerListens has a session that listens be pinned for that, and notify itself before
// its server connection can be made to listen.
func TestWhatASessionNotifiesItselfIsNotLostWhenItsServerListens(t *testing.T) {
	listens(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		for name, do := range map[string]func(c *client){
			"a batch that failed leaves an older unnamed statement": func(c *client) {
				c.ok("PREPARE q AS SELECT 1")
				c.send(append(executes("SELECT 1"), executes("PREPARE q AS SELECT 1", "LISTEN b")...)...)
				require.Nil(t, c.reply().err)
				require.NotNil(t, c.reply().err)
				c.ask("NOTIFY a, 'own'")
			},
			"in the same batch": func(c *client) { c.send(executes("NOTIFY a, 'own'", `LISTEN "`+strings.Repeat("n", 70)+`ö"`)...) },
			"in one text":       func(c *client) { c.ask(`NOTIFY a, 'own'; LISTEN "` + strings.Repeat("n", 70) + `ö"`) },
			"another encoding":  func(c *client) { c.ask("SET client_encoding = latin1; NOTIFY a, 'own'") },
		} {
			for _, waits := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, waits: %v", name, waits), func(t *testing.T) {
					c := over(t, p)
					defer c.conn.Close()
					c.ok("LISTEN a")
					do(c)
					var heard []string
					if waits {
						heard = c.hearsUntil("ready I")
						require.Equal(t, []string{"a:own"}, heard)
					}
					c.ask("NOTIFY a, 'last'")
					require.Equal(t, []string{"a:own", "a:last"}, append(heard, c.hearsUntil("a:last")...))
				})
			}
		}
	})
}

// hearsUntil returns what c is notified of up to a message, or to a silence.
func (c *client) hearsUntil(last string) (heard []string) {
	c.t.Helper()
	for m := ""; m != last && m != "end"; {
		if m = c.nextWithin(5 * time.Second); strings.HasPrefix(m, "a:") {
			heard = append(heard, m)
		}
	}
	return heard
}

// nextWithin is next, and "end" where nothing comes for so long.
func (c *client) nextWithin(d time.Duration) string {
	c.t.Helper()
	require.NoError(c.t, c.conn.SetReadDeadline(time.Now().Add(d)))
	m, err := c.Receive()
	if err != nil {
		return "end"
	}
	return said(m)
}
