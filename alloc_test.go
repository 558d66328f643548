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
	first   []exchange // what comes before
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
	for _, e := range c.first {
		if !e.serve(conn, make([]byte, len(e.request))) {
			return
		}
	}
	for e, buf := (exchange{c.request, c.answer}), make([]byte, len(c.request)); e.serve(conn, buf); {
	}
}

// An exchange is a request of a given length, and its answer.
type exchange struct{ request, answer []byte }

func (e exchange) serve(conn net.Conn, buf []byte) bool {
	if _, err := io.ReadFull(conn, buf); err != nil {
		return false
	}
	_, err := conn.Write(e.answer)
	return err == nil
}

// roundTrips returns how many allocations a transaction costs in the whole process, once it goes on for a while.
func roundTrips(t *testing.T, request, answer []byte, configure func(Config) Config, first ...exchange) float64 {
	t.Helper()
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &canned{l: upstream, request: request, answer: answer, first: first, done: make(chan struct{})}
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
	var conn net.Conn
	for i := range max(1, len(first)) { // each of first is another client's, the last of them the one's that goes on
		conn, err = net.Dial("tcp", p.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, (&rawClient{Conn: conn}).login())
		if i < len(first) {
			_, err = conn.Write(first[i].request)
			require.NoError(t, err)
			_, err = io.ReadFull(conn, make([]byte, len(first[i].answer)))
			require.NoError(t, err)
		}
	}
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

// TestABindToANamedStatementCostsNoAllocation has two clients whose statements have the same name: the second one's has
// another name on the server connection.
func TestABindToANamedStatementCostsNoAllocation(t *testing.T) {
	sync, ready := frontend(wire.Sync, ""), wire.AppendReady(nil, 'I')
	prepare := func(sql string) exchange {
		return exchange{
			slices.Concat(frontend(wire.Parse, "name\x00"+sql+"\x00\x00\x00"), sync),
			slices.Concat(backend(wire.ParseComplete, ""), ready),
		}
	}
	request := slices.Concat(frontend(wire.Bind, "\x00name\x00\x00\x00\x00\x00\x00\x00"), frontend(wire.Execute, "\x00\x00\x00\x00\x00"), sync)
	answer := slices.Concat(backend(wire.BindComplete, ""), wire.AppendComplete(nil, "SELECT 1"), ready)
	same := func(c Config) Config { return c }
	require.Zero(t, roundTrips(t, request, answer, same, prepare("select 1")))
	require.Zero(t, roundTrips(t, request, answer, same, prepare("select 1"), prepare("select 2")))
	require.Zero(t, roundTrips(t, request, answer, WithPlainIO, prepare("select 1"), prepare("select 2")))
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
