package pgmoor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
	"github.com/pgmoor/pgmoor/internal/scram"
)

// verifierOf is what PostgreSQL stores instead of a password.
func verifierOf(t testing.TB, password string) pgmoor.Secret {
	t.Helper()
	v, err := scram.NewVerifier(password, []byte("sixteen bytes 16"), 4096)
	require.NoError(t, err)
	return pgmoor.NewSecret(v.Encode())
}

const right = "correct horse battery"

// someSecrets holds the same password in every form.
func someSecrets(t testing.TB) pgmoor.StaticSecrets {
	return pgmoor.StaticSecrets{
		"clear":    pgmoor.NewSecret(right),
		"verifier": verifierOf(t, right),
		"md5":      pgmoor.NewSecret(scram.MD5("md5", right)),
		"empty":    pgmoor.NewSecret(""),
		"none":     {},
		"spoilt":   pgmoor.NewSecret("SCRAM-SHA-256$4096:not a verifier"),
	}
}

// logIn connects as a real driver does; extra is added to the connection string.
func logIn(t testing.TB, address, user, password, extra string) error {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	cfg, err := pgconn.ParseConfig(fmt.Sprintf("host=%s port=%s user=%s dbname=d password='%s' %s", host, port, user, password, extra))
	require.NoError(t, err)
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		return err
	}
	_, err = conn.Exec(t.Context(), "SELECT 1").ReadAll()
	require.NoError(t, err)
	return conn.Close(t.Context())
}

func codeOf(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

func TestPasswordsAreChecked(t *testing.T) {
	secrets := someSecrets(t)
	for name, c := range map[string]struct {
		auth pgmoor.Authenticator
		pass []string
		mode string
	}{
		"SCRAM by default": {nil, []string{"clear", "verifier"}, "disable"},
		"SCRAM":            {pgmoor.SCRAM(secrets), []string{"clear", "verifier"}, "disable"},
		"SCRAM over TLS":   {pgmoor.SCRAM(secrets), []string{"clear", "verifier"}, "require"},
		"MD5":              {pgmoor.MD5(secrets), []string{"clear", "verifier", "md5"}, "disable"},
		"Cleartext":        {pgmoor.Cleartext(secrets), []string{"clear", "verifier", "md5"}, "require"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := pgmoor.Config{Authenticator: c.auth, Secrets: secrets}
			cfg.TLS, _ = certified(t)
			r := newRig(t, cfg, new(fake))
			address := r.listenTCP(t)
			mode := "sslmode=" + c.mode
			for _, user := range c.pass {
				require.NoError(t, logIn(t, address, user, right, mode), user)
			}
			accepted := r.server.Accepted()
			for user := range secrets {
				for _, wrong := range []string{"wrong", right + " ", strings.ToUpper(right), "x"} {
					require.Equal(t, "28P01", codeOf(logIn(t, address, user, wrong, mode)), "%s with %q", user, wrong)
				}
			}
			require.Equal(t, "28P01", codeOf(logIn(t, address, "nobody", right, mode)))
			require.Equal(t, accepted, r.server.Accepted(), "a wrong password got through to the server")
			for _, user := range c.pass {
				require.NoError(t, logIn(t, address, user, right, mode), user)
			}
		})
	}
}

func TestAStoredHashIsNoPassword(t *testing.T) {
	secrets := someSecrets(t)
	cfg := pgmoor.Config{Secrets: secrets}
	cfg.TLS, _ = certified(t)
	for _, auth := range []pgmoor.Authenticator{pgmoor.SCRAM(secrets), pgmoor.MD5(secrets), pgmoor.Cleartext(secrets)} {
		cfg.Authenticator = auth
		address := newRig(t, cfg, new(fake)).listenTCP(t)
		hash := scram.MD5("md5", right)
		require.Error(t, logIn(t, address, "md5", hash, "sslmode=require"))
		v, err := scram.NewVerifier(right, []byte("sixteen bytes 16"), 4096)
		require.NoError(t, err)
		require.Error(t, logIn(t, address, "verifier", v.Encode(), "sslmode=require"))
	}
}

