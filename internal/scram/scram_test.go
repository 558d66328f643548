package scram_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/scram"
)

// Made by PostgreSQL 15.
const pencil = "SCRAM-SHA-256$4096:LbZ+QUgDMrtKKUjiNe4PRA==$WjtoBRGb+MYCzVYSqvEYmezGaT/jC7nPc9wwbinwb8Q=:JFXHuKze22vEi2yRLdrSKXR0L1mMzlEV3oqzFGBdmeE="

func mustParse(tb testing.TB, s string) scram.Verifier {
	tb.Helper()
	v, err := scram.ParseVerifier(s)
	require.NoError(tb, err)
	return v
}

func mustDecode(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	require.NoError(tb, err)
	return b
}

func TestNewVerifierAgreesWithPostgreSQL(t *testing.T) {
	for _, test := range []struct{ name, password, verifier string }{
		{"ASCII", "pencil", pencil},
		{"soft hyphen vanishes", "I\u00adX", "SCRAM-SHA-256$4096:SPyIdUkIGycDqx1DbRu7XA==$52sEzLQKQ9iz1OysPvNDwwQr5yYjSKQpCKGV1ENXUoQ=:7Jn21QVrpeplMMH/FpXfnszeKyqmmIUZoZIW/DbMVBs="},
		{"compatibility character", "\u2168", "SCRAM-SHA-256$4096:vJjtDCLvHCJYORqFqKjBCQ==$z4KnAQA1GuQLubQoI3ovxQYOE2GjmwAms+NPlx8wGZc=:Rfq0BDA/usr66FXGvrW2t98UWAHlNkheP0M+KsqQw2k="},
		{"composition", "\u00aa\u00e9 cafe\u0301", "SCRAM-SHA-256$4096:E51RwGXzFdH31gCHkv5h0A==$eSWi0nuQ9bGXHNDi3TDkCR72YStzJQb6vm9bCRmg8AE=:0/tCXGvwN5QQnaiy81UNJBG8ekeUy/55z9GJWHz1gfg="},
		{"forbidden mix of directions", "\u06271", "SCRAM-SHA-256$4096:0HLA2+w3eAPOO9v1VANvWg==$vPQiM4y146PDYvw11V6+VNE3TIzUbbgMYZdxlPUTgyA=:1TOQO+Y/2+2+QzFW3WMoL0YBnl+n9aKjAzbox/SO5C8="},
		{"control character", "a\u0007b", "SCRAM-SHA-256$4096:Xo1d2Drl/XHHQ1Y2zTj8xw==$MIXk+Qd7qHAM7cdMLVugY18pRhLwUIBRDG3mkNKiNRg=:afOcIZx29TeRW0vKjgV0wslbm5afJh3X99BpAc04Jjw="},
		{"nothing left", "\u00ad", "SCRAM-SHA-256$4096:9IvaBtcb3xPLEG1+qzxGGw==$NPgNChbLo4EUQc4wmAzuZGXJaDq5Dx5eCyeKQrVAMbY=:CSnAfrcGU5JC5bo5lW2U1BkngOYn+amSNmafEb1WpTE="},
		{"other space", "x\u00a0y", "SCRAM-SHA-256$4096:GpLkim3eNXB8aD/T3CTOdQ==$TyEQyi6XsGKfv8qkg3DswUFsFB+Fdr4sjpuk6BWIz2k=:+RzV+Rwbxq6DJiycWFEp8ZNBk4/KWKVGADVu3Am6eOQ="},
		{"unassigned in Unicode 3.2", "\u0221x", "SCRAM-SHA-256$4096:QrKusA3YIgaGFYH4xR4nNA==$a5sc2Zs69LOPCvdPsOpcUKtlbrs5eqJ4o02THMUgtEo=:2fq7XD6doZnjCjma03lhsVXswz4ItWsxunnooy7imW0="},
		{"zero width space", "a\u200bb", "SCRAM-SHA-256$4096:guwyUUaSeKh4VOyP3/WPzQ==$1EVaJmFKg2mbCnmj2klQUE5FyVlt1Bg2HCInKInvHZU=:zqpfNPlwy77HtWdYWSbYznIgNbhODVqtmfl63qe0ql0="},
	} {
		t.Run(test.name, func(t *testing.T) {
			stored := mustParse(t, test.verifier)
			v, err := scram.NewVerifier(test.password, stored.Salt, stored.Iterations)
			require.NoError(t, err)
			require.Equal(t, test.verifier, v.Encode())
		})
	}
}

