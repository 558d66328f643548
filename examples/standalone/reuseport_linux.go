package main

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// canReusePort says that several processes can accept from one port, each with a socket of its own.
const canReusePort = true

// reusePort is the Control of a net.ListenConfig for -reuseport.
func reusePort(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); e != nil {
		return e
	}
	return err
}

// refuseNew has the kernel drop what asks for new connections at a listener's socket, and nothing else. Closing a socket resets the
// connections in its queue, and as long as it is open the kernel puts more there; who is not answered asks again after a second,
// and finds the successor's socket once this one is closed. With net.ipv4.tcp_migrate_req=1 that would not be needed, but it is
// the machine's to set.
func refuseNew(l net.Listener) error {
	t, ok := l.(*net.TCPListener)
	if !ok {
		return errors.New("no TCP listener")
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	filter := dropSYN
	e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	})
	return errors.Join(e, err)
}

// dropSYN drops TCP segments with SYN and without ACK. The kernel shows a filter the segment from its TCP header on.
var dropSYN = [...]unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},                  // the flags
	{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0x12},               // SYN and ACK
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: 0x02}, // SYN alone
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},                                 // drop
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},                        // keep
}
