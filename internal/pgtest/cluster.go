package pgtest

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// StopMode says how a server is asked to stop.
type StopMode syscall.Signal

const (
	// Smart waits for the clients to leave.
	Smart = StopMode(syscall.SIGTERM)
	// Fast ends the clients' transactions and disconnects them.
	Fast = StopMode(syscall.SIGINT)
	// Immediate leaves without a checkpoint; the next start recovers.
	Immediate = StopMode(syscall.SIGQUIT)
)

// startTimeout bounds how long a server may take to accept connections.
const startTimeout = 60 * time.Second

// A Cluster is a PostgreSQL server of its own on a loopback port and a Unix socket, with TLS. Its databases are app and
// other besides postgres; its roles app, other and the superuser postgres log in without a password, the roles
// pw_scram, pw_md5 and pw_plain over TCP with Password in the way that their name says.
//
// The methods that start, stop, freeze and kill must not be called concurrently.
type Cluster struct {
	binaries Binaries
	account  account
	settings []string
	dir      string // holds the data directory and the socket
	port     int
	ca       *CA
	server   *server // nil when stopped
}

// Start runs a new cluster of a major version until the test ends, with settings ("name=value") over those that all
// clusters have. A version that is not installed fails the test.
func Start(t testing.TB, version int, settings ...string) *Cluster {
	t.Helper()
	c, err := newCluster(version, settings)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of PostgreSQL %d:\n%s", version, c.Log())
		}
		if err := c.destroy(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func newCluster(version int, settings []string) (*Cluster, error) {
	c, from, err := unmade(version, settings)
	if err != nil {
		return nil, err
	}
	if err = c.create(from); err == nil {
		err = c.startOnFreePort()
	}
	if err != nil {
		return nil, errors.Join(err, c.destroy())
	}
	return c, nil
}

// unmade is a cluster that has no directory yet, and the template of the one that it is to have.
func unmade(version int, settings []string) (c *Cluster, from string, err error) {
	b, err := FindBinaries(version)
	if err != nil {
		return nil, "", err
	}
	a, err := serverAccount()
	if err != nil {
		return nil, "", err
	}
	from, err = template(b, a)
	return &Cluster{binaries: b, account: a, settings: settings}, from, err
}

// create lays out the cluster's directory: the path stays short, as that of a Unix socket must.
func (c *Cluster) create(from string) error {
	var err error
	if c.dir, err = os.MkdirTemp("", "pgt"); err != nil {
		return err
	}
	if err = os.Chmod(c.dir, 0o755); err != nil {
		return err
	}
	if err = c.account.own(c.dir); err != nil {
		return err
	}
	if err = c.account.copyTree(from, c.DataDir()); err != nil {
		return err
	}
	return c.certify()
}

func (c *Cluster) certify() error {
	var err error
	if c.ca == nil {
		if c.ca, err = NewCA(); err != nil {
			return err
		}
	}
	cert, key, err := c.ca.Issue("localhost")
	if err != nil {
		return err
	}
	files := map[string][]byte{"root.crt": c.ca.PEM(), "server.crt": cert, "server.key": key}
	for name, data := range files {
		if err = c.account.write(filepath.Join(c.DataDir(), name), data); err != nil {
			return err
		}
	}
	return nil
}

// startOnFreePort tries ports until the server gets one: another process may take a port between the look and the start.
func (c *Cluster) startOnFreePort() error {
	var err error
	for range 5 {
		if c.port, err = freePort(); err != nil {
			return err
		}
		if err = c.start(); err == nil || !strings.Contains(err.Error(), "Address already in use") {
			return err
		}
	}
	return err
}

// freePort picks a port below those that the kernel gives to outgoing connections, so that it is still free when a
// stopped server is started again.
func freePort() (int, error) {
	for range 100 {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("pgtest: no free port")
}

func (c *Cluster) start() error {
	args := []string{"-D", c.DataDir(), "-p", strconv.Itoa(c.port), "-k", c.dir}
	for _, s := range c.settings {
		args = append(args, "-c", s)
	}
	s, err := startServer(c.binaries.command("postgres", args...), c.account)
	if err != nil {
		return err
	}
	c.server = s
	return nil
}

// Restart stops a running server in the given mode, and starts it on the same port.
func (c *Cluster) Restart(mode StopMode) error {
	if c.server != nil {
		if err := c.Stop(mode); err != nil {
			return err
		}
	}
	return c.start()
}

// Stop stops the server and waits until all of its processes are gone. A stopped cluster is started by Restart.
func (c *Cluster) Stop(mode StopMode) error {
	if c.server == nil {
		return nil
	}
	err := c.server.signal(syscall.Signal(mode))
	c.server.wait()
	c.server = nil
	return err
}

// Kill ends all processes of the server at once, as the loss of the machine would, and waits until they are gone.
func (c *Cluster) Kill() error {
	if c.server == nil {
		return nil
	}
	err := c.server.signalTree(syscall.SIGKILL)
	c.server.wait()
	c.server = nil
	return errors.Join(err, removeSegment(filepath.Join(c.DataDir(), "postmaster.pid")))
}

// Freeze stops all processes of the server where they are: connections stay open and nothing answers.
func (c *Cluster) Freeze() error { return c.server.signalTree(syscall.SIGSTOP) }

// Thaw lets a frozen server go on.
func (c *Cluster) Thaw() error { return c.server.signalTree(syscall.SIGCONT) }

func (c *Cluster) destroy() error {
	err := c.Kill()
	if c.dir != "" {
		err = errors.Join(err, os.RemoveAll(c.dir))
	}
	return err
}

// Addr is the server's TCP address.
func (c *Cluster) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)) }

