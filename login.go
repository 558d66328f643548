package pgmoor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/scram"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file takes connections from Accept to the first ReadyForQuery.

// welcome is the goroutine of a handshake.
func (p *Proxy) welcome(conn net.Conn, local bool) {
	defer p.wg.Done()
	c := &Client{conn: conn, local: local, log: p.env.log, leaveSlot: func() {}}
	if !local {
		c.leaveSlot = sync.OnceFunc(func() { <-p.slots })
	}
	defer c.leaveSlot()
	if !p.shake(conn) {
		_ = conn.Close()
		return
	}
	s, err := p.login(c)
	p.unshake(conn)
	if err != nil {
		p.env.discharge(c)
		p.refused(c, err)
		p.doubt(c, err)
		return
	}
	select {
	case p.ready <- s:
	case <-p.full:
		_ = s.finishNow()
	case <-p.done:
		_ = s.finishNow()
	}
}

// shake remembers a connection so that Close can end its handshake.
func (p *Proxy) shake(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.shaking[conn] = struct{}{}
	return true
}

func (p *Proxy) unshake(conn net.Conn) {
	p.mu.Lock()
	delete(p.shaking, conn)
	p.mu.Unlock()
}

// refused tells a client why it does not get in, and closes its connection.
func (p *Proxy) refused(c *Client, err error) {
	defer c.conn.Close()
	if errors.Is(err, errCancelDone) {
		return
	}
	p.noteRefusal(c, err)
	var ne net.Error
	var open *openError
	ours := !isOwn(err) && !errors.As(err, &open) && errors.As(err, &ne) // an error of this connection, not of another
	if ours && !ne.Timeout() || c.user == "" && !isOwn(err) {
		return // it is broken, or nothing was heard on it
	}
	e := new(Error)
	*e = *asError(err) // an Authenticator's may be shared
	if ours {
		e = fatalf(codeQueryCanceled, "canceling authentication due to timeout")
	}
	e.Severity = "FATAL"
	c.fail(e)
}

