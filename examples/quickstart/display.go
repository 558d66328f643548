package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgmoor/pgmoor"
)

// watch keeps the greatest numbers of server connections that were seen.
type watch struct {
	bank  *bank
	proxy *pgmoor.Proxy

	stats    pgmoor.Stats // latest
	servers  int          // by Stats
	backends int          // in pg_stat_activity
}

func (w *watch) look() {
	w.stats = w.proxy.Stats()
	w.servers = max(w.servers, w.stats.Servers)
	ctx, cancel := context.WithTimeout(context.Background(), cleanupLimit)
	defer cancel()
	if n, err := w.bank.backends(ctx); err == nil {
		w.backends = max(w.backends, n)
	}
}

// show looks ten times a second until the load is over, and shows how far it is: on a terminal in one line that changes,
// elsewhere in a line a second.
func show(out *os.File, l *load, w *watch) {
	before, after, every := "", "\n", 10
	if isTerminal(out) {
		before, after, every = "\r\x1b[K", "", 1
		defer fmt.Fprintln(out)
	}
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for tick := 1; ; tick++ {
		select {
		case <-l.over:
			return
		case <-t.C:
		}
		w.look()
		if tick%every == 0 {
			fmt.Fprint(out, before+line(l, w)+after)
		}
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func line(l *load, w *watch) string {
	spent, s := time.Since(l.began), &w.stats
	return fmt.Sprintf("%4.0fs  %d clients over %d server connections: %s transactions, %s/s, p99 %s, %d waiting, %d pinned",
		spent.Seconds(), s.Clients, s.Servers, thousands(l.latencies.count()),
		thousands(int64(float64(l.latencies.count())/spent.Seconds())), short(l.latencies.quantile(0.99)), s.Waiting, s.Pinned)
}

func report(out io.Writer, l *load, w *watch, money int64) {
	n := l.latencies.count()
	perSecond := int64(float64(n) / time.Since(l.began).Seconds())
	fmt.Fprintf(out, `
  clients             %d
  server connections  %d at most by the proxy's Stats, %d at most in pg_stat_activity
  transactions        %s (%s a second), 0 failed
  latency             p50 %s, p99 %s, with the time that clients waited for a server connection
  pins                %s
  money               %s before, %s after

`,
		l.clients, w.servers, w.backends, thousands(n), thousands(perSecond),
		short(l.latencies.quantile(0.5)), short(l.latencies.quantile(0.99)), pins(w.proxy.Stats()),
		thousands(w.bank.before), thousands(money))
}

// pins says how often clients were pinned, by reason.
func pins(s pgmoor.Stats) string {
	if len(s.PinsTotal) == 0 {
		return "none"
	}
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(s.PinsTotal)) {
		parts = append(parts, fmt.Sprintf("%s: %s", reason, thousands(s.PinsTotal[reason])))
	}
	return strings.Join(parts, ", ")
}

func short(d time.Duration) string {
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 1, 64) + " ms"
}

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
