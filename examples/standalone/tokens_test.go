package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/url"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

const tokenKeysJSON = `[
	{"access_key_id": "AKIDONE", "secret_access_key": "sesame one", "users": ["*"]},
	{"access_key_id": "ASIATWO", "secret_access_key": "sesame two", "session_token": "sesame/+==", "users": ["report", "admin"]}
]`

// token makes what 'aws rds generate-db-auth-token' makes, for db.example:5432 in eu-central-1.
func token(id, secret, user string, at time.Time) string {
	sign := func(key []byte, s string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(s))
		return h.Sum(nil)
	}
	sum := func(s string) string {
		h := sha256.Sum256([]byte(s))
		return hex.EncodeToString(h[:])
	}
	day, date := at.UTC().Format("20060102"), at.UTC().Format("20060102T150405Z")
	scope := day + "/eu-central-1/rds-db/aws4_request"
	query := "Action=connect&DBUser=" + url.QueryEscape(user) + "&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=" + url.QueryEscape(id+"/"+scope) +
		"&X-Amz-Date=" + date + "&X-Amz-Expires=900&X-Amz-SignedHeaders=host"
	request := "GET\n/\n" + query + "\nhost:db.example:5432\n\nhost\n" + sum("")
	key := []byte("AWS4" + secret)
	for _, part := range []string{day, "eu-central-1", "rds-db", "aws4_request"} {
		key = sign(key, part)
	}
	signature := sign(key, "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+sum(request))
	return "db.example:5432/?" + query + "&X-Amz-Signature=" + hex.EncodeToString(signature)
}

// tokenFlags are those of tokens, but for -token-auth and the keys.
func tokenFlags(t *testing.T, more ...string) []string {
	t.Helper()
	cert, key := certificate(t)
	return append([]string{"-tls-cert", cert, "-tls-key", key, "-token-endpoints", "db.example:5432", "-token-region", "eu-central-1"}, more...)
}

// enters returns the error of a login with a password.
func enters(t *testing.T, d *daemon, mode, password string) error {
	t.Helper()
	cfg, err := pgx.ParseConfig(host(d.addr) + " sslmode=" + mode)
	require.NoError(t, err)
	cfg.User, cfg.Database, cfg.Password = database.User, database.Database, password
	c, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		return err
	}
	return c.Close(context.Background())
}

func TestTokensLetClientsIn(t *testing.T) {
	good := token("AKIDONE", "sesame one", database.User, time.Now())
	bad := token("AKIDONE", "another", database.User, time.Now())
	for mode, c := range map[string]struct{ token, password, plain bool }{
		"required": {token: true}, "enabled": {true, true, true}, "disabled": {password: true, plain: true}, "disabled," + database.User + "=required": {token: true},
	} {
		t.Run(mode, func(t *testing.T) {
			d := startDaemon(t, tokenFlags(t, "-token-auth", mode, "-token-keys", writeFile(t, tokenKeysJSON), "-users", userList(t))...)
			requireLogin(t, c.token, enters(t, d, "require", good))
			requireLogin(t, c.password, enters(t, d, "require", "correct horse"))
			requireLogin(t, c.plain, enters(t, d, "disable", "correct horse"))
			requireLogin(t, false, enters(t, d, "disable", good))
			requireLogin(t, false, enters(t, d, "require", bad))
			d.signal(t)
			require.Zero(t, d.exit(t))
		})
	}
}

func requireLogin(t *testing.T, good bool, err error) {
	t.Helper()
	if good {
		require.NoError(t, err)
		return
	}
	require.ErrorContains(t, err, "SQLSTATE 28")
	require.NotContains(t, err.Error(), "sesame")
}

func TestKeysOfTokensAreReadAgain(t *testing.T) {
	keys := writeFile(t, tokenKeysJSON)
	rules := writeFile(t, "hostssl all all 127.0.0.1/32 token\n")
	d := startDaemon(t, tokenFlags(t, "-hba", rules, "-token-keys", keys)...)
	require.NoError(t, enters(t, d, "require", token("AKIDONE", "sesame one", database.User, time.Now())))
	requireLogin(t, false, enters(t, d, "disable", "correct horse"))

	require.NoError(t, os.WriteFile(keys, []byte(`[{"access_key_id": "AKIDONE", "secret_access_key": "sesame three"`), 0o600))
	d.tell(t, syscall.SIGHUP, "nothing is changed by SIGHUP: -token-keys")
	require.NoError(t, enters(t, d, "require", token("AKIDONE", "sesame one", database.User, time.Now())))

	require.NoError(t, os.WriteFile(keys, []byte(`[{"access_key_id": "AKIDONE", "secret_access_key": "sesame three", "users": ["`+database.User+`"]}]`), 0o600))
	d.tell(t, syscall.SIGHUP, "files were read again")
	requireLogin(t, false, enters(t, d, "require", token("AKIDONE", "sesame one", database.User, time.Now())))
	require.NoError(t, enters(t, d, "require", token("AKIDONE", "sesame three", database.User, time.Now())))
	d.signal(t)
	require.Zero(t, d.exit(t))
}

