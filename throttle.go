package pgmoor

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
	"time"
)

// Defaults of [Throttle].
const (
	DefaultLoginFailures = 10
	DefaultLoginRecovery = 6 * time.Second
)

const (
	maxThrottled  = 10000 // how many networks and users are remembered: about 2 MB
	networkFactor = 10    // how many times the failures of one user a network may have
	goodFor       = time.Hour
)

// Throttle returns an Authenticator that bounds how often passwords may be guessed. From each network, which is an IPv4 address or
// a /64 of IPv6, a user's login may fail failures times (if zero, DefaultLoginFailures), and again once for every recovery that has
// passed since (if zero, DefaultLoginRecovery); all users' logins together ten times as often. Beyond that clients are refused with SQLSTATE 53300
// before anything is asked, with a hint how long to wait. What counts is an *[Error] with SQLSTATE 28P01, of next's.
//
// Nobody locks a user out from elsewhere: failures count where they come from. Behind a shared address they count for that
// user alone, until there are ten times as many, and then still not for users who have logged in from there within the hour. No more logins
// of a user from a network are under way at once than may still fail; others wait for them, unless such a user's. Clients of the
// same machine, through Unix sockets, are not counted. What is remembered is bounded, to 10,000 networks and users; those
// that were not heard of for longest are forgotten. It is kept for as long as the Authenticator is used, over [Proxy.Update] too.
func Throttle(next Authenticator, failures int, recovery time.Duration) Authenticator {
	return &throttle{
		next: next, limit: max(orDefault(failures, DefaultLoginFailures), 1), every: max(orDefault(recovery, DefaultLoginRecovery), 1),
		seed: maphash.MakeSeed(), origins: make(map[originKey]*list.Element),
	}
}

type throttle struct {
	next  Authenticator
	limit int
	every time.Duration
	seed  maphash.Seed

	mu      sync.Mutex
	origins map[originKey]*list.Element
	recent  list.List // of *origin, the latest in front
}

// originKey is a network with the hash of a user's name; 0: all of them.
type originKey struct {
	network netip.Prefix
	user    uint64
}

// origin is what is known of a network, or of a user there.
type origin struct {
	key     originKey
	clear   time.Time // when all failures are forgotten: as many are counted as recoveries fit until then
	good    time.Time // when a login last succeeded; of a user
	pending int       // logins under way
	ended   chan struct{}
}

// failures returns how many are counted.
func (o *origin) failures(now time.Time, every time.Duration) int {
	return int(math.Ceil(float64(max(o.clear.Sub(now), 0)) / float64(every)))
}

// check looks at what is throttled.
func (t *throttle) check(cfg *Config) error { return checkAuthenticator(t.next, cfg) }

// Authenticate counts what becomes of the login.
func (t *throttle) Authenticate(ctx context.Context, c *Client) error {
	network, ok := networkOf(c)
	if !ok {
		return t.next.Authenticate(ctx, c)
	}
	user := maphash.String(t.seed, c.user) | 1
	if err := t.enter(ctx, network, user); err != nil {
		return err
	}
	err := errors.New("pgmoor: the Authenticator panicked")
	defer func() { t.leave(network, user, err) }()
	err = t.next.Authenticate(ctx, c)
	return err
}

// networkOf returns the network that a client's failures count for; false where they do not.
func networkOf(c *Client) (netip.Prefix, bool) {
	ip, ok := addressOf(c.RemoteAddr())
	if !ok || c.isSocket() {
		return netip.Prefix{}, false
	}
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	return p, err == nil
}

// enter begins a login, as soon as it may.
func (t *throttle) enter(ctx context.Context, network netip.Prefix, user uint64) error {
	for {
		wait, err := t.tryEnter(network, user)
		if wait == nil {
			return err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tryEnter begins a login, or returns what to wait for, or why it is refused.
func (t *throttle) tryEnter(network netip.Prefix, user uint64) (wait <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	all, one := t.originLocked(originKey{network, 0}), t.originLocked(originKey{network, user})
	known := now.Sub(one.good) < goodFor
	for _, o := range []struct {
		*origin
		limit int
	}{{one, t.limit}, {all, t.limit * networkFactor}} {
		n := o.failures(now, t.every)
		switch {
		case known && o.origin == all:
		case n >= o.limit:
			return nil, tooManyFailures(o.clear.Sub(now) - time.Duration(o.limit-1)*t.every)
		case !known && n+o.pending >= o.limit:
			return o.ended, nil
		}
	}
	all.pending++
	one.pending++
	return nil, nil
}

func tooManyFailures(wait time.Duration) *Error {
	return &Error{
		Severity: "FATAL", Code: codeTooManyConnections, Message: "too many failed logins",
		Hint: fmt.Sprintf("The proxy bounds failed logins. Try again in %d seconds, with the right password.", max(int64(math.Ceil(wait.Seconds())), 1)),
	}
}

// leave ends a login that ended with err.
func (t *throttle) leave(network netip.Prefix, user uint64, err error) {
	var e *Error
	failed := errors.As(err, &e) && e.Code == codeBadPassword
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for _, k := range []originKey{{network, 0}, {network, user}} {
		o := t.originLocked(k)
		o.pending--
		close(o.ended)
		o.ended = make(chan struct{})
		switch {
		case failed && o.clear.Before(now):
			o.clear = now.Add(t.every)
		case failed:
			o.clear = o.clear.Add(t.every)
		case err == nil && k.user != 0:
			o.good = now
		}
	}
}

// originLocked returns what is known of an origin, and makes room for it where nothing is.
func (t *throttle) originLocked(k originKey) *origin {
	if el := t.origins[k]; el != nil {
		t.recent.MoveToFront(el)
		return el.Value.(*origin)
	}
	for el := t.recent.Back(); el != nil && t.recent.Len() >= maxThrottled; {
		prev := el.Prev()
		if o := el.Value.(*origin); o.pending == 0 { // of others there are no more than handshakes
			t.recent.Remove(el)
			delete(t.origins, o.key)
		}
		el = prev
	}
	o := &origin{key: k, ended: make(chan struct{})}
	t.origins[k] = t.recent.PushFront(o)
	return o
}
