package pgtest

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Versions are the major versions of PostgreSQL that tests run against.
var Versions = []int{15, 18}

// shared holds the clusters that the tests of one process have in common; StopAll empties it.
var shared = struct {
	sync.Mutex
	clusters map[int]*Cluster
}{clusters: map[int]*Cluster{}}

// Shared returns the cluster of a version that all tests of the process use side by side. Tests must neither stop it nor
// change it in ways that others would notice; TestMain must call Main or StopAll.
func Shared(t testing.TB, version int) *Cluster {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if c := shared.clusters[version]; c != nil {
		return c
	}
	c, err := newCluster(version, nil)
	require.NoError(t, err)
	shared.clusters[version] = c
	return c
}

// StopAll stops the shared clusters and removes their directories. No goroutine of theirs is left when it returns.
func StopAll() error {
	shared.Lock()
	defer shared.Unlock()
	var errs []error
	for version, c := range shared.clusters {
		errs = append(errs, c.destroy())
		delete(shared.clusters, version)
	}
	return errors.Join(errs...)
}

// Main runs a package's tests, stops the shared clusters, and returns the process's exit code.
func Main(m *testing.M) int {
	code := m.Run()
	if err := StopAll(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
