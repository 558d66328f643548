package pgmoor_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// ofSubject makes a certificate with a subject as it is given, and a pool that trusts it.
func ofSubject(t *testing.T, subject pkix.RDNSequence) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	raw, err := asn1.Marshal(subject)
	require.NoError(t, err)
	return identityOf(t, func(c *x509.Certificate) { c.RawSubject = raw })
}

func TestTheWholeSubjectOfACertificateCounts(t *testing.T) {
	country, org, unit, cn := asn1.ObjectIdentifier{2, 5, 4, 6}, asn1.ObjectIdentifier{2, 5, 4, 10}, asn1.ObjectIdentifier{2, 5, 4, 11}, asn1.ObjectIdentifier{2, 5, 4, 3}
	rdn := func(id asn1.ObjectIdentifier, v string) pkix.RelativeDistinguishedNameSET {
		return pkix.RelativeDistinguishedNameSET{{Type: id, Value: v}}
	}
	good := pkix.RDNSequence{rdn(country, "NZ"), rdn(org, "Example"), rdn(unit, "db"), rdn(cn, "app")}
	for name, c := range map[string]struct {
		subject pkix.RDNSequence
		name    pgmoor.CertificateName
		want    string // who it is
	}{
		"as it should be":      {good, pgmoor.DistinguishedName, "CN=app,OU=db,O=Example,C=NZ"},
		"in another order":     {pkix.RDNSequence{rdn(cn, "app"), rdn(unit, "db"), rdn(org, "Example"), rdn(country, "NZ")}, pgmoor.DistinguishedName, "C=NZ,O=Example,OU=db,CN=app"},
		"below another":        {append(pkix.RDNSequence{rdn(cn, "mallory")}, good...), pgmoor.DistinguishedName, "CN=app,OU=db,O=Example,C=NZ,CN=mallory"},
		"the name twice":       {pkix.RDNSequence{rdn(cn, "mallory"), rdn(cn, "app")}, pgmoor.CommonName, "mallory"},
		"a name with no end":   {pkix.RDNSequence{rdn(cn, "app\x00.example")}, pgmoor.CommonName, ""},
		"no name, and another": {pkix.RDNSequence{rdn(org, "app")}, pgmoor.CommonName, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cert, pool := ofSubject(t, c.subject)
			var seen []string
			auth := pgmoor.Certificate(c.name, func(name, _ string) bool {
				seen = append(seen, name)
				return true
			})
			cfg := pgmoor.Config{Authenticator: auth}
			cfg.TLS, _ = certified(t)
			cfg.TLS.ClientAuth, cfg.TLS.ClientCAs = tls.VerifyClientCertIfGiven, pool
			err := showing(t, newRig(t, cfg, new(fake)).listenTCP(t), "u", "", &cert)
			if c.want == "" {
				require.Equal(t, "28000", codeOf(err))
				require.Empty(t, seen)
				return
			}
			require.NoError(t, err)
			require.Equal(t, []string{c.want}, seen)
		})
	}
}
