package pgmoor_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// unset starts a session on a pool of two connections that has SET a role which was dropped since.
func unset(t *testing.T, version int, set string) (*pgmoor.Proxy, *client) {
	t.Helper()
	cluster := pgtest.Shared(t, version)
	cluster.Exec(t, "DROP ROLE IF EXISTS mend_gone; CREATE ROLE mend_gone; DROP ROLE IF EXISTS mend_other; CREATE ROLE mend_other")
	cfg := pgmoor.WithRotation(trusting(cluster))
	cfg.MaxConnections, cfg.Logger = 2, quiet
	p := startProxy(t, cfg)
	c, other := overAs(t, p, "postgres"), overAs(t, p, "postgres")
	c.ok("SET work_mem = '5MB'", set, "SELECT 1")
	other.ok("SELECT 1", "SELECT 1", "SELECT 1")
	cluster.Exec(t, "DROP ROLE mend_gone")
	return p, c
}

func TestASessionWhoseRoleWasDroppedCanMendItself(t *testing.T) {
	ways := map[string]struct {
		do   trip
		user string
		mem  string
	}{
		"RESET ROLE":                  {text("RESET ROLE"), "postgres", "5MB"},
		"RESET ROLE, extended":        {batch("/* mend */ reset role"), "postgres", "5MB"},
		"RESET ROLE, two trips":       {parsed("", "RESET ROLE"), "postgres", "5MB"},
		"SET ROLE NONE":               {text("SET ROLE NONE;"), "postgres", "5MB"},
		"SET ROLE":                    {text("SET ROLE mend_other"), "mend_other", "5MB"},
		"SET SESSION AUTHORIZATION":   {text("SET SESSION AUTHORIZATION mend_other"), "mend_other", "5MB"},
		"RESET SESSION AUTHORIZATION": {text("RESET SESSION AUTHORIZATION"), "postgres", "5MB"},
		"DISCARD ALL":                 {text("DISCARD ALL"), "postgres", "4MB"},
		"DISCARD ALL, extended":       {batch("DISCARD ALL"), "postgres", "4MB"},
	}
	for _, version := range versions {
		for _, set := range []string{"SET ROLE mend_gone", "SET SESSION AUTHORIZATION mend_gone"} {
			for name, way := range ways {
				if set != "SET ROLE mend_gone" && (name == "RESET ROLE" || way.user == "mend_other" && name == "SET ROLE" || len(name) > 10 && name[:10] == "RESET ROLE" || name == "SET ROLE NONE") {
					continue // which does not touch what is wrong
				}
				for _, tried := range []bool{false, true} {
					t.Run(fmt.Sprintf("%d/%s/%s/%v", version, set, name, tried), func(t *testing.T) {
						p, c := unset(t, version, set)
						if tried {
							for range 3 {
								require.Equal(t, "22023", c.query("SELECT 1").code())
								require.Equal(t, "22023", c.extended("SELECT 1").code())
							}
						}
						r := way.do(c)
						require.Nil(t, r.err)
						require.Len(t, r.tags, 1)
						for range 3 {
							require.Equal(t, way.user, c.ok("SELECT current_user"))
							require.Equal(t, way.mem, c.ok("SHOW work_mem"))
						}
						pinnedBy(t, p)
					})
				}
			}
		}
	}
}

func TestNothingRunsWithoutTheRoleThatWasDropped(t *testing.T) {
	for _, version := range versions {
		for name, sqls := range map[string][]string{
			"a block":              {"BEGIN; RESET ROLE; SELECT 1; COMMIT"},
			"two statements":       {"RESET ROLE; SELECT current_user"},
			"set_config":           {"SELECT set_config('role', 'none', false), current_user"},
			"RESET ALL":            {"RESET ALL"},
			"another setting":      {"SET work_mem = '7MB'"},
			"behind in a pipeline": {"SET ROLE mend_nobody", "SELECT current_user", "SELECT 2"},
		} {
			t.Run(fmt.Sprintf("%s/%d", name, version), func(t *testing.T) {
				p, c := unset(t, version, "SET ROLE mend_gone")
				for range 3 {
					for _, sql := range sqls {
						c.Send(&pgproto3.Query{String: sql})
					}
					require.NoError(t, c.Flush())
					for range sqls {
						r := c.reply()
						require.Equal(t, "22023", r.code())
						require.EqualValues(t, 'I', r.status)
						require.Empty(t, r.rows)
					}
				}
				pinnedBy(t, p)
				c.ok("RESET ROLE")
				require.Equal(t, "postgres", c.ok("SELECT current_user"))
			})
		}
	}
}

func TestWhatComesBehindAMendingRequestWaitsForIt(t *testing.T) {
	for _, version := range versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			_, c := unset(t, version, "SET ROLE mend_gone")
			require.Equal(t, "22023", c.query("SELECT 1").code())
			for range 10 {
				c.send(&pgproto3.Query{String: "SET ROLE mend_other"})
				c.send(&pgproto3.Query{String: "SELECT current_user"})
				c.send(&pgproto3.Query{String: "SELECT current_user"})
				if r := c.reply(); r.err != nil { // all of it has come at once
					require.Equal(t, "22023", r.code())
					require.Equal(t, "22023", c.reply().code())
					require.Equal(t, "22023", c.reply().code())
					continue
				}
				require.Equal(t, []string{"mend_other"}, c.reply().rows)
				require.Equal(t, []string{"mend_other"}, c.reply().rows)
			}
		})
	}
}
