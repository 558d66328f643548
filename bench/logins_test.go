package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// scramPlay is a server that knows a verifier, and lets one client in.
type scramPlay struct {
	l        net.Listener
	verifier string
	lies     bool // its own signature is wrong
	let      chan bool
}

func (s *scramPlay) serve() {
	conn, err := s.l.Accept()
	if err != nil {
		s.let <- false
		return
	}
	defer func() { _ = conn.Close() }()
	s.let <- s.converse(conn)
	_, _ = io.Copy(io.Discard, conn)
}

// converse reports whether the client has proved to know the password.
func (s *scramPlay) converse(conn net.Conn) bool {
	cost, keys, _ := strings.Cut(strings.TrimPrefix(s.verifier, scramMechanism+"$"), "$")
	_, salt, _ := strings.Cut(cost, ":")
	stored, server, _ := strings.Cut(keys, ":")
	storedKey, _ := base64.StdEncoding.DecodeString(stored)
	serverKey, _ := base64.StdEncoding.DecodeString(server)
	if _, err := hear(conn, 0); err != nil {
		return false
	}
	_, _ = conn.Write(asks(10, scramMechanism+"\x00\x00"))
	initial, err := hear(conn, 1)
	if err != nil || !strings.HasPrefix(initial, scramMechanism+"\x00") {
		return false
	}
	bare := initial[len(scramMechanism)+1+4+len("n,,"):]
	_, nonce, _ := strings.Cut(bare, ",")
	first := nonce + "more,s=" + salt + ",i=4096"
	_, _ = conn.Write(asks(11, first))
	final, err := hear(conn, 1)
	unproved, proof, ok := strings.Cut(final, ",p=")
	if err != nil || !ok {
		return false
	}
	clientKey, _ := base64.StdEncoding.DecodeString(proof)
	signed := bare + "," + first + "," + unproved
	subtle.XORBytes(clientKey, clientKey, mac(storedKey, signed))
	sum := sha256.Sum256(clientKey)
	if s.lies {
		signed = ""
	}
	_, _ = conn.Write(append(asks(12, "v="+encode(mac(serverKey, signed))), welcome...))
	return hmac.Equal(sum[:], storedKey)
}

func asks(code uint32, data string) []byte {
	m := binary.BigEndian.AppendUint32([]byte{'R'}, uint32(8+len(data)))
	return append(binary.BigEndian.AppendUint32(m, code), data...)
}

// hear reads a message whose length stands behind skip bytes.
func hear(conn net.Conn, skip int) (string, error) {
	head := make([]byte, skip+4)
	if _, err := io.ReadFull(conn, head); err != nil {
		return "", err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[skip:])-4)
	_, err := io.ReadFull(conn, body)
	return string(body), err
}

func playSCRAM(t *testing.T, login *credentials, lies bool) (endpoint, *scramPlay) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &scramPlay{l: l, verifier: login.verifier(), lies: lies, let: make(chan bool, 1)}
	go s.serve() // tells of its end by let
	t.Cleanup(func() { _ = l.Close() })
	return endpoint{addr: l.Addr().String(), user: "u", db: "d", login: login}, s
}

func TestClientsLogInByTheKeysOfTheVerifier(t *testing.T) {
	login, err := newCredentials()
	require.NoError(t, err)
	ep, s := playSCRAM(t, login, false)
	c, err := ep.connect(t.Context(), 512)
	require.NoError(t, err)
	defer c.close()
	require.True(t, <-s.let)
}

func TestClientsDoNotBelieveAServerThatHasNoVerifier(t *testing.T) {
	login, err := newCredentials()
	require.NoError(t, err)
	ep, s := playSCRAM(t, login, true)
	_, err = ep.connect(t.Context(), 512)
	require.ErrorContains(t, err, "does not know the verifier")
	require.True(t, <-s.let)
}

func TestArrivalsCountThoseThatFail(t *testing.T) {
	a := arrivals{ep: play(t, welcome)} // which serves one client only
	a.run(t.Context(), 1, time.Second)
	require.Len(t, a.taken, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	a.ep.addr = l.Addr().String()
	a.run(t.Context(), 100, 100*time.Millisecond)
	require.Len(t, a.taken, 1)
	require.Equal(t, 10, a.failed)
	require.Error(t, a.err)
}

func TestLoginsArePutNextToTheTimeWithoutThem(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "latency")
	log := "0 1 100 0 1000 500000\n0 2 300 0 1001 500000\n0 3 120 0 1002 500000\n0 4 360 0 1003 500000\n"
	require.NoError(t, os.WriteFile(prefix+".1", []byte(log), 0o600))
	at := func(second, pooler int) snapshot {
		return snapshot{at: time.Unix(int64(second), 0), pooler: time.Duration(pooler) * time.Millisecond}
	}
	m := alternation{
		quiet:    []slice{{from: at(1000, 0), to: at(1001, 40)}, {from: at(1002, 140), to: at(1003, 180)}},
		busy:     []slice{{from: at(1001, 40), to: at(1002, 140), self: 10 * time.Millisecond}, {from: at(1003, 180), to: at(1004, 280)}},
		arrivals: arrivals{taken: []float64{500, 600, 700}, failed: 1},
	}
	r := &Result{Figures: map[string]float64{}}
	require.NoError(t, m.figures(r, prefix))
	require.Equal(t, map[string]float64{
		keyTPS: 1, keyLogins: 1.5, keyLoginsFailed: 1, keyLoginCPU: 40000, keyLoaderCPU: 10000. / 3,
		keyLoginP50: 600, keyLoginP99: 700, keyLoginP999: 700, keyQuietP50: 100, keyQuietP99: 120, keyQuietP999: 120,
		keyP50: 300, keyP99: 360, keyP999: 360, keyRise: 3,
	}, r.Figures)
}
