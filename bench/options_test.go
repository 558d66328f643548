package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCellsAreSelectedByPatternInTheMatrixsOrder(t *testing.T) {
	cells, err := selectCells("storm-10,simple-1*,simple-10")
	require.NoError(t, err)
	var names []string
	for _, c := range cells {
		names = append(names, c.name)
	}
	require.Equal(t, []string{"simple-1", "simple-10", "simple-1000", "storm-10"}, names)
}

func TestAPatternWithoutCellsIsAnErrorThatListsThem(t *testing.T) {
	_, err := selectCells("simple-*,simple-3")
	require.ErrorContains(t, err, `no cell matches "simple-3"`)
	require.ErrorContains(t, err, "idle-10000")
	_, err = selectCells("[")
	require.Error(t, err)
}

func TestIdleCellsMeanNothingWithoutAPooler(t *testing.T) {
	require.False(t, cell{kind: idle}.appliesTo(direct))
	require.True(t, cell{kind: idle}.appliesTo(pgmoor))
	require.True(t, cell{kind: load}.appliesTo(direct))
}

func TestOptionsHaveTheDocumentedDefaults(t *testing.T) {
	o, err := parseOptions(nil)
	require.NoError(t, err)
	require.Equal(t, targetNames, o.targets)
	require.Len(t, o.cells, len(allCells()))
	require.Equal(t, 5, o.runs)
	require.Equal(t, 5*time.Second, o.window)
	require.Equal(t, "results.md", o.report())
}

func TestWrongOptionsAreRefusedBeforeAnythingStarts(t *testing.T) {
	for _, args := range [][]string{
		{"-targets", "odyssey"}, {"-runs", "0"}, {"-secs", "0"}, {"-pg", "localhost"}, {"-cells", "x"}, {"-retries", "-1"}, {"extra"},
	} {
		_, err := parseOptions(args)
		require.Error(t, err, args)
	}
}

func TestTheRecordedCommandCanBePastedIntoAShell(t *testing.T) {
	require.Equal(t, `go run . -cells 'simple-*' -runs 1`, commandLine([]string{"-cells", "simple-*", "-runs", "1"}))
	require.Equal(t, `go run . -out 'it'\''s.jsonl'`, commandLine([]string{"-out", "it's.jsonl"}))
}
