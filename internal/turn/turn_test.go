package turn_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/turn"
)

// A story is a sequence of events, separated by semicolons:
//
//	> P        the client sends a message of that type; "> P unnamed" means the unnamed statement
//	< Z T      the server says so; "< 1 swallow" must be swallowed
//	inject P   the proxy sends a Parse, or a Close, of its own
//	abandon 2 cut     the server connection is lost: 2 ReadyForQuery are owed and a batch is cut off
//	reset
//	= releasable !owed ready:1     what must be so now; ! negates
type story struct{ name, events string }

func (s story) run(t *testing.T) {
	tt := new(turn.Turn)
	for _, event := range strings.Split(s.events, ";") {
		words := strings.Fields(event)
		require.NotEmpty(t, words, "empty event")
		switch words[0] {
		case ">":
			require.True(t, tt.Sent(words[1][0], len(words) > 2 && words[2] == "unnamed"), event)
		case "<":
			receive(t, tt, words[1:])
		case "inject":
			inject(t, tt, words[1])
		case "abandon":
			ready, cut := tt.Abandon()
			require.Equal(t, words[1:], strings.Fields(fmt.Sprint(ready)+map[bool]string{true: " cut"}[cut]), event)
		case "reset":
			tt.Reset()
		case "=":
			for _, w := range words[1:] {
				requireState(t, tt, w, event)
			}
		default:
			require.FailNow(t, "unknown event", event)
		}
	}
}

func receive(t *testing.T, tt *turn.Turn, words []string) {
	t.Helper()
	var arg byte
	want := turn.Forward
	for _, w := range words[1:] {
		if w == "swallow" {
			want = turn.Swallow
		} else {
			arg = w[0]
		}
	}
	require.Equal(t, want, tt.Received(words[0][0], arg), words)
}

func inject(t *testing.T, tt *turn.Turn, what string) {
	t.Helper()
	switch what {
	case "P":
		require.True(t, tt.InjectParse(false))
	case "PS":
		require.True(t, tt.InjectParse(true))
	case "Q":
		require.True(t, tt.InjectQuery())
	case "B":
		require.True(t, tt.InjectBind())
	case "redo":
		tt.Redo()
	default:
		require.True(t, tt.InjectClose())
	}
}

func requireState(t *testing.T, tt *turn.Turn, word, event string) {
	t.Helper()
	name, negated := strings.CutPrefix(word, "!")
	name, number, _ := strings.Cut(name, ":")
	switch name {
	case "ready":
		require.Equal(t, number, fmt.Sprint(tt.Ready()), event)
		return
	case "status":
		require.Equal(t, number, string(tt.Status()), event)
		return
	case "unnamed":
		require.Equal(t, number, map[turn.Unnamed]string{turn.UnnamedNone: "none", turn.UnnamedLast: "last", turn.UnnamedOlder: "older"}[tt.Unnamed()], event)
		return
	}
	state, known := map[string]bool{
		"releasable": tt.Releasable(), "quiet": tt.Quiet(), "owed": tt.Owed(), "open": tt.Open(),
		"skipping": tt.Skipping(), "copying": tt.CopyIn(), "lost": tt.Lost(),
	}[name]
	require.True(t, known, "unknown state %q", word)
	require.Equal(t, !negated, state, "%s: %s", event, word)
}

