package pgmoor_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

var leakTime = flag.Duration("leak", 3*time.Second, "how long the leak test runs on each version")

// TestNothingLeaksBetweenClients has clients set, lock, create and listen at random on a pool of two connections, and compares
// what each of them sees with a model of a session of its own.
func TestNothingLeaksBetweenClients(t *testing.T) {
	seed := *randomSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	for _, version := range versions {
		t.Run(fmt.Sprint("PostgreSQL", version), func(t *testing.T) {
			t.Logf("seed %d: repeat with -seed %d -leak %v", seed, seed, *leakTime)
			cluster := pgtest.Shared(t, version)
			cluster.Exec(t, `DO $$ BEGIN CREATE ROLE leak_a; CREATE ROLE leak_b; EXCEPTION WHEN duplicate_object THEN END $$;
				CREATE SEQUENCE IF NOT EXISTS leak_seq; GRANT ALL ON SEQUENCE leak_seq TO leak_a, leak_b`)
			cfg := pgmoor.WithRotation(trusting(cluster))
			cfg.MaxConnections, cfg.UnpinInterval, cfg.Logger = 2, -1, quiet
			leaks{proxy: startProxy(t, cfg), seed: seed, until: time.Now().Add(*leakTime)}.run(t)
		})
	}
}

// leaks is one run of the leak test.
type leaks struct {
	proxy *pgmoor.Proxy
	seed  uint64
	until time.Time
}

const leakClients = 8

func (l leaks) run(t *testing.T) {
	pins := make(chan struct{}, 1) // whoever has the token may keep a connection; the other is for all others
	var wg sync.WaitGroup
	var steps [leakClients]int
	for i := range leakClients {
		wg.Go(func() { steps[i] = l.client(t, i, pins) })
	}
	wg.Wait()
	st := l.proxy.Stats()
	t.Logf("%v steps; pins %v, unpins %d, settings moved %d, verifications %d", steps, st.PinsTotal, st.Unpins, st.SettingsMoved, st.Verifications)
	if !t.Failed() {
		require.Eventually(t, func() bool { return len(l.proxy.Stats().PinnedBy) == 0 }, patience, time.Millisecond)
		require.Positive(t, st.SettingsMoved)
	}
}

// client is one client's life; it returns how many steps it took.
func (l leaks) client(t *testing.T, i int, pins chan struct{}) (steps int) {
	cfg, err := pgconn.ParseConfig("host=127.0.0.1 user=postgres dbname=app sslmode=disable")
	if !assert.NoError(t, err) {
		return 0
	}
	cfg.DialFunc = l.proxy.DialContext
	cfg.RuntimeParams = map[string]string{} // one pool for all
	ctx, cancel := context.WithTimeout(context.Background(), time.Until(l.until)+time.Minute)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if !assert.NoError(t, err) {
		return 0
	}
	defer conn.Close(ctx)
	c := &leaker{ctx: ctx, conn: conn, id: i, r: rand.New(rand.NewPCG(l.seed, uint64(i))), pins: pins}
	c.stack = []map[string]string{{}}
	for time.Now().Before(l.until) && !t.Failed() {
		if err := c.step(); !assert.NoError(t, err, "client %d, step %d, of late: %q", i, steps, c.late) {
			return steps
		}
		steps++
	}
	assert.NoError(t, c.letGo())
	return steps
}

// leaker is a client and the model of its session.
type leaker struct {
	ctx  context.Context
	conn *pgconn.PgConn
	id   int
	r    *rand.Rand
	pins chan struct{}
	late []string // the latest statements

	stack  []map[string]string // settings: of the session, and as they are inside each open savepoint; the last counts
	broken bool                // the transaction has failed
	token  bool
	locked bool
	temp   bool
	value  string // what it got of a sequence last
	fresh  bool   // in the transaction block that is open
}

// leakListens is in a map of settings if the session listens, or will when the transaction is committed.
const leakListens = "LISTEN"

// leakValues are the settings that are played with, with some of their values and the one that RESET returns to.
var leakValues = map[string][]string{
	"work_mem":                    {"4MB", "1MB", "77kB", "2GB"},
	"search_path":                 {`"$user", public`, "pg_catalog", `"Odd ""Name""", public`, ""},
	"TimeZone":                    {"UTC", "Asia/Tokyo", "<-08>+08"},
	"application_name":            {"", "one", "it's", `back\slash`},
	"standard_conforming_strings": {"on", "off"},
	"client_min_messages":         {"notice", "error", "debug1"},
	"app.tenant":                  {"", "1", "Ünïcode", "it's"},
	"role":                        {"none", "leak_a", "leak_b"},
	"statement_timeout":           {"0", "5min"},
}

