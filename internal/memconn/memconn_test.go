package memconn_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/memconn"
)

type writeCloser interface{ CloseWrite() error }

// result is what a Read or Write returned.
type result struct {
	n   int
	err error
}

// start runs a Read or Write on its own goroutine. Receiving from the channel joins it.
func start(op func([]byte) (int, error), b []byte) <-chan result {
	done := make(chan result, 1)
	run := func() {
		n, err := op(b)
		done <- result{n, err}
	}
	go run()
	return done
}

// pipe returns a connected pair that is closed when the test ends.
func pipe(t testing.TB) (client, server net.Conn) {
	t.Helper()
	client, server = memconn.Pipe()
	t.Cleanup(func() {
		require.NoError(t, client.Close())
		require.NoError(t, server.Close())
	})
	return client, server
}

func requireTimeout(t *testing.T, err error) {
	t.Helper()
	var netErr net.Error
	require.ErrorAs(t, err, &netErr)
	require.True(t, netErr.Timeout())
	require.True(t, netErr.Temporary()) //nolint:staticcheck // what net.Conn's callers still look at
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func requireBlocked(t *testing.T, done <-chan result) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-done:
		require.Failf(t, "did not block", "%+v", r)
	default:
	}
}

func TestBothPeersMayWriteFirst(t *testing.T) {
	a, b := pipe(t)
	out := bytes.Repeat([]byte("x"), memconn.BufferSize)
	for _, c := range []net.Conn{a, b} {
		n, err := c.Write(out)
		require.NoError(t, err)
		require.Equal(t, len(out), n)
	}
	for _, c := range []net.Conn{a, b} {
		in := make([]byte, len(out))
		_, err := io.ReadFull(c, in)
		require.NoError(t, err)
		require.Equal(t, out, in)
	}
}

func TestBytesArriveInOrderInBothDirectionsAtOnce(t *testing.T) {
	const size = 8 << 20
	payload := make([]byte, size)
	state := uint32(1)
	for i := range payload {
		state = state*1664525 + 1013904223
		payload[i] = byte(state >> 24)
	}
	a, b := pipe(t)
	var wg sync.WaitGroup
	for i, c := range []net.Conn{a, b} {
		wg.Go(func() { writeInPieces(t, c, payload, 1000+i*130_000) })
		wg.Go(func() {
			h := sha256.New()
			_, err := io.CopyBuffer(struct{ io.Writer }{h}, c, make([]byte, 7001+i*90_000))
			if err != nil || !bytes.Equal(h.Sum(nil), sum(payload)) {
				t.Errorf("what was read differs from what was written, error %v", err)
			}
		})
	}
	wg.Wait()
}

func sum(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

func writeInPieces(t *testing.T, c net.Conn, b []byte, piece int) {
	for len(b) > 0 {
		n, err := c.Write(b[:min(piece, len(b))])
		if err != nil {
			t.Errorf("write: %v", err)
			return
		}
		b = b[n:]
	}
	if err := c.(writeCloser).CloseWrite(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestWriteBlocksOnlyWhileTheBufferIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe(t)
		_, err := a.Write(make([]byte, memconn.BufferSize-1))
		require.NoError(t, err)
		done := start(a.Write, []byte("xyz"))
		requireBlocked(t, done)
		_, err = b.Read(make([]byte, 1))
		require.NoError(t, err)
		requireBlocked(t, done)
		_, err = b.Read(make([]byte, 1))
		require.NoError(t, err)
		require.Equal(t, result{n: 3}, <-done)
	})
}

func TestConcurrentWritesAreNotMixed(t *testing.T) {
	a, b := pipe(t)
	const writers, size = 4, 3*memconn.BufferSize + 17
	var dones []<-chan result
	for i := range writers {
		dones = append(dones, start(a.Write, bytes.Repeat([]byte{byte('a' + i)}, size)))
	}
	for range writers {
		in := make([]byte, size)
		_, err := io.ReadFull(b, in)
		require.NoError(t, err)
		require.Equal(t, bytes.Repeat(in[:1], size), in)
	}
	for _, done := range dones {
		require.Equal(t, result{n: size}, <-done)
	}
}

func TestConcurrentReadersGetEveryByteOnce(t *testing.T) {
	a, b := pipe(t)
	var dones []<-chan result
	for range 10 {
		dones = append(dones, start(b.Read, make([]byte, 3)))
	}
	_, err := a.Write(make([]byte, 30))
	require.NoError(t, err)
	for _, done := range dones {
		require.Equal(t, result{n: 3}, <-done)
	}
}

