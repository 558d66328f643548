package pgmoor

import (
	"strings"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
)

// Effects is a set of things that a statement may do to the session of the server connection on which it runs.
type Effects uint32

// The effects that a session can be pinned for. Their names, as String gives them, are the reasons in Stats and in the log.
const (
	EffectSetting          Effects = 1 << iota // SET, RESET, set_config
	EffectListen                               // LISTEN, UNLISTEN
	EffectTempObject                           // temporary tables, views, sequences, functions
	EffectHoldableCursor                       // DECLARE … WITH HOLD
	EffectAdvisoryLock                         // session-level advisory locks
	EffectSQLPrepare                           // PREPARE, EXECUTE, DEALLOCATE
	EffectNamedStatement                       // a named statement of the extended protocol
	EffectLoad                                 // LOAD
	EffectRandomSeed                           // setseed
	EffectSequence                             // nextval, setval, currval, lastval
	EffectForeignState                         // dblink
	EffectUnclassified                         // the text could not be read with certainty
	EffectReplication                          // a replication connection
	EffectUntrackedSetting                     // a setting changed that no statement was seen to change
	EffectProtocol                             // the server's answers could not be foretold
	EffectUnnamedStatement                     // an unnamed statement that only this server connection has
	numEffects             = iota
)

var effectNames = [numEffects]string{
	"setting", "listen", "temp_object", "holdable_cursor", "advisory_lock", "prepare", "named_statement", "load",
	"random_seed", "sequence", "foreign_state", "unclassified", "replication", "untracked_setting", "protocol",
	"unnamed_statement",
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

// unresettable are the effects that DISCARD ALL does not undo: the server connection is closed afterwards.
const unresettable = EffectLoad | EffectRandomSeed | EffectForeignState | EffectUnclassified | EffectReplication |
	EffectUntrackedSetting | EffectProtocol

// mandatory are the effects for which a session is pinned whatever the policy says: without it the proxy itself would fail.
const mandatory = EffectNamedStatement | EffectReplication | EffectProtocol | EffectUnnamedStatement

// PinningPolicy decides what makes a session keep its server connection. It is asked when a session
// sends a statement with effects for which it is not pinned yet. It is called from the goroutines that relay: it must not
// wait, and it must not call the session's methods other than Client.
type PinningPolicy interface {
	// Pin returns those of the effects for which the session is to be pinned. What it leaves out is shared: it
	// stays with the server connection, where later transactions of any client may meet it. The effects
	// named_statement, replication, protocol and unnamed_statement pin in any case.
	Pin(s *Session, effects Effects) Effects
}

// PinningPolicyFunc is a function that is a PinningPolicy.
type PinningPolicyFunc func(s *Session, effects Effects) Effects

// Pin calls f.
func (f PinningPolicyFunc) Pin(s *Session, effects Effects) Effects { return f(s, effects) }

// DefaultPinning pins for every effect.
type DefaultPinning struct{}

// Pin returns all of effects.
func (DefaultPinning) Pin(_ *Session, effects Effects) Effects { return effects }

// scanned are the effects of statement texts: what the scanner found, what it means here.
var scanned = [...]struct {
	scan   sqlscan.Effect
	effect Effects
}{
	{sqlscan.Setting, EffectSetting},
	{sqlscan.Listen, EffectListen},
	{sqlscan.TempObject, EffectTempObject},
	{sqlscan.HoldCursor, EffectHoldableCursor},
	{sqlscan.AdvisoryLock, EffectAdvisoryLock},
	{sqlscan.Prepare, EffectSQLPrepare},
	{sqlscan.Load, EffectLoad},
	{sqlscan.Seed, EffectRandomSeed},
	{sqlscan.Sequence, EffectSequence},
	{sqlscan.Foreign, EffectForeignState},
	{sqlscan.Unsure, EffectUnclassified},
}

// pinningScan are the scanner's effects that matter to pinning at all.
const pinningScan = sqlscan.Setting | sqlscan.Listen | sqlscan.TempObject | sqlscan.HoldCursor | sqlscan.AdvisoryLock |
	sqlscan.Prepare | sqlscan.Load | sqlscan.Seed | sqlscan.Sequence | sqlscan.Foreign | sqlscan.Unsure

// mayCommit are the scanner's effects that can make something permanent inside a transaction block.
const mayCommit = sqlscan.TxnEnd | sqlscan.Call | sqlscan.Unsure

func effectsOf(e sqlscan.Effect) (out Effects) {
	for _, m := range scanned {
		if e&m.scan != 0 {
			out |= m.effect
		}
	}
	return out
}
