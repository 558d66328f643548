package pgmoor_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// A churn has clients come, prepare and listen, and go in every way, at any moment.
type churn struct {
	proxy *pgmoor.Proxy
	seed  uint64
}

const (
	churnServers    = 4
	churnStatements = 8
	churnAtOnce     = 16
	churnLives      = 4       // one after the other
	churnPadding    = 8 << 10 // of each text, so that one that is not let go shows
)

// TestNothingIsLeftOfAChurnOfClients has clients die at random, and finds the proxy and its server connections as they were before.
func TestNothingIsLeftOfAChurnOfClients(t *testing.T) {
	seed := *randomSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	onBoth(t, func(t *testing.T, version int) {
		t.Logf("seed %d", seed)
		cluster := pgtest.Shared(t, version)
		cluster.Exec(t, `CREATE OR REPLACE FUNCTION prepared_here() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM pg_catalog.pg_prepared_statements'`)
		cfg := pgmoor.WithRotation(trusting(cluster))
		cfg.MaxConnections, cfg.MaxStatements, cfg.Logger = churnServers, churnStatements, quiet
		p := startProxy(t, cfg)
		c := churn{proxy: p, seed: seed}
		c.run(t)
		c.settled(t)
		before := heap()
		c.seed += 1000
		c.run(t)
		c.settled(t)
		require.Less(t, heap()-before, int64(2<<20))
		c.clean(t)
	})
}

