package turn_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/turn"
)

// Outcomes of a message in the model server. What a message does that cannot have an outcome, it does anyway.
const (
	works byte = iota
	fails
	copies      // a Query or an Execute: one COPY FROM STDIN
	copiesTwice // a Query: two of them
	begins      // a Query: a transaction block
	suspends    // an Execute
	outcomes
)

// sent is a message on its way to the model server. What will become of it is known beforehand.
type sent struct {
	typ, outcome byte
	unnamed      bool
	number       int // of an unnamed Parse, from 1
	injected     bool
}

// said is a message of the model server.
type said struct {
	typ, arg byte
	injected bool // answers a message of the proxy's own
}

// model is PostgresMain's loop, as far as it decides which messages are answered.
type model struct {
	in      []sent
	status  byte
	skip    bool // ignore_till_sync
	ext     bool // doing_extended_query_message
	batch   bool // extended-protocol messages were read since the last Sync
	copies  int  // COPY FROM STDIN still to come, the one under way included
	unnamed int  // which unnamed statement there is, by its Parse's number; 0: none
}

// step reads one message and returns the answers. Only to be called when there is one.
func (m *model) step() (out []said) {
	msg := m.in[0]
	m.in = m.in[1:]
	if m.copies > 0 {
		return m.copyData(msg)
	}
	switch msg.typ {
	case 'P', 'B', 'D', 'E', 'C', 'H':
		m.ext = true
	case 'S':
		m.skip, m.ext = false, false
	default:
		m.ext = false
	}
	if m.skip {
		return nil
	}
	m.batch = m.batch || m.ext && msg.typ != 'H'
	switch msg.typ {
	case 'Q':
		m.unnamed = 0
		return m.query(msg)
	case 'F':
		if msg.outcome == fails {
			return m.fail(msg)
		}
		return append(out, said{typ: 'V'}, m.ready())
	case 'S':
		if msg.outcome == fails {
			out = append(out, said{typ: 'E'})
			m.abort()
		}
		z := m.ready()
		z.injected = msg.injected
		return append(out, z)
	case 'H', 'd', 'c', 'f':
		return nil
	}
	return m.extended(msg)
}

// ready is the end of every batch: of Sync, and of a Query or FunctionCall in the middle of one, which commits it.
func (m *model) ready() said {
	m.batch = false
	return said{typ: 'Z', arg: m.status}
}

func (m *model) abort() {
	if m.status == 'T' {
		m.status = 'E'
	}
}

// fail is what errors come to: in the extended protocol everything up to Sync is ignored, else ReadyForQuery follows.
func (m *model) fail(sent) []said {
	m.abort()
	if m.ext {
		m.skip = true
		return []said{{typ: 'E'}}
	}
	return []said{{typ: 'E'}, m.ready()}
}

func (m *model) query(msg sent) []said {
	switch {
	case m.status == 'E' && msg.outcome != begins:
		return m.fail(msg)
	case msg.outcome == fails:
		return m.fail(msg)
	case msg.outcome == copies, msg.outcome == copiesTwice:
		m.copies = 1 + int(msg.outcome-copies)
		return []said{{typ: 'G'}}
	case msg.outcome == begins: // or ends
		m.status = map[byte]byte{'I': 'T', 'T': 'I', 'E': 'I'}[m.status]
	}
	return []said{{typ: 'T'}, {typ: 'D'}, {typ: 'C'}, m.ready()}
}

func (m *model) extended(msg sent) []said {
	if msg.typ == 'P' && msg.unnamed {
		m.unnamed = 0 // exec_parse_message drops the old one first
	}
	if msg.outcome == fails {
		return m.fail(msg)
	}
	switch msg.typ {
	case 'P':
		if msg.unnamed {
			m.unnamed = msg.number
		}
		return []said{{typ: '1', injected: msg.injected}}
	case 'B':
		return []said{{typ: '2'}}
	case 'C':
		if msg.unnamed {
			m.unnamed = 0
		}
		return []said{{typ: '3', injected: msg.injected}}
	case 'D':
		return []said{{typ: 't'}, {typ: 'n'}}
	}
	switch msg.outcome {
	case copies:
		m.copies = 1
		return []said{{typ: 'G'}}
	case suspends:
		return []said{{typ: 'D'}, {typ: 's'}}
	}
	return []said{{typ: 'C'}}
}

