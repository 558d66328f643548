package pgmoor_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/memconn"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// header2 is a header of version 2 of the PROXY protocol.
func header2(command, family byte, body ...byte) string {
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x20|command, family)
	return string(append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...))
}

const header1 = "PROXY TCP4 203.0.113.7 198.51.100.1 54321 5432\r\n"

var (
	inet  = []byte{203, 0, 113, 7, 198, 51, 100, 1, 0xd4, 0x31, 21, 56}
	inet6 = slices.Concat(net.ParseIP("2001:db8::7"), net.ParseIP("2001:db8::1"), []byte{0xd4, 0x31, 21, 56})
	unix  = append([]byte("/run/client"), make([]byte, 205)...)
	sni   = "\x02\x00\x02db"
)

// seen is an Authenticator that lets everybody in and tells of whom it was asked.
type seen chan *pgmoor.Client

func (s seen) Authenticate(_ context.Context, c *pgmoor.Client) error {
	s <- c
	return nil
}

// behindBalancer serves p's clients on another port too, behind a balancer in the networks.
func behindBalancer(t testing.TB, p *pgmoor.Proxy, trusted ...netip.Prefix) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, p.AddListener(pgmoor.ProxyProtocol(l, trusted...)))
	return l.Addr().String()
}

func TestAHeaderSaysWhoTheClientIs(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cfg := trusting(pgtest.Shared(t, version))
		who := make(seen, 1)
		cfg.Authenticator = who
		p := startProxy(t, cfg)
		address := behindBalancer(t, p, loopback)
		for header, want := range map[string]string{
			header1: "203.0.113.7:54321",
			"PROXY TCP6 2001:db8::7 2001:db8::1 54321 5432\r\n": "[2001:db8::7]:54321",
			"PROXY TCP6 ::ffff:127.0.0.1 ::1 54321 5432\r\n":    "127.0.0.1:54321",
			"PROXY UNKNOWN\r\n":                       "unknown, through ",
			"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n":   "unknown, through ",
			header2(1, 0x11, inet...):                 "203.0.113.7:54321",
			header2(1, 0x11, append(inet, sni...)...): "203.0.113.7:54321",
			header2(1, 0x21, inet6...):                "[2001:db8::7]:54321",
			header2(1, 0x31, unix...):                 "/run/client",
			header2(1, 0, []byte(sni)...):             "unknown, through ",
			header2(0, 0):                             "127.0.0.1:",
			header2(0, 0x11, inet...):                 "127.0.0.1:",
		} {
			conn := dialTCP(t, address)
			_, err := conn.Write([]byte(header + string(packet(version30, "user\x00app\x00database\x00app\x00\x00"))))
			require.NoError(t, err)
			c := newClient(t, conn)
			require.EqualValues(t, 'I', c.reply().status, "%q", header)
			got := <-who
			require.Contains(t, got.RemoteAddr().String(), want)
			require.IsType(t, &net.TCPConn{}, pgmoor.ConnOf(got), "the fast path is for sockets alone")
			require.Equal(t, "42", c.ok("BEGIN", "SELECT 42"))
			c.ok("COMMIT")
		}
		require.Zero(t, p.Stats().LoginFailures)
	})
}

func TestEncryptionBeginsBehindTheHeader(t *testing.T) {
	cfg := open()
	cfg.TLS, _ = certified(t)
	cfg.HandshakeTimeout = time.Second
	who := make(seen, 1)
	cfg.Authenticator = who
	r := newRig(t, cfg, new(fake))
	address := behindBalancer(t, r.Proxy, loopback)
	for _, header := range []string{header1, header2(1, 0x11, append(inet, sni...)...)} {
		for _, ask := range []string{string(packet(sslRequest, "")), ""} { // direct TLS without
			conn := dialTCP(t, address)
			_, err := conn.Write([]byte(header + ask))
			require.NoError(t, err)
			if ask != "" {
				var answer [1]byte
				_, err = io.ReadFull(conn, answer[:])
				require.NoError(t, err)
				require.Equal(t, "S", string(answer[:]))
			}
			c := newClient(t, tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postgresql"}}))
			require.EqualValues(t, 'I', c.startup("u").status)
			require.Equal(t, "203.0.113.7:54321", (<-who).RemoteAddr().String())
			c.ok("SELECT 1")
		}
		conn := dialTCP(t, address)
		_, err := conn.Write([]byte(header + string(packet(sslRequest, "")) + string(login(version30)))) // CVE-2021-3935
		require.NoError(t, err)
		said, _ := io.ReadAll(conn)
		require.NotContains(t, string(said), "Z\x00\x00\x00\x05I", "let in")
	}
}

func TestACancelRequestComesBehindAHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, open(), new(fake))
		dial := r.throughBalancer(t)
		c := r.connect(t, "u")
		c.ask("hang")
		synctest.Wait()
		c.requestCancel(dial(header1))
		require.Equal(t, "57014", c.reply().code())
	})
}

