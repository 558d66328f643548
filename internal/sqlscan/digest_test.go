package sqlscan

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestDigestShowsNoLiteral(t *testing.T) {
	for _, c := range []struct{ name, sql, want string }{
		{"empty", "", ""},
		{"blank", " /* a */ -- b", ""},
		{"set", "SET search_path TO 'a','b'", "set search_path to $1,$2"},
		{"select", "SELECT  Abalance\n FROM\tt WHERE aid = 1;", "select abalance from t where aid = $1;"},
		{"comments", "/* x */ SELECT/**/1--y\n,2 -- z", "select $1 ,$2"},
		{"names", `SELECT "Name""x"."É", É`, `select "Name""x"."É", É`},
		{"numbers", "SELECT 1, 1.5, .5, 1e5, -1E-5, 0x1F, 1_000, 12abc", "select $1, $2, $3, $4, -$5, $6, $7, $8"},
		{"number and escape string", `SELECT 1E'a\'b'`, "select $1 $2"},
		{"strings", `SELECT 'a''b', E'a\'b', B'1', x'F', U&'\0061', N'x', $$a$$, $q$ $$ $q$`, "select $1, $2, $3, $4, $5, n $6, $7, $8"},
		{"adjacent", "SELECT'a'B'1'$1'b'c", "select $1 $2 $3 $4 c"},
		{"continued", "SELECT 'a'\n'b', 'c'", "select $1, $2"},
		{"parameters", "SELECT $2, 'a', $1::int", "select $1, $2, $3::int"},
		{"operators", "SELECT a->>'b' <> c||$1", "select a->>$1 <> c||$2"},
		{"unterminated string", "SELECT 'secret", "select…"},
		{"unterminated escape", `SELECT E'secret\'`, "select…"},
		{"unterminated dollar quote", "SELECT $a$secret$a", "select…"},
		{"unterminated tag", "SELECT $secret", "select…"},
		{"unterminated name", `SELECT "a FROM t WHERE x = 'secret'`, "select…"},
		{"unterminated comment", "SELECT /* 'secret'", "select…"},
		{"control bytes", "SELECT \"a\nb\" \x00\x1b", "select \"a?b\" ??"},
	} {
		require.Equal(t, c.want, string(AppendDigest(nil, []byte(c.sql), true)), c.name)
	}
	require.Equal(t, "x: select $1, $2", string(AppendDigest([]byte("x: "), []byte(`SELECT '\'secret', 'a'`), false)))
}

func TestDigestIsBounded(t *testing.T) {
	for _, c := range []struct{ name, sql, want string }{
		{"just fits", strings.Repeat("a", MaxDigest), strings.Repeat("a", MaxDigest)},
		{"fits with blanks", strings.Repeat("a", MaxDigest) + "  ", strings.Repeat("a", MaxDigest)},
		{"long word", strings.Repeat("a", MaxDigest+1), strings.Repeat("a", MaxDigest) + "…"},
		{"long name", `"` + strings.Repeat("a", MaxDigest-2) + `"`, `"` + strings.Repeat("a", MaxDigest-2) + `"`},
		{"overlong name", `"` + strings.Repeat("a", MaxDigest-1) + `"`, `"` + strings.Repeat("a", MaxDigest-1) + "…"},
		{"cut within a character", "a" + strings.Repeat("é", MaxDigest), "a" + strings.Repeat("é", MaxDigest/2-1) + "…"},
		{"no characters", strings.Repeat("\x80", MaxDigest+1), strings.Repeat("\x80", MaxDigest) + "…"},
		{"many literals", strings.Repeat("1,", MaxDigest), ""},
	} {
		got := string(AppendDigest(nil, []byte(c.sql), true))
		require.LessOrEqual(t, len(got), MaxDigest+len("…"), c.name)
		if c.want != "" {
			require.Equal(t, c.want, got, c.name)
		}
	}
}

// literals are ways to write a string; the text of none may have the byte in which it ends, nor a backslash at its end.
var literals = []struct{ open, close string }{
	{"'", "'"}, {"E'", "'"}, {"e'", "'"}, {"U&'", "'"}, {"B'", "'"}, {"x'", "'"}, {"$$", "$$"}, {"$a$", "$a$"}, {"'", "'\n'b'"},
}

// checkDigest puts a text into a literal, and changes the literals of a text: neither may show in the digest.
func checkDigest(t *testing.T, sql string, kind uint8, std bool) {
	k := literals[int(kind)%len(literals)]
	if s := strings.NewReplacer("'", "", "$", "", "\\", "").Replace(sql); s != "" {
		for end, want := range map[string]string{k.close + ",A": "select $1,a", "": "select…"} {
			require.Equal(t, want, string(AppendDigest(nil, []byte("SELECT "+k.open+s+end), std)), "%q", sql)
		}
	}
	digest := string(AppendDigest(nil, []byte(sql), std))
	require.LessOrEqual(t, len(digest), MaxDigest+len(ellipsis))
	require.Equal(t, digest, string(AppendDigest(nil, []byte(withOtherLiterals(sql, std)), std)), "%q", sql)
	if utf8.ValidString(sql) {
		require.True(t, utf8.ValidString(digest), "%q", sql)
	}
}

// withOtherLiterals replaces the literals of a text. What cannot be followed is left as it is.
func withOtherLiterals(sql string, std bool) string {
	var b strings.Builder
	l := lexer{text: []byte(sql), backslash: !std}
	for last := tokSymbol; ; {
		start := l.pos
		if !l.skipBlanks() {
			return b.String() + "/*"
		}
		blank := l.pos > start
		if start = l.pos; l.pos == len(sql) {
			return b.String() + " "
		}
		t := l.token()
		if blank || last != tokSymbol && t.kind != tokSymbol {
			b.WriteByte(' ')
		}
		switch last = t.kind; t.kind {
		case tokLost:
			return b.String() + sql[start:]
		case tokString: // of a kind that does not become one with what stands in front of it
			b.WriteString(map[class]string{classQuote: "'a'", classDollar: "$$a$$", classLetter: "E'a'"}[classes[sql[start]]])
		case tokParam:
			b.WriteString("$777")
		case tokNumber:
			b.WriteString(strings.Repeat(".", strings.Count(sql[start:start+1], ".")) + "777e7")
			end := l.pos
			if l.skipJunk(tokNumber); l.pos > end {
				b.WriteByte('x')
			}
		default:
			b.WriteString(sql[start:l.pos])
		}
	}
}

func TestDigestIsTheSameForOtherLiterals(t *testing.T) {
	for i, c := range cases {
		checkDigest(t, c.sql, uint8(i), true)
	}
	for i, c := range oldCases {
		checkDigest(t, c.sql, uint8(i), false)
	}
}

func TestDigestTakesNoMemory(t *testing.T) {
	text, dst := []byte(everything()), make([]byte, 0, 2*MaxDigest)
	require.Zero(t, testing.AllocsPerRun(100, func() { AppendDigest(dst, text, true) }))
}

func FuzzDigest(f *testing.F) {
	for i, c := range cases {
		f.Add(c.sql, uint8(i), true)
	}
	for i, c := range oldCases {
		f.Add(c.sql, uint8(i), false)
	}
	f.Fuzz(checkDigest)
}
