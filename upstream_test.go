package pgmoor

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHostsAreTakenApart(t *testing.T) {
	for h, want := range map[string]struct {
		host string
		port uint16
	}{
		"db1":                      {"db1", 5432},
		"db1:6000":                 {"db1", 6000},
		"192.0.2.1:6000":           {"192.0.2.1", 6000},
		"::1":                      {"::1", 5432},
		"[::1]":                    {"::1", 5432},
		"[::1]:6000":               {"::1", 6000},
		"fe80::1%eth0":             {"fe80::1%eth0", 5432},
		"[db1]:6000":               {"", 0},
		"/var/run/postgresql":      {"/var/run/postgresql", 5432},
		"/var/run/postgresql:6000": {"/var/run/postgresql", 6000},
	} {
		host, port, err := splitHost(h)
		if want.host == "" {
			require.Error(t, err, h)
			continue
		}
		require.NoError(t, err, h)
		require.Equal(t, want.host, host)
		require.Equal(t, want.port, port)
	}
}

func TestWhatIsNoHostIsRefusedWithoutShowingIt(t *testing.T) {
	for _, h := range []string{
		"postgres://u:sesame@h/db", "postgres://sesame", "u:sesame@h", "sesame:b:c", "h1:1,sesame:2", "h1,sesame", "h:sesame", "h/sesame",
		"//u:sesame@h/db", "host=h password=sesame", "h sesame", "[sesame", "sesame]:1", "[sesame]", "sesame:", ":sesame", "", ":1", "[]:1",
		"sesame:0", "sesame:65536", "/sesame:x", "sesame?h", "[::1]sesame:5",
	} {
		_, err := New(nil, Config{Upstream: Upstream{Hosts: []string{"db1", h}}})
		require.ErrorContains(t, err, "pgmoor: Config.Upstream.Hosts[1]: ", h)
		require.NotContains(t, err.Error(), "sesame", h)
	}
	_, err := New(nil, Config{Upstream: Upstream{Hosts: []string{"postgres://u:sesame@h/db"}}})
	require.ErrorContains(t, err, "Hosts takes host:port, not a DSN")
	_, err = New(nil, Config{Upstream: Upstream{Hosts: []string{"db:99999"}}})
	require.ErrorContains(t, err, "port 99999 is not between 1 and 65535")
}
