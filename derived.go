package pgmoor

import (
	"crypto/sha256"
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

func (c *verifierCache) get(password string) (scram.Verifier, error) {
	c.once.Do(func() { c.salt = randomBytes(16) })
	key := sha256.Sum256(append(append(make([]byte, 0, 64), c.salt...), password...))
	c.mu.Lock()
	v, ok := c.m[key]
	c.mu.Unlock()
	if ok {
		return v, nil
	}
	v, err := scram.NewVerifier(password, randomBytes(16), scramIterations)
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
