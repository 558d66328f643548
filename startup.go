package pgmoor

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pgmoor/pgmoor/internal/link"
	"github.com/pgmoor/pgmoor/internal/scram"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// Codes in the place of a protocol version (PostgreSQL documentation, "Message Formats").
const (
	codeSSLRequest    = 80877103
	codeGSSENCRequest = 80877104
	codeCancelRequest = 80877102
)

// Bounds on what a client may send before it is logged in.
const (
	maxStartupPacket = 10000 // PostgreSQL's MAX_STARTUP_PACKET_LENGTH
	maxAuthMessage   = 65535 // PostgreSQL's PG_MAX_AUTH_TOKEN_LENGTH
	usualAuthMessage = 512   // room for a message of SCRAM or a password
	maxCancelKey     = 256   // longest key of protocol 3.2
	maxName          = 63    // PostgreSQL's NAMEDATALEN, without the end
	newestMinor      = 2     // of protocol 3
	tlsRecord        = 0x16  // first byte of a TLS handshake
	alpn             = "postgresql"
)

// Authentication requests.
const (
	authOK           = 0
	authCleartext    = 3
	authMD5          = 5
	authSASL         = 10
	authSASLContinue = 11
	authSASLFinal    = 12
)

// Client is a client while and after it logs in: an [Authenticator] gets it before the client is let in, and
// [Session.Client] returns it afterwards. Its accessors may be called at any time from any goroutine; [Client.Password] may
// not.
type Client struct {
	conn      net.Conn // owned by the handshake, then by the Session
	from      net.Addr // who conn was made for, where a balancer said it; nil: see conn
	tls       *tls.Conn
	local     bool // came through DialContext
	minor     uint32
	user      string
	database  string
	params    []byte // the other startup parameters in order: name, 0, value, 0
	replicate string // value of the replication parameter
	unknown   []string
	unsent    []byte // what was put off; owned by the handshake
	early     []byte // what was read too many; owned by the handshake
	leaveSlot func() // ends what counts as the handshake

	shown presented    // owned by the handshake
	keys  scram.Keys   // that the client has proved to know, of a verifier; owned by the handshake
	given *string      // a password that was asked for already; owned by the Authenticator
	log   *slog.Logger // for Authenticators; nil: there is none

	authenticating atomic.Bool // an Authenticator has it
	admitted       atomic.Bool // it counts as a client; Close may take that back while the login ends
}

// User returns the user name of the startup packet. As PostgreSQL does, the proxy takes its first 63 bytes only.
func (c *Client) User() string { return c.user }

// Database returns the database of the startup packet, which defaults to the user name, cut like that.
func (c *Client) Database() string { return c.database }

// Parameter returns the value of another parameter of the startup packet, such as application_name, and whether it was
// there. Of several with the same name the last counts.
func (c *Client) Parameter(name string) (value string, ok bool) {
	for b := c.params; len(b) > 0; {
		k, rest, _ := wire.CString(b)
		v, rest, _ := wire.CString(rest)
		if string(k) == name {
			value, ok = string(v), true
		}
		b = rest
	}
	return value, ok
}

// RemoteAddr returns the client's address: behind a load balancer that of the client itself, where the listener is one of
// [ProxyProtocol]'s.
func (c *Client) RemoteAddr() net.Addr {
	if c.from != nil {
		return c.from
	}
	return c.conn.RemoteAddr()
}

// TLS returns the state of the encrypted connection, and false where it is not encrypted.
func (c *Client) TLS() (tls.ConnectionState, bool) {
	if c.tls == nil {
		return tls.ConnectionState{}, false
	}
	return c.tls.ConnectionState(), true
}

// Private reports whether nobody on a network can listen: TLS, a Unix socket (a connection whose LocalAddr is a
// *net.UnixAddr), or the same process.
func (c *Client) Private() bool {
	if c.tls != nil || c.local {
		return true
	}
	return c.isUnix()
}

