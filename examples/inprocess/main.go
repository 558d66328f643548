// Command inprocess gives a pgx pool its connections through a pooler in the same process, without any port.
//
//	go -C examples run ./inprocess
//	go -C examples run ./inprocess -upstream postgres://user:password@host/database
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/examples/internal/demodb"
)

func main() {
	upstream := flag.String("upstream", "", "use the database that the `DSN` names, or PGMOOR_UPSTREAM; without them, a throw-away server is started")
	flag.Parse()
	// Whatever ends the program has to leave it time to stop the throw-away server.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, cmp.Or(*upstream, os.Getenv("PGMOOR_UPSTREAM"))); err != nil {
		fmt.Fprintln(os.Stderr, "inprocess:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, upstream string) error {
	db, err := demodb.Open(ctx, upstream, func(s string) { fmt.Println(s) })
	if err != nil {
		return err
	}
	defer db.Close()
	p, err := pgmoor.New(nil, pgmoor.Config{Upstream: db.Upstream, Secrets: db.Secrets(), MaxConnections: 5})
	if err != nil {
		return err
	}
	served := make(chan struct{})
	go serve(p, served)
	err = use(ctx, p, db.User, db.Database)
	_ = p.Close()
	<-served
	return err
}

// serve runs until p is closed, which is all that Serve then says.
func serve(p *pgmoor.Proxy, served chan<- struct{}) {
	defer close(served)
	_ = p.Serve(context.Background())
}

// open returns a pool whose connections are clients of p. What it says of the host does not matter, but has to look like
// a host; nothing is looked up or encrypted within a process.
func open(ctx context.Context, p *pgmoor.Proxy, user, database string) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig("host=pgmoor sslmode=disable pool_max_conns=50")
	if err != nil {
		return nil, err
	}
	cfg.ConnConfig.User, cfg.ConnConfig.Database = user, database
	cfg.ConnConfig.DialFunc = p.DialContext
	cfg.ConnConfig.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	return pgxpool.NewWithConfig(ctx, cfg)
}

// use runs queries on 50 connections of the pool at once.
func use(ctx context.Context, p *pgmoor.Proxy, user, database string) error {
	pool, err := open(ctx, p, user, database)
	if err != nil {
		return err
	}
	defer pool.Close()
	errs := make([]error, 50)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = pool.Exec(ctx, "select pg_sleep(0.05), $1::int", i) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	s := p.Stats()
	fmt.Printf("%d pool connections shared %d server connections\n", s.ClientsTotal, s.ServersOpened)
	return nil
}
