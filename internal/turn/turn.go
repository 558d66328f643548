// Package turn is the bookkeeping of one session's requests on its server connection: which replies are owed, which of
// them are swallowed because the proxy sent the request itself, and whether the server connection may be given up.
//
// It is a pure state machine. The rules are those of PostgreSQL's message loop (documentation, "Message Flow", and
// PostgresMain in postgres.c): a simple Query, a FunctionCall and a Sync are each answered by one ReadyForQuery; after an
// error in an extended-protocol message the server ignores everything up to the next Sync; during COPY FROM STDIN it
// consumes Sync and Flush in silence.
package turn

import "github.com/pgmoor/pgmoor/internal/wire"

// An entry of the queue is a request that is owed an answer, in the order in which the server will read it.
const (
	eQuery byte = iota + 1
	eFunction
	eSync
	eParse
	eParseUnnamed
	eBind
	eDescribe
	eExecute
	eClose
	eCloseUnnamed
	eParseFaked // a Parse in whose place a Close was sent
	eCloseNamed // of a statement
	eDescribeNamed
	ePrepare // injected only: a Parse of a named statement
	eEvict   // injected only: a Close of a named statement
	eStep    // injected only: a Close, Parse or Bind of InjectRun
	eCopyEnd // CopyDone or CopyFail: is owed nothing, marks where a COPY ends

	injected = 0x80 // sent by the proxy: its answer is swallowed
	kindMask = 0x7f
)

// MaxOwed is the greatest number of requests that may wait for their answers. PostgreSQL's own output buffer and the
// sockets' make a client block long before.
const MaxOwed = 4 << 20

// Unnamed says what is known of the unnamed prepared statement of a session.
type Unnamed byte

const (
	// UnnamedNone means that there is none.
	UnnamedNone Unnamed = iota
	// UnnamedLast means that it is the one of the last Parse that was sent.
	UnnamedLast
	// UnnamedOlder means that it is one of an earlier Parse, or not decided yet; only the server connection knows its text.
	UnnamedOlder
)

// Verdict is what is to be done with a message of the server.
type Verdict byte

const (
	// Forward passes the message on to the client.
	Forward Verdict = iota
	// Swallow drops it: it answers a request of the proxy's own.
	Swallow
	// Parsed passes a CloseComplete on as a ParseComplete.
	Parsed
)

// Turn is the state between a session and its server connection. The zero value is a session that has sent nothing. A
// Turn must not be copied once used. It is not safe for concurrent use.
type Turn struct {
	queue  []byte // entries owed, oldest at head
	head   int
	inline [16]byte
	ready  int // entries that end in ReadyForQuery
	parses int // eParseUnnamed entries

	status    byte // transaction status of the last ReadyForQuery; 0 is 'I'
	open      bool // extended-protocol messages were sent since the last Sync
	skip      bool // the server ignores everything up to a Sync that was not sent yet
	copyIn    bool // the server reads COPY data and the client has not ended it
	copySyncs bool // a Sync was taken for consumed by the COPY that is under way
	lost      bool // the server's answers can no longer be foretold
	unprimed  bool // an injected message failed or was skipped
	unnamed   Unnamed
	sent, has uint64 // Parses of unnamed statements: how many were sent, and the number of the last that succeeded
	did       int    // entries about named statements that were answered and not taken by TakeNamed
	undid     int    // those that came to nothing
}

// Status returns the transaction status of the last ReadyForQuery: 'I', 'T' or 'E'.
func (t *Turn) Status() byte {
	if t.status == 0 {
		return 'I'
	}
	return t.status
}

// Unnamed returns what is known of the session's unnamed statement.
func (t *Turn) Unnamed() Unnamed { return t.unnamed }

// UnnamedSent returns how many Parses of unnamed statements the session has sent.
func (t *Turn) UnnamedSent() uint64 { return t.sent }

// UnnamedHas returns which of them, from 1 on, was the last to succeed: with UnnamedOlder, at rest, that is the session's.
func (t *Turn) UnnamedHas() uint64 { return t.has }

// Recall takes note that the text of the session's unnamed statement is known, though it is an older one.
func (t *Turn) Recall() { t.unnamed = UnnamedLast }

