package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgmoor/pgmoor/compat/go/report"
)

const (
	sum    = "select $1 + 1 as n"
	joined = "select $1 || '!' as t, $2 as n"
	// divide fails when it is run. Were it 6 / $1, a plan for the very value would fail at the Bind, and a generic one at the Execute;
	// which one the server makes depends on how often the connection has run the statement, for whomever.
	divide = "select 6 / n as q from generate_series($1, $1) n"
)

// statements opens three connections at once, so that as many stand behind them where they are shared, and has two of them take
// turns.
func statements(ctx context.Context, out *report.Report) error {
	clients := make([]*client, 3)
	for n, name := range []string{"a", "b", "c"} {
		c, err := dial(ctx, out, name)
		if err != nil {
			return err
		}
		clients[n] = c
		c.send("begin", &pgproto3.Query{String: "begin"})
	}
	for _, c := range clients {
		c.send("rollback", &pgproto3.Query{String: "rollback"})
	}
	for round := range 3 { // each begins as a pool's connection does that was used before
		a, b := clients[round], clients[(round+1)%3]
		takeTurns(a, b)
		inTransaction(a)
		replace(a, b)
		discard(a, b)
	}
	pipelined(clients[0], clients[1])
	out.Check("texts", "%d", len(texts))
	var err error
	for _, c := range clients {
		err = errors.Join(err, c.close())
	}
	return err
}

// takeTurns prepares the same statements under different names, and different ones under the same.
func takeTurns(a, b *client) {
	a.send("prepare", prepare("_p1", sum, oidInt4)...)
	b.send("prepare", prepare("_p1", joined, oidText, oidInt4)...)
	a.send("prepare", prepare("_p2", joined, oidText, oidInt4)...)
	b.send("prepare", prepare("_p2", sum, oidInt4)...)
	a.send("prepare", prepare("_p3", divide, oidInt4)...)
	for n := range 7 { // PostgreSQL may change to a generic plan after five
		a.send("run", batch(run("_p1", int4(n)))...)
		b.send("run", batch(run("_p1", []byte("x"), int4(n)))...)
		a.send("batch", batch(run("_p2", []byte("héllo"), int4(n)), run("_p1", int4(-n)))...)
		b.send("null", batch(run("_p2", nil))...)
		a.send("error in a batch", batch(run("_p1", int4(n)), run("_p3", int4(n%2)), run("_p1", int4(n)))...)
		b.send("unnamed", batch(messages{&pgproto3.Parse{Query: divide, ParameterOIDs: []uint32{oidInt4}}}, run("", int4(n%3)))...)
	}
	b.send("unknown", batch(run("_p3", int4(1)))...)
	b.send("prepare broken", prepare("_p3", "selec 1")...)
	b.send("twice", prepare("_p1", "select 1")...)
	b.send("run", batch(run("_p1", []byte("x"), int4(1)))...)
}

// inTransaction begins transactions as Npgsql does: in front of the first batch, without waiting for an answer.
func inTransaction(c *client) {
	begin := messages{&pgproto3.Query{String: "begin transaction isolation level repeatable read"}}
	c.send("begin and run", append(begin, batch(run("_p1", int4(1)))...)...)
	c.send("prepare inside", prepare("_p4", "select $1 * 4 as n", oidInt4)...)
	c.send("run", batch(run("_p4", int4(2)))...)
	c.send("savepoint", &pgproto3.Query{String: "savepoint s"})
	c.send("error", batch(run("_p3", int4(0)))...)
	c.send("refused", batch(run("_p1", int4(1)))...)
	c.send("refused", prepare("_p5", "select 5")...)
	c.send("rollback to", &pgproto3.Query{String: "rollback to savepoint s"})
	c.send("run", batch(run("_p1", int4(1)))...)
	c.send("rollback", &pgproto3.Query{String: "rollback"})
	for range 4 {
		c.send("kept", batch(run("_p4", int4(2)))...)
	}
	c.send("never prepared", batch(run("_p5"))...)
}

// replace closes statements in front of what uses their names for others, as Npgsql does with those used least recently.
func replace(a, b *client) {
	for round := range 4 {
		sql := fmt.Sprintf("select $1 + %d as n", round+10)
		a.send("replace", append(closing("_p4"), prepare("_p4", sql, oidInt4)...)...)
		b.send("replace", append(closing("_p4"), prepare("_p4", sql+", 'b'", oidInt4)...)...)
		for n := range 2 {
			a.send("run", batch(run("_p4", int4(n)))...)
			b.send("run", batch(run("_p4", int4(n)))...)
		}
	}
	a.send("close", batch(closing("_p4"), closing("_p4"))...)
	a.send("gone", batch(run("_p4", int4(1)))...)
	b.send("not gone", batch(run("_p4", int4(1)))...)
}

// discard gives the connections back to Npgsql's pool, where the first one has its statements dropped, and takes them out again.
func discard(a, b *client) {
	a.send("discard all", &pgproto3.Query{String: "discard all"})
	for range 4 {
		a.send("gone", batch(run("_p1", int4(1)))...)
		b.send("not gone", batch(run("_p2", int4(1)))...)
	}
	a.send("prepare again", prepare("_p1", "select $1 + 2 as n", oidInt4)...)
	for range 4 {
		a.send("run", batch(run("_p1", int4(1)))...)
		b.send("not gone", batch(run("_p2", int4(1)))...)
	}
	// Npgsql sends the reset in front of the first batch of who gets the connection next.
	reset := messages{&pgproto3.Query{String: "discard all"}}
	a.send("discard all and prepare", append(reset, prepare("_p1", sum, oidInt4)...)...)
	a.send("run", batch(run("_p1", int4(1)))...)
	a.send("discard all", &pgproto3.Query{String: "discard all"})
	b.send("discard all", &pgproto3.Query{String: "discard all"})
}

// pipelined sends several batches before an answer is read, each with its Sync, prepared and run in one.
func pipelined(a, b *client) {
	for range 4 {
		a.send("pipeline", batch(
			prepare("_p1", sum, oidInt4), run("_p1", int4(1)), messages{&pgproto3.Sync{}},
			prepare("_p2", divide, oidInt4), run("_p2", int4(0)), messages{&pgproto3.Sync{}},
			run("_p1", int4(2)), run("_p2", int4(3)), closing("_p1"), closing("_p2"),
		)...)
		b.send("prepared and run in one batch", batch(messages{&pgproto3.Parse{Name: "_auto1", Query: sum}}, run("_auto1", int4(1)), closing("_auto1"))...)
	}
}
