package pgmoor

import (
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/stmts"
	"github.com/pgmoor/pgmoor/internal/turn"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file carries what sessions listen to. A session's LISTEN and UNLISTEN run on whatever server connection it has, so that
// their errors and what becomes of them in transactions are PostgreSQL's own; at the next boundary that connection is asked what
// it listens to now, and made to listen to nothing again. Notifications come from the pool's listener alone (listener.go):
//
//   - A message that may commit a LISTEN waits until the listener listens to the channel and has read all that was notified
//     before (hark). What is notified from then on is kept for the session, and dropped if nothing came of the LISTEN.
//   - A ReadyForQuery that ends a transaction of a session that listens is withheld until the listener has read all that was
//     notified before it, so that what the session has notified itself comes in front of it, as PostgreSQL has it (tell, in notify.go).
//   - For the same reason a message waits for the ReadyForQuery of the one before (harken). How messages wait is in hold.go.
//   - Where a statement reads or changes what the session listens to, or a block begins in which one may, its server
//     connection is first made to listen to all of that (attune).

// ears is what a session listens to.
type ears struct {
	s *Session
	l *listener

	some atomic.Bool // there is something for the client; set by the listener, cleared by take

	// Guarded by the session's mu.
	names   map[string]struct{} // committed
	maybe   map[string]struct{} // of LISTENs since the last boundary
	heard   map[string]struct{} // of those, what the listener keeps notifications of
	off     []string            // of UNLISTENs since then
	allOff  bool                // UNLISTEN *
	dirty   bool                // the server connection may listen to something
	whole   bool                // it listens to all that the session does
	later   bool                // tell waits for the end of a write to the server connection
	met     bool                // the listener has read all up to the ReadyForQuery that is withheld
	hearing *hearing            // for which the session's messages wait
	ready   bool                // it is over, and the message that waited was not looked at yet
	failed  bool                // in vain

	// Guarded by the listener's mu.
	subs   map[string]bool // channels; true: committed
	queue  []byte          // NotificationResponse messages for the client
	count  int             // how many
	before int             // how many of them were there when the server connection was made to listen
	lost   bool            // the client is to be told that some may be missing
	missed bool            // the same, once the listener listens again
	over   bool            // there were too many
	busy   bool            // some are being written
}

// maxChannels bounds the text of a LISTEN for all channels of a session. One with more is pinned.
const maxChannels = maxOrder - 1<<10

// channelCost is what a channel takes in that text besides its name.
const channelCost = len(`UNLISTEN "";`)

// attuning are the effects of statements for which a server connection has to listen to all that the session does.
const attuning = sqlscan.Listen | sqlscan.Unlisten | sqlscan.ListenView | sqlscan.Discard | sqlscan.TxnBegin | sqlscan.Unsure

func quoteChannel(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// listenTo returns the query that listens to the channels.
func listenTo(names map[string]struct{}) string {
	var b strings.Builder
	for _, n := range slices.Sorted(maps.Keys(names)) {
		b.WriteString("LISTEN " + quoteChannel(n) + ";")
	}
	return b.String()
}

// askChannels asks what the connection listens to, and ends that.
const askChannels = "SELECT pg_catalog.pg_listening_channels();UNLISTEN *"

// deafened reports whether the session listens, or is going to, on its own server connection.
func (s *Session) deafened() bool { return (s.pins|s.cand)&EffectListen != 0 }

// carries reports whether a LISTEN can be carried. The caller holds mu.
func (s *Session) carries(a act) bool {
	switch {
	case a.info == nil || a.info.Effects&sqlscan.Listen == 0 || a.info.UnknownChannels || a.shares(EffectListen):
		return false
	case a.deed != nil && a.deed.pins&EffectListen != 0 || s.deafened() || s.namedListens || s.pins&EffectReplication != 0 || s.otherEncoding():
		return false
	case slices.ContainsFunc(a.info.Channels, s.mayBeRefused):
		return false
	}
	return s.listenCost(a) <= maxChannels
}

// mayBeRefused reports whether the server may refuse a channel because its name is not one in both encodings. The listener, which all
// depend on, must not be asked for it.
func (s *Session) mayBeRefused(c sqlscan.ChannelRef) bool {
	if !isWide([]byte(c.Name)) {
		return false
	}
	return s.srv == nil || s.expected(s.srv, settingEncoding) != utf8Name || s.srv.base["server_encoding"] != utf8Name || !utf8.ValidString(c.Name)
}

// utf8Name is what the server calls UTF-8.
const utf8Name = "UTF8"

// otherEncoding reports whether the client's encoding is another one than that of the pool's listener.
func (s *Session) otherEncoding() bool {
	if s.set == (settings{}) {
		return s.opaque
	}
	_, other := s.set.values()[settingEncoding]
	return other || s.opaque
}

// listenCost is how long a LISTEN for all channels would be if a were done.
func (s *Session) listenCost(a act) (n int) {
	all := make(map[string]struct{})
	if s.ears != nil {
		maps.Copy(all, s.ears.names)
		maps.Copy(all, s.ears.maybe)
	}
	for _, c := range a.info.Channels {
		all[c.Name] = struct{}{}
	}
	for name := range all {
		n += len(quoteChannel(name)) + channelCost
	}
	return n
}

// hark makes a message that may commit a LISTEN wait until the listener listens too. acts are what the message does, as far
// as it is not done yet. The caller holds mu.
func (s *Session) hark(acts []act, commits bool) stop {
	e := s.ears
	listens := slices.ContainsFunc(acts, s.carries)
	switch {
	case !commits || e == nil && !listens || s.deafened():
		return stopNot
	case s.turn.Ready() > 0: // what that notifies is not meant for a session that did not listen yet
		return s.hold(holdReady)
	case e == nil:
		e = s.newEars()
	case e.hearing != nil:
		return s.hold(holdHearing)
	case e.ready:
		return e.harked()
	}
	names := e.unheard(acts, s.turn.Status() == 'T' && s.turn.Quiet())
	if len(names) == 0 {
		return stopNot
	}
	e.hearing = &hearing{ears: e, names: names, holds: true, done: make(chan struct{})}
	if !e.l.ask(e.hearing) {
		e.hearing = nil
		s.cand |= EffectListen
		return stopNot
	}
	return s.hold(holdHearing)
}

// harked takes the end of the wait. Where nothing can be listened to, the session does it itself.
func (e *ears) harked() stop {
	e.ready = false
	if e.failed {
		e.s.cand |= EffectListen
	}
	return stopNot
}

// unheard returns the channels that may be committed and that the listener has not been asked about yet; again says that
// what it was asked before has not been committed so far, so that what was notified since does not count.
func (e *ears) unheard(acts []act, again bool) (names []string) {
	all := maps.Clone(e.maybe)
	for _, a := range acts {
		if !e.s.carries(a) {
			continue
		}
		for _, c := range a.info.Channels {
			if !c.Off {
				all[c.Name] = struct{}{}
			}
		}
	}
	for n := range all {
		_, known := e.names[n]
		_, heard := e.heard[n]
		if !known && (!heard || again) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

func (s *Session) newEars() *ears {
	s.ears = &ears{
		s: s, l: s.pool.listening(), subs: make(map[string]bool),
		names: make(map[string]struct{}), maybe: make(map[string]struct{}), heard: make(map[string]struct{}),
	}
	return s.ears
}

// ready tells the session that what it asked of the listener is over. It is called on the listener's goroutine.
func (s *Session) ready(h *hearing) {
	s.mu.Lock()
	e := s.ears
	if e == nil || e.hearing != h {
		s.mu.Unlock()
		return
	}
	e.hearing, e.ready, e.failed = nil, true, h.failed
	if !h.failed {
		for _, n := range h.names {
			e.heard[n] = struct{}{}
		}
	}
	s.goOn(holdHearing)
	s.mu.Unlock()
}

// attune puts a query in front of a message, with which the server connection listens to all that the session does, if what
// the message does needs that and it is the first of a transaction. The caller holds mu.
func (s *Session) attune(in *sqlscan.Info, first bool) stop {
	e := s.ears
	switch {
	case in == nil || in.Effects&attuning == 0 || !s.attunable():
		return stopNot
	case !first:
		return stopPrime
	}
	s.front()
	s.prefix = wire.AppendQuery(s.prefix, listenTo(e.names))
	s.turn.InjectQuery()
	s.srv.own = append(s.srv.own, &own{kind: ownAttune})
	s.dropsUnnamed(s.srv)
	e.whole, e.dirty = true, true
	e.l.divide(e)
	return stopNot
}

// attuneAll is attune for a text and for what it executes by name: as with the text itself, only the server knows whether that was
// reached, where something in front of it fails.
func (s *Session) attuneAll(in *sqlscan.Info, first bool, depth int) stop {
	why := s.attune(in, first)
	for _, a := range s.executed(in) {
		if why == stopNot && depth < maxNested {
			why = s.attuneAll(a.info, first, depth+1)
		}
	}
	return why
}

// attunable reports whether the server connection does not listen to all that the session does, and can be made to.
func (s *Session) attunable() bool {
	return len(s.ears.names) > 0 && !s.ears.whole && !s.deafened() && !s.turn.Lost() &&
		s.turn.Status() == 'I' && s.turn.AtRest() && s.turn.Unnamed() != turn.UnnamedOlder
}

// bound returns what is known of the statement that a Bind names.
func (s *Session) bound(msg, name []byte) *sqlscan.Info {
	switch {
	case usesUnnamed(msg):
		return s.stmt.info
	case len(name) == 0 || !s.attunable():
		return nil
	}
	st, _, known := s.findStatement(stmts.Cut(name))
	if !known || st == (stmts.Statement{}) || st.SQL() {
		return nil
	}
	text, _, _ := strings.Cut(st.Tail(), "\x00")
	return s.env.config().texts.Inspect([]byte(text), s.strings)
}

// listens takes note of what a statement that is run does to what the session listens to. The caller holds mu.
func (s *Session) listens(a act) {
	in := a.info
	if in.Effects&(sqlscan.Listen|sqlscan.Unlisten|sqlscan.Discard) == 0 || a.shares(EffectListen) {
		return
	}
	carried := s.carries(a)
	switch {
	case in.Effects&sqlscan.Listen == 0:
	case !carried:
		s.cand |= EffectListen
	case s.ears == nil:
		s.newEars()
	}
	e := s.ears
	if e == nil {
		return
	}
	e.dirty = true
	e.allOff = e.allOff || in.Effects&sqlscan.Discard != 0 && in.AllSettings || in.Effects&sqlscan.Unlisten != 0 && in.UnknownChannels
	for _, c := range in.Channels {
		switch {
		case !c.Off && carried:
			e.maybe[c.Name] = struct{}{}
		case c.Off && c.Name == "":
			e.allOff = true
		case c.Off && len(e.off) < len(e.names): // more than that cannot matter
			if _, known := e.names[c.Name]; known && !slices.Contains(e.off, c.Name) {
				e.off = append(e.off, c.Name)
			}
		}
	}
}

// follow applies the UNLISTENs since the last boundary, unless they are undone. Where the server connection listened to all
// that the session does, its answer says more than that.
func (e *ears) follow(undone bool) {
	if !undone {
		for _, n := range e.off {
			delete(e.names, n)
		}
		if e.allOff {
			clear(e.names)
		}
	}
	e.off, e.allOff = nil, false
}

// askWhat asks the server connection what it listens to. The caller holds mu; nothing is owed and nobody is sending.
func (s *Session) askWhat(sc *server) outcome {
	s.ears.dirty = false
	s.holds |= holdAsked
	return s.askLocked(sc, &own{kind: ownChannels}, askChannels)
}

// channelsAnswered makes the answer what the session listens to.
func (s *Session) channelsAnswered(o *own) {
	e := s.ears
	if s.holds &^= holdAsked; e == nil {
		return
	}
	if o.failed() {
		e.dirty = true
		if !o.cancelled() {
			s.pin(EffectListen)
		}
		return
	}
	if s.gone { // nobody would give up again what it listens to
		return
	}
	if e.whole {
		clear(e.names)
	}
	for _, r := range o.rows {
		if len(r) == 1 {
			e.names[string(r[0])] = struct{}{}
		}
	}
	s.hears()
}

// hears makes what is known to be committed what the session listens to.
func (s *Session) hears() {
	s.ears.forget()
	s.ears.l.settle(s.ears, s.ears.names)
	s.dropEars()
}

// forget forgets what was done since the last boundary.
func (e *ears) forget() {
	clear(e.maybe)
	clear(e.heard)
	e.dirty, e.whole, e.ready, e.failed = false, false, false, false
}

// dropEars forgets what the session listens to if that is nothing and nothing is left for the client.
func (s *Session) dropEars() {
	e := s.ears
	if len(e.names)+len(e.maybe) > 0 || e.dirty || s.holds&holdAsked != 0 || e.hearing != nil || e.ready || e.some.Load() {
		return
	}
	e.l.leave(e)
	s.ears = nil
}

// guess takes for committed what the server connection cannot be asked about, because its answers can no longer be foretold.
func (s *Session) guess() {
	undone := s.undone()
	if s.ears.follow(undone); !undone {
		maps.Copy(s.ears.names, s.ears.maybe)
	}
	s.hears()
}

// listensItself is called at a boundary. It leaves listening to the server connection where it is pinned for that or has to
// be.
func (s *Session) listensItself() {
	e := s.ears
	if e == nil {
		return
	}
	if s.otherEncoding() || e.dirty && s.turn.Unnamed() == turn.UnnamedOlder { // a question would drop it
		s.pin(EffectListen)
	}
	switch {
	case s.pins&EffectListen == 0:
	case e.whole: // it does already
		e.forget()
		e.l.dropTwice(e)
		s.leftToServer()
	default:
		s.hears()
	}
}

// leftToServer ends what comes from the listener, behind what it has heard so far.
func (s *Session) leftToServer() {
	clear(s.ears.names)
	s.ears.l.release(s.ears)
	s.dropEars()
}

// listenedItself takes the answer to the query with which the server connection was made to listen to all channels of a
// session that is pinned to it for that.
func (s *Session) listenedItself(o *own) {
	e := s.ears
	if s.holds &^= holdAsked; e == nil {
		return
	}
	if o.err != nil {
		return // asked again at the next boundary
	}
	s.leftToServer()
}

// loseEars decides what the session listens to after its server connection was lost: what may have been committed counts.
func (s *Session) loseEars() {
	e := s.ears
	if e == nil {
		return
	}
	undone := s.undone() || s.turn.Status() != 'I' && !s.risk
	if e.follow(undone); !undone {
		maps.Copy(e.names, e.heard)
	}
	e.hearing, e.later = nil, false
	s.hears()
}

// harken sees, for a session that listens, to what a message waits for and what comes before it. name is that of the statement
// that the message is about. The caller holds mu.
func (s *Session) harken(msg, name []byte, l int, first bool) stop {
	switch msg[0] {
	case wire.CopyData, wire.CopyDone, wire.CopyFail, wire.Flush:
		return stopNot
	}
	if s.turn.Ready() > 0 && !s.deafened() { // its own notifications would come too early, and what it listens to be unclear
		return s.hold(holdReady)
	}
	switch msg[0] {
	case wire.Parse:
		if _, text, ok := wire.CString(msg[wire.HeaderLen:]); ok && l == len(msg) {
			text, _, _ = wire.CString(text)
			return s.attuneAll(s.env.config().texts.Inspect(text, s.strings), first, 0)
		}
	case wire.Bind:
		return s.attuneAll(s.bound(msg, name), first, 0)
	case wire.Execute:
		commits := s.portalRisk
		for _, a := range s.portals {
			commits = commits || a.info.Effects&mayCommit != 0
		}
		return s.hark(nil, commits)
	case wire.Sync, wire.FunctionCall:
		return s.hark(nil, s.turn.Status() == 'I' || s.ends > 0) // the block may have ended in this batch
	case wire.Query:
		if l > len(msg) {
			return s.hark(nil, true)
		}
	}
	return stopNot
}

// harkQuery is hark for a simple Query that does a.
func (s *Session) harkQuery(a act) stop {
	in := a.info
	commits := s.turn.Status() == 'I' || s.turn.Ready() > 0 ||
		in != nil && in.Effects&mayCommit != 0 && (in.Verb != sqlscan.VerbRollback || in.Statements > 1)
	return s.hark(append(s.executed(in), a), commits)
}
