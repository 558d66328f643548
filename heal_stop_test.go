package pgmoor_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// A changing is a fake with prepared statements, those of PREPARE too, which are refused once it has changed, as when a table has. Where it
// stops in the middle of a write can be chosen.
type changing struct {
	fake
	mu      sync.Mutex
	version int
	oldest  int // version of which a statement is known
	taps    []*tap
}

// A tap is the server's end of a connection, which can stop behind so many bytes.
type tap struct {
	net.Conn
	mu        sync.Mutex
	stops     bool
	left      int
	written   int
	cancelled chan struct{} // holds a cancel request until something is run
	goOn      chan error    // what a write that has stopped ends with
}

func (p *tap) Write(b []byte) (int, error) {
	p.mu.Lock()
	stops := p.stops && len(b) > p.left
	n := len(b)
	if stops {
		n, p.stops = p.left, false
	}
	p.left -= n
	p.written += n
	p.mu.Unlock()
	if _, err := p.Conn.Write(b[:n]); err != nil || !stops {
		return n, err
	}
	how := <-p.goOn
	if errors.Is(how, net.ErrClosed) {
		return n, p.Close()
	}
	if b[0] == 'E' || b[0] == 'Z' {
		select {
		case <-p.cancelled: // too late for what has ended
		default:
		}
	}
	m, err := p.Conn.Write(b[n:])
	if errors.Is(how, errTerminated) {
		_, _ = p.Conn.Write(encoded(&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "57P01", Message: "as it says"}))
		_ = p.Close()
	}
	return n + m, err
}

// errTerminated has a tap say so and close, behind the messages of the write that has stopped.
var errTerminated = errors.New("terminated")

func encoded(m pgproto3.BackendMessage) []byte {
	b, err := m.Encode(nil)
	if err != nil {
		panic(err)
	}
	return b
}

func (p *tap) stopBehind(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stops, p.left, p.written = true, n, 0
}

func newChanging(t *testing.T, cfg pgmoor.Config) (*rig, *changing) {
	t.Helper()
	s := new(changing)
	r := newRig(t, cfg, &s.fake)
	s.Handle = s.handle
	return r, s
}

func (s *changing) change() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
}

// forget has the server forget all statements.
func (s *changing) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.oldest = s.version
}

func (s *changing) forgotten(st made) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return st.version < s.oldest
}

func (s *changing) now() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// last is the connection that was made last.
func (s *changing) last() *tap {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taps[len(s.taps)-1]
}

func (s *changing) handle(c *pgtest.FakeConn) {
	cancelled := make(chan struct{}, 1)
	p := &tap{Conn: c.Conn, goOn: make(chan error), cancelled: cancelled}
	c.Conn, c.Backend = p, pgproto3.NewBackend(p, p)
	s.mu.Lock()
	s.taps = append(s.taps, p)
	s.mu.Unlock()
	s.fake.mu.Lock()
	s.cancels[c.PID], s.alive[c.PID] = cancelled, c
	s.fake.mu.Unlock()
	defer s.closed(c.PID)
	b := &preparing{backend: backend{fake: &s.fake, c: c, cancelled: cancelled, status: 'I'}, of: s, named: map[string]made{}}
	for !b.gone {
		m, err := c.Receive()
		if err != nil || b.message(m) != nil {
			return
		}
	}
}

// made is a prepared statement.
type made struct {
	text    string
	version int
}

// preparing is one connection of a changing.
type preparing struct {
	backend
	of    *changing
	named map[string]made
}

func (b *preparing) message(m pgproto3.FrontendMessage) error {
	if q, ok := m.(*pgproto3.Query); ok {
		return b.c.Send(append(b.query(q.String), b.ready())...)
	}
	name := ""
	switch m := m.(type) {
	case *pgproto3.Execute:
		if !b.skip { // a PREPARE comes so, too
			out := b.query(b.text)
			_, b.skip = out[len(out)-1].(*pgproto3.ErrorResponse)
			return b.c.Send(out...)
		}
	case *pgproto3.Parse:
		if !b.skip && m.Name != "" {
			b.named[m.Name] = made{m.Query, b.of.now()}
			return b.c.Send(&pgproto3.ParseComplete{})
		}
	case *pgproto3.Close:
		if !b.skip && m.ObjectType == 'S' {
			delete(b.named, m.Name)
		}
	case *pgproto3.Bind:
		name = m.PreparedStatement
	case *pgproto3.Describe:
		if m.ObjectType == 'S' {
			name = m.Name
		}
	}
	if b.skip || name == "" {
		return b.backend.message(m)
	}
	if refused := b.use(name); refused != nil {
		b.skip = true
		return b.c.Send(refused...)
	}
	if _, ok := m.(*pgproto3.Describe); ok {
		return b.c.Send(&pgproto3.ParameterDescription{}, &pgproto3.NoData{})
	}
	return b.backend.message(m)
}

// use makes a statement the one that is run next, or refuses it.
func (b *preparing) use(name string) []pgproto3.BackendMessage {
	st, known := b.named[name]
	switch {
	case !known || b.of.forgotten(st):
		return b.fail("26000", "no such statement")
	case st.version != b.of.now():
		out := b.fail("0A000", "cached plan must not change result type")
		out[0].(*pgproto3.ErrorResponse).Routine = "RevalidateCachedQuery"
		return out
	}
	b.text = st.text
	return nil
}

