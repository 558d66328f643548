package stmts

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStatementsAreTheSameByContent(t *testing.T) {
	a := Intern([]byte("select 1\x00\x00\x00"), "")
	require.Equal(t, a, Intern([]byte("select 1\x00\x00\x00"), ""))
	require.NotEqual(t, a, Intern([]byte("select 1\x00\x00\x00"), "search_path\x00x\x00"))
	require.NotEqual(t, a, InternSQL([]byte("select 1\x00\x00\x00"), ""))
	require.Equal(t, "select 1\x00\x00\x00", a.Tail())
	require.False(t, a.SQL())
	require.False(t, Statement{}.SQL())
	require.True(t, InternSQL([]byte("prepare a as select 1"), "").SQL())
}

func TestAStatementSpelledIsTheOneWithTheseTypes(t *testing.T) {
	st := Intern([]byte("select $1\x00\x00\x00"), "set")
	require.Equal(t, Intern([]byte("select $1\x00\x00\x01\x00\x00\x00\x17"), "set"), st.Spelled("\x00\x01\x00\x00\x00\x17"))
	require.Equal(t, st, st.Spelled("\x00\x00"))
}

// TestNamesAreAMap compares Names with a map, whatever is done to both.
func TestNamesAreAMap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var n Names
	want := map[string]Statement{}
	for range 20_000 {
		name := fmt.Sprint("s", r.IntN(60))
		switch r.IntN(5) {
		case 0:
			n.Delete(name)
			delete(want, name)
		default:
			st := Intern(fmt.Append(nil, "select ", r.IntN(9)), "")
			n.Set(name, st)
			want[name] = st
		}
		probe := fmt.Sprint("s", r.IntN(60))
		st, ok := n.Find([]byte(probe))
		wantSt, wantOK := want[probe]
		require.Equal(t, wantOK, ok)
		require.Equal(t, wantSt, st)
	}
	got, bytes := map[string]Statement{}, 0
	n.All(func(name string, st Statement) bool {
		got[name] = st
		bytes += len(name) + len(st.Tail())
		return true
	})
	require.Equal(t, want, got)
	require.Equal(t, bytes, n.Bytes())
	n.Keep(func(name string, _ Statement) bool { return name == "s7" })
	require.LessOrEqual(t, n.Len(), 1, 1)
	n.Clear()
	require.Zero(t, n.Len()+n.Bytes())
}

// TestManySessionsWithTheSameStatementsAreCheap is the figure: 10,000 clients with the same 100 statements.
func TestManySessionsWithTheSameStatementsAreCheap(t *testing.T) {
	const sessions, each = 2000, 100
	st := make([]Statement, each)
	for i := range st {
		st[i] = Intern(fmt.Appendf(nil, "select * from a_table_of_some_length where id = $1 and kind = %d", i), "")
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	all := make([]Names, sessions)
	for i := range all {
		for j, s := range st {
			all[i].Set(fmt.Sprintf("stmtcache_%040d", j), s)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	perSession := float64(after.HeapAlloc-before.HeapAlloc) / sessions
	t.Logf("%.0f bytes for each session", perSession)
	require.Less(t, perSession, 1024.0)
	runtime.KeepAlive(all)
}

func TestAServerForgetsWhatWasNotUsedForTheLongestTime(t *testing.T) {
	var s Server
	statements := map[string]Statement{}
	for _, name := range []string{"a", "b", "c"} {
		statements[name] = Intern([]byte(name), "")
		s.Add(name, statements[name], 1, 1)
	}
	require.Equal(t, "a", s.Oldest().Name)
	s.Touch(s.Find(statements["a"]))
	require.Equal(t, "b", s.Oldest().Name)
	b := s.Oldest()
	s.Remove(b)
	require.Nil(t, s.ByName([]byte("b")))
	require.Nil(t, s.Find(statements["b"]))
	s.Remove(b) // once is enough
	require.Equal(t, 2, s.Len())
	other := s.Add("b", Intern([]byte("other"), ""), 1, 1)
	s.Restore(b) // the latter is what the server has
	require.Equal(t, b, s.ByName([]byte("b")))
	s.Remove(other)
	require.Equal(t, b, s.ByName([]byte("b")))
	s.Add("own", Statement{}, 1, 1)
	for range 3 {
		s.Remove(s.Oldest())
	}
	require.Nil(t, s.Oldest(), "a session's own is never given up")
	var names []string
	s.All(func(p *Prepared) bool { names = append(names, p.Name); return true })
	require.Equal(t, []string{"own"}, names)
	s.Clear()
	require.Zero(t, s.Len())
}

// TestAServerIsConsistent does what comes to mind and looks whether its three views are of the same statements.
func TestAServerIsConsistent(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var s Server
	var removed []*Prepared
	for range 20_000 {
		name := fmt.Sprint(r.IntN(20))
		switch r.IntN(4) {
		case 0:
			if p := s.ByName([]byte(name)); p != nil {
				s.Remove(p)
				removed = append(removed, p)
			}
		case 1:
			if len(removed) > 0 {
				s.Restore(removed[r.IntN(len(removed))])
			}
		case 2:
			if p := s.ByName([]byte(name)); p != nil {
				s.Touch(p)
			}
		default:
			s.Add(name, Intern([]byte(fmt.Sprint(r.IntN(20))), ""), 1, 1)
		}
		var listed []string
		s.All(func(p *Prepared) bool { listed = append(listed, p.Name); return true })
		slices.Sort(listed)
		require.Equal(t, slices.Sorted(maps.Keys(s.byName)), listed)
		for st, p := range s.bySt {
			require.Equal(t, st, p.St)
			require.Equal(t, p, s.byName[p.Name])
		}
	}
}
