package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// pgbenchPatience is what pgbench may take beyond the measured time, to connect and to finish.
const pgbenchPatience = 60 * time.Second

// sampleRate is the share of transactions whose latency pgbench logs; writing all of them would show with
// many clients.
func sampleRate(clients int) float64 {
	if clients == 1 {
		return 1
	}
	return 0.25
}

func pgbenchCommand(ctx context.Context, bin string, ep endpoint, args ...string) *exec.Cmd {
	host, port, _ := net.SplitHostPort(ep.addr)
	mode := "disable"
	if ep.tls {
		mode = "require"
	}
	args = append([]string{"-h", host, "-p", port, "-U", ep.user}, append(args, ep.db)...)
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "pgbench"), args...)
	env := []string{"PGSSLMODE=" + mode, "PGGSSENCMODE=disable"}
	if ep.login != nil {
		env = append(env, "PGPASSWORD="+ep.login.password)
	}
	(*account)(nil).prepare(cmd, env...)
	return cmd
}

// progress is one line of pgbench -P.
type progress struct {
	at     time.Duration // since pgbench started its clients
	tps    float64       // since the line before
	failed int
}

// parseProgress reads "progress: 2.0 s, 8123.4 tps, lat 0.121 ms stddev 0.030, 0 failed".
func parseProgress(line string) (progress, bool) {
	var secs float64
	var p progress
	if n, _ := fmt.Sscanf(line, "progress: %f s, %f tps", &secs, &p.tps); n != 2 || math.IsNaN(p.tps) {
		return p, false
	}
	p.at = time.Duration(secs * float64(time.Second))
	if _, failed, ok := strings.Cut(line, "stddev "); ok {
		_, failed, _ = strings.Cut(failed, ", ")
		_, _ = fmt.Sscanf(failed, "%d failed", &p.failed)
	}
	return p, true
}

// parseLatencies reads a pgbench log ("client transaction latency script epoch microseconds") and returns the
// latencies, in microseconds, of the transactions that ended within the window.
func parseLatencies(r io.Reader, from, to time.Time) ([]float64, error) {
	var out []float64
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 6 {
			return nil, fmt.Errorf("pgbench log: unexpected line %q", lines.Text())
		}
		if f[2] == "failed" || f[2] == "skipped" {
			continue
		}
		n, err := parseInts(f[2], f[4], f[5])
		if err != nil {
			return nil, fmt.Errorf("pgbench log: %w", err)
		}
		if end := time.Unix(n[1], n[2]*1000); !end.Before(from) && !end.After(to) {
			out = append(out, float64(n[0]))
		}
	}
	return out, lines.Err()
}

// loadWindow is what was observed between pgbench's first progress line and its last: connecting and the
// first second of warming up lie outside.
type loadWindow struct {
	first, last  snapshot
	start        progress
	end          progress
	transactions float64
	failed       int
}

func (w *loadWindow) add(p progress, s snapshot, isFirst bool) {
	if isFirst {
		w.first, w.start = s, p
	} else {
		w.transactions += p.tps * (p.at - w.end.at).Seconds()
		w.failed += p.failed
	}
	w.last, w.end = s, p
}

// follow reads pgbench's progress until the window is full, has it finish, and returns what else it said.
func (w *loadWindow) follow(r io.Reader, eyes watcher, size time.Duration, finish func(), show func(string)) (string, error) {
	var other []string
	seen, finished := 0, false
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		p, ok := parseProgress(lines.Text())
		if !ok {
			other = append(other, lines.Text())
			continue
		}
		if finished {
			continue
		}
		s, err := eyes.take()
		if err != nil {
			finish()
			return strings.Join(other, "\n"), err
		}
		w.add(p, s, seen == 0)
		seen++
		show(fmt.Sprintf("%.0f tps", p.tps))
		if w.end.at-w.start.at >= size-size/20 {
			finished = true
			finish()
		}
	}
	if !finished {
		return strings.Join(other, "\n"), errors.New("pgbench ended before its time")
	}
	return strings.Join(other, "\n"), lines.Err()
}

