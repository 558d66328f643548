package pgmoor_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// saying is a method that refuses everybody, and says which it is.
type saying string

func (m saying) Authenticate(context.Context, *pgmoor.Client) error {
	return &pgmoor.Error{Code: "28000", Message: string(m)}
}

// anyMethod knows every method and none of its options.
func anyMethod(name string, _ map[string]string) (pgmoor.Authenticator, error) {
	return saying(name), nil
}

// hbaLines is what PostgreSQL and the parser are both given; refused are those that only PostgreSQL takes, with what the parser says.
var hbaLines = []struct{ line, refused string }{
	{"local all all scram-sha-256", ""},
	{"host all all 0.0.0.0/0 scram-sha-256", ""},
	{"host all all ::/0 md5", ""},
	{"host all all all password", ""},
	{"hostssl db1,db2 \"a user\" , other 10.0.0.0/8 scram-sha-256 # a comment", ""},
	{"hostnossl sameuser all 127.0.0.1/32 reject", ""},
	{"host replication repl 192.0.2.7 255.255.255.255 md5", ""},
	{"host\tall\tall\t192.0.2.0\t255.255.255.0\tmd5", ""},
	{"host \"all\" \"replication\" 10.1.2.3/8 md5", ""},
	{"host all a\"b c\"d 2001:db8::/32 md5", ""},
	{"host all \"with \"\"quotes\"\"\" 10.0.0.0/8 md5", ""},
	{"host all,all all,, 10.0.0.0/8 md5", ""},
	{"hostssl all all 10.0.0.0/8 cert map=m", ""},
	{"hostssl all all 10.0.0.0/8 cert clientcert=verify-full clientname=DN", ""},
	{"hostssl all all 10.0.0.0/8 scram-sha-256 clientcert=verify-full", ""},
	{"hostssl all all 10.0.0.0/8 md5 clientcert=verify-ca", ""},
	{"local all all trust", ""},
	{"host all all 127.0.0.0/8 trust", ""},
	{"hostnogssenc all all 127.0.0.0/8 md5", ""},
	{"host all all\\\n 127.0.0.1/32 md5", ""},
	{"host all all 127.0.0.1/32 md5#behind", ""},
	{"host @x all 127.0.0.1/32 md5", "@x names a file"},
	{"host all +role 127.0.0.1/32 md5", "membership in a role"},
	{"host samerole all 127.0.0.1/32 md5", "membership in a role"},
	{"host all all samehost md5", "samehost is not supported: write the networks"},
	{"host all all samenet md5", "samenet is not supported"},
	{"host all all .example.com md5", "host names are not supported"},
	{"host all all db.example.com md5", "host names are not supported"},
	{"host all all 0.0.0.0/0 trust", "name the networks"},
	{"host all all all trust", "name the networks"},
	{"host all all 10.0.0.0 255.0.255.0 md5", "has gaps"},
	// neither takes these
	{"hostgssenc all all 127.0.0.0/8 md5", "hostgssenc"},
	{"nonsense all all md5", "invalid connection type"},
	{"host,local all all 127.0.0.1/32 md5", "multiple values specified for connection type"},
	{"host", "end-of-line before database specification"},
	{"host all", "end-of-line before role specification"},
	{"host all all", "end-of-line before IP address specification"},
	{"host all all 127.0.0.1", "end-of-line before netmask specification"},
	{"host all all 127.0.0.1/32", "end-of-line before authentication method"},
	{"local all all", "end-of-line before authentication method"},
	{"host all all 127.0.0.1/33 md5", "invalid CIDR mask"},
	{"host all all 127.0.0.1/x md5", "invalid CIDR mask"},
	{"host all all host/8 md5", "specifying both host name and CIDR mask is invalid"},
	{"host all all 127.0.0.1 ::1 md5", "IP address and mask do not match"},
	{"host all all 127.0.0.1 md5", "invalid IP mask"},
	{"host all all 127.0.0.1/32,::1/128 md5", "multiple values specified for host address"},
	{"host all all 127.0.0.1/32 md5,trust", "multiple values specified for authentication type"},
	{"host all all 127.0.0.1/32 md5 clientcert", "not in name=value format"},
	{"host all all 127.0.0.1/32 cert", "only supported on hostssl"},
	{"host all all 127.0.0.1/32 md5 clientcert=verify-full", `"hostssl"`},
	{"hostssl all all 127.0.0.1/32 md5 clientcert=1", "invalid value for clientcert"},
	{"hostssl all all 127.0.0.1/32 cert clientcert=verify-ca", "only accepts"},
	{"hostssl all all 127.0.0.1/32 cert clientname=XX", "invalid value for clientname"},
	{"host all all 127.0.0.1/32 sesame", "sesame"},
	{"host all all 127.0.0.1/32 md5 sesame=1", "sesame"},
	{"host all all 127.0.0.1/32 peer", "peer"},
}

