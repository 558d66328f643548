package link_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/memconn"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// limit is how long a test waits for what must come.
const limit = 20 * time.Second

// A wire makes connected pairs of one kind.
type wire struct {
	name string
	make func(t testing.TB) (near, far net.Conn)
	fast bool // has a fast path
}

var wires = []wire{
	{"TCP", socketPair("tcp"), fastPath},
	{"Unix", socketPair("unix"), fastPath},
	{"Pipe", func(testing.TB) (net.Conn, net.Conn) { return net.Pipe() }, false},
	{"Memory", func(testing.TB) (net.Conn, net.Conn) { return memconn.Pipe() }, false},
	{"TLS", tlsPair, false},
}

func socketPair(network string) func(t testing.TB) (near, far net.Conn) {
	return func(t testing.TB) (net.Conn, net.Conn) {
		address := "127.0.0.1:0"
		if network == "unix" {
			address = filepath.Join(t.TempDir(), "s")
		}
		l, err := net.Listen(network, address)
		require.NoError(t, err)
		defer l.Close()
		far, err := net.Dial(network, l.Addr().String())
		require.NoError(t, err)
		near, err := l.Accept()
		require.NoError(t, err)
		return near, far
	}
}

var certificate = sync.OnceValues(func() (tls.Certificate, error) {
	ca, err := pgtest.NewCA()
	if err != nil {
		return tls.Certificate{}, err
	}
	cert, key, err := ca.Issue("localhost")
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
})

func tlsPair(t testing.TB) (near, far net.Conn) {
	near, far = socketPair("tcp")(t)
	cert, err := certificate()
	require.NoError(t, err)
	server := tls.Server(near, &tls.Config{Certificates: []tls.Certificate{cert}})
	client := tls.Client(far, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error, 1)
	go shake(server, shaken)
	require.NoError(t, client.HandshakeContext(context.Background()))
	require.NoError(t, <-shaken)
	return server, client
}

func shake(c *tls.Conn, done chan<- error) { done <- c.HandshakeContext(context.Background()) }

// onEveryPath runs a test for links of every kind.
func onEveryPath(t *testing.T, f func(t *testing.T, l *link.Link, far net.Conn)) {
	for _, w := range wires {
		for _, allowFast := range []bool{true, false} {
			if !allowFast && !w.fast {
				continue
			}
			name := w.name
			if allowFast && w.fast {
				name += "/Fast"
			}
			t.Run(name, func(t *testing.T) {
				near, far := w.make(t)
				t.Cleanup(func() {
					near.Close()
					far.Close()
				})
				require.NoError(t, far.SetDeadline(time.Now().Add(limit)))
				l := link.New(near, allowFast)
				require.Equal(t, allowFast && w.fast, l.Fast())
				require.Equal(t, near, l.Conn())
				f(t, l, far)
			})
		}
	}
}

// running is a Run under way.
type running struct {
	t    *testing.T
	done chan error
}

// run calls Run on a goroutine of its own.
func run(t *testing.T, l *link.Link, h link.Handler) running {
	r := running{t, make(chan error, 1)}
	go r.run(l, h)
	return r
}

func (r running) run(l *link.Link, h link.Handler) { r.done <- l.Run(h) }

// wait returns what Run returned.
func (r running) wait() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(limit):
		panic("Run does not return") // shows all goroutines
	}
}

// write sends b from the far end without waiting for the near one to read it all. Receiving joins it.
func write(far net.Conn, b []byte, pieces int) <-chan error {
	done := make(chan error, 1)
	go writeAll(far, b, pieces, done)
	return done
}

func writeAll(far net.Conn, b []byte, pieces int, done chan<- error) {
	for piece := range slices.Chunk(b, pieces) {
		if _, err := far.Write(piece); err != nil {
			done <- err
			return
		}
	}
	done <- nil
}

