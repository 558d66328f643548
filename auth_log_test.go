package pgmoor_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

func TestTheLogAloneTellsWhyAPasswordWasRefused(t *testing.T) {
	const none, wrong = "no credentials for this role", "the password that was provided for this role is wrong"
	secrets := someSecrets(t)
	for method, c := range map[string]struct {
		auth pgmoor.Authenticator
		says map[string]string
	}{
		"SCRAM":     {pgmoor.SCRAM(secrets), map[string]string{"clear": wrong, "verifier": wrong, "nobody": none, "none": none, "empty": none, "md5": "MD5 hash only", "spoilt": "cannot be read"}},
		"MD5":       {pgmoor.MD5(secrets), map[string]string{"clear": wrong, "verifier": wrong, "nobody": none, "md5": wrong}},
		"cleartext": {pgmoor.Throttle(pgmoor.Cleartext(secrets), 100, 0), map[string]string{"clear": wrong, "verifier": wrong, "nobody": none, "md5": wrong}},
	} {
		log := new(logBuffer)
		cfg := pgmoor.Config{Authenticator: c.auth, Logger: slog.New(slog.NewTextHandler(log, nil))}
		cfg.TLS, _ = certified(t)
		address := newRig(t, cfg, new(fake)).listenTCP(t)
		for user, says := range c.says {
			var e *pgconn.PgError
			require.ErrorAs(t, logIn(t, address, user, "wrong", "sslmode=require"), &e)
			require.Equal(t, pgconn.PgError{
				Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "28P01", Message: `password authentication failed for user "` + user + `"`,
			}, *e, method)
			require.Eventually(t, func() bool { return strings.Contains(lineAbout(log.text(), user), says) }, 20*time.Second, 5*time.Millisecond, "%s %s", method, user)
		}
	}
}

// lineAbout returns the line of a log about a refused user.
func lineAbout(log, user string) string {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "client refused") && strings.Contains(line, " user="+user+" ") {
			return line
		}
	}
	return ""
}

func TestMD5IsWarnedOfOnce(t *testing.T) {
	var log logBuffer
	secrets := someSecrets(t)
	cfg := pgmoor.Config{Authenticator: pgmoor.MD5(secrets), Logger: slog.New(slog.NewTextHandler(&log, nil))}
	address := newRig(t, cfg, new(fake)).listenTCP(t)
	require.NoError(t, logIn(t, address, "verifier", right, "sslmode=disable"))
	require.NotContains(t, log.text(), "MD5")
	for range 3 {
		require.NoError(t, logIn(t, address, "md5", right, "sslmode=disable"))
	}
	require.Equal(t, 1, strings.Count(log.text(), "MD5-hashed"))
}
