package pgmoor_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// turning is a proxy that lends its server connections in turn, with as many of them open.
func turning(t testing.TB, c *pgtest.Cluster, connections int) *pgmoor.Proxy {
	t.Helper()
	cfg := pgmoor.WithRotation(trusting(c))
	cfg.MaxConnections = connections
	p := startProxy(t, cfg)
	holders := make([]*client, connections)
	for i := range holders {
		holders[i] = over(t, p)
		holders[i].ok("BEGIN")
	}
	for _, h := range holders {
		h.ok("COMMIT")
	}
	require.Eventually(t, func() bool { return p.Stats().ServersIdle == connections }, 10*time.Second, time.Millisecond)
	for _, h := range holders {
		require.NoError(t, h.conn.Close())
	}
	return p
}

func (c *client) prepare(sql string) reply {
	c.t.Helper()
	c.send(&pgproto3.Parse{Query: sql}, &pgproto3.Describe{ObjectType: 'S'}, &pgproto3.Sync{})
	return c.reply()
}

func (c *client) run() reply {
	c.t.Helper()
	c.send(&pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
	return c.reply()
}

func TestTheUnnamedStatementFollowsItsClient(t *testing.T) {
	for _, version := range versions {
		p := turning(t, pgtest.Shared(t, version), 3)
		a, b := over(t, p), over(t, p)
		require.Nil(t, a.prepare("SELECT 'a'").err)
		require.Nil(t, b.prepare("SELECT 'b'").err)
		for range 20 {
			require.Equal(t, []string{"a"}, a.run().rows)
			require.Equal(t, []string{"b"}, b.run().rows)
			require.Equal(t, []string{"b"}, b.run().rows)
			require.Equal(t, []string{"a"}, a.run().rows)
		}
		a.send(&pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Parse{Query: "SELECT 'c'"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
		require.Equal(t, []string{"a", "c"}, a.reply().rows)
		require.Equal(t, []string{"b"}, b.run().rows)
		require.Equal(t, []string{"c"}, a.run().rows)
		require.Zero(t, p.Stats().Pinned)
	}
}

func TestAnUnnamedStatementThatIsGoneIsGone(t *testing.T) {
	for _, version := range versions {
		p := turning(t, pgtest.Shared(t, version), 2)
		a, b := over(t, p), over(t, p)
		for name, drop := range map[string]func(){
			"never there":    func() {},
			"a simple query": func() { a.prepare("SELECT 1"); a.ok("SELECT 2") },
			"a failed one":   func() { a.prepare("SELECT 1"); a.query("SELECT 1/0") },
			"an empty query": func() { a.prepare("SELECT 1"); a.query("") },
			"a failed Parse": func() { a.prepare("SELECT 1"); a.prepare("SELEKT") },
			"closed": func() {
				a.prepare("SELECT 1")
				a.send(&pgproto3.Close{ObjectType: 'S'}, &pgproto3.Sync{})
				require.Nil(t, a.reply().err)
			},
		} {
			drop()
			for range 4 {
				require.Nil(t, b.prepare("SELECT 'somebody else''s'").err)
				got := a.run()
				require.Equal(t, "26000", got.code(), "%s, PostgreSQL %d", name, version)
				require.EqualValues(t, 'I', got.status)
			}
		}
	}
}

func TestAnErrorOfAStatementThatIsMadeAgainIsTheClients(t *testing.T) {
	for _, version := range versions {
		cluster := pgtest.Shared(t, version)
		p := turning(t, cluster, 2)
		cluster.Exec(t, "CREATE TABLE IF NOT EXISTS remade (i int); GRANT ALL ON remade TO public")
		a := over(t, p)
		require.Nil(t, a.prepare("SELECT i FROM remade").err)
		require.Nil(t, a.run().err)
		cluster.Exec(t, "DROP TABLE remade")
		for range 3 {
			got := a.run()
			require.Equal(t, "42P01", got.code())
			require.Equal(t, 1, got.errs)
			require.EqualValues(t, 'I', got.status)
		}
		require.Equal(t, "1", a.ok("SELECT 1"))
	}
}

// requests is a pipeline of n queries with long texts and long answers, and a Sync behind each.
func requests(n, size int) []byte {
	var b []byte
	text := "SELECT repeat('y', " + fmt.Sprint(size) + ") /* " + string(bytes.Repeat([]byte{'x'}, size)) + " */"
	for range n {
		for _, m := range []pgproto3.FrontendMessage{&pgproto3.Parse{Query: text}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{}} {
			b, _ = m.Encode(b)
		}
	}
	return b
}

// fill writes until nothing moves any more, and returns how many bytes that were.
func fill(t testing.TB, conn net.Conn, b []byte) int {
	t.Helper()
	require.NoError(t, conn.SetWriteDeadline(time.Now().Add(300*time.Millisecond)))
	n, err := conn.Write(b)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, conn.SetWriteDeadline(time.Time{}))
	return n
}

func write(conn net.Conn, b []byte, result chan<- error) {
	_, err := conn.Write(b)
	result <- err
}

func TestPipelinesOfManyMegabytesDoNotBlock(t *testing.T) {
	cluster := pgtest.Shared(t, 15)
	plain := trusting(cluster)
	secure := plain
	secure.Upstream.SSLMode, secure.Upstream.TLSConfig = "verify-full", tlsRoots(cluster)
	unix := plain
	unix.Upstream.Hosts = []string{fmt.Sprintf("%s:%s", cluster.SocketDir(), cluster.Socket()[len(cluster.SocketDir())+len("/.s.PGSQL."):])}
	const n, size = 1000, 50_000 // 50 MB each way
	pipeline := requests(n, size)
	for name, cfg := range map[string]pgmoor.Config{
		"TCP": plain, "TLSUpstream": secure, "UnixUpstream": unix, "PlainIO": pgmoor.WithPlainIO(plain), "InMemory": plain,
	} {
		t.Run(name, func(t *testing.T) {
			p := startProxy(t, cfg)
			c := over(t, p)
			if name == "InMemory" {
				conn, err := p.DialContext(context.Background(), "", "")
				require.NoError(t, err)
				c = newClient(t, conn)
				require.EqualValues(t, 'I', c.startup("app").status)
			}
			require.NoError(t, c.conn.SetDeadline(time.Now().Add(time.Minute)))
			rest := pipeline[fill(t, c.conn, pipeline):]
			written := make(chan error, 1)
			go write(c.conn, rest, written)
			for range n {
				got := c.reply()
				require.Nil(t, got.err)
				require.Len(t, got.rows[0], size)
			}
			require.NoError(t, <-written)
			c.ok("SELECT 1")
		})
	}
}

func TestLargeResultsPassThroughLittleMemory(t *testing.T) {
	p := startProxy(t, trusting(pgtest.Shared(t, 15)))
	c := over(t, p)
	require.NoError(t, c.conn.SetDeadline(time.Now().Add(time.Minute)))
	for _, sql := range []string{
		"SELECT repeat('x', 1000) FROM generate_series(1, 100000)",
		"SELECT repeat('x', 100000000)",
	} {
		runtime.GC()
		var before, now runtime.MemStats
		runtime.ReadMemStats(&before)
		c.ask(sql)
		total, most := 0, uint64(0)
		var tail []byte
		for b := make([]byte, 64<<10); !bytes.HasSuffix(tail, []byte{'Z', 0, 0, 0, 5, 'I'}); {
			n, err := c.conn.Read(b)
			require.NoError(t, err)
			if total += n; total>>24 != (total-n)>>24 {
				runtime.GC()
				runtime.ReadMemStats(&now)
				most = max(most, now.HeapAlloc)
			}
			tail = append(tail, b[:n]...)
			tail = tail[max(0, len(tail)-6):]
		}
		require.Greater(t, total, 100_000_000)
		require.Less(t, int64(most)-int64(before.HeapAlloc), int64(16<<20))
	}
}

func TestLargeRequestsPassThroughLittleMemory(t *testing.T) {
	p := startProxy(t, trusting(pgtest.Shared(t, 15)))
	c := over(t, p)
	const size = 50_000_000
	text := []byte("SELECT length('" + string(bytes.Repeat([]byte{'x'}, size)) + "')\x00")
	head := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(4+len(text)))
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := c.conn.Write(append(head, text[:1]...))
	require.NoError(t, err)
	_, err = c.conn.Write(text[1:])
	require.NoError(t, err)
	got := c.reply()
	runtime.ReadMemStats(&after)
	require.Nil(t, got.err)
	require.Equal(t, []string{fmt.Sprint(size)}, got.rows)
	require.Less(t, int64(after.TotalAlloc-before.TotalAlloc), int64(16<<20))
}

func TestFunctionCallsNoticesAndEmptyQueriesPass(t *testing.T) {
	for _, version := range versions {
		cluster := pgtest.Shared(t, version)
		p := turning(t, cluster, 2)
		c := over(t, p)
		c.send(&pgproto3.FunctionCall{Function: 1598, ResultFormatCode: 0}) // random()
		got := c.reply()
		require.Nil(t, got.err)
		require.EqualValues(t, 'I', got.status)
		c.ask("DO $$ BEGIN RAISE NOTICE 'look'; END $$")
		m, err := c.Receive()
		require.NoError(t, err)
		require.Equal(t, "look", m.(*pgproto3.NoticeResponse).Message)
		require.Equal(t, []string{"DO"}, c.reply().tags)
		require.EqualValues(t, 'I', c.query("").status)
		require.Zero(t, p.Stats().Pinned)
	}
}

func TestACopyInBothDirectionsPasses(t *testing.T) {
	for _, version := range versions {
		p := turning(t, pgtest.Shared(t, version), 2)
		c := over(t, p)
		c.ok("BEGIN", "CREATE TABLE copied (i int)")
		c.ask("COPY copied FROM STDIN")
		var in []byte
		for i := range 100_000 {
			in = fmt.Appendf(in, "%d\n", i)
		}
		for b := in; len(b) > 0; b = b[min(len(b), 8000):] {
			c.SendUnbufferedEncodedCopyData(mustEncode(&pgproto3.CopyData{Data: b[:min(len(b), 8000)]}))
		}
		c.send(&pgproto3.CopyDone{})
		require.Equal(t, []string{"COPY 100000"}, c.reply().tags)
		c.ask("COPY copied TO STDOUT")
		var out []byte
		for {
			m, err := c.Receive()
			require.NoError(t, err)
			if d, ok := m.(*pgproto3.CopyData); ok {
				out = append(out, d.Data...)
			}
			if _, ok := m.(*pgproto3.ReadyForQuery); ok {
				break
			}
		}
		require.True(t, bytes.Equal(in, out))
		c.ok("ROLLBACK")
	}
}

func mustEncode(m *pgproto3.CopyData) []byte {
	b, err := m.Encode(nil)
	if err != nil {
		panic(err)
	}
	return b
}

func TestMessagesMayComeByteByByte(t *testing.T) {
	p := turning(t, pgtest.Shared(t, 15), 2)
	c := over(t, p)
	for _, b := range requests(2, 10) {
		_, err := c.conn.Write([]byte{b})
		require.NoError(t, err)
	}
	for range 2 {
		require.Equal(t, []string{"yyyyyyyyyy"}, c.reply().rows)
	}
	_, err := io.WriteString(c.conn, "X\x00\x00\x00\x04")
	require.NoError(t, err)
	c.ended("")
}
