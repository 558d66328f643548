package scram

import (
	"crypto/hmac"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Keys are what a client proves to know instead of the password. They are as good as the password for servers that have the
// same Verifier, and of no use for others. Every way of printing them gives a placeholder.
type Keys struct {
	verifier  Verifier
	clientKey []byte
}

// String returns a placeholder.
func (k Keys) String() string { return Mechanism + " keys" }

// Format writes the placeholder whatever the verb.
func (k Keys) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// MarshalText returns the placeholder.
func (k Keys) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// IsZero reports whether these are no keys.
func (k Keys) IsZero() bool { return k.clientKey == nil }

// For reports whether the keys are those of v.
func (k Keys) For(v Verifier) bool {
	return !k.IsZero() && k.verifier.SharesCost(v) &&
		subtle.ConstantTimeCompare(k.verifier.StoredKey, v.StoredKey)&subtle.ConstantTimeCompare(k.verifier.ServerKey, v.ServerKey) == 1
}

// Proved returns the keys that the client has proved to know, after Final has succeeded.
func (s *Server) Proved() (k Keys, ok bool) { return s.keys, !s.keys.IsZero() }

// Errors of a Client about the server.
var (
	ErrServerMessage  = errors.New("scram: the server's message is malformed")
	ErrOtherVerifier  = errors.New("scram: the server has another verifier")
	ErrServerUnproved = errors.New("scram: the server has not proved to know the verifier")
)

// Client is the client's side of one exchange, by keys: First, Final, then Verify, once each; out of turn they return ErrServerMessage. It is not for concurrent use.
type Client struct {
	keys    Keys
	header  string
	binding string
	nonce   string

	state       state
	bare        string // the first message without the header
	serverFirst string
	unproved    string // the final message without the proof
}

// NewClient returns the client's side of an exchange of MechanismPlus, bound to the data of tls-server-end-point, or of
// Mechanism where that is nil.
func NewClient(keys Keys, data []byte) *Client {
	c := &Client{keys: keys, header: "n,,", binding: string(data), nonce: newNonce()}
	if data != nil {
		c.header = "p=" + endPoint + ",,"
	}
	return c
}

// First returns the client-first-message.
func (c *Client) First() []byte {
	c.bare = "n=,r=" + c.nonce
	return []byte(c.header + c.bare)
}

// Final takes the server-first-message and returns the client-final-message. The error is ErrServerMessage or ErrOtherVerifier:
// with other salts and iterations there are other keys.
func (c *Client) Final(serverFirst []byte) (clientFinal []byte, err error) {
	if c.state++; c.state != wantFinal { // the server has the say
		return nil, ErrServerMessage
	}
	nonce, salt, iterations, ok := readServerFirst(serverFirst)
	if !ok || !strings.HasPrefix(nonce, c.nonce) || len(nonce) == len(c.nonce) {
		return nil, ErrServerMessage
	}
	if v := c.keys.verifier; string(salt) != string(v.Salt) || iterations != v.Iterations {
		return nil, ErrOtherVerifier
	}
	c.serverFirst = string(serverFirst)
	c.unproved = "c=" + encode([]byte(c.header+c.binding)) + ",r=" + nonce
	proof := mac(c.keys.verifier.StoredKey, c.bare, c.serverFirst, c.unproved)
	subtle.XORBytes(proof, proof, c.keys.clientKey)
	return []byte(c.unproved + ",p=" + encode(proof)), nil
}

func readServerFirst(b []byte) (nonce string, salt []byte, iterations int, ok bool) {
	m, err := newMessage(b)
	if err != nil {
		return "", nil, 0, false
	}
	var values [3]string
	for i, name := range []byte("rsi") {
		if values[i], err = m.expect(name); err != nil {
			return "", nil, 0, false
		}
	}
	salt, err = decode(values[1])
	n, notNumber := strconv.Atoi(values[2])
	return values[0], salt, n, err == nil && notNumber == nil
}

// Verify takes the server-final-message. The error is ErrServerMessage or ErrServerUnproved.
func (c *Client) Verify(serverFinal []byte) error {
	if c.state++; c.state != done {
		return ErrServerMessage
	}
	m, err := newMessage(serverFinal)
	if err != nil {
		return ErrServerMessage
	}
	v, err := m.expect('v')
	if err != nil {
		return ErrServerMessage
	}
	got, err := decode(v)
	if err != nil || !hmac.Equal(got, mac(c.keys.verifier.ServerKey, c.bare, c.serverFirst, c.unproved)) {
		return ErrServerUnproved
	}
	return nil
}
