package pgmoor_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// TestCVE_2015_4054_EveryMessageInEveryStateOfALogin crashed PgBouncer: messages in an order that cannot be.
func TestCVE_2015_4054_EveryMessageInEveryStateOfALogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		message := func(typ byte, body string) []byte {
			return append(wire.AppendHeader(nil, typ, len(body)), body...)
		}
		r := newRig(t, pgmoor.Config{Secrets: someSecrets(t)}, new(fake))
		l := r.listenInMemory(t)
		first := "SCRAM-SHA-256\x00\x00\x00\x00\x1cn,,n=,r=abcdefghijklmnopqrst"
		asked := packet(version30, "user\x00clear\x00\x00")
		for name, before := range map[string][]byte{
			"the startup packet is sent": asked, "SCRAM has begun": append(bytes.Clone(asked), message('p', first)...),
		} {
			for typ := range 256 {
				for _, body := range []string{"", "\x00", "x\x00\x00\x00\x00\x00", first} {
					if typ == 'p' && body == first {
						continue
					}
					said := exchange(t, l, append(bytes.Clone(before), message(byte(typ), body)...))
					require.NotContains(t, said, string(wire.AppendReady(nil, 'I')), "%q %q when %s", typ, body, name)
					require.NotContains(t, said, "R\x00\x00\x00\x08\x00\x00\x00\x00", "%q %q when %s", typ, body, name)
				}
			}
		}
		require.Zero(t, r.server.Accepted())
		r.connect(t, "clear").ok("SELECT 1")
	})
}

// TestCVE_2026_6479_EncryptionIsAskedForWithoutEnd made PostgreSQL call itself for each request.
func TestCVE_2026_6479_EncryptionIsAskedForWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, open(), new(fake))
		l := r.listenInMemory(t)
		for _, pair := range [][]byte{packet(sslRequest, ""), packet(gssRequest, ""), append(packet(sslRequest, ""), packet(gssRequest, "")...)} {
			said := exchange(t, l, bytes.Repeat(pair, 100))
			require.Equal(t, "08P01", refusal(t, strings.TrimLeft(said, "N")).Code)
			require.LessOrEqual(t, len(said)-len(strings.TrimLeft(said, "N")), 2)
		}
		r.connect(t, "u").ok("SELECT 1")
	})
}

// TestCVE_2026_6667_NobodyEndsOthersByAStatement has what PgBouncer's console did for users that may only look: a proxy has no console, and
// such words are the server's, whatever the database is called.
func TestCVE_2026_6667_NobodyEndsOthersByAStatement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard []string
		server := &fake{sent: func(_ uint32, sql string) { heard = append(heard, sql) }}
		r := newRig(t, open(), server)
		stays := r.connect(t, "u")
		words := []string{"KILL u", "KILL_CLIENT 1", "PAUSE", "SUSPEND", "DISABLE u", "RECONNECT", "RELOAD", "SHUTDOWN", "SET max_client_conn = 0", "SHOW CLIENTS"}
		for _, database := range []string{"pgbouncer", "pgmoor", "u"} {
			c := r.connect(t, "u", "database", database)
			for _, word := range words {
				c.query(word)
			}
		}
		stays.ok("SELECT 1")
		for _, word := range words {
			require.Contains(t, heard, word)
		}
		require.False(t, r.Stats().Paused)
		require.Equal(t, 4, r.Stats().Clients)
	})
}

// TestTheTableOfCVEsIsTrue finds each test that SECURITY.md names.
func TestTheTableOfCVEsIsTrue(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	var all strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		all.Write(text)
	}
	table, err := os.ReadFile("SECURITY.md")
	require.NoError(t, err)
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(table), -1)
	require.NotEmpty(t, named)
	for _, n := range named {
		require.Contains(t, all.String(), "func "+n[1]+"(t *testing.T)")
	}
}
