package pgtest

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

// fixture makes the tables that generated scripts use. Nobody reads pgtest_sink, so scripts may add rows to it at will.
const fixture = `begin;
select pg_advisory_xact_lock(4711);
set local client_min_messages = warning;
create table if not exists pgtest_rows as select i as id, repeat(chr(97 + i % 26), 40) as body from generate_series(1, 200) i;
create table if not exists pgtest_sink (id int, body text);
grant all on pgtest_rows, pgtest_sink to public;
commit`

// Fixture prepares the database app of a cluster for scripts: those that Generate makes and those under
// testdata/session.
func Fixture(t testing.TB, c *Cluster) {
	t.Helper()
	c.Exec(t, fixture)
}

// Random gives count generated scripts of about n messages each, from seed on.
func Random(seed uint64, count, n int) iter.Seq[*Script] { return random(Generate, seed, count, n) }

// RandomListening is Random with GenerateListening.
func RandomListening(seed uint64, count, n int) iter.Seq[*Script] {
	return random(GenerateListening, seed, count, n)
}

func random(generate func(seed uint64, n int) *Script, seed uint64, count, n int) iter.Seq[*Script] {
	return func(yield func(*Script) bool) {
		for i := range uint64(count) {
			if !yield(generate(seed+i, n)) {
				return
			}
		}
	}
}

// Generate makes a script of about n messages, valid ones and invalid ones, that depends on nothing but its arguments
// and has the same answers whenever it is run against a database that Fixture has prepared.
func Generate(seed uint64, n int) *Script {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0))}
	return g.script(seed, n)
}

// GenerateListening is Generate for a session that listens to channels of its own from the beginning on, and notifies them.
func GenerateListening(seed uint64, n int) *Script {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 1)), channel: fmt.Sprintf("pgtest_%d", seed)}
	g.emit("Query %q", "listen "+g.channel)
	g.control("wait")
	return g.script(seed, n)
}

func (g *generator) script(seed uint64, n int) *Script {
	g.naming = g.chance(50)
	if g.shapes = g.naming && g.chance(70); g.shapes {
		g.named, n = map[string]string{}, 4*n // it takes a while until something was prepared, has changed and is used again
	}
	for g.messages < n {
		g.batch()
	}
	g.finish()
	s, err := parseLines(g.lines)
	if err != nil {
		panic(fmt.Sprintf("pgtest: seed %d: %v", seed, err)) // the generator's own fault
	}
	s.Name = fmt.Sprintf("seed %d", seed)
	return s
}

// A generator writes the lines of a script.
type generator struct {
	*rand.Rand
	lines    []string
	messages int
	naming   bool              // most statements have names
	channel  string            // to which the session listens; empty: to none
	shapes   bool              // a table changes
	named    map[string]string // statements about the table by the names that they are likely to have
	bound    bool              // a Bind of the unnamed portal came after the last Sync
}

func (g *generator) emit(format string, v ...any) {
	line := fmt.Sprintf(format, v...)
	g.lines = append(g.lines, line)
	g.messages++
	switch {
	case strings.HasPrefix(line, `Bind ""`):
		g.bound = true
	case line == "Sync":
		g.bound = false
	}
}

// control adds a line that is no message.
func (g *generator) control(format string, v ...any) {
	g.lines = append(g.lines, fmt.Sprintf(format, v...))
}

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

// pick returns one of the choices.
func pick[T any](g *generator, choices []T) T { return choices[g.IntN(len(choices))] }

// batch adds messages that are written together, and a wait.
func (g *generator) batch() {
	safe := true
	if g.chance(3) {
		g.control("chop %d", 1+g.IntN(7))
	}
	switch k := g.IntN(100); {
	case g.shapes && k < 75:
		g.shapeBatch()
	case g.shapes && k < 80:
		g.shapeBySQL()
	case k < 30:
		for range 1 + g.IntN(3) {
			g.emit("Query %q", g.sql())
		}
	case k < 65:
		g.extended()
		g.emit("Sync")
	case k < 70:
		g.functionCall()
	case k < 80:
		safe = false
		g.copyBatch()
	default:
		safe = false
		g.chaos()
	}
	g.pause(safe)
}