// isUnix reports whether the client came through a Unix socket, also where a listener wraps its connections.
func (c *Client) isUnix() bool {
	a, ok := c.conn.LocalAddr().(*net.UnixAddr)
	return ok && a != nil
}

// Password asks the client for its password in clear and returns it, as an Authenticator needs it that hands passwords on
// to a directory or compares them in its own way. It may be called from within Authenticate only, by one goroutine. A
// client that is not Private is not asked, a client that answers with an empty password or with nonsense does not get in,
// and one that hangs up is gone: then, and when ctx ends first, there is an error, which the Authenticator returns as it
// is. A password is of at most 65,530 bytes. It is a secret: nothing of it belongs into an error or a log.
func (c *Client) Password(ctx context.Context) (string, error) {
	switch {
	case !c.authenticating.Load():
		return "", errors.New("pgmoor: Client.Password is for Authenticators: call it from within Authenticate")
	case !c.Private():
		return "", &Error{
			Severity: "FATAL", Code: codeBadAuthorization,
			Message: "cleartext password authentication needs an encrypted connection",
			Hint:    "Connect with sslmode=require.",
		}
	case c.given != nil:
		pw := *c.given
		c.given = nil
		return pw, nil
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	pw, err := c.askPassword(authCleartext, nil)
	switch {
	case !stop():
		return "", ctx.Err()
	case err != nil:
		return "", err
	case len(pw) == 0:
		return "", fatalf(codeBadPassword, "empty password returned by client")
	}
	return string(pw), nil
}

// warnMD5 says that a client is asked for an MD5-hashed password.
func (c *Client) warnMD5() {
	if c.log != nil {
		c.log.Warn("pgmoor: clients log in with MD5-hashed passwords, which can be guessed by who reads along: let them use SCRAM-SHA-256", c.logAttrs()...)
	}
}

// errCancelDone ends a handshake that was a cancel request.
var errCancelDone = errors.New("pgmoor: cancel request")

// startupConfig is what negotiate needs to know.
type startupConfig struct {
	tls    *tls.Config // with ALPN; nil: none
	cancel func(pid uint32, key []byte)
}

// negotiate reads from the connection up to the startup packet: requests for encryption, at most one of each kind,
// or a cancel request.
func (c *Client) negotiate(ctx context.Context, cfg startupConfig) error {
	var askedTLS, askedGSS bool
	for {
		code, body, err := c.readStartup(ctx, cfg)
		if err != nil {
			return err
		}
		switch {
		case code == codeSSLRequest && !askedTLS && c.tls == nil:
			askedTLS = true
			err = c.answerSSL(ctx, cfg)
		case code == codeGSSENCRequest && !askedGSS && c.tls == nil:
			askedGSS = true
			err = c.send([]byte{'N'})
		case code == codeCancelRequest:
			if len(body) >= 8 && len(body) <= 4+maxCancelKey {
				cfg.cancel(binary.BigEndian.Uint32(body), body[4:])
			}
			return errCancelDone
		case code == codeSSLRequest || code == codeGSSENCRequest:
			return fatalf(codeProtocolViolation, "encryption was requested more than once")
		default:
			return c.startup(code, body)
		}
		if err != nil {
			return err
		}
	}
}

// readStartup reads one packet without a type byte, and not one byte beyond it, so that nothing a client sends in the
// clear can be taken for something that it sent encrypted.
func (c *Client) readStartup(ctx context.Context, cfg startupConfig) (code uint32, body []byte, err error) {
	var head [8]byte
	have, err := c.readTo(head[:], 0, 1)
	if err != nil {
		return 0, nil, err
	}
	if head[0] == tlsRecord && c.tls == nil && cfg.tls != nil {
		if err := c.directTLS(ctx, cfg, head[:have]); err != nil {
			return 0, nil, err
		}
		return c.readStartup(ctx, cfg)
	}
	if have, err = c.readTo(head[:], have, 4); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:4])
	if n < 8 || n > maxStartupPacket {
		return 0, nil, fatalf(codeProtocolViolation, "invalid length of startup packet")
	}
	if err := c.readFull(head[have:]); err != nil {
		return 0, nil, err
	}
	body = make([]byte, n-8)
	if err := c.readFull(body); err != nil {
		return 0, nil, err
	}
	return binary.BigEndian.Uint32(head[4:]), body, nil
}

