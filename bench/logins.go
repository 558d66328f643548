package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// This file measures what clients cost that log in, and what those notice of it that are there already: pgbench runs
// transactions at a fixed rate, and every second second clients come besides, log in and leave.

const (
	trafficRate  = 2000            // transactions a second, well below what any pooler can do
	trafficStart = 2 * time.Second // in which pgbench's clients have connected and warmed up
	loginSlice   = time.Second
	loginDialers = 64 // clients that may be logging in at the same time
)

// arrivals are clients that come at a fixed rate, whether those before are done or not, log in and leave.
type arrivals struct {
	ep   endpoint
	came chan time.Time

	mu     sync.Mutex
	taken  []float64 // from coming to ReadyForQuery, in microseconds; guarded by mu
	failed int       // guarded by mu
	err    error     // the first failure; guarded by mu
}

// run has clients come for a while, and returns when the last of them is gone.
func (a *arrivals) run(ctx context.Context, rate int, span time.Duration) {
	n := int(float64(rate) * span.Seconds())
	a.came = make(chan time.Time, n) // so that the pace is kept
	var wg sync.WaitGroup
	for range loginDialers {
		wg.Go(func() { a.serve(ctx) })
	}
	begin := time.Now()
	for i := range n {
		time.Sleep(time.Until(begin.Add(span * time.Duration(i) / time.Duration(n))))
		a.came <- time.Now()
	}
	close(a.came)
	wg.Wait()
}

// serve takes one client after the other through its life.
func (a *arrivals) serve(ctx context.Context) {
	for came := range a.came {
		c, err := a.ep.connect(ctx, 512)
		took := micros(time.Since(came))
		if err == nil {
			c.close()
		}
		a.note(took, err)
	}
}

func (a *arrivals) note(took float64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.taken = append(a.taken, took)
		return
	}
	a.failed++
	if a.err == nil {
		a.err = err
	}
}

// slice is a stretch of time, with clients that log in or without.
type slice struct {
	from, to snapshot
	self     time.Duration // the harness's own CPU time in it
}

func (s slice) pooler() time.Duration { return s.to.pooler - s.from.pooler }

func (s slice) length() time.Duration { return s.to.at.Sub(s.from.at) }

// watched is what was observed of a slice in which do was done.
func (w watcher) watched(do func()) (s slice, err error) {
	if s.from, err = w.take(); err != nil {
		return s, err
	}
	before := selfCPU()
	do()
	s.self = selfCPU() - before
	s.to, err = w.take()
	return s, err
}

// selfCPU is the CPU time of the harness so far, which has no part in pgbench's.
func selfCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// alternation is one measurement: slices of either kind in turn, so that both see the machine in the same mood.
type alternation struct {
	quiet, busy []slice
	arrivals    arrivals
}

// run takes as many slices of each kind as fill the window.
func (m *alternation) run(ctx context.Context, eyes watcher, rate int, window time.Duration, show func(string)) error {
	wait := func() { pause(ctx, loginSlice) }
	come := func() { m.arrivals.run(ctx, rate, loginSlice) }
	for range max(1, int(window/loginSlice)) {
		q, err := eyes.watched(wait)
		if err != nil {
			return err
		}
		b, err := eyes.watched(come)
		if err != nil {
			return err
		}
		m.quiet, m.busy = append(m.quiet, q), append(m.busy, b)
		show(fmt.Sprintf("%d logins, %d failed", len(m.arrivals.taken), m.arrivals.failed))
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// measureLogins has pgbench and clients that log in share a pooler.
func (b *bench) measureLogins(ctx context.Context, c cell, s *started, r *Result) error {
	ctx, cancel := context.WithTimeout(ctx, 2*b.o.window+pgbenchPatience)
	defer cancel()
	prefix := filepath.Join(b.dir, "latency")
	defer removeAll(prefix + ".*")
	cmd := pgbenchCommand(ctx, b.pg.bin, s.endpoint, b.trafficArgs(c, prefix)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("pgbench: %w", err)
	}
	pause(ctx, trafficStart)
	m := alternation{arrivals: arrivals{ep: s.endpoint}}
	eyes := b.watcher(s)
	err := m.run(ctx, eyes, c.rate, b.o.window, b.show)
	_ = cmd.Process.Signal(syscall.SIGALRM) // its own end of time
	if werr := cmd.Wait(); err != nil || werr != nil {
		return fmt.Errorf("pgbench: %w\n%s", errors.Join(err, werr), tail(said.String(), 3))
	}
	eyes.disturbance(r, m.quiet[0].from, m.busy[len(m.busy)-1].to)
	return m.figures(r, prefix)
}

func (b *bench) trafficArgs(c cell, prefix string) []string {
	return []string{
		"-S", "-n", "-M", c.mode, "-c", strconv.Itoa(c.clients), "-j", "1", "-R", strconv.Itoa(trafficRate),
		"-T", strconv.Itoa(int((2*b.o.window + pgbenchPatience).Seconds())), "-l", "--log-prefix=" + prefix,
	}
}

// figures are what was seen of the logins, and the transactions with them and without: pgbench's log counts from when each was to
// begin. What a login costs the pooler is what it used more than in the same time without.
func (m *alternation) figures(r *Result, prefix string) error {
	a := &m.arrivals
	if len(a.taken) == 0 {
		return fmt.Errorf("no client could log in: %w", a.err)
	}
	quiet, quietCPU, quietTime, err := m.sum(m.quiet, prefix)
	if err != nil {
		return err
	}
	busy, busyCPU, busyTime, err := m.sum(m.busy, prefix)
	if err != nil {
		return err
	}
	if len(quiet) == 0 || len(busy) == 0 {
		return errors.New("pgbench did no transactions")
	}
	var self time.Duration
	for _, s := range m.busy {
		self += s.self
	}
	n := float64(len(a.taken))
	traffic := busyTime.Seconds() * quietCPU.Seconds() / quietTime.Seconds() * 1e6
	r.Figures[keyTPS] = float64(len(quiet)+len(busy)) / (quietTime + busyTime).Seconds()
	r.Figures[keyLogins] = n / busyTime.Seconds()
	r.Figures[keyLoginsFailed] = float64(a.failed)
	r.Figures[keyLoginCPU] = (micros(busyCPU) - traffic) / n
	r.Figures[keyLoaderCPU] = micros(self) / n
	addLatencies(r, a.taken, keyLoginP50, keyLoginP99, keyLoginP999)
	addLatencies(r, quiet, keyQuietP50, keyQuietP99, keyQuietP999)
	addPercentiles(r, busy)
	r.Figures[keyRise] = r.Figures[keyP99] / r.Figures[keyQuietP99]
	return nil
}

// sum returns the latencies of the transactions of some slices, the pooler's CPU time and how long they were.
func (m *alternation) sum(slices []slice, prefix string) (latencies []float64, cpu, length time.Duration, err error) {
	for _, s := range slices {
		part, err := readLatencies(prefix, s.from.at, s.to.at)
		if err != nil {
			return nil, 0, 0, err
		}
		latencies = append(latencies, part...)
		cpu += s.pooler()
		length += s.length()
	}
	return latencies, cpu, length, nil
}
