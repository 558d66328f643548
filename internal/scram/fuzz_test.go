package scram_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/pgmoor/pgmoor/internal/scram"
)

// requireProtocolError fails unless err is a *ProtocolError that is fit to be sent.
func requireProtocolError(t *testing.T, err error) {
	t.Helper()
	var p *scram.ProtocolError
	if !errors.As(err, &p) || len(p.Code) != 5 || p.Msg == "" {
		t.Fatalf("unexpected error %v", err)
	}
	if strings.ContainsFunc(p.Detail, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Fatalf("not printable: %q", p.Detail)
	}
}

func FuzzServerFirst(f *testing.F) {
	for _, seed := range []string{"", "n,,n=,r=abc", "y,,n=u,r=abc,x=1", "p=tls-unique,,n=,r=a", "n,a=b,n=,r=a", "n,,m=1,n=,r=a"} {
		f.Add([]byte(seed))
	}
	_, v := newClient("n,,")
	f.Fuzz(func(t *testing.T, message []byte) {
		first, err := scram.NewServer(v, false).First(message)
		if err != nil {
			requireProtocolError(t, err)
			return
		}
		if len(message) > scram.MaxMessageSize || !bytes.HasPrefix(first, []byte("r=")) || !bytes.HasSuffix(first, []byte(",s=c2FsdA==,i=4096")) {
			t.Fatalf("%q answered with %q", message, first)
		}
	})
}

func FuzzServerFinal(f *testing.F) {
	c, v := newClient("n,,")
	begin := func(t testing.TB) (*scram.Server, []byte) {
		s := scram.NewServer(v, false)
		s.SetNonce("server")
		first, err := s.First(c.first())
		if err != nil {
			t.Fatal(err)
		}
		return s, first
	}
	_, first := begin(f)
	right := c.final(first, "")
	f.Add(right)
	f.Add(c.final(first, ",x=1"))
	for _, seed := range []string{"", "c=biws", "c=biws,r=nonceserver,p=AAAA", "c=eSws,r=nonceserver,x=1,p="} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		s, first := begin(t)
		final, err := s.Final(message)
		switch {
		case err == nil:
			if !proves(c, first, message) || !bytes.HasPrefix(final, []byte("v=")) {
				t.Fatalf("%q accepted", message)
			}
		case !errors.Is(err, scram.ErrAuthFailed):
			requireProtocolError(t, err)
		}
	})
}

// proves reports whether message is what c itself would have sent, with whatever extensions.
func proves(c client, serverFirst, message []byte) bool {
	plain := c.final(serverFirst, "")
	head := plain[:bytes.LastIndex(plain, []byte(",p="))]
	extensions, ok := bytes.CutPrefix(message, head)
	if !ok {
		return false
	}
	end := bytes.LastIndex(extensions, []byte(",p="))
	return end >= 0 && bytes.Equal(bytes.TrimSuffix(message, []byte(",")), c.final(serverFirst, string(extensions[:end])))
}

func FuzzParseVerifier(f *testing.F) {
	for _, seed := range []string{pencil, "", "SCRAM-SHA-256$4096:", "SCRAM-SHA-256$1:AAAA$AAAA:AAAA"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := scram.ParseVerifier(s)
		if err != nil {
			return
		}
		again, err := scram.ParseVerifier(v.Encode())
		if err != nil || again.Encode() != v.Encode() {
			t.Fatalf("%q does not survive a round trip", s)
		}
		scram.NewServer(v, false)
	})
}