// Lose makes Lost report true.
func (t *Turn) Lose() { t.lost = true }

// Lost reports whether the server did something that the bookkeeping cannot explain. The server connection must then
// stay with the session and be closed with it.
func (t *Turn) Lost() bool { return t.lost }

// CopyIn reports whether the server waits for COPY data that the client has not ended.
func (t *Turn) CopyIn() bool { return t.copyIn }

// Skipping reports whether the server ignores everything up to a Sync that was not sent yet.
func (t *Turn) Skipping() bool { return t.skip }

// Open reports whether extended-protocol messages were sent since the last Sync.
func (t *Turn) Open() bool { return t.open }

// Owed reports whether any answer is still owed.
func (t *Turn) Owed() bool { return t.head < len(t.queue) }

// Ready returns how many ReadyForQuery are owed.
func (t *Turn) Ready() int { return t.ready }

// Quiet reports whether nothing is owed, nothing is half sent and no COPY is open: what the server does next depends on the client alone.
func (t *Turn) Quiet() bool { return !t.Owed() && !t.open && !t.skip && !t.copyIn }

// AtRest is Quiet, save for what is owed to the proxy itself.
func (t *Turn) AtRest() bool { return !t.OwedToClient() && !t.open && !t.skip && !t.copyIn }

// Releasable reports whether the session may be given another server connection for its next request: nothing is owed
// or half done, no transaction is open, and the unnamed statement is one that can be made again.
func (t *Turn) Releasable() bool {
	return t.Quiet() && t.Status() == 'I' && t.unnamed != UnnamedOlder && !t.lost
}

// Sent records a message that is sent to the server, by its type; unnamed says that a Parse or a Close means the unnamed
// statement. It returns false when more than MaxOwed answers would be owed.
func (t *Turn) Sent(typ byte, unnamed bool) bool {
	if t.copyIn {
		t.sentInCopy(typ)
		return true
	}
	if t.skip && typ != wire.Sync {
		return true
	}
	switch typ {
	case wire.Query:
		t.ready++
		return t.push(eQuery)
	case wire.FunctionCall:
		t.ready++
		return t.push(eFunction)
	case wire.Sync:
		t.open, t.skip = false, false
		t.ready++
		return t.push(eSync)
	case wire.Parse:
		return t.sentParse(unnamed)
	case wire.Close:
		t.open = true
		if unnamed {
			return t.push(eCloseUnnamed)
		}
		return t.push(eClose)
	case wire.Bind:
		t.open = true
		return t.push(eBind)
	case wire.Describe:
		t.open = true
		return t.push(eDescribe)
	case wire.Execute:
		t.open = true
		return t.push(eExecute)
	case wire.CopyDone, wire.CopyFail:
		if t.Owed() {
			return t.push(eCopyEnd)
		}
	}
	return true
}

// sentInCopy records a message that the server reads as part of a COPY FROM STDIN.
func (t *Turn) sentInCopy(typ byte) {
	switch typ {
	case wire.CopyDone, wire.CopyFail:
		t.copyIn = false
	case wire.Sync:
		t.copySyncs = true
	case wire.CopyData, wire.Flush:
	default: // the server ends the connection
		t.lost = true
	}
}

func (t *Turn) sentParse(unnamed bool) bool {
	t.open = true
	if !unnamed {
		return t.push(eParse)
	}
	if t.unnamed == UnnamedLast {
		t.unnamed = UnnamedOlder
	}
	t.parses++
	t.sent++
	return t.push(eParseUnnamed)
}

// InjectParse records a Parse of the session's unnamed statement that the proxy sends in front of the session's next
// message, after the session moved to another server connection. With sync a Sync follows, and the Parse is in a transaction
// of its own, as it was when the session sent it; an error of it is then nobody's.
func (t *Turn) InjectParse(sync bool) bool {
	return t.push(eParse|injected) && (!sync || t.push(eSync|injected))
}

// SentFaked records a Parse of a named statement that the server has already. A Close of nothing was sent in its place, which
// the server answers, or ignores, at the same point.
func (t *Turn) SentFaked() bool {
	t.open = true
	return t.push(eParseFaked)
}

// SentClose records a Close of a named statement.
func (t *Turn) SentClose() bool {
	t.open = true
	return t.push(eCloseNamed)
}

