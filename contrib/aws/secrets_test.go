package aws_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/rds/auth"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	pgmooraws "github.com/pgmoor/pgmoor/contrib/aws"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

var keys = credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "session/+==")

// manager speaks JSON 1.1 as Secrets Manager does. Secrets are under their id, a space and the stage.
type manager struct {
	t       testing.TB
	mu      sync.Mutex
	secrets map[string]string
	made    time.Time // when they were
	asked   []string
}

func (m *manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var in struct{ SecretId, VersionStage string }
	if r.Method != http.MethodPost || r.Header.Get("X-Amz-Target") != "secretsmanager.GetSecretValue" ||
		r.Header.Get("Content-Type") != "application/x-amz-json-1.1" || !strings.Contains(r.Header.Get("Authorization"), "/secretsmanager/aws4_request") ||
		json.NewDecoder(r.Body).Decode(&in) != nil {
		m.t.Errorf("this is no GetSecretValue: %v", r.Header)
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	id := in.SecretId + " " + in.VersionStage
	m.asked = append(m.asked, id)
	value, ok := m.secrets[id]
	out := map[string]any{"Name": in.SecretId, "VersionStages": []string{in.VersionStage}, "SecretString": value, "CreatedDate": float64(m.made.UnixMilli()) / 1000}
	switch {
	case value == "denied":
		w.WriteHeader(http.StatusBadRequest)
		out = map[string]any{"__type": "AccessDeniedException", "Message": "not authorized to perform: secretsmanager:GetSecretValue"}
	case value == "binary":
		delete(out, "SecretString")
		out["SecretBinary"] = "AAEC"
	case !ok:
		w.WriteHeader(http.StatusBadRequest)
		out = map[string]any{"__type": "ResourceNotFoundException", "Message": "Secrets Manager can't find the specified secret."}
	}
	if err := json.NewEncoder(w).Encode(out); err != nil {
		m.t.Error(err)
	}
}

// source returns a source that asks a Secrets Manager with secrets.
func source(t testing.TB, secrets map[string]string) (*pgmooraws.Secrets, *manager) {
	t.Helper()
	m := &manager{t: t, secrets: secrets}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	client := secretsmanager.New(secretsmanager.Options{
		BaseEndpoint: aws.String(server.URL), Credentials: keys, Region: "eu-central-1", RetryMaxAttempts: 1, HTTPClient: server.Client(),
	})
	return &pgmooraws.Secrets{Client: client, ID: pgmooraws.Named("prod/{user}")}, m
}

func TestPasswordsOfSecretsManager(t *testing.T) {
	s, m := source(t, map[string]string{
		"prod/app AWSCURRENT": `{"username":"app","password":"new","engine":"postgres","port":5432}`, "prod/app AWSPREVIOUS": `{"username":"app","password":"old"}`,
	})
	m.made = time.Now()
	address := serve(t, pgmoor.Config{Secrets: s}, nil)
	require.Empty(t, logIn(t, address, "app", "new"))
	require.Equal(t, "28P01", logIn(t, address, "app", "old"))
	require.Equal(t, "28P01", logIn(t, address, "nobody", "new"))
	require.NotContains(t, m.asked, "prod/app AWSPREVIOUS")
}

func TestThePasswordFromBeforeARotationCountsForAWhile(t *testing.T) {
	const current = `{"username":"app","password":"new"}`
	for name, c := range map[string]struct {
		previous string
		age      time.Duration // of the current one
		old      string        // what the old password gives
		says     string
	}{
		"in time":      {`{"username":"app","password":"old"}`, time.Minute, "", ""},
		"later":        {`{"username":"app","password":"old"}`, time.Hour, "28P01", ""},
		"none":         {"", time.Minute, "28P01", ""},
		"another user": {`{"username":"app_clone","password":"old"}`, time.Minute, "28P01", "app_clone"},
		"denied":       {"denied", time.Minute, "28P01", "AccessDeniedException"},
	} {
		t.Run(name, func(t *testing.T) {
			s, m := source(t, map[string]string{"prod/app AWSCURRENT": current})
			if c.previous != "" {
				m.secrets["prod/app AWSPREVIOUS"] = c.previous
			}
			var log bytes.Buffer
			m.made, s.PreviousFor, s.Logger = time.Now().Add(-c.age), 10*time.Minute, slog.New(slog.NewTextHandler(&log, nil))
			address := serve(t, pgmoor.Config{Secrets: &pgmoor.CachedSecrets{Source: s}}, nil)
			require.Empty(t, logIn(t, address, "app", "new"))
			require.Equal(t, c.old, logIn(t, address, "app", "old"))
			require.Contains(t, log.String(), c.says)
			require.NotContains(t, log.String(), `"old"`)
			require.Equal(t, c.age == time.Hour, len(m.asked) == 1, "%v", m.asked)
		})
	}
}

// TestAServerThatHasNotHeardOfARotationIsLoggedInTo has one that takes the password from before only.
func TestAServerThatHasNotHeardOfARotationIsLoggedInTo(t *testing.T) {
	s, m := source(t, map[string]string{
		"prod/app AWSCURRENT": `{"username":"app","password":"new"}`, "prod/app AWSPREVIOUS": `{"username":"app","password":"old"}`,
	})
	m.made, s.PreviousFor = time.Now(), time.Minute
	cfg, secure := pgmoor.Config{Secrets: s}, certificate(t)
	cfg.Upstream.SSLMode = "require"
	got := make(chan string, 10)
	address := serve(t, cfg, func(c *pgtest.FakeConn) error {
		password, err := askFor(t, c, secure)
		if err != nil {
			return err
		}
		got <- password
		if password != "old" {
			return errors.Join(errRefused, c.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"}))
		}
		return letIn(c)
	})
	require.Empty(t, logIn(t, address, "app", "new"))
	require.Equal(t, "new", <-got)
	require.Equal(t, "old", <-got)
}

var errRefused = errors.New("refused")

func TestSecretsThatCannotBeUsed(t *testing.T) {
	s, m := source(t, map[string]string{
		"prod/other AWSCURRENT": `{"username":"app","password":"hunter2"}`, "prod/text AWSCURRENT": `hunter2`, "prod/denied AWSCURRENT": "denied",
		"prod/half AWSCURRENT": `{"username":"half"}`, "prod/empty AWSCURRENT": `{"username":"empty","password":""}`,
		"prod/binary AWSCURRENT": "binary", "prod/number AWSCURRENT": `{"username":"number","password":42}`,
	})
	for user, want := range map[string]string{
		"other": `its username is "app", and not "other"`, "text": "it should be JSON", "denied": "AccessDeniedException", "half": "a username and a password",
		"empty": "a username and a password", "binary": "it is binary", "number": "it should be JSON",
	} {
		_, err := s.Secret(t.Context(), user)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "prod/"+user)
		require.NotErrorIs(t, err, pgmoor.ErrNoSecret)
		require.NotContains(t, err.Error(), "hunter2")
	}
	_, err := s.Secret(t.Context(), "unknown")
	require.ErrorIs(t, err, pgmoor.ErrNoSecret)
	m.asked = nil
	for _, user := range []string{"a b", "é", "a\x00", "a'b", strings.Repeat("x", 3000)} {
		_, err := s.Secret(t.Context(), user)
		require.ErrorIs(t, err, pgmoor.ErrNoSecret)
	}
	require.Empty(t, m.asked)
	_, err = (&pgmooraws.Secrets{}).Secret(t.Context(), "app")
	require.ErrorContains(t, err, "needs a Client")
	s.PreviousFor = -1
	require.ErrorContains(t, s.Validate(), "must not be negative")
}

func TestTheCoreVerifiesWhatTheSDKMakes(t *testing.T) {
	const endpoint = "proxy.example:5432"
	known, err := keys.Retrieve(t.Context())
	require.NoError(t, err)
	address := serve(t, pgmoor.Config{Authenticator: &pgmoor.TokenAuth{Verifier: &pgmoor.RDSTokens{
		Endpoints: []string{endpoint}, Region: "eu-central-1",
		Key: func(_ context.Context, id, _ string) (pgmoor.RDSKey, error) {
			if id != known.AccessKeyID {
				return pgmoor.RDSKey{}, pgmoor.ErrNoSecret
			}
			return pgmoor.RDSKey{SecretAccessKey: pgmoor.NewSecret(known.SecretAccessKey), SessionToken: pgmoor.NewSecret(known.SessionToken)}, nil
		},
	}}}, nil)
	for _, user := range []string{"app", "App", "a b", "é+/&=?", "jane_doe"} {
		token, err := auth.BuildAuthToken(t.Context(), endpoint, "eu-central-1", user, keys)
		require.NoError(t, err)
		require.Empty(t, logIn(t, address, user, token), user)
		require.Equal(t, "28P01", logIn(t, address, user+"x", token), user)
		other := credentials.NewStaticCredentialsProvider(known.AccessKeyID, "another", known.SessionToken)
		token, err = auth.BuildAuthToken(t.Context(), endpoint, "eu-central-1", user, other)
		require.NoError(t, err)
		require.Equal(t, "28P01", logIn(t, address, user, token), user)
	}
}

// rds is a server that wants a token over TLS, as RDS does; the tokens that it got are sent to got.
func rds(t *testing.T, secure *tls.Config, got chan<- string) func(*pgtest.FakeConn) error {
	return func(c *pgtest.FakeConn) error {
		password, err := askFor(t, c, secure)
		if err != nil {
			return err
		}
		got <- password
		return letIn(c)
	}
}

// askFor asks for a password in clear, over TLS.
func askFor(t *testing.T, c *pgtest.FakeConn, secure *tls.Config) (password string, err error) {
	if m, err := c.Backend.ReceiveStartupMessage(); err != nil {
		return "", err
	} else if _, ok := m.(*pgproto3.SSLRequest); !ok {
		t.Errorf("the proxy logs in without TLS: %T", m)
	}
	if _, err := c.Conn.Write([]byte("S")); err != nil {
		return "", err
	}
	c.Conn = tls.Server(c.Conn, secure)
	c.Backend = pgproto3.NewBackend(c.Conn, c.Conn)
	if err := c.ReceiveStartup(); err != nil {
		return "", err
	}
	if err := c.Send(&pgproto3.AuthenticationCleartextPassword{}); err != nil {
		return "", err
	}
	if err := c.Backend.SetAuthType(pgproto3.AuthTypeCleartextPassword); err != nil {
		return "", err
	}
	m, err := c.Backend.Receive()
	if err != nil {
		return "", err
	}
	return m.(*pgproto3.PasswordMessage).Password, nil
}

func letIn(c *pgtest.FakeConn) error {
	return c.Send(
		&pgproto3.AuthenticationOk{}, &pgproto3.BackendKeyData{ProcessID: c.PID, SecretKey: []byte{0, 0, 0, 1}}, &pgproto3.ReadyForQuery{TxStatus: 'I'},
	)
}

func TestEveryLoginToTheServerHasItsToken(t *testing.T) {
	tokens := &pgmooraws.ServerTokens{Endpoint: "db.example:5432", Region: "eu-central-1", Credentials: keys}
	got := make(chan string, 10)
	cfg := pgmoor.Config{Secrets: tokens, Authenticator: pgmoor.Cleartext(pgmoor.StaticSecrets{"app": pgmoor.NewSecret("pw"), "b": pgmoor.NewSecret("pw")})}
	cfg.Upstream.SSLMode = "require"
	address := serve(t, cfg, rds(t, certificate(t), got))
	for _, user := range []string{"app", "b"} {
		require.Empty(t, logIn(t, address, user, "pw"))
		require.Regexp(t, `^db\.example:5432\?Action=connect&DBUser=`+user+`&.*X-Amz-Expires=900.*X-Amz-Signature=[0-9a-f]{64}$`, <-got)
	}
	_, err := (&pgmooraws.ServerTokens{Endpoint: "db.example", Region: "x", Credentials: keys}).Secret(t.Context(), "app")
	require.ErrorContains(t, err, "port")
	_, err = (&pgmooraws.ServerTokens{}).Secret(t.Context(), "app")
	require.ErrorContains(t, err, "needs an Endpoint")
}
