package pgmoor_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/memconn"
)

// Tokens for the user jane_doe that were made when clocks of synctest begin, 2000-01-01 00:00:00 UTC, as said in rdsKeys.
const (
	// by feature/rds/auth of aws-sdk-go-v2, and, but for the slash, by botocore
	goToken = "db.example:5432?Action=connect&DBUser=jane_doe&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20000101%2Feu-central-1%2Frds-db%2Faws4_request&X-Amz-Date=20000101T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature=da9f70a7644539ad65852080b9261df8d92b15575d17e9e3c9f56e5e3d766ca6"
	// by botocore, with a session token
	sessionToken = "db.example:5432/?Action=connect&DBUser=jane_doe&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20000101%2Feu-central-1%2Frds-db%2Faws4_request&X-Amz-Date=20000101T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Security-Token=FwoGZXIvYXdzEBYaDH%2B%2Fsession%3D%3D&X-Amz-Signature=d2e7fbab7dc50fe0eecd44a00ceb2a221d44b84808099bda5c704c3ed06db755"
	// by botocore, which writes capital letters small and leaves out port 443 where it signs
	bareToken = "DB.example:443/?Action=connect&DBUser=jane_doe&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20000101%2Feu-central-1%2Frds-db%2Faws4_request&X-Amz-Date=20000101T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature=df57a15aeaee1e146a41b1f078ebe9775876cd961d4c9baeb688b8931dd8b890"
	// by aws-sdk-go-v2, for a user of a strange name
	oddToken = "DB.example:443?Action=connect&DBUser=jane%20doe%2B%C3%A9%2Fx%26y&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20000101%2Feu-central-1%2Frds-db%2Faws4_request&X-Amz-Date=20000101T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature=3bbdf38d7bbf6430821f1b461b19fffd1ae2f41aeaa6fbfb5a0c864292861859"
)

// rdsKeys supplies the key that the tokens above are signed with, for users whose names begin with jane.
func rdsKeys(session string) *pgmoor.RDSTokens {
	return &pgmoor.RDSTokens{
		Endpoints: []string{"db.example:5432", "db.example:443"}, Region: "eu-central-1",
		Key: func(_ context.Context, id, user string) (pgmoor.RDSKey, error) {
			switch {
			case user == "fire":
				return pgmoor.RDSKey{}, errors.New("the store of keys is on fire")
			case id != "AKIDEXAMPLE" || !strings.HasPrefix(user, "jane"):
				return pgmoor.RDSKey{}, pgmoor.ErrNoSecret
			}
			k := pgmoor.RDSKey{SecretAccessKey: pgmoor.NewSecret("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")}
			if session != "" {
				k.SessionToken = pgmoor.NewSecret(session)
			}
			return k, nil
		},
	}
}

// dialAs connects from another machine, with TLS or without.
func dialAs(t *testing.T, r *rig, encrypted bool) *client {
	t.Helper()
	l := memconn.Listen()
	require.NoError(t, r.AddListener(&elsewhere{l, foreignAddr("192.0.2.1:1")}))
	conn, err := l.DialContext(t.Context(), "", "")
	require.NoError(t, err)
	if encrypted {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postgresql"}})
	}
	return newClient(t, conn)
}

// sayPassword logs in with a password, if one is asked for in clear.
func sayPassword(c *client, user, password string) reply {
	c.send(&pgproto3.StartupMessage{ProtocolVersion: version30, Parameters: map[string]string{"user": user}})
	m, err := c.Receive()
	require.NoError(c.t, err)
	if e, ok := m.(*pgproto3.ErrorResponse); ok {
		return reply{err: e}
	}
	require.IsType(c.t, &pgproto3.AuthenticationCleartextPassword{}, m)
	c.send(&pgproto3.PasswordMessage{Password: password})
	return c.reply()
}

// tokenRig runs f in a bubble, with a proxy that takes tokens and logs.
func tokenRig(t *testing.T, auth pgmoor.Authenticator, f func(t *testing.T, r *rig, log *logBuffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log := new(logBuffer)
		cfg := pgmoor.Config{Authenticator: auth, Logger: slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
		cfg.TLS, _ = certified(t)
		f(t, newRig(t, cfg, new(fake)), log)
	})
}

