package scram_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/scram"
)

// login connects pgconn with the given password to a peer that does no more than to authenticate it.
func login(t *testing.T, password string, authenticate func(*pgproto3.Backend) error) error {
	t.Helper()
	config, err := pgconn.ParseConfig("host=in-process user=u1 database=d sslmode=disable")
	require.NoError(t, err)
	config.Password = password
	client, server := net.Pipe()
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) { return client, nil }
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"in-process"}, nil }
	served := make(chan error, 1)
	run := func() { served <- serve(server, authenticate) }
	go run()
	conn, err := pgconn.ConnectConfig(t.Context(), config)
	if err == nil {
		require.NoError(t, conn.Close(t.Context()))
	}
	require.NoError(t, client.Close())
	require.NoError(t, <-served)
	return err
}

// serve takes one client through its startup, and reads until it has gone.
func serve(conn net.Conn, authenticate func(*pgproto3.Backend) error) error {
	b := pgproto3.NewBackend(conn, conn)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return err
	}
	err := authenticate(b)
	switch {
	case errors.Is(err, scram.ErrAuthFailed):
		b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: err.Error()})
	case err != nil:
		return err
	default:
		b.Send(&pgproto3.AuthenticationOk{})
		b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	}
	if err := b.Flush(); err != nil {
		return err
	}
	for {
		if _, err := b.Receive(); err != nil {
			return conn.Close()
		}
	}
}

func sasl(b *pgproto3.Backend, s *scram.Server) error {
	b.Send(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{scram.Mechanism}})
	initial, err := exchange[*pgproto3.SASLInitialResponse](b, pgproto3.AuthTypeSASL)
	if err != nil {
		return err
	}
	first, err := s.First(initial.Data)
	if err != nil {
		return err
	}
	b.Send(&pgproto3.AuthenticationSASLContinue{Data: first})
	response, err := exchange[*pgproto3.SASLResponse](b, pgproto3.AuthTypeSASLContinue)
	if err != nil {
		return err
	}
	final, err := s.Final(response.Data)
	if err != nil {
		return err
	}
	b.Send(&pgproto3.AuthenticationSASLFinal{Data: final})
	return nil
}

// exchange flushes what was sent and receives the answer, which is of type M.
func exchange[M pgproto3.FrontendMessage](b *pgproto3.Backend, authType uint32) (M, error) {
	var none M
	if err := errors.Join(b.Flush(), b.SetAuthType(authType)); err != nil {
		return none, err
	}
	m, err := b.Receive()
	if err != nil {
		return none, err
	}
	return m.(M), nil
}

func TestPgconnLogsInWithTheRightPasswordOnly(t *testing.T) {
	stored := mustParse(t, pencil)
	odd, err := scram.NewVerifier("caf\u00e9\u00a0\u2168", []byte("0123456789abcdef"), 10_000)
	require.NoError(t, err)
	mock := scram.MockVerifier("u1", []byte("seed"))
	for _, test := range []struct {
		name, password string
		verifier       scram.Verifier
		doomed, ok     bool
	}{
		{"right", "pencil", stored, false, true},
		{"right, in another spelling", "cafe\u0301 IX", odd, false, true},
		{"wrong", "pencil ", stored, false, false},
		{"empty", "", stored, false, false},
		{"right, but doomed", "pencil", stored, true, false},
		{"unknown user", "pencil", mock, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := login(t, test.password, func(b *pgproto3.Backend) error {
				return sasl(b, scram.NewServer(test.verifier, test.doomed))
			})
			requireOutcome(t, test.ok, err)
		})
	}
}

func TestPgconnAnswersMD5AsMD5ResponseSays(t *testing.T) {
	for password, ok := range map[string]bool{"pencil": true, "pen": false} {
		salt := [4]byte{1, 0, 255, 7}
		err := login(t, password, func(b *pgproto3.Backend) error {
			b.Send(&pgproto3.AuthenticationMD5Password{Salt: salt})
			m, err := exchange[*pgproto3.PasswordMessage](b, pgproto3.AuthTypeMD5Password)
			if err == nil && m.Password != scram.MD5Response(scram.MD5("u1", "pencil"), salt) {
				err = scram.ErrAuthFailed
			}
			return err
		})
		requireOutcome(t, ok, err)
	}
}

func requireOutcome(t *testing.T, ok bool, err error) {
	t.Helper()
	if ok {
		require.NoError(t, err)
		return
	}
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr)
	require.Equal(t, "28P01", pgErr.Code)
}
