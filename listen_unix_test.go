//go:build unix

package pgmoor_test

import (
	"fmt"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

func TestAFrozenListenerHoldsNobodyUpForLong(t *testing.T) {
	cluster := pgtest.Shared(t, 18)
	cfg := trusting(cluster)
	cfg.MaxConnections, cfg.Logger = 2, quiet
	p := startProxy(t, cfg)
	name := fmt.Sprint("frozen ", time.Now().UnixNano())
	c, other := overAs(t, p, "app", "application_name", name), overAs(t, p, "app", "application_name", name)
	c.ok("LISTEN a")
	third := overAs(t, p, "app", "application_name", name)
	pooled := other.ok("BEGIN", "SELECT pg_backend_pid()") + "," + third.ok("BEGIN", "SELECT pg_backend_pid()") // what is left is what listens
	rows := cluster.Exec(t, "SELECT pid FROM pg_stat_activity WHERE application_name = '"+name+"' AND pid NOT IN ("+pooled+")")
	require.Len(t, rows, 1)
	other.ok("COMMIT")
	third.ok("COMMIT")
	pid, err := strconv.Atoi(rows[0][0])
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	defer func() { require.NoError(t, syscall.Kill(pid, syscall.SIGCONT)) }()
	c.ask("SELECT 1")
	other.ok("SELECT 1") // does not listen
	other.ask("LISTEN a")
	require.Equal(t, "*pgproto3.RowDescription, *pgproto3.DataRow, SELECT 1, ready I, NOTICE 01000", c.said(5))
	require.Equal(t, "LISTEN", other.next())
	require.Equal(t, "NOTIFY, a:, ready I", c.whole("NOTIFY a"))
	require.EqualValues(t, 1, p.Stats().ListenersLost)
	require.Zero(t, p.Stats().Pinned)
}
