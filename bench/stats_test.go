package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPercentileIsTheNearestRank(t *testing.T) {
	values := []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	require.Equal(t, 5.0, percentile(values, 0.5))
	require.Equal(t, 10.0, percentile(values, 0.99))
	require.Equal(t, 1.0, percentile(values, 0.01))
	require.Equal(t, 7.0, percentile([]float64{7}, 0.999))
}

func TestMedianOfAnEvenNumberIsTheMeanOfTheMiddleTwo(t *testing.T) {
	require.Equal(t, 2.5, median([]float64{4, 1, 3, 2}))
	require.Equal(t, 3.0, median([]float64{9, 1, 3}))
}

// twoSeries has one cell; in the second series the machine is twice as fast.
func twoSeries() *figures {
	result := func(series, run int, target string, tps float64) Result {
		return Result{series: series, Run: run, Cell: "simple-1", Target: target, Figures: map[string]float64{keyTPS: tps}}
	}
	return &figures{results: []Result{
		result(1, 0, pgbouncer, 100), result(1, 0, pgmoor, 110),
		result(1, 1, pgmoor, 90), result(1, 1, pgbouncer, 100),
		result(2, 0, pgbouncer, 200), result(2, 0, pgmoor, 260),
		result(2, 1, pgmoor, 500),
	}}
}

func TestRatiosPairOnlyWhatRanInTheSameRepetition(t *testing.T) {
	fs := twoSeries()
	require.Equal(t, []float64{1.1, 0.9, 1.3}, fs.ratios("simple-1", keyTPS, pgmoor, pgbouncer))
	require.Empty(t, fs.ratios("simple-1", keyTPS, pgmoor, direct))
	require.Empty(t, fs.ratios("simple-10", keyTPS, pgmoor, pgbouncer))
}

func TestFailedResultsTakeNoPartInRatios(t *testing.T) {
	fs := twoSeries()
	fs.results[0].Figures, fs.results[0].Error = nil, "broken"
	require.Equal(t, []float64{0.9, 1.3}, fs.ratios("simple-1", keyTPS, pgmoor, pgbouncer))
}
