package memconn_test

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/memconn"
)

var _ net.Listener = (*memconn.Listener)(nil)

// accepted is what Accept or DialContext returned.
type accepted struct {
	conn net.Conn
	err  error
}

func startConn(f func() (net.Conn, error)) <-chan accepted {
	done := make(chan accepted, 1)
	run := func() {
		c, err := f()
		done <- accepted{c, err}
	}
	go run()
	return done
}

func TestDialedAndAcceptedConnsAreTheTwoEndsOfOne(t *testing.T) {
	l := memconn.Listen()
	require.Equal(t, "in-process", l.Addr().String())
	server := startConn(l.Accept)
	client, err := l.DialContext(t.Context(), "tcp", "ignored:1")
	require.NoError(t, err)
	s := <-server
	require.NoError(t, s.err)
	_, err = client.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, client.Close())
	require.NoError(t, l.Close())
	in, err := io.ReadAll(s.conn)
	require.NoError(t, err)
	require.Equal(t, "hello", string(in))
}

func TestClosingTheListenerEndsAcceptAndDial(t *testing.T) {
	for name, f := range map[string]func(*memconn.Listener) (net.Conn, error){
		"Accept": (*memconn.Listener).Accept,
		"Dial": func(l *memconn.Listener) (net.Conn, error) {
			return l.DialContext(context.Background(), "", "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := memconn.Listen()
				done := startConn(func() (net.Conn, error) { return f(l) })
				synctest.Wait()
				require.NoError(t, l.Close())
				require.NoError(t, l.Close())
				require.ErrorIs(t, (<-done).err, net.ErrClosed)
				_, err := f(l)
				require.ErrorIs(t, err, net.ErrClosed)
			})
		})
	}
}

func TestDialGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memconn.Listen()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := l.DialContext(ctx, "", "")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(began))
		_, err = l.DialContext(ctx, "", "")
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}
