package pgmoor_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/memconn"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// packet is a startup packet: its length, a code, and a body.
func packet(code uint32, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(binary.BigEndian.AppendUint32(b, code), body...)
}

const (
	version30  = 3 << 16
	sslRequest = 80877103
	gssRequest = 80877104
	cancelCode = 80877102
)

func login(version uint32) []byte { return packet(version, "user\x00u\x00\x00") }

// exchange writes bytes to a new network client's connection, and returns all that the proxy says until it hangs up.
func exchange(t testing.TB, l *memconn.Listener, b []byte) string {
	t.Helper()
	conn, err := l.DialContext(context.Background(), "", "")
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	_, _ = conn.Write(b) // it may hang up in the middle
	out, err := io.ReadAll(conn)
	require.NoError(t, err)
	return string(out)
}

// listenInMemory lets network clients come without a network.
func (r *rig) listenInMemory(t testing.TB) *memconn.Listener {
	t.Helper()
	l := memconn.Listen()
	require.NoError(t, r.AddListener(l))
	return l
}

// everybody lets network clients in.
func everybody(context.Context, *pgmoor.Client) error { return nil }

func open() pgmoor.Config { return pgmoor.Config{Authenticator: pgmoor.AuthenticatorFunc(everybody)} }

// refusal takes the only message of a refused login apart.
func refusal(t testing.TB, said string) *pgproto3.ErrorResponse {
	t.Helper()
	m, err := pgproto3.NewFrontend(strings.NewReader(said), io.Discard).Receive()
	require.NoError(t, err, "%q", said)
	e, ok := m.(*pgproto3.ErrorResponse)
	require.True(t, ok, "%q", said)
	require.Equal(t, "FATAL", e.Severity)
	return e
}

func TestAClientThatStopsAtAnyByteOfItsStartupIsCutOffInTime(t *testing.T) {
	secrets := pgmoor.StaticSecrets{"u": pgmoor.NewSecret("secret")}
	for name, begin := range map[string][]byte{
		"startup":         login(version30),
		"SSLRequest":      append(packet(sslRequest, ""), login(version30)...),
		"both encryption": append(append(packet(gssRequest, ""), packet(sslRequest, "")...), login(version30)...),
		"cancel request":  packet(cancelCode, "12345678"),
		"password":        append(login(version30), append([]byte{'p', 0, 0, 0, 46}, append([]byte("SCRAM-SHA-256\x00\x00\x00\x00\x18"), "n,,n=,r=123456789012345678"...)...)...),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, pgmoor.Config{Secrets: secrets, HandshakeTimeout: 5 * time.Second}, new(fake))
				l := r.listenInMemory(t)
				for n := range len(begin) {
					start := time.Now()
					said := exchange(t, l, begin[:n])
					require.Equal(t, 5*time.Second, time.Since(start), "after %d bytes", n)
					if n >= len(login(version30)) && name == "password" {
						require.Contains(t, said, "canceling authentication due to timeout")
					}
				}
				require.Zero(t, r.Stats().Handshaking)
			})
		})
	}
}

func TestAClientThatSendsOneByteAtATimeIsCutOffInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := open()
		cfg.HandshakeTimeout = 5 * time.Second
		r := newRig(t, cfg, new(fake))
		conn, err := r.listenInMemory(t).DialContext(t.Context(), "", "")
		require.NoError(t, err)
		defer conn.Close()
		start := time.Now()
		for _, b := range login(version30) {
			if _, err = conn.Write([]byte{b}); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		require.Error(t, err)
		require.Less(t, time.Since(start), 7*time.Second)
	})
}

func TestManyStalledHandshakesKeepNobodyOutForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := open()
		cfg.HandshakeTimeout, cfg.MaxHandshakes = 5*time.Second, 3
		r := newRig(t, cfg, new(fake))
		l := r.listenInMemory(t)
		for range 3 {
			conn, err := l.DialContext(t.Context(), "", "")
			require.NoError(t, err)
			defer conn.Close()
		}
		synctest.Wait()
		require.Equal(t, 3, r.Stats().Handshaking)
		r.connect(t, "inside").ok("SELECT 1")
		start := time.Now()
		conn, err := l.DialContext(t.Context(), "", "")
		require.NoError(t, err)
		require.EqualValues(t, 'I', newClient(t, conn).startup("u").status)
		require.Equal(t, 5*time.Second, time.Since(start))
	})
}