func TestAPasswordThatIsNotUTF8IsTakenAsItIs(t *testing.T) {
	_, err := scram.NewVerifier("\xff\xfe", []byte("salt"), 1)
	require.NoError(t, err)
}

func TestNewVerifierRefusesNoSaltAndNoIterations(t *testing.T) {
	for _, test := range []struct {
		salt       string
		iterations int
	}{{"", 1}, {"salt", 0}, {"salt", -1}, {strings.Repeat("s", 513), 1}} {
		_, err := scram.NewVerifier("secret", []byte(test.salt), test.iterations)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "secret")
	}
}

func TestParseVerifierRefusesWhatIsNotOne(t *testing.T) {
	for _, s := range []string{
		"", "pencil", "SCRAM-SHA-256", "SCRAM-SHA-256$", "SCRAM-SHA-1" + pencil[13:], pencil[14:],
		strings.Replace(pencil, "4096", "0", 1),
		strings.Replace(pencil, "4096", "-1", 1),
		strings.Replace(pencil, "4096", "", 1),
		strings.Replace(pencil, "4096", "2147483648", 1),
		strings.Replace(pencil, "LbZ+QUgDMrtKKUjiNe4PRA==", "", 1),
		strings.Replace(pencil, "LbZ+QUgDMrtKKUjiNe4PRA==", "*", 1),
		strings.Replace(pencil, "PRA==", "PRB==", 1),
		strings.Replace(pencil, "WjtoBRGb", "", 1),
		strings.Replace(pencil, "JFXHuKze", "", 1),
		pencil[:len(pencil)-1], pencil + "x", pencil + "\n", pencil + strings.Repeat(" ", 1024),
	} {
		_, err := scram.ParseVerifier(s)
		require.EqualError(t, err, "scram: not a valid SCRAM-SHA-256 verifier", "%q", s)
	}
}

func TestNoWayOfPrintingAVerifierShowsIt(t *testing.T) {
	v := scram.Verifier{Iterations: 4096, Salt: []byte("abcd"), StoredKey: []byte("abcd"), ServerKey: []byte("abcd")}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o"} {
		_, _ = fmt.Fprintf(&out, verb+verb+verb+"\n", v, &v, struct{ V any }{v})
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v, "p", &v, "s", struct{ V any }{v})
	require.NoError(t, json.NewEncoder(&out).Encode(v))
	for _, leak := range []string{"abcd", "61626364", "97 98 99", "141 142", "YWJjZA", "0x61"} {
		require.NotContains(t, out.String(), leak)
	}
	require.Equal(t, "SCRAM-SHA-256 verifier", v.String())
}

func TestMockVerifierIsStablePerUserAndSeed(t *testing.T) {
	seed := []byte("a seed")
	v := scram.MockVerifier("nobody", seed)
	require.Equal(t, v.Encode(), scram.MockVerifier("nobody", seed).Encode())
	require.NotEqual(t, v.Salt, scram.MockVerifier("nobody else", seed).Salt)
	require.NotEqual(t, v.Salt, scram.MockVerifier("nobody", []byte("another seed")).Salt)
	require.Len(t, v.Salt, scram.SaltSize)
	require.Equal(t, v.Encode(), mustParse(t, v.Encode()).Encode())
}

func TestMD5AgreesWithPostgreSQL(t *testing.T) {
	require.Equal(t, "md57474753e4b2f9e23953d5977773aabb0", scram.MD5("m1", "pencil"))
}

