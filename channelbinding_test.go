package pgmoor_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// selfSigned makes a certificate with the given key and signature, and a pool that trusts it.
func selfSigned(t testing.TB, key crypto.Signer, algorithm x509.SignatureAlgorithm, names ...string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		SignatureAlgorithm: algorithm, DNSNames: append(names, "localhost"), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func ecdsaKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

// bindWith logs in with channel_binding=require, or another of its values, to a server of which roots are known.
func bindWith(t testing.TB, address, mode string, roots *x509.CertPool, change func(*pgconn.Config)) error {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	cfg, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%s user=clear dbname=d password='%s' sslmode=verify-full channel_binding=%s", host, port, right, mode))
	require.NoError(t, err)
	cfg.TLSConfig.RootCAs = roots
	if change != nil {
		change(cfg)
	}
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		return err
	}
	return conn.Close(t.Context())
}

func TestChannelsAreBoundToCertificatesOfEveryKind(t *testing.T) {
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		key       crypto.Signer
		algorithm x509.SignatureAlgorithm
		bound     bool
	}{
		"ECDSA-SHA256":   {ecdsaKey(t), x509.ECDSAWithSHA256, true},
		"ECDSA-SHA384":   {ecdsaKey(t), x509.ECDSAWithSHA384, true},
		"ECDSA-SHA512":   {ecdsaKey(t), x509.ECDSAWithSHA512, true},
		"RSA-SHA256":     {rsaKey, x509.SHA256WithRSA, true},
		"RSA-SHA512":     {rsaKey, x509.SHA512WithRSA, true},
		"RSA-PSS-SHA384": {rsaKey, x509.SHA384WithRSAPSS, true},
		"Ed25519":        {edKey, x509.PureEd25519, false},
	} {
		t.Run(name, func(t *testing.T) {
			cert, roots := selfSigned(t, c.key, c.algorithm)
			r := newRig(t, pgmoor.Config{Secrets: someSecrets(t), TLS: &tls.Config{Certificates: []tls.Certificate{cert}}}, new(fake))
			address := r.listenTCP(t)
			require.NoError(t, bindWith(t, address, "prefer", roots, nil))
			require.NoError(t, bindWith(t, address, "disable", roots, nil))
			err := bindWith(t, address, "require", roots, nil)
			if !c.bound {
				require.ErrorContains(t, err, "does not support SCRAM-SHA-256-PLUS")
				return
			}
			require.NoError(t, err)
			require.NoError(t, bindWith(t, address, "require", roots, func(c *pgconn.Config) {
				c.SSLNegotiation = "direct"
				c.TLSConfig.NextProtos = []string{"postgresql"}
			}))
		})
	}
}

func TestChannelsAreBoundToTheCertificateThatWasShown(t *testing.T) {
	one, roots := selfSigned(t, ecdsaKey(t), x509.ECDSAWithSHA256, "one.example")
	two, _ := selfSigned(t, ecdsaKey(t), x509.ECDSAWithSHA256, "two.example")
	leaf, err := x509.ParseCertificate(two.Certificate[0])
	require.NoError(t, err)
	roots.AddCert(leaf)
	byName := func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "two.example" {
			return &two, nil
		}
		return &one, nil
	}
	for name, cfg := range map[string]*tls.Config{
		"Certificates":   {Certificates: []tls.Certificate{one, two}},
		"GetCertificate": {GetCertificate: byName},
		"both": {Certificates: []tls.Certificate{one}, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName == "two.example" {
				return &two, nil
			}
			return nil, nil
		}},
		"GetConfigForClient": {GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{GetCertificate: byName}, nil
		}},
		"none for this client": {Certificates: []tls.Certificate{one, two}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return nil, nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, pgmoor.Config{Secrets: someSecrets(t), TLS: cfg}, new(fake))
			address := r.listenTCP(t)
			cache := tls.NewLRUClientSessionCache(10)
			for _, server := range []string{"one.example", "two.example", "two.example", "one.example"} {
				for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
					var seen tls.ConnectionState
					require.NoError(t, bindWith(t, address, "require", roots, func(c *pgconn.Config) {
						c.TLSConfig.ServerName, c.TLSConfig.ClientSessionCache, c.TLSConfig.MaxVersion = server, cache, version
						c.TLSConfig.VerifyConnection = func(s tls.ConnectionState) error { seen = s; return nil }
					}))
					require.NoError(t, seen.PeerCertificates[0].VerifyHostname(server))
					require.False(t, seen.DidResume)
				}
			}
		})
	}
}

