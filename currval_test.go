package pgmoor_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// othersFirst is the first value that other clients get; those of the client under test are smaller.
const othersFirst = 1_000_000

// foreignPool starts a proxy with n connections that are lent in turn, and returns a function by which another client gets a
// value on each of them.
func foreignPool(t *testing.T, version, n int, configure func(pgmoor.Config) pgmoor.Config) (*pgmoor.Proxy, func()) {
	t.Helper()
	cluster := pgtest.Shared(t, version)
	cluster.Exec(t, `DROP TABLE IF EXISTS mine, others; DROP SEQUENCE IF EXISTS others_seq; CREATE TABLE mine (id serial, x int); ALTER SEQUENCE mine_id_seq RESTART 2;
		CREATE SEQUENCE others_seq START 1000000; CREATE TABLE others (id bigint DEFAULT nextval('others_seq'), x int);
		CREATE OR REPLACE FUNCTION insert_mine() RETURNS int LANGUAGE sql AS 'INSERT INTO mine (x) VALUES (1); SELECT 1';
		GRANT ALL ON mine, others, mine_id_seq, others_seq TO app`)
	cfg := trusting(cluster)
	cfg.MaxConnections, cfg.Logger = n, quiet
	cfg = configure(cfg)
	p := startProxy(t, cfg)
	openServers(t, p, "app", n)
	other := over(t, p)
	return p, func() {
		for range n { // setval of the other sequence, too: currval of it must not be the other's either
			other.ok("INSERT INTO others (x) VALUES (1); SELECT setval('mine_id_seq', nextval('others_seq')); SELECT setval('mine_id_seq', 1)")
			other.ok("BEGIN; INSERT INTO others (x) VALUES (1); COMMIT")
		}
	}
}

// A trip is something that is sent at once, with as many replies as it has.
type trip func(c *client) reply

func text(sql string) trip { return func(c *client) reply { return c.query(sql) } }

// batch pipelines statements without a name with one Sync.
func batch(texts ...string) trip {
	return func(c *client) reply {
		var all []pgproto3.FrontendMessage
		for _, sql := range texts {
			all = append(all, &pgproto3.Parse{Query: sql}, &pgproto3.Bind{}, &pgproto3.Describe{ObjectType: 'P'}, &pgproto3.Execute{})
		}
		c.send(append(all, &pgproto3.Sync{})...)
		return c.reply()
	}
}

// parsed prepares a statement without a name, or with one, waits, and runs it.
func parsed(name, sql string) trip {
	return func(c *client) reply {
		c.send(&pgproto3.Parse{Name: name, Query: sql}, &pgproto3.Describe{ObjectType: 'S', Name: name}, &pgproto3.Sync{})
		require.Nil(c.t, c.reply().err, sql)
		c.send(run(name)...)
		return c.reply()
	}
}

// pipeline sends requests at once, each with a transaction of its own, unless there is a block.
func pipeline(texts ...string) trip {
	return func(c *client) (last reply) {
		for _, sql := range texts {
			c.Send(&pgproto3.Query{String: sql})
		}
		require.NoError(c.t, c.Flush())
		for range texts {
			last = c.reply()
		}
		return last
	}
}

const (
	insertMine = "INSERT INTO mine (x) VALUES (1)"
	askSerial  = "SELECT currval(pg_get_serial_sequence('mine', 'id'))"
	askLast    = "SELECT lastval()"
)

