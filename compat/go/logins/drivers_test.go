package logins_test

import (
	"bufio"
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// limit is how long one login may take.
const limit = 20 * time.Second

// asks is what drivers ask when they are in.
const asks = "SELECT current_user, (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())"

// A driver is one of those that log in, and what it knows.
type driver struct {
	name   string
	direct bool // sslnegotiation=direct
	binds  bool // SCRAM-SHA-256-PLUS
	bearer bool // OAUTHBEARER
	codes  bool // it tells the SQLSTATE of a login that failed
	start  func(*testing.T) func(login) outcome
	logIn  func(login) outcome
	said   map[string]outcome // what PostgreSQL has said to it
}

// drivers are those that there are.
func drivers(t *testing.T) []*driver {
	old, recent := psqls(t)
	return []*driver{
		old,
		recent,
		{name: "psycopg", direct: true, binds: true, bearer: true, start: program(os.Getenv("COMPAT_PYTHON"), "../../python/logins_psycopg.py")},
		{name: "asyncpg", direct: true, codes: true, start: program(os.Getenv("COMPAT_PYTHON"), "../../python/logins_asyncpg.py")},
		{name: "pgx", direct: true, binds: true, bearer: true, codes: true, start: always(pgxLogin)},
		{name: "lib/pq", codes: true, start: always(pqLogin)},
		{name: "pgjdbc", direct: true, binds: true, codes: true, start: program("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", os.Getenv("COMPAT_CLASSPATH"), "Logins")},
		{name: "node-postgres", direct: true, binds: true, codes: true, start: program("node", "../../node/logins.js")},
	}
}

// A login is a loginCase at an address.
type login struct {
	loginCase
	host, port                      string
	root, certFile, keyFile, derKey string
}

// login says where the files of a case are.
func (w *world) login(c loginCase, address string) login {
	l := login{loginCase: c, root: w.path("root.crt")}
	l.host, l.port, _ = net.SplitHostPort(address)
	if c.cert != "" {
		l.certFile, l.keyFile, l.derKey = w.path(c.cert+".crt"), w.path(c.cert+".key"), w.path(c.cert+".pk8")
	}
	return l
}

// conninfo is libpq's.
func (l *login) conninfo(modern bool) string {
	info := map[string]string{
		"host": l.host, "port": l.port, "user": l.user, "dbname": l.database, "sslmode": "disable", "gssencmode": "disable", "connect_timeout": "10",
	}
	set := func(name, value string) {
		if value != "" {
			info[name] = value
		}
	}
	set("password", l.password)
	if l.over != plain {
		info["sslmode"], info["sslrootcert"] = "verify-full", l.root
		set("sslcert", l.certFile)
		set("sslkey", l.keyFile)
	}
	if l.bind {
		info["channel_binding"] = "require"
	}
	if l.direct() {
		info["sslnegotiation"] = "direct"
	}
	if modern {
		set("require_auth", l.require)
	}
	var b strings.Builder
	for name, value := range info {
		fmt.Fprintf(&b, "%s='%s' ", name, strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value))
	}
	return b.String()
}

// always is a driver that needs no start.
func always(logIn func(login) outcome) func(*testing.T) func(login) outcome {
	return func(*testing.T) func(login) outcome { return logIn }
}

// psqls are psql with the distribution's libpq, and with that of PostgreSQL 18.
func psqls(t *testing.T) (old, recent *driver) {
	psql, err := exec.LookPath("psql")
	require.NoError(t, err)
	out, err := exec.Command(psql, "--version").Output()
	require.NoError(t, err)
	var version float64
	_, err = fmt.Sscanf(string(out), "psql (PostgreSQL) %g", &version)
	require.NoError(t, err, "%s", out)
	b, err := pgtest.FindBinaries(18)
	require.NoError(t, err)
	if own := filepath.Join(b.Dir, "psql"); exists(own) {
		psql = own
	} else {
		require.FileExists(t, filepath.Join(b.LibDir, "libpq.so.5"), "PostgreSQL 18's libpq is missing")
	}
	old = &driver{name: "psql, libpq before 17", direct: version >= 17, binds: true, start: always(psqlLogin("psql", "", version >= 16))}
	recent = &driver{name: "psql, libpq 18", direct: true, binds: true, start: always(psqlLogin(psql, b.LibDir, true))}
	return old, recent
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// psqlLogin runs psql for each login.
func psqlLogin(psql, libraries string, modern bool) func(login) outcome {
	return func(l login) outcome {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		cmd := exec.CommandContext(ctx, psql, "-XAtw", "-F", " ", "-c", asks, l.conninfo(modern))
		cmd.Env = append(os.Environ(), "LC_ALL=C", "PGPASSFILE=/dev/null", "HOME=/nonexistent", "PGCLIENTENCODING=UTF8")
		if libraries != "" {
			cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+libraries)
		}
		var said strings.Builder
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err == nil {
			user, encrypted, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
			return outcome{user: user, encrypted: encrypted == "t"}
		}
		return libpqFailure(said.String())
	}
}

