// Package scram is the server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677, RFC 5929) with the
// peculiarities of PostgreSQL, and the two hashes of PostgreSQL's md5 authentication.
package scram

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/xdg-go/stringprep"
)

const (
	// Mechanism is the name under which a Server's exchange is advertised.
	Mechanism = "SCRAM-SHA-256"
	// DefaultIterations is PostgreSQL's default number of iterations.
	DefaultIterations = 4096
	// SaltSize is the length in bytes of the salts that PostgreSQL makes.
	SaltSize = 16

	// Both are far above what PostgreSQL makes.
	maxSaltSize     = 512
	maxVerifierSize = 1024
)

// errVerifier says nothing of the text that it is about, which is secret.
var errVerifier = errors.New("scram: not a valid SCRAM-SHA-256 verifier")

// Verifier is what a server stores of a password. With it a client can be checked, not impersonated. Every way of
// printing one gives a placeholder.
type Verifier struct {
	Iterations           int
	Salt                 []byte
	StoredKey, ServerKey []byte // sha256.Size bytes each
}

// NewVerifier derives the Verifier of a password. The password is prepared as PostgreSQL does it: one that SASLprep
// refuses is taken as it is. The Verifier keeps salt.
func NewVerifier(password string, salt []byte, iterations int) (Verifier, error) {
	v := Verifier{Iterations: iterations, Salt: salt}
	if !v.validCost() {
		return Verifier{}, fmt.Errorf("scram: %d bytes of salt, %d iterations", len(salt), iterations)
	}
	salted, err := pbkdf2.Key(sha256.New, prepare(password), salt, iterations, sha256.Size)
	if err != nil {
		return Verifier{}, fmt.Errorf("scram: %w", err)
	}
	storedKey := sha256.Sum256(mac(salted, "Client Key"))
	v.StoredKey, v.ServerKey = storedKey[:], mac(salted, "Server Key")
	return v, nil
}

// MockVerifier returns what to show a client of a user that has no Verifier: the same salt whenever the same user is
// asked for under the same secret seed, DefaultIterations, and keys that no password has. A server whose verifiers have
// another number of iterations should set that number, or the difference tells who exists.
func MockVerifier(user string, seed []byte) Verifier {
	return Verifier{
		Iterations: DefaultIterations,
		Salt:       mac(seed, "salt", user)[:SaltSize],
		StoredKey:  mac(seed, "stored key", user),
		ServerKey:  mac(seed, "server key", user),
	}
}

// ParseVerifier parses the form in which PostgreSQL stores a Verifier,
// "SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>" with base64 for the last three. The error does not quote it.
func ParseVerifier(s string) (Verifier, error) {
	cost, keys, ok := strings.Cut(strings.TrimPrefix(s, Mechanism+"$"), "$")
	if !ok || !strings.HasPrefix(s, Mechanism+"$") || len(s) > maxVerifierSize {
		return Verifier{}, errVerifier
	}
	iterations, salt, ok1 := strings.Cut(cost, ":")
	storedKey, serverKey, ok2 := strings.Cut(keys, ":")
	if !ok1 || !ok2 {
		return Verifier{}, errVerifier
	}
	n, err := strconv.ParseUint(iterations, 10, 31)
	v := Verifier{Iterations: int(n)}
	for _, field := range []struct {
		to   *[]byte
		from string
	}{{&v.Salt, salt}, {&v.StoredKey, storedKey}, {&v.ServerKey, serverKey}} {
		var fieldErr error
		*field.to, fieldErr = decode(field.from)
		err = errors.Join(err, fieldErr)
	}
	if err != nil || !v.valid() {
		return Verifier{}, errVerifier
	}
	return v, nil
}

// Encode returns the form that ParseVerifier parses. It is a secret.
func (v Verifier) Encode() string {
	return fmt.Sprintf("%s$%d:%s$%s:%s", Mechanism, v.Iterations, encode(v.Salt), encode(v.StoredKey), encode(v.ServerKey))
}

// String returns a placeholder; see Encode.
func (v Verifier) String() string { return Mechanism + " verifier" }

// Format writes the placeholder whatever the verb, so that no verb shows the fields.
func (v Verifier) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, v.String()) }

// MarshalText returns the placeholder, for loggers that would otherwise write the fields as JSON.
func (v Verifier) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

func (v Verifier) valid() bool {
	return v.validCost() && len(v.StoredKey) == sha256.Size && len(v.ServerKey) == sha256.Size
}

func (v Verifier) validCost() bool {
	return v.Iterations > 0 && v.Iterations <= math.MaxInt32 && len(v.Salt) > 0 && len(v.Salt) <= maxSaltSize
}

// prepare is SASLprep with PostgreSQL's ways: what it refuses, and what nothing is left of, stays as it is, and
// U+200B, which RFC 3454 lists both as a space and as mapped to nothing, is a space.
func prepare(password string) string {
	prepared, err := stringprep.SASLprep.Prepare(strings.ReplaceAll(password, "\u200b", " "))
	if err != nil || prepared == "" {
		return password
	}
	return prepared
}

// mac returns the HMAC-SHA-256 of the message that consists of parts with commas between them.
func mac(key []byte, parts ...string) []byte {
	h := hmac.New(sha256.New, key)
	for i, part := range parts {
		if i > 0 {
			_, _ = io.WriteString(h, ",")
		}
		_, _ = io.WriteString(h, part)
	}
	return h.Sum(nil)
}

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// decode refuses the line ends that package base64 skips, and bits that are not zero behind the end.
func decode(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, base64.CorruptInputError(strings.IndexAny(s, "\r\n"))
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}
