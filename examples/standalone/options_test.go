package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

func TestFlagsBecomeTheConfig(t *testing.T) {
	users := filepath.Join(t.TempDir(), "userlist.txt")
	require.NoError(t, os.WriteFile(users, []byte("\"app\" \"correct horse\"\n"), 0o600))
	o, err := parseOptions([]string{
		"-listen", "127.0.0.1:7000", "-listen", "/run/pgmoor.sock", "-upstream", "postgres://u:p@db1,db2:6000/x?sslmode=require",
		"-users", users, "-max-connections", "7", "-max-opening", "2", "-borrow-timeout", "0", "-idle-timeout", "0",
		"-handshake-timeout", "5s", "-log-level", "warn", "-socket-mode", "0770",
		"-pinning", "strict", "-verify", "listed", "-verify-functions", "enter_tenant, app.lock_job", "-unpin-interval", "0",
		"-max-statements", "9", "-round-robin", "-proxy-protocol", "10.0.0.0/8, 192.0.2.1,2001:db8::/32", "-drain-grace", "0",
	}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, addresses{"127.0.0.1:7000", "/run/pgmoor.sock"}, o.listen)
	c := o.config
	require.Equal(t, []string{"db1:5432", "db2:6000"}, c.Upstream.Hosts)
	require.Equal(t, "require", c.Upstream.SSLMode)
	require.Equal(t, "10.0.0.0/8,192.0.2.1/32,2001:db8::/32", o.balancers.String())
	require.Zero(t, o.drainGrace)
	require.Equal(t, 7, c.MaxConnections)
	require.Equal(t, 2, c.MaxOpening)
	require.Equal(t, 9, c.MaxStatements)
	require.True(t, c.RoundRobin)
	require.Equal(t, pgmoor.NoWait, c.BorrowTimeout)
	require.Negative(t, c.IdleTimeout)
	require.Equal(t, pgmoor.StrictPinning{}, c.Pinning)
	require.Equal(t, pgmoor.VerifyListed, c.Verify)
	require.Equal(t, []string{"enter_tenant", "app.lock_job"}, c.VerifyFunctions)
	require.Negative(t, c.UnpinInterval)
	require.Nil(t, c.Budget)
	require.EqualValues(t, 0o770, o.socketMode)
	require.Equal(t, 5*time.Second, c.HandshakeTimeout)
	for _, user := range []string{"app", "u"} {
		_, err = o.config.Secrets.Secret(t.Context(), user)
		require.NoError(t, err)
	}
	_, err = o.config.Secrets.Secret(t.Context(), "nobody")
	require.ErrorIs(t, err, pgmoor.ErrNoSecret)
}

func TestFlagsDefaultToTheDefaultsOfThePackage(t *testing.T) {
	o, err := parseOptions([]string{"-upstream", "postgres://u:p@db"}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, addresses{"127.0.0.1:6432"}, o.listen)
	require.Equal(t, pgmoor.DefaultMaxConnections, o.config.MaxConnections)
	require.Equal(t, pgmoor.DefaultMaxStatements, o.config.MaxStatements)
	require.False(t, o.config.RoundRobin)
	require.Equal(t, pgmoor.DefaultBorrowTimeout, o.config.BorrowTimeout)
	require.Equal(t, pgmoor.DefaultIdleTimeout, o.config.IdleTimeout)
	require.Equal(t, pgmoor.DefaultUnpinInterval, o.config.UnpinInterval)
	require.Equal(t, pgmoor.DefaultPinning{}, o.config.Pinning)
	require.Equal(t, pgmoor.VerifyPinned, o.config.Verify)
	require.Empty(t, o.config.VerifyFunctions)
}

func TestEveryVerifyModeHasAName(t *testing.T) {
	for name, want := range map[string]pgmoor.VerifyMode{
		"pinned": pgmoor.VerifyPinned, "never": pgmoor.VerifyNever, "listed": pgmoor.VerifyListed, "always": pgmoor.VerifyAlways,
	} {
		var m verifyMode
		require.NoError(t, m.Set(name))
		require.Equal(t, want, pgmoor.VerifyMode(m))
		require.Equal(t, name, m.String())
	}
}

