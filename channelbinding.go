package pgmoor

import (
	"context"
	"crypto"
	_ "crypto/sha256" // hashes of certificates
	_ "crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"

	"github.com/pgmoor/pgmoor/internal/scram"
)

// This file makes the TLS configuration for clients, and binds SCRAM exchanges to the certificate that a client was shown. After a
// handshake crypto/tls does not say which that was, so it is noted when it is chosen.

// presented is the certificate that a client was shown. The zero value is none.
type presented struct{ cert *tls.Certificate }

// presentedKey is the key of a *presented in the context of a TLS handshake.
type presentedKey struct{}

// watching returns the context for a handshake whose certificate s takes note of.
func (s *presented) watching(ctx context.Context) context.Context {
	return context.WithValue(ctx, presentedKey{}, s)
}

// note takes note of a certificate, for the handshake that hello is from.
func note(hello *tls.ClientHelloInfo, cert *tls.Certificate) {
	if s, ok := hello.Context().Value(presentedKey{}).(*presented); ok {
		s.cert = cert
	}
}

// serverTLS returns a copy of cfg with PostgreSQL's ALPN protocol and TLS 1.2 as the least version, that notes which certificate
// it shows. It issues no session tickets, as PostgreSQL does not: in a session that is resumed no certificate is shown.
func serverTLS(cfg *tls.Config) *tls.Config {
	if cfg == nil {
		return nil
	}
	c := cfg.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	if !slices.Contains(c.NextProtos, alpn) {
		c.NextProtos = append(slices.Clone(c.NextProtos), alpn)
	}
	c.SessionTicketsDisabled = true
	c.Certificates = nil // so that GetCertificate is asked whatever the client says
	c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := choose(cfg, hello)
		if err == nil {
			note(hello, cert)
		}
		return cert, err
	}
	if own := cfg.GetConfigForClient; own != nil {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			other, err := own(hello)
			return serverTLS(other), err
		}
	}
	return c
}

var errNoCertificate = errors.New("pgmoor: Config.TLS has no certificate: set Certificates or GetCertificate")

// choose returns the certificate of cfg for a client, as crypto/tls would.
func choose(cfg *tls.Config, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cfg.GetCertificate != nil && (len(cfg.Certificates) == 0 || hello.ServerName != "") {
		if cert, err := cfg.GetCertificate(hello); cert != nil || err != nil {
			return cert, err
		}
	}
	if len(cfg.Certificates) == 0 {
		return nil, errNoCertificate
	}
	for i := range cfg.Certificates {
		if len(cfg.Certificates) > 1 && hello.SupportsCertificate(&cfg.Certificates[i]) == nil {
			return &cfg.Certificates[i], nil
		}
	}
	return &cfg.Certificates[0], nil
}

// endPoint returns the data of tls-server-end-point (RFC 5929, section 4.1), the hash of the certificate that the client was
// shown; nil where there is none, or where it is not defined.
func (s *presented) endPoint() []byte {
	if s.cert == nil || len(s.cert.Certificate) == 0 {
		return nil
	}
	leaf := s.cert.Leaf
	if leaf == nil {
		var err error
		if leaf, err = x509.ParseCertificate(s.cert.Certificate[0]); err != nil {
			return nil
		}
	}
	return certificateHash(leaf)
}

// bindingHash returns the hash function of a certificate's signature, SHA-256 in the place of MD5 and SHA-1; 0 where it has none, or
// where crypto/x509 does not know it.
func bindingHash(a x509.SignatureAlgorithm) crypto.Hash {
	switch a {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1,
		x509.SHA256WithRSA, x509.DSAWithSHA256, x509.ECDSAWithSHA256, x509.SHA256WithRSAPSS:
		return crypto.SHA256
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		return crypto.SHA384
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		return crypto.SHA512
	}
	return 0
}

// offerSCRAM offers SCRAM-SHA-256, behind SCRAM-SHA-256-PLUS where there is a channel to bind, and returns the client's first
// message, for srv.
func (c *Client) offerSCRAM(srv *scram.Server) (first []byte, err error) {
	data := c.shown.endPoint()
	if data == nil {
		_, first, err = c.sasl(scram.Mechanism)
		return first, err
	}
	chosen, first, err := c.sasl(scram.MechanismPlus, scram.Mechanism)
	if err == nil {
		srv.Bind(data, chosen == scram.MechanismPlus)
	}
	return first, err
}