// idioms are the ways in which drivers and frameworks ask for the value of the row that they have inserted. The last trip's last row is the answer.
var idioms = map[string]struct {
	trips []trip
	ends  string // the block
	sure  bool   // works at once, since it is all in what is sent first
	apart bool   // the value is asked for in a later transaction: another client may come between
}{
	"one text":                   {trips: []trip{text(insertMine + "; " + askLast)}, sure: true},
	"one text, Rails":            {trips: []trip{text(insertMine + "; " + askSerial)}, sure: true},
	"a batch, JDBC":              {trips: []trip{batch(insertMine, askSerial)}, sure: true},
	"a batch with a block":       {trips: []trip{batch("BEGIN", insertMine, "COMMIT", askLast)}, sure: true},
	"a pipeline":                 {trips: []trip{pipeline("BEGIN", insertMine, askLast)}, ends: "COMMIT", sure: true},
	"a pipeline without a block": {trips: []trip{pipeline(insertMine, askLast)}, sure: true},
	"named statements":           {trips: []trip{parsed("i", insertMine), parsed("l", askLast)}, ends: "DEALLOCATE ALL", apart: true},
	"a block, Django":            {trips: []trip{text("BEGIN"), text(insertMine), text(askSerial)}, ends: "COMMIT"},
	"a block, extended":          {trips: []trip{batch("BEGIN"), batch(insertMine), batch(askLast)}, ends: "COMMIT"},
	"a block, parsed first":      {trips: []trip{parsed("", "BEGIN"), parsed("", insertMine), parsed("", askLast)}, ends: "COMMIT"},
	"transactions, PDO":          {trips: []trip{text(insertMine), text(askLast)}, apart: true},
	"transactions, extended":     {trips: []trip{batch(insertMine), batch(askSerial)}, apart: true},
	"transactions, lib/pq":       {trips: []trip{parsed("", insertMine), parsed("", askLast)}, apart: true},
	"a function":                 {trips: []trip{text("SELECT insert_mine()"), text(askLast)}, apart: true},
	"nextval":                    {trips: []trip{text("SELECT nextval('mine_id_seq')"), batch(askLast)}, apart: true},
}

// asks does the trips of an idiom, with between in front of each that is outside of a block, and reports whether there was a value, which must be the client's
// own. What it is cannot be foretold: the sequence is everybody's.
func asks(t testing.TB, c *client, trips []trip, ends string, between func()) bool {
	t.Helper()
	status := byte('I')
	var r reply
	for _, do := range trips {
		if status == 'I' {
			between()
		}
		r = do(c)
		status = r.status
	}
	if status != 'I' || ends == "DEALLOCATE ALL" {
		c.ok(ends)
	}
	if r.err != nil {
		require.Equal(t, "55000", r.code(), r.err.Message)
		return false
	}
	v, err := strconv.Atoi(r.rows[len(r.rows)-1])
	require.NoError(t, err)
	require.Less(t, v, othersFirst)
	require.Greater(t, v, 1)
	return true
}

func TestCurrvalTellsOfNobodyElseAndSoonOfOnesOwn(t *testing.T) {
	for _, version := range versions {
		for name, idiom := range idioms {
			t.Run(fmt.Sprintf("%s/%d", name, version), func(t *testing.T) {
				p, getValues := foreignPool(t, version, 3, pgmoor.WithRotation)
				for i := range 3 {
					c := over(t, p)
					getValues()
					if got := asks(t, c, idiom.trips, idiom.ends, getValues); idiom.sure {
						require.True(t, got, "the first time")
					} else if !idiom.apart && i > 0 {
						require.True(t, got, "the first time in session %d", i)
					}
					if idiom.apart { // in vain twice: then it is known that values come from a function
						for misses := 0; p.Stats().Pinned == 0; { // which it is not as long as its connection happens to be lent to it again
							if !asks(t, c, idiom.trips, idiom.ends, getValues) {
								misses++
							}
							require.LessOrEqual(t, misses, 2)
						}
					}
					for range 5 {
						require.True(t, asks(t, c, idiom.trips, idiom.ends, getValues))
					}
					if idiom.apart {
						pinnedBy(t, p, "sequence")
						c.ok("DISCARD SEQUENCES")
					}
					pinnedBy(t, p)
					require.NoError(t, c.conn.Close())
				}
			})
		}
	}
}

