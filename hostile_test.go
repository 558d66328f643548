package pgmoor_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// These are clients that do what no driver does, or what goes wrong at the worst moment: nothing of theirs may reach another
// client, and nothing may be lost in silence.

// hostile runs a test against each server version, with a proxy that lends n server connections in turn.
func hostile(t *testing.T, n int, f func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster), options ...func(*pgmoor.Config)) {
	for _, version := range versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			cluster := pgtest.Shared(t, version)
			cluster.Exec(t, `GRANT TEMP ON DATABASE app TO public; GRANT ALL ON SCHEMA public TO public`)
			cluster.Exec(t, `DO $$ BEGIN CREATE ROLE hostile_owner; EXCEPTION WHEN duplicate_object THEN END $$; GRANT hostile_owner TO app`)
			cfg := pgmoor.WithRotation(trusting(cluster))
			cfg.MaxConnections, cfg.Logger = n, quiet
			for _, o := range options {
				o(&cfg)
			}
			f(t, startProxy(t, cfg), cluster)
		})
	}
}

// batchOf is a statement of the extended protocol without its Sync.
func batchOf(sql string) []pgproto3.FrontendMessage {
	return []pgproto3.FrontendMessage{&pgproto3.Parse{Query: sql}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Flush{}}
}

// until reads up to a message of type M.
func until[M pgproto3.BackendMessage](c *client) {
	c.t.Helper()
	require.NoError(c.t, c.conn.SetReadDeadline(time.Now().Add(patience)))
	for {
		m, err := c.Receive()
		require.NoError(c.t, err)
		if _, ok := m.(M); ok {
			return
		}
	}
}

// synced sends messages and a Sync, of which none may fail.
func (c *client) synced(messages ...pgproto3.FrontendMessage) reply {
	c.t.Helper()
	c.send(append(messages, &pgproto3.Sync{})...)
	r := c.reply()
	require.Nil(c.t, r.err)
	return r
}

// set requires that a client has a work_mem of its own and another has not.
func set(t *testing.T, own, other *client) {
	t.Helper()
	assert.Equal(t, "4MB", other.ok("SHOW work_mem"), "another client")
	assert.Equal(t, "77MB", own.ok("SHOW work_mem"), "the client itself")
}

func TestAFailureDoesNotUndoTheBatchBehindIt(t *testing.T) {
	hostile(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, other := over(t, p), over(t, p)
		c.send(append([]pgproto3.FrontendMessage{&pgproto3.Query{String: "SELECT pg_sleep(0.1), 1/0"}}, batchOf("SET work_mem = '77MB'")...)...)
		require.Equal(t, "22012", c.reply().code())
		until[*pgproto3.CommandComplete](c)
		c.synced()
		set(t, c, other)
	})
}

func TestAFailureDoesNotHideACursorOfTheBatchBehindIt(t *testing.T) {
	hostile(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c := over(t, p)
		c.send(append(append(batchOf("SELECT pg_sleep(0.1), 1/0"), &pgproto3.Sync{}), batchOf("DECLARE hostile CURSOR WITH HOLD FOR SELECT 1")...)...)
		require.Equal(t, "22012", c.reply().code())
		until[*pgproto3.CommandComplete](c)
		c.synced()
		pinnedBy(t, p, "holdable_cursor")
	})
}

func TestAFailureDoesNotUndoWhatWasCommittedBeforeIt(t *testing.T) {
	for name, sql := range map[string]string{"error": "SELECT 1/0", "rollback": "ROLLBACK"} {
		t.Run(name, func(t *testing.T) {
			hostile(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
				c, other := over(t, p), over(t, p)
				c.send(append([]pgproto3.FrontendMessage{&pgproto3.Query{String: "SET work_mem = '77MB'"}}, batchOf(sql)...)...)
				require.Nil(t, c.reply().err)
				if name == "error" {
					until[*pgproto3.ErrorResponse](c)
				} else {
					until[*pgproto3.CommandComplete](c)
				}
				c.send(&pgproto3.Sync{})
				c.reply()
				set(t, c, other)
			})
		})
	}
}

