package pgmoor_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/memconn"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// quiet is a logger for tests in which a lot goes wrong on purpose.
var quiet = slog.New(slog.DiscardHandler)

// patience bounds every wait of a test for bytes.
const patience = 10 * time.Minute

// A rig is a proxy in front of a fake server, with nothing but memory between them: it works under testing/synctest.
type rig struct {
	*pgmoor.Proxy
	server *fake
	served chan error
}

// newRig serves a proxy until the test ends. The zero fields of cfg's Upstream are filled in.
func newRig(t testing.TB, cfg pgmoor.Config, server *fake) *rig {
	t.Helper()
	server.start()
	cfg.Upstream.Hosts, cfg.Upstream.SSLMode = []string{"fake"}, "disable"
	cfg.Upstream.Dialer = pgmoor.DialerFunc(server.dial)
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	p, err := pgmoor.New(nil, cfg)
	require.NoError(t, err)
	r := &rig{Proxy: p, server: server, served: make(chan error, 1)}
	go serve(p, r.served)
	t.Cleanup(func() {
		require.NoError(t, p.Close())
		require.ErrorIs(t, <-r.served, pgmoor.ErrProxyClosed)
		require.NoError(t, server.Close())
	})
	return r
}

// A fake answers in a dialect of a few words:
//
//	BEGIN, COMMIT, ROLLBACK, DISCARD ALL   as ever
//	pid                                    the connection's number, in a row
//	sleep 10s                              takes that long, unless it is cancelled
//	hang                                   takes until it is cancelled
//	fail                                   an error
//	die, terminate, half                   closes the connection: in silence, with 57P01, inside of a DataRow
//	drift                                  a ParameterStatus that nobody asked for
//	LISTEN, SELECT …channels();UNLISTEN *  listens; tells the channels and ends that
//	SELECT pg_catalog.current_setting(…)   1
//	SELECT 't', …                          the question for what is left in the session: a row for each letter of left
//
// and everything else by its own text.
type fake struct {
	pgtest.FakeServer
	// sent is called for every statement that is run, for one at a time.
	sent func(pid uint32, sql string)
	// onCancel is called in the middle of a cancel request, before it is carried out.
	onCancel func(pid uint32)
	// refuse, if it returns a message, refuses a login.
	refuse func(params map[string]string) *pgproto3.ErrorResponse
	// login, if not nil, comes before AuthenticationOk; an error ends the connection.
	login func(c *pgtest.FakeConn) error
	// left are the kinds of what is left in every session.
	left atomic.Value
	// slow is how long a login takes.
	slow time.Duration
	// max are max_connections, superuser_reserved_connections and, unless negative, reserved_connections.
	max [3]int

	listener *memconn.Listener
	quit     func() // wakes the sleepers
	quitting chan struct{}
	mu       sync.Mutex
	down     bool
	open     int // connections now, those for cancel requests too
	most     int // connections at any moment
	logins   int // logins now
	busiest  int // logins at any moment
	attempts []time.Time
	cancels  map[uint32]chan struct{}
	alive    map[uint32]*pgtest.FakeConn
}

func (f *fake) start() {
	f.listener, f.quitting = memconn.Listen(), make(chan struct{})
	f.quit = sync.OnceFunc(func() { close(f.quitting) })
	f.cancels, f.alive = map[uint32]chan struct{}{}, map[uint32]*pgtest.FakeConn{}
	f.Handle, f.Greet, f.Cancel = f.handle, f.greet, f.cancel
	f.Serve(f.listener)
}

// Close ends all connections and waits for their handlers.
func (f *fake) Close() error {
	f.quit()
	return f.FakeServer.Close()
}

var errDown = &net.OpError{Op: "dial", Err: errors.New("the fake server is down")}

func (f *fake) dial(ctx context.Context, network, address string) (net.Conn, error) {
	f.mu.Lock()
	down := f.down
	f.attempts = append(f.attempts, time.Now())
	f.mu.Unlock()
	if down {
		return nil, errDown
	}
	conn, err := f.listener.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	f.count(1)
	f.logsIn()
	return &counted{Conn: conn, close: sync.OnceFunc(func() { f.count(-1) }), login: sync.OnceFunc(f.loggedIn)}, nil
}

// counted is the proxy's end of a connection to a fake. Its login is over with the first ReadyForQuery.
type counted struct {
	net.Conn
	close, login func()
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n >= 6 && p[n-6] == 'Z' {
		c.login()
	}
	return n, err
}