func TestTheUpstreamMayStandInTheEnvironment(t *testing.T) {
	t.Setenv("PGMOOR_UPSTREAM", "postgres://u:sesame@db1")
	o, err := parseOptions(nil, io.Discard)
	require.NoError(t, err)
	require.Equal(t, []string{"db1:5432"}, o.config.Upstream.Hosts)
	o, err = parseOptions([]string{"-upstream", "postgres://u:p@db2"}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, []string{"db2:5432"}, o.config.Upstream.Hosts)
	var stdout bytes.Buffer
	require.Zero(t, run([]string{"-h"}, &stdout, io.Discard))
	require.NotContains(t, stdout.String(), "sesame")

	t.Setenv("PGMOOR_UPSTREAM", "postgres://u:sesame@db1?sslmode=maybe")
	_, err = parseOptions(nil, io.Discard)
	require.ErrorContains(t, err, "PGMOOR_UPSTREAM: sslmode")
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func writeJSON(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users.json")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestPasswordsMayBeInADatabase(t *testing.T) {
	t.Setenv("PGMOOR_AUTH_QUERY", "postgres://asks:sesame@db1/users")
	o, err := parseOptions([]string{"-upstream", "postgres://db", "-auth-query-sql", "SELECT a.b($1)", "-password-grace", "0"}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, "asks", o.secrets.query.User)
	require.Equal(t, "users", o.secrets.query.Database)
	require.Equal(t, "SELECT a.b($1)", o.secrets.query.Query)
	require.Negative(t, o.secrets.caches[0].Grace)
	o, err = parseOptions([]string{"-upstream", "postgres://db", "-auth-query", "postgres://other@db2"}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, "other", o.secrets.query.User)
	require.Equal(t, []string{"db2:5432"}, o.secrets.query.Upstream.Hosts)
	o.secrets.close()
}

func TestMistakesInFlagsAreNamed(t *testing.T) {
	t.Setenv("PGMOOR_UPSTREAM", "")
	const up = "-upstream=postgres://u:sesame@db"
	for name, tc := range map[string]struct {
		args []string
		says string
	}{
		"no upstream":          {nil, "-upstream is missing"},
		"bad upstream":         {[]string{"-upstream", "db:5432"}, "-upstream: it is neither"},
		"bad sslmode":          {[]string{up + "?sslmode=maybe"}, "-upstream: sslmode"},
		"bad port":             {[]string{up + ":99999"}, "-upstream: port 99999"},
		"unknown flag":         {[]string{"-nonsense"}, "-nonsense"},
		"an argument":          {[]string{up, "now"}, `"now"`},
		"bad listen":           {[]string{up, "-listen", "6432"}, "neither HOST:PORT"},
		"no passwords":         {[]string{"-upstream=postgres://db"}, "needs passwords"},
		"no users file":        {[]string{up, "-users", "/nonexistent"}, "-users"},
		"unknown method":       {[]string{up, "-auth", "ldap"}, `"ldap"`},
		"trust for the world":  {[]string{up, "-auth", "trust", "-listen", ":6432"}, "-listen :6432 is neither"},
		"half a certificate":   {[]string{up, "-tls-cert", "x"}, "go together"},
		"TLS without":          {[]string{up, "-require-tls"}, "-require-tls needs"},
		"certificate missing":  {[]string{up, "-tls-cert", "/nonexistent", "-tls-key", "/nonexistent"}, "-tls-cert"},
		"no connections":       {[]string{up, "-max-connections", "0"}, "-max-connections"},
		"no statements":        {[]string{up, "-max-statements", "0"}, "-max-statements"},
		"long wait":            {[]string{up, "-borrow-timeout", "1h"}, "5m0s"},
		"negative drain":       {[]string{up, "-drain-timeout", "-1s"}, "-drain-timeout"},
		"empty users file":     {[]string{up, "-users", writeFile(t, "; nobody\n")}, "holds no users"},
		"half a JSON file":     {[]string{up, "-users", writeJSON(t, `{"username": "a", "password": "sesame`)}, "-users: FileSecrets"},
		"negative password":    {[]string{up, "-password-grace", "-1s"}, "-password-grace must not be negative"},
		"a query of nobody":    {[]string{up, "-auth-query", "postgres://:sesame@db"}, "-auth-query: it names no user"},
		"a query of nothing":   {[]string{up, "-auth-query", "sesame"}, "-auth-query: "},
		"SQL alone":            {[]string{up, "-auth-query-sql", "SELECT $1"}, "-auth-query-sql needs"},
		"a user twice":         {[]string{up, "-users", writeFile(t, "\"a\" \"sesame\"\n\n\"a\" \"b\"")}, "line 3: the user of line 1 again"},
		"no unit":              {[]string{up, "-borrow-timeout", "5"}, "a duration needs a unit, as in 5s"},
		"no duration":          {[]string{up, "-idle-timeout", "soon"}, "not a duration"},
		"negative idle time":   {[]string{up, "-idle-timeout", "-1s"}, "-idle-timeout must not be negative"},
		"unknown policy":       {[]string{up, "-pinning", "lax"}, `-pinning "lax" is not one of default, strict`},
		"unknown mode":         {[]string{up, "-verify", "often"}, "-verify: not one of pinned, never, listed, always"},
		"listed, but nothing":  {[]string{up, "-verify", "listed"}, "needs -verify-functions"},
		"nothing is listed":    {[]string{up, "-verify-functions", "f"}, "-verify-functions needs -verify listed"},
		"an empty name":        {[]string{up, "-verify", "listed", "-verify-functions", "f,,g"}, "a name is empty"},
		"negative unpinning":   {[]string{up, "-unpin-interval", "-1s"}, "-unpin-interval must not be negative"},
		"bad listen port":      {[]string{up, "-listen", "127.0.0.1:99999"}, "neither HOST:PORT"},
		"bad metrics":          {[]string{up, "-metrics", "9090"}, "-metrics 9090 is not HOST:PORT"},
		"bad socket mode":      {[]string{up, "-socket-mode", "888"}, "octal"},
		"no networks":          {[]string{up, "-proxy-protocol", "10.0.0.0/8,"}, "networks or addresses"},
		"a balancer's name":    {[]string{up, "-proxy-protocol", "balancer"}, "networks or addresses"},
		"an address's zone":    {[]string{up, "-proxy-protocol", "fe80::1%eth0"}, "networks or addresses"},
		"a socket is no port":  {[]string{up, "-reuseport", "-listen", "/tmp/s"}, "-reuseport is for"},
		"negative grace":       {[]string{up, "-drain-grace", "-1s"}, "-drain-grace"},
		"unknown parameter":    {[]string{up + "?search_path=x"}, `"search_path" is not understood: leave it out`},
		"trust, what else":     {[]string{up, "-auth", "trust", "-listen", ":6432"}, "-users"},
		"clients' time":        {[]string{up, "-idle-client-timeout", "10s"}, "-idle-client-timeout is 10s: it must be between 1m0s and 8h0m0s, or 0: never"},
		"negative age":         {[]string{up, "-max-client-lifetime", "-1s"}, "-max-client-lifetime must not be negative; 0 means never"},
		"more than all":        {[]string{up, "-max-connections-percent", "101"}, "-max-connections-percent is 101: it must be between 1 and 100"},
		"more idle than all":   {[]string{up, "-max-connections-percent", "40", "-max-idle-connections-percent", "50"}, "-max-idle-connections-percent is 50: it must not be more than -max-connections-percent, 40"},
		"no percentage":        {[]string{up, "-max-idle-connections-percent", "-1"}, "not a percentage"},
		"negative waiters":     {[]string{up, "-max-waiting", "-1"}, "-max-waiting is -1"},
		"init query":           {[]string{up, "-init-query", "SET x.y TO 'é'"}, "-init-query must be in ASCII"},
		"no instances":         {[]string{up, "-instances", "0"}, "at least one"},
		"no name":              {[]string{up, "-instances", "a b"}, "neither a number nor a DNS name"},
		"instances of what":    {[]string{up, "-instances", "2", "-max-connections-percent", "50"}, "-instances needs -max-connections"},
		"too many instances":   {[]string{up, "-instances", "20", "-surge", "1"}, "-max-connections is 20, which 21 instances cannot share"},
		"surge alone":          {[]string{up, "-surge", "1"}, "-surge needs -instances"},
		"unknown level":        {[]string{up, "-log-level", "loud"}, "-log-level"},
		"negative idle number": {[]string{up, "-max-opening", "-1"}, "-max-opening"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			require.Equal(t, 2, run(tc.args, io.Discard, &stderr))
			require.Contains(t, stderr.String(), tc.says)
			require.NotContains(t, stderr.String(), "sesame")
			require.NotContains(t, stderr.String(), "pgmoor: pgmoor:")
			require.NotContains(t, stderr.String(), "Config.")
		})
	}
}

