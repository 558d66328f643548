package pgmoor

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/memconn"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// fuzzPatience is how long anything in these tests may take before it counts as stuck.
const fuzzPatience = 20 * time.Second

// startupPacket is a packet without a type byte.
func startupPacket(code uint32, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(binary.BigEndian.AppendUint32(b, code), body...)
}

// frontend is one message of a client.
func frontend(typ byte, body string) []byte {
	return append(wire.AppendHeader(nil, typ, len(body)), body...)
}

// backend is one message of a server.
func backend(typ byte, body string) []byte { return frontend(typ, body) }

// scripted is a server connection that follows PostgresMain's rules and looks at no more of a message than they need: an
// ordinary Query is answered with one row that holds its text.
type scripted struct {
	in, out []byte
	status  byte
	skip    bool // everything up to Sync is ignored
	copying bool // COPY data is read
	simple  bool // by a simple Query
}

// step answers the message at the start of in, and reports false when there is no whole one.
func (s *scripted) step() (more, alive bool) {
	if len(s.in) < wire.HeaderLen {
		return false, true
	}
	limit, known := wire.FrontendLimit(s.in[0])
	l := wire.Length(s.in)
	if !known || l < 4 || l > limit {
		s.out = fatalf(codeProtocolViolation, "invalid frontend message type %d", s.in[0]).append(s.out, "FATAL")
		return false, false
	}
	if len(s.in) < int(l)+1 {
		return false, true
	}
	typ, body := s.in[0], s.in[wire.HeaderLen:l+1]
	alive = s.message(typ, body)
	s.in = s.in[l+1:]
	return true, alive
}

func (s *scripted) message(typ byte, body []byte) (alive bool) {
	switch {
	case s.copying:
		return s.copyData(typ)
	case typ == wire.Terminate:
		return false
	case typ == wire.Sync:
		s.skip = false
		s.ready()
	case s.skip:
	case typ == wire.Query:
		s.query(strings.TrimRight(string(body), "\x00"))
	case typ == wire.FunctionCall:
		s.out = append(s.out, backend(wire.FunctionCallResponse, "\xff\xff\xff\xff")...)
		s.ready()
	case bytes.Contains(body, []byte("error")) && strings.IndexByte("PBDE", typ) >= 0:
		s.skip = true
		s.fail()
	default:
		s.extended(typ, body)
	}
	return true
}

func (s *scripted) ready() { s.out = wire.AppendReady(s.out, s.status) }

func (s *scripted) fail() {
	if s.status == 'T' {
		s.status = 'E'
	}
	s.out = (&Error{Code: "42601", Message: "so it is written"}).append(s.out, "ERROR")
}

func (s *scripted) query(sql string) {
	switch {
	case sql == "":
		s.out = append(s.out, backend(wire.EmptyQueryResponse, "")...)
	case strings.HasPrefix(sql, "SET exit_on_error"): // the proxy's own
		s.out = wire.AppendComplete(s.out, "SET")
	case strings.Contains(sql, "error"):
		s.fail()
	case strings.Contains(sql, "copy"):
		s.copying, s.simple = true, true
		s.out = append(s.out, backend(wire.CopyInResponse, "\x00\x00\x00")...)
		return
	case strings.HasPrefix(sql, "begin"):
		s.status = 'T'
		s.out = wire.AppendComplete(s.out, "BEGIN")
	case strings.EqualFold(sql, "rollback"):
		s.status = 'I'
		s.out = wire.AppendComplete(s.out, "ROLLBACK")
	default:
		s.out = append(s.out, backend(wire.DataRow, "\x00\x01\x00\x00\x00"+string(rune(len(sql)&0x7f))+sql)...)
		s.out = wire.AppendComplete(s.out, "SELECT 1")
	}
	s.ready()
}

