package pgtest_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// eachVersion runs a test against the shared cluster of every version.
func eachVersion(t *testing.T, test func(t *testing.T, c *pgtest.Cluster)) {
	for _, version := range pgtest.Versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) { test(t, pgtest.Shared(t, version)) })
	}
}

func TestSharedClustersRunTheVersionAskedFor(t *testing.T) {
	for _, version := range pgtest.Versions {
		c := pgtest.Shared(t, version)
		require.Same(t, c, pgtest.Shared(t, version))
		rows := c.Exec(t, "select current_setting('server_version_num')::int / 10000")
		require.Equal(t, [][]string{{fmt.Sprint(version)}}, rows)
	}
}

func TestRolesLogInAsTheirNamesSay(t *testing.T) {
	eachVersion(t, func(t *testing.T, c *pgtest.Cluster) {
		for _, user := range []string{"postgres", "app", "other", "pw_scram", "pw_md5", "pw_plain"} {
			conn, err := pgconn.Connect(t.Context(), c.DSN(user, "app"))
			require.NoError(t, err, user)
			require.NoError(t, conn.Close(t.Context()))
		}
		config, err := pgconn.ParseConfig(c.DSN("pw_md5", "app"))
		require.NoError(t, err)
		config.Password = "wrong"
		_, err = pgconn.ConnectConfig(t.Context(), config)
		require.ErrorContains(t, err, "28P01")
	})
}

func TestTLSCertificateIsGoodForLoopback(t *testing.T) {
	eachVersion(t, func(t *testing.T, c *pgtest.Cluster) {
		config, err := pgconn.ParseConfig(c.DSN("app", "app"))
		require.NoError(t, err)
		config.TLSConfig = &tls.Config{ServerName: "127.0.0.1", RootCAs: c.CACertPool()}
		conn, err := pgconn.ConnectConfig(t.Context(), config)
		require.NoError(t, err)
		require.NoError(t, conn.Close(t.Context()))
	})
}

func TestClusterListensOnAUnixSocket(t *testing.T) {
	eachVersion(t, func(t *testing.T, c *pgtest.Cluster) {
		conn, err := c.Dial(t.Context())
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	})
}

func TestClusterSurvivesRestartsAndKills(t *testing.T) {
	for _, version := range pgtest.Versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			c := pgtest.Start(t, version, "max_connections=17")
			addr := c.Addr()
			c.Exec(t, "create table kept (a int); checkpoint; insert into kept values (1)")
			for _, mode := range []pgtest.StopMode{pgtest.Smart, pgtest.Fast, pgtest.Immediate} {
				require.NoError(t, c.Restart(mode))
			}
			require.NoError(t, c.Kill())
			_, err := net.Dial("tcp", addr)
			require.Error(t, err)
			require.NoError(t, c.Restart(pgtest.Fast))
			require.Equal(t, addr, c.Addr())
			require.Equal(t, [][]string{{"1", "17"}}, c.Exec(t, "select a, current_setting('max_connections') from kept"))
		})
	}
}

func TestAKilledClusterLeavesNoSharedMemory(t *testing.T) {
	for _, version := range pgtest.Versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			c := pgtest.Start(t, version)
			data, err := os.ReadFile(filepath.Join(c.DataDir(), "postmaster.pid"))
			require.NoError(t, err)
			words := strings.Fields(strings.Split(string(data), "\n")[6])
			require.NoError(t, c.Kill())
			if runtime.GOOS == "linux" {
				segments, err := os.ReadFile("/proc/sysvipc/shm")
				require.NoError(t, err)
				require.NotRegexp(t, `(?m)^ *-?\d+ +`+words[1]+` `, string(segments))
			}
			require.NoError(t, c.Restart(pgtest.Fast))
		})
	}
}

func TestKillCutsBusyConnections(t *testing.T) {
	c := pgtest.Start(t, 15)
	config, err := pgconn.ParseConfig(c.DSN("app", "app"))
	require.NoError(t, err)
	config.OnNotice = func(*pgconn.PgConn, *pgconn.Notice) { require.NoError(t, c.Kill()) }
	conn, err := pgconn.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "do $$begin raise notice 'busy'; perform pg_sleep(600); end$$").ReadAll()
	require.Error(t, err)
}

func TestFrozenClusterAnswersAgainAfterThaw(t *testing.T) {
	c := pgtest.Start(t, 18)
	conn, err := pgconn.Connect(t.Context(), c.DSN("app", "app"))
	require.NoError(t, err)
	require.NoError(t, c.Freeze())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = pgconn.Connect(ctx, c.DSN("app", "app"))
	require.Error(t, err)
	require.NoError(t, c.Thaw())
	_, err = conn.Exec(t.Context(), "select 1").ReadAll()
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
}

func TestMissingVersionNamesTheScript(t *testing.T) {
	_, err := pgtest.FindBinaries(3)
	require.ErrorContains(t, err, "scripts/install-postgres.sh")
	t.Setenv("PGMOOR_PG15", t.TempDir())
	_, err = pgtest.FindBinaries(15)
	require.ErrorContains(t, err, "PGMOOR_PG15 is set")
}
