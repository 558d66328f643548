package logins_test

import (
	"context"
	cryptotls "crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// clientRules are those under which drivers log in, to PostgreSQL and to the proxy alike.
const clientRules = `
host    all by_trust,by_trust_gone       127.0.0.1/32 trust
hostssl all by_password,by_password_gone 127.0.0.1/32 password
host    all by_md5,by_md5_gone           127.0.0.1/32 md5
host    all by_scram,by_scram_gone       127.0.0.1/32 scram-sha-256
hostssl all by_cert,by_cert_gone         127.0.0.1/32 cert
hostssl all by_both                      127.0.0.1/32 scram-sha-256 clientcert=verify-full
host    all by_nobody                    127.0.0.1/32 reject
`

// bearerRule is one that PostgreSQL 18 has.
const bearerRule = `
hostssl all by_oauth,by_oauth_gone       127.0.0.1/32 oauth issuer="https://issuer.example" scope="database"
`

// tokenRule is one that only the proxy has.
const tokenRule = `
host    all by_token                     127.0.0.1/32 token
`

// serverRules are those under which proxies log in to PostgreSQL, who come from addresses of their own.
const serverRules = `
local   all postgres                     trust
host    all postgres                     127.0.0.1/32  trust
hostssl all by_md5                       127.0.0.2/32  md5
hostssl all by_trust_gone,by_cert_gone,by_oauth_gone   127.0.0.2/32  trust
hostssl all all                          127.0.0.2/32  scram-sha-256
host    all all                          127.0.0.11/32 trust
host    all all                          127.0.0.12/32 password
host    all all                          127.0.0.13/32 md5
host    all all                          127.0.0.14/32 scram-sha-256
hostssl all all                          127.0.0.15/32 cert map=proxy
hostssl all all                          127.0.0.16/32 scram-sha-256 clientcert=verify-ca
`

const serverIdent = "proxy proxy by_scram\n"

var roles = []string{"by_trust", "by_password", "by_md5", "by_scram", "by_cert", "by_both", "by_nobody", "by_token", "by_oauth"}

// A world is what the drivers log in to.
type world struct {
	dir      string // with the certificates
	ca       *pgtest.CA
	roots    *x509.CertPool
	shown    cryptotls.Certificate // by the proxies
	clusters map[int]*pgtest.Cluster
	proxies  map[int]*pgmoor.Proxy
}

func newWorld(t *testing.T) *world {
	w := &world{dir: t.TempDir(), clusters: map[int]*pgtest.Cluster{}, proxies: map[int]*pgmoor.Proxy{}}
	w.certify(t)
	for _, version := range pgtest.Versions {
		w.clusters[version] = w.startServer(t, version)
	}
	for _, version := range pgtest.Versions {
		w.proxies[version] = w.startProxy(t, version)
	}
	return w
}

// certify makes the certificates of both sides, and a stranger's.
func (w *world) certify(t *testing.T) {
	var err error
	w.ca, err = pgtest.NewCA()
	require.NoError(t, err)
	stranger, err := pgtest.NewCA()
	require.NoError(t, err)
	w.roots = w.ca.Pool()
	w.write(t, "root.crt", w.ca.PEM())
	for name, ca := range map[string]*pgtest.CA{
		"server": w.ca, "by_cert": w.ca, "by_cert_gone": w.ca, "by_both": w.ca, "by_scram": w.ca, "proxy": w.ca, "stranger": stranger,
	} {
		subject := name
		if name == "stranger" {
			subject = "by_cert"
		}
		cert, key, err := ca.Issue(subject)
		require.NoError(t, err)
		block, _ := pem.Decode(key)
		w.write(t, name+".crt", cert)
		w.write(t, name+".key", key)
		w.write(t, name+".pk8", block.Bytes) // as pgjdbc wants it
	}
	w.shown = w.pair(t, "server")
}

func (w *world) write(t *testing.T, name string, data []byte) {
	require.NoError(t, os.WriteFile(w.path(name), data, 0o600))
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) pair(t *testing.T, name string) cryptotls.Certificate {
	pair, err := cryptotls.LoadX509KeyPair(w.path(name+".crt"), w.path(name+".key"))
	require.NoError(t, err)
	return pair
}

// startServer runs PostgreSQL with the world's rules, roles and certificates.
func (w *world) startServer(t *testing.T, version int) *pgtest.Cluster {
	c := pgtest.Start(t, version)
	rules := clientRules + serverRules
	if version >= 18 {
		c.Exec(t, "ALTER SYSTEM SET oauth_validator_libraries = '"+compile(t, c.SocketDir())+"'")
		rules += bearerRule
	}
	for _, role := range roles {
		method := "scram-sha-256"
		if role == "by_md5" {
			method = "md5"
		}
		c.Exec(t, "SET password_encryption = '"+method+"'; CREATE ROLE "+role+" LOGIN PASSWORD '"+strings.ReplaceAll(right, "'", "''")+"'")
	}
	for name, text := range map[string]string{"pg_hba.conf": rules, "pg_ident.conf": serverIdent} {
		require.NoError(t, os.WriteFile(filepath.Join(c.DataDir(), name), []byte(text), 0o600))
	}
	for from, to := range map[string]string{"root.crt": "root.crt", "server.crt": "server.crt", "server.key": "server.key"} {
		text, err := os.ReadFile(w.path(from))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(c.DataDir(), to), text, 0o600))
	}
	require.NoError(t, c.Restart(pgtest.Fast))
	return c
}