func (c *leaker) exec(sql string) ([][]string, error) {
	if c.late = append(c.late, sql[:min(len(sql), 60)]); len(c.late) > 20 {
		c.late = c.late[1:]
	}
	var rows [][]string
	if strings.Count(sql, ";") == 0 && c.r.IntN(3) == 0 { // by the extended protocol
		res := c.conn.ExecParams(c.ctx, sql, nil, nil, nil, nil).Read()
		return texts(res.Rows), res.Err
	}
	results, err := c.conn.Exec(c.ctx, sql).ReadAll()
	for _, res := range results {
		rows = append(rows, texts(res.Rows)...)
	}
	return rows, err
}

func texts(rows [][][]byte) (out [][]string) {
	for _, r := range rows {
		var line []string
		for _, f := range r {
			line = append(line, string(f))
		}
		out = append(out, line)
	}
	return out
}

// expect runs sql, which must succeed, or fail where the transaction is broken.
func (c *leaker) expect(sql string) (ok bool, err error) {
	_, err = c.exec(sql)
	if !c.broken {
		return err == nil, err
	}
	if err == nil {
		return false, fmt.Errorf("%s worked in a failed transaction", sql)
	}
	return false, nil
}

func (c *leaker) now() map[string]string { return c.stack[len(c.stack)-1] }

func (c *leaker) inBlock() bool { return len(c.stack) > 1 }

// step does something at random and checks something at random.
func (c *leaker) step() error {
	var err error
	switch n := c.r.IntN(23); {
	case n > 19:
		err = c.sequence()
	case n < 6:
		err = c.set()
	case n < 8:
		err = c.block()
	case n < 10:
		err = c.savepoint()
	case n == 10:
		err = c.fail()
	case n == 11:
		err = c.state()
	case n == 12 && !c.inBlock():
		err = c.resetAll()
	case n == 13:
		err = c.listens()
	default:
		err = c.check()
	}
	return err
}

func (c *leaker) set() error {
	names := slices.Sorted(maps.Keys(leakValues))
	name := names[c.r.IntN(len(names))]
	value := leakValues[name][c.r.IntN(len(leakValues[name]))]
	lit := quoteLiteral(value)
	var sql string
	switch {
	case c.r.IntN(6) == 0 && name != "app.tenant":
		sql, value = "RESET "+name, ""
	case c.r.IntN(5) == 0:
		sql = fmt.Sprintf("SELECT set_config('%s', %s, true)", name, lit) // ends with the transaction
		if c.inBlock() {
			return nil // not modelled
		}
		_, err := c.expect(sql)
		return err
	case name == "search_path" || c.r.IntN(2) == 0:
		sql = fmt.Sprintf("SELECT set_config('%s', %s, false)", name, lit)
	default:
		sql = fmt.Sprintf("SET %s TO %s", name, lit)
	}
	ok, err := c.expect(sql)
	if !ok || err != nil {
		return err
	}
	if strings.HasPrefix(sql, "RESET") {
		delete(c.now(), name)
	} else {
		c.now()[name] = value
	}
	return nil
}