func (s *scripted) extended(typ byte, body []byte) {
	switch typ {
	case wire.Parse:
		s.out = append(s.out, backend(wire.ParseComplete, "")...)
	case wire.Bind:
		s.out = append(s.out, backend(wire.BindComplete, "")...)
	case wire.Close:
		s.out = append(s.out, backend(wire.CloseComplete, "")...)
	case wire.Describe:
		if len(body) > 0 && body[0] == 'S' {
			s.out = append(s.out, backend(wire.ParameterDescription, "\x00\x00")...)
		}
		s.out = append(s.out, backend(wire.NoData, "")...)
	case wire.Execute:
		if bytes.Contains(body, []byte("copy")) {
			s.copying, s.simple = true, false
			s.out = append(s.out, backend(wire.CopyInResponse, "\x00\x00\x00")...)
			return
		}
		s.out = wire.AppendComplete(s.out, "SELECT 0")
	}
}

func (s *scripted) copyData(typ byte) (alive bool) {
	switch typ {
	case wire.CopyData, wire.Flush, wire.Sync:
		return true
	case wire.CopyDone:
		s.out = wire.AppendComplete(s.out, "COPY 0")
	case wire.CopyFail:
		s.fail()
		s.skip = !s.simple
	default:
		s.out = fatalf(codeProtocolViolation, "unexpected message during COPY").append(s.out, "FATAL")
		return false
	}
	s.copying = false
	if s.simple {
		s.ready()
	}
	return true
}

// serve reads and answers until either side ends.
func (s *scripted) serve(conn net.Conn) {
	s.status = 'I'
	buf := make([]byte, 8<<10)
	for {
		n, err := conn.Read(buf)
		s.in = append(s.in, buf[:n]...)
		more, alive := true, true
		for more && alive {
			more, alive = s.step()
		}
		if _, werr := conn.Write(s.out); err != nil || werr != nil || !alive {
			return
		}
		s.out = s.out[:0]
	}
}

// backends is a set of scripted servers, and a Dialer that reaches them.
type backends struct {
	wg      sync.WaitGroup
	hostile atomic.Pointer[hostility] // nil: the servers behave
}

// hostility is what the servers say instead of what they should.
type hostility struct {
	login bool // to the startup packet; else to the first request
	hang  bool // the connection stays open
	says  []byte
}

// DialContext connects to a new server. It is a Dialer.
func (f *backends) DialContext(context.Context, string, string) (net.Conn, error) {
	client, server := memconn.Pipe()
	f.wg.Add(1)
	go f.serve(server)
	return client, nil
}

func (f *backends) serve(conn net.Conn) {
	defer f.wg.Done()
	defer conn.Close()
	var head [8]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return
	}
	if binary.BigEndian.Uint32(head[4:]) == codeCancelRequest {
		return
	}
	if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(head[:]))-8); err != nil {
		return
	}
	h := f.hostile.Load()
	if h != nil && h.login {
		h.say(conn)
		return
	}
	if _, err := conn.Write(loginAnswer()); err != nil {
		return
	}
	if h == nil {
		new(scripted).serve(conn)
		return
	}
	h.misbehave(conn)
}

// misbehave answers the first request in its own way.
func (h *hostility) misbehave(conn net.Conn) {
	if _, err := conn.Read(make([]byte, 4096)); err == nil {
		h.say(conn)
	}
}

func (h *hostility) say(conn net.Conn) {
	if _, err := conn.Write(h.says); err == nil && h.hang {
		_, _ = io.Copy(io.Discard, conn)
	}
}

func loginAnswer() []byte {
	b := request(nil, authOK, nil)
	b = wire.AppendStatus(b, "server_version", "18.0")
	b = wire.AppendStatus(b, "standard_conforming_strings", "on")
	b = append(b, backend(wire.BackendKeyData, "\x00\x00\x00\x07\x00\x00\x00\x09")...)
	return wire.AppendReady(b, 'I')
}

// panicLog is a slog.Handler that remembers records about panics.
type panicLog struct{ first atomic.Pointer[string] }

