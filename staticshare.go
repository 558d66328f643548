package pgmoor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// StaticShare is a [Budget] that divides Limit evenly among the instances, whose number is fixed or counted in the DNS. It needs no store, and
// no instance asks another.
//
// What it guarantees is no more than that each instance holds at most Limit divided by the number of instances that it knows of. With
// a fixed number that is never exceeded in sum, as long as there are no more instances. With a number from the DNS it can be: a new
// instance takes its share as soon as it has counted itself, while the others hold theirs, which were larger, until they have counted again
// (Interval, plus what the DNS caches) and what is in use has been given back. Surge is the remedy: a number of instances that are
// counted though they are not there, as many as may be added at once. Of n instances with a Surge of s, s more do not exceed
// Limit. What that costs is that s of n+s parts are left unused. contrib/etcd exceeds nothing and leaves nothing unused.
//
// Its fields must not be changed while a Proxy uses it. One StaticShare may serve several.
type StaticShare struct {
	// Limit is how many server connections all instances together may hold. Required. What remains of the division is not used. An
	// instance that gets less than one gets none.
	Limit int

	// Instances is the number of instances or, with Service, the least number that is believed. Without Service it is required.
	Instances int

	// Service is the DNS name of the instances, each of which has one address of its own: that of a headless Service in Kubernetes, which should
	// publish addresses that are not ready, since such instances hold connections too. Until it was resolved for
	// the first time, Instances counts or, where that is zero, nothing is granted. When it cannot be resolved, the
	// last number stands.
	Service string

	// Lookup resolves Service; net.Resolver.LookupHost is one. If nil, net.DefaultResolver's.
	Lookup func(ctx context.Context, host string) (addresses []string, err error)

	// Interval is the time between two lookups. If zero, DefaultShareInterval.
	Interval time.Duration

	// Window is how long the greatest number that was seen counts: instances that come and go in a rollout, and the gaps of a DNS that
	// is being updated, do not move the shares. If zero, DefaultShareWindow; if negative, the latest number counts.
	Window time.Duration

	// Surge is how many instances are counted besides those that are there.
	Surge int

	// Logger receives what cannot be resolved, and what changes. If nil, slog.Default.
	Logger *slog.Logger
}

// Defaults of [StaticShare]'s fields.
const (
	DefaultShareInterval = 10 * time.Second
	DefaultShareWindow   = 5 * time.Minute
)

var _ Budget = (*StaticShare)(nil)

// Share grants the instance's share, and follows the number of instances until ctx ends.
func (b *StaticShare) Share(ctx context.Context, s *Share) error {
	if err := b.Validate(); err != nil {
		return err
	}
	c := counter{b: b, fixed: b.Instances}
	for {
		if b.Service != "" {
			c.count(ctx)
		}
		b.grant(s, &c)
		if b.Service == "" {
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(orDefault(b.Interval, DefaultShareInterval)):
		}
	}
}

// Validate says what is wrong with the fields. [New] calls it.
func (b *StaticShare) Validate() error {
	switch {
	case b.Limit <= 0:
		return errors.New("pgmoor: StaticShare.Limit must be positive: how many server connections all instances may hold")
	case b.Instances < 0 || b.Surge < 0 || b.Interval < 0:
		return errors.New("pgmoor: StaticShare.Instances, Surge and Interval must not be negative")
	case b.Instances == 0 && b.Service == "":
		return errors.New("pgmoor: StaticShare needs Instances, the number of instances, or Service, a DNS name that has all their addresses")
	case b.Instances+b.Surge > b.Limit:
		return fmt.Errorf("pgmoor: StaticShare.Limit is %d, which %d instances cannot share", b.Limit, b.Instances+b.Surge)
	}
	return nil
}

func (b *StaticShare) logger() *slog.Logger {
	if b.Logger == nil {
		return slog.Default()
	}
	return b.Logger
}

// grant grants what follows from the count.
func (b *StaticShare) grant(s *Share, c *counter) {
	n := c.instances(time.Now())
	if n == 0 || n == c.granted {
		return
	}
	c.granted = n
	share := b.Limit / (n + b.Surge)
	s.Grant(share)
	switch {
	case share == 0:
		b.logger().Error("pgmoor: there are more instances than server connections", "limit", b.Limit, "instances", n, "surge", b.Surge)
	case b.Service != "":
		b.logger().Info("pgmoor: share of server connections", "share", share, "limit", b.Limit, "instances", n, "surge", b.Surge)
	}
}

// counter counts the instances.
type counter struct {
	b       *StaticShare
	fixed   int
	seen    []sighting // oldest first, each greater than those behind it
	granted int        // for which number the last grant was
}

// sighting is how many instances there were at a time.
type sighting struct {
	n  int
	at time.Time
}

// instances returns how many instances count; 0 where nothing is known.
func (c *counter) instances(now time.Time) int {
	window := orDefault(c.b.Window, DefaultShareWindow)
	for len(c.seen) > 1 && now.Sub(c.seen[0].at) > window { // the latest stands, however old
		c.seen = c.seen[1:]
	}
	if len(c.seen) == 0 {
		return c.fixed
	}
	return max(c.fixed, c.seen[0].n)
}

// count looks the instances up.
func (c *counter) count(ctx context.Context) {
	lookup := c.b.Lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	ctx, stop := context.WithTimeout(ctx, orDefault(c.b.Interval, DefaultShareInterval))
	defer stop()
	addresses, err := lookup(ctx, c.b.Service)
	n := distinct(addresses)
	if err != nil || n == 0 {
		if !errors.Is(context.Cause(ctx), context.Canceled) {
			c.b.logger().Warn("pgmoor: the instances cannot be counted: the share stays as it is", "service", c.b.Service, "err", err)
		}
		return
	}
	for len(c.seen) > 0 && c.seen[len(c.seen)-1].n <= n {
		c.seen = c.seen[:len(c.seen)-1]
	}
	c.seen = append(c.seen, sighting{n: n, at: time.Now()})
}

// distinct returns how many different addresses there are, of the kind that is more frequent: an instance may have one of IPv4 and one of IPv6.
func distinct(addresses []string) int {
	four, six := map[string]bool{}, map[string]bool{}
	for _, a := range addresses {
		if ip := net.ParseIP(a); ip != nil && ip.To4() == nil {
			six[a] = true
		} else {
			four[a] = true
		}
	}
	return max(len(four), len(six))
}