// ofOwn requires that a reply holds a value of the client's own.
func ofOwn(t testing.TB, r reply) {
	t.Helper()
	require.Nil(t, r.err)
	require.NotEmpty(t, r.rows)
	v, err := strconv.Atoi(r.rows[len(r.rows)-1])
	require.NoError(t, err)
	require.Less(t, v, othersFirst)
	require.Greater(t, v, 1)
}

func onBoth(t *testing.T, f func(t *testing.T, version int)) {
	for _, version := range versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) { f(t, version) })
	}
}

func TestCurrvalIsAnsweredWhereTheValueWasGotIfNobodyWasThereSince(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := foreignPool(t, version, 3, func(cfg pgmoor.Config) pgmoor.Config { return cfg })
		c, other := over(t, p), over(t, p)
		ofOwn(t, c.query(insertMine+"; "+askLast)) // from here on it is known to ask
		c.ok("BEGIN")
		backend := c.ok("SELECT pg_backend_pid()")
		other.ok("BEGIN; INSERT INTO others (x) VALUES (1)") // on another connection, which is lent first afterwards
		c.ok(insertMine, "COMMIT")
		other.ok("COMMIT")
		for range 10 {
			other.ok("BEGIN", "SELECT 1")
			ofOwn(t, c.extended(askLast))
			require.Equal(t, backend, c.ok("SELECT pg_backend_pid()"))
			other.ok("COMMIT")
		}
		pinnedBy(t, p)
		require.Empty(t, p.Stats().PinsTotal)
	})
}

func TestWhereNothingOfOthersIsNothingIsDiscarded(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := foreignPool(t, version, 1, pgmoor.WithRotation)
		c := over(t, p)
		c.ok("CREATE TEMP TABLE fresh (i int)", "DROP TABLE fresh", "SELECT 1") // the connection is made fresh
		pinnedBy(t, p)
		c.ok(insertMine)
		for range 3 {
			ofOwn(t, c.query(askLast))
			ofOwn(t, c.extended(askSerial))
		}
		c.ok("DISCARD SEQUENCES")
		require.Equal(t, "55000", c.query(askLast).code())
	})
}

func TestAValueOfOthersThatCannotBeDiscardedIsRefused(t *testing.T) {
	for name, send := range map[string]struct {
		before, tail []string
		block        bool
	}{
		"in a failed block":    {before: []string{"BEGIN", "SELECT 1/0"}, tail: []string{"ROLLBACK; " + askLast}},
		"behind in a pipeline": {tail: []string{"BEGIN", askLast}},
	} {
		for _, version := range versions {
			t.Run(fmt.Sprintf("%s/%d", name, version), func(t *testing.T) {
				p, getValues := foreignPool(t, version, 2, pgmoor.WithRotation)
				getValues()
				c := over(t, p)
				for _, sql := range send.before {
					c.query(sql)
				}
				for _, sql := range send.tail {
					c.ask(sql)
				}
				var r reply
				for range send.tail {
					r = c.reply()
				}
				require.Equal(t, "55000", r.code())
				require.Contains(t, r.err.Message, "not yet defined in this session")
				c.ok("ROLLBACK")
				ofOwn(t, c.query(insertMine+"; "+askLast))
			})
		}
	}
}

func TestTheUnnamedStatementOutlivesWhatIsDiscarded(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, getValues := foreignPool(t, version, 1, pgmoor.WithRotation)
		getValues()
		c := over(t, p)
		c.send(&pgproto3.Parse{Query: "SELECT 17"}, &pgproto3.Sync{})
		require.Nil(t, c.reply().err)
		c.send(&pgproto3.Parse{Name: "l", Query: askLast}, &pgproto3.Bind{PreparedStatement: "l"}, &pgproto3.Execute{}, &pgproto3.Sync{})
		require.Equal(t, "55000", c.reply().code())
		c.send(run("")...)
		require.Equal(t, []string{"17"}, c.reply().rows)
		pinnedBy(t, p, "sequence")
		c.ok(insertMine)
		c.send(run("l")...)
		ofOwn(t, c.reply())
	})
}

