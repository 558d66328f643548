// Command bench measures a pooler in front of PostgreSQL: pgmoor, PgBouncer and no pooler at all take
// turns inside every cell of one fixed matrix. It starts and stops everything it measures by itself.
//
//	go run . [-targets direct,pgbouncer,pgmoor] [-cells 'simple-*,idle-*'] [-runs 5] [-secs 5]
//	go run . report FILE.jsonl ...
//
// It reads /proc and so runs on Linux only.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if err := dispatch(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func dispatch(args []string) error {
	if len(args) > 0 && args[0] == "report" {
		return reportCommand(args[1:])
	}
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err = runSeries(ctx, o)
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted; what was measured so far is in %s", o.out)
	}
	return err
}

// runSeries measures one whole series and writes its report beside the raw figures.
func runSeries(ctx context.Context, o *options) error {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	err = b.run(ctx)
	b.close()
	if err != nil {
		return err
	}
	if err := writeReport(o.report(), o.out); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "raw figures: %s\nreport:      %s\n", o.out, o.report())
	return nil
}
