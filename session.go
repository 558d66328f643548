package pgmoor

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/stmts"
	"github.com/pgmoor/pgmoor/internal/turn"
)

// errServed is returned by Session's methods for raw access once Serve was called.
var errServed = errors.New("pgmoor: the session is being served")

// errAbandoned is why a server connection ends that is given up.
var errAbandoned = errors.New("pgmoor: the server said something unexpected")

// smallRequest is up to how many bytes a waiting request is copied, so that the link keeps its buffer.
const smallRequest = 512

// safeRequest is up to how many bytes may be written to an idle server connection without reading from it meanwhile:
// any socket buffer takes them.
const safeRequest = 8 << 10

// Session is a client that has logged in, as [Proxy.Accept] returns it. [Session.Serve] relays its requests to server
// connections of the [Proxy]'s pools. A program that wants to take the client over itself does not call Serve: then Read and Write are the raw protocol stream
// behind the first ReadyForQuery, and Session is an ordinary net.Conn.
type Session struct {
	env    *env
	client *Client
	pool   *pool
	pid    uint32 // the cancel key's process id
	secret []byte
	id     uint64

	// link's reader is Serve's goroutine. Its writer is the goroutine of the server connection that the session holds
	// while that owes replies, and Serve's goroutine otherwise.
	link *link.Link
	kick chan struct{} // wakes Serve's goroutine where it does not read; capacity 1
	done chan struct{} // closed when the session is over

	// Owned by Serve's goroutine.
	unsentTo *server   // goes with sending
	unsent   []byte    // of a request, that the server's socket did not take
	reply    []byte    // answers of our own, to be written outside of the handler
	why      leaveWhy  // why the handler left
	took     bool      // the handler took the link's buffer
	local    localMode // requests are answered here, not by a server

	touched  atomic.Bool            // the client sent something since the last sweep
	bornAt   time.Time              // when it logged in
	activeAt time.Time              // when it was last found to be active; owned by the sweeper
	expired  bool                   // it was told to end, for its age; owned by the sweeper
	pinsView atomic.Uint32          // pins, for those who do not hold mu
	backend  atomic.Uint32          // the process id of srv, for those who do not hold mu; 0: none
	targeted atomic.Int64           // when another session was last about to send it a signal
	standIn  atomic.Pointer[server] // runs what the session asks for next (see pool.standIn)
	departed atomic.Bool            // the client is gone

	// mu guards what follows. It is never held across I/O; a pool's mu may be taken inside it.
	mu        sync.Mutex
	early     []byte // what came before ReadyForQuery was sent; nil once it is served
	srv       *server
	turn      turn.Turn
	sending   bool     // somebody is writing requests of this session to srv
	finishing bool     // the last reply of a turn is being written to the client
	writing   bool     // the same, and the session keeps the server connection
	finish    bool     // the turn ended while sending: whoever sends gives srv back
	waiting   bool     // in the pool's queue, or being handed a server connection
	held      bool     // the link keeps bytes that wait for the session's state to change
	gone      bool     // the client is gone; what the server still says is dropped
	resume    bool     // Serve's goroutine is to send pending itself
	closing   *Error   // end the session, with this, at the next boundary
	axed      bool     // end the session now
	ending    bool     // the server was sent a header with which it ends the session
	endWith   *Error   // what the client is told then, unless by the server
	waitErr   *Error   // why waiting was in vain
	lostErr   *lostErr // the server connection was lost
	lastWord  *Error   // what the client is to be told by the goroutine of srv, and nothing behind it
	hushed    bool     // it was told
	pending   chunk    // whole messages that wait for a server connection, or as holds says
	holds     holds    // what the next message, in pending or with the link, waits for besides

	body       int      // bytes of a large message still to come from the client
	big        *bigText // of a large Query or Parse, until its text is complete
	primed     bool     // srv's unnamed statement is ours, or we have none
	primeless  bool     // it could not be made on srv
	queried    bool     // a simple Query was sent since the session holds srv
	prefix     []byte   // to be sent in front of the next message; in scratch where that is large enough
	scratch    []byte   // goes with sending
	instead    int      // bytes of the next message that are not sent, since prefix stands for it
	served     bool
	unnamed    []byte // the last Parse of the unnamed statement
	unnamedID  uint64
	unnamedAt  uint64     // which of the session's it is; the first of those that have the same text
	replaced   []replaced // those before it in its batch
	opaque     bool       // the client's encoding hides ASCII characters: its texts are not read
	portalRisk bool       // a portal may
	stmtRisk   bool       // the unnamed statement may commit something
	nameRisk   bool       // a named statement may
	risk       bool       // something that may commit is under way
	strings    bool       // standard_conforming_strings

	names      stmts.Names                // the session's named statements, as the server has confirmed them
	acts       map[string]act             // what those of interest may do
	ops        []stmtOp                   // Parses and Closes of named statements under way
	refPortals map[string]*sqlscan.Info   // portals bound since the last boundary that prepare or drop statements by SQL
	closed     []stmts.Statement          // that the session closed lately
	droppedAt  uint64                     // when it dropped all of them
	sqlOps     []sqlOp                    // the same, by SQL
	batch      uint32                     // counts what ends in a ReadyForQuery
	ownErr     []byte                     // of a message of the proxy's own about a statement that the client's is about: what that is to be told
	headLen    int                        // bytes at the end of prefix that stand for the beginning of the message at hand
	described  bool                       // the Describe at hand is one whose answer counts
	shape      stmts.Shape                // what a Describe of a statement was answered so far
	standNames map[stmts.Statement]string // the client's names of those that failing Binds use instead of theirs
	shelter    shelter
	faked      bool   // something else is sent in the place of the Parse at hand
	defined    uint64 // number of the last statement of the transaction that may change what names stand for; 0: none
	defines    bool   // for other sessions, too, when it is committed
	under      string // readUnder, as long as set is underOf
	underOf    settings

	set         settings         // what the session has set, as far as it is known
	base        settings         // of that, what it began with: see Config.InitQuery
	unmade      settings         // what a server has refused to set
	again       []byte           // a request that may mend that, while it is not known yet
	mending     bool             // such a request runs on a connection without all that the session has set
	dirty       map[string]touch // what may have changed since
	sticky      map[string]touch // what its named statements may change
	stmt        act              // of the unnamed statement
	candForever bool             // pins for cand do not end
	cand        Effects          // of what has been run since the last boundary
	portals     []act            // of portals bound since then
	ends        int              // statements since then that may have ended a transaction
	failed      bool             // an error was reported since then
	rolledBack  bool             // the last command was a rollback
	unpin       bool             // the policy's pin ends at the boundary

	pins         Effects
	pinned       string  // the first reason
	pinnedFor    Effects // the effect that pinned names
	reason       string  // the policy's
	digest       string  // of the statement that pins, until the boundary
	pinnedAt     time.Time
	verifiedAt   time.Time
	active       bool            // something was run since the last verification
	mayUnpin     bool            // something was run that may end a pin
	doubtful     bool            // only the server knows whether there is a reason to pin
	maybe        Effects         // which reasons there may be then
	renews       bool            // a prepared statement with a name may use a sequence
	olderRisk    bool            // a statement of an earlier Parse may have been taken for that of a later one
	parsedHere   bool            // the batch has a Parse of the unnamed statement
	forever      bool            // pins do not end
	untold       bool            // a setting may have been made whose name is known to nobody
	candUntold   bool            // the same, by what was run since the last boundary
	lexical      bool            // something under way may change how texts are read
	discards     bool            // the latest statement is DISCARD and nothing else
	going        Effects         // pins that end if the server does not object
	asksAgain    bool            // dirty holds names of an earlier transaction
	allReset     bool            // what is set may have been reset
	unmoor       bool            // the last pin has ended: the server connection is to be made fresh
	seeks, lacks bool            // see seek
	gaveUp       bool            // no server connection stands for the session that the message which waits is about
	toldFirst    string          // what the client is told of parameters before an error of what is compared
	compared     *stmts.Prepared // whose shape was asked for because of what the session was told
	begins       bool            // the message that is looked at begins a batch
	keeps        bool            // what is sent of a batch is also kept, in srv.kept
	asksLater    bool            // a question to the server waits until what is being sent was sent
	cancelLater  chan struct{}   // is closed when a cancel request that waits for the end of the proxy's own affairs was carried out; nil: none waits
	cancelled    bool            // one was sent since the last ReadyForQuery
	freed        chan struct{}   // is closed when the server connection is given up by a session whose client is gone; nil: nobody waits
	overruled    bool            // the error that comes is to be told as that of a cancel request

	seq sequences

	ears         *ears // what it listens to; nil: nothing
	namedListens bool  // a named statement of one connection only may change what the session listens to

	pidNames map[string]*pidStatement // statements about processes
	refusal  *Error                   // the policy's, of the message that is being looked at
	refusals map[uint64][]byte        // what the errors stand for that are still to come

	// Guarded by pool.mu.
	queued     bool
	queuedAt   time.Time
	next, prev *Session
}

