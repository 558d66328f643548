package pgmoor_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// ownVerifier makes a role whose password the server asks for, and returns its verifier.
func ownVerifier(t *testing.T, cluster *pgtest.Cluster, role string) string {
	t.Helper()
	rows := cluster.Exec(t, fmt.Sprintf("SET password_encryption = 'scram-sha-256'; ALTER ROLE %s PASSWORD '%s'; SELECT rolpassword FROM pg_authid WHERE rolname = '%[1]s'", role, pgtest.Password))
	require.Len(t, rows, 1)
	return rows[0][0]
}

func entersByProof(t *testing.T, p *pgmoor.Proxy, password string) (backend string, err error) {
	t.Helper()
	return enterByProof(context.Background(), p, password)
}

func enterByProof(ctx context.Context, p *pgmoor.Proxy, password string) (backend string, err error) {
	conn, err := pgx.Connect(ctx, fmt.Sprintf("postgres://pw_scram:%s@%s/app?sslmode=disable", password, p.Addr()))
	if err != nil {
		return "", err
	}
	defer conn.Close(context.Background())
	err = conn.QueryRow(ctx, "SELECT current_user").Scan(&backend)
	return backend, err
}

func TestAClientsProofLogsInToAServerWithTheSameVerifier(t *testing.T) {
	for _, version := range pgtest.Versions {
		for _, mode := range []string{"disable", "require"} { // the latter with the channel bound
			t.Run(fmt.Sprintf("%s/%d", mode, version), func(t *testing.T) {
				t.Parallel()
				cluster := pgtest.Start(t, version)
				secrets := pgmoor.StaticSecrets{"pw_scram": pgmoor.NewSecret(ownVerifier(t, cluster, "pw_scram"))}
				cfg := pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{cluster.Addr()}, SSLMode: mode}, Secrets: secrets, Logger: quiet}
				p := startProxy(t, cfg)
				_, err := entersByProof(t, p, "wrong")
				requireCode(t, "28P01", err)
				for range 3 {
					user, err := entersByProof(t, p, pgtest.Password)
					require.NoError(t, err)
					require.Equal(t, "pw_scram", user)
				}
				require.NoError(t, p.Update(cfg)) // which keeps what is known
				require.NoError(t, p.Reconnect(context.Background()))
				_, err = entersByProof(t, p, pgtest.Password)
				require.NoError(t, err)

				ownVerifier(t, cluster, "pw_scram") // the same password with another salt
				require.NoError(t, p.Reconnect(context.Background()))
				_, err = entersByProof(t, p, pgtest.Password)
				requireCode(t, "28P01", err)
				require.ErrorContains(t, err, "another verifier")
			})
		}
	}
}

// TestAProofOfTheOldPasswordDoesNotTakeThePlaceOfTheNewOnes is about a change of the password in the middle: no server is logged in to with the
// old one's key.
func TestAProofOfTheOldPasswordDoesNotTakeThePlaceOfTheNewOnes(t *testing.T) {
	cluster := pgtest.Start(t, pgtest.Versions[0])
	secret := pgmoor.NewSecret(ownVerifier(t, cluster, "pw_scram")).WithPrevious(pgmoor.NewSecret("before"))
	p := startProxy(t, pgmoor.Config{
		Upstream: pgmoor.Upstream{Hosts: []string{cluster.Addr()}, SSLMode: "disable"}, Secrets: pgmoor.StaticSecrets{"pw_scram": secret}, Logger: quiet,
	})
	for _, password := range []string{pgtest.Password, "before", "before"} {
		require.NoError(t, p.Reconnect(t.Context()))
		_, err := entersByProof(t, p, password)
		require.NoError(t, err)
	}
}

// proving is enterByProof as a goroutine.
func proving(ctx context.Context, p *pgmoor.Proxy, password string, done chan<- error) {
	_, err := enterByProof(ctx, p, password)
	done <- err
}

func requireCode(t *testing.T, code string, err error) {
	t.Helper()
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, code, pg.Code, pg.Message)
}

// answeringServer lets answer say what a server says behind a startup packet.
func answeringServer(t *testing.T, answer func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				_, _ = c.Read(make([]byte, 1024))
				answer(c)
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		all.Wait()
	})
	return l.Addr().String()
}

func authRequest(code uint32, data string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'R'}, uint32(8+len(data)))
	return append(binary.BigEndian.AppendUint32(b, code), data...)
}

