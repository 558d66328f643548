package pgtest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgproto3"
)

// DialFunc opens a connection on which a startup message can be sent.
type DialFunc func(ctx context.Context) (net.Conn, error)

// Options say how a script is run.
type Options struct {
	// User and Database log in without a password.
	User, Database string
	// Interfere is called where the script has another client interfere; nil leaves that out. It may return before the
	// other client is done, and must do so if that waits for this one.
	Interfere func(manner, sql string)
	// Change runs sql on a direct connection and returns what it is answered; nil leaves that out.
	Change func(sql string) (string, error)
}

// maxMessage bounds a message from the server.
const maxMessage = 128 << 20

// Run logs in at the server that dial reaches, with protocol 3.0, and follows the script. The transcript is that of the
// whole connection, and is as complete as can be when there is an error; a connection that the server closes is no error.
func (s *Script) Run(ctx context.Context, dial DialFunc, opts Options) (Transcript, error) {
	c, err := login(ctx, dial, opts)
	if err != nil {
		return nil, err
	}
	defer c.close()
	for i, st := range s.steps {
		if err := c.step(st); err != nil {
			return c.transcript, fmt.Errorf("%s: %w", s.lines[i], err)
		}
		if st.op == opWait || st.op == opSettle {
			c.note(s.lines[i])
		}
	}
	return c.transcript, c.leave()
}

// A session is a client that sends what it is told. Its goroutine receive is the connection's only reader.
type session struct {
	ctx        context.Context
	conn       net.Conn
	opts       Options
	stop       func() bool // keeps the context from closing the connection
	in         inbox
	received   sync.WaitGroup
	pending    []byte // not yet written
	pieces     int    // size of the next write's pieces; 0 is one
	owed       int    // ReadyForQuery still to come
	settled    int    // probes sent
	tables     tables
	ended      bool // the server has closed the connection
	transcript Transcript
}