// copyData reads a message where CopyGetData reads: Flush and Sync count for nothing.
func (m *model) copyData(msg sent) []said {
	switch {
	case msg.typ == 'd' && msg.outcome == fails, msg.typ == 'f':
		m.copies = 0
		return m.fail(msg)
	case msg.typ != 'c':
		return nil
	}
	m.copies--
	switch {
	case m.copies > 0:
		return []said{{typ: 'C'}, {typ: 'G'}}
	case m.ext:
		return []said{{typ: 'C'}}
	}
	return []said{{typ: 'C'}, m.ready()}
}

// settles reads all there is to read, and reports whether the server then has nothing to say and nothing half done.
func (m model) settles() bool {
	m.in = append([]sent(nil), m.in...)
	for len(m.in) > 0 {
		if len(m.step()) > 0 {
			return false
		}
	}
	return m.copies == 0 && !m.skip && !m.batch && m.status == 'I'
}

// trial drives a Turn with a client and a model server whose messages travel at their own pace.
type trial struct {
	t    *testing.T
	turn turn.Turn
	m    model
	down []said // on its way from the server
	log  []byte

	parses int // unnamed ones sent
	last   int // the one of them that the session would repeat
}

// send sends what a session sends: in a COPY that the client knows of, nothing that would end the connection.
func (tr *trial) send(s sent) {
	tr.log = append(tr.log, '>', s.typ)
	switch {
	case s.injected && s.typ == 'P':
		require.True(tr.t, tr.turn.InjectParse(true))
		tr.m.in = append(tr.m.in, s, sent{typ: 'S', injected: true})
		return
	case s.injected:
		require.True(tr.t, tr.turn.InjectClose())
	default:
		if s.typ == 'P' && s.unnamed && !tr.turn.Skipping() && !tr.turn.CopyIn() {
			tr.parses++
			s.number, tr.last = tr.parses, tr.parses
		}
		require.True(tr.t, tr.turn.Sent(s.typ, s.unnamed))
	}
	tr.m.in = append(tr.m.in, s)
	if !s.injected { // it goes out together with the message behind it
		tr.check()
	}
}

func (tr *trial) serve() {
	if len(tr.m.in) > 0 {
		tr.down = append(tr.down, tr.m.step()...)
	}
}

func (tr *trial) receive() {
	if len(tr.down) == 0 {
		return
	}
	s := tr.down[0]
	tr.down = tr.down[1:]
	tr.log = append(tr.log, '<', s.typ)
	v := tr.turn.Received(s.typ, s.arg)
	if !tr.turn.Lost() {
		require.Equal(tr.t, s.injected, v == turn.Swallow, "%s", tr.log)
	}
	tr.check()
}

// check is the property: a server connection that owes anything, or is in the middle of anything, is not released, and
// neither is one whose unnamed statement is not known.
func (tr *trial) check() {
	if !tr.turn.Releasable() {
		return
	}
	require.Empty(tr.t, tr.down, "%s", tr.log)
	require.True(tr.t, tr.m.settles(), "%s", tr.log)
	if tr.turn.Unnamed() == turn.UnnamedNone {
		require.Zero(tr.t, tr.m.unnamed, "%s", tr.log)
	} else {
		require.Equal(tr.t, tr.last, tr.m.unnamed, "%s", tr.log)
	}
}

func (tr *trial) drain() {
	for len(tr.m.in) > 0 || len(tr.down) > 0 {
		tr.serve()
		tr.receive()
	}
}

