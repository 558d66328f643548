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
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

var update = flag.Bool("update", false, "rewrite the parts of docs that are made from the source")

func TestConfigurationTablesAreThoseOfTheSource(t *testing.T) {
	f := parse(t, "config.go")
	requirePart(t, "configuration.md", "config", structTable(t, f, "Config"))
	requirePart(t, "configuration.md", "upstream", structTable(t, f, "Upstream"))
	requirePart(t, "configuration.md", "defaults", defaultsTable(f))
	requirePart(t, "configuration.md", "parameters", parametersTable())
}

// parametersTable is a table of what Config's numbers and durations are elsewhere, their bounds, and what happens there.
func parametersTable() string {
	var b strings.Builder
	b.WriteString("| field | RDS Proxy | PgBouncer | default | range | at the edge |\n|---|---|---|---|---|---|\n")
	for _, r := range pgmoor.Parameters() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", r.Name, r.RDS, r.Bouncer, r.Default, r.Range, r.Edge)
	}
	return b.String()
}

func TestEveryNumberOfTheConfigurationHasBounds(t *testing.T) {
	known := map[string]bool{}
	for _, r := range pgmoor.Parameters() {
		require.NotEmpty(t, r.Default, r.Name)
		require.NotEmpty(t, r.Edge, r.Name)
		known[r.Name] = true
	}
	n := 0
	for prefix, typ := range map[string]reflect.Type{"": reflect.TypeFor[pgmoor.Config](), "Upstream.": reflect.TypeFor[pgmoor.Upstream]()} {
		for i := range typ.NumField() {
			switch f := typ.Field(i); f.Type {
			case reflect.TypeFor[int](), reflect.TypeFor[time.Duration]():
				require.True(t, known[prefix+f.Name], f.Name)
				n++
			case reflect.TypeFor[string](): // whose length may have one
				if known[prefix+f.Name] {
					n++
				}
			}
		}
	}
	require.Len(t, known, n)
}

func TestEffectsTableIsThatOfTheSource(t *testing.T) {
	requirePart(t, "pinning.md", "effects", effectsTable(t, parse(t, "pinning.go")))
}

func TestVerifyModesTableIsThatOfTheSource(t *testing.T) {
	requirePart(t, "pinning.md", "verify", typedTable(t, parse(t, "config.go"), "VerifyMode"))
}

func TestReadmeShowsCodeThatCompiles(t *testing.T) {
	example, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	require.Contains(t, string(example), "func Example() {\n"+goBlock(t, "README.md")+"}\n")
}

func TestExampleOfAPolicyInTheDocsCompiles(t *testing.T) {
	example, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	require.Contains(t, string(example), "func ExamplePinningPolicyFunc() {\n"+goBlock(t, "docs/pinning.md"))
}

// goBlock returns the first Go code of a document, as it stands in a function.
func goBlock(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	_, block, ok := strings.Cut(string(text), "```go\n")
	require.True(t, ok, path)
	block, _, ok = strings.Cut(block, "```")
	require.True(t, ok, path)
	return "\t" + strings.ReplaceAll(strings.TrimSuffix(block, "\n"), "\n", "\n\t") + "\n"
}

// docsBlock returns the SQL in docs/configuration.md that contains a text.
func docsBlock(t *testing.T, contains string) string {
	t.Helper()
	text, err := os.ReadFile("docs/configuration.md")
	require.NoError(t, err)
	for _, block := range strings.Split(string(text), "```sql\n")[1:] {
		if block, _, ok := strings.Cut(block, "```"); ok && strings.Contains(block, contains) {
			return block
		}
	}
	require.Fail(t, "no such block", contains)
	return ""
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

// updates says what Proxy.Update does with the fields of Config and Upstream. What it says is tested in update_test.go.
var updates = map[string]string{
	"Config.Upstream":                  "see below",
	"Config.Authenticator":             newClients,
	"Config.Secrets":                   "for clients and server connections that log in from then on",
	"Config.TLS":                       newClients,
	"Config.RequireTLS":                newClients + "; for servers as `Upstream.SSLMode`",
	"Config.MaxConnections":            "at once; beyond a smaller one, connections are closed that are idle, and others when they come back; with a Budget never to more than `New` was given",
	"Config.Budget":                    "no: that of `New` stays",
	"Config.Peers":                     "no: those of `New` stay",
	"Config.MaxOpening":                "at once",
	"Config.MaxStatements":             "when a statement is prepared next",
	"Config.RoundRobin":                "at once",
	"Config.BorrowTimeout":             "at once, also for those who wait; for clients that log in from then on",
	"Config.IdleTimeout":               "at once",
	"Config.HandshakeTimeout":          newClients,
	"Config.MaxHandshakes":             "no: an error",
	"Config.Pinning":                   "for statements from then on; pins stay",
	"Config.Verify":                    "at once",
	"Config.VerifyFunctions":           "for statements from then on, prepared ones excepted",
	"Config.UnpinInterval":             "at once",
	"Config.Logger":                    "at once",
	"Config.MaxConnectionsPercent":     "as `MaxConnections`; where the server was not asked yet, all server connections are retired, as by `Reconnect`, and it counts from the next login on",
	"Config.MaxIdleConnectionsPercent": "at once",
	"Config.MaxConnectionsPerDatabase": "as `MaxConnections`",
	"Config.MaxConnectionsPerUser":     "as `MaxConnections`",
	"Config.MinConnections":            "at once",
	"Config.MaxWaiting":                "for requests and clients that would wait from then on",
	"Config.InitQuery":                 "at once: all server connections are retired, as by `Reconnect`; RESET returns to what the session began with, which is that of the latest login to the server before it",
	"Config.MaxServerLifetime":         newServers,
	"Config.IdleClientTimeout":         "at once",
	"Config.MaxClientLifetime":         "at once",
	"Config.MaxClients":                newClients,
	"Config.ConnectionRate":            newClients,

	"Upstream.Hosts":          "at once: all server connections are retired, as by `Reconnect`",
	"Upstream.Dialer":         newServers,
	"Upstream.SSLMode":        "as `Hosts`",
	"Upstream.SSLNegotiation": newServers + "; cancel requests for those from before are sent as they were made",
	"Upstream.ChannelBinding": newServers,
	"Upstream.TLSConfig":      newServers,
	"Upstream.ConnectTimeout": newServers,
}

const (
	newClients = "for clients that log in from then on"
	newServers = "for server connections from then on"
)

// structTable is a table of the exported fields of a struct and what their comments say.
func structTable(t *testing.T, f *ast.File, name string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| field | type | | changed by `Update` |\n|---|---|---|---|\n")
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
					fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", id.Name, types.ExprString(field.Type), cell(field.Doc), updates[name+"."+id.Name])
				}
			}
		}
		return false
	})
	require.True(t, found, name)
	return b.String()
}

