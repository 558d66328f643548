package pgmoor_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// noChannels refuses every LISTEN and says which.
var noChannels = deciding(func(st *pgmoor.Statement) pgmoor.Decision {
	if st.Effects&pgmoor.EffectListen == 0 {
		return pgmoor.Decision{}
	}
	return pgmoor.Decision{Refuse: &pgmoor.Error{Code: "42501", Message: "not here: " + st.Digest(), Detail: "It was looked at.", Hint: "Ask."}}
})

// requireRefused requires that a reply is the refusal of a statement, behind what came before that.
func requireRefused(t testing.TB, r reply, digest string, status byte) {
	t.Helper()
	require.NotNil(t, r.err)
	require.Equal(t, 1, r.errs)
	require.Equal(t, []string{"ERROR", "ERROR", "42501", "not here: " + digest, "It was looked at.", "Ask."},
		[]string{r.err.Severity, r.err.SeverityUnlocalized, r.err.Code, r.err.Message, r.err.Detail, r.err.Hint})
	require.Equal(t, string(status), string(r.status))
}

// refusals are the ways in which a statement can be refused: what is sent, and the digest that the policy saw.
var refusals = map[string]struct {
	send   []pgproto3.FrontendMessage
	digest string
}{
	"simple": {[]pgproto3.FrontendMessage{&pgproto3.Query{String: "LISTEN a"}}, "listen a"},
	"one of several statements": {
		[]pgproto3.FrontendMessage{&pgproto3.Query{String: "CREATE TABLE refused (i int); LISTEN a; SELECT 1"}},
		"create table refused (i int); listen a; select $1",
	},
	"Parse": {[]pgproto3.FrontendMessage{&pgproto3.Parse{Query: "LISTEN a"}, &pgproto3.Sync{}}, "listen a"},
	"all of it": {[]pgproto3.FrontendMessage{
		&pgproto3.Parse{Query: "LISTEN a"}, &pgproto3.Describe{ObjectType: 'S'}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{},
	}, "listen a"},
	"Parse with a name": {[]pgproto3.FrontendMessage{&pgproto3.Parse{Name: "refused", Query: "LISTEN a"}, &pgproto3.Sync{}}, "listen a"},
	"all of it with a name": {[]pgproto3.FrontendMessage{
		&pgproto3.Parse{Name: "refused", Query: "LISTEN a"}, &pgproto3.Bind{PreparedStatement: "refused"}, &pgproto3.Execute{}, &pgproto3.Sync{},
	}, "listen a"},
	"behind a statement of the same batch": {[]pgproto3.FrontendMessage{
		&pgproto3.Parse{Query: "CREATE TABLE refused (i int)"}, &pgproto3.Bind{}, &pgproto3.Execute{},
		&pgproto3.Parse{Query: "LISTEN a"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{},
	}, "listen a"},
	"in front of a statement of the same batch": {[]pgproto3.FrontendMessage{
		&pgproto3.Parse{Name: "refused", Query: "LISTEN a"}, &pgproto3.Parse{Query: "CREATE TABLE refused (i int)"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{},
	}, "listen a"},
}

func TestARefusedStatementIsAnError(t *testing.T) {
	for name, r := range refusals {
		for _, block := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", name, block), func(t *testing.T) {
				underPolicy(t, 1, noChannels, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
					c, other := over(t, p), over(t, p)
					status := byte('I')
					if block {
						c.ok("BEGIN", "CREATE TABLE refused_too (i int)")
						status = 'E'
					}
					c.send(r.send...)
					requireRefused(t, c.reply(), r.digest, status)
					if block {
						c.staysFailed()
					}
					require.Equal(t, "", c.ok("SELECT pg_listening_channels()"))
					require.Equal(t, "t", c.ok("SELECT to_regclass('refused') IS NULL AND to_regclass('refused_too') IS NULL"))
					c.send(&pgproto3.Bind{PreparedStatement: "refused"}, &pgproto3.Sync{})
					require.Equal(t, "26000", c.reply().code())
					require.Nil(t, c.extended("SELECT 1").err)
					c.ok("DEALLOCATE ALL")
					other.ok("SELECT 1")
					pinnedBy(t, p)
				})
			})
		}
	}
}