func isOwn(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// login takes a connection through everything up to its first ReadyForQuery: encryption, startup packet, authentication,
// and a look at the server.
func (p *Proxy) login(c *Client) (*Session, error) {
	cfg := p.env.config()
	limit := cfg.handshakeTimeout()
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	if err := c.conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	if p.ctx.Err() != nil { // Close has set its deadline already, and we ours over it
		return nil, ErrProxyClosed
	}
	if err := c.unwrap(); err != nil {
		return nil, err
	}
	if err := c.negotiate(ctx, startupConfig{tls: cfg.tls, cancel: p.cancelRequest}); err != nil {
		return nil, err
	}
	if err := c.send(c.answerVersion(nil, p.env.newestMinor())); err != nil {
		return nil, err
	}
	if err := p.admit(c, cfg); err != nil {
		return nil, err
	}
	if err := p.authenticate(ctx, c, cfg); err != nil {
		return nil, err
	}
	c.leaveSlot() // from here on it may wait for a server
	return p.open(c)
}

func (p *Proxy) authenticate(ctx context.Context, c *Client, cfg *live) error {
	if c.local {
		return nil
	}
	if cfg.RequireTLS && !c.Private() {
		return fatalf(codeBadAuthorization, "the proxy accepts encrypted connections only")
	}
	c.authenticating.Store(true)
	err := p.ask(ctx, c, cfg.auth)
	c.authenticating.Store(false)
	if c.shown = (presented{}); err == nil {
		cfg.up.proofs.learn(c.user, c.keys)
	}
	c.keys = scram.Keys{}
	switch {
	case err == nil || isOwn(err) || errors.Is(err, errClientGone) || isTimeout(err):
		return err
	case p.ctx.Err() != nil:
		return ErrProxyClosed
	}
	return &authFailure{cause: err, told: badPassword(c.user)}
}

// ask has an Authenticator decide. Most are the application's, or ask something of its: a panic there ends the login that it is about.
func (p *Proxy) ask(ctx context.Context, c *Client, auth Authenticator) (err error) {
	defer func() {
		if r := recover(); r != nil {
			p.env.log.Error("pgmoor: panic in an Authenticator", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = &authFailure{cause: fmt.Errorf("pgmoor: panic: %v", r), told: fatalf(codeInternal, "the authentication has failed")}
		}
	}()
	return auth.Authenticate(ctx, c)
}

// open makes the session of an authenticated client.
func (p *Proxy) open(c *Client) (*Session, error) {
	pl, err := p.pool(poolKey{database: c.database, user: c.user, params: string(c.params)})
	if err != nil {
		return nil, err
	}
	s := newSession(p.env, c, pl)
	statuses, err := p.patientStatuses(s)
	if err == nil {
		err = p.greet(s, statuses)
	}
	if err != nil {
		s.leave()
		p.env.forget(s)
		return nil, err
	}
	s.early = s.link.TakeKept()
	return s, nil
}

// patientStatuses is awaitStatuses for as long as a client waits that logs in. A wait that a pause falls into begins anew.
func (p *Proxy) patientStatuses(s *Session) (st []byte, err error) {
	if st = s.pool.known(); st != nil && !s.client.replicates() {
		s.heed(st)
		return st, nil
	}
	for {
		cfg, start := p.env.config(), p.env.now()
		wait := cfg.borrowTimeout()
		if wait == NoWait {
			wait = cfg.Upstream.connectTimeout()
		}
		ctx, cancel := context.WithTimeout(p.ctx, wait)
		st, err = s.awaitStatuses(ctx)
		late := err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded)
		cancel()
		if !late || !p.env.gate.heldUp(start) {
			return st, err
		}
	}
}

// greet registers the session and sends everything up to ReadyForQuery.
func (p *Proxy) greet(s *Session, statuses []byte) error {
	s.secret = randomBytes(s.client.keyLen())
	p.env.register(s)
	out := request(nil, authOK, nil)
	out = append(out, statuses...)
	out = wire.AppendHeader(out, wire.BackendKeyData, 4+len(s.secret))
	out = append(binary.BigEndian.AppendUint32(out, s.pid), s.secret...)
	out = wire.AppendReady(out, 'I')
	_ = s.client.conn.SetDeadline(time.Now().Add(p.env.config().handshakeTimeout()))
	err := s.client.send(out)
	if err == nil {
		err = s.client.conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return err
	}
	if p.isClosing() {
		s.drain(errShutdown)
	}
	return nil
}

// awaitStatuses waits for the ParameterStatus messages for the session. It stops when the client goes away.
func (s *Session) awaitStatuses(ctx context.Context) (st []byte, err error) {
	if err := s.client.flush(); err != nil {
		return nil, err
	}
	if err := s.client.conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	ctx, stop := s.watch(ctx)
	st, err = s.firstStatuses(ctx)
	stop()
	if err == nil {
		s.heed(st)
	}
	return st, err
}

// heed takes note of what the session begins with.
func (s *Session) heed(statuses []byte) {
	for b := statuses; len(b) >= wire.HeaderLen; {
		n := int(wire.Length(b)) + 1
		switch name, value, _ := status(b[:n]); string(name) {
		case "standard_conforming_strings":
			s.strings = string(value) != "off"
		case settingEncoding:
			s.opaque = hidesASCII(string(value))
		}
		b = b[n:]
	}
	if !s.client.replicates() {
		s.begin()
	}
}

// firstStatuses waits for a server. A replication client gets a connection of its own.
func (s *Session) firstStatuses(ctx context.Context) ([]byte, error) {
	if s.client.replicates() {
		return s.openReplication(ctx)
	}
	return s.pool.statuses(ctx)
}

// errClientGone is why a login ends whose client did not wait for it.
var errClientGone = &net.OpError{Op: "read", Err: errors.New("the client is gone")}

// watch returns a context that ends with errClientGone when the client goes away. Until stop has returned, the watcher is
// the client's reader.
func (s *Session) watch(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go s.watchClient(cancel, done)
	return ctx, func() {
		s.link.Interrupt()
		<-done
		s.link.ClearInterrupt()
		cancel(nil)
	}
}

// watchClient is the watcher's goroutine. Early bytes of the client stay with the link; behind them nothing is seen.
func (s *Session) watchClient(cancel context.CancelCauseFunc, done chan<- struct{}) {
	defer close(done)
	if err := s.link.Wait(); err != nil && !link.Interrupted(err) {
		cancel(errClientGone)
	}
}

func (s *Session) openReplication(ctx context.Context) ([]byte, error) {
	if err := s.env.gate.wait(ctx); err != nil {
		return nil, err
	}
	li, err := s.env.config().up.open(ctx, &s.pool.key)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errClientGone) {
		return nil, cause
	}
	if err != nil {
		s.pool.noteFailure(err)
		return nil, err
	}
	sc := newServer(li, s.pool)
	s.mu.Lock()
	s.holdLocked(sc)
	s.forever = true
	s.pin(EffectReplication)
	s.mu.Unlock()
	s.pool.wg.Add(1)
	go sc.serve()
	return li.statuses, nil
}
