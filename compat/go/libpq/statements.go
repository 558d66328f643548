package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lib/pq"

	"github.com/pgmoor/pgmoor/compat/go/report"
)

// shared are texts that both clients prepare. They are not a multiple of three, so that with two clients and three server
// connections lent in turn each of them meets each connection.
var shared = []struct {
	text string
	args []any
}{
	{"select $1::int + 1 as n, $2::text as t", []any{1, "héllo"}},
	{"select $1::timestamptz as w, encode($2::bytea, 'hex') as y, $3::float8 as f", []any{
		time.Date(2024, 2, 29, 12, 34, 56, 0, time.UTC), []byte{0, 1, 255}, 1.5,
	}},
	{"select $1::bigint[] as a, $2::bool as o, $3::text as nothing", []any{pq.Array([]int64{1, 2, 1 << 40}), true, nil}},
	{"select count(*), max(v) from turns where id > $1::int", []any{0}},
}

// statements is the program of prepared statements: it makes no other state of a session.
func statements(ctx context.Context, out *report.Report) {
	out.Run("setup", func() error { return admin(ctx, "drop schema if exists "+schema+" cascade; create schema "+schema) })
	out.Run("statements", func() error { return warm(ctx, func() { bothWays(ctx, out) }) })
	out.Run("cleanup", func() error { return admin(ctx, "drop schema "+schema+" cascade") })
	out.Exit()
}

func bothWays(ctx context.Context, out *report.Report) {
	for _, way := range []string{"text", "binary"} {
		dsn := connect
		if way == "binary" {
			dsn += " binary_parameters=yes"
		}
		each(ctx, out, way+" queries", dsn, (*probe).queries)
		each(ctx, out, way+" prepared", dsn, (*probe).prepared)
		each(ctx, out, way+" turns", dsn, (*probe).turns)
		each(ctx, out, way+" again", dsn, (*probe).again)
	}
	out.Check("texts", "%d", len(texts))
}

// warm runs part while the three connections are there that it has had open at once: so has what may stand between.
func warm(ctx context.Context, part func()) error {
	db, err := sql.Open("postgres", connect)
	if err != nil {
		return err
	}
	open := make([]*sql.Tx, 3)
	for n := range open {
		if open[n], err = db.BeginTx(ctx, nil); err != nil {
			return err
		}
		if _, err = open[n].ExecContext(ctx, "select 1"); err != nil {
			return err
		}
	}
	db.SetMaxIdleConns(len(open))
	for _, tx := range open {
		err = errors.Join(err, tx.Rollback())
	}
	part()
	return errors.Join(err, db.Close())
}

// turns has two clients use the same statements, and lib/pq gives all clients' statements the same names.
func (p *probe) turns() error {
	p.exec("create", "create table turns (id int primary key, v text)")
	err := errors.Join(p.beside(func(other *probe) {
		a, b := p.prepareShared(), other.prepareShared()
		for round := range 7 { // PostgreSQL may change to a generic plan after five
			for n, s := range shared {
				p.run("a", a[n], s.args...)
				other.run("b", b[n], s.args...)
			}
			p.exec("a inserts", "insert into turns values ($1, $2)", round, fmt.Sprint("a", round))
			other.exec("b inserts it again", "insert into turns values ($1, $2)", round, "b")
			p.query("a divides", "select 6 / $1::int", round-3)
		}
		p.inTransaction(a)
		p.altered(other)
		closeAll(a, b)
	}))
	p.exec("drop", "drop table turns")
	return err
}

func (p *probe) prepareShared() []*sql.Stmt {
	all := make([]*sql.Stmt, len(shared))
	for n, s := range shared {
		all[n] = p.prepare(s.text)
	}
	return all
}

// inTransaction has a client use statements in a transaction, some for the first time, and after an error there.
func (p *probe) inTransaction(known []*sql.Stmt) {
	p.exec("begin", "begin")
	p.run("known", known[0], shared[0].args...)
	kept := p.prepare("select $1::numeric * 2")
	p.run("new", kept, "1.25")
	p.exec("savepoint", "savepoint s")
	p.query("error", "select 6 / $1::int", 0)
	p.run("refused", known[0], shared[0].args...)
	p.prepare("select $1::numeric * 3")
	p.exec("rollback to", "rollback to savepoint s")
	p.run("known", known[0], shared[0].args...)
	p.exec("rollback", "rollback")
	for range 4 {
		p.run("kept", kept, "1.25")
	}
	closeAll([]*sql.Stmt{kept})
}

// altered has both clients use statements whose table has got another column, which the server refuses.
func (p *probe) altered(other *probe) {
	const star = "select * from turns where id < $1 order by id"
	a, b := p.prepare(star), other.prepare(star)
	p.run("star", a, 2)
	other.run("star", b, 2)
	p.exec("alter", "alter table turns add x int default 7")
	for range 4 {
		p.run("star after alter", a, 2)
		other.run("star after alter", b, 2)
	}
	closeAll([]*sql.Stmt{a})
	a = p.prepare(star)
	for range 4 {
		p.run("star prepared again", a, 2)
		other.run("star prepared before", b, 2)
	}
	closeAll([]*sql.Stmt{a, b})
}

// again closes statements and prepares them again, by the protocol and by SQL.
func (p *probe) again() error {
	return p.beside(func(other *probe) {
		for round := range 4 {
			a, b := p.prepare(fmt.Sprintf("select $1::int + %d as a", round)), other.prepare(fmt.Sprintf("select $1::text || '%d' as b", round))
			p.exec("sql prepare", fmt.Sprintf("prepare compat_again(int) as select $1 * %d as a", round))
			other.exec("sql prepare", fmt.Sprintf("prepare compat_again(text) as select $1 || '%d' as b", round))
			for range 4 {
				p.run("a", a, 5)
				other.run("b", b, "x")
				p.query("sql a", "execute compat_again(7)")
				other.query("sql b", "execute compat_again('x')")
			}
			p.exec("twice", "prepare compat_again as select 1")
			p.prepare("selec 1")
			p.query("view", "select name, statement, parameter_types::text, from_sql from pg_prepared_statements order by name")
			closeAll([]*sql.Stmt{a, b})
			p.exec("deallocate", []string{"deallocate compat_again", "deallocate all", "discard plans", "discard all"}[round])
			p.query("gone or not", "execute compat_again(7)")
			other.query("not gone", "execute compat_again('x')")
			other.exec("deallocate", "deallocate all")
			p.exec("deallocate", "deallocate all")
		}
	})
}

// prepare reports what has become of the statement, which is nil where it could not be prepared.
func (p *probe) prepare(text string) *sql.Stmt {
	noteText(text)
	statement, err := p.conn.PrepareContext(p.ctx, text)
	p.say("prepare", "%s", failure(err))
	return statement
}

func (p *probe) run(name string, statement *sql.Stmt, args ...any) {
	rows, err := statement.QueryContext(p.ctx, args...)
	p.answer(name, rows, err)
}

func closeAll(lists ...[]*sql.Stmt) {
	for _, list := range lists {
		for _, statement := range list {
			_ = statement.Close()
		}
	}
}

// texts are the texts of the statements that may have been prepared under names.
var texts = map[string]bool{}

func noteText(text string) { texts[text] = true }

// isStatements reports whether the program was called for statements only.
func isStatements() bool { return len(os.Args) == 2 && os.Args[1] == "statements" }
