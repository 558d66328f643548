// Command npgsql is the program of prepared statements that sends what Npgsql sends: a statement is prepared by Parse, Describe
// and Sync under the names _p1, _p2 and so on, run by Bind, Describe of the portal, Execute and Sync, several to a batch, dropped by a
// Close in front of the next batch, and by DISCARD ALL when the connection goes back to its pool.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgmoor/pgmoor/compat/go/report"
)

const schema = "compat_npgsql"

const (
	oidInt4 = 23
	oidText = 25
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	out := report.New(os.Stdout)
	out.Run("setup", func() error { return admin(ctx, "drop schema if exists "+schema+" cascade; create schema "+schema) })
	out.Run("statements", func() error { return statements(ctx, out) })
	out.Run("cleanup", func() error { return admin(ctx, "drop schema "+schema+" cascade") })
	out.Exit()
}

func admin(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, "")
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	return errors.Join(err, conn.Close(ctx))
}

// client is one connection of Npgsql's.
type client struct {
	*report.Report
	name     string
	conn     net.Conn
	frontend *pgproto3.Frontend
}

// dial logs in and leaves the connection to be spoken to message by message.
func dial(ctx context.Context, out *report.Report, name string) (*client, error) {
	config, err := pgconn.ParseConfig("application_name=compat_npgsql options='-c search_path=" + schema + " -c geqo=off'")
	if err != nil {
		return nil, err
	}
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	hijacked, err := conn.Hijack()
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	return &client{out, name, hijacked.Conn, hijacked.Frontend}, hijacked.Conn.SetDeadline(deadline)
}

func (c *client) close() error {
	c.frontend.Send(&pgproto3.Terminate{})
	return errors.Join(c.frontend.Flush(), c.conn.Close())
}

// send sends messages and reports everything that is answered up to as many ReadyForQuery as there are Syncs and Queries.
func (c *client) send(name string, messages ...pgproto3.FrontendMessage) {
	answers := 0
	for _, m := range messages {
		switch m := m.(type) {
		case *pgproto3.Sync, *pgproto3.Query:
			answers++
		case *pgproto3.Parse:
			texts[m.Query] = true
		}
		c.frontend.Send(m)
	}
	if err := c.frontend.Flush(); err != nil {
		c.Run(c.name+"/"+name, func() error { return err })
		return
	}
	var seen []string
	for answers > 0 {
		m, err := c.frontend.Receive()
		if err != nil {
			c.Run(c.name+"/"+name, func() error { return err })
			return
		}
		if _, ready := m.(*pgproto3.ReadyForQuery); ready {
			answers--
		}
		seen = append(seen, render(m))
	}
	c.Check(c.name+"/"+name, "%s", strings.Join(seen, " "))
}

func render(m pgproto3.BackendMessage) string {
	switch m := m.(type) {
	case *pgproto3.ReadyForQuery:
		return string(m.TxStatus)
	case *pgproto3.DataRow:
		return fmt.Sprintf("%q", m.Values)
	case *pgproto3.CommandComplete:
		return string(m.CommandTag)
	case *pgproto3.ParameterDescription:
		return fmt.Sprint(m.ParameterOIDs)
	case *pgproto3.ErrorResponse:
		return fmt.Sprintf("%s %s %q position=%d routine=%s", m.Severity, m.Code, m.Message, m.Position, m.Routine)
	case *pgproto3.RowDescription:
		text := ""
		for _, f := range m.Fields {
			text += fmt.Sprintf("%s:%d/%d", f.Name, f.DataTypeOID, f.Format)
		}
		return text
	default:
		return strings.TrimPrefix(fmt.Sprintf("%T", m), "*pgproto3.")
	}
}

// texts are the texts of the statements that were prepared.
var texts = map[string]bool{}

type messages = []pgproto3.FrontendMessage

func prepare(name, sql string, oids ...uint32) messages {
	return messages{
		&pgproto3.Parse{Name: name, Query: sql, ParameterOIDs: oids}, &pgproto3.Describe{ObjectType: 'S', Name: name}, &pgproto3.Sync{},
	}
}

// run is one statement of a batch, with its parameters and results in binary form.
func run(name string, values ...[]byte) messages {
	return messages{
		&pgproto3.Bind{PreparedStatement: name, ParameterFormatCodes: []int16{1}, Parameters: values, ResultFormatCodes: []int16{1}},
		&pgproto3.Describe{ObjectType: 'P'}, &pgproto3.Execute{},
	}
}

func batch(parts ...messages) (all messages) {
	for _, part := range parts {
		all = append(all, part...)
	}
	return append(all, &pgproto3.Sync{})
}

func closing(name string) messages {
	return messages{&pgproto3.Close{ObjectType: 'S', Name: name}}
}

func int4(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