var standard = pgmoor.StandardMethods(pgmoor.StaticSecrets{}, map[string]pgmoor.UserMap{"m": nil})

func TestRulesAreReadAsPostgreSQLReadsThem(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		c := pgtest.Start(t, version)
		at := make(map[int]int) // by line
		var file strings.Builder
		for i, l := range hbaLines {
			at[strings.Count(file.String(), "\n")+1] = i
			file.WriteString(l.line + "\n")
		}
		require.NoError(t, os.WriteFile(filepath.Join(c.DataDir(), "pg_hba.conf"), []byte(file.String()), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(c.DataDir(), "x"), []byte("db3\n"), 0o644))
		rows := c.Exec(t, `SELECT line_number, type, array_to_string(database, '|'), array_to_string(user_name, '|'),
			address, netmask, auth_method, error FROM pg_hba_file_rules ORDER BY 1`)
		seen := 0
		for _, row := range rows {
			n, err := strconv.Atoi(row[0])
			require.NoError(t, err)
			i, ok := at[n]
			if !ok && row[7] == "" {
				i, ok = at[n-1] // some versions count the end of a line that goes on
			}
			require.True(t, ok, row)
			seen++
			compareRule(t, hbaLines[i].line, hbaLines[i].refused, row)
		}
		require.GreaterOrEqual(t, seen, len(hbaLines))
	})
}

// compareRule reads a line and compares what came of it with a row of pg_hba_file_rules.
func compareRule(t *testing.T, line, refused string, row []string) {
	t.Helper()
	rules, err := pgmoor.ParseHBA(strings.NewReader(line), standard)
	if row[7] != "" {
		require.Error(t, err, "%s: PostgreSQL says %s", line, row[7])
		require.ErrorContains(t, err, refused, line)
		return
	}
	if refused != "" {
		require.ErrorContains(t, err, refused, line)
		return
	}
	require.NoError(t, err, line)
	require.Len(t, rules, 1)
	r := rules[0]
	names := map[pgmoor.RuleType]string{pgmoor.RuleHost: "host", pgmoor.RuleHostSSL: "hostssl", pgmoor.RuleHostNoSSL: "hostnossl", pgmoor.RuleLocal: "local"}
	require.Equal(t, strings.Replace(row[1], "hostnogssenc", "host", 1), names[r.Type], line)
	plain := func(names []string) string {
		out := make([]string, len(names))
		for i, n := range names {
			out[i] = n
			if len(n) > 1 && n[0] == '"' {
				out[i] = n[1 : len(n)-1]
			}
		}
		return strings.Join(out, "|")
	}
	require.Equal(t, row[2], plain(r.Databases), line)
	require.Equal(t, row[3], plain(r.Users), line)
	if row[4] == "" || row[4] == "all" {
		require.Empty(t, r.Networks, line)
		return
	}
	require.Len(t, r.Networks, 1, line)
	ip, mask := netip.MustParseAddr(row[4]), net.IPMask(netip.MustParseAddr(row[5]).AsSlice())
	ones, _ := mask.Size()
	require.Equal(t, netip.PrefixFrom(ip, ones).Masked(), r.Networks[0], line)
}

