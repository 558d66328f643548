// Package etcd shares a number of server connections among the instances of a pgmoor.Proxy, by leases on etcd: shares follow
// demand, and their sum is never exceeded.
//
//	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"etcd:2379"}})
//	...
//	budget, err := etcd.New(etcd.Config{Client: client, Prefix: "/pgmoor/main/", Limit: 90, Instances: 4, Floor: 5})
//	...
//	p, err := pgmoor.New(l, pgmoor.Config{Budget: budget, ...})
//
// # What is guaranteed
//
// Each instance may use a floor of its own at any time, and has besides a share of the rest, Limit less Instances times Floor. Shares are granted by
// transactions on etcd, which fail where another instance was faster: their sum cannot exceed the rest. A
// share that becomes smaller is given back when the connections are closed, on the server too. It belongs to a lease, which
// the instance renews:
//
//   - An instance that dies (SIGKILL) leaves its share to the others when its lease expires, TTL after it was last renewed.
//   - An instance that cannot renew its lease holds what it has until Margin before the lease ends, by its own monotonic clock
//     and counted from before the last renewal was sent. Then it closes what is beyond its floor, in use or not. So etcd may be away for TTL less
//     Margin with no effect but that shares do not move, and for however long with each instance at its floor.
//   - An instance that starts while etcd is away waits for TTL, by when the lease of whatever it replaces has ended, and
//     then uses its floor.
//
// That holds as long as
//
//   - never more than Instances processes are in use of their floors: an instance that etcd cannot hear still uses its floor, so where a
//     replacement may be started for one that is only unreachable, Instances has to count both, or Floor is to be zero. While etcd is there, instances beyond
//     Instances are given no floor, and live on shares;
//   - a server notices within Margin that a client has died: one in the middle of a statement does so by
//     client_connection_check_interval (PostgreSQL 14 and later), which is off by default and should be set to less than Margin;
//   - processes run: one that is stopped (SIGSTOP, a paused virtual machine) for longer than a lease lasts closes its connections only
//     when it goes on;
//   - all instances have the same Floor. While Limit or Instances differ, as in a rollout, the greatest Limit holds.
//
// A Budget is also a pgmoor.Peers, by which cancel requests find the instance that they are for.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/pgmoor/pgmoor"
)

// Defaults of [Config]'s fields.
const (
	DefaultTTL      = 15 * time.Second
	DefaultMargin   = 5 * time.Second
	DefaultInterval = 500 * time.Millisecond
)

// MaxInstances is the greatest number of instances.
const MaxInstances = 255

// Config says what is shared, and how.
type Config struct {
	// Client is how etcd is reached. It stays the caller's, and must not be closed before the Proxy. Required.
	Client *clientv3.Client

	// Prefix is what the keys begin with, and has to be the same for all instances that share, and different for every server that is shared. It
	// ends with a slash. Required.
	Prefix string

	// Limit is how many server connections all instances together may hold: at least one for each. Required.
	Limit int

	// Instances is how many instances there are at most at the same time, those that a rollout adds counted; at most MaxInstances. Required.
	Instances int

	// Floor is how many server connections each instance may hold whatever becomes of etcd. Instances times Floor must not be greater than
	// Limit. If zero, an instance that has lost etcd holds none.
	Floor int

	// TTL is how long a lease lasts that is not renewed: whole seconds, at least 2. If zero, DefaultTTL.
	TTL time.Duration

	// Margin is how long before the end of a lease that could not be renewed the connections are closed that it stands for. It has to be enough
	// for closing them, for the servers to notice that a client has died, and for how long a process may have to wait for a CPU; at most
	// half of TTL. If zero, DefaultMargin, or a third of TTL where that is less.
	Margin time.Duration

	// Interval is how often an instance looks at what others want besides when etcd tells of a change, which it does at most ten times in
	// that time. If zero, DefaultInterval.
	Interval time.Duration

	// Address is where other instances reach this one's listener, "host:port", for cancel requests that arrive at them. If empty, they do
	// not.
	Address string

	// Logger receives what an operator wants to know. If nil, slog.Default.
	Logger *slog.Logger
}

// Budget is a pgmoor.Budget and a pgmoor.Peers for one Proxy. Its methods may be called from any goroutine.
type Budget struct {
	cfg  Config
	used atomic.Bool

	seat  atomic.Int32 // 0: none
	peers atomic.Pointer[map[int]string]
}

var (
	_ pgmoor.Budget = (*Budget)(nil)
	_ pgmoor.Peers  = (*Budget)(nil)
)

// New returns a Budget for one Proxy. It does not touch etcd yet: that begins with the Proxy's Serve.
func New(cfg Config) (*Budget, error) {
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	if cfg.Margin == 0 {
		cfg.Margin = min(DefaultMargin, cfg.TTL/3)
	}
	if cfg.Interval == 0 {
		cfg.Interval = DefaultInterval
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Budget{cfg: cfg}, cfg.validate()
}

func (c *Config) validate() error {
	switch {
	case c.Client == nil:
		return errors.New("etcd: Config.Client is nil: clientv3.New makes one")
	case len(c.Prefix) < 2 || !strings.HasSuffix(c.Prefix, "/"):
		return fmt.Errorf("etcd: Config.Prefix is %q: it must be a path that ends with a slash, as in \"/pgmoor/main/\"", c.Prefix)
	case c.Instances <= 0 || c.Instances > MaxInstances:
		return fmt.Errorf("etcd: Config.Instances is %d: it must be between 1 and %d", c.Instances, MaxInstances)
	case c.Limit < c.Instances:
		return fmt.Errorf("etcd: Config.Limit is %d: it must be at least one for each of %d Instances", c.Limit, c.Instances)
	case c.Floor < 0 || c.Instances*c.Floor > c.Limit:
		return fmt.Errorf("etcd: Config.Floor is %d: it must not be negative, nor more than Limit / Instances, which is %d", c.Floor, c.Limit/c.Instances)
	case c.TTL < 2*time.Second || c.TTL%time.Second != 0:
		return fmt.Errorf("etcd: Config.TTL is %v: it must be whole seconds, and at least 2", c.TTL)
	case c.Margin < 0 || c.Margin > c.TTL/2:
		return fmt.Errorf("etcd: Config.Margin is %v: it must be at most half of TTL", c.Margin)
	case c.Interval < 0:
		return errors.New("etcd: Config.Interval must not be negative")
	}
	if c.Address != "" {
		if _, _, err := net.SplitHostPort(c.Address); err != nil {
			return fmt.Errorf("etcd: Config.Address: %w", err)
		}
	}
	return nil
}

// Share grants connections to the Proxy until ctx ends, and then gives everything back.
func (b *Budget) Share(ctx context.Context, s *pgmoor.Share) error {
	if b.used.Swap(true) {
		return errors.New("etcd: a Budget is for one Proxy: make another one")
	}
	m, err := newMember(b, s)
	if err != nil {
		return err
	}
	m.run(ctx)
	return nil
}

// Self returns the number of this instance among its peers; 0 as long as it has none.
func (b *Budget) Self() uint8 { return uint8(b.seat.Load()) }

// DialPeer connects to the instance with the number.
func (b *Budget) DialPeer(ctx context.Context, number uint8) (net.Conn, error) {
	peers := b.peers.Load()
	if peers == nil || (*peers)[int(number)] == "" {
		return nil, pgmoor.ErrNoPeer
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", (*peers)[int(number)])
}
