package pgmoor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"strings"
	"time"
)

// NoWait as [Config].BorrowTimeout means that a client for which no server connection is idle gets the error at once. It
// is what 0 means in RDS Proxy's ConnectionBorrowTimeout.
const NoWait = time.Duration(-1)

// NoIdle as [Config].MaxIdleConnectionsPercent means that no server connection is kept beyond IdleTimeout. It is what 0 means in
// RDS Proxy's MaxIdleConnectionsPercent.
const NoIdle = -1

// Defaults and bounds of [Config]'s fields.
const (
	DefaultMaxConnections   = 20
	DefaultMaxOpening       = 4
	DefaultBorrowTimeout    = 120 * time.Second
	MaxBorrowTimeout        = 300 * time.Second
	DefaultHandshakeTimeout = 60 * time.Second
	DefaultMaxHandshakes    = 1000
	DefaultConnectTimeout   = 30 * time.Second
	DefaultIdleTimeout      = 5 * time.Minute
	DefaultUnpinInterval    = time.Second
	DefaultMaxStatements    = 256

	DefaultIdleClientTimeout = 30 * time.Minute
	MinIdleClientTimeout     = time.Minute
	MaxIdleClientTimeout     = 8 * time.Hour
	DefaultMaxClientLifetime = 24 * time.Hour
	DefaultMaxServerLifetime = 24 * time.Hour
	MaxInitQuery             = 16 << 10
)

// VerifyMode says when a server is asked what a session has left behind on it: one query, between transactions.
type VerifyMode uint8

const (
	// VerifyPinned asks when a pin may have ended. It is the default.
	VerifyPinned VerifyMode = iota
	// VerifyNever does not ask: a pin whose end only the server knows lasts until the client disconnects.
	VerifyNever
	// VerifyListed asks also after every transaction with a statement that mentions one of Config.VerifyFunctions.
	VerifyListed
	// VerifyAlways asks also after every transaction of a session that is not pinned. It finds state that functions, DO
	// blocks and triggers leave behind, at the price of a query for each transaction.
	VerifyAlways
)

