package main

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// probeLimit bounds one attempt to reach a server.
const probeLimit = 5 * time.Second

// startProbe looks once, in the background, whether the servers can be reached: a client that finds none is not told before
// it has waited for long. The returned function ends that.
func startProbe(o *options) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go probe(ctx, o, done)
	return func() {
		cancel()
		<-done
	}
}

// probe is startProbe's goroutine.
func probe(ctx context.Context, o *options, done chan<- struct{}) {
	defer close(done)
	for _, h := range o.config.Upstream.Hosts {
		network, address := networkAddress(h)
		c, err := (&net.Dialer{Timeout: probeLimit}).DialContext(ctx, network, address)
		switch {
		case err == nil:
			_ = c.Close()
		case ctx.Err() == nil:
			o.config.Logger.Warn("pgmoor: a server cannot be reached", slog.String("server", h), slog.Any("err", err),
				slog.String("hint", "Check that PostgreSQL runs and listens there, and that -upstream means it. "+
					"Until one can be reached, clients wait for it, as long as -borrow-timeout says."))
		}
	}
}

// networkAddress is where a host of the Config is dialed.
func networkAddress(h string) (network, address string) {
	host, port, _ := net.SplitHostPort(h)
	n, _ := strconv.ParseUint(port, 10, 16)
	return pgconn.NetworkAddress(host, uint16(n))
}
