package pgmoor_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/scram"
)

// answerMD5 begins a login by MD5 and returns the bytes of the password message that ends it.
func (c *client) answerMD5(user, password string) []byte {
	c.t.Helper()
	c.send(&pgproto3.StartupMessage{ProtocolVersion: version30, Parameters: map[string]string{"user": user}})
	m, err := c.Receive()
	require.NoError(c.t, err)
	salt := m.(*pgproto3.AuthenticationMD5Password).Salt
	b, err := (&pgproto3.PasswordMessage{Password: scram.MD5Response(scram.MD5(user, password), salt)}).Encode(nil)
	require.NoError(c.t, err)
	return b
}

func TestWhatAClientSendsBehindItsPasswordIsNotLost(t *testing.T) {
	secrets := pgmoor.StaticSecrets{"u": pgmoor.NewSecret("one")}
	address := newRig(t, pgmoor.Config{Authenticator: pgmoor.MD5(secrets)}, new(fake)).listenTCP(t)
	query, err := (&pgproto3.Query{String: "SELECT 1"}).Encode(nil)
	require.NoError(t, err)
	for name, write := range map[string]func(io.Writer, []byte){
		"at once":      writeAll,
		"byte by byte": writeBytes,
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, dialTCP(t, address))
			write(c.conn, append(c.answerMD5("u", "one"), query...))
			require.EqualValues(t, 'I', c.reply().status) // of the login
			got := c.reply()
			require.Nil(t, got.err)
			require.EqualValues(t, 'I', got.status)
			c.ok("SELECT 2")
		})
	}
}

func writeAll(w io.Writer, b []byte) { _, _ = w.Write(b) }

func writeBytes(w io.Writer, b []byte) {
	for i := range b {
		_, _ = w.Write(b[i : i+1])
	}
}

func TestASessionThatIsNotServedReadsWhatCameEarly(t *testing.T) {
	cfg := pgmoor.Config{Authenticator: pgmoor.MD5(pgmoor.StaticSecrets{"u": pgmoor.NewSecret("one")})}
	r := newRig(t, cfg, new(fake))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p, err := pgmoor.New(l, r.reaching(cfg))
	require.NoError(t, err)
	defer p.Close()
	var s net.Conn
	accepted := make(chan error, 1)
	go acceptOne(p, &s, accepted)
	c := newClient(t, dialTCP(t, l.Addr().String()))
	writeAll(c.conn, append(c.answerMD5("u", "one"), "hello"...))
	require.NoError(t, <-accepted)
	defer s.Close()
	require.NoError(t, s.SetReadDeadline(time.Now().Add(10*time.Second)))
	got := make([]byte, len("hello"))
	_, err = io.ReadFull(s, got)
	require.NoError(t, err)
	require.Equal(t, "hello", string(got))
}