func TestCleartextPasswordsAreNotAskedForInTheClear(t *testing.T) {
	cfg := pgmoor.Config{Authenticator: pgmoor.Cleartext(someSecrets(t))}
	r := newRig(t, cfg, new(fake))
	require.Equal(t, "28000", codeOf(logIn(t, r.listenTCP(t), "clear", right, "sslmode=disable")))
}

// answers sends messages after a startup packet and returns the kinds and lengths of what comes back.
func answers(t testing.TB, address, user string, password func(*pgproto3.Frontend, pgproto3.BackendMessage)) (shape []string) {
	t.Helper()
	c := newClient(t, dialTCP(t, address))
	c.send(&pgproto3.StartupMessage{ProtocolVersion: version30, Parameters: map[string]string{"user": user}})
	for {
		m, err := c.Receive()
		if err != nil {
			return shape
		}
		switch m := m.(type) {
		case *pgproto3.ErrorResponse:
			shape = append(shape, fmt.Sprintf("%s %s", m.Code, strings.ReplaceAll(m.Message, user, "USER")))
			continue
		case *pgproto3.AuthenticationSASLContinue:
			shape = append(shape, fmt.Sprintf("%T %d", m, len(m.Data)))
		default:
			shape = append(shape, fmt.Sprintf("%T", m))
		}
		password(c.Frontend, m)
		require.NoError(t, c.Flush())
	}
}

func TestAnUnknownUserSeesWhatAWrongPasswordSees(t *testing.T) { // CVE-2015-6817
	secrets := someSecrets(t)
	answer := func(f *pgproto3.Frontend, m pgproto3.BackendMessage) {
		switch m := m.(type) {
		case *pgproto3.AuthenticationSASL:
			f.Send(&pgproto3.SASLInitialResponse{AuthMechanism: "SCRAM-SHA-256", Data: []byte("n,,n=,r=abcdefghijklmnop")})
		case *pgproto3.AuthenticationSASLContinue:
			nonce, _, _ := strings.Cut(string(m.Data), ",")
			f.Send(&pgproto3.SASLResponse{Data: []byte("c=biws," + nonce + ",p=" + strings.Repeat("A", 43) + "=")})
		case *pgproto3.AuthenticationMD5Password:
			f.Send(&pgproto3.PasswordMessage{Password: "md5" + strings.Repeat("0", 32)})
		}
	}
	for name, auth := range map[string]pgmoor.Authenticator{"SCRAM": pgmoor.SCRAM(secrets), "MD5": pgmoor.MD5(secrets)} {
		address := newRig(t, pgmoor.Config{Authenticator: auth}, new(fake)).listenTCP(t)
		known := answers(t, address, "clear", answer)
		require.Len(t, known, map[string]int{"SCRAM": 3, "MD5": 2}[name])
		require.Equal(t, `28P01 password authentication failed for user "USER"`, known[len(known)-1])
		require.Equal(t, known, answers(t, address, "nobody", answer), name)
		require.Equal(t, known, answers(t, address, "empty", answer), name)
		require.Equal(t, known, answers(t, address, "none", answer), name)
	}
}