// act does what the two bytes say.
func (tr *trial) act(a, b byte) {
	const types = "QQPPBDEEEECSSHFdccf"
	switch {
	case a < 80:
		tr.serve()
	case a < 160:
		tr.receive()
	case a < 166 && !tr.turn.CopyIn() && !tr.turn.Skipping():
		if !tr.mayCopy() {
			typ := "PC"[b&1]
			if tr.turn.Open() || tr.turn.Owed() {
				typ = 'C'
			}
			tr.send(sent{typ: typ, injected: true})
			tr.send(sent{typ: 'B', outcome: b % 2})
		}
	default:
		typ := types[int(a)%len(types)]
		if tr.mayCopy() && typ != 'd' && typ != 'c' && typ != 'f' && typ != 'H' && (typ != 'S' || b&0x80 == 0) {
			typ = 'd' // else the connection would end
		}
		tr.send(sent{typ: typ, outcome: b % 16 % (2 * outcomes) % outcomes, unnamed: b&16 != 0 && (typ == 'P' || typ == 'C')})
	}
}

// mayCopy reports whether the server reads COPY data, or may when it gets to what is sent next.
func (tr *trial) mayCopy() bool {
	if tr.m.copies > 0 || tr.turn.CopyIn() {
		return true
	}
	m := tr.m
	m.in = append([]sent(nil), m.in...)
	for len(m.in) > 0 {
		m.step()
	}
	return m.copies > 0
}

// end does what a client does that wants to be rid of everything it began, and checks that it is.
func (tr *trial) end() {
	for tr.mayCopy() {
		tr.send(sent{typ: 'f'})
		tr.drain()
	}
	tr.send(sent{typ: 'S'})
	tr.drain()
	require.False(tr.t, tr.turn.Owed() && !tr.turn.Lost(), "%s", tr.log)
	if tr.m.status != 'I' {
		tr.send(sent{typ: 'Q', outcome: begins})
	}
	tr.send(sent{typ: 'Q'})
	tr.drain()
	require.True(tr.t, tr.turn.Releasable() || tr.turn.Lost(), "%s", tr.log)
}

func play(t *testing.T, script []byte) (lost bool) {
	tr := &trial{t: t, m: model{status: 'I'}}
	for ; len(script) > 1 && !tr.turn.Lost(); script = script[2:] {
		tr.act(script[0], script[1])
	}
	if !tr.turn.Lost() {
		tr.end()
	}
	return tr.turn.Lost()
}

func TestNothingIsReleasedThatTheServerOwes(t *testing.T) {
	const rounds = 20000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	lost := 0
	for range rounds {
		script := make([]byte, 2*r.IntN(60))
		for i := range script {
			script[i] = byte(r.Uint32())
		}
		if play(t, script) {
			lost++
		}
	}
	t.Logf("%d of %d lost", lost, rounds)
	require.Less(t, lost, rounds/4)
}

func FuzzTurn(f *testing.F) {
	f.Add([]byte{200, 0, 0, 0, 100, 0})
	f.Add([]byte("one client, one server, and a Sync between them"))
	f.Fuzz(func(t *testing.T, script []byte) {
		play(t, script[:min(len(script), 4096)])
		babble(t, script)
	})
}

// babble takes the script for arbitrary messages of either side. Nothing can be said of the result but its bounds.
func babble(t *testing.T, script []byte) {
	var tt turn.Turn
	syncs := 0
	for ; len(script) > 2; script = script[3:] {
		switch script[0] % 8 {
		case 0, 1, 2:
			require.True(t, tt.Sent(script[1], script[2]&1 != 0))
			syncs++
		case 3:
			tt.InjectParse(script[1]&1 != 0)
			tt.InjectClose()
		case 4:
			if script[1] == 0 {
				ready, _ := tt.Abandon()
				require.LessOrEqual(t, ready, syncs)
				require.Zero(t, tt.Ready())
			}
		default:
			tt.Received(script[1], script[2])
		}
		require.GreaterOrEqual(t, tt.Ready(), 0)
		require.LessOrEqual(t, tt.Ready(), syncs)
		require.False(t, tt.Releasable() && (tt.Owed() || tt.Lost() || tt.Status() != 'I'))
	}
}
