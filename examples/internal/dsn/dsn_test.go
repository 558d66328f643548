package dsn

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBothFormsNameTheSame(t *testing.T) {
	want := &DSN{
		Hosts: []string{"db1:6000", "[::1]:5432", "/run/pg:5432"}, User: "app", Password: "p@:/ w'", Database: "shop",
		SSLMode: "verify-full", SSLNegotiation: "direct", SSLRootCert: "/ca.pem", ChannelBinding: "require", ConnectTimeout: 3 * time.Second,
	}
	for name, s := range map[string]string{
		"URL": "postgres://app:p%40%3A%2F%20w%27@db1:6000,[::1],%2Frun%2Fpg:5432/shop?sslmode=verify-full&sslrootcert=/ca.pem&connect_timeout=3&sslnegotiation=direct&channel_binding=require",
		"keywords": `host=db1,::1,/run/pg port = 6000,5432,5432 user=app password='p@:/ w\'' dbname=shop
			sslmode=verify-full sslrootcert=/ca.pem connect_timeout=3 sslnegotiation=direct channel_binding=require`,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(s)
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
}

func TestPartsMayBeLeftOut(t *testing.T) {
	for s, want := range map[string][]string{
		"postgres://db":                          {"db:5432"},
		"postgresql://u@db/":                     {"db:5432"},
		"postgres:///app?host=/run/pg&port=5433": {"/run/pg:5433"},
		"host=a,b port=7":                        {"a:7", "b:7"},
	} {
		d, err := Parse(s)
		require.NoError(t, err, s)
		require.Equal(t, want, d.Hosts, s)
	}
}

func TestBadStringsAreRefusedWithoutShowingThePassword(t *testing.T) {
	for s, says := range map[string]string{
		"":                                    "names no host",
		"db1:5432":                            "neither",
		"host=a,b,c port=1,2":                 "2 ports for 3 hosts",
		"host=a password='sesame":             "closing quote",
		"host=a password=sesame gssencmode=x": `"gssencmode"`,
		"host=a password=sesame connect_timeout=":                  "number of seconds",
		"postgres://u:sesame%2@a":                                  "hexadecimal",
		"postgres://u:sesame@a,,b/":                                "empty",
		"postgres://u:se/sesame@a":                                 "%2F",
		"postgres://u:sesame/x@a":                                  "%2F",
		"postgres://u:sesame@a:99999":                              "port 99999",
		"postgres://u:sesame@a?sslmode=maybe":                      "verify-full",
		"postgres://sesame@a?sslnegotiation=tls":                   "postgres, direct",
		"postgres://sesame@a?channel_binding=no":                   "disable, prefer, require",
		"postgres://sesame@a?sslnegotiation=direct&sslmode=prefer": "needs sslmode=require",
		"postgres://sesame@a?sslrootcert=system&sslmode=verify-ca": "needs sslmode=verify-full",
		"postgres://u:sesame@a?search_path=x":                      `"search_path" is not understood: leave it out`,
	} {
		_, err := Parse(s)
		require.ErrorContains(t, err, says, s)
		require.NotContains(t, err.Error(), "sesame")
	}
}

func TestTheRootCertificateFileIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(path, []byte("nothing"), 0o600))
	_, err := (&DSN{Hosts: []string{"a:1"}, SSLRootCert: path}).Upstream()
	require.ErrorContains(t, err, "no certificate")
	_, err = (&DSN{Hosts: []string{"a:1"}, SSLRootCert: path + "x"}).Upstream()
	require.ErrorIs(t, err, os.ErrNotExist)
	up, err := (&DSN{Hosts: []string{"a:1"}, SSLMode: "require", ConnectTimeout: time.Second}).Upstream()
	require.NoError(t, err)
	require.Equal(t, []string{"a:1"}, up.Hosts)
	require.Equal(t, time.Second, up.ConnectTimeout)
	d, err := Parse("host=a sslrootcert=system sslnegotiation=direct channel_binding=require")
	require.NoError(t, err)
	up, err = d.Upstream()
	require.NoError(t, err)
	require.Equal(t, []string{"verify-full", "direct", "require"}, []string{up.SSLMode, up.SSLNegotiation, up.ChannelBinding})
}