func (g *generator) pause(safe bool) {
	if g.chance(15) {
		g.interfere()
	}
	if safe {
		g.control("wait")
	} else {
		g.control("settle")
	}
	if g.chance(25) {
		g.interfere()
	}
	if g.shapes && g.chance(60) {
		g.change()
	}
}

var interferences = []string{
	`simple "select 'other'"`,
	`simple "begin; select 1; commit"`,
	`simple "select 1/0"`,
	`simple "begin; set local work_mem = '7MB'; select current_setting('work_mem'); rollback"`,
	`extended "select 'other' as a, 2 as b"`,
	`extended "select body from pgtest_rows order by id limit 3"`,
	`extended "broken"`,
	`visit "set work_mem = '9MB'; set application_name = 'visitor'; create temp table pgtest_temp (z text)"`,
	`visit "set search_path = nowhere; begin; select 1/0"`,
	`visit "prepare s1 as select 'visitor'; prepare s2 as select 'visitor'"`,
	`visit "deallocate all"`,
	`simple "prepare s1 as select 'other'; execute s1; deallocate s1"`,
	`visit "prepare q as select 'visitor'; declare c cursor with hold for select 'visitor'"`,
}

func (g *generator) interfere() { g.control("interfere %s", pick(g, interferences)) }

// statements are run in the simple and in the extended protocol; those with parameters fail in the former.
var statements = []string{
	"select 1", "select 'a' as x, null as y, 2.5 as z", "select current_user, current_setting('work_mem')",
	"select 1/0", "selec 1", "select * from pgtest_nowhere", "select 'x'::int", "", "  ", ";", "-- nothing",
	"select id, body from pgtest_rows where id <= 20 order by id", "select repeat('y', 50000)",
	"select i, repeat('z', 200) from generate_series(1, 100) i", "values (1, 'a'), (2, 'b')",
	"select $1::int + 1", "select $1::text, $2::text", "select 10 / $1::int", "select repeat($1::text, 500)",
	"select id from pgtest_rows where id <= $1::int order by id", "insert into pgtest_sink values ($1::int, $2::text)",
	"select length($1)", "select id from pgtest_rows where body = $1 order by id limit 5",
	"insert into pgtest_sink values (1, 'a'), (2, 'b')", "insert into pgtest_sink values (3, 'c') returning id, body",
	"begin", "begin", "begin isolation level serializable", "start transaction read only", "commit", "commit", "end",
	"rollback", "rollback", "abort", "savepoint a", "savepoint b", "rollback to a", "release a", "rollback to b",
	"commit and chain", "rollback and chain", "set transaction isolation level repeatable read",
	"set local work_mem = '5MB'", "show work_mem", "set local statement_timeout = '1h'",
	"declare c cursor for select id from pgtest_rows order by id", "fetch 3 from c", "move 2 in c", "close c",
	"do $$begin raise notice 'from do'; end$$", "do $$begin raise exception 'from do'; end$$",
	"notify pgtest_channel, 'payload'", "lock table pgtest_rows in access share mode",
	"drop table if exists pgtest_nowhere", "explain (costs off) select 1",
	"select pg_advisory_xact_lock_shared(99)", "prepare transaction 'pgtest_never' extra",
}

// pinning are statements after which a pooler has to keep the server connection, or to carry state. No column of a
// temporary table is returned as such: its description would have the table's OID.
var pinning = []string{
	"set work_mem = '6MB'", "set application_name = 'generated'", "reset work_mem", "set datestyle = 'german, dmy'",
	"create temp table pgtest_temp (a int, b text)", "insert into pgtest_temp values (1, 'one')",
	"select a + 0 as a, b || '' as b from pgtest_temp order by 1, 2", "drop table pgtest_temp", "prepare q as select 42",
	"execute q", "deallocate q", "deallocate all", "discard all", "reset all", "discard temp",
	"declare h cursor with hold for select id from pgtest_rows order by id", "fetch 2 from h", "close h", "close all",
	"select set_config('work_mem', '8MB', false)", "set session characteristics as transaction read only",
	"select pg_advisory_lock_shared(98)", "select pg_advisory_unlock_shared(98)", "select pg_advisory_unlock_all()",
	"create temp table pgtest_temp on commit drop as select 1 as a, 'x' as b", "unlisten *",
}

