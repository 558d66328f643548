package etcd_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(instanceEnv) != "" {
		os.Exit(instance())
	}
	os.Exit(pgtest.Main(m))
}

// A store is an etcd server of its own, which a test may stop, freeze and start again.
type store struct {
	t       testing.TB
	dir     string
	address string
	cmd     *exec.Cmd
}

// startStore runs etcd until the test ends. Where it is not installed the test fails.
func startStore(t testing.TB) *store {
	t.Helper()
	_, err := exec.LookPath("etcd")
	require.NoError(t, err, "etcd is missing: scripts/install-etcd.sh")
	s := &store{t: t, dir: t.TempDir(), address: freeAddress(t)}
	s.start()
	t.Cleanup(s.kill)
	return s
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

func (s *store) start() {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(s.t, err)
	defer log.Close()
	peer := "http://" + freeAddress(s.t)
	s.cmd = exec.Command("etcd", "--data-dir", filepath.Join(s.dir, "data"), "--name", "one",
		"--listen-client-urls", "http://"+s.address, "--advertise-client-urls", "http://"+s.address,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "one="+peer,
		"--heartbeat-interval", "50", "--election-timeout", "500")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	require.NoError(s.t, s.cmd.Start())
	c := s.client()
	defer c.Close()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := c.Get(s.t.Context(), "ready"); err == nil {
			return
		}
		require.True(s.t, time.Now().Before(limit), "etcd does not start: see %s", log.Name())
	}
}

// client returns a client that the test closes.
func (s *store) client() *clientv3.Client {
	s.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.address}, Logger: zap.NewNop(), DialTimeout: time.Second})
	require.NoError(s.t, err)
	return c
}

func (s *store) kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

func (s *store) signal(sig syscall.Signal) { require.NoError(s.t, s.cmd.Process.Signal(sig)) }

// requireSoon looks until cond is true.
func requireSoon(t testing.TB, cond func() bool, what ...any) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		require.True(t, time.Now().Before(limit), fmt.Sprint(what...))
	}
}