// Config says what a [Proxy] does. Only [Upstream].Hosts is required. [New] copies it; what it points to must not be
// changed afterwards. docs/configuration.md says what to choose, and docs/pinning.md what Pinning is about.
type Config struct {
	// Upstream is where the server connections go.
	Upstream Upstream

	// Authenticator decides whether a network client may come in. If nil, clients are asked for SCRAM-SHA-256 with
	// the passwords of Secrets; if Secrets is nil too, network clients are refused. Clients that come through
	// DialContext are not asked.
	Authenticator Authenticator

	// Secrets gives the password of a user, for authenticating clients and for logging in to servers as that user. If
	// nil, the proxy logs in without a password.
	Secrets SecretSource

	// TLS, if not nil, is offered to clients that ask for encryption, by SSLRequest or by direct TLS with the ALPN
	// protocol "postgresql", which is added to a copy of it. The minimum version is TLS 1.2.
	TLS *tls.Config

	// RequireTLS refuses network clients that did not ask for encryption, and wants the same of servers, as RDS Proxy's RequireTLS
	// does. Unix sockets and DialContext count as private. It needs TLS. An empty Upstream.SSLMode then means "require"; "disable", "allow"
	// and "prefer" are an error, unless all Hosts are Unix sockets. "disable" is none either where Upstream.Dialer is one of the
	// application's own, which then has to encrypt.
	RequireTLS bool

	// MaxConnections is the greatest number of server connections that are open or being opened at any moment, over
	// all databases and users. Replication connections, connections that listen ([Stats].Listeners) and cancel requests are
	// not counted. If zero, DefaultMaxConnections, unless MaxConnectionsPercent is given. Of both the smaller counts.
	MaxConnections int

	// Budget says how many server connections this instance may hold, where several instances share what a server has
	// room for. What is counted is the same as for MaxConnections, which is then an upper bound of what this instance takes of it, none if zero. A
	// connection counts until the server has closed its side, too, for which it is given a second. If nil, MaxConnections alone decides.
	Budget Budget

	// Peers are the other instances behind the same load balancer, to whom cancel requests are passed on that are for their
	// clients. If nil, Budget, where that is a Peers; if that is none either, cancel requests of other instances' clients are dropped.
	Peers Peers

	// MaxConnectionsPercent is the same as a percentage of the connections that the server has for ordinary users:
	// max_connections less superuser_reserved_connections and, from PostgreSQL 16 on, reserved_connections. It is at least one
	// connection. The server is asked at every login, so that the limit follows a server that was restarted with others or
	// replaced; until the first has told, one connection is opened. What a Budget grants is a limit besides. If zero, MaxConnections
	// alone counts.
	MaxConnectionsPercent int

	// MaxIdleConnectionsPercent is how many of the idle server connections are kept beyond IdleTimeout, as a percentage of what
	// MaxConnectionsPercent is one of, or of MaxConnections where that is not given; then it may be up to 100, else up to
	// MaxConnectionsPercent. Connections that pinned sessions keep are not idle. If zero, half of MaxConnectionsPercent;
	// NoIdle, or neither given, keeps none.
	MaxIdleConnectionsPercent int

	// MaxConnectionsPerDatabase and MaxConnectionsPerUser are the greatest numbers of server connections for any one database and
	// for any one user, within MaxConnections. If zero, there is no such limit.
	MaxConnectionsPerDatabase, MaxConnectionsPerUser int

	// MinConnections is how many server connections are kept open for each database, user and set of startup parameters for
	// which a client is connected, as far as MaxConnections has room. They are opened when the first client has logged in,
	// and give way to clients that wait for others. If zero, none are.
	MinConnections int

	// MaxOpening is the greatest number of logins that are under way at once at each of Upstream.Hosts, over all databases and
	// users, and of those that wait for their turn for each database and user. While a host cannot be reached one login at
	// a time tries it, after pauses that grow to seconds. If zero, DefaultMaxOpening.
	MaxOpening int

	// MaxWaiting is the greatest number of requests, and of clients that log in, that may wait for a server connection of one
	// database, user and set of startup parameters. One more gets SQLSTATE 53300 at once. If zero, there is no such limit.
	MaxWaiting int

	// InitQuery is run on every new server connection before a client gets it, and again where a connection is reset with
	// DISCARD ALL: one or more statements with semicolons between them, in ASCII, in one transaction unless they say otherwise.
	// What they set is the clients' default: RESET returns to it, and a SET of the same costs nothing. Where it
	// fails, so does the login, and clients that wait for a first connection get the server's error. It is not run on
	// connections that listen or replicate. It is for settings and LOAD: where a server is asked whether a pin may end, a temporary
	// table, lock or prepared statement of InitQuery's is taken for the client's. Passwords do not belong into it. It is RDS Proxy's InitQuery. At most
	// MaxInitQuery bytes; if empty, nothing is run.
	InitQuery string

	// MaxStatements is the greatest number of named prepared statements that are kept on a server connection, for all clients
	// together. Beyond it the one that was not used for the longest time is closed, and prepared again where a client uses it. If
	// zero, DefaultMaxStatements.
	MaxStatements int

	// RoundRobin lends server connections in turn: next is the one that has been idle longest, whatever it was used for. It is
	// PgBouncer's server_round_robin. If false, it is the one that was used last, of those in the client's settings where there is
	// one; the others then stay idle and are closed in the end. In turn, none is idle for long: while there is a request for each of
	// them within IdleTimeout, a pool that has grown for a moment stays as large, as PgBouncer's does, until MaxServerLifetime.
	RoundRobin bool

	// BorrowTimeout is how long a request waits for a server connection before it fails with SQLSTATE 08000, and a client
	// that logs in for the first one of its kind (see HandshakeTimeout). It is RDS Proxy's
	// ConnectionBorrowTimeout. For as long a connection that listens may be missing before the sessions that listen are ended. If
	// zero, DefaultBorrowTimeout; NoWait does not wait; at most MaxBorrowTimeout.
	BorrowTimeout time.Duration

	// IdleTimeout is how long a server connection may be idle before it is closed, unless MaxIdleConnectionsPercent keeps it. If
	// zero, DefaultIdleTimeout; if negative, there is no limit.
	IdleTimeout time.Duration

	// MaxServerLifetime is the age at which a server connection is not lent any more and closed as soon as nobody uses it. Each
	// has a little less than that, so that those which were opened together are not closed together. If zero,
	// DefaultMaxServerLifetime; if negative, there is no limit.
	MaxServerLifetime time.Duration

	// IdleClientTimeout is how long a client may send nothing, while it waits for no answer, before it is disconnected with
	// SQLSTATE 57P05; in a transaction too, which is rolled back. Clients that only listen for notifications are idle. It is looked
	// at once a second. It is RDS Proxy's IdleClientTimeout, with its default, since a client that is forgotten in a transaction
	// would else keep its server connection for ever: if zero, DefaultIdleClientTimeout; if negative, there is no limit;
	// else between MinIdleClientTimeout and MaxIdleClientTimeout.
	IdleClientTimeout time.Duration

	// MaxClientLifetime is the age at which a client is disconnected with SQLSTATE 57P01, at the end of its transaction, however
	// active it is. If zero, DefaultMaxClientLifetime, which is RDS Proxy's; if negative, there is no limit.
	MaxClientLifetime time.Duration

	// MaxClients is the greatest number of clients that are logged in or authenticating, also in this process. One more
	// gets SQLSTATE 53300. If zero, there is no such limit.
	MaxClients int

	// ConnectionRate is how many clients may come in each second, over any longer time; as many may come at once. One more gets
	// SQLSTATE 53300. If zero, there is no such limit.
	ConnectionRate int

	// HandshakeTimeout bounds what a client does before it is logged in: TLS, startup, authentication. It is
	// PostgreSQL's authentication_timeout. It does not bound the wait for the servers that may follow: the first client
	// of a database, user and startup parameters waits until a server has let it in, for at most BorrowTimeout, or
	// Upstream.ConnectTimeout where that is NoWait. While no server can be reached, that is how long such clients wait
	// before they get SQLSTATE 08000. If zero, DefaultHandshakeTimeout.
	HandshakeTimeout time.Duration

	// MaxHandshakes is the greatest number of network clients that may be in the middle of logging in. Beyond it
	// new connections wait in the listener's backlog. If zero, DefaultMaxHandshakes.
	MaxHandshakes int

	// Pinning decides which effects of statements are carried from one server connection to another, which make
	// a session keep its connection, which are shared with other clients, and which statements are refused. If nil,
	// [DefaultPinning]; [StrictPinning] pins as RDS Proxy does.
	Pinning PinningPolicy

	// Verify says when a server is asked whether the reason of a pin is gone, and what state a session has left behind
	// that its statements do not show. If zero, [VerifyPinned].
	Verify VerifyMode

	// VerifyFunctions are the names of functions and procedures that may leave state in the session; of a name with a
	// schema only the last part counts. With [VerifyListed] the server is asked after every transaction that
	// mentions one.
	VerifyFunctions []string

	// UnpinInterval is how long a pinned session keeps its server connection before the server is asked whether the
	// reason is gone, if the session was active since it was last asked. It is asked at once where another client waits
	// for a connection, or where a statement may have ended the reason. The time is looked at once a second. If
	// zero, DefaultUnpinInterval; if negative, no time makes it asked.
	UnpinInterval time.Duration

	// Logger receives what an operator wants to know. If nil, slog.Default.
	Logger *slog.Logger

	// plainIO keeps every connection on the ordinary path; tests compare the two.
	plainIO bool
}

