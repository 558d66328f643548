package etcd_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/contrib/etcd"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// member is an instance in the test's own process.
type member struct {
	t      testing.TB
	p      *pgmoor.Proxy
	budget *etcd.Budget
	client *clientv3.Client
	share  *observed
	served chan error
}

// join starts an instance; the zero fields of cfg but Limit, Instances and Floor are filled in.
func join(t testing.TB, s *store, server string, cfg etcd.Config) *member {
	t.Helper()
	return joinBy(t, s, server, cfg, func(*clientv3.Client) {})
}

// joinBy is join by a client that is changed first.
func joinBy(t testing.TB, s *store, server string, cfg etcd.Config, change func(c *clientv3.Client)) *member {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	cfg.Client, cfg.Prefix, cfg.Address, cfg.Logger = s.client(), "/test/", l.Addr().String(), slog.New(slog.DiscardHandler)
	change(cfg.Client)
	cfg.TTL, cfg.Margin, cfg.Interval = 3*time.Second, time.Second, 100*time.Millisecond
	b, err := etcd.New(cfg)
	require.NoError(t, err)
	m := &member{t: t, budget: b, client: cfg.Client, share: &observed{Budget: b}, served: make(chan error, 1)}
	m.p, err = pgmoor.New(l, pgmoor.Config{
		Upstream: pgmoor.Upstream{Hosts: []string{server}, SSLMode: "disable"}, Authenticator: pgmoor.Trust(),
		Budget: m.share, Peers: b, Logger: cfg.Logger,
	})
	require.NoError(t, err)
	go func() { m.served <- m.p.Serve(context.Background()) }()
	t.Cleanup(func() {
		m.leave()
		m.client.Close()
	})
	return m
}

// leave closes the instance.
func (m *member) leave() {
	require.NoError(m.t, m.p.Close())
	if m.served != nil {
		require.ErrorIs(m.t, <-m.served, pgmoor.ErrProxyClosed)
		m.served = nil
	}
}

func (m *member) demand() pgmoor.Demand {
	if s := m.share.share.Load(); s != nil {
		return s.Demand()
	}
	return pgmoor.Demand{}
}

// busy has n clients wait for a server connection, each to keep it until the returned function is called.
func (m *member) busy(n int) (done func()) {
	m.t.Helper()
	var stopped atomic.Bool
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan struct{}, n)
	for range n {
		go func() {
			defer func() { over <- struct{}{} }()
			c, err := pgconn.Connect(ctx, "postgres://app@"+m.p.Addr().String()+"/app?sslmode=disable")
			if err != nil {
				return
			}
			defer c.Close(context.Background())
			_, _ = c.Exec(ctx, "BEGIN").ReadAll()
			<-ctx.Done()
		}()
	}
	done = func() {
		if !stopped.Swap(true) {
			stop()
			for range n {
				<-over
			}
		}
	}
	m.t.Cleanup(done)
	return done
}

func (m *member) granted(n int) func() bool { return func() bool { return m.demand().Granted == n } }

func TestSharesFollowDemand(t *testing.T) {
	s, r := startStore(t), startRelay(t, pgtest.Shared(t, 15).Addr())
	cfg := etcd.Config{Limit: 12, Instances: 2, Floor: 2}
	a, b := join(t, s, r.l.Addr().String(), cfg), join(t, s, r.l.Addr().String(), cfg)
	first := a.busy(20)
	requireSoon(t, a.granted(10), "everything but the other one's floor")
	requireSoon(t, b.granted(2))
	requireSoon(t, func() bool { return a.demand().Open == 10 })
	second := b.busy(4)
	requireSoon(t, func() bool { return b.demand().Waiting == 2 })
	first() // a shrinks as its transactions end
	a.busy(6)
	requireSoon(t, func() bool { return b.demand().Waiting == 0 && b.demand().Open == 4 }, "fair: b wants less than half")
	requireSoon(t, func() bool { return a.demand().Open == 6 })
	second()
	a.busy(20)
	requireSoon(t, a.granted(10), "b is idle again")
	a.leave()
	b.busy(20)
	requireSoon(t, func() bool { return b.demand().Open == 10 }, "a has given its share back, not its floor")
	_, most, _ := r.counts()
	require.LessOrEqual(t, most, cfg.Limit)
}