// libpqFailure takes libpq's text apart: the server's message, or what libpq has to say itself.
func libpqFailure(text string) outcome {
	if _, message, ok := strings.Cut(text, "FATAL:  "); ok {
		message, _, _ = strings.Cut(message, "\n")
		return outcome{message: message}
	}
	return outcome{failure: ports.ReplaceAllString(text, "${1}N")}
}

// clean is a login's configuration for pgx, with nothing from the environment.
func clean(l login) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(strings.ReplaceAll(l.conninfo(true), "gssencmode='disable'", ""))
	if err != nil {
		return nil, err
	}
	if l.token != "" {
		cfg.OAuthTokenProvider = func(context.Context) (string, error) { return l.token, nil }
	}
	return cfg, nil
}

func pgxLogin(l login) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cfg, err := clean(l)
	if err != nil {
		return outcome{failure: err.Error()}
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return goFailure(err)
	}
	defer conn.Close(ctx)
	var o outcome
	if err := conn.QueryRow(ctx, asks).Scan(&o.user, &o.encrypted); err != nil {
		return goFailure(err)
	}
	return o
}

func pqLogin(l login) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	connector, err := pq.NewConnector(strings.ReplaceAll(l.conninfo(false), "gssencmode='disable'", ""))
	if err != nil {
		return outcome{failure: err.Error()}
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	var o outcome
	if err := db.QueryRowContext(ctx, asks).Scan(&o.user, &o.encrypted); err != nil {
		return goFailure(err)
	}
	return o
}

// goFailure takes an error of pgx or lib/pq apart.
func goFailure(err error) outcome {
	var pg *pgconn.PgError
	var lib *pq.Error
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &pg):
		return outcome{code: pg.Code, message: pg.Message}
	case errors.As(err, &lib):
		return outcome{code: string(lib.Code), message: lib.Message}
	case errors.As(err, &unknown):
		return outcome{failure: unknown.Error()}
	}
	return outcome{failure: ports.ReplaceAllString(err.Error(), "${1}N")}
}

// program starts a program that reads logins from its standard input, one a line, and writes what each came to: fields NAME=VALUE with tabs
// between them, values as in the query of a URL.
func program(name string, args ...string) func(*testing.T) func(login) outcome {
	return func(t *testing.T) func(login) outcome {
		cmd := exec.Command(name, args...)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			in.Close()
			require.NoError(t, cmd.Wait(), name)
		})
		lines := bufio.NewScanner(out)
		return func(l login) outcome {
			kill := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
			defer kill.Stop()
			_, err := fmt.Fprintln(in, l.line())
			require.NoError(t, err)
			require.True(t, lines.Scan(), "%s has not come to an end with %+v", name, l)
			return readLine(lines.Text())
		}
	}
}

// line is a login for a program.
func (l *login) line() string {
	var b strings.Builder
	for _, f := range [][2]string{
		{"host", l.host},
		{"port", l.port},
		{"user", l.user},
		{"password", l.password},
		{"database", l.database},
		{"tls", strconv.FormatBool(l.over != plain)},
		{"direct", strconv.FormatBool(l.direct())},
		{"bind", strconv.FormatBool(l.bind)},
		{"root", l.root},
		{"cert", l.certFile},
		{"key", l.keyFile},
		{"pk8", l.derKey},
		{"token", l.token},
		{"require", l.require},
		{"asks", asks},
	} {
		b.WriteString(f[0] + "=" + url.QueryEscape(f[1]) + "\t")
	}
	return strings.TrimSuffix(b.String(), "\t")
}

func readLine(line string) outcome {
	fields := map[string]string{}
	for f := range strings.SplitSeq(line, "\t") {
		name, value, _ := strings.Cut(f, "=")
		text, err := url.QueryUnescape(value)
		if err != nil {
			text = value
		}
		fields[name] = text
	}
	if text := fields["libpq"]; text != "" {
		return libpqFailure(text)
	}
	return outcomeOf(fields)
}
