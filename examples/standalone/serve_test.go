package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/examples/internal/demodb"
)

// database is what all tests of the package use.
var database *demodb.DB

func TestMain(m *testing.M) {
	var err error
	database, err = demodb.Open(context.Background(), "", func(string) {})
	if err != nil {
		panic(err)
	}
	code := m.Run()
	if err := os.RemoveAll(programDir); err != nil {
		panic(err)
	}
	if err := database.Close(); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// daemon is a running standalone.
type daemon struct {
	cmd     *exec.Cmd
	stderr  *bufio.Reader
	addr    string
	metrics string
}

var (
	readyLine   = regexp.MustCompile(`^pgmoor: ready on (\S+)( and \S+)*, upstream \S+, at most 3 server connections\n$`)
	metricsLine = regexp.MustCompile(`metrics.* addr=(\S+)`)
)

// startDaemon runs the program itself, since signals and exit statuses are part of it.
func startDaemon(t *testing.T, args ...string) *daemon {
	t.Helper()
	return startDaemonAt(t, "host="+strings.TrimSuffix(database.Upstream.Hosts[0], ":5432"), args...)
}

func startDaemonAt(t *testing.T, upstream string, args ...string) *daemon {
	t.Helper()
	return launch(t, exec.Command(build(t), append(flags("127.0.0.1:0", upstream), args...)...))
}

func flags(listen, upstream string) []string {
	return []string{"-listen", listen, "-upstream", upstream, "-max-connections", "3", "-metrics", "127.0.0.1:0"}
}

// build returns the path of the program, which is built once and removed in the end.
func build(t *testing.T) string {
	t.Helper()
	dir, err := buildOnce()
	require.NoError(t, err)
	return filepath.Join(dir, "standalone")
}

var buildOnce = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "standalone"); err == nil {
		programDir = dir
		err = exec.Command("go", "build", "-o", dir, ".").Run()
	}
	return dir, err
})

// programDir is where build has put the program; empty as long as it was not called.
var programDir string

// launch starts the program and waits until it is ready.
func launch(t *testing.T, cmd *exec.Cmd) *daemon {
	t.Helper()
	d := &daemon{cmd: cmd}
	pipe, err := d.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, d.cmd.Start())
	t.Cleanup(func() { _ = d.cmd.Process.Kill() })
	d.stderr = bufio.NewReader(pipe)
	for d.addr == "" {
		line, err := d.stderr.ReadString('\n')
		require.NoError(t, err, "%s", line)
		if m := metricsLine.FindStringSubmatch(line); m != nil {
			d.metrics = m[1]
		}
		if m := readyLine.FindStringSubmatch(line); m != nil {
			d.addr = m[1]
		}
	}
	return d
}

func (d *daemon) signal(t *testing.T) {
	t.Helper()
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
}

// exit waits for the end and returns the exit status.
func (d *daemon) exit(t *testing.T) int {
	t.Helper()
	_, err := io.Copy(io.Discard, d.stderr)
	require.NoError(t, err)
	_ = d.cmd.Wait()
	return d.cmd.ProcessState.ExitCode()
}

func connect(t *testing.T, conninfo string) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig(conninfo)
	require.NoError(t, err)
	cfg.User, cfg.Database, cfg.DefaultQueryExecMode = database.User, database.Database, pgx.QueryExecModeExec
	c, err := pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func host(addr string) string {
	h, p, _ := net.SplitHostPort(addr)
	return "host=" + h + " port=" + p
}

func userList(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "userlist.txt")
	require.NoError(t, os.WriteFile(path, []byte(`"`+database.User+`" "correct horse"`+"\n"), 0o600))
	return path
}

func TestClientsLogInAndFiguresAreServed(t *testing.T) {
	socketDir := t.TempDir()
	socket := filepath.Join(socketDir, ".s.PGSQL.6432")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	require.NoError(t, err)
	left.SetUnlinkOnClose(false) // as if its owner had been killed
	require.NoError(t, left.Close())

	cert, key := certificate(t)
	d := startDaemon(t, "-users", userList(t), "-listen", socket, "-tls-cert", cert, "-tls-key", key, "-require-tls")
	for _, conninfo := range []string{
		host(d.addr) + " sslmode=require password='correct horse'",
		"host=" + socketDir + " port=6432 password='correct horse'",
	} {
		var one int
		require.NoError(t, connect(t, conninfo).QueryRow(t.Context(), "select 1").Scan(&one))
	}
	_, err = pgx.Connect(t.Context(), host(d.addr)+" sslmode=disable password='correct horse'")
	require.ErrorContains(t, err, "encrypted")

	var stats pgmoor.Stats
	require.NoError(t, json.Unmarshal(get(t, "http://"+d.metrics+"/stats"), &stats))
	require.EqualValues(t, 2, stats.ClientsTotal)
	require.Equal(t, "ok\n", string(get(t, "http://"+d.metrics+"/healthz")))
	d.signal(t)
	require.Zero(t, d.exit(t))
}