func TestPasswordMessagesThatCannotBeOneAreRefused(t *testing.T) { // CVE-2026-6664
	secrets := someSecrets(t)
	sasl := func(body string) []byte { return append([]byte{'p', 0, 0, 0, byte(4 + len(body))}, body...) }
	for name, message := range map[string][]byte{
		"another type":           {'Q', 0, 0, 0, 5, 0},
		"length 0":               {'p', 0, 0, 0, 0},
		"length 3":               {'p', 0, 0, 0, 3},
		"length 2^31-1":          {'p', 0x7f, 0xff, 0xff, 0xff},
		"length 2^32-1":          {'p', 0xff, 0xff, 0xff, 0xff},
		"empty":                  sasl(""),
		"no terminator":          sasl("SCRAM-SHA-256"),
		"no data":                sasl("SCRAM-SHA-256\x00\xff\xff\xff\xff"),
		"inner length too great": sasl("SCRAM-SHA-256\x00\x00\x00\x00\x20n,,n=,r=abc"),
		"inner length 2^31":      sasl("SCRAM-SHA-256\x00\x80\x00\x00\x00n,,n=,r=abc"),
		"inner length too small": sasl("SCRAM-SHA-256\x00\x00\x00\x00\x02n,,n=,r=abc"),
		"another mechanism":      sasl("SCRAM-SHA-256-PLUS\x00\x00\x00\x00\x0bn,,n=,r=abc"),
		"a nonce of nothing":     sasl("SCRAM-SHA-256\x00\x00\x00\x00\x01x"),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, pgmoor.Config{Secrets: secrets}, new(fake))
			conn := dialTCP(t, r.listenTCP(t))
			c := newClient(t, conn)
			_, err := conn.Write(append(login(version30), message...))
			require.NoError(t, err)
			m, err := c.Receive()
			require.NoError(t, err)
			require.IsType(t, &pgproto3.AuthenticationSASL{}, m)
			c.ended("08P01")
			require.Zero(t, r.server.Accepted())
		})
	}
}

// logBuffer collects a log from several goroutines.
type logBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *logBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.String()
}

func TestSecretsShowThemselvesNowhere(t *testing.T) { // CVE-2023-22332
	const hidden = "hunter2 hunter2"
	secrets := pgmoor.StaticSecrets{
		"clear": pgmoor.NewSecret(hidden), "md5": pgmoor.NewSecret(scram.MD5("md5", hidden)), "verifier": verifierOf(t, hidden),
	}
	var log logBuffer
	cfg := pgmoor.Config{
		Secrets: secrets, Authenticator: pgmoor.MD5(secrets),
		Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	server := &fake{refuse: func(map[string]string) *pgproto3.ErrorResponse {
		return &pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "no"}
	}}
	r := newRig(t, cfg, server)
	address := r.listenTCP(t)
	var said []string
	for user, s := range secrets {
		encoded, err := json.Marshal(map[string]any{"s": s, "all": secrets})
		require.NoError(t, err)
		said = append(said, string(encoded))
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			said = append(said, fmt.Sprintf(verb, s), fmt.Sprintf(verb, secrets), fmt.Sprintf(verb, &s))
		}
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s, "all", secrets)
		for _, pw := range []string{hidden, "wrong"} {
			err := logIn(t, address, user, pw, "sslmode=disable")
			require.Error(t, err)
			said = append(said, fmt.Sprintf("%v %+v", err, err))
		}
	}
	said = append(said, log.text(), fmt.Sprintf("%+v %#v", cfg, cfg), fmt.Sprintf("%+v", r.Stats()))
	all := strings.Join(said, "\n")
	for _, s := range []string{hidden, fmt.Sprintf("%x", hidden), scram.MD5("md5", hidden)[3:], "SCRAM-SHA-256$"} {
		require.NotContains(t, all, s)
	}
	require.Contains(t, all, "[secret]")
}

func TestAnAuthenticatorChoosesWhatItsClientIsTold(t *testing.T) {
	var log logBuffer
	answer := map[string]error{
		"own":   &pgmoor.Error{Code: "28ABC", Message: "not today", Hint: "tomorrow"},
		"other": errors.New("the directory is on fire"),
		"both":  errors.Join(&pgmoor.Error{Code: "28ABC", Message: "not today"}, errDown),
	}
	cfg := pgmoor.Config{
		Logger:        slog.New(slog.NewTextHandler(&log, nil)),
		Authenticator: pgmoor.AuthenticatorFunc(func(_ context.Context, c *pgmoor.Client) error { return answer[c.User()] }),
	}
	r := newRig(t, cfg, new(fake))
	address := r.listenTCP(t)
	own := newClient(t, dialTCP(t, address)).startup("own")
	require.Equal(t, "28ABC", own.code())
	require.Equal(t, "tomorrow", own.err.Hint)
	require.Equal(t, "FATAL", own.err.Severity)
	other := newClient(t, dialTCP(t, address)).startup("other")
	require.Equal(t, "28P01", other.code())
	require.NotContains(t, fmt.Sprint(other.err), "fire")
	require.Contains(t, log.text(), "fire")
	require.EqualValues(t, 'I', newClient(t, dialTCP(t, address)).startup("u").status)
	require.EqualValues(t, 2, r.Stats().LoginFailures)
	require.Equal(t, "28ABC", newClient(t, dialTCP(t, address)).startup("both").code())
}

