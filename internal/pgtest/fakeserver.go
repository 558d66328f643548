package pgtest

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/jackc/pgx/v5/pgproto3"
)

// A FakeServer answers clients as a test tells it to. It works over any listener, and under testing/synctest over one in
// memory. Every connection has a goroutine, which Close joins.
type FakeServer struct {
	// Handle talks to a client that has logged in; the connection is closed when it returns.
	Handle func(*FakeConn)
	// Greet takes a client from its first byte to ReadyForQuery; nil is (*FakeConn).Greet, which lets everybody in. A
	// connection for which it returns an error is closed.
	Greet func(*FakeConn) error
	// Cancel is told of cancel requests; nil ignores them.
	Cancel func(*pgproto3.CancelRequest)

	listener net.Listener
	done     sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]struct{} // open ones; nil once closed
	accepted int
}

// Serve accepts connections from l, which it then owns, until Close.
func (s *FakeServer) Serve(l net.Listener) {
	s.listener, s.conns = l, map[net.Conn]struct{}{}
	s.done.Go(s.accept)
}

// Close closes the listener and all connections, and waits for their handlers.
func (s *FakeServer) Close() error {
	err := s.listener.Close()
	s.mu.Lock()
	for conn := range s.conns {
		err = errors.Join(err, conn.Close())
	}
	s.conns = nil
	s.mu.Unlock()
	s.done.Wait()
	return err
}

// Accepted is the number of connections accepted so far.
func (s *FakeServer) Accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

func (s *FakeServer) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		if c := s.add(conn); c != nil {
			s.done.Go(c.serve)
		}
	}
}

// add notes an open connection, or closes it if the server itself is closed.
func (s *FakeServer) add(conn net.Conn) *FakeConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		conn.Close()
		return nil
	}
	s.conns[conn] = struct{}{}
	s.accepted++
	return &FakeConn{Backend: pgproto3.NewBackend(conn, conn), Conn: conn, PID: uint32(s.accepted), server: s}
}

func (s *FakeServer) remove(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, open := s.conns[conn]; open {
		delete(s.conns, conn)
		conn.Close()
	}
}

// A FakeConn is the server's end of a connection to a FakeServer.
type FakeConn struct {
	// Backend reads the client's messages and writes answers; Conn writes what is no message at all.
	Backend *pgproto3.Backend
	Conn    net.Conn
	// PID numbers the server's connections from 1.
	PID uint32
	// Startup holds the parameters of the startup message once Greet has read it.
	Startup map[string]string

	server *FakeServer
}

func (c *FakeConn) serve() {
	defer c.server.remove(c.Conn)
	greet := c.server.Greet
	if greet == nil {
		greet = (*FakeConn).Greet
	}
	if err := greet(c); err != nil {
		return
	}
	c.server.Handle(c)
}

// Greet refuses encryption, asks for no password and tells the client what real servers tell.
func (c *FakeConn) Greet() error {
	if err := c.ReceiveStartup(); err != nil {
		return err
	}
	return c.Send(
		&pgproto3.AuthenticationOk{},
		&pgproto3.ParameterStatus{Name: "server_version", Value: "18.0"},
		&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"},
		&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"},
		&pgproto3.BackendKeyData{ProcessID: c.PID, SecretKey: []byte{0, 0, 0, byte(c.PID)}},
		&pgproto3.ReadyForQuery{TxStatus: 'I'},
	)
}

// errCancel ends a connection that was made for a cancel request.
var errCancel = errors.New("pgtest: cancel request")

// ReceiveStartup reads up to the startup message, which is the first part of what Greet does.
func (c *FakeConn) ReceiveStartup() error {
	for {
		m, err := c.Backend.ReceiveStartupMessage()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *pgproto3.StartupMessage:
			c.Startup = m.Parameters
			return nil
		case *pgproto3.CancelRequest:
			if c.server.Cancel != nil {
				c.server.Cancel(m)
			}
			return errCancel
		case *pgproto3.SSLRequest, *pgproto3.GSSEncRequest:
			if _, err := c.Conn.Write([]byte{'N'}); err != nil {
				return err
			}
		default:
			return fmt.Errorf("pgtest: unexpected %T", m)
		}
	}
}

// Receive reads the client's next message, which is good until the next call.
func (c *FakeConn) Receive() (pgproto3.FrontendMessage, error) { return c.Backend.Receive() }

// Send writes messages at once.
func (c *FakeConn) Send(messages ...pgproto3.BackendMessage) error {
	for _, m := range messages {
		c.Backend.Send(m)
	}
	return c.Backend.Flush()
}

// Answer gives every Query and every Sync of the client what respond makes of it, until the client leaves or an error
// occurs; messages that need no answer are passed over. It is a Handle for servers that behave.
func (c *FakeConn) Answer(respond func(sql string) []pgproto3.BackendMessage) {
	for {
		m, err := c.Receive()
		if err != nil {
			return
		}
		switch m := m.(type) {
		case *pgproto3.Query:
			err = c.Send(respond(m.String)...)
		case *pgproto3.Sync:
			err = c.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		case *pgproto3.Terminate:
			return
		}
		if err != nil {
			return
		}
	}
}
