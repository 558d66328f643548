package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

const (
	protocolVersion = 3 << 16
	sslRequestCode  = 80877103
	readBuffer      = 256 << 10
	maxErrorBody    = 64 << 10
)

// endpoint is where and as whom a client connects; without a login the other side must ask for no password.
type endpoint struct {
	addr, user, db string
	tls            bool
	login          *credentials
}

// probe connects, asks something and leaves.
func (e endpoint) probe(ctx context.Context) error { return e.exec(ctx, "SELECT 1") }

// exec runs one statement on a connection of its own.
func (e endpoint) exec(ctx context.Context, sql string) error {
	c, err := e.connect(ctx, 4096)
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.query(sql)
	return err
}

// client speaks just enough of the protocol to load a pooler in the ways pgbench cannot. It keeps only what an
// idle client needs, its connection and reader; ctx closes the connection.
type client struct {
	conn   net.Conn
	r      *bufio.Reader
	detach func() bool
	server string // version, as the other side reports it
}

// connect logs in and returns when the other side is ready for a query. The client reads through a
// buffer of the given size.
func (e endpoint) connect(ctx context.Context, buffer int) (*client, error) {
	conn, err := (&net.Dialer{KeepAlive: -1}).DialContext(ctx, "tcp", e.addr)
	if err != nil {
		return nil, err
	}
	raw := conn
	detach := context.AfterFunc(ctx, func() { _ = raw.Close() })
	if e.tls {
		conn, err = upgrade(conn)
	}
	c := &client{conn: conn, detach: detach}
	if err == nil {
		c.r = bufio.NewReaderSize(conn, buffer)
		err = c.login(e)
	}
	if err != nil {
		detach()
		_ = raw.Close()
		return nil, fmt.Errorf("connecting to %s: %w", e.addr, err)
	}
	return c, nil
}

// upgrade asks for TLS. The certificate is not verified: it is one we have just made.
func upgrade(conn net.Conn) (net.Conn, error) {
	m := binary.BigEndian.AppendUint32(nil, 8)
	if _, err := conn.Write(binary.BigEndian.AppendUint32(m, sslRequestCode)); err != nil {
		return conn, err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return conn, err
	}
	if answer[0] != 'S' {
		return conn, errors.New("the server does not offer TLS")
	}
	return tls.Client(conn, &tls.Config{InsecureSkipVerify: true}), nil
}

func startupMessage(user, db string) []byte {
	m := binary.BigEndian.AppendUint32(make([]byte, 4), protocolVersion)
	m = append(m, "user\x00"+user+"\x00database\x00"+db+"\x00\x00"...)
	binary.BigEndian.PutUint32(m, uint32(len(m)))
	return m
}

func (c *client) login(e endpoint) error {
	if _, err := c.conn.Write(startupMessage(e.user, e.db)); err != nil {
		return err
	}
	x := exchange{credentials: e.login}
	for {
		kind, body, err := c.next(maxErrorBody)
		if err != nil {
			return err
		}
		switch kind {
		case 'R':
			if err := c.authenticate(&x, body); err != nil {
				return err
			}
		case 'S':
			if k, v, _ := strings.Cut(string(body), "\x00"); k == "server_version" {
				c.server = strings.TrimRight(v, "\x00")
			}
		case 'E':
			return serverError(body)
		case 'Z':
			return nil
		}
	}
}

// authenticate answers an authentication request.
func (c *client) authenticate(x *exchange, request []byte) error {
	switch {
	case len(request) < 4:
		return errors.New("an authentication request without a code")
	case binary.BigEndian.Uint32(request) == 0:
		return nil
	case x.credentials == nil:
		return errors.New("the server asks for a password; it must trust this user")
	}
	answer, err := x.answer(binary.BigEndian.Uint32(request), request[4:])
	if err != nil || answer == nil {
		return err
	}
	_, err = c.conn.Write(answer)
	return err
}

// header reads a message's type and the length of its body.
func (c *client) header() (byte, int, error) {
	h, err := c.r.Peek(5)
	if err != nil {
		return 0, 0, err
	}
	kind, length := h[0], int(int32(binary.BigEndian.Uint32(h[1:])))-4
	if length < 0 {
		return 0, 0, fmt.Errorf("message %q of negative length", kind)
	}
	_, err = c.r.Discard(5)
	return kind, length, err
}

// next reads a whole message of at most limit bytes.
func (c *client) next(limit int) (byte, []byte, error) {
	kind, length, err := c.header()
	if err != nil {
		return 0, nil, err
	}
	if length > limit {
		return 0, nil, fmt.Errorf("message %q of %d bytes", kind, length)
	}
	body := make([]byte, length)
	_, err = io.ReadFull(c.r, body)
	return kind, body, err
}

// serverError turns an ErrorResponse into an error.
func serverError(body []byte) error {
	for _, field := range strings.Split(string(body), "\x00") {
		if strings.HasPrefix(field, "M") {
			return errors.New("server: " + field[1:])
		}
	}
	return errors.New("server: error without a message")
}

// drain reads up to the end of the current query, or to the message until, and returns the bytes read. A body
// is skipped, not kept, whatever its size.
func (c *client) drain(until byte) (int64, error) {
	var total int64
	var failure error
	for {
		kind, length, err := c.header()
		if err != nil {
			return total, err
		}
		total += int64(5 + length)
		if kind == 'E' && length <= maxErrorBody {
			body := make([]byte, length)
			if _, err := io.ReadFull(c.r, body); err != nil {
				return total, err
			}
			failure = serverError(body)
		} else if _, err := c.r.Discard(length); err != nil {
			return total, err
		}
		if kind == 'Z' || kind == until {
			return total, failure
		}
	}
}

func queryMessage(sql string) []byte {
	m := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(len(sql)+5))
	return append(append(m, sql...), 0)
}

// query runs a statement and returns how many bytes its answer took.
func (c *client) query(sql string) (int64, error) { return c.send(queryMessage(sql)) }

// send writes a ready-made Query and reads its answer.
func (c *client) send(message []byte) (int64, error) {
	if _, err := c.conn.Write(message); err != nil {
		return 0, err
	}
	return c.drain('Z')
}

// copyIn runs a COPY FROM STDIN that is fed the block of CopyData messages the given number of times, and
// returns how many bytes were written.
func (c *client) copyIn(sql string, block []byte, times int) (int64, error) {
	if _, err := c.conn.Write(queryMessage(sql)); err != nil {
		return 0, err
	}
	if _, err := c.drain('G'); err != nil {
		return 0, err
	}
	var total int64
	for range times {
		n, err := c.conn.Write(block)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	if _, err := c.conn.Write([]byte{'c', 0, 0, 0, 4}); err != nil {
		return total, err
	}
	_, err := c.drain('Z')
	return total, err
}

// close says goodbye and closes the connection.
func (c *client) close() {
	c.detach()
	_, _ = c.conn.Write([]byte{'X', 0, 0, 0, 4})
	_ = c.conn.Close()
}