// directory lets the users in whose password is their name backwards.
func directory(ctx context.Context, c *pgmoor.Client) error {
	pw, err := c.Password(ctx)
	if err != nil {
		return err
	}
	if pw != "u"+c.User() {
		return errors.New("the directory knows nobody like that")
	}
	return nil
}

func TestAnAuthenticatorMayAskForThePassword(t *testing.T) {
	cfg := pgmoor.Config{Authenticator: pgmoor.AuthenticatorFunc(directory)}
	cfg.TLS, _ = certified(t)
	r := newRig(t, cfg, new(fake))
	address := r.listenTCP(t)
	require.NoError(t, logIn(t, address, "me", "ume", "sslmode=require"))
	require.Equal(t, "28P01", codeOf(logIn(t, address, "me", "you", "sslmode=require")))
	require.Equal(t, "28000", codeOf(logIn(t, address, "me", "ume", "sslmode=disable")), "asked in the clear")
	require.ErrorContains(t, logIn(t, address, "me", "", "sslmode=require"), "empty password")
}

func TestAPasswordIsAskedForWithinAuthenticateOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := unserved(t, new(fake))
		_, s := accepted(t, p)
		_, err := s.Client().Password(t.Context())
		require.ErrorContains(t, err, "within Authenticate")
		require.NoError(t, s.Close())
	})
}

func TestAskingForThePasswordEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	ended := make(chan error, 1)
	r := newRig(t, pgmoor.Config{Authenticator: pgmoor.AuthenticatorFunc(func(ctx context.Context, c *pgmoor.Client) error {
		ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		_, err := c.Password(ctx)
		ended <- err
		return err
	})}, new(fake))
	require.NoError(t, r.AddListener(l))
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	require.Equal(t, "57014", newClient(t, conn).startup("u").code())
	require.ErrorIs(t, <-ended, context.DeadlineExceeded)
}

func TestClientsThatHangUpBeforeTheyAreLoggedInAreNoFailures(t *testing.T) {
	sasl := append([]byte{'p', 0, 0, 0, 46}, append([]byte("SCRAM-SHA-256\x00\x00\x00\x00\x18"), "n,,n=,r=123456789012345678"...)...)
	for name, send := range map[string][]byte{
		"nothing":             nil,
		"half a packet":       login(version30)[:5],
		"no password":         login(version30),
		"half a password":     append(login(version30), sasl[:10]...),
		"half of an exchange": append(login(version30), sasl...),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log logBuffer
				r := newRig(t, pgmoor.Config{Secrets: someSecrets(t), Logger: slog.New(slog.NewTextHandler(&log, nil))}, new(fake))
				conn, err := r.listenInMemory(t).DialContext(t.Context(), "", "")
				require.NoError(t, err)
				_, err = conn.Write(send)
				require.NoError(t, err)
				synctest.Wait()
				require.NoError(t, conn.Close())
				synctest.Wait()
				require.Zero(t, r.Stats().LoginFailures)
				require.Empty(t, log.text())
			})
		})
	}
}

