package etcd

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Keys, behind the prefix. All belong to the lease of their instance, save for a seat that was given up, which is empty.
const (
	seatKeys  = "seat/"  // by number: who may use a floor
	shareKeys = "share/" // by id: how many connections the lease stands for
	wantKeys  = "want/"  // by id: how many the instance would use beyond its floor
)

// seat is the value of a seat's key.
type seat struct {
	ID       string `json:"id"`
	Address  string `json:"address,omitempty"` // for peers
	Reserved int    `json:"reserved"`          // for the floors of all instances, as this one is configured

	modified int64
}

// state is what stood in etcd at one revision.
type state struct {
	revision int64
	seats    map[int]seat
	shares   map[string]int
	wants    map[string]int
	modified int64 // revision of the own share's key; 0: there is none
}

// read makes a state of all keys with the prefix; own is the instance's id.
func read(r *clientv3.GetResponse, prefix, own string) *state {
	st := &state{revision: r.Header.Revision, seats: map[int]seat{}, shares: map[string]int{}, wants: map[string]int{}}
	for _, kv := range r.Kvs {
		key := strings.TrimPrefix(string(kv.Key), prefix)
		if name, ok := strings.CutPrefix(key, seatKeys); ok {
			number, _ := strconv.Atoi(name)
			var s seat
			_ = json.Unmarshal(kv.Value, &s) // what is none of ours is taken for a seat that was given up
			s.modified = kv.ModRevision
			st.seats[number] = s
			continue
		}
		n, _ := strconv.Atoi(string(kv.Value))
		if id, ok := strings.CutPrefix(key, shareKeys); ok {
			st.shares[id] = max(n, 0)
			if id == own {
				st.modified = kv.ModRevision
			}
		} else if id, ok := strings.CutPrefix(key, wantKeys); ok {
			st.wants[id] = max(n, 0)
		}
	}
	return st
}

// reserved returns for how many connections of floors room is kept: the most that any instance says, at least own.
func (st *state) reserved(own int) int {
	for _, s := range st.seats {
		own = max(own, s.Reserved)
	}
	return own
}

// leased returns the sum of all shares.
func (st *state) leased() (n int) {
	for _, share := range st.shares {
		n += share
	}
	return n
}

// short reports whether an instance other than own wants more than it has.
func (st *state) short(own string) bool {
	for id, want := range st.wants {
		if id != own && want > st.shares[id] {
			return true
		}
	}
	return false
}

// peers returns the addresses of those who have seats.
func (st *state) peers() map[int]string {
	m := map[int]string{}
	for number, s := range st.seats {
		if s.Address != "" {
			m[number] = s.Address
		}
	}
	return m
}

// fair returns own's part of n in a division among all that want, which gives nobody more than it wants, and nobody less than another unless
// it wants less.
func (st *state) fair(n int, own string) int {
	ids := slices.SortedFunc(maps.Keys(st.wants), func(a, b string) int {
		if d := st.wants[a] - st.wants[b]; d != 0 {
			return d
		}
		return strings.Compare(b, a) // what remains of the division goes to those behind
	})
	for i, id := range ids {
		part := min(st.wants[id], max(n, 0)/(len(ids)-i))
		if id == own {
			return part
		}
		n -= part
	}
	return 0
}