func (p *panicLog) Enabled(context.Context, slog.Level) bool { return true }
func (p *panicLog) WithAttrs([]slog.Attr) slog.Handler       { return p }
func (p *panicLog) WithGroup(string) slog.Handler            { return p }

func (p *panicLog) Handle(_ context.Context, r slog.Record) error {
	if !strings.Contains(r.Message, "panic") {
		return nil
	}
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += "\n" + a.String(); return true })
	p.first.CompareAndSwap(nil, &text)
	return nil
}

func (p *panicLog) require(t testing.TB) {
	t.Helper()
	if text := p.first.Load(); text != nil {
		require.FailNow(t, *text)
	}
}

// inBubble runs f on a clock of its own, on which waiting costs nothing. A deadlock of locks, which that clock does not
// see, panics with all stacks after a while.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	watch := time.AfterFunc(fuzzPatience, deadlocked)
	defer watch.Stop()
	synctest.Test(t, f)
}

func deadlocked() {
	_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
	panic("deadlock")
}

// besieged is a proxy in front of scripted servers, reached through DialContext.
type besieged struct {
	proxy  *Proxy
	fake   *backends
	log    *panicLog
	served chan error
}

func newBesieged(t testing.TB, cfg Config) *besieged {
	t.Helper()
	b := &besieged{fake: new(backends), log: new(panicLog), served: make(chan error, 1)}
	cfg.Upstream = Upstream{Hosts: []string{"fake"}, SSLMode: "disable", Dialer: b.fake, ConnectTimeout: time.Second}
	cfg.Logger = slog.New(b.log)
	p, err := New(nil, cfg)
	require.NoError(t, err)
	b.proxy = p
	go b.serve()
	return b
}

func (b *besieged) serve() { b.served <- b.proxy.Serve(context.Background()) }

// close ends everything and checks that nothing is left of the budget.
func (b *besieged) close(t testing.TB) {
	t.Helper()
	require.NoError(t, b.proxy.Close())
	b.fake.wg.Wait()
	require.ErrorIs(t, <-b.served, ErrProxyClosed)
	require.Zero(t, b.proxy.budget.used)
	b.log.require(t)
}

// rawClient is a client that speaks bytes.
type rawClient struct {
	net.Conn
	buf []byte // read and not looked at
}

func (b *besieged) dial(t testing.TB) *rawClient {
	t.Helper()
	conn, err := b.proxy.DialContext(context.Background(), "", "")
	require.NoError(t, err)
	require.NoError(t, conn.SetDeadline(time.Now().Add(fuzzPatience)))
	return &rawClient{Conn: conn}
}

// login takes the client to its first ReadyForQuery.
func (c *rawClient) login() error {
	if _, err := c.Write(startupPacket(protocol30, "user\x00fuzz\x00database\x00fuzz\x00\x00")); err != nil {
		return err
	}
	_, err := c.until(wire.ReadyForQuery)
	return err
}

// until returns the messages up to and including the next one of type typ.
func (c *rawClient) until(typ byte) ([]byte, error) {
	for n := 0; ; {
		for len(c.buf)-n >= wire.HeaderLen && len(c.buf)-n > int(wire.Length(c.buf[n:])) {
			t := c.buf[n]
			n += int(wire.Length(c.buf[n:])) + 1
			if t == typ {
				out := slices.Clone(c.buf[:n])
				c.buf = c.buf[n:]
				return out, nil
			}
		}
		part := make([]byte, 8<<10)
		k, err := c.Read(part)
		c.buf = append(c.buf, part[:k]...)
		if err != nil {
			return c.buf, err
		}
	}
}

// query sends a simple Query and returns its answer.
func (c *rawClient) query(sql string) ([]byte, error) {
	if _, err := c.Write(wire.AppendQuery(nil, sql)); err != nil {
		return nil, err
	}
	return c.until(wire.ReadyForQuery)
}

