package pgmoor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgmoor/pgmoor/internal/memconn"
)

// timedOut is RDS Proxy's text for a borrow that took too long.
const timedOut = "timed out waiting to acquire a database connection"

// noneIdle is what a client is told that was not to wait.
const noneIdle = "no server connection is idle"

// firstPid is where the process ids of cancel keys begin: no PostgreSQL backend has one as great.
const firstPid = 1 << 22

// cachedTexts is how many statement texts are remembered with what they may do.
const cachedTexts = 2048

// sweepInterval is how often recently active clients are looked at for an end of stream that came unnoticed, and pools
// without clients are closed.
const sweepInterval = time.Second

// Proxy is a pooler between the clients of its listeners and PostgreSQL servers. [New] makes one, [Proxy.Serve] runs it, and
// [Proxy.Shutdown] and [Proxy.Close] end it. It is itself a net.Listener, of [Session] values. Its methods may be called
// from any goroutine.
type Proxy struct {
	env *env

	ready   chan *Session // clients that have logged in
	slots   chan struct{} // bounds the handshakes of network clients
	passing chan struct{} // bounds the cancel requests that are passed on
	full    chan struct{} // closed by Shutdown: clients that nobody has accepted yet go away
	done    chan struct{} // closed by Close
	ctx     context.Context
	stop    context.CancelFunc

	updating sync.Mutex // held by Update
	doubted  sync.Map   // users whose source is asked anew at this moment, see doubt

	wg       sync.WaitGroup // accept loops, handshakes, the sweeper
	shares   sync.WaitGroup // Config.Budget
	sessions sync.WaitGroup // sessions that Serve runs

	mu        sync.Mutex
	listeners []net.Listener
	alive     int               // accept loops that run
	deaf      chan struct{}     // closed when the last of them has ended by itself
	deafErr   error             // why
	pools     map[poolKey]*pool // by sorted key
	budget    *budget
	narrow    map[shareKey]*budget  // of one user or one database, while it has pools
	accounts  map[string]*account   // by user, while it has pools
	shaking   map[net.Conn]struct{} // connections in the middle of a handshake
	stopShare context.CancelFunc    // nil: there is no Config.Budget, or it was not started
	started   bool
	draining  bool
	closed    bool
	retired   int64 // transactions of pools that are gone
}

var _ net.Listener = (*Proxy)(nil)

// env is what sessions and pools share.
type env struct {
	live      atomic.Pointer[live] // read it with config
	log       *slog.Logger         // that of live
	count     counters
	gate      gate
	epoch     atomic.Uint64 // server connections that were opened under an earlier one are not lent any more
	pinnedNow atomic.Int32  // sessions that are pinned
	backends  sync.Map      // process ids of server connections to *server
	peers     Peers         // nil: there are none
	admission admission
	available atomic.Int64 // connections that the server has for ordinary users, as it said last; 0: it was not asked

	ids, statementIDs atomic.Uint64
	elder             atomic.Bool // the server speaks protocol 3.0 only

	mu        sync.Mutex
	byPid     map[uint32]*Session
	lastPid   uint32
	encrypted int // of byPid, those with TLS
	unpins    int64
	empty     chan struct{}             // closed when no session is left; nil until someone asks
	closed    atomic.Bool               // by Close: nothing is worth waiting for any more
	meanings  map[string]*atomic.Uint64 // by database
	pins      map[string]pinCount       // by reason
}

func (e *env) now() time.Time { return time.Now() }

// newestMinor returns the latest minor version of the protocol that a client gets: as long as nothing is known of the server the proxy's
// own, then that of the server.
func (e *env) newestMinor() uint32 {
	if e.elder.Load() {
		return 0
	}
	return newestMinor
}

// firstMajor32 is the version of PostgreSQL from which on it speaks protocol 3.2.
const firstMajor32 = 18

// noteVersion takes note of a server's version, as it reports it: "18.1 (Debian 18.1-1)", "19devel".
func (e *env) noteVersion(version string) {
	if n := digits([]byte(version)); n > 0 {
		major, err := strconv.Atoi(version[:n])
		e.elder.Store(err == nil && major < firstMajor32)
	}
}