// SocketDir is the directory of the server's Unix socket.
func (c *Cluster) SocketDir() string { return c.dir }

// Socket is the path of the server's Unix socket.
func (c *Cluster) Socket() string { return filepath.Join(c.dir, ".s.PGSQL."+strconv.Itoa(c.port)) }

// DataDir is the server's data directory.
func (c *Cluster) DataDir() string { return filepath.Join(c.dir, "data") }

// CA is the authority that signed the server's certificate and whose client certificates the server knows.
func (c *Cluster) CA() *CA { return c.ca }

// CACertPool holds the authority that signed the server's certificate, which is for localhost and 127.0.0.1.
func (c *Cluster) CACertPool() *x509.CertPool { return c.ca.Pool() }

// Log is the end of what the server has written to its log since it was last started.
func (c *Cluster) Log() string {
	if c.server == nil {
		return ""
	}
	return c.server.log.String()
}

// DSN is a connection string for the server's TCP address, without TLS and with the password of the roles that have one.
func (c *Cluster) DSN(user, database string) string {
	if strings.HasPrefix(user, "pw_") {
		user += ":" + Password
	}
	return fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", user, c.Addr(), database)
}

// Dial connects to the server's Unix socket.
func (c *Cluster) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", c.Socket())
}

// Exec runs statements as the superuser in the database app and returns the rows of the last one as text, null as "".
func (c *Cluster) Exec(t testing.TB, sql string) [][]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	rows, err := c.query(ctx, sql)
	require.NoError(t, err)
	return rows
}

func (c *Cluster) query(ctx context.Context, sql string) ([][]string, error) {
	conn, err := pgconn.Connect(ctx, c.DSN("postgres", "app"))
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	return rowsOf(ctx, conn, sql)
}

// rowsOf runs statements and returns the rows of the last one.
func rowsOf(ctx context.Context, conn *pgconn.PgConn, sql string) ([][]string, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil || len(results) == 0 {
		return nil, err
	}
	var rows [][]string
	for _, values := range results[len(results)-1].Rows {
		row := make([]string, len(values))
		for i, v := range values {
			row[i] = string(v)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// A server is one run of the postgres program. Its goroutine readLog ends when the last of its processes has.
type server struct {
	cmd   *exec.Cmd
	log   logTail
	ready chan struct{} // closed by readLog when connections are accepted
	done  chan struct{} // closed by readLog when all processes are gone
}

// startServer returns when the server accepts connections.
func startServer(cmd *exec.Cmd, a account) (*server, error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr, cmd.Dir = in, in, "/"
	cmd.SysProcAttr = a.sysProcAttr()
	err = cmd.Start()
	in.Close()
	if err != nil {
		out.Close()
		return nil, err
	}
	s := &server{cmd: cmd, ready: make(chan struct{}), done: make(chan struct{})}
	go s.readLog(out)
	select {
	case <-s.ready:
		return s, nil
	case <-s.done:
		return nil, fmt.Errorf("pgtest: PostgreSQL did not start:\n%s", s.log.String())
	case <-time.After(startTimeout):
		err = s.signalTree(syscall.SIGKILL)
		s.wait()
		return nil, errors.Join(fmt.Errorf("pgtest: PostgreSQL took too long to start:\n%s", s.log.String()), err)
	}
}

// readLog keeps the end of the log. All processes of the server hold the other end of the pipe, so its end is theirs.
func (s *server) readLog(out io.ReadCloser) {
	defer close(s.done)
	defer out.Close()
	lines := bufio.NewReader(out)
	announced := false
	for {
		line, err := lines.ReadString('\n')
		s.log.add(line)
		if !announced && strings.Contains(line, "database system is ready to accept") {
			announced = true
			close(s.ready)
		}
		if err != nil {
			break
		}
	}
	_ = s.cmd.Wait() // the exit status of a server that was told to stop says nothing more
}

func (s *server) wait() { <-s.done }

func (s *server) signal(sig syscall.Signal) error { return s.cmd.Process.Signal(sig) }

// signalTree signals the postmaster and its children. The postmaster is halted first, so that it starts no other child
// meanwhile; for SIGCONT it comes last for the same reason.
func (s *server) signalTree(sig syscall.Signal) error {
	if err := s.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	pids, err := children(s.cmd.Process.Pid)
	for _, pid := range pids {
		if killErr := syscall.Kill(pid, sig); killErr != nil && !errors.Is(killErr, syscall.ESRCH) {
			err = errors.Join(err, killErr)
		}
	}
	return errors.Join(err, s.signal(sig))
}

// logTail is the last part of a log.
type logTail struct {
	mu   sync.Mutex
	text string
}

func (l *logTail) add(line string) {
	const keep = 64 << 10
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text += line
	if len(l.text) > 2*keep {
		l.text = l.text[len(l.text)-keep:]
	}
}

func (l *logTail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text
}
