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
	where, err := listen(p, o.listen)
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
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
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
	ctx, cancel := context.WithTimeout(context.Background(), o.drainTimeout)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	fmt.Fprintf(stderr, "pgmoor: draining %d clients, for at most %v\n", p.Stats().Clients, o.drainTimeout)
	if err := p.Shutdown(ctx); err != nil && !errors.Is(err, pgmoor.ErrProxyClosed) {
		return fmt.Errorf("%d clients did not finish in time and were cut off", p.Stats().Clients)
	}
	return nil
}

// listen gives the Proxy its listeners and returns their addresses.
func listen(p *pgmoor.Proxy, addrs []string) ([]string, error) {
	var where []string
	for _, a := range addrs {
		open := listenTCP
		if isSocket(a) {
			open = listenSocket
		}
		l, err := open(a)
		if err != nil {
			return nil, err
		}
		if err := p.AddListener(l); err != nil {
			return nil, err
		}
		where = append(where, l.Addr().String())
	}
	return where, nil
}

func listenTCP(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

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
