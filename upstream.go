package pgmoor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgmoor/pgmoor/internal/wire"
)

// protocol30 is the version with which the proxy logs in to servers.
const protocol30 = 3 << 16

// upstream opens server connections. It is the only user of pgconn: dialing, TLS and authentication are pgconn's; the
// startup packet is ours, so that the client's parameters reach the server in the client's order.
type upstream struct {
	cfg     Upstream
	sslMode string // for that of cfg
	secrets SecretSource
	base    *pgconn.Config // never modified: Copy
	logins  *logins        // shared with the upstream of an Update that leaves Hosts as they are
	initial initial        // of pooled connections
	asksMax bool           // how many connections the server allows
}

func newUpstream(c *Config) (*upstream, error) {
	base, err := baseConfig()
	if err != nil {
		return nil, fmt.Errorf("pgmoor: %w", err)
	}
	return &upstream{
		cfg: c.Upstream, sslMode: c.sslMode(), secrets: c.Secrets, base: base, logins: newLogins(len(c.Upstream.Hosts), c.maxOpening()),
		initial: newInitial(c.InitQuery), asksMax: c.MaxConnectionsPercent > 0,
	}, nil
}

// neutral overrides everything that pgconn would take from the environment.
const neutral = "host=localhost port=5432 user=x dbname=x password=x passfile='' connect_timeout=0 sslmode=disable sslkey='' sslcert='' " +
	"sslcertmode=allow sslsni=1 sslrootcert='' sslpassword='' sslnegotiation=postgres target_session_attrs=any " +
	"min_protocol_version='' max_protocol_version='' channel_binding=prefer require_auth=''"

// baseConfig returns a pgconn.Config in which nothing comes from the environment.
var baseConfig = sync.OnceValues(func() (*pgconn.Config, error) {
	conninfo := neutral
	if os.Getenv("PGSERVICE") != "" { // a service cannot be overridden by none: name an empty one
		f, err := os.CreateTemp("", "pgmoor-service")
		if err != nil {
			return nil, err
		}
		defer func() { _ = os.Remove(f.Name()) }()
		_, err = f.WriteString("[none]\n")
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		conninfo += " service=none servicefile='" + strings.ReplaceAll(f.Name(), "'", `\'`) + "'"
	}
	cfg, err := pgconn.ParseConfig(conninfo)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams = map[string]string{}
	cfg.Password = ""
	return cfg, nil
})

// loggedIn is a server connection that has just logged in. Whoever gets it owns conn.
type loggedIn struct {
	conn             net.Conn
	network, address string // where a cancel request goes
	pid              uint32
	secret           []byte
	statuses         []byte   // the ParameterStatus messages of the login, in the server's order
	set              settings // by Config.InitQuery
	initial          *initial // which that was; nil: none was run
	available        int      // connections that the server has for ordinary users; 0: it was not asked
}

// open logs in to the first host that lets it, for something else than a pool.
func (u *upstream) open(ctx context.Context, key *poolKey) (*loggedIn, error) {
	t, err := u.logins.enter(ctx)
	if err != nil {
		return nil, &openError{cause: err}
	}
	defer t.leave()
	return u.openAt(ctx, t, key, nil)
}

// openAt logs in to the first host, from the ticket's on, that lets it. Before anybody gets the connection, prepare may use it.
func (u *upstream) openAt(ctx context.Context, t *ticket, key *poolKey, prepare func(context.Context, newConn, *loggedIn) error) (*loggedIn, error) {
	ctx, cancel := context.WithTimeout(ctx, u.cfg.connectTimeout())
	defer cancel()
	secret, err := u.secret(ctx, key.user)
	if err != nil {
		return nil, &openError{cause: err}
	}
	li, err := u.logIn(ctx, t, key, secret, prepare)
	if err != nil {
		return nil, &openError{cause: err, hint: orDefault(initHint(err), passwordHint(err, secret))}
	}
	return li, nil
}

