package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgmoor/pgmoor/compat/go/report"
)

// shared are texts that both clients prepare. They are not a multiple of three, so that with two clients and three server
// connections lent in turn each of them meets each connection.
var shared = []struct {
	sql  string
	args []any
}{
	{"select $1::int4 + 1 as n, $2::text as t", []any{int32(1), "héllo"}},
	{"select $1::timestamptz as w, $2::bytea as y, $3::float8 as f", []any{
		time.Date(2024, 2, 29, 12, 34, 56, 0, time.UTC), []byte{0, 1, 255}, 1.5,
	}},
	{"select $1::int8[] as a, $2::bool as o, $3::text as nothing", []any{[]int64{1, 2, 1 << 40}, true, nil}},
	{"select count(*), max(v) from turns where id > $1::int4", []any{int32(0)}},
}

// statements is the program of prepared statements: it makes no other state of a session.
func statements(ctx context.Context, out *report.Report) {
	out.Run("setup", func() error { return admin(ctx, "drop schema if exists "+schema+" cascade", "create schema "+schema) })
	out.Run("statements", func() error { return warm(ctx, func() { inAllModes(ctx, out) }) })
	out.Run("cleanup", func() error { return admin(ctx, "drop schema "+schema+" cascade") })
	out.Exit()
}

// warm runs part while the three connections are there that it has had open at once: so has what may stand between.
func warm(ctx context.Context, part func()) error {
	config, err := config()
	if err != nil {
		return err
	}
	conns := make([]*pgx.Conn, 3)
	for n := range conns {
		if conns[n], err = pgx.ConnectConfig(ctx, config); err != nil {
			return err
		}
		if _, err = conns[n].Exec(ctx, "begin"); err != nil {
			return err
		}
	}
	for _, conn := range conns {
		_, rollback := conn.Exec(ctx, "rollback")
		err = errors.Join(err, rollback)
	}
	part()
	for _, conn := range conns {
		err = errors.Join(err, conn.Close(ctx))
	}
	return err
}

func inAllModes(ctx context.Context, out *report.Report) {
	for _, mode := range modes {
		each(ctx, out, mode.String(), mode, (*probe).queryMode)
		each(ctx, out, mode.String()+"/batches", mode, (*probe).batchesDropped)
		each(ctx, out, mode.String()+"/turns", mode, (*probe).turns)
	}
	each(ctx, out, "prepared", pgx.QueryExecModeCacheStatement, (*probe).prepared)
	each(ctx, out, "pipeline", pgx.QueryExecModeCacheStatement, (*probe).pipeline)
	each(ctx, out, "again", pgx.QueryExecModeCacheStatement, (*probe).again)
	out.Check("texts", "%d", len(texts))
}

func (p *probe) batchesDropped() error {
	err := p.batches()
	p.query("drop", "drop table batch")
	return err
}

// turns has two clients use the same statements, and others of the same names, one after the other.
func (p *probe) turns() error {
	return p.beside(func(other *probe) error {
		p.query("create", "create table turns (id int primary key, v text)")
		for round := range 7 { // PostgreSQL may change to a generic plan after five
			for _, s := range shared {
				p.query("a", s.sql, s.args...)
				other.query("b", s.sql, s.args...)
			}
			p.query("a inserts", "insert into turns values ($1, $2)", round, fmt.Sprint("a", round))
			other.query("b inserts it again", "insert into turns values ($1, $2)", round, "b")
			p.query("a divides", "select 6 / $1::int4", int32(round-3))
		}
		p.transaction(other)
		p.altered(other)
		p.query("drop", "drop table turns")
		return nil
	})
}

// transaction has a client use statements in a transaction, some for the first time, and after an error there.
func (p *probe) transaction(other *probe) {
	s := shared[0]
	p.query("begin", "begin")
	p.query("known", s.sql, s.args...)
	p.query("new", "select $1::numeric * 2", 1.25)
	other.query("meanwhile", s.sql, s.args...)
	p.query("savepoint", "savepoint s")
	p.query("error", "select 6 / $1::int4", int32(0))
	p.query("refused", s.sql, s.args...)
	p.query("new, refused", "select $1::numeric * 3", 1.25)
	p.query("rollback to", "rollback to s")
	p.query("known", s.sql, s.args...)
	p.query("new again", "select $1::numeric * 3", 1.25)
	p.query("rollback", "rollback")
	for range 3 {
		p.query("kept", "select $1::numeric * 2", 1.25)
		p.query("kept", "select $1::numeric * 3", 1.25)
	}
}

