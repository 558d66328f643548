package pgmoor_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

func oauth() *pgmoor.OAuthBearer {
	return &pgmoor.OAuthBearer{
		Issuer: issuer, Scope: `openid "x" <&>`, Validate: validToken,
		Users: func(identity, user string) bool { return identity == user || identity == "admin" },
	}
}

// invalidToken is PostgreSQL's answer to a client that has no good token.
const invalidToken = `{ "status": "invalid_token", "openid-configuration": "https://issuer.example/.well-known/openid-configuration", "scope": "openid \"x\" <&>" }`

// sayBearer logs in by OAUTHBEARER with a first message, if it is not nil, and answers everything that follows from what is left. It
// returns what the proxy said in the exchange.
func sayBearer(c *client, user string, messages ...[]byte) (challenges []string, r reply) {
	c.t.Helper()
	c.send(&pgproto3.StartupMessage{ProtocolVersion: version30, Parameters: map[string]string{"user": user}})
	m, err := c.Receive()
	require.NoError(c.t, err)
	if e, ok := m.(*pgproto3.ErrorResponse); ok {
		return nil, reply{err: e}
	}
	require.Equal(c.t, &pgproto3.AuthenticationSASL{AuthMechanisms: []string{"OAUTHBEARER"}}, m)
	if messages[0] == nil {
		_, err = c.conn.Write([]byte("p\x00\x00\x00\x14OAUTHBEARER\x00\xff\xff\xff\xff"))
		require.NoError(c.t, err)
	} else {
		c.send(&pgproto3.SASLInitialResponse{AuthMechanism: "OAUTHBEARER", Data: messages[0]})
	}
	for _, next := range messages[1:] {
		m, err := c.Receive()
		require.NoError(c.t, err)
		require.IsType(c.t, &pgproto3.AuthenticationSASLContinue{}, m)
		challenges = append(challenges, string(m.(*pgproto3.AuthenticationSASLContinue).Data))
		c.send(&pgproto3.SASLResponse{Data: next})
	}
	return challenges, c.reply()
}

func bearer(token string) []byte { return []byte("n,,\x01auth=Bearer " + token + "\x01\x01") }

func TestBearerTokensLetTheirUserIn(t *testing.T) {
	tokenRig(t, oauth(), func(t *testing.T, r *rig, log *logBuffer) {
		for _, c := range []struct {
			user     string
			messages [][]byte
			asked    []string
		}{
			{"jane", [][]byte{bearer("for-jane")}, nil},
			{"jane", [][]byte{bearer("for-admin")}, nil},
			{"a+/._~", [][]byte{bearer("for-a+/._~")}, nil},
			{"jane", [][]byte{[]byte("y,,\x01auth=bEARER   for-jane\x01\x01")}, nil},
			{"jane", [][]byte{[]byte("n,,\x01host=h\x01port=5432\x01auth=Bearer for-jane\x01other=\t x=y\x01\x01")}, nil},
			{"jane", [][]byte{nil, bearer("for-jane")}, []string{""}},
		} {
			asked, got := sayBearer(dialAs(t, r, true), c.user, c.messages...)
			require.EqualValues(t, 'I', got.status, "%q %s", c.messages, log.text())
			require.Equal(t, c.asked, asked)
		}
	})
}

func TestBearerTokensThatDoNotDo(t *testing.T) {
	for name, c := range map[string]struct {
		user    string
		message []byte
		why     string
	}{
		"none":          {"jane", []byte("n,,\x01auth=\x01\x01"), "the client asks who issues them"},
		"an invalid":    {"jane", bearer("other"), "multiple Read calls"},
		"another user":  {"jane", bearer("for-joe"), `it is \"joe\"'s, who may not log in as \"jane\"`},
		"nobody's":      {"jane", bearer("for-"), "it says of nobody"},
		"no issuer":     {"jane", bearer("fire"), "the issuer is on fire"},
		"a scheme":      {"jane", []byte("n,,\x01auth=Basic for-jane\x01\x01"), "another scheme"},
		"only a scheme": {"jane", []byte("n,,\x01auth=Bearer\x01\x01"), "another scheme"},
		"an empty":      {"jane", bearer(""), "it is empty"},
		"a format":      {"jane", bearer("for jane"), "not in the format"},
		"a format =":    {"jane", bearer("for=jane"), "not in the format"},
	} {
		t.Run(name, func(t *testing.T) {
			tokenRig(t, oauth(), func(t *testing.T, r *rig, log *logBuffer) {
				asked, got := sayBearer(dialAs(t, r, true), c.user, c.message, []byte("\x01"))
				require.Equal(t, []string{invalidToken}, asked)
				require.Equal(t, "28000", got.code())
				require.Equal(t, `OAuth bearer authentication failed for user "jane"`, got.err.Message)
				require.Empty(t, got.err.Detail+got.err.Hint)
				require.Contains(t, log.text(), c.why)
				require.Zero(t, r.server.Accepted())
			})
		})
	}
}