func (c *counted) Close() error {
	c.close()
	c.login()
	return c.Conn.Close()
}

func (f *fake) count(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open += n
	f.most = max(f.most, f.open)
}

func (f *fake) setDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

func (f *fake) setSlow(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slow = d
}

func (f *fake) setMax(max [3]int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.max = max
}

func (f *fake) limits() *pgproto3.DataRow {
	f.mu.Lock()
	defer f.mu.Unlock()
	row := &pgproto3.DataRow{Values: make([][]byte, 3)}
	for i, n := range f.max {
		if n >= 0 {
			row.Values[i] = []byte(strconv.Itoa(n))
		}
	}
	return row
}

func (f *fake) greet(c *pgtest.FakeConn) error {
	f.mu.Lock()
	slow := f.slow
	f.mu.Unlock()
	time.Sleep(slow)
	if f.refuse == nil && f.login == nil {
		return c.Greet()
	}
	if err := c.ReceiveStartup(); err != nil {
		return err
	}
	if f.login != nil {
		if err := f.login(c); err != nil {
			return err
		}
	} else if e := f.refuse(c.Startup); e != nil {
		return errors.Join(errDown, c.Send(e))
	}
	return c.Send(
		&pgproto3.AuthenticationOk{},
		&pgproto3.ParameterStatus{Name: "server_version", Value: "15.0"},
		&pgproto3.BackendKeyData{ProcessID: c.PID, SecretKey: []byte{0, 0, 0, byte(c.PID)}},
		&pgproto3.ReadyForQuery{TxStatus: 'I'},
	)
}

func (f *fake) logsIn() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logins++
	f.busiest = max(f.busiest, f.logins)
}

func (f *fake) loggedIn() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logins--
}

