// Package link is one side's connection as the relay sees it: a reading loop that holds no buffer while it waits, and
// writes that can be tried without blocking.
//
// Plain TCP and Unix sockets take a fast path on Linux: the reading goroutine lives inside a syscall.RawConn callback,
// reads without first failing, and parks after a short read. Every other connection (TLS, in-memory, wrapped) runs the
// same loop over Read and Write.
package link

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// BufferSize is the size in bytes of every relay buffer: messages up to this size are always handed over whole.
const BufferSize = 16 << 10

// Next is what a Handler wants its link to do after the bytes that it was given.
type Next uint8

const (
	// Park waits for more bytes.
	Park Next = iota
	// Again reads on to the end of what has arrived before it waits, so that an end of stream that came together
	// with the last bytes is seen.
	Again
	// Leave makes Run return nil: the handler has something to do that may wait.
	Leave
)

// Handler is given all bytes that were read and not yet consumed, and returns how many it consumed. It runs on the
// goroutine that called Run, on the fast path inside a callback that holds the descriptor: it must not wait for
// anything and must not close its own link. The bytes are valid until it returns, unless it takes them with TakeBuffer.
// It must consume something when it is given BufferSize bytes.
type Handler func(b []byte) (consumed int, next Next)

// Link is one connection. Its methods say which goroutine may call them.
type Link struct {
	conn net.Conn
	fast *fastIO // nil: ordinary path; constant after New

	// Reading side: owned by the goroutine in Run.
	handle Handler
	in     *Buffer // nil while nothing is kept
	r, w   int     // unconsumed bytes are in[r:w]
	taken  bool    // the handler has just called TakeBuffer
	small  [8]byte // where the ordinary path waits without a buffer
}

// Buffer is a pooled array of BufferSize bytes.
type Buffer [BufferSize]byte

var buffers = sync.Pool{New: func() any { return new(Buffer) }}

// GetBuffer takes a buffer from the pool. The caller owns it until PutBuffer.
func GetBuffer() *Buffer { return buffers.Get().(*Buffer) }

// PutBuffer gives a buffer back; nil is allowed.
func PutBuffer(b *Buffer) {
	if b != nil {
		buffers.Put(b)
	}
}

// New returns a link over conn. With allowFast, and where the platform and the type of conn permit it, the link takes
// the fast path. The link does not own conn: whoever made conn closes it.
func New(conn net.Conn, allowFast bool) *Link {
	l := &Link{conn: conn}
	if allowFast {
		l.fast = newFast(conn)
	}
	return l
}

// Fast reports whether the link takes the fast path.
func (l *Link) Fast() bool { return l.fast != nil }

// Conn returns the connection beneath.
func (l *Link) Conn() net.Conn { return l.conn }

// Run reads until the handler leaves (nil), the connection ends (io.EOF or the error of the read) or Interrupt is
// called (an error for which Interrupted is true). It may be called again after the first and the last of these.
func (l *Link) Run(h Handler) error {
	l.handle = h
	if l.w > l.r {
		if l.dispatch() == Leave {
			return nil
		}
	}
	if l.fast != nil {
		return l.runFast()
	}
	return l.runOrdinary()
}

// Unread gives the link bytes that were read from its connection before, fewer than BufferSize. It is for the goroutine that calls Run,
// before it does.
func (l *Link) Unread(b []byte) {
	if len(b) > 0 {
		copy(l.room(), b)
		l.w += len(b)
	}
}

// TakeKept returns what the link keeps, which it gives up; nil if that is nothing. It is for the goroutine that may call Run.
func (l *Link) TakeKept() []byte {
	if l.in == nil {
		return nil
	}
	defer l.drop()
	return bytes.Clone(l.in[l.r:l.w])
}

// Wait reads once, on the ordinary path, and keeps what came for the next Run. It is for a goroutine that is the only
// reader until Wait returns, and is interrupted as Run is.
func (l *Link) Wait() error {
	n, err := l.conn.Read(l.waitSpace(false))
	if n > 0 {
		l.took(n)
		return nil
	}
	return err
}

func (l *Link) runOrdinary() error {
	full := false // the last read filled its space: more is likely to be there
	for {
		space := l.waitSpace(full)
		n, err := l.conn.Read(space)
		full = n == len(space)
		if n > 0 {
			l.took(n)
			if l.dispatch() == Leave {
				return nil
			}
		}
		if err != nil {
			return err
		}
	}
}

// waitSpace is where the ordinary path reads next: the few bytes inside the link while no buffer is held and none is
// wanted, else the room that is left in the buffer.
func (l *Link) waitSpace(wanted bool) []byte {
	if l.in == nil && !wanted {
		return l.small[:]
	}
	return l.room()
}