// Upstream describes the PostgreSQL servers and how they are reached. Nothing is taken from the PG* variables of the
// environment, nor from password or service files.
type Upstream struct {
	// Hosts are the addresses to try, in order: "host:port", "host" (port 5432), or the directory of a Unix socket
	// with or without the port ("/var/run/postgresql", "/var/run/postgresql:5433"). An IPv6 address with a port stands in
	// brackets ("[::1]:5432"). They are no connection strings: passwords belong into Config.Secrets. Required.
	Hosts []string

	// Dialer opens the network connections. If nil, a net.Dialer.
	Dialer Dialer

	// SSLMode is libpq's sslmode: "disable", "allow", "prefer", "require", "verify-ca" or "verify-full". If empty,
	// "prefer", or "require" with Config.RequireTLS or a direct SSLNegotiation. Unix sockets are never encrypted.
	SSLMode string

	// SSLNegotiation is libpq's sslnegotiation: "postgres" asks the server whether it encrypts before TLS begins, "direct" begins with TLS, with
	// the ALPN protocol "postgresql", which saves a round trip and is for PostgreSQL 17 and later. "direct" needs an SSLMode of "require" or more:
	// it leaves nothing to fall back to. If empty, "postgres".
	SSLNegotiation string

	// ChannelBinding is libpq's channel_binding: "disable", "prefer" or "require". With TLS, a login by SCRAM is bound to the server's
	// certificate where the server can. "require" refuses every other login, also by a password in clear or its MD5 hash, so that
	// nobody in between gets a password or a session, whoever issued its certificate; without TLS there is no other. If empty, "prefer".
	ChannelBinding string

	// TLSConfig, if not nil, is the base of the TLS configuration, for its RootCAs, Certificates and the like;
	// SSLMode decides what is verified, and its VerifyConnection is asked besides.
	TLSConfig *tls.Config

	// ConnectTimeout bounds one login, from dialing to the first ReadyForQuery, and Config.InitQuery behind it. If zero,
	// DefaultConnectTimeout.
	ConnectTimeout time.Duration
}