func (f *fake) cancel(m *pgproto3.CancelRequest) {
	if f.onCancel != nil {
		f.onCancel(m.ProcessID)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.cancels[m.ProcessID]; c != nil {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// kill closes the connection with the given number.
func (f *fake) kill(pid uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.alive[pid]; c != nil {
		c.Conn.Close()
	}
}

func (f *fake) counts() (open, most, busiest int, attempts []time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open, f.most, f.busiest, f.attempts
}

func (f *fake) handle(c *pgtest.FakeConn) {
	cancelled := make(chan struct{})
	f.mu.Lock()
	f.cancels[c.PID], f.alive[c.PID] = cancelled, c
	f.mu.Unlock()
	defer f.closed(c.PID)
	(&backend{fake: f, c: c, cancelled: cancelled, status: 'I'}).serve()
}

func (f *fake) note(pid uint32, sql string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sent != nil {
		f.sent(pid, sql)
	}
}

func (f *fake) closed(pid uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.cancels, pid)
	delete(f.alive, pid)
}

// backend is one connection of a fake.
type backend struct {
	fake      *fake
	c         *pgtest.FakeConn
	cancelled chan struct{}
	status    byte
	text      string // of the unnamed statement
	skip      bool
	gone      bool
	channels  []string // that it listens to
}

func (b *backend) serve() {
	for !b.gone {
		m, err := b.c.Receive()
		if err != nil || b.message(m) != nil {
			return
		}
	}
}

func (b *backend) message(m pgproto3.FrontendMessage) error {
	switch m := m.(type) {
	case *pgproto3.Query:
		return b.c.Send(append(b.run(m.String), b.ready())...)
	case *pgproto3.Sync:
		b.skip = false
		return b.c.Send(b.ready())
	case *pgproto3.Terminate:
		b.gone = true
	}
	if b.skip {
		return nil
	}
	switch m := m.(type) {
	case *pgproto3.Parse:
		b.text = m.Query
		return b.c.Send(&pgproto3.ParseComplete{})
	case *pgproto3.Bind:
		return b.c.Send(&pgproto3.BindComplete{})
	case *pgproto3.Describe:
		return b.c.Send(&pgproto3.NoData{})
	case *pgproto3.Close:
		return b.c.Send(&pgproto3.CloseComplete{})
	case *pgproto3.Execute:
		out := b.run(b.text)
		_, b.skip = out[len(out)-1].(*pgproto3.ErrorResponse)
		return b.c.Send(out...)
	}
	return nil
}

func (b *backend) ready() pgproto3.BackendMessage { return &pgproto3.ReadyForQuery{TxStatus: b.status} }

func (b *backend) run(sql string) []pgproto3.BackendMessage {
	b.fake.note(b.c.PID, sql)
	verb, arg, _ := strings.Cut(sql, " ")
	out := []pgproto3.BackendMessage{}
	switch verb = strings.TrimSuffix(verb, ";"); verb {
	case "BEGIN":
		b.status = 'T'
	case "COMMIT", "ROLLBACK":
		b.status = 'I'
	case "pid":
		out = append(out, &pgproto3.DataRow{Values: [][]byte{[]byte(strconv.Itoa(int(b.c.PID)))}})
	case "sleep", "hang":
		if !b.sleep(arg) {
			return b.fail("57014", "canceling statement due to user request")
		}
	case "LISTEN":
		b.channels = append(b.channels, strings.Trim(arg, `";`))
	case "UNLISTEN":
		b.channels = slices.DeleteFunc(b.channels, func(c string) bool { return c == arg })
	case "SELECT":
		if strings.HasPrefix(arg, "pg_catalog.pg_listening_channels();") {
			for _, name := range b.channels {
				out = append(out, &pgproto3.DataRow{Values: [][]byte{[]byte(name)}})
			}
			b.channels = nil
		} else if strings.Contains(arg, "'max_connections'") {
			out = append(out, &pgproto3.RowDescription{Fields: make([]pgproto3.FieldDescription, 3)}, b.fake.limits())
		} else if left, _ := b.fake.left.Load().(string); strings.HasPrefix(arg, "'t'") {
			for _, kind := range left {
				out = append(out, &pgproto3.DataRow{Values: [][]byte{[]byte(string(kind)), nil, nil}})
			}
		} else if n := strings.Count(sql, "pg_catalog.current_setting("); n > 0 { // every setting is 1
			out = append(out, &pgproto3.RowDescription{Fields: make([]pgproto3.FieldDescription, n)}, &pgproto3.DataRow{Values: slices.Repeat([][]byte{[]byte("1")}, n)})
		}
	case "fail":
		return b.fail("42601", "as you wish")
	case "die", "terminate", "half":
		b.die(verb)
	case "drift":
		out = append(out, &pgproto3.ParameterStatus{Name: "client_encoding", Value: "LATIN1"})
	}
	return append(out, &pgproto3.CommandComplete{CommandTag: []byte(sql)})
}

func (b *backend) sleep(d string) bool {
	var after <-chan time.Time
	if d != "" {
		n, err := time.ParseDuration(d)
		if err != nil {
			return false
		}
		after = time.After(n)
	}
	select {
	case <-after:
		return true
	case <-b.cancelled:
		return false
	case <-b.fake.quitting:
		return false
	}
}

func (b *backend) fail(code, message string) []pgproto3.BackendMessage {
	if b.status == 'T' {
		b.status = 'E'
	}
	return []pgproto3.BackendMessage{&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: code, Message: message}}
}

func (b *backend) die(how string) {
	b.gone = true
	switch how {
	case "terminate":
		_ = b.c.Send(&pgproto3.ErrorResponse{
			Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "57P01",
			Message: "terminating connection due to administrator command",
		})
	case "half":
		_, _ = b.c.Conn.Write([]byte{'D', 0, 1, 0, 0, 0, 1, 0, 0, 0xff})
		_, _ = b.c.Conn.Write(make([]byte, 17000))
	}
	b.c.Conn.Close()
}

// A client speaks the protocol message by message.
type client struct {
	*pgproto3.Frontend
	t    testing.TB
	conn net.Conn
	pid  uint32
	key  []byte
	told map[string]string // ParameterStatus
}

// A reply is everything up to a ReadyForQuery, or up to the end of the connection.
type reply struct {
	rows   []string // first columns
	tags   []string
	err    *pgproto3.ErrorResponse
	errs   int
	status byte // 0: the connection ended
}

func (r reply) code() string {
	if r.err == nil {
		return ""
	}
	return r.err.Code
}

// connect logs in through the rig's DialContext.
func (r *rig) connect(t testing.TB, user string, params ...string) *client {
	t.Helper()
	c := r.dialClient(t)
	got := c.startup(user, params...)
	require.Nil(t, got.err)
	require.EqualValues(t, 'I', got.status)
	return c
}

func (r *rig) dialClient(t testing.TB) *client {
	t.Helper()
	conn, err := r.DialContext(context.Background(), "", "")
	require.NoError(t, err)
	return newClient(t, conn)
}

func newClient(t testing.TB, conn net.Conn) *client {
	t.Cleanup(func() { conn.Close() })
	return &client{Frontend: pgproto3.NewFrontend(conn, conn), t: t, conn: conn, told: map[string]string{}}
}

// startup sends a startup packet and returns what comes back.
func (c *client) startup(user string, params ...string) reply {
	c.t.Helper()
	m := &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": user}}
	for i := 0; i < len(params); i += 2 {
		m.Parameters[params[i]] = params[i+1]
	}
	c.send(m)
	return c.reply()
}

func (c *client) send(messages ...pgproto3.FrontendMessage) {
	c.t.Helper()
	for _, m := range messages {
		c.Send(m)
	}
	require.NoError(c.t, c.Flush())
}

func (c *client) query(sql string) reply {
	c.t.Helper()
	c.ask(sql)
	return c.reply()
}

// ask sends a query whose reply the test takes later.
func (c *client) ask(sql string) {
	c.t.Helper()
	c.send(&pgproto3.Query{String: sql})
}

// extended sends a statement by the extended protocol.
func (c *client) extended(sql string) reply {
	c.t.Helper()
	c.send(&pgproto3.Parse{Query: sql}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
	return c.reply()
}

// reply reads up to the next ReadyForQuery or the end of the connection.
func (c *client) reply() (r reply) {
	c.t.Helper()
	require.NoError(c.t, c.conn.SetReadDeadline(time.Now().Add(patience)))
	for {
		m, err := c.Receive()
		if err != nil {
			require.False(c.t, errors.Is(err, context.DeadlineExceeded), "no answer: %v", err)
			var ne net.Error
			require.False(c.t, errors.As(err, &ne) && ne.Timeout(), "no answer: %v", err)
			return r
		}
		if c.note(&r, m) {
			return r
		}
	}
}

func (c *client) note(r *reply, m pgproto3.BackendMessage) (end bool) {
	switch m := m.(type) {
	case *pgproto3.DataRow:
		if len(m.Values) > 0 {
			r.rows = append(r.rows, string(m.Values[0]))
		}
	case *pgproto3.CommandComplete:
		r.tags = append(r.tags, string(m.CommandTag))
	case *pgproto3.ErrorResponse:
		e := *m
		r.err = &e
		r.errs++
	case *pgproto3.ParameterStatus:
		c.told[m.Name] = m.Value
	case *pgproto3.BackendKeyData:
		c.pid, c.key = m.ProcessID, append([]byte(nil), m.SecretKey...)
	case *pgproto3.ReadyForQuery:
		r.status = m.TxStatus
		return true
	}
	return false
}

// ok runs statements that must succeed, and returns the first column of the last one's first row.
func (c *client) ok(statements ...string) (value string) {
	c.t.Helper()
	for _, sql := range statements {
		r := c.query(sql)
		require.Nil(c.t, r.err, sql)
		require.NotZero(c.t, r.status, sql)
		value = ""
		if len(r.rows) > 0 {
			value = r.rows[0]
		}
	}
	return value
}

// ended requires that the connection ends with nothing more than an error of the given code; "" is none.
func (c *client) ended(code string) {
	c.t.Helper()
	r := c.reply()
	require.Zero(c.t, r.status)
	require.Equal(c.t, code, r.code())
}

// requestCancel sends a cancel request for c over conn and waits until the proxy has dealt with it.
func (c *client) requestCancel(conn net.Conn) {
	c.t.Helper()
	defer conn.Close()
	b, err := (&pgproto3.CancelRequest{ProcessID: c.pid, SecretKey: c.key}).Encode(nil)
	require.NoError(c.t, err)
	_, err = conn.Write(b)
	require.NoError(c.t, err)
	_, err = io.Copy(io.Discard, conn)
	require.NoError(c.t, err)
}

func (r *rig) cancelFor(c *client) {
	c.t.Helper()
	conn, err := r.DialContext(context.Background(), "", "")
	require.NoError(c.t, err)
	c.requestCancel(conn)
}

// goroutines returns the stacks of the goroutines that run code of the proxy, save for the test's own.
func goroutines() (ours []string) {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for _, g := range strings.Split(string(buf), "\n\n")[1:] {
		if strings.Contains(g, "pgmoor/pgmoor.") {
			ours = append(ours, g)
		}
	}
	return ours
}