// measureLoad runs pgbench -S against a target.
func (b *bench) measureLoad(ctx context.Context, c cell, s *started, r *Result) error {
	ctx, cancel := context.WithTimeout(ctx, b.o.window+pgbenchPatience)
	defer cancel()
	prefix := filepath.Join(b.dir, "latency")
	defer removeAll(prefix + ".*")
	cmd := pgbenchCommand(ctx, b.pg.bin, s.endpoint, b.loadArgs(c, prefix)...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("pgbench: %w", err)
	}
	var w loadWindow
	finish := func() { _ = cmd.Process.Signal(syscall.SIGALRM) }
	eyes := b.watcher(s)
	said, err := w.follow(stderr, eyes, b.o.window, finish, b.show)
	if werr := cmd.Wait(); err != nil || werr != nil {
		return fmt.Errorf("pgbench: %w\n%s", errors.Join(err, werr), tail(said, 3))
	}
	eyes.disturbance(r, w.first, w.last)
	return w.figures(r, s, prefix)
}

func (b *bench) loadArgs(c cell, prefix string) []string {
	args := b.scriptArgs(c)
	args = append(args,
		"-n", "-M", c.mode, "-c", strconv.Itoa(c.clients), "-j", strconv.Itoa(min(2, c.clients)),
		// Ended by SIGALRM, which is pgbench's own end of time: -T would count connecting.
		"-T", strconv.Itoa(int((b.o.window + pgbenchPatience).Seconds())), "-P", "1",
	)
	if c.kind == storm {
		// No latencies: pgbench leaves connecting out of them, but has a thread's other clients wait for it.
		args = append(args, "-C")
	} else {
		args = append(args, "-l", "--log-prefix="+prefix, fmt.Sprintf("--sampling-rate=%g", sampleRate(c.clients)))
	}
	return args
}

// setsScript is pgbench -S by clients that say first what Rails says when it connects.
const setsScript = `\if :first
SET client_min_messages TO warning;
SET standard_conforming_strings = on;
SET intervalstyle = iso_8601;
SET SESSION timezone TO 'UTC';
SET statement_timeout = 30000;
\set first 0
\endif
\set aid random(1, 100000 * :scale)
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
`

func (b *bench) setsFile() string { return filepath.Join(b.dir, "sets.sql") }

// scriptArgs says what pgbench's clients do.
func (b *bench) scriptArgs(c cell) []string {
	if !c.sets {
		return []string{"-S"}
	}
	return []string{"-f", b.setsFile(), "-D", "first=1", "-D", "scale=" + strconv.Itoa(pgbenchScale)}
}

func (w *loadWindow) figures(r *Result, s *started, prefix string) error {
	if w.transactions < 1 || w.failed > 0 {
		return fmt.Errorf("pgbench: %.0f transactions, %d failed", w.transactions, w.failed)
	}
	r.Figures[keyTPS] = w.transactions / (w.end.at - w.start.at).Seconds()
	if s.proc != nil {
		r.Figures[keyCPUTx] = micros(w.last.pooler-w.first.pooler) / w.transactions
	}
	all, err := readLatencies(prefix, w.first.at, w.last.at)
	addPercentiles(r, all)
	return err
}

// readLatencies is parseLatencies of all logs that pgbench has written.
func readLatencies(prefix string, from, to time.Time) (all []float64, err error) {
	files, err := filepath.Glob(prefix + ".*")
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		part, err := parseLatencies(f, from, to)
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	return all, nil
}

func addPercentiles(r *Result, latencies []float64) {
	addLatencies(r, latencies, keyP50, keyP99, keyP999)
}

// addLatencies adds the percentiles of latencies, which it sorts, under the given keys.
func addLatencies(r *Result, latencies []float64, p50, p99, p999 string) {
	if len(latencies) == 0 {
		return
	}
	slices.Sort(latencies)
	r.Figures[p50] = percentile(latencies, 0.5)
	r.Figures[p99] = percentile(latencies, 0.99)
	r.Figures[p999] = percentile(latencies, 0.999)
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func removeAll(pattern string) {
	files, _ := filepath.Glob(pattern)
	for _, f := range files {
		_ = os.Remove(f)
	}
}