func (b *preparing) query(sql string) (out []pgproto3.BackendMessage) {
	f := strings.Fields(strings.TrimSuffix(sql, ";"))
	switch f[0] {
	case "PREPARE":
		_, text, _ := strings.Cut(sql, " AS ")
		b.named[strings.Trim(f[1], `"`)] = made{text, b.of.now()}
		return []pgproto3.BackendMessage{&pgproto3.CommandComplete{CommandTag: []byte("PREPARE")}}
	case "EXECUTE":
		if refused := b.use(strings.Trim(f[1], `"`)); refused != nil {
			return refused
		}
		return b.run(b.text)
	case "DEALLOCATE":
		delete(b.named, strings.Trim(f[1], `"`))
	case "DISCARD":
		clear(b.named)
	}
	return b.run(sql)
}

// An attack has a client whose statement is just being prepared anew and run once more.
type attack struct {
	*rig
	server   *changing
	c, other *client
	how      string
	tap      *tap
}

func newAttack(t *testing.T, how, text string) *attack {
	t.Helper()
	r, s := newChanging(t, pgmoor.Config{MaxConnections: 1})
	a := &attack{rig: r, server: s, other: r.connect(t, "u"), c: r.connect(t, "u"), how: how}
	a.prepare(a.other, text)
	s.change()
	a.prepare(a.c, text)
	if a.other.ok("SELECT 1"); how == "EXECUTE" { // a PREPARE always makes a new one
		s.forget()
	}
	a.tap = s.last()
	return a
}

func (a *attack) prepare(c *client, text string) {
	c.t.Helper()
	if a.how == "EXECUTE" {
		c.ok("PREPARE s AS " + text)
		return
	}
	require.Nil(c.t, c.synced(parseOf("s", text)).err)
}

// ask sends what is healed.
func (a *attack) ask() {
	switch a.how {
	case "EXECUTE":
		a.c.ask("EXECUTE s")
	case "flushed":
		a.c.send(&pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Flush{})
		synctest.Wait()
		a.c.send(&pgproto3.Execute{}, &pgproto3.Sync{})
	case "described":
		a.c.send(&pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}, &pgproto3.Sync{})
	default:
		a.c.send(&pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}, &pgproto3.Sync{})
	}
}

// stopsEverywhere has the server stop behind more and more bytes of what it answers while a statement is healed, and calls f then.
func stopsEverywhere(t *testing.T, text string, f func(t *testing.T, a *attack)) {
	for _, how := range []string{"batch", "flushed", "described", "EXECUTE"} {
		for n, all := 0, 1; n < all; n += 4 {
			t.Run(fmt.Sprint(how, " behind ", n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAttack(t, how, text)
					a.tap.stopBehind(n)
					a.ask()
					synctest.Wait()
					a.tap.mu.Lock()
					stopped := !a.tap.stops
					if a.tap.mu.Unlock(); !stopped {
						if a.tap.stopBehind(1 << 20); strings.HasPrefix(text, "hang") {
							a.cancelFor(a.c)
						}
						a.c.reply()
						require.EqualValues(t, 1, a.Stats().StatementsHealed)
						return
					}
					all = n + 5
					f(t, a)
				})
			})
		}
	}
}

// clean requires that the other client finds a server connection like new, and nothing is left of the one that was attacked.
func (a *attack) clean(t *testing.T, clients int) {
	t.Helper()
	synctest.Wait()
	for range 2 {
		a.other.ok("SELECT 1")
		a.prepare(a.other, "SELECT 2")
	}
	synctest.Wait()
	st := a.Stats()
	require.Equal(t, clients, st.Clients)
	require.Equal(t, 1, st.Servers)
	require.Zero(t, st.Waiting)
	require.Zero(t, st.Pinned)
}

func TestACancelInTheMiddleOfAHealIsForTheClient(t *testing.T) {
	stopsEverywhere(t, "hang", func(t *testing.T, a *attack) {
		done := make(chan struct{})
		go func() { defer close(done); a.cancelFor(a.c) }()
		synctest.Wait()
		a.tap.goOn <- nil
		<-done
		require.EqualValues(t, 1, a.Stats().Cancels, "the client's next statement must not be hit")
		r := a.c.reply()
		require.Equal(t, "57014", r.code())
		require.EqualValues(t, 'I', r.status)
		a.c.ok("SELECT 1")
		a.clean(t, 2)
	})
}

func TestAClientThatLeavesInTheMiddleOfAHealLeavesNothing(t *testing.T) {
	for _, text := range []string{"SELECT 1", "hang"} {
		for _, goodbye := range []bool{false, true} {
			stopsEverywhere(t, text, func(t *testing.T, a *attack) {
				if goodbye {
					a.c.send(&pgproto3.Terminate{})
				}
				require.NoError(t, a.c.conn.Close())
				synctest.Wait()
				a.tap.goOn <- nil
				a.clean(t, 1)
			})
		}
	}
}

func TestAServerThatEndsInTheMiddleOfAHealIsLostAsEver(t *testing.T) {
	stopsEverywhere(t, "SELECT 1", func(t *testing.T, a *attack) {
		a.tap.goOn <- net.ErrClosed
		r := a.c.reply()
		if r.status == 0 { // inside of a message that the client has seen the beginning of
			require.Empty(t, r.code())
			a.clean(t, 1)
			return
		}
		require.Contains(t, []string{"08006", "08007", ""}, r.code())
		a.c.ok("SELECT 1")
		require.Nil(t, a.again().err)
		a.clean(t, 2)
	})
}

func TestAServerThatIsTerminatedInTheMiddleOfAHealSaysSo(t *testing.T) {
	stopsEverywhere(t, "SELECT 1", func(t *testing.T, a *attack) {
		a.tap.goOn <- errTerminated
		r := a.c.reply()
		synctest.Wait()
		if r.status != 0 {
			require.Contains(t, []string{"08006", "08007", ""}, r.code())
			a.c.ok("SELECT 1")
			require.Nil(t, a.again().err)
			a.clean(t, 2)
			return
		}
		a.clean(t, 1)
	})
}

func (a *attack) again() reply {
	a.ask()
	return a.c.reply()
}
