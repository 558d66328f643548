package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestProgressLinesOfPgbenchAreParsed(t *testing.T) {
	p, ok := parseProgress("progress: 2.5 s, 8123.4 tps, lat 0.121 ms stddev 0.030, 3 failed")
	require.True(t, ok)
	require.Equal(t, progress{at: 2500 * time.Millisecond, tps: 8123.4, failed: 3}, p)
	p, ok = parseProgress("progress: 1.0 s, 10.0 tps, lat 0.121 ms stddev 0.030")
	require.True(t, ok, "pgbench before 15 counts no failures")
	require.Zero(t, p.failed)
}

func TestOtherLinesOfPgbenchAreNotProgress(t *testing.T) {
	for _, line := range []string{"", "pgbench (15.18)", "pgbench: error: connection failed", "progress: 1.0 s, NaN tps"} {
		_, ok := parseProgress(line)
		require.False(t, ok, line)
	}
}

func TestLatenciesOutsideTheWindowAreLeftOut(t *testing.T) {
	log := "0 1 100 0 1000 500000\n" + // before
		"0 2 200 0 1001 0\n" +
		"1 1 failed 0 1001 500000\n" +
		"1 2 300 0 1002 0\n" +
		"1 3 400 0 1002 1\n" // after
	got, err := parseLatencies(strings.NewReader(log), time.Unix(1001, 0), time.Unix(1002, 0))
	require.NoError(t, err)
	require.Equal(t, []float64{200, 300}, got)
}

func TestALogThatIsNotPgbenchsIsAnError(t *testing.T) {
	for _, log := range []string{"1 2 3\n", "0 1 x 0 1000 1\n"} {
		_, err := parseLatencies(strings.NewReader(log), time.Time{}, time.Now())
		require.Error(t, err, log)
	}
}

func TestTheWindowLeavesOutEverythingBeforeTheFirstLine(t *testing.T) {
	said := "pgbench (15.18)\n" +
		"progress: 1.0 s, 999.0 tps, lat 1 ms stddev 1, 0 failed\n" +
		"progress: 2.0 s, 100.0 tps, lat 1 ms stddev 1, 0 failed\n" +
		"progress: 4.0 s, 300.0 tps, lat 1 ms stddev 1, 1 failed\n" +
		"progress: 5.0 s, 999.0 tps, lat 1 ms stddev 1, 0 failed\n"
	var w loadWindow
	finished := 0
	other, err := w.follow(strings.NewReader(said), watcher{}, 3*time.Second, func() { finished++ }, func(string) {})
	require.NoError(t, err)
	require.Equal(t, "pgbench (15.18)", other)
	require.Equal(t, 1, finished)
	require.InDelta(t, 700, w.transactions, 1e-6)
	require.Equal(t, 1, w.failed)
}

func TestPgbenchThatEndsEarlyIsAnError(t *testing.T) {
	var w loadWindow
	said, err := w.follow(strings.NewReader("pgbench: error: no\n"), watcher{}, time.Second, func() {}, func(string) {})
	require.Error(t, err)
	require.Equal(t, "pgbench: error: no", said)
}