// login opens a session and reads up to the first ReadyForQuery, or to the end if the server refuses.
func login(ctx context.Context, dial DialFunc, opts Options) (*session, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &session{ctx: ctx, conn: conn, opts: opts, owed: 1, in: inbox{wake: make(chan struct{}, 1)}, tables: tables{}}
	c.stop = context.AfterFunc(ctx, c.abandon)
	c.received.Add(1)
	go c.receive()
	startup := &pgproto3.StartupMessage{
		ProtocolVersion: pgproto3.ProtocolVersion30,
		Parameters:      map[string]string{"user": opts.User, "database": opts.Database},
	}
	if c.pending, err = startup.Encode(nil); err == nil {
		err = c.until(func(m message) bool { return m.kind == 'Z' })
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *session) abandon() { c.conn.Close() }

func (c *session) close() {
	c.stop()
	c.conn.Close()
	c.received.Wait()
}

func (c *session) note(step string) { c.transcript = append(c.transcript, "= "+step) }

func (c *session) step(st step) error {
	switch st.op {
	case opSend:
		c.pending = append(c.pending, st.data...)
		if st.owes {
			c.owed++
		}
	case opChop:
		c.pieces = st.pieces
	case opInterfere:
		if c.opts.Interfere != nil {
			c.opts.Interfere(st.name, st.sql)
		}
	case opChange:
		return c.change(st.sql)
	case opSettle:
		return c.settle()
	case opWait:
		return c.wait(st.name)
	}
	return nil
}

func (c *session) change(sql string) error {
	if c.opts.Change == nil {
		return nil
	}
	answer, err := c.opts.Change(sql)
	c.note("change " + answer)
	return err
}

func (c *session) wait(name string) error {
	switch name {
	case "":
		if c.owed <= 0 {
			return c.write()
		}
		return c.until(func(message) bool { return c.owed <= 0 })
	case "EOF":
		return c.until(func(message) bool { return false })
	default:
		return c.until(func(m message) bool { return m.name() == name })
	}
}

// leave settles what the script has left open and says goodbye.
func (c *session) leave() error {
	if c.ended {
		return nil
	}
	if err := c.settle(); err != nil || c.ended {
		return err
	}
	terminate, err := (&pgproto3.Terminate{}).Encode(nil)
	if err != nil {
		return err
	}
	c.pending = append(c.pending, terminate...)
	return c.wait("EOF")
}

// settle finds the point at which everything is answered without knowing the session's state: CopyFail ends a COPY
// and is ignored otherwise, Sync ends the skipping after an error, and the scanner's notice on a long identifier comes
// in any transaction state, a failed one too, and changes none.
func (c *session) settle() error {
	c.settled++
	marker := fmt.Sprintf("pgtest_marker_%d_", c.settled)
	query := "select 1 as " + marker + strings.Repeat("x", 64)
	for _, m := range []pgproto3.FrontendMessage{&pgproto3.CopyFail{Message: "pgtest"}, &pgproto3.Sync{}, &pgproto3.Query{String: query}} {
		data, err := m.Encode(nil)
		if err != nil {
			return err
		}
		c.pending = append(c.pending, data...)
	}
	seen := false
	err := c.until(func(m message) bool {
		seen = seen || m.kind == 'N' && strings.Contains(string(m.body), marker)
		return seen && m.kind == 'Z'
	})
	c.owed = 0
	return err
}

// until writes what is pending and reads up to the message that is the last, or to the end of the connection.
func (c *session) until(last func(message) bool) error {
	if err := c.write(); err != nil {
		return err
	}
	for !c.ended {
		m, err := c.in.next(c.ctx)
		if err != nil {
			c.ended = true
			if c.ctx.Err() != nil {
				c.transcript = append(c.transcript, "TIMEOUT")
				return fmt.Errorf("waiting for an answer: %w", c.ctx.Err())
			}
			c.transcript = append(c.transcript, "EOF")
			return nil
		}
		if m.kind == 'Z' {
			c.owed--
		}
		c.transcript = append(c.transcript, c.tables.number(m).String())
		if last(m) {
			return nil
		}
	}
	return nil
}

// write sends what is pending. A server that has closed the connection shows when its last words are read.
func (c *session) write() error {
	data, size := c.pending, c.pieces
	c.pending, c.pieces = nil, 0
	if size == 0 {
		size = len(data)
	}
	for len(data) > 0 {
		n := min(size, len(data))
		if _, err := c.conn.Write(data[:n]); err != nil {
			if c.ctx.Err() != nil {
				return fmt.Errorf("writing: %w", c.ctx.Err())
			}
			return nil
		}
		data = data[n:]
	}
	return nil
}

// receive reads messages until the connection ends, without regard to whether anybody takes them: a client that does
// not read while it writes a large pipeline would block the server, and with it itself.
func (c *session) receive() {
	defer c.received.Done()
	r := bufio.NewReaderSize(c.conn, 16<<10)
	for {
		m, err := readMessage(r)
		c.in.put(m, err)
		if err != nil {
			return
		}
	}
}

func readMessage(r *bufio.Reader) (message, error) {
	var header [5]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return message{}, err
	}
	n := binary.BigEndian.Uint32(header[1:])
	if n < 4 || n > maxMessage {
		return message{}, errors.New("pgtest: bad message length")
	}
	m := message{kind: header[0], body: make([]byte, n-4)}
	_, err := io.ReadFull(r, m.body)
	return m, err
}

// inbox holds the messages that have come in and that nobody has taken yet.
type inbox struct {
	wake chan struct{} // holds a token when there may be something new
	mu   sync.Mutex
	list []message
	err  error // what ended the connection
}

func (in *inbox) put(m message, err error) {
	in.mu.Lock()
	if err != nil {
		in.err = err
	} else {
		in.list = append(in.list, m)
	}
	in.mu.Unlock()
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// next takes the oldest message, and waits for it if need be.
func (in *inbox) next(ctx context.Context) (message, error) {
	for {
		if m, ok, err := in.take(); ok || err != nil {
			return m, err
		}
		select {
		case <-in.wake:
		case <-ctx.Done():
			return message{}, ctx.Err()
		}
	}
}

func (in *inbox) take() (m message, ok bool, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.list) > 0 {
		m, in.list = in.list[0], in.list[1:]
		return m, true, nil
	}
	return message{}, false, in.err
}
