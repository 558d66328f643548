package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// serverPlay is a server that answers one client with a fixed text, whatever it says.
type serverPlay struct {
	l    net.Listener
	text []byte
	done chan struct{}
}

func (s *serverPlay) serve() {
	defer close(s.done)
	conn, err := s.l.Accept()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = conn.Write(s.text)
	_, _ = io.Copy(io.Discard, conn)
}

// play starts a server that says text and returns where it is.
func play(t *testing.T, text string) endpoint {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &serverPlay{l: l, text: []byte(text), done: make(chan struct{})}
	go s.serve()
	t.Cleanup(func() { _ = l.Close(); <-s.done })
	return endpoint{addr: l.Addr().String(), user: "u", db: "d"}
}

const (
	welcome = "R\x00\x00\x00\x08\x00\x00\x00\x00" + "S\x00\x00\x00\x18server_version\x0015.1\x00" + ready
	ready   = "Z\x00\x00\x00\x05I"
	row     = "D\x00\x00\x00\x0a\x00\x01\xff\xff\xff\xff"
	failure = "E\x00\x00\x00\x10SERROR\x00Mno\x00\x00"
)

func TestAQueryCountsTheBytesOfItsAnswer(t *testing.T) {
	c, err := play(t, welcome+row+row+ready).connect(t.Context(), 64)
	require.NoError(t, err)
	defer c.close()
	require.Equal(t, "15.1", c.server)
	n, err := c.query("SELECT")
	require.NoError(t, err)
	require.EqualValues(t, 2*len(row)+len(ready), n)
}

func TestAnErrorIsReturnedWhenTheQueryHasEnded(t *testing.T) {
	c, err := play(t, welcome+row+failure+ready+ready).connect(t.Context(), 64)
	require.NoError(t, err)
	defer c.close()
	_, err = c.query("SELECT")
	require.EqualError(t, err, "server: no")
	_, err = c.query("SELECT")
	require.NoError(t, err)
}

func TestALoginThatWantsAPasswordSaysSo(t *testing.T) {
	_, err := play(t, "R\x00\x00\x00\x08\x00\x00\x00\x03").connect(t.Context(), 64)
	require.ErrorContains(t, err, "asks for a password")
}

func TestALoginIsRefusedAMessageOfAbsurdLength(t *testing.T) {
	for _, text := range []string{"S\x7f\xff\xff\xff", "S\xff\xff\xff\xff"} {
		_, err := play(t, text).connect(t.Context(), 64)
		require.ErrorContains(t, err, "message 'S' of")
	}
}

func TestCancellingTheContextEndsAQuery(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c, err := play(t, welcome).connect(ctx, 64)
	require.NoError(t, err)
	defer c.close()
	cancel()
	_, err = c.query("SELECT")
	require.Error(t, err)
}

func TestCopyInFeedsTheBlockAsOftenAsAsked(t *testing.T) {
	c, err := play(t, welcome+"G\x00\x00\x00\x07\x00\x00\x00"+ready).connect(t.Context(), 64)
	require.NoError(t, err)
	defer c.close()
	n, err := c.copyIn("COPY", copyRows(), 3)
	require.NoError(t, err)
	require.EqualValues(t, 3*copyBlock*(bulkRowBytes+6), n)
}

func TestCopyRowsAreWholeMessages(t *testing.T) {
	block := copyRows()
	require.Equal(t, []byte{'d', 0, 0, 3, 0xed}, block[:5])
	require.Equal(t, copyBlock, bytes.Count(block, []byte{'\n'}))
	require.Zero(t, bulkRows%copyBlock)
}
