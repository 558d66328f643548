package logins_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// table is what the drivers have done.
func table(drivers []*driver) string {
	var b strings.Builder
	b.WriteString("| |")
	for _, d := range drivers {
		b.WriteString(" " + d.name + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(drivers)) + "\n")
	for _, method := range methods {
		fmt.Fprintf(&b, "| %s |", method)
		for _, d := range drivers {
			fmt.Fprintf(&b, " %s |", cell(d.ways(method)))
		}
		b.WriteString("\n")
	}
	return b.String()
}

func cell(ways []string) string {
	if len(ways) == 0 {
		return "no"
	}
	return strings.Join(ways, ", ")
}

// requireTable compares the table with that in the documentation, or rewrites it.
func requireTable(t *testing.T, drivers []*driver) {
	const path = "../../../docs/authentication.md"
	const begin, end = "<!-- logins: begin (written by compat/logins.sh -update) -->\n\n", "\n<!-- logins: end -->\n"
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	before, rest, ok1 := strings.Cut(string(text), begin)
	got, after, ok2 := strings.Cut(rest, end)
	require.True(t, ok1 && ok2, "%s has no part logins", path)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(before+begin+table(drivers)+end+after), 0o644))
		return
	}
	require.Equal(t, table(drivers), got, "%s is not up to date: compat/logins.sh -update", path)
}
