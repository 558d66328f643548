//go:build linux && !race

package link

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// fastIO does a socket's reads and writes with RawSyscall from inside RawConn callbacks. The descriptors are
// non-blocking, so no call can keep the thread; leaving the scheduler out is a third of the cost of a round trip.
// The race detector cannot see such accesses: race builds take the ordinary path.
type fastIO struct {
	raw syscall.RawConn

	// Reader's half: owned by the goroutine in Run.
	link    *Link
	readFn  func(fd uintptr) bool
	readErr error

	// Writer's half: owned by whoever may write.
	writeFn  func(fd uintptr) bool
	out      []byte
	outN     int
	writeErr error
}

// newFast returns nil unless conn is itself a socket of the net package: a type that embeds one may override Read.
func newFast(conn net.Conn) *fastIO {
	var raw syscall.RawConn
	var err error
	switch c := conn.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	f := &fastIO{raw: raw}
	f.readFn = f.onReadable
	f.writeFn = f.onWritable
	return f
}

func (l *Link) runFast() error {
	f := l.fast
	f.link, f.readErr = l, nil
	if err := f.raw.Read(f.readFn); err != nil {
		return err
	}
	return f.readErr
}

// onReadable is the body of the reading loop. Returning false parks the goroutine until the descriptor is readable.
func (f *fastIO) onReadable(fd uintptr) bool {
	l := f.link
	for {
		space := l.room()
		n, errno := sysRead(fd, space)
		switch {
		case errno == syscall.EINTR:
			continue
		case errno == syscall.EAGAIN:
			if l.r == l.w {
				l.drop()
			}
			return false
		case errno != 0:
			f.readErr = os.NewSyscallError("read", errno)
			return true
		case n == 0:
			f.readErr = io.EOF
			return true
		}
		l.w += n
		switch next := l.dispatch(); {
		case next == Leave:
			return true
		case next == Park && n < len(space):
			return false
		}
	}
}

func (f *fastIO) tryWrite(p []byte) (int, error) {
	f.out, f.outN, f.writeErr = p, 0, nil
	err := f.raw.Write(f.writeFn)
	f.out = nil
	if err == nil {
		err = f.writeErr
	}
	return f.outN, err
}

// onWritable writes as much as the socket takes and never waits for more room.
func (f *fastIO) onWritable(fd uintptr) bool {
	for f.outN < len(f.out) {
		n, errno := sysWrite(fd, f.out[f.outN:])
		switch errno {
		case 0:
			f.outN += n
		case syscall.EINTR:
		case syscall.EAGAIN:
			return true
		default:
			f.writeErr = os.NewSyscallError("write", errno)
			return true
		}
	}
	return true
}

func (f *fastIO) quiet() bool {
	n, errno := f.peek()
	return n < 0 && errno == syscall.EAGAIN
}

func (f *fastIO) gone() bool {
	n, errno := f.peek()
	return n == 0 || n < 0 && errno != syscall.EAGAIN && errno != syscall.EINTR
}

// pollFd is struct pollfd of poll(2).
type pollFd struct {
	fd      int32
	events  int16
	revents int16
}

// Errors and hang-ups are reported whatever is asked for.
const pollErr, pollHup = 0x8, 0x10

func (f *fastIO) broken() (broken bool) {
	err := f.raw.Control(func(fd uintptr) {
		p := pollFd{fd: int32(fd)}
		ts := syscall.Timespec{} // do not wait
		n, _, _ := syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
		broken = n == 1 && p.revents&(pollErr|pollHup) != 0
	})
	return broken || err != nil
}

// peek returns -1 and an errno, or how many bytes (0: end of stream, 1) are there to be read.
func (f *fastIO) peek() (n int, errno syscall.Errno) {
	n = -1
	err := f.raw.Control(func(fd uintptr) {
		var b [1]byte
		r, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1,
			syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if errno = e; e == 0 {
			n = int(r)
		}
	})
	if err != nil {
		return -1, syscall.EBADF
	}
	return n, errno
}

func sysRead(fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	return int(n), e
}

// sysWrite never raises SIGPIPE to the process: the Go runtime ignores it on descriptors above 2, as for conn.Write.
func sysWrite(fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	return int(n), e
}
