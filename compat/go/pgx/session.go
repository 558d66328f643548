package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

const (
	workers      = 20
	transactions = 20
	lockKey      = 70101
)

func (p *probe) session() error {
	p.query("set", "set datestyle = 'German'")
	p.say("parameter", "%q", p.conn.PgConn().ParameterStatus("DateStyle"))
	p.query("show", "show datestyle")
	p.query("set in transaction", "begin")
	p.query("set in transaction", "set timezone = 'Asia/Tokyo'")
	p.say("parameter", "%q", p.conn.PgConn().ParameterStatus("TimeZone"))
	p.query("set local", "set local application_name = 'local'")
	p.say("parameter", "%q", p.conn.PgConn().ParameterStatus("application_name"))
	p.query("rollback", "rollback")
	p.say("parameter", "%q %q", p.conn.PgConn().ParameterStatus("TimeZone"), p.conn.PgConn().ParameterStatus("application_name"))
	p.query("set_config", "select set_config('compat.tenant', $1, false)", "seven")
	p.query("show", "select current_setting('compat.tenant')")
	p.query("reset", "reset datestyle")
	p.query("show", "show datestyle")
	p.query("temp", "create temp table mine (n int)")
	p.query("temp insert", "insert into mine values (1), (2)")
	p.query("temp select", "select sum(n) from mine")
	err := p.beside(func(other *probe) error {
		other.query("temp", "select sum(n) from mine")
		other.query("setting", "select current_setting('compat.tenant', true), current_setting('datestyle')")
		return nil
	})
	p.query("temp drop", "drop table mine")
	p.query("hold", "declare held cursor with hold for select generate_series(1, 5)")
	p.query("fetch", "fetch 2 from held")
	p.query("fetch", "fetch 2 from held")
	p.query("close", "close held")
	p.query("fetch", "fetch 2 from held")
	p.query("timeout", "set statement_timeout = '50ms'")
	p.query("timed out", "select pg_sleep(20)")
	p.query("no timeout", "reset statement_timeout")
	p.query("usable", "show statement_timeout")
	return err
}

// cancel has a running query canceled as soon as another connection sees it run.
func (p *probe) cancel() error {
	const sleep = "select pg_sleep(50) /* compat_pgx */"
	for range 3 {
		canceled := make(chan error, 1)
		go p.cancelWhenRunning(sleep, canceled)
		p.query("canceled", sleep)
		if err := <-canceled; err != nil {
			return err
		}
		p.query("usable", "select 'still here'")
	}
	p.say("cancel of nothing", "%s", failure(p.conn.PgConn().CancelRequest(p.ctx)))
	return p.beside(func(other *probe) error {
		short, stop := context.WithTimeout(other.ctx, 50*time.Millisecond)
		defer stop()
		_, err := other.conn.Exec(short, "select pg_sleep(50)")
		other.say("deadline", "%s closed=%v", failure(err), other.conn.IsClosed())
		return nil
	})
}

// cancelWhenRunning sends its error, or nil once p's query has been asked to stop.
func (p *probe) cancelWhenRunning(sql string, canceled chan<- error) {
	canceled <- p.beside(func(other *probe) error {
		const running = "select count(*) from pg_stat_activity where query = $1 and wait_event = 'PgSleep'"
		for count := 0; count == 0; {
			if err := other.conn.QueryRow(p.ctx, running, sql).Scan(&count); err != nil {
				return err
			}
		}
		return p.conn.PgConn().CancelRequest(p.ctx)
	})
}

func (p *probe) notify() error {
	p.query("listen", "listen compat_pgx")
	p.query("notify", "notify compat_pgx, 'first'")
	p.notification()
	p.query("begin", "begin")
	p.query("notify", "select pg_notify('compat_pgx', $1)", "second")
	p.query("commit", "commit")
	p.notification()
	err := p.beside(func(other *probe) error {
		other.query("notify", "notify compat_pgx, 'third'")
		return nil
	})
	p.notification()
	p.query("unlisten", "unlisten *")
	p.query("notify", "notify compat_pgx, 'unheard'")
	p.query("channels", "select count(*) from pg_listening_channels()")
	return err
}

func (p *probe) notification() {
	ctx, cancel := context.WithTimeout(p.ctx, 5*time.Second)
	defer cancel()
	n, err := p.conn.WaitForNotification(ctx)
	if err != nil {
		p.say("notification", "%s", failure(err))
		return
	}
	p.say("notification", "%s %q", n.Channel, n.Payload)
}

func (p *probe) locks() error {
	p.query("lock", "select pg_advisory_lock($1)", lockKey)
	try := func(other *probe) error {
		other.query("try", "select pg_try_advisory_lock($1)", lockKey)
		return nil
	}
	if err := p.beside(try); err != nil {
		return err
	}
	p.query("unlock", "select pg_advisory_unlock($1)", lockKey)
	p.query("unlock again", "select pg_advisory_unlock($1)", lockKey)
	return p.beside(func(other *probe) error {
		other.query("lock", "select pg_advisory_lock($1)", lockKey)
		other.query("unlock all", "select pg_advisory_unlock_all()")
		return nil
	})
}

// pool has many goroutines share a pgxpool, and counts what they did.
func (p *probe) pool() error {
	p.query("create", "create table counter (id int primary key, n int not null)")
	p.query("fill", "insert into counter select n, 0 from generate_series(0, $1) n", workers)
	config, err := pgxpool.ParseConfig("pool_max_conns=20")
	if err != nil {
		return err
	}
	config.ConnConfig = p.conn.Config()
	pool, err := pgxpool.NewWithConfig(p.ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	group, ctx := errgroup.WithContext(p.ctx)
	for id := range workers {
		group.Go(func() error { return count(ctx, pool, id+1) })
	}
	p.say("workers", "%s", failure(group.Wait()))
	p.query("shared", "select n from counter where id = 0")
	p.query("own", "select min(n), max(n), count(*) from counter where id > 0")
	err = pool.AcquireFunc(p.ctx, func(conn *pgxpool.Conn) error { return conn.Ping(p.ctx) })
	p.say("ping", "%s", failure(err))
	return nil
}

// count adds one to the worker's own row and to the shared one in each of its transactions; some are undone first.
func count(ctx context.Context, pool *pgxpool.Pool, id int) error {
	for n := range transactions {
		add := func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "update counter set n = n + 1 where id in (0, $1)", id)
			return err
		}
		if n%5 == 0 {
			undone := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				if err := add(tx); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, "select 1 / 0")
				return err
			})
			if undone == nil {
				return fmt.Errorf("worker %d: a failing transaction succeeded", id)
			}
		}
		if err := pgx.BeginFunc(ctx, pool, add); err != nil {
			return fmt.Errorf("worker %d: %w", id, err)
		}
	}
	return nil
}
