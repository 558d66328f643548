package main

import (
	"crypto/sha256"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/lib/pq"
)

func (p *probe) startup() error {
	for _, name := range []string{"server_version", "client_encoding", "application_name", "timezone", "datestyle", "search_path", "geqo", "extra_float_digits"} {
		p.query("show "+name, "show "+name)
	}
	connector, err := pq.NewConnector("dbname=compat_no_such_database")
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	p.say("no such database", "%s", failure(db.PingContext(p.ctx)))
	return db.Close()
}

func (p *probe) queries() error {
	when := time.Date(2024, 2, 29, 12, 34, 56, 789000000, time.UTC)
	for range 2 {
		p.query("types", "select $1::int i, $2::bigint b, $3::text t, $4::bool o, $5::float8 f, encode($6::bytea, 'hex') y, $7::timestamptz w, $8::text n",
			42, int64(1)<<40, "héllo", true, 1.5, []byte{0, 1, 255}, when, nil)
	}
	p.query("arrays", "select $1::int[], $2::text[]", pq.Array([]int64{1, 2, 3}), pq.Array([]string{"a", "b,c", `"`}))
	p.query("literals", `select null::int, array[1,null,3], '{"b": [1, 2]}'::jsonb, 12.340::numeric, '2024-02-29'::date, '1 day'::interval`)
	p.query("no parameters", "select 1 as one, 'two' as two")
	p.query("several", "select 1 as a; select 'x' as b, 'y' as c where false; select 3 as d")
	p.query("several, one fails", "select 1 as a; select 1 / 0; select 3")
	p.query("empty", "")
	p.query("no rows", "select $1::int where false", 1)
	p.query("syntax error", "selec 1")
	p.query("division", "select 1 / $1::int", 0)
	p.query("wrong type", "select $1::int", "not a number")
	p.exec("create", "create table m (id int primary key, v text not null)")
	p.exec("insert", "insert into m values ($1, $2), ($1 + 1, $3)", 1, "one", "two")
	p.exec("duplicate", "insert into m values ($1, $2)", 1, "again")
	p.exec("update", "update m set v = v || $1", "!")
	p.query("returning", "delete from m where id = $1 returning *", 1)
	p.query("left", "select * from m")
	p.exec("notice", "do $$ begin raise notice 'from a block'; raise warning 'and a warning'; end $$")
	p.exec("drop", "drop table if exists m, nowhere")
	return nil
}

func (p *probe) prepared() error {
	statements := make([]*sql.Stmt, 3)
	for n := range statements {
		statement, err := p.conn.PrepareContext(p.ctx, fmt.Sprintf("select $1::int + %d as sum, $2::text as t", n))
		if err != nil {
			return err
		}
		statements[n] = statement
	}
	for round := range 7 {
		for _, statement := range statements {
			rows, err := statement.QueryContext(p.ctx, round, "t")
			p.answer("execute", rows, err)
		}
	}
	tx, err := p.conn.BeginTx(p.ctx, nil)
	if err != nil {
		return err
	}
	rows, err := tx.StmtContext(p.ctx, statements[1]).QueryContext(p.ctx, 40, "in a transaction")
	p.answer("in a transaction", rows, err)
	p.say("rollback", "%s", failure(tx.Rollback()))
	_, err = p.conn.PrepareContext(p.ctx, "select * from nowhere")
	p.say("prepare bad", "%s", failure(err))
	for _, statement := range statements {
		p.say("close", "%s", failure(statement.Close()))
	}
	p.query("usable", "select 'after prepared'")
	return nil
}

func (p *probe) large() error {
	p.query("1 MiB parameter", "select length($1::text), md5($1::text)", strings.Repeat("0123456789abcdef", 1<<16))
	rows, err := p.conn.QueryContext(p.ctx, "select repeat(chr(97 + n % 26), 1000) from generate_series(1, $1::int) n", 5000)
	if err != nil {
		return err
	}
	hash, total := sha256.New(), 0
	for rows.Next() {
		var value sql.RawBytes
		if err := rows.Scan(&value); err != nil {
			return err
		}
		total += len(value)
		hash.Write(value)
	}
	p.say("5 MB of rows", "%d %x %s", total, hash.Sum(nil), failure(rows.Err()))
	return rows.Close()
}
