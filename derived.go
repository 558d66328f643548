package pgmoor

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"sync"

	"github.com/pgmoor/pgmoor/internal/scram"
)

// maxDerived is how many derived verifiers are kept.
const maxDerived = 10000

// mockSeed is what salts are made of that no verifier has. One serves all Authenticators of the process: what a user sees does not
// change with an Update, or that would tell it from users with stored verifiers.
var mockSeed = sync.OnceValue(func() []byte { return randomBytes(32) })

// mock returns what a user without a secret is shown.
func mock(user string) scram.Verifier { return scram.MockVerifier(user, mockSeed()) }

// verifierCache keeps the SCRAM verifiers that were derived from passwords in clear: deriving one costs milliseconds of
// CPU, and a login with one costs microseconds. Its keys are salted hashes: the cache holds no password.
type verifierCache struct {
	once sync.Once
	salt []byte

	mu sync.Mutex
	m  map[[sha256.Size]byte]scram.Verifier
}

// get returns a verifier of a user's password, with the salt that the user would see without one.
func (c *verifierCache) get(user, password string) (scram.Verifier, error) {
	return c.like(mock(user), password)
}

// like returns a verifier of a password with the salt and the number of iterations of another one.
func (c *verifierCache) like(v scram.Verifier, password string) (scram.Verifier, error) {
	key := c.key(password, strconv.Itoa(v.Iterations), string(v.Salt))
	c.mu.Lock()
	known, ok := c.m[key]
	c.mu.Unlock()
	if ok {
		return known, nil
	}
	v, err := scram.NewVerifier(password, v.Salt, v.Iterations)
	if err != nil {
		return v, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= maxDerived {
		c.m = make(map[[sha256.Size]byte]scram.Verifier)
	}
	c.m[key] = v
	return v, nil
}

// key is where a verifier is kept.
func (c *verifierCache) key(parts ...string) [sha256.Size]byte {
	c.once.Do(func() { c.salt = randomBytes(16) })
	b := append(make([]byte, 0, 128), c.salt...)
	for _, part := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return sha256.Sum256(b)
}
