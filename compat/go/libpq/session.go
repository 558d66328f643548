package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/lib/pq"
	"golang.org/x/sync/errgroup"
)

const (
	workers      = 20
	transactions = 20
	lockKey      = 70102
)

func (p *probe) transactions() error {
	p.exec("create", "create table tx (n int)")
	for _, options := range []*sql.TxOptions{nil, {Isolation: sql.LevelSerializable}, {ReadOnly: true}} {
		tx, err := p.conn.BeginTx(p.ctx, options)
		if err != nil {
			return err
		}
		p.query("isolation", "select current_setting('transaction_isolation'), current_setting('transaction_read_only')")
		p.exec("insert", "insert into tx values ($1)", 1)
		p.say("commit", "%s", failure(tx.Commit()))
	}
	tx, err := p.conn.BeginTx(p.ctx, nil)
	if err != nil {
		return err
	}
	p.exec("insert", "insert into tx values ($1)", 2)
	p.exec("savepoint", "savepoint s")
	p.exec("error", "insert into nowhere values (1)")
	p.exec("refused", "insert into tx values (3)")
	p.exec("rollback to", "rollback to savepoint s")
	p.exec("insert", "insert into tx values (4)")
	p.say("commit", "%s", failure(tx.Commit()))
	if tx, err = p.conn.BeginTx(p.ctx, nil); err != nil {
		return err
	}
	p.exec("error", "select 1 / 0")
	p.say("commit of a failed transaction", "%s", failure(tx.Commit()))
	p.query("what stayed", "select array_agg(n order by n)::text from tx")
	return nil
}

func (p *probe) copying() error {
	p.exec("create", "create table c (id int primary key, v text)")
	p.say("in", "%s", failure(p.copyIn(0, 3000, -1)))
	p.say("duplicate", "%s", failure(p.copyIn(5000, 3000, 7)))
	p.query("after", "select count(*), sum(length(v)) from c")
	return nil
}

// copyIn copies rows from first on, in a transaction; the last one again has the id repeat, unless that is negative.
func (p *probe) copyIn(first, count, repeat int) error {
	tx, err := p.conn.BeginTx(p.ctx, nil)
	if err != nil {
		return err
	}
	statement, err := tx.PrepareContext(p.ctx, pq.CopyIn("c", "id", "v"))
	if err != nil {
		return err
	}
	for n := range count {
		if _, err = statement.ExecContext(p.ctx, first+n, fmt.Sprint("row\t", n)); err != nil {
			return err
		}
	}
	if repeat >= 0 {
		if _, err = statement.ExecContext(p.ctx, repeat, "again"); err != nil {
			return err
		}
	}
	if _, err = statement.ExecContext(p.ctx); err != nil {
		p.say("rollback", "%s", failure(tx.Rollback()))
		return err
	}
	if err = statement.Close(); err != nil {
		return err
	}
	return tx.Commit()
}

// beside runs part on a second connection.
func (p *probe) beside(part func(*probe)) error {
	conn, err := p.db.Conn(p.ctx)
	if err != nil {
		return err
	}
	part(&probe{p.Report, p.ctx, p.name + "/other", p.db, conn})
	return conn.Close()
}

func (p *probe) session() error {
	p.exec("set", "set datestyle = 'German'")
	p.query("show", "show datestyle")
	p.query("set_config", "select set_config('compat.tenant', $1, false)", "seven")
	p.exec("temp", "create temp table mine as select 1 as n")
	p.query("temp select", "select * from mine")
	p.exec("lock", "select pg_advisory_lock($1)", lockKey)
	err := p.beside(func(other *probe) {
		other.query("show", "show datestyle")
		other.query("tenant", "select current_setting('compat.tenant', true)")
		other.query("temp", "select * from mine")
		other.query("try", "select pg_try_advisory_lock($1)", lockKey)
	})
	p.query("tenant", "select current_setting('compat.tenant')")
	p.query("unlock", "select pg_advisory_unlock($1)", lockKey)
	p.exec("drop", "drop table mine")
	p.exec("reset", "reset all")
	p.query("show", "show datestyle")
	p.exec("timeout", "set statement_timeout = 50")
	p.query("timed out", "select pg_sleep(20)")
	p.exec("no timeout", "reset statement_timeout")
	p.query("usable", "show statement_timeout")
	return err
}

// cancel gives up a query as soon as another connection sees it run; lib/pq then cancels it and drops the connection.
func (p *probe) cancel() error {
	const sleep = "select pg_sleep(50) /* compat_libpq */"
	ctx, stop := context.WithCancel(p.ctx)
	defer stop()
	running := make(chan error, 1)
	go func() {
		running <- p.awaitRunning(sleep)
		stop()
	}()
	_, err := p.db.ExecContext(ctx, sleep)
	p.say("canceled", "%s", failure(err))
	if err := <-running; err != nil {
		return err
	}
	p.query("usable", "select 'still here'")
	const left = "select count(*) from pg_stat_activity where query = $1 and state = 'active'"
	for count := 1; count > 0; { // the query ends when the cancel request has been served
		if err := p.conn.QueryRowContext(p.ctx, left, sleep).Scan(&count); err != nil {
			return err
		}
	}
	p.say("nothing runs on", "ok")
	return nil
}

func (p *probe) awaitRunning(text string) error {
	const running = "select count(*) from pg_stat_activity where query = $1 and wait_event = 'PgSleep'"
	for count := 0; count == 0; {
		if err := p.conn.QueryRowContext(p.ctx, running, text).Scan(&count); err != nil {
			return err
		}
	}
	return nil
}

func (p *probe) notify() error {
	listener := pq.NewListener(connect, time.Second, time.Second, nil)
	if err := listener.Listen("compat_libpq"); err != nil {
		return err
	}
	for n := range 3 {
		p.exec("notify", "select pg_notify('compat_libpq', $1)", fmt.Sprint("payload ", n))
		select {
		case n := <-listener.NotificationChannel():
			p.say("notification", "%s %q", n.Channel, n.Extra)
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
	p.say("ping", "%s", failure(listener.Ping()))
	p.say("unlisten", "%s", failure(listener.Unlisten("compat_libpq")))
	return listener.Close()
}

// concurrent has many goroutines share the database handle, and counts what they did.
func (p *probe) concurrent() error {
	p.exec("create", "create table counter as select id, 0 as n from generate_series(0, $1::int) id", workers)
	p.db.SetMaxOpenConns(workers + 1)
	group, ctx := errgroup.WithContext(p.ctx)
	for id := range workers {
		group.Go(func() error { return count(ctx, p.db, id+1) })
	}
	p.say("workers", "%s", failure(group.Wait()))
	p.query("shared", "select n from counter where id = 0")
	p.query("own", "select min(n), max(n), count(*) from counter where id > 0")
	p.exec("drop", "drop table counter")
	return nil
}

// count adds one to the worker's own row and to the shared one in each of its transactions; every fifth is undone and repeated.
func count(ctx context.Context, db *sql.DB, id int) error {
	for n := 0; n < transactions; n++ {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err = tx.ExecContext(ctx, "update counter set n = n + 1 where id in (0, $1)", id); err != nil {
			return err
		}
		if n%5 == 0 {
			if err = tx.Rollback(); err != nil {
				return err
			}
			if tx, err = db.BeginTx(ctx, nil); err != nil {
				return err
			}
			if _, err = tx.ExecContext(ctx, "update counter set n = n + 1 where id in ($1, 0)", id); err != nil {
				return err
			}
		}
		if err = tx.Commit(); err != nil {
			return err
		}
	}
	return nil
}