// transact begins a transaction or ends it.
func (c *rawClient) transact(t testing.TB, b *besieged, sql string, status byte) {
	t.Helper()
	got, err := c.query(sql)
	if err != nil {
		b.log.require(t)
	}
	require.NoError(t, err)
	require.Equal(t, string(wire.AppendReady(wire.AppendComplete(nil, strings.ToUpper(sql)), status)), string(got))
}

// requireTimely fails for an error that means that somebody waited for nothing.
func requireTimely(t testing.TB, err error) {
	t.Helper()
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		deadlocked()
	}
}

func FuzzStartup(f *testing.F) {
	ssl, gss := startupPacket(codeSSLRequest, ""), startupPacket(codeGSSENCRequest, "")
	plain := startupPacket(protocol30, "user\x00a\x00database\x00b\x00application_name\x00c\x00replication\x00on\x00_pq_.x\x00y\x00\x00")
	for _, seed := range [][]byte{
		plain, ssl, slices.Concat(ssl, plain), slices.Concat(gss, ssl, plain), slices.Concat(ssl, ssl), slices.Concat(gss, gss),
		startupPacket(codeCancelRequest, "\x00\x40\x00\x01secret"), startupPacket(codeCancelRequest, ""),
		startupPacket(2<<16, "user\x00"), startupPacket(3<<16|9999, "user\x00a\x00\x00"), startupPacket(protocol30, "user\x00a"),
		{0, 0, 0, 0},
		{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
		{tlsRecord, 3, 1, 0, 4, 1, 0, 0, 0},
		{},
	} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, withTLS bool) {
		client, server := memconn.Pipe()
		defer client.Close()
		defer server.Close()
		require.NoError(t, server.SetDeadline(time.Now().Add(fuzzPatience)))
		_, err := client.Write(data[:min(len(data), memconn.BufferSize)])
		require.NoError(t, err)
		require.NoError(t, client.(interface{ CloseWrite() error }).CloseWrite())
		cfg := startupConfig{cancel: func(uint32, []byte) {}}
		if withTLS {
			cfg.tls = serverTLS(&tls.Config{})
		}
		c := &Client{conn: server}
		err = c.negotiate(context.Background(), cfg)
		requireTimely(t, err)
		if err != nil {
			return
		}
		require.NotEmpty(t, c.User())
		require.NotEmpty(t, c.Database())
		require.LessOrEqual(t, len(c.params), maxStartupPacket)
		_, _ = c.Parameter("application_name")
		_ = c.answerVersion(nil, newestMinor)
		require.LessOrEqual(t, c.minor, uint32(newestMinor))
	})
}

