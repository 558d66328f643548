package scram_test

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/scram"
)

// BenchmarkLogin is a login from stored keys, with and without a previous version of the secret. The client's part is in it, but for the
// derivation of its key.
func BenchmarkLogin(b *testing.B) {
	salt := []byte("saltsaltsaltsalt")
	v, err := scram.NewVerifier("sesame", salt, scram.DefaultIterations)
	require.NoError(b, err)
	old, err := scram.NewVerifier("before", salt, scram.DefaultIterations)
	require.NoError(b, err)
	stored := v.Encode()
	salted, err := pbkdf2.Key(sha256.New, "sesame", salt, scram.DefaultIterations, sha256.Size)
	require.NoError(b, err)
	for name, previous := range map[string]bool{"one": false, "two": true} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				v, err := scram.ParseVerifier(stored)
				if err != nil {
					b.Fatal(err)
				}
				srv := scram.NewServer(v, false)
				if previous {
					srv.AcceptToo(old)
				}
				if err := logIn(srv, salted); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N), "µs/login")
		})
	}
}

// logIn is a client that has its key already.
func logIn(srv *scram.Server, salted []byte) error {
	const bare = "n=,r=abcdefghijklmnopqrstuvwx"
	first, err := srv.First([]byte("n,," + bare))
	if err != nil {
		return err
	}
	nonce, _, _ := strings.Cut(string(first), ",")
	unproved := "c=biws," + nonce
	sum := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	clientKey := sum(salted, "Client Key")
	storedKey := sha256.Sum256(clientKey)
	proof := sum(storedKey[:], bare+","+string(first)+","+unproved)
	subtle.XORBytes(proof, proof, clientKey)
	_, err = srv.Final([]byte(unproved + ",p=" + base64.StdEncoding.EncodeToString(proof)))
	return err
}