// preparing are statements about prepared statements, by the names that the extended protocol uses, too.
var preparing = []string{
	"prepare s1 as select 1", "prepare s1 (int) as select $1 + 1", "prepare s2 as select 'a' as x, null as y, 2.5 as z", "prepare q (text, text) as select $1, $2",
	"prepare s3 as select * from pgtest_nowhere", "execute s1", "execute s1 (5)", "execute s2", "execute q", "execute q ('a', 'b')", "execute s3",
	"deallocate s1", "deallocate prepare s2", "deallocate q", "deallocate all", "discard all", "discard plans",
	"explain (costs off) execute s1", "explain (costs off) execute s2", "create temp table pgtest_made on commit drop as execute s1",
	"select name, from_sql, parameter_types from pg_prepared_statements order by name",
}

// aboutChannels are statements of sessions that listen; $ stands for the channel's name.
var aboutChannels = []string{
	"listen $", "listen $", "listen $_b", "unlisten $", "unlisten $_b", "unlisten *", "notify $, 'one'", "notify $, 'two'", "notify $_b",
	"select pg_notify('$', 'three')", "select count(pg_notify('$', i::text)) from generate_series(1, 3) i",
	"do $$$$begin perform pg_notify('$_b', 'four'); end$$$$",
}

// changing is the table whose columns scripts change. Each run of a script has it under another name, as reset makes it.
const changing = "pgtest_shape"

// changes change the columns of the table, or leave none.
var changes = []string{
	"alter table pgtest_shape add column if not exists more int", "alter table pgtest_shape add column if not exists more int",
	"alter table pgtest_shape drop column if exists more", "alter table pgtest_shape drop column if exists more",
	"alter table pgtest_shape alter column id type bigint", "alter table pgtest_shape alter column id type int",
	"alter table pgtest_shape alter column body type varchar(9)", "alter table pgtest_shape alter column body type text",
	"alter table pgtest_shape rename column body to other", "alter table pgtest_shape rename column other to body",
	"drop table if exists pgtest_shape", "create table if not exists pgtest_shape (id int, body text)",
	"create table if not exists pgtest_shape (id int)", "drop table if exists pgtest_shape; create table pgtest_shape (id int, body text)",
}

// shaped are statements that mean something else when the table has changed.
var shaped = []string{
	"select * from pgtest_shape", "select * from pgtest_shape", "select * from pgtest_shape", "select * from pgtest_shape where id = $1",
	"select id, body from pgtest_shape", "select more from pgtest_shape", "insert into pgtest_shape (id) values ($1) returning *",
	"insert into pgtest_shape (id) values (2)", "select body from pgtest_shape where body = $1", "update pgtest_shape set id = id + 1 returning *",
}

// rows is the limit of an Execute. What a suspended portal has written is seen by what comes behind it only if a Parse is between
// (docs/pinning.md), which the proxy may have to send.
func rows(sql string, limit int) int {
	if strings.Contains(sql, "returning") {
		return 0
	}
	return limit
}

// oneChange is a single one of the changes.
func (g *generator) oneChange() string {
	s, _, _ := strings.Cut(pick(g, changes), ";")
	return s
}

