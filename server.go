package pgmoor

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/puddle/v2"

	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/stmts"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// windLimit bounds how long a server connection whose client left may take to become clean.
const windLimit = 10 * time.Second

// staleAfter is the idle time after which a connection is asked for signs of its end before it is lent.
const staleAfter = 100 * time.Millisecond

// server is one server connection. Its goroutine, serve, is its only reader from login to close, writes what it reads to
// the client of the session that holds it, and closes it. The writer is whoever sends the holding session's bytes
// (Session.sending), or, where nobody holds it, nobody.
type server struct {
	link    *link.Link
	pool    *pool
	res     *puddle.Resource[*server] // nil for a connection outside of the budget
	welcome []byte                    // ParameterStatus messages of the login
	base    map[string]string         // what they say, by folded name; follows the server's configuration

	serial           uint64        // no other connection has it
	epoch            uint64        // env.epoch when its login began
	era              uint64        // account.era of its login
	closed           chan struct{} // closed when it is, see pool.lost
	network, address string        // where cancel requests go
	encryption       *encryption   // of those; nil: there is none
	pid              uint32
	secret           []byte

	sess        atomic.Pointer[Session] // who holds it
	holder      atomic.Uint32           // the process id, for clients, of the session that holds it or held it last
	standsFor   atomic.Pointer[Session] // who ends if the server ends this connection; changed under pool.mu
	standsUntil time.Time               // guarded by pool.mu
	aged        atomic.Bool             // it is too old to be lent again
	retireAt    time.Time               // when it is
	spent       atomic.Bool             // it stands or has stood for a session, and is not lent to others any more
	killed      atomic.Bool             // no more use: serve ends at the next interruption
	ended       atomic.Bool             // serve has ended, or looks at sess for the last time

	// Owned by serve.
	extra   []byte            // goes to the client behind what was looked at
	rest    []byte            // of a reply, that the client's socket did not take
	whose   *Session          // whose reply it is
	what    outcome           // what follows when rest is written
	drops   bool              // the rest of that message is not for the client
	body    int               // bytes still to come of a message too large for the buffer
	gone    error             // why serve ends, for the log
	reports map[string]string // the latest value of every reported parameter, by folded name

	// Guarded by the holding session's mu, and handed on with the connection.
	unnamed  uint64   // which unnamed statement the server has; 0: some other or none
	none     bool     // it certainly has none
	failed   bool     // an error was reported since the connection was lent
	fatal    bool     // the server ended the session by an error that is the client's own doing
	winds    int      // messages sent to clean up after a client that left
	reset    bool     // DISCARD ALL was one of them
	set      settings // what is set on the connection beyond its login
	fresh    settings // of that, what Config.InitQuery sets
	initial  *initial // which it was; nil: none was run
	own      []*own   // queries of the proxy's own that are under way, oldest first
	ask      []byte   // one of them, yet to be written; goes with sending
	gotBy    uint64   // which session used it last, and may have got values of sequences; 0: none since it was fresh
	foreign  bool     // it may have others' besides
	changed  []string // parameters reported since the connection was lent, by folded name
	prepared stmts.Server
	aliases  uint64 // names made up for prepared statements
	kept     kept
	setUpErr *Error // the server ended the session over the settings that it was to have

	// Guarded by pool.mu.
	idleSince time.Time
	lent      bool
	cancels   int  // cancel requests under way
	parked    bool // free, but for those
}

func newServer(li *loggedIn, p *pool) *server {
	base := statusMap(li.statuses)
	sc := &server{
		link: link.New(li.conn, !p.env.config().plainIO), pool: p,
		welcome: li.statuses, base: base, reports: maps.Clone(base),
		serial: p.env.statementIDs.Add(1), network: li.network, address: li.address, encryption: li.encryption, pid: li.pid, secret: li.secret, none: true, closed: make(chan struct{}),
		set: li.set, fresh: li.set, initial: li.initial, retireAt: p.env.retireAt(), era: p.account.era.Load(),
	}
	p.env.backends.Store(sc.pid, sc)
	p.env.noteVersion(sc.base["server_version"])
	return sc
}

// statusMap reads a run of ParameterStatus messages.
func statusMap(b []byte) map[string]string {
	m := make(map[string]string)
	for len(b) >= wire.HeaderLen {
		n := int(wire.Length(b)) + 1
		if k, v, ok := reported(b[:n]); ok {
			m[k] = v
		}
		b = b[n:]
	}
	return m
}

// status takes a whole ParameterStatus message apart.
func status(msg []byte) (name, value []byte, ok bool) {
	name, rest, ok := wire.CString(msg[wire.HeaderLen:])
	value, _, ok2 := wire.CString(rest)
	return name, value, ok && ok2
}

// lendLocked marks the connection as lent; the caller holds pool.mu.
func (sc *server) lendLocked() {
	sc.lent = true
	sc.pool.using++
}