// New returns a Proxy for the clients of l. It starts nothing: clients are accepted from the first call of
// [Proxy.Accept] or [Proxy.Serve] on. The Proxy owns l from then on that New has returned it; where New returns an error, l
// is still the caller's to close. l may be nil where all clients come through [Proxy.AddListener] and
// [Proxy.DialContext].
func New(l net.Listener, cfg Config) (*Proxy, error) {
	first, err := newLive(cfg, nil)
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		ready: make(chan *Session), slots: make(chan struct{}, cfg.maxHandshakes()), passing: make(chan struct{}, maxPassedOn), full: make(chan struct{}), done: make(chan struct{}),
		pools: make(map[poolKey]*pool), shaking: make(map[net.Conn]struct{}),
		budget: newBudget(&cfg), deaf: make(chan struct{}),
	}
	p.env = &env{peers: cfg.peers(), byPid: make(map[uint32]*Session), lastPid: firstPid, pins: make(map[string]pinCount)}
	p.env.live.Store(first)
	p.env.log = slog.New(liveHandler{p.env})
	p.ctx, p.stop = context.WithCancel(context.Background())
	if l != nil {
		p.listeners = []net.Listener{l}
	}
	return p, nil
}

// Addr returns the address of the first listener, or an in-process address where there is none.
func (p *Proxy) Addr() net.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.listeners) == 0 {
		return inProcess{}
	}
	return p.listeners[0].Addr()
}

type inProcess struct{}

func (inProcess) Network() string { return "mem" }
func (inProcess) String() string  { return "in-process" }

// AddListener accepts clients from l too, on the same pools. The Proxy owns l, and closes it where it returns
// [ErrProxyClosed].
func (p *Proxy) AddListener(l net.Listener) error {
	if l == nil {
		return errors.New("pgmoor: AddListener needs a listener, as net.Listen returns one")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.draining {
		_ = l.Close()
		return ErrProxyClosed
	}
	p.listeners = append(p.listeners, l)
	if p.started {
		p.acceptLocked(l)
	}
	return nil
}

// acceptLocked starts the accept loop of l.
func (p *Proxy) acceptLocked(l net.Listener) {
	if p.deafErr != nil {
		p.deaf, p.deafErr = make(chan struct{}), nil
	}
	p.alive++
	p.wg.Add(1)
	go p.accept(l)
}

// start starts the accept loops and the sweeper.
func (p *Proxy) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started || p.closed {
		return
	}
	p.started = true
	for _, l := range p.listeners {
		p.acceptLocked(l)
	}
	p.startShareLocked()
	p.wg.Add(1)
	go p.sweep()
}

// accept is the accept loop of one listener.
func (p *Proxy) accept(l net.Listener) {
	defer p.wg.Done()
	for delay := time.Duration(0); ; {
		select {
		case p.slots <- struct{}{}:
		case <-p.done:
			return
		}
		conn, err := l.Accept()
		if err == nil {
			delay = 0
			p.wg.Add(1)
			go p.welcome(conn, false)
			continue
		}
		<-p.slots
		if p.isClosing() {
			return
		}
		if errors.Is(err, net.ErrClosed) {
			p.listenerDied(l, err)
			return
		}
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		p.env.log.Error("pgmoor: accept failed", "err", err, "retry", delay)
		select {
		case <-time.After(delay):
		case <-p.done:
			return
		}
	}
}

// listenerDied ends Serve and Accept with an error if l was the last listener.
func (p *Proxy) listenerDied(l net.Listener, err error) {
	err = fmt.Errorf("pgmoor: the listener on %v was closed, and not by Shutdown or Close: %w", l.Addr(), err)
	p.env.log.Error("pgmoor: no more clients are accepted from a listener", "listener", fmt.Sprint(l.Addr()), "err", err)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.alive--; p.alive == 0 {
		p.deafErr = err
		close(p.deaf)
	}
}

// deafness returns a channel that is closed when no listener is left.
func (p *Proxy) deafness() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.deaf
}

func (p *Proxy) whyDeaf() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.deafErr
}

func (p *Proxy) isClosing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed || p.draining
}