func get(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	return body
}

func TestTheFirstSignalWaitsForTransactions(t *testing.T) {
	d := startDaemon(t, "-auth", "trust")
	c := connect(t, host(d.addr)+" sslmode=disable")
	tx, err := c.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "select 1")
	require.NoError(t, err)
	d.signal(t)
	_, err = d.stderr.ReadString('\n') // that it drains
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	require.Zero(t, d.exit(t))
}

func TestTheSecondSignalDoesNot(t *testing.T) {
	d := startDaemon(t, "-auth", "trust", "-drain-timeout", "1h")
	_, err := connect(t, host(d.addr)+" sslmode=disable").Exec(t.Context(), "begin")
	require.NoError(t, err)
	d.signal(t)
	_, err = d.stderr.ReadString('\n')
	require.NoError(t, err)
	d.signal(t)
	require.Equal(t, 1, d.exit(t))
}

func TestClientsThatAreCutOffAreTold(t *testing.T) {
	d := startDaemon(t, "-auth", "trust", "-drain-timeout", "1h")
	c := connect(t, host(d.addr)+" sslmode=disable")
	_, err := c.Exec(t.Context(), "begin")
	require.NoError(t, err)
	d.signal(t)
	line, err := d.stderr.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "a second signal cuts them off")
	d.signal(t)
	line, err = d.stderr.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "pgmoor: 1 clients were cut off by the second signal\n", line)
	_, err = c.Exec(t.Context(), "select 1")
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, "57P01", pg.Code)
	require.Equal(t, 1, d.exit(t))
}

func TestTheTimeLimitOfDrainingIsSaid(t *testing.T) {
	d := startDaemon(t, "-auth", "trust", "-drain-timeout", "10ms")
	_, err := connect(t, host(d.addr)+" sslmode=disable").Exec(t.Context(), "begin")
	require.NoError(t, err)
	d.signal(t)
	said, err := io.ReadAll(d.stderr)
	require.NoError(t, err)
	require.Contains(t, string(said), "pgmoor: 1 clients did not finish within 10ms (-drain-timeout) and were cut off\n")
	require.Equal(t, 1, d.exit(t))
}

// tell sends a signal, and waits for a line of the log that says something.
func (d *daemon) tell(t *testing.T, s os.Signal, says string) {
	t.Helper()
	require.NoError(t, d.cmd.Process.Signal(s))
	d.says(t, says)
}

// says waits for a line of the log that says something.
func (d *daemon) says(t *testing.T, says string) {
	t.Helper()
	for {
		line, err := d.stderr.ReadString('\n')
		require.NoError(t, err, "nothing says %q", says)
		if strings.Contains(line, says) {
			return
		}
	}
}

func TestSIGHUPReadsFilesAgain(t *testing.T) {
	users := userList(t)
	cert, key := certificate(t)
	d := startDaemon(t, "-users", users, "-tls-cert", cert, "-tls-key", key)
	stays := connect(t, host(d.addr)+" sslmode=require password='correct horse'")
	shown := func() []byte {
		cfg, err := pgx.ParseConfig(host(d.addr) + " sslmode=require password='battery staple'")
		require.NoError(t, err)
		cfg.User, cfg.Database = database.User, database.Database
		var raw []byte
		cfg.TLSConfig.VerifyConnection = func(s tls.ConnectionState) error { raw = s.PeerCertificates[0].Raw; return nil }
		c, err := pgx.ConnectConfig(t.Context(), cfg)
		if err == nil {
			require.NoError(t, c.Close(t.Context()))
		} else {
			require.ErrorContains(t, err, "28P01")
			require.NotNil(t, raw)
		}
		return raw
	}
	first := shown()
	require.NoError(t, os.WriteFile(users, []byte("nonsense\n"), 0o600))
	d.tell(t, syscall.SIGHUP, "nothing is changed by SIGHUP: -users")
	require.Equal(t, first, shown())

	require.NoError(t, os.WriteFile(users, []byte(`"`+database.User+`" "battery staple"`+"\n"), 0o600))
	otherCert, otherKey := certificate(t)
	require.NoError(t, os.Rename(otherCert, cert))
	require.NoError(t, os.Rename(otherKey, key))
	d.tell(t, syscall.SIGHUP, "files were read again")
	require.NotEqual(t, first, shown())
	var one int
	require.NoError(t, stays.QueryRow(t.Context(), "select 1").Scan(&one))
	c := connect(t, host(d.addr)+" sslmode=require password='battery staple'")
	require.NoError(t, c.QueryRow(t.Context(), "select 1").Scan(&one))
	d.signal(t)
	require.Zero(t, d.exit(t))
}