func (c *Client) answerSSL(ctx context.Context, cfg startupConfig) error {
	if c.isUnix() || cfg.tls == nil {
		return c.send([]byte{'N'})
	}
	if !link.New(c.conn, true).Alive() { // CVE-2021-3935: see also readStartup
		return &Error{
			Severity: "FATAL", Code: codeProtocolViolation, Message: "received unencrypted data after SSL request",
			Detail: "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
		}
	}
	if err := c.send([]byte{'S'}); err != nil {
		return err
	}
	return c.handshakeTLS(ctx, tls.Server(c.conn, cfg.tls))
}

// directTLS continues a connection that began with a TLS record (PostgreSQL documentation, "Direct SSL"): the client
// must then name the protocol by ALPN.
func (c *Client) directTLS(ctx context.Context, cfg startupConfig, first []byte) error {
	t := tls.Server(&prefixConn{Conn: c.conn, first: first}, cfg.tls)
	if err := c.handshakeTLS(ctx, t); err != nil {
		return err
	}
	if t.ConnectionState().NegotiatedProtocol != alpn {
		return &Error{
			Severity: "FATAL", Code: codeProtocolViolation,
			Message: "received direct SSL connection request without ALPN protocol negotiation extension",
		}
	}
	return nil
}

func (c *Client) handshakeTLS(ctx context.Context, t *tls.Conn) error {
	err := t.HandshakeContext(c.shown.watching(ctx))
	if err != nil {
		if isOurAlert(err) {
			c.hearOut(ctx)
		}
		return err
	}
	c.conn, c.tls = t, t
	return nil
}

// isOurAlert reports whether a TLS handshake failed because of what the client said, so that it was told.
func isOurAlert(err error) bool {
	var ne net.Error
	var noTLS tls.RecordHeaderError
	return !errors.As(err, &ne) && !errors.As(err, &noTLS) && !errors.Is(orGone(err), errClientGone)
}

// hearOutLimit bounds how long a client may take to close a connection whose TLS handshake has failed.
const hearOutLimit = time.Second

// hearOut reads on until a client that was told why its TLS handshake has failed closes the connection, or ctx ends. With TLS 1.3 a client
// has finished before its certificate is looked at, and its startup packet is on the way: closing with that unread would reset the
// connection, and what the client was told be lost.
func (c *Client) hearOut(ctx context.Context) {
	half, ok := c.conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.conn.SetReadDeadline(time.Now().Add(hearOutLimit)) != nil {
		return
	}
	defer context.AfterFunc(ctx, c.interrupt)()
	_, _ = io.Copy(io.Discard, io.LimitReader(c.conn, maxStartupPacket))
}

func (c *Client) interrupt() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) }

// prefixConn is a connection of which some bytes were read too many.
type prefixConn struct {
	net.Conn
	first []byte
}