func TestMistakesInRulesAreNamedWithTheirLines(t *testing.T) {
	_, err := pgmoor.ParseHBA(strings.NewReader("# rules\n\nlocal all all trust\nhost all all sesame md5\nhost all all all ldap ldapserver=x\n"+
		"include other.conf\nhost /( all 10.0.0.0/8 md5\nhostssl all all all cert map=unknown\nhost all all all md5 x=y\nlocal all \"\" trust\nhost all all fe80::1%eth0/64 md5"), standard)
	for _, says := range []string{
		"line 4: host names are not supported", `line 5: the proxy does not know the method "ldap": use scram-sha-256`,
		"line 6: include is not supported", "line 7: regular expression /(", `line 8: there is no map "unknown"`, "line 9: the option x is not one of the method md5",
		"line 10: a name is empty", "line 11: an address with a zone",
	} {
		require.ErrorContains(t, err, says)
	}
	require.NotContains(t, err.Error(), "line 3")
	_, err = pgmoor.ParseHBA(strings.NewReader(strings.Repeat("#\n", 1<<20)), standard)
	require.ErrorContains(t, err, "longer than")
	_, err = pgmoor.HBA(pgmoor.Rule{}, pgmoor.Rule{Users: []string{"+admins"}})
	require.ErrorContains(t, err, "rule 2: +admins")
	_, err = pgmoor.HBA(pgmoor.Rule{Type: 9})
	require.Error(t, err)
	_, err = pgmoor.HBA(pgmoor.Rule{Networks: []netip.Prefix{{}}})
	require.Error(t, err)
	for _, networks := range [][]netip.Prefix{nil, {netip.MustParsePrefix("0.0.0.0/0")}, {netip.MustParsePrefix("::/0")}, {{}}} {
		_, err := pgmoor.TrustNetworks(networks...)
		require.Error(t, err)
	}
}

// comesFrom logs in from an address and returns the error; "" is the Unix socket.
func comesFrom(t *testing.T, r *rig, address, user, database string, params ...string) string {
	t.Helper()
	network, at := "tcp", "127.0.0.1:0"
	if address == "" {
		network, at = "unix", filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, at)
	require.NoError(t, err)
	at = l.Addr().String()
	if address != "" {
		l = &elsewhere{l, foreignAddr(address)}
	}
	require.NoError(t, r.AddListener(l))
	conn, err := net.Dial(network, at)
	require.NoError(t, err)
	got := newClient(t, conn).startup(user, append([]string{"database", database}, params...)...)
	if got.err == nil {
		require.EqualValues(t, 'I', got.status)
		return ""
	}
	require.Equal(t, "28000", got.err.Code)
	require.Equal(t, "FATAL", got.err.Severity)
	return got.err.Message
}

func TestTheFirstRuleThatIsAboutAClientDecides(t *testing.T) {
	rules, err := pgmoor.ParseHBA(strings.NewReader(`
local all all one
host sameuser all 192.0.2.0/24 two
host app,/^test_ alice,/bob$ 192.0.2.0/24 three
host "all" all 192.0.2.0/24 four
host replication all 192.0.2.0/24 five
hostssl all all 192.0.2.0/24 six
host all mallory 192.0.2.0/24 reject
host replication mallory all reject
host all all 2001:db8::/32 seven
host all carol 127.0.0.0/8 trust
host all dave all eight
`), anyMethod)
	require.NoError(t, err)
	auth, err := pgmoor.HBA(rules...)
	require.NoError(t, err)
	r := newRig(t, pgmoor.Config{Authenticator: auth}, new(fake))
	const here, six = "192.0.2.9:4711", "[2001:db8::5]:1"
	for _, c := range []struct {
		from, user, database, want string
		params                     []string
	}{
		{"", "x", "y", "one", nil},
		{here, "x", "x", "two", nil},
		{here, "alice", "app", "three", nil},
		{here, "notbob", "test_1", "three", nil},
		{"[::ffff:192.0.2.9]:4711", "alice", "app", "three", nil},
		{here, "x", "all", "four", nil},
		{here, "x", "y", `no pg_hba.conf entry for host "192.0.2.9", user "x", database "y", no encryption`, nil},
		{here, "mallory", "y", `pg_hba.conf rejects connection for host "192.0.2.9", user "mallory", database "y", no encryption`, nil},
		{here, "x", "app", "five", []string{"replication", "true"}},
		{here, "alice", "app", "three", []string{"replication", "database"}},
		{"192.0.3.1:1", "x", "y", `no pg_hba.conf entry for replication connection from host "192.0.3.1", user "x", no encryption`, []string{"replication", "1"}},
		{"192.0.3.1:1", "mallory", "y", `pg_hba.conf rejects replication connection for host "192.0.3.1", user "mallory", no encryption`, []string{"replication", "1"}},
		{six, "x", "y", "seven", nil},
		{"127.0.0.1:1", "carol", "y", "", nil},
		{"192.0.2.1:1", "carol", "y", `no pg_hba.conf entry for host "192.0.2.1", user "carol", database "y", no encryption`, nil},
		{"tunnel", "dave", "y", "eight", nil},
		{"tunnel", "x", "y", `no pg_hba.conf entry for host "tunnel", user "x", database "y", no encryption`, nil},
	} {
		require.Equal(t, c.want, comesFrom(t, r, c.from, c.user, c.database, c.params...), fmt.Sprint(c))
	}
}

