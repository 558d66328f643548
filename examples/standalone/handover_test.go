//go:build linux

package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// pgbench returns the path of pgbench.
func pgbench(t *testing.T) string {
	t.Helper()
	installed, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench")
	if path, err := exec.LookPath("pgbench"); err == nil {
		installed = append(installed, path)
	}
	if len(installed) == 0 {
		t.Skip("pgbench is not installed")
	}
	return installed[0]
}

// underPgbench has clients that connect anew for every transaction while restart is called again and again, and requires that no
// connection failed, nor was ended.
func underPgbench(t *testing.T, d *daemon, restart func(old *daemon) *daemon) {
	t.Helper()
	script := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(script, []byte("select 1;\n"), 0o600))
	h, port, err := net.SplitHostPort(d.addr)
	require.NoError(t, err)
	// A thread for each client: one that waits for a connection would hold up the other's.
	cmd := exec.Command(pgbench(t), "-n", "-C", "-c", "4", "-j", "4", "-T", "4", "-f", script, "-h", h, "-p", port, "-U", database.User, database.Database)
	cmd.Env = append(os.Environ(), "PGSSLMODE=disable")
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	require.NoError(t, cmd.Start())
	until := time.Now().Add(3 * time.Second)
	restarts := 0
	for ; time.Now().Before(until); restarts++ {
		require.Eventually(t, func() bool { return clientsOf(t, d) > 20 }, 10*time.Second, 10*time.Millisecond)
		d = restart(d)
	}
	require.NoError(t, cmd.Wait(), "%s", &said)
	require.Contains(t, said.String(), "number of failed transactions: 0 (")
	require.NotContains(t, said.String(), "FATAL")
	t.Logf("%d restarts\n%s", restarts, &said)
	d.signal(t)
	require.Zero(t, d.exit(t))
}

// clientsOf returns how many clients a daemon has served.
func clientsOf(t *testing.T, d *daemon) int64 {
	t.Helper()
	var stats pgmoor.Stats
	require.NoError(t, json.Unmarshal(get(t, "http://"+d.metrics+"/stats"), &stats))
	return stats.ClientsTotal
}

// passed starts the program with a socket as systemd passes it.
func passed(t *testing.T, program string, sockets []*os.File, names string, args ...string) *daemon {
	t.Helper()
	args = append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, program}, args...)
	cmd := exec.Command("sh", args...)
	cmd.ExtraFiles = sockets
	cmd.Env = append(os.Environ(), "LISTEN_FDS="+string(rune('0'+len(sockets))), "LISTEN_FDNAMES="+names)
	return launch(t, cmd)
}

// activated opens a port as a socket unit does.
func activated(t *testing.T) (socket *os.File, address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	socket, err = l.(*net.TCPListener).File()
	require.NoError(t, err)
	t.Cleanup(func() { socket.Close() })
	return socket, l.Addr().String()
}

func upstreamFlags() []string {
	up := "host=" + strings.TrimSuffix(database.Upstream.Hosts[0], ":5432")
	return []string{"-upstream", up, "-max-connections", "3", "-auth", "trust", "-metrics", "127.0.0.1:0"}
}

func TestNoConnectionFailsAcrossARestartWithAPassedSocket(t *testing.T) {
	program := build(t)
	socket, address := activated(t)
	start := func() *daemon { return passed(t, program, []*os.File{socket}, "pgmoor.socket", upstreamFlags()...) }
	d := start()
	require.Equal(t, address, d.addr)
	overlapping := false
	underPgbench(t, d, func(old *daemon) (d *daemon) {
		if overlapping = !overlapping; overlapping {
			d = start()
		}
		old.signal(t)
		require.Zero(t, old.exit(t))
		if !overlapping { // clients have waited for the successor in the socket's queue
			d = start()
		}
		return d
	})
}

func TestNoConnectionFailsAcrossARestartWithASharedPort(t *testing.T) {
	program := build(t)
	start := func(address string) *daemon {
		return launch(t, exec.Command(program, append([]string{"-reuseport", "-listen", address}, upstreamFlags()...)...))
	}
	underPgbench(t, start("127.0.0.1:0"), func(old *daemon) *daemon {
		d := start(old.addr)
		old.signal(t)
		require.Zero(t, old.exit(t))
		return d
	})
}

