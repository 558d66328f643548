package pgmoor

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/pgmoor/pgmoor/internal/scram"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file logs in to servers as users of whom only the SCRAM verifier is known: by the keys that a client has proved to know when
// it logged in to the proxy. They work on servers that have the very same verifier, where they are as good as the password, and
// nowhere else.

// proofs are the keys of users, for as long as there is a Proxy.
type proofs struct {
	mu sync.Mutex
	m  map[string]scram.Keys
}

// learn takes note of what a client of the user has proved to know, if anything.
func (p *proofs) learn(user string, k scram.Keys) {
	if k.IsZero() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil || len(p.m) >= maxDerived {
		p.m = make(map[string]scram.Keys)
	}
	p.m[user] = k
}

// of returns the user's keys, if they are those of the secret. Those of another one are forgotten: it was changed.
func (p *proofs) of(user string, secret Secret) (k scram.Keys, ok bool) {
	if !secret.isVerifier() {
		return k, false
	}
	v, err := scram.ParseVerifier(secret.reveal())
	if err != nil {
		return k, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if k, ok = p.m[user]; ok && !k.For(v) {
		delete(p.m, user)
		return scram.Keys{}, false
	}
	return k, ok
}

// prover is the client's side of a SCRAM exchange with a server, in the place of pgconn's, which wants a password.
type prover struct {
	net.Conn           // written to
	in       io.Reader // pgconn's own: while a write takes long, pgconn reads in the background, and what it has read is there
	binding  *string   // pgconn's channel_binding, of this attempt
	keys     scram.Keys
	client   *scram.Client // nil: the server has not asked yet
	proved   bool          // it has proved to know the verifier, too
}

func newProver(c net.Conn, in io.Reader, binding *string, keys scram.Keys) *prover {
	return &prover{Conn: c, in: in, binding: binding, keys: keys}
}

// maxServerAuth bounds a message before the end of authentication. libpq has a smaller one.
const maxServerAuth = 64 << 10

// errServerSkips is why a login ends that the server let in before it has proved anything.
var errServerSkips = errors.New("pgmoor: the server has ended the authentication without proving that it knows the user's verifier")

// run answers the server up to the message that is pgconn's again, and returns that with those that are not about authentication.
func (p *prover) run() (ahead []byte, err error) {
	for {
		m, err := p.message()
		if err != nil {
			return nil, err
		}
		body := m[wire.HeaderLen:]
		if m[0] == wire.NoticeResponse || m[0] == 'v' { // NegotiateProtocolVersion
			if ahead = append(ahead, m...); len(ahead) > maxServerAuth {
				return nil, errServerTalks
			}
			continue
		}
		if m[0] != wire.Authentication || len(body) < 4 {
			return append(ahead, m...), nil
		}
		mine, err := p.answer(binary.BigEndian.Uint32(body), body[4:])
		if err != nil {
			return nil, err
		}
		if !mine {
			return append(ahead, m...), nil
		}
	}
}

var errServerTalks = errors.New("pgmoor: the server sends too much before it has let the proxy in")

// message reads one message.
func (p *prover) message() ([]byte, error) {
	m := make([]byte, wire.HeaderLen)
	if _, err := io.ReadFull(p.in, m); err != nil {
		return nil, err
	}
	n := int(wire.Length(m)) + 1
	if n < wire.HeaderLen || n > maxServerAuth {
		return nil, errServerTalks
	}
	m = append(m, make([]byte, n-wire.HeaderLen)...)
	_, err := io.ReadFull(p.in, m[wire.HeaderLen:])
	return m, err
}

// answer answers an authentication request, unless it is not about this exchange.
func (p *prover) answer(request uint32, data []byte) (mine bool, err error) {
	switch {
	case request == authSASL && p.client == nil:
		return p.begin(strings.Split(string(data), "\x00"))
	case p.client == nil:
		return false, nil
	case request == authSASLContinue:
		final, err := p.client.Final(data)
		if err != nil {
			return true, proofFailed(err)
		}
		return true, p.send(final)
	case request == authSASLFinal:
		if err := p.client.Verify(data); err != nil {
			return true, proofFailed(err)
		}
		p.proved = true
		return true, nil
	case !p.proved:
		return true, errServerSkips
	}
	return false, nil
}

// begin chooses a mechanism, with the channel bound where the server offers it.
func (p *prover) begin(offered []string) (mine bool, err error) {
	mechanism := scram.Mechanism
	var data []byte
	if slices.Contains(offered, scram.MechanismPlus) && *p.binding != "disable" {
		if data = serverEndPoint(p.Conn); data != nil {
			mechanism = scram.MechanismPlus
		}
	}
	if !slices.Contains(offered, mechanism) || data == nil && *p.binding == "require" {
		return false, nil // pgconn says what is wrong
	}
	if data != nil { // or pgconn would miss the exchange
		*p.binding = "prefer"
	}
	p.client = scram.NewClient(p.keys, data)
	first := p.client.First()
	m := append(append([]byte(mechanism), 0), binary.BigEndian.AppendUint32(nil, uint32(len(first)))...)
	return true, p.send(append(m, first...))
}

// send sends a SASLInitialResponse or SASLResponse.
func (p *prover) send(body []byte) error {
	m := binary.BigEndian.AppendUint32([]byte{wire.Password}, uint32(len(body)+4))
	_, err := p.Write(append(m, body...))
	return err
}

// serverEndPoint returns the data of tls-server-end-point of a connection to a server; nil where it is not defined.
func serverEndPoint(c net.Conn) []byte {
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil
	}
	certs := t.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return nil
	}
	return certificateHash(certs[0])
}

// certificateHash returns the hash of a certificate that stands for the channel (RFC 5929, section 4.1); nil where it is not defined.
func certificateHash(cert *x509.Certificate) []byte {
	hash := bindingHash(cert.SignatureAlgorithm)
	if hash == 0 {
		return nil
	}
	h := hash.New()
	h.Write(cert.Raw)
	return h.Sum(nil)
}
