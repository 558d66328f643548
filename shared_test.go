package pgmoor_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// This file is about what sessions that share a server connection's statements must not have of each other: regressions of an attack.

// TestANameInOtherLettersIsNobodyElses has names that fold, are encoded or are cut in other ways than those of ASCII.
func TestANameInOtherLettersIsNobodyElses(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		t.Run("sql", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			a, b := over(t, p), over(t, p)
			everywhere(func() { a.ok("PREPARE É AS SELECT 'secret'"); a.ok("DEALLOCATE É") })
			a.ok("PREPARE É AS SELECT 'secret'")
			everywhere(func() { a.ok("EXECUTE É") })
			everywhere(func() { require.Equal(t, "26000", b.query(`EXECUTE "É"`).code()) })
			everywhere(func() { require.Equal(t, "26000", again(b, "É").code()) })
		})
		t.Run("both", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			a := over(t, p)
			a.ok("PREPARE É AS SELECT 'upper'", "PREPARE é AS SELECT 'lower'")
			everywhere(func() {
				require.Equal(t, "upper", a.ok("EXECUTE É"))
				require.Equal(t, "lower", a.ok("EXECUTE é"))
			})
		})
		t.Run("encoding", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			a, b := over(t, p), over(t, p)
			a.ok("SET client_encoding = 'LATIN1'")
			require.Nil(t, prepares(a, "\xe9", "SELECT 'secret'").err)
			everywhere(func() { require.Nil(t, again(a, "\xe9").err) })
			everywhere(func() { require.Equal(t, "26000", again(b, "é").code()) })
			require.Nil(t, prepares(b, "é", "SELECT 'mine'").err)
			everywhere(func() { require.Equal(t, []string{"mine"}, again(b, "é").rows) })
		})
		t.Run("long", func(t *testing.T) {
			p, _ := carrying(t, version, 0)
			a := over(t, p)
			long := "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgg" // 62
			a.ok("PREPARE " + long + "éx AS SELECT 1")
			everywhere(func() { a.ok("EXECUTE " + long + "éy"); require.Nil(t, again(a, long).err) })
		})
	})
}

// TestATemporaryTableIsFoundByASharedStatement has a session hide the table of a statement that was prepared for another one.
func TestATemporaryTableIsFoundByASharedStatement(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, direct := carrying(t, version, 0)
		direct.ok("DROP TABLE IF EXISTS shadowed; CREATE TABLE shadowed AS SELECT 'public'::text AS x; GRANT ALL ON shadowed TO public")
		c, other := over(t, p), over(t, p)
		const text = "SELECT x FROM shadowed"
		everywhere(func() { other.ok("CREATE TEMP TABLE warm (i int)", "DROP TABLE warm") })
		require.Nil(t, prepares(other, "o", text).err)
		everywhere(func() { require.Equal(t, []string{"public"}, again(other, "o").rows) })
		c.ok("CREATE TEMP TABLE shadowed AS SELECT 'temp'::text AS x")
		require.Nil(t, prepares(c, "s", text).err)
		require.Equal(t, []string{"temp"}, again(c, "s").rows)
	})
}

// TestTheOrderOfParametersWithOneMeaningCounts has two names of one setting in the startup packet.
func TestTheOrderOfParametersWithOneMeaningCounts(t *testing.T) {
	cluster := pgtest.Shared(t, 18)
	p := startProxy(t, trusting(cluster))
	login := func(addr, params string) *client {
		c := newClient(t, dialTCP(t, addr))
		body := "\x00\x03\x00\x00user\x00app\x00database\x00app\x00" + strings.ReplaceAll(params, ",", "\x00") + "\x00\x00"
		n := len(body) + 4
		_, err := c.conn.Write(append([]byte{0, 0, byte(n >> 8), byte(n)}, body...))
		require.NoError(t, err)
		require.Nil(t, c.reply().err)
		return c
	}
	for _, params := range []string{"work_mem,5MB,sort_mem,8MB", "sort_mem,8MB,work_mem,5MB"} {
		require.Equal(t, login(cluster.Addr(), params).ok("SHOW work_mem"), login(p.Addr().String(), params).ok("SHOW work_mem"), params)
	}
}
