package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func (p *probe) batches() error {
	p.query("create", "create table batch (id int primary key)")
	good := &pgx.Batch{}
	for n := range 20 {
		good.Queue("insert into batch values ($1)", n)
	}
	good.Queue("select count(*), sum(id) from batch")
	p.batch("good", good, p.conn.SendBatch(p.ctx, good))

	bad := &pgx.Batch{}
	bad.Queue("insert into batch values (100)")
	bad.Queue("insert into batch values ($1)", 3)
	bad.Queue("insert into batch values (101)")
	p.batch("error in the middle", bad, p.conn.SendBatch(p.ctx, bad))
	p.query("all or nothing", "select count(*) from batch")

	tx, err := p.conn.Begin(p.ctx)
	if err != nil {
		return err
	}
	inner := &pgx.Batch{}
	inner.Queue("insert into batch values ($1) returning id", 200)
	inner.Queue("select id from batch where id >= $1", 18)
	p.batch("in a transaction", inner, tx.SendBatch(p.ctx, inner))
	p.say("rollback", "%s", failure(tx.Rollback(p.ctx)))
	p.query("rolled back", "select count(*) from batch")
	return nil
}

func (p *probe) batch(name string, batch *pgx.Batch, results pgx.BatchResults) {
	for range batch.Len() {
		rows, err := results.Query()
		if err != nil {
			p.say(name, "%s", failure(err))
			continue
		}
		p.say(name, "%s", answer(rows))
	}
	p.say(name+": close", "%s %c", failure(results.Close()), p.conn.PgConn().TxStatus())
}

// pipeline speaks the extended protocol below pgx: several statements to one Sync, a Flush, an error in the middle.
func (p *probe) pipeline() error {
	pipe := p.conn.PgConn().StartPipeline(p.ctx)
	pipe.SendPrepare("compat_pipe", "select $1::int * 2 as twice", nil)
	pipe.SendQueryPrepared("compat_pipe", [][]byte{[]byte("4")}, nil, nil)
	pipe.SendFlushRequest()
	if err := pipe.Flush(); err != nil {
		return err
	}
	for range 2 {
		p.say("flush without sync", "%s", pipelineResult(pipe))
	}
	pipe.SendQueryParams("select 'before'", nil, nil, nil, nil)
	pipe.SendQueryParams("select 1 / 0", nil, nil, nil, nil)
	pipe.SendQueryParams("select 'skipped'", nil, nil, nil, nil)
	if err := pipe.Sync(); err != nil {
		return err
	}
	pipe.SendQueryPrepared("compat_pipe", [][]byte{[]byte("5")}, nil, nil)
	pipe.SendDeallocate("compat_pipe")
	pipe.SendQueryPrepared("compat_pipe", [][]byte{[]byte("6")}, nil, nil)
	if err := pipe.Sync(); err != nil {
		return err
	}
	for range 8 {
		p.say("two syncs", "%s", pipelineResult(pipe))
	}
	p.say("close", "%s", failure(pipe.Close()))
	p.query("usable", "select 'after the pipeline'")
	return nil
}

func pipelineResult(pipe *pgconn.Pipeline) string {
	result, err := pipe.GetResults()
	if err != nil {
		return failure(err)
	}
	switch result := result.(type) {
	case nil:
		return "nothing"
	case *pgconn.ResultReader:
		read := result.Read()
		return fmt.Sprintf("rows %q %q %s", read.Rows, read.CommandTag.String(), failure(read.Err))
	case *pgconn.StatementDescription:
		return fmt.Sprintf("statement %v %d", result.ParamOIDs, len(result.Fields))
	default:
		return fmt.Sprintf("%T", result)
	}
}

func (p *probe) copying() error {
	p.query("create", "create table c (id int primary key, v text)")
	rows := make([][]any, 5000)
	for n := range rows {
		rows[n] = []any{n, fmt.Sprint("row\t", n)}
	}
	p.copyFrom("in", pgx.CopyFromRows(rows))
	p.copyFrom("duplicate", pgx.CopyFromRows([][]any{{9000, "new"}, {1, "old"}, {9001, "new"}}))
	p.copyFrom("source fails", pgx.CopyFromSlice(4000, func(n int) ([]any, error) {
		if n == 3000 {
			return nil, errors.New("no more")
		}
		return []any{10000 + n, strings.Repeat("x", 100)}, nil
	}))
	p.query("after errors", "select count(*) from c")

	raw := p.conn.PgConn()
	tag, err := raw.CopyFrom(p.ctx, strings.NewReader("20000\ttext\nnot a number\ttext\n20001\ttext\n"), "copy c from stdin")
	p.say("malformed", "%q %s", tag.String(), failure(err))
	tag, err = raw.CopyFrom(p.ctx, strings.NewReader("20000;\n20001;x\n"), "copy c from stdin (format csv, delimiter ';')")
	p.say("csv", "%q %s", tag.String(), failure(err))
	var out bytes.Buffer
	tag, err = raw.CopyTo(p.ctx, &out, "copy (select * from c where id >= 4990 order by id) to stdout")
	p.say("out", "%q %q %s", out.String(), tag.String(), failure(err))
	tag, err = raw.CopyTo(p.ctx, &out, "copy (select 10 / (5 - n) from generate_series(1, 9) n) to stdout")
	p.say("out fails", "%q %q %s", out.String(), tag.String(), failure(err))
	p.query("usable", "select count(*) from c")
	return p.copyCanceled()
}

func (p *probe) copyFrom(name string, source pgx.CopyFromSource) {
	copied, err := p.conn.CopyFrom(p.ctx, pgx.Identifier{"c"}, []string{"id", "v"}, source)
	p.say(name, "%d %s %c", copied, failure(err), p.conn.PgConn().TxStatus())
}

// copyCanceled gives up a connection in the middle of a large COPY to the client; another one is not concerned.
func (p *probe) copyCanceled() error {
	return p.beside(func(other *probe) error {
		ctx, cancel := context.WithCancel(other.ctx)
		_, err := other.conn.PgConn().CopyTo(ctx, writerFunc(func(b []byte) (int, error) {
			cancel()
			return len(b), nil
		}), "copy (select repeat('x', 1000) from generate_series(1, 1000000)) to stdout")
		other.say("copy abandoned", "%s", failure(err))
		p.query("not concerned", "select 1")
		return nil
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