// compile makes PostgreSQL's part of oauth, in a directory that the server can read.
func compile(t *testing.T, dir string) (path string) {
	path = filepath.Join(dir, "validator.so")
	out, err := exec.Command("cc", "-shared", "-fPIC", "-Wall", "-Werror", "-O", "-o", path, "../../oauth/validator.c").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.Chmod(path, 0o755))
	return path
}

// startProxy runs a proxy whose clients log in by the rules of PostgreSQL, and which itself logs in by SCRAM over TLS.
func (w *world) startProxy(t *testing.T, version int) *pgmoor.Proxy {
	secrets := pgmoor.StaticSecrets{}
	for _, role := range roles {
		secrets[role] = pgmoor.NewSecret(right)
	}
	rules, err := pgmoor.ParseHBA(strings.NewReader(clientRules+bearerRule+tokenRule), w.methods(secrets))
	require.NoError(t, err)
	auth, err := pgmoor.HBA(rules...)
	require.NoError(t, err)
	return w.serve(t, pgmoor.Config{
		Authenticator: auth, Secrets: secrets,
		TLS: &cryptotls.Config{Certificates: []cryptotls.Certificate{w.shown}, ClientAuth: cryptotls.VerifyClientCertIfGiven, ClientCAs: w.roots},
		Upstream: pgmoor.Upstream{
			Hosts: []string{w.clusters[version].Addr()}, SSLMode: "verify-full", Dialer: from("127.0.0.2"),
			TLSConfig: &cryptotls.Config{RootCAs: w.roots},
		},
	})
}

// from is a dialer with an address of its own.
func from(address string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
}

// methods are the standard ones and tokens.
func (w *world) methods(secrets pgmoor.SecretSource) func(string, map[string]string) (pgmoor.Authenticator, error) {
	standard := pgmoor.StandardMethods(secrets, nil)
	return func(method string, options map[string]string) (pgmoor.Authenticator, error) {
		switch method {
		case "oauth":
			return &pgmoor.OAuthBearer{Issuer: options["issuer"], Scope: options["scope"], Validate: validate}, nil
		case "token":
			return &pgmoor.TokenAuth{Verifier: &pgmoor.RDSTokens{Endpoints: []string{tokenEndpoint}, Region: tokenRegion, Key: tokenKey}}, nil
		}
		return standard(method, options)
	}
}

// validate does what compat/oauth/validator.c does.
func validate(_ context.Context, token string, _ *pgmoor.Client) (identity string, err error) {
	identity, ok := strings.CutPrefix(token, "for-")
	if !ok {
		return "", pgmoor.ErrInvalidToken
	}
	return identity, nil
}

// serve runs a proxy until the test ends.
func (w *world) serve(t *testing.T, cfg pgmoor.Config) *pgmoor.Proxy {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.IdleTimeout = -1
	cfg.MaxConnections = 40
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p, err := pgmoor.New(l, cfg)
	require.NoError(t, err)
	served := make(chan error, 1)
	go serveProxy(p, served)
	t.Cleanup(func() {
		require.NoError(t, p.Close())
		require.ErrorIs(t, <-served, pgmoor.ErrProxyClosed)
	})
	return p
}

func serveProxy(p *pgmoor.Proxy, served chan<- error) { served <- p.Serve(context.Background()) }

// A front is a listener of one driver's, which takes note of how its connections begin.
type front struct {
	net.Listener
	address string

	mu   sync.Mutex
	seen []string
}

func (w *world) listen(t *testing.T, version int) *front {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f := &front{Listener: l, address: l.Addr().String()}
	require.NoError(t, w.proxies[version].AddListener(f))
	return f
}

// Accept looks at the first bytes of a client, which nobody else has to wait for.
func (f *front) Accept() (net.Conn, error) {
	conn, err := f.Listener.Accept()
	if err != nil {
		return nil, err
	}
	how := beginning(conn.(*net.TCPConn))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, how)
	return conn, nil
}

// beginning reads nothing: the bytes are still there.
func beginning(conn *net.TCPConn) string {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err.Error()
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	var b [8]byte
	n := 0
	if err := raw.Read(func(fd uintptr) bool {
		n, _, err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		return !errors.Is(err, syscall.EAGAIN)
	}); err != nil || n < len(b) {
		return "nothing"
	}
	return beginsAs(b[:])
}

func (f *front) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = nil
}

func (f *front) began() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.seen...)
}