// secret returns the zero Secret where none is known.
func (u *upstream) secret(ctx context.Context, user string) (Secret, error) {
	if u.secrets == nil {
		return Secret{}, nil
	}
	return lookup(ctx, u.secrets, user)
}

func (u *upstream) logIn(ctx context.Context, t *ticket, key *poolKey, secret Secret, prepare func(context.Context, newConn, *loggedIn) error) (*loggedIn, error) {
	cfg, rec, err := u.config(t, key, secret)
	if err != nil {
		return nil, err
	}
	pc, err := pgconn.ConnectConfig(ctx, cfg)
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.verdict(err == nil || !isUnreachable(err))
	}
	if err != nil {
		return nil, err
	}
	li := new(loggedIn)
	if l, ok := pc.Conn().(*loginConn); ok {
		li.statuses = l.statuses()
		l.heard, l.done = nil, true
	}
	if prepare != nil {
		err = prepare(ctx, newConn{pc}, li)
	}
	if err == nil {
		err = pc.SyncConn(ctx)
	}
	if err != nil {
		_ = pc.Close(ctx)
		return nil, err
	}
	h, err := pc.Hijack()
	if err != nil {
		_ = pc.Close(ctx)
		return nil, err
	}
	conn := h.Conn
	if l, ok := conn.(*loginConn); ok {
		conn = l.Conn
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		_ = conn.Close()
		return nil, err
	}
	li.conn, li.network, li.address, li.pid, li.secret = conn, rec.network, rec.address, h.PID, h.SecretKey
	return li, nil
}

// openError is why no server connection could be opened.
type openError struct {
	cause error
	hint  string // for the client and for the log; may be empty
}

// Error returns, in one line, what went wrong with each server. pgconn's own text has a line for each attempt.
func (e *openError) Error() string {
	var connect *pgconn.ConnectError
	if !errors.As(e.cause, &connect) {
		return e.cause.Error()
	}
	attempts, ok := connect.Unwrap().(interface{ Unwrap() []error })
	if !ok {
		return connect.Unwrap().Error()
	}
	var where, what []string
	for _, err := range attempts.Unwrap() {
		address, _, _ := strings.Cut(err.Error(), " (") // pgconn tries one address with and without TLS
		if i := slices.Index(where, address); i >= 0 {
			what[i] = address + ": " + attemptText(err)
			continue
		}
		where, what = append(where, address), append(what, address+": "+attemptText(err))
	}
	return strings.Join(what, "; ")
}

// Unwrap returns the cause.
func (e *openError) Unwrap() error { return e.cause }

// attemptText is the text of one attempt without the address.
func attemptText(err error) string {
	var pg *pgconn.PgError
	var op *net.OpError
	switch {
	case errors.As(err, &pg):
		return pg.Error()
	case errors.As(err, &op):
		return op.Op + ": " + op.Err.Error()
	case errors.Unwrap(err) != nil:
		return errors.Unwrap(err).Error()
	}
	return err.Error()
}

// passwordHint says whose fault it is that a server refused the password that the proxy had for it, if it did.
func passwordHint(err error, secret Secret) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != codeBadPassword {
		return ""
	}
	const who = "The server, not the proxy, refused: "
	switch {
	case secret.isVerifier():
		return who + "it asks for a password, and of this user's the proxy knows the SCRAM verifier only. Give it the password in clear."
	case secret.isMD5():
		return who + "it asks for a password, and of this user's the proxy knows the MD5 hash only. Give it the password in clear."
	case secret.IsZero():
		return who + "it asks for a password, and the proxy knows none of this user."
	}
	return who + "the password that the proxy knows of this user is not the server's."
}

// dialed remembers where the last successful dial went.
type dialed struct{ network, address string }

