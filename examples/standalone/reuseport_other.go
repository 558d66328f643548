//go:build !linux

package main

import (
	"net"
	"syscall"
)

// canReusePort says that -reuseport is refused: elsewhere such sockets do not share their clients, or not all of them do.
const canReusePort = false

func reusePort(_, _ string, _ syscall.RawConn) error { return nil }
func refuseNew(net.Listener) error                   { return nil }
