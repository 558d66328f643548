package pgmoor_test

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

var (
	randomScripts = flag.Int("scripts", 120, "random scripts per variant of the differential test")
	randomSeed    = flag.Uint64("seed", 1, "seed of the random scripts; 0: a new one")
)

var versions = []int{15, 18}

// startProxy serves a proxy on a free loopback port until the test ends.
func startProxy(t testing.TB, cfg pgmoor.Config) *pgmoor.Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p, err := pgmoor.New(l, cfg)
	require.NoError(t, err)
	served := make(chan error, 1)
	go serve(p, served)
	t.Cleanup(func() {
		require.NoError(t, p.Close())
		require.ErrorIs(t, <-served, pgmoor.ErrProxyClosed)
	})
	return p
}

func serve(p *pgmoor.Proxy, result chan<- error) { result <- p.Serve(context.Background()) }

// trusting is a configuration for a cluster that lets everybody in.
func trusting(c *pgtest.Cluster) pgmoor.Config {
	return pgmoor.Config{
		Upstream:      pgmoor.Upstream{Hosts: []string{c.Addr()}, SSLMode: "disable"},
		Authenticator: pgmoor.Trust(),
	}
}

// variants are the ways in which bytes can travel: each must give what PostgreSQL gives.
func variants(c *pgtest.Cluster) map[string]pgmoor.Config {
	one := trusting(c)
	one.MaxConnections = 1 // shared with the interfering client
	plain := pgmoor.WithPlainIO(one)
	plain.MaxConnections = 2
	secure := one
	secure.Upstream.SSLMode, secure.Upstream.TLSConfig = "verify-full", tlsRoots(c)
	turns := pgmoor.WithRotation(trusting(c))
	turns.MaxConnections, turns.MaxStatements = 4, 3
	return map[string]pgmoor.Config{"OneConnection": one, "PlainIO": plain, "TLSUpstream": secure, "TakenInTurn": turns}
}

func TestScriptsGetTheAnswersThatPostgreSQLGives(t *testing.T) {
	scripts, err := pgtest.ReadScripts(os.DirFS("testdata/session"))
	require.NoError(t, err)
	forEachVariant(t, 1, func(t *testing.T, c pgtest.Comparison, _ string) {
		c.Run(t, slices.Values(scripts))
	})
}

func TestRandomScriptsGetTheAnswersThatPostgreSQLGives(t *testing.T) {
	seed := *randomSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d: repeat with -seed %d -scripts %d", seed, seed, *randomScripts)
	forEachVariant(t, 2, func(t *testing.T, c pgtest.Comparison, _ string) {
		n := c.Run(t, pgtest.Random(seed, *randomScripts, 12))
		t.Logf("%d scripts agree", n)
	})
}

// TestRandomScriptsOfAListener does the same with sessions that listen, whose messages and answers take other ways.
func TestRandomScriptsOfAListener(t *testing.T) {
	seed := *randomSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d: repeat with -seed %d -scripts %d", seed, seed, *randomScripts)
	forEachVariant(t, 2, func(t *testing.T, c pgtest.Comparison, _ string) {
		n := c.Run(t, pgtest.RandomListening(seed, *randomScripts, 12))
		t.Logf("%d scripts agree", n)
	})
}

func forEachVariant(t *testing.T, workers int, run func(*testing.T, pgtest.Comparison, string)) {
	f, err := os.Open("testdata/allowed-differences.txt")
	require.NoError(t, err)
	defer f.Close()
	allow, err := pgtest.ReadDifferences(f)
	require.NoError(t, err)
	for _, version := range versions {
		cluster := pgtest.Shared(t, version)
		pgtest.Fixture(t, cluster)
		for name, cfg := range variants(cluster) {
			t.Run(fmt.Sprintf("%s/%d", name, version), func(t *testing.T) {
				p := startProxy(t, cfg)
				direct := cluster.Target()
				proxied := direct
				proxied.Dial = dialer(p)
				run(t, pgtest.Comparison{Direct: direct, Proxied: proxied, Allow: allow, Workers: workers, Timeout: 20 * time.Second}, name)
			})
		}
	}
}

func dialer(p *pgmoor.Proxy) pgtest.DialFunc {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", p.Addr().String())
	}
}

// tlsRoots trusts the cluster's own certificate authority.
func tlsRoots(c *pgtest.Cluster) *tls.Config { return &tls.Config{RootCAs: c.CACertPool()} }
