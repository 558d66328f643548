package pgmoor_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

func shutDown(ctx context.Context, p *pgmoor.Proxy, result chan<- error) { result <- p.Shutdown(ctx) }

func TestShutdownEndsIdleClientsAndLetsTransactionsFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxConnections: 3}, server)
		idle, txn, busy, pinned := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		txn.ok("BEGIN")
		pinned.ok("SET a = 1")
		busy.ask("sleep 10s")
		synctest.Wait()
		result := make(chan error, 1)
		start := time.Now()
		go shutDown(context.Background(), r.Proxy, result)
		idle.ended("57P01")
		pinned.ended("57P01")
		_, err := r.DialContext(context.Background(), "", "")
		require.ErrorIs(t, err, pgmoor.ErrProxyClosed)
		txn.ok("SELECT 1")
		require.Nil(t, busy.reply().err)
		busy.ended("57P01")
		require.Equal(t, 10*time.Second, time.Since(start))
		txn.ok("SELECT 2")
		require.Empty(t, result)
		txn.ok("COMMIT")
		txn.ended("57P01")
		require.NoError(t, <-result)
		require.ErrorIs(t, <-r.served, pgmoor.ErrProxyClosed)
		r.served <- pgmoor.ErrProxyClosed // for the clean-up
		open, _, _, _ := server.counts()
		require.Zero(t, open)
	})
}

func TestShutdownReturnsWhenItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{}, new(fake))
		c := r.connect(t, "u")
		c.ok("BEGIN")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		require.ErrorIs(t, r.Shutdown(ctx), context.DeadlineExceeded)
		c.ok("SELECT 1")
		require.NoError(t, r.Close())
		require.Zero(t, c.reply().status)
		require.NoError(t, r.Shutdown(t.Context()))
	})
}

func TestShutdownDoesNotWaitForClientsThatNobodyServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		p := unserved(t, server)
		conn, err := p.DialContext(t.Context(), "", "")
		require.NoError(t, err)
		c := newClient(t, conn)
		require.EqualValues(t, 'I', c.startup("u").status)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, p.Shutdown(ctx))
		require.Zero(t, c.reply().status)
	})
}

// unserved is a proxy whose Accept the test calls.
func unserved(t testing.TB, server *fake) *pgmoor.Proxy {
	t.Helper()
	server.start()
	p, err := pgmoor.New(nil, pgmoor.Config{
		Upstream: pgmoor.Upstream{Hosts: []string{"fake"}, SSLMode: "disable", Dialer: pgmoor.DialerFunc(server.dial)},
		Logger:   quiet,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, p.Close())
		require.NoError(t, server.Close())
	})
	return p
}

func TestCloseEndsClientsThatNobodyServes(t *testing.T) {
	for _, params := range [][]string{nil, {"replication", "true"}} {
		synctest.Test(t, func(t *testing.T) {
			server := new(fake)
			p := unserved(t, server)
			conn, err := p.DialContext(t.Context(), "", "")
			require.NoError(t, err)
			c := newClient(t, conn)
			require.EqualValues(t, 'I', c.startup("u", params...).status)
			synctest.Wait()
			closed := make(chan error, 1)
			go func() { closed <- p.Close() }()
			select {
			case err := <-closed:
				require.NoError(t, err)
			case <-time.After(time.Hour):
				require.FailNow(t, "Close does not return")
			}
		})
	}
}

