package main

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheReportShowsMediansAndPairedRatios(t *testing.T) {
	fs := twoSeries()
	fs.series = []Series{{Start: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), Command: "go run .", Machine: "a machine", Runs: 2, Seconds: 5, Versions: map[string]string{"pgbouncer": "PgBouncer 1.25.2", "pgmoor": "abc"}}}
	md := fs.render()
	require.Contains(t, md, "2026-01-02 03:04 UTC, 2 runs of 5 s: `go run .`")
	require.Contains(t, md, "a machine. PgBouncer 1.25.2, pgmoor abc.")
	require.Contains(t, md, "| cell | pgbouncer | pgmoor | pgmoor / pgbouncer |\n|---|---:|---:|---:|\n| simple-1 | 100 | 185 | **1.10** (0.90–1.30) |\n")
	require.NotContains(t, md, "p99", "metrics without figures have no table")
}

func TestTheReportNamesWhatFailedAndCountsWhatWasNoisy(t *testing.T) {
	fs := twoSeries()
	fs.results[0].Figures, fs.results[0].Error = nil, "server: too slow\nsecond line"
	fs.results[1].Noisy = true
	md := fs.render()
	require.Contains(t, md, "1 of 7 measurements stayed disturbed")
	require.Contains(t, md, "- simple-1, pgbouncer, run 1: server: too slow\n")
	require.NotContains(t, md, "second line")
}

func TestFiguresReplaceWhatStandsBetweenTheMarks(t *testing.T) {
	doc := "before\n" + beginMark + "\nold\n" + endMark + "\nafter\n"
	got, err := replaceFigures(doc, "new\n")
	require.NoError(t, err)
	require.Equal(t, "before\n"+beginMark+"\n\nnew\n\n"+endMark+"\nafter\n", got)
	again, err := replaceFigures(got, "new\n")
	require.NoError(t, err)
	require.Equal(t, got, again)
}

func TestADocumentWithoutMarksIsLeftAlone(t *testing.T) {
	for _, doc := range []string{"", beginMark, endMark + beginMark} {
		_, err := replaceFigures(doc, "new")
		require.Error(t, err)
	}
}

func TestRawFilesKeepTheirResultsApartBySeries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raw.jsonl")
	for range 2 {
		require.NoError(t, appendEntry(path, entry{Series: &Series{Machine: "m"}}))
		require.NoError(t, appendEntry(path, entry{Result: &Result{Cell: "simple-1", Target: direct, Figures: map[string]float64{keyTPS: 1}}}))
	}
	var fs figures
	require.NoError(t, fs.load(path))
	require.Len(t, fs.series, 2)
	require.Equal(t, 1, fs.results[0].series)
	require.Equal(t, 2, fs.results[1].series)
	_, err := renderFiles(filepath.Join(t.TempDir(), "absent"))
	require.Error(t, err)
}
