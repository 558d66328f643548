package oracle

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	pgquery "github.com/pganalyze/pg_query_go/v6"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
)

// A tally counts what came of many texts.
type tally struct {
	texts, rejected, unsure, bad int
	over                         map[string]int // reports of what is not there
	samples                      map[string][]string
}

const (
	maxSamples = 5  // over-reports shown for each effect
	maxBad     = 20 // texts shown that are judged wrongly
)

func newTally() *tally {
	return &tally{over: map[string]int{}, samples: map[string][]string{}}
}

// check compares what the two say of a text.
func (c *tally) check(t *testing.T, sql string) {
	t.Helper()
	c.texts++
	want, accepted := find(sql)
	if !accepted || strings.Contains(sql, "\x00") {
		c.rejected++
		return
	}
	got := sqlscan.Classify([]byte(sql), true)
	if got&sqlscan.Unsure != 0 { // which is a report of everything
		c.unsure++
		return
	}
	for _, complaint := range slices.Concat(scanned(sql, got, want), told(sql, got, want)) {
		if c.bad++; c.bad <= maxBad {
			t.Errorf("%s\n\t%q", complaint, sql)
		}
	}
	if over := got &^ want.effects &^ sqlscan.UnknownSetting; over != 0 {
		for e := range strings.SplitSeq(over.String(), "|") {
			c.overReport(sql, e)
		}
	}
	for _, r := range toldTooMany(sql, want) {
		c.overReport(sql, "name of "+strconv.Quote(r.Name))
	}
}

func (c *tally) overReport(sql, what string) {
	if c.over[what]++; len(c.samples[what]) < maxSamples {
		c.samples[what] = append(c.samples[what], sql[:min(len(sql), 200)])
	}
}

func (c *tally) log(t *testing.T) {
	t.Logf("%d texts, %d not accepted, %d unsure, %d wrong", c.texts, c.rejected, c.unsure, c.bad)
	for _, what := range slices.Sorted(maps.Keys(c.over)) {
		t.Logf("%d over-reports of %s, as in %q", c.over[what], what, c.samples[what])
	}
}

// scanned compares effects, verb and number of statements.
func scanned(sql string, got sqlscan.Effect, want *finding) (complaints []string) {
	if missed := want.effects &^ got; missed != 0 {
		complaints = append(complaints, fmt.Sprint("not reported: ", missed))
	}
	var s sqlscan.Scanner
	s.Reset(true)
	s.Feed([]byte(sql))
	s.Finish()
	if s.Statements() != want.count {
		complaints = append(complaints, fmt.Sprintf("%d statements, not %d", s.Statements(), want.count))
	}
	if s.Verb() != want.verb {
		complaints = append(complaints, fmt.Sprintf("verb %d, not %d", s.Verb(), want.verb))
	}
	return complaints
}

// told compares what is told of settings.
func told(sql string, got sqlscan.Effect, want *finding) (complaints []string) {
	refs, all, ok := sqlscan.Settings([]byte(sql), true)
	switch {
	case all != want.all && !want.bodies:
		complaints = append(complaints, fmt.Sprint("resets all: ", all))
	case got&sqlscan.UnknownSetting != 0:
		return complaints
	case got&sqlscan.Setting != 0 && !ok:
		return append(complaints, "names not told")
	case want.unknown:
		return append(complaints, fmt.Sprint("told too much: ", refs))
	case !ok:
		return complaints
	}
	for _, r := range unmatched(want.settings, refs) {
		complaints = append(complaints, fmt.Sprintf("not told: %+v", r))
	}
	if lowered := strings.ToLower(sql); !strings.Contains(lowered, "set_config") && !strings.Contains(lowered, "set_limit") {
		for _, r := range toldTooMany(sql, want) {
			complaints = append(complaints, fmt.Sprintf("told, but not there: %+v", r))
		}
	}
	return complaints
}

// toldTooMany returns the settings told that are not there. For functions, which may not be the ones meant, that is allowed.
func toldTooMany(sql string, want *finding) []sqlscan.SettingRef {
	refs, _, ok := sqlscan.Settings([]byte(sql), true)
	if !ok || want.bodies {
		return nil
	}
	return unmatched(refs, slices.Concat(want.settings, want.scoped))
}

// unmatched returns those of list that are not in other, as often as they are in list. A value counts only if both have it.
func unmatched(list, other []sqlscan.SettingRef) (rest []sqlscan.SettingRef) {
	other = slices.Clone(other)
	for _, r := range list {
		i := slices.IndexFunc(other, func(o sqlscan.SettingRef) bool {
			same := o.Name == r.Name && o.Param == r.Param && o.Reset == r.Reset
			return same && (!o.Literal || !r.Literal || o.Value == r.Value)
		})
		if i < 0 {
			rest = append(rest, r)
			continue
		}
		other = slices.Delete(other, i, i+1)
	}
	return rest
}

// packageCases returns the texts of the tests of sqlscan: the second of two or more strings or values in braces.
func packageCases(t *testing.T) (texts []string) {
	files, err := filepath.Glob("../*_test.go")
	require.NoError(t, err)
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if s, err := strconv.Unquote(lit.Value); err == nil {
					texts = append(texts, s)
				}
			}
			return true
		})
	}
	return texts
}

func TestThePackagesOwnCases(t *testing.T) {
	c := newTally()
	texts := packageCases(t)
	require.Greater(t, len(texts), 500)
	for _, sql := range texts {
		c.check(t, sql)
	}
	c.log(t)
}

func envInt(t *testing.T, name string, otherwise uint64) uint64 {
	v, err := strconv.ParseUint(cmp.Or(os.Getenv(name), strconv.FormatUint(otherwise, 10)), 10, 64)
	require.NoError(t, err, name)
	return v
}

func TestGeneratedTexts(t *testing.T) {
	seed := envInt(t, "ORACLE_SEED", uint64(os.Getpid()))
	t.Logf("ORACLE_SEED=%d", seed)
	g, c := newGenerator(seed), newTally()
	for range envInt(t, "ORACLE_TEXTS", 30000) {
		c.check(t, g.text())
	}
	c.log(t)
	require.Less(t, c.rejected, c.texts*3/4, "the generator makes too few texts that are accepted")
}

// TestFiles checks each file, each statement in it and runs of three of them.
func TestFiles(t *testing.T) {
	dir := os.Getenv("ORACLE_SQL")
	if dir == "" {
		t.Skip("ORACLE_SQL is not set")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.sql"))
	require.NoError(t, err)
	c := newTally()
	for _, name := range files {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		c.check(t, string(text))
		stmts, err := pgquery.SplitWithScanner(string(text), true)
		if err != nil {
			continue
		}
		for i := range stmts {
			c.check(t, stmts[i])
			c.check(t, strings.Join(stmts[i:min(i+3, len(stmts))], ";"))
		}
	}
	c.log(t)
}