func TestCloseEndsEverythingInTheMiddleOfIt(t *testing.T) {
	before := len(goroutines())
	server := new(fake)
	r := newRig(t, pgmoor.Config{MaxConnections: 4}, server)
	idle, txn, busy, pinned, waiting := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
	txn.ok("BEGIN")
	pinned.ok("SET a = 1")
	busy.ask("sleep 10h")
	flood := r.connect(t, "u")
	flood.ok("BEGIN") // takes the last connection
	waiting.ask("SELECT 1")
	half := r.dialClient(t)
	_, err := half.conn.Write(login(version30)[:5])
	require.NoError(t, err)
	require.NoError(t, r.Close())
	for _, c := range []*client{idle, txn, busy, pinned, flood, half} {
		require.Zero(t, c.reply().status)
	}
	for got := waiting.reply(); got.status != 0; { // it may have had its turn when the others were gone
		got = waiting.reply()
	}
	require.ErrorIs(t, <-r.served, pgmoor.ErrProxyClosed)
	r.served <- pgmoor.ErrProxyClosed
	require.Eventually(t, func() bool { return len(goroutines()) <= before }, 10*time.Second, time.Millisecond, "%v", goroutines())
	open, _, _, _ := server.counts()
	require.Zero(t, open)
	require.NoError(t, r.Close(), "again")
}

func TestNothingWorksOnAClosedProxy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p, err := pgmoor.New(l, pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{"x"}}})
	require.NoError(t, err)
	require.NoError(t, p.Close())
	require.ErrorIs(t, p.Serve(t.Context()), pgmoor.ErrProxyClosed)
	_, err = p.Accept()
	require.ErrorIs(t, err, pgmoor.ErrProxyClosed)
	_, err = p.DialContext(t.Context(), "", "")
	require.ErrorIs(t, err, pgmoor.ErrProxyClosed)
	other, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.ErrorIs(t, p.AddListener(other), pgmoor.ErrProxyClosed)
	_, err = other.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestServeEndsWithItsLastListener(t *testing.T) {
	var log logBuffer
	server := new(fake)
	server.start()
	defer func() { require.NoError(t, server.Close()) }()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		return l
	}
	first, second, third := listen(), listen(), listen()
	p, err := pgmoor.New(first, pgmoor.Config{
		Upstream: pgmoor.Upstream{Hosts: []string{"fake"}, SSLMode: "disable", Dialer: pgmoor.DialerFunc(server.dial)},
		Logger:   slog.New(slog.NewTextHandler(&log, nil)), Authenticator: pgmoor.Trust(),
	})
	require.NoError(t, err)
	require.NoError(t, p.AddListener(second))
	served := make(chan error, 1)
	go serve(p, served)
	require.NoError(t, first.Close())
	require.Eventually(t, func() bool { return strings.Contains(log.text(), first.Addr().String()) }, patience, time.Millisecond)
	c := newClient(t, dialTCP(t, second.Addr().String()))
	require.EqualValues(t, 'I', c.startup("u").status)
	c.ok("SELECT 1")
	require.NoError(t, second.Close())
	err = <-served
	require.ErrorIs(t, err, net.ErrClosed)
	require.ErrorContains(t, err, second.Addr().String())
	require.Equal(t, 2, strings.Count(log.text(), "level=ERROR"), log.text())
	c.ok("SELECT 2")

	require.NoError(t, p.AddListener(third))
	go serve(p, served)
	require.EqualValues(t, 'I', newClient(t, dialTCP(t, third.Addr().String())).startup("u").status)
	require.NoError(t, p.Close())
	require.ErrorIs(t, <-served, pgmoor.ErrProxyClosed)
}

func TestNewAndAddListenerSayWhatBecomesOfTheListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, err = pgmoor.New(l, pgmoor.Config{})
	require.Error(t, err)
	require.NoError(t, l.Close(), "New closed what is not its own")
	p := unserved(t, new(fake))
	require.ErrorContains(t, p.AddListener(nil), "needs a listener")
}

func TestServeClosesTheProxyWhenItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		p := unserved(t, server)
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- p.Serve(ctx) }()
		r := &rig{Proxy: p, server: server}
		c := r.connect(t, "u")
		c.ok("BEGIN")
		cancel()
		require.ErrorIs(t, <-served, pgmoor.ErrProxyClosed)
		require.Equal(t, "57P01", c.reply().code())
		_, err := p.DialContext(t.Context(), "", "")
		require.ErrorIs(t, err, pgmoor.ErrProxyClosed)
	})
}