func TestZeroLengthOperationsReturnAtOnce(t *testing.T) {
	a, b := pipe(t)
	for _, op := range []func([]byte) (int, error){a.Write, b.Read} {
		n, err := op(nil)
		require.NoError(t, err)
		require.Zero(t, n)
	}
}

// operations are the two that a deadline may end, each in the state where it blocks.
var operations = map[string]struct {
	blocked     func(c net.Conn) (op func([]byte) (int, error), b []byte)
	setDeadline func(c net.Conn, t time.Time) error
	unblock     func(peer net.Conn) (int, error)
}{
	"Read": {
		func(c net.Conn) (func([]byte) (int, error), []byte) { return c.Read, make([]byte, 1) },
		net.Conn.SetReadDeadline,
		func(peer net.Conn) (int, error) { return peer.Write([]byte("x")) },
	},
	"Write": {
		func(c net.Conn) (func([]byte) (int, error), []byte) {
			_, _ = c.Write(make([]byte, memconn.BufferSize))
			return c.Write, make([]byte, 1)
		},
		net.Conn.SetWriteDeadline,
		func(peer net.Conn) (int, error) { return peer.Read(make([]byte, memconn.BufferSize)) },
	},
}

// eachOperation runs f for Read and Write in bubbles of their own.
func eachOperation(t *testing.T, f func(t *testing.T, begin func() <-chan result, set func(time.Time), unblock func(), c net.Conn)) {
	for name, o := range operations {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, peer := pipe(t)
				op, b := o.blocked(c)
				f(t,
					func() <-chan result { return start(op, b) },
					func(at time.Time) { require.NoError(t, o.setDeadline(c, at)) },
					func() {
						_, err := o.unblock(peer)
						require.NoError(t, err)
					}, c)
			})
		})
	}
}

func TestADeadlineEndsWhatBlocksExactlyThen(t *testing.T) {
	eachOperation(t, func(t *testing.T, begin func() <-chan result, set func(time.Time), _ func(), _ net.Conn) {
		began := time.Now()
		set(began.Add(time.Minute))
		r := <-begin()
		requireTimeout(t, r.err)
		require.Zero(t, r.n)
		require.Equal(t, time.Minute, time.Since(began))
		requireTimeout(t, (<-begin()).err)
		require.Equal(t, time.Minute, time.Since(began))
	})
}

func TestADeadlineMayBeSetWhileBlocked(t *testing.T) {
	eachOperation(t, func(t *testing.T, begin func() <-chan result, set func(time.Time), _ func(), _ net.Conn) {
		for _, after := range []time.Duration{time.Second, 0, -time.Hour} {
			set(time.Time{})
			done := begin()
			requireBlocked(t, done)
			began := time.Now()
			set(began.Add(after))
			requireTimeout(t, (<-done).err)
			require.Equal(t, max(after, 0), time.Since(began))
		}
	})
}

func TestADeadlineMayBeMovedWhileBlocked(t *testing.T) {
	eachOperation(t, func(t *testing.T, begin func() <-chan result, set func(time.Time), _ func(), _ net.Conn) {
		began := time.Now()
		set(began.Add(time.Second))
		done := begin()
		requireBlocked(t, done)
		set(began.Add(time.Hour))
		time.Sleep(time.Minute)
		requireBlocked(t, done)
		set(began.Add(2 * time.Minute))
		requireTimeout(t, (<-done).err)
		require.Equal(t, 2*time.Minute, time.Since(began))
	})
}

func TestAConnIsUsableAgainOnceItsDeadlineIsCleared(t *testing.T) {
	eachOperation(t, func(t *testing.T, begin func() <-chan result, set func(time.Time), unblock func(), _ net.Conn) {
		set(time.Unix(1, 0))
		requireTimeout(t, (<-begin()).err)
		set(time.Time{})
		done := begin()
		requireBlocked(t, done)
		time.Sleep(24 * time.Hour)
		unblock()
		require.Equal(t, result{n: 1}, <-done)
	})
}

func TestOwnCloseEndsWhatBlocks(t *testing.T) {
	eachOperation(t, func(t *testing.T, begin func() <-chan result, set func(time.Time), _ func(), c net.Conn) {
		set(time.Now().Add(time.Hour))
		done := begin()
		requireBlocked(t, done)
		require.NoError(t, c.Close())
		require.ErrorIs(t, (<-done).err, net.ErrClosed)
		require.ErrorIs(t, c.SetDeadline(time.Now()), net.ErrClosed)
	})
}

