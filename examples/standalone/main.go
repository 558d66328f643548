// Command standalone is a complete pooler daemon made of package pgmoor and flags:
//
//	standalone -listen 127.0.0.1:6432 -upstream 'postgres://db1,db2' -users /etc/pgmoor/userlist.txt
//
// The first SIGTERM or SIGINT lets transactions finish, the second one does not. The exit status is 0 after that, 1 when
// clients had to be cut off or the daemon failed, and 2 for a mistake in the flags. The other signals are PgBouncer's: SIGHUP reads
// the files again that the flags name (users, certificates) and says in the log what is wrong with them, SIGUSR1 pauses all clients
// between two transactions, for a server that is restarted, and SIGUSR2 lets them go on. The limit on open files needs no care: Go raises it to
// the hard limit when a program starts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "pgmoor: %s\npgmoor: -h lists the flags\n", plain(err))
		return 2
	case o.version:
		fmt.Fprintln(stdout, "pgmoor", version(), runtime.Version())
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, o, stderr); err != nil {
		fmt.Fprintln(stderr, "pgmoor:", plain(err))
		return 1
	}
	return 0
}

// plain is an error's text without the prefix of package pgmoor.
func plain(err error) string { return strings.TrimPrefix(err.Error(), "pgmoor: ") }

// version returns the version of package pgmoor that the program was built with.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range info.Deps {
		if m.Path == "github.com/pgmoor/pgmoor" && m.Replace == nil {
			return m.Version
		}
	}
	return info.Main.Version
}
