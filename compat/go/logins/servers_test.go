package logins_test

import (
	"context"
	cryptotls "crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// A leg is a way in which the proxy logs in to PostgreSQL. Its address says under which of serverRules.
type leg struct {
	method   string
	address  string
	user     string
	over     []string
	binding  string
	cert     string
	verifier bool // is all that the proxy knows
	asks     bool // for a password, so that a wrong one is refused
}

var everywhere, encrypted = []string{plain, tls, direct}, []string{tls, direct}

var legs = []leg{
	{method: trustMethod, address: "127.0.0.11", user: "by_scram", over: everywhere},
	{method: passMethod, address: "127.0.0.12", user: "by_scram", over: everywhere, asks: true},
	{method: md5Method, address: "127.0.0.13", user: "by_md5", over: everywhere, asks: true},
	{method: scramMethod, address: "127.0.0.14", user: "by_scram", over: everywhere, asks: true, binding: "disable"},
	{method: plusMethod, address: "127.0.0.14", user: "by_scram", over: encrypted, asks: true, binding: "require"},
	{method: scramMethod + " with a verifier", address: "127.0.0.14", user: "by_scram", over: []string{plain}, verifier: true},
	{method: plusMethod + " with a verifier", address: "127.0.0.14", user: "by_scram", over: encrypted, verifier: true, binding: "require"},
	{method: certMethod, address: "127.0.0.15", user: "by_scram", over: encrypted, cert: "proxy"},
	{method: bothMethod, address: "127.0.0.16", user: "by_scram", over: encrypted, cert: "proxy", asks: true},
}

// runServers has proxies log in to servers in every way.
func runServers(t *testing.T, w *world) {
	n := 0
	for _, version := range pgtest.Versions {
		for _, l := range legs {
			for _, over := range l.over {
				if over == direct && version < 17 { // which does not know it
					continue
				}
				where := fmt.Sprintf("proxy: %s over %s, PostgreSQL %d", l.method, over, version)
				n += w.tryLeg(t, where, version, &l, over)
			}
		}
	}
	if t.Failed() {
		fmt.Println("compat: logins: proxy to servers: FAILED")
		return
	}
	fmt.Printf("compat: logins: proxy to servers: %d logins\n", n)
}

// tryLeg logs in with what is right, and with what is wrong. Its clients come by SCRAM.
func (w *world) tryLeg(t *testing.T, where string, version int, l *leg, over string) (tried int) {
	secret := right
	if l.verifier {
		secret = w.clusters[version].Exec(t, "SELECT rolpassword FROM pg_authid WHERE rolname = '"+l.user+"'")[0][0]
	}
	dial := &watchedDialer{from: l.address}
	got := w.through(t, version, l, over, secret, dial)
	if got.user != l.user || got.encrypted != (over != plain) {
		t.Errorf("%s: %+v", where, got)
	}
	requireBegun(t, where, over, dial.seen)
	tried++
	if l.asks {
		got = w.through(t, version, l, over, "wrong", dial)
		want := outcome{code: "28P01", message: fmt.Sprintf("password authentication failed for user %q", l.user)}
		if got != want {
			t.Errorf("%s, a wrong password: %+v", where, got)
		}
		tried++
	}
	if l.cert != "" {
		other := *l
		other.cert = "stranger"
		if got = w.through(t, version, &other, over, right, dial); got.code != "08000" {
			t.Errorf("%s, a stranger's certificate: %+v", where, got)
		}
		tried++
	}
	return tried
}

// through logs in through a proxy that knows a secret, which its clients use as well; of a verifier they know the password.
func (w *world) through(t *testing.T, version int, l *leg, over, secret string, dial *watchedDialer) outcome {
	secrets := pgmoor.StaticSecrets{l.user: pgmoor.NewSecret(secret)}
	cfg := pgmoor.Config{
		Authenticator: pgmoor.SCRAM(secrets), Secrets: secrets, Logger: slog.New(slog.DiscardHandler),
		TLS: &cryptotls.Config{Certificates: []cryptotls.Certificate{w.shown}},
		Upstream: pgmoor.Upstream{
			Hosts: []string{w.clusters[version].Addr()}, SSLMode: "disable", ChannelBinding: l.binding, Dialer: dial,
			TLSConfig: &cryptotls.Config{RootCAs: w.roots},
		},
	}
	if over != plain {
		cfg.Upstream.SSLMode = "verify-full"
	}
	if over == direct {
		cfg.Upstream.SSLNegotiation = "direct"
	}
	if l.cert == "stranger" { // which the server may come to know: the proxy tries again
		cfg.BorrowTimeout = 500 * time.Millisecond
	}
	if l.cert != "" {
		cfg.Upstream.TLSConfig.Certificates = []cryptotls.Certificate{w.pair(t, l.cert)}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p, err := pgmoor.New(listener, cfg)
	require.NoError(t, err)
	served := make(chan error, 1)
	go serveProxy(p, served)
	defer func() {
		require.NoError(t, p.Close())
		<-served
	}()
	password := secret
	if l.verifier {
		password = right
	}
	return pgxLogin(w.login(loginCase{over: tls, user: l.user, password: password, database: "app", bind: true}, listener.Addr().String()))
}

// A watchedDialer dials from an address and takes note of how its connections begin.
type watchedDialer struct {
	from string

	mu   sync.Mutex
	seen []string
}

func (d *watchedDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := from(d.from).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &watchedConn{Conn: conn, dialer: d}, nil
}

type watchedConn struct {
	net.Conn
	dialer *watchedDialer
	begun  bool
}

// Write looks at what is written first.
func (c *watchedConn) Write(b []byte) (int, error) {
	if !c.begun {
		c.begun = true
		c.dialer.mu.Lock()
		c.dialer.seen = append(c.dialer.seen, beginsAs(b))
		c.dialer.mu.Unlock()
	}
	return c.Conn.Write(b)
}

func beginsAs(b []byte) string {
	switch {
	case len(b) < 8:
	case b[0] == 0x16:
		return direct
	case strings.HasPrefix(string(b[4:]), "\x04\xd2\x16\x2f"):
		return tls
	case b[4] == 0 && b[5] == 3:
		return plain
	}
	return "something else"
}
