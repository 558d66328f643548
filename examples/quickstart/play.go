package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/examples/internal/demodb"
)

const (
	defaultListen = "127.0.0.1:6432"
	// applicationName is how the clients and, after them, the server connections call themselves.
	applicationName = "pgmoor-quickstart"
	// cleanupLimit bounds what has to be done after an interrupt.
	cleanupLimit = 10 * time.Second
)

// play is the whole show.
func play(ctx context.Context, o *options, out *os.File) (err error) {
	db, err := demodb.Open(ctx, o.upstream, say(out))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	bank, err := openBank(ctx, db)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bank.close()) }()
	if err := bank.bound(ctx, o, out); err != nil {
		return err
	}
	p, err := startProxy(o, db, out)
	if err != nil {
		return err
	}
	defer p.stop()
	fmt.Fprintf(out, "· the proxy listens on %s and may open %d server connections; PostgreSQL itself allows %d\n", p.Addr(), o.connections, bank.limit)
	fmt.Fprintf(out, "· for another terminal:  %s\n", psqlLine(db, p.Addr()))
	if err := perform(ctx, o, out, db, bank, p.Proxy); err != nil {
		return err
	}
	if !o.serve {
		fmt.Fprintln(out, "· with -serve the proxy stays up, for psql and your own programs")
		return nil
	}
	fmt.Fprintf(out, "· still serving; Ctrl-C ends it:  %s\n", psqlLine(db, p.Addr()))
	<-ctx.Done()
	return nil
}

// perform lets the clients work, shows how far they are, and reports.
func perform(ctx context.Context, o *options, out *os.File, db *demodb.DB, bank *bank, p *pgmoor.Proxy) error {
	l, err := newLoad(o, db, p.Addr())
	if err != nil {
		return err
	}
	w := &watch{bank: bank, proxy: p}
	l.start(ctx)
	show(out, l, w)
	l.wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := l.failure(); err != nil {
		return fmt.Errorf("%d transactions failed, the first with: %w", l.failed.Load(), err)
	}
	after, err := bank.total(ctx)
	if err != nil {
		return err
	}
	report(out, l, w, after)
	if after != bank.before {
		return errors.New("money was lost or made, which must not happen: please report it")
	}
	return nil
}

// proxy is a Proxy that is being served.
type proxy struct {
	*pgmoor.Proxy
	served chan struct{}
}

func startProxy(o *options, db *demodb.DB, out io.Writer) (*proxy, error) {
	l, err := net.Listen("tcp", o.listen)
	if errors.Is(err, syscall.EADDRINUSE) && o.listen == defaultListen {
		fmt.Fprintf(out, "· another program has %s: the proxy takes a free port instead\n", defaultListen)
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return nil, fmt.Errorf("%w\nchoose another address with -listen", err)
	}
	p, err := pgmoor.New(l, pgmoor.Config{
		Upstream:       db.Upstream,
		Secrets:        db.Secrets(),
		MaxConnections: o.connections,
		// Pins are warnings; the display counts them.
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	served := &proxy{p, make(chan struct{})}
	go served.serve()
	return served, nil
}

// serve runs until the Proxy is closed, which is all that Serve then says.
func (p *proxy) serve() {
	defer close(p.served)
	_ = p.Serve(context.Background())
}

func (p *proxy) stop() {
	_ = p.Close()
	<-p.served
}

// psqlLine is what to type to get in. A password that somebody else chose is not shown.
func psqlLine(db *demodb.DB, addr net.Addr) string {
	u := url.URL{Scheme: "postgres", User: url.User(db.User), Host: addr.String(), Path: "/" + db.Database}
	if db.Invented {
		u.User = url.UserPassword(db.User, db.Password)
	}
	return "psql '" + u.String() + "'"
}

// bank is the table that the clients work on, and a direct connection for looking at the server.
type bank struct {
	conn   *pgx.Conn
	limit  int // max_connections
	before int64
}

const (
	accounts = 1000
	setUp    = `
		drop schema if exists pgmoor_quickstart cascade;
		create schema pgmoor_quickstart;
		create table pgmoor_quickstart.accounts (id int primary key, balance bigint not null);
		insert into pgmoor_quickstart.accounts select g, 1000 from generate_series(1, 1000) g;`
)

func openBank(ctx context.Context, db *demodb.DB) (*bank, error) {
	c, err := db.Connect(ctx)
	if err != nil {
		return nil, err
	}
	b := &bank{conn: c}
	if _, err = c.Exec(ctx, setUp); err == nil {
		err = c.QueryRow(ctx, "select current_setting('max_connections')::int").Scan(&b.limit)
	}
	if err == nil {
		b.before, err = b.total(ctx)
	}
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "42501": // nothing was made that could be dropped
		err = fmt.Errorf("%w\nthe user needs the right to create a schema: GRANT CREATE ON DATABASE %s TO %s; "+
			"or leave -upstream and PGMOOR_UPSTREAM away for a throw-away server", err, quoted(db.Database), quoted(db.User))
		return nil, errors.Join(err, c.Close(ctx))
	case err != nil:
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }

// room is how many connections a user without privileges can open now. What only privileged users see in pg_stat_activity is
// not needed.
const room = `
	select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
		- coalesce(current_setting('reserved_connections', true)::int, 0)
		- (select count(*)::int from pg_stat_activity where datid is not null)`

// bound lowers the number of server connections to what the server has room for.
func (b *bank) bound(ctx context.Context, o *options, out io.Writer) error {
	var n int
	if err := b.conn.QueryRow(ctx, room).Scan(&n); err != nil {
		return err
	}
	switch {
	case n < 1:
		return fmt.Errorf("the server has no connection to spare: others use them, of its max_connections of %d", b.limit)
	case n < o.connections:
		fmt.Fprintf(out, "· the server has room for %d connections: using so many instead of %d\n", n, o.connections)
		o.connections = n
	}
	return nil
}

func (b *bank) total(ctx context.Context) (sum int64, err error) {
	err = b.conn.QueryRow(ctx, "select sum(balance)::bigint from pgmoor_quickstart.accounts").Scan(&sum)
	return sum, err
}

// backends returns how many connections of the proxy the server sees.
func (b *bank) backends(ctx context.Context) (n int, err error) {
	err = b.conn.QueryRow(ctx, "select count(*) from pg_stat_activity where application_name = $1", applicationName).Scan(&n)
	return n, err
}

// close works after an interrupt too.
func (b *bank) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupLimit)
	defer cancel()
	_, err := b.conn.Exec(ctx, "drop schema if exists pgmoor_quickstart cascade")
	return errors.Join(err, b.conn.Close(ctx))
}
