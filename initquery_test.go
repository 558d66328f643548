package pgmoor_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// initially serves a proxy with an InitQuery.
func initially(t *testing.T, version, connections int, query string) *pgmoor.Proxy {
	t.Helper()
	cfg := trusting(pgtest.Shared(t, version))
	cfg.MaxConnections, cfg.InitQuery, cfg.Logger = connections, query, quiet
	return startProxy(t, cfg)
}

const severalSettings = `SET work_mem = '7MB'; SET TIME ZONE 'Asia/Tokyo';; SELECT set_config('app.tenant', 'none', false), 2; SET search_path = pg_catalog, public`

func TestInitQueryIsRunBeforeAnybodyGetsAConnection(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p := initially(t, version, 3, severalSettings)
		var all []*client
		for range 3 {
			c := over(t, p)
			require.Equal(t, "Asia/Tokyo", c.told["TimeZone"])
			c.ok("BEGIN")
			require.Equal(t, "7MB", c.ok("SHOW work_mem"))
			require.Equal(t, "none", c.ok("SHOW app.tenant"))
			require.Equal(t, "pg_catalog, public", c.ok("SHOW search_path"))
			all = append(all, c)
		}
		for _, c := range all {
			c.ok("COMMIT")
		}
		require.Empty(t, reasons(p))
		require.Zero(t, p.Stats().SettingsMoved)
	})
}

func TestASetOfWhatInitQuerySetCostsNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p := initially(t, version, 2, severalSettings)
		openServers(t, p, "app", 2)
		c, other := over(t, p), over(t, p)
		c.ok("SET work_mem = '7MB'", "SET TIME ZONE 'Asia/Tokyo'", "SET app.tenant = 'none'")
		for range 4 {
			other.ok("BEGIN")
			c.ok("SELECT 1")
			other.ok("COMMIT")
			c.ok("SELECT 1")
		}
		require.Zero(t, p.Stats().SettingsMoved)
		require.Empty(t, reasons(p))
	})
}

func TestResetReturnsToWhatInitQuerySet(t *testing.T) {
	for name, reset := range map[string][]string{
		"each":        {"RESET work_mem", "RESET TIME ZONE", "RESET app.tenant"},
		"all":         {"RESET ALL"},
		"discard all": {"DISCARD ALL"},
		"to default":  {"SET work_mem TO DEFAULT", "SET TIME ZONE DEFAULT", "SET app.tenant TO DEFAULT"},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, version int) {
				p := initially(t, version, 1, severalSettings)
				c, other := over(t, p), over(t, p)
				c.ok("SET work_mem = '9MB'", "SET TIME ZONE 'UTC'", "SET app.tenant = 'me'")
				require.Equal(t, "UTC", c.told["TimeZone"])
				require.Equal(t, "7MB", other.ok("SHOW work_mem"))
				require.Equal(t, "none", other.ok("SHOW app.tenant"))
				require.Equal(t, "Asia/Tokyo", other.ok("SHOW TimeZone"))
				require.Equal(t, "9MB", c.ok("SHOW work_mem"))
				require.Equal(t, "me", c.ok("SHOW app.tenant"))
				c.ok(reset...)
				for _, who := range []*client{c, other, c} {
					require.Equal(t, "7MB", who.ok("SHOW work_mem"))
					require.Equal(t, "none", who.ok("SHOW app.tenant"))
					require.Equal(t, "Asia/Tokyo", who.ok("SHOW TimeZone"))
				}
				require.Equal(t, "Asia/Tokyo", c.told["TimeZone"], "the client is told")
				require.Empty(t, reasons(p))
			})
		})
	}
}

