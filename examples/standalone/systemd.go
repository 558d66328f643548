package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// metricsSocket is the FileDescriptorName of a socket that -metrics is served on. All others are for clients.
const metricsSocket = "metrics"

// firstInherited is the first of the descriptors that are passed (sd_listen_fds(3)).
const firstInherited = 3

// inheritedNames returns the names of the sockets that systemd, or whoever does as it does, has passed to this process by
// LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES; nil where there are none.
func inheritedNames() ([]string, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil // they were for a parent of ours
	}
	n, err := strconv.ParseUint(count, 10, 8)
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS=%q is not a number of sockets", count)
	}
	names := make([]string, n)
	copy(names, strings.Split(os.Getenv("LISTEN_FDNAMES"), ":"))
	return names, nil
}

// inheritedListener returns the listener on the i-th of the sockets. It can be called once for each.
func inheritedListener(i int) (net.Listener, error) {
	f := os.NewFile(uintptr(firstInherited+i), "socket "+strconv.Itoa(i))
	defer f.Close() // the listener has a descriptor of its own
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("what was passed as descriptor %d is no listening stream socket: %w", firstInherited+i, err)
	}
	return l, nil
}

// notify tells systemd how far the daemon is, where it wants to know (sd_notify(3)): READY=1, STOPPING=1.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}
