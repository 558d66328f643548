package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/examples/internal/dsn"
)

// options is what the flags say.
type options struct {
	version      bool
	listen       addresses
	upstream     string
	users        string
	auth         string
	tlsCert      string
	tlsKey       string
	metrics      string
	logLevel     slog.Level
	drainTimeout time.Duration

	servers *dsn.DSN // upstream, taken apart
	secrets pgmoor.StaticSecrets
	config  pgmoor.Config
}

// addresses is a flag that may be repeated.
type addresses []string

// String joins what was given.
func (a *addresses) String() string { return strings.Join(*a, ",") }

// Set adds an address.
func (a *addresses) Set(s string) error {
	if !isSocket(s) {
		if _, _, err := net.SplitHostPort(s); err != nil {
			return errors.New("neither HOST:PORT nor the path of a Unix socket")
		}
	}
	*a = append(*a, s)
	return nil
}

// isSocket reports whether an address is the path of a Unix socket.
func isSocket(addr string) bool { return strings.ContainsRune(addr, '/') }

const usage = `Usage: standalone -upstream DSN [flags]

A connection pooler for PostgreSQL. Clients log in with the names and passwords of the users file, choose any
database, and share a few server connections on which the servers know them by the same names.

`

// parseOptions reads the flags and everything they name except the network: what it accepts can be started. It prints help
// to stdout.
func parseOptions(args []string, stdout io.Writer) (*options, error) {
	o := &options{}
	f := o.flags()
	f.SetOutput(io.Discard)
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		f.SetOutput(stdout)
		f.PrintDefaults()
	}
	if err != nil || o.version {
		return o, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return o, o.resolve()
}

func (o *options) flags() *flag.FlagSet {
	f := flag.NewFlagSet("standalone", flag.ContinueOnError)
	c := &o.config
	f.Var(&o.listen, "listen", "accept clients on `ADDRESS`: HOST:PORT, or the path of a Unix socket; may be repeated (default 127.0.0.1:6432)")
	f.StringVar(&o.upstream, "upstream", "", "the servers: a `DSN` as URL or keywords; several hosts are tried in order. Its sslmode,\n"+
		"sslrootcert and connect_timeout count. A user and password in it are as good as a line of the\nusers file; a database in it does not matter. Required")
	f.StringVar(&o.users, "users", "", "`FILE` with passwords in the format of PgBouncer's userlist.txt")
	f.StringVar(&o.auth, "auth", "scram-sha-256", "how clients log in: `METHOD` scram-sha-256, md5, or trust. trust takes any user at his word, on\n"+
		"loopback addresses and Unix sockets only; on the servers he needs a password of the users file, or none")
	f.IntVar(&c.MaxConnections, "max-connections", pgmoor.DefaultMaxConnections, "open at most `N` server connections, over all databases and users")
	f.IntVar(&c.MaxOpening, "max-opening", pgmoor.DefaultMaxOpening, "log in to the servers at most `N` times at once, for each database and user")
	f.StringVar(&o.tlsCert, "tls-cert", "", "`FILE` with the certificate for clients that ask for encryption, in PEM form, with -tls-key")
	f.StringVar(&o.tlsKey, "tls-key", "", "`FILE` with the key of -tls-cert")
	f.BoolVar(&c.RequireTLS, "require-tls", false, "refuse clients that do not ask for encryption, except on Unix sockets")
	f.DurationVar(&c.BorrowTimeout, "borrow-timeout", pgmoor.DefaultBorrowTimeout, "let a request wait so long for a server connection; 0: not at all")
	f.DurationVar(&c.IdleTimeout, "idle-timeout", pgmoor.DefaultIdleTimeout, "close a server connection that was idle for so long; 0: never")
	f.DurationVar(&c.HandshakeTimeout, "handshake-timeout", pgmoor.DefaultHandshakeTimeout, "let a client take so long to log in")
	f.DurationVar(&o.drainTimeout, "drain-timeout", 30*time.Second, "let transactions take so long to finish after the first signal")
	f.StringVar(&o.metrics, "metrics", "", "serve figures over HTTP on `HOST:PORT`: /stats (JSON) and /healthz")
	f.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "log `LEVEL` and above: debug, info, warn or error")
	f.BoolVar(&o.version, "version", false, "print the version and exit")
	return f
}

