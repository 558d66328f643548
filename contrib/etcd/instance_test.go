package etcd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/contrib/etcd"
)

// instanceEnv makes the test's program an instance: it holds the settings.
const instanceEnv = "PGMOOR_TEST_INSTANCE"

// settings say what an instance does.
type settings struct {
	Etcd, Server                string
	Limit, Instances, Floor     int
	TTL, Margin, Interval       time.Duration
	Clients                     int           // the most that it has
	Phase                       time.Duration // how long it has as many as it has
	LeastThinkTime, LongestWork time.Duration
}

// report is what an instance says of itself, several times a second, in a line.
type report struct {
	Commits, Failures int64
	Granted, Open     int
}

// worker is the load of an instance.
type worker struct {
	s                 settings
	p                 *pgmoor.Proxy
	active            atomic.Int32 // clients that work
	commits, failures atomic.Int64
	wg                sync.WaitGroup
}

// instance is the main program of an instance. SIGTERM ends it in good order.
func instance() int {
	var s settings
	if err := json.Unmarshal([]byte(os.Getenv(instanceEnv)), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := runInstance(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runInstance(ctx context.Context, s settings) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Etcd}, Logger: zap.NewNop(), DialTimeout: time.Second})
	if err != nil {
		return err
	}
	defer client.Close()
	budget, err := etcd.New(etcd.Config{
		Client: client, Prefix: "/churn/", Limit: s.Limit, Instances: s.Instances, Floor: s.Floor, TTL: s.TTL, Margin: s.Margin, Interval: s.Interval,
	})
	if err != nil {
		return err
	}
	observed := &observed{Budget: budget}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	p, err := pgmoor.New(nil, pgmoor.Config{
		Upstream: pgmoor.Upstream{Hosts: []string{s.Server}, SSLMode: "disable"}, Budget: observed, BorrowTimeout: 10 * time.Second, Logger: log,
	})
	if err != nil {
		return err
	}
	w := &worker{s: s, p: p}
	served := make(chan error, 1)
	go func() { served <- p.Serve(context.Background()) }()
	for i := range s.Clients {
		w.wg.Add(1)
		go w.client(ctx, i)
	}
	w.direct(ctx, observed)
	w.wg.Wait()
	err = p.Close()
	<-served
	return err
}

// observed shows the Share of a Budget.
type observed struct {
	pgmoor.Budget
	share atomic.Pointer[pgmoor.Share]
}

func (o *observed) Share(ctx context.Context, s *pgmoor.Share) error {
	o.share.Store(s)
	return o.Budget.Share(ctx, s)
}

// direct changes how many clients work, and reports.
func (w *worker) direct(ctx context.Context, o *observed) {
	next := time.Now()
	for {
		if now := time.Now(); !now.Before(next) {
			w.active.Store(rand.Int32N(int32(w.s.Clients) + 1))
			next = now.Add(w.s.Phase/2 + rand.N(w.s.Phase))
		}
		r := report{Commits: w.commits.Load(), Failures: w.failures.Load()}
		if s := o.share.Load(); s != nil {
			d := s.Demand()
			r.Granted, r.Open = d.Granted, d.Open
		}
		line, _ := json.Marshal(r)
		fmt.Println(string(line))
		select {
		case <-ctx.Done():
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// client is one client, that works as long as its number is less than that of those who do.
func (w *worker) client(ctx context.Context, number int) {
	defer w.wg.Done()
	var c *pgconn.PgConn
	for ctx.Err() == nil {
		if number >= int(w.active.Load()) {
			pause(ctx, 50*time.Millisecond)
			continue
		}
		var err error
		if c == nil {
			c, err = w.connect(ctx)
		}
		if err == nil {
			_, err = c.Exec(ctx, fmt.Sprintf("BEGIN; SELECT pg_sleep(%f); COMMIT", rand.N(w.s.LongestWork).Seconds())).ReadAll()
		}
		if err != nil {
			w.failures.Add(1)
			pause(ctx, 100*time.Millisecond)
			if c != nil && (c.IsClosed() || c.TxStatus() != 'I') {
				_ = c.Close(ctx)
				c = nil
			}
			continue
		}
		w.commits.Add(1)
		pause(ctx, w.s.LeastThinkTime+rand.N(10*time.Millisecond))
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (w *worker) connect(ctx context.Context) (*pgconn.PgConn, error) {
	cfg, err := pgconn.ParseConfig("host=pgmoor user=app database=app sslmode=disable")
	if err != nil {
		return nil, err
	}
	cfg.DialFunc = w.p.DialContext
	cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	ctx, stop := context.WithTimeout(ctx, 15*time.Second)
	defer stop()
	return pgconn.ConnectConfig(ctx, cfg)
}
