package etcd_test

import (
	"bufio"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

var churnTime = flag.Duration("churn", 15*time.Second, "how long TestInstancesNeverExceedTheirBudgetUnderChurn takes")

// process is an instance that runs.
type process struct {
	cmd  *exec.Cmd
	last atomic.Pointer[report]
	read sync.WaitGroup
}

func startInstance(t testing.TB, s settings) *process {
	t.Helper()
	value, err := json.Marshal(s)
	require.NoError(t, err)
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), instanceEnv+"="+string(value))
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	p.last.Store(&report{})
	p.read.Add(1)
	go p.listen(bufio.NewScanner(out))
	return p
}

// listen takes the reports.
func (p *process) listen(lines *bufio.Scanner) {
	defer p.read.Done()
	for lines.Scan() {
		r := new(report)
		if json.Unmarshal(lines.Bytes(), r) == nil {
			p.last.Store(r)
		}
	}
}

// end sends a signal and waits for the end. It returns the last report.
func (p *process) end(sig syscall.Signal) report {
	_ = p.cmd.Process.Signal(sig)
	p.read.Wait()
	_ = p.cmd.Wait()
	return *p.last.Load()
}

// poller counts PostgreSQL's sessions as fast as it can.
type poller struct {
	c     *pgconn.PgConn
	stop  chan struct{}
	wg    sync.WaitGroup
	polls int
	most  int
	err   error
}

func startPoller(t testing.TB, cluster *pgtest.Cluster) *poller {
	t.Helper()
	c, err := pgconn.Connect(t.Context(), cluster.DSN("postgres", "postgres"))
	require.NoError(t, err)
	p := &poller{c: c, stop: make(chan struct{})}
	p.wg.Add(1)
	go p.poll(t)
	return p
}

func (p *poller) poll(t testing.TB) {
	defer p.wg.Done()
	for {
		select {
		case <-p.stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
		r := p.c.ExecParams(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'", nil, nil, nil, nil).Read()
		if p.err = r.Err; p.err != nil {
			return
		}
		n := 0
		for _, d := range r.Rows[0][0] {
			n = 10*n + int(d-'0')
		}
		p.polls, p.most = p.polls+1, max(p.most, n)
	}
}

func (p *poller) close(t testing.TB) {
	close(p.stop)
	p.wg.Wait()
	require.NoError(t, p.c.Close(t.Context()))
}

// churn is what happens to the instances.
type churn struct {
	t         testing.TB
	settings  settings
	store     *store
	instances []*process
	commits   int64
	failures  int64
	kills     int
	terms     int
	outages   int
}

func (c *churn) add(r report) { c.commits, c.failures = c.commits+r.Commits, c.failures+r.Failures }

// replace ends an instance by a signal, and starts another in its place after a while.
func (c *churn) replace(i int, sig syscall.Signal, after time.Duration) {
	c.add(c.instances[i].end(sig))
	time.Sleep(after)
	c.instances[i] = startInstance(c.t, c.settings)
}

// outage takes etcd away, by a freeze or a crash.
func (c *churn) outage(d time.Duration, crash bool) {
	c.outages++
	if crash {
		c.store.kill()
		time.Sleep(d)
		c.store.start()
		return
	}
	c.store.signal(syscall.SIGSTOP)
	time.Sleep(d)
	c.store.signal(syscall.SIGCONT)
}

// TestInstancesNeverExceedTheirBudgetUnderChurn runs three processes that share one budget, kills and restarts them, takes etcd away, and counts the
// connections in front of the server and in it. With -churn 10m it is the long run of the documentation.
func TestInstancesNeverExceedTheirBudgetUnderChurn(t *testing.T) {
	cluster := pgtest.Start(t, 15, "client_connection_check_interval=200ms", "max_connections=60")
	relay := startRelay(t, cluster.Addr())
	etcd := startStore(t)
	c := &churn{t: t, store: etcd, settings: settings{
		Etcd: etcd.address, Server: relay.l.Addr().String(), Limit: 12, Instances: 3, Floor: 1,
		TTL: 4 * time.Second, Margin: 2 * time.Second, Interval: 200 * time.Millisecond,
		Clients: 16, Phase: 2 * time.Second, LongestWork: 40 * time.Millisecond,
	}}
	poll := startPoller(t, cluster)
	for range c.settings.Instances {
		c.instances = append(c.instances, startInstance(t, c.settings))
	}
	began := time.Now()
	outageAt := began.Add(*churnTime / 2)
	for time.Since(began) < *churnTime {
		time.Sleep(500*time.Millisecond + rand.N(1500*time.Millisecond))
		switch i := rand.IntN(len(c.instances)); {
		case time.Now().After(outageAt):
			outageAt = time.Now().Add(time.Minute)
			c.outage(500*time.Millisecond+rand.N(c.settings.TTL+time.Second), c.outages%2 == 1)
		case rand.IntN(4) == 0:
			c.terms++
			c.replace(i, syscall.SIGTERM, 0)
		default:
			c.kills++
			c.replace(i, syscall.SIGKILL, rand.N(time.Second))
		}
	}
	for _, p := range c.instances {
		c.add(p.end(syscall.SIGTERM))
	}
	poll.close(t)
	require.NoError(t, poll.err)
	_, most, total := relay.counts()
	t.Logf("%v: %d killed, %d ended, %d times without etcd; %d transactions, %d failures; limit %d: at most %d of %d connections at once in front of the server, %d in it (%d polls)",
		time.Since(began).Round(time.Second), c.kills, c.terms, c.outages, c.commits, c.failures, c.settings.Limit, most, total, poll.most, poll.polls)
	require.LessOrEqual(t, most, c.settings.Limit)
	require.LessOrEqual(t, poll.most, c.settings.Limit)
	require.Greater(t, most, c.settings.Limit/2, "the budget was not used")
	require.NotZero(t, c.kills)
	require.Greater(t, c.commits, int64(100))
	requireSoon(t, func() bool { now, _, _ := relay.counts(); return now == 0 }, "connections are left")
}
