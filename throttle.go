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
	"sync/atomic"
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
// before anything is asked, with a hint how long to wait. What counts are errors of next's that say that what a client has sent was wrong:
// those that are an *[Error] with SQLSTATE 28P01, as a wrong password is, or that wrap [ErrInvalidToken], as a token does that is refused by
// [TokenAuth] or [OAuthBearer]. Who was not asked does not count, as where no rule of [HBA] is about a client or TLS is required; nor does
// a certificate that is missing or another's, which cannot be guessed; nor a client that asks an OAuthBearer who issues tokens; nor one whose
// token could not be verified, since its issuer cannot be reached.
//
// Nobody locks a user out from elsewhere: failures count where they come from. Behind a shared address they count for that
// user alone, until there are ten times as many, and then still not for users who have logged in from there within the hour. No more logins
// of a user from a network are under way at once than may still fail, and ten times as many of such a user's; others wait for them. Clients of the
// same machine, through Unix sockets, are not counted. What is remembered is bounded, to 10,000 networks and users; those
// that were not heard of for longest are forgotten. It is kept for as long as the Authenticator is used,
// and a [Proxy.Update] with another one of Throttle's in its place hands it on.
func Throttle(next Authenticator, failures int, recovery time.Duration) Authenticator {
	t := &throttle{next: next, limit: max(orDefault(failures, DefaultLoginFailures), 1), every: max(orDefault(recovery, DefaultLoginRecovery), 1)}
	t.seen.Store(&origins{seed: maphash.MakeSeed(), known: make(map[originKey]*list.Element)})
	return t
}

type throttle struct {
	next  Authenticator
	limit int
	every time.Duration
	seen  atomic.Pointer[origins] // of another one's too, after an Update
}

// origins are what is remembered.
type origins struct {
	seed maphash.Seed

	mu     sync.Mutex
	known  map[originKey]*list.Element
	recent list.List // of *origin, the latest in front
}

// inheritFailures hands what one Authenticator remembers on to that which takes its place, if both are throttles.
func inheritFailures(next, was Authenticator) {
	n, ok1 := next.(*throttle)
	w, ok2 := was.(*throttle)
	if ok1 && ok2 {
		n.seen.Store(w.seen.Load())
	}
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
func (t *throttle) check(cfg *Config) error { return checkPart(t.next, cfg) }

// Authenticate counts what becomes of the login.
func (t *throttle) Authenticate(ctx context.Context, c *Client) error {
	network, ok := networkOf(c)
	if !ok {
		return t.next.Authenticate(ctx, c)
	}
	seen := t.seen.Load()
	user := maphash.String(seen.seed, c.user) | 1
	if err := t.enter(ctx, seen, network, user); err != nil {
		return err
	}
	err := errors.New("pgmoor: the Authenticator panicked")
	defer func() { t.leave(seen, network, user, err) }()
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
func (t *throttle) enter(ctx context.Context, seen *origins, network netip.Prefix, user uint64) error {
	for {
		wait, err := t.tryEnter(seen, network, user)
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
func (t *throttle) tryEnter(seen *origins, network netip.Prefix, user uint64) (wait <-chan struct{}, err error) {
	seen.mu.Lock()
	defer seen.mu.Unlock()
	now := time.Now()
	all, one := seen.findLocked(originKey{network, 0}), seen.findLocked(originKey{network, user})
	known := now.Sub(one.good) < goodFor
	for _, o := range []struct {
		*origin
		limit int
	}{{one, t.limit}, {all, t.limit * networkFactor}} {
		n, most := o.failures(now, t.every), o.limit
		if known { // who stalls some does not keep the others waiting, and who guesses with all at once guesses no more often in the long run
			most *= networkFactor
		}
		switch {
		case known && o.origin == all:
		case n >= o.limit:
			return nil, tooManyFailures(o.clear.Sub(now) - time.Duration(o.limit-1)*t.every)
		case n+o.pending >= most:
			return o.ended, nil
		}
	}
	for _, k := range []originKey{{network, 0}, {network, user}} { // not for those who are refused: they would have others forgotten
		seen.originLocked(k).pending++
	}
	return nil, nil
}

func tooManyFailures(wait time.Duration) *Error {
	return &Error{
		Severity: "FATAL", Code: codeTooManyConnections, Message: "too many failed logins",
		Hint: fmt.Sprintf("The proxy bounds failed logins. Try again in %d seconds, with the right password.", max(int64(math.Ceil(wait.Seconds())), 1)),
	}
}

// leave ends a login that ended with err.
func (t *throttle) leave(seen *origins, network netip.Prefix, user uint64, err error) {
	failed := isGuess(err)
	seen.mu.Lock()
	defer seen.mu.Unlock()
	now := time.Now()
	for _, k := range []originKey{{network, 0}, {network, user}} {
		o := seen.originLocked(k)
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
		if o.pending == 0 && !now.Before(o.clear) && o.good.IsZero() { // nothing is known: it is not to take the place of what is
			seen.forgetLocked(k)
		}
	}
}

// isGuess reports whether a login failed because what the client sent was wrong.
func isGuess(err error) bool {
	var ours *authFailure
	var told *Error
	switch {
	case errors.As(err, &ours), errors.Is(err, errNoToken), errors.Is(err, errOthersCertificate):
		return false
	case errors.Is(err, ErrInvalidToken):
		return true
	}
	return errors.As(err, &told) && told.Code == codeBadPassword
}

// findLocked returns what is known of an origin; where that is nothing, one that is not kept.
func (s *origins) findLocked(k originKey) *origin {
	if el := s.known[k]; el != nil {
		s.recent.MoveToFront(el)
		return el.Value.(*origin)
	}
	return &origin{key: k}
}

func (s *origins) forgetLocked(k originKey) {
	s.recent.Remove(s.known[k])
	delete(s.known, k)
}

// originLocked returns what is known of an origin, and makes room for it where nothing is.
func (s *origins) originLocked(k originKey) *origin {
	if s.known[k] != nil {
		return s.findLocked(k)
	}
	for el := s.recent.Back(); el != nil && s.recent.Len() >= maxThrottled; {
		prev := el.Prev()
		if o := el.Value.(*origin); o.pending == 0 { // of others there are no more than handshakes
			s.recent.Remove(el)
			delete(s.known, o.key)
		}
		el = prev
	}
	o := &origin{key: k, ended: make(chan struct{})}
	s.known[k] = s.recent.PushFront(o)
	return o
}
