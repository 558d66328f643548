package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/pgmoor/pgmoor"
)

// serve runs the daemon until ctx ends, which is the first signal. It returns nil when every client could finish its
// transaction.
func serve(ctx context.Context, o *options, stderr io.Writer) error {
	o.config.Logger = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: o.logLevel}))
	if b, ok := o.config.Budget.(*pgmoor.StaticShare); ok {
		b.Logger = o.config.Logger
	}
	o.secrets.logTo(o.config.Logger)
	defer o.secrets.close()
	p, err := pgmoor.New(nil, o.config)
	if err != nil {
		return err
	}
	defer p.Close()
	c := listenToSignals(p, o) // before anybody is told that it is ready
	defer c.stop()
	sockets, err := o.open(p)
	if err != nil {
		return err
	}
	m, err := startMetrics(o, sockets.metrics, p)
	if err != nil {
		return err
	}
	defer m.stop()
	served := make(chan error, 1)
	go serveClients(p, served)
	fmt.Fprintf(stderr, "pgmoor: ready on %s, upstream %s, at most %s\n",
		strings.Join(sockets.where, " and "), strings.Join(o.config.Upstream.Hosts, ","), o.allowance())
	if err := notify("READY=1"); err != nil {
		o.config.Logger.Warn("pgmoor: systemd is not told that the daemon is ready", "err", err)
	}
	defer startProbe(o)()
	if err := c.until(ctx, served); err != nil {
		return err
	}
	m.leave()
	_ = notify("STOPPING=1") // it said so before, if it does not listen
	drained := drain(p, o, sockets.clients, stderr)
	_ = p.Close()
	if err := <-served; !errors.Is(err, pgmoor.ErrProxyClosed) {
		return err
	}
	return drained
}

// serveClients is the goroutine of the accept loop.
func serveClients(p *pgmoor.Proxy, served chan<- error) { served <- p.Serve(context.Background()) }

// drain lets clients go for as long as -drain-grace says, and then transactions finish until the second signal or the time limit.
func drain(p *pgmoor.Proxy, o *options, listeners []*retirable, stderr io.Writer) error {
	signals, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	fmt.Fprintf(stderr, "pgmoor: draining %d clients, for at most %v; a second signal cuts them off\n", p.Stats().Clients, o.drainGrace+o.drainTimeout)
	letGo(signals, p, o, listeners)
	limit, cancel := context.WithTimeout(signals, o.drainTimeout)
	defer cancel()
	var left *pgmoor.UnfinishedError
	switch err := p.Shutdown(limit); {
	case !errors.As(err, &left):
		return nil
	case signals.Err() != nil:
		return fmt.Errorf("%d clients were cut off by the second signal", left.Clients())
	}
	return fmt.Errorf("%d clients did not finish within %v (-drain-timeout) and were cut off", left.Clients(), o.drainTimeout)
}

// letGo retires the listeners and gives clients their grace.
func letGo(ctx context.Context, p *pgmoor.Proxy, o *options, listeners []*retirable) {
	if o.drainGrace == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, o.drainGrace+shakeTime)
	defer cancel()
	if err := retireAll(ctx, listeners); err != nil {
		o.config.Logger.Warn("pgmoor: clients that connect at this moment may be cut off", "err", err)
	}
	awaitLeaving(ctx, func() int {
		s := p.Stats()
		return s.Clients + s.Handshaking
	})
}

// sockets are what the daemon listens on.
type sockets struct {
	clients []*retirable
	where   []string     // their addresses
	metrics net.Listener // that was passed for them; nil: none
}

// open gives the Proxy its listeners: those that were passed to the process, and then those of -listen.
func (o *options) open(p *pgmoor.Proxy) (*sockets, error) {
	s := new(sockets)
	for i, name := range o.inherited {
		l, err := inheritedListener(i)
		switch {
		case err != nil:
			return nil, err
		case name == metricsSocket:
			s.metrics = l
		default:
			if err := s.add(p, o, l, retireLeft); err != nil {
				return nil, err
			}
		}
	}
	mode := retireClosed
	if o.reusePort {
		mode = retireDrained
	}
	for _, a := range o.listen {
		l, err := o.listenOn(a)
		if err != nil {
			return nil, listenError("-listen", a, err)
		}
		if err := s.add(p, o, l, mode); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// add gives the Proxy a listener for clients.
func (s *sockets) add(p *pgmoor.Proxy, o *options, l net.Listener, mode retireMode) error {
	r := newRetirable(l, mode)
	s.clients, s.where = append(s.clients, r), append(s.where, l.Addr().String())
	if len(o.balancers) > 0 {
		return p.AddListener(pgmoor.ProxyProtocol(r, o.balancers...))
	}
	return p.AddListener(r)
}

// listenTCP listens on a port of this process, or with -reuseport on one that it shares.
func (o *options) listenTCP(addr string) (net.Listener, error) {
	var c net.ListenConfig
	if o.reusePort {
		c.Control = reusePort
		c.SetMultipathTCP(false) // its sockets take no filter (see refuseNew)
	}
	return c.Listen(context.Background(), "tcp", addr)
}

func (o *options) listenOn(addr string) (net.Listener, error) {
	if !isSocket(addr) {
		return o.listenTCP(addr)
	}
	l, err := listenSocket(addr)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(addr, fs.FileMode(o.socketMode)); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// listenError says which flag is meant and what to do.
func listenError(name, addr string, err error) error {
	advice := "choose another address"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		advice = "another program has it: stop that one, or choose another address"
	case errors.Is(err, syscall.EACCES):
		advice = "choose a port above 1023, or a directory that this user may write to"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		advice = "choose an address of this machine"
	}
	return fmt.Errorf("%s %s: %w: %s", name, addr, err, advice)
}

// listenSocket takes the place of a socket whose owner died without removing it.
func listenSocket(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	c, dialErr := net.Dial("unix", path)
	if dialErr == nil {
		_ = c.Close()
		return nil, err
	}
	if info, statErr := os.Lstat(path); statErr != nil || info.Mode().Type() != fs.ModeSocket {
		return nil, err
	}
	if rmErr := os.Remove(path); rmErr != nil {
		return nil, rmErr
	}
	return net.Listen("unix", path)
}
