package pgmoor

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"time"

	"github.com/pgmoor/pgmoor/internal/wire"
)

// cancelLimit bounds one cancel request to a server.
const cancelLimit = 10 * time.Second

// cancelRequest carries out a client's cancel request (PostgreSQL documentation, "Canceling Requests in Progress"). The
// key is one that the proxy gave out, or another instance (see peers.go); nothing says whether it was right.
func (p *Proxy) cancelRequest(pid uint32, key []byte) {
	if s := p.env.holder(pid, key); s != nil {
		s.cancel()
		return
	}
	p.passOn(pid, key)
}

// cancel cancels what the session's client waits for: the server's work, or a place in the queue. It returns when the server has dealt with
// that, for the next thing that the client asks for must not be hit.
func (s *Session) cancel() {
	s.mu.Lock()
	sc := s.srv
	if sc != nil && (s.turn.Injected() || s.turn.Between()) { // it must not hit the proxy's own query, nor nothing
		late := s.cancelWhenDue()
		s.mu.Unlock()
		awaitCancel(late)
		return
	}
	if sc != nil && s.turn.Owed() {
		s.cancelled = true
		s.pool.holdForCancel(sc)
		s.mu.Unlock()
		s.env.cancelBackend(sc)
		return
	}
	waiting := s.waiting && sc == nil && s.pool.forget(s)
	if waiting {
		s.waitErr = errQueryCanceled
	}
	s.mu.Unlock()
	if waiting {
		s.interrupt()
	}
}

// cancelWhenDue puts a cancel request off until what is the proxy's own affair is over, and returns what is closed when the request was
// carried out or has become pointless. The caller holds s.mu.
func (s *Session) cancelWhenDue() <-chan struct{} {
	if s.cancelLater == nil {
		s.cancelLater = make(chan struct{})
	}
	late := s.cancelLater
	if !s.turn.OwedToClient() {
		s.dropCancel()
	}
	return late
}

// dropCancel takes note that there is nothing left to cancel. The caller holds s.mu.
func (s *Session) dropCancel() {
	if s.cancelLater != nil {
		close(s.cancelLater)
		s.cancelLater = nil
	}
}

// awaitCancel waits for a cancel request that was put off, but not for a server that hangs.
func awaitCancel(late <-chan struct{}) {
	limit := time.NewTimer(cancelLimit)
	defer limit.Stop()
	select {
	case <-late:
	case <-limit.C:
	}
}

// failedOwn takes note that the server has refused a message of the proxy's own in front of the client's, by an error with a body. unprimed
// says that it was to make the unnamed statement: then the client's message is run without it. A cancel request that hit it is repeated for the
// client's.
func (s *Session) failedOwn(body []byte, unprimed bool) {
	switch {
	case !unprimed && s.ownErr == nil:
		s.ownErr = bytes.Clone(body)
	case unprimed && s.cancelled && string(wire.ErrorField(body, 'C')) == codeQueryCanceled:
		s.cancelWhenDue()
	}
}

// endedInFront is called when what the proxy had sent in front of the client's batch is over.
func (sc *server) endedInFront(s *Session) {
	if s.cancelled = false; s.cancelLater != nil {
		sc.cancelNow(s)
	}
}

// cancelNow carries out a cancel request that waited for the end of the proxy's own queries. It is called on the goroutine of
// sc, which keeps the pool from being closed meanwhile.
func (sc *server) cancelNow(s *Session) {
	if s.turn.Injected() {
		return
	}
	if !s.turn.OwedToClient() {
		s.dropCancel()
		return
	}
	late := s.cancelLater
	s.cancelLater, s.cancelled = nil, true
	sc.pool.holdForCancel(sc)
	sc.pool.wg.Add(1)
	go sc.lateCancel(late)
}

// lateCancel is the goroutine of a cancel request that had to wait.
func (sc *server) lateCancel(done chan<- struct{}) {
	defer sc.pool.wg.Done()
	defer close(done)
	sc.pool.env.cancelBackend(sc)
}

// cancelBackend sends a cancel request for what sc runs and waits until the server has dealt with it. The caller has called
// holdForCancel; afterwards sc may be lent to others again.
func (e *env) cancelBackend(sc *server) {
	defer sc.pool.cancelDone(sc)
	if e.closed.Load() {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), cancelLimit)
	defer stop()
	if err := e.sendCancel(ctx, sc); err != nil {
		e.log.Error("pgmoor: cancel request failed", "err", err)
		return
	}
	e.count.cancels.Add(1)
}

// sendCancel sends a cancel request for what sc runs, encrypted if sc is, and returns when the server has dealt with it.
func (e *env) sendCancel(ctx context.Context, sc *server) error {
	conn, err := e.config().up.cfg.dialer().DialContext(ctx, sc.network, sc.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	to := conn
	if sc.encryption != nil {
		if to, err = sc.encryption.begin(ctx, conn); err != nil {
			return err
		}
	}
	return writeCancel(to, sc.pid, sc.secret)
}

// passCancel sends a cancel request over conn, waits until the other side has dealt with it and hangs up, and closes conn. The
// error is that of sending.
func passCancel(ctx context.Context, conn net.Conn, pid uint32, key []byte) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return writeCancel(conn, pid, key)
}

// writeCancel writes a cancel request, and waits until the other side has dealt with it and hangs up.
func writeCancel(conn net.Conn, pid uint32, key []byte) error {
	m := binary.BigEndian.AppendUint32(nil, uint32(12+len(key)))
	m = binary.BigEndian.AppendUint32(m, codeCancelRequest)
	m = append(binary.BigEndian.AppendUint32(m, pid), key...)
	if _, err := conn.Write(m); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1024))
	return nil
}