func TestHostileServersGetNoProofWorthAnything(t *testing.T) {
	const ask = "SCRAM-SHA-256\x00\x00"
	first := func(c net.Conn) string { // the client's nonce
		b := make([]byte, 1024)
		n, _ := c.Read(b)
		_, nonce, _ := strings.Cut(string(b[:n]), "r=")
		return nonce
	}
	for name, tc := range map[string]struct {
		answer func(c net.Conn)
		says   string
	}{
		"lets in before it has proved anything": {func(c net.Conn) {
			_, _ = c.Write(authRequest(10, ask))
			first(c)
			_, _ = c.Write(authRequest(0, ""))
		}, "without proving"},
		"proves nothing": {func(c net.Conn) {
			_, _ = c.Write(authRequest(10, ask))
			nonce := first(c)
			_, _ = c.Write(authRequest(11, "r="+nonce+"x,s=c2FsdA==,i=4096"))
			_, _ = c.Read(make([]byte, 1024))
			_, _ = c.Write(authRequest(12, "v="+strings.Repeat("A", 43)+"="))
		}, "has not proved"},
		"asks twice": {func(c net.Conn) {
			_, _ = c.Write(authRequest(10, ask))
			again := authRequest(11, "r="+first(c)+"x,s=c2FsdA==,i=4096")
			_, _ = c.Write(append(again, again...))
		}, "malformed"},
		"has the last word first": {func(c net.Conn) {
			_, _ = c.Write(authRequest(10, ask))
			first(c)
			_, _ = c.Write(authRequest(12, "v="+strings.Repeat("A", 43)+"="))
		}, "malformed"},
		"has another salt": {func(c net.Conn) {
			_, _ = c.Write(authRequest(10, ask))
			_, _ = c.Write(authRequest(11, "r="+first(c)+"x,s=c2FsdHk=,i=4096"))
		}, "another verifier"},
		"wants many iterations": {func(c net.Conn) {
			_, _ = c.Write(authRequest(10, ask))
			_, _ = c.Write(authRequest(11, "r="+first(c)+"x,s=c2FsdA==,i=2147483647"))
		}, "another verifier"},
		"a long message": {func(c net.Conn) { _, _ = c.Write([]byte{'R', 0x7f, 0xff, 0xff, 0xff}) }, "sends too much"},
		"endless notices": {func(c net.Conn) {
			for range 100_000 {
				if _, err := c.Write(append([]byte{'N', 0, 0, 4, 0}, make([]byte, 1020)...)); err != nil {
					return
				}
			}
		}, "sends too much"},
	} {
		t.Run(name, func(t *testing.T) {
			log := new(lockedBuffer)
			cfg := pgmoor.Config{
				Upstream: pgmoor.Upstream{Hosts: []string{answeringServer(t, tc.answer)}, SSLMode: "disable"},
				Logger:   slog.New(slog.NewTextHandler(log, nil)),
				Secrets:  pgmoor.StaticSecrets{"pw_scram": pgmoor.NewSecret(knownVerifier)},
			}
			ctx, giveUp := context.WithCancel(t.Context())
			defer giveUp()
			done := make(chan error, 1)
			go proving(ctx, startProxy(t, cfg), "correct%20horse", done)
			require.Eventually(t, func() bool { return strings.Contains(log.String(), tc.says) }, patience, time.Millisecond)
			giveUp() // some are tried again and again
			require.Error(t, <-done)
		})
	}
}

// knownVerifier is that of "correct horse" with the salt "salt".
const knownVerifier = "SCRAM-SHA-256$4096:c2FsdA==$xhU3t5QBG+Y0k7Ey3+CVW/bPvQNowViVfurk+t2Lsnk=:rNQGcQXRTKwY8fdz8zojA4MB5CNh/+V+PQ9ZS45J8Zw="

// slowWriter is a connection whose writes take until something was read, as where a machine is busy; or, at the end, a second.
type slowWriter struct {
	net.Conn
	read chan struct{}
}

func (c slowWriter) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	select {
	case <-c.read:
	case <-time.After(time.Second):
	}
	return n, err
}

func (c slowWriter) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	select {
	case c.read <- struct{}{}:
	default:
	}
	return n, err
}

// TestAProofIsGivenWhereWritingTakesLong has pgconn read in the background before the exchange.
func TestAProofIsGivenWhereWritingTakesLong(t *testing.T) {
	cluster := pgtest.Start(t, 18)
	p := startProxy(t, pgmoor.Config{
		Upstream: pgmoor.Upstream{Hosts: []string{cluster.Addr()}, SSLMode: "disable", Dialer: pgmoor.DialerFunc(
			func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, address)
				return slowWriter{conn, make(chan struct{}, 1)}, err
			})},
		Secrets: pgmoor.StaticSecrets{"pw_scram": pgmoor.NewSecret(ownVerifier(t, cluster, "pw_scram"))}, Logger: quiet,
		BorrowTimeout: 5 * time.Second,
	})
	user, err := entersByProof(t, p, pgtest.Password)
	require.NoError(t, err)
	require.Equal(t, "pw_scram", user)
}