// InjectBind records a Bind that was answered before and is sent again.
func (t *Turn) InjectBind() bool { return t.push(eBind | injected) }

// Unanswered returns how many messages of the client's are owed an answer.
func (t *Turn) Unanswered() (n int) {
	for _, e := range t.queue[t.head:] {
		if e&injected == 0 {
			n++
		}
	}
	return n
}

// Redo takes note that the batch or Query whose error was received last is run once more: the ReadyForQuery that ends it is
// the proxy's own affair, as is the Sync for that where the client has not sent one.
func (t *Turn) Redo() {
	switch k := t.first(); {
	case k == eSync, k == eQuery:
		t.queue[t.head] = eSync | injected
		t.ready--
	case k == 0 && t.skip:
		t.skip, t.open = false, true
		t.push(eSync | injected)
	default:
		t.lost = true
	}
}

// InjectPrepare records a Parse of a named statement that the proxy sends in front of a message that needs it.
func (t *Turn) InjectPrepare() bool { return t.push(ePrepare | injected) }

// InjectRun records two Closes, a Parse, Bind, Execute and two Closes by which the proxy runs a PREPARE. The Execute is what TakeNamed
// counts.
func (t *Turn) InjectRun() bool {
	for _, e := range [...]byte{eStep, eStep, eStep, eStep, eExecute, eStep, eStep} {
		if !t.push(e | injected) {
			return false
		}
	}
	return true
}

// Begin takes note that a batch has begun, by what the proxy sends in front of its first message.
func (t *Turn) Begin() { t.open = true }

// SentDescribe records a Describe of a named statement.
func (t *Turn) SentDescribe() bool {
	t.open = true
	return t.push(eDescribeNamed)
}

// InjectDescribe records a Describe of a named statement that the proxy sends in front of a message that waits for the answer.
func (t *Turn) InjectDescribe() bool {
	t.open = true
	return t.push(eDescribeNamed | injected)
}

// InjectEvict records a Close of a named statement that the proxy sends.
func (t *Turn) InjectEvict() bool { return t.push(eEvict | injected) }

// InjectSync records a Sync behind what was injected: its errors are nobody's.
func (t *Turn) InjectSync() bool { return t.push(eSync | injected) }

// TakeNamed returns how many of the oldest entries about named statements (a named Parse, SentFaked, SentClose, InjectPrepare,
// InjectEvict) were answered since it was last called, and how many behind those came to nothing because of an error.
func (t *Turn) TakeNamed() (did, undid int) {
	did, undid = t.did, t.undid
	t.did, t.undid = 0, 0
	return did, undid
}

// aboutNamed reports whether an entry is counted by TakeNamed.
func aboutNamed(e byte) bool {
	switch e {
	case eParse, eParseFaked, eCloseNamed, eDescribeNamed, eDescribeNamed | injected, ePrepare | injected, eEvict | injected, eExecute | injected:
		return true
	}
	return false
}

// TakeUnprimed reports whether, since it was last called, an error kept an injected message from having its effect.
func (t *Turn) TakeUnprimed() bool {
	u := t.unprimed
	t.unprimed = false
	return u
}

// InjectClose records a Close of the unnamed statement that the proxy sends because another session may have left one.
func (t *Turn) InjectClose() bool { return t.push(eClose | injected) }

// InjectQuery records a simple Query that the proxy sends for itself: all of its answer is swallowed. It is sent when
// nothing is half done (Quiet), and drops the unnamed statement of the server connection.
func (t *Turn) InjectQuery() bool { return t.push(eQuery | injected) }

// InjectQueryInFront is InjectQuery for a Query that is written in front of every message that was recorded since nothing was
// owed to the client.
func (t *Turn) InjectQueryInFront() bool {
	if !t.push(eQuery | injected) {
		return false
	}
	owed := t.queue[t.head:]
	copy(owed[1:], owed)
	owed[0] = eQuery | injected
	return true
}

// Injected reports whether the server's next message belongs to the answer to a Query of InjectQuery.
func (t *Turn) Injected() bool { return t.head < len(t.queue) && t.queue[t.head] == eQuery|injected }

