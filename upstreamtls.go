package pgmoor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
)

// This file is about encryption towards servers.

// tlsConfigs returns what to try in turn on host, nil standing for no encryption, as libpq's documentation of sslmode has it.
func (u *upstream) tlsConfigs(host string) []*tls.Config {
	if strings.HasPrefix(host, "/") {
		return []*tls.Config{nil}
	}
	c := u.baseTLS(host)
	mode := u.sslMode
	if mode == "require" && c.RootCAs != nil { // as libpq does where a root certificate file exists
		mode = "verify-ca"
	}
	switch mode {
	case "disable":
		return []*tls.Config{nil}
	case "verify-full":
		c.InsecureSkipVerify = false // SSLMode decides
		return []*tls.Config{c}
	}
	c.InsecureSkipVerify = true
	switch mode {
	case "allow":
		return []*tls.Config{nil, c}
	case "prefer":
		return []*tls.Config{c, nil}
	case "verify-ca":
		alsoVerify(c, func(s tls.ConnectionState) error { return verifyChain(s, c) })
	}
	return []*tls.Config{c}
}

// baseTLS returns what all modes have in common.
func (u *upstream) baseTLS(host string) *tls.Config {
	c := new(tls.Config)
	if u.cfg.TLSConfig != nil {
		c = u.cfg.TLSConfig.Clone()
	}
	if c.ServerName == "" {
		c.ServerName = host
	}
	if u.cfg.direct() {
		if !slices.Contains(c.NextProtos, alpn) {
			c.NextProtos = append(slices.Clone(c.NextProtos), alpn)
		}
		alsoVerify(c, verifyProtocol)
	}
	return c
}

// alsoVerify has connections verified by f too, before what c has for that.
func alsoVerify(c *tls.Config, f func(tls.ConnectionState) error) {
	own := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if err := f(s); err != nil || own == nil {
			return err
		}
		return own(s)
	}
}

// verifyProtocol checks that the server has said that it speaks PostgreSQL, as libpq does: nothing else has before a password is sent.
func verifyProtocol(s tls.ConnectionState) error {
	if s.NegotiatedProtocol != alpn {
		return errors.New("pgmoor: the server did not say by ALPN that it speaks PostgreSQL, as it has to with SSLNegotiation \"direct\"")
	}
	return nil
}

// verifyChain checks that the server's certificate was issued by one of cfg's roots, at its time, and not the name in it.
func verifyChain(s tls.ConnectionState, cfg *tls.Config) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("pgmoor: the server sent no certificate")
	}
	opts := x509.VerifyOptions{Roots: cfg.RootCAs, Intermediates: x509.NewCertPool()}
	if cfg.Time != nil {
		opts.CurrentTime = cfg.Time()
	}
	for _, c := range s.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(opts)
	return err
}

// binding returns the channel_binding for a connection. Where the certificate has nothing to bind to, as Ed25519, the server is not told that
// the proxy could: it would take that for an attack.
func (u *upstream) binding(c net.Conn) string {
	mode := orDefault(u.cfg.ChannelBinding, "prefer")
	t, ok := c.(*tls.Conn)
	if !ok || mode != "prefer" {
		return mode
	}
	if certs := t.ConnectionState().PeerCertificates; len(certs) > 0 && bindingHash(certs[0].SignatureAlgorithm) == 0 {
		return "disable"
	}
	return mode
}

var errRefusesTLS = errors.New("pgmoor: the server refuses to encrypt")

// encryption is how a connection to a server is encrypted, and how cancel requests for it are.
type encryption struct {
	cfg    *tls.Config
	direct bool // without an SSLRequest
}

// begin encrypts a new connection to the same server. A server that refuses gets nothing else.
func (e *encryption) begin(ctx context.Context, c net.Conn) (net.Conn, error) {
	if !e.direct {
		if err := askForTLS(c); err != nil {
			return nil, err
		}
	}
	t := tls.Client(c, e.cfg)
	return t, t.HandshakeContext(ctx)
}

// askForTLS sends an SSLRequest, and reads its answer and not one byte more.
func askForTLS(c net.Conn) error {
	m := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, codeSSLRequest)
	if _, err := c.Write(m); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, m[:1]); err != nil {
		return err
	}
	if m[0] != 'S' {
		return errRefusesTLS
	}
	return nil
}