func TestTokensOfAWSLetTheirUserIn(t *testing.T) {
	for name, c := range map[string]struct{ token, user, session string }{
		"aws-sdk-go-v2":        {goToken, "jane_doe", ""},
		"with a slash":         {strings.Replace(goToken, "?", "/?", 1), "jane_doe", ""},
		"with a session token": {sessionToken, "jane_doe", "FwoGZXIvYXdzEBYaDH+/session=="},
		"port 443":             {bareToken, "jane_doe", ""},
		"a strange name":       {oddToken, "jane doe+é/x&y", ""},
	} {
		t.Run(name, func(t *testing.T) {
			tokenRig(t, &pgmoor.TokenAuth{Verifier: rdsKeys(c.session)}, func(t *testing.T, r *rig, log *logBuffer) {
				require.EqualValues(t, 'I', sayPassword(dialAs(t, r, true), c.user, c.token).status, log.text())
				time.Sleep(15*time.Minute - time.Second)
				require.EqualValues(t, 'I', sayPassword(dialAs(t, r, true), c.user, c.token).status, log.text())
				time.Sleep(time.Second)
				require.Equal(t, "28P01", sayPassword(dialAs(t, r, true), c.user, c.token).code())
				require.Contains(t, log.text(), "it expired 0s ago")
			})
		})
	}
}

func TestTokensThatAreNotForThisLogin(t *testing.T) {
	replace := func(old, by string) string { return strings.Replace(goToken, old, by, 1) }
	for name, c := range map[string]struct{ token, user, why string }{
		"another user":            {goToken, "jane", `it was made for the user \"jane_doe\"`},
		"a user of another case":  {goToken, "JANE_DOE", `it was made for the user \"jane_doe\"`},
		"a user nobody signs for": {replace("=jane_doe", "=joe"), "joe", `no such key may log in as \"joe\"`},
		"a user that was changed": {replace("=jane_doe", "=jane"), "jane", "its signature is wrong"},
		"another endpoint":        {replace("db.example", "db.evil"), "jane_doe", `it was made for the endpoint \"db.evil:5432\"`},
		"another port":            {replace("5432", "5433"), "jane_doe", "it was made for the endpoint"},
		"a port that was changed": {replace("5432", "443"), "jane_doe", "its signature is wrong"},
		"a scheme":                {"https://" + goToken, "jane_doe", "it does not begin with host:port"},
		"a path":                  {replace("?", "/x?"), "jane_doe", "it does not begin with host:port"},
		"two slashes":             {replace("?", "//?"), "jane_doe", "it does not begin with host:port"},
		"no port":                 {replace(":5432", ""), "jane_doe", "it does not begin with host:port"},
		"user info":               {"x@" + goToken, "jane_doe", "it does not begin with host:port"},
		"another region":          {replace("eu-central-1", "eu-west-1"), "jane_doe", `it was made for the region \"eu-west-1\"`},
		"another service":         {replace("rds-db", "sts"), "jane_doe", "its credential is not for rds-db"},
		"another day":             {replace("F20000101", "F19991231"), "jane_doe", "its date cannot be read, or is not that of its credential"},
		"another action":          {replace("Action=connect", "Action=connec"), "jane_doe", "what the client sent is none"},
		"more actions":            {replace("Action=connect", "Action=connects"), "jane_doe", "its action is not connect"},
		"another algorithm":       {replace("SHA256", "SHA1"), "jane_doe", "its algorithm is not AWS4-HMAC-SHA256"},
		"more headers":            {replace("Headers=host", "Headers=host%3Bx"), "jane_doe", "other headers than host are signed"},
		"a long life":             {replace("=900", "=901"), "jane_doe", "it has to expire within 15m0s"},
		"no life":                 {replace("=900", "=0"), "jane_doe", "it has to expire within 15m0s"},
		"a life that was changed": {replace("=900", "=899"), "jane_doe", "its signature is wrong"},
		"a parameter twice":       {goToken + "&DBUser=jane_doe", "jane_doe", "DBUser is there twice"},
		"a signature twice":       {goToken + "&X-Amz-Signature=0", "jane_doe", "X-Amz-Signature is there twice"},
		"another parameter":       {goToken + "&versionId=1", "jane_doe", "it has a parameter that no such token has"},
		"an encoded parameter":    {replace("DBUser=", "DB%55ser="), "jane_doe", "it has a parameter that no such token has"},
		"a parameter without":     {goToken + "&DBUser", "jane_doe", "a parameter of it cannot be read"},
		"a plus":                  {replace("jane_doe", "jane+doe"), "jane doe", "a parameter of it cannot be read"},
		"no date":                 {replace("&X-Amz-Date=20000101T000000Z", ""), "jane_doe", "X-Amz-Date is missing"},
		"no signature":            {goToken[:len(goToken)-64], "jane_doe", "X-Amz-Signature is empty"},
		"another signature":       {goToken[:len(goToken)-64] + strings.Repeat("0", 64), "jane_doe", "its signature is wrong"},
		"a short signature":       {goToken[:len(goToken)-1], "jane_doe", "its signature is wrong"},
		"a session token":         {goToken + "&X-Amz-Security-Token=x", "jane_doe", "its session token is not the key's"},
		"another key":             {replace("AKIDEXAMPLE", "AKIDOTHER"), "jane_doe", "no such key"},
		"a long one":              {goToken + "&DBUser=" + strings.Repeat("x", 16<<10), "jane_doe", "it is longer than 16384 bytes"},
		"a password":              {"hunter2", "jane_doe", "what the client sent is none"},
		"keys that are unknown":   {strings.ReplaceAll(goToken, "jane_doe", "fire"), "fire", "the store of keys is on fire"},
	} {
		t.Run(name, func(t *testing.T) {
			tokenRig(t, &pgmoor.TokenAuth{Verifier: rdsKeys("")}, func(t *testing.T, r *rig, log *logBuffer) {
				got := sayPassword(dialAs(t, r, true), c.user, c.token).err
				require.Equal(t, []string{"28P01", `IAM authentication failed for user "` + c.user + `"`, "Check the token for this user and try again."},
					[]string{got.Code, got.Message, got.Hint})
				require.Contains(t, log.text(), c.why)
				require.NotContains(t, log.text(), goToken[len(goToken)-64:len(goToken)-1], "the signature is in the log")
				require.NotContains(t, log.text(), "wJalr", "the key is in the log")
				require.Zero(t, r.server.Accepted())
			})
		})
	}
}