func TestEachOfSeveralRefusedStatementsGetsItsOwnError(t *testing.T) {
	underPolicy(t, 1, noChannels, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c := over(t, p)
		c.send(
			&pgproto3.Query{String: "SELECT 1"}, &pgproto3.Query{String: "LISTEN a"}, &pgproto3.Query{String: "SELECT 2"},
			&pgproto3.Parse{Query: "LISTEN b"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Parse{Query: "LISTEN c"}, &pgproto3.Sync{},
			&pgproto3.Parse{Name: "d", Query: "LISTEN d"}, &pgproto3.Sync{},
			&pgproto3.Parse{Query: "SELECT 3"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Query{String: "LISTEN e"}, &pgproto3.Sync{},
			&pgproto3.Query{String: "BEGIN"}, &pgproto3.Query{String: "LISTEN f"}, &pgproto3.Query{String: "SELECT 4"}, &pgproto3.Query{String: "ROLLBACK"},
			&pgproto3.Query{String: "SELECT 5"},
		)
		require.Equal(t, []string{"1"}, c.reply().rows)
		requireRefused(t, c.reply(), "listen a", 'I')
		require.Equal(t, []string{"2"}, c.reply().rows)
		requireRefused(t, c.reply(), "listen b", 'I')
		requireRefused(t, c.reply(), "listen d", 'I')
		r := c.reply()
		require.Equal(t, []string{"3"}, r.rows)
		requireRefused(t, r, "listen e", 'I')
		require.Nil(t, c.reply().err) // Sync
		require.Equal(t, []string{"BEGIN"}, c.reply().tags)
		requireRefused(t, c.reply(), "listen f", 'E')
		require.Equal(t, "25P02", c.reply().code())
		require.Equal(t, []string{"ROLLBACK"}, c.reply().tags)
		require.Equal(t, []string{"5"}, c.reply().rows)
		c.ok("DEALLOCATE ALL")
		pinnedBy(t, p)
	})
}

func TestARefusalIsToldUpToAThousandBytesOfEachText(t *testing.T) {
	for _, size := range []int{0, 1, 200, 3000, 15000, 17000, 40000} {
		message := strings.Repeat("m", size)
		policy := always(pgmoor.Decision{Refuse: &pgmoor.Error{Code: "P0001", Message: message, Detail: message, Hint: "'\"\\Ünï"}})
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			underPolicy(t, 1, policy, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
				c := over(t, p)
				for _, r := range []reply{c.query("LISTEN a"), c.extended("LISTEN a"), c.query("BEGIN"), c.query("LISTEN a"), c.query("ROLLBACK")} {
					if r.err != nil {
						require.Equal(t, "P0001", r.code())
						require.Equal(t, message[:min(size, 1000)], r.err.Message)
						require.Equal(t, message[:min(size, 1000)], r.err.Detail)
						require.Equal(t, "'\"\\Ünï", r.err.Hint)
					}
				}
				c.ok("SELECT 1")
			})
		})
	}
}

func TestARefusalDoesNotDependOnTheSessionsSettings(t *testing.T) {
	underPolicy(t, 1, noChannels, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		for _, set := range []string{
			"SET standard_conforming_strings = off", "SET client_encoding = 'LATIN1'", "SET client_encoding = 'SJIS'", "SET client_min_messages = 'error'",
			"SET statement_timeout = '1h'", "SET log_error_verbosity = 'verbose'", "SET exit_on_error = off",
		} {
			c := overAs(t, p, "postgres")
			c.ok(set)
			if r := c.query("LISTEN a"); strings.Contains(set, "SJIS") { // such texts are not read
				require.Nil(t, r.err)
			} else {
				requireRefused(t, r, "listen a", 'I')
			}
			require.NoError(t, c.conn.Close())
		}
	})
}

func TestRefusingALargeTextEndsTheSession(t *testing.T) {
	policy := deciding(func(st *pgmoor.Statement) pgmoor.Decision {
		if st.Effects&pgmoor.EffectSequence == 0 {
			return pgmoor.Decision{}
		}
		return pgmoor.Decision{Refuse: &pgmoor.Error{Code: "42501", Message: "no sequences"}}
	})
	for _, size := range []int{16 << 10, 17 << 10, 100 << 10} {
		sql := "SELECT nextval('refused_seq') /*" + strings.Repeat("x", size) + "*/"
		for name, send := range map[string][]pgproto3.FrontendMessage{
			"simple":  {&pgproto3.Query{String: sql}},
			"unnamed": append([]pgproto3.FrontendMessage{&pgproto3.Parse{Query: sql}}, run("")...),
			"named":   append([]pgproto3.FrontendMessage{&pgproto3.Parse{Name: "a_name", Query: sql}}, run("a_name")...),
			"in a block": {
				&pgproto3.Query{String: "BEGIN"}, &pgproto3.Query{String: sql}, &pgproto3.Query{String: "COMMIT"},
			},
		} {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				underPolicy(t, 2, policy, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
					cluster.Exec(t, "DROP SEQUENCE IF EXISTS refused_seq; CREATE SEQUENCE refused_seq; GRANT ALL ON SEQUENCE refused_seq TO app")
					c, other := over(t, p), over(t, p)
					c.send(send...)
					var r reply
					for r = c.reply(); r.status != 0; r = c.reply() {
						require.Empty(t, r.rows)
					}
					require.Contains(t, []string{"", "42501"}, r.code()) // it may come too late to say so
					other.ok("SELECT 1")
					require.Eventually(t, func() bool { return p.Stats().Clients == 1 }, patience, time.Millisecond)
					require.Equal(t, "f", cluster.Exec(t, "SELECT is_called FROM refused_seq")[0][0], "it was run")
				})
			})
		}
	}
}
