// Package demodb gives the examples a PostgreSQL: the one that the user names, or a throw-away one of their own.
package demodb

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/examples/internal/dsn"
)

// DB is a database and who may use it.
type DB struct {
	Upstream pgmoor.Upstream
	User     string
	Database string
	// Password is what clients of a Proxy with Secrets log in with. It is made up where the server asks for none.
	Password string
	// Invented tells that Password was made up, and may be shown.
	Invented bool

	source string // of connections without a proxy
	server *server
}

// Open returns the database that source names, after a look whether it answers. Without source, it starts a server in
// a temporary directory, with PostgreSQL's programs on this machine or else with downloaded ones. say is told what
// happens. The caller calls Close.
func Open(ctx context.Context, source string, say func(string)) (*DB, error) {
	if source == "" {
		return openThrowaway(ctx, say)
	}
	d, err := dsn.Parse(source)
	if err != nil {
		return nil, fmt.Errorf("the connection string: %w", err)
	}
	if d.User == "" {
		return nil, errors.New("the connection string names no user: postgres://user:password@host/database")
	}
	db := &DB{User: d.User, Password: d.Password, Database: d.Database, source: source}
	if db.Database == "" {
		db.Database = db.User
	}
	if db.Upstream, err = d.Upstream(); err != nil {
		return nil, err
	}
	c, err := db.Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("the server that the connection string names: %w\nmend -upstream, or leave it and PGMOOR_UPSTREAM away for a throw-away server", err)
	}
	say("using PostgreSQL " + c.PgConn().ParameterStatus("server_version") + " at " + db.Upstream.Hosts[0])
	db.invent()
	return db, c.Close(ctx)
}

func (db *DB) invent() {
	if db.Password == "" {
		db.Password, db.Invented = rand.Text(), true
	}
}

// Close stops and deletes a throw-away server.
func (db *DB) Close() error {
	if db.server == nil {
		return nil
	}
	return db.server.stop()
}

// Secrets returns what a Proxy needs to let the user in and to log in to the server as the user.
func (db *DB) Secrets() pgmoor.SecretSource {
	return pgmoor.StaticSecrets{db.User: pgmoor.NewSecret(db.Password)}
}

// Connect connects to the server without a pooler between.
func (db *DB) Connect(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, db.source) }