func TestStartupPacketsThatCannotBeOneAreRefused(t *testing.T) {
	long := func(n int) string { return "user\x00u\x00application_name\x00" + strings.Repeat("x", n) + "\x00\x00" }
	raw := func(n uint32) []byte {
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, n), version30)
	}
	for name, c := range map[string]struct {
		send []byte
		code string
	}{
		"length 0":                     {raw(0), "08P01"},
		"length 3":                     {raw(3), "08P01"},
		"length 7":                     {raw(7), "08P01"},
		"length 10001":                 {raw(10001), "08P01"},
		"length 2^31-1":                {raw(1<<31 - 1), "08P01"},
		"length 2^32-1":                {raw(1<<32 - 1), "08P01"},
		"a megabyte":                   {packet(version30, long(1<<20)), "08P01"},
		"version 2.0":                  {login(2 << 16), "0A000"},
		"version 4.0":                  {login(4 << 16), "0A000"},
		"version 0":                    {login(0), "0A000"},
		"no user":                      {packet(version30, "database\x00d\x00\x00"), "28000"},
		"empty user":                   {packet(version30, "user\x00\x00\x00"), "28000"},
		"nothing":                      {packet(version30, ""), "08P01"},
		"no terminator":                {packet(version30, "user\x00u\x00"), "08P01"},
		"a name without a value":       {packet(version30, "user\x00u\x00database\x00"), "08P01"},
		"bytes behind the terminator":  {packet(version30, "user\x00u\x00\x00x"), "08P01"},
		"SSLRequest twice":             {append(packet(sslRequest, ""), packet(sslRequest, "")...), "08P01"},
		"GSSENCRequest twice":          {append(packet(gssRequest, ""), packet(gssRequest, "")...), "08P01"},
		"one after both":               {bytes.Join([][]byte{packet(gssRequest, ""), packet(sslRequest, ""), packet(gssRequest, "")}, nil), "08P01"},
		"SSLRequest thrice":            {bytes.Repeat(packet(sslRequest, ""), 3), "08P01"},
		"a hundred of them":            {bytes.Repeat(append(packet(sslRequest, ""), packet(gssRequest, "")...), 50), "08P01"},
		"a password instead":           {append([]byte{'p'}, packet(version30, "")...), "08P01"},
		"a TLS record, with no TLS":    {[]byte{0x16, 3, 1, 0, 100, 1, 0, 0}, "08P01"},
		"an HTTP request":              {[]byte("GET / HTTP/1.0\r\n\r\n"), "08P01"},
		"a user name beyond all bound": {packet(version30, "user\x00"+strings.Repeat("u", 9990)+"\x00\x00"), "08P01"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, open(), new(fake))
				l := r.listenInMemory(t)
				start := time.Now()
				said := strings.TrimLeft(exchange(t, l, c.send), "N")
				require.Equal(t, c.code, refusal(t, said).Code)
				require.Zero(t, time.Since(start))
				require.Zero(t, r.server.Accepted())
				r.connect(t, "u").ok("SELECT 1")
			})
		})
	}
}

func TestLongParametersReachTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := strings.Repeat("x", 9900)
		server := &fake{refuse: func(p map[string]string) *pgproto3.ErrorResponse {
			if p["application_name"] != long {
				return &pgproto3.ErrorResponse{Severity: "FATAL", Code: "22000", Message: "another name"}
			}
			return nil
		}}
		newRig(t, open(), server).connect(t, "u", "application_name", long).ok("SELECT 1")
	})
}

