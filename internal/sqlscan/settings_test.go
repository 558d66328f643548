package sqlscan

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// set is a parameter set to a literal, other one set to something else.
func set(name, value string) SettingRef { return SettingRef{Name: name, Value: value, Literal: true} }
func other(name string) SettingRef      { return SettingRef{Name: name} }
func reset(name string) SettingRef      { return SettingRef{Name: name, Reset: true} }

type settingsCase struct {
	name string
	sql  string
	want []SettingRef
}

// settingsCases are those that can be told.
var settingsCases = []settingsCase{
	// Values.
	{"word", "SET search_path = a", []SettingRef{set("search_path", "a")}},
	{"word folded", "set Search_Path to ABC", []SettingRef{set("search_path", "abc")}},
	{"keyword", "SET pgmoor.pin = ON;", []SettingRef{set("pgmoor.pin", "on")}},
	{"quoted word", `SET search_path = "A""b"`, []SettingRef{set("search_path", `A"b`)}},
	{"string", "SET x TO 'It''s'", []SettingRef{set("x", "It's")}},
	{"string of nothing", "SET x TO ''", []SettingRef{set("x", "")}},
	{"escape string", `SET x TO e'a''b'`, []SettingRef{set("x", "a'b")}},
	{"escape string with escapes", `SET x TO E'a\nb'`, []SettingRef{other("x")}},
	{"string with a backslash", `SET x TO 'a\b'`, []SettingRef{set("x", `a\b`)}},
	{"string continued", "SET x TO 'a'\n'b'", []SettingRef{other("x")}},
	{"unicode string", `SET x TO U&'ab'`, []SettingRef{set("x", "ab")}},
	{"unicode string with escapes", `SET x TO U&'\0061'`, []SettingRef{other("x")}},
	{"dollar quote", "SET x TO $q$a''b$q$ -- c", []SettingRef{set("x", "a''b")}},
	{"integer", "SET x = 120", []SettingRef{set("x", "120")}},
	{"integer spelled otherwise", "SET x = 0120", []SettingRef{other("x")}},
	{"hexadecimal", "SET x = 0x1F", []SettingRef{other("x")}},
	{"decimal", "SET x = 1.50", []SettingRef{other("x")}},
	{"negative", "SET x = -1", []SettingRef{other("x")}},
	{"list", "SET x = a, b", []SettingRef{other("x")}},
	{"long word", "SET x = " + strings.Repeat("a", 64), []SettingRef{other("x")}},
	{"default", "SET x = DEFAULT", []SettingRef{reset("x")}},
	{"quoted default", `SET x = "default"`, []SettingRef{set("x", "default")}},
	{"from current", "SET x FROM CURRENT", []SettingRef{other("x")}},

	// Names.
	{"custom", "SET App.Tenant = 'x'", []SettingRef{set("app.tenant", "x")}},
	{"quoted", `SET "app" . "Tenant" = x`, []SettingRef{set("app.tenant", "x")}},
	{"quoted with a dot", `SET "App.Tenant" = x`, []SettingRef{set("app.tenant", "x")}},
	{"quoted with a quote", `SET a."b""C" = x`, []SettingRef{set(`a.b"c`, "x")}},
	{"three parts", "SET a.b.c = x", []SettingRef{set("a.b.c", "x")}},
	{"unicode without escapes", `SET U&"a" = x`, []SettingRef{set("a", "x")}},
	{"old name", "SET sort_mem = 64", []SettingRef{set("work_mem", "64")}},
	{"session", "SET SESSION x = 1", []SettingRef{set("x", "1")}},
	{"class session", "SET session.x = 1", []SettingRef{set("session.x", "1")}},
	{"session class session", "SET SESSION session.x = 1", []SettingRef{set("session.x", "1")}},
	{"class local", "SET local.x TO 1", []SettingRef{set("local.x", "1")}},
	{"class transaction", "SET transaction . x TO 1", []SettingRef{set("transaction.x", "1")}},
	{"class time", "SET time.x TO 1", []SettingRef{set("time.x", "1")}},
	{"class role", "SET role.x TO 1", []SettingRef{set("role.x", "1")}},
	{"class characteristics", "SET SESSION characteristics.x TO 1", []SettingRef{set("characteristics.x", "1")}},

	// Special forms.
	{"time zone", "SET TIME ZONE 'UTC'", []SettingRef{set("timezone", "UTC")}},
	{"time zone word", "SET TIME ZONE utc", []SettingRef{set("timezone", "utc")}},
	{"time zone number", "SET SESSION TIME ZONE -7", []SettingRef{other("timezone")}},
	{"time zone interval", "SET TIME ZONE INTERVAL(3) '1' HOUR TO MINUTE", []SettingRef{other("timezone")}},
	{"time zone local", "SET TIME ZONE LOCAL", []SettingRef{reset("timezone")}},
	{"time zone default", "SET TIME ZONE DEFAULT", []SettingRef{reset("timezone")}},
	{"timezone as a name", "SET timezone = local", []SettingRef{set("timezone", "local")}},
	{"role local", "SET ROLE local", []SettingRef{set("role", "local")}},
	{"names", "SET NAMES 'utf8'", []SettingRef{set("client_encoding", "utf8")}},
	{"names default", "SET NAMES DEFAULT", []SettingRef{reset("client_encoding")}},
	{"names alone", "SET NAMES; SET x = 1", []SettingRef{reset("client_encoding"), set("x", "1")}},
	{"schema", "SET SCHEMA 'a'", []SettingRef{set("search_path", "a")}},
	{"role", "SET ROLE Bob", []SettingRef{set("role", "bob")}},
	{"role none", "SET ROLE NONE", []SettingRef{set("role", "none")}},
	{"role as a name", "SET role = 'bob'", []SettingRef{set("role", "bob")}},
	{"authorization", "SET SESSION AUTHORIZATION 'bob'", []SettingRef{set("session_authorization", "bob"), reset("role")}},
	{"session authorization", "SET SESSION SESSION AUTHORIZATION b", []SettingRef{set("session_authorization", "b"), reset("role")}},
	{"authorization default", "SET SESSION AUTHORIZATION DEFAULT", []SettingRef{reset("session_authorization"), reset("role")}},
	{"authorization as a name", "SET session_authorization TO b", []SettingRef{set("session_authorization", "b"), reset("role")}},
	{"characteristics", "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED", []SettingRef{other("default_transaction_isolation")}},
	{"characteristics, all", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, NOT DEFERRABLE ISOLATION LEVEL SERIALIZABLE", []SettingRef{other("default_transaction_read_only"), other("default_transaction_deferrable"), other("default_transaction_isolation")}},
	{"characteristics, write", "SET SESSION SESSION CHARACTERISTICS AS TRANSACTION READ WRITE", []SettingRef{other("default_transaction_read_only")}},
	{"xml option", "SET XML OPTION DOCUMENT", []SettingRef{set("xmloption", "document")}},

	// RESET.
	{"reset", "RESET App.X", []SettingRef{reset("app.x")}},
	{"reset quoted", `RESET "X"`, []SettingRef{reset("x")}},
	{"reset role", "RESET ROLE", []SettingRef{reset("role")}},
	{"reset time zone", "RESET TIME ZONE", []SettingRef{reset("timezone")}},
	{"reset isolation", "RESET TRANSACTION ISOLATION LEVEL", []SettingRef{reset("transaction_isolation")}},
	{"reset authorization", "RESET SESSION AUTHORIZATION", []SettingRef{reset("session_authorization"), reset("role")}},
	{"reset class session", "RESET session.x", []SettingRef{reset("session.x")}},

	// Functions.
	{"set_config", "SELECT set_config('App.Tenant', 'b', false)", []SettingRef{other("app.tenant")}},
	{"set_config quoted", `SELECT pg_catalog."set_config"('a''b', $1, $2)`, []SettingRef{other("a'b")}},
	{"set_config cast", "SELECT set_config('a'::text, 'x', false)", []SettingRef{other("a")}},
	{"set_config parameter", "SELECT set_config($12, $1, false)", []SettingRef{{Param: 12}}},
	{"set_config parameter cast", "SELECT set_config($1::varchar, $2, false)", []SettingRef{{Param: 1}}},
	{"set_config authorization", "SELECT set_config('session_authorization', 'x', false)", []SettingRef{other("session_authorization"), reset("role")}},
	{"set_config in dollars", "SELECT set_config($$a$$, 'b', false)", []SettingRef{other("a")}},
	{"set_config local", "SELECT set_config('a', 'b', true)", nil},
	{"set_config local of a column", "SELECT set_config(a, b, true) FROM t", nil},
	{"set_config not quite local", "SELECT set_config('a', 'b', true OR x)", []SettingRef{other("a")}},
	{"set_config with calls", "SELECT set_config('a', f(1, g(2), true), false), set_config('b', (SELECT 1), true)", []SettingRef{other("a")}},
	{"set_config short", "SELECT set_config('a', true)", []SettingRef{other("a")}},
	{"set_config with another function in it", "SELECT set_config('a', set_limit(0.1)::text, true)", []SettingRef{other("pg_trgm.similarity_threshold")}},
	{"set_limit", "SELECT set_limit(0.3)", []SettingRef{other("pg_trgm.similarity_threshold")}},

	// What ends with the transaction.
	{"local", "SET LOCAL x = 1", nil},
	{"local role", "SET LOCAL ROLE x", nil},
	{"local characteristics", "SET LOCAL SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", nil},
	{"transaction", "SET TRANSACTION READ ONLY", nil},
	{"session transaction", "SET SESSION TRANSACTION READ ONLY", nil},
	{"constraints", "SET CONSTRAINTS ALL DEFERRED", nil},

	// Several statements.
	{"several", "SET a = 1; SELECT ';SET b = 2'; (SELECT 1); SET c TO DEFAULT; RESET d", []SettingRef{set("a", "1"), reset("c"), reset("d")}},
	{"several functions", "SELECT set_config('a', '', false), set_config($1, '', false) FROM t; SELECT set_limit(1)", []SettingRef{other("a"), {Param: 1}, other("pg_trgm.similarity_threshold")}},
	{"in a rule", "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT set_config('a', '', false)); SET b = 1", []SettingRef{other("a"), set("b", "1")}},
	{"comments", "/* SET a = 1; */ SET /**/ b -- \n . c = /* */ d --", []SettingRef{set("b.c", "d")}},
	{"update of a set elsewhere", "UPDATE t SET a = 1; ALTER ROLE r SET b = 2; CREATE FUNCTION f() RETURNS int SET c = 1 AS ''", nil},
}

func TestSettingsTellsWhatATextSets(t *testing.T) {
	for _, c := range settingsCases {
		refs, all, ok := Settings([]byte(c.sql), true)
		require.True(t, ok, c.name)
		require.False(t, all, c.name)
		require.Equal(t, c.want, refs, "%s: %q", c.name, c.sql)
	}
}

func TestSettingsSaysWhenANameCannotBeTold(t *testing.T) {
	for _, sql := range []string{
		"SET U&\"a\\0062\" = 1", "SET app.\xc3\x89 = 1", "SET x", "SET x 1", "SET = 1", "SET x. = 1", `SET "" = 1`, "RESET",
		"SET CHARACTERISTICS", "SET local .0",
		"SELECT set_config(a, 'b', false)", "SELECT set_config('a' || 'b', 'c', false)", "SELECT set_config(E'\\x61', '', false)",
		"SELECT set_config('a' 'b', 'c', false)", "SELECT set_config('', 'c', false)", "SELECT set_config(U&'\\0061', '', false)",
		"SELECT set_config(B'1', '', false)", "SELECT set_config($1 || 'a', '', false)", "SELECT set_config($1::name, '', false)",
		"SELECT set_config('a'::char(1), '', false)", "SELECT set_config($0, '', false)", "SELECT set_config($65536, '', false)",
		"SELECT set_config($99999999999999999999, '', false)", "PREPARE p AS SELECT set_config($1, '', false)",
		"SELECT set_config", "SELECT set_config FROM t", "SELECT set_config(", "SELECT set_config('a'", "SELECT set_config('a',",
		"SELECT set_config('a', set_config('b', 'c', true), true)", "UPDATE pg_settings SET setting = 1", "SET a = 'b", "SET a = 1 /*",
		"SELECT set_config('a'\n'b', 'c', false)", `SELECT U&"x!0061" UESCAPE '!', set_config('a', 'b', false)`,
	} {
		_, _, ok := Settings([]byte(sql), true)
		require.False(t, ok, sql)
		require.False(t, knowsSettings([]byte(sql), true), sql)
	}
}

func TestSettingsKnowsWhatResetsAll(t *testing.T) {
	for sql, want := range map[string]bool{
		"RESET ALL": true, "DISCARD ALL": true, "reset all": true, "SET x = 1; DISCARD ALL": true, "SET a; RESET ALL": true,
		"DISCARD TEMP": false, "DISCARD PLANS": false, "RESET x": false, `RESET "all"`: false, "CLOSE ALL": false, "DEALLOCATE ALL": false,
	} {
		_, all, _ := Settings([]byte(sql), true)
		require.Equal(t, want, all, sql)
	}
}

func TestSettingsFollowsTheOldMeaningOfStrings(t *testing.T) {
	refs, _, ok := Settings([]byte(`SET a = 'x'; SELECT '\'; SET b = 1; --'`), false)
	require.True(t, ok)
	require.Equal(t, []SettingRef{set("a", "x")}, refs)
	refs, _, ok = Settings([]byte(`SET a = 'x\n'; SET b = E'y'`), false)
	require.True(t, ok)
	require.Equal(t, []SettingRef{other("a"), set("b", "y")}, refs)
}

func TestSettingsBoundsWhatItTells(t *testing.T) {
	refs, _, ok := Settings([]byte(strings.Repeat("RESET x;", maxSettings)), true)
	require.True(t, ok)
	require.Len(t, refs, maxSettings)
	refs, _, ok = Settings([]byte(strings.Repeat("RESET x;", 100*maxSettings)), true)
	require.False(t, ok)
	require.Len(t, refs, maxSettings)
}

func TestSettingsAgreesWithTheScanner(t *testing.T) {
	for _, c := range cases {
		checkSettings(t, c.sql, true)
	}
	for _, c := range oldCases {
		checkSettings(t, c.sql, false)
	}
	for _, c := range settingsCases {
		require.Zero(t, Classify([]byte(c.sql), true)&UnknownSetting, c.name)
		checkSettings(t, c.sql, true)
	}
}

// checkSettings checks that what the scanner says of settings and what Settings tells are one.
func checkSettings(t *testing.T, sql string, std bool) {
	e := Classify([]byte(sql), std)
	refs, all, ok := Settings([]byte(sql), std)
	require.Equal(t, ok, knowsSettings([]byte(sql), std), sql)
	for _, r := range refs {
		require.NotEqual(t, r.Name == "", r.Param == 0, sql)
		require.Equal(t, lower(r.Name), r.Name, sql)
	}
	if e&Unsure != 0 {
		require.Equal(t, e&Setting != 0, e&UnknownSetting != 0, sql)
		return
	}
	require.Equal(t, e&Setting != 0 && !ok, e&UnknownSetting != 0, sql)
	if e&UnknownSetting == 0 && e&Setting != 0 {
		require.True(t, len(refs) > 0 || all || setsForTransaction(sql, std), sql)
	}
}

// setsForTransaction reports whether SESSION or a name of a setting stands where the scanner takes it for one that is set.
func setsForTransaction(sql string, std bool) bool {
	l := lexer{text: []byte(sql), backslash: !std}
	for t := l.next(); t.kind != tokEnd; t = l.next() {
		if t.is("session") {
			return true
		}
	}
	return false
}

func FuzzSettings(f *testing.F) {
	for _, c := range cases {
		f.Add(c.sql, true)
	}
	for _, c := range settingsCases {
		f.Add(c.sql, false)
	}
	f.Fuzz(checkSettings)
}