func (p *prefixConn) Read(b []byte) (int, error) {
	if len(p.first) > 0 && len(b) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// startup takes the startup packet apart.
func (c *Client) startup(version uint32, body []byte) error {
	if version>>16 != 3 {
		return fatalf(codeNotSupported, "unsupported frontend protocol %d.%d: server supports 3.0 to 3.%d",
			version>>16, version&0xffff, newestMinor)
	}
	c.minor = version & 0xffff
	for len(body) > 0 && body[0] != 0 {
		k, rest, ok := wire.CString(body)
		v, rest, ok2 := wire.CString(rest)
		if !ok || !ok2 {
			body = nil
			break
		}
		c.parameter(string(k), string(v), body[:len(body)-len(rest)])
		body = rest
	}
	if len(body) != 1 {
		return fatalf(codeProtocolViolation, "invalid startup packet layout: expected terminator as last byte")
	}
	if c.user == "" {
		return fatalf(codeBadAuthorization, "no PostgreSQL user name specified in startup packet")
	}
	if c.database == "" {
		c.database = c.user
	}
	c.user, c.database = cutName(c.user), cutName(c.database)
	if c.replicates() {
		c.params = append(append(append(c.params, "replication\x00"...), c.replicate...), 0)
	}
	return nil
}

// cutName returns a name of the startup packet as PostgreSQL takes it: of a longer one it looks at no more. Who is let in as one user must
// not be another one to the server.
func cutName(s string) string { return s[:min(len(s), maxName)] }

// parameter takes one parameter of the startup packet; raw is how it stands there.
func (c *Client) parameter(name, value string, raw []byte) {
	switch {
	case name == "user":
		c.user = value
	case name == "database":
		c.database = value
	case name == "replication": // the server gets the last one only, which is also what the rules are about: see startup
		c.replicate = value
	case strings.HasPrefix(name, "_pq_."):
		c.unknown = append(c.unknown, name)
	default:
		c.params = append(c.params, raw...)
	}
}

// replicates reports whether the client asked for a walsender: PostgreSQL takes "database" or any true boolean.
func (c *Client) replicates() bool {
	switch strings.ToLower(c.replicate) {
	case "", "off", "of", "false", "fals", "fal", "fa", "f", "no", "n", "0":
		return false
	}
	return true
}

// answerVersion appends NegotiateProtocolVersion where the client asked for more than there is, newest being the latest minor version.
func (c *Client) answerVersion(dst []byte, newest uint32) []byte {
	minor := min(c.minor, newest)
	if c.minor == minor && c.minor != 1 && len(c.unknown) == 0 {
		return dst
	}
	body := binary.BigEndian.AppendUint32(nil, 3<<16|minor)
	body = binary.BigEndian.AppendUint32(body, uint32(len(c.unknown)))
	for _, o := range c.unknown {
		body = append(append(body, o...), 0)
	}
	c.minor = minor
	return append(wire.AppendHeader(dst, wire.NegotiateVersion, len(body)), body...)
}

// keyLen is the length of the cancel key that the client's protocol version has room for.
func (c *Client) keyLen() int {
	if c.minor >= 2 {
		return 32
	}
	return 4
}

// send sends b behind what was put off; nothing where both are empty.
func (c *Client) send(b []byte) error {
	if len(c.unsent) > 0 {
		b, c.unsent = append(c.unsent, b...), nil
	}
	if len(b) == 0 {
		return nil
	}
	_, err := c.conn.Write(b)
	return orGone(err)
}

// readFull fills b from the client's connection.
func (c *Client) readFull(b []byte) error {
	_, err := c.readTo(b, 0, len(b))
	return orGone(err)
}

// readTo reads into b, of which there are have bytes already, until there are want or more, and returns how many there are.
func (c *Client) readTo(b []byte, have, want int) (int, error) {
	n := copy(b[have:], c.early)
	c.early = c.early[n:]
	if have += n; have >= want {
		return have, nil
	}
	n, err := io.ReadAtLeast(c.conn, b[have:], want-have)
	return have + n, orGone(err)
}

// orGone returns errClientGone in the place of an error of a connection that says that the client has hung up.
func orGone(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe):
	case errors.As(err, &op) && !op.Timeout() && (op.Op == "read" || op.Op == "write"):
	default:
		return err
	}
	return errClientGone
}

// fail tells the client why it is not let in.
func (c *Client) fail(e *Error) {
	_ = c.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_ = c.send(e.append(nil, "FATAL"))
}