func TestNewerProtocolsAreNegotiatedDown(t *testing.T) {
	for _, c := range []struct {
		version uint32
		options []string
		minor   int // -1: not said
		key     int
	}{
		{version30, nil, -1, 4},
		{version30 + 1, nil, 1, 4},
		{version30 + 2, nil, -1, 32},
		{version30 + 9999, nil, 2, 32},
		{version30 + 0xffff, nil, 2, 32},
		{version30, []string{"_pq_.one", "1"}, 0, 4},
		{version30 + 2, []string{"_pq_.one", "1", "_pq_.two", ""}, 2, 32},
	} {
		t.Run(fmt.Sprintf("3.%d%s", c.version&0xffff, strings.Join(c.options, ",")), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, open(), &fake{refuse: func(p map[string]string) *pgproto3.ErrorResponse {
					for name := range p {
						require.NotContains(t, name, "_pq_")
					}
					return nil
				}})
				conn, err := r.listenInMemory(t).DialContext(t.Context(), "", "")
				require.NoError(t, err)
				client := newClient(t, conn)
				body := "user\x00u\x00"
				for _, o := range c.options {
					body += o + "\x00"
				}
				_, err = conn.Write(packet(c.version, body+"\x00"))
				require.NoError(t, err)
				m, err := client.Receive()
				require.NoError(t, err)
				if c.minor >= 0 {
					n, ok := m.(*pgproto3.NegotiateProtocolVersion)
					require.True(t, ok, "%T", m)
					require.EqualValues(t, version30+c.minor, n.NewestMinorProtocol)
					require.Len(t, n.UnrecognizedOptions, len(c.options)/2)
					m, err = client.Receive()
					require.NoError(t, err)
				}
				require.IsType(t, &pgproto3.AuthenticationOk{}, m)
				require.EqualValues(t, 'I', client.reply().status)
				require.Len(t, client.key, c.key)
				client.ask("hang")
				synctest.Wait()
				r.cancelFor(client)
				require.Equal(t, "57014", client.reply().code())
			})
		})
	}
}

// TestTheProtocolIsTheServersOwn is about servers that know less than the proxy.
func TestTheProtocolIsTheServersOwn(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cluster := pgtest.Shared(t, version)
		p := startProxy(t, trusting(cluster))
		over(t, p).ok("SELECT 1") // from here on the proxy knows
		first := func(conn net.Conn) string {
			_, err := conn.Write(packet(version30+2, "user\x00postgres\x00database\x00app\x00\x00"))
			require.NoError(t, err)
			c := newClient(t, conn)
			m, err := c.Receive()
			require.NoError(t, err)
			n, _ := m.(*pgproto3.NegotiateProtocolVersion)
			require.EqualValues(t, 'I', c.reply().status)
			return fmt.Sprintf("%T %v, %d", m, n, len(c.key))
		}
		conn, err := p.DialContext(t.Context(), "", "")
		require.NoError(t, err)
		require.Equal(t, first(dialTCP(t, cluster.Addr())), first(conn))
	})
}

func TestEncryptionMayBeAskedForInAnyOrder(t *testing.T) {
	for _, codes := range [][]uint32{{sslRequest}, {gssRequest}, {sslRequest, gssRequest}, {gssRequest, sslRequest}} {
		synctest.Test(t, func(t *testing.T) {
			conn, err := newRig(t, open(), new(fake)).listenInMemory(t).DialContext(t.Context(), "", "")
			require.NoError(t, err)
			for _, code := range codes {
				_, err = conn.Write(packet(code, ""))
				require.NoError(t, err)
				var answer [1]byte
				_, err = io.ReadFull(conn, answer[:])
				require.NoError(t, err)
				require.Equal(t, "N", string(answer[:]))
			}
			c := newClient(t, conn)
			require.EqualValues(t, 'I', c.startup("u").status)
			c.ok("SELECT 1")
		})
	}
}

func TestCancelRequestsOfAnyLengthGetNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fake{onCancel: func(uint32) { t.Error("cancelled with a wrong key") }}
		r := newRig(t, open(), server)
		l := r.listenInMemory(t)
		c := r.connect(t, "u")
		c.ask("sleep 1m")
		synctest.Wait()
		pid := string(binary.BigEndian.AppendUint32(nil, c.pid))
		for n := range 300 {
			require.Empty(t, exchange(t, l, packet(cancelCode, (pid + strings.Repeat("x", 300))[:n])))
		}
		require.Empty(t, exchange(t, l, packet(cancelCode, pid+string(c.key[:3]))))
		require.Empty(t, exchange(t, l, packet(cancelCode, pid+string(c.key)+"x")))
		require.Empty(t, exchange(t, l, packet(cancelCode, "\x00\x00\x00\x01"+string(c.key))))
		require.Zero(t, r.Stats().Cancels)
		require.EqualValues(t, 'I', c.reply().status)
	})
}