func TestAnInstanceThatLosesEtcdFallsToItsFloorBeforeOthersTakeItsShare(t *testing.T) {
	s, r := startStore(t), startRelay(t, pgtest.Shared(t, 15).Addr())
	cfg := etcd.Config{Limit: 10, Instances: 2, Floor: 1}
	a, b := join(t, s, r.l.Addr().String(), cfg), join(t, s, r.l.Addr().String(), cfg)
	requireSoon(t, b.granted(1+1))
	a.busy(20)
	requireSoon(t, func() bool { return a.demand().Open >= 8 })
	b.busy(20)
	a.client.Close() // it holds what it has for TTL less Margin since its last renewal
	held := time.Now()
	requireSoon(t, a.granted(1))
	require.Greater(t, time.Since(held), 1400*time.Millisecond)
	requireSoon(t, func() bool { return a.demand().Open == 1 })
	require.Less(t, b.demand().Open, 5, "its lease has not ended yet")
	requireSoon(t, func() bool { return b.demand().Open == 9 })
	require.Greater(t, time.Since(held), 2400*time.Millisecond)
	_, most, _ := r.counts()
	require.LessOrEqual(t, most, cfg.Limit)
}

func TestFloorsAreThereWithoutEtcd(t *testing.T) {
	s, server := startStore(t), pgtest.Shared(t, 15).Addr()
	cfg := etcd.Config{Limit: 10, Instances: 2, Floor: 2}
	s.kill()
	began := time.Now()
	a := join(t, s, server, cfg)
	requireSoon(t, a.granted(2))
	require.GreaterOrEqual(t, time.Since(began), 3*time.Second, "what it replaces may hold connections until then")
	s.start()
	a.busy(20)
	requireSoon(t, a.granted(8))
}

func TestMoreInstancesThanThereAreToBeLiveOnShares(t *testing.T) {
	s, server := startStore(t), pgtest.Shared(t, 15).Addr()
	cfg := etcd.Config{Limit: 6, Instances: 2, Floor: 2}
	a, b := join(t, s, server, cfg), join(t, s, server, cfg)
	requireSoon(t, func() bool { return a.demand().Granted >= 2 && b.demand().Granted >= 2 })
	c := join(t, s, server, cfg)
	c.busy(20)
	requireSoon(t, c.granted(2))
	a.leave()
	requireSoon(t, c.granted(4), "a's seat and its floor are free at once")
}