// resolve checks the flags against each other and makes the Config.
func (o *options) resolve() error {
	if len(o.listen) == 0 {
		o.listen = addresses{"127.0.0.1:6432"}
	}
	if o.drainTimeout <= 0 || o.config.HandshakeTimeout <= 0 {
		return errors.New("-drain-timeout and -handshake-timeout must be positive")
	}
	if o.config.MaxConnections <= 0 || o.config.MaxOpening <= 0 {
		return errors.New("-max-connections and -max-opening must be positive")
	}
	if o.config.BorrowTimeout < 0 || o.config.BorrowTimeout > pgmoor.MaxBorrowTimeout {
		return fmt.Errorf("-borrow-timeout must be between 0 and %v", pgmoor.MaxBorrowTimeout)
	}
	if o.config.BorrowTimeout == 0 {
		o.config.BorrowTimeout = pgmoor.NoWait
	}
	if o.config.IdleTimeout == 0 {
		o.config.IdleTimeout = -1
	}
	for _, step := range []func() error{o.resolveUpstream, o.resolveSecrets, o.resolveAuth, o.resolveTLS} {
		if err := step(); err != nil {
			return err
		}
	}
	// New only checks its Config; it opens nothing.
	_, err := pgmoor.New(nil, o.config)
	return err
}

func (o *options) resolveUpstream() error {
	if o.upstream == "" {
		return errors.New("-upstream is missing: name the servers, as in -upstream postgres://db1:5432")
	}
	var err error
	if o.servers, err = dsn.Parse(o.upstream); err != nil {
		return fmt.Errorf("-upstream: %w", err)
	}
	if o.config.Upstream, err = o.servers.Upstream(); err != nil {
		return fmt.Errorf("-upstream: %w", err)
	}
	return nil
}

func (o *options) resolveSecrets() error {
	o.secrets = pgmoor.StaticSecrets{}
	if o.users != "" {
		var err error
		if o.secrets, err = pgmoor.ReadUserList(o.users); err != nil {
			return fmt.Errorf("-users: %w", err)
		}
	}
	if _, known := o.secrets[o.servers.User]; !known && o.servers.Password != "" {
		o.secrets[o.servers.User] = pgmoor.NewSecret(o.servers.Password)
	}
	o.config.Secrets = o.secrets
	return nil
}

func (o *options) resolveAuth() error {
	switch o.auth {
	case "scram-sha-256":
		o.config.Authenticator = pgmoor.SCRAM(o.secrets)
	case "md5":
		o.config.Authenticator = pgmoor.MD5(o.secrets)
	case "trust":
		o.config.Authenticator = pgmoor.Trust()
		if i := slices.IndexFunc(o.listen, isPublic); i >= 0 {
			return fmt.Errorf("-auth trust is for loopback addresses and Unix sockets: -listen %s is neither", o.listen[i])
		}
		return nil
	default:
		return fmt.Errorf("-auth %q is not one of scram-sha-256, md5, trust", o.auth)
	}
	if len(o.secrets) == 0 {
		return fmt.Errorf("-auth %s needs passwords: name a file with -users", o.auth)
	}
	return nil
}

// isPublic reports whether others than this machine may reach an address.
func isPublic(addr string) bool {
	if isSocket(addr) {
		return false
	}
	host, _, _ := net.SplitHostPort(addr)
	ip, err := netip.ParseAddr(host)
	return host != "localhost" && (err != nil || !ip.IsLoopback())
}

func (o *options) resolveTLS() error {
	switch {
	case (o.tlsCert == "") != (o.tlsKey == ""):
		return errors.New("-tls-cert and -tls-key go together")
	case o.tlsCert == "" && o.config.RequireTLS:
		return errors.New("-require-tls needs -tls-cert and -tls-key")
	case o.tlsCert == "":
		return nil
	}
	cert, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
	if err != nil {
		return fmt.Errorf("-tls-cert: %w", err)
	}
	o.config.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	return nil
}
