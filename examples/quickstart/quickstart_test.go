package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/examples/internal/demodb"
)

func TestTheShowEndsWithAReport(t *testing.T) {
	t.Setenv("PGMOOR_UPSTREAM", "")
	path := filepath.Join(t.TempDir(), "out")
	out, err := os.Create(path)
	require.NoError(t, err)
	defer out.Close()
	require.Zero(t, run(t.Context(), []string{"-duration", "1s", "-clients", "20", "-connections", "3", "-listen", "127.0.0.1:0"}, out))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Regexp(t, `(?s)clients +20\n.*at most by the proxy's Stats, 3 at most in pg_stat.*p50 .* p99 .*temp_object: \d+`, string(text))
}

func TestTheNumberOfConnectionsIsBoundedByTheServers(t *testing.T) {
	t.Setenv("PGMOOR_UPSTREAM", "")
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	defer out.Close()
	require.Zero(t, run(t.Context(), []string{"-duration", "1s", "-clients", "20", "-connections", "1000", "-listen", "127.0.0.1:0"}, out))
	text, err := os.ReadFile(out.Name())
	require.NoError(t, err)
	require.Regexp(t, `room for \d+ connections: using so many instead of 1000\n`, string(text))
	require.Regexp(t, `may open \d\d server connections; PostgreSQL itself allows 30\n`, string(text))
}

func TestAMissingRightIsExplained(t *testing.T) {
	db, err := demodb.Open(t.Context(), "", func(string) {})
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	c, err := db.Connect(t.Context())
	require.NoError(t, err)
	defer c.Close(t.Context())
	_, err = c.Exec(t.Context(), "revoke create on database quickstart from quickstart") // an owner may
	require.NoError(t, err)
	_, err = openBank(t.Context(), db)
	require.ErrorContains(t, err, `GRANT CREATE ON DATABASE "quickstart" TO "quickstart"`)
}

func TestMistakesInFlagsEndWithStatus2(t *testing.T) {
	for _, arg := range []string{"-clients=0", "-nonsense", "nonsense"} {
		require.Equal(t, 2, run(t.Context(), []string{arg}, os.Stdout), arg)
	}
}

func TestQuantilesAreWithinABucket(t *testing.T) {
	var h histogram
	require.Zero(t, h.quantile(0.5))
	for _, i := range rand.Perm(10000) {
		h.add(time.Duration(i+1) * time.Microsecond)
	}
	h.add(time.Hour)
	require.InEpsilon(t, 5000*time.Microsecond, h.quantile(0.5), 0.1)
	require.InEpsilon(t, 9900*time.Microsecond, h.quantile(0.99), 0.1)
	require.InEpsilon(t, 1<<30*time.Microsecond, h.quantile(1), 0.1)
}

func TestThousandsAreSeparated(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		require.Equal(t, want, thousands(n))
	}
}
