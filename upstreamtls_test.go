package pgmoor_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/memconn"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// wiretap is a Dialer that keeps what is sent on each of its connections.
type wiretap struct {
	mu   sync.Mutex
	sent []*[]byte
}

type listenedIn struct {
	net.Conn
	tap  *wiretap
	sent *[]byte
}

func (d *wiretap) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &listenedIn{conn, d, new([]byte)}
	d.sent = append(d.sent, c.sent)
	return c, nil
}

func (c *listenedIn) Write(b []byte) (int, error) {
	c.tap.mu.Lock()
	*c.sent = append(*c.sent, b...)
	c.tap.mu.Unlock()
	return c.Conn.Write(b)
}

// requireTLS requires that there were so many connections, and that each began with TLS, after the given bytes.
func (d *wiretap) requireTLS(t *testing.T, n int, before string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	require.Len(t, d.sent, n)
	for _, sent := range d.sent {
		require.True(t, strings.HasPrefix(string(*sent), before+"\x16\x03"), "%q", (*sent)[:min(len(*sent), 20)])
	}
}

// awaitQuery waits until a server is at work on a query.
func awaitQuery(t *testing.T, cluster *pgtest.Cluster, sql string) {
	t.Helper()
	server := directly(t, cluster, "postgres")
	require.Eventually(t, func() bool {
		return server.ok("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '"+strings.ReplaceAll(sql, "'", "''")+"'") == "1"
	}, 20*time.Second, 10*time.Millisecond)
}

func TestCancelRequestsAreEncryptedWhereTheConnectionIs(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cluster := pgtest.Shared(t, version)
		for _, negotiation := range []string{"postgres", "direct"} {
			if negotiation == "direct" && version < 17 {
				continue
			}
			for _, mode := range []string{"prefer", "require", "verify-ca", "verify-full"} {
				if negotiation == "direct" && mode == "prefer" {
					continue
				}
				t.Run(negotiation+"/"+mode, func(t *testing.T) {
					cfg, dialer, before := trusting(cluster), new(wiretap), packet(sslRequest, "")
					cfg.Upstream.SSLMode, cfg.Upstream.SSLNegotiation, cfg.Upstream.TLSConfig, cfg.Upstream.Dialer = mode, negotiation, tlsRoots(cluster), dialer
					if negotiation == "direct" {
						before = nil
					}
					p := startProxy(t, cfg)
					c := over(t, p)
					require.Equal(t, "t", c.ok("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
					sleep := fmt.Sprintf("SELECT pg_sleep(60), '%s %s'", negotiation, mode)
					c.ask(sleep)
					awaitQuery(t, cluster, sleep)
					c.requestCancel(dialTCP(t, p.Addr().String()))
					require.Equal(t, "57014", c.reply().code())
					c.ok("SELECT 1")
					dialer.requireTLS(t, 2, string(before))
				})
			}
		}
	})
}

func TestDirectTLSFromClientsAndToServers(t *testing.T) {
	cluster := pgtest.Shared(t, 18)
	cfg, dialer := trusting(cluster), new(wiretap)
	cfg.Upstream.SSLMode, cfg.Upstream.SSLNegotiation = "", "direct"
	cfg.Upstream.TLSConfig, cfg.Upstream.Dialer = tlsRoots(cluster), dialer
	var roots *x509.CertPool
	cfg.TLS, roots = certified(t)
	cfg.RequireTLS = true
	p := startProxy(t, cfg)
	host, port, err := net.SplitHostPort(p.Addr().String())
	require.NoError(t, err)
	client, err := pgconn.ParseConfig("host=" + host + " port=" + port + " user=app dbname=app sslmode=verify-full sslnegotiation=direct")
	require.NoError(t, err)
	client.TLSConfig.RootCAs = roots
	conn, err := pgconn.ConnectConfig(t.Context(), client)
	require.NoError(t, err)
	rows, err := conn.Exec(t.Context(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").ReadAll()
	require.NoError(t, err)
	require.Equal(t, "t", string(rows[0].Rows[0][0]))
	require.NoError(t, conn.Close(t.Context()))
	dialer.requireTLS(t, 1, "")
}

// behindTLS lets a server go on with TLS.
func behindTLS(cfg *tls.Config, f func(c *attacked)) func(c *attacked) {
	return func(c *attacked) {
		c.encrypt(cfg)
		f(c)
	}
}

func TestAServerThatDoesNotSayWhatItSpeaksIsNotLoggedInToDirectly(t *testing.T) {
	issued, roots := certified(t)
	now := time.Now() // outside of the bubble
	for name, protocols := range map[string][]string{"nothing": nil, "PostgreSQL": {"postgresql"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := issued.Clone()
				cfg.NextProtos = protocols
				h := &hostileServer{attack: behindTLS(cfg, func(c *attacked) {
					c.asks(&pgproto3.AuthenticationCleartextPassword{}, pgproto3.AuthTypeCleartextPassword)
				})}
				log := new(logBuffer)
				up := pgmoor.Upstream{SSLNegotiation: "direct", TLSConfig: &tls.Config{
					RootCAs: roots, ServerName: "localhost", Time: func() time.Time { return now },
				}}
				conn, err := startHostile(t, h, up, log).DialContext(t.Context(), "", "")
				require.NoError(t, err)
				require.NotEmpty(t, newClient(t, conn).startup("clear").code())
				if protocols == nil {
					require.Contains(t, log.text(), "ALPN")
					require.Nil(t, h.got.Load())
					return
				}
				require.Equal(t, right, h.got.Load())
			})
		})
	}
}

