//go:build !race

package pgmoor

import (
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/wire"
)

// canned is a server on a loopback port that gives the same answer, once for every request of known length, and
// allocates nothing for it.
type canned struct {
	l       net.Listener
	request []byte
	answer  []byte
	done    chan struct{}
}

func (c *canned) accept() {
	defer close(c.done)
	conn, err := c.l.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1024)); err != nil { // the startup packet
		return
	}
	if _, err := conn.Write(loginAnswer()); err != nil {
		return
	}
	buf := make([]byte, len(c.request))
	for {
		if _, err := io.ReadFull(conn, buf); err != nil {
			return
		}
		if _, err := conn.Write(c.answer); err != nil {
			return
		}
	}
}

// roundTrips returns how many allocations a transaction costs in the whole process, once it goes on for a while.
func roundTrips(t *testing.T, request, answer []byte, configure func(Config) Config) float64 {
	t.Helper()
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &canned{l: upstream, request: request, answer: answer, done: make(chan struct{})}
	go server.accept()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p, err := New(l, configure(Config{
		Upstream: Upstream{Hosts: []string{upstream.Addr().String()}, SSLMode: "disable"}, MaxConnections: 1, Authenticator: Trust(),
	}))
	require.NoError(t, err)
	served := make(chan error, 1)
	go serveUntilClosed(p, served)
	defer func() {
		require.NoError(t, p.Close())
		require.ErrorIs(t, <-served, ErrProxyClosed)
		require.NoError(t, upstream.Close())
		<-server.done
	}()
	conn, err := net.Dial("tcp", p.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, (&rawClient{Conn: conn}).login())
	buf := make([]byte, len(answer))
	trip := func() {
		if _, err := conn.Write(request); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(conn, buf); err != nil {
			t.Error(err)
		}
	}
	for range 200 {
		trip()
	}
	allocs := testing.AllocsPerRun(2000, trip)
	require.Equal(t, string(answer), string(buf))
	require.Greater(t, p.Stats().Transactions, int64(2000))
	return allocs
}

func serveUntilClosed(p *Proxy, served chan<- error) { served <- p.Serve(context.Background()) }

func TestATransactionCostsNoAllocation(t *testing.T) {
	row, done, ready := backend(wire.DataRow, "\x00\x01\x00\x00\x00\x011"), wire.AppendComplete(nil, "SELECT 1"), wire.AppendReady(nil, 'I')
	group := slices.Concat(
		frontend(wire.Parse, "\x00select 1\x00\x00\x00"), frontend(wire.Bind, "\x00\x00\x00\x00\x00\x00\x00\x00"),
		frontend(wire.Describe, "P\x00"), frontend(wire.Execute, "\x00\x00\x00\x00\x00"), frontend(wire.Sync, ""),
	)
	for name, exchange := range map[string]struct{ request, answer []byte }{
		"Query": {wire.AppendQuery(nil, "select 1"), slices.Concat(row, done, ready)},
		"ParseBindDescribeExecuteSync": {group, slices.Concat(
			backend(wire.ParseComplete, ""), backend(wire.BindComplete, ""), backend(wire.RowDescription, "\x00\x00"), row, done, ready,
		)},
		"LargeQuery": {wire.AppendQuery(nil, "select '"+strings.Repeat("x", 4000)+"'"), slices.Concat(row, done, ready)},
	} {
		t.Run(name, func(t *testing.T) {
			require.Zero(t, roundTrips(t, exchange.request, exchange.answer, func(c Config) Config { return c }))
		})
		t.Run(name+"/PlainIO", func(t *testing.T) {
			require.Zero(t, roundTrips(t, exchange.request, exchange.answer, WithPlainIO))
		})
	}
}
