package pgmoor

import (
	"errors"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func FuzzRDSToken(f *testing.F) {
	const token = "db.example:5432/?Action=connect&DBUser=jane%20doe&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKID%2F20000101%2Feu-central-1%2Frds-db%2Faws4_request" +
		"&X-Amz-Date=20000101T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Security-Token=x%2B%2F%3D&X-Amz-Signature="
	f.Add(token + strings.Repeat("0", 64))
	f.Add(strings.Replace(token, ":5432/", ":443", 1) + "x")
	f.Add("[::1]:1?" + token)
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		parsed, err := parseRDSToken(token)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalidToken)
			require.Less(t, len(err.Error()), 200)
			return
		}
		require.NotEmpty(t, parsed.user)
		require.NotEmpty(t, parsed.accessKey)
		require.True(t, parsed.life > 0 && parsed.life <= maxTokenLife)
		require.False(t, parsed.signedBy("a key that nobody has"))
		other, err := url.Parse("https://" + token) // reads it alike
		if err != nil {
			return
		}
		require.Equal(t, parsed.endpoint, other.Host)
		require.Equal(t, parsed.user, other.Query().Get("DBUser"))
		v := RDSTokens{Endpoints: []string{"db.example:5432"}, Region: "eu-central-1"}
		_ = v.isMeant(parsed, "jane doe", time.Now())
	})
}

func FuzzBearer(f *testing.F) {
	for _, seed := range []string{"n,,\x01auth=Bearer x.y.z==\x01\x01", "y,,\x01host=h\x01auth=\x01\x01", "n,a=x,\x01", "p=x,,", "n,,\x01\x01", "\x01", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		auth, err := parseBearer(message)
		if err != nil {
			var e *Error
			require.True(t, errors.As(err, &e))
			require.Contains(t, []string{codeProtocolViolation, codeNotSupported}, e.Code)
			return
		}
		require.Contains(t, string(message), "\x01auth="+auth+"\x01")
		token, err := bearerToken(auth)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalidToken)
			return
		}
		require.True(t, strings.HasSuffix(auth, token) && token != "" && !strings.ContainsAny(token, " \x00\x01\r\n"))
	})
}

// FuzzLoginSCRAM compares what is let through of a server's first message of SCRAM with how pgconn reads it.
func FuzzLoginSCRAM(f *testing.F) {
	for _, count := range []string{"4096", "+1000001", "1000001", "99999999999999999999", "-1", "0x10", "1_000_001", "00001000001", " 1000001", "1000001,x=1", ""} {
		f.Add("r=nonce,s=c2FsdA==,i=" + count)
	}
	f.Fuzz(func(t *testing.T, message string) {
		if checkSCRAM(request(nil, authSASLContinue, []byte(message))) != nil {
			return
		}
		require.LessOrEqual(t, len(message), maxServerFirst)
		nonce, rest, _ := strings.Cut(message, ",")
		salt, count, _ := strings.Cut(rest, ",")
		count, counted := strings.CutPrefix(count, "i=")
		if n, err := strconv.Atoi(count); strings.HasPrefix(nonce, "r=") && strings.HasPrefix(salt, "s=") && counted && err == nil {
			require.LessOrEqual(t, n, maxIterations)
		}
	})
}
