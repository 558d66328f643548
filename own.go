package pgmoor

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgmoor/pgmoor/internal/turn"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file is about the queries that the proxy runs for itself on a server connection that a session holds. Each is one
// simple Query whose answer the client never sees (turn.InjectQuery).

// ownKind is what a query of the proxy's own is for.
type ownKind byte

const (
	ownNothing  ownKind = iota
	ownSetUp            // brings the connection into the session's settings, in front of its first message
	ownReadBack         // asks for the values of settings that may have changed
	ownVerify           // asks what the session has left behind
	ownCleanUp          // makes the connection fresh again, after a pin has ended
	ownDiscard          // keeps the session from meeting another's values of sequences
	ownAttune           // makes it listen to all that the session does, in front of a message
	ownChannels         // asks what it listens to, and ends that
	ownListen           // makes it listen to all that the session does, for good
)

// own is a query of the proxy's own that is under way. The holding session's mu guards it.
type own struct {
	kind  ownKind
	names []string         // what ownReadBack asks for, in order
	dirty map[string]touch // what was touched before it was asked
	maybe Effects          // what may have been left before it was asked
	rows  [][][]byte
	size  int
	err   []byte // the body of the last ErrorResponse
}

// maxOwnAnswer bounds the bytes that are kept of an answer.
const maxOwnAnswer = 64 << 10

// hear takes a message of the answer to the query under way. It reports whether the server ended the session with it.
func (o *own) hear(msg []byte) (fatal bool) {
	body := msg[wire.HeaderLen:]
	switch msg[0] {
	case wire.DataRow:
		if o.size += int(wire.Length(msg)); len(msg) <= int(wire.Length(msg)) { // only its beginning is there
			o.size += maxOwnAnswer
		}
		if o.size <= maxOwnAnswer {
			o.rows = append(o.rows, row(body))
		}
	case wire.ErrorResponse:
		o.err = bytes.Clone(body)
		severity := string(wire.ErrorField(body, 'V'))
		return severity == "FATAL" || severity == "PANIC" || o.kind == ownSetUp || o.kind == ownDiscard
	}
	return false
}

// cancelled reports whether a cancel request hit the query that was meant for one of the client's.
func (o *own) cancelled() bool { return string(wire.ErrorField(o.err, 'C')) == codeQueryCanceled }

// failed reports whether the answer is of no use.
func (o *own) failed() bool { return o.err != nil || o.size > maxOwnAnswer }

// askLocked enters a query of the proxy's own for sc, which is written by whoever sends for the session next; the session's
// own messages wait until then. Nothing may be owed.
func (s *Session) askLocked(sc *server, o *own, queries ...string) outcome {
	sc.ask = nil
	for i, q := range queries {
		sc.ask = wire.AppendQuery(sc.ask, q)
		s.turn.InjectQuery()
		if i == len(queries)-1 {
			sc.own = append(sc.own, o)
		} else {
			sc.own = append(sc.own, &own{kind: o.kind})
		}
	}
	s.dropsUnnamed(sc)
	s.sending = true
	return asks
}

// dropsUnnamed takes note that a simple Query of the proxy's own drops the server's unnamed statement.
func (s *Session) dropsUnnamed(sc *server) {
	sc.unnamed, sc.none = 0, true
	s.primed = s.turn.Unnamed() == turn.UnnamedNone
	s.queried = false
}

// sendAsked writes what askLocked entered.
func (sc *server) sendAsked(s *Session) {
	q := sc.ask
	sc.ask = nil
	if n, err := sc.link.TryWrite(q); err == nil && n < len(q) {
		sc.kill() // it has stopped reading
	}
	s.sent(sc)
}

// setUp returns the query that brings sc into the session's settings, or nil if it has them. The caller holds mu and sends it
// in front of the session's next request.
func (s *Session) setUp(sc *server, request []byte) []byte {
	s.again = nil
	if sc.set == s.set {
		return nil
	}
	want := s.mended(request)
	if sc.set == want {
		return nil
	}
	s.again = s.mendable(request)
	first, then := change(sc.set, want)
	q := wire.AppendQuery(wire.AppendQuery(nil, first), then)
	for range 2 {
		s.turn.InjectQuery()
		sc.own = append(sc.own, &own{kind: ownSetUp})
	}
	sc.set = want // or the connection ends
	s.dropsUnnamed(sc)
	s.env.count.setUps.Add(1)
	return q
}

