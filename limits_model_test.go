package pgmoor_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// modelClient waits for the answer to asked, if that is not empty.
type modelClient struct {
	*client
	user, database string
	asked          string
	inTx           bool
}

// A model is a crowd of clients under limits within limits.
type model struct {
	*rig
	t      *testing.T
	rng    *rand.Rand
	cfg    pgmoor.Config
	all    []*modelClient
	trace  []string
	paused bool
}

func (m *model) note(f string, a ...any) { m.trace = append(m.trace, fmt.Sprintf(f, a...)) }

func (m *model) limits() pgmoor.Config {
	pick := func(n ...int) int { return n[m.rng.IntN(len(n))] }
	return pgmoor.Config{
		MaxConnections: 1 + m.rng.IntN(6), MaxConnectionsPerUser: pick(0, 1, 2, 3), MaxConnectionsPerDatabase: pick(0, 1, 2, 3),
		MaxOpening: 1 + m.rng.IntN(4), MinConnections: pick(0, 0, 1, 2), IdleTimeout: time.Duration(pick(1, 30, 300)) * time.Second,
		BorrowTimeout: 300 * time.Second,
	}
}

// step does something at random.
func (m *model) step() {
	c := m.all[m.rng.IntN(len(m.all))]
	switch k := m.rng.IntN(20); {
	case k < 12 && c.asked == "":
		q := "SELECT 1"
		switch {
		case c.inTx && m.rng.IntN(2) == 0:
			q = "COMMIT"
		case m.rng.IntN(3) == 0 && !c.inTx:
			q = "BEGIN"
		case m.rng.IntN(4) == 0:
			q = "sleep 50ms"
		}
		m.note("%s/%s %p %s", c.user, c.database, c, q)
		c.asked = q
		c.ask(q)
	case k < 14:
		d := time.Duration(m.rng.IntN(100)) * time.Millisecond
		if m.rng.IntN(8) == 0 {
			d *= 100
		}
		m.note("sleep %v", d)
		time.Sleep(d)
	case k == 14 && m.rng.IntN(4) == 0:
		m.cfg = m.limits()
		m.note("update %+v", m.cfg)
		m.change(m.t, m.cfg)
	case k == 15 && m.rng.IntN(4) == 0:
		m.note("reconnect")
		m.background(m.Reconnect)
	case k == 16 && m.rng.IntN(4) == 0:
		m.note("pause/resume")
		if m.paused {
			m.Resume()
		} else {
			m.background(m.Pause)
		}
		m.paused = !m.paused
	case k == 17 && m.rng.IntN(3) == 0: // a client leaves in the middle of whatever it does, another comes
		m.note("leave %p", c)
		c.conn.Close()
		for i := range m.all {
			if m.all[i] == c {
				m.all[i] = m.enter(c.user, c.database)
			}
		}
	case k == 18 && m.rng.IntN(3) == 0:
		m.note("down")
		m.server.setDown(true)
		time.Sleep(time.Duration(m.rng.IntN(3000)) * time.Millisecond)
		m.server.setDown(false)
	}
}

// background does what may take its time, or be undone meanwhile.
func (m *model) background(do func(context.Context) error) {
	go func() { _ = do(m.t.Context()) }()
}

func (m *model) enter(user, database string) *modelClient {
	c := &modelClient{user: user, database: database}
	m.note("enter %s/%s %p", c.user, c.database, c)
	c.client = m.connect(m.t, c.user, "database", c.database)
	return c
}

// settle waits, and requires that nobody waits who could be served.
func (m *model) settle() {
	if m.paused {
		m.note("resume")
		m.Resume()
		m.paused = false
	}
	time.Sleep(7 * time.Second)
	m.collect()
	held := map[string]int{}
	for s := range m.Sessions() {
		if in := s.Info(); in.Backend != 0 {
			held[in.User]++
			held[in.Database]++
			held[""]++
		}
	}
	room := func(name string, limit int) bool { return limit == 0 || held[name] < limit }
	for s := range m.Sessions() {
		in := s.Info()
		if in.State == pgmoor.StateWaiting && room("", m.cfg.MaxConnections) && room(in.User, m.cfg.MaxConnectionsPerUser) && room(in.Database, m.cfg.MaxConnectionsPerDatabase) {
			m.fail("stranded: %s/%s %d, held %v, %+v", in.User, in.Database, in.PID, held, m.Stats())
		}
	}
}

func (m *model) fail(f string, a ...any) {
	m.t.Helper()
	m.t.Log(strings.Join(m.trace, "\n"))
	require.Fail(m.t, fmt.Sprintf(f, a...))
}

func (m *model) take(c *modelClient) {
	got := c.reply()
	if got.err != nil || got.status == 0 {
		m.fail("%s: %v", c.asked, got.err)
	}
	c.asked = ""
	c.inTx = got.status == 'T'
}

// collect takes the answers that are there.
func (m *model) collect() {
	synctest.Wait()
	states := map[uint32]pgmoor.SessionState{}
	for s := range m.Sessions() {
		states[s.Info().PID] = s.Info().State
	}
	for _, c := range m.all {
		if c.asked == "" {
			continue
		}
		if st := states[c.pid]; st != pgmoor.StateWaiting && st != pgmoor.StateActive {
			m.take(c)
		}
	}
}

// models is how many runs TestNobodyWaitsForAConnectionThatIsFree makes. Of several thousand, one has found somebody stranded.
var models = flag.Int("models", 10, "random runs of users, databases and limits")

// At random: nobody waits who could have a connection, whatever the limits are and become.
func TestNobodyWaitsForAConnectionThatIsFree(t *testing.T) {
	for seed := range uint64(many(*models)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 9))}
				m.cfg = m.limits()
				m.rig = newRig(t, m.cfg, &fake{slow: time.Duration(m.rng.IntN(30)) * time.Millisecond})
				for i := range 9 { // keep the pools
					m.enter(fmt.Sprint("u", i/3), fmt.Sprint("d", i%3))
				}
				for range 3 + m.rng.IntN(10) {
					m.all = append(m.all, m.enter(fmt.Sprint("u", m.rng.IntN(3)), fmt.Sprint("d", m.rng.IntN(3))))
				}
				for i := range 300 {
					m.step()
					m.collect()
					if i%20 == 19 {
						m.settle()
					}
				}
			})
		})
	}
}
