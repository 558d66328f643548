package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgmoor/pgmoor/compat/go/report"
)

func (p *probe) startup() error {
	for _, name := range []string{
		"server_version", "server_encoding", "client_encoding", "application_name", "TimeZone", "DateStyle", "IntervalStyle",
		"integer_datetimes", "standard_conforming_strings", "is_superuser", "session_authorization", "in_hot_standby",
		"default_transaction_read_only", "search_path", "scram_iterations",
	} {
		p.say("parameter "+name, "%q", p.conn.PgConn().ParameterStatus(name))
	}
	p.query("options", "select current_setting('search_path'), current_setting('geqo'), current_setting('application_name')")
	p.query("who", "select current_user::text, session_user::text, current_database()::text")
	config := p.conn.Config()
	config.Database = "compat_no_such_database"
	_, err := pgx.ConnectConfig(p.ctx, config)
	p.say("no such database", "%s", failure(err))
	return nil
}

// queryMode is run once in every query mode.
func (p *probe) queryMode() error {
	when := time.Date(2024, 2, 29, 12, 34, 56, 789000000, time.UTC)
	for range 3 { // the second time a cached statement is used, the third time it is an old acquaintance
		p.query("types", `select $1::int4 i, $2::int8 b, $3::text t, $4::bool o, $5::float8 f, $6::bytea y, $7::timestamptz w,
			$8::int4[] a, $9::text n`, int32(42), int64(1)<<40, "héllo", true, 1.5, []byte{0, 1, 255}, when, []int32{1, 2, 3}, nil)
	}
	p.query("literals", `select null::int, array[1,null,3], array['a','b,c',null], '{"b": [1, 2], "a": null}'::jsonb, 12.340::numeric,
		'2024-02-29'::date, '1 day 02:03:04'::interval, '5ce0e7a2-0f5c-4c8e-9d4a-1a2b3c4d5e6f'::uuid, int4range(1, 5)`)
	p.query("no rows", "select 1 where false")
	p.query("no columns", "select")
	p.query("empty", "")
	p.query("comment", "-- nothing")
	p.query("syntax error", "selec 1")
	p.query("division", "select 1 / $1::int4", int32(0))
	p.query("wrong type", "select $1::int4", "not a number")
	p.query("create", "create table m (id int primary key, v text not null)")
	p.query("insert", "insert into m values ($1, $2), ($1 + 1, $3) returning *", int32(1), "one", "two")
	p.query("duplicate", "insert into m values ($1, $2)", int32(1), "again")
	p.query("null", "insert into m values ($1, $2)", int32(9), nil)
	p.query("update", "update m set v = v || $1 where id = any($2)", "!", []int32{1, 2, 3})
	p.query("star", "select * from m order by id")
	p.query("alter", "alter table m add x int default 7")
	p.query("star after alter", "select * from m order by id")
	p.query("star once more", "select * from m order by id")
	p.query("delete", "delete from m")
	p.query("drop", "drop table m")
	return p.modeTransaction()
}

func (p *probe) modeTransaction() error {
	p.query("begin", "begin isolation level repeatable read")
	p.query("in transaction", "select current_setting('transaction_isolation')")
	p.query("error in transaction", "select $1::int4 / 0", int32(1))
	p.query("refused", "select $1::int4", int32(1))
	p.query("rollback", "rollback")
	p.query("recovered", "select $1::int4", int32(1))
	return nil
}

func (p *probe) transactions() error {
	p.query("create", "create table tx (n int)")
	tx, err := p.conn.BeginTx(p.ctx, pgx.TxOptions{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadWrite})
	if err != nil {
		return err
	}
	p.query("insert", "insert into tx values ($1)", 1)
	inner, err := tx.Begin(p.ctx)
	if err != nil {
		return err
	}
	p.query("savepoint insert", "insert into tx values ($1)", 2)
	p.query("savepoint error", "select 1 / 0")
	p.say("savepoint rollback", "%s", failure(inner.Rollback(p.ctx)))
	p.query("savepoint gone", "select array_agg(n) from tx")
	p.say("commit", "%s", failure(tx.Commit(p.ctx)))
	if tx, err = p.conn.Begin(p.ctx); err != nil {
		return err
	}
	p.query("insert", "insert into tx values ($1)", 3)
	p.query("error", "insert into nowhere values (1)")
	p.say("commit of a failed transaction", "%s", commitFailure(tx.Commit(p.ctx)))
	p.query("what stayed", "select array_agg(n order by n) from tx")
	p.query("read only", "begin read only")
	p.query("read only insert", "insert into tx values (4)")
	p.query("commit is rollback", "commit")
	p.query("no transaction", "commit")
	return nil
}

func commitFailure(err error) string {
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return "rolled back"
	}
	return failure(err)
}

func (p *probe) prepared() error {
	for _, name := range []string{"compat_a", "compat_b"} {
		statement, err := p.conn.Prepare(p.ctx, name, "select $1::int + $2::bigint as sum, $3::text[] as list, '"+name+"' as who")
		if err != nil {
			return err
		}
		p.say("prepare "+name, "parameters %v fields %d", statement.ParamOIDs, len(statement.Fields))
	}
	for n := range 7 { // PostgreSQL may change to a generic plan after five
		p.query("execute", "compat_a", n, n, []string{"x", fmt.Sprint(n)})
		p.query("execute", "compat_b", n, n, []string{"y"})
	}
	_, err := p.conn.Prepare(p.ctx, "compat_bad", "select * from nowhere")
	p.say("prepare bad", "%s", failure(err))
	p.say("deallocate", "%s", failure(p.conn.Deallocate(p.ctx, "compat_a")))
	p.query("after deallocate", "execute compat_a")
	p.query("the other", "compat_b", 1, 2, nil)
	p.say("deallocate all", "%s", failure(p.conn.DeallocateAll(p.ctx)))
	p.query("sql prepare", "prepare compat_sql(int) as select $1 * 2 as twice")
	p.query("sql execute", "execute compat_sql(21)")
	p.query("sql deallocate", "deallocate compat_sql")
	p.query("sql gone", "execute compat_sql(21)")
	return nil
}

func (p *probe) large() error {
	text := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	for _, mode := range modes {
		p.query("1 MiB parameter, "+mode.String(), "select length($1::text), md5($1::text)", mode, text)
	}
	hash, total := sha256.New(), 0
	rows, err := p.conn.Query(p.ctx, "select n, repeat(chr(97 + n % 26), 1000) from generate_series(1, 5000) n")
	if err != nil {
		return err
	}
	for rows.Next() {
		for _, value := range rows.RawValues() {
			total += len(value)
			hash.Write(value)
		}
	}
	p.say("5 MB of rows", "%d %x %s %q", total, hash.Sum(nil), failure(rows.Err()), rows.CommandTag().String())
	var value string
	err = p.conn.QueryRow(p.ctx, "select string_agg(md5(n::text), '') from generate_series(1, 160000) n").Scan(&value)
	p.say("5 MB in one value", "%d %x %s", len(value), sha256.Sum256([]byte(value)), failure(err))
	p.query("usable", "select $1::jsonb", report.JSON(map[string]string{"after": "large"}))
	return nil
}
