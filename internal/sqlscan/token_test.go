package sqlscan

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// rejoin takes a text apart and puts it together again with a blank between the tokens, each of which edit may change. It
// reports whether the text could be followed to its end.
func rejoin(sql string, std bool, edit func(token, string) string) (string, bool) {
	var b strings.Builder
	l := lexer{text: []byte(sql), backslash: !std}
	for l.skipBlanks() {
		if l.pos == len(sql) {
			return b.String(), true
		}
		start := l.pos
		t := l.token()
		if t.kind == tokLost {
			return "", false
		}
		b.WriteString(edit(t, sql[start:l.pos]) + " ")
	}
	return "", false
}

func unchanged(_ token, raw string) string { return raw }

// checkTokens checks that the scanner sees the tokens that the lexer sees.
func checkTokens(t *testing.T, sql string, std bool) {
	same, whole := rejoin(sql, std, unchanged)
	if !whole {
		require.NotZero(t, scan(std, sql).effects&Unsure, sql)
		return
	}
	if !strings.Contains(sql, "\x00") {
		require.Equal(t, scan(std, sql), scan(std, same), "%q: %q", sql, same)
	}
}

func TestTokensAreThoseOfTheScanner(t *testing.T) {
	for _, c := range cases {
		checkTokens(t, c.sql, true)
	}
	for _, c := range oldCases {
		checkTokens(t, c.sql, false)
	}
}

func TestTokensAreTakenApart(t *testing.T) {
	for _, c := range []struct{ name, sql, want string }{
		{"words", "SELECT a.b$1, _c", "SELECT|a|.|b$1|,|_c"},
		{"numbers", "1 2.5 .5 5. 1e5 1E-5 1.5e+3x 1e 1e- 1..2", "1|2.5|.5|5.|1e5|1E-5|1.5e+3|x|1|e|1|e|-|1..2"},
		{"parameters", "$1$2a $", "$1|$2|a|LOST"},
		{"strings", "'a''b' E'a\\'' b'1' X'f' U&'a' n'x' e 'x'", "'a''b'|E'a\\''|b'1'|X'f'|U&'a'|n|'x'|e|'x'"},
		{"bit strings", "b'1''2'", "b'1'|'2'"},
		{"continued", "'a' -- b\n 'c' 'd'", "'a' -- b\n 'c'|'d'"},
		{"dollar quotes", "$$a$b$$$x$ $$ $x$", "$$a$b$$|$x$ $$ $x$"},
		{"names", `"a""b"U&"c" u&d`, `"a""b"|U&"c"|u|&|d`},
		{"comments", "a--b\n/* /* */ */c/**/d", "a|c|d"},
		{"operators", "a::b<>-1", "a|:|:|b|<|>|-|1"},
		{"unterminated comment", "a /* /* */", "a|LOST"},
		{"unterminated string", "a E'\\", "a|LOST"},
		{"unterminated continuation", "a 'b'\n'c", "a|LOST"},
		{"unterminated name", `a "b`, "a|LOST"},
		{"unterminated dollar quote", "a $b$ $b", "a|LOST"},
		{"unterminated tag", "a $b", "a|LOST"},
	} {
		require.Equal(t, c.want, strings.Join(tokens(c.sql), "|"), c.name)
	}
}

func tokens(sql string) (list []string) {
	l := lexer{text: []byte(sql)}
	for l.skipBlanks() {
		if l.pos == len(sql) {
			return list
		}
		start := l.pos
		if t := l.token(); t.kind == tokLost {
			break
		}
		list = append(list, sql[start:l.pos])
	}
	return append(list, "LOST")
}

// noisy changes a text in what has no meaning: the case of words, and comments between tokens.
func noisy(sql string, std bool, noise []byte) (string, bool) {
	i := 0
	return rejoin(sql, std, func(t token, raw string) string {
		n := byte(0)
		if len(noise) > 0 {
			n = noise[i%len(noise)]
		}
		i++
		if t.kind == tokWord && n&1 != 0 {
			raw = swapCase(raw, n)
		}
		if n&2 != 0 {
			raw += " /* ; SET x = '/* */$$ */"
		}
		if n&4 != 0 && t.kind != tokString { // or it might continue the string
			raw += " -- ' ; \"\r"
		}
		return raw
	})
}

func swapCase(s string, n byte) string {
	b := []byte(s)
	for i, c := range b {
		if l := c | 0x20; 'a' <= l && l <= 'z' && i%int(n%3+1) == 0 {
			b[i] ^= 0x20
		}
	}
	return string(b)
}

