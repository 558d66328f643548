package pgmoor

import (
	"strings"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
)

// Effects is a set of things that a statement may do to the session of the server connection on which it runs. The zero
// value is none.
type Effects uint32

// The effects that a session can be pinned for. Their names, as String gives them, are the reasons in Stats and in the log.
const (
	EffectSetting           Effects = 1 << iota // SET, RESET, set_config
	EffectUntrackedSetting                      // a setting whose name only the server knows, or one that cannot be carried
	EffectListen                                // LISTEN
	EffectTempObject                            // temporary tables, views, sequences, functions, types
	EffectHoldableCursor                        // DECLARE … WITH HOLD
	EffectAdvisoryLock                          // session-level advisory locks
	EffectSQLPrepare                            // PREPARE
	EffectSQLExecute                            // EXECUTE, DEALLOCATE
	EffectCursor                                // DECLARE; without HOLD it ends with its transaction
	EffectDiscard                               // DISCARD
	EffectNamedStatement                        // a named statement of the extended protocol
	EffectUnnamedStatement                      // an unnamed statement that cannot be made again elsewhere: too large, or an older one after a pipeline failed
	EffectSequence                              // nextval, setval, currval, lastval
	EffectLoad                                  // LOAD
	EffectRandomSeed                            // setseed
	EffectForeignState                          // dblink, isn_weak, sepgsql_setcon, replication origins and slots, backups
	EffectStatementTooLarge                     // a text of more than 16 KiB
	EffectUnclassified                          // a text that cannot be read with certainty, or any in BIG5, GBK, SJIS and the like
	EffectReplication                           // a replication connection
	EffectProtocol                              // the server's answers could not be foretold
	EffectPolicy                                // SET pgmoor.pin = on (reason: requested), or the policy's own reason
	numEffects              = iota
)

var effectNames = [numEffects]string{
	"setting", "untracked_setting", "listen", "temp_object", "holdable_cursor", "advisory_lock", "prepare",
	"execute", "cursor", "discard", "named_statement", "unnamed_statement", "sequence", "load", "random_seed", "foreign_state", "statement_too_large",
	"unclassified", "replication", "protocol", "policy",
}