// leaveWhy is why the handler of the client's link left Run.
type leaveWhy byte

const (
	leaveNot       leaveWhy = iota
	leaveUnsent             // unsent has to be written
	leaveReply              // reply has to be written
	leaveHeld               // nothing can be read before the session's state changes
	leaveTerminate          // the client said goodbye
	leaveFatal              // reply has to be written, and the session is over
)

// lostErr is what the loss of a server connection means for its client.
type lostErr struct {
	err   *Error
	ready int  // how many ReadyForQuery are owed
	cut   bool // a batch without its Sync is cut off: an error is owed, and everything up to Sync is to be ignored
	skip  bool // the error was told before: everything up to Sync is to be ignored
	block bool // a transaction block was open
	done  bool // a transaction was committed, and its ReadyForQuery is owed
	body  int  // bytes of a large message still to come
}

// chunk is a piece of a buffer that the session owns.
type chunk struct {
	big       *link.Buffer
	small     *[smallRequest]byte
	off, size int
}

var smallChunks = sync.Pool{New: func() any { return new([smallRequest]byte) }}

func (c *chunk) bytes() []byte {
	switch {
	case c.big != nil:
		return c.big[c.off : c.off+c.size]
	case c.small != nil:
		return c.small[c.off : c.off+c.size]
	}
	return nil
}