func TestHelpNamesEveryFlag(t *testing.T) {
	var stdout bytes.Buffer
	require.Zero(t, run([]string{"-h"}, &stdout, io.Discard))
	(&options{}).flags().VisitAll(func(f *flag.Flag) { require.Contains(t, stdout.String(), "  -"+f.Name) })
}

func TestVersionIsPrinted(t *testing.T) {
	var stdout bytes.Buffer
	require.Zero(t, run([]string{"-version"}, &stdout, io.Discard))
	require.Regexp(t, `^pgmoor \S+ go1\.`, stdout.String())
}

func TestRulesAreReadFromFiles(t *testing.T) {
	up := []string{"-upstream", "postgres://u:sesame@db"}
	rules := writeFile(t, "local all all scram-sha-256\nhost all all 10.0.0.0/8 md5\n")
	o, err := parseOptions(append(up, "-hba", rules), io.Discard)
	require.NoError(t, err)
	require.NotNil(t, o.config.Authenticator)
	certs := writeFile(t, "hostssl all all all cert map=m\n")
	maps := writeFile(t, "m x y\n")
	for says, args := range map[string][]string{
		"-ident needs -hba":               {"-ident", maps},
		"line 1: the proxy does not know": {"-hba", writeFile(t, "host all all all ldap\n")},
		"it has no rules":                 {"-hba", writeFile(t, "# none\n")},
		"there is no map":                 {"-hba", certs},
		"does not have them verified":     {"-hba", certs, "-ident", maps},
		"-tls-client-ca needs -tls-cert":  {"-tls-client-ca", maps},
		"-hba: open":                      {"-hba", "/nonexistent"},
		"exclude each other":              {"-hba", rules, "-auth", "trust"},
		"-max-login-failures must not":    {"-max-login-failures", "-1"},
	} {
		_, err := parseOptions(append(up, args...), io.Discard)
		require.ErrorContains(t, err, says)
	}
}