// String returns the names of the effects, joined by commas.
func (e Effects) String() string {
	var names []string
	for i, n := range effectNames {
		if e&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return strings.Join(names, ",")
}

// name returns the name of the first effect of the set.
func (e Effects) name() string {
	n, _, _ := strings.Cut(e.String(), ",")
	return n
}

// carried are the effects that follow a session from one server connection to another: nobody is pinned for them unless a
// policy says so.
const carried = EffectSetting | EffectListen | EffectNamedStatement | EffectSQLPrepare | EffectSQLExecute | EffectCursor | EffectDiscard |
	EffectStatementTooLarge

// guarded are the effects of which a session meets only its own, without being pinned at first (sequences.go).
const guarded = EffectSequence

// transactional are the effects that PostgreSQL undoes when the transaction is rolled back.
const transactional = EffectSetting | EffectUntrackedSetting | EffectListen | EffectTempObject | EffectHoldableCursor

// verifiable are the effects whose end the server can be asked about.
const verifiable = EffectUntrackedSetting | EffectListen | EffectTempObject | EffectHoldableCursor | EffectAdvisoryLock |
	EffectSQLPrepare | EffectNamedStatement

// discarded are the effects that DISCARD ALL undoes.
const discarded = verifiable | EffectSequence | EffectPolicy

// unresettable are the effects that DISCARD ALL does not undo: the server connection is closed afterwards.
const unresettable = EffectLoad | EffectRandomSeed | EffectForeignState | EffectUnclassified | EffectReplication |
	EffectProtocol

// mandatory are the effects for which a session is pinned whatever the policy shares: without it the proxy itself would
// fail, or the pin was asked for.
const mandatory = EffectReplication | EffectProtocol | EffectUnnamedStatement | EffectPolicy

// strictTextSize is from what size on a text pins on RDS Proxy.
const strictTextSize = 16 << 10

// PinningPolicy decides what becomes of the effects of statements: whether they are carried from one server connection to
// the next (or, where that is impossible, kept by pinning the session to its connection), shared with other
// clients, or refused. [DefaultPinning] and [StrictPinning] are two; others wrap one of them. It is asked about every statement that has an effect, before the server sees it. It is called
// from the goroutines that relay: it must not wait, and it must not call the session's methods other than Client. It
// should decide, and not count: about a statement that waits for something (a LISTEN) it may be asked twice, and about one that is prepared by the protocol
// when it is prepared, not each time that it is executed.
type PinningPolicy interface {
	Decide(s *Session, st *Statement) Decision
}

// PinningPolicyFunc is a function that is a [PinningPolicy].
type PinningPolicyFunc func(s *Session, st *Statement) Decision

// Decide calls f.
func (f PinningPolicyFunc) Decide(s *Session, st *Statement) Decision { return f(s, st) }

// Statement is what a [PinningPolicy] is asked about. It is valid during the call only.
type Statement struct {
	Effects Effects // what it may do to the session
	Size    int     // of its text, in bytes; texts of more than 16 KiB are not at hand as a whole

	text    []byte
	strings bool
}

// Digest returns the statement in lower case, without comments and with literals replaced by $1, $2 and so on; it is cut
// after some 200 bytes. It never holds a literal: where a text cannot be read with certainty (EffectUnclassified), and it is
// not known what is one, it is empty.
func (st *Statement) Digest() string {
	if st.Effects&EffectUnclassified != 0 {
		return ""
	}
	return string(sqlscan.AppendDigest(nil, st.text, st.strings))
}

// Decision is what a [PinningPolicy] says. Its zero value is what pgmoor does best: carry what can be carried, pin for the
// rest, and end the pin when its reason is gone.
type Decision struct {
	// Share are effects to be ignored: what they leave stays with the server connection, where later transactions of
	// any client may meet it. The effects named_statement, unnamed_statement, replication, protocol and policy cannot
	// be shared.
	Share Effects

	// Pin are effects to be pinned for even where they could be carried. Such a pin lasts until the client disconnects.
	Pin Effects

	// Reason, if not empty, pins the session whatever the statement does, and is the reason in Stats and in the log.
	Reason string

	// Unpin ends a pin that Reason or SET pgmoor.pin began, at the end of the transaction.
	Unpin bool

	// Forever makes the session's pins last until the client disconnects, if the statement pins at all.
	Forever bool

	// Refuse, if not nil, is the error that the client gets in place of the statement's result, as if the server
	// had said it: a transaction block is then in its failed state. Each of its texts is cut after 1000 bytes. A text of more than 16 KiB has reached the
	// server in part when it is decided upon: refusing it ends the session.
	Refuse *Error
}

// DefaultPinning carries what can be carried, pins for the rest, and ends pins as soon as possible. docs/pinning.md has
// the table.
type DefaultPinning struct{}

// Decide returns the zero Decision.
func (DefaultPinning) Decide(*Session, *Statement) Decision { return Decision{} }

// StrictPinning pins as RDS Proxy does, until the client disconnects, for all effects, settings, declared cursors and texts
// of more than 16 KiB among them.
type StrictPinning struct{}

// Decide pins for all effects for ever.
func (StrictPinning) Decide(_ *Session, st *Statement) Decision {
	return Decision{Pin: st.Effects, Forever: true}
}

// scanned are the effects of statement texts: what the scanner found, what it means here.
var scanned = [...]struct {
	scan   sqlscan.Effect
	effect Effects
}{
	{sqlscan.Setting, EffectSetting},
	{sqlscan.UnknownSetting, EffectUntrackedSetting},
	{sqlscan.Listen, EffectListen},
	{sqlscan.TempObject, EffectTempObject},
	{sqlscan.HoldCursor, EffectHoldableCursor},
	{sqlscan.Declare, EffectCursor},
	{sqlscan.AdvisoryLock, EffectAdvisoryLock},
	{sqlscan.TryLock, EffectAdvisoryLock},
	{sqlscan.Prepare, EffectSQLPrepare},
	{sqlscan.Execute, EffectSQLExecute},
	{sqlscan.Deallocate, EffectSQLExecute},
	{sqlscan.Discard, EffectDiscard},
	{sqlscan.Load, EffectLoad},
	{sqlscan.Seed, EffectRandomSeed},
	{sqlscan.Sequence, EffectSequence},
	{sqlscan.LastValue, EffectSequence},
	{sqlscan.Foreign, EffectForeignState},
	{sqlscan.Unsure, EffectUnclassified},
}

// pinningScan are the scanner's effects for which a policy is asked.
const pinningScan = sqlscan.Setting | sqlscan.UnknownSetting | sqlscan.Listen | sqlscan.TempObject | sqlscan.HoldCursor | sqlscan.Declare |
	sqlscan.AdvisoryLock | sqlscan.TryLock | sqlscan.Prepare | sqlscan.Execute | sqlscan.Deallocate | sqlscan.Discard |
	sqlscan.Load | sqlscan.Seed | sqlscan.Sequence | sqlscan.LastValue | sqlscan.Foreign | sqlscan.Unsure

// mayCommit are the scanner's effects that can make something permanent inside a transaction block.
const mayCommit = sqlscan.TxnEnd | sqlscan.Call | sqlscan.Unsure

// noted are the scanner's effects that a session acts upon when a statement with them is run.
const noted = pinningScan | sqlscan.PrepView | sqlscan.Release | sqlscan.Discard | sqlscan.TxnEnd | sqlscan.Call | sqlscan.Listed | sqlscan.Create | sqlscan.Define | sqlscan.Pid | sqlscan.Lexical

func effectsOf(e sqlscan.Effect) (out Effects) {
	for _, m := range scanned {
		if e&m.scan != 0 {
			out |= m.effect
		}
	}
	return out
}