// transcripts are what clients really send.
func transcripts() [][]byte {
	parse := frontend(wire.Parse, "\x00select 1\x00\x00\x00")
	named := frontend(wire.Parse, "s\x00select $1\x00\x00\x01\x00\x00\x00\x17")
	bind := frontend(wire.Bind, "\x00\x00\x00\x00\x00\x00\x00\x00")
	describe, execute := frontend(wire.Describe, "P\x00"), frontend(wire.Execute, "\x00\x00\x00\x00\x00")
	sync, flush := frontend(wire.Sync, ""), frontend(wire.Flush, "")
	query, bad := wire.AppendQuery(nil, "select 1"), wire.AppendQuery(nil, "error")
	data, done, fail := frontend(wire.CopyData, "1\t2\n"), frontend(wire.CopyDone, ""), frontend(wire.CopyFail, "no\x00")
	cp := wire.AppendQuery(nil, "copy t from stdin")
	group := slices.Concat(parse, bind, describe, execute, sync)
	return [][]byte{
		{},
		query, bad, group, slices.Concat(group, group, query), slices.Concat(query, query, bad, query),
		slices.Concat(parse, bind, execute, flush), slices.Concat(named, frontend(wire.Bind, "\x00s\x00\x00\x00\x00\x00\x00\x00"), execute, sync),
		slices.Concat(frontend(wire.Parse, "\x00error\x00\x00\x00"), bind, execute, sync, query), slices.Concat(bind, execute, sync),
		slices.Concat(cp, data, data, done, query), slices.Concat(cp, data, fail), slices.Concat(cp, data, sync, done, sync), slices.Concat(cp, query),
		slices.Concat(frontend(wire.Bind, "copy\x00\x00\x00\x00\x00\x00\x00\x00"), frontend(wire.Execute, "copy\x00\x00\x00\x00\x00"), data, done, sync),
		slices.Concat(data, done, fail, flush, query), slices.Concat(wire.AppendQuery(nil, "begin"), query), wire.AppendQuery(nil, ""),
		slices.Concat(wire.AppendQuery(nil, "set work_mem = 1; listen x"), query, frontend(wire.Terminate, "")),
		frontend(wire.FunctionCall, "\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00"), slices.Concat(query, frontend('?', "")),
		frontend(wire.Close, "S\x00"), slices.Concat(parse, sync, frontend(wire.Describe, "S\x00"), sync),
		frontend(wire.Query, strings.Repeat("x", 40<<10)), frontend(wire.Parse, "\x00"+strings.Repeat("x", 40<<10)),
		wire.AppendHeader(nil, wire.Query, 1<<30), wire.AppendHeader(nil, wire.CopyData, 1<<29), wire.AppendHeader(nil, wire.Sync, 20000),
		frontend(wire.Query, ""), frontend(wire.Parse, ""), frontend(wire.Bind, ""), frontend(wire.Describe, ""), frontend(wire.Execute, ""),
	}
}

func FuzzClient(f *testing.F) {
	for _, seed := range transcripts() {
		f.Add(seed, uint16(0))
		f.Add(seed, uint16(3))
	}
	f.Fuzz(func(t *testing.T, data []byte, chop uint16) {
		inBubble(t, func(t *testing.T) { siegeByClient(t, data, int(chop)) })
	})
}

// siegeByClient sends data from a client. Others must not notice, while it is connected and afterwards.
func siegeByClient(t *testing.T, data []byte, chop int) {
	b := newBesieged(t, Config{MaxConnections: 2, BorrowTimeout: fuzzPatience / 2})
	defer b.close(t)
	other, another, fuzzed := b.dial(t), b.dial(t), b.dial(t)
	for _, c := range []*rawClient{other, another, fuzzed} {
		defer c.Close()
		require.NoError(t, c.login())
	}
	b.useBoth(t, other, another)
	sent, heard := make(chan struct{}), make(chan error, 1)
	go fuzzed.chopped(data, chop, sent)
	go fuzzed.drain(heard)
	synctest.Wait()
	other.transact(t, b, "begin", 'T')
	other.transact(t, b, "rollback", 'I')
	require.NoError(t, fuzzed.Conn.(interface{ CloseWrite() error }).CloseWrite())
	requireTimely(t, <-heard)
	fuzzed.Close()
	<-sent
	b.useBoth(t, other, another)
	synctest.Wait()
	require.Equal(t, 2, b.proxy.Stats().Servers)
}

// useBoth makes two clients hold a server connection at the same time.
func (b *besieged) useBoth(t testing.TB, one, two *rawClient) {
	t.Helper()
	one.transact(t, b, "begin", 'T')
	two.transact(t, b, "begin", 'T')
	two.transact(t, b, "rollback", 'I')
	one.transact(t, b, "rollback", 'I')
}

// drain reads to the end.
func (c *rawClient) drain(heard chan<- error) {
	_, err := io.Copy(io.Discard, c)
	heard <- err
}

// chopped sends data in pieces of n bytes, 0 meaning all at once.
func (c *rawClient) chopped(data []byte, n int, sent chan<- struct{}) {
	defer close(sent)
	if n == 0 || len(data)/n > 1000 {
		n = len(data) + 1
	}
	for piece := range slices.Chunk(data, n) {
		if _, err := c.Write(piece); err != nil {
			return
		}
	}
}