// shape adds a use of the table. What a session was never told the columns of, and what EXECUTE uses, may show others than directly
// (docs/pinning.md), so every statement is described with its Parse, under names that no EXECUTE has, and the one without a name does not
// outlive its batch. A portal with a name is nobody else's: to PostgreSQL it is there where its Bind has failed, in a block that has. Parameters fit: the proxy may refuse a statement that has changed before the server looks at them.
func (g *generator) shape() {
	name, sql := pick(g, []string{"", "t1", "t1", "t1", "t2", "t2", "t3"}), pick(g, shaped)
	if g.chance(20) {
		sql = g.oneChange()
	}
	portal := pick(g, []string{"", "", "", "", "p2"})
	if name == "" || g.named[name] == "" || g.chance(10) {
		g.emit("Parse %q %q", name, sql)
		g.emit("Describe S %q", name)
		if g.named[name] == "" {
			g.named[name] = sql
		}
		if g.chance(30) {
			g.emit("Sync")
			if name == "" {
				g.emit("Close S %q", name)
			}
			return
		}
	}
	if g.chance(90) {
		g.emit("Bind %q %q %s%s", portal, name, g.fitting(name, sql), pick(g, []string{"", "", "", " [] [0]"}))
		if g.chance(60) {
			g.emit("Describe P %q", g.usable(portal))
		}
		if name != "" {
			sql = g.named[name] // which may be an older one
		}
		g.emit("Execute %q %d", g.usable(portal), rows(sql, pick(g, []int{0, 0, 0, 1})))
	}
	switch {
	case name == "": // behind a Sync, so that no error has it ignored
		g.emit("Sync")
		g.emit("Close S %q", name)
	case g.chance(15):
		g.emit("Close S %q", name)
		delete(g.named, name)
	}
}

// fitting are the parameters of a statement about the table.
func (g *generator) fitting(name, sql string) string {
	if name != "" {
		sql = g.named[name]
	}
	if strings.Contains(sql, "$1") {
		return `["5"]`
	}
	return "[]"
}

// shapeBatch adds uses of the table and changes of it.
func (g *generator) shapeBatch() {
	for range 1 + g.IntN(3) {
		switch k := g.IntN(100); {
		case k < 72:
			g.shape()
		case k < 80:
			g.emit("Sync")
			g.emit("Query %q", pick(g, changes))
		case k < 87:
			g.emit("Sync")
			g.emit("Query %q", pick(g, []string{"begin", "commit", "rollback", "rollback", "savepoint a", "rollback to a"}))
		case k < 90:
			g.emit("Describe S %q", pick(g, []string{"t1", "t2", "t3"}))
		case k < 97:
			g.emit("Sync")
		default:
			g.emit("Flush")
		}
	}
	g.emit("Sync")
}

// shapeBySQL adds a transaction that prepares a statement about the table by SQL and drops it at its end: in a later one EXECUTE may
// show the new columns, because nobody was told the old ones (docs/pinning.md).
func (g *generator) shapeBySQL() {
	g.emit("Query %q", "begin")
	g.emit("Query %q", "prepare shaped as select * from pgtest_shape")
	for range 1 + g.IntN(4) {
		g.emit("Query %q", pick(g, []string{
			"execute shaped", "execute shaped", "savepoint a", "rollback to a", "explain (costs off) execute shaped",
			"create temp table pgtest_made on commit drop as execute shaped", g.oneChange(), "select * from pgtest_shape",
		}))
		if g.chance(20) {
			g.control("wait")
			g.change()
		}
	}
	g.emit("Query %q", pick(g, []string{"commit", "rollback"}))
	g.emit("Query %q", "deallocate shaped")
}

// change has another client change the table, directly.
func (g *generator) change() { g.control("change %q", pick(g, changes)) }

func (g *generator) sql() string {
	s := g.statement()
	for g.chance(20) {
		s += "; " + g.statement()
	}
	return s
}

func (g *generator) statement() string {
	switch {
	case g.channel != "" && g.chance(25):
		return g.aboutChannel()
	case g.chance(8):
		return pick(g, pinning)
	case g.naming && g.chance(15):
		if g.shapes { // not the last, the view: a statement that cannot be prepared any more is not carried to where it is looked at
			return pick(g, preparing[:len(preparing)-1])
		}
		return pick(g, preparing)
	}
	return pick(g, statements)
}

func (g *generator) aboutChannel() string {
	return strings.NewReplacer("$$", "$", "$", g.channel).Replace(pick(g, aboutChannels))
}