func TestASocketForFiguresIsKnownByItsName(t *testing.T) {
	clients, address := activated(t)
	figures, metrics := activated(t)
	d := passed(t, build(t), []*os.File{figures, clients}, "metrics:pgmoor.socket", upstreamFlags()...)
	require.Equal(t, address, d.addr)
	require.Equal(t, metrics, d.metrics)
	require.Equal(t, "ok\n", string(get(t, "http://"+metrics+"/readyz")))
	d.signal(t)
	require.Zero(t, d.exit(t))
}

func TestNotReadyFromTheFirstSignalOn(t *testing.T) {
	d := startDaemon(t, "-auth", "trust", "-drain-grace", "0")
	c := connect(t, host(d.addr)+" sslmode=disable")
	_, err := c.Exec(t.Context(), "begin")
	require.NoError(t, err)
	require.Equal(t, "ok\n", string(get(t, "http://"+d.metrics+"/readyz")))
	d.signal(t)
	_, err = d.stderr.ReadString('\n')
	require.NoError(t, err)
	resp, err := http.Get("http://" + d.metrics + "/readyz")
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Equal(t, "ok\n", string(get(t, "http://"+d.metrics+"/healthz")))
	_, err = c.Exec(t.Context(), "commit")
	require.NoError(t, err)
	require.Zero(t, d.exit(t))
}

func TestSystemdIsToldWhatTheDaemonDoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer l.Close()
	cmd := exec.Command(build(t), append(flags("127.0.0.1:0", "postgres://127.0.0.1:1"), "-auth", "trust")...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	d := launch(t, cmd)
	told := func() string {
		b := make([]byte, 100)
		n, err := l.Read(b)
		require.NoError(t, err)
		return string(b[:n])
	}
	require.Equal(t, "READY=1", told())
	d.signal(t)
	require.Equal(t, "STOPPING=1", told())
	require.Zero(t, d.exit(t))
}

func TestBalancersTellWhoTheirClientsAre(t *testing.T) {
	d := startDaemon(t, "-auth", "trust", "-proxy-protocol", "127.0.0.1, 10.0.0.0/8")
	startup := "\x00\x03\x00\x00user\x00" + database.User + "\x00database\x00" + database.Database + "\x00\x00"
	startup = "\x00\x00\x00" + string(rune(4+len(startup))) + startup
	for from, want := range map[string]string{"127.0.0.1": "R", "203.0.113.7": "E"} { // trusted, as it is local, or refused
		c, err := net.Dial("tcp", d.addr)
		require.NoError(t, err)
		_, err = c.Write([]byte("PROXY TCP4 " + from + " 127.0.0.1 54321 6432\r\n" + startup))
		require.NoError(t, err)
		var b [1]byte
		_, err = io.ReadFull(c, b[:])
		require.NoError(t, err)
		require.Equal(t, want, string(b[:]))
		require.NoError(t, c.Close())
	}
	d.signal(t)
	require.Zero(t, d.exit(t))
}

func TestSocketsOfTheEnvironmentAreUnderstood(t *testing.T) {
	for _, test := range []struct {
		pid, fds, names string
		want            []string
	}{
		{"", "2", "a:b", nil},
		{"1", "2", "a:b", nil},
		{"own", "2", "a:b", []string{"a", "b"}},
		{"own", "2", "a", []string{"a", ""}},
		{"own", "1", "", []string{""}},
		{"own", "0", "", []string{}},
	} {
		if test.pid == "own" {
			test.pid = strconv.Itoa(os.Getpid())
		}
		t.Setenv("LISTEN_PID", test.pid)
		t.Setenv("LISTEN_FDS", test.fds)
		t.Setenv("LISTEN_FDNAMES", test.names)
		names, err := inheritedNames()
		require.NoError(t, err)
		require.Equal(t, test.want, names)
	}
	t.Setenv("LISTEN_FDS", "many")
	_, err := inheritedNames()
	require.ErrorContains(t, err, "LISTEN_FDS")
}
