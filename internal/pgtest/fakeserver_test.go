package pgtest_test

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/memconn"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

func timeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// slowly answers every query after an hour.
func slowly(c *pgtest.FakeConn) {
	c.Answer(func(sql string) []pgproto3.BackendMessage {
		time.Sleep(time.Hour)
		return []pgproto3.BackendMessage{&pgproto3.CommandComplete{CommandTag: []byte(sql)}, &pgproto3.ReadyForQuery{TxStatus: 'I'}}
	})
}

func TestFakeServerWorksInMemoryOnAFakeClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memconn.Listen()
		s := &pgtest.FakeServer{Handle: slowly}
		s.Serve(l)
		dial := func(ctx context.Context) (net.Conn, error) { return l.DialContext(ctx, "", "") }
		start := time.Now()
		script := parse(t, "Query \"one\"\nQuery \"two\"\nwait\nTerminate\nwait EOF\n")
		transcript, err := script.Run(t.Context(), dial, pgtest.Options{User: "u", Database: "d"})
		require.NoError(t, err)
		require.Equal(t, 2*time.Hour, time.Since(start))
		require.Contains(t, transcript, `CommandComplete "two\x00"`)
		require.Equal(t, 1, s.Accepted())
		require.NoError(t, s.Close())
	})
}

func TestFakeServerMayRefuseAndClosesItsConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &pgtest.FakeServer{Greet: func(c *pgtest.FakeConn) error {
		if err := c.ReceiveStartup(); err != nil {
			return err
		}
		require.Equal(t, "u", c.Startup["user"])
		return c.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "53300", Message: "full"})
	}, Handle: func(c *pgtest.FakeConn) { c.Answer(nil) }}
	s.Serve(l)
	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	frontend := pgproto3.NewFrontend(conn, conn)
	frontend.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "u"}})
	require.NoError(t, frontend.Flush())
	m, err := frontend.Receive()
	require.NoError(t, err)
	require.Equal(t, "53300", m.(*pgproto3.ErrorResponse).Code)
	require.NoError(t, s.Close())
	_, err = frontend.Receive()
	require.Error(t, err)
}