func TestADeadlineOfOneDirectionLeavesTheOtherAlone(t *testing.T) {
	a, b := pipe(t)
	require.NoError(t, a.SetReadDeadline(time.Unix(1, 0)))
	_, err := a.Write([]byte("x"))
	require.NoError(t, err)
	_, err = b.Write([]byte("y"))
	require.NoError(t, err)
	_, err = a.Read(make([]byte, 1))
	requireTimeout(t, err)
	require.NoError(t, a.SetReadDeadline(time.Time{}))
	require.NoError(t, a.SetWriteDeadline(time.Unix(1, 0)))
	_, err = a.Write([]byte("x"))
	requireTimeout(t, err)
	n, err := a.Read(make([]byte, 9))
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestATimedOutWriteSaysHowMuchWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := pipe(t)
		require.NoError(t, a.SetDeadline(time.Now().Add(time.Second)))
		n, err := a.Write(make([]byte, memconn.BufferSize+5))
		requireTimeout(t, err)
		require.Equal(t, memconn.BufferSize, n)
	})
}

func TestThePeerOfAClosedEndReadsWhatIsLeftThenEOF(t *testing.T) {
	a, b := pipe(t)
	_, err := a.Write([]byte("last words"))
	require.NoError(t, err)
	require.NoError(t, a.Close())
	in, err := io.ReadAll(b)
	require.NoError(t, err)
	require.Equal(t, "last words", string(in))
	_, err = b.Read(make([]byte, 1))
	require.Equal(t, io.EOF, err)
	_, err = b.Write([]byte("x"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
	_, err = a.Read(make([]byte, 1))
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = a.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestThePeersCloseEndsWhatBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe(t)
		_, err := a.Write(make([]byte, memconn.BufferSize))
		require.NoError(t, err)
		write := start(a.Write, []byte("x"))
		read := start(a.Read, make([]byte, 1))
		requireBlocked(t, write)
		requireBlocked(t, read)
		require.NoError(t, b.Close())
		require.ErrorIs(t, (<-write).err, io.ErrClosedPipe)
		require.Equal(t, result{err: io.EOF}, <-read)
	})
}

func TestAfterCloseWriteTheOtherDirectionLivesOn(t *testing.T) {
	a, b := pipe(t)
	_, err := a.Write([]byte("question"))
	require.NoError(t, err)
	require.NoError(t, a.(writeCloser).CloseWrite())
	_, err = a.Write([]byte("more"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
	in, err := io.ReadAll(b)
	require.NoError(t, err)
	require.Equal(t, "question", string(in))
	_, err = b.Write([]byte("answer"))
	require.NoError(t, err)
	require.NoError(t, b.Close())
	in, err = io.ReadAll(a)
	require.NoError(t, err)
	require.Equal(t, "answer", string(in))
	require.NoError(t, a.Close())
	require.ErrorIs(t, a.(writeCloser).CloseWrite(), net.ErrClosed)
}

func TestMethodsMayBeCalledConcurrently(t *testing.T) {
	a, b := memconn.Pipe()
	var wg sync.WaitGroup
	for _, c := range []net.Conn{a, b} {
		for i := range 20 {
			wg.Go(func() {
				buf := make([]byte, 5000)
				_ = c.SetReadDeadline(time.Now().Add(time.Duration(i) * time.Millisecond))
				_, _ = c.Read(buf)
				_ = c.SetWriteDeadline(time.Now().Add(time.Duration(20-i) * time.Millisecond))
				_, _ = c.Write(buf)
				_ = c.SetDeadline(time.Now().Add(10 * time.Millisecond))
				_, _ = c.LocalAddr(), c.RemoteAddr()
				if i == 19 {
					_ = c.Close()
				}
			})
		}
	}
	wg.Wait()
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
}

func TestBothEndsHaveTheAddressOfTheProcess(t *testing.T) {
	a, b := pipe(t)
	for _, addr := range []net.Addr{a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr()} {
		require.Equal(t, "mem", addr.Network())
		require.Equal(t, "in-process", addr.String())
	}
}

func TestReadAndWriteDoNotAllocate(t *testing.T) {
	a, b := pipe(t)
	buf := make([]byte, 512)
	later := time.Now().Add(time.Hour)
	require.NoError(t, a.SetDeadline(later))
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		_, err1 := a.Write(buf)
		_, err2 := b.Read(buf)
		err3 := a.SetDeadline(later)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Error(err)
		}
	}))
}

func BenchmarkPingPong(b *testing.B) {
	client, server := pipe(b)
	echo := func() {
		_, _ = io.CopyBuffer(struct{ io.Writer }{server}, struct{ io.Reader }{server}, make([]byte, 512))
	}
	var wg sync.WaitGroup
	wg.Go(echo)
	buf := make([]byte, 128)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = client.Write(buf)
		if _, err := io.ReadFull(client, buf); err != nil {
			b.Fatal(err)
		}
	}
	_ = client.Close()
	wg.Wait()
}