// DialContext connects a client in the same process: it is a pgconn.DialFunc, whose network and address do not matter. The
// client is not asked for a password and is who its startup packet says.
//
// A pgx configuration needs three things for it: DialFunc, this method; LookupFunc, a function that returns the host as it
// is, since nothing is to be looked up; and sslmode=disable, since there is nothing to encrypt. The example shows all of
// them. The statements that pgx prepares by default are carried.
//
// [Proxy.Serve], or a loop around [Proxy.Accept], must be running. Where it is not, connecting succeeds and the first query
// hangs until its context ends.
func (p *Proxy) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	client, conn := memconn.Pipe()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.draining {
		_ = client.Close()
		_ = conn.Close()
		return nil, ErrProxyClosed
	}
	p.wg.Add(1)
	go p.welcome(conn, true)
	return client, nil
}

// noteRefusal counts and logs a client that does not get in. One that hung up, such as a port scanner or psql before it
// asks its user for a password, is not refused; and what a server said was logged when it said it.
func (p *Proxy) noteRefusal(c *Client, err error) {
	level := slog.LevelInfo
	var open *openError
	var failure *authFailure
	switch {
	case errors.Is(err, errClientGone):
		p.env.log.Debug("pgmoor: client hung up before it was logged in", c.logAttrs()...)
		return
	case errors.As(err, &open):
		level = slog.LevelDebug
	case errors.As(err, &failure):
		level = slog.LevelError
	}
	p.env.count.loginFailures.Add(1)
	attrs := append(c.logAttrs(), slog.Any("err", err))
	if e := (*Error)(nil); errors.As(err, &e) && e.why != "" {
		attrs = append(attrs, slog.String("reason", e.why))
	}
	p.env.log.Log(context.Background(), level, "pgmoor: client refused", attrs...)
}

// logAttrs says who a log line is about.
func (c *Client) logAttrs() []any {
	return []any{slog.String("client", fmt.Sprint(c.RemoteAddr())), slog.String("user", c.user), slog.String("database", c.database)}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// authFailure is an error of an Authenticator that is for the log and not for its client.
type authFailure struct {
	cause error
	told  *Error
}

// Error returns the cause.
func (e *authFailure) Error() string { return e.cause.Error() }

// Unwrap returns what the client is told, and not the cause, which may be a network error of another connection.
func (e *authFailure) Unwrap() error { return e.told }

// pool returns the pool of key with one more session counted.
func (p *Proxy) pool(key poolKey) (*pool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrProxyClosed
	}
	by := key.sorted()
	pl := p.pools[by]
	if pl == nil {
		var err error
		if pl, err = newPool(key, p.env, p.accountOf(&key), p.budget, p.sharesOf(&key)); err != nil {
			return nil, err
		}
		p.pools[by] = pl
		p.join(pl)
	}
	pl.mu.Lock()
	pl.refs++
	pl.mu.Unlock()
	return pl, nil
}

func (p *pool) unref() {
	p.mu.Lock()
	p.refs--
	p.mu.Unlock()
}

// Accept returns the next client that has logged in, as a *[Session]. Handshakes run side by side: a slow client does not
// hold up Accept. The caller calls the session's Serve, or takes the client over, or closes it. Accept returns
// [ErrProxyClosed] after [Proxy.Close], and the listener's error where listeners were given and none is left.
func (p *Proxy) Accept() (net.Conn, error) {
	s, err := p.acceptSession()
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (p *Proxy) acceptSession() (*Session, error) {
	p.start()
	for {
		select {
		case s := <-p.ready:
			return s, nil
		case <-p.done:
			return nil, ErrProxyClosed
		case <-p.deafness():
			if err := p.whyDeaf(); err != nil { // nil: AddListener was faster
				return nil, err
			}
		}
	}
}

// Serve accepts clients and serves each until it leaves. Its error is never nil: it is [ErrProxyClosed] after
// [Proxy.Shutdown] or [Proxy.Close]. When ctx ends, Serve calls Close, and so returns ErrProxyClosed too. When the last
// listener was closed by somebody else, Serve returns that error; clients that are being served stay until Close.
func (p *Proxy) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, p.closeNow)
	defer stop()
	for {
		s, err := p.acceptSession()
		if err != nil {
			if ctx.Err() != nil {
				p.closeNow()
			}
			return err
		}
		if !p.launch(s) {
			_ = s.Close()
		}
	}
}