func (g *generator) statementName() string {
	if g.naming {
		return pick(g, []string{"", "s1", "s1", "s2", "s3", "q"})
	}
	return pick(g, []string{"", "", "", "", "", "", "", "", "", "", "", "s1", "s2"})
}

// usable keeps a script from the unnamed portal that a simple query has left in a failed transaction: PostgreSQL 18.4
// has been seen to crash where one might have been executed. A Bind that came after the last Sync has replaced it, or has failed, in
// which case everything up to the next Sync is skipped.
func (g *generator) usable(portal string) string {
	if portal == "" && !g.bound {
		return "unknown"
	}
	return portal
}

func (g *generator) portalName() string { return pick(g, []string{"", "", "", "", "p1"}) }

// extended adds messages of the extended protocol, most of them in the usual order.
func (g *generator) extended() {
	for range 1 + g.IntN(4) {
		if g.chance(75) {
			g.usual()
		} else {
			g.anyExtended()
		}
		if g.chance(10) {
			g.emit("Sync")
		}
	}
}

// usual adds Parse, Bind, Describe and Execute, each with a small chance of being left out.
func (g *generator) usual() {
	name, portal := g.statementName(), g.portalName()
	sql := g.statement()
	if !g.chance(5) {
		g.emit("Parse %q %q", name, sql)
	}
	if g.chance(20) {
		g.emit("Describe S %q", name)
	}
	if !g.chance(3) {
		g.emit("Bind %q %q %s", portal, name, g.parameters(sql))
	}
	if g.chance(50) {
		g.emit("Describe P %q", g.usable(portal))
	}
	for range 1 + g.IntN(10)/8 {
		g.emit("Execute %q %d", g.usable(portal), rows(sql, pick(g, []int{0, 0, 0, 1, 3})))
	}
	if g.chance(10) {
		g.emit("Close %s %q", pick(g, []string{"S", "P"}), pick(g, []string{name, portal}))
	}
}

func (g *generator) anyExtended() {
	switch g.IntN(8) {
	case 0:
		g.emit("Parse %q %q [%d]", g.statementName(), g.statement(), pick(g, []int{0, 23, 25, 999999}))
	case 1:
		g.emit("Bind %q %q %s", g.portalName(), pick(g, []string{"", "s1", "s2", "q", "unknown"}), g.values(g.IntN(3)))
	case 2:
		g.describe()
	case 3:
		g.emit("Execute %q %d", g.usable(pick(g, []string{"", "p1", "unknown"})), g.IntN(4))
	case 4:
		g.emit("Close %s %q", pick(g, []string{"S", "P", "S", "P", "X"}), pick(g, []string{"", "s1", "p1", "unknown"}))
	case 5:
		g.emit("Flush")
	case 6:
		g.stray()
	case 7:
		g.emit("Bind \"\" \"\" %s [7] [0, 1, 0]", g.values(1))
	}
}

func (g *generator) describe() {
	name := pick(g, []string{"", "s1", "p1", "unknown"})
	switch kind := pick(g, []string{"S", "P", "S", "P", "X"}); kind {
	case "P":
		g.emit("Describe P %q", g.usable(name))
	default:
		g.emit("Describe %s %q", kind, name)
	}
}

// stray adds a COPY message that mostly comes outside of a COPY.
func (g *generator) stray() {
	g.emit("%s", pick(g, []string{`CopyData "1\tstray\n"`, `CopyDone`, `CopyFail "stray"`}))
}

// parameters gives a statement what it needs, or at times something else.
func (g *generator) parameters(sql string) string {
	n := 0
	for i := range sql {
		if sql[i] == '$' && i+1 < len(sql) && sql[i+1] >= '1' && sql[i+1] <= '9' {
			n = max(n, int(sql[i+1]-'0'))
		}
	}
	if g.chance(5) {
		n = g.IntN(4)
	}
	formats := ""
	if g.chance(10) {
		formats = " [] [1]"
	}
	return g.values(n) + formats
}

func (g *generator) values(n int) string {
	list := "["
	for i := range n {
		if i > 0 {
			list += ", "
		}
		list += pick(g, []string{`"5"`, `"1"`, `"17"`, `"0"`, `"word"`, "null", `"x"*` + strconv.Itoa(g.IntN(50000))})
	}
	return list + "]"
}

