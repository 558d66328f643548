package pgtest

import (
	"cmp"
	"fmt"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A Target is where scripts are run. Its user logs in without a password.
type Target struct {
	Dial           DialFunc
	User, Database string
}

func (t Target) options() Options { return Options{User: t.User, Database: t.Database} }

// Target is the cluster's database app as the role app, on the Unix socket.
func (c *Cluster) Target() Target { return Target{Dial: c.Dial, User: "app", Database: "app"} }

// A Comparison runs scripts against a server and through a proxy before it. In both cases a second client interferes
// where the scripts say so; its answers, too, must be those that the server itself gives.
type Comparison struct {
	Direct, Proxied Target
	// Allow lists the accepted differences.
	Allow []Difference
	// Workers is how many scripts run side by side; 0 is 3.
	Workers int
	// Timeout bounds one run of a script; 0 is 30 s.
	Timeout time.Duration
}

// Run compares the transcripts of all scripts, and fails the test with what Check finds. It returns the number of
// scripts run.
func (c Comparison) Run(t testing.TB, scripts iter.Seq[*Script]) int {
	t.Helper()
	n, err := c.Check(scripts)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Check compares the transcripts of the scripts until one differs. The error has that script's name, the difference and
// the shortest part of the script found to show it.
func (c Comparison) Check(scripts iter.Seq[*Script]) (n int, err error) {
	r := &comparing{Comparison: c, scripts: make(chan *Script), failed: make(chan struct{})}
	r.answers = &answers{target: c.Direct, known: map[interference]string{}}
	var workers sync.WaitGroup
	for range cmp.Or(c.Workers, 3) {
		workers.Go(r.work)
	}
	n = r.feed(scripts)
	workers.Wait()
	if r.failure != nil {
		return n, r.failure
	}
	return n, nil
}

// comparing is one run of a comparison.
type comparing struct {
	Comparison
	answers *answers
	tables  atomic.Uint64 // how many scripts had a table of their own
	scripts chan *Script

	once    sync.Once // guards failure
	failure *failure
	failed  chan struct{} // closed once failure is set
}

// unusable starts what is said of a script that cannot even be run directly.
const unusable = "directly: "

// A failure is a script whose transcripts differ.
type failure struct {
	script  *Script
	minimal *Script
	what    string
}

// Error is the failure's report.
func (f *failure) Error() string {
	return fmt.Sprintf("pgtest: %s:\n%s\nminimal script:\n%s\nwhole script:\n%s", f.script.Name, f.what, f.minimal, f.script)
}

func (r *comparing) feed(scripts iter.Seq[*Script]) int {
	defer close(r.scripts)
	n := 0
	for s := range scripts {
		select {
		case r.scripts <- s:
			n++
		case <-r.failed:
			return n
		}
	}
	return n
}

// work compares scripts until there are no more, or one has failed.
func (r *comparing) work() {
	p := r.newPair()
	defer p.close()
	for s := range r.scripts {
		if what := p.compare(s, cmp.Or(r.Timeout, 30*time.Second)); what != "" {
			r.fail(s, what)
			return
		}
	}
}

func (r *comparing) fail(s *Script, what string) {
	r.once.Do(func() {
		r.failure = &failure{script: s, minimal: s, what: what}
		if !strings.HasPrefix(what, unusable) {
			r.failure.minimal = r.minimise(s)
		}
		close(r.failed)
	})
}

// A pair runs scripts directly and through the proxy, one after the other, each with an interferer beside it.
type pair struct {
	allow           []Difference
	direct, proxied *interferer
	tables          *atomic.Uint64
}

func (r *comparing) newPair() *pair {
	return &pair{r.Allow, startInterferer(r.Direct, r.answers), startInterferer(r.Proxied, r.answers), &r.tables}
}

func (p *pair) close() {
	p.direct.close()
	p.proxied.close()
}

// compare runs a script on both sides and says what differs, or "".
func (p *pair) compare(s *Script, timeout time.Duration) string {
	s, table := p.ownTable(s)
	direct, err := p.direct.runBeside(s, table, timeout)
	if err != nil {
		return fmt.Sprintf("%s%v\n%s", unusable, err, tail(direct))
	}
	proxied, err := p.proxied.runBeside(s, table, timeout)
	if diff := Diff(direct, proxied, p.allow); diff != "" {
		return diff + suffix(err)
	}
	if err != nil {
		return suffix(err) + tail(proxied)
	}
	return ""
}

// ownTable has a script that changes the table pgtest_shape change one of its own, which no other run uses, as scripts run side by
// side, and of which the proxy knows nothing yet.
func (p *pair) ownTable(s *Script) (own *Script, table string) {
	table = fmt.Sprintf("%s_%d", changing, p.tables.Add(1))
	own, changes := s.renamed(changing, table)
	if !changes {
		return s, ""
	}
	return own, table
}

func suffix(err error) string {
	if err == nil {
		return ""
	}
	return "through the proxy: " + err.Error() + "\n"
}

func tail(t Transcript) string { return describe(t, "", "") }

// minimise drops lines from a failing script as long as it goes on failing, within a bounded number of attempts.
func (r *comparing) minimise(s *Script) *Script {
	const attempts, timeout = 80, time.Second
	best, tried := s, 0
	for size := len(s.lines) / 2; size >= 1; size /= 2 {
		for at := 0; at < len(best.lines) && tried < attempts; {
			tried++
			shorter := best.without(at, at+size)
			if r.stillFails(shorter, timeout) {
				best = shorter
			} else {
				at += size
			}
		}
	}
	return best
}

// stillFails tells whether a shortened script makes sense directly and shows a difference. Its clients are new: those
// of a failed comparison may be stuck.
func (r *comparing) stillFails(s *Script, timeout time.Duration) bool {
	p := r.newPair()
	defer p.close()
	what := p.compare(s, timeout)
	return what != "" && !strings.HasPrefix(what, unusable)
}

// without is the script less the lines from at to end.
func (s *Script) without(at, end int) *Script {
	end = min(end, len(s.lines))
	shorter := &Script{Name: s.Name}
	shorter.lines = append(append(shorter.lines, s.lines[:at]...), s.lines[end:]...)
	shorter.steps = append(append(shorter.steps, s.steps[:at]...), s.steps[end:]...)
	return shorter
}
