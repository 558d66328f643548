package main

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgmoor/pgmoor/examples/internal/demodb"
)

// load is the clients and what they have done.
type load struct {
	config  *pgx.ConnConfig
	clients int
	pinning int // of the clients, how many pin themselves
	time    time.Duration

	began     time.Time
	end       time.Time
	over      chan struct{} // closed when every client has left
	latencies histogram
	failed    atomic.Int64

	mu    sync.Mutex
	first error
}

func newLoad(o *options, db *demodb.DB, addr net.Addr) (*load, error) {
	c, err := pgx.ParseConfig("sslmode=disable application_name=" + applicationName)
	if err != nil {
		return nil, err
	}
	a := addr.(*net.TCPAddr)
	c.Host, c.Port = a.IP.String(), uint16(a.Port)
	c.User, c.Password, c.Database, c.Fallbacks = db.User, db.Password, db.Database, nil
	return &load{
		config: c, clients: o.clients, time: o.duration, over: make(chan struct{}),
		pinning: min(3, o.clients/10, o.connections/3),
	}, nil
}

// start lets the clients work until the time is over or ctx ends.
func (l *load) start(ctx context.Context) {
	l.began = time.Now()
	l.end = l.began.Add(l.time)
	go l.run(ctx)
}

func (l *load) run(ctx context.Context) {
	defer close(l.over)
	var wg sync.WaitGroup
	for i := range l.clients {
		client := l.work
		if i < l.pinning {
			client = l.workPinned
		}
		wg.Go(func() { l.note(client(ctx)) })
	}
	wg.Wait()
}

func (l *load) wait() { <-l.over }

// note keeps the first error.
func (l *load) note(err error) {
	if err == nil {
		return
	}
	l.failed.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		l.first = err
	}
}

func (l *load) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

// going reports whether there is time for another transaction.
func (l *load) going(ctx context.Context) bool { return ctx.Err() == nil && time.Now().Before(l.end) }

// work is a client that stays: mostly it looks at an account, now and then it moves money.
func (l *load) work(ctx context.Context) error {
	c, err := pgx.ConnectConfig(ctx, l.config)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	for l.going(ctx) {
		do := look
		if rand.IntN(5) == 0 {
			do = transfer
		}
		if err := l.timed(ctx, c, do); err != nil {
			return err
		}
	}
	return nil
}

// workPinned is a client that comes and goes. Its temporary table makes the proxy keep one server connection for it until it leaves.
func (l *load) workPinned(ctx context.Context) error {
	for l.going(ctx) {
		if err := l.visit(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (l *load) visit(ctx context.Context) error {
	c, err := pgx.ConnectConfig(ctx, l.config)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	if _, err := c.Exec(ctx, "create temp table quickstart ()"); err != nil {
		return err
	}
	for n := 0; n < 100 && l.going(ctx); n++ {
		if err := l.timed(ctx, c, look); err != nil {
			return err
		}
	}
	return nil
}

func (l *load) timed(ctx context.Context, c *pgx.Conn, do func(context.Context, *pgx.Conn) error) error {
	t := time.Now()
	err := do(ctx, c)
	if err == nil {
		l.latencies.add(time.Since(t))
	}
	return err
}

func look(ctx context.Context, c *pgx.Conn) error {
	var balance int64
	return c.QueryRow(ctx, "select balance from pgmoor_quickstart.accounts where id = $1", account()).Scan(&balance)
}

// transfer takes the accounts in order, so that two transfers never wait for each other.
func transfer(ctx context.Context, c *pgx.Conn) error {
	a, b := account(), account()
	amount := 1
	if a > b {
		a, b, amount = b, a, -1
	}
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		const update = "update pgmoor_quickstart.accounts set balance = balance + $2 where id = $1"
		if _, err := tx.Exec(ctx, update, a, -amount); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, update, b, amount)
		return err
	})
}

func account() int { return 1 + rand.IntN(accounts) }
