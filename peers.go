package pgmoor

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// This file passes cancel requests on. A load balancer sends a cancel request, which is a connection of its own, to any instance. So the
// process id of a client's cancel key tells which instance it is from, and how many more times it may be passed on: both stand in the half of the key
// that has never been a secret. The other half stays what it is without peers: 32 random bits in protocol 3.0, as PostgreSQL's own, and 256 in 3.2. (PgBouncer has 45
// in both halves together.)
//
//	bits 30–23  number of the instance; 0: it has none, and nobody passes the key on
//	bits 22–21  how often it may be passed on
//	bits 20–0   which of the instance's sessions it is: 2,097,152, more than a process may have sockets
const (
	numberShift = 23
	hopShift    = 21
	hopMask     = 3 << hopShift
	sessionMask = 1<<hopShift - 1
)

// Bounds on passing on.
const (
	passOnLimit = 5 * time.Second // from dialing to the answer
	maxPassedOn = 64              // at once; what comes beyond is dropped
)

// ErrNoPeer is returned by a [Peers] that does not know the instance.
var ErrNoPeer = errors.New("pgmoor: there is no such peer")

// Peers are the instances of which one load balancer makes one server. A cancel request that arrives at an instance other than the
// client's is passed on to that by its number, at most three times. The methods are called from several goroutines at
// once.
type Peers interface {
	// Self returns the number of this instance, which no other has; 0 as long as it has none: then clients that log in can be cancelled
	// at this instance only.
	Self() uint8
	// DialPeer connects to the listener of another instance, to send a cancel request. It returns [ErrNoPeer] where there is
	// none with that number. The connection is the caller's.
	DialPeer(ctx context.Context, number uint8) (net.Conn, error)
}

// StaticPeers is a [Peers] that is written down. It must not be changed while a Proxy uses it.
type StaticPeers struct {
	Number    uint8            // of this instance, from 1 on. Required
	Addresses map[uint8]string // of the others, "host:port", by number; it does no harm if this one is among them
	Dialer    Dialer           // nil: a net.Dialer
}

// Self returns Number.
func (p *StaticPeers) Self() uint8 { return p.Number }

// DialPeer connects to the address of a number.
func (p *StaticPeers) DialPeer(ctx context.Context, number uint8) (net.Conn, error) {
	address, ok := p.Addresses[number]
	if !ok {
		return nil, ErrNoPeer
	}
	d := p.Dialer
	if d == nil {
		d = &net.Dialer{}
	}
	return d.DialContext(ctx, "tcp", address)
}

// Validate says what is wrong with the fields. [New] calls it.
func (p *StaticPeers) Validate() error {
	if p.Number == 0 {
		return errors.New("pgmoor: StaticPeers.Number is zero: number the instances from 1 on")
	}
	for number, address := range p.Addresses {
		if _, _, err := net.SplitHostPort(address); number == 0 || err != nil {
			return fmt.Errorf("pgmoor: StaticPeers.Addresses[%d] is %q: it must be host:port, and the number at least 1", number, address)
		}
	}
	return nil
}

// peers returns the peers, or nil.
func (c *Config) peers() Peers {
	if c.Peers != nil {
		return c.Peers
	}
	p, _ := c.Budget.(Peers)
	return p
}

// number returns the number of this instance among its peers; 0 if it has none.
func (e *env) number() uint32 {
	if e.peers == nil {
		return 0
	}
	return uint32(e.peers.Self())
}

// nextPidLocked returns the next process id of the instance with that number, which may be in use.
func (e *env) nextPidLocked(number uint32) uint32 {
	e.lastPid++
	if e.peers == nil {
		if e.lastPid > 1<<31-1 {
			e.lastPid = firstPid
		}
		return e.lastPid
	}
	if number > 0 {
		return number<<numberShift | hopMask | e.lastPid&sessionMask
	}
	return firstPid | e.lastPid&sessionMask
}

// holder returns the session of a cancel key; nil if the key is not right.
func (e *env) holder(pid uint32, key []byte) *Session {
	if s := e.session(pid); s != nil && subtle.ConstantTimeCompare(s.secret, key) == 1 {
		return s
	}
	return nil
}

// passOn carries out a cancel request whose key has been passed on, or passes it on. Nothing comes of it where it may not be passed on any more, or
// too many are.
func (p *Proxy) passOn(pid uint32, key []byte) {
	peers, number := p.env.peers, pid>>numberShift
	if peers == nil || number == 0 || number > 255 {
		return
	}
	if s := p.env.holder(pid|hopMask, key); s != nil {
		s.cancel()
		return
	}
	if uint8(number) == peers.Self() || pid&hopMask == 0 {
		return
	}
	select {
	case p.passing <- struct{}{}:
		defer func() { <-p.passing }()
	default:
		return
	}
	ctx, stop := context.WithTimeout(p.ctx, passOnLimit)
	defer stop()
	conn, err := peers.DialPeer(ctx, uint8(number))
	if err == nil {
		err = passCancel(ctx, conn, pid-1<<hopShift, key)
	}
	if err != nil {
		p.env.log.Debug("pgmoor: cancel request not passed on", slog.Uint64("peer", uint64(number)), slog.Any("err", err))
		return
	}
	p.env.count.passedOn.Add(1)
}
