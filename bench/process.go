package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startPatience = 30 * time.Second // for a server to answer its first query
	stopPatience  = 10 * time.Second // for a server to end when asked to
	readyPoll     = 20 * time.Millisecond
)

// account is the unprivileged user that servers run as when we are root, which PostgreSQL and PgBouncer refuse
// to be. A nil account means ourselves.
type account struct {
	name string
	cred syscall.Credential
}

func unprivileged() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &account{name, syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return nil, errors.New("running as root, and neither user postgres nor nobody exists: run as another user")
}

// own gives files to the account.
func (a *account) own(paths ...string) error {
	if a == nil {
		return nil
	}
	for _, p := range paths {
		if err := os.Chown(p, int(a.cred.Uid), int(a.cred.Gid)); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes cmd run as the account, outside our process group (the terminal's Ctrl-C is for us alone, we
// stop what we started in order) and free of the caller's PG* variables.
func (a *account) prepare(cmd *exec.Cmd, env ...string) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a != nil {
		cmd.SysProcAttr.Credential = &a.cred
	}
	cmd.Env = append(cleanEnviron(), env...)
}

func cleanEnviron() []string {
	var out []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "PG") && !strings.HasPrefix(v, "LC_") {
			out = append(out, v)
		}
	}
	return append(out, "LC_ALL=C")
}

// process is a server that runs until stop.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string        // path of its output
	done chan struct{} // closed by reap
}

// startProcess starts a prepared command; its output goes to the file log.
func startProcess(name string, cmd *exec.Cmd, log string) (*process, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	go p.reap() // joined by stop
	return p, nil
}

func (p *process) reap() {
	defer close(p.done)
	_ = p.cmd.Wait() // how a server ended is in its log
}

// stop asks with sig, insists after a while, and returns when the process is gone.
func (p *process) stop(sig os.Signal) {
	_ = p.cmd.Process.Signal(sig) // fails only when it has ended already
	select {
	case <-p.done:
		return
	case <-time.After(stopPatience):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// awaitReady tries probe until it succeeds, the process ends or patience does.
func (p *process) awaitReady(ctx context.Context, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended at once; its last words:\n%s", p.name, p.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w; its last words:\n%s", p.name, err, p.lastWords())
		case <-time.After(readyPoll):
		}
	}
}

func (p *process) lastWords() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return tail(string(b), 10)
}

// tail is the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
