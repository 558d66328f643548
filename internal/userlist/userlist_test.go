package userlist_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/userlist"
)

func TestParseReadsWhatPgBouncerReads(t *testing.T) {
	for name, test := range map[string]struct {
		file string
		want []userlist.Entry
	}{
		"empty":                {"", nil},
		"blank and comments":   {"\n \t\r\n; \"a\" \"b\"\n  ;x\n\v\f\n", nil},
		"no last line end":     {`"u" "s"`, []userlist.Entry{{"u", "s"}}},
		"CR LF":                {"\"u\" \"s\"\r\n\"v\" \"t\"\r\n", []userlist.Entry{{"u", "s"}, {"v", "t"}}},
		"leading white space":  {"  \t\"u\" \"s\"\n", []userlist.Entry{{"u", "s"}}},
		"doubled quotes":       {`"a""b" """c"""""`, []userlist.Entry{{`a"b`, `"c""`}}},
		"empty strings":        {`"" ""`, []userlist.Entry{{"", ""}}},
		"text behind":          {"\"u\" \"s\" \"third\" unclosed\" ; x\n\"v\"\t\"t\"x\n", []userlist.Entry{{"u", "s"}, {"v", "t"}}},
		"text between":         {`"u" = "s"`, []userlist.Entry{{"u", "s"}}},
		"semicolons in quotes": {`"u;" ";s"`, []userlist.Entry{{"u;", ";s"}}},
		"backslashes":          {`"u\" "s\n"`, []userlist.Entry{{`u\`, `s\n`}}},
		"hashes": {
			`"u" "md545f2603610af569b6155c45067268c6b"` + "\n" + `"v" "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"`,
			[]userlist.Entry{{"u", "md545f2603610af569b6155c45067268c6b"}, {"v", "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"}},
		},
		"not UTF-8": {"\"\xff\" \"\xfe\"", []userlist.Entry{{"\xff", "\xfe"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := userlist.Parse(strings.NewReader(test.file))
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestParseNamesTheLineThatIsWrong(t *testing.T) {
	for line, want := range map[string]string{
		`# hidden`:            "does not begin with a double quote",
		`user hidden`:         "does not begin with a double quote",
		"\ufeff\"u\" \"s\"":   "does not begin with a double quote",
		`"hidden`:             "the user has no closing quote",
		`"hidden""`:           "the user has no closing quote",
		`"hidden"`:            "no secret behind the user",
		`"u""hidden"`:         "no secret behind the user",
		`"u" hidden`:          "no secret behind the user",
		`"u" "hidden`:         "the secret has no closing quote",
		`"u" "hidden""`:       "the secret has no closing quote",
		"\"u\" \"hid\x00en\"": "contains a NUL byte",
		`"a" "hidden"`:        "the user of line 1 again",
	} {
		entries, err := userlist.Parse(strings.NewReader("\"a\" \"b\"\n\n" + line + "\n\"c\" \"d\"\n"))
		require.EqualError(t, err, "userlist: line 3: "+want)
		require.Nil(t, entries)
	}
}

func TestALineMayBeOfMaxLineBytesAndNoMore(t *testing.T) {
	const frame = `"u" ""`
	for _, end := range []string{"", "\n", "\r\n"} {
		secret := strings.Repeat("s", userlist.MaxLine-len(frame))
		entries, err := userlist.Parse(strings.NewReader("\n\"u\" \"" + secret + `"` + end))
		require.NoError(t, err)
		require.Equal(t, []userlist.Entry{{"u", secret}}, entries)
		_, err = userlist.Parse(strings.NewReader("\n\"u\" \"" + secret + `s"` + end))
		require.EqualError(t, err, "userlist: line 2: longer than 65536 bytes")
	}
}

func TestParseReportsTheErrorOfItsReader(t *testing.T) {
	broken := errors.New("broken")
	_, err := userlist.Parse(iotest.ErrReader(broken))
	require.ErrorIs(t, err, broken)
}

func TestPrintingAnEntryLeavesTheSecretOut(t *testing.T) {
	e := userlist.Entry{User: "u", Secret: "hidden"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d"} {
		require.Equal(t, `user "u"`, fmt.Sprintf(verb, e))
		require.NotContains(t, fmt.Sprintf(verb, []*userlist.Entry{&e}), "hidden")
	}
	encoded, err := json.Marshal(e)
	require.NoError(t, err)
	require.JSONEq(t, `{"User":"u"}`, string(encoded))
}

var errorText = regexp.MustCompile(`^userlist: line [0-9]+: [a-zA-Z0-9 ]+$`)

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", `"u" "s"`, "; c\n\"a\"\"b\" \"\"\"\"\r\n", "# x", `"u`, `"u" "`, "\"u\" \"\x00\"", `""""""`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, file string) {
		entries, err := userlist.Parse(strings.NewReader(file))
		if err != nil {
			if !errorText.MatchString(err.Error()) {
				t.Fatalf("unexpected error %v", err)
			}
			return
		}
		var out strings.Builder
		for _, e := range entries {
			_, _ = fmt.Fprintf(&out, "%s %s\n", quote(e.User), quote(e.Secret))
		}
		again, err := userlist.Parse(strings.NewReader(out.String()))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(entries) {
			t.Fatalf("%q does not survive a round trip, error %v", file, err)
		}
		for i, e := range entries {
			if again[i] != e {
				t.Fatalf("entry %d of %q does not survive a round trip", i, file)
			}
		}
	})
}

func quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
