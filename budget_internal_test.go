package pgmoor

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A pool that has its share by now loses its claim to one that has less: then that one may have what is free, and has to be told.
func TestAClaimThatMovesUpIsTold(t *testing.T) {
	has := &pool{servers: 1, wake: make(chan struct{}, 1)}
	wants := &pool{waiting: 1, starved: true, wake: make(chan struct{}, 1)}
	b := &budget{limit: 2, used: 1, pools: []*pool{has, wants}, claims: []*pool{has}}
	require.False(t, b.take(wants), "it is spoken for")
	require.Len(t, wants.wake, 1)
	require.True(t, b.take(wants))
}
