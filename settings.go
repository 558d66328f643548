package pgmoor

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unique"
)

// This file carries the settings of sessions from one server connection to another. What a session has set is not worked
// out from its statements: those only say which settings may have changed. At the next boundary between transactions the
// values are read back from the server, which has applied rollbacks, savepoints and failed commits by then.

// settings is a set of parameters with a value other than the one that RESET returns to, as current_setting shows it. It
// is comparable and takes no memory of its own beyond the first of its content. The zero value is the empty set.
type settings struct{ text unique.Handle[string] }

// maxSettings bounds the bytes of a session's settings. A session with more keeps its server connection.
const maxSettings = 4 << 10

// newSettings returns the set of what m holds.
func newSettings(m map[string]string) settings {
	if len(m) == 0 {
		return settings{}
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b.WriteString(k)
		b.WriteByte(0)
		b.WriteString(m[k])
		b.WriteByte(0)
	}
	return settings{unique.Make(b.String())}
}

// values returns a map of the set that the caller may change.
func (s settings) values() map[string]string {
	m := make(map[string]string)
	if s == (settings{}) {
		return m
	}
	for t := s.text.Value(); t != ""; {
		var k, v string
		k, t, _ = strings.Cut(t, "\x00")
		v, t, _ = strings.Cut(t, "\x00")
		m[k] = v
	}
	return m
}

// Settings that need care when they are made on a server connection.
const (
	settingRole          = "role"
	settingAuthorization = "session_authorization"
	settingExitOnError   = "exit_on_error"
	settingEncoding      = "client_encoding"
	settingStrings       = "standard_conforming_strings"
	settingDeferrable    = "default_transaction_deferrable"
	settingPin           = "pgmoor.pin"
	settingSeed          = "seed" // is none: it seeds the generator of random numbers
)

// quotedLists are the settings whose value SET takes for one name where set_config takes it for a list of them
// (GUC_LIST_QUOTE in PostgreSQL's guc_tables.c).
var quotedLists = map[string]bool{
	"search_path": true, "temp_tablespaces": true, "session_preload_libraries": true, "local_preload_libraries": true,
	"shared_preload_libraries": true, "unix_socket_directories": true,
}

// change returns the queries that take a server connection from the settings have to the settings want. A failure ends the
// backend before it reads what comes behind, so that no client's message ever runs with another's settings. The first
// query makes that so, and the encoding that of the login: a query is parsed as a whole, in the encoding that is
// in force when it comes, before any of it is run.
func change(have, want settings) (first, then string) {
	old, now := have.values(), want.values()
	first = "SET exit_on_error = on"
	if _, ok := old[settingEncoding]; ok {
		first += ";RESET client_encoding"
		delete(old, settingEncoding)
	}
	var b strings.Builder
	b.WriteString("SET exit_on_error = on;")
	if old[settingRole] != "" || old[settingAuthorization] != "" { // the rest needs the rights of the login
		b.WriteString("RESET SESSION AUTHORIZATION;RESET ROLE;")
	}
	for _, k := range slices.Sorted(maps.Keys(old)) {
		if _, stays := now[k]; !stays && !setLast(k) {
			b.WriteString("RESET " + quoteName(k) + ";")
		}
	}
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if v, had := old[k]; !setLast(k) && (!had || v != now[k]) {
			writeSet(&b, k, now[k])
		}
	}
	for _, k := range []string{settingAuthorization, settingRole} {
		if v, ok := now[k]; ok {
			writeSet(&b, k, v)
		}
	}
	if v, ok := now[settingExitOnError]; ok {
		writeSet(&b, settingExitOnError, v)
	} else {
		b.WriteString("RESET exit_on_error")
	}
	return first, b.String()
}

// setLast reports whether a setting has a place of its own in change.
func setLast(name string) bool {
	return name == settingRole || name == settingAuthorization || name == settingExitOnError
}

