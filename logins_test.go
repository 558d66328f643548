package pgmoor_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// loginsOf sends n clients, each of a user of its own, the startup packet, and does not wait for what comes back.
func (r *rig) loginsOf(t *testing.T, n int) (all []*client) {
	for i := range n {
		c := r.dialClient(t)
		c.send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": fmt.Sprint("u", i)}})
		all = append(all, c)
	}
	return all
}

func TestLoginsAreBoundedOverAllUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{slow: 100 * time.Millisecond}
		r := newRig(t, pgmoor.Config{MaxConnections: 2000, MaxOpening: 3}, server)
		start := time.Now()
		for _, c := range r.loginsOf(t, 300) {
			require.EqualValues(t, 'I', c.reply().status)
		}
		require.Equal(t, 10*time.Second, time.Since(start), "three at a time")
		_, _, busiest, attempts := server.counts()
		require.Equal(t, 3, busiest)
		require.Len(t, attempts, 300)
	})
}

// A thousand clients, each of another user, and a server that goes away and comes back.
func TestAServerThatIsRestartedIsNotStormed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{slow: 10 * time.Millisecond}
		server.setDown(true)
		r := newRig(t, pgmoor.Config{MaxConnections: 2000}, server)
		all := r.loginsOf(t, many(1000))
		time.Sleep(time.Minute)
		_, _, _, attempts := server.counts()
		require.Greater(t, len(attempts), 20)
		require.Less(t, len(attempts), 80, "one at a time, after a pause")
		server.setDown(false)
		start := time.Now()
		for _, c := range all {
			require.EqualValues(t, 'I', c.reply().status)
		}
		require.Less(t, time.Since(start), 6*time.Second)
		_, _, busiest, _ := server.counts()
		require.Equal(t, pgmoor.DefaultMaxOpening, busiest)
	})
}

func TestLoginsWhoseClientsAreGoneHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		server.setDown(true)
		r := newRig(t, pgmoor.Config{BorrowTimeout: time.Second}, server)
		for _, c := range r.loginsOf(t, 200) {
			c.ended("08000")
		}
		server.setDown(false)
		time.Sleep(4 * time.Second) // the longest pause
		start := time.Now()
		r.connect(t, "late").ok("SELECT 1")
		require.Zero(t, time.Since(start))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		_, _, _, attempts := server.counts()
		require.Less(t, len(attempts), 20, "nobody wanted them any more")
	})
}

// hosts are several fakes behind one dialer, by host name.
type hosts map[string]*fake

func (h hosts) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return h[host].dial(ctx, network, address)
}

func TestAHostThatIsDownIsTriedByOneLoginAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := new(fake), new(fake)
		one.start()
		two.start()
		one.setDown(true)
		p, err := pgmoor.New(nil, pgmoor.Config{
			Upstream: pgmoor.Upstream{Hosts: []string{"one", "two"}, SSLMode: "disable", Dialer: pgmoor.DialerFunc(hosts{"one": one, "two": two}.dial)},
			Logger:   quiet, MaxConnections: 1000,
		})
		require.NoError(t, err)
		r := &rig{Proxy: p, server: two, served: make(chan error, 1)}
		go serve(p, r.served)
		start := time.Now()
		for _, c := range r.loginsOf(t, 200) {
			require.EqualValues(t, 'I', c.reply().status)
		}
		require.Zero(t, time.Since(start))
		_, _, _, attempts := one.counts()
		require.LessOrEqual(t, len(attempts), pgmoor.DefaultMaxOpening, "as many as began before the first has failed")
		one.setDown(false)
		time.Sleep(5 * time.Second)
		r.connect(t, "later").ok("SELECT 1")
		open, _, _, _ := one.counts()
		require.Equal(t, 1, open, "the first of the hosts is used again")
		require.NoError(t, p.Close())
		<-r.served
		require.NoError(t, one.Close())
		require.NoError(t, two.Close())
	})
}