// readAll reads n bytes once start is closed.
func readAll(far net.Conn, n int, start <-chan struct{}, done chan<- []byte) {
	<-start
	b := make([]byte, n)
	_, _ = io.ReadFull(far, b)
	done <- b
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func TestEveryByteArrivesInEveryChunking(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		for _, pieces := range []int{1, 7, 8, 9, 1000, link.BufferSize - 1, link.BufferSize, link.BufferSize + 1, 100000} {
			want := noise(min(200*pieces, 150000))
			var got []byte
			sent := write(far, want, pieces)
			require.NoError(t, l.Run(func(b []byte) (int, link.Next) {
				got = append(got, b...)
				if len(got) == len(want) {
					return len(b), link.Leave
				}
				return len(b), link.Park
			}))
			require.NoError(t, <-sent)
			require.True(t, bytes.Equal(want, got), "pieces of %d", pieces)
			require.False(t, l.Pending())
		}
	})
}

func TestWhatIsNotConsumedIsOfferedAgain(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		r := rand.New(rand.NewPCG(1, 2))
		want := noise(100000)
		var got []byte
		sent := write(far, want, 3000)
		require.NoError(t, l.Run(func(b []byte) (int, link.Next) {
			n := r.IntN(len(b) + 1)
			if len(b) == link.BufferSize && n == 0 || len(got)+len(b) == len(want) {
				n = len(b)
			}
			require.True(t, bytes.Equal(want[len(got):len(got)+len(b)], b))
			got = append(got, b[:n]...)
			if len(got) == len(want) {
				return n, link.Leave
			}
			return n, link.Park
		}))
		require.NoError(t, <-sent)
		require.True(t, bytes.Equal(want, got))
	})
}

func TestAMessageOfAFullBufferIsHandedOverWhole(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		want := noise(link.BufferSize)
		sent := write(far, want, 999)
		require.NoError(t, l.Run(func(b []byte) (int, link.Next) {
			if len(b) < link.BufferSize {
				return 0, link.Park
			}
			require.True(t, bytes.Equal(want, b))
			return len(b), link.Leave
		}))
		require.NoError(t, <-sent)
	})
}

func TestRunGoesOnWithTheLeftover(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		sent := write(far, []byte("one two"), 100)
		leaveAt := func(n int, want string) link.Handler {
			return func(b []byte) (int, link.Next) {
				if len(b) < len(want) {
					return 0, link.Park
				}
				require.Equal(t, want, string(b[:len(want)]))
				return n, link.Leave
			}
		}
		require.NoError(t, l.Run(leaveAt(4, "one two")))
		require.NoError(t, <-sent)
		require.True(t, l.Pending())
		require.NoError(t, l.Run(leaveAt(0, "two")))
		require.True(t, l.Pending())
		require.NoError(t, l.Run(leaveAt(3, "two")))
		require.False(t, l.Pending())
		sent = write(far, []byte("three"), 100)
		require.NoError(t, l.Run(leaveAt(5, "three")))
		require.NoError(t, <-sent)
	})
}

func TestTakeBufferLeavesWhatIsBehindKeep(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		sent := write(far, []byte("skipped.taken.rest"), 100)
		step := 0
		var taken *link.Buffer
		var offset int
		require.NoError(t, l.Run(func(b []byte) (int, link.Next) {
			switch {
			case step == 0 && len(b) == 18:
				step++
				return 8, link.Leave
			case step == 1:
				step++
				require.Equal(t, "taken.rest", string(b))
				taken, offset = l.TakeBuffer(6)
				return 0, link.Leave
			}
			return 0, link.Park
		}))
		require.NoError(t, <-sent)
		handler := func(b []byte) (int, link.Next) {
			if step == 1 {
				step++
				require.Equal(t, "taken.rest", string(b))
				taken, offset = l.TakeBuffer(6)
				return 0, link.Leave
			}
			require.Equal(t, "rest", string(b))
			return len(b), link.Leave
		}
		require.NoError(t, l.Run(handler))
		require.True(t, l.Pending())
		require.NoError(t, l.Run(handler))
		require.Equal(t, "taken.", string(taken[offset:offset+6]))
		require.False(t, l.Pending())
		link.PutBuffer(taken)
		link.PutBuffer(nil)
	})
}