func TestAConnectionThatIsResetIsInitializedAgain(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p := initially(t, version, 1, severalSettings)
		check := func(c *client) {
			require.Equal(t, "7MB", c.ok("SHOW work_mem"))
			require.Equal(t, "none", c.ok("SHOW app.tenant"))
		}
		pinned := over(t, p)
		pinned.ok("SELECT pg_advisory_lock(4711)", "SET work_mem = '9MB'")
		require.NoError(t, pinned.conn.Close()) // and so the connection is discarded
		other := over(t, p)
		check(other)
		other.ok("SELECT pg_advisory_lock(4711)", "SET work_mem = '9MB'", "SELECT pg_advisory_unlock(4711)") // the pin ends
		require.Eventually(t, func() bool { return p.Stats().Pinned == 0 }, 10*time.Second, time.Millisecond)
		require.Equal(t, "9MB", other.ok("SHOW work_mem"))
		check(over(t, p))
		require.EqualValues(t, 1, p.Stats().ServersOpened)
	})
}

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestAnErrorInInitQueryReachesTheClientAndTheLog(t *testing.T) {
	for code, query := range map[string]string{
		"22012": "SET work_mem = '7MB'; SELECT 1/0",
		"42601": "SELECT 1; nonsense",
		"42704": "SET no_such_setting = 1",
		"25001": "BEGIN; SELECT 1",
	} {
		t.Run(code, func(t *testing.T) {
			onBoth(t, func(t *testing.T, version int) {
				cfg := trusting(pgtest.Shared(t, version))
				log := new(lockedBuffer)
				cfg.InitQuery, cfg.Logger = query, slog.New(slog.NewTextHandler(log, nil))
				p := startProxy(t, cfg)
				for range 2 {
					got := newClient(t, dialTCP(t, p.Addr().String())).startup("app", "database", "app")
					require.Equal(t, code, got.code())
					require.Equal(t, "FATAL", got.err.Severity)
					require.Zero(t, got.err.Position)
				}
				require.Contains(t, log.String(), code)
				require.Contains(t, log.String(), "Config.InitQuery: ")
				require.Zero(t, p.Stats().Servers)
			})
		})
	}
}

func TestTheLimitIsReadFromTheServer(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cluster := pgtest.Shared(t, version)
		cfg := trusting(cluster)
		cfg.MaxConnectionsPercent, cfg.Logger = 50, quiet
		p := startProxy(t, cfg)
		c := over(t, p)
		q := "SELECT (current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int - coalesce(current_setting('reserved_connections', true)::int, 0)) / 2"
		require.Equal(t, c.ok(q), fmt.Sprint(p.Stats().ServersGranted))
		openServers(t, p, "app", 3)
	})
}

func TestLoginsInFlightAreCountedAtTheServer(t *testing.T) {
	cfg := trusting(pgtest.Shared(t, versions[0]))
	count := new(counting)
	cfg.Upstream.Dialer = pgmoor.DialerFunc(count.dial)
	cfg.MaxConnections, cfg.MaxOpening, cfg.Logger = 50, 2, quiet
	p := startProxy(t, cfg)
	var all []*client
	for i := range 60 { // half of them of a kind of their own
		all = append(all, overAs(t, p, "app", "application_name", fmt.Sprint(max(i, 30))))
	}
	for _, c := range all {
		c.ask("SELECT pg_sleep(0.02)")
	}
	for _, c := range all {
		require.Nil(t, c.reply().err)
	}
	count.mu.Lock()
	defer count.mu.Unlock()
	require.LessOrEqual(t, count.busiest, 2)
	require.Positive(t, count.busiest)
}

// counting is a listener in front of a server that counts the logins that are under way: connections on which the server has not
// said ReadyForQuery yet.
type counting struct {
	mu            sync.Mutex
	busy, busiest int
}

func (c *counting) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy += n
	c.busiest = max(c.busiest, c.busy)
}

func (c *counting) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c.add(1)
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		c.add(-1)
		return nil, err
	}
	return &countedLogin{Conn: conn, done: sync.OnceFunc(func() { c.add(-1) })}, nil
}

// countedLogin ends with the first ReadyForQuery, or with its connection.
type countedLogin struct {
	net.Conn
	done func()
}

func (c *countedLogin) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n >= 6 && p[n-6] == 'Z' {
		c.done()
	}
	return n, err
}

func (c *countedLogin) Close() error {
	c.done()
	return c.Conn.Close()
}