func TestAnAuthenticatorsNetworkIsNotItsClients(t *testing.T) {
	var log logBuffer
	r := newRig(t, pgmoor.Config{
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Authenticator: pgmoor.AuthenticatorFunc(func(context.Context, *pgmoor.Client) error {
			return fmt.Errorf("the directory: %w", errors.Join(io.EOF, errDown))
		}),
	}, new(fake))
	require.Equal(t, "28P01", newClient(t, dialTCP(t, r.listenTCP(t))).startup("u").code())
	require.Equal(t, 1, strings.Count(log.text(), "\n"), log.text())
	require.Contains(t, log.text(), "level=ERROR")
	require.Contains(t, log.text(), "the directory")
	require.EqualValues(t, 1, r.Stats().LoginFailures)
}

func TestAServersRefusalIsLoggedOnceAndExplained(t *testing.T) {
	secrets := someSecrets(t)
	for user, says := range map[string]string{
		"clear": "is not the server's", "md5": "the MD5 hash only", "verifier": "the SCRAM verifier only", "nobody": "the proxy knows none",
	} {
		t.Run(user, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log logBuffer
				server := &fake{refuse: func(map[string]string) *pgproto3.ErrorResponse {
					return &pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"}
				}}
				r := newRig(t, pgmoor.Config{Secrets: secrets, Logger: slog.New(slog.NewTextHandler(&log, nil))}, server)
				got := r.dialClient(t).startup(user)
				require.Equal(t, "28P01", got.code())
				require.Contains(t, got.err.Hint, "The server, not the proxy, refused: ")
				require.Contains(t, got.err.Hint, says)
				synctest.Wait()
				require.Equal(t, 1, strings.Count(log.text(), "\n"), log.text())
				require.Contains(t, log.text(), "level=INFO")
				require.Contains(t, log.text(), says)
				require.Equal(t, 1, strings.Count(log.text(), "SQLSTATE 28P01"))
			})
		})
	}
}

func TestAServerThatIsDownIsLoggedInOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logBuffer
		server := new(fake)
		server.setDown(true)
		r := newRig(t, pgmoor.Config{BorrowTimeout: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))}, server)
		require.Equal(t, "08000", r.dialClient(t).startup("u").code())
		line, _, _ := strings.Cut(log.text(), "\n")
		require.Contains(t, line, "level=ERROR")
		require.True(t, strings.HasSuffix(line, `err="fake:5432: dial: the fake server is down"`), line)
	})
}

func TestAReplicationClientIsToldThatTheServerIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		server.setDown(true)
		r := newRig(t, pgmoor.Config{}, server)
		require.Equal(t, "08006", r.dialClient(t).startup("u", "replication", "database").code())
		require.EqualValues(t, 1, r.Stats().OpenFailures)
	})
}

func TestTheProxyLogsInWithTheSecretsOfItsUsers(t *testing.T) { // CVE-2025-46801: a wrong password with a warm pool
	c := pgtest.Shared(t, 15)
	cfg := pgmoor.Config{
		Upstream: pgmoor.Upstream{Hosts: []string{c.Addr()}, SSLMode: "disable"}, Logger: quiet,
		Secrets: pgmoor.StaticSecrets{
			"pw_scram": pgmoor.NewSecret(pgtest.Password), "pw_md5": pgmoor.NewSecret(pgtest.Password),
			"pw_plain": pgmoor.NewSecret(pgtest.Password), "app": pgmoor.NewSecret("anything"),
		},
	}
	p := startProxy(t, cfg)
	for user := range cfg.Secrets.(pgmoor.StaticSecrets) {
		pw := pgtest.Password
		if user == "app" {
			pw = "anything"
		}
		conn, err := pgconn.Connect(t.Context(), fmt.Sprintf("postgres://%s:%s@%s/app?sslmode=disable", user, pw, p.Addr()))
		require.NoError(t, err, user)
		res, err := conn.Exec(t.Context(), "SELECT current_user").ReadAll()
		require.NoError(t, err)
		require.Equal(t, user, string(res[0].Rows[0][0]))
		require.NoError(t, conn.Close(t.Context()))
		_, err = pgconn.Connect(t.Context(), fmt.Sprintf("postgres://%s:wrong@%s/app?sslmode=disable", user, p.Addr()))
		require.Equal(t, "28P01", codeOf(err), "with a warm pool")
	}
}