func TestAFailureOfTheProxysOwnIsNotTheClients(t *testing.T) {
	hostile(t, 1, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
		cluster.Exec(t, "DROP TABLE IF EXISTS hostile_gone; CREATE TABLE hostile_gone (x int); GRANT SELECT ON hostile_gone TO public")
		c, other := over(t, p), over(t, p)
		require.Nil(t, c.prepare("SELECT * FROM hostile_gone").err)
		other.ok("SELECT 1")
		cluster.Exec(t, "DROP TABLE hostile_gone")
		c.synced(append([]pgproto3.FrontendMessage{&pgproto3.Close{ObjectType: 'P'}}, batchOf("SET work_mem = '77MB'")...)...)
		set(t, c, other)
	})
}

func TestAVerificationThatFindsAPinForgetsNothing(t *testing.T) {
	hostile(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c := over(t, p)
		c.ok("SET temp_buffers = '2MB'", "SET app.tenant = '17'", "SET ROLE hostile_owner", "UNLISTEN *")
		pinnedBy(t, p, "untracked_setting")
		c.ok("RESET temp_buffers", "UNLISTEN *")
		pinnedBy(t, p)
		assert.Equal(t, "hostile_owner", c.ok("SELECT current_user"))
		assert.Equal(t, "17", c.ok("SELECT current_setting('app.tenant', true)"))
	})
}

func TestASessionAuthorizationByABoundNameEndsTheRole(t *testing.T) {
	hostile(t, 2, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
		cluster.Exec(t, `DO $$ BEGIN CREATE ROLE hostile_user; EXCEPTION WHEN duplicate_object THEN END $$; GRANT hostile_owner TO hostile_user`)
		c, other := overAs(t, p, "postgres"), overAs(t, p, "postgres")
		c.ok("SET ROLE hostile_owner")
		require.Nil(t, c.bound("SELECT set_config($1, 'hostile_user', false)", "", 0, []byte("session_authorization")).err)
		for range 3 {
			other.ok("SELECT 1")
			require.Equal(t, "hostile_user", c.ok("SELECT current_user"))
		}
	})
}

// TestARoleOfTheLoginsOwn compares with a server: no client's role may become another's, wherever it comes from.
func TestARoleOfTheLoginsOwn(t *testing.T) {
	for name, do := range map[string][]string{
		"none": {"SET ROLE NONE"}, "none, and reset all": {"SET ROLE NONE", "RESET ALL"}, "none, and reset": {"SET ROLE NONE", "RESET ROLE"},
		"reset and none": {"BEGIN; RESET ROLE; SET ROLE NONE; COMMIT"}, "none and reset all at once": {"BEGIN; SET ROLE NONE; RESET ALL; COMMIT"},
		"none under a pin":  {"SELECT pg_advisory_lock(819)", "SET ROLE NONE", "SELECT pg_advisory_unlock(819)"},
		"none before a pin": {"SET ROLE NONE", "SELECT pg_advisory_lock(819)", "SELECT pg_advisory_unlock(819)"},
		"reset":             {"RESET ROLE"}, "discard all": {"DISCARD ALL"}, "discard all under a pin": {"SELECT pg_advisory_lock(819)", "DISCARD ALL"},
		"default authorization": {"SET SESSION AUTHORIZATION DEFAULT"}, "the same authorization": {"SET SESSION AUTHORIZATION app"},
		"none, and reset authorization": {"SET ROLE NONE; RESET SESSION AUTHORIZATION"},
	} {
		t.Run(name, func(t *testing.T) {
			hostile(t, 2, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
				const options = "-c role=hostile_owner"
				direct := newClient(t, dialTCP(t, cluster.Addr()))
				require.Nil(t, direct.startup("app", "database", "app", "options", options).err)
				direct.ok(do...)
				want := direct.ok("SELECT current_user")
				c, other := overAs(t, p, "app", "options", options), overAs(t, p, "app", "options", options)
				c.ok(do...)
				pinnedBy(t, p)
				for range 3 {
					assert.Equal(t, "hostile_owner", other.ok("SELECT current_user"), "another client")
					assert.Equal(t, want, c.ok("SELECT current_user"))
				}
			})
		})
	}
}

