package scram

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxMessageSize is the length in bytes above which a client's message is refused, and need not be read in full. It is
// PostgreSQL's limit.
const MaxMessageSize = 1024

// nonceSize is how many random bytes a server adds to the client's nonce.
const nonceSize = 18

// ErrAuthFailed means that the client has not proved to know the password.
var ErrAuthFailed = errors.New("scram: authentication failed")

// ProtocolError is about a message that is malformed or asks for what is not supported. Its fields are PostgreSQL's
// words and safe to send to the client.
type ProtocolError struct {
	Code   string // SQLSTATE
	Msg    string
	Detail string // may be empty
}

func (e *ProtocolError) Error() string {
	if e.Detail == "" {
		return "scram: " + e.Msg
	}
	return "scram: " + e.Msg + ": " + e.Detail
}

// Server is one exchange with one client: First, then Final, once each. It is not for concurrent use.
type Server struct {
	verifier Verifier
	old      *Verifier // nil: there is none besides
	doomed   bool

	state       state
	channel     channel
	header      string // the GS2 header, which the client must repeat in its final message
	clientFirst string // without the GS2 header
	serverFirst string
	serverNonce string
	nonce       string // the client's, then the server's
	keys        Keys   // that the client has proved to know
}

type state uint8

const (
	wantFirst state = iota
	wantFinal
	done
)

// NewServer returns the server's side of an exchange about v. A doomed one takes the same steps and the same time, and
// fails in Final whatever the client proves. It panics if v did not come from this package's functions.
func NewServer(v Verifier, doomed bool) *Server {
	if !v.valid() {
		panic("scram: invalid Verifier")
	}
	return &Server{verifier: v, doomed: doomed}
}

// First takes the client-first-message, which is the data of a SASLInitialResponse, and returns the
// server-first-message, for an AuthenticationSASLContinue. The user name in it is ignored, as PostgreSQL ignores it. An
// error, always a *ProtocolError, ends the exchange.
func (s *Server) First(clientFirst []byte) (serverFirst []byte, err error) {
	s.step(wantFirst)
	m, err := newMessage(clientFirst)
	if err != nil {
		return nil, err
	}
	if err := m.gs2Header(s.channel); err != nil {
		return nil, err
	}
	s.header = string(clientFirst[:len(clientFirst)-len(m)])
	s.clientFirst = string(m)
	clientNonce, err := m.clientFirst()
	if err != nil {
		return nil, err
	}
	if s.serverNonce == "" {
		s.serverNonce = newNonce()
	}
	s.nonce = clientNonce + s.serverNonce
	s.serverFirst = "r=" + s.nonce + ",s=" + encode(s.verifier.Salt) + ",i=" + strconv.Itoa(s.verifier.Iterations)
	s.state = wantFinal
	return []byte(s.serverFirst), nil
}

// Final takes the client-final-message, which is the data of a SASLResponse, and returns the server-final-message, for
// an AuthenticationSASLFinal. The error is ErrAuthFailed or a *ProtocolError.
func (s *Server) Final(clientFinal []byte) (serverFinal []byte, err error) {
	s.step(wantFinal)
	m, err := newMessage(clientFinal)
	if err != nil {
		return nil, err
	}
	binding, err := m.expect('c')
	if err != nil {
		return nil, err
	}
	if err := s.checkBinding(binding); err != nil {
		return nil, err
	}
	nonce, err := m.expect('r')
	if err != nil {
		return nil, err
	}
	proof, unproved, err := m.proof(string(clientFinal))
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare([]byte(nonce), []byte(s.nonce)) != 1 {
		return nil, violation("invalid SCRAM response", "Nonce does not match.")
	}
	v, ok := s.proven(proof, unproved)
	if !ok || s.doomed {
		return nil, ErrAuthFailed
	}
	s.keys = Keys{*v, s.clientKey(v, proof, unproved)}
	return []byte("v=" + encode(mac(v.ServerKey, s.clientFirst, s.serverFirst, unproved))), nil
}

// step panics unless want is the state, and leaves done behind, from which only success leads on.
func (s *Server) step(want state) {
	if s.state != want {
		panic("scram: Server used out of turn")
	}
	s.state = done
}