func TestRefusalsByRuleAreWordedAsPostgreSQLs(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		c := pgtest.Start(t, version)
		const rules = "local all all trust\nhost all mallory 127.0.0.1/32 reject\nhost all postgres 127.0.0.1/32 trust\n"
		require.NoError(t, os.WriteFile(filepath.Join(c.DataDir(), "pg_hba.conf"), []byte(rules), 0o600))
		c.Exec(t, "SELECT pg_reload_conf()")
		require.NoError(t, c.Restart(pgtest.Fast))
		parsed, err := pgmoor.ParseHBA(strings.NewReader(rules), anyMethod)
		require.NoError(t, err)
		auth, err := pgmoor.HBA(parsed...)
		require.NoError(t, err)
		cfg := pgmoor.Config{Authenticator: auth}
		cfg.TLS, _ = certified(t)
		address := newRig(t, cfg, new(fake)).listenTCP(t)
		for _, user := range []string{"mallory", "nobody"} {
			for _, extra := range []string{"sslmode=disable", "sslmode=require"} {
				want := logIn(t, c.Addr(), user, "", extra)
				require.Equal(t, "28000", codeOf(want))
				require.Equal(t, messageOf(want), messageOf(logIn(t, address, user, "", extra)))
			}
		}
	})
}

// messageOf is an error's text from the SQLSTATE's severity on.
func messageOf(err error) string {
	return regexp.MustCompile(`(?s)FATAL: .*`).FindString(err.Error())
}

func TestOnlyNamedNetworksAreTrusted(t *testing.T) {
	auth, err := pgmoor.TrustNetworks(netip.MustParsePrefix("192.0.2.0/28"), netip.MustParsePrefix("2001:db8::/64"))
	require.NoError(t, err)
	r := newRig(t, pgmoor.Config{Authenticator: auth}, new(fake))
	for address, in := range map[string]bool{
		"192.0.2.1:1": true, "[::ffff:192.0.2.1]:1": true, "[2001:db8::1]:1": true, "192.0.2.16:1": false, "[2001:db8:0:1::1]:1": false,
		"127.0.0.1:1": false, "": false, "tunnel": false,
	} {
		require.Equal(t, in, comesFrom(t, r, address, "u", "d") == "", address)
	}
}

func TestMapsAreReadAsPostgreSQLReadsThem(t *testing.T) {
	maps, err := pgmoor.ParseIdent(strings.NewReader(`# map system role
m  CN1 app
m  "a name" reader # a comment
m  /^(.*)@example\.com$ \1
ops /^spiffe://example/ all
`))
	require.NoError(t, err)
	for _, c := range []struct {
		m, name, user string
		ok            bool
	}{
		{"m", "CN1", "app", true},
		{"m", "CN1", "CN1", false},
		{"m", "a name", "reader", true},
		{"m", "alice@example.com", "alice", true},
		{"m", "alice@example.com", "bob", false},
		{"m", "alice@example.org", "alice", false},
		{"ops", "spiffe://example/x", "anyone", true},
		{"ops", "x", "anyone", false},
	} {
		require.Equal(t, c.ok, maps[c.m](c.name, c.user), fmt.Sprint(c))
	}
	for text, says := range map[string]string{
		"m x":             "line 1: missing entry",
		"\nm /( x":        "line 2: regular expression",
		"m /^x$ \\1":      "no subexpressions",
		"m x +admins":     "not supported",
		"m,n x y":         "multiple values",
		"include other":   "missing entry",
		"include other x": "other files are not supported",
	} {
		_, err := pgmoor.ParseIdent(strings.NewReader(text))
		require.ErrorContains(t, err, says, text)
	}
}

func FuzzParseHBA(f *testing.F) {
	for _, l := range hbaLines {
		f.Add(l.line)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := pgmoor.ParseHBA(strings.NewReader(text), standard)
		if err != nil {
			return
		}
		if _, err := pgmoor.HBA(rules...); err != nil {
			t.Fatalf("%q: %v", text, errors.Unwrap(err))
		}
	})
}