// readBack asks for the values of what was touched. The caller holds mu.
func (s *Session) readBackLocked(sc *server) outcome {
	o := &own{kind: ownReadBack, names: slices.Sorted(maps.Keys(s.dirty)), dirty: s.dirty}
	s.dirty = nil
	if s.resetsBase(o.dirty) {
		s.holds |= holdFresh
	}
	return s.askLocked(sc, o, readBack(o.names, o.dirty))
}

// readsBack reports whether the server connection is being asked for settings of the session's.
func (s *Session) readsBack() bool {
	return s.srv != nil && slices.ContainsFunc(s.srv.own, func(o *own) bool { return o.kind == ownReadBack })
}

// endedOwn takes note that the server ended its session by an error over a query of the proxy's own. Where that was to
// bring the connection into the session's settings, nothing of the session's has been run: it gets the error as its answer.
func (sc *server) endedOwn() outcome {
	o := sc.own[0]
	var e pgproto3.ErrorResponse
	if err := e.Decode(o.err); o.kind != ownSetUp || err != nil {
		return lost
	}
	switch e.Code {
	case codeAdminShutdown, codeCrashShutdown, codeCannotConnectNow:
		return lost
	}
	if e.SeverityUnlocalized == "ERROR" { // exit_on_error was not on: the session's message may be running
		return lost
	}
	sc.setUpErr = &Error{Code: e.Code, Message: e.Message, Detail: e.Detail, Hint: orDefault(e.Hint, setUpHint)}
	return lost
}

const setUpHint = "The session's settings could not be made on the server connection that was to run the request, which was not run. RESET ROLE, a RESET or SET of the setting, or DISCARD ALL mends the session."

// answeredOwn takes the end of an answer to a query of the proxy's own, at whose ReadyForQuery it is called. The caller holds
// s.mu.
func (sc *server) answeredOwn(s *Session) {
	o := sc.own[0]
	if sc.own = sc.own[1:]; len(sc.own) == 0 {
		sc.own = nil
	}
	switch o.kind {
	case ownReadBack:
		s.readBackAnswered(sc, o)
	case ownVerify:
		s.verified(sc, o)
	case ownCleanUp:
		sc.cleaned(s, o)
	case ownAttune:
		if s.ears != nil && o.err != nil {
			s.ears.whole = false
		}
	case ownChannels:
		s.channelsAnswered(o)
	case ownListen:
		s.listenedItself(o)
	case ownSetUp, ownDiscard, ownNothing:
	}
}

// readBackAnswered makes the answer the session's settings.
func (s *Session) readBackAnswered(sc *server, o *own) {
	if s.base != (settings{}) {
		s.holds &^= holdFresh
	}
	ok := !o.failed() && len(o.rows) == 1
	var set settings
	if ok {
		set, ok = s.apply(o, o.rows[0])
	}
	if !ok {
		s.asksAgain = true
		for n, t := range o.dirty { // to be asked for again
			s.touch(n, t)
		}
		if !o.cancelled() {
			s.pin(EffectUntrackedSetting)
		}
		return
	}
	s.set, sc.set = s.restored(sc, set, o.dirty), set
	s.asksAgain = false
	if o.dirty[settingPin] != 0 {
		s.pinOnRequest(set.values()[settingPin])
	}
}

// requested is the reason of a pin that the application asked for.
const requested = "requested"

// pinOnRequest acts on the value of pgmoor.pin, by which an application pins its own session.
func (s *Session) pinOnRequest(value string) {
	switch strings.ToLower(value) {
	case "on", "true", "yes", "1":
		s.reason = requested
		s.pin(EffectPolicy)
	default:
		if s.reason == requested {
			s.letGo(EffectPolicy)
		}
	}
}