func TestTheExampleOfRFC7677(t *testing.T) {
	v, err := scram.NewVerifier("pencil", mustDecode(t, "W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
	require.NoError(t, err)
	s := scram.NewServer(v, false)
	s.SetNonce("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
	first, err := s.First([]byte("n,,n=user,r=rOprNGfwEbeRWgbNEkqO"))
	require.NoError(t, err)
	require.Equal(t, "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", string(first))
	final, err := s.Final([]byte("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="))
	require.NoError(t, err)
	require.Equal(t, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", string(final))
}

// client is the client's side with the key that its password leads to.
type client struct {
	key, storedKey []byte
	header         string
}

// newClient returns a client that knows the key behind a verifier of its own making, and that verifier.
func newClient(header string) (client, scram.Verifier) {
	key := sha256.Sum256([]byte("client key"))
	stored := sha256.Sum256(key[:])
	server := sha256.Sum256([]byte("server key"))
	return client{key[:], stored[:], header}, scram.Verifier{
		Iterations: 4096, Salt: []byte("salt"), StoredKey: stored[:], ServerKey: server[:],
	}
}

const clientFirst = "n=ignored,r=nonce"

func (c client) first() []byte { return []byte(c.header + clientFirst) }

// final answers serverFirst, with extensions (each with a comma in front) before the proof.
func (c client) final(serverFirst []byte, extensions string) []byte {
	nonce, _, _ := strings.Cut(string(serverFirst), ",")
	unproved := "c=" + base64.StdEncoding.EncodeToString([]byte(c.header)) + "," + nonce + extensions
	h := hmac.New(sha256.New, c.storedKey)
	_, _ = fmt.Fprintf(h, "%s,%s,%s", clientFirst, serverFirst, unproved)
	proof := h.Sum(nil)
	subtle.XORBytes(proof, proof, c.key)
	return []byte(unproved + ",p=" + base64.StdEncoding.EncodeToString(proof))
}

func TestEachKindOfClientThatBindsNoChannelIsAccepted(t *testing.T) {
	for _, header := range []string{"n,,", "y,,"} {
		for _, extensions := range []string{"", ",x=1", ",x=,Y=2=3"} {
			c, v := newClient(header)
			s := scram.NewServer(v, false)
			first, err := s.First(c.first())
			require.NoError(t, err)
			final, err := s.Final(c.final(first, extensions))
			require.NoError(t, err)
			require.True(t, bytes.HasPrefix(final, []byte("v=")))
		}
	}
}

func TestADoomedExchangeFailsThoughTheProofIsRight(t *testing.T) {
	c, v := newClient("n,,")
	s := scram.NewServer(v, true)
	first, err := s.First(c.first())
	require.NoError(t, err)
	final, err := s.Final(c.final(first, ""))
	require.Equal(t, scram.ErrAuthFailed, err)
	require.Nil(t, final)
}

func TestAProofWithOneWrongBitFails(t *testing.T) {
	for bit := range 8 * sha256.Size {
		c, v := newClient("n,,")
		c.key[bit/8] ^= 1 << (bit % 8)
		s := scram.NewServer(v, false)
		first, err := s.First(c.first())
		require.NoError(t, err)
		_, err = s.Final(c.final(first, ""))
		require.Equal(t, scram.ErrAuthFailed, err)
	}
}

func TestNoncesAreNotRepeated(t *testing.T) {
	c, v := newClient("n,,")
	one, err := scram.NewServer(v, false).First(c.first())
	require.NoError(t, err)
	two, err := scram.NewServer(v, false).First(c.first())
	require.NoError(t, err)
	require.NotEqual(t, one, two)
	require.Regexp(t, `^r=nonce[+/0-9A-Za-z]{24},s=c2FsdA==,i=4096$`, string(one))
}

func TestMisusePanics(t *testing.T) {
	c, v := newClient("n,,")
	require.Panics(t, func() { scram.NewServer(scram.Verifier{}, true) })
	require.Panics(t, func() { _, _ = scram.NewServer(v, false).Final(nil) })
	s := scram.NewServer(v, false)
	first, err := s.First(c.first())
	require.NoError(t, err)
	_, err = s.Final(c.final(first, ""))
	require.NoError(t, err)
	require.Panics(t, func() { _, _ = s.Final(c.final(first, "")) })
	s = scram.NewServer(v, false)
	_, err = s.First(nil)
	require.Error(t, err)
	require.Panics(t, func() { _, _ = s.First(c.first()) })
}

// The errors of this table and the next are what PostgreSQL 15 answers, save for messages that are too long, which it
// answers with a failed authentication.
func TestFirstRefusesAsPostgreSQLDoes(t *testing.T) {
	for message, want := range map[string]scram.ProtocolError{
		"":                                     {"08P01", "malformed SCRAM message", "The message is empty."},
		"n":                                    {"08P01", "malformed SCRAM message", `Comma expected, but found character "0x00".`},
		"x,,n=,r=abc":                          {"08P01", "malformed SCRAM message", `Unexpected channel-binding flag "'x'".`},
		"p=tls-server-end-point,,n=,r=abc":     {"08P01", "malformed SCRAM message", "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data."},
		"n;":                                   {"08P01", "malformed SCRAM message", `Comma expected, but found character "';'".`},
		"n,a=me,n=,r=abc":                      {"0A000", "client uses authorization identity, but it is not supported", ""},
		"n,b,":                                 {"08P01", "malformed SCRAM message", `Unexpected attribute "'b'" in client-first-message.`},
		"n,\xc3,n=,r=a":                        {"08P01", "malformed SCRAM message", `Unexpected attribute "0xc3" in client-first-message.`},
		"n,,m=x,n=,r=a":                        {"0A000", "client requires an unsupported SCRAM extension", ""},
		"n,,x=1,r=a":                           {"08P01", "malformed SCRAM message", `Expected attribute "n" but found "'x'".`},
		"n,,n,r=a":                             {"08P01", "malformed SCRAM message", `Expected character "=" for attribute "n".`},
		"n,,n=x":                               {"08P01", "malformed SCRAM message", `Expected attribute "r" but found "0x00".`},
		"n,,n=x,s=1":                           {"08P01", "malformed SCRAM message", `Expected attribute "r" but found "'s'".`},
		"n,,n=,r=a b":                          {"08P01", "non-printable characters in SCRAM nonce", ""},
		"n,,n=,r=a,1=2":                        {"08P01", "malformed SCRAM message", `Attribute expected, but found invalid character "'1'".`},
		"n,,n=,r=a,b":                          {"08P01", "malformed SCRAM message", `Expected character "=" for attribute "b".`},
		"n,,n=a\x00,r=b":                       {"08P01", "malformed SCRAM message", "Message length does not match input length."},
		"n,,n=,r=" + strings.Repeat("a", 1017): {"08P01", "malformed SCRAM message", "The message is too long."},
	} {
		_, v := newClient("n,,")
		first, err := scram.NewServer(v, false).First([]byte(message))
		require.Nil(t, first)
		require.Equal(t, &want, err, "%.40q", message)
	}
}

func TestFirstAcceptsWhatPostgreSQLAccepts(t *testing.T) {
	for _, message := range []string{
		"n,,n=,r=", "n,,n=,r=a,", "n,,n=,r=a,x=\xff,y=", "y,,n=\xff,r=abc",
		"n,,n=,r=" + strings.Repeat("a", 1016),
	} {
		_, v := newClient("n,,")
		_, err := scram.NewServer(v, false).First([]byte(message))
		require.NoError(t, err, "%.40q", message)
	}
}

func TestFinalRefusesAsPostgreSQLDoes(t *testing.T) {
	proof := base64.StdEncoding.EncodeToString(make([]byte, sha256.Size))
	malformed := func(detail string) error {
		return &scram.ProtocolError{Code: "08P01", Msg: "malformed SCRAM message", Detail: detail}
	}
	for message, want := range map[string]error{
		"":                                   malformed("The message is empty."),
		"c=biws,r=NONCE,p=" + proof:          scram.ErrAuthFailed,
		"c=biws,r=NONCE,p=" + proof + ",":    scram.ErrAuthFailed,
		"c=eSws,r=NONCE,p=" + proof:          &scram.ProtocolError{Code: "08P01", Msg: "unexpected SCRAM channel-binding attribute in client-final-message"},
		"c=biws,r=abc,p=" + proof:            &scram.ProtocolError{Code: "08P01", Msg: "invalid SCRAM response", Detail: "Nonce does not match."},
		"c=biws,r=NONCE,p=AAAA":              malformed("Malformed proof in client-final-message."),
		"c=biws,r=abc,p=AAAA":                malformed("Malformed proof in client-final-message."),
		"c=biws,r=NONCE,p=!!!":               malformed("Malformed proof in client-final-message."),
		"c=biws,r=NONCE,p=" + proof + ",x=1": malformed("Garbage found at the end of client-final-message."),
		"c=biws,r=NONCE":                     malformed("Attribute expected, but found end of string."),
		"c=biws,r=NONCE,":                    malformed("Attribute expected, but found end of string."),
		"r=NONCE":                            malformed(`Expected attribute "c" but found "'r'".`),
		"c=biws":                             malformed(`Expected attribute "r" but found "0x00".`),
		"c=biws,r=NONCE,=1,p=" + proof:       malformed(`Attribute expected, but found invalid character "'='".`),
	} {
		_, v := newClient("n,,")
		s := scram.NewServer(v, false)
		s.SetNonce("ncE")
		_, err := s.First([]byte("n,,n=,r=NO"))
		require.NoError(t, err)
		final, err := s.Final([]byte(strings.Replace(message, "NONCE", "NOncE", 1)))
		require.Nil(t, final)
		require.Equal(t, want, err, "%q", message)
	}
}

func TestErrorsSayWhatIsWrong(t *testing.T) {
	require.EqualError(t, &scram.ProtocolError{Msg: "m"}, "scram: m")
	require.EqualError(t, &scram.ProtocolError{Msg: "m", Detail: "d"}, "scram: m: d")
}

func BenchmarkExchange(b *testing.B) {
	c, v := newClient("n,,")
	b.ReportAllocs()
	for b.Loop() {
		s := scram.NewServer(v, false)
		first, err := s.First(c.first())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Final(c.final(first, "")); err != nil {
			b.Fatal(err)
		}
	}
}
