// Package memconn makes connections between two parties of one process.
//
// Unlike those of net.Pipe, the connections are buffered as sockets are, so two peers that both write first do not
// block each other. They block durably in the sense of testing/synctest, use its clock, start no goroutine, and hold
// no buffer while nothing is under way.
package memconn

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// BufferSize is the number of bytes that may be under way in each direction: a Write blocks when they are spent.
const BufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([BufferSize]byte) }}

// Pipe returns the two ends of a connection. Both have a method CloseWrite, as *net.TCPConn has. What was written before
// a Close or CloseWrite can still be read by the peer, which then gets io.EOF; writing to a peer that has closed is an
// io.ErrClosedPipe. Concurrent Writes to one end are not mixed with each other.
func Pipe() (client, server net.Conn) {
	p := new(struct{ up, down half })
	p.up.changed.L = &p.up.mu
	p.down.changed.L = &p.down.mu
	return &conn{in: &p.down, out: &p.up}, &conn{in: &p.up, out: &p.down}
}

type memAddr struct{}

func (memAddr) Network() string { return "mem" }
func (memAddr) String() string  { return "in-process" }

// conn is one end: it reads from in and writes to out.
type conn struct{ in, out *half }

func (c *conn) LocalAddr() net.Addr  { return memAddr{} }
func (c *conn) RemoteAddr() net.Addr { return memAddr{} }

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = opError("read", err)
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b)
	if err != nil {
		err = opError("write", err)
	}
	return n, err
}

// Close ends both directions and unblocks what waits on either end. Closing again does nothing.
func (c *conn) Close() error {
	c.in.leaveReader()
	c.out.endWriter(true)
	return nil
}

// CloseWrite ends the writing direction: the peer reads what is left, then io.EOF, and can still write.
func (c *conn) CloseWrite() error {
	if !c.out.endWriter(false) {
		return opError("close", net.ErrClosed)
	}
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	h := c.in
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.readerGone {
		return opError("set", net.ErrClosed)
	}
	h.setDeadlineLocked(&h.readBy, t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writerGone {
		return opError("set", net.ErrClosed)
	}
	h.setDeadlineLocked(&h.writeBy, t)
	return nil
}

func opError(op string, err error) error {
	return &net.OpError{Op: op, Net: memAddr{}.Network(), Source: memAddr{}, Addr: memAddr{}, Err: err}
}

// half is one direction of a connection: a ring of bytes between a writing and a reading end.
type half struct {
	mu      sync.Mutex
	changed sync.Cond // any field below has changed in a way that may end a wait

	ring  *[BufferSize]byte // nil while empty
	start int               // of the first unread byte
	size  int               // unread bytes

	writing    bool // a Write is under way; others wait for their turn
	ended      bool // the writing end will write no more
	writerGone bool // the writing end is closed altogether
	readerGone bool
	readBy     deadline
	writeBy    deadline
}

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.readerGone:
			return 0, net.ErrClosed
		case h.readBy.passed:
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case h.size > 0:
			n := h.takeLocked(b)
			h.changed.Broadcast()
			return n, nil
		case h.ended:
			return 0, io.EOF
		}
		h.changed.Wait()
	}
}

func (h *half) write(b []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.writing && h.writeErrLocked() == nil {
		h.changed.Wait()
	}
	if err := h.writeErrLocked(); err != nil {
		return 0, err
	}
	h.writing = true
	for {
		n += h.putLocked(b[n:])
		if n == len(b) {
			break
		}
		h.changed.Broadcast()
		h.changed.Wait()
		if err = h.writeErrLocked(); err != nil {
			break
		}
	}
	h.writing = false
	h.changed.Broadcast()
	return n, err
}

// writeErrLocked returns why a Write cannot go on, if so.
func (h *half) writeErrLocked() error {
	switch {
	case h.writerGone:
		return net.ErrClosed
	case h.writeBy.passed:
		return os.ErrDeadlineExceeded
	case h.ended, h.readerGone:
		return io.ErrClosedPipe
	}
	return nil
}

// putLocked moves as much of b into the ring as fits.
func (h *half) putLocked(b []byte) int {
	b = b[:min(len(b), BufferSize-h.size)]
	if len(b) == 0 {
		return 0
	}
	if h.ring == nil {
		h.ring = buffers.Get().(*[BufferSize]byte)
	}
	end := (h.start + h.size) % BufferSize
	n := copy(h.ring[end:], b)
	copy(h.ring[:], b[n:])
	h.size += len(b)
	return len(b)
}

// takeLocked moves bytes from the ring into b, and gives the ring back when none is left in it.
func (h *half) takeLocked(b []byte) int {
	b = b[:min(len(b), h.size)]
	n := copy(b, h.ring[h.start:])
	copy(b[n:], h.ring[:])
	h.start = (h.start + len(b)) % BufferSize
	h.size -= len(b)
	if h.size == 0 {
		h.releaseLocked()
	}
	return len(b)
}

func (h *half) releaseLocked() {
	if h.ring != nil {
		buffers.Put(h.ring)
	}
	h.ring, h.start, h.size = nil, 0, 0
}

// leaveReader marks the reading end as closed. What it has not read is dropped.
func (h *half) leaveReader() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readerGone = true
	h.readBy.stop()
	h.releaseLocked()
	h.changed.Broadcast()
}

// endWriter marks the end of what is written; with gone, its end as closed. It reports whether it was open before.
func (h *half) endWriter(gone bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	wasOpen := !h.writerGone
	h.ended = true
	if gone {
		h.writerGone = true
		h.writeBy.stop()
	}
	h.changed.Broadcast()
	return wasOpen
}

// setDeadlineLocked sets d, which is one of the two of h. A zero t means none.
func (h *half) setDeadlineLocked(d *deadline, t time.Time) {
	d.stop()
	if t.IsZero() {
		return
	}
	now := time.Now()
	wait := t.Sub(now)
	if wait <= 0 {
		d.passed = true
		h.changed.Broadcast()
		return
	}
	d.at = now.Add(wait) // with a monotonic reading, which t may lack
	if d.timer == nil {
		d.timer = time.AfterFunc(wait, h.expire)
		return
	}
	d.timer.Reset(wait)
}

// expire is called by the timers. It looks at the clock again since a timer that is stopped or reset while it fires still
// gets here.
func (h *half) expire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	h.readBy.check(now)
	h.writeBy.check(now)
	h.changed.Broadcast()
}

// deadline is the read or write deadline of a half, guarded by its lock.
type deadline struct {
	at     time.Time   // zero: none, or passed before it was set
	timer  *time.Timer // nil until first needed
	passed bool
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.at, d.passed = time.Time{}, false
}

func (d *deadline) check(now time.Time) {
	if !d.at.IsZero() && !now.Before(d.at) {
		d.passed = true
	}
}
