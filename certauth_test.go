package pgmoor_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// identity makes a client's certificate, and a pool that trusts it.
func identity(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	return identityOf(t, func(*x509.Certificate) {})
}

// identityOf is identity with something changed.
func identityOf(t testing.TB, change func(template *x509.Certificate)) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key := ecdsaKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clear", Organization: []string{"Example"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"app.example"}, EmailAddresses: []string{"verifier@example.com"},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "example", Path: "/app"}},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

// showing logs in with a certificate, if there is one.
func showing(t testing.TB, address, user, password string, cert *tls.Certificate) error {
	t.Helper()
	cfg, err := pgconn.ParseConfig("postgres://" + address + "/d?sslmode=require")
	require.NoError(t, err)
	cfg.User, cfg.Password = user, password
	if cert != nil {
		cfg.TLSConfig.Certificates = []tls.Certificate{*cert}
	}
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		return err
	}
	return conn.Close(t.Context())
}

func TestCertificatesSayWhoAClientIs(t *testing.T) {
	cert, pool := identity(t)
	maps, err := pgmoor.ParseIdent(strings.NewReader("m /^(.*)@example\\.com$ \\1\nm app.example app\nm spiffe://example/app app\nm \"CN=clear,O=Example\" app"))
	require.NoError(t, err)
	m := maps["m"]
	secrets := someSecrets(t)
	for name, c := range map[string]struct {
		auth               pgmoor.Authenticator
		user               string
		password, refusals string // of the right user
	}{
		"common name":        {pgmoor.Certificate(pgmoor.CommonName, nil), "clear", "", ""},
		"distinguished name": {pgmoor.Certificate(pgmoor.DistinguishedName, m), "app", "", ""},
		"DNS":                {pgmoor.Certificate(pgmoor.DNSName, m), "app", "", ""},
		"email":              {pgmoor.Certificate(pgmoor.EmailAddress, m), "verifier", "", ""},
		"URI":                {pgmoor.Certificate(pgmoor.URIName, m), "app", "", ""},
		"and a password":     {pgmoor.RequireCertificate(pgmoor.CommonName, nil, pgmoor.SCRAM(secrets)), "clear", right, "28P01"},
		"any, and password":  {pgmoor.RequireCertificate(pgmoor.AnyCertificate, nil, pgmoor.SCRAM(secrets)), "verifier", right, "28P01"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := pgmoor.Config{Authenticator: c.auth}
			cfg.TLS, _ = certified(t)
			cfg.TLS.ClientAuth, cfg.TLS.ClientCAs = tls.VerifyClientCertIfGiven, pool
			address := newRig(t, cfg, new(fake)).listenTCP(t)
			require.NoError(t, showing(t, address, c.user, c.password, &cert))
			require.Equal(t, c.refusals, codeOf(showing(t, address, c.user, "wrong", &cert)))
			err := showing(t, address, c.user, c.password, nil)
			require.Equal(t, "28000", codeOf(err))
			require.ErrorContains(t, err, "connection requires a valid client certificate")
			switch err := showing(t, address, "other", c.password, &cert); name {
			case "any, and password":
			case "and a password": // as PostgreSQL's clientcert=verify-full
				require.Equal(t, "28P01", codeOf(err))
				require.ErrorContains(t, err, `password authentication failed for user "other"`)
			default:
				require.Equal(t, "28000", codeOf(err))
				require.ErrorContains(t, err, `certificate authentication failed for user "other"`)
			}
			foreign, _ := identity(t)
			require.Error(t, showing(t, address, c.user, c.password, &foreign), "issued by another")
			require.Equal(t, "28000", codeOf(logIn(t, address, c.user, right, "sslmode=disable")))
		})
	}
}

func TestCertificatesHaveToBeVerified(t *testing.T) {
	cert, pool := identity(t)
	cfg := pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{"db"}}}
	certificate := pgmoor.Certificate(pgmoor.CommonName, nil)
	rules, err := pgmoor.HBA(pgmoor.Rule{}, pgmoor.Rule{Method: certificate})
	require.NoError(t, err)
	for name, auth := range map[string]pgmoor.Authenticator{
		"itself": certificate, "in a rule": rules, "below another": pgmoor.RequireCertificate(pgmoor.AnyCertificate, nil, certificate),
	} {
		cfg.Authenticator = auth
		for _, with := range []*tls.Config{
			nil,
			{Certificates: []tls.Certificate{cert}},
			{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAnyClientCert},
			{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert},
		} {
			cfg.TLS = with
			_, err := pgmoor.New(nil, cfg)
			require.ErrorContains(t, err, "tls.VerifyClientCertIfGiven", name)
		}
		cfg.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven}
		p, err := pgmoor.New(nil, cfg)
		require.NoError(t, err)
		without := cfg
		without.TLS = nil
		require.ErrorContains(t, p.Update(without), "tls.VerifyClientCertIfGiven")
		require.NoError(t, p.Close())
	}
	cfg.Authenticator = pgmoor.Certificate(99, nil)
	_, err = pgmoor.New(nil, cfg)
	require.ErrorContains(t, err, "unknown kind")
}

// TestAClientHearsWhyItsCertificateIsRefused has a client send more before it reads, as TLS 1.3 lets it.
func TestAClientHearsWhyItsCertificateIsRefused(t *testing.T) {
	cfg := pgmoor.Config{Secrets: someSecrets(t)}
	cfg.TLS, _ = certified(t)
	cfg.TLS.ClientAuth = tls.VerifyClientCertIfGiven
	_, cfg.TLS.ClientCAs = identity(t)
	foreign, _ := identity(t)
	r := newRig(t, cfg, new(fake))
	address := r.listenTCP(t)
	for range 20 {
		c := tls.Client(dialTCP(t, address), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postgresql"}, Certificates: []tls.Certificate{foreign}})
		require.NoError(t, c.Handshake())
		_, err := c.Write(login(version30))
		require.NoError(t, err)
		_, err = c.Write(login(version30))
		require.NoError(t, err, "the connection was reset")
		_, err = c.Read(make([]byte, 1))
		require.ErrorContains(t, err, "unknown certificate authority")
		require.NoError(t, c.NetConn().Close())
	}
	c := tls.Client(dialTCP(t, address), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postgresql"}, Certificates: []tls.Certificate{foreign}})
	require.NoError(t, c.Handshake())
	began := time.Now()
	require.NoError(t, r.Close()) // does not wait for a client that stays
	require.Less(t, time.Since(began), 900*time.Millisecond)
}