// altered has both clients use statements whose table has got another column, which the server refuses once.
func (p *probe) altered(other *probe) {
	const star = "select * from turns where id < $1 order by id"
	p.query("star", star, 2)
	other.query("star", star, 2)
	p.query("alter", "alter table turns add x int default 7")
	for range 3 {
		p.query("star after alter", star, 2)
		other.query("star after alter", star, 2)
	}
	p.query("alter", "alter table turns drop x")
	p.query("begin", "begin")
	p.query("star in a transaction", star, 2)
	p.query("star in a transaction", star, 2)
	p.query("rollback", "rollback")
	other.query("star after the transaction", star, 2)
	other.query("star after the transaction", star, 2)
}

// again closes statements in every way there is and prepares them again, while another client has others of their names.
func (p *probe) again() error {
	return p.beside(func(other *probe) error {
		for round := range 4 {
			name := fmt.Sprintf("compat_again /* %d */", round%2)
			p.prepare(name, fmt.Sprintf("select $1::int4 + %d as a", round))
			other.prepare(name, fmt.Sprintf("select $1::text || '%d' as b", round))
			p.prepare(name+"2", fmt.Sprintf("select $1::int4 - %d as a", round))
			for range 4 {
				p.executed("a", name)
				other.executed("b", name)
				p.executed("a2", name+"2")
			}
			p.raw("twice", name, "select 1")
			p.raw("broken", "compat_broken", "selec 1")
			p.executed("broken", "compat_broken")
			p.query("view", "select name, statement, parameter_types::text, from_sql from pg_prepared_statements order by name", pgx.QueryExecModeExec)
			p.forget(round, name, name+"2")
			p.executed("gone", name)
			p.executed("gone", name+"2")
			other.executed("not gone", name)
			other.forget(0, name, name)
		}
		return nil
	})
}

// forget drops two statements in the way of the round.
func (p *probe) forget(round int, one, two string) {
	switch round {
	case 0:
		p.say("close", "%s %s", failure(p.conn.Deallocate(p.ctx, one)), failure(p.conn.Deallocate(p.ctx, two)))
	case 1:
		p.say("deallocate all", "%s", failure(p.conn.DeallocateAll(p.ctx)))
	case 2:
		p.query("deallocate", "deallocate "+pgx.Identifier{one}.Sanitize(), pgx.QueryExecModeExec)
		p.query("deallocate", "deallocate "+pgx.Identifier{two}.Sanitize(), pgx.QueryExecModeSimpleProtocol)
	case 3:
		p.query("discard all", "discard all", pgx.QueryExecModeSimpleProtocol)
	}
}

func (p *probe) prepare(name, sql string) { p.raw("prepare", name, sql) }

// raw prepares a statement past pgx's own memory of those that there are.
func (p *probe) raw(what, name, sql string) {
	noteText(sql)
	d, err := p.conn.PgConn().Prepare(p.ctx, name, sql, nil)
	if err != nil {
		p.say(what, "%s", failure(err))
		return
	}
	p.say(what, "parameters %v fields %d", d.ParamOIDs, len(d.Fields))
}

func (p *probe) executed(what, name string) {
	read := p.conn.PgConn().ExecPrepared(p.ctx, name, [][]byte{[]byte("5")}, nil, nil).Read()
	p.say(what, "%q %q %s %c", read.Rows, read.CommandTag.String(), failure(read.Err), p.conn.PgConn().TxStatus())
}

// texts are the texts of the statements that may have been prepared under names.
var texts = map[string]bool{}

func noteText(sql string) { texts[sql] = true }

// isStatements reports whether the program was called for statements only.
func isStatements() bool { return len(os.Args) == 2 && os.Args[1] == "statements" }
