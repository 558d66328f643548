package pgmoor_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// TestAChannelThatTheServerRefusesDisturbsNoOtherListener has a client listen to names that are none in its encoding, or in the database's,
// while another one listens by the same connection.
func TestAChannelThatTheServerRefusesDisturbsNoOtherListener(t *testing.T) {
	const latin = "listen_latin"
	for name, row := range map[string]struct{ database, channel, code string }{
		"half a letter":             {"app", "a\xc3", "22021"},
		"no letter":                 {"app", "\xff", "22021"},
		"not one of the database's": {latin, "\xe8\xaa\x9e", "22P05"},
	} {
		t.Run(name, func(t *testing.T) {
			listens(t, 2, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
				cluster.Exec(t, "DROP DATABASE IF EXISTS "+latin+" WITH (FORCE)")
				cluster.Exec(t, "CREATE DATABASE "+latin+" ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
				in := func() *client { return overAs(t, p, "app", "database", row.database, "client_encoding", "UTF8") }
				c, other := in(), in()
				other.ok("LISTEN one")
				for range 3 {
					require.Equal(t, row.code, c.query(`LISTEN "`+row.channel+`"`).code())
					require.Equal(t, "NOTIFY, one:x, ready I", other.whole("NOTIFY one, 'x'"))
				}
				require.Zero(t, p.Stats().ListenersLost)
				c.ok(`LISTEN "é"`)
				require.Equal(t, "NOTIFY, é:x, ready I", c.whole(`NOTIFY "é", 'x'`))
			})
		})
	}
}
