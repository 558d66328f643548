package main

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/examples/internal/demodb"
)

func TestAnAddressIsAdmittedAgainInTheNextInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &limited{limit: 2, interval: time.Second}
		one := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}
		other := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 1}
		require.True(t, l.admit(one))
		require.True(t, l.admit(one))
		require.False(t, l.admit(one))
		require.True(t, l.admit(other))
		time.Sleep(time.Second)
		require.True(t, l.admit(one))
	})
}

func TestTheProxyRefusesWhatIsBeyondTheLimit(t *testing.T) {
	db, err := demodb.Open(t.Context(), "", func(string) {})
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	p, err := newProxy("127.0.0.1:0", 1, db)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx) }()
	defer func() { cancel(); <-served }()

	cfg, err := pgx.ParseConfig("postgres://" + db.User + ":" + db.Password + "@" + p.Addr().String() + "/" + db.Database + "?sslmode=disable")
	require.NoError(t, err)
	c, err := pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	defer c.Close(ctx)
	_, err = pgx.ConnectConfig(t.Context(), cfg)
	require.Error(t, err)
}