// throughBalancer returns a function that connects, in memory, from a balancer on this machine, and sends something.
func (r *rig) throughBalancer(t *testing.T) (dial func(in string) net.Conn) {
	mem := memconn.Listen()
	require.NoError(t, r.AddListener(pgmoor.ProxyProtocol(addressed{mem, "127.0.0.1:1"}, loopback)))
	return func(in string) net.Conn {
		conn, err := mem.DialContext(t.Context(), "", "")
		require.NoError(t, err)
		_, err = conn.Write([]byte(in))
		require.NoError(t, err)
		return conn
	}
}

func TestOnlyTrustedNetworksSendHeaders(t *testing.T) {
	who := make(seen, 1)
	cfg := open()
	cfg.Authenticator = who
	r := newRig(t, cfg, new(fake))
	for _, trusted := range [][]netip.Prefix{nil, {{}}, {netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::/0")}} {
		address := behindBalancer(t, r.Proxy, trusted...)
		c := newClient(t, dialTCP(t, address))
		require.EqualValues(t, 'I', c.startup("u").status)
		require.Equal(t, c.conn.LocalAddr().String(), (<-who).RemoteAddr().String())
		for _, header := range []string{header1, header2(1, 0x11, inet...)} {
			conn := dialTCP(t, address)
			_, err := conn.Write([]byte(header + string(login(version30))))
			require.NoError(t, err)
			said, _ := io.ReadAll(conn)
			if len(said) > 0 { // what was left unread resets the connection
				require.Equal(t, "invalid length of startup packet", refusal(t, string(said)).Message)
			}
		}
	}
	for _, trusted := range []string{"127.0.0.1/32", "::ffff:127.0.0.0/104"} {
		conn := dialTCP(t, behindBalancer(t, r.Proxy, netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix(trusted)))
		_, err := conn.Write([]byte(header1))
		require.NoError(t, err)
		require.EqualValues(t, 'I', newClient(t, conn).startup("u").status)
		<-who
	}
}

func TestWithoutAHeaderNobodyComesInFromATrustedNetwork(t *testing.T) {
	r := newRig(t, open(), new(fake))
	address := behindBalancer(t, r.Proxy, loopback)
	for _, in := range []string{
		string(login(version30)), string(packet(sslRequest, "")), "\x16\x03\x01\x02\x00\x01", "PROXY TCP4 a b c d\r\n",
		"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n" + string(login(version30)), header2(1, 0x11, inet[:4]...), header2(7, 0),
	} {
		conn := dialTCP(t, address)
		_, err := conn.Write([]byte(in))
		require.NoError(t, err)
		e, err := io.ReadAll(io.LimitReader(conn, 30))
		if err == nil && len(e) > 0 {
			require.Contains(t, string(e), "FATAL\x00C08P01", "%q", in)
		}
	}
	c := newClient(t, dialTCP(t, address))
	e := c.startup("u").err
	require.Contains(t, e.Message, "PROXY protocol")
	require.Contains(t, e.Hint, "load balancer")
	require.Eventually(t, func() bool { return r.Stats().LoginFailures == 8 }, 10*time.Second, time.Millisecond)
	for _, in := range []string{"", "PROXY TCP4 1.2", header1, header2(0, 0)} { // health checks
		conn := dialTCP(t, address)
		_, err := conn.Write([]byte(in))
		require.NoError(t, err)
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
		said, err := io.ReadAll(conn)
		require.NoError(t, err)
		require.Empty(t, said)
	}
	require.EqualValues(t, 8, r.Stats().LoginFailures)
	require.Zero(t, r.server.Accepted())
}

// addressed is a listener in memory whose clients come from a network.
type addressed struct {
	*memconn.Listener
	from string
}

func (l addressed) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &addressedConn{Conn: c, from: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(l.from))}, err
}

type addressedConn struct {
	net.Conn
	from net.Addr
}

func (c *addressedConn) RemoteAddr() net.Addr { return c.from }

