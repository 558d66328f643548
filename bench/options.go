package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Names of the targets, in the order of the report's columns.
const (
	direct    = "direct"
	pgbouncer = "pgbouncer"
	pgmoor    = "pgmoor"
)

var targetNames = []string{direct, pgbouncer, pgmoor}

// options is the command line.
type options struct {
	args      []string
	targets   []string
	cells     []cell
	runs      int
	window    time.Duration
	out       string
	pg        string
	pgbin     string
	user, db  string
	pgbouncer string
	pgmoor    string
	maxNoise  float64
	retries   int
}

// report is the path of the Markdown that belongs to the raw figures.
func (o *options) report() string {
	return strings.TrimSuffix(o.out, filepath.Ext(o.out)) + ".md"
}

func parseOptions(args []string) (*options, error) {
	o := &options{args: args}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	targets := f.String("targets", strings.Join(targetNames, ","), "what to measure, comma separated")
	cells := f.String("cells", "*", "cells to measure, comma separated, with * as in file names (see README.md)")
	secs := f.Int("secs", 5, "measured seconds per cell, target and repetition")
	f.IntVar(&o.runs, "runs", 5, "repetitions")
	f.StringVar(&o.out, "out", "results.jsonl", "file the raw figures are appended to")
	f.StringVar(&o.pg, "pg", "", "HOST:PORT of a PostgreSQL to use instead of starting one (trust authentication)")
	f.StringVar(&o.pgbin, "pgbin", "", "directory of the PostgreSQL programs (default: the newest found)")
	f.StringVar(&o.user, "user", "bench", "database user")
	f.StringVar(&o.db, "db", "bench", "database; its pgbench_* tables are replaced")
	f.StringVar(&o.pgbouncer, "pgbouncer", "pgbouncer", "PgBouncer program, a path or a name found in PATH")
	f.StringVar(&o.pgmoor, "pgmoor", "", "pgmoor's standalone program (default: built from ../examples/standalone)")
	f.Float64Var(&o.maxNoise, "max-noise", 0.15, "cores taken by others or by the host above which a measurement is repeated")
	f.IntVar(&o.retries, "retries", 2, "how often a noisy measurement is repeated at most")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	o.window = time.Duration(*secs) * time.Second
	return o, o.resolve(f.Args(), *targets, *cells)
}

// resolve checks the options and expands the lists among them.
func (o *options) resolve(rest []string, targets, cells string) error {
	if len(rest) > 0 {
		return fmt.Errorf("unexpected argument %q; subcommands come first: go run . report FILE.jsonl", rest[0])
	}
	if o.runs < 1 || o.window < time.Second || o.retries < 0 {
		return errors.New("-runs and -secs must be at least 1, -retries at least 0")
	}
	if o.pg != "" {
		if _, _, err := net.SplitHostPort(o.pg); err != nil {
			return fmt.Errorf("-pg wants HOST:PORT: %w", err)
		}
	}
	o.targets = strings.Split(targets, ",")
	for _, t := range o.targets {
		if !slices.Contains(targetNames, t) {
			return fmt.Errorf("unknown target %q; choose from %s", t, strings.Join(targetNames, ", "))
		}
	}
	var err error
	o.cells, err = selectCells(cells)
	return err
}
