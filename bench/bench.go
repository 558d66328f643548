package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// bench is one series while it runs. It owns the directory, the cluster and whatever is started.
type bench struct {
	o        *options
	dir      string
	as       *account
	tls      certificate
	login    *credentials // of the user, where clients log in by SCRAM
	pg       *postgres
	targets  []target
	versions map[string]string
	display  display
}

// newBench prepares everything that the measurements share.
func newBench(ctx context.Context, o *options) (*bench, error) {
	b := &bench{o: o, versions: map[string]string{"Go": strings.TrimPrefix(runtime.Version(), "go")}}
	b.display = newDisplay(os.Stderr, b.measurements())
	if err := raiseFileLimit(mostClients(o.cells)); err != nil {
		return nil, err
	}
	if err := b.prepare(ctx); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bench) prepare(ctx context.Context) error {
	if err := b.makeDir(); err != nil {
		return err
	}
	if err := b.startPostgres(ctx); err != nil {
		return err
	}
	if err := b.newTargets(ctx); err != nil {
		return err
	}
	b.show("loading pgbench's tables")
	return b.pg.fill(ctx, b.o)
}

func (b *bench) makeDir() (err error) {
	if b.as, err = unprivileged(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "pgmoor-bench-"); err != nil {
		return err
	}
	if err = os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	if err = os.WriteFile(b.setsFile(), []byte(setsScript), 0o644); err != nil {
		return err
	}
	if b.tls, err = newCertificate(b.dir); err != nil {
		return err
	}
	if err = b.writeUserLists(); err != nil {
		return err
	}
	return b.as.own(b.dir, b.tls.cert, b.tls.key)
}

// writeUserLists writes what poolers know of the user: nothing, or the verifier of a password that is made up.
func (b *bench) writeUserLists() (err error) {
	if b.login, err = newCredentials(); err != nil {
		return err
	}
	for how, secret := range map[access]string{{}: "", {scram: true}: b.login.verifier()} {
		if err := os.WriteFile(b.userList(how), fmt.Appendf(nil, "%q %q\n", b.o.user, secret), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) userList(how access) string {
	if how.scram {
		return filepath.Join(b.dir, "userlist-scram.txt")
	}
	return filepath.Join(b.dir, "userlist.txt")
}

// startPostgres starts a cluster, or looks at the one that was named.
func (b *bench) startPostgres(ctx context.Context) error {
	bin, err := findPostgresBin(b.o.pgbin)
	if err != nil {
		return err
	}
	if b.o.pg != "" {
		b.pg = &postgres{addr: b.o.pg, bin: bin}
	} else {
		b.show("starting PostgreSQL")
		if b.pg, err = startCluster(ctx, bin, b.dir, b.as, b.o, b.tls); err != nil {
			return err
		}
	}
	c, err := endpoint{addr: b.pg.addr, user: b.o.user, db: b.o.db}.connect(ctx, 4096)
	if err != nil {
		return fmt.Errorf("%w; with -pg the server must have database %q and let user %q in without a password (-db, -user)", err, b.o.db, b.o.user)
	}
	defer c.close()
	b.versions["PostgreSQL"] = c.server
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "pgbench"), "--version").Output()
	b.versions["pgbench"] = strings.TrimSpace(string(out))
	return err
}

// close stops and removes all that newBench made, as far as it came.
func (b *bench) close() {
	b.display.clear()
	if b.pg != nil {
		b.pg.stop()
	}
	if b.dir != "" {
		_ = os.RemoveAll(b.dir)
	}
}

func (b *bench) show(what string) { b.display.status(what) }

func (b *bench) watcher(s *started) watcher {
	return watcher{pooler: s.pid(), complete: b.pg.proc != nil}
}

func mostClients(cells []cell) int {
	most := 0
	for _, c := range cells {
		most = max(most, c.clients)
	}
	return most
}

// measurements counts those of the whole series.
func (b *bench) measurements() int {
	n := 0
	for _, c := range b.o.cells {
		for _, t := range b.o.targets {
			if c.appliesTo(t) {
				n += b.o.runs
			}
		}
	}
	return n
}

// run measures every cell with all targets in turn, repetition by repetition. Who begins changes with the
// repetition, so that no target always follows the same other.
func (b *bench) run(ctx context.Context) error {
	if err := appendEntry(b.o.out, entry{Series: b.series()}); err != nil {
		return err
	}
	for run := range b.o.runs {
		for _, c := range b.o.cells {
			for k := range b.targets {
				t := b.targets[(k+run)%len(b.targets)]
				if !c.appliesTo(t.name) {
					continue
				}
				if err := b.record(ctx, c, t, run); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (b *bench) series() *Series {
	return &Series{
		Start:    time.Now().UTC().Truncate(time.Second),
		Command:  commandLine(b.o.args),
		Machine:  describeMachine(runtime.NumCPU()),
		Versions: b.versions,
		Runs:     b.o.runs,
		Seconds:  b.o.window.Seconds(),
	}
}

func commandLine(args []string) string {
	words := []string{"go run ."}
	for _, a := range args {
		if strings.ContainsAny(a, " *?[]'\"$&|;<>()\\") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// record measures, again while the machine is disturbed, and keeps the last result. A target that fails in a cell
// is noted and does not end the series.
func (b *bench) record(ctx context.Context, c cell, t target, run int) error {
	b.display.begin(fmt.Sprintf("run %d/%d %s %s", run+1, b.o.runs, c.name, t.name))
	var r *Result
	for repeats := 0; ; repeats++ {
		r = b.measure(ctx, c, t)
		if err := ctx.Err(); err != nil {
			return err
		}
		r.Run, r.Repeats, r.Noisy = run, repeats, r.noise() > b.o.maxNoise
		if !r.Noisy || r.Error != "" || repeats == b.o.retries {
			break
		}
		b.show(fmt.Sprintf("again: %.2f cores were taken by others", r.noise()))
	}
	b.display.done(r)
	return appendEntry(b.o.out, entry{Result: r})
}

func (b *bench) measure(ctx context.Context, c cell, t target) *Result {
	r := &Result{Time: time.Now().UTC().Truncate(time.Second), Cell: c.name, Target: t.name, Figures: map[string]float64{}}
	s, err := b.start(ctx, t, c.access())
	if err == nil {
		err = b.measureStarted(ctx, c, s, r)
		s.stop()
	}
	if err != nil {
		r.Error, r.Figures = err.Error(), nil
	}
	return r
}

func (b *bench) measureStarted(ctx context.Context, c cell, s *started, r *Result) error {
	switch c.kind {
	case load, storm:
		return b.measureLoad(ctx, c, s, r)
	case latency:
		return b.measureLatency(ctx, s, r)
	case idle:
		return b.measureIdle(ctx, c, s, r)
	case logins:
		return b.measureLogins(ctx, c, s, r)
	default:
		return b.measureBulk(ctx, c, s, r)
	}
}