func TestSharedSequencesAreNotGuarded(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, getValues := foreignPool(t, version, 1, func(cfg pgmoor.Config) pgmoor.Config {
			cfg.Pinning = always(pgmoor.Decision{Share: pgmoor.EffectSequence})
			return cfg
		})
		getValues()
		c := over(t, p)
		c.ok("SELECT nextval('mine_id_seq')")
		ofOwn(t, c.query(askLast))
		getValues()
		require.Nil(t, c.query(askLast).err)
		pinnedBy(t, p)
	})
}

func TestFunctionsThatAskAreGuardedWhereTheyAreListed(t *testing.T) {
	for name, configure := range map[string]func(pgmoor.Config) pgmoor.Config{
		"listed": func(cfg pgmoor.Config) pgmoor.Config {
			cfg.Verify, cfg.VerifyFunctions = pgmoor.VerifyListed, []string{"last_mine"}
			return pgmoor.WithRotation(cfg)
		},
		"always": func(cfg pgmoor.Config) pgmoor.Config {
			cfg.Verify = pgmoor.VerifyAlways
			return pgmoor.WithRotation(cfg)
		},
	} {
		for _, version := range versions {
			t.Run(fmt.Sprintf("%s/%d", name, version), func(t *testing.T) {
				pgtest.Shared(t, version).Exec(t, "CREATE OR REPLACE FUNCTION last_mine() RETURNS bigint LANGUAGE sql AS 'SELECT lastval()'")
				p, getValues := foreignPool(t, version, 2, configure)
				getValues()
				c := over(t, p)
				require.Equal(t, "55000", c.query("SELECT last_mine()").code())
				getValues()
				require.Equal(t, "55000", c.extended("SELECT last_mine()").code())
				getValues()
				ofOwn(t, c.query(insertMine+"; SELECT last_mine()"))
			})
		}
	}
}

func TestLargeTextsMeetNoValueOfOthers(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, getValues := foreignPool(t, version, 2, pgmoor.WithRotation)
		getValues()
		c := over(t, p)
		padding := "/*" + strings.Repeat("x", 100<<10) + "*/ "
		require.Equal(t, "55000", c.query(padding+askLast).code())
		ofOwn(t, c.query(padding+insertMine+"; "+askLast))
		getValues()
		require.Equal(t, "55000", over(t, p).extended(padding+askSerial).code())
	})
}

// TestManyClientsAskForTheirOwnValues has clients insert and ask at random: what they are told is always what they have inserted last, or
// 55000, and that not often.
func TestManyClientsAskForTheirOwnValues(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		p, _ := foreignPool(t, version, 3, pgmoor.WithRotation)
		var wg sync.WaitGroup
		for i := range 8 {
			c := over(t, p)
			wg.Go(func() { askAtRandom(t, c, rand.New(rand.NewPCG(7, uint64(i)))) })
		}
		wg.Wait()
	})
}

func askAtRandom(t *testing.T, c *client, r *rand.Rand) {
	last, missed := "", 0
	insert := insertMine + " RETURNING id"
	for range 300 {
		var got reply
		switch r.IntN(6) {
		case 0:
			last = c.ok(insert)
			continue
		case 1:
			last = c.extended(insert).rows[0]
			continue
		case 2:
			c.ok("BEGIN")
			last = c.ok(insert)
			got = c.query(askSerial)
			c.ok("COMMIT")
		case 3:
			c.ok("SELECT 1")
			continue
		case 4:
			got = c.extended(askLast)
		default:
			got = c.query(askSerial)
		}
		if got.err != nil {
			assert.Equal(t, "55000", got.code())
			missed++
		} else {
			assert.Equal(t, last, got.rows[0])
		}
	}
	assert.Less(t, missed, 10)
	assert.NoError(t, c.conn.Close()) // a pinned one makes room
}