// request appends an Authentication message.
func request(dst []byte, kind uint32, data []byte) []byte {
	dst = wire.AppendHeader(dst, wire.Authentication, 4+len(data))
	return append(binary.BigEndian.AppendUint32(dst, kind), data...)
}

// readAuth reads the client's answer to an authentication request, at once where it has come and is of the usual size. What came behind it
// is early, and read next: the startup packet is over, and nothing can become encrypted any more.
func (c *Client) readAuth() ([]byte, error) {
	b := make([]byte, usualAuthMessage)
	have, err := c.readTo(b, 0, wire.HeaderLen)
	if err != nil {
		return nil, err
	}
	n := wire.Length(b)
	if b[0] != wire.Password {
		return nil, fatalf(codeProtocolViolation, "expected password response, got message type %d", b[0])
	}
	if n < 4 || n > maxAuthMessage {
		return nil, fatalf(codeProtocolViolation, "invalid password packet size")
	}
	end := int(n) + 1
	switch {
	case end < have:
		c.early = slices.Concat(b[end:have], c.early) // a copy: b holds a password
		have = end
	case end > len(b):
		b = append(b, make([]byte, end-len(b))...)
	}
	return b[wire.HeaderLen:end], c.readFull(b[have:end])
}

// askPassword sends an authentication request and returns the zero-terminated answer without its terminator.
func (c *Client) askPassword(kind uint32, data []byte) ([]byte, error) {
	if err := c.send(request(nil, kind, data)); err != nil {
		return nil, err
	}
	body, err := c.readAuth()
	if err != nil {
		return nil, err
	}
	pw, rest, ok := wire.CString(body)
	if !ok || len(rest) > 0 {
		return nil, fatalf(codeProtocolViolation, "invalid password packet size")
	}
	return pw, nil
}

// sasl offers SASL mechanisms, the best first, and returns the one that the client has chosen and its first message.
func (c *Client) sasl(mechanisms ...string) (chosen string, first []byte, err error) {
	chosen, first, err = c.offer(mechanisms...)
	if err == nil && first == nil {
		err = fatalf(codeProtocolViolation, "SASL initial response is missing")
	}
	return chosen, first, err
}

// offer is sasl for mechanisms whose first message may come later: then first is nil.
func (c *Client) offer(mechanisms ...string) (chosen string, first []byte, err error) {
	if err := c.send(request(nil, authSASL, []byte(strings.Join(mechanisms, "\x00")+"\x00\x00"))); err != nil {
		return "", nil, err
	}
	body, err := c.readAuth()
	if err != nil {
		return "", nil, err
	}
	name, rest, ok := wire.CString(body)
	if !ok || len(rest) < 4 {
		return "", nil, fatalf(codeProtocolViolation, "invalid SASLInitialResponse")
	}
	if chosen = string(name); !slices.Contains(mechanisms, chosen) {
		return "", nil, fatalf(codeProtocolViolation, "client selected an invalid SASL authentication mechanism")
	}
	n, data := binary.BigEndian.Uint32(rest), rest[4:]
	if n == 1<<32-1 && len(data) == 0 {
		return chosen, nil, nil
	}
	if uint64(n) != uint64(len(data)) {
		return "", nil, fatalf(codeProtocolViolation, "invalid SASLInitialResponse")
	}
	return chosen, data, nil
}

func (c *Client) saslContinue(data []byte) ([]byte, error) {
	if err := c.send(request(nil, authSASLContinue, data)); err != nil {
		return nil, err
	}
	return c.readAuth()
}

// saslFinal puts its message off, as PostgreSQL does: it goes with the next one, which follows at once or is preceded by flush.
func (c *Client) saslFinal(data []byte) error {
	c.unsent = request(c.unsent, authSASLFinal, data)
	return nil
}

// flush sends what was put off.
func (c *Client) flush() error { return c.send(nil) }