func TestTakeBufferOfEverythingLeavesNothing(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		sent := write(far, []byte("all"), 100)
		require.NoError(t, l.Run(func(b []byte) (int, link.Next) {
			if len(b) < 3 {
				return 0, link.Park
			}
			buf, _ := l.TakeBuffer(3)
			link.PutBuffer(buf)
			return 0, link.Leave
		}))
		require.NoError(t, <-sent)
		require.False(t, l.Pending())
		require.False(t, l.Holds())
	})
}

func TestAParkedLinkIsInterruptedAndGoesOn(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		heard := make(chan string, 10)
		handler := func(b []byte) (int, link.Next) {
			heard <- string(b)
			return len(b), link.Park
		}
		for range 3 {
			r := run(t, l, handler)
			require.NoError(t, <-write(far, []byte("x"), 1))
			require.Equal(t, "x", <-heard)
			l.Interrupt()
			err := r.wait()
			require.True(t, link.Interrupted(err), "%v", err)
			require.True(t, link.Interrupted(l.Run(handler)), "an interrupt holds until it is cleared")
			l.ClearInterrupt()
		}
		require.False(t, link.Interrupted(io.EOF))
		require.False(t, link.Interrupted(nil))
	})
}

func TestAnInterruptKeepsWhatWasNotConsumed(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		seen := make(chan struct{}, 1)
		r := run(t, l, func(b []byte) (int, link.Next) {
			if len(b) == 4 {
				seen <- struct{}{}
			}
			return 0, link.Park
		})
		require.NoError(t, <-write(far, []byte("kept"), 100))
		<-seen
		l.Interrupt()
		require.True(t, link.Interrupted(r.wait()))
		l.ClearInterrupt()
		require.True(t, l.Pending())
		require.NoError(t, l.Run(func(b []byte) (int, link.Next) {
			require.Equal(t, "kept", string(b))
			return 4, link.Leave
		}))
	})
}

func TestTheEndOfTheStreamIsEOF(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		var got []byte
		r := run(t, l, func(b []byte) (int, link.Next) {
			got = append(got, b...)
			return len(b), link.Again
		})
		require.NoError(t, <-write(far, []byte("last words"), 100))
		require.NoError(t, far.Close())
		require.ErrorIs(t, r.wait(), link.ErrEOF)
		require.Equal(t, "last words", string(got))
		l.Release()
		require.False(t, l.Holds())
	})
}

func TestAgainSeesTheEndThatCameWithTheData(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		if _, pipe := far.(interface{ CloseWrite() error }); !pipe {
			t.Skip("a pipe cannot hold both")
		}
		require.NoError(t, <-write(far, []byte("last words"), 100))
		require.NoError(t, far.Close())
		awaitGone(l)
		var got []byte
		err := l.Run(func(b []byte) (int, link.Next) {
			got = append(got, b...)
			return len(b), link.Again
		})
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, "last words", string(got))
	})
}

func TestAFailedConnectionEndsRun(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, _ net.Conn) {
		r := run(t, l, func(b []byte) (int, link.Next) { return len(b), link.Park })
		require.NoError(t, l.Conn().Close())
		err := r.wait()
		require.Error(t, err)
		require.False(t, link.Interrupted(err))
		_, err = l.TryWrite([]byte("x"))
		require.Error(t, err)
	})
}

func TestAHandlerThatConsumesNothingOfAFullBufferPanics(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		sent := write(far, noise(2*link.BufferSize), link.BufferSize)
		require.PanicsWithValue(t, "link: handler consumed nothing of a full buffer", func() {
			_ = l.Run(func([]byte) (int, link.Next) { return 0, link.Park })
		})
		far.Close()
		<-sent
	})
}

