package main

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// scramMechanism is the only one that the clients know.
const scramMechanism = "SCRAM-SHA-256"

// scramIterations is PostgreSQL's default.
const scramIterations = 4096

// credentials are a password and what is derived from it, once: clients log in by the keys, and a pooler knows the verifier.
type credentials struct {
	password                        string
	salt                            []byte
	clientKey, storedKey, serverKey []byte
}

// newCredentials makes up a password.
func newCredentials() (*credentials, error) {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	c := &credentials{password: hex.EncodeToString(raw[:16]), salt: raw[16:]}
	salted, err := pbkdf2.Key(sha256.New, c.password, c.salt, scramIterations, sha256.Size)
	if err != nil {
		return nil, err
	}
	c.clientKey, c.serverKey = mac(salted, "Client Key"), mac(salted, "Server Key")
	stored := sha256.Sum256(c.clientKey)
	c.storedKey = stored[:]
	return c, nil
}

// verifier is the form that poolers and PostgreSQL store.
func (c *credentials) verifier() string {
	return fmt.Sprintf("%s$%d:%s$%s:%s", scramMechanism, scramIterations, encode(c.salt), encode(c.storedKey), encode(c.serverKey))
}

func mac(key []byte, message string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// clientNonce is the same for all logins, to spare the load's time: those that are measured take a new one.
const clientNonce = "abcdefghijklmnopqrstuvwx"

const clientFirst = "n=,r=" + clientNonce

// exchange is one login by SCRAM, up to the server's signature.
type exchange struct {
	*credentials
	serverFirst, unproved string
}

// answer returns the message that answers an AuthenticationSASL request, nil if there is none.
func (x *exchange) answer(code uint32, data []byte) ([]byte, error) {
	switch code {
	case 10:
		if !slices.Contains(strings.Split(string(data), "\x00"), scramMechanism) {
			return nil, errors.New("the server does not offer " + scramMechanism)
		}
		first := "n,," + clientFirst
		body := binary.BigEndian.AppendUint32([]byte(scramMechanism+"\x00"), uint32(len(first)))
		return passwordMessage(append(body, first...)), nil
	case 11:
		return x.prove(string(data))
	case 12:
		if want := "v=" + encode(mac(x.serverKey, x.signed())); string(data) != want {
			return nil, errors.New("the server does not know the verifier")
		}
		return nil, nil
	}
	return nil, fmt.Errorf("authentication request %d, of which the client knows nothing", code)
}

func (x *exchange) prove(serverFirst string) ([]byte, error) {
	nonce, cost, _ := strings.Cut(serverFirst, ",")
	if want := fmt.Sprintf("s=%s,i=%d", encode(x.salt), scramIterations); cost != want || !strings.HasPrefix(nonce, "r="+clientNonce) {
		return nil, errors.New("the server's first SCRAM message is not about the verifier")
	}
	x.serverFirst, x.unproved = serverFirst, "c=biws,"+nonce
	proof := mac(x.storedKey, x.signed())
	subtle.XORBytes(proof, proof, x.clientKey)
	return passwordMessage([]byte(x.unproved + ",p=" + encode(proof))), nil
}

// signed is what both sides sign.
func (x *exchange) signed() string { return clientFirst + "," + x.serverFirst + "," + x.unproved }

func passwordMessage(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{'p'}, uint32(len(body)+4)), body...)
}
