package pgmoor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Defaults of [AuthQuery].
const (
	DefaultAuthQuery = `SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL ELSE rolpassword END ` +
		`FROM pg_catalog.pg_authid WHERE rolname=$1 AND rolcanlogin`
	DefaultAuthQueryTimeout = 5 * time.Second
)

// AuthQuery is a [SecretSource] that asks a database, as PgBouncer's auth_query does, on one connection of its own: nothing that clients
// send reaches it but a user's name, as a bound parameter. The connection is opened by the first question, and is not one of
// Config.MaxConnections. Its methods may be called from any goroutine, and questions wait for each other: put [CachedSecrets] in front.
// Use it by pointer, change no field once it is used, and call Close when the Proxy is closed.
//
// What a database knows is a verifier. It lets the client in, and what a client proves by SCRAM lets the proxy in, as that user, where the server has the
// same verifier. Otherwise the server has to trust the proxy, since it would ask for a password.
type AuthQuery struct {
	// Upstream is where the database is. Its ConnectTimeout counts within Timeout. With Config.RequireTLS its SSLMode has to be "require" or
	// more, or all its Hosts Unix sockets. Required.
	Upstream Upstream

	// User is who asks. Clients never become this user, whatever is found or not. Required.
	User string

	// Secrets has the password of User, and no one else's. If nil, there is none.
	Secrets SecretSource

	// Database is which one is asked. If empty, "postgres".
	Database string

	// Query has one parameter, the user's name, and returns no row for a user that may not log in, or one row of two columns: the name,
	// and the secret, which is NULL where there is none or it is not valid any more. A row of another name is none. The search_path is
	// empty, so it names everything with its schema. If empty, DefaultAuthQuery, for which User has to be a superuser; others call
	// a function that is SECURITY DEFINER, as docs/configuration.md shows.
	Query string

	// Timeout bounds a question with everything that belongs to it, on the server by statement_timeout, too. If zero,
	// DefaultAuthQueryTimeout.
	Timeout time.Duration

	// Logger is told of connections that are lost. If nil, slog.Default.
	Logger *slog.Logger

	start sync.Once // makes gate and up
	gate  chan struct{}
	up    *upstream
	upErr error

	conn   newConn // this and what follows is of who has put something into gate
	closed bool
}

// errAuthQueryClosed is what questions get after Close.
var errAuthQueryClosed = errors.New("pgmoor: AuthQuery is closed")

// Validate returns an error where a field makes no sense. [New] and [Proxy.Update] call it; it opens nothing.
func (q *AuthQuery) Validate() error {
	if q.User == "" {
		return errors.New("pgmoor: AuthQuery.User is missing: say who asks the database")
	}
	if q.Timeout < 0 {
		return errors.New("pgmoor: AuthQuery.Timeout must not be negative")
	}
	if err := q.Upstream.validate(); err != nil {
		return fmt.Errorf("pgmoor: AuthQuery: %s", strings.TrimPrefix(err.Error(), "pgmoor: "))
	}
	if v, ok := q.Secrets.(interface{ Validate() error }); ok {
		return v.Validate()
	}
	return nil
}

// check wants of the database's server what Config.RequireTLS wants of servers. An empty SSLMode will not do: the connection may be made
// before a Proxy is.
func (q *AuthQuery) check(cfg *Config) error {
	up := q.Upstream
	up.SSLMode = (&Config{Upstream: up}).sslMode()
	if err := (&Config{RequireTLS: cfg.RequireTLS, Upstream: up}).validateEncryption(); err != nil {
		return errors.New("pgmoor: Config.RequireTLS is for the server of AuthQuery too: set its Upstream.SSLMode to \"require\", \"verify-ca\" or \"verify-full\"")
	}
	return nil
}

// Secret asks the database for the user's secret.
func (q *AuthQuery) Secret(ctx context.Context, user string) (Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, orDefault(q.Timeout, DefaultAuthQueryTimeout))
	defer cancel()
	if err := q.enter(ctx); err != nil {
		return Secret{}, err
	}
	defer q.leave()
	rows, err := q.ask(ctx, user)
	switch {
	case isNoText(err): // nobody has a name that is none
		return Secret{}, ErrNoSecret
	case err != nil: // of a server, about another user: no client is to find it in the chain
		return Secret{}, errors.New("pgmoor: AuthQuery: " + err.Error())
	}
	return secretIn(rows, user)
}

// secretIn reads the result of a Query.
func secretIn(rows [][][]byte, user string) (Secret, error) {
	switch {
	case len(rows) == 0:
		return Secret{}, ErrNoSecret
	case len(rows) > 1 || len(rows[0]) != 2:
		return Secret{}, errors.New("pgmoor: AuthQuery.Query must return at most one row, and two columns: the name and the secret")
	case string(rows[0][0]) != user || len(rows[0][1]) == 0: // such as a longer name that the server has cut
		return Secret{}, ErrNoSecret
	}
	return NewSecret(string(rows[0][1])), nil
}

// Close closes the connection. Questions are errors from then on.
func (q *AuthQuery) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), orDefault(q.Timeout, DefaultAuthQueryTimeout))
	defer cancel()
	if err := q.enter(ctx); err != nil {
		if errors.Is(err, errAuthQueryClosed) {
			return nil
		}
		return err
	}
	defer q.leave()
	q.closed = true
	q.conn.close()
	return nil
}

// enter waits until nobody else uses the connection.
func (q *AuthQuery) enter(ctx context.Context) error {
	q.start.Do(func() {
		q.gate = make(chan struct{}, 1)
		q.up, q.upErr = newUpstream(&Config{Upstream: q.Upstream, Secrets: q.Secrets})
	})
	if q.upErr != nil {
		return q.upErr
	}
	select {
	case q.gate <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if q.closed {
		q.leave()
		return errAuthQueryClosed
	}
	return nil
}

func (q *AuthQuery) leave() { <-q.gate }

// ask asks on the connection that there is, and where that turns out to be lost, on a new one.
func (q *AuthQuery) ask(ctx context.Context, user string) (rows [][][]byte, err error) {
	query := orDefault(q.Query, DefaultAuthQuery)
	if q.conn.usable() {
		rows, err = q.conn.ask(ctx, query, user)
		if q.conn.usable() || ctx.Err() != nil {
			return rows, err
		}
		orDefault(q.Logger, slog.Default()).Warn("pgmoor: the connection for authentication queries is lost, another one is opened", slog.Any("err", err))
	}
	if q.conn, err = q.up.openOwn(ctx, q.key()); err != nil {
		return nil, err
	}
	return q.conn.ask(ctx, query, user)
}

// key is what the connection begins with. Such parameters count more than those that the role or the database has.
func (q *AuthQuery) key() *poolKey {
	limit := orDefault(q.Timeout, DefaultAuthQueryTimeout).Milliseconds()
	return &poolKey{
		user: q.User, database: orDefault(q.Database, "postgres"),
		params: "search_path\x00\x00application_name\x00pgmoor\x00statement_timeout\x00" + strconv.FormatInt(max(1, limit), 10) + "\x00",
	}
}