// quoteLiteral quotes a string, whatever standard_conforming_strings is.
func quoteLiteral(s string) string {
	return "E'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}

// block begins or ends a transaction block.
func (c *leaker) block() error {
	if !c.inBlock() {
		if _, err := c.exec("BEGIN"); err != nil {
			return err
		}
		c.stack, c.fresh = append(c.stack, maps.Clone(c.now())), false
		return nil
	}
	c.fresh = false
	commit := c.r.IntN(3) > 0
	if _, err := c.exec(map[bool]string{true: "COMMIT", false: "ROLLBACK"}[commit]); err != nil {
		return err
	}
	if commit && !c.broken {
		c.stack[0] = c.now()
	}
	c.stack, c.broken = c.stack[:1], false
	return nil
}

// savepoint makes one, or rolls back to it.
func (c *leaker) savepoint() error {
	switch {
	case !c.inBlock():
		return nil
	case len(c.stack) > 2 && c.r.IntN(2) == 0:
		if _, err := c.exec("ROLLBACK TO a"); err != nil {
			return err
		}
		c.stack[len(c.stack)-1] = maps.Clone(c.stack[len(c.stack)-2])
		c.broken = false
	case len(c.stack) == 2 && !c.broken:
		if _, err := c.exec("SAVEPOINT a"); err != nil {
			return err
		}
		c.stack = append(c.stack, maps.Clone(c.now()))
	}
	return nil
}

func (c *leaker) fail() error {
	if _, err := c.exec("SELECT 1/0"); err == nil {
		return fmt.Errorf("no error")
	}
	c.broken = c.inBlock()
	return nil
}

func (c *leaker) resetAll() error {
	if _, err := c.exec("RESET ALL"); err != nil {
		return err
	}
	for k := range c.now() {
		switch k {
		case "role", leakListens:
		case "app.tenant":
			c.now()[k] = ""
		default:
			delete(c.now(), k)
		}
	}
	return nil
}

// state takes, or gives up, what only one server connection can have.
func (c *leaker) state() error {
	if c.inBlock() {
		return nil
	}
	if c.token && c.r.IntN(2) == 0 {
		return c.letGo()
	}
	if !c.token {
		select {
		case c.pins <- struct{}{}:
			c.token = true
		default:
			return nil
		}
	}
	var err error
	switch c.r.IntN(2) {
	case 0:
		_, err = c.exec(fmt.Sprintf("SELECT pg_advisory_lock(%d)", c.id))
		c.locked = true
	case 1:
		_, err = c.exec(fmt.Sprintf("RESET ROLE; SELECT set_config('search_path', 'public', false); DROP TABLE IF EXISTS pg_temp.leak; CREATE TEMP TABLE leak AS SELECT %d AS id", c.id))
		c.now()["search_path"] = "public"
		delete(c.now(), "role")
		c.temp = true
	}
	return err
}

// listens listens to a channel, or no longer.
func (c *leaker) listens() error {
	sql := []string{"LISTEN leak", "UNLISTEN leak", "UNLISTEN *"}[c.r.IntN(3)]
	if ok, err := c.expect(sql); !ok || err != nil {
		return err
	}
	if delete(c.now(), leakListens); sql == "LISTEN leak" {
		c.now()[leakListens] = "t"
	}
	return nil
}

// letGo gives up whatever keeps a connection.
func (c *leaker) letGo() error {
	if c.inBlock() {
		if _, err := c.exec("ROLLBACK"); err != nil {
			return err
		}
		c.stack, c.broken = c.stack[:1], false
	}
	if !c.token {
		return nil
	}
	sql := "SELECT pg_advisory_unlock_all(); UNLISTEN *; RESET ROLE; DROP TABLE IF EXISTS pg_temp.leak"
	if c.r.IntN(3) == 0 {
		sql = "DISCARD ALL"
		_, had := c.now()["app.tenant"]
		c.stack[0] = map[string]string{}
		if had {
			c.stack[0]["app.tenant"] = ""
		}
	}
	if _, err := c.exec(sql); err != nil {
		return err
	}
	if _, err := c.exec("DISCARD SEQUENCES"); err != nil {
		return err
	}
	delete(c.now(), "role")
	delete(c.now(), leakListens)
	c.locked, c.temp, c.token, c.value = false, false, false, ""
	<-c.pins
	return nil
}

// sequence gets a value or asks for the last one. Asking for one of an earlier transaction may pin.
func (c *leaker) sequence() error {
	const get, ask = "SELECT pg_catalog.nextval('public.leak_seq')", "SELECT pg_catalog.lastval()"
	sql := get
	switch n := c.r.IntN(3); {
	case n == 0:
		sql += "; " + ask
	case n == 1 && (c.token || c.fresh):
		sql = ask
	}
	rows, err := c.exec(sql)
	var pg *pgconn.PgError
	switch {
	case c.broken:
		return nil
	case sql == ask && errors.As(err, &pg) && pg.Code == "55000":
		c.broken = c.inBlock()
		return nil
	case err != nil:
		return err
	case sql != ask:
		c.value, c.fresh = rows[0][0], c.inBlock()
	}
	if got := rows[len(rows)-1][0]; got != c.value {
		return fmt.Errorf("the last value is %s and should be %q", got, c.value)
	}
	return nil
}

// check compares the session with the model.
func (c *leaker) check() error {
	if c.broken {
		_, err := c.expect("SELECT 1")
		return err
	}
	names := slices.Sorted(maps.Keys(leakValues))
	sql := "SELECT pg_catalog.to_regclass('pg_temp.leak') IS NOT NULL, (SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid() AND objid = " +
		fmt.Sprint(c.id) + ") > 0, (SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid() AND objid <> " + fmt.Sprint(c.id) +
		"), EXISTS (SELECT 1 FROM pg_catalog.pg_listening_channels())"
	for _, n := range names {
		sql += fmt.Sprintf(", pg_catalog.current_setting('%s', true)", n)
	}
	rows, err := c.exec(sql)
	if err != nil {
		return err
	}
	want := []string{letter(c.temp), letter(c.locked), "0", letter(c.stack[0][leakListens] != "")}
	for _, n := range names {
		v, set := c.now()[n]
		if !set {
			v = leakValues[n][0]
		}
		want = append(want, v)
	}
	if len(rows) == 0 {
		return fmt.Errorf("no rows")
	}
	if !slices.Equal(rows[0], want) {
		return fmt.Errorf("the session is %q and should be %q", rows[0], want)
	}
	return nil
}

func letter(b bool) string {
	if b {
		return "t"
	}
	return "f"
}