func TestACancelRequestEndsOnlyTheQueryThatItIsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{MaxConnections: 2}, new(fake))
		a, b := r.connect(t, "u"), r.connect(t, "u")
		a.ask("hang")
		b.ask("sleep 10s")
		synctest.Wait()
		r.cancelFor(a)
		require.Equal(t, "57014", a.reply().code())
		r.cancelFor(a) // of a client that waits for nothing
		require.Nil(t, b.reply().err)
		a.ok("SELECT 1")
		require.EqualValues(t, 1, r.Stats().Cancels)
	})
}

func TestWithoutAnyWayToAuthenticateNetworkClientsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, pgmoor.Config{}, new(fake))
		require.Equal(t, "28000", refusal(t, exchange(t, r.listenInMemory(t), login(version30))).Code)
		require.Zero(t, r.server.Accepted())
		r.connect(t, "u").ok("SELECT 1") // in the same process
	})
}

func TestTrustIsForClientsOfTheSameMachineOnly(t *testing.T) {
	r := newRig(t, pgmoor.Config{Authenticator: pgmoor.Trust()}, new(fake))
	for name, c := range map[string]struct {
		addr net.Addr
		in   bool
	}{
		"loopback":                     {&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4711}, true},
		"loopback of IPv6":             {&net.TCPAddr{IP: net.IPv6loopback, Port: 4711}, true},
		"Unix":                         {&net.UnixAddr{Net: "unix"}, true},
		"foreign loopback":             {foreignAddr("127.0.0.1:4711"), true},
		"foreign loopback, no port":    {foreignAddr("::1"), true},
		"foreign loopback, mapped":     {foreignAddr("[::ffff:127.0.0.1]:4711"), true},
		"far away":                     {&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4711}, false},
		"far away, of IPv6":            {&net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 4711}, false},
		"foreign, far away":            {foreignAddr("203.0.113.9:4711"), false},
		"foreign, far away, no port":   {foreignAddr("203.0.113.9"), false},
		"foreign, a name":              {foreignAddr("localhost:4711"), false},
		"foreign, nothing":             {foreignAddr(""), false},
		"foreign, that says it is one": {foreignAddr("127.0.0.1.example.com:1"), false},
		"none":                         {nil, false},
		"none of TCP":                  {(*net.TCPAddr)(nil), false},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			require.NoError(t, r.AddListener(&elsewhere{l, c.addr}))
			conn, err := net.Dial("tcp", l.Addr().String())
			require.NoError(t, err)
			got := newClient(t, conn).startup("u")
			if c.in {
				require.EqualValues(t, 'I', got.status)
				return
			}
			require.Equal(t, "28000", got.code())
			require.Contains(t, got.err.Hint, "Unix socket")
		})
	}
}

// foreignAddr is an address of a type that the proxy does not know.
type foreignAddr string

func (foreignAddr) Network() string  { return "foreign" }
func (a foreignAddr) String() string { return string(a) }

// elsewhere is a listener whose clients come from an address of the test's choice.
type elsewhere struct {
	net.Listener
	addr net.Addr
}

type farConn struct {
	net.Conn
	addr net.Addr
}

func (l *elsewhere) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return farConn{c, l.addr}, nil
}

func (c farConn) RemoteAddr() net.Addr { return c.addr }

func TestAWrappedUnixConnectionIsPrivate(t *testing.T) {
	cfg := pgmoor.Config{Authenticator: pgmoor.AuthenticatorFunc(func(_ context.Context, c *pgmoor.Client) error {
		if !c.Private() {
			return errors.New("somebody may listen")
		}
		return nil
	})}
	r := newRig(t, cfg, new(fake))
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	require.NoError(t, r.AddListener(&elsewhere{l, foreignAddr("somebody")}))
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	require.EqualValues(t, 'I', newClient(t, conn).startup("u").status)
}

func TestLongNamesOfDatabasesAndUsersHurtNobody(t *testing.T) { // CVE-2012-4575
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, open(), new(fake))
		r.connect(t, strings.Repeat("u", 4900), "database", strings.Repeat("d", 4900)).ok("SELECT 1")
		r.connect(t, "u").ok("SELECT 1")
	})
}