func (u *upstream) config(t *ticket, key *poolKey, secret Secret) (*pgconn.Config, *dialed, error) {
	cfg := u.base.Copy()
	cfg.User, cfg.Database = key.user, key.database
	cfg.Password, _ = secret.password()
	rec := new(dialed)
	hosts := make(map[string]int) // by address
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if err := t.move(ctx, hosts[address]); err != nil {
			return nil, err
		}
		c, err := u.cfg.dialer().DialContext(ctx, network, address)
		if err == nil {
			*rec = dialed{network, u.cancelAddress(c, address)}
		}
		return c, err
	}
	cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil } // the Dialer's business
	cfg.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, c net.Conn) (net.Conn, error) {
		return &loginConn{Conn: c, startup: key.startup()}, nil
	}
	cfg.Fallbacks = nil
	for i, h := range u.cfg.Hosts {
		if i < t.host { // it is down
			continue
		}
		host, port, err := splitHost(h)
		if err != nil {
			return nil, nil, err
		}
		_, address := pgconn.NetworkAddress(host, port)
		if _, again := hosts[address]; !again {
			hosts[address] = i
		}
		for _, t := range u.tlsConfigs(host) {
			cfg.Fallbacks = append(cfg.Fallbacks, &pgconn.FallbackConfig{Host: host, Port: port, TLSConfig: t})
		}
	}
	first := cfg.Fallbacks[0]
	cfg.Host, cfg.Port, cfg.TLSConfig, cfg.Fallbacks = first.Host, first.Port, first.TLSConfig, cfg.Fallbacks[1:]
	return cfg, rec, nil
}

// cancelAddress is where a cancel request for conn goes: the very address that a net.Dialer reached, since a name may
// stand for several servers; any other dialer is asked for the same address again.
func (u *upstream) cancelAddress(conn net.Conn, address string) string {
	if _, ok := u.cfg.dialer().(*net.Dialer); ok {
		if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			return a.String()
		}
	}
	return address
}

// tlsConfigs returns what to try in turn on host, nil standing for no encryption, as libpq's documentation of sslmode has it.
func (u *upstream) tlsConfigs(host string) []*tls.Config {
	if strings.HasPrefix(host, "/") {
		return []*tls.Config{nil}
	}
	c := new(tls.Config)
	if u.cfg.TLSConfig != nil {
		c = u.cfg.TLSConfig.Clone()
	}
	if c.ServerName == "" {
		c.ServerName = host
	}
	mode := u.sslMode
	if mode == "require" && c.RootCAs != nil { // as libpq does where a root certificate file exists
		mode = "verify-ca"
	}
	switch mode {
	case "disable":
		return []*tls.Config{nil}
	case "verify-full":
		return []*tls.Config{c}
	}
	c.InsecureSkipVerify = true
	switch mode {
	case "allow":
		return []*tls.Config{nil, c}
	case "prefer":
		return []*tls.Config{c, nil}
	case "verify-ca":
		roots := c.RootCAs
		c.VerifyConnection = func(s tls.ConnectionState) error { return verifyChain(s, roots) }
	}
	return []*tls.Config{c}
}

// verifyChain checks that the server's certificate was issued by one of roots, and not the name in it.
func verifyChain(s tls.ConnectionState, roots *x509.CertPool) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("pgmoor: the server sent no certificate")
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range s.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(opts)
	return err
}

// errNotHost says what Upstream.Hosts takes. It shows nothing of what was there, which may hold a password.
var errNotHost = errors.New(`not a server: Hosts takes host:port, not a DSN: write "db1:5432", "[::1]:5432", "db1" or "/var/run/postgresql", ` +
	"one element for each server, and put passwords into Config.Secrets")

