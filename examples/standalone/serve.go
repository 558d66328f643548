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
	p, err := pgmoor.New(nil, o.config)
	if err != nil {
		return err
	}
	defer p.Close()
	c := listenToSignals(p, o) // before anybody is told that it is ready
	defer c.stop()
	where, err := o.open(p)
	if err != nil {
		return err
	}
	if o.metrics != "" {
		m, err := startMetrics(o.metrics, p, o.config.Logger)
		if err != nil {
			return err
		}
		defer m.stop()
	}
	served := make(chan error, 1)
	go serveClients(p, served)
	fmt.Fprintf(stderr, "pgmoor: ready on %s, upstream %s, at most %d server connections\n",
		strings.Join(where, " and "), strings.Join(o.config.Upstream.Hosts, ","), o.config.MaxConnections)
	defer startProbe(o)()
	if err := c.until(ctx, served); err != nil {
		return err
	}
	drained := drain(p, o, stderr)
	_ = p.Close()
	if err := <-served; !errors.Is(err, pgmoor.ErrProxyClosed) {
		return err
	}
	return drained
}

// serveClients is the goroutine of the accept loop.
func serveClients(p *pgmoor.Proxy, served chan<- error) { served <- p.Serve(context.Background()) }

// drain lets transactions finish until the second signal or the time limit.
func drain(p *pgmoor.Proxy, o *options, stderr io.Writer) error {
	limit, cancel := context.WithTimeout(context.Background(), o.drainTimeout)
	defer cancel()
	ctx, stop := signal.NotifyContext(limit, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	fmt.Fprintf(stderr, "pgmoor: draining %d clients, for at most %v; a second signal cuts them off\n", p.Stats().Clients, o.drainTimeout)
	var left *pgmoor.UnfinishedError
	switch err := p.Shutdown(ctx); {
	case !errors.As(err, &left):
		return nil
	case limit.Err() != nil:
		return fmt.Errorf("%d clients did not finish within %v (-drain-timeout) and were cut off", left.Clients(), o.drainTimeout)
	}
	return fmt.Errorf("%d clients were cut off by the second signal", left.Clients())
}

// open gives the Proxy its listeners and returns their addresses.
func (o *options) open(p *pgmoor.Proxy) ([]string, error) {
	var where []string
	for _, a := range o.listen {
		l, err := o.listenOn(a)
		if err != nil {
			return nil, listenError("-listen", a, err)
		}
		if err := p.AddListener(l); err != nil {
			return nil, err
		}
		where = append(where, l.Addr().String())
	}
	return where, nil
}

func (o *options) listenOn(addr string) (net.Listener, error) {
	if !isSocket(addr) {
		return net.Listen("tcp", addr)
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
