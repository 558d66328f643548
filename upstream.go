package pgmoor

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
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
	proofs  *proofs        // shared with the upstreams of all Updates
}

func newUpstream(c *Config) (*upstream, error) {
	base, err := baseConfig()
	if err != nil {
		return nil, fmt.Errorf("pgmoor: %w", err)
	}
	return &upstream{
		cfg: c.Upstream, sslMode: c.sslMode(), secrets: c.Secrets, base: base, logins: newLogins(len(c.Upstream.Hosts), c.maxOpening()),
		initial: newInitial(c.InitQuery), asksMax: c.MaxConnectionsPercent > 0, proofs: new(proofs),
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
	network, address string      // where a cancel request goes
	encryption       *encryption // of that, as of conn; nil: neither is encrypted
	pid              uint32
	secret           []byte
	statuses         []byte   // the ParameterStatus messages of the login, in the server's order
	set              settings // by Config.InitQuery
	initial          *initial // which that was; nil: none was run
	available        int      // connections that the server has for ordinary users; 0: it was not asked
	with             Secret   // what the server was given, if it asked
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

// preparer uses a new connection before anybody gets it.
type preparer = func(context.Context, newConn, *loggedIn) error

// openAt logs in to the first host, from the ticket's on, that lets it. Before anybody gets the connection, prepare may use it.
func (u *upstream) openAt(ctx context.Context, t *ticket, key *poolKey, prepare preparer) (*loggedIn, error) {
	ctx, cancel := context.WithTimeout(ctx, u.cfg.connectTimeout())
	defer cancel()
	var li *loggedIn
	secret, err := u.withSecret(ctx, key.user, func(s Secret) (err error) {
		li, err = u.logIn(ctx, t, key, s, prepare)
		return err
	})
	if err != nil {
		return nil, &openError{cause: err, hint: orDefault(initHint(err), passwordHint(err, secret))}
	}
	li.with = secret
	return li, nil
}

// connect logs in.
func (u *upstream) connect(ctx context.Context, t *ticket, key *poolKey, secret Secret) (*pgconn.PgConn, *dialed, error) {
	cfg, rec, err := u.config(t, key, secret)
	if err != nil {
		return nil, nil, err
	}
	pc, err := pgconn.ConnectConfig(ctx, cfg)
	cfg.Password = "" // a pgconn.ConnectError holds cfg
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.verdict(err == nil || !isUnreachable(err))
	}
	return pc, rec, err
}

// logIn logs in and takes the connection over.
func (u *upstream) logIn(ctx context.Context, t *ticket, key *poolKey, secret Secret, prepare preparer) (*loggedIn, error) {
	pc, rec, err := u.connect(ctx, t, key, secret)
	if err != nil {
		return nil, err
	}
	li := new(loggedIn)
	li.statuses = rec.login.end()
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
	if err := h.Conn.SetDeadline(time.Time{}); err != nil {
		_ = h.Conn.Close()
		return nil, err
	}
	li.conn, li.network, li.address, li.encryption = h.Conn, rec.network, rec.address, rec.encryption
	li.pid, li.secret = h.PID, h.SecretKey
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
	var handshake *handshakeError
	switch {
	case errors.As(err, &pg):
		return pg.Error()
	case errors.As(err, &handshake):
		return handshake.Error()
	case errors.As(err, &op):
		return op.Op + ": " + op.Err.Error()
	case errors.Unwrap(err) != nil:
		return errors.Unwrap(err).Error()
	}
	return err.Error()
}

// handshakeError is why TLS with a server did not come about.
type handshakeError struct{ cause error }

// Error returns the cause.
func (e *handshakeError) Error() string { return "TLS handshake: " + e.cause.Error() }

// Unwrap returns the cause.
func (e *handshakeError) Unwrap() error { return e.cause }

// isRefusedPassword reports whether a login failed because of the password.
func isRefusedPassword(err error) bool {
	var pg *pgconn.PgError
	var init *initError
	return errors.As(err, &pg) && pg.Code == codeBadPassword && !errors.As(err, &init)
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
		return who + "it asks for a password, and of this user's the proxy knows the SCRAM verifier only. Give it the password in clear, " +
			"or have clients log in to the proxy by SCRAM, and the server know the very same verifier."
	case secret.isMD5():
		return who + "it asks for a password, and of this user's the proxy knows the MD5 hash only. Give it the password in clear."
	case secret.IsZero():
		return who + "it asks for a password, and the proxy knows none of this user."
	}
	return who + "the password that the proxy knows of this user is not the server's."
}

// proofFailed makes the server's refusal of what the exchange has come to: whoever waits for a login is told the same as where the
// server says so.
func proofFailed(err error) error {
	return &pgconn.PgError{
		Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: codeBadPassword,
		Message: "password authentication failed: " + strings.TrimPrefix(err.Error(), "scram: "),
	}
}

// dialed remembers where the last successful dial went, and what pgconn logs in on there.
type dialed struct {
	network, address string
	encryption       *encryption // nil: it is not encrypted
	login            *loginConn
}

