package pgmoor_test

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// This file is about clients that are one user to the proxy and another one, or something else, to the server.

// thisMachine is where the clients of these tests are.
var thisMachine = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func trustHere(t testing.TB) pgmoor.Authenticator {
	t.Helper()
	trust, err := pgmoor.TrustNetworks(thisMachine...)
	require.NoError(t, err)
	return trust
}

// firstStartup returns where to find a server that takes one startup packet, and where what is behind its length goes.
func firstStartup(t *testing.T) (address string, packet <-chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	got := make(chan string, 1)
	go func() {
		defer close(got)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 1024)
		n, _ := c.Read(b)
		got <- string(b[min(8, n):n])
	}()
	return l.Addr().String(), got
}

func TestReplicationTwiceIsToTheServerWhatItIsToTheRules(t *testing.T) {
	const walks, one = "replication", "d"
	for name, c := range map[string]struct {
		values  []string
		rule    string // for what the client is let in
		replica string // what the server is asked for; empty: no replication
	}{
		"off at last":     {[]string{"true", "false"}, one, ""},
		"physical":        {[]string{"database", "true"}, walks, "true"},
		"of the database": {[]string{"true", "database"}, one, "database"},
	} {
		t.Run(name, func(t *testing.T) {
			auth, err := pgmoor.HBA(pgmoor.Rule{Databases: []string{c.rule}, Networks: thisMachine, Method: trustHere(t)})
			require.NoError(t, err)
			server, packet := firstStartup(t)
			p := startProxy(t, pgmoor.Config{
				Upstream: pgmoor.Upstream{Hosts: []string{server}, SSLMode: "disable"}, Authenticator: auth, Logger: quiet,
			})
			body := "user\x00u\x00database\x00d\x00"
			for _, v := range c.values {
				body += "replication\x00" + v + "\x00"
			}
			client := dialTCP(t, p.Addr().String())
			head := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)+1))
			_, err = client.Write(append(binary.BigEndian.AppendUint32(head, 3<<16), body+"\x00"...))
			require.NoError(t, err)
			want := "user\x00u\x00database\x00d\x00"
			if c.replica != "" {
				want += "replication\x00" + c.replica + "\x00"
			}
			require.Equal(t, want+"\x00", <-packet)
		})
	}
}

func TestNamesAreCutAsTheServerCutsThem(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		short := strings.Repeat("é", 31) + "x" // 63 bytes
		cluster := pgtest.Shared(t, version)
		cluster.Exec(t, fmt.Sprintf("CREATE ROLE %q LOGIN", short))
		defer cluster.Exec(t, fmt.Sprintf("DROP ROLE %q", short))
		auth, err := pgmoor.HBA(
			pgmoor.Rule{Users: []string{short}, Networks: thisMachine},
			pgmoor.Rule{Networks: thisMachine, Method: trustHere(t)},
		)
		require.NoError(t, err)
		cfg := pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{cluster.Addr()}, SSLMode: "disable"}, Authenticator: auth, Logger: quiet}
		p := startProxy(t, cfg)
		for _, behind := range []string{"", "y", strings.Repeat("z", 100)} {
			conn, err := pgconn.Connect(t.Context(), fmt.Sprintf("host=127.0.0.1 port=%s user=%s dbname=postgres sslmode=disable", portOf(t, cluster.Addr()), short+behind))
			require.NoError(t, err, "PostgreSQL itself cuts it")
			require.NoError(t, conn.Close(t.Context()))
			_, err = pgconn.Connect(t.Context(), fmt.Sprintf("host=127.0.0.1 port=%s user=%s dbname=postgres sslmode=disable", portOf(t, p.Addr().String()), short+behind))
			requireCode(t, "28000", err)
		}
	})
}

func portOf(t testing.TB, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	return port
}

func TestVerifyFullVerifiesWhateverTheTLSConfigSays(t *testing.T) {
	cluster := pgtest.Shared(t, pgtest.Versions[0])
	cfg := trusting(cluster)
	cfg.Upstream.SSLMode, cfg.Upstream.TLSConfig, cfg.Logger = "verify-full", &tls.Config{InsecureSkipVerify: true}, quiet
	cfg.BorrowTimeout = pgmoor.NoWait
	cfg.Upstream.ConnectTimeout = 300 * time.Millisecond // for as long as which it is tried
	p := startProxy(t, cfg)
	require.Error(t, logIn(t, p.Addr().String(), "app", "", "sslmode=disable dbname=app"))
	roots := cfg
	roots.Upstream.ConnectTimeout = 0
	roots.Upstream.TLSConfig = &tls.Config{InsecureSkipVerify: true, RootCAs: cluster.CACertPool()}
	require.NoError(t, p.Update(roots))
	require.NoError(t, logIn(t, p.Addr().String(), "app", "", "sslmode=disable dbname=app"))
}