func TestWhatAClientThatVanishedHasChangedIsCleanedUp(t *testing.T) {
	always := func(c *pgmoor.Config) { c.Verify = pgmoor.VerifyAlways }
	for name, vanish := range map[string]struct {
		sql, show string
		options   []func(*pgmoor.Config)
	}{
		"reported":     {sql: "SELECT hides.conf('TimeZone', 'Asia/Tokyo'); COMMIT; SELECT pg_sleep(1000) AS vanishes", show: "SHOW TimeZone"},
		"not reported": {sql: "SELECT hides.conf('work_mem', '77MB'); COMMIT; SELECT pg_sleep(1000) AS vanishes", show: "SHOW work_mem", options: []func(*pgmoor.Config){always}},
	} {
		t.Run(name, func(t *testing.T) {
			hostile(t, 1, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
				cluster.Exec(t, hides)
				c, other := over(t, p), over(t, p)
				want := other.ok(vanish.show)
				c.ask(vanish.sql)
				asleep(t, cluster, "vanishes")
				require.NoError(t, c.conn.Close())
				require.Equal(t, want, other.ok(vanish.show))
			}, vanish.options...)
		})
	}
}

// asleep waits until a pg_sleep with the given label runs.
func asleep(t *testing.T, cluster *pgtest.Cluster, label string) {
	t.Helper()
	require.Eventually(t, func() bool {
		return len(cluster.Exec(t, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%AS "+label+"'")) > 0
	}, patience, time.Millisecond)
}

func TestATypeNamedTextDoesNotMisleadTheProxy(t *testing.T) {
	hostile(t, 1, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
		cluster.Exec(t, "DROP SCHEMA IF EXISTS hostile CASCADE; CREATE SCHEMA hostile; CREATE DOMAIN hostile.text AS varchar(3); GRANT USAGE ON SCHEMA hostile TO public")
		c, other := over(t, p), over(t, p)
		c.ok("SET search_path = hostile, pg_catalog, public", "BEGIN; RESET work_mem; SET work_mem = '77MB'; COMMIT")
		set(t, c, other)
	})
}

func TestASeedByABoundNamePins(t *testing.T) {
	hostile(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c := over(t, p)
		require.Nil(t, c.bound("SELECT set_config($1, '0.5', false)", "", 0, []byte("Seed")).err)
		pinnedBy(t, p, "random_seed")
	})
}

func TestATextBehindAChangeOfStringsInItsBatchIsNotRead(t *testing.T) {
	hostile(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c := over(t, p)
		c.send(batchOf("SET standard_conforming_strings = off")...)
		until[*pgproto3.CommandComplete](c)
		c.synced(batchOf(`SELECT '\'', set_config($$work_mem$$, $$77MB$$, false) --'`)...)
		pinnedBy(t, p, "unclassified")
	})
}

func TestAnOlderUnnamedStatementIsNotTakenForALaterOne(t *testing.T) {
	for name, run := range map[string]func(c *client){
		"afterwards": func(c *client) {
			c.send(&pgproto3.Bind{PreparedStatement: "no such"}, &pgproto3.Parse{Query: "SELECT 1"}, &pgproto3.Sync{})
			require.NotNil(c.t, c.reply().err)
			require.Nil(c.t, c.run().err)
		},
		"in the same pipeline": func(c *client) {
			c.send(&pgproto3.Bind{PreparedStatement: "no such"}, &pgproto3.Parse{Query: "SELECT 1"}, &pgproto3.Sync{},
				&pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
			require.NotNil(c.t, c.reply().err)
			require.Nil(c.t, c.reply().err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			hostile(t, 1, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
				var got []string
				for range 2 {
					c := over(t, p)
					require.Nil(t, c.prepare("SELECT setseed(0.5)").err)
					run(c)
					require.NoError(t, c.conn.Close())
					other := over(t, p)
					got = append(got, other.ok("SELECT random()"))
					require.NoError(t, other.conn.Close())
				}
				require.NotEqual(t, got[0], got[1], "another client's random numbers are known")
			})
		})
	}
}

func TestFunctionsOfExtensionsThatKeepStatePin(t *testing.T) {
	hostile(t, 1, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
		if len(cluster.Exec(t, "SELECT 1 FROM pg_available_extensions WHERE name = 'isn'")) == 0 {
			t.Skip("isn is not installed")
		}
		cluster.Exec(t, "CREATE EXTENSION IF NOT EXISTS isn")
		c, other := over(t, p), over(t, p)
		c.ok("SELECT isn_weak(true)")
		pinnedBy(t, p, "foreign_state")
		require.NoError(t, c.conn.Close())
		require.Equal(t, "f", other.ok("SELECT isn_weak()"))
	})
}