// launch starts serving s, unless the proxy is closed.
func (p *Proxy) launch(s *Session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.sessions.Add(1)
	go p.run(s)
	return true
}

// run is the goroutine of a session. It is a fresh one: a handshake's has a large stack.
func (p *Proxy) run(s *Session) {
	defer p.sessions.Done()
	if err := s.Serve(p.ctx); err != nil {
		p.env.log.Debug("pgmoor: client gone", "client", fmt.Sprint(s.RemoteAddr()), "err", err)
	}
}

func (p *Proxy) closeNow() { _ = p.Close() }

// Close ends everything at once: listeners, handshakes, sessions in the middle of whatever they do, and server connections.
// When it returns no goroutine of the Proxy is left, save those of sessions that the application serves itself
// and has not ended.
func (p *Proxy) Close() error {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	if first {
		close(p.done)
	}
	listeners := p.listeners
	for c := range p.shaking {
		_ = c.SetDeadline(time.Unix(1, 0))
	}
	p.mu.Unlock()
	var err error
	for _, l := range listeners {
		if e := l.Close(); e != nil && !errors.Is(e, net.ErrClosed) && first {
			err = e
		}
	}
	p.env.closed.Store(true)
	p.stop()
	for _, s := range p.env.all() {
		_ = s.finishNow()
	}
	p.wg.Wait()
	p.sessions.Wait()
	p.closePools()
	p.endShare()
	return err
}

func (p *Proxy) closePools() {
	p.mu.Lock()
	pools := make([]*pool, 0, len(p.pools))
	for k, pl := range p.pools {
		pools = append(pools, pl)
		delete(p.pools, k)
	}
	p.mu.Unlock()
	for _, pl := range pools {
		pl.close()
		p.part(pl)
	}
}

// Shutdown stops accepting clients, ends every session at its next transaction boundary with SQLSTATE 57P01, and then
// closes the Proxy. A session that holds state of its own on a server ends when it is idle and in no transaction; one of a replication
// client never does. A request that waits for a server connection is still run, save in a pause (see [Proxy.Pause]). If ctx ends
// first, Shutdown returns an *[UnfinishedError], which counts the clients that are left, and leaves them to Close.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	if !p.draining {
		p.draining = true
		close(p.full)
	}
	listeners := p.listeners
	p.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close()
	}
	empty := p.env.whenEmpty()
	for _, s := range p.env.all() {
		s.drain(errShutdown)
	}
	select {
	case <-empty:
		return p.Close()
	case <-ctx.Done():
		return p.undrained(ctx.Err())
	}
}

// sweep is the sweeper's goroutine.
func (p *Proxy) sweep() {
	defer p.wg.Done()
	t := time.NewTicker(sweepInterval)
	defer t.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-t.C:
		}
		now := p.env.now()
		p.ageAll(now)
		for _, s := range p.env.all() {
			s.age(now)
			s.sweep()
			if s.pinsView.Load() != 0 {
				s.reconsiderAfter(p.env.config().unpinInterval())
			}
		}
		p.closeUnused()
	}
}

// sweep looks for the end of stream of a client that came under one edge with its last request.
func (s *Session) sweep() {
	s.mu.Lock()
	served, stuck := s.served, s.sending
	s.mu.Unlock()
	switch {
	case !served:
	case stuck && s.link.Broken(): // it cannot see for itself while it waits for the server to read
		s.end(nil)
	case s.touched.Swap(false) && s.link.Gone(): // the next read will find it
		s.link.Interrupt()
	}
}

// closeUnused closes the pools that have neither clients nor connections.
func (p *Proxy) closeUnused() {
	var unused []*pool
	p.mu.Lock()
	for k, pl := range p.pools {
		pl.mu.Lock()
		if pl.refs == 0 && pl.servers == 0 && pl.opening == 0 {
			unused = append(unused, pl)
			p.retired += pl.lent
			delete(p.pools, k)
		}
		pl.mu.Unlock()
	}
	p.mu.Unlock()
	for _, pl := range unused {
		pl.close() // first: what is still being closed counts for the limits
		p.part(pl)
	}
}
