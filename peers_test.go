package pgmoor_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// twins are two instances in front of one server that know each other by the numbers 1 and 255.
func twins(t testing.TB, cluster *pgtest.Cluster) (first, last *pgmoor.Proxy) {
	t.Helper()
	addresses, listeners := map[uint8]string{}, map[uint8]net.Listener{}
	for _, number := range []uint8{1, 255} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		addresses[number], listeners[number] = l.Addr().String(), l
	}
	var all []*pgmoor.Proxy
	for _, number := range []uint8{1, 255} {
		cfg := trusting(cluster)
		cfg.Logger, cfg.Peers = quiet, &pgmoor.StaticPeers{Number: number, Addresses: addresses}
		p, err := pgmoor.New(listeners[number], cfg)
		require.NoError(t, err)
		served := make(chan error, 1)
		go serve(p, served)
		t.Cleanup(func() {
			require.NoError(t, p.Close())
			require.ErrorIs(t, <-served, pgmoor.ErrProxyClosed)
		})
		all = append(all, p)
	}
	return all[0], all[1]
}

// newest logs in with protocol 3.2, where the server has it.
func newest(t testing.TB, p *pgmoor.Proxy) *client {
	t.Helper()
	c := newClient(t, dialTCP(t, p.Addr().String()))
	c.send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion32, Parameters: map[string]string{"user": "app", "database": "app"}})
	require.EqualValues(t, 'I', c.reply().status)
	return c
}

func TestACancelRequestThatArrivesAtAnotherInstanceCancelsTheRightQuery(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cluster := pgtest.Shared(t, version)
		first, last := twins(t, cluster)
		clients := map[*client]*pgmoor.Proxy{over(t, first): last, newest(t, first): last, over(t, last): first, newest(t, last): first}
		key := map[int]int{}
		for c := range clients {
			c.ask("SELECT pg_sleep(1234)")
			key[len(c.key)]++
		}
		if version >= 18 {
			require.Equal(t, map[int]int{4: 2, 32: 2}, key)
		}
		direct := directly(t, cluster, "postgres")
		asleep := func() string {
			return direct.ok("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%(1234)%'")
		}
		requireSoon(t, func() bool { return asleep() == "4" })
		left := len(clients)
		for c, other := range clients {
			c.requestCancel(dialTCP(t, other.Addr().String()))
			require.Equal(t, "57014", c.reply().code())
			left--
			require.Equal(t, fmt.Sprint(left), asleep(), "nobody else's query was cancelled")
		}
		require.EqualValues(t, 4, first.Stats().Cancels+last.Stats().Cancels)
		require.EqualValues(t, 4, first.Stats().CancelsPassedOn+last.Stats().CancelsPassedOn)
	})
}

// A mirror is a Peers all of whose peers are one proxy.
type mirror struct {
	self atomic.Int32
	dial func(ctx context.Context) (net.Conn, error)
	mu   sync.Mutex
	now  int
	most int
	all  int
}

func (m *mirror) Self() uint8 { return uint8(m.self.Load()) }

func (m *mirror) DialPeer(ctx context.Context, _ uint8) (net.Conn, error) {
	m.count(1)
	defer m.count(-1)
	return m.dial(ctx)
}

func (m *mirror) count(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now += n
	m.most = max(m.most, m.now)
	m.all += max(n, 0)
}

func (m *mirror) counts() (most, all int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.most, m.all
}

// newMirror is a rig that takes itself for its peers.
func newMirror(t testing.TB, self int32) (*rig, *mirror) {
	t.Helper()
	m := new(mirror)
	m.self.Store(self)
	r := newRig(t, pgmoor.Config{Peers: m}, new(fake))
	m.dial = func(ctx context.Context) (net.Conn, error) { return r.DialContext(ctx, "", "") }
	return r, m
}

func TestACancelRequestIsPassedOnThreeTimesAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m := newMirror(t, 1)
		c := r.connect(t, "u")
		lost := *c
		lost.pid = c.pid&^(0xff<<23) | 2<<23 // of an instance that would be passed on to this one again and again
		r.cancelFor(&lost)
		_, all := m.counts()
		require.Equal(t, 3, all)
		require.EqualValues(t, 3, r.Stats().CancelsPassedOn)
	})
}

