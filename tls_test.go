package pgmoor_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// certified is a server's TLS configuration, and a pool that trusts it.
func certified(t testing.TB) (*tls.Config, *x509.CertPool) {
	t.Helper()
	ca, err := pgtest.NewCA()
	require.NoError(t, err)
	cert, key, err := ca.Issue("localhost")
	require.NoError(t, err)
	pair, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	return &tls.Config{Certificates: []tls.Certificate{pair}}, ca.Pool()
}

// listenTCP lets network clients come over the loopback interface.
func (r *rig) listenTCP(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, r.AddListener(l))
	return l.Addr().String()
}

func dialTCP(t testing.TB, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

func TestWhatFollowsAnSSLRequestInTheClearIsRefused(t *testing.T) { // CVE-2021-3935, CVE-2021-43766, CVE-2021-43767, CVE-2021-23214
	cfg := open()
	cfg.TLS, _ = certified(t)
	cfg.HandshakeTimeout = time.Second // the ordinary path takes what follows for the beginning of a TLS record
	r := newRig(t, cfg, new(fake))
	address := r.listenTCP(t)
	for _, behind := range [][]byte{login(version30), {'x'}, packet(sslRequest, ""), packet(cancelCode, "12345678")} {
		conn := dialTCP(t, address)
		_, err := conn.Write(append(packet(sslRequest, ""), behind...))
		require.NoError(t, err)
		said, _ := io.ReadAll(conn)
		require.NotContains(t, string(said), "R\x00\x00\x00\x08", "let in")
		require.NotContains(t, string(said), "Z\x00\x00\x00\x05I", "let in")
	}
	require.Zero(t, r.Stats().ClientsTotal)
	require.Zero(t, r.server.Accepted())
}

func TestEncryptedClientsAreServed(t *testing.T) {
	cfg := open()
	var roots *x509.CertPool
	cfg.TLS, roots = certified(t)
	cfg.RequireTLS = true
	r := newRig(t, cfg, new(fake))
	address := r.listenTCP(t)
	for _, mode := range []string{"require", "verify-full", "require sslnegotiation=direct"} {
		t.Run(mode, func(t *testing.T) {
			host, port, err := net.SplitHostPort(address)
			require.NoError(t, err)
			pc, err := pgconn.ParseConfig("host=" + host + " port=" + port + " user=u dbname=d sslmode=" + mode)
			require.NoError(t, err)
			pc.TLSConfig.RootCAs = roots
			conn, err := pgconn.ConnectConfig(t.Context(), pc)
			require.NoError(t, err)
			_, err = conn.Exec(t.Context(), "SELECT 1").ReadAll()
			require.NoError(t, err)
			require.NoError(t, conn.Close(t.Context()))
		})
	}
}

func TestUnencryptedClientsAreRefusedWhereEncryptionIsRequired(t *testing.T) {
	cfg := open()
	cfg.TLS, _ = certified(t)
	cfg.RequireTLS = true
	r := newRig(t, cfg, new(fake))
	require.Equal(t, "28000", newClient(t, dialTCP(t, r.listenTCP(t))).startup("u").code())
	require.Zero(t, r.server.Accepted())

	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	require.NoError(t, r.AddListener(l))
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	c := newClient(t, conn)
	_, err = conn.Write(packet(sslRequest, ""))
	require.NoError(t, err)
	var answer [1]byte
	_, err = io.ReadFull(conn, answer[:])
	require.NoError(t, err)
	require.Equal(t, "N", string(answer[:]))
	require.EqualValues(t, 'I', c.startup("u").status)
	r.connect(t, "u").ok("SELECT 1")
}

func TestDirectTLSNeedsTheProtocolsName(t *testing.T) {
	cfg := open()
	cfg.TLS, _ = certified(t)
	r := newRig(t, cfg, new(fake))
	address := r.listenTCP(t)
	for _, protocols := range [][]string{nil, {"postgresql"}, {"http/1.1", "postgresql"}} {
		conn := tls.Client(dialTCP(t, address), &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
		require.NoError(t, conn.Handshake())
		_, _ = conn.Write(login(version30))
		c := newClient(t, conn)
		if protocols == nil {
			c.ended("08P01")
			continue
		}
		require.EqualValues(t, 'I', c.reply().status)
		c.ok("SELECT 1")
	}
	conn := tls.Client(dialTCP(t, address), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	require.Error(t, conn.Handshake())
}

func TestInsideOfTLSNothingAsksForEncryptionAgain(t *testing.T) { // CVE-2026-6479
	cfg := open()
	cfg.TLS, _ = certified(t)
	r := newRig(t, cfg, new(fake))
	address := r.listenTCP(t)
	for _, code := range []uint32{sslRequest, gssRequest} {
		conn := tls.Client(dialTCP(t, address), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postgresql"}})
		_, err := conn.Write(packet(code, ""))
		require.NoError(t, err)
		newClient(t, conn).ended("08P01")
	}
}

func TestOldVersionsOfTLSAreRefused(t *testing.T) {
	cfg := open()
	cfg.TLS, _ = certified(t)
	cfg.TLS.MinVersion = tls.VersionTLS10
	address := newRig(t, cfg, new(fake)).listenTCP(t)
	conn := tls.Client(dialTCP(t, address), &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"postgresql"},
		MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11,
	})
	require.Error(t, conn.Handshake())
}

func TestAClientThatStopsInTheMiddleOfTLSIsCutOffInTime(t *testing.T) { // CVE-2026-25949
	cfg := open()
	cfg.TLS, _ = certified(t)
	cfg.HandshakeTimeout = 100 * time.Millisecond
	r := newRig(t, cfg, new(fake))
	address := r.listenTCP(t)
	hello := recordedHello(t)
	for _, n := range []int{0, 1, 4, 5, 6, 100, len(hello) - 1, len(hello)} {
		conn := dialTCP(t, address)
		_, err := conn.Write(packet(sslRequest, ""))
		require.NoError(t, err)
		_, err = io.ReadFull(conn, make([]byte, 1))
		require.NoError(t, err)
		start := time.Now()
		_, err = conn.Write(hello[:n])
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, conn)
		require.Less(t, time.Since(start), 10*time.Second, "after %d bytes", n)
	}
	for _, n := range []int{1, 4, 5, 6, 100, len(hello) - 1} { // direct
		conn := dialTCP(t, address)
		_, err := conn.Write(hello[:n])
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, conn)
	}
	require.Eventually(t, func() bool { return r.Stats().Handshaking == 0 }, 10*time.Second, time.Millisecond)
}

// recordedHello is the first thing that a TLS client sends.
func recordedHello(t testing.TB) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer far.Close()
	c := tls.Client(near, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postgresql"}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go handshake(ctx, c, ended)
	b := make([]byte, 16<<10)
	n, err := far.Read(b)
	require.NoError(t, err)
	cancel()
	require.Error(t, <-ended)
	return b[:n]
}

func handshake(ctx context.Context, c *tls.Conn, ended chan<- error) {
	ended <- c.HandshakeContext(ctx)
}
