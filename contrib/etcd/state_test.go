package etcd

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestADivisionIsFair(t *testing.T) {
	for _, c := range []struct {
		n           int
		wants, gets []int
	}{
		{10, []int{3, 4}, []int{3, 4}},
		{10, []int{20, 20}, []int{5, 5}},
		{10, []int{2, 20}, []int{2, 8}},
		{10, []int{20, 2, 20}, []int{4, 2, 4}},
		{2, []int{5, 5, 5}, []int{1, 1, 0}},
		{0, []int{5}, []int{0}},
		{-3, []int{5, 0}, []int{0, 0}},
	} {
		st := &state{wants: map[string]int{}}
		for i, n := range c.wants {
			st.wants[fmt.Sprint(i)] = n
		}
		for i, want := range c.gets {
			require.Equal(t, want, st.fair(c.n, fmt.Sprint(i)), "%v", c)
		}
	}
}

func TestADivisionGivesAwayAllThatIsWantedAndThereIs(t *testing.T) {
	for range 1000 {
		st, total, n := &state{wants: map[string]int{}}, 0, rand.IntN(100)
		for i := range rand.IntN(8) {
			w := rand.IntN(40)
			st.wants[fmt.Sprint(i)] = w
			total += w
		}
		given := 0
		for id := range st.wants {
			given += st.fair(n, id)
		}
		require.Equal(t, min(n, total), given)
	}
}

func TestWhatSomebodyElseHasWrittenIsReadWithoutHarm(t *testing.T) {
	r := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: 9}}
	for key, value := range map[string]string{
		"seat/1": `{"id":"a","reserved":4,"address":"h:1"}`, "seat/2": "", "seat/x": "{", "share/a": "3", "share/b": "-5", "share/c": "x", "want/a": "7", "other": "1",
	} {
		r.Kvs = append(r.Kvs, &mvccpb.KeyValue{Key: []byte("/p/" + key), Value: []byte(value), ModRevision: 5})
	}
	st := read(r, "/p/", "a")
	require.Equal(t, map[string]int{"a": 3, "b": 0, "c": 0}, st.shares)
	require.Equal(t, map[string]int{"a": 7}, st.wants)
	require.Equal(t, 3, st.leased())
	require.Equal(t, 4, st.reserved(2))
	require.Equal(t, 6, st.reserved(6))
	require.Equal(t, map[int]string{1: "h:1"}, st.peers())
	require.EqualValues(t, 5, st.modified)
	require.EqualValues(t, 9, st.revision)
	require.False(t, st.short("a"))
	require.True(t, st.short("b"))
}