// attempt is one call of pgconn's, which tries one host after the other. Its methods are what pgconn calls.
type attempt struct {
	dialed
	u      *upstream
	t      *ticket
	key    *poolKey
	secret Secret
	hosts  map[string]target // by address

	at   string         // where the last dial went, as pgconn has it
	conn net.Conn       // of that
	cfg  *pgconn.Config // for that
}

// target is one of Upstream.Hosts.
type target struct {
	index int         // the first one with that address
	tls   *tls.Config // nil: connections to it are never encrypted
}

func (u *upstream) config(t *ticket, key *poolKey, secret Secret) (*pgconn.Config, *dialed, error) {
	cfg := u.base.Copy()
	cfg.User, cfg.Database = key.user, key.database
	cfg.Password, _ = secret.password()
	cfg.SSLNegotiation = orDefault(u.cfg.SSLNegotiation, "postgres")
	a := &attempt{u: u, t: t, key: key, secret: secret, hosts: make(map[string]target)}
	cfg.DialFunc, cfg.AfterNetConnect, cfg.BuildFrontend = a.dial, a.connected, a.frontend
	cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil } // the Dialer's business
	all, err := a.targets()
	if err != nil {
		return nil, nil, err
	}
	first := all[0]
	cfg.Host, cfg.Port, cfg.TLSConfig, cfg.Fallbacks = first.Host, first.Port, first.TLSConfig, all[1:]
	return cfg, &a.dialed, nil
}

// targets returns what to try, in order.
func (a *attempt) targets() (all []*pgconn.FallbackConfig, err error) {
	for i, h := range a.u.cfg.Hosts {
		if i < a.t.host { // it is down
			continue
		}
		host, port, err := splitHost(h)
		if err != nil {
			return nil, err
		}
		to := target{index: i}
		for _, t := range a.u.tlsConfigs(host) {
			all = append(all, &pgconn.FallbackConfig{Host: host, Port: port, TLSConfig: t})
			if t != nil {
				to.tls = t
			}
		}
		_, address := pgconn.NetworkAddress(host, port)
		if _, again := a.hosts[address]; !again {
			a.hosts[address] = to
		}
	}
	return all, nil
}

func (a *attempt) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if err := a.t.move(ctx, a.hosts[address].index); err != nil {
		return nil, err
	}
	c, err := a.u.cfg.dialer().DialContext(ctx, network, address)
	if err == nil {
		a.at, a.dialed = address, dialed{network: network, address: a.u.cancelAddress(c, address)}
	}
	return c, err
}

// connected is called when the connection is encrypted, if it is to be. With direct negotiation the handshake is not made before the first
// byte, so it is made here: what binding looks at is there afterwards.
func (a *attempt) connected(ctx context.Context, cfg *pgconn.Config, c net.Conn) (net.Conn, error) {
	if t, ok := c.(*tls.Conn); ok {
		if err := t.HandshakeContext(ctx); err != nil {
			return c, &handshakeError{err}
		}
		a.encryption = &encryption{a.hosts[a.at].tls, a.u.cfg.direct()}
	}
	cfg.ChannelBinding = a.u.binding(c)
	a.cfg, a.conn = cfg, c
	return c, nil
}

func (a *attempt) frontend(r io.Reader, w io.Writer) *pgproto3.Frontend {
	a.login = newLoginConn(r, w, a.key.startup())
	if keys, ok := a.u.proofs.of(a.key.user, a.secret); ok {
		a.login.prover = newProver(a.conn, r, &a.cfg.ChannelBinding, keys)
	}
	return a.login.frontend
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
	init := (*initError)(nil)
	inInit := errors.As(err, &init)
	if !errors.As(err, &pg) || len(pg.Code) != 5 {
		return inInit && isOwn(err)
	}
	if inInit { // the server's word on Config.InitQuery, unless it went away
		return pg.Code[:3] != "57P"
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

// openOwn logs in for queries of the proxy's own.
func (u *upstream) openOwn(ctx context.Context, key *poolKey) (newConn, error) {
	t, err := u.logins.enter(ctx)
	if err != nil {
		return newConn{}, err
	}
	defer t.leave()
	ctx, cancel := context.WithTimeout(ctx, u.cfg.connectTimeout())
	defer cancel()
	var pc *pgconn.PgConn
	var rec *dialed
	_, err = u.withSecret(ctx, key.user, func(s Secret) error {
		pc, rec, err = u.connect(ctx, t, key, s)
		return err
	})
	if err != nil {
		return newConn{}, &openError{cause: err}
	}
	rec.login.end()
	return newConn{pc}, nil
}

// newConn is a connection that has just logged in and that nobody has got yet, or one of the proxy's own; or none.
type newConn struct{ pc *pgconn.PgConn }

func (c newConn) usable() bool { return c.pc != nil && !c.pc.IsClosed() }

// ask runs one query with a text as its parameter, and returns all its rows.
func (c newConn) ask(ctx context.Context, query, param string) (rows [][][]byte, err error) {
	res := c.pc.ExecParams(ctx, query, [][]byte{[]byte(param)}, nil, nil, nil).Read()
	return res.Rows, res.Err
}

// close says goodbye, for a second at most.
func (c newConn) close() {
	if !c.usable() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.pc.Close(ctx)
}

// isNoText reports whether a server found that a parameter is not in its encoding.
func isNoText(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == codeBadText
}

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