func (l *Link) took(n int) {
	if l.in == nil {
		l.in = GetBuffer()
		l.r, l.w = 0, copy(l.in[:], l.small[:n])
		return
	}
	l.w += n
}

// room makes sure that there is a buffer with free space and returns that space.
func (l *Link) room() []byte {
	if l.in == nil {
		l.in = GetBuffer()
		l.r, l.w = 0, 0
	}
	if l.r > 0 {
		l.w = copy(l.in[:], l.in[l.r:l.w])
		l.r = 0
	}
	if l.w == BufferSize {
		panic("link: handler consumed nothing of a full buffer")
	}
	return l.in[l.w:]
}

// dispatch hands the unconsumed bytes to the handler, once more if it took the buffer and left some, and drops the buffer when
// all were consumed.
func (l *Link) dispatch() Next {
	for {
		n, next := l.handle(l.in[l.r:l.w])
		again := l.taken && l.in != nil && next != Leave
		l.taken = false
		if l.in != nil {
			l.r += n
			if l.r >= l.w {
				l.drop()
			}
		}
		if !again {
			return next
		}
	}
}

// TakeBuffer hands the link's buffer to the caller, who owns it from then on (PutBuffer), together with the offset in
// it at which the bytes given to the handler begin. Bytes behind keep, counted from that offset, stay with the link. Only the handler
// may call it, and it must return 0 consumed bytes afterwards.
func (l *Link) TakeBuffer(keep int) (b *Buffer, offset int) {
	b, offset = l.in, l.r
	rest := b[l.r+keep : l.w]
	l.in, l.r, l.w, l.taken = nil, 0, 0, true
	if len(rest) > 0 {
		l.in = GetBuffer()
		l.w = copy(l.in[:], rest)
	}
	return b, offset
}

func (l *Link) drop() {
	PutBuffer(l.in)
	l.in, l.r, l.w = nil, 0, 0
}

// Release gives the link's buffer back; for the goroutine that called Run, when it will not call it again.
func (l *Link) Release() { l.drop() }

// Pending reports whether bytes were read that no handler has consumed.
func (l *Link) Pending() bool { return l.w > l.r }

// TryWrite writes what it can. On the fast path it never waits: n < len(p) with a nil error means that the rest has to go
// through Write. On the ordinary path it is Write. One goroutine at a time may write.
func (l *Link) TryWrite(p []byte) (n int, err error) {
	if l.fast != nil {
		return l.fast.tryWrite(p)
	}
	return l.conn.Write(p)
}

// Write writes all of p and may wait for the peer. It must not be called from inside a handler of a fast link.
func (l *Link) Write(p []byte) (int, error) { return l.conn.Write(p) }

// Alive asks the kernel, without waiting, whether the peer has closed the connection or sent bytes that nobody asked
// for; quiet is false in both cases. Links that cannot tell are always quiet.
func (l *Link) Alive() (quiet bool) {
	if l.fast != nil {
		return l.fast.quiet()
	}
	return true
}

// Gone reports whether the peer is known to have closed its side. Links that cannot tell report false.
func (l *Link) Gone() bool { return l.fast != nil && l.fast.gone() }

// Broken reports whether the connection is known to have ended in both directions, even if there are bytes to be read.
// Links that cannot tell report false.
func (l *Link) Broken() bool { return l.fast != nil && l.fast.broken() }

var past = time.Unix(1, 0)

// Interrupt makes a Run that is under way, or the next one, return an error for which Interrupted is true. Any
// goroutine may call it.
func (l *Link) Interrupt() { _ = l.conn.SetReadDeadline(past) }

// ClearInterrupt undoes Interrupt; for the goroutine that calls Run, before it looks at why it was interrupted.
func (l *Link) ClearInterrupt() { _ = l.conn.SetReadDeadline(time.Time{}) }

// AbortWrites makes writes that are under way and all later ones fail. Any goroutine may call it.
func (l *Link) AbortWrites() { _ = l.conn.SetWriteDeadline(past) }

// Interrupted reports whether err is what Run returns after Interrupt.
func Interrupted(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// ErrEOF is what Run returns when the peer closed its side in good order.
var ErrEOF = io.EOF

// TryTerminate writes the message that ends a PostgreSQL session, without waiting; for the goroutine that called Run,
// when nobody writes any more.
func (l *Link) TryTerminate() {
	_ = l.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = l.conn.Write([]byte{'X', 0, 0, 0, 4})
}