// Between reports whether the server is done with what the proxy sent in front of the next message of the client's, or with a batch that is run once
// more, and has yet to say so: nothing of the client's is running.
func (t *Turn) Between() bool { return t.head < len(t.queue) && t.queue[t.head] == eSync|injected }

// Ours reports whether what is answered next is a message of the proxy's own.
func (t *Turn) Ours() bool { return t.head < len(t.queue) && t.queue[t.head]&injected != 0 }

// OwedToClient reports whether an answer is owed that is not the proxy's own affair.
func (t *Turn) OwedToClient() bool {
	for _, e := range t.queue[t.head:] {
		if e&injected == 0 {
			return true
		}
	}
	return false
}

func (t *Turn) push(e byte) bool {
	if len(t.queue)-t.head >= MaxOwed {
		return false
	}
	if t.queue == nil {
		t.queue = t.inline[:0]
	}
	if len(t.queue) == cap(t.queue) && t.head > len(t.queue)/2 {
		t.queue = t.queue[:copy(t.queue, t.queue[t.head:])]
		t.head = 0
	}
	t.queue = append(t.queue, e)
	return true
}

func (t *Turn) first() byte {
	if t.Owed() {
		return t.queue[t.head]
	}
	return 0
}

// pop takes the oldest entry off, and the marks behind it that no COPY claimed.
func (t *Turn) pop() {
	t.drop()
	t.did, t.undid = t.did+t.undid, 0
	for t.first() == eCopyEnd {
		t.drop()
	}
	if !t.Owed() {
		t.queue, t.head = t.inline[:0], 0
	}
}

func (t *Turn) drop() {
	if aboutNamed(t.queue[t.head]) {
		t.undid++ // unless it was answered
	}
	switch t.queue[t.head] {
	case eQuery, eFunction, eSync:
		t.ready--
	case eParseUnnamed:
		t.parses--
	}
	t.head++
}

// Received records a whole message of the server and says what to do with it. arg is the first byte of the body, which
// matters for ReadyForQuery alone.
func (t *Turn) Received(typ, arg byte) Verdict {
	if t.Injected() {
		return t.receivedOwn(typ, arg)
	}
	switch typ {
	case wire.DataRow, wire.CopyData, wire.NoticeResponse, wire.ParameterStatus, wire.NotificationResponse:
		return Forward
	case wire.ReadyForQuery:
		return t.receivedReady(arg)
	case wire.ErrorResponse:
		return t.receivedError()
	case wire.ParseComplete:
		return t.receivedParse()
	case wire.BindComplete:
		if t.first() == eBind|injected || t.first() == eStep|injected {
			t.pop()
			return Swallow
		}
		t.answered(eBind)
	case wire.CloseComplete:
		return t.receivedClose()
	case wire.ParameterDescription:
		if t.first() == eDescribeNamed|injected {
			return Swallow
		}
	case wire.RowDescription, wire.NoData:
		switch t.first() {
		case eDescribe, eDescribeNamed:
			t.pop()
		case eDescribeNamed | injected:
			t.pop()
			return Swallow
		}
	case wire.CommandComplete, wire.EmptyQueryResponse, wire.PortalSuspended:
		t.copySyncs = false
		switch t.first() {
		case eExecute | injected:
			t.pop()
			return Swallow
		case eExecute:
			t.pop()
		}
	case wire.CopyInResponse:
		t.receivedCopyIn()
	case wire.CopyBothResponse: // only a walsender says so
		t.lost = true
	}
	return Forward
}

// receivedOwn records a message of the answer to a Query of the proxy's own. Notifications come when they please.
func (t *Turn) receivedOwn(typ, arg byte) Verdict {
	switch typ {
	case wire.NotificationResponse:
		return Forward
	case wire.ReadyForQuery:
		t.status = arg
		t.pop()
	case wire.CopyInResponse, wire.CopyBothResponse:
		t.lost = true
	}
	return Swallow
}

// answered takes off the oldest entry, which must be of kind e.
func (t *Turn) answered(e byte) {
	if t.first() != e {
		t.lost = true
		return
	}
	t.pop()
}