func TestKeysOfTokensMayStandInTheEnvironment(t *testing.T) {
	t.Setenv("PGMOOR_TOKEN_KEYS", tokenKeysJSON)
	o, err := parseOptions(append(tokenFlags(t, "-token-auth", "required"), "-upstream", "postgres://db"), io.Discard)
	require.NoError(t, err)
	for user, ids := range map[string][2]bool{"app": {true, false}, "report": {true, true}} {
		for i, id := range []string{"AKIDONE", "ASIATWO"} {
			key, err := o.tokens.verifier.Key(t.Context(), id, user)
			if !ids[i] {
				require.ErrorIs(t, err, pgmoor.ErrNoSecret)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, i == 0, key.SessionToken.IsZero())
		}
	}
	_, err = o.tokens.verifier.Key(t.Context(), "AKIDTHREE", "app")
	require.ErrorIs(t, err, pgmoor.ErrNoSecret)
}

func TestModesOfTokens(t *testing.T) {
	var m tokenModes
	require.NoError(t, m.Set("DISABLED, app=required,report=Enabled"))
	require.Equal(t, pgmoor.TokenDisabled, m.of("somebody"))
	require.Equal(t, pgmoor.TokenRequired, m.of("app"))
	require.Equal(t, pgmoor.TokenEnabled, m.of("report"))
	require.NoError(t, m.Set("app=disabled"))
	require.Equal(t, pgmoor.TokenRequired, m.of("somebody"))
	for _, s := range []string{"", "on", "required,disabled", "app=required,app=disabled", "=required", "app=", "required,"} {
		require.Error(t, m.Set(s), s)
	}
}

func TestMistakesInFlagsOfTokensAreNamed(t *testing.T) {
	t.Setenv("PGMOOR_TOKEN_KEYS", "")
	const up = "postgres://u:sesame@db"
	with := func(keys string) []string {
		return tokenFlags(t, "-token-auth", "required", "-token-keys", writeFile(t, keys))
	}
	for _, c := range []struct {
		says string
		args []string
	}{
		{"-token-auth: not one of required, enabled", []string{"-token-auth", "on"}},
		{"tokens need -token-endpoints", []string{"-token-auth", "required"}},
		{"need -token-auth, or -hba", []string{"-token-region", "x"}},
		{"name a file with -token-keys", tokenFlags(t, "-token-auth", "required")},
		{"-token-keys: open", tokenFlags(t, "-token-auth", "required", "-token-keys", "/nonexistent")},
		{"over TLS only", []string{"-token-auth", "required", "-token-endpoints", "a:1", "-token-region", "x", "-token-keys", writeFile(t, tokenKeysJSON)}},
		{"a.example is not HOST:PORT", append(with(tokenKeysJSON), "-token-endpoints", "a.example")},
		{"-auth trust and -token-auth", append(with(tokenKeysJSON), "-auth", "trust")},
		{"it has to be a list in JSON", with(`{"sesame": 1}`)},
		{"it has to be a list in JSON", with(`[{"access_key_id": "a", "secret_access_key": "sesame", "user": ["a"]}]`)},
		{"it has to be a list in JSON", with(tokenKeysJSON + "sesame")},
		{"it has no key", with("[]")},
		{"key 1 has no access_key_id", with(`[{"secret_access_key": "sesame", "users": ["*"]}]`)},
		{"key 1 has no users", with(`[{"access_key_id": "sesame", "secret_access_key": "sesame"}]`)},
		{"key 2 has the access_key_id", with(`[{"access_key_id": "a", "secret_access_key": "sesame", "users": ["*"]}, {"access_key_id": "a", "secret_access_key": "s", "users": ["*"]}]`)},
		{"the method token needs -token-endpoints", []string{"-hba", writeFile(t, "hostssl all all all token\n")}},
		{"the option x is not one of the method", tokenFlags(t, "-token-keys", writeFile(t, tokenKeysJSON), "-hba", writeFile(t, "hostssl all all all token x=y\n"))},
	} {
		_, err := parseOptions(append(c.args, "-upstream", up), io.Discard)
		require.ErrorContains(t, err, c.says)
		require.NotContains(t, err.Error(), "sesame")
	}
}