// docLink is a link to a name in a comment.
var docLink = regexp.MustCompile(`\[([A-Z][\w.]*)\]`)

// cell is a comment as a cell of a table.
func cell(c *ast.CommentGroup) string {
	text := docLink.ReplaceAllString(strings.Join(strings.Fields(c.Text()), " "), "$1")
	return strings.ReplaceAll(text, "|", `\|`)
}

// typedTable is a table of the constants of a type and what their comments say.
func typedTable(t *testing.T, f *ast.File, name string) string {
	t.Helper()
	var b strings.Builder
	typ := ""
	for _, spec := range constants(f) {
		switch {
		case spec.Type != nil:
			typ = types.ExprString(spec.Type)
		case len(spec.Values) > 0: // without, it repeats the type of the one before
			typ = ""
		}
		if typ == name {
			id := spec.Names[0].Name
			fmt.Fprintf(&b, "| `%s` | %s |\n", id, strings.TrimPrefix(cell(spec.Doc), id+" "))
		}
	}
	require.NotEmpty(t, b.String(), name)
	return "| mode | |\n|---|---|\n" + b.String()
}

// defaultsTable is a table of the constants that are Config's defaults and bounds.
func defaultsTable(f *ast.File) string {
	var b strings.Builder
	b.WriteString("| constant | value |\n|---|---|\n")
	for _, spec := range constants(f) {
		for i, id := range spec.Names {
			if spec.Type == nil && id.IsExported() && i < len(spec.Values) {
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

// effectsTable is a table of the effects: what they are, what becomes of them by default and by a policy, and what ends
// a pin.
func effectsTable(t *testing.T, f *ast.File) string {
	t.Helper()
	specs := constants(f)
	sets := map[string]map[string]bool{}
	for _, name := range []string{"carried", "guarded", "verifiable", "discarded", "unresettable", "mandatory"} {
		sets[name] = members(specs, name)
		require.NotEmpty(t, sets[name], name)
	}
	var b strings.Builder
	b.WriteString("| reason | constant | for | by default | a policy may share it | the pin ends | the server connection is then |\n|---|---|---|---|---|---|---|\n")
	e := pgmoor.EffectSetting
	for _, s := range specs {
		name := s.Names[0].Name
		if !strings.HasPrefix(name, "Effect") {
			continue
		}
		is := func(set string) bool { return sets[set][name] }
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s | %s | %s |\n", e, name, cell(s.Comment),
			choose(is("carried"), "carried", choose(is("guarded"), "guarded", "pinned")), choose(is("mandatory"), "no", "yes"), pinEnds(is), choose(is("unresettable"), "closed", "reset"))
		e <<= 1
	}
	require.Empty(t, e.String(), "the constants and the names of the effects differ in number")
	return b.String()
}

// pinEnds says when a pin for an effect ends, of which is tells in which sets it is.
func pinEnds(is func(set string) bool) string {
	switch {
	case is("unresettable"):
		return "disconnect"
	case is("verifiable") && is("discarded"):
		return "verified, `DISCARD ALL`"
	case is("verifiable"):
		return "verified"
	case is("discarded"):
		return "`DISCARD ALL`"
	}
	return "disconnect"
}

func choose(c bool, yes, no string) string {
	if c {
		return yes
	}
	return no
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