var stories = []story{
	{"ZeroValueIsReleasable", "= releasable quiet !owed status:I ready:0 unnamed:none !lost"},

	{"SimpleQuery", "> Q; = owed !releasable ready:1; < T; < D; < C; = !releasable; < Z I; = releasable ready:0"},
	{"EmptyQuery", "> Q; < I; < Z I; = releasable"},
	{"SeveralStatements", "> Q; < C; < T; < D; < C; = owed; < Z I; = releasable"},
	{"ErrorInQuery", "> Q; < E; = owed !skipping; < Z I; = releasable"},
	{"TransactionBlock", "> Q; < C; < Z T; = quiet !releasable status:T; > Q; < C; < Z I; = releasable"},
	{"FailedBlock", "> Q; < E; < Z E; = quiet !releasable status:E; > Q; < C; < Z I; = releasable"},
	{"PipelineOfQueries", "> Q; > Q; = ready:2; < C; < Z I; = owed !releasable ready:1; < E; < Z I; = releasable"},
	{"AsynchronousMessages", "< N; < A; < S; = releasable; > Q; < N; < S; < A; < C; < Z I; = releasable"},
	{"ErrorOutOfTheBlue", "< E; = quiet !owed !skipping"},

	{"ExtendedBatch", "> P unnamed; > B; > D; > E; = open owed; > S; = !open ready:1; < 1; < 2; < T; < D; < C; = owed; < Z I; = !owed quiet"},
	{"NamedExtendedBatch", "> P; > B; > D; > E; > S; < 1; < 2; < n; < C; < Z I; = releasable"},
	{"DescribeStatement", "> D; > S; < t; = owed; < T; < Z I; = releasable"},
	{"NoSync", "> P; > B; > H; < 1; < 2; = !owed open !quiet !releasable; > E; > S; < C; < Z I; = releasable"},
	{"PortalSuspended", "> B; > E; > E; > S; < 2; < s; < C; < Z I; = releasable"},
	{"EmptyStatementExecuted", "> P; > B; > E; > S; < 1; < 2; < I; < Z I; = releasable"},
	{"PipelineOfBatches", "> P; > S; > P; > S; = ready:2; < 1; < Z I; = !releasable; < 1; < Z I; = releasable"},
	{"CloseStatement", "> C; > S; < 3; < Z I; = releasable"},
	{"SyncAlone", "> S; < Z I; = releasable"},
	{"ErrorAtSync", "> P; > B; > E; > S; < 1; < 2; < C; < E; = ready:1; < Z I; = releasable"},

	{"ErrorSkipsToSync", "> P; > B; > E; > S; < E; = owed ready:1; < Z I; = releasable"},
	{"ErrorBeforeSyncIsSent", "> P; < E; = skipping !releasable; > B; > E; = !owed; > S; = !skipping owed; < Z I; = releasable"},
	{"QueriesInSkippedBatch", "> P; > Q; > F; > S; = ready:3; < E; = ready:1; < Z I; = releasable"},
	{"QueryWhileSkipping", "> P; < E; > Q; = !owed skipping; > S; < Z I; = releasable"},
	{"ErrorSkipsOnlyOneBatch", "> P; > S; > P; > S; < E; < Z I; = owed; < 1; < Z I; = releasable"},
	{"ErrorInQueryDoesNotSkip", "> Q; > P; > S; < E; < Z I; < 1; = owed; < Z I; = releasable"},

	{"BatchRunOnceMore", "> P; > B; > D; > E; > S; < 1; < 2; < E; = ready:1; inject redo; = ready:0; inject B; > D; > E; > S; < Z I swallow; " +
		"= ready:1; < 2 swallow; < T; < D; < C; < Z I; = releasable"},
	{"QueryRunOnceMore", "> Q; < E; inject redo; > Q; = ready:1; < Z I swallow; < T; < D; < C; < Z I; = releasable"},
	{"HalfABatchRunOnceMore", "> P; > D; < 1; < E; = skipping; inject redo; = !skipping open; > D; < Z I swallow; < T; > S; = ready:1; < Z I; = releasable"},
	{"NothingToRunOnceMore", "inject redo; = lost"},
	{"FunctionCall", "> F; = ready:1; < V; = owed; < Z I; = releasable"},
	{"ErrorInFunctionCall", "> F; < E; = !skipping; < Z I; = releasable"},

	{"CopyIn", "> Q; < G; = copying; > d; > d; > c; = !copying owed; < C; < Z I; = releasable"},
	{"CopyFailed", "> Q; < G; > d; > f; = !copying; < E; < Z I; = releasable"},
	{"CopyRefusedByServer", "> Q; < G; > d; < E; = !copying owed; < Z I; = releasable"},
	{"CopySentAhead", "> Q; > d; > c; < G; = !copying; < C; < Z I; = releasable"},
	{"LateCopyDone", "> Q; < G; < E; > d; > c; < Z I; = releasable"},
	{"CopyDoneAfterTheEnd", "> Q; < G; < E; < Z I; > c; = releasable !owed; > Q; < C; < Z I; = releasable"},
	{"LateCopyDoneIsNotForTheNextCopy", "> Q; < G; < E; > c; > Q; < Z I; < G; = copying; > c; < C; < Z I; = releasable"},
	{"TwoCopiesInOneQuery", "> Q; < G; > c; < C; < G; = copying; > c; = !copying; < C; < Z I; = releasable"},
	{"TwoCopiesSentAhead", "> Q; > d; > c; > d; > c; < G; = !copying; < C; < G; = !copying owed; < C; < Z I; = releasable"},
	{"CopyOut", "> Q; < H; < d; < d; < c; < C; < Z I; = releasable"},
	{"CopyInPipeline", "> Q; > Q; > d; > c; > Q; = ready:3; < C; < Z I; < G; = !copying; < C; < Z I; = owed; < C; < Z I; = releasable"},

	{"ExtendedCopySyncAfter", "> P; > B; > E; < 1; < 2; < G; = copying; > d; > c; > S; < C; < Z I; = releasable !lost"},
	{"ExtendedCopySentAhead", "> B; > E; > d; > c; > S; < 2; < G; = !copying; < C; < Z I; = releasable !lost"},
	{"ExtendedCopySyncBefore", "> B; > E; > S; = ready:1; < 2; < G; = copying ready:0; > d; > c; < C; = !releasable open; > S; < Z I; = releasable !lost"},
	{"ExtendedCopySyncInside", "> B; > E; < 2; < G; > d; > S; = ready:0; > d; > c; > S; < C; < Z I; = releasable !lost"},
	{"ExtendedCopySyncInsideSentAhead", "> B; > E; > S; > d; > c; < 2; < G; < C; = open !releasable; > S; < Z I; = releasable !lost"},
	{"ExtendedCopySyncInsideAndAfterSentAhead", "> B; > E; > S; > d; > c; > S; < 2; < G; < C; = owed; < Z I; = releasable !lost"},
	{"SimpleCopySyncAhead", "> Q; > S; < G; > c; < C; < Z I; = !open releasable"},
	{"ExtendedCopyFailed", "> B; > E; < 2; < G; > f; < E; = skipping; > S; < Z I; = releasable !lost"},
	{"ExtendedCopyFailedWithSyncInside", "> B; > E; < 2; < G; > S; > d; < E; = lost !releasable"},
	{"CopySyncInsideSimpleIsForgottenAtItsEnd", "> Q; < G; > S; > c; < C; < Z I; > Q; < E; < Z I; = !lost releasable"},
	{"QueryInsideCopy", "> Q; < G; > Q; = lost !releasable"},
	{"QueryAheadOfCopyEnd", "> Q; > Q; < G; = lost"},
	{"CopyOutOfTheBlue", "< G; = lost"},
	{"CopyBoth", "> Q; < W; = lost"},

	{"UnnamedIsRemade", "> P unnamed; = unnamed:none; > S; < 1; = unnamed:last; < Z I; = releasable"},
	{"UnnamedReplaced", "> P unnamed; > S; < 1; < Z I; > P unnamed; = unnamed:older; > S; < 1; = unnamed:last; < Z I; = releasable"},
	{"UnnamedTwiceInABatch", "> P unnamed; > P unnamed; > S; < 1; = unnamed:older; < 1; = unnamed:last; < Z I; = releasable"},
	{"UnnamedSecondSkipped", "> P unnamed; > B; > P unnamed; > S; < 1; < E; < Z I; = unnamed:older quiet !releasable; > Q; < C; < Z I; = unnamed:none releasable"},
	{"UnnamedFailsToParse", "> P unnamed; > S; < 1; < Z I; > P unnamed; > S; < E; = unnamed:none; < Z I; = releasable"},
	{"UnnamedDroppedByQuery", "> P unnamed; > S; < 1; < Z I; > Q; < C; < Z I; = unnamed:none"},
	{"UnnamedDroppedByFailedQuery", "> P unnamed; > S; < 1; < Z I; > Q; < E; < Z I; = unnamed:none"},
	{"UnnamedClosed", "> P unnamed; > S; < 1; < Z I; > C unnamed; > S; = unnamed:last; < 3; = unnamed:none; < Z I; = releasable"},
	{"UnnamedSurvivesOtherClose", "> P unnamed; > C; > S; < 1; < 3; < Z I; = unnamed:last releasable"},
	{"UnnamedParsedWhileSkippingIsNot", "> P unnamed; > S; < 1; < Z I; > P; < E; > P unnamed; > S; < Z I; = unnamed:last releasable"},

	{"InjectedParse", "inject P; > B; > E; > S; < 1 swallow; < 2; < C; < Z I; = releasable"},
	{"InjectedParseApart", "inject PS; > B; > E; > S; < 1 swallow; < Z I swallow; < 2; < C; < Z I; = releasable"},
	{"InjectedClose", "inject C; > B; > S; < 3 swallow; < E; < Z I; = releasable"},
	{"OnlyTheInjectedAreSwallowed", "> P; inject C; > C; > S; < 1; < 3 swallow; < 3; < Z I; = releasable"},
	{"InjectedParseFails", "inject P; > B; > E; > S; < E; < Z I; = releasable"},
	{"InjectedParseApartFails", "inject PS; > B; > E; > S; < E swallow; < Z I swallow; < E; < Z I; = releasable"},
	{"InjectedQuery", "inject Q; > Q; < T swallow; < D swallow; < C swallow; < Z I swallow; = owed; < C; < Z I; = releasable"},
	{"InjectedQueryFails", "inject Q; > Q; < E swallow; < Z I swallow; < C; < Z I; = releasable"},
	{"NotificationsInAnInjectedQuery", "inject Q; < T swallow; < A; < Z I swallow; = releasable"},

	{"AbandonNothing", "abandon 0; = releasable"},
	{"AbandonQueries", "> Q; > Q; abandon 2; = quiet"},
	{"AbandonAnsweredInPart", "> Q; > Q; < C; < Z I; abandon 1"},
	{"AbandonBatch", "> P; > B; abandon 0 cut; = quiet"},
	{"AbandonBatchAndSync", "> P; > S; > P; abandon 1 cut"},
	{"AbandonWhileSkipping", "> P; < E; abandon 0; = skipping; > P; > S; = !skipping owed"},
	{"AbandonKeepsLast", "> P unnamed; > S; < 1; < Z I; abandon 0; = unnamed:last releasable"},
	{"AbandonForgetsOlder", "> P unnamed; > S; < 1; < Z I; > P unnamed; abandon 0 cut; = unnamed:none"},
	{"AbandonKeepsStatus", "> Q; < C; < Z T; abandon 0; = status:T !releasable"},
	{"AbandonCopy", "> Q; < G; > d; abandon 1; = quiet !copying"},
	{"AbandonIsNotLost", "> Q; < G; > Q; = lost; abandon 1; = !lost"},
	{"Reset", "> Q; < C; < Z T; > P unnamed; < 1; reset; = releasable status:I unnamed:none"},

	{"ReadyOutOfTheBlue", "< Z I; = lost !releasable"},
	{"TwoReadies", "> Q; < Z I; < Z I; = lost"},
	{"ParseCompleteOutOfTheBlue", "< 1; = lost"},
	{"BindCompleteForParse", "> P; < 2; = lost"},
	{"CloseCompleteForBind", "> B; < 3; = lost"},
}