// TestANameUsedAgainIsAnotherStatement is about statements with process ids, which the proxy prepares anew where these change.
func TestANameUsedAgainIsAnotherStatement(t *testing.T) {
	parse := func(name, sql string) *pgproto3.Parse { return &pgproto3.Parse{Name: name, Query: sql} }
	for name, again := range map[string][]pgproto3.FrontendMessage{
		"closed":            {&pgproto3.Close{ObjectType: 'S', Name: "s"}, &pgproto3.Sync{}, parse("s", "SELECT 'new', 2"), &pgproto3.Sync{}},
		"deallocated":       {&pgproto3.Query{String: "DEALLOCATE s"}, parse("s", "SELECT 'new', 2"), &pgproto3.Sync{}},
		"discarded":         {&pgproto3.Query{String: "DISCARD ALL"}, parse("s", "SELECT 'new', 2"), &pgproto3.Sync{}},
		"all are discarded": {&pgproto3.Query{String: "DEALLOCATE ALL"}, parse("s", "SELECT 'new', 2"), &pgproto3.Sync{}},
	} {
		t.Run(name, func(t *testing.T) {
			hostile(t, 3, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
				c, x := over(t, p), over(t, p)
				x.ok("BEGIN") // holds a server connection
				c.synced(parse("s", fmt.Sprintf("SELECT 'old', pg_blocking_pids(%d)", x.pid)))
				x.ok("COMMIT")
				c.send(again...)
				for range 2 {
					require.Nil(t, c.reply().err)
				}
				require.Equal(t, []string{"new"}, c.synced(&pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}).rows)
			})
		})
	}
}

func TestAStatementThatFailedIsNotPreparedInPlaceOfTheOlder(t *testing.T) {
	hostile(t, 3, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, x := over(t, p), over(t, p)
		x.ok("BEGIN")
		c.synced(&pgproto3.Parse{Name: "s", Query: "SELECT 'old'"})
		c.send(&pgproto3.Parse{Name: "s", Query: fmt.Sprintf("SELECT 'new', pg_blocking_pids(%d)", x.pid)}, &pgproto3.Sync{})
		require.Equal(t, "42P05", c.reply().code())
		x.ok("COMMIT")
		require.Equal(t, []string{"old"}, c.synced(&pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}).rows)
	})
}

func TestValuesOfAnotherUnnamedStatementAreNoProcessIDs(t *testing.T) {
	hostile(t, 3, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c, x := over(t, p), over(t, p)
		require.Nil(t, c.bound("SELECT pg_blocking_pids($1)", "", 0, fmt.Append(nil, x.pid)).err)
		r := c.bound("SELECT $1::int AS amount", "", 0, fmt.Append(nil, x.pid))
		require.Nil(t, r.err)
		require.Equal(t, []string{fmt.Sprint(x.pid)}, r.rows)
	})
}

// lostBehind requires that a session ends with its server.
func lostBehind(t *testing.T, r reply) {
	t.Helper()
	require.Equal(t, "57P01", r.code())
	require.Zero(t, r.status, "the session goes on")
}

func TestASessionEndsWithStateThatWasAcknowledged(t *testing.T) {
	for name, sql := range map[string]string{
		"lock": "SELECT pg_advisory_lock(816)", "temp": "CREATE TEMP TABLE hostile_temp (x int)",
	} {
		t.Run(name, func(t *testing.T) {
			hostile(t, 2, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
				c := over(t, p)
				c.send(&pgproto3.Query{String: sql}, &pgproto3.Query{String: "SELECT pg_sleep(1000) AS acknowledged"})
				require.Nil(t, c.reply().err)
				asleep(t, cluster, "acknowledged")
				cluster.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%AS acknowledged'")
				lostBehind(t, c.reply())
			})
		})
	}
}

func TestASessionEndsWithALockOfItsTransaction(t *testing.T) {
	for _, lock := range []string{"pg_advisory_lock", "pg_try_advisory_lock"} {
		t.Run(lock, func(t *testing.T) {
			hostile(t, 2, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
				c := over(t, p)
				c.ok("BEGIN", "SELECT "+lock+"(817)")
				cluster.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 817")
				c.ended("57P01")
			})
		})
	}
}

func TestASessionGoesOnWithoutWhatATransactionWouldHaveUndone(t *testing.T) {
	hostile(t, 2, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
		c := over(t, p)
		c.ok("BEGIN", "CREATE TEMP TABLE hostile_temp (x int)", "CREATE TABLE hostile_undone (x int)", "SELECT pg_advisory_xact_lock(818)")
		cluster.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 818")
		require.Equal(t, "40001", c.query("SELECT 1").code())
		c.ok("ROLLBACK", "SELECT 1")
	})
}