func checkNoise(t *testing.T, sql string, std bool, noise []byte) {
	text, whole := noisy(sql, std, noise)
	if !whole || strings.Contains(sql, "\x00") {
		return
	}
	require.Equal(t, scan(std, sql), scan(std, text), "%q: %q", sql, text)
	require.Equal(t, Classify([]byte(sql), std), Classify([]byte(text), std), "%q: %q", sql, text)
	refs, all, ok := Settings([]byte(sql), std)
	refs2, all2, ok2 := Settings([]byte(text), std)
	require.Equal(t, ok, ok2, "%q: %q", sql, text)
	require.Equal(t, all, all2, "%q: %q", sql, text)
	require.Equal(t, refs, refs2, "%q: %q", sql, text)
}

func TestNoiseDoesNotChangeTheVerdict(t *testing.T) {
	for _, noise := range []string{"\x01", "\x02", "\x04", "\x07\x00\x03", "\x05\x0b\x02\x01"} {
		for _, c := range cases {
			checkNoise(t, c.sql, true, []byte(noise))
		}
		for _, c := range settingsCases {
			checkNoise(t, c.sql, true, []byte(noise))
		}
	}
}

func FuzzNoise(f *testing.F) {
	for i, c := range cases {
		f.Add(c.sql, true, []byte{byte(i), byte(i >> 2), byte(i >> 4)})
	}
	for i, c := range settingsCases {
		f.Add(c.sql, false, []byte{byte(i), byte(i >> 2), byte(i >> 4)})
	}
	f.Fuzz(func(t *testing.T, sql string, std bool, noise []byte) {
		checkTokens(t, sql, std)
		checkNoise(t, sql, std, noise)
	})
}

// badTexts are large, broken or both.
func badTexts() map[string][]byte {
	junk := make([]byte, 1<<16)
	for i := range junk {
		junk[i] = byte(i * i >> 3)
	}
	return map[string][]byte{
		"parentheses":             bytes.Repeat([]byte("("), 100000),
		"closing parentheses":     bytes.Repeat([]byte(")"), 100000),
		"nested parentheses":      []byte(strings.Repeat("(", 100000) + "SELECT 1" + strings.Repeat(")", 100000) + "; SET x = 1"),
		"nested comments":         bytes.Repeat([]byte("/*"), 100000),
		"nested calls":            []byte(strings.Repeat("SELECT set_config('a', ", 20000)),
		"large string":            []byte("SELECT '" + strings.Repeat("x", 10<<20) + "'; SET x = 1"),
		"large string, no end":    []byte("SELECT E'" + strings.Repeat("\\", 1<<20)),
		"large name":              []byte(`SELECT "` + strings.Repeat("x", 1<<20) + `"`),
		"large word":              bytes.Repeat([]byte("x"), 1<<20),
		"large number":            bytes.Repeat([]byte("1"), 1<<20),
		"large name of a setting": []byte("SET " + strings.Repeat("a.", 1<<16) + "b = 1"),
		"large dollar quote":      []byte("SELECT $a$" + strings.Repeat("$a", 1<<19) + "$a$"),
		"many statements":         bytes.Repeat([]byte("SET x = 1;"), 1<<14),
		"zero bytes":              make([]byte, 1<<17),
		"no UTF-8":                bytes.Repeat([]byte{0xc3, 0x28, 0xff, '"', 0xfe, '"'}, 20000),
		"junk":                    junk,
	}
}

func TestBadTextsAreBorne(t *testing.T) {
	c := NewCache(16, "f")
	for name, text := range badTexts() {
		for _, std := range []bool{true, false} {
			e := Classify(text, std)
			refs, _, _ := Settings(text, std)
			require.LessOrEqual(t, len(refs), maxSettings, name)
			require.LessOrEqual(t, len(AppendDigest(nil, text, std)), MaxDigest+len(ellipsis), name)
			require.Equal(t, e, c.Inspect(text, std).Effects&^(Listed|Lexical), name)
			if name == "nested comments" || name == "large string, no end" || bytes.IndexByte(text, 0) >= 0 {
				require.NotZero(t, e&Unsure, name)
			}
		}
	}
}

func TestTextsThatEndAnywhereAreBorne(t *testing.T) {
	text := everything()
	for i := 0; i < len(text)-300; i += 7 {
		part := text[i : i+300]
		checkTokens(t, part, true)
		checkSettings(t, part, false)
		checkDigest(t, part, uint8(i), true)
	}
}
