package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/examples/internal/dsn"
)

// options is what the flags say.
type options struct {
	args         []string // that the flags were read from
	version      bool
	listen       addresses
	upstream     string
	hba, ident   string
	clientCA     string
	failures     int
	tokens       tokens
	auth         string
	tlsCert      string
	tlsKey       string
	metrics      string
	socketMode   fileMode
	pinning      string
	logLevel     slog.Level
	drainGrace   time.Duration
	drainTimeout time.Duration
	reusePort    bool
	balancers    networks
	share        share
	surge        int
	inherited    []string // names of the sockets that were passed to the process

	servers *dsn.DSN // upstream, taken apart
	secrets secrets
	config  pgmoor.Config
}

// addresses is a flag that may be repeated.
type addresses []string

// String joins what was given.
func (a *addresses) String() string { return strings.Join(*a, ",") }

// Set adds an address.
func (a *addresses) Set(s string) error {
	if !isSocket(s) && !isHostPort(s) {
		return errors.New("neither HOST:PORT nor the path of a Unix socket")
	}
	*a = append(*a, s)
	return nil
}

func isHostPort(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	return err == nil
}

// duration is a flag that says what it wants when it is not understood.
type duration time.Duration

// String returns it with its unit.
func (d *duration) String() string { return time.Duration(*d).String() }

// Set reads it.
func (d *duration) Set(s string) error {
	v, err := time.ParseDuration(s)
	if err != nil {
		if _, err := strconv.ParseFloat(s, 64); err == nil {
			return fmt.Errorf("a duration needs a unit, as in %ss", s)
		}
		return errors.New("not a duration such as 5s, 2m or 1h30m")
	}
	*d = duration(v)
	return nil
}

// fileMode is a flag of an octal number.
type fileMode fs.FileMode

// String returns it as chmod has it.
func (m *fileMode) String() string { return fmt.Sprintf("%04o", uint32(*m)) }

// Set reads it.
func (m *fileMode) Set(s string) error {
	v, err := strconv.ParseUint(s, 8, 32)
	if err != nil || v > 0o777 {
		return errors.New("not an octal number between 0 and 0777")
	}
	*m = fileMode(v)
	return nil
}

// verifyModes are the values of -verify.
var verifyModes = map[string]pgmoor.VerifyMode{
	"pinned": pgmoor.VerifyPinned, "never": pgmoor.VerifyNever, "listed": pgmoor.VerifyListed, "always": pgmoor.VerifyAlways,
}

// verifyMode is a flag that takes the name of a mode.
type verifyMode pgmoor.VerifyMode

// String returns the name.
func (m *verifyMode) String() string {
	for name, v := range verifyModes {
		if v == pgmoor.VerifyMode(*m) {
			return name
		}
	}
	return ""
}

// Set reads it.
func (m *verifyMode) Set(s string) error {
	v, ok := verifyModes[s]
	if !ok {
		return errors.New("not one of pinned, never, listed, always")
	}
	*m = verifyMode(v)
	return nil
}

// names is a flag of names with commas between them.
type names []string

// String joins them.
func (n *names) String() string { return strings.Join(*n, ",") }

// Set takes them apart.
func (n *names) Set(s string) error {
	*n = nil
	for name := range strings.SplitSeq(s, ",") {
		if name = strings.TrimSpace(name); name == "" {
			return errors.New("a name is empty: put a comma between two names and nowhere else, as in a,b")
		}
		*n = append(*n, name)
	}
	return nil
}

// isSocket reports whether an address is the path of a Unix socket.
func isSocket(addr string) bool { return strings.ContainsRune(addr, '/') }

const usage = `Usage: standalone -upstream DSN [flags]

A connection pooler for PostgreSQL. Clients log in with the names and passwords of the users file, choose any
database, and share a few server connections on which the servers know them by the same names.

Signals: SIGTERM and SIGINT let transactions finish and end the program, and at once the second time; SIGHUP reads
files again; SIGUSR1 pauses clients between transactions, and SIGUSR2 lets them go on.

`

// parseOptions reads the flags and everything they name except the network: what it accepts can be started. It prints help
// to stdout.
func parseOptions(args []string, stdout io.Writer) (*options, error) {
	o := &options{args: args}
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
	given := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	return o, o.resolve(given)
}

