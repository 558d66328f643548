package main

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestARetiringSocketIsNotAnsweredAndKeepsWhoIsThere(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := (&options{reusePort: true}).listenTCP(address)
		require.NoError(t, err)
		defer l.Close()
		before, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		defer before.Close()
		require.NoError(t, refuseNew(l))
		_, err = net.DialTimeout("tcp", l.Addr().String(), 100*time.Millisecond)
		require.Error(t, err)
		there, err := l.Accept()
		require.NoError(t, err)
		defer there.Close()
		_, err = before.Write([]byte("x"))
		require.NoError(t, err)
		_, err = there.Read(make([]byte, 1))
		require.NoError(t, err)
	}
}
