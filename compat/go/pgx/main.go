// Command pgx is the smoke program of pgx: connections in each query mode, batches, pipelines, COPY and a pool. Its argument
// "statements" makes it the program of prepared statements.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgmoor/pgmoor/compat/go/report"
)

const schema = "compat_pgx"

// modes are the ways in which pgx sends a query.
var modes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement,
	pgx.QueryExecModeCacheDescribe,
	pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec,
	pgx.QueryExecModeSimpleProtocol,
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	out := report.New(os.Stdout)
	if isStatements() {
		statements(ctx, out)
	}
	out.Run("setup", func() error { return admin(ctx, "drop schema if exists "+schema+" cascade", "create schema "+schema) })
	for _, mode := range modes {
		each(ctx, out, mode.String(), mode, (*probe).queryMode)
	}
	for _, part := range []struct {
		name string
		run  func(*probe) error
	}{
		{"startup", (*probe).startup},
		{"transactions", (*probe).transactions},
		{"prepared", (*probe).prepared},
		{"batches", (*probe).batches},
		{"pipeline", (*probe).pipeline},
		{"copy", (*probe).copying},
		{"large", (*probe).large},
		{"session", (*probe).session},
		{"cancel", (*probe).cancel},
		{"notify", (*probe).notify},
		{"locks", (*probe).locks},
		{"pool", (*probe).pool},
	} {
		each(ctx, out, part.name, pgx.QueryExecModeCacheStatement, part.run)
	}
	out.Run("cleanup", func() error { return admin(ctx, "drop schema "+schema+" cascade") })
	out.Exit()
}

// probe is one connection and the place where what it sees is reported.
type probe struct {
	*report.Report
	ctx  context.Context
	name string
	conn *pgx.Conn
}

// each runs one part of the program on a connection of its own.
func each(ctx context.Context, out *report.Report, name string, mode pgx.QueryExecMode, part func(*probe) error) {
	out.Run(name, func() error {
		config, err := config()
		if err != nil {
			return err
		}
		config.DefaultQueryExecMode = mode
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return err
		}
		return errors.Join(part(&probe{out, ctx, name, conn}), conn.Close(ctx))
	})
}

func config() (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig("application_name=compat_pgx options='-c search_path=" + schema + " -c geqo=off'")
	if err == nil {
		config.RuntimeParams["timezone"] = "Europe/Berlin"
	}
	return config, err
}

func admin(ctx context.Context, statements ...string) error {
	conn, err := pgx.Connect(ctx, "")
	if err != nil {
		return err
	}
	for _, sql := range statements {
		if _, err = conn.Exec(ctx, sql); err != nil {
			break
		}
	}
	return errors.Join(err, conn.Close(ctx))
}

// beside runs part on a second connection.
func (p *probe) beside(part func(*probe) error) error {
	conn, err := pgx.ConnectConfig(p.ctx, p.conn.Config())
	if err != nil {
		return err
	}
	return errors.Join(part(&probe{p.Report, p.ctx, p.name + "/other", conn}), conn.Close(p.ctx))
}

func (p *probe) say(name, format string, args ...any) {
	p.Check(p.name+"/"+name, format, args...)
}

// query reports all that one statement answers, and the transaction status afterwards.
func (p *probe) query(name, sql string, args ...any) {
	noteText(sql)
	rows, err := p.conn.Query(p.ctx, sql, args...)
	if err != nil {
		p.say(name, "%s %c", failure(err), p.conn.PgConn().TxStatus())
		return
	}
	p.say(name, "%s %c", answer(rows), p.conn.PgConn().TxStatus())
}

// answer reads rows to their end and renders columns, values and tag.
func answer(rows pgx.Rows) string {
	values, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
	columns := ""
	for _, field := range rows.FieldDescriptions() {
		columns += fmt.Sprintf("%s:%d/%d/%d ", field.Name, field.DataTypeOID, field.TypeModifier, field.Format)
	}
	if err != nil {
		return columns + failure(err)
	}
	return fmt.Sprintf("%s%s %q", columns, report.JSON(values), rows.CommandTag().String())
}

// failure renders what a program can learn from an error.
func failure(err error) string {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &pgErr):
		return fmt.Sprintf("%s %s %q detail=%q hint=%q position=%d at=%s.%s.%s routine=%s", pgErr.Severity, pgErr.Code, pgErr.Message,
			pgErr.Detail, pgErr.Hint, pgErr.Position, pgErr.TableName, pgErr.ColumnName, pgErr.ConstraintName, pgErr.Routine)
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline exceeded"
	case errors.Is(err, context.Canceled):
		return "canceled"
	default:
		return fmt.Sprintf("%T", err)
	}
}
