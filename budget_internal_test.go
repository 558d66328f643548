package pgmoor

import (
	"math"
	"sync"
	"testing"
	"time"

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

// Two pools of one database, and no connection left in all: what the one takes of the database's only to give it back is not missing to the
// other, or they would wake each other in turn, without an end.
func TestWhatIsOnlyTriedForIsMissingToNobody(t *testing.T) {
	shared, all := &budget{limit: 1}, &budget{limit: 0}
	one, two := &pool{budget: all, shares: []*budget{shared}}, &pool{budget: all, shares: []*budget{shared}}
	between := &pool{} // which holds one up in between
	shared.pools, all.pools = []*pool{one, two}, []*pool{between, one, two}
	between.mu.Lock()
	var wg sync.WaitGroup
	wg.Go(func() { one.mayDial() })
	require.Eventually(t, func() bool { used, _ := shared.usage(); return used == 1 }, 10*time.Second, time.Millisecond)
	tried := make(chan struct{})
	wg.Go(func() {
		two.mayDial()
		close(tried)
	})
	select {
	case <-tried:
	case <-time.After(50 * time.Millisecond): // it waits for one to be done
	}
	between.mu.Unlock()
	wg.Wait()
	require.Empty(t, shared.starved)
	require.Empty(t, shared.claims)
	require.Len(t, all.starved, 2)
}

func TestAnAbsurdLimitMayBeIdle(t *testing.T) {
	b := &budget{limit: math.MaxInt}
	require.Zero(t, b.idleSurplus(&Config{MaxIdleConnectionsPercent: 100}, time.Now(), 0))
}

// Where two pools have two openers each, the second one of each finding the token spoken for would wake the first one of the other, for ever.
func TestOpenersDoNotAskAfterOneThatFoundNothing(t *testing.T) {
	b := &budget{limit: 1}
	p := &pool{budget: b, opening: 2, starved: true}
	require.False(t, p.mayDial())
	require.Equal(t, 1, p.opening)
	used, _ := b.usage()
	require.Zero(t, used)
}

// A spare connection is not opened where another pool waits for its turn to log in for somebody, though it has asked for no token yet.
func TestASpareConnectionIsNotOpenedInSomebodysPlace(t *testing.T) {
	b := &budget{limit: 2, used: 1}
	spares := &pool{budget: b, opening: 1, wake: make(chan struct{}, 1)}
	waits := &pool{budget: b, opening: 1, waiting: 1, wake: make(chan struct{}, 1)}
	b.pools = []*pool{spares, waits}
	require.False(t, spares.maySpare())
	require.Equal(t, 1, b.used)
	waits.opening, spares.opening = 0, 1
	require.True(t, spares.maySpare())
}
