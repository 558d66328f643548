package main

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// This file has a daemon leave its clients to its successor: first it stops to accept, without losing a connection that the kernel
// has made already, then those clients that come and go are served to their end, and only then the others are told to leave.

// retireMode is what becomes of a listener at the first signal.
type retireMode byte

const (
	// retireClosed: its port is closed. Nobody else has it.
	retireClosed retireMode = iota
	// retireLeft: the socket stays open elsewhere, with those that nobody has accepted yet.
	retireLeft
	// retireDrained: a successor has a socket of its own on the same port. Who is in the queue of this one is accepted.
	retireDrained
)

const (
	// shakeTime is how long a connection may take that was being made when a listener retired: the round trip to the client.
	shakeTime = 250 * time.Millisecond
	// quietTime is how long nobody must have come then.
	quietTime = 20 * time.Millisecond
	// lookInterval is how often it is looked whether all clients are gone.
	lookInterval = 50 * time.Millisecond
)

// retirable is a listener that stops to accept when it is told so, and not when it has lost its socket: the proxy goes on
// with what it has accepted until it is shut down.
type retirable struct {
	net.Listener // a *net.TCPListener or a *net.UnixListener
	mode         retireMode

	retiring atomic.Bool
	retired  chan struct{} // closed when nobody is accepted any more
	closed   chan struct{} // closed by Close

	retireOnce, closeOnce func()
}

func newRetirable(l net.Listener, mode retireMode) *retirable {
	r := &retirable{Listener: l, mode: mode, retired: make(chan struct{}), closed: make(chan struct{})}
	r.retireOnce = sync.OnceFunc(func() { close(r.retired) })
	r.closeOnce = sync.OnceFunc(func() { close(r.closed) })
	return r
}

// Accept returns the next connection. Once the listener has retired it waits for Close.
func (l *retirable) Accept() (net.Conn, error) {
	for quiet := false; ; quiet = true {
		c, err := l.Listener.Accept()
		switch {
		case err == nil:
			return c, nil
		case !l.retiring.Load():
			return nil, err
		case errors.Is(err, os.ErrDeadlineExceeded) && l.mode == retireDrained && !quiet:
			l.acceptUntil(time.Now().Add(quietTime))
			continue
		}
		_ = l.Listener.Close()
		l.retireOnce()
		<-l.closed
		return nil, net.ErrClosed
	}
}

// Close closes the listener for good.
func (l *retirable) Close() error {
	err := l.Listener.Close()
	l.retireOnce()
	l.closeOnce()
	return err
}

// retire has the listener stop to accept; retired says when it has.
func (l *retirable) retire() error {
	l.retiring.Store(true)
	switch l.mode {
	case retireDrained:
		err := refuseNew(l.Listener)
		l.acceptUntil(time.Now().Add(shakeTime))
		return err
	case retireLeft:
		l.acceptUntil(time.Unix(1, 0))
		return nil
	}
	return l.Listener.Close()
}

func (l *retirable) acceptUntil(t time.Time) {
	if d, ok := l.Listener.(interface{ SetDeadline(t time.Time) error }); ok {
		_ = d.SetDeadline(t) // fails where it is closed, which Accept finds
	}
}

// retireAll retires the listeners and waits until nobody is accepted any more, or ctx ends.
func retireAll(ctx context.Context, listeners []*retirable) error {
	var errs []error
	for _, l := range listeners {
		errs = append(errs, l.retire())
	}
	for _, l := range listeners {
		select {
		case <-l.retired:
		case <-ctx.Done():
		}
	}
	return errors.Join(errs...)
}

// awaitLeaving waits until clients returns 0 twice in a row (a connection that was just accepted is not counted yet), or ctx ends.
func awaitLeaving(ctx context.Context, clients func() int) {
	t := time.NewTicker(lookInterval)
	defer t.Stop()
	for gone := 0; gone < 2; {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if gone++; clients() > 0 {
			gone = 0
		}
	}
}
