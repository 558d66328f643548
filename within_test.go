package pgmoor_test

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// A pool that may have no connection since its user has enough does not keep one of the total from others.
func TestAClaimThatANarrowerLimitStopsHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 2, MaxConnectionsPerUser: 1}, new(fake))
		one, two := r.connect(t, "u", "database", "d1"), r.connect(t, "u", "database", "d2")
		v, w := r.connect(t, "v"), r.connect(t, "w")
		v.ok("BEGIN")
		w.ok("BEGIN")
		two.ask("BEGIN")
		synctest.Wait()
		one.ask("SELECT 1")
		synctest.Wait()
		require.Equal(t, 2, r.Stats().Waiting)
		v.ok("COMMIT")
		require.Nil(t, two.reply().err) // and so u has all that he may have
		w.ok("COMMIT")
		synctest.Wait()
		start := time.Now()
		w.ok("SELECT 1")
		v.ok("SELECT 1")
		require.Zero(t, time.Since(start))
		two.ok("COMMIT")
		require.Nil(t, one.reply().err)
	})
}

// A server that refuses a user for the moment does not keep others from a connection that is free.
func TestAPoolThatPausesAfterAFailedLoginHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := false
		server := &fake{slow: 10 * time.Millisecond, refuse: func(p map[string]string) *pgproto3.ErrorResponse {
			if p["user"] != "bad" || !refused {
				return nil
			}
			return &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "53300", Message: "too many connections for role"}
		}}
		r := newRig(t, pgmoor.Config{MaxConnections: 6}, server)
		a, b, c := r.connect(t, "bad"), r.connect(t, "bad"), r.connect(t, "good")
		for range 5 {
			r.connect(t, "holder").ok("BEGIN")
		}
		refused = true
		c.ok("SELECT 1")
		synctest.Wait()
		a.ask("SELECT 1")
		b.ask("SELECT 1")
		time.Sleep(10 * time.Second) // until the pauses are long
		for range 20 {
			start := time.Now()
			c.ok("SELECT 1")
			require.Less(t, time.Since(start), 50*time.Millisecond)
			time.Sleep(3 * time.Second)
		}
	})
}

type slowClose struct {
	net.Conn
	d time.Duration
}

func (s slowClose) Close() error { time.Sleep(s.d); return s.Conn.Close() }

func TestALimitCountsWhatIsBeingClosedAlsoOfAPoolThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{MaxConnectionsPerUser: 1, IdleTimeout: time.Second}, server)
		cfg := r.reaching(pgmoor.Config{MaxConnectionsPerUser: 1, IdleTimeout: time.Second})
		cfg.Upstream.Dialer = pgmoor.DialerFunc(func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := server.dial(ctx, network, address)
			return slowClose{c, 10 * time.Second}, err
		})
		require.NoError(t, r.Update(cfg))
		c := r.connect(t, "u", "database", "d1")
		c.ok("SELECT 1")
		c.conn.Close()
		time.Sleep(4 * time.Second)
		r.connect(t, "u", "database", "d2").ok("SELECT 1")
		_, most, _, _ := server.counts()
		require.Equal(t, 1, most)
	})
}

func TestAHostThatIsBackIsLoggedInToByAllAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		server.setDown(true)
		r := newRig(t, pgmoor.Config{InitQuery: "sleep 10s"}, server)
		all := r.loginsOf(t, 4)
		time.Sleep(20 * time.Second)
		server.setDown(false)
		start := time.Now()
		for _, c := range all {
			got := c.reply()
			require.Nil(t, got.err)
			t.Log(time.Since(start))
		}
		require.Less(t, time.Since(start), 15*time.Second)
	})
}
