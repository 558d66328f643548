package memconn

import (
	"context"
	"net"
	"sync"
)

// Listener is a net.Listener that is dialled within the process. Its methods may be called concurrently.
type Listener struct {
	accept chan net.Conn
	closed chan struct{}
	close  func()
}

// Listen returns an open Listener.
func Listen() *Listener {
	l := &Listener{accept: make(chan net.Conn), closed: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	return l
}

// Accept waits for DialContext and returns the server's end of its connection.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, l.opError("accept", net.ErrClosed)
	default:
	}
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, l.opError("accept", net.ErrClosed)
	}
}

// Close ends every waiting Accept and DialContext, and all later ones. Connections that were accepted live on.
func (l *Listener) Close() error {
	l.close()
	return nil
}

// Addr returns the address that all connections of this package have.
func (l *Listener) Addr() net.Addr { return memAddr{} }

// DialContext returns the client's end of a new connection once its other end has been accepted. It ignores network and
// address, so that it can be used wherever a dialer is wanted.
func (l *Listener) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, l.opError("dial", err)
	}
	client, server := Pipe()
	select {
	case l.accept <- server:
		return client, nil
	case <-ctx.Done():
		return nil, l.opError("dial", ctx.Err())
	case <-l.closed:
		return nil, l.opError("dial", net.ErrClosed)
	}
}

func (l *Listener) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: l.Addr().Network(), Addr: l.Addr(), Err: err}
}