// TestACancelKeyIsNotSentToWhoeverStripsTLS has somebody in between who lets the login be encrypted, and not the cancel request.
func TestACancelKeyIsNotSentToWhoeverStripsTLS(t *testing.T) {
	issued, _ := certified(t)
	for name, c := range map[string]struct {
		answer func(*pgtest.FakeConn)
		says   string
	}{
		"N":                     {func(c *pgtest.FakeConn) { _, _ = c.Conn.Write([]byte("N")) }, "refuses to encrypt"},
		"an error":              {func(c *pgtest.FakeConn) { _, _ = c.Conn.Write([]byte("E\x00\x00\x00\x08Mno\x00\x00")) }, "refuses to encrypt"},
		"nothing":               {func(c *pgtest.FakeConn) { _ = c.Conn.Close() }, "cancel request failed"},
		"S and what follows it": {func(c *pgtest.FakeConn) { _, _ = c.Conn.Write([]byte("SR\x00\x00\x00\x08\x00\x00\x00\x00")) }, "tls"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, log := memconn.Listen(), new(logBuffer)
				behind := make(chan []byte, 1)
				s := &pgtest.FakeServer{Greet: func(conn *pgtest.FakeConn) error {
					_, _ = io.ReadFull(conn.Conn, make([]byte, 8))
					if conn.PID == 1 {
						_, _ = conn.Conn.Write([]byte("S"))
						conn.Conn = tls.Server(conn.Conn, issued)
						conn.Backend = pgproto3.NewBackend(conn.Conn, conn.Conn)
						return conn.Greet()
					}
					c.answer(conn)
					rest, _ := io.ReadAll(conn.Conn)
					behind <- rest
					return io.EOF
				}, Handle: func(conn *pgtest.FakeConn) {
					for _, err := conn.Receive(); err == nil; _, err = conn.Receive() {
						time.Sleep(20 * time.Second)
						_ = conn.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 0")}, &pgproto3.ReadyForQuery{TxStatus: 'I'})
					}
				}}
				s.Serve(l)
				defer s.Close()
				p, err := pgmoor.New(nil, pgmoor.Config{
					Upstream: pgmoor.Upstream{Hosts: []string{"fake"}, SSLMode: "require", Dialer: pgmoor.DialerFunc(l.DialContext)},
					Logger:   slog.New(slog.NewTextHandler(log, nil)),
				})
				require.NoError(t, err)
				r := &rig{Proxy: p, served: make(chan error, 1)}
				go serve(p, r.served)
				defer func() {
					require.NoError(t, p.Close())
					<-r.served
				}()
				asking := r.connect(t, "u")
				asking.ask("SELECT 1")
				synctest.Wait()
				r.cancelFor(asking)
				key := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 80877102), 1)
				require.NotContains(t, string(<-behind), string(key))
				require.Contains(t, log.text(), c.says)
				require.Nil(t, asking.reply().err)
				require.Zero(t, r.Stats().Cancels)
			})
		})
	}
}