func (o *options) flags() *flag.FlagSet {
	f := flag.NewFlagSet("standalone", flag.ContinueOnError)
	c := &o.config
	o.drainGrace, o.drainTimeout, o.socketMode = time.Second, 30*time.Second, 0o777
	f.Var(&o.listen, "listen", "accept clients on `ADDRESS`: HOST:PORT, or the path of a Unix socket; may be repeated (default 127.0.0.1:6432,\n"+
		"or none where systemd has passed sockets)")
	f.Var(&o.socketMode, "socket-mode", "give Unix sockets the permissions `OCTAL`, as PostgreSQL's unix_socket_permissions")
	f.BoolVar(&o.reusePort, "reuseport", false, "share the ports of -listen and -metrics with other processes that do so, so that one can be started before the\n"+
		"one that it replaces is told to go. Linux only")
	f.Var(&o.balancers, "proxy-protocol", "take the client's address from the header of the PROXY protocol that connections from `NETWORKS` begin with: those\n"+
		"of load balancers, with commas between them. They must send one, and nobody else may")
	f.StringVar(&o.upstream, "upstream", "", "the servers: a `DSN` as URL or keywords; several hosts are tried in order. Its sslmode,\n"+
		"sslnegotiation, sslrootcert, channel_binding and connect_timeout count; a database in it does not matter. A user and password in it\n"+
		"are as good as a line of the users file, whose own line for that user wins. Other users of this\n"+
		"machine see flags in ps: with a password, rather put the DSN into PGMOOR_UPSTREAM, which counts\nwhere the flag is missing. Required")
	o.secretFlags(f)
	f.StringVar(&o.auth, "auth", "scram-sha-256", "how clients log in: `METHOD` scram-sha-256, md5, or trust. trust takes any user at his word, on\n"+
		"loopback addresses and Unix sockets only; on the servers he needs a password of the users file, or none")
	o.authFlags(f)
	o.limitFlags(f)
	f.BoolVar(&c.RoundRobin, "round-robin", false, "lend server connections in turn, the one that has been idle longest first, as PgBouncer's server_round_robin;\n"+
		"without it, the one that was used last")
	f.StringVar(&o.tlsCert, "tls-cert", "", "`FILE` with the certificate for clients that ask for encryption, in PEM form, with -tls-key; read again\nat SIGHUP")
	f.StringVar(&o.tlsKey, "tls-key", "", "`FILE` with the key of -tls-cert")
	f.BoolVar(&c.RequireTLS, "require-tls", false, "refuse clients that do not ask for encryption, except on Unix sockets, and servers that have none: the sslmode of\n-upstream is require then, and must not be less")
	f.StringVar(&o.pinning, "pinning", "default", "which session state is carried and which makes a client keep its server connection: `POLICY`\n"+
		"default (settings are carried, pins end), or strict (as RDS Proxy: a client is pinned for anything,\nuntil it disconnects)")
	f.Var((*verifyMode)(&c.Verify), "verify", "when a server is asked what a client has left behind: `MODE` pinned (when a pin may have ended), never,\n"+
		"listed (also after transactions that call one of -verify-functions), or always (after every transaction)")
	f.Var((*names)(&c.VerifyFunctions), "verify-functions", "`NAMES` of functions that change settings, make temporary objects or take locks, with commas between\n"+
		"them; with -verify listed")
	f.Var((*duration)(&o.drainGrace), "drain-grace", "after the first SIGTERM or SIGINT accept nobody any more, and leave clients alone for `DURATION`, or until all have gone; 0:\n"+
		"not at all")
	f.Var((*duration)(&o.drainTimeout), "drain-timeout", "then end each client when it is in no transaction, and let transactions take `DURATION` to finish")
	f.StringVar(&o.metrics, "metrics", "", "serve figures over HTTP on `HOST:PORT`: /stats (JSON; OldestWait in nanoseconds), /healthz, and /readyz, which is\n"+
		"an error from the first SIGTERM or SIGINT on")
	f.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "log `LEVEL` and above: error (no server lets the proxy in, a listener is gone), warn (also clients that are\n"+
		"pinned, and a server that cannot be reached at the start), info (also pins that end, and clients that are refused),\n"+
		"debug (also clients that hang up)")
	f.BoolVar(&o.version, "version", false, "print the version and exit")
	return f
}

func (o *options) secretFlags(f *flag.FlagSet) {
	s := &o.secrets
	s.grace = pgmoor.DefaultSecretGrace
	f.StringVar(&s.users, "users", "", "`PATH` of passwords, read again when they change: a file in the format of PgBouncer's userlist.txt; a file of\n"+
		"{\"username\", \"password\"} or a list of such, whose name ends in .json; or a directory with a file for each user, as\n"+
		"Kubernetes mounts it. A SCRAM verifier or an MD5 hash lets the client in; where the server asks for a password too,\n"+
		"it has to be there in clear")
	f.StringVar(&s.authQuery, "auth-query", "", "ask a database for the passwords of other users, as the user of a `DSN`, who has to be a superuser without\n"+
		"-auth-query-sql. With a password, rather put the DSN into PGMOOR_AUTH_QUERY, which counts where the flag is missing")
	f.StringVar(&s.authSQL, "auth-query-sql", "", "ask by `QUERY`, which has the user as $1 and returns the name and the secret, with all names qualified")
	f.Var((*duration)(&s.grace), "password-grace", "when a password changes, let clients in with the one from before for `DURATION`; 0: not at all")
}

