package pgmoor

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/pgmoor/pgmoor/internal/proxyproto"
)

// ProxyProtocol returns a listener for clients behind load balancers that speak the PROXY protocol, version 1 or 2 (HAProxy's
// send-proxy and send-proxy-v2, the target groups of AWS's network load balancers, Envoy, nginx). It takes l over, for [New] or
// [Proxy.AddListener], or for any other server.
//
// Connections from the trusted networks must begin with the header: one that does not is refused with SQLSTATE 08P01. All others
// are l's own connections, on which nothing is read ahead: for the Proxy a header is no valid startup packet. Connections without an IP
// address, as over Unix sockets, are not trusted, and without networks none is. An invalid prefix contains nothing; an IPv4-mapped
// one is the IPv4 network. Trust the balancers' addresses alone: whoever may send a header may say that it comes from anywhere.
//
// The address in the header is then what [Client.RemoteAddr] returns, what the log says and what [Trust] decides by. The
// balancer's own address remains where it speaks for itself (LOCAL, a health check), where it does not know its client's (UNKNOWN,
// UNSPEC), and where it says that its client is on its own machine, which need not be this one. [Trust] never takes a client for
// local of which a balancer on this machine cannot say where it is. LocalAddr is that of the connection, whatever the header says, and
// the balancer may send what else it likes (TLVs): it is skipped.
//
// Accept does not wait for headers. The Proxy reads them as part of a client's handshake, within Config.HandshakeTimeout, exactly to
// their end, and then has the connection itself: TLS and everything else behind the header are what they are without it. Anybody
// else who is given such a connection reads the header with the first Read, which fails where there is none; until then
// RemoteAddr is the balancer's.
func ProxyProtocol(l net.Listener, trusted ...netip.Prefix) net.Listener {
	p := &proxyListener{Listener: l, trusted: slices.Clone(trusted)}
	for i, n := range p.trusted {
		if a := n.Addr(); a.Is4In6() && n.Bits() >= 96 {
			p.trusted[i] = netip.PrefixFrom(a.Unmap(), n.Bits()-96)
		}
	}
	return p
}

// proxyListener is what ProxyProtocol returns.
type proxyListener struct {
	net.Listener
	trusted []netip.Prefix // constant
}

// Accept returns the next connection; one from a trusted network as a *proxiedConn.
func (l *proxyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil || !l.trusts(c.RemoteAddr()) {
		return c, err
	}
	return &proxiedConn{Conn: c}, nil
}

func (l *proxyListener) trusts(a net.Addr) bool {
	ip, ok := ipOf(a)
	return ok && slices.ContainsFunc(l.trusted, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// ipOf returns the IP address that an address is, or begins with, without a zone.
func ipOf(a net.Addr) (netip.Addr, bool) {
	if a == nil {
		return netip.Addr{}, false
	}
	if ap, err := netip.ParseAddrPort(a.String()); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	ip, err := netip.ParseAddr(a.String())
	return ip.Unmap().WithZone(""), err == nil
}

// proxiedConn is a connection from a trusted network, whose header is read before anything else.
type proxiedConn struct {
	net.Conn

	once sync.Once // around the reading of the header, by whoever reads first
	err  error     // of that; constant once it is done

	from atomic.Pointer[net.Addr] // whose connection it is; nil before the header was read
}

// Read reads the header first.
func (c *proxiedConn) Read(b []byte) (int, error) {
	if err := c.header(); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// RemoteAddr returns the client's address, or the balancer's before the header was read.
func (c *proxiedConn) RemoteAddr() net.Addr {
	if a := c.from.Load(); a != nil {
		return *a
	}
	return c.Conn.RemoteAddr()
}

// header reads the header, once. Its error is an *Error for a balancer that does not send one.
func (c *proxiedConn) header() error {
	c.once.Do(c.readHeader)
	return c.err
}

func (c *proxiedConn) readHeader() {
	h, err := proxyproto.Read(c.Conn)
	var format *proxyproto.FormatError
	switch {
	case errors.As(err, &format):
		c.err = &Error{
			Severity: "FATAL", Code: codeProtocolViolation, Message: format.Reason,
			Hint: "The proxy expects one from this address. Connect through the load balancer, have it send the header, " +
				"or take the address out of the networks that the proxy trusts.",
		}
	case err != nil:
		c.err = err
	default:
		a := clientAddr(h, c.Conn.RemoteAddr())
		c.from.Store(&a)
	}
}

// clientAddr is the address of the client for which a balancer sent a header. Whatever the balancer says, only an address of this
// machine reads as one: what is local there is local here only if the balancer is.
func clientAddr(h proxyproto.Header, balancer net.Addr) net.Addr {
	here := isLocal(balancer)
	switch {
	case h.Local:
		return balancer
	case h.Source == nil && here:
		return unknownAddr{balancer}
	case h.Source == nil || !here && isLocal(h.Source):
		return balancer
	}
	return h.Source
}

// unknownAddr is the address of a client of which nobody knows it, behind a balancer on this machine.
type unknownAddr struct{ balancer net.Addr }

// Network returns that of the balancer's connection.
func (a unknownAddr) Network() string { return a.balancer.Network() }

// String is no IP address.
func (a unknownAddr) String() string { return "unknown, through " + a.balancer.String() }

// unwrap reads the header of a connection that has one, and leaves the client with the connection beneath.
func (c *Client) unwrap() error {
	p, ok := c.conn.(*proxiedConn)
	if !ok {
		return nil
	}
	if err := p.header(); err != nil {
		return orGone(err)
	}
	c.conn, c.from = p.Conn, p.RemoteAddr()
	return nil
}
