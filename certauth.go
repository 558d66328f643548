package pgmoor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
)

// CertificateName says which name in a client's certificate tells who the client is.
type CertificateName uint8

const (
	// CommonName is the CN of the subject, the first one if there are several, as for PostgreSQL's method cert.
	CommonName CertificateName = iota
	// DistinguishedName is the whole subject as RFC 2253 writes it, as for clientname=DN, with its last part first. Types that pkix.RDNSequence
	// does not know, such as DC and emailAddress, are numbers there, with the value in hexadecimal digits.
	DistinguishedName
	// DNSName is each DNS name among the subject's alternative names.
	DNSName
	// EmailAddress is each email address among them.
	EmailAddress
	// URIName is each URI among them, such as a SPIFFE ID.
	URIName
	// AnyCertificate is no name: every certificate will do, as for clientcert=verify-ca.
	AnyCertificate
)

// UserMap reports whether a client whose certificate has a name may log in as a user. It is called from several goroutines at
// once. A nil UserMap wants both to be the same. [ParseIdent] makes them of a file.
type UserMap func(name, user string) bool

func (m UserMap) allows(name, user string) bool {
	if m == nil {
		return name == user
	}
	return m(name, user)
}

type certAuth struct {
	name CertificateName
	maps UserMap
	next Authenticator // nil: the certificate is enough
}

// Certificate returns an Authenticator that lets clients in by their certificates, as PostgreSQL's method cert does: crypto/tls
// has verified it, and users allows one of its names. [New] and [Proxy.Update] return an error where Config.TLS does not have
// clients' certificates verified: ClientAuth has to be tls.VerifyClientCertIfGiven or tls.RequireAndVerifyClientCert, and ClientCAs
// those who issue them. Revocation is left to tls.Config: its VerifyConnection may ask a CRL or OCSP.
func Certificate(name CertificateName, users UserMap) Authenticator {
	return &certAuth{name: name, maps: users}
}

// RequireCertificate returns an Authenticator that wants what [Certificate] wants, and asks next besides: PostgreSQL's clientcert. Where next
// asks for a password, a certificate of another name is refused as a wrong password is, as PostgreSQL does, and the log says why.
func RequireCertificate(name CertificateName, users UserMap, next Authenticator) Authenticator {
	return &certAuth{name: name, maps: users, next: next}
}

var errNoClientCerts = errors.New("pgmoor: Authenticator asks for clients' certificates, and Config.TLS does not have them verified: " +
	"set its ClientCAs, and ClientAuth to tls.VerifyClientCertIfGiven or tls.RequireAndVerifyClientCert")

func (a *certAuth) check(cfg *Config) error {
	switch t := cfg.TLS; {
	case a.name > AnyCertificate:
		return errors.New("pgmoor: Authenticator asks for an unknown kind of name in clients' certificates")
	case t == nil:
		return errNoClientCerts
	case (t.ClientAuth < tls.VerifyClientCertIfGiven || t.ClientCAs == nil) && t.GetConfigForClient == nil: // no CAs: the system's
		return errNoClientCerts
	}
	return checkPart(a.next, cfg)
}

// Authenticate looks at the certificate before it asks anything.
func (a *certAuth) Authenticate(ctx context.Context, c *Client) error {
	state, ok := c.TLS()
	if !ok || len(state.VerifiedChains) == 0 {
		return &Error{
			Severity: "FATAL", Code: codeBadAuthorization, Message: "connection requires a valid client certificate",
			Hint: "Connect with TLS, and with a certificate (sslcert, sslkey).",
		}
	}
	if !a.allows(state.PeerCertificates[0], c.User()) {
		return a.refusal(c)
	}
	if a.next == nil {
		return nil
	}
	return a.next.Authenticate(ctx, c)
}

// errOthersCertificate is wrapped by the errors of clients that are told that their password is wrong, and were not asked for it: those are no
// guesses.
var errOthersCertificate = errors.New("pgmoor: the client's certificate is another's")

// refusal returns the error of a client whose certificate bears none of its user's names.
func (a *certAuth) refusal(c *Client) error {
	switch a.next.(type) {
	case *scramAuth, *md5Auth, *cleartextAuth:
		return fmt.Errorf("%w: %w", badPassword(c.User()), errOthersCertificate)
	}
	return fatalf(codeBadAuthorization, "certificate authentication failed for user %q", c.User())
}

func (a *certAuth) allows(cert *x509.Certificate, user string) bool {
	if a.name == AnyCertificate {
		return true
	}
	for _, name := range a.name.of(cert) {
		if name != "" && !strings.Contains(name, "\x00") && a.maps.allows(name, user) {
			return true
		}
	}
	return false
}

// of returns the names of a certificate.
func (n CertificateName) of(cert *x509.Certificate) []string {
	switch n {
	case CommonName:
		return []string{commonName(cert)}
	case DistinguishedName:
		return []string{distinguishedName(cert)}
	case DNSName:
		return cert.DNSNames
	case EmailAddress:
		return cert.EmailAddresses
	case URIName:
		uris := make([]string, 0, len(cert.URIs))
		for _, u := range cert.URIs {
			uris = append(uris, u.String())
		}
		return uris
	}
	return nil
}

// commonName returns the first CN of the subject, as PostgreSQL takes it; that of crypto/x509 is the last.
func commonName(cert *x509.Certificate) string {
	for _, a := range cert.Subject.Names {
		if text, ok := a.Value.(string); ok && a.Type.Equal(oidCommonName) {
			return text
		}
	}
	return ""
}

var oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// distinguishedName returns the subject with all its parts in their order. pkix.Name has an order of its own, and of several CNs only
// one: different subjects would be the same.
func distinguishedName(cert *x509.Certificate) string {
	var subject pkix.RDNSequence
	if rest, err := asn1.Unmarshal(cert.RawSubject, &subject); err != nil || len(rest) > 0 {
		return ""
	}
	return subject.String()
}
