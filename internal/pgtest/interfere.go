package pgtest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// interferenceBound is how long a script waits for the interfering client to be done. That may have to wait for the
// script to give up its server connection, so the script goes on regardless.
const interferenceBound = 3 * time.Millisecond

// answers holds what interferences are answered directly, for all interferers of a comparison.
type answers struct {
	target Target
	mu     sync.Mutex
	known  map[interference]string
}

// An interference is what an interfering client does: manner is simple, extended or visit (a connection of its own).
type interference struct{ manner, sql string }

func (i interference) script() (*Script, error) {
	sql := strconv.Quote(i.sql)
	if i.manner != "extended" {
		return parseLines([]string{"Query " + sql, "wait"})
	}
	return parseLines([]string{`Parse "" ` + sql, `Bind "" ""`, `Describe P ""`, `Execute "" 0`, "Sync", "wait"})
}

// expect returns what an interference is answered by the server itself.
func (a *answers) expect(ctx context.Context, i interference) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if answer, ok := a.known[i]; ok {
		return answer, nil
	}
	c, err := login(ctx, a.target.Dial, a.target.options())
	if err != nil {
		return "", err
	}
	defer c.close()
	answer, err := c.answer(i)
	if err == nil {
		a.known[i] = answer
	}
	return answer, err
}

// answer does an interference on a session and returns what came back for it.
func (c *session) answer(i interference) (string, error) {
	s, err := i.script()
	if err != nil {
		return "", err
	}
	c.transcript = nil
	for _, st := range s.steps {
		if err := c.step(st); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%q", c.transcript), nil
}

// An interferer is a client that does small things beside a script, on a goroutine of its own.
type interferer struct {
	ctx     context.Context
	cancel  context.CancelFunc
	target  Target
	answers *answers
	session *session // belongs to run; nil until it is needed
	jobs    chan interference
	idle    chan struct{} // holds a token while there is no job
	done    chan struct{}
	err     error // what went wrong first; belongs to run, and to whoever holds the token
}

func startInterferer(target Target, a *answers) *interferer {
	in := &interferer{target: target, answers: a}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	in.jobs, in.idle, in.done = make(chan interference), make(chan struct{}, 1), make(chan struct{})
	in.idle <- struct{}{}
	go in.run()
	return in
}

func (in *interferer) run() {
	defer close(in.done)
	for job := range in.jobs {
		if err := in.do(job); err != nil && in.err == nil {
			in.err = fmt.Errorf("interfering with %s %q: %w", job.manner, job.sql, err)
		}
		in.idle <- struct{}{}
	}
	if in.session != nil {
		in.session.close()
	}
}

func (in *interferer) do(job interference) error {
	want, err := in.answers.expect(in.ctx, job)
	if err != nil {
		return err
	}
	c, err := in.sessionFor(job)
	if err != nil {
		return err
	}
	if job.manner == "visit" {
		defer c.close()
	}
	got, err := c.answer(job)
	if err == nil && got != want {
		err = fmt.Errorf("wrong answer\n-%s\n+%s", want, got)
	}
	return err
}

func (in *interferer) sessionFor(job interference) (*session, error) {
	if job.manner == "visit" {
		return login(in.ctx, in.target.Dial, in.target.options())
	}
	if in.session == nil {
		var err error
		if in.session, err = login(in.ctx, in.target.Dial, in.target.options()); err != nil {
			return nil, err
		}
	}
	return in.session, nil
}

// interfere has the interferer do something and waits a moment for it. One that is still busy is left alone.
func (in *interferer) interfere(manner, sql string) {
	select {
	case <-in.idle:
	default:
		return
	}
	in.jobs <- interference{manner, sql}
	select {
	case <-in.idle:
		in.idle <- struct{}{}
	case <-time.After(interferenceBound):
	}
}

// change runs sql directly, as the script's user, and waits for that. It must have an end whatever the script has locked: its
// outcome depends on nothing but that. Locks of catalogs, which scripts beside it take, are waited for.
func (in *interferer) change(ctx context.Context, sql string) (string, error) {
	c, err := login(ctx, in.answers.target.Dial, in.answers.target.options())
	if err != nil {
		return "", err
	}
	defer c.close()
	return c.answer(interference{manner: "visit", sql: sql})
}

// reset makes the table of a script that changes it what it was. A script that has ended may still be about to give up its locks.
func (in *interferer) reset(ctx context.Context, table string) error {
	answer, err := in.change(ctx, fmt.Sprintf("set client_min_messages = warning; drop table if exists %[1]s cascade; create table %[1]s (id int, body text); insert into %[1]s values (1, 'one')", table))
	if err == nil && strings.Contains(answer, "ErrorResponse") {
		err = fmt.Errorf("resetting %s: %s", table, answer)
	}
	return err
}

// runBeside runs a script on the interferer's target and has the interferer act where the script says so. The table is one that the
// script changes; it may be empty.
func (in *interferer) runBeside(s *Script, table string, timeout time.Duration) (Transcript, error) {
	ctx, cancel := context.WithTimeout(in.ctx, timeout)
	defer cancel()
	if table != "" {
		if err := in.reset(ctx, table); err != nil {
			return nil, err
		}
	}
	opts := in.target.options()
	opts.Interfere = in.interfere
	opts.Change = func(sql string) (string, error) { return in.change(ctx, "set lock_timeout = 150; "+sql) }
	transcript, err := s.Run(ctx, in.target.Dial, opts)
	if settleErr := in.settle(ctx); err == nil {
		err = settleErr
	}
	return transcript, err
}

// settle waits until the interferer is done, and returns what has gone wrong since it was last asked.
func (in *interferer) settle(ctx context.Context) error {
	select {
	case <-in.idle:
	case <-ctx.Done():
		return fmt.Errorf("the interfering client waits for ever: %w", ctx.Err())
	}
	err := in.err
	in.err = nil
	in.idle <- struct{}{}
	return err
}

// close ends the interferer, if need be in the middle of what it does.
func (in *interferer) close() {
	in.cancel()
	close(in.jobs)
	<-in.done
}