// functionCall calls int4pl, textlen, int4div by zero or a function that does not exist.
func (g *generator) functionCall() {
	g.emit("FunctionCall %s", pick(g, []string{
		`177 ["2", "3"] [] 0`, `177 ["\x00\x00\x00\x02", "\x00\x00\x00\x03"] [1] 1`, `1257 ["text"] [0] 0`,
		`154 ["1", "0"] [] 0`, `177 ["2"] [] 0`, `177 ["x", "y"] [] 0`, `4294967000 [] [] 0`, `1257 [null] [] 0`,
	}))
}

// copyBatch adds a COPY in the simple or the extended protocol, with what may follow it. No statement that is a COPY
// outlives the settling that must come next.
func (g *generator) copyBatch() {
	sql := pick(g, []string{
		"copy pgtest_sink from stdin", "copy pgtest_sink from stdin", "copy pgtest_sink (id) from stdin with (format csv)",
		"copy pgtest_rows to stdout", "copy (select repeat('c', 1000) from generate_series(1, 50)) to stdout",
		"copy (select 1/(5 - i) from generate_series(1, 9) i) to stdout", "copy pgtest_nowhere from stdin",
		"select 1; copy pgtest_sink from stdin; select 2", "copy pgtest_sink from stdin; copy pgtest_sink from stdin",
	})
	if g.chance(60) {
		g.emit("Query %q", sql)
	} else {
		g.emit(`Parse "" %q`, sql)
		g.emit(`Bind "" ""`)
		g.emit(`Execute "" 0`)
		if g.chance(50) {
			g.emit("Sync")
		}
	}
	for range g.IntN(5) {
		g.emit("%s", pick(g, []string{
			`CopyData "1\tone\n"`, `CopyData "2\ttwo\n3\tth"`, `CopyData "ree\n"`, `CopyData "bad\n"`, `CopyData ""`,
			`CopyData "4\t` + `"`, `CopyData "5\tlong\n"*3000`, `CopyData "\\.\n"`, "Flush",
		}))
	}
	if g.chance(80) {
		g.emit("%s", pick(g, []string{"CopyDone", "CopyDone", `CopyFail "generated"`}))
	}
	if g.chance(40) {
		g.emit("Sync")
	}
}

// chaos adds messages in no order at all, with two exceptions. There is no COPY among them, because a Query in the
// middle of a COPY ends the connection. And a Sync stands before every Query and FunctionCall: in the implicit
// transaction of messages that no Sync has ended, they leave PostgreSQL 18.4 so that the query after the next Sync fails
// with "StartTransactionCommand: unexpected state STARTED".
func (g *generator) chaos() {
	for range 1 + g.IntN(8) {
		switch g.IntN(6) {
		case 0:
			g.emit("Sync")
			g.emit("Query %q", g.sql())
		case 1:
			g.usual()
		case 2:
			g.emit("Sync")
		case 3:
			g.emit("Sync")
			g.functionCall()
		default:
			g.anyExtended()
		}
	}
}

// finish at times ends the script with something that makes the server close the connection, or with bad contents.
func (g *generator) finish() {
	if g.chance(90) {
		return
	}
	g.control("settle")
	switch g.IntN(5) {
	case 0:
		g.emit("Raw 21 00 00 00 04")
		g.control("wait EOF")
	case 1:
		g.emit("Query %q", "rollback")
		g.control("wait")
		g.emit("Query %q", "copy pgtest_rows to stdout; set transaction_read_only = off; copy pgtest_sink from stdin")
		g.emit("CopyDone")
	case 2:
		g.emit("Terminate")
		g.control("wait EOF")
	case 3:
		g.emit(`Parse "" "select 1"`)
		g.emit(`Bind "" ""`)
		g.emit("Terminate")
		g.control("wait EOF")
	case 4:
		g.emit("Query %q", "begin")
		g.control("wait")
		g.emit("Terminate")
		g.control("wait EOF")
	}
}