// heap is what is reachable.
func heap() int64 {
	for range 3 { // what is interned goes one step at a time
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func (c churn) run(t *testing.T) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range churnAtOnce {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(c.seed, uint64(i)))
			for range churnLives {
				l := &life{churn: c, r: r}
				if err := l.live(); !assert.NoError(t, err, "client %d, %q", i, l.late) {
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// settled waits until all clients are gone, and requires that nothing of theirs is left.
func (c churn) settled(t *testing.T) {
	t.Helper()
	var st pgmoor.Stats
	require.Eventually(t, func() bool {
		st = c.proxy.Stats()
		return st.Clients+st.Handshaking+st.Waiting+st.Pinned+st.Listeners+len(st.PinnedBy) == 0 && st.Servers == st.ServersIdle
	}, time.Minute, time.Millisecond)
	require.LessOrEqual(t, st.Servers, churnServers)
}

// clean looks into each of the server connections.
func (c churn) clean(t *testing.T) {
	t.Helper()
	var all []*client
	for range churnServers {
		one := over(t, c.proxy)
		one.ok("BEGIN")
		all = append(all, one)
	}
	var backends []string
	for _, one := range all {
		r := one.query("SELECT prepared_here()")
		require.Nil(t, r.err)
		require.Less(t, len(r.rows[0]), 2)
		require.LessOrEqual(t, r.rows[0], fmt.Sprint(churnStatements))
		require.Empty(t, one.query("SELECT pg_catalog.pg_listening_channels()").rows)
		require.Equal(t, "0", one.ok("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'"))
		require.Equal(t, "0", one.ok("SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()"))
		require.Equal(t, "0", one.ok("SELECT count(*) FROM pg_cursors"))
		backends = append(backends, one.ok("SELECT pg_backend_pid()"))
	}
	slices.Sort(backends)
	require.Len(t, slices.Compact(backends), churnServers)
	for _, one := range all {
		one.ok("ROLLBACK")
		require.NoError(t, one.conn.Close())
	}
}

// A life is that of one client.
type life struct {
	churn
	r    *rand.Rand
	conn net.Conn
	*pgproto3.Frontend
	pid  uint32
	key  []byte
	late []string
}

func (l *life) live() error {
	conn, err := net.Dial("tcp", l.proxy.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err = conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	l.conn, l.Frontend = conn, pgproto3.NewFrontend(conn, conn)
	l.Send(&pgproto3.StartupMessage{
		ProtocolVersion: pgproto3.ProtocolVersion30,
		Parameters:      map[string]string{"user": "app", "database": "app"},
	})
	if err = l.Flush(); err != nil {
		return err
	}
	if _, err = l.answer(1); err != nil {
		return err
	}
	for range l.r.IntN(6) {
		if err = l.step(); err != nil {
			return err
		}
	}
	return l.die()
}

// step does something and looks at the answer.
func (l *life) step() error {
	msgs, syncs, want := l.something()
	l.late = append(l.late, fmt.Sprintf("%T", msgs[0])+" "+want)
	for _, m := range msgs {
		l.Send(m)
	}
	if err := l.Flush(); err != nil {
		return err
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	if want == cancelled {
		go l.cancelUntil(stop, done)
	} else {
		done <- nil
	}
	got, err := l.answer(syncs)
	close(stop)
	err = errors.Join(err, <-done)
	if want = strings.TrimSpace(want); err == nil && got != want {
		err = fmt.Errorf("got %q, want %q", got, want)
	}
	return err
}

// die ends the client in the middle of something.
func (l *life) die() error {
	msgs, _, _ := l.something()
	var all []byte
	for _, m := range msgs {
		b, err := m.Encode(nil)
		if err != nil {
			return err
		}
		all = append(all, b...)
	}
	how := l.r.IntN(8)
	if how&1 != 0 {
		all = all[:l.r.IntN(len(all)+1)]
	}
	if how == 0 {
		all = append(all, 'X', 0, 0, 0, 4)
	}
	if _, err := l.conn.Write(all); err != nil {
		return err
	}
	if how > 5 {
		if err := l.cancel(); err != nil {
			return err
		}
	}
	if how > 2 {
		if err := l.conn.(*net.TCPConn).SetLinger(0); err != nil {
			return err
		}
	}
	runtime.Gosched()
	return l.conn.Close()
}

// cancelled is the answer to what has to be cancelled.
const cancelled = "57014 "

// cancelUntil cancels what runs over and over: a request may overtake that.
func (l *life) cancelUntil(stop <-chan struct{}, done chan<- error) {
	for {
		if err := l.cancel(); err != nil {
			done <- err
			return
		}
		select {
		case <-stop:
			done <- nil
			return
		default:
		}
	}
}

func (l *life) cancel() error {
	var d net.Dialer
	conn, err := d.DialContext(context.Background(), "tcp", l.proxy.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err = conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	b, err := (&pgproto3.CancelRequest{ProcessID: l.pid, SecretKey: l.key}).Encode(nil)
	if err != nil {
		return err
	}
	if _, err = conn.Write(b); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn)
	return err
}

// answer reads so many ReadyForQuery and returns the values, errors and notifications in front of them.
func (l *life) answer(syncs int) (string, error) {
	var all []string
	for syncs > 0 {
		m, err := l.Receive()
		if err != nil {
			return strings.Join(all, " "), err
		}
		switch m := m.(type) {
		case *pgproto3.BackendKeyData:
			l.pid, l.key = m.ProcessID, slices.Clone(m.SecretKey)
		case *pgproto3.DataRow:
			all = append(all, string(m.Values[0]))
		case *pgproto3.ErrorResponse:
			all = append(all, m.Code)
		case *pgproto3.NotificationResponse:
			if m.Channel != "all" {
				all = append(all, m.Payload)
			}
		case *pgproto3.ReadyForQuery:
			syncs--
		}
	}
	return strings.Join(all, " "), nil
}

// something returns messages, how many ReadyForQuery they bring, and what else.
func (l *life) something() (msgs []pgproto3.FrontendMessage, syncs int, want string) {
	n := l.r.IntN(40)
	value := fmt.Sprint(n)
	text := "SELECT " + value + "/*" + strings.Repeat(string(rune('a'+n%26)), churnPadding) + "*/"
	query := func(sql string) pgproto3.FrontendMessage { return &pgproto3.Query{String: sql} }
	sync, execute := &pgproto3.Sync{}, &pgproto3.Execute{}
	named := &pgproto3.Bind{PreparedStatement: "s"}
	switch l.r.IntN(10) {
	case 0:
		return []pgproto3.FrontendMessage{closeOf("s"), parseOf("s", text), named, execute, sync}, 1, value
	case 1:
		return []pgproto3.FrontendMessage{parseOf("", text), sync, &pgproto3.Bind{}, execute, sync}, 2, value
	case 2:
		return []pgproto3.FrontendMessage{query("DEALLOCATE ALL"), query("PREPARE q AS " + text), query("EXECUTE q")}, 3, value
	case 3:
		own := fmt.Sprintf("c%d", l.pid)
		return []pgproto3.FrontendMessage{
			query("LISTEN \"all\""), query("LISTEN " + own), query("UNLISTEN \"all\""), query("NOTIFY " + own + ", '" + value + "'"), query("UNLISTEN *"), query("NOTIFY \"all\"; NOTIFY " + own),
		}, 6, value
	case 4: // the Close and the second Parse wait for what became of the first
		return []pgproto3.FrontendMessage{
			closeOf("s"), parseOf("s", text), sync, parseOf("s", text), sync, closeOf("s"), parseOf("s", text), named, execute, sync,
		}, 3, "42P05 " + value
	case 5:
		return []pgproto3.FrontendMessage{query("BEGIN"), query("LISTEN d"), query("DEALLOCATE ALL"), query("PREPARE q AS " + text), query("ROLLBACK"), query("EXECUTE q")}, 6, value
	case 6:
		return []pgproto3.FrontendMessage{query("SELECT pg_sleep(100)")}, 1, cancelled
	case 7:
		return []pgproto3.FrontendMessage{query("BEGIN"), query("SET LOCAL statement_timeout = 1; SELECT pg_sleep(100)"), query("ROLLBACK")}, 3, "57014"
	case 8:
		return []pgproto3.FrontendMessage{query("SET search_path = pg_catalog"), query("DISCARD ALL"), query(text)}, 3, value
	default:
		return []pgproto3.FrontendMessage{closeOf("s"), parseOf("s", "SELECT 1/0"), named, execute, sync, query(text)}, 2, "22012 " + value
	}
}

func closeOf(name string) *pgproto3.Close { return &pgproto3.Close{ObjectType: 'S', Name: name} }
