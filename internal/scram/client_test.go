package scram

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// proved returns the keys that a client with the password has proved to know.
func proved(t *testing.T, v Verifier, keys Keys) Keys {
	t.Helper()
	s, c := NewServer(v, false), NewClient(keys, nil)
	first, err := s.First(c.First())
	require.NoError(t, err)
	final, err := c.Final(first)
	require.NoError(t, err)
	end, err := s.Final(final)
	require.NoError(t, err)
	require.NoError(t, c.Verify(end))
	got, ok := s.Proved()
	require.True(t, ok)
	return got
}

// keysOf derives the keys of a password.
func keysOf(t *testing.T, password string, salt []byte) Keys {
	t.Helper()
	v, err := NewVerifier(password, salt, 4096)
	require.NoError(t, err)
	salted, err := pbkdf2.Key(sha256.New, password, salt, 4096, sha256.Size)
	require.NoError(t, err)
	return Keys{v, mac(salted, "Client Key")}
}

func TestKeysThatWereProvedProveAgain(t *testing.T) {
	salt := []byte("0123456789abcdef")
	keys := keysOf(t, "correct horse", salt)
	again := proved(t, keys.verifier, keys)
	require.Equal(t, keys.clientKey, again.clientKey)
	require.True(t, again.For(keys.verifier))
	proved(t, keys.verifier, again)
	require.False(t, again.For(keysOf(t, "other", salt).verifier))
	require.False(t, again.For(keysOf(t, "correct horse", []byte("fedcba9876543210")).verifier))
	require.False(t, Keys{}.For(keys.verifier))
}

func TestAServerThatRefusesHasNoKeys(t *testing.T) {
	salt := []byte("0123456789abcdef")
	keys := keysOf(t, "correct horse", salt)
	s, c := NewServer(keysOf(t, "other", salt).verifier, false), NewClient(keys, nil)
	_, ok := s.Proved()
	require.False(t, ok)
	first, err := s.First(c.First())
	require.NoError(t, err)
	final, err := c.Final(first)
	require.NoError(t, err)
	_, err = s.Final(final)
	require.ErrorIs(t, err, ErrAuthFailed)
	_, ok = s.Proved()
	require.False(t, ok)
}

func TestClientsBindTheChannel(t *testing.T) {
	keys := keysOf(t, "correct horse", []byte("0123456789abcdef"))
	for _, data := range []string{"hash", "another"} {
		s, c := NewServer(keys.verifier, false), NewClient(keys, []byte("hash"))
		s.Bind([]byte(data), true)
		first, err := s.First(c.First())
		require.NoError(t, err)
		final, err := c.Final(first)
		require.NoError(t, err)
		_, err = s.Final(final)
		require.Equal(t, data == "hash", err == nil)
	}
}

func TestCVE_2026_6665_HostileServersGetNothing(t *testing.T) {
	keys := keysOf(t, "correct horse", []byte("0123456789abcdef"))
	salt := encode(keys.verifier.Salt)
	for name, tc := range map[string]struct {
		first string // %s: the client's nonce
		want  error
	}{
		"empty":             {"", ErrServerMessage},
		"garbage":           {"hello", ErrServerMessage},
		"another's nonce":   {"r=other,s=" + salt + ",i=4096", ErrServerMessage},
		"nothing added":     {"r=%s,s=" + salt + ",i=4096", ErrServerMessage},
		"a long nonce":      {"r=%s" + strings.Repeat("x", 1<<20) + ",s=" + salt + ",i=4096", ErrServerMessage},
		"no salt":           {"r=%sx,i=4096", ErrServerMessage},
		"another salt":      {"r=%sx,s=" + encode([]byte("salt")) + ",i=4096", ErrOtherVerifier},
		"no iterations":     {"r=%sx,s=" + salt, ErrServerMessage},
		"zero iterations":   {"r=%sx,s=" + salt + ",i=0", ErrOtherVerifier},
		"many iterations":   {"r=%sx,s=" + salt + ",i=2147483647", ErrOtherVerifier},
		"endless":           {"r=%sx,s=" + salt + ",i=99999999999999999999", ErrServerMessage},
		"negative":          {"r=%sx,s=" + salt + ",i=-1", ErrOtherVerifier},
		"an extension":      {"m=1,r=%sx,s=" + salt + ",i=4096", ErrServerMessage},
		"a byte that is no": {"r=%sx\x00,s=" + salt + ",i=4096", ErrServerMessage},
	} {
		t.Run(name, func(t *testing.T) {
			c := NewClient(keys, nil)
			c.First()
			_, err := c.Final([]byte(strings.Replace(tc.first, "%s", c.nonce, 1)))
			require.ErrorIs(t, err, tc.want)
		})
	}
	for _, final := range []string{"", "e=other-error", "v=", "v=AAAA", "v=!", "v=" + encode(make([]byte, 32))} {
		c := NewClient(keys, nil)
		c.First()
		_, err := c.Final([]byte("r=" + c.nonce + "x,s=" + salt + ",i=4096"))
		require.NoError(t, err)
		require.Error(t, c.Verify([]byte(final)), final)
	}
}

func TestKeysShowNothing(t *testing.T) {
	keys := keysOf(t, "correct horse", []byte("0123456789abcdef"))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		require.Equal(t, "SCRAM-SHA-256 keys", fmt.Sprintf(verb, keys), verb)
	}
}

// FuzzClient has a server say anything: without the keys it proves nothing, and nothing but the exchange's own answer is a proof.
func FuzzClient(f *testing.F) {
	salt := []byte("0123456789abcdef")
	v := MockVerifier("u", []byte("seed"))
	v.Salt = salt
	keys := Keys{v, make([]byte, sha256.Size)}
	for _, seed := range []string{"", "r=nonce", "r=,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=4096", "r=x,s=,i=0", "r=x,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=+4096,x=1", "m=1,r=x"} {
		f.Add(seed, "v=AAAA", true)
		f.Add(seed, "e=other-error", false)
	}
	f.Fuzz(func(t *testing.T, rest, final string, own bool) {
		c := NewClient(keys, nil)
		c.First()
		if own { // or hardly any input would get any further
			rest = "r=" + c.nonce + strings.TrimPrefix(rest, "r=")
		}
		answer, err := c.Final([]byte(rest))
		if err != nil {
			require.True(t, errors.Is(err, ErrServerMessage) || errors.Is(err, ErrOtherVerifier))
			require.Nil(t, answer)
		} else {
			require.True(t, own || strings.HasPrefix(rest, "r="+c.nonce))
			require.Less(t, len(answer), 2*MaxMessageSize)
		}
		require.Error(t, c.Verify([]byte(final)))
		require.ErrorIs(t, c.Verify([]byte(final)), ErrServerMessage)
	})
}
