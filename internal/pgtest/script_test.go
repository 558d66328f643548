package pgtest_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

const testdata = "../../testdata"

func sessionScripts(t *testing.T) []*pgtest.Script {
	t.Helper()
	scripts, err := pgtest.ReadScripts(os.DirFS(testdata + "/session"))
	require.NoError(t, err)
	require.NotEmpty(t, scripts)
	return scripts
}

func allowedDifferences(t *testing.T) []pgtest.Difference {
	t.Helper()
	f, err := os.Open(testdata + "/allowed-differences.txt")
	require.NoError(t, err)
	defer f.Close()
	allow, err := pgtest.ReadDifferences(f)
	require.NoError(t, err)
	return allow
}

func TestSessionScriptsAreAnsweredAlikeEveryTime(t *testing.T) {
	eachVersion(t, func(t *testing.T, c *pgtest.Cluster) {
		pgtest.Fixture(t, c)
		comparison := pgtest.Comparison{Direct: c.Target(), Proxied: c.Target(), Allow: allowedDifferences(t), Timeout: 20 * time.Second}
		for _, s := range sessionScripts(t) {
			t.Run(s.Name, func(t *testing.T) {
				comparison.Run(t, func(yield func(*pgtest.Script) bool) { yield(s) })
			})
		}
	})
}

func parse(t *testing.T, text string) *pgtest.Script {
	t.Helper()
	s, err := pgtest.Parse(strings.NewReader(text))
	require.NoError(t, err)
	return s
}

func TestTranscriptShowsMessagesAndWaits(t *testing.T) {
	c := pgtest.Shared(t, 15)
	s := parse(t, "# a comment\nQuery \"select 1\" # another\nwait\nQuery \"listen x; notify x\"\nwait\nTerminate\nwait EOF\n")
	transcript, err := s.Run(t.Context(), c.Dial, pgtest.Options{User: "app", Database: "app"})
	require.NoError(t, err)
	text := strings.Join(transcript, "\n")
	require.Contains(t, text, "BackendKeyData (8 bytes)\n")
	require.Contains(t, text, "DataRow \"\\x00\\x01\\x00\\x00\\x00\\x011\"\nCommandComplete \"SELECT 1\\x00\"\nReadyForQuery \"I\"\n= wait\n")
	require.Contains(t, text, "NotificationResponse (pid)\"x\\x00\\x00\"\nReadyForQuery \"I\"\n= wait\nEOF\n= wait EOF")
}

func TestMistakesInScriptsAreFound(t *testing.T) {
	for text, want := range map[string]string{
		"Query":                         "a string is missing",
		"Query select":                  "not a string",
		"Query \"a\" \"b\"":             "too much",
		"Shout \"a\"":                   `"Shout" is unknown`,
		"Execute \"\" many":             "not a number",
		"Bind \"\" \"\" [\"a\"":         "] is missing",
		"Raw 5g":                        "not a byte",
		"chop 0":                        "positive",
		"interfere loudly \"x\"":        "unknown",
		"CopyData \"x\"*99999999":       "too many",
		"Sync\nDescribe statement \"\"": "line 2: S or P",
	} {
		_, err := pgtest.Parse(strings.NewReader(text))
		require.ErrorContains(t, err, want, text)
	}
}

func TestSettleFindsTheEndInEveryState(t *testing.T) {
	eachVersion(t, func(t *testing.T, c *pgtest.Cluster) {
		pgtest.Fixture(t, c)
		for _, state := range []string{
			``, `Query "begin"`, `Query "begin; select 1/0"`, `Parse "" "broken"`, `Query "copy pgtest_sink from stdin"`,
			"Parse \"\" \"copy pgtest_sink from stdin\"\nBind \"\" \"\"\nExecute \"\"", "Parse \"\" \"select 1\"\nBind \"\" \"\"",
			"Query \"begin\"\nQuery \"copy pgtest_sink from stdin; copy pgtest_sink from stdin\"\nCopyDone",
		} {
			s := parse(t, state+"\nsettle\nQuery \"select 'reached'\"\nwait\n")
			transcript, err := s.Run(t.Context(), c.Dial, pgtest.Options{User: "app", Database: "app"})
			require.NoError(t, err, state)
			require.Equal(t, "EOF", transcript[len(transcript)-1])
		}
	})
}

func TestScriptThatIsNeverAnsweredTimesOut(t *testing.T) {
	c := pgtest.Shared(t, 15)
	s := parse(t, "Parse \"\" \"select 1\"\nwait ParseComplete\n")
	transcript, err := s.Run(timeout(t, 200*time.Millisecond), c.Dial, pgtest.Options{User: "app", Database: "app"})
	require.ErrorContains(t, err, "wait ParseComplete")
	require.Equal(t, "TIMEOUT", transcript[len(transcript)-1])
}

func TestDiffHonoursAcceptedDifferences(t *testing.T) {
	allow, err := pgtest.ReadDifferences(strings.NewReader("# none\n\n^-Gone$\tleft out\n^\\+New$\tadded\n^-A \\+B$\tchanged\n"))
	require.NoError(t, err)
	require.Empty(t, pgtest.Diff(pgtest.Transcript{"Gone", "A", "Z"}, pgtest.Transcript{"B", "New", "Z"}, allow))
	require.Equal(t, " Z\n-A\n+C\n", pgtest.Diff(pgtest.Transcript{"Z", "A"}, pgtest.Transcript{"Z", "C"}, allow))
	require.Equal(t, " Z\n-A\n", pgtest.Diff(pgtest.Transcript{"Z", "A"}, pgtest.Transcript{"Z"}, allow))
	_, err = pgtest.ReadDifferences(strings.NewReader("x"))
	require.ErrorContains(t, err, "without a reason")
}