func TestACancelRequestFindsItsInstanceByTheSeatsInEtcd(t *testing.T) {
	s, server := startStore(t), pgtest.Shared(t, 18).Addr()
	cfg := etcd.Config{Limit: 4, Instances: 2, Floor: 2}
	a, b := join(t, s, server, cfg), join(t, s, server, cfg)
	requireSoon(t, func() bool {
		return a.budget.Self() > 0 && b.budget.Self() > 0 && a.demand().Granted == 2 && b.demand().Granted == 2
	})
	require.NotEqual(t, a.budget.Self(), b.budget.Self())
	requireSoon(t, func() bool {
		c, err := b.budget.DialPeer(t.Context(), a.budget.Self())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	c, err := pgconn.Connect(t.Context(), "postgres://app@"+a.p.Addr().String()+"/app?sslmode=disable")
	require.NoError(t, err)
	defer c.Close(context.Background())
	result := make(chan error, 1)
	go func() {
		_, err := c.Exec(context.Background(), "SELECT pg_sleep(1000)").ReadAll()
		result <- err
	}()
	requireSoon(t, func() bool { return a.demand().Idle == 0 && a.demand().Open == 1 })
	requireSoon(t, func() bool { // it may not have begun yet
		conn, err := net.Dial("tcp", b.p.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
		_, err = conn.Write(cancelRequest(c.PID(), c.SecretKey()))
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, conn)
		select {
		case err := <-result:
			require.ErrorContains(t, err, "57014")
			return true
		case <-time.After(50 * time.Millisecond):
			return false
		}
	})
	_, err = a.budget.DialPeer(t.Context(), 200)
	require.ErrorIs(t, err, pgmoor.ErrNoPeer)
}

func TestNewRefusesWhatCannotBeShared(t *testing.T) {
	client := clientv3.NewCtxClient(t.Context())
	good := etcd.Config{Client: client, Prefix: "/p/", Limit: 10, Instances: 2, Floor: 5}
	_, err := etcd.New(good)
	require.NoError(t, err)
	for want, spoil := range map[string]func(c *etcd.Config){
		"Client is nil":                 func(c *etcd.Config) { c.Client = nil },
		"ends with a slash":             func(c *etcd.Config) { c.Prefix = "/p" },
		"Instances is 0":                func(c *etcd.Config) { c.Instances = 0 },
		"Instances is 256":              func(c *etcd.Config) { c.Instances = 256 },
		"at least one for each":         func(c *etcd.Config) { c.Limit = 1 },
		"Limit / Instances, which is 5": func(c *etcd.Config) { c.Floor = 6 },
		"whole seconds":                 func(c *etcd.Config) { c.TTL = 2500 * time.Millisecond },
		"at most half":                  func(c *etcd.Config) { c.TTL, c.Margin = 4*time.Second, 3*time.Second },
		"Interval":                      func(c *etcd.Config) { c.Interval = -1 },
		"Config.Address":                func(c *etcd.Config) { c.Address = "db" },
	} {
		cfg := good
		spoil(&cfg)
		_, err := etcd.New(cfg)
		require.ErrorContains(t, err, want)
	}
}

func TestAShareThatIsDeletedInEtcdIsClosedAtOnce(t *testing.T) {
	s, server := startStore(t), pgtest.Shared(t, 15).Addr()
	a := join(t, s, server, etcd.Config{Limit: 10, Instances: 1})
	a.busy(10)
	requireSoon(t, func() bool { return a.p.Stats().ServersOpened == 10 }) // not only being opened
	require.Zero(t, a.p.Stats().ServersClosed)
	c := s.client()
	defer c.Close()
	_, err := c.Delete(t.Context(), "/test/share/", clientv3.WithPrefix())
	require.NoError(t, err)
	requireSoon(t, func() bool { return a.p.Stats().ServersClosed == 10 })
}

func TestABudgetIsForOneProxy(t *testing.T) {
	s, server := startStore(t), pgtest.Shared(t, 15).Addr()
	a := join(t, s, server, etcd.Config{Limit: 1, Instances: 1})
	requireSoon(t, func() bool { return a.demand().Granted == 1 })
	require.ErrorContains(t, a.budget.Share(t.Context(), nil), "make another one")
}

// slow is a KV over which time goes by between reading and writing.
type slow struct {
	clientv3.KV
	delay atomic.Int64
}

func (s *slow) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	r, err := s.KV.Get(ctx, key, opts...)
	time.Sleep(time.Duration(s.delay.Load()))
	return r, err
}

// TestInstancesThatTakeAtTheSameTimeDoNotTakeTheSame has all of them see at once that there is something to take.
func TestInstancesThatTakeAtTheSameTimeDoNotTakeTheSame(t *testing.T) {
	s, r := startStore(t), startRelay(t, pgtest.Shared(t, 15).Addr())
	cfg := etcd.Config{Limit: 12, Instances: 3, Floor: 1}
	var all []*member
	for range cfg.Instances {
		m := joinBy(t, s, r.l.Addr().String(), cfg, func(c *clientv3.Client) {
			kv := &slow{KV: c.KV}
			kv.delay.Store(int64(250 * time.Millisecond))
			c.KV = kv
		})
		m.busy(20)
		all = append(all, m)
	}
	requireSoon(t, func() bool {
		sum := 0
		for _, m := range all {
			sum += m.demand().Open
		}
		return sum >= cfg.Limit
	})
	_, most, _ := r.counts()
	require.LessOrEqual(t, most, cfg.Limit)
}
