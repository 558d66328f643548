package pgmoor_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// brokenVerifier cannot say whether a token does.
type brokenVerifier struct{}

func (brokenVerifier) IsToken(string) bool { return true }

func (brokenVerifier) VerifyToken(context.Context, string, *pgmoor.Client) error {
	return errors.New("who issues tokens cannot be reached")
}

// sayToken logs in by a token in the place of a password.
func sayToken(token string) func(t *testing.T, r *rig) string {
	return func(t *testing.T, r *rig) string { return sayPassword(dialAs(t, r, true), "jane_doe", token).code() }
}

// sayBearerOnce logs in by OAUTHBEARER.
func sayBearerOnce(message []byte) func(t *testing.T, r *rig) string {
	return func(t *testing.T, r *rig) string {
		_, got := sayBearer(dialAs(t, r, true), "jane", message, []byte("\x01"))
		return got.code()
	}
}

// saysNothing connects, and is refused before it is asked for anything.
func saysNothing(encrypted bool) func(t *testing.T, r *rig) string {
	return func(t *testing.T, r *rig) string { return dialAs(t, r, encrypted).startup("jane_doe").code() }
}

// bearerHangsUp does not wait to be told that its token does not do, as pgx does not.
func bearerHangsUp(t *testing.T, r *rig) string {
	c := dialAs(t, r, true)
	c.send(&pgproto3.StartupMessage{ProtocolVersion: version30, Parameters: map[string]string{"user": "jane"}})
	if m, err := c.Receive(); err != nil {
		return "hung up"
	} else if e, ok := m.(*pgproto3.ErrorResponse); ok {
		return e.Code
	}
	c.send(&pgproto3.SASLInitialResponse{AuthMechanism: "OAUTHBEARER", Data: bearer("for-joe")})
	_, err := c.Receive()
	require.NoError(t, err)
	require.NoError(t, c.conn.Close())
	return "hung up"
}

func TestFailuresOfTokensAreBounded(t *testing.T) {
	tokens := &pgmoor.TokenAuth{Verifier: rdsKeys("")}
	for name, c := range map[string]struct {
		auth pgmoor.Authenticator
		user string
		try  func(t *testing.T, r *rig) string
		code string
	}{
		"a token":                     {tokens, "jane_doe", sayToken(goToken + "0"), "28P01"},
		"a password where a token is": {tokens, "jane_doe", sayToken("secret"), "28P01"},
		"a bearer token":              {oauth(), "jane", sayBearerOnce(bearer("other")), "28000"},
		"another's bearer token":      {oauth(), "jane", sayBearerOnce(bearer("for-joe")), "28000"},
		"one who hangs up":            {oauth(), "jane", bearerHangsUp, "hung up"},
	} {
		t.Run(name, func(t *testing.T) {
			tokenRig(t, pgmoor.Throttle(c.auth, 2, time.Minute), func(t *testing.T, r *rig, log *logBuffer) {
				for range 2 {
					require.Equal(t, c.code, c.try(t, r), log.text())
				}
				synctest.Wait()
				require.Equal(t, "53300", dialAs(t, r, true).startup(c.user).code())
				time.Sleep(time.Minute)
				require.Equal(t, c.code, c.try(t, r))
			})
		})
	}
}

func TestRefusalsThatAreNoGuessesAreNotCounted(t *testing.T) {
	nobody, err := pgmoor.HBA(pgmoor.Rule{Networks: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, Method: pgmoor.Cleartext(someSecrets(t))})
	require.NoError(t, err)
	for name, c := range map[string]struct {
		auth pgmoor.Authenticator
		try  func(t *testing.T, r *rig) string
		code string
	}{
		"no rule":                     {nobody, saysNothing(true), "28000"},
		"no TLS":                      {&pgmoor.TokenAuth{Verifier: rdsKeys("")}, saysNothing(false), "28000"},
		"no TLS, and no password":     {&pgmoor.TokenAuth{Verifier: rdsKeys(""), Mode: func(string) pgmoor.TokenMode { return pgmoor.TokenEnabled }}, saysNothing(false), "28000"},
		"no TLS for a bearer":         {oauth(), saysNothing(false), "28000"},
		"no way in":                   {&pgmoor.TokenAuth{Verifier: rdsKeys(""), Mode: func(string) pgmoor.TokenMode { return pgmoor.TokenDisabled }}, saysNothing(true), "28P01"},
		"one who asks for the issuer": {oauth(), sayBearerOnce([]byte("n,,\x01auth=\x01\x01")), "28000"},
		"an issuer that is on fire":   {oauth(), sayBearerOnce(bearer("fire")), "28000"},
		"a verifier that is broken":   {&pgmoor.TokenAuth{Verifier: brokenVerifier{}}, sayToken("token"), "28P01"},
	} {
		t.Run(name, func(t *testing.T) {
			tokenRig(t, pgmoor.Throttle(c.auth, 2, time.Minute), func(t *testing.T, r *rig, log *logBuffer) {
				for range 5 {
					require.Equal(t, c.code, c.try(t, r), log.text())
				}
			})
		})
	}
}
