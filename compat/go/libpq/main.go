// Command libpq is the smoke program of lib/pq under database/sql, with text and with binary parameters. Its argument
// "statements" makes it the program of prepared statements.
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

const (
	schema  = "compat_libpq"
	connect = "application_name=compat_libpq timezone=Europe/Berlin options='-c search_path=" + schema + " -c geqo=off'"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	out := report.New(os.Stdout)
	if isStatements() {
		statements(ctx, out)
	}
	out.Run("setup", func() error { return admin(ctx, "drop schema if exists "+schema+" cascade; create schema "+schema) })
	for _, way := range []string{"text", "binary"} {
		extra := ""
		if way == "binary" {
			extra = " binary_parameters=yes"
		}
		each(ctx, out, way+" queries", connect+extra, (*probe).queries)
		each(ctx, out, way+" prepared", connect+extra, (*probe).prepared)
		each(ctx, out, way+" large", connect+extra, (*probe).large)
	}
	each(ctx, out, "startup", connect, (*probe).startup)
	each(ctx, out, "transactions", connect, (*probe).transactions)
	each(ctx, out, "copy", connect, (*probe).copying)
	each(ctx, out, "session", connect, (*probe).session)
	each(ctx, out, "cancel", connect, (*probe).cancel)
	each(ctx, out, "notify", connect, (*probe).notify)
	each(ctx, out, "concurrent", connect, (*probe).concurrent)
	each(ctx, out, "concurrent binary", connect+" binary_parameters=yes", (*probe).concurrent)
	out.Run("cleanup", func() error { return admin(ctx, "drop schema "+schema+" cascade") })
	out.Exit()
}

// probe is a database handle, one of its connections, and the place where what it sees is reported.
type probe struct {
	*report.Report
	ctx  context.Context
	name string
	db   *sql.DB
	conn *sql.Conn
}

// each runs one part of the program on a connection of its own, whose notices are reported.
func each(ctx context.Context, out *report.Report, name, dsn string, part func(*probe) error) {
	out.Run(name, func() error {
		connector, err := pq.NewConnector(dsn)
		if err != nil {
			return err
		}
		db := sql.OpenDB(pq.ConnectorWithNoticeHandler(connector, func(notice *pq.Error) {
			out.Check(name+"/notice", "%s %s", notice.Code, notice.Message)
		}))
		conn, err := db.Conn(ctx)
		if err != nil {
			return errors.Join(err, db.Close())
		}
		return errors.Join(part(&probe{out, ctx, name, db, conn}), conn.Close(), db.Close())
	})
}

func admin(ctx context.Context, statements string) error {
	db, err := sql.Open("postgres", "options='-c client_min_messages=warning'")
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, statements)
	return errors.Join(err, db.Close())
}

func (p *probe) say(name, format string, args ...any) {
	p.Check(p.name+"/"+name, format, args...)
}

// query reports all that a query answers, result set by result set.
func (p *probe) query(name, text string, args ...any) {
	noteText(text)
	rows, err := p.conn.QueryContext(p.ctx, text, args...)
	p.answer(name, rows, err)
}

func (p *probe) answer(name string, rows *sql.Rows, err error) {
	if err != nil {
		p.say(name, "%s", failure(err))
		return
	}
	for more := true; more; more = rows.NextResultSet() {
		p.say(name, "%s", resultSet(rows))
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		p.say(name, "%s", failure(err))
	}
}

func resultSet(rows *sql.Rows) string {
	types, err := rows.ColumnTypes()
	if err != nil {
		return failure(err)
	}
	text := ""
	for _, column := range types {
		text += column.Name() + ":" + column.DatabaseTypeName() + " "
	}
	for rows.Next() {
		values, places := make([]any, len(types)), make([]any, len(types))
		for n := range values {
			places[n] = &values[n]
		}
		if err := rows.Scan(places...); err != nil {
			return text + failure(err)
		}
		text += report.JSON(values)
	}
	return text
}

// exec reports the number of rows that a statement concerned.
func (p *probe) exec(name, text string, args ...any) {
	noteText(text)
	result, err := p.conn.ExecContext(p.ctx, text, args...)
	if err != nil {
		p.say(name, "%s", failure(err))
		return
	}
	count, err := result.RowsAffected()
	p.say(name, "%d rows %s", count, failure(err))
}

// failure renders what a program can learn from an error.
func failure(err error) string {
	var pqErr *pq.Error
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &pqErr):
		return fmt.Sprintf("%s %s %q detail=%q hint=%q position=%s at=%s.%s.%s routine=%s", pqErr.Severity, pqErr.Code, pqErr.Message,
			pqErr.Detail, pqErr.Hint, pqErr.Position, pqErr.Table, pqErr.Column, pqErr.Constraint, pqErr.Routine)
	case errors.Is(err, context.Canceled):
		return "canceled"
	default:
		return err.Error()
	}
}