func TestAShortWriteIsContinuedByWrite(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		want := noise(8 << 20)
		received := make(chan []byte, 1)
		start := make(chan struct{})
		go readAll(far, len(want), start, received)
		if !l.Fast() {
			close(start)
		}
		n, err := l.TryWrite(want)
		require.NoError(t, err)
		if l.Fast() {
			require.Positive(t, n)
			require.Less(t, n, len(want), "it waited, or the socket's buffer has no end")
			close(start)
			m, err := l.Write(want[n:])
			require.NoError(t, err)
			n += m
		}
		require.Equal(t, len(want), n)
		require.True(t, bytes.Equal(want, <-received))
	})
}

func TestAbortWritesEndsAWriteThatWaits(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, _ net.Conn) {
		done := write(l.Conn(), make([]byte, 64<<20), 64<<20)
		l.AbortWrites()
		require.Error(t, <-done)
		_, err := l.Write([]byte("x"))
		require.Error(t, err)
	})
}

func TestTryTerminateSaysGoodbye(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		heard, start := make(chan []byte, 1), make(chan struct{})
		close(start)
		go readAll(far, 5, start, heard)
		l.TryTerminate()
		require.Equal(t, "X\x00\x00\x00\x04", string(<-heard))
	})
}

// awaitGone waits until the end of the far side's stream has travelled, where the link can tell.
func awaitGone(l *link.Link) {
	for deadline := time.Now().Add(limit); l.Fast() && l.Alive() && time.Now().Before(deadline); {
		runtime.Gosched()
	}
}

func TestAliveAndGoneTellWhatTheKernelKnows(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		require.True(t, l.Alive())
		require.False(t, l.Gone())
		if !l.Fast() {
			far.Close()
			require.True(t, l.Alive(), "it cannot tell")
			require.False(t, l.Gone(), "it cannot tell")
			return
		}
		require.NoError(t, <-write(far, []byte("x"), 1))
		awaitGone(l)
		require.False(t, l.Alive(), "bytes that nobody asked for")
		require.False(t, l.Gone())
		require.NoError(t, l.Run(func(b []byte) (int, link.Next) { return len(b), link.Leave }))
		require.True(t, l.Alive())
		require.NoError(t, far.Close())
		awaitGone(l)
		require.False(t, l.Alive())
		require.True(t, l.Gone())
		require.NoError(t, l.Conn().Close())
		require.False(t, l.Alive())
		require.True(t, l.Gone())
	})
}

func TestAParkedLinkHoldsNoBuffer(t *testing.T) {
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		heard := make(chan int, 100)
		r := run(t, l, func(b []byte) (int, link.Next) {
			heard <- len(b)
			return len(b), link.Park
		})
		for _, n := range []int{1, 8, 5000} {
			sent := write(far, noise(n), n)
			for n > 0 {
				n -= <-heard
			}
			require.NoError(t, <-sent)
		}
		l.Interrupt()
		require.True(t, link.Interrupted(r.wait()))
		require.False(t, l.Holds())
		require.False(t, l.Pending())
	})
}

// echo answers single bytes until the stream ends.
func echo(far net.Conn, done chan<- struct{}) {
	defer close(done)
	b := make([]byte, 64)
	for {
		n, err := far.Read(b)
		if err != nil {
			return
		}
		if _, err := far.Write(b[:n]); err != nil {
			return
		}
	}
}

func TestARoundTripCostsNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget on purpose")
	}
	onEveryPath(t, func(t *testing.T, l *link.Link, far net.Conn) {
		done := make(chan struct{})
		go echo(far, done)
		message := []byte("0123456789")
		got := 0
		handler := func(b []byte) (int, link.Next) {
			if got += len(b); got < len(message) {
				return len(b), link.Park
			}
			return len(b), link.Leave
		}
		trip := func() {
			got = 0
			if n, err := l.TryWrite(message); err != nil || n != len(message) {
				t.Error("short write", n, err)
			}
			if err := l.Run(handler); err != nil {
				t.Error(err)
			}
		}
		allocs := testing.AllocsPerRun(500, trip)
		far.Close()
		<-done
		if _, secure := far.(*tls.Conn); !secure { // crypto/tls' own
			require.Zero(t, allocs)
		}
	})
}