func TestASessionEndsWithALockThatWasAskedFor(t *testing.T) {
	hostile(t, 3, func(t *testing.T, p *pgmoor.Proxy, cluster *pgtest.Cluster) {
		c, blocker := over(t, p), overAs(t, p, "postgres")
		blocker.ok("BEGIN", "LOCK TABLE pg_catalog.pg_depend IN ACCESS EXCLUSIVE MODE") // which the question reads
		require.Equal(t, "t", c.ok("SELECT pg_try_advisory_lock(815)"))
		cluster.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 815")
		c.ended("57P01")
		blocker.ok("ROLLBACK")
	})
}

func TestAPinByAStatementWithAName(t *testing.T) {
	hostile(t, 2, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		for name, steps := range map[string][]func(c *client){
			"protocol": {
				func(c *client) { c.synced(&pgproto3.Parse{Name: "s", Query: "SET pgmoor.pin = on"}) },
				func(c *client) { c.synced(&pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}) },
				func(c *client) { c.synced(&pgproto3.Close{ObjectType: 'S', Name: "s"}); c.ok("UNLISTEN *") },
			},
		} {
			t.Run(name, func(t *testing.T) {
				c := over(t, p)
				for _, step := range steps {
					step(c)
				}
				pinnedBy(t, p, "requested")
				require.Equal(t, "on", c.ok("SHOW pgmoor.pin"))
			})
		}
	})
}

// A logged is a log that may be read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestATextThatCannotBeReadIsNotLogged(t *testing.T) {
	for name, do := range map[string]func(c *client){
		"strings": func(c *client) {
			c.send(&pgproto3.Query{String: "SET standard_conforming_strings = off"}, &pgproto3.Query{String: `SELECT 'it\'s topsecret here'`})
			require.Nil(c.t, c.reply().err)
			require.Nil(c.t, c.reply().err)
		},
		"encoding": func(c *client) { c.ok("SET client_encoding = 'SJIS'", "SELECT E'\x95\x5c', 'topsecret'") },
	} {
		t.Run(name, func(t *testing.T) {
			var out logged
			hostile(t, 2, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
				do(over(t, p))
				require.Eventually(t, func() bool { return len(p.Stats().PinnedBy) > 0 }, patience, time.Millisecond)
				require.NoError(t, p.Close()) // nothing is logged behind it
				require.Contains(t, out.String(), "reason=unclassified")
				require.NotContains(t, out.String(), "topsecret")
			}, func(c *pgmoor.Config) { c.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
		})
	}
}

// TestAProcessIDCostsNobodyAConnection: neither a text that calls no function, nor one of a user who may not end the session.
func TestAProcessIDCostsNobodyAConnection(t *testing.T) {
	for name, sql := range map[string]string{
		"in a string":    "SELECT 'about %d' FROM pg_stat_activity WHERE 'pg_cancel_backend' = '' LIMIT 1",
		"in a comment":   "SELECT pg_blocking_pids(%d) -- pg_cancel_backend",
		"of another one": "SELECT pg_cancel_backend(%d)",
	} {
		t.Run(name, func(t *testing.T) {
			hostile(t, 4, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
				victim, c := overAs(t, p, "postgres"), over(t, p)
				pid := victim.ok("SELECT pg_backend_pid()")
				require.Eventually(t, func() bool { st := p.Stats(); return st.Servers == st.ServersIdle }, patience, time.Millisecond)
				require.Nil(t, c.query(fmt.Sprintf(sql, victim.pid)).err)
				require.Equal(t, pid, victim.ok("SELECT pg_backend_pid()"))
			})
		})
	}
}

func TestWhatAPolicySharesOfUnknownSettingsDoesNotPin(t *testing.T) {
	hostile(t, 2, func(t *testing.T, p *pgmoor.Proxy, _ *pgtest.Cluster) {
		c := over(t, p)
		c.ok("SELECT set_config('app.' || 'x', '1', false)", "SELECT 1")
		require.Nil(t, c.bound("SELECT set_config('app.' || $1, '1', false)", "", 0, []byte("x")).err)
		c.ok("SELECT 1")
		require.Empty(t, p.Stats().PinsTotal)
	}, func(c *pgmoor.Config) { c.Pinning = always(pgmoor.Decision{Share: pgmoor.EffectUntrackedSetting}) })
}
