package pgmoor_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// TestARestartIsSurvivedByStatementsAndListeners restarts a server under clients that have statements of every kind and listen.
func TestARestartIsSurvivedByStatementsAndListeners(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cluster := pgtest.Start(t, version)
		cfg := trusting(cluster)
		cfg.MaxConnections, cfg.Logger = 2, quiet
		p := startProxy(t, cfg)
		c, n := over(t, p), over(t, p)
		require.Nil(t, c.synced(parseOf("s", "SELECT 1")).err)
		require.Nil(t, c.synced(parseOf("", "SELECT 2")).err)
		c.ok("PREPARE q AS SELECT 3")
		require.Nil(t, c.synced(parseOf("", "SELECT 2")).err)
		listener := over(t, p)
		listener.ok("LISTEN a", "PREPARE q AS SELECT 4")
		require.NoError(t, cluster.Restart(pgtest.Immediate))
		require.Equal(t, "NOTICE 01000", listener.said(1))
		require.Equal(t, []string{"2"}, c.synced(&pgproto3.Bind{}, &pgproto3.Execute{}).rows)
		require.Equal(t, []string{"1"}, c.synced(&pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}).rows)
		require.Equal(t, "3", c.ok("EXECUTE q"))
		n.ok("NOTIFY a, 'x'")
		require.Equal(t, "a:x", listener.said(1))
		require.Equal(t, "4", listener.ok("EXECUTE q"))
		st := p.Stats()
		require.Zero(t, st.Pinned)
		require.EqualValues(t, 1, st.ListenersLost)
	})
}