func TestWhyABearerTokenDidNotDoIsLoggedWhenItsClientHangsUp(t *testing.T) { // as pgx does
	tokenRig(t, oauth(), func(t *testing.T, r *rig, log *logBuffer) {
		c := dialAs(t, r, true)
		c.send(&pgproto3.StartupMessage{ProtocolVersion: version30, Parameters: map[string]string{"user": "jane"}})
		_, err := c.Receive()
		require.NoError(t, err)
		c.send(&pgproto3.SASLInitialResponse{AuthMechanism: "OAUTHBEARER", Data: bearer("for-joe")})
		_, err = c.Receive()
		require.NoError(t, err)
		require.NoError(t, c.conn.Close())
		synctest.Wait()
		require.Contains(t, log.text(), "who may not log in as")
	})
}

func TestBearerMessagesThatAreNone(t *testing.T) { // PostgreSQL 18, auth-oauth.c
	const malformed = "malformed OAUTHBEARER message"
	for message, want := range map[string]string{
		"":                                     "The message is empty.",
		"n,,\x01auth=Bearer for-jane\x01\x00":  "Message length does not match input length.",
		"p=tls-server-end-point,,\x01":         "The server does not support channel binding for OAuth, but the client message includes channel binding data.",
		"x,,\x01":                              `Unexpected channel-binding flag "'x'".`,
		"\x01":                                 `Unexpected channel-binding flag "0x01".`,
		"n":                                    `Comma expected, but found character "0x00".`,
		"n;,\x01":                              `Comma expected, but found character "';'".`,
		"n,b\x01":                              `Unexpected attribute "'b'" in client-first-message.`,
		"n,,auth=Bearer for-jane\x01\x01":      `Key-value separator expected, but found character "'a'".`,
		"n,,\x01\x01":                          "Message does not contain an auth value.",
		"n,,\x01host=x\x01\x01":                "Message does not contain an auth value.",
		"n,,\x01":                              "Message did not contain a final terminator.",
		"n,,\x01auth=Bearer for-jane\x01":      "Message did not contain a final terminator.",
		"n,,\x01auth=Bearer for-jane":          "Message contains an unterminated key/value pair.",
		"n,,\x01auth\x01\x01":                  "Message contains a key without a value.",
		"n,,\x01=x\x01\x01":                    "Message contains an empty key name.",
		"n,,\x01a_b=x\x01\x01":                 "Message contains an invalid key name.",
		"n,,\x01auth=Bearer \x7f\x01\x01":      "Message contains an invalid value.",
		"n,,\x01auth=\xc3\xa9\x01\x01":         "Message contains an invalid value.",
		"n,,\x01auth=x\x01auth=y\x01\x01":      "Message contains multiple auth values.",
		"n,,\x01auth=Bearer for-jane\x01\x01x": "Message contains additional data after the final terminator.",
	} {
		tokenRig(t, oauth(), func(t *testing.T, r *rig, _ *logBuffer) {
			_, got := sayBearer(dialAs(t, r, true), "jane", append([]byte{}, message...))
			require.Equal(t, []string{"08P01", malformed, want}, []string{got.code(), got.err.Message, got.err.Detail}, "%q", message)
		})
	}
	tokenRig(t, oauth(), func(t *testing.T, r *rig, _ *logBuffer) {
		_, got := sayBearer(dialAs(t, r, true), "jane", []byte("n,a=joe,\x01auth=Bearer for-jane\x01\x01"))
		require.Equal(t, "0A000", got.code())
		for answer, want := range map[string]string{"": "The message is empty.", "hello": "Client did not send a kvsep response.", "\x01\x01": "Client did not send a kvsep response."} {
			_, got = sayBearer(dialAs(t, r, true), "jane", bearer("other"), []byte(answer))
			require.Equal(t, []string{"08P01", malformed, want}, []string{got.code(), got.err.Message, got.err.Detail}, "%q", answer)
		}
		_, got = sayBearer(dialAs(t, r, false), "jane", bearer("for-jane"))
		require.Equal(t, "28000", got.code())
	})
}

func TestAValidatorThatTakesTooLong(t *testing.T) {
	o := oauth()
	o.Validate = func(ctx context.Context, _ string, _ *pgmoor.Client) (string, error) {
		<-ctx.Done()
		return "jane", ctx.Err()
	}
	tokenRig(t, o, func(t *testing.T, r *rig, _ *logBuffer) {
		start := time.Now()
		_, got := sayBearer(dialAs(t, r, true), "jane", bearer("for-jane"))
		require.Equal(t, "57014", got.code())
		require.Less(t, time.Since(start), 2*time.Minute)
	})
}

func TestPgxLogsInByOAuth(t *testing.T) {
	cfg := pgmoor.Config{Authenticator: oauth()}
	cfg.TLS, _ = certified(t)
	host, port, err := net.SplitHostPort(newRig(t, cfg, new(fake)).listenTCP(t))
	require.NoError(t, err)
	connect := func(token string) error {
		cfg, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%s user=jane dbname=d sslmode=require require_auth=oauth", host, port))
		require.NoError(t, err)
		cfg.OAuthTokenProvider = func(context.Context) (string, error) { return token, nil }
		conn, err := pgconn.ConnectConfig(t.Context(), cfg)
		if err != nil {
			return err
		}
		return conn.Close(t.Context())
	}
	require.NoError(t, connect("for-jane"))
	require.ErrorContains(t, connect("for-joe"), "OAuth authentication failed: invalid_token")
}