func TestTokensFromTheFuture(t *testing.T) {
	early := strings.NewReplacer("20000101T000000Z", "20000101T000200Z").Replace(goToken)
	tokenRig(t, &pgmoor.TokenAuth{Verifier: rdsKeys("")}, func(t *testing.T, r *rig, log *logBuffer) {
		require.Equal(t, "28P01", sayPassword(dialAs(t, r, true), "jane_doe", early).code())
		require.Contains(t, log.text(), "it is from the future, by 2m0s")
		time.Sleep(time.Minute)
		require.Equal(t, "28P01", sayPassword(dialAs(t, r, true), "jane_doe", early).code())
		require.Contains(t, log.text(), "its signature is wrong")
	})
}

func TestTokensComeOverTLSOnly(t *testing.T) {
	tokenRig(t, &pgmoor.TokenAuth{Verifier: rdsKeys("")}, func(t *testing.T, r *rig, _ *logBuffer) {
		e := sayPassword(dialAs(t, r, false), "jane_doe", goToken).err
		require.Equal(t, "28000", e.Code)
		require.Equal(t, "IAM authentication is allowed only with SSL connections.", e.Message)
	})
}

// modes are of the users that are named so.
func modes(user string) pgmoor.TokenMode {
	return map[string]pgmoor.TokenMode{"jane_doe": pgmoor.TokenEnabled, "clear": pgmoor.TokenDisabled}[user]
}

