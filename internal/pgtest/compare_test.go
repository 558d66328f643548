package pgtest_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

func TestRandomScriptsAreAnsweredAlikeEveryTime(t *testing.T) {
	eachVersion(t, func(t *testing.T, c *pgtest.Cluster) {
		pgtest.Fixture(t, c)
		n := pgtest.Comparison{Direct: c.Target(), Proxied: c.Target()}.Run(t, pgtest.Random(1, 300, 30))
		require.Equal(t, 300, n)
	})
}

func TestGenerateDependsOnItsArgumentsOnly(t *testing.T) {
	require.Equal(t, pgtest.Generate(7, 40).String(), pgtest.Generate(7, 40).String())
	require.NotEqual(t, pgtest.Generate(7, 40).String(), pgtest.Generate(8, 40).String())
	require.Len(t, slices.Collect(pgtest.Random(1, 5, 10)), 5)
}

func TestComparisonReducesAScriptToWhatDiffers(t *testing.T) {
	c := pgtest.Shared(t, 15)
	other := c.Target()
	other.User = "other"
	allow, err := pgtest.ReadDifferences(strings.NewReader(`session_authorization.*other` + "\tanother user"))
	require.NoError(t, err)
	s := parse(t, "Query \"select 1\"\nwait\nParse \"\" \"select current_user\"\nBind \"\" \"\"\nExecute \"\"\nSync\nQuery \"select 2\"\nwait\n")
	s.Name = "the script"
	_, err = pgtest.Comparison{Direct: c.Target(), Proxied: other, Allow: allow}.Check(slices.Values([]*pgtest.Script{s}))
	require.ErrorContains(t, err, "the script:\n")
	require.ErrorContains(t, err, "\n-DataRow \"\\x00\\x01\\x00\\x00\\x00\\x03app\"\n+DataRow \"\\x00\\x01\\x00\\x00\\x00\\x05other\"\n")
	require.ErrorContains(t, err, "minimal script:\nParse \"\" \"select current_user\"\nBind \"\" \"\"\nExecute \"\"\n\nwhole")
}

func TestComparisonNoticesThatAnInterferingClientIsAnsweredWrongly(t *testing.T) {
	c := pgtest.Shared(t, 15)
	other := c.Target()
	other.User = "other"
	allow, err := pgtest.ReadDifferences(strings.NewReader(`session_authorization.*other` + "\tanother user"))
	require.NoError(t, err)
	s := parse(t, "interfere extended \"select current_user\"\n")
	_, err = pgtest.Comparison{Direct: c.Target(), Proxied: other, Allow: allow}.Check(slices.Values([]*pgtest.Script{s}))
	require.ErrorContains(t, err, "interfering with extended \"select current_user\": wrong answer")
}
