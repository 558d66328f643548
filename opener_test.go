package pgmoor_test

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// onLog is a logger that calls do where a message is logged: what logs it waits meanwhile.
func onLog(message string, do func()) *slog.Logger { return slog.New(logHook{message, do}) }

type logHook struct {
	message string
	do      func()
}

func (h logHook) Enabled(context.Context, slog.Level) bool { return true }
func (h logHook) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h logHook) WithGroup(string) slog.Handler            { return h }

func (h logHook) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.message {
		h.do()
	}
	return nil
}

const loginFailed = "pgmoor: login to the server failed"

func TestALoginThatFailedIsNotRepeatedBeforeItsPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refused atomic.Bool
		server := &fake{slow: 10 * time.Millisecond, refuse: func(map[string]string) *pgproto3.ErrorResponse {
			if !refused.Load() {
				return nil
			}
			return &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "53300", Message: "not now"}
		}}
		after := make(chan int, 100)
		r := newRig(t, pgmoor.Config{MaxConnections: 1, Logger: onLog(loginFailed, func() {
			time.Sleep(time.Second)
			_, _, _, attempts := server.counts()
			after <- len(attempts)
		})}, server)
		refused.Store(false)
		holder, one, two := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		refused.Store(true)
		holder.ok("BEGIN")
		one.ask("SELECT 1")
		two.ask("SELECT 1") // for which there is no token
		synctest.Wait()
		server.kill(1)
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		require.EqualValues(t, 2, <-after, "the next one began before the pool knew how long to pause")
	})
}

// A login is done just when the proxy is closed.
func TestNoConnectionIsGivenBackTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := make(chan pgmoor.Demand, 1)
		done := make(chan struct{})
		var r *rig
		r = newRig(t, pgmoor.Config{
			MaxConnectionsPercent: 50,
			Budget: pgmoor.BudgetFunc(func(ctx context.Context, s *pgmoor.Share) error {
				s.Grant(10)
				<-ctx.Done()
				left <- s.Demand()
				return nil
			}),
			Logger: onLog("pgmoor: limit on server connections", func() { // the connection is there, and nobody has it yet
				go func() {
					defer close(done)
					_ = r.Close()
				}()
				time.Sleep(time.Second)
			}),
		}, &fake{max: [3]int{20, 0, 0}})
		r.loginsOf(t, 1)
		<-done
		require.Zero(t, (<-left).Open)
	})
}

func TestAfterAPauseNobodyIsServedBeforeThoseWhoWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		server := &fake{sent: func(_ uint32, sql string) {
			if len(sql) == 1 {
				order = append(order, sql)
			}
		}}
		var late *client
		r := newRig(t, pgmoor.Config{MaxConnections: 1, Logger: onLog("pgmoor: resumed", func() { // nobody was served yet
			late.ask("3")
			time.Sleep(time.Second)
		})}, server)
		one, two := r.connect(t, "u"), r.connect(t, "u")
		late = r.connect(t, "u")
		one.ok("0")
		require.NoError(t, r.Pause(t.Context()))
		one.ask("1")
		synctest.Wait()
		two.ask("2")
		synctest.Wait()
		r.Resume()
		for _, c := range []*client{late, two, one} {
			require.Nil(t, c.reply().err)
		}
		require.Equal(t, []string{"0", "1", "2", "3"}, slices.DeleteFunc(order, func(s string) bool { return len(s) != 1 }))
	})
}

// While a client waited for its connection, another one found none. Then there is a pause, in which the connection is there and its client
// leaves.
func TestWhatIsLeftByAPauseIsForThoseWhoFoundNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnectionsPerUser: 1}, &fake{slow: time.Second})
		leaves, stays := r.connect(t, "u", "database", "d1"), r.connect(t, "u", "database", "d2")
		leaves.ask("SELECT 1")
		time.Sleep(500 * time.Millisecond)
		stays.ask("SELECT 1")
		synctest.Wait()
		require.NoError(t, r.Pause(t.Context()))
		time.Sleep(time.Second)
		require.NoError(t, leaves.conn.Close())
		synctest.Wait()
		start := time.Now()
		r.Resume()
		require.Nil(t, stays.reply().err)
		require.Equal(t, time.Second, time.Since(start))
	})
}

// The server goes away in the middle of InitQuery: once it is back, clients that wait are served.
func TestAServerThatGoesAwayDuringInitQueryIsTriedAgain(t *testing.T) {
	for name, gone := range map[string]string{"in silence": "die", "with a word": "terminate"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := new(fake)
				r := newRig(t, pgmoor.Config{InitQuery: gone}, server)
				c := r.loginsOf(t, 1)[0]
				time.Sleep(time.Second)
				r.change(t, pgmoor.Config{InitQuery: "SET a.b = 1"})
				require.Nil(t, c.reply().err)
				c.ok("SELECT 1")
			})
		})
	}
}

// A login that began before an Update ends after it: nobody begins with what the InitQuery of before has set.
func TestALoginFromBeforeAnUpdateLeavesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cfg := trusting(pgtest.Shared(t, version))
		dialing, dial := make(chan struct{}), make(chan struct{})
		late := cfg
		late.InitQuery, late.Logger = "SET work_mem = '7MB'; SET app.old = '1'", quiet
		late.Upstream.Dialer = pgmoor.DialerFunc(func(ctx context.Context, network, address string) (net.Conn, error) {
			dialing <- struct{}{}
			<-dial
			return new(net.Dialer).DialContext(ctx, network, address)
		})
		p := startProxy(t, late)
		c := newClient(t, dialTCP(t, p.Addr().String()))
		c.send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "app", "database": "app"}})
		<-dialing
		cfg.InitQuery, cfg.Logger = "SET work_mem = '8MB'", quiet
		require.NoError(t, p.Update(cfg))
		close(dial)
		require.EqualValues(t, 'I', c.reply().status)
		require.Equal(t, "8MB", c.ok("SHOW work_mem"))
		c.ok("SET work_mem = '9MB'", "RESET work_mem")
		require.Equal(t, "8MB", c.ok("SHOW work_mem"))
		require.Equal(t, "42704", c.query("SHOW app.old").code())
	})
}