func TestLibpqBindsItsChannel(t *testing.T) {
	psql := filepath.Join(binaries(t, 15), "psql")
	cfg := pgmoor.Config{Secrets: someSecrets(t)}
	ca, err := pgtest.NewCA()
	require.NoError(t, err)
	cert, key, err := ca.Issue("localhost")
	require.NoError(t, err)
	pair, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	cfg.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	root := filepath.Join(t.TempDir(), "root.crt")
	require.NoError(t, os.WriteFile(root, ca.PEM(), 0o600))
	_, port, err := net.SplitHostPort(newRig(t, cfg, new(fake)).listenTCP(t))
	require.NoError(t, err)
	for mode, says := range map[string]string{
		"sslmode=verify-full channel_binding=require":           "",
		"sslmode=verify-full channel_binding=prefer":            "",
		"sslmode=verify-full channel_binding=disable":           "",
		"sslmode=disable channel_binding=prefer":                "",
		"sslmode=disable channel_binding=require":               "channel binding",
		"sslmode=require user=nobody":                           "password authentication failed",
		"sslmode=verify-ca channel_binding=require":             "",
		"sslmode=require channel_binding=require user=verifier": "",
	} {
		conninfo := "host=localhost hostaddr=127.0.0.1 port=" + port + " dbname=d user=clear sslrootcert=" + root + " " + mode
		cmd := exec.CommandContext(t.Context(), psql, "-X", "-c", "SELECT 1", conninfo)
		cmd.Env = append(os.Environ(), "PGPASSWORD="+right)
		out, err := cmd.CombinedOutput()
		if says == "" {
			require.NoError(t, err, "%s: %s", mode, out)
			continue
		}
		require.Error(t, err, mode)
		require.Contains(t, string(out), says, mode)
	}
}

// binaries returns the directory of a PostgreSQL's programs.
func binaries(t testing.TB, version int) string {
	t.Helper()
	b, err := pgtest.FindBinaries(version)
	require.NoError(t, err)
	return b.Dir
}

// A scramLogin is a client's SCRAM login with whatever it says of its channel.
type scramLogin struct {
	user, password    string
	mechanism, header string
	data              func(*x509.Certificate) []byte
}

func hashOf(c *x509.Certificate) []byte { h := sha256.Sum256(c.Raw); return h[:] }

// over runs the login behind TLS and returns what the server offered and its error.
func (l scramLogin) over(t testing.TB, conn net.Conn) (offered []string, refusal *pgproto3.ErrorResponse) {
	t.Helper()
	_, err := conn.Write(packet(sslRequest, ""))
	require.NoError(t, err)
	var answer [1]byte
	_, err = conn.Read(answer[:])
	require.NoError(t, err)
	require.Equal(t, "S", string(answer[:]))
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	require.NoError(t, secure.HandshakeContext(context.Background()))
	c := newClient(t, secure)
	c.send(&pgproto3.StartupMessage{ProtocolVersion: version30, Parameters: map[string]string{"user": l.user, "database": "app"}})
	bare, binding := "n=,r=abcdefghijklmnop", []byte(l.header)
	if l.data != nil {
		binding = append(binding, l.data(secure.ConnectionState().PeerCertificates[0])...)
	}
	for {
		m, err := c.Receive()
		require.NoError(t, err)
		switch m := m.(type) {
		case *pgproto3.AuthenticationSASL:
			offered = m.AuthMechanisms
			c.send(&pgproto3.SASLInitialResponse{AuthMechanism: l.mechanism, Data: []byte(l.header + bare)})
		case *pgproto3.AuthenticationSASLContinue:
			c.send(&pgproto3.SASLResponse{Data: l.final(t, bare, string(m.Data), binding)})
		case *pgproto3.AuthenticationOk:
			return offered, nil
		case *pgproto3.ErrorResponse:
			return offered, m
		}
	}
}

