package pgmoor_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

var update = flag.Bool("update", false, "rewrite the parts of docs that are made from the source")

func TestConfigurationTablesAreThoseOfTheSource(t *testing.T) {
	f := parse(t, "config.go")
	requirePart(t, "configuration.md", "config", structTable(t, f, "Config"))
	requirePart(t, "configuration.md", "upstream", structTable(t, f, "Upstream"))
	requirePart(t, "configuration.md", "defaults", defaultsTable(f))
}

func TestEffectsTableIsThatOfTheSource(t *testing.T) {
	requirePart(t, "pinning.md", "effects", effectsTable(t, parse(t, "pinning.go")))
}

func TestReadmeShowsCodeThatCompiles(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	example, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	_, block, ok := strings.Cut(string(readme), "```go\n")
	require.True(t, ok)
	block, _, ok = strings.Cut(block, "```")
	require.True(t, ok)
	body := "func Example() {\n\t" + strings.ReplaceAll(strings.TrimSuffix(block, "\n"), "\n", "\n\t") + "\n}\n"
	require.Contains(t, string(example), body)
}

func TestReadmeNamesTheGoVersionOfTheModule(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	mod, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(mod)
	require.NotNil(t, version)
	require.Contains(t, string(readme), "It needs Go "+string(version[1])+" or later.")
}

func parse(t *testing.T, path string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
	require.NoError(t, err)
	return f
}

// requirePart compares what a document says between its two markers, or rewrites it.
func requirePart(t *testing.T, name, part, want string) {
	t.Helper()
	path := filepath.Join("docs", name)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	begin := fmt.Sprintf("<!-- %s: begin (written by go test -run Table -update .) -->\n\n", part)
	end := fmt.Sprintf("\n<!-- %s: end -->\n", part)
	before, rest, ok1 := strings.Cut(string(text), begin)
	got, after, ok2 := strings.Cut(rest, end)
	require.True(t, ok1 && ok2, "%s has no part %q", path, part)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(before+begin+want+end+after), 0o644))
		return
	}
	require.Equal(t, want, got, "%s is not up to date: go test -run Table -update .", path)
}

// structTable is a table of the exported fields of a struct and what their comments say.
func structTable(t *testing.T, f *ast.File, name string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| field | type | |\n|---|---|---|\n")
	found := false
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != name {
			return true
		}
		found = true
		for _, field := range spec.Type.(*ast.StructType).Fields.List {
			for _, id := range field.Names {
				if id.IsExported() {
					fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", id.Name, types.ExprString(field.Type), cell(field.Doc))
				}
			}
		}
		return false
	})
	require.True(t, found, name)
	return b.String()
}

// cell is a comment as a cell of a table.
func cell(c *ast.CommentGroup) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(c.Text()), " "), "|", `\|`)
}

// defaultsTable is a table of the constants that are Config's defaults and bounds.
func defaultsTable(f *ast.File) string {
	var b strings.Builder
	b.WriteString("| constant | value |\n|---|---|\n")
	for _, spec := range constants(f) {
		for i, id := range spec.Names {
			if id.IsExported() && i < len(spec.Values) {
				fmt.Fprintf(&b, "| `%s` | `%s` |\n", id.Name, types.ExprString(spec.Values[i]))
			}
		}
	}
	return b.String()
}

func constants(f *ast.File) (specs []*ast.ValueSpec) {
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			specs = append(specs, s.(*ast.ValueSpec))
		}
	}
	return specs
}

// effectsTable is a table of the effects that pin: what they are, whether a policy has a say, and what becomes of the
// server connection.
func effectsTable(t *testing.T, f *ast.File) string {
	t.Helper()
	specs := constants(f)
	mandatory, unresettable := members(specs, "mandatory"), members(specs, "unresettable")
	require.NotEmpty(t, mandatory)
	require.NotEmpty(t, unresettable)
	var b strings.Builder
	b.WriteString("| reason | constant | what pins | a policy may share it | the server connection afterwards |\n|---|---|---|---|---|\n")
	e := pgmoor.EffectSetting
	for _, s := range specs {
		name := s.Names[0].Name
		if !strings.HasPrefix(name, "Effect") {
			continue
		}
		may, then := "yes", "reset"
		if mandatory[name] {
			may = "no"
		}
		if unresettable[name] {
			then = "closed"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", e, name, cell(s.Comment), may, then)
		e <<= 1
	}
	require.Empty(t, e.String(), "the constants and the names of the effects differ in number")
	return b.String()
}

// members returns the names that the constant's value is made of.
func members(specs []*ast.ValueSpec, name string) map[string]bool {
	m := map[string]bool{}
	for _, s := range specs {
		if s.Names[0].Name != name {
			continue
		}
		ast.Inspect(s.Values[0], func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				m[id.Name] = true
			}
			return true
		})
	}
	return m
}
