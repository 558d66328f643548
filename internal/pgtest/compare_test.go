package pgtest_test

import (
	"slices"
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