// final returns the client-final-message.
func (l scramLogin) final(t testing.TB, bare, first string, binding []byte) []byte {
	var nonce, salt string
	var iterations int
	for part := range strings.SplitSeq(first, ",") {
		switch part[0] {
		case 'r':
			nonce = part[2:]
		case 's':
			salt = part[2:]
		case 'i':
			iterations, _ = strconv.Atoi(part[2:])
		}
	}
	rawSalt, err := base64.StdEncoding.DecodeString(salt)
	require.NoError(t, err)
	salted, err := pbkdf2.Key(sha256.New, l.password, rawSalt, iterations, sha256.Size)
	require.NoError(t, err)
	mac := func(key []byte, s string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(s))
		return h.Sum(nil)
	}
	unproved := "c=" + base64.StdEncoding.EncodeToString(binding) + ",r=" + nonce
	clientKey := mac(salted, "Client Key")
	stored := sha256.Sum256(clientKey)
	proof := mac(stored[:], bare+","+first+","+unproved)
	subtle.XORBytes(proof, proof, clientKey)
	return []byte(unproved + ",p=" + base64.StdEncoding.EncodeToString(proof))
}

func TestChannelsAreRefusedAsPostgreSQLDoes(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cluster := pgtest.Shared(t, version)
		cfg := pgmoor.Config{Secrets: pgmoor.StaticSecrets{"pw_scram": pgmoor.NewSecret(pgtest.Password)}}
		cfg.TLS, _ = certified(t)
		address := newRig(t, cfg, new(fake)).listenTCP(t)
		const plus, bound = "SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,"
		for name, l := range map[string]scramLogin{
			"bound":                 {mechanism: plus, header: bound, data: hashOf},
			"not bound":             {mechanism: "SCRAM-SHA-256", header: "n,,"},
			"downgrade":             {mechanism: "SCRAM-SHA-256", header: "y,,"},
			"another certificate":   {mechanism: plus, header: bound, data: func(*x509.Certificate) []byte { return make([]byte, 32) }},
			"no certificate":        {mechanism: plus, header: bound},
			"chosen, but not bound": {mechanism: plus, header: "n,,"},
			"chosen, but unknown":   {mechanism: plus, header: "y,,"},
			"bound, but not chosen": {mechanism: "SCRAM-SHA-256", header: bound, data: hashOf},
			"another type":          {mechanism: plus, header: "p=tls-un\xc3\xa4que,,", data: hashOf},
			"no type":               {mechanism: plus, header: "p,,", data: hashOf},
			"an identity":           {mechanism: plus, header: "p=tls-server-end-point,a=x,", data: hashOf},
			"a flag of no meaning":  {mechanism: plus, header: "z,,", data: hashOf},
			"another mechanism":     {mechanism: "SCRAM-SHA-1", header: "n,,"},
			"data without a type":   {mechanism: "SCRAM-SHA-256", header: "n,,", data: hashOf},
			"wrong password":        {mechanism: plus, header: bound, data: hashOf, password: "wrong"},
		} {
			t.Run(name, func(t *testing.T) {
				l.user = "pw_scram"
				if l.password == "" {
					l.password = pgtest.Password
				}
				wantOffer, want := l.over(t, dialTCP(t, cluster.Addr()))
				gotOffer, got := l.over(t, dialTCP(t, address))
				require.Equal(t, wantOffer, gotOffer)
				if want == nil {
					require.Nil(t, got)
					return
				}
				require.NotNil(t, got)
				require.Equal(t, []string{want.Severity, want.Code, want.Message, want.Detail}, []string{got.Severity, got.Code, got.Message, got.Detail})
			})
		}
	})
}

func TestAClientCertificateIsNotWhatAChannelIsBoundTo(t *testing.T) {
	ca, err := pgtest.NewCA()
	require.NoError(t, err)
	certPEM, keyPEM, err := ca.Issue("clear")
	require.NoError(t, err)
	own, err := tls.X509KeyPair(certPEM, keyPEM)
	require.NoError(t, err)
	cfg := pgmoor.Config{Secrets: someSecrets(t)}
	var roots *x509.CertPool
	cfg.TLS, roots = certified(t)
	cfg.TLS.ClientAuth, cfg.TLS.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool()
	r := newRig(t, cfg, new(fake))
	require.NoError(t, bindWith(t, r.listenTCP(t), "require", roots, func(c *pgconn.Config) {
		c.TLSConfig.Certificates = []tls.Certificate{own}
	}))
}