// Dialer opens network connections to servers. *net.Dialer is one. It is called from several goroutines at once; the
// connections that it returns belong to the proxy, and their deadlines must work.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// DialerFunc is a function that is a [Dialer].
type DialerFunc func(ctx context.Context, network, address string) (net.Conn, error)

// DialContext calls f.
func (f DialerFunc) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return f(ctx, network, address)
}

func (c *Config) validate() error {
	if c.RequireTLS && c.TLS == nil {
		return errors.New("pgmoor: Config.RequireTLS needs Config.TLS: the certificate that clients are shown")
	}
	if err := c.validateEncryption(); err != nil {
		return err
	}
	if err := errors.Join(checkPart(c.Authenticator, c), checkPart(c.Secrets, c)); err != nil {
		return err
	}
	for _, p := range parameters {
		if err := p.check(c); err != nil {
			return err
		}
	}
	if err := c.validateShares(); err != nil {
		return err
	}
	if c.Verify > VerifyAlways {
		return fmt.Errorf("pgmoor: Config.Verify is %d, which is no VerifyMode", c.Verify)
	}
	for _, f := range []any{c.Budget, c.Peers, c.Secrets} {
		if v, ok := f.(interface{ Validate() error }); ok {
			if err := v.Validate(); err != nil {
				return err
			}
		}
	}
	return c.Upstream.validate()
}

// weakModes are those values of Upstream.SSLMode that let a server do without encryption.
var weakModes = []string{"disable", "allow", "prefer"}

// validateEncryption checks what RequireTLS means for servers.
func (c *Config) validateEncryption() error {
	u := &c.Upstream
	if !c.RequireTLS || !slices.Contains(weakModes, u.SSLMode) ||
		!slices.ContainsFunc(u.Hosts, func(h string) bool { return !strings.HasPrefix(h, "/") }) {
		return nil
	}
	if _, std := u.dialer().(*net.Dialer); u.SSLMode == "disable" && !std {
		return nil
	}
	return fmt.Errorf("pgmoor: Config.RequireTLS is for servers too, and Config.Upstream.SSLMode is %q: "+
		"leave it empty, or set \"require\", \"verify-ca\" or \"verify-full\"", u.SSLMode)
}

// sslMode returns the mode that counts.
func (c *Config) sslMode() string {
	if c.RequireTLS || c.Upstream.direct() {
		return orDefault(c.Upstream.SSLMode, "require")
	}
	return orDefault(c.Upstream.SSLMode, "prefer")
}

// validateShares checks what depends on more than one field, and InitQuery.
func (c *Config) validateShares() error {
	if most := orDefault(c.MaxConnectionsPercent, 100); c.MaxIdleConnectionsPercent > most {
		return fmt.Errorf("pgmoor: Config.MaxIdleConnectionsPercent is %d: it must not be more than MaxConnectionsPercent, %d", c.MaxIdleConnectionsPercent, most)
	}
	if !isASCII(c.InitQuery) || strings.Contains(c.InitQuery, "\x00") {
		return errors.New("pgmoor: Config.InitQuery must be in ASCII, since clients choose the encoding that it is read in: write other characters as escapes, U&'\\00E9' or E'\\u00E9'")
	}
	return nil
}

