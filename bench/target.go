package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// serverConnections is what every pooler may open to the server.
const serverConnections = 20

// target is something clients can be pointed at.
type target struct {
	name string
	// command prepares a pooler that listens on port; it is nil for the server itself.
	command func(port int, how access) (*exec.Cmd, error)
}

// access is how clients come into a pooler: encrypted or not, and by SCRAM or as whom they say they are.
type access struct{ tls, scram bool }

// method is the name of the authentication method, the same for all poolers.
func (how access) method() string {
	if how.scram {
		return "scram-sha-256"
	}
	return "trust"
}

// started is a target that accepts clients.
type started struct {
	endpoint
	proc *process // nil for the server itself
}

// pid of the pooler, 0 when there is none.
func (s *started) pid() int {
	if s.proc == nil {
		return 0
	}
	return s.proc.cmd.Process.Pid
}

func (s *started) stop() {
	if s.proc != nil {
		s.proc.stop(syscall.SIGTERM)
	}
}

// start brings a target up. Every measurement has a pooler of its own, so that none inherits the heap or
// the connections of the one before.
func (b *bench) start(ctx context.Context, t target, how access) (*started, error) {
	s := &started{endpoint: endpoint{addr: b.pg.addr, user: b.o.user, db: b.o.db, tls: how.tls}}
	if how.scram {
		s.login = b.login
	}
	if t.command == nil {
		return s, nil
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	cmd, err := t.command(port, how)
	if err != nil {
		return nil, err
	}
	b.as.prepare(cmd)
	cmd.Dir = b.dir
	s.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	if s.proc, err = startProcess(t.name, cmd, filepath.Join(b.dir, t.name+".log")); err != nil {
		return nil, err
	}
	if err := s.proc.awaitReady(ctx, s.probe); err != nil {
		s.proc.stop(os.Kill)
		return nil, err
	}
	return s, nil
}

// newTargets finds or builds the poolers that were asked for.
func (b *bench) newTargets(ctx context.Context) error {
	for _, name := range b.o.targets {
		t := target{name: name}
		var err error
		switch name {
		case pgbouncer:
			t.command, err = b.newPgBouncer(ctx)
		case pgmoor:
			t.command, err = b.newPgmoor(ctx)
		}
		if err != nil {
			return err
		}
		b.targets = append(b.targets, t)
	}
	return nil
}

const pgbouncerConfig = `[databases]
* = host=%s port=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = %s
auth_file = %s
pool_mode = transaction
default_pool_size = %d
max_client_conn = 12000
max_prepared_statements = 200
server_tls_sslmode = disable
log_connections = 0
log_disconnections = 0
`

func (b *bench) newPgBouncer(ctx context.Context) (func(int, access) (*exec.Cmd, error), error) {
	program, err := exec.LookPath(b.o.pgbouncer)
	if err != nil {
		return nil, fmt.Errorf("%w: put PgBouncer 1.21 or later into PATH, name it with -pgbouncer, or leave it out with -targets", err)
	}
	if program, err = filepath.Abs(program); err != nil {
		return nil, err
	}
	version, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --version: %w", program, err)
	}
	b.versions[pgbouncer], _, _ = strings.Cut(string(version), "\n")
	host, serverPort, err := net.SplitHostPort(b.pg.addr)
	if err != nil {
		return nil, err
	}
	return func(port int, how access) (*exec.Cmd, error) {
		conf := fmt.Sprintf(pgbouncerConfig, host, serverPort, port, how.method(), b.userList(how), serverConnections)
		if how.tls {
			conf += fmt.Sprintf("client_tls_sslmode = require\nclient_tls_cert_file = %s\nclient_tls_key_file = %s\n", b.tls.cert, b.tls.key)
		}
		path := filepath.Join(b.dir, "pgbouncer.ini")
		return exec.Command(program, path), os.WriteFile(path, []byte(conf), 0o644)
	}, nil
}

// standaloneDir is pgmoor's daemon, relative to this module.
const standaloneDir = "../examples/standalone"

func (b *bench) newPgmoor(ctx context.Context) (func(int, access) (*exec.Cmd, error), error) {
	program, err := b.pgmoorProgram(ctx)
	if err != nil {
		return nil, err
	}
	upstream := url.URL{Scheme: "postgres", User: url.User(b.o.user), Host: b.pg.addr, Path: b.o.db, RawQuery: "sslmode=disable"}
	return func(port int, how access) (*exec.Cmd, error) {
		cmd := exec.Command(program, "-listen", fmt.Sprintf("127.0.0.1:%d", port), "-upstream", upstream.String(),
			"-auth", how.method(), "-max-connections", strconv.Itoa(serverConnections))
		if how.scram {
			cmd.Args = append(cmd.Args, "-users", b.userList(how))
		}
		if how.tls {
			cmd.Args = append(cmd.Args, "-tls-cert", b.tls.cert, "-tls-key", b.tls.key)
		}
		return cmd, nil
	}, nil
}

// pgmoorProgram returns the daemon that was named, or builds it from the checkout around this module.
func (b *bench) pgmoorProgram(ctx context.Context) (string, error) {
	b.versions[pgmoor] = "unknown"
	if b.o.pgmoor != "" {
		program, err := exec.LookPath(b.o.pgmoor)
		if err != nil {
			return "", fmt.Errorf("-pgmoor: %w", err)
		}
		return filepath.Abs(program)
	}
	if _, err := os.Stat(standaloneDir); err != nil {
		return "", fmt.Errorf("%w: run this from the bench directory of a checkout, name a built daemon with -pgmoor, or leave it out with -targets", err)
	}
	program := filepath.Join(b.dir, "pgmoor")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, ".")
	build.Dir = standaloneDir
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build in %s: %w\n%s", standaloneDir, err, tail(string(out), 10))
	}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output(); err == nil {
		b.versions[pgmoor] = strings.TrimSpace(string(out))
	}
	return program, nil
}
