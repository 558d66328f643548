//go:build unix

package demodb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgmoor/pgmoor"
)

const (
	demoUser = "quickstart" // name of the role and of its database
	socket   = ".s.PGSQL.5432"
	// startLimit bounds how long a server may take to accept connections.
	startLimit = 60 * time.Second
	// stopLimit bounds how long it may take to stop.
	stopLimit = 10 * time.Second
)

// settings are for a server that is thrown away: nothing needs to survive a crash. It is reached through a Unix socket
// that only its user can open, so nobody needs a password.
var settings = []string{
	"listen_addresses=", "max_connections=30", "fsync=off", "synchronous_commit=off", "full_page_writes=off",
	"shared_buffers=32MB", "logging_collector=off",
}

// server is a throw-away PostgreSQL.
type server struct {
	dir  string // holds everything, and goes with it
	as   account
	cmd  *exec.Cmd // nil when not running
	log  bytes.Buffer
	dead chan struct{} // closed by wait
}

func openThrowaway(ctx context.Context, say func(string)) (*DB, error) {
	s := &server{}
	db, err := s.open(ctx, say)
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return db, nil
}

func (s *server) open(ctx context.Context, say func(string)) (*DB, error) {
	var err error
	if s.as, err = unprivileged(); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp("", "pgmoor-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(s.dir, 0o711); err != nil { // the server's user has to get in
		return nil, err
	}
	bin, err := s.as.findPrograms(ctx, programDirs())
	if errors.Is(err, errNoPrograms) {
		bin, err = s.as.fetchPrograms(ctx, s.dir, say)
	}
	if err != nil {
		return nil, err
	}
	say("starting a throw-away server with " + bin.version + " of " + bin.dir)
	if err := s.initialize(ctx, bin); err != nil {
		return nil, err
	}
	if err := s.start(bin); err != nil {
		return nil, err
	}
	if err := s.populate(ctx); err != nil {
		return nil, err
	}
	db := &DB{
		Upstream: pgmoor.Upstream{Hosts: []string{s.data()}}, User: demoUser, Database: demoUser,
		source: s.source(demoUser), server: s,
	}
	db.invent()
	return db, nil
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }

func (s *server) source(name string) string {
	return fmt.Sprintf("host=%s user=%s dbname=%s sslmode=disable", s.data(), name, name)
}

func (s *server) initialize(ctx context.Context, bin programs) error {
	if err := os.Mkdir(s.data(), 0o700); err != nil {
		return err
	}
	if err := s.as.own(s.data()); err != nil {
		return err
	}
	cmd := s.as.command(ctx, bin.dir, "initdb", "-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return nil
}

// start returns while the server is still starting.
func (s *server) start(bin programs) error {
	args := []string{"-D", s.data(), "-k", s.data()}
	for _, v := range settings {
		args = append(args, "-c", v)
	}
	cmd := s.as.command(context.Background(), bin.dir, "postgres", args...)
	cmd.Stderr = &s.log
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd, s.dead = cmd, make(chan struct{})
	go s.wait()
	return nil
}

func (s *server) wait() {
	_ = s.cmd.Wait() // its status says no more than its log
	close(s.dead)
}

// stop ends the server without ceremony, since nothing of it is kept, and deletes it.
func (s *server) stop() error {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		select {
		case <-s.dead:
		case <-time.After(stopLimit):
			_ = s.cmd.Process.Kill()
			<-s.dead
		}
		s.cmd = nil
	}
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}

// populate waits for the server and creates the role and the database.
func (s *server) populate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	c, err := s.firstConn(ctx)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	for _, sql := range []string{"create role " + demoUser + " login", "create database " + demoUser + " owner " + demoUser} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) firstConn(ctx context.Context) (*pgx.Conn, error) {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		c, err := pgx.Connect(ctx, s.source("postgres"))
		if err == nil {
			return c, nil
		}
		select {
		case <-t.C:
		case <-s.dead:
			return nil, fmt.Errorf("PostgreSQL did not start:\n%s", strings.TrimSpace(s.log.String()))
		case <-ctx.Done():
			return nil, fmt.Errorf("PostgreSQL did not answer: %w", err)
		}
	}
}
