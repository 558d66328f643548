package pgmoor_test

import (
	"crypto/tls"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/memconn"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// hostileServer is a server that does harm to who logs in. It lets the connection be closed when attack returns.
type hostileServer struct {
	attack func(c *attacked)
	got    atomic.Value // string: a password that was sent to it
}

// attacked is a connection to a hostileServer.
type attacked struct {
	*pgtest.FakeConn
	server *hostileServer
}

// wantsTLS reads the SSLRequest and answers it.
func (c *attacked) wantsTLS(answer string) {
	_, _ = io.ReadFull(c.Conn, make([]byte, 8))
	_, _ = io.WriteString(c.Conn, answer)
}

// encrypt goes on with TLS.
func (c *attacked) encrypt(cfg *tls.Config) {
	c.Conn = tls.Server(c.Conn, cfg)
	c.Backend = pgproto3.NewBackend(c.Conn, c.Conn)
}

// begins reads the startup message, and then asks for SCRAM, and returns the client's nonce.
func (c *attacked) begins() (nonce string) {
	if c.ReceiveStartup() != nil {
		return ""
	}
	_ = c.Send(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-256"}})
	_ = c.Backend.SetAuthType(pgproto3.AuthTypeSASL)
	m, err := c.Backend.Receive()
	if first, ok := m.(*pgproto3.SASLInitialResponse); err == nil && ok {
		_, nonce, _ = strings.Cut(string(first.Data), "r=")
	}
	return nonce
}

// continues sends the server-first-message, and waits for an answer to it.
func (c *attacked) continues(text string) {
	_ = c.Send(&pgproto3.AuthenticationSASLContinue{Data: []byte(text)})
	_ = c.Backend.SetAuthType(pgproto3.AuthTypeSASLContinue)
	_, _ = c.Backend.Receive()
}

// asks asks for the password in a simple way.
func (c *attacked) asks(m pgproto3.BackendMessage, kind uint32) {
	if c.ReceiveStartup() != nil {
		return
	}
	_ = c.Send(m)
	_ = c.Backend.SetAuthType(kind)
	answer, err := c.Backend.Receive()
	if p, ok := answer.(*pgproto3.PasswordMessage); err == nil && ok {
		c.server.got.Store(p.Password)
	}
}

// endlessly sends a message until the connection is closed.
func (c *attacked) endlessly(m pgproto3.BackendMessage) {
	if c.ReceiveStartup() != nil || c.Send(&pgproto3.AuthenticationOk{}) != nil {
		return
	}
	for c.Send(m) == nil {
	}
}

const salted = ",s=c2FsdHNhbHRzYWx0c2FsdA==,i="

type attackCase struct {
	mode, binding string
	attack        func(c *attacked)
	says          string
}

// attacks are what hostile servers do in a login, and what the log then says.
func attacks(certified *tls.Config) map[string]attackCase {
	scramWith := func(rest string) func(c *attacked) {
		return func(c *attacked) {
			nonce := c.begins()
			c.continues("r=" + nonce + rest)
		}
	}
	inTLS := func(f func(c *attacked)) func(c *attacked) {
		return func(c *attacked) {
			c.wantsTLS("S")
			c.encrypt(certified)
			f(c)
		}
	}
	clear := func(c *attacked) {
		c.asks(&pgproto3.AuthenticationCleartextPassword{}, pgproto3.AuthTypeCleartextPassword)
	}
	return map[string]attackCase{
		"CVE-2026-6665: a long nonce":    {"disable", "", scramWith(strings.Repeat("x", 100000) + salted + "4096"), "is longer than"},
		"no nonce of its own":            {"disable", "", scramWith(salted + "4096"), "did not include server nonce"},
		"another nonce":                  {"disable", "", func(c *attacked) { c.begins(); c.continues("r=other" + salted + "4096") }, "did not start with client nonce"},
		"no salt":                        {"disable", "", scramWith("x"), "did not include s="},
		"0 iterations":                   {"disable", "", scramWith("x" + salted + "0"), "invalid SCRAM iteration count"},
		"-1 iterations":                  {"disable", "", scramWith("x" + salted + "-1"), "invalid SCRAM iteration count"},
		"a million and one iterations":   {"disable", "", scramWith("x" + salted + "1000001"), "more than 1000000 iterations"},
		"a million and one, with a sign": {"disable", "", scramWith("x" + salted + "+1000001"), "more than 1000000 iterations"},
		"iterations that overflow":       {"disable", "", scramWith("x" + salted + "99999999999999999999"), "more than 1000000 iterations"},
		"AuthenticationOk in SCRAM":      {"disable", "", func(c *attacked) { c.begins(); _ = c.Send(&pgproto3.AuthenticationOk{}) }, "expected AuthenticationSASLContinue"},
		"ReadyForQuery at once":          {"disable", "", func(c *attacked) { _ = c.ReceiveStartup(); _ = c.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'}) }, "before AuthenticationOk"},
		"a wrong signature":              {"disable", "", wrongSignature, "invalid SCRAM ServerSignature"},
		"CVE-2015-4054: a row":           {"disable", "", func(c *attacked) { _ = c.ReceiveStartup(); _ = c.Send(&pgproto3.DataRow{}) }, "unexpected message"},
		"a huge message":                 {"disable", "", func(c *attacked) { _ = c.ReceiveStartup(); _, _ = c.Conn.Write([]byte("S\x3f\xff\xff\xf0")) }, "at most 262144"},
		"a length that is none":          {"disable", "", func(c *attacked) { _ = c.ReceiveStartup(); _, _ = c.Conn.Write([]byte("R\x00\x00\x00\x00")) }, "invalid message length"},
		"parameters without end":         {"disable", "", func(c *attacked) { c.endlessly(&pgproto3.ParameterStatus{Name: strings.Repeat("n", 1000)}) }, "before ReadyForQuery"},
		"notices without end":            {"disable", "", func(c *attacked) { c.endlessly(&pgproto3.NoticeResponse{Message: "n"}) }, "before ReadyForQuery"},
		"TLS stripped":                   {"verify-full", "", func(c *attacked) { c.wantsTLS("N") }, "refused TLS"},
		"CVE-2024-10977: an error for S": {"require", "", func(c *attacked) { c.wantsTLS("ESFATAL\x00Mhand over your password\x00\x00") }, "refused TLS"},
		"CVE-2021-23222: what follows S": {"require", "", func(c *attacked) {
			c.wantsTLS("SR\x00\x00\x00\x08\x00\x00\x00\x00")
			_, _ = io.Copy(io.Discard, c.Conn)
		}, "tls"},
		"a certificate of another issuer":    {"verify-full", "", inTLS(clear), "certificate"},
		"binding stripped":                   {"require", "require", inTLS(func(c *attacked) { c.begins() }), "does not support SCRAM-SHA-256-PLUS"},
		"downgrade to a password in clear":   {"require", "require", inTLS(clear), "channel binding required"},
		"downgrade to MD5":                   {"require", "require", inTLS(func(c *attacked) { c.asks(&pgproto3.AuthenticationMD5Password{}, pgproto3.AuthTypeMD5Password) }), "channel binding required"},
		"AuthenticationOk where it is bound": {"require", "require", inTLS(func(c *attacked) { c.endlessly(&pgproto3.ReadyForQuery{TxStatus: 'I'}) }), "channel binding required"},
	}
}

// wrongSignature knows no password.
func wrongSignature(c *attacked) {
	nonce := c.begins()
	c.continues("r=" + nonce + "x" + salted + "4096")
	_ = c.Send(&pgproto3.AuthenticationSASLFinal{Data: []byte("v=" + strings.Repeat("A", 43) + "=")})
	_ = c.Send(&pgproto3.AuthenticationOk{}, &pgproto3.ReadyForQuery{TxStatus: 'I'})
	_, _ = c.Backend.Receive()
}

func TestHostileServersGetNothingOutOfALogin(t *testing.T) {
	issued, _ := certified(t)
	for name, c := range attacks(issued) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &hostileServer{attack: c.attack}
				log := new(logBuffer)
				r := startHostile(t, h, pgmoor.Upstream{SSLMode: c.mode, ChannelBinding: c.binding, ConnectTimeout: 5 * time.Second}, log)
				conn, err := r.DialContext(t.Context(), "", "")
				require.NoError(t, err)
				start := time.Now()
				reply := newClient(t, conn).startup("clear")
				require.NotEmpty(t, reply.code())
				require.LessOrEqual(t, time.Since(start), 3*time.Second)
				require.Contains(t, log.text(), c.says)
				require.NotContains(t, log.text(), right)
				require.NotContains(t, reply.err.Message+reply.err.Hint, "hand over")
				require.Nil(t, h.got.Load())
			})
		})
	}
}

