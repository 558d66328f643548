package aws_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// certificate is one for "localhost".
func certificate(t testing.TB) *tls.Config {
	t.Helper()
	ca, err := pgtest.NewCA()
	require.NoError(t, err)
	cert, key, err := ca.Issue("localhost")
	require.NoError(t, err)
	pair, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

// serve runs a proxy with cfg, whose server is a fake that greet lets in, until the test ends. It returns the proxy's address.
func serve(t testing.TB, cfg pgmoor.Config, greet func(*pgtest.FakeConn) error) string {
	t.Helper()
	server := &pgtest.FakeServer{Greet: greet, Handle: answer}
	upstream, front := listen(t), listen(t)
	server.Serve(upstream)
	cfg.TLS, cfg.Upstream.Hosts = certificate(t), []string{upstream.Addr().String()}
	if cfg.Upstream.SSLMode == "" {
		cfg.Upstream.SSLMode = "disable"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p, err := pgmoor.New(front, cfg)
	require.NoError(t, err)
	served := make(chan error, 1)
	go serveProxy(p, served)
	t.Cleanup(func() {
		require.NoError(t, p.Close())
		require.ErrorIs(t, <-served, pgmoor.ErrProxyClosed)
		require.NoError(t, server.Close())
	})
	return front.Addr().String()
}

func serveProxy(p *pgmoor.Proxy, served chan<- error) { served <- p.Serve(context.Background()) }

// answer answers every query with nothing.
func answer(c *pgtest.FakeConn) {
	for {
		m, err := c.Backend.Receive()
		if err != nil {
			return
		}
		if _, ok := m.(*pgproto3.Query); ok {
			err = c.Send(&pgproto3.EmptyQueryResponse{}, &pgproto3.ReadyForQuery{TxStatus: 'I'})
		}
		if err != nil {
			return
		}
	}
}

// logIn connects with a password over TLS, and returns the SQLSTATE of what goes wrong.
func logIn(t testing.TB, address, user, password string) string {
	t.Helper()
	cfg, err := pgconn.ParseConfig("postgres://" + address + "/d?sslmode=require")
	require.NoError(t, err)
	cfg.User, cfg.Password = user, password
	conn, err := pgconn.ConnectConfig(context.WithoutCancel(t.Context()), cfg)
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	require.NoError(t, err)
	require.NoError(t, conn.Close(context.WithoutCancel(t.Context())))
	return ""
}
