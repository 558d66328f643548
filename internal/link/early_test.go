package link_test

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/link"
)

func TestBytesThatWereReadBeforeComeFirst(t *testing.T) {
	for _, w := range wires {
		t.Run(w.name, func(t *testing.T) {
			near, far := w.make(t)
			t.Cleanup(func() { near.Close(); far.Close() })
			l := link.New(near, true)
			require.Nil(t, l.TakeKept())
			l.Unread(nil)
			l.Unread([]byte("ear"))
			l.Unread([]byte("ly"))
			require.Equal(t, "early", string(l.TakeKept()))
			require.Nil(t, l.TakeKept())
			l.Unread([]byte("first "))
			var got []byte
			handler := func(b []byte) (int, link.Next) {
				got = append(got, b...)
				if len(got) < len("first then") {
					return len(b), link.Park
				}
				return len(b), link.Leave
			}
			written := make(chan error, 1)
			go writeTo(far, "then", written)
			require.NoError(t, l.Run(handler))
			require.NoError(t, <-written)
			require.Equal(t, "first then", string(got))
		})
	}
}

// writeTo is the goroutine of the far side.
func writeTo(w io.Writer, s string, written chan<- error) {
	_, err := io.WriteString(w, s)
	written <- err
}
