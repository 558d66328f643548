package main

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestProcStatIsReadBehindAnOddProcessName(t *testing.T) {
	st, err := parseProcStat("42 (a) b (c) S 7 42 42 0 -1 4194304 1 2 3 4 150 50 20 5 20 0 1 0 99 1 2")
	require.NoError(t, err)
	require.Equal(t, procStat{parent: 7, cpu: 2 * time.Second, reaped: 250 * time.Millisecond}, st)
}

func TestProcStatThatIsCutShortIsAnError(t *testing.T) {
	for _, line := range []string{"", "42", "42 (x) S 7", "42 (x) S p 42 42 0 -1 0 1 2 3 4 1 1 1 1"} {
		_, err := parseProcStat(line)
		require.Error(t, err, line)
	}
}

func TestMachineCPUSeparatesStealFromWork(t *testing.T) {
	m, err := parseMachineCPU("cpu  100 10 90 5000 7 3 4 25 0 0\ncpu0 1 2 3\n")
	require.NoError(t, err)
	require.Equal(t, machineCPU{busy: 2 * time.Second, steal: 250 * time.Millisecond}, m)
	_, err = parseMachineCPU("intr 1 2 3")
	require.Error(t, err)
}

func TestResidentSizeIsFoundInBothKindsOfFile(t *testing.T) {
	for _, text := range []string{
		"5581-7fff ---p 00000000 00:00 0 [rollup]\nRss:                1234 kB\nPss:  99 kB\n",
		"Name:\tx\nVmHWM:\t 9999 kB\nVmRSS:\t 1234 kB\n",
	} {
		n, err := parseRSS(text)
		require.NoError(t, err)
		require.Equal(t, 1234.0, n)
	}
	_, err := parseRSS("Name:\tx\n")
	require.Error(t, err)
}

func TestDescendantsAreFoundThroughTheirParents(t *testing.T) {
	stats := map[int]procStat{10: {parent: 1}, 11: {parent: 10}, 12: {parent: 11}, 20: {parent: 1}, 30: {parent: 31}, 31: {parent: 30}}
	require.True(t, descends(stats, 12, 10))
	require.True(t, descends(stats, 10, 10))
	require.False(t, descends(stats, 20, 10))
	require.False(t, descends(stats, 30, 10), "a loop of reused pids must end")
}

func TestOurOwnProcessHasUsedTimeAndMemory(t *testing.T) {
	cpu, err := processCPU(os.Getpid())
	require.NoError(t, err)
	require.Positive(t, cpu)
	rss, err := processRSS(os.Getpid())
	require.NoError(t, err)
	require.Positive(t, rss)
}

func TestDisturbanceIsWhatOthersTookPerSecond(t *testing.T) {
	at := time.Unix(0, 0)
	from := snapshot{at: at}
	to := snapshot{at: at.Add(2 * time.Second), machine: machineCPU{busy: 3 * time.Second, steal: time.Second}, ours: 2 * time.Second}
	var r Result
	watcher{complete: true}.disturbance(&r, from, to)
	require.InDelta(t, 0.5, r.Steal, 1e-9)
	require.InDelta(t, 0.5, r.Foreign, 1e-9)
}