func (t *Turn) receivedParse() Verdict {
	switch t.first() {
	case eParse | injected, ePrepare | injected, eStep | injected:
		t.pop()
		return Swallow
	case eParseUnnamed:
		t.pop()
		t.unnamed, t.has = UnnamedOlder, t.sent-uint64(t.parses)
		if t.parses == 0 {
			t.unnamed = UnnamedLast
		}
	default:
		t.answered(eParse)
	}
	return Forward
}

func (t *Turn) receivedClose() Verdict {
	switch t.first() {
	case eClose | injected, eEvict | injected, eStep | injected:
		t.pop()
		return Swallow
	case eParseFaked:
		t.pop()
		return Parsed
	case eCloseNamed:
		t.pop()
	case eCloseUnnamed:
		t.pop()
		t.unnamed = UnnamedNone
	default:
		t.answered(eClose)
	}
	return Forward
}

func (t *Turn) receivedReady(status byte) Verdict {
	t.status = status
	switch t.first() {
	case eSync | injected:
		t.pop()
		return Swallow
	case eQuery: // a simple Query drops the unnamed statement
		t.unnamed = UnnamedNone
		t.pop()
	case eSync, eFunction:
		t.pop()
	default: // a Sync that was taken for swallowed by a COPY, or something unheard of
		t.skip = false
		t.lost = true
	}
	return Forward
}

// receivedError applies PostgreSQL's rule: after an error in the extended protocol everything up to Sync is ignored.
func (t *Turn) receivedError() Verdict {
	if t.copySyncs {
		t.lost = true
	}
	t.copyIn, t.copySyncs = false, false
	verdict := Forward
	switch t.first() {
	case 0, eQuery, eFunction, eSync: // ReadyForQuery follows, or the connection ends
		return Forward
	case eParse | injected, ePrepare | injected, eEvict | injected, eBind | injected, eExecute | injected, eStep | injected:
		if t.alone() { // the client hears of it when it uses the statement
			verdict = Swallow
		}
	case eParseUnnamed: // the old one was dropped before the new one was looked at
		t.unnamed = UnnamedNone
	}
	for t.Owed() && t.first()&kindMask != eSync {
		t.unprimed = t.unprimed || t.first() == eParse|injected || t.first() == eClose|injected
		t.drop()
	}
	if !t.Owed() {
		t.queue, t.head = t.inline[:0], 0
		t.skip = true
	}
	return verdict
}

// alone reports whether the batch at the head of the queue is the proxy's own.
func (t *Turn) alone() bool {
	for _, e := range t.queue[t.head:] {
		if e&kindMask == eSync {
			return e&injected != 0
		}
	}
	return false
}

// receivedCopyIn claims from the queue what the COPY that now begins will consume: the messages up to CopyDone or
// CopyFail, among which a Sync counts for nothing.
func (t *Turn) receivedCopyIn() {
	if k := t.first(); k != eQuery && k != eExecute {
		t.lost = true
		return
	}
	t.copyIn = true
	kept := t.queue[:t.head+1]
	rest := t.queue[t.head+1:]
	for i, e := range rest {
		switch e {
		case eSync:
			t.ready--
			t.copySyncs = true
		case eCopyEnd:
			t.copyIn = false
			rest = rest[i+1:]
			t.queue = append(kept, rest...)
			t.open = t.open || t.copySyncs && t.first() == eExecute && t.ready == 0
			return
		default:
			t.lost = true
		}
	}
	t.queue = kept
	if t.copySyncs && t.first() == eExecute { // the extended query is over only with a Sync behind the COPY
		t.open = true
	}
}

// Abandon forgets everything that is owed, because the server connection is gone. It returns how many ReadyForQuery the
// client still waits for, and whether a batch without its Sync is cut off behind them: then one more error is owed and
// everything up to the next Sync has to be ignored.
func (t *Turn) Abandon() (ready int, cut bool) {
	ready = t.ready
	cut = t.skip || t.open
	skipping := t.skip && t.ready == 0
	*t = Turn{unnamed: t.unnamed, status: t.status, sent: t.sent, has: t.has}
	if t.unnamed == UnnamedOlder {
		t.unnamed = UnnamedNone
	}
	t.skip = skipping
	return ready, cut && !skipping
}

// Reset returns the turn to a session that has sent nothing.
func (t *Turn) Reset() { *t = Turn{} }