// resolve checks the flags against each other and makes the Config. given are the flags that were.
func (o *options) resolve(given map[string]bool) error {
	if err := o.resolveListeners(); err != nil {
		return err
	}
	if o.drainTimeout <= 0 {
		return errors.New("-drain-timeout must be positive")
	}
	if err := o.resolveLimits(given); err != nil {
		return err
	}
	if err := o.resolvePinning(); err != nil {
		return err
	}
	if o.metrics != "" && !isHostPort(o.metrics) {
		return fmt.Errorf("-metrics %s is not HOST:PORT", o.metrics)
	}
	for _, step := range []func() error{o.resolveUpstream, o.resolveSecrets, o.resolveTokens, o.resolveAuth, o.resolveTLS, o.resolveRules} {
		if err := step(); err != nil {
			return err
		}
	}
	// New only checks its Config; it opens nothing.
	_, err := pgmoor.New(nil, o.config)
	return inFlags(err)
}

// resolveListeners decides where clients come from.
func (o *options) resolveListeners() error {
	var err error
	if o.inherited, err = inheritedNames(); err != nil {
		return err
	}
	forClients := slices.ContainsFunc(o.inherited, func(name string) bool { return name != metricsSocket })
	if len(o.listen) == 0 && !forClients {
		o.listen = addresses{"127.0.0.1:6432"}
	}
	switch i := slices.IndexFunc(o.listen, isSocket); {
	case o.reusePort && !canReusePort:
		return errors.New("-reuseport is for Linux: elsewhere let a parent process pass the sockets, as systemd does")
	case o.reusePort && i >= 0:
		return fmt.Errorf("-reuseport is for TCP, and -listen %s is a Unix socket: let systemd pass that one", o.listen[i])
	case o.drainGrace < 0:
		return errors.New("-drain-grace must not be negative; 0 means not at all")
	}
	return nil
}

func (o *options) resolvePinning() error {
	switch o.pinning {
	case "default":
		o.config.Pinning = pgmoor.DefaultPinning{}
	case "strict":
		o.config.Pinning = pgmoor.StrictPinning{}
	default:
		return fmt.Errorf("-pinning %q is not one of default, strict", o.pinning)
	}
	listed := o.config.Verify == pgmoor.VerifyListed
	switch n := len(o.config.VerifyFunctions); {
	case listed && n == 0:
		return errors.New("-verify listed needs -verify-functions")
	case !listed && n > 0:
		return errors.New("-verify-functions needs -verify listed")
	}
	return nil
}

func (o *options) resolveUpstream() error {
	name := "-upstream"
	if o.upstream == "" {
		name, o.upstream = "PGMOOR_UPSTREAM", os.Getenv("PGMOOR_UPSTREAM")
	}
	if o.upstream == "" {
		return errors.New("-upstream is missing: name the servers, as in -upstream postgres://db1:5432, or in PGMOOR_UPSTREAM")
	}
	var err error
	if o.servers, err = dsn.Parse(o.upstream); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if o.config.Upstream, err = o.servers.Upstream(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (o *options) resolveSecrets() error {
	if err := o.secrets.resolve(o.servers, o.config.RequireTLS); err != nil {
		return err
	}
	o.config.Secrets = o.secrets.sources
	return nil
}

func (o *options) resolveTokens() error { return o.tokens.resolve(o.hba != "") }

func (o *options) resolveAuth() error {
	switch o.auth {
	case "scram-sha-256":
		// a Proxy asks for it that has secrets, and goes on in the same way when it gets others
	case "md5":
		o.config.Authenticator = pgmoor.MD5(o.secrets.sources)
	case "trust":
		o.config.Authenticator = pgmoor.Trust()
		switch {
		case o.hba != "":
			return errors.New("-auth trust and -hba exclude each other: trust those whom a line of the file names")
		case o.tokens.verifier != nil:
			return errors.New("-auth trust and -token-auth exclude each other: who is trusted needs no token")
		}
		if i := slices.IndexFunc(o.listen, isPublic); i >= 0 {
			return fmt.Errorf("-auth trust is for loopback addresses and Unix sockets, and -listen %s is neither: "+
				"listen on 127.0.0.1 or a Unix socket, or let clients log in with passwords (-auth scram-sha-256, -users)", o.listen[i])
		}
		return nil
	default:
		return fmt.Errorf("-auth %q is not one of scram-sha-256, md5, trust", o.auth)
	}
	if len(o.secrets.sources) == 0 && !o.tokens.only() {
		return fmt.Errorf("-auth %s needs passwords: name a file with -users, or a database with -auth-query", o.auth)
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
		return errors.New("-tls-cert and -tls-key go together: name both files, the certificate's and its key's")
	case o.tlsCert == "" && o.clientCA != "":
		return errors.New("-tls-client-ca needs -tls-cert and -tls-key")
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
	return o.resolveClientCA()
}
