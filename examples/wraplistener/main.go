// Command wraplistener puts two pieces of its own into a pooler: a listener that limits how fast one address may connect,
// and a policy that says which session state is worth a server connection.
//
//	go -C examples run ./wraplistener
//	go -C examples run ./wraplistener -upstream postgres://user:password@host/database
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/examples/internal/demodb"
)

// limited is a listener that lets one address connect a number of times in every interval and closes what is beyond.
type limited struct {
	net.Listener
	limit    int
	interval time.Duration

	mu    sync.Mutex
	since time.Time
	count map[string]int
}

// Accept returns the next connection that is within the limit.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || l.admit(c.RemoteAddr()) {
			return c, err
		}
		_ = c.Close()
	}
}

func (l *limited) admit(addr net.Addr) bool {
	host, _, err := net.SplitHostPort(addr.String())
	if err != nil {
		return true // not an IP address
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.since) >= l.interval {
		l.since, l.count = time.Now(), map[string]int{}
	}
	l.count[host]++
	return l.count[host] <= l.limit
}

// frugal is the default policy, save that the reporting user gets no temporary tables that outlive a transaction, and that
// a schema migration keeps its server connection from its first lock on until it disconnects.
func frugal(s *pgmoor.Session, st *pgmoor.Statement) pgmoor.Decision {
	d := pgmoor.DefaultPinning{}.Decide(s, st)
	if s.Client().User() == "reports" && st.Effects&pgmoor.EffectTempObject != 0 {
		d.Refuse = &pgmoor.Error{Code: "0A000", Message: "no temporary tables for reports", Hint: "Create them with ON COMMIT DROP in a transaction."}
	}
	if name, _ := s.Client().Parameter("application_name"); name == "migrate" && st.Effects&pgmoor.EffectAdvisoryLock != 0 {
		d.Reason, d.Forever = "migration", true
	}
	return d
}

// newProxy returns a Proxy with both pieces.
func newProxy(addr string, limit int, db *demodb.DB) (*pgmoor.Proxy, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%w\nchoose another address with -listen", err)
	}
	p, err := pgmoor.New(&limited{Listener: l, limit: limit, interval: time.Second}, pgmoor.Config{
		Upstream: db.Upstream,
		Secrets:  db.Secrets(),
		Pinning:  pgmoor.PinningPolicyFunc(frugal),
	})
	if err != nil {
		_ = l.Close() // it is the Proxy's only if there is one
		return nil, err
	}
	return p, nil
}

func main() {
	upstream := flag.String("upstream", "", "use the database that the `DSN` names, or PGMOOR_UPSTREAM; without them, a throw-away server is started")
	listen := flag.String("listen", "127.0.0.1:6432", "listen on `HOST:PORT`")
	limit := flag.Int("limit", 20, "accept `N` connections a second from one address")
	flag.Parse()
	// Whatever ends the program has to leave it time to stop the throw-away server.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, cmp.Or(*upstream, os.Getenv("PGMOOR_UPSTREAM")), *listen, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "wraplistener:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, upstream, listen string, limit int) error {
	db, err := demodb.Open(ctx, upstream, func(s string) { fmt.Println(s) })
	if err != nil {
		return err
	}
	defer db.Close()
	p, err := newProxy(listen, limit, db)
	if err != nil {
		return err
	}
	fmt.Printf("serving on %s until Ctrl-C\n", p.Addr())
	if db.Invented {
		fmt.Printf("psql 'postgres://%s:%s@%s/%s'\n", db.User, db.Password, p.Addr(), db.Database)
	}
	if err := p.Serve(ctx); !errors.Is(err, pgmoor.ErrProxyClosed) {
		return err
	}
	return nil
}