func TestSIGUSR1PausesAndSIGUSR2Resumes(t *testing.T) {
	d := startDaemon(t, "-auth", "trust", "-borrow-timeout", "1s")
	c, txn := connect(t, host(d.addr)+" sslmode=disable"), connect(t, host(d.addr)+" sslmode=disable")
	_, err := txn.Exec(t.Context(), "begin")
	require.NoError(t, err)
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGUSR1))
	_, err = txn.Exec(t.Context(), "commit")
	require.NoError(t, err)
	d.tell(t, syscall.SIGUSR1, "paused: no server connection is in use")
	got := make(chan error, 1)
	go ask(c, got)
	require.Eventually(t, func() bool { return strings.Contains(string(get(t, "http://"+d.metrics+"/stats")), `"Waiting":1`) }, 10*time.Second, 10*time.Millisecond)
	require.Empty(t, got)
	d.tell(t, syscall.SIGUSR2, "resumed")
	require.NoError(t, <-got)

	_, err = txn.Exec(t.Context(), "begin")
	require.NoError(t, err)
	d.tell(t, syscall.SIGUSR1, "pausing")
	d.signal(t) // undoes the pause, and the transaction may end
	d.says(t, "draining")
	_, err = txn.Exec(t.Context(), "commit")
	require.NoError(t, err)
	require.Zero(t, d.exit(t))
}

func ask(c *pgx.Conn, got chan<- error) {
	_, err := c.Exec(context.Background(), "select 1")
	got <- err
}

func TestAnAddressThatIsTakenIsNamedWithARemedy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	socket := filepath.Join(t.TempDir(), "s")
	taken, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer taken.Close()
	for name, flags := range map[string][]string{
		"-listen " + l.Addr().String():  {"-listen", l.Addr().String()},
		"-listen " + socket:             {"-listen", socket},
		"-metrics " + l.Addr().String(): {"-listen", "127.0.0.1:0", "-metrics", l.Addr().String()},
	} {
		var stderr bytes.Buffer
		require.Equal(t, 1, run(append(flags, "-upstream", "postgres://u:p@127.0.0.1"), io.Discard, &stderr))
		require.Contains(t, stderr.String(), "pgmoor: "+name+": ")
		require.Contains(t, stderr.String(), "another program has it")
	}
}

func TestASocketHasTheModeThatIsAskedFor(t *testing.T) {
	for flag, want := range map[string]os.FileMode{"": 0o777, "0700": 0o700} {
		o := &options{}
		o.flags()
		if flag != "" {
			require.NoError(t, o.socketMode.Set(flag))
		}
		path := filepath.Join(t.TempDir(), "s")
		l, err := o.listenOn(path)
		require.NoError(t, err)
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, want, info.Mode().Perm())
		require.NoError(t, l.Close())
	}
}

func TestAServerThatCannotBeReachedIsNamedAtTheStart(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	d := startDaemonAt(t, "postgres://"+address, "-auth", "trust")
	line, err := d.stderr.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "level=WARN")
	require.Contains(t, line, "server="+address)
	require.Contains(t, line, "-upstream")
	require.Contains(t, line, "-borrow-timeout")
	d.signal(t)
	require.Zero(t, d.exit(t))
}

// certificate returns the files of a self-signed certificate and its key.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	return certFile, keyFile
}

func TestSIGHUPKeepsFailuresAndReadsRulesAgain(t *testing.T) {
	rules := writeFile(t, "host all all all scram-sha-256\n")
	d := startDaemon(t, "-users", userList(t), "-hba", rules, "-max-login-failures", "2")
	refused := func(password string) string {
		_, err := pgx.Connect(t.Context(), host(d.addr)+" sslmode=disable user="+database.User+" dbname="+database.Database+" password="+password)
		var e *pgconn.PgError
		require.ErrorAs(t, err, &e)
		return e.Code
	}
	for range 2 {
		require.Equal(t, "28P01", refused("wrong"))
	}
	require.NoError(t, os.WriteFile(rules, []byte("host all all all password\n"), 0o600))
	d.tell(t, syscall.SIGHUP, "files were read again")
	require.Equal(t, "53300", refused("wrong"))
	require.NoError(t, os.WriteFile(rules, []byte("host all all all nonsense\n"), 0o600))
	d.tell(t, syscall.SIGHUP, "nothing is changed by SIGHUP: -hba")
	d.signal(t)
	require.Zero(t, d.exit(t))
}
