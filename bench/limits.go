package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
)

// descriptorsBeyondClients is what a process that serves idle clients needs on top: server connections,
// listeners, libraries, the harness's own files.
const descriptorsBeyondClients = 200

// raiseFileLimit makes room for the given number of sockets in us and in what we start. The limit must be set
// even when it is high enough: the Go runtime undoes its own raise in children, an explicit one it keeps.
func raiseFileLimit(clients int) error {
	want := uint64(clients + descriptorsBeyondClients)
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	if l.Max < want {
		raised := syscall.Rlimit{Cur: want, Max: want}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
			return nil
		}
		return fmt.Errorf("%d clients need %d file descriptors, the limit is %d; raise it (ulimit -Hn %d, as root) or leave the cells out: -cells",
			clients, want, l.Max, want)
	}
	l.Cur = l.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
}

// firstPort is where the search for free ports begins, clear of well-known services.
const firstPort = 15000

// freePort finds a loopback port below the range that outgoing connections take theirs from: with
// thousands of clients on one machine any port within it may be taken before it is listened on.
func freePort() (int, error) {
	low := 32768
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(b), &low)
	}
	for range 100 {
		port := 0
		if low > firstPort {
			port = firstPort + rand.IntN(low-firstPort)
		}
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		port = l.Addr().(*net.TCPAddr).Port
		return port, l.Close()
	}
	return 0, fmt.Errorf("no free loopback port found between %d and %d", firstPort, low)
}
