//go:build !race

package pgmoor

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/memconn"
)

// lender returns a pool with one idle connection that nobody serves, and a session of it.
func lender(t testing.TB) (*pool, *Session) {
	t.Helper()
	p, err := New(nil, Config{Upstream: Upstream{Hosts: []string{"nowhere"}}, MaxConnections: 1})
	require.NoError(t, err)
	pl, err := p.pool(poolKey{database: "d", user: "u"})
	require.NoError(t, err)
	var ends []net.Conn
	conn := func() net.Conn {
		near, far := memconn.Pipe()
		ends = append(ends, near, far)
		return near
	}
	require.True(t, pl.takeToken(false)) // so that no other is opened
	sc := newServer(&loggedIn{conn: conn()}, pl)
	s := newSession(p.env, &Client{conn: conn(), leaveSlot: func() {}}, pl)
	pl.mu.Lock()
	pl.servers, pl.idle = 1, append(pl.idle, sc)
	sc.idleSince = p.env.now()
	pl.mu.Unlock()
	t.Cleanup(func() {
		pl.mu.Lock()
		pl.servers, pl.idle = 0, nil
		pl.mu.Unlock()
		require.NoError(t, p.Close())
		for _, c := range ends {
			require.NoError(t, c.Close())
		}
	})
	return pl, s
}

func TestBorrowingAllocatesNothing(t *testing.T) {
	pl, s := lender(t)
	require.Zero(t, testing.AllocsPerRun(1000, func() { pl.giveBack(pl.borrow(s), nil) }))
}

// BenchmarkBorrow is a connection lent and given back that nobody else wants.
func BenchmarkBorrow(b *testing.B) {
	pl, s := lender(b)
	b.ReportAllocs()
	for b.Loop() {
		pl.giveBack(pl.borrow(s), nil)
	}
}

// BenchmarkWait is one of 5,000 sessions that wait for a connection: it joins the queue, and in its turn leaves it with the connection.
// What a session then does with it is not in it.
func BenchmarkWait(b *testing.B) {
	pl, s := lender(b)
	sc := pl.borrow(s)
	for range 5000 {
		require.Nil(b, pl.borrow(newSession(s.env, s.client, pl)))
	}
	b.ReportAllocs()
	for b.Loop() {
		next := pl.release(sc, nil)
		if pl.borrow(next) != nil {
			b.Fatal("a connection was lent twice")
		}
	}
}
