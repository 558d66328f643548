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

// scramIterations is PostgreSQL's default of scram_iterations.
const scramIterations = 4096

// verifierCache keeps the SCRAM verifiers that were derived from passwords in clear: deriving one costs milliseconds of
// CPU, and a login with one costs microseconds. Its keys are salted hashes: the cache holds no password.
type verifierCache struct {
	once sync.Once
	salt []byte

	mu sync.Mutex
	m  map[[sha256.Size]byte]scram.Verifier
}

// get returns a verifier of a password, with a salt of its own that stays the same.
func (c *verifierCache) get(password string) (scram.Verifier, error) {
	return c.find(c.key(password), password, nil, scramIterations)
}

// like returns a verifier of a password with the salt and the number of iterations of another one.
func (c *verifierCache) like(v scram.Verifier, password string) (scram.Verifier, error) {
	return c.find(c.key(password, strconv.Itoa(v.Iterations), string(v.Salt)), password, v.Salt, v.Iterations)
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

// find returns what is kept, or derives it: with a new salt, if there is none.
func (c *verifierCache) find(key [sha256.Size]byte, password string, salt []byte, iterations int) (scram.Verifier, error) {
	c.mu.Lock()
	v, ok := c.m[key]
	c.mu.Unlock()
	if ok {
		return v, nil
	}
	if salt == nil {
		salt = randomBytes(scram.SaltSize)
	}
	v, err := scram.NewVerifier(password, salt, iterations)
	if err != nil {
		return v, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if prev, ok := c.m[key]; ok {
		return prev, nil
	}
	if c.m == nil || len(c.m) >= maxDerived {
		c.m = make(map[[sha256.Size]byte]scram.Verifier)
	}
	c.m[key] = v
	return v, nil
}
