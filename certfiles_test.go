package pgmoor_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// A volume is a directory of secrets as Kubernetes has it: links to a directory that is exchanged at once.
type volume struct{ dir string }

func (v volume) path(name string) string { return filepath.Join(v.dir, name) }

// put exchanges the files, and returns who trusts the certificate.
func (v volume) put(t *testing.T, version string, spoil bool) *x509.CertPool {
	t.Helper()
	ca, err := pgtest.NewCA()
	require.NoError(t, err)
	cert, key, err := ca.Issue("localhost")
	require.NoError(t, err)
	if spoil {
		key = key[:10]
	}
	require.NoError(t, os.Mkdir(v.path(version), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(v.path(version), "tls.crt"), cert, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(v.path(version), "tls.key"), key, 0o600))
	require.NoError(t, os.Symlink(version, v.path("..tmp")))
	require.NoError(t, os.Rename(v.path("..tmp"), v.path("..data")))
	return ca.Pool()
}

func TestCertificatesAreReadAgain(t *testing.T) {
	v := volume{t.TempDir()}
	for _, name := range []string{"tls.crt", "tls.key"} {
		require.NoError(t, os.Symlink("..data/"+name, v.path(name)))
	}
	var log logBuffer
	synctest.Test(t, func(t *testing.T) {
		roots := v.put(t, "..1", false)
		files, err := pgmoor.NewCertificateFiles(v.path("tls.crt"), v.path("tls.key"), slog.New(slog.NewTextHandler(&log, nil)))
		require.NoError(t, err)
		r := newRig(t, pgmoor.Config{Secrets: someSecrets(t), TLS: &tls.Config{GetCertificate: files.GetCertificate}}, new(fake))
		l := r.listenInMemory(t)
		connect := func(roots *x509.CertPool) (*pgconn.PgConn, error) {
			cfg, err := pgconn.ParseConfig("host=localhost user=clear dbname=d password='" + right + "' sslmode=verify-full channel_binding=require")
			require.NoError(t, err)
			cfg.TLSConfig.RootCAs, cfg.DialFunc, cfg.LookupFunc = roots, l.DialContext, nowhere
			return pgconn.ConnectConfig(t.Context(), cfg)
		}
		stays, err := connect(roots)
		require.NoError(t, err)
		next := v.put(t, "..2", false)
		time.Sleep(time.Second)
		again, err := connect(next)
		require.NoError(t, err)
		_ = again.Close(t.Context()) // the proxy may be faster
		_, err = connect(roots)
		require.Error(t, err)
		v.put(t, "..3", true)
		time.Sleep(time.Second)
		again, err = connect(next)
		require.NoError(t, err)
		_ = again.Close(t.Context()) // the proxy may be faster
		require.Contains(t, log.text(), "stays as it was")
		require.NotContains(t, log.text(), "PRIVATE")
		last := v.put(t, "..4", false)
		time.Sleep(time.Second)
		again, err = connect(last)
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, 2, r.Stats().ClientsTLS)
		_ = again.Close(t.Context()) // the proxy may be faster
		_, err = stays.Exec(t.Context(), "SELECT 1").ReadAll()
		require.NoError(t, err)
		_ = stays.Close(t.Context())
		synctest.Wait()
		r.connect(t, "u").ok("SELECT 1")
		require.Zero(t, r.Stats().ClientsTLS)
	})
	_, err := pgmoor.NewCertificateFiles(v.path("tls.crt"), v.path("nothing"), nil)
	require.ErrorContains(t, err, "nothing")
}

func TestRequireTLSIsForBothLegs(t *testing.T) {
	with, _ := certified(t)
	for _, c := range []struct {
		host, mode string
		dialer     pgmoor.Dialer
		says       string
	}{
		{"db", "", nil, ""},
		{"db", "require", nil, ""},
		{"db", "verify-ca", nil, ""},
		{"db", "verify-full", nil, ""},
		{"db", "disable", nil, "Config.RequireTLS"},
		{"db", "allow", nil, "Config.RequireTLS"},
		{"db", "prefer", nil, "Config.RequireTLS"},
		{"/run/postgresql", "disable", nil, ""},
		{"/run/postgresql", "prefer", nil, ""},
		{"db", "disable", dialFake(), ""}, // it sees to encryption itself
		{"db", "prefer", dialFake(), "Config.RequireTLS"},
	} {
		cfg := pgmoor.Config{RequireTLS: true, TLS: with, Upstream: pgmoor.Upstream{Hosts: []string{c.host}, SSLMode: c.mode}}
		if c.dialer != nil {
			cfg.Upstream.Dialer = c.dialer
		}
		p, err := pgmoor.New(nil, cfg)
		if c.says != "" {
			require.ErrorContains(t, err, c.says, c.mode)
			continue
		}
		require.NoError(t, err, c.mode)
		require.NoError(t, p.Close())
	}
}

func TestRequireTLSIsForTheServerThatIsAsked(t *testing.T) {
	with, _ := certified(t)
	for mode, fine := range map[string]bool{"": false, "disable": false, "allow": false, "prefer": false, "require": true, "verify-ca": true, "verify-full": true} {
		for _, host := range []string{"db", "/run/postgresql"} {
			q := &pgmoor.AuthQuery{User: "asks", Upstream: pgmoor.Upstream{Hosts: []string{host}, SSLMode: mode}}
			for _, src := range []pgmoor.SecretSource{q, &pgmoor.CachedSecrets{Source: q}} {
				_, err := pgmoor.New(nil, pgmoor.Config{RequireTLS: true, TLS: with, Secrets: src, Upstream: pgmoor.Upstream{Hosts: []string{"db"}}})
				if fine || host != "db" {
					require.NoError(t, err, mode)
					continue
				}
				require.ErrorContains(t, err, "AuthQuery", mode)
			}
		}
	}
}

func TestWithRequireTLSServersHaveToEncrypt(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		c := pgtest.Shared(t, version)
		cfg := trusting(c)
		cfg.RequireTLS, cfg.Upstream.SSLMode = true, ""
		cfg.TLS, _ = certified(t)
		p := startProxy(t, cfg)
		conn, err := pgconn.Connect(t.Context(), "postgres://app@"+p.Addr().String()+"/app?sslmode=require")
		require.NoError(t, err)
		res, err := conn.Exec(t.Context(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").ReadAll()
		require.NoError(t, err)
		require.Equal(t, "t", string(res[0].Rows[0][0]))
		require.NoError(t, conn.Close(t.Context()))
	})
}

// nowhere looks nothing up.
func nowhere(_ context.Context, host string) ([]string, error) { return []string{host}, nil }

func dialFake() pgmoor.Dialer { return pgmoor.DialerFunc(new(fake).dial) }