// accepted logs a client in and returns it with its session.
func accepted(t testing.TB, p *pgmoor.Proxy) (*client, *pgmoor.Session) {
	t.Helper()
	conn, err := p.DialContext(t.Context(), "", "")
	require.NoError(t, err)
	c := newClient(t, conn)
	require.EqualValues(t, 'I', c.startup("u", "application_name", "me").status)
	s, err := p.Accept()
	require.NoError(t, err)
	return c, s.(*pgmoor.Session)
}

func TestASessionIsTheRawStreamUntilItIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		p := unserved(t, server)
		c, s := accepted(t, p)
		require.Equal(t, "u", s.Client().User())
		name, ok := s.Client().Parameter("application_name")
		require.True(t, ok)
		require.Equal(t, "me", name)
		c.ask("SELECT 1")
		b := make([]byte, 14)
		_, err := io.ReadFull(s, b)
		require.NoError(t, err)
		require.Equal(t, "Q\x00\x00\x00\x0dSELECT 1", string(b[:13]))
		_, err = s.Write([]byte{'Z', 0, 0, 0, 5, 'I'})
		require.NoError(t, err)
		require.EqualValues(t, 'I', c.reply().status)

		require.NoError(t, s.SetDeadline(time.Time{}))
		served := make(chan error, 1)
		go func() { served <- s.Serve(context.Background()) }()
		c.ok("SELECT 2")
		_, err = s.Read(b)
		require.Error(t, err)
		_, err = s.Write(b)
		require.Error(t, err)
		require.Error(t, s.SetDeadline(time.Now()))
		require.Error(t, s.SetReadDeadline(time.Now()))
		require.Error(t, s.SetWriteDeadline(time.Now()))
		require.Error(t, s.Serve(context.Background()))
		c.ok("SELECT 3")
		c.send(&pgproto3.Terminate{})
		require.NoError(t, <-served)
	})
}

func TestASessionEndsWithTheContextOfItsServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		p := unserved(t, server)
		c, s := accepted(t, p)
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx) }()
		c.ok("BEGIN")
		cancel()
		require.NoError(t, <-served)
		require.Equal(t, "57P01", c.reply().code())
		synctest.Wait()
		require.Equal(t, 1, p.Stats().ServersIdle, "rolled back")
	})
}

func TestAPanicOverALoginEndsThatLoginOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(lockedBuffer)
		auth := pgmoor.Throttle(pgmoor.AuthenticatorFunc(func(_ context.Context, c *pgmoor.Client) error {
			if c.User() == "u" {
				panic("no directory today")
			}
			return nil
		}), 1, time.Hour)
		r := newRig(t, pgmoor.Config{Authenticator: auth, Logger: slog.New(slog.NewTextHandler(log, nil))}, new(fake))
		for range 2 { // it is nobody's guess
			require.Equal(t, "XX000", tryFrom(t, r, "192.0.2.1:1", "u", ""))
		}
		require.Empty(t, tryFrom(t, r, "192.0.2.1:1", "other", ""))
		require.Contains(t, log.String(), "no directory today")
	})
}

func TestAPanicEndsOneSessionOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := pgmoor.Config{MaxConnections: 2, Pinning: pgmoor.PinningPolicyFunc(func(*pgmoor.Session, *pgmoor.Statement) pgmoor.Decision {
			panic("no policy today")
		})}
		r := newRig(t, cfg, new(fake))
		other := r.connect(t, "u")
		other.ok("BEGIN")
		for range 5 {
			c := r.connect(t, "u")
			c.ask("SET a = 1")
			require.Zero(t, c.reply().status)
		}
		inTransaction := r.connect(t, "u")
		inTransaction.ok("BEGIN")
		inTransaction.ask("SET a = 1")
		require.Zero(t, inTransaction.reply().status)
		other.ok("COMMIT")
		for range 3 {
			r.connect(t, "u").ok("SELECT 1")
		}
		synctest.Wait()
		require.LessOrEqual(t, r.Stats().Servers, 2)
	})
}