// splitHost takes an entry of Upstream.Hosts apart. Its errors show nothing of it but a port.
func splitHost(h string) (host string, port uint16, err error) {
	host, service := h, "5432"
	socket := strings.HasPrefix(h, "/")
	i := strings.LastIndexByte(h, ':')
	switch {
	case strings.Contains(h, "://") || strings.ContainsAny(h, "@,") || !socket && strings.ContainsAny(h, "/?= \t\n"):
		return "", 0, errNotHost
	case socket && i > 0, !socket && strings.Count(h, ":") == 1, strings.HasPrefix(h, "[") && strings.Contains(h, "]:"):
		host, service = h[:i], h[i+1:]
	}
	if !socket && strings.ContainsAny(host, ":[]") {
		if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
			host = host[1 : len(host)-1]
		}
		if _, err := netip.ParseAddr(host); err != nil {
			return "", 0, errNotHost
		}
	}
	p, err := strconv.ParseUint(service, 10, 16)
	switch {
	case host == "":
		return "", 0, errNotHost
	case err != nil && strings.Trim(service, "0123456789") != "":
		return "", 0, fmt.Errorf("a port is not a number: %w", errNotHost)
	case err != nil || p == 0:
		return "", 0, fmt.Errorf("port %s is not between 1 and 65535", service)
	}
	return host, uint16(p), nil
}

// loginConn is a server connection while pgconn logs in on it. It puts our startup packet in the place of pgconn's first
// write, and keeps a copy of what the server says. Only pgconn's goroutine uses it.
type loginConn struct {
	net.Conn
	startup []byte // nil once sent
	heard   []byte
	done    bool // nothing more is kept
}

// maxLoginBytes bounds the copy of what a server says during a login.
const maxLoginBytes = 256 << 10

func (l *loginConn) Write(p []byte) (int, error) {
	if l.startup == nil {
		return l.Conn.Write(p)
	}
	_, err := l.Conn.Write(l.startup)
	l.startup = nil
	return len(p), err
}

func (l *loginConn) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if !l.done && len(l.heard)+n <= maxLoginBytes {
		l.heard = append(l.heard, p[:n]...)
	}
	return n, err
}

// statuses returns the ParameterStatus messages among what was heard.
func (l *loginConn) statuses() []byte {
	var out []byte
	for b := l.heard; len(b) >= wire.HeaderLen; {
		n := int(wire.Length(b)) + 1
		if n < wire.HeaderLen || n > len(b) {
			break
		}
		if b[0] == wire.ParameterStatus {
			out = append(out, b[:n]...)
		}
		b = b[n:]
	}
	return out
}

// startup returns the startup packet for the key.
func (k *poolKey) startup() []byte {
	b := make([]byte, 8, 64+len(k.user)+len(k.database)+len(k.params))
	binary.BigEndian.PutUint32(b[4:], protocol30)
	for _, s := range []string{"user", k.user, "database", k.database} {
		b = append(append(b, s...), 0)
	}
	b = append(append(b, k.params...), 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

// isPermanent reports whether a login failed for a reason that waiting does not mend: the server refused these
// credentials or parameters.
func isPermanent(err error) bool {
	var pg *pgconn.PgError
	if init := (*initError)(nil); errors.As(err, &init) {
		return true
	}
	if !errors.As(err, &pg) || len(pg.Code) != 5 {
		return false
	}
	switch pg.Code[:2] {
	case "28", "3D", "42", "22", "0A":
		return true
	}
	return pg.Code == "55000" // the database does not accept connections
}

// isUnreachable reports whether a login failed because of the host, not of what it was asked.
func isUnreachable(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == codeCannotConnectNow
	}
	return true
}

// newConn is a connection that has just logged in and that nobody has got yet.
type newConn struct{ pc *pgconn.PgConn }

// run runs statements and returns all their rows. An error of the server's does not point into their text, which no client knows.
func (c newConn) run(ctx context.Context, statements string) (rows [][][]byte, err error) {
	all, err := c.pc.Exec(ctx, statements).ReadAll()
	for _, res := range all {
		rows = append(rows, res.Rows...)
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		e := *pg
		e.Position, e.InternalPosition, e.InternalQuery = 0, 0, ""
		return nil, &e
	}
	return rows, err
}