// kill ends the connection. Any goroutine may call it; serve closes it.
func (sc *server) kill() {
	sc.killed.Store(true)
	sc.link.Interrupt()
	sc.link.AbortWrites()
}

// limitWind bounds how long the connection may take to become clean from now on.
func (sc *server) limitWind() {
	_ = sc.link.Conn().SetReadDeadline(sc.pool.env.now().Add(windLimit))
	if sc.killed.Load() {
		sc.link.Interrupt()
	}
}

// retired reports whether the connection must not be lent again.
func (sc *server) retired() bool {
	return sc.killed.Load() || sc.spent.Load() || sc.aged.Load() || sc.epoch != sc.pool.env.epoch.Load() || sc.era != sc.pool.account.era.Load()
}

// stale reports whether an idle connection that nobody used for a while turns out to have ended.
func (sc *server) stale() bool {
	return sc.pool.env.now().Sub(sc.idleSince) > staleAfter && !sc.link.Alive()
}

// destroy is puddle's destructor: serve has ended. It closes the socket and gives the budget its token back. Where others share the
// budget, it first waits a little until the server has closed its side.
func (sc *server) destroy() {
	if sc.pool.env.config().Budget != nil {
		sc.part()
	} else {
		_ = sc.link.Conn().Close()
	}
	sc.pool.giveToken()
}

// serve is the goroutine of the server connection.
func (sc *server) serve() {
	defer sc.pool.wg.Done()
	defer sc.recover()
	handler := sc.fromServer
	for sc.gone == nil {
		err := sc.link.Run(handler)
		switch {
		case err == nil:
			sc.flush()
		case link.Interrupted(err):
			sc.link.ClearInterrupt()
			if sc.killed.Load() || sc.winding() || sc.lapsed() {
				sc.gone = err
			} else {
				sc.notify()
			}
		default:
			sc.gone = err
		}
	}
	sc.end()
}

// winding reports whether the connection is being cleaned up after a client that left.
func (sc *server) winding() bool {
	s := sc.sess.Load()
	return s != nil && s.isGone()
}

// flush writes what the client's socket did not take before.
func (sc *server) flush() {
	s := sc.whose
	if s == nil {
		return
	}
	if len(sc.rest) > 0 {
		_, _ = s.link.Write(sc.rest) // a client that is gone is its own goroutine's business
	}
	what := sc.what
	sc.rest, sc.whose, sc.what = nil, nil, goOn
	sc.follow(s, what, false)
}

// end is the last thing that happens on serve: the session learns that its connection is lost, and the connection is
// closed.
func (sc *server) end() {
	sc.killed.Store(true)
	if t := sc.standsFor.Load(); t != nil {
		t.standIn.CompareAndSwap(sc, nil)
	}
	sc.link.Release()
	sc.pool.env.backends.CompareAndDelete(sc.pid, sc)
	sc.ended.Store(true) // before sess is looked at: holdLocked does it the other way round
	if s := sc.sess.Load(); s != nil {
		s.serverLost(sc)
	} else {
		sc.link.TryTerminate()
	}
	if sc.res == nil {
		_ = sc.link.Conn().Close()
		return
	}
	sc.pool.lost(sc)
}

// unasked takes what a server says that nobody holds: notices are dropped, anything that ends the connection or that
// should not come ends it.
func (sc *server) unasked(b []byte) (int, link.Next) {
	n := 0
	for len(b)-n >= wire.HeaderLen {
		l := int(wire.Length(b[n:])) + 1
		if l < wire.HeaderLen || l > link.BufferSize {
			return sc.abandon(len(b))
		}
		if l > len(b)-n {
			break
		}
		switch b[n] {
		case wire.NoticeResponse:
		case wire.ParameterStatus: // the server's configuration was reloaded
			if name, value, ok := reported(b[n : n+l]); ok {
				sc.base[name], sc.reports[name] = value, value
			}
		default: // an error that ends the connection, a notification that nobody listens for, nonsense
			sc.mourn(b[n : n+l])
			return sc.abandon(len(b))
		}
		n += l
	}
	if n > 0 {
		return n, link.Again // the end of the stream may have come along: a server that is shut down at once says so in a notice
	}
	return n, link.Park
}

// abandon makes serve end after the handler.
func (sc *server) abandon(n int) (int, link.Next) {
	sc.gone = errAbandoned
	return n, link.Leave
}

// noteStatus keeps track of the parameters that the server reports. Those that a query of the proxy's own changes are no news.
func (sc *server) noteStatus(s *Session, msg []byte, private bool) {
	name, value, ok := reported(msg)
	if !ok {
		return
	}
	sc.reports[name] = value
	if private {
		return
	}
	switch name {
	case settingStrings:
		s.strings = value != "off"
	case settingEncoding:
		s.opaque = hidesASCII(value)
	}
	if !notSettable[name] && !slices.Contains(sc.changed, name) {
		sc.changed = append(sc.changed, name)
	}
}