func TestUsersWithTokensAndPasswords(t *testing.T) {
	secrets := pgmoor.StaticSecrets{"jane_doe": pgmoor.NewSecret(right), "clear": pgmoor.NewSecret(right), "required": pgmoor.NewSecret(right)}
	auth := &pgmoor.TokenAuth{Verifier: rdsKeys(""), Mode: modes, Passwords: pgmoor.Cleartext(secrets)}
	tokenRig(t, auth, func(t *testing.T, r *rig, _ *logBuffer) {
		for _, c := range []struct{ user, password, code string }{
			{"jane_doe", goToken, ""},
			{"jane_doe", right, ""},
			{"jane_doe", "wrong", "28P01"},
			{"jane_doe", goToken + "0", "28P01"},
			{"clear", right, ""},
			{"clear", goToken, "28P01"},
			{"clear", "wrong", "28P01"},
			{"required", right, "28P01"},
			{"nobody", right, "28P01"},
			{"jane_doe", "", "28P01"},
		} {
			require.Equal(t, c.code, sayPassword(dialAs(t, r, true), c.user, c.password).code(), "%s %s", c.user, c.password)
		}
		require.Equal(t, "28000", sayPassword(dialAs(t, r, false), "jane_doe", right).code())
	})
}

func TestPasswordsAreNotTakenUnseen(t *testing.T) {
	blind := pgmoor.AuthenticatorFunc(func(context.Context, *pgmoor.Client) error { return nil })
	for _, passwords := range []pgmoor.Authenticator{nil, blind} {
		auth := &pgmoor.TokenAuth{Verifier: rdsKeys(""), Mode: modes, Passwords: passwords}
		tokenRig(t, auth, func(t *testing.T, r *rig, log *logBuffer) {
			require.Equal(t, "28P01", sayPassword(dialAs(t, r, true), "jane_doe", "any").code())
			require.Contains(t, log.text(), "TokenAuth.Passwords")
		})
	}
}

func TestTokensHaveToBePossible(t *testing.T) {
	secure, _ := certified(t)
	good := rdsKeys("")
	for name, c := range map[string]struct {
		auth pgmoor.Authenticator
		tls  *tls.Config
		want string
	}{
		"no verifier": {&pgmoor.TokenAuth{}, secure, "needs a Verifier"},
		"no TLS":      {&pgmoor.TokenAuth{Verifier: good}, nil, "set Config.TLS"},
		"no region":   {&pgmoor.TokenAuth{Verifier: &pgmoor.RDSTokens{Endpoints: good.Endpoints, Key: good.Key}}, secure, "needs Endpoints, a Region and a Key"},
		"no port":     {&pgmoor.TokenAuth{Verifier: &pgmoor.RDSTokens{Endpoints: []string{"db"}, Region: "x", Key: good.Key}}, secure, `"host:port"`},
		"passwords": {
			&pgmoor.TokenAuth{Verifier: good, Passwords: pgmoor.Certificate(pgmoor.CommonName, nil)}, secure, "clients' certificates",
		},
		"OAuth without TLS":    {&pgmoor.OAuthBearer{Issuer: issuer, Scope: "x", Validate: validToken}, nil, "set Config.TLS"},
		"OAuth without issuer": {&pgmoor.OAuthBearer{Scope: "x", Validate: validToken}, secure, "needs an Issuer"},
		"OAuth, a bad issuer":  {&pgmoor.OAuthBearer{Issuer: "issuer", Scope: "x", Validate: validToken}, secure, "has to be a URL"},
	} {
		_, err := pgmoor.New(nil, pgmoor.Config{
			Authenticator: c.auth, TLS: c.tls, Upstream: pgmoor.Upstream{Hosts: []string{"h"}},
		})
		require.ErrorContains(t, err, c.want, name)
	}
}

const issuer = "https://issuer.example"

var errIssuer = &net.OpError{Op: "dial", Err: errors.New("the issuer is on fire")}

// validToken is a validator for which a token is a name behind "for-".
func validToken(_ context.Context, token string, _ *pgmoor.Client) (string, error) {
	switch name, ok := strings.CutPrefix(token, "for-"); {
	case token == "fire":
		return "", errIssuer
	case !ok:
		return "", errors.Join(pgmoor.ErrInvalidToken, io.ErrNoProgress)
	default:
		return name, nil
	}
}
