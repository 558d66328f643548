// Command quickstart shows pgmoor at work: it starts a PostgreSQL unless it is told of one, puts a Proxy in front of it,
// lets many clients work over few server connections for some seconds, and prints what happened.
//
//	go -C examples run ./quickstart
//	go -C examples run ./quickstart -serve
//	go -C examples run ./quickstart -upstream postgres://user:password@host/database
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

type options struct {
	upstream    string
	listen      string
	clients     int
	connections int
	duration    time.Duration
	serve       bool
}

func main() {
	// With SIGPIPE among the signals, a reader that goes away does not keep the server from being cleaned up.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	code := run(ctx, os.Args[1:], os.Stdout)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, out *os.File) int {
	o, err := parseOptions(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	err = play(ctx, o, out)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(out, "\ninterrupted; everything is cleaned up")
		return 130
	case err != nil:
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		return 1
	}
	return 0
}

func parseOptions(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	f.StringVar(&o.upstream, "upstream", "", "use the database that the `DSN` names, which may also stand in\n"+
		"PGMOOR_UPSTREAM; a schema pgmoor_quickstart is made there and dropped again.\nIf empty, a throw-away server is started")
	f.StringVar(&o.listen, "listen", defaultListen, "let the proxy listen on `HOST:PORT`")
	f.IntVar(&o.clients, "clients", 200, "let `N` clients work")
	f.IntVar(&o.connections, "connections", 10, "over `N` server connections, or as many as the server has room for")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "for so long")
	f.BoolVar(&o.serve, "serve", false, "keep the proxy and the server up afterwards, until Ctrl-C")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	o.upstream = cmp.Or(o.upstream, os.Getenv("PGMOOR_UPSTREAM"))
	if o.clients < 1 || o.connections < 1 || o.duration <= 0 || f.NArg() > 0 {
		err := errors.New("-clients, -connections and -duration must be positive, and no other arguments are known")
		fmt.Fprintln(f.Output(), "quickstart:", err)
		return nil, err
	}
	return o, nil
}

// say returns a function that prints steps.
func say(out io.Writer) func(string) {
	return func(s string) { fmt.Fprintln(out, "·", s) }
}