func TestACancelRequestForThisInstanceOrForNoneIsNotPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m := newMirror(t, 7)
		c := r.connect(t, "u")
		c.ask("hang")
		synctest.Wait()
		for name, spoil := range map[string]func(c *client){
			"wrong key":             func(c *client) { c.key = []byte{c.key[0], c.key[1], c.key[2], c.key[3] + 1} },
			"short key":             func(c *client) { c.key = c.key[:3] },
			"long key":              func(c *client) { c.key = append(c.key[:4:4], 0) },
			"another session":       func(c *client) { c.pid++ },
			"no instance":           func(c *client) { c.pid &= 1<<22 - 1 },
			"a process of a server": func(c *client) { c.pid = 1234 },
			"sign":                  func(c *client) { c.pid |= 1 << 31 },
			"no more hops":          func(c *client) { c.pid = 8<<23 | 1 },
		} {
			spoiled := *c
			spoil(&spoiled)
			r.cancelFor(&spoiled)
			_, all := m.counts()
			require.Zero(t, all, name)
			require.Zero(t, r.Stats().Cancels, name)
		}
		c.pid &^= 2 << 21 // as it arrives from a peer
		r.cancelFor(c)
		require.Equal(t, "57014", c.reply().code())
	})
}

func TestASessionFromBeforeTheInstanceHadItsNumberIsCancelledThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m := newMirror(t, 0)
		c := r.connect(t, "u")
		require.Less(t, c.pid, uint32(1<<23))
		require.GreaterOrEqual(t, c.pid, uint32(1<<22), "no server has such a process id")
		m.self.Store(3)
		d := r.connect(t, "u")
		require.EqualValues(t, 3, d.pid>>23)
		require.EqualValues(t, 3, d.pid>>21&3)
		m.self.Store(4) // and another one since
		for _, c := range []*client{c, d} {
			c.ask("hang")
			synctest.Wait()
			r.cancelFor(c)
			require.Equal(t, "57014", c.reply().code())
		}
	})
}

func TestFewCancelRequestsArePassedOnAtOnceAndNotForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m := newMirror(t, 1)
		c := r.connect(t, "u")
		c.pid = 2<<23 | 3<<21 | 1
		m.dial = func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		began := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { r.cancelFor(c) })
		}
		wg.Wait()
		require.Equal(t, 5*time.Second, time.Since(began))
		most, all := m.counts()
		require.Equal(t, 64, most)
		require.Equal(t, 64, all)

		go r.cancelFor(c)
		synctest.Wait()
		began = time.Now()
		require.NoError(t, r.Close(), "does not wait for it")
		require.Zero(t, time.Since(began))
	})
}

func TestAPeerThatCannotBeReachedOrSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, m := newMirror(t, 1)
		c := r.connect(t, "u")
		c.pid = 2<<23 | 3<<21 | 1
		m.dial = func(context.Context) (net.Conn, error) { return nil, errors.New("no route") }
		r.cancelFor(c)
		require.Zero(t, r.Stats().CancelsPassedOn)
		silent, other := net.Pipe()
		defer other.Close()
		m.dial = func(context.Context) (net.Conn, error) { return silent, nil }
		began := time.Now()
		r.cancelFor(c)
		require.Equal(t, 5*time.Second, time.Since(began))
	})
}

func TestStaticPeersRefusesWhatIsNoPeer(t *testing.T) {
	for want, p := range map[string]*pgmoor.StaticPeers{
		"Number is zero": {},
		`[2] is "db"`:    {Number: 1, Addresses: map[uint8]string{2: "db"}},
		`[0] is "db:1"`:  {Number: 1, Addresses: map[uint8]string{0: "db:1"}},
	} {
		_, err := pgmoor.New(nil, pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{"h"}}, Peers: p})
		require.ErrorContains(t, err, want)
	}
	_, err := (&pgmoor.StaticPeers{Number: 1}).DialPeer(t.Context(), 2)
	require.ErrorIs(t, err, pgmoor.ErrNoPeer)
	require.Contains(t, fmt.Sprint(err), "no such peer")
}