func writeSet(b *strings.Builder, name, value string) {
	if quotedLists[name] {
		b.WriteString("SELECT pg_catalog.set_config(" + quote(name) + "," + quote(value) + ",false);")
		return
	}
	b.WriteString("SET " + quoteName(name) + " TO " + quote(value) + ";")
}

// quoteName returns the name of a setting as SET and RESET take it, whatever words it is made of.
func quoteName(name string) string {
	parts := strings.Split(name, ".")
	for i, p := range parts {
		parts[i] = `"` + strings.ReplaceAll(p, `"`, `""`) + `"`
	}
	return strings.Join(parts, ".")
}

// quote returns s as a literal that means the same whatever standard_conforming_strings is.
func quote(s string) string {
	q := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if !strings.Contains(s, `\`) {
		return q
	}
	return " E" + strings.ReplaceAll(q, `\`, `\\`)
}

// ofTransaction are settings that end with the transaction, however they are set, and that RESET refuses.
var ofTransaction = map[string]bool{
	"transaction_isolation": true, "transaction_read_only": true, "transaction_deferrable": true, settingSeed: true,
}

// A touch says how a setting may have been changed since its value was last known.
type touch byte

const (
	touchSet   touch = 1 << iota // to a value
	touchReset                   // to what RESET returns to: its value alone does not say whether it is set
)

// maxTouched bounds how many settings are asked for at once.
const maxTouched = 64

// touch remembers that a statement may change a setting. The caller holds mu.
func (s *Session) touch(name string, t touch) {
	if ofTransaction[name] {
		return
	}
	if len(s.dirty) >= maxTouched && s.dirty[name] == 0 || longName(name) {
		s.untell()
		return
	}
	if s.dirty == nil {
		s.dirty = make(map[string]touch)
	}
	s.dirty[name] |= t
}

// untell takes note that a setting may be made of which nobody will know the name.
func (s *Session) untell() {
	s.cand |= EffectUntrackedSetting
	s.candUntold = true
}

// foldName returns the name by which PostgreSQL knows a setting: letters of ASCII are folded, two old names are mapped.
func foldName(name []byte) string {
	b := make([]byte, len(name))
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		b[i] = c
	}
	switch string(b) {
	case "sort_mem":
		return "work_mem"
	case "vacuum_mem":
		return "maintenance_work_mem"
	}
	return string(b)
}

// longName reports whether a part of a name may have been cut off by the server (NAMEDATALEN).
func longName(name string) bool {
	for part := range strings.SplitSeq(name, ".") {
		if len(part) > 63 {
			return true
		}
	}
	return len(name) > 255
}

// touchAll carries out what RESET ALL and DISCARD ALL mean for what is set. It is called when nothing is owed.
func (s *Session) touchAll() {
	s.allReset = false
	for k, v := range s.set.values() {
		if k == settingRole && v == "none" { // RESET ALL leaves it as it is
			s.touch(k, touchSet)
			continue
		}
		s.touch(k, touchReset)
	}
	for k := range s.dirty {
		s.touch(k, touchReset)
	}
}

// shown is the expression for the value of a setting, cut where it is too long to be carried.
func shown(name string) string {
	return fmt.Sprintf("pg_catalog.left(pg_catalog.current_setting(%s,true),%d)", quote(name), maxSettings+1)
}

// readBack returns the query that asks for the values of what was touched.
func readBack(names []string, dirty map[string]touch) string {
	var b strings.Builder
	b.WriteString("SELECT ")
	listed := false
	for i, n := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(shown(n))
		listed = listed || dirty[n]&touchReset != 0
	}
	if listed { // which of them are set in this session at all
		b.WriteString(",ARRAY(SELECT name FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session')::pg_catalog.text")
	}
	return b.String()
}

// apply enters the answer to readBack into the session's settings.
func (s *Session) apply(o *own, row [][]byte) (settings, bool) {
	names := o.names
	if len(row) < len(names) {
		return settings{}, false
	}
	m := s.set.values()
	for i, n := range names {
		if v := row[i]; v == nil || o.dirty[n]&touchReset != 0 && s.isReset(n, string(v), o.dirty[n], row[len(names):]) {
			delete(m, n)
		} else {
			m[n] = string(v)
		}
	}
	return s.checked(m)
}

// checked returns the set of m, unless it cannot be carried.
func (s *Session) checked(m map[string]string) (settings, bool) {
	size := 0
	var base map[string]string
	if s.base != (settings{}) {
		base = s.base.values()
	}
	for k, v := range m {
		size += len(k) + len(v)
		if v0, ok := base[k]; ok && v == v0 { // every connection has it
			continue
		}
		if _, other := m[settingEncoding]; other && !isASCII(v) || !isASCII(k) {
			return settings{}, false // a Query is read in the encoding that was in force when it came
		}
		if uncarried(k, v) {
			return settings{}, false
		}
	}
	return newSettings(m), size <= maxSettings
}

// uncarried reports whether a setting cannot be made on just any connection, or cannot stay on one that is lent on.
func uncarried(name, value string) bool {
	switch name {
	case "temp_buffers": // fixed with the first temporary table
		return true
	case settingDeferrable: // any query would wait for a snapshot
		return value == "on"
	case "idle_session_timeout": // the connection idles when the session does not
		return value != "0"
	case "statement_timeout", "lock_timeout", "transaction_timeout": // may end the proxy's own queries
		ms, short := strings.CutSuffix(value, "ms")
		return short && len(ms) < 4
	}
	prefix, _, dotted := strings.Cut(name, ".")
	return dotted && ofExtensions[prefix]
}

// ofExtensions are the prefixes of settings that are ordinary placeholders until a library is loaded.
var ofExtensions = map[string]bool{
	"plpgsql": true, "plperl": true, "plpython": true, "pltcl": true, "auto_explain": true, "pg_trgm": true,
	"pg_stat_statements": true, "postgres_fdw": true, "pgcrypto": true,
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 })
}

// isReset reports whether a setting that was touched by a RESET has no value of the session's own. rest holds the array
// of those that have one. The login may have a role of its own (ALTER ROLE … SET role), so that a role which was, or may have
// been, SET to none is one of the session's: only where it was reset and nothing else does the value tell.
func (s *Session) isReset(name, value string, t touch, rest [][]byte) bool {
	switch {
	case name == settingRole:
		return value == "none" && t == touchReset
	case name == settingAuthorization:
		return value == s.pool.key.user && t == touchReset
	case len(rest) == 0:
		return false
	}
	set := strings.Split(strings.Trim(string(rest[0]), "{}"), ",")
	inSession := slices.ContainsFunc(set, func(n string) bool { return strings.EqualFold(strings.Trim(n, `"`), name) })
	return !inSession && !strings.Contains(name, ".") // a placeholder is not listed, and stays as an empty string
}

// row takes a DataRow's body apart; nil stands for NULL.
func row(body []byte) (fields [][]byte) {
	if len(body) < 2 {
		return nil
	}
	n := int(body[0])<<8 | int(body[1])
	body = body[2:]
	for range n {
		if len(body) < 4 {
			return nil
		}
		l := int32(uint32(body[0])<<24 | uint32(body[1])<<16 | uint32(body[2])<<8 | uint32(body[3]))
		body = body[4:]
		if l < 0 {
			fields = append(fields, nil)
			continue
		}
		if int(l) > len(body) {
			return nil
		}
		fields = append(fields, append([]byte{}, body[:l]...))
		body = body[l:]
	}
	return fields
}

// reported returns the folded name of a parameter and its value from a ParameterStatus.
func reported(msg []byte) (name, value string, ok bool) {
	n, v, ok := status(msg)
	return foldName(n), string(v), ok
}

// notSettable are reported parameters that no statement sets: they follow others, or the server's state.
var notSettable = map[string]bool{
	"is_superuser": true, "in_hot_standby": true, "server_version": true, "server_encoding": true, "integer_datetimes": true,
}