func (c *chunk) empty() bool { return c.size == 0 }

func (c *chunk) free() {
	if c.small != nil {
		smallChunks.Put(c.small)
	}
	link.PutBuffer(c.big)
	*c = chunk{}
}

func newSession(e *env, c *Client, p *pool) *Session {
	s := &Session{
		env: e, client: c, pool: p, link: link.New(c.conn, !e.config().plainIO),
		kick: make(chan struct{}, 1), done: make(chan struct{}), id: e.ids.Add(1), strings: true,
	}
	s.link.Unread(c.early)
	c.early = nil
	s.bornAt = e.now()
	s.activeAt = s.bornAt
	return s
}

// Client returns who is at the other end.
func (s *Session) Client() *Client { return s.client }

// Pinned returns for what the session keeps its server connection at this moment: all its reasons, where [Stats] counts
// the first one and the log names it. It is zero while the session is multiplexed, and again when its pin has ended.
func (s *Session) Pinned() Effects {
	return Effects(s.pinsView.Load())
}

// Read reads the raw protocol stream; an error once Serve was called.
func (s *Session) Read(b []byte) (int, error) {
	s.mu.Lock()
	served, n := s.served, 0
	if !served {
		n = copy(b, s.early)
		s.early = s.early[n:]
	}
	s.mu.Unlock()
	switch {
	case served:
		return 0, errServed
	case n > 0:
		return n, nil
	}
	return s.client.conn.Read(b)
}

// Write writes to the raw protocol stream; an error once Serve was called.
func (s *Session) Write(b []byte) (int, error) {
	if s.isServed() {
		return 0, errServed
	}
	return s.client.conn.Write(b)
}

// Close ends the session. While it is served, Serve's goroutine does the work and Close does not wait for it.
func (s *Session) Close() error {
	s.mu.Lock()
	served := s.served
	s.served = true
	s.mu.Unlock()
	if !served {
		s.leave()
		s.over()
		return nil
	}
	s.end(nil)
	return nil
}

// LocalAddr returns the address that the client connected to.
func (s *Session) LocalAddr() net.Addr { return s.client.conn.LocalAddr() }

// RemoteAddr returns the client's address, as [Client.RemoteAddr] does.
func (s *Session) RemoteAddr() net.Addr { return s.client.RemoteAddr() }

// SetDeadline sets the deadlines of raw reads and writes; an error once Serve was called.
func (s *Session) SetDeadline(t time.Time) error {
	if s.isServed() {
		return errServed
	}
	return s.client.conn.SetDeadline(t)
}

// SetReadDeadline sets the deadline of raw reads; an error once Serve was called.
func (s *Session) SetReadDeadline(t time.Time) error {
	if s.isServed() {
		return errServed
	}
	return s.client.conn.SetReadDeadline(t)
}

// SetWriteDeadline sets the deadline of raw writes; an error once Serve was called.
func (s *Session) SetWriteDeadline(t time.Time) error {
	if s.isServed() {
		return errServed
	}
	return s.client.conn.SetWriteDeadline(t)
}

func (s *Session) isServed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served
}

func (s *Session) isGone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}

// Serve relays the client's requests until the client leaves, the context ends or the Proxy is closed. It returns nil
// where the client left in good order. It closes the client's connection.
func (s *Session) Serve(ctx context.Context) error {
	s.mu.Lock()
	if s.served {
		s.mu.Unlock()
		return errServed
	}
	s.served = true
	s.link.Unread(s.early)
	s.early = nil
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, s.axe)
	defer stop()
	return s.serve()
}

func (s *Session) axe() { s.end(errShutdown) }