// startHostile returns a Proxy whose server is hostile.
func startHostile(t *testing.T, h *hostileServer, up pgmoor.Upstream, log io.Writer) *pgmoor.Proxy {
	t.Helper()
	l := memconn.Listen()
	s := &pgtest.FakeServer{Handle: func(*pgtest.FakeConn) {}, Greet: func(c *pgtest.FakeConn) error {
		h.attack(&attacked{c, h})
		return io.EOF
	}}
	s.Serve(l)
	up.Hosts, up.Dialer = []string{"fake"}, pgmoor.DialerFunc(l.DialContext)
	p, err := pgmoor.New(nil, pgmoor.Config{
		Secrets: someSecrets(t), Upstream: up, BorrowTimeout: 2 * time.Second, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	require.NoError(t, err)
	served := make(chan error, 1)
	go serve(p, served)
	t.Cleanup(func() {
		require.NoError(t, p.Close())
		require.ErrorIs(t, <-served, pgmoor.ErrProxyClosed)
		require.NoError(t, s.Close())
	})
	return p
}

// TestCVE_2026_6666 has a server whose errors lack their SQLSTATE, and every other field: it crashed PgBouncer.
func TestCVE_2026_6666_ErrorsWithoutSQLSTATE(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, e := range map[string]*pgproto3.ErrorResponse{"nothing": {}, "a text": {Severity: "FATAL", Message: "no"}} {
			h := &hostileServer{attack: func(c *attacked) { _ = c.ReceiveStartup(); _ = c.Send(e) }}
			p := startHostile(t, h, pgmoor.Upstream{SSLMode: "disable"}, io.Discard)
			conn, err := p.DialContext(t.Context(), "", "")
			require.NoError(t, err)
			require.Len(t, newClient(t, conn).startup("clear").code(), 5, name)
		}
		h := &hostileServer{attack: func(c *attacked) {
			_ = c.Greet()
			for _, err := c.Backend.Receive(); err == nil; _, err = c.Backend.Receive() {
				_ = c.Send(&pgproto3.ErrorResponse{}, &pgproto3.ReadyForQuery{TxStatus: 'I'})
			}
		}}
		conn, err := startHostile(t, h, pgmoor.Upstream{SSLMode: "disable"}, io.Discard).DialContext(t.Context(), "", "")
		require.NoError(t, err)
		c := newClient(t, conn)
		c.startup("clear")
		for range 2 {
			got := c.query("SELECT 1")
			require.NotNil(t, got.err)
			require.EqualValues(t, 'I', got.status)
		}
	})
}

// TestChannelBindingReachesTheServer logs in to a server that is a Proxy itself, whose certificate the login is bound to.
func TestChannelBindingReachesTheServer(t *testing.T) {
	behind := pgmoor.Config{Authenticator: pgmoor.SCRAM(someSecrets(t))}
	behind.TLS, _ = certified(t)
	address := newRig(t, behind, new(fake)).listenTCP(t)
	p, err := pgmoor.New(nil, pgmoor.Config{
		Secrets: someSecrets(t), Logger: quiet,
		Upstream: pgmoor.Upstream{Hosts: []string{address}, SSLMode: "require", ChannelBinding: "require"},
	})
	require.NoError(t, err)
	served := make(chan error, 1)
	go serve(p, served)
	defer func() {
		require.NoError(t, p.Close())
		<-served
	}()
	conn, err := p.DialContext(t.Context(), "", "")
	require.NoError(t, err)
	c := newClient(t, conn)
	require.EqualValues(t, 'I', c.startup("clear").status)
	c.ok("SELECT 1")
}
