package etcd_test

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// A relay stands in front of PostgreSQL and counts the connections to it: each from its startup packet until PostgreSQL has closed it, which
// the other side learns only when it is no longer counted. Cancel requests are passed on and not counted.
type relay struct {
	l      net.Listener
	server string
	wg     sync.WaitGroup

	mu        sync.Mutex
	now, most int
	total     int
	open      map[net.Conn]struct{}
	closed    bool
}

func startRelay(t testing.TB, server string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	r := &relay{l: l, server: server, open: map[net.Conn]struct{}{}}
	r.wg.Add(1)
	go r.accept()
	t.Cleanup(r.close)
	return r
}

func (r *relay) close() {
	r.l.Close()
	r.mu.Lock()
	r.closed = true
	for c := range r.open {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

func (r *relay) accept() {
	defer r.wg.Done()
	for {
		c, err := r.l.Accept()
		if err != nil {
			return
		}
		r.wg.Add(1)
		go r.pass(c)
	}
}

func (r *relay) track(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open[c] = struct{}{}
	return !r.closed
}

func (r *relay) forget(c net.Conn) {
	r.mu.Lock()
	delete(r.open, c)
	r.mu.Unlock()
	c.Close()
}

func (r *relay) count(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now += n
	r.total += max(n, 0)
	r.most = max(r.most, r.now)
}

// counts returns how many connections there are, the most that there were, and how many there have been.
func (r *relay) counts() (now, most, total int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now, r.most, r.total
}

// pass passes on one connection.
func (r *relay) pass(c net.Conn) {
	defer r.wg.Done()
	defer r.forget(c)
	var head [8]byte
	if !r.track(c) {
		return
	}
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return
	}
	s, err := net.Dial("tcp", r.server)
	if err != nil {
		return
	}
	defer r.forget(s)
	if binary.BigEndian.Uint32(head[4:]) != 80877102 {
		r.count(1)
		defer r.count(-1) // before c is closed
	}
	if !r.track(s) {
		return
	}
	if _, err := s.Write(head[:]); err != nil {
		return
	}
	r.wg.Add(1)
	go r.copyRequests(s, c)
	_, _ = io.Copy(c, s)
	_, _ = io.Copy(io.Discard, s) // where c is gone: until PostgreSQL is, too
}

func (r *relay) copyRequests(s, c net.Conn) {
	defer r.wg.Done()
	_, _ = io.Copy(s, c)
	_ = s.(*net.TCPConn).CloseWrite()
}

// cancelRequest is a whole cancel request.
func cancelRequest(pid uint32, key []byte) []byte {
	m := binary.BigEndian.AppendUint32(nil, uint32(12+len(key)))
	m = binary.BigEndian.AppendUint32(m, 80877102)
	return append(binary.BigEndian.AppendUint32(m, pid), key...)
}