// proves reports whether proof is that of a client which knows the key that v's stored one is the hash of.
func (s *Server) proves(v *Verifier, proof []byte, unproved string) bool {
	storedKey := sha256.Sum256(s.clientKey(v, proof, unproved))
	return hmac.Equal(storedKey[:], v.StoredKey)
}

// clientKey returns the key that proof is made with, if it is a proof for v.
func (s *Server) clientKey(v *Verifier, proof []byte, unproved string) []byte {
	key := mac(v.StoredKey, s.clientFirst, s.serverFirst, unproved)
	subtle.XORBytes(key, key, proof)
	return key
}

func newNonce() string {
	var raw [nonceSize]byte
	_, _ = rand.Read(raw[:]) // never fails
	return encode(raw[:])
}

// message is what is left to parse of a client's message. Like the C strings that PostgreSQL parses it ends with a 0
// for its methods, and they say so in errors.
type message string

func newMessage(b []byte) (message, error) {
	m := message(b[:min(len(b), MaxMessageSize)])
	switch {
	case len(b) == 0:
		return "", malformed("The message is empty.")
	case len(b) > MaxMessageSize:
		return "", malformed("The message is too long.")
	case strings.IndexByte(string(m), 0) >= 0:
		return "", malformed("Message length does not match input length.")
	}
	return m, nil
}

func (m *message) peek() byte {
	if *m == "" {
		return 0
	}
	return (*m)[0]
}

// clientFirst takes all that follows the GS2 header and returns the nonce.
func (m *message) clientFirst() (nonce string, err error) {
	if m.peek() == 'm' {
		return "", unsupported("client requires an unsupported SCRAM extension")
	}
	if _, err := m.expect('n'); err != nil {
		return "", err
	}
	if nonce, err = m.expect('r'); err != nil {
		return "", err
	}
	for i := range len(nonce) {
		if nonce[i] < '!' || nonce[i] > '~' {
			return "", violation("non-printable characters in SCRAM nonce", "")
		}
	}
	for *m != "" {
		if _, _, err := m.next(); err != nil {
			return "", err
		}
	}
	return nonce, nil
}

// proof takes the rest of whole, a client-final-message, and returns the proof and all that stands before it.
func (m *message) proof(whole string) (proof []byte, unproved string, err error) {
	for {
		unproved = whole[:max(0, len(whole)-len(*m)-1)]
		name, value, err := m.next()
		if err != nil {
			return nil, "", err
		}
		if name != 'p' {
			continue
		}
		proof, err = decode(value)
		if err != nil || len(proof) != sha256.Size {
			return nil, "", malformed("Malformed proof in client-final-message.")
		}
		if *m != "" {
			return nil, "", malformed("Garbage found at the end of client-final-message.")
		}
		return proof, unproved, nil
	}
}

// expect takes the attribute with the given name.
func (m *message) expect(name byte) (value string, err error) {
	if c := m.peek(); c != name {
		return "", malformed(`Expected attribute "%c" but found "%s".`, name, printable(c))
	}
	_, value, err = m.next()
	return value, err
}

// next takes an attribute, whatever its name, and the comma behind it.
func (m *message) next() (name byte, value string, err error) {
	name = m.peek()
	switch lower := name | 0x20; {
	case name == 0:
		return 0, "", malformed("Attribute expected, but found end of string.")
	case lower < 'a' || lower > 'z':
		return 0, "", malformed(`Attribute expected, but found invalid character "%s".`, printable(name))
	}
	*m = (*m)[1:]
	if m.peek() != '=' {
		return 0, "", malformed(`Expected character "=" for attribute "%c".`, name)
	}
	value, rest, _ := strings.Cut(string((*m)[1:]), ",")
	*m = message(rest)
	return name, value, nil
}

// printable returns c as PostgreSQL shows it in messages.
func printable(c byte) string {
	if c >= '!' && c <= '~' {
		return "'" + string(rune(c)) + "'"
	}
	return fmt.Sprintf("0x%02x", c)
}

// codeBadAuthorization is the SQLSTATE of a channel that is not the client's.
const codeBadAuthorization = "28000"

func violation(msg, detail string) error {
	return &ProtocolError{Code: "08P01", Msg: msg, Detail: detail}
}

func malformed(detail string, args ...any) error {
	return violation("malformed SCRAM message", fmt.Sprintf(detail, args...))
}

func unsupported(msg string) error {
	return &ProtocolError{Code: "0A000", Msg: msg}
}