func TestTurnFollowsTheProtocol(t *testing.T) {
	for _, s := range stories {
		t.Run(s.name, s.run)
	}
}

func TestMoreThanMaxOwedIsRefused(t *testing.T) {
	var tt turn.Turn
	for range turn.MaxOwed {
		tt.Sent('S', false)
	}
	require.False(t, tt.Sent('Q', false))
	require.False(t, tt.Sent('P', true))
	require.False(t, tt.InjectParse(false))
	require.False(t, tt.InjectClose())
	tt.Received('Z', 'I')
	require.True(t, tt.InjectClose())
	require.False(t, tt.InjectClose())
}

func TestLongPipelinesKeepASmallQueue(t *testing.T) {
	var tt turn.Turn
	for range 100 {
		tt.Sent('S', false)
	}
	allocs := testing.AllocsPerRun(10000, func() {
		tt.Sent('S', false)
		tt.Received('Z', 'I')
	})
	require.Zero(t, allocs)
	require.Equal(t, 100, tt.Ready())
}

func TestMessagesCostNoAllocation(t *testing.T) {
	var tt turn.Turn
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		for _, typ := range []byte("PBDES") {
			tt.Sent(typ, typ == 'P')
		}
		for _, typ := range []byte("12TDDCZ") {
			tt.Received(typ, 'I')
		}
		tt.Sent('Q', false)
		for _, typ := range []byte("TDCZ") {
			tt.Received(typ, 'I')
		}
	}))
	require.True(t, tt.Releasable())
}
