package pgmoor_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// A deafened rig has a client that listens, on a server whose logins can be refused. What its listening connection is called is known.
type deafened struct {
	*rig
	*client
	refusal  atomic.Pointer[pgproto3.ErrorResponse]
	listener uint32
}

func newDeafened(t *testing.T, cfg pgmoor.Config) *deafened {
	t.Helper()
	d := new(deafened)
	server := &fake{refuse: func(map[string]string) *pgproto3.ErrorResponse { return d.refusal.Load() }}
	cfg.MaxConnections = 2
	d.rig = newRig(t, cfg, server)
	d.client = d.connect(t, "u")
	d.ok("LISTEN a")
	require.Equal(t, 1, d.Stats().Listeners)
	synctest.Wait()
	server.mu.Lock()
	for pid := range server.alive {
		d.listener = max(d.listener, pid)
	}
	server.mu.Unlock()
	return d
}

func loginRefusal(code string) *pgproto3.ErrorResponse {
	return &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: "as it says"}
}

// lose ends the listening connection.
func (d *deafened) lose() {
	d.server.kill(d.listener)
	synctest.Wait()
}

// TestWhoListensIsEndedWhereTheListenerIsRefused has the server refuse the login of the connection that is to listen again.
func TestWhoListensIsEndedWhereTheListenerIsRefused(t *testing.T) {
	for _, code := range []string{"28000", "28P01", "3D000"} { // NOLOGIN or no role, another password, no database
		synctest.Test(t, func(t *testing.T) {
			d := newDeafened(t, pgmoor.Config{})
			other := d.connect(t, "u")
			d.refusal.Store(loginRefusal(code))
			lost := time.Now()
			d.lose()
			r := d.reply()
			require.Zero(t, r.status)
			require.Equal(t, "57P01", r.code())
			require.Equal(t, "FATAL", r.err.Severity)
			require.Contains(t, r.err.Detail, "as it says")
			require.NotEmpty(t, r.err.Hint)
			require.Less(t, time.Since(lost), time.Second)
			other.ok("SELECT 1")
			synctest.Wait()
			require.Equal(t, 1, d.Stats().Clients)
			require.Zero(t, d.Stats().Listeners)
		})
	}
}

// TestWhoListensIsEndedAtTheEndOfItsTransaction does so to sessions that are in the middle of something, or keep a connection.
func TestWhoListensIsEndedAtTheEndOfItsTransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeafened(t, pgmoor.Config{})
		d.ok("BEGIN")
		d.refusal.Store(loginRefusal("28000"))
		d.lose()
		time.Sleep(10 * time.Minute)
		require.Equal(t, "T", string(d.query("SELECT 1").status))
		d.ok("COMMIT")
		d.ended("57P01")
	})
}

// TestWhoListensIsEndedWhereTheServerStaysAway has the server away for longer than requests wait for it, or not quite.
func TestWhoListensIsEndedWhereTheServerStaysAway(t *testing.T) {
	const limit = 20 * time.Second
	for name, row := range map[string]struct {
		away, paused time.Duration
		code         string // of a refusal; without one nobody answers
		ended        bool
	}{
		"not for long":               {away: limit / 2},
		"for long":                   {away: 2 * limit, ended: true},
		"it starts":                  {away: limit / 2, code: "57P03"},
		"it starts for ever":         {away: 2 * limit, code: "57P03", ended: true},
		"it has too many":            {away: limit / 2, code: "53300"},
		"a pause does not count":     {away: limit / 2, paused: 10 * time.Minute},
		"but what comes behind it":   {away: 2 * limit, paused: 10 * time.Minute, ended: true},
		"a pause, and too many":      {away: limit / 2, paused: 10 * time.Minute, code: "53300"},
		"a pause, too many for long": {away: 2 * limit, paused: 10 * time.Minute, code: "53300", ended: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDeafened(t, pgmoor.Config{BorrowTimeout: limit})
				if row.code == "" {
					d.server.setDown(true)
				} else {
					d.refusal.Store(loginRefusal(row.code))
				}
				d.lose()
				if row.paused > 0 {
					d.pause(t)
					time.Sleep(row.paused)
					d.Resume()
				}
				time.Sleep(row.away)
				d.server.setDown(false)
				d.refusal.Store(nil)
				if row.ended {
					d.ended("57P01")
					return
				}
				require.Equal(t, "NOTICE 01000", d.next())
				time.Sleep(10 * time.Minute)
				d.ok("SELECT 1")
				require.Equal(t, 1, d.Stats().Listeners)
			})
		})
	}
}

// TestWithNoWaitTheListenerIsTriedOnce is about a BorrowTimeout of none.
func TestWithNoWaitTheListenerIsTriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeafened(t, pgmoor.Config{BorrowTimeout: pgmoor.NoWait})
		d.lose()
		require.Equal(t, "NOTICE 01000", d.next())
		d.server.setDown(true)
		d.listener++
		d.lose()
		d.ended("57P01")
	})
}

// TestAListenerEndsWithKillAndShutdown while its listening connection is there, is not, and is being made.
func TestAListenerEndsWithKillAndShutdown(t *testing.T) {
	for name, end := range map[string]func(*deafened){
		"kill": func(d *deafened) { d.Kill(d.pid) },
		"shutdown": func(d *deafened) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			require.NoError(d.t, d.Shutdown(ctx))
		},
		"close": func(d *deafened) { require.NoError(d.t, d.Close()) },
	} {
		for _, state := range []string{"there", "away", "refused", "slow"} {
			t.Run(name+" "+state, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d := newDeafened(t, pgmoor.Config{})
					switch state {
					case "away":
						d.server.setDown(true)
					case "refused":
						d.refusal.Store(loginRefusal("57P03"))
					case "slow":
						d.server.setSlow(5 * time.Second)
					}
					if state != "there" {
						d.lose()
						time.Sleep(time.Second)
					}
					end(d)
					d.ended("57P01")
					time.Sleep(10 * time.Second)
					require.Zero(t, d.Stats().Clients)
					require.Zero(t, d.Stats().Listeners)
				})
			})
		}
	}
}

// TestWhoStopsListeningThroughADeafListenerIsTold has a session leave a listener that was lost and is not back yet: what was notified in between
// it has missed.
func TestWhoStopsListeningThroughADeafListenerIsTold(t *testing.T) {
	for how, told := range map[string]string{
		"UNLISTEN a":                   "UNLISTEN a, NOTICE 01000, ready I",
		"SET client_encoding = latin1": "SET client_encoding = latin1, ready I, NOTICE 01000", // behind it the session is pinned, with what it listens to
	} {
		synctest.Test(t, func(t *testing.T) {
			d := newDeafened(t, pgmoor.Config{})
			d.refusal.Store(loginRefusal("57P03"))
			d.lose()
			d.ask(how)
			require.Equal(t, told, d.said(3))
			d.ok("SELECT 1")
		})
	}
}