// TestAServerWhoseCertificateNothingIsBoundToTakesALogin has one that offers to bind, as PostgreSQL does whatever its certificate is.
func TestAServerWhoseCertificateNothingIsBoundToTakesALogin(t *testing.T) {
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	ed, _ := selfSigned(t, edKey, x509.PureEd25519)
	ec, _ := selfSigned(t, ecdsaKey(t), x509.ECDSAWithSHA256)
	for name, c := range map[string]struct {
		cert   tls.Certificate
		header string
	}{"Ed25519": {ed, "n,,"}, "ECDSA": {ec, "p=tls-server-end-point,,"}} {
		for _, negotiation := range []string{"postgres", "direct"} {
			t.Run(name+"/"+negotiation, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					got := make(chan string, 10)
					h := &hostileServer{attack: func(conn *attacked) {
						if negotiation == "postgres" {
							conn.wantsTLS("S")
						}
						conn.encrypt(&tls.Config{Certificates: []tls.Certificate{c.cert}, NextProtos: []string{"postgresql"}})
						if conn.ReceiveStartup() != nil {
							return
						}
						_ = conn.Send(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"}})
						_ = conn.Backend.SetAuthType(pgproto3.AuthTypeSASL)
						m, err := conn.Backend.Receive()
						if first, ok := m.(*pgproto3.SASLInitialResponse); err == nil && ok {
							got <- string(first.Data)
						}
					}}
					conn, err := startHostile(t, h, pgmoor.Upstream{SSLMode: "require", SSLNegotiation: negotiation}, io.Discard).DialContext(t.Context(), "", "")
					require.NoError(t, err)
					require.NotEmpty(t, newClient(t, conn).startup("clear").code())
					first := <-got
					require.True(t, strings.HasPrefix(first, c.header+"n=,r="), first)
				})
			})
		}
	}
}

func TestWhatTheApplicationVerifiesOfAServerIsVerifiedInEveryMode(t *testing.T) {
	issued, roots := certified(t)
	now := time.Now() // outside of the bubble
	for _, mode := range []string{"require", "verify-ca", "verify-full"} {
		for _, negotiation := range []string{"postgres", "direct"} {
			t.Run(mode+"/"+negotiation, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					cfg, log := issued.Clone(), new(logBuffer)
					cfg.NextProtos = []string{"postgresql"}
					h := &hostileServer{attack: func(c *attacked) {
						if negotiation == "postgres" {
							c.wantsTLS("S")
						}
						c.encrypt(cfg)
						c.asks(&pgproto3.AuthenticationCleartextPassword{}, pgproto3.AuthTypeCleartextPassword)
					}}
					up := pgmoor.Upstream{SSLMode: mode, SSLNegotiation: negotiation, TLSConfig: &tls.Config{
						RootCAs: roots, ServerName: "localhost", Time: func() time.Time { return now },
						VerifyConnection: func(tls.ConnectionState) error { return errors.New("it was revoked") },
					}}
					conn, err := startHostile(t, h, up, log).DialContext(t.Context(), "", "")
					require.NoError(t, err)
					require.NotEmpty(t, newClient(t, conn).startup("clear").code())
					require.Contains(t, log.text(), "it was revoked")
					require.Nil(t, h.got.Load())
				})
			})
		}
	}
}

func TestDirectNegotiationLeavesNothingToFallBackTo(t *testing.T) {
	secure, _ := certified(t)
	for mode, says := range map[string]string{
		"": "", "require": "", "verify-ca": "", "verify-full": "", "disable": `SSLMode is "disable"`, "allow": `SSLMode is "allow"`, "prefer": `SSLMode is "prefer"`,
	} {
		up := pgmoor.Upstream{Hosts: []string{"db"}, SSLMode: mode, SSLNegotiation: "direct"}
		_, err := pgmoor.New(nil, pgmoor.Config{Upstream: up})
		_, err2 := pgmoor.New(nil, pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{"db"}}, RequireTLS: true, TLS: secure, Secrets: &pgmoor.AuthQuery{User: "asks", Upstream: up}})
		if says == "" {
			require.NoError(t, errors.Join(err, err2), mode)
			continue
		}
		require.ErrorContains(t, err, says)
		require.Error(t, err2)
	}
	_, err := pgmoor.New(nil, pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{"db"}, SSLNegotiation: "gssapi"}})
	require.ErrorContains(t, err, "not one of postgres, direct")
}