func (u *Upstream) validate() error {
	if len(u.Hosts) == 0 {
		return errors.New("pgmoor: Config.Upstream.Hosts is empty: name at least one server, as in \"db1:5432\"")
	}
	for i, h := range u.Hosts {
		if _, _, err := splitHost(h); err != nil {
			return fmt.Errorf("pgmoor: Config.Upstream.Hosts[%d]: %w", i, err)
		}
	}
	if !slices.Contains([]string{"", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"}, u.SSLMode) {
		return fmt.Errorf("pgmoor: Config.Upstream.SSLMode %q is not one of libpq's: disable, allow, prefer, require, verify-ca or verify-full", u.SSLMode)
	}
	switch {
	case !slices.Contains([]string{"", "postgres", "direct"}, u.SSLNegotiation):
		return fmt.Errorf("pgmoor: Config.Upstream.SSLNegotiation %q is not one of postgres, direct", u.SSLNegotiation)
	case u.direct() && slices.Contains(weakModes, u.SSLMode):
		return fmt.Errorf("pgmoor: Config.Upstream.SSLNegotiation is \"direct\", and Config.Upstream.SSLMode is %q: "+
			"leave it empty, or set \"require\", \"verify-ca\" or \"verify-full\"", u.SSLMode)
	}
	if !slices.Contains([]string{"", "disable", "prefer", "require"}, u.ChannelBinding) {
		return fmt.Errorf("pgmoor: Config.Upstream.ChannelBinding %q is not one of disable, prefer, require", u.ChannelBinding)
	}
	return nil
}

// orDefault returns v, or def where v is its type's zero value.
func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func (c *Config) maxConnections() int { return orDefault(c.MaxConnections, DefaultMaxConnections) }

// ownLimit returns how many server connections may be open, whatever Budget grants, where the server has so many for ordinary users;
// 0: it has not said so yet, and was is what they may be until then.
func (c *Config) ownLimit(available, was int) int {
	limit := math.MaxInt32
	if c.MaxConnections > 0 || c.MaxConnectionsPercent == 0 && c.Budget == nil {
		limit = c.maxConnections()
	}
	switch {
	case c.MaxConnectionsPercent == 0:
		return limit
	case available == 0:
		return min(limit, was)
	}
	return min(limit, max(1, available*c.MaxConnectionsPercent/100))
}

// maxIdlePercent returns how much of all connections may be idle beyond IdleTimeout.
func (c *Config) maxIdlePercent() int {
	return max(orDefault(c.MaxIdleConnectionsPercent, c.MaxConnectionsPercent/2), 0)
}

func (c *Config) idleClientTimeout() time.Duration {
	return orDefault(c.IdleClientTimeout, DefaultIdleClientTimeout)
}

func (c *Config) maxClientLifetime() time.Duration {
	return orDefault(c.MaxClientLifetime, DefaultMaxClientLifetime)
}

func (c *Config) maxServerLifetime() time.Duration {
	return orDefault(c.MaxServerLifetime, DefaultMaxServerLifetime)
}

func (c *Config) maxStatements() int { return orDefault(c.MaxStatements, DefaultMaxStatements) }

func (c *Config) maxOpening() int { return orDefault(c.MaxOpening, DefaultMaxOpening) }

func (c *Config) maxHandshakes() int { return orDefault(c.MaxHandshakes, DefaultMaxHandshakes) }

func (c *Config) borrowTimeout() time.Duration {
	return orDefault(c.BorrowTimeout, DefaultBorrowTimeout)
}

func (c *Config) unpinInterval() time.Duration {
	return orDefault(c.UnpinInterval, DefaultUnpinInterval)
}

func (c *Config) idleTimeout() time.Duration { return orDefault(c.IdleTimeout, DefaultIdleTimeout) }

func (c *Config) handshakeTimeout() time.Duration {
	return orDefault(c.HandshakeTimeout, DefaultHandshakeTimeout)
}

func (c *Config) pinning() PinningPolicy {
	if c.Pinning == nil {
		return DefaultPinning{}
	}
	return c.Pinning
}

func (c *Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.Default()
	}
	return c.Logger
}

func (u *Upstream) direct() bool { return u.SSLNegotiation == "direct" }

func (u *Upstream) connectTimeout() time.Duration {
	return orDefault(u.ConnectTimeout, DefaultConnectTimeout)
}

func (u *Upstream) dialer() Dialer {
	if u.Dialer == nil {
		return &net.Dialer{}
	}
	return u.Dialer
}