func TestTrustIsForThoseWhoAreHereHoweverTheyCome(t *testing.T) {
	const far, near = "10.0.0.5:1000", "127.0.0.1:1000"
	for _, test := range []struct {
		from, header, address string
		in                    bool
	}{
		{near, header1, "203.0.113.7:54321", false},
		{near, "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", "127.0.0.1:1", true},
		{near, header2(1, 0x31, unix...), "/run/client", true},
		{near, "PROXY UNKNOWN\r\n", "unknown, through " + near, false},
		{near, header2(1, 0), "unknown, through " + near, false},
		{near, header2(1, 0x12, inet...), "unknown, through " + near, false},
		{near, header2(0, 0x11, inet...), near, true},
		{far, header1, "203.0.113.7:54321", false},
		{far, "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", far, false},
		{far, "PROXY TCP6 ::ffff:127.0.0.1 ::1 1 2\r\n", far, false},
		{far, "PROXY TCP6 ::1 ::1 1 2\r\n", far, false},
		{far, header2(1, 0x31, unix...), far, false},
		{far, "PROXY UNKNOWN\r\n", far, false},
		{far, header2(0, 0), far, false},
	} {
		for _, wrapped := range []bool{false, true} {
			addresses := make(chan string, 1)
			cfg := open()
			cfg.Authenticator = pgmoor.AuthenticatorFunc(func(ctx context.Context, c *pgmoor.Client) error {
				addresses <- c.RemoteAddr().String()
				return pgmoor.Trust().Authenticate(ctx, c)
			})
			r := newRig(t, cfg, new(fake))
			mem := memconn.Listen()
			l := pgmoor.ProxyProtocol(addressed{mem, test.from}, loopback, netip.MustParsePrefix("10.0.0.0/8"))
			if wrapped {
				l = wrapping{l}
			}
			require.NoError(t, r.AddListener(l))
			conn, err := mem.DialContext(t.Context(), "", "")
			require.NoError(t, err)
			_, err = conn.Write([]byte(test.header))
			require.NoError(t, err)
			require.Equal(t, test.in, newClient(t, conn).startup("u").status == 'I', "%+q", test)
			require.Equal(t, test.address, <-addresses)
		}
	}
}

// wrapping is a listener that puts something of its own around every connection.
type wrapping struct{ net.Listener }

func (l wrapping) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return struct{ net.Conn }{c}, err
}

func TestASlowHeaderHoldsNobodyUpAndHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := open()
		cfg.HandshakeTimeout = 10 * time.Second
		r := newRig(t, cfg, new(fake))
		through := r.throughBalancer(t)
		dial := func(in string) *client { return newClient(t, through(in)) }
		began := time.Now()
		slow := []*client{dial(""), dial("PROXY TCP4 1.2.3"), dial(header2(1, 0x11, inet...)[:20]), dial(header2(1, 0, make([]byte, 9000)...)[:1000]), dial(header1)}
		require.EqualValues(t, 'I', dial(header1).startup("u").status)
		require.Zero(t, time.Since(began))
		for _, c := range slow {
			c.ended("")
		}
		require.Equal(t, cfg.HandshakeTimeout, time.Since(began))
		require.EqualValues(t, len(slow), r.Stats().LoginFailures)

		late := dial("PROXY TCP4 1.2.3")
		synctest.Wait()
		require.NoError(t, r.Close())
		late.ended("")
		require.Equal(t, cfg.HandshakeTimeout, time.Since(began))
	})
}

func TestOtherServersMayUseTheListener(t *testing.T) {
	mem := memconn.Listen()
	l := pgmoor.ProxyProtocol(addressed{mem, "127.0.0.1:1"}, loopback)
	defer l.Close()
	for header, want := range map[string]string{header1: "203.0.113.7:54321", "GET / HTTP/1.1": "127.0.0.1:1"} {
		var server net.Conn
		accepted := make(chan error)
		go acceptOne(l, &server, accepted)
		client, err := mem.DialContext(t.Context(), "", "")
		require.NoError(t, err)
		require.NoError(t, <-accepted)
		require.Equal(t, "127.0.0.1:1", server.RemoteAddr().String())
		_, err = client.Write([]byte(header + "behind"))
		require.NoError(t, err)
		var b [6]byte
		_, err = io.ReadFull(server, b[:])
		if strings.HasPrefix(header, "PROXY") {
			require.NoError(t, err)
			require.Equal(t, "behind", string(b[:]))
		} else {
			require.ErrorContains(t, err, "does not begin with a PROXY protocol header")
			_, err = server.Read(b[:])
			require.ErrorContains(t, err, "does not begin with a PROXY protocol header")
		}
		require.Equal(t, want, server.RemoteAddr().String())
		require.NoError(t, server.Close())
	}
}

// acceptOne is the goroutine of a server that wants one client.
func acceptOne(l net.Listener, c *net.Conn, done chan<- error) {
	var err error
	*c, err = l.Accept()
	done <- err
}