func FuzzServer(f *testing.F) {
	ready := wire.AppendReady(nil, 'I')
	fatal := fatalf(codeAdminShutdown, "terminating connection due to administrator command").append(nil, "FATAL")
	failure := (&Error{Code: "42601", Message: "no"}).append(nil, "ERROR")
	row := backend(wire.DataRow, "\x00\x01\x00\x00\x00\x011")
	for _, seed := range [][]byte{
		{},
		ready, slices.Concat(row, wire.AppendComplete(nil, "SELECT 1"), ready), slices.Concat(ready, ready), fatal,
		slices.Concat(row, fatal), slices.Concat(failure, ready), slices.Concat(failure, wire.AppendReady(nil, 'E')), slices.Concat(ready, fatal),
		backend(wire.CopyInResponse, "\x00\x00\x00"), backend(wire.CopyBothResponse, "\x00\x00\x00"), backend(wire.CopyOutResponse, "\x00\x00\x00"),
		backend(wire.ParseComplete, ""), backend(wire.ReadyForQuery, ""), backend(wire.ErrorResponse, ""), backend(wire.ParameterStatus, ""),
		slices.Concat(wire.AppendStatus(nil, "TimeZone", "UTC"), ready), wire.AppendHeader(nil, wire.DataRow, 1<<30), wire.AppendHeader(nil, wire.DataRow, 1<<20),
		backend(wire.DataRow, strings.Repeat("x", 40<<10)), row[:3],
		{0, 0, 0, 0, 0, 0},
		loginAnswer(), loginAnswer()[:30],
	} {
		for _, login := range []bool{false, true} {
			for _, kind := range []uint8{0, 2, 5, 9} {
				f.Add(seed, login, false, kind)
				f.Add(seed, login, true, kind)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, login, hang bool, kind uint8) {
		h := &hostility{login: login, hang: hang, says: data[:min(len(data), memconn.BufferSize)]}
		requests := transcripts()[1:17]
		inBubble(t, func(t *testing.T) { siegeByServer(t, h, requests[int(kind)%len(requests)]) })
	})
}

// siegeByServer lets a server answer request as h says. The client must hear something, unless the server is silent, and
// afterwards the pool must be as it was.
func siegeByServer(t *testing.T, h *hostility, request []byte) {
	b := newBesieged(t, Config{MaxConnections: 1, BorrowTimeout: time.Second})
	defer b.close(t)
	b.fake.hostile.Store(h)
	victim := b.dial(t)
	defer victim.Close()
	err := victim.login()
	requireTimely(t, err)
	if err == nil {
		_, err = victim.Write(slices.Concat(request, frontend(wire.Sync, ""), wire.AppendQuery(nil, "select 1")))
		require.NoError(t, err)
		if _, err = victim.until(wire.ReadyForQuery); !h.hang {
			requireTimely(t, err)
		}
	}
	victim.Close()
	b.fake.hostile.Store(nil)
	survivor := b.survivor(t)
	defer survivor.Close()
	synctest.Wait()
	require.Equal(t, 1, b.proxy.Stats().Servers)
}

// survivor logs a client in and begins a transaction, on the one server connection that there may be. It tries until the
// proxy has done with the hostile server.
func (b *besieged) survivor(t testing.TB) *rawClient {
	t.Helper()
	want := string(wire.AppendReady(wire.AppendComplete(nil, "BEGIN"), 'T'))
	for deadline := time.Now().Add(5 * fuzzPatience); ; {
		c := b.dial(t)
		if c.login() == nil {
			if got, err := c.query("begin"); err == nil && string(got) == want {
				return c
			}
		}
		c.Close()
		b.log.require(t)
		if time.Now().After(deadline) {
			deadlocked()
		}
	}
}
