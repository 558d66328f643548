package main

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

func limits(t *testing.T, args ...string) *options {
	t.Helper()
	o, err := parseOptions(append([]string{"-upstream", "postgres://u:p@db"}, args...), io.Discard)
	require.NoError(t, err)
	return o
}

func TestEveryLimitHasAFlag(t *testing.T) {
	c := limits(
		t, "-max-connections", "30", "-max-connections-percent", "60", "-max-idle-connections-percent", "20", "-max-connections-per-database", "9",
		"-max-connections-per-user", "8", "-min-connections", "2", "-max-waiting", "100", "-max-clients", "1000", "-connection-rate", "50",
		"-max-handshakes", "40", "-init-query", "SET work_mem TO '8MB'", "-max-server-lifetime", "1h", "-idle-client-timeout", "2h", "-max-client-lifetime", "3h",
	).config
	want := pgmoor.Config{
		MaxConnections: 30, MaxConnectionsPercent: 60, MaxIdleConnectionsPercent: 20, MaxConnectionsPerDatabase: 9, MaxConnectionsPerUser: 8,
		MinConnections: 2, MaxWaiting: 100, MaxClients: 1000, ConnectionRate: 50, MaxHandshakes: 40, InitQuery: "SET work_mem TO '8MB'",
		MaxServerLifetime: time.Hour, IdleClientTimeout: 2 * time.Hour, MaxClientLifetime: 3 * time.Hour,
		MaxOpening: pgmoor.DefaultMaxOpening, MaxStatements: pgmoor.DefaultMaxStatements, BorrowTimeout: pgmoor.DefaultBorrowTimeout,
		IdleTimeout: pgmoor.DefaultIdleTimeout, HandshakeTimeout: pgmoor.DefaultHandshakeTimeout, UnpinInterval: pgmoor.DefaultUnpinInterval,
		Upstream: c.Upstream, Secrets: c.Secrets, Pinning: pgmoor.DefaultPinning{},
	}
	require.Equal(t, want, c)
}

func TestLimitsThatAreNotGivenAreThoseOfThePackage(t *testing.T) {
	c := limits(t).config
	require.Equal(t, pgmoor.DefaultIdleClientTimeout, c.IdleClientTimeout)
	require.Equal(t, pgmoor.DefaultMaxClientLifetime, c.MaxClientLifetime)
	require.Equal(t, pgmoor.DefaultMaxServerLifetime, c.MaxServerLifetime)
	require.Zero(t, c.MaxIdleConnectionsPercent)
	require.Zero(t, c.MaxClients)
	require.Nil(t, c.Budget)
}

func TestNeverIsZero(t *testing.T) {
	c := limits(t, "-max-server-lifetime", "0", "-idle-client-timeout", "0", "-max-client-lifetime", "0", "-max-idle-connections-percent", "0").config
	require.Negative(t, c.MaxServerLifetime)
	require.Negative(t, c.IdleClientTimeout)
	require.Negative(t, c.MaxClientLifetime)
	require.Equal(t, pgmoor.NoIdle, c.MaxIdleConnectionsPercent)
}

func TestAPercentageTakesThePlaceOfTheDefault(t *testing.T) {
	o := limits(t, "-max-connections-percent", "50")
	require.Zero(t, o.config.MaxConnections)
	require.Equal(t, "50% of what the server has", o.allowance())
	o = limits(t, "-max-connections-percent", "50", "-max-connections", "20")
	require.Equal(t, 20, o.config.MaxConnections)
	require.Equal(t, "20 server connections and 50% of what the server has", o.allowance())
}

func TestInstancesShareTheConnections(t *testing.T) {
	o := limits(t, "-max-connections", "90", "-instances", "pgmoor-pods", "-surge", "1")
	require.Equal(t, &pgmoor.StaticShare{Limit: 90, Service: "pgmoor-pods", Surge: 1}, o.config.Budget)
	require.Equal(t, "90 server connections, shared with other instances (-instances pgmoor-pods)", o.allowance())
	o = limits(t, "-max-connections", "90", "-instances", "3")
	require.Equal(t, &pgmoor.StaticShare{Limit: 90, Instances: 3}, o.config.Budget)
}