// serve is the goroutine of the client's connection.
func (s *Session) serve() (err error) {
	defer s.over()
	defer s.recover(&err)
	defer s.leave()
	handler := s.fromClient
	for {
		s.why = leaveNot
		err := s.link.Run(handler)
		switch {
		case err == nil:
			if goOn := s.left(); !goOn {
				return nil
			}
		case link.Interrupted(err):
			s.link.ClearInterrupt()
			if goOn := s.interrupted(); !goOn {
				return nil
			}
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}

// left does what the handler could not do without waiting.
func (s *Session) left() (goOn bool) {
	switch s.why {
	case leaveUnsent:
		s.sendUnsent()
	case leaveReply, leaveFatal:
		_, err := s.link.Write(s.reply)
		s.reply = nil
		return err == nil && s.why == leaveReply && s.interrupted()
	case leaveHeld:
		<-s.kick
		return s.interrupted()
	case leaveTerminate:
		return false
	}
	return true
}

// sendUnsent writes the rest of a request to the server, waiting for room.
func (s *Session) sendUnsent() {
	s.mu.Lock()
	sc, b := s.unsentTo, s.unsent
	s.unsentTo, s.unsent = nil, nil
	s.mu.Unlock()
	if sc == nil {
		return
	}
	_, _ = sc.link.Write(b) // a server that is gone is its own goroutine's business
	s.sent(sc)
}

// interrupted looks at what changed while the goroutine was reading or waiting, until nothing is left to do about it.
func (s *Session) interrupted() (goOn bool) {
	for goOn = true; goOn; {
		s.mu.Lock()
		switch {
		case s.axed && s.closing != nil && (s.writing || s.finishing): // end has set a limit to that, and its end wakes us
			s.mu.Unlock()
			return true
		case s.axed || s.closing != nil && s.idleLocked():
			return s.endLocked(s.closing)
		case s.lastWord != nil && s.srv == nil:
			return s.endLocked(s.closing)
		case s.lastWord != nil:
			s.srv.link.Interrupt() // and on to sayLastWord
			s.mu.Unlock()
			return true
		case s.waitErr != nil:
			err := s.waitErr
			s.waitErr, s.waiting, s.held = nil, false, false
			goOn = s.refuseLocked(err)
		case s.lostErr != nil:
			goOn = s.takeLossLocked()
		case s.sendableLocked():
			s.held = false
			s.proceedLocked()
		case s.resume:
			s.resume = false
			s.mu.Unlock()
			s.sendUnsent()
		case s.srv == nil && !s.local.active && s.hearsNow():
			goOn = s.notifyLocked()
		default:
			s.held = false
			s.mu.Unlock()
			return true
		}
	}
	return false
}

// idleLocked reports whether the session is at a boundary. A request that waits for the end of a pause is not begun.
func (s *Session) idleLocked() bool {
	if s.waiting && !s.env.gate.isShut() || s.finishing || s.writing || s.sending || s.holds&^holdPaused != 0 {
		return false
	}
	return s.srv == nil || s.pins != 0 && s.turn.Quiet() && s.turn.Status() == 'I'
}

// endLocked unlocks, says goodbye if nobody else is writing to the client, and reports false: the session is over.
func (s *Session) endLocked(e *Error) bool {
	quiet := !s.hushed && (s.srv == nil || s.turn.AtRest() && !s.finishing && !s.writing)
	s.lastWord = nil
	s.mu.Unlock()
	if e != nil && quiet {
		_ = s.client.conn.SetWriteDeadline(s.env.now().Add(goodbyeLimit))
		_, _ = s.link.Write(e.append(nil, "FATAL"))
	}
	return false
}

// end makes the session end now, with e for a client that is not in the middle of a reply. Any goroutine may call it.
func (s *Session) end(e *Error) {
	s.mu.Lock()
	s.axed = true
	s.closing = e
	soon := s.env.now().Add(goodbyeLimit)
	_ = s.client.conn.SetWriteDeadline(soon) // whoever is stuck in a write to a client that does not read
	if s.srv != nil && s.sending {
		s.srv.killed.Store(true) // a connection with a deadline is not lent again
		_ = s.srv.link.Conn().SetWriteDeadline(soon)
	}
	s.mu.Unlock()
	s.interrupt()
}

// goodbyeLimit is how long a write may still take in a session that ends now.
const goodbyeLimit = time.Second

// drain makes the session end, with e, when its transaction is over. Any goroutine may call it.
func (s *Session) drain(e *Error) {
	s.mu.Lock()
	if s.closing == nil {
		s.closing = e
	}
	s.mu.Unlock()
	s.interrupt()
}

// interrupt makes Serve's goroutine call interrupted. Any goroutine may call it.
func (s *Session) interrupt() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
	s.link.Interrupt()
}

// waitFailed ends the session's wait for a server connection with an error. The caller has taken the session out of the
// queue.
func (s *Session) waitFailed(e *Error) {
	s.mu.Lock()
	if s.waiting && s.srv == nil {
		s.waitErr = e
	}
	s.mu.Unlock()
	s.interrupt()
}
