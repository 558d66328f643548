package proxyproto_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/proxyproto"
)

const signature = "\r\n\r\n\x00\r\nQUIT\n"

// v2 is a header of version 2.
func v2(command, family byte, body ...byte) string {
	b := append([]byte(signature), 0x20|command, family)
	return string(append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...))
}

// inet and inet6 are the addresses of a client at port 258.
var (
	inet  = []byte{192, 0, 2, 1, 198, 51, 100, 1, 1, 2, 3, 4}
	inet6 = slices.Concat(net.ParseIP("2001:db8::1"), net.ParseIP("2001:db8::2"), []byte{1, 2, 3, 4})
	// tlvs are the name that a client asked for by SNI, no operation, and a type that nobody has heard of.
	tlvs = []byte("\x02\x00\x02db\x04\x00\x00\xee\x00\x03abc")
)

// unix are the addresses of a client's Unix socket and the balancer's.
func unix(path string) []byte {
	b := make([]byte, 216)
	copy(b, path)
	copy(b[108:], "/run/balancer")
	return b
}

func valid() map[string]string {
	return map[string]string{
		"PROXY TCP4 192.0.2.1 198.51.100.1 54321 5432\r\n":              "192.0.2.1:54321",
		"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n":    "255.255.255.255:65535",
		"PROXY TCP4 1.2.3.4 1.2.3.4 0 1\r\n":                            "1.2.3.4:0",
		"PROXY TCP6 2001:db8::1 2001:db8::2 54321 5432\r\n":             "[2001:db8::1]:54321",
		"PROXY TCP6 :: :: 1 2\r\n":                                      "[::]:1",
		"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n":                       "192.0.2.1:1",
		"PROXY UNKNOWN\r\n":                                             "unknown",
		"PROXY UNKNOWN " + strings.Repeat("f", 107-16) + "\r\n":         "unknown",
		v2(1, 0x11, inet...):                                            "192.0.2.1:258",
		v2(1, 0x21, inet6...):                                           "[2001:db8::1]:258",
		v2(1, 0x11, append(inet, tlvs...)...):                           "192.0.2.1:258",
		v2(1, 0x21, append(inet6, bytes.Repeat(tlvs, 4000)...)...):      "[2001:db8::1]:258",
		v2(1, 0x31, unix("/run/client")...):                             "/run/client",
		v2(1, 0x31, unix("")...):                                        "",
		v2(1, 0x31, unix("\x00abstract")...):                            "@abstract",
		v2(1, 0x31, append(unix(strings.Repeat("x", 108)), tlvs...)...): strings.Repeat("x", 108),
		v2(1, 0x00):                         "unknown",
		v2(1, 0x00, tlvs...):                "unknown",
		v2(1, 0x12, inet...):                "unknown", // UDP
		v2(0, 0x00):                         "local",
		v2(0, 0x11, inet...):                "local",
		v2(0, 0x21, 1, 2, 3):                "local",
		v2(0, 0x00, make([]byte, 65535)...): "local",
	}
}

func said(h proxyproto.Header) string {
	switch {
	case h.Local:
		return "local"
	case h.Source == nil:
		return "unknown"
	}
	return h.Source.String()
}

func TestHeadersAreReadExactlyHoweverTheyArrive(t *testing.T) {
	const behind = "\x00\x00\x00\x08\x04\xd2\x16\x2f"
	for header, want := range valid() {
		for name, chop := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "halves": iotest.HalfReader, "end with data": iotest.DataErrReader,
		} {
			r := chop(strings.NewReader(header + behind))
			h, err := proxyproto.Read(r)
			require.NoError(t, err, "%s: %.40q", name, header)
			require.Equal(t, want, said(h))
			rest, err := io.ReadAll(r)
			require.NoError(t, err)
			require.Equal(t, behind, string(rest), "%s: %.40q", name, header)
		}
		_, err := proxyproto.Read(iotest.DataErrReader(strings.NewReader(header)))
		require.NoError(t, err, "%.40q", header)
	}
}

func TestTruncatedHeadersEndUnexpectedly(t *testing.T) {
	for header := range valid() {
		for n := range min(len(header), 300) {
			_, err := proxyproto.Read(strings.NewReader(header[:n]))
			if n == 0 {
				require.ErrorIs(t, err, io.EOF)
			} else {
				require.ErrorIs(t, err, io.ErrUnexpectedEOF, "%.40q", header[:n])
			}
		}
	}
}

func TestWhatIsNoHeaderIsRefused(t *testing.T) {
	for _, in := range []string{
		"X", "\x00\x00\x00\x08\x04\xd2\x16\x2f", "\x16\x03\x01", "PROXYTCP4", "PROXx", "\r\n\r\n\x00\r\nQUIX", "proxy TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
		"PROXY TCP5 1.2.3.4 1.2.3.4 1 1\r\n", "PROXY  TCP4 1.2.3.4 1.2.3.4 1 1\r\n", "PROXY TCP4 1.2.3.4 1.2.3.4 1 1 \r\n",
		"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", "PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n", "PROXY TCP4 1.2.3.4 1.2.3.4 +1 1\r\n",
		"PROXY TCP4 1.2.3.4 1.2.3.4 -1 1\r\n", "PROXY TCP4 1.2.3.256 1.2.3.4 1 1\r\n", "PROXY TCP4 01.2.3.4 1.2.3.4 1 1\r\n",
		"PROXY TCP4 ::1 ::1 1 1\r\n", "PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n", "PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n",
		"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\n", "PROXY TCP4 1.2.3.4\r\n\x00\x00\x00\x08\x04\xd2\x16\x2f", "PROXY UNKNOWN\nxx", "PROXY UNKNOWNX\r\n", "PROXY UNKNOWN a\rb\r\n",
		"PROXY TCP4 " + strings.Repeat("1", 200), "PROXY UNKNOWN " + strings.Repeat("x", 200), "PROXY TCP4 " + strings.Repeat(" ", 200),
		v2(2, 0x11, inet...), v2(15, 0x11, inet...), v2(1, 0x41, inet...), v2(1, 0x13, inet...), v2(0, 0xff),
		v2(1, 0x11, inet[:11]...), v2(1, 0x21, inet6[:35]...), v2(1, 0x31, unix("")[:215]...), v2(1, 0x11),
		signature + "\x11\x11\x00\x0c" + string(inet), signature + "\x31\x11\x00\x0c" + string(inet),
	} {
		// Nothing more comes, and still the answer is there: whoever reads would wait for ever otherwise.
		_, err := proxyproto.Read(io.MultiReader(strings.NewReader(in), iotest.ErrReader(errors.New("waits"))))
		var format *proxyproto.FormatError
		require.ErrorAs(t, err, &format, "%q", in)
		require.NotEmpty(t, err.Error())
	}
}

func TestErrorsOfTheConnectionAreHandedOn(t *testing.T) {
	broken := errors.New("broken")
	for _, in := range []string{"", "PRO", "PROXY TCP4 1.2.3.4 ", v2(1, 0x11, inet...)[:20], v2(0, 0, tlvs...)[:18]} {
		_, err := proxyproto.Read(io.MultiReader(strings.NewReader(in), iotest.ErrReader(broken)))
		require.ErrorIs(t, err, broken, "%q", in)
	}
}

// counting counts the reads, each of which is a system call.
type counting struct {
	io.Reader
	n int
}

func (c *counting) Read(b []byte) (int, error) {
	c.n++
	return c.Reader.Read(b)
}

func TestAHeaderTakesFewReads(t *testing.T) {
	for header, most := range map[string]int{
		"PROXY TCP4 192.0.2.1 198.51.100.1 54321 5432\r\n": 11,
		v2(1, 0x11, append(inet, tlvs...)...):              4,
	} {
		c := &counting{Reader: strings.NewReader(header)}
		_, err := proxyproto.Read(c)
		require.NoError(t, err)
		require.LessOrEqual(t, c.n, most, "%q", header)
	}
}

func FuzzRead(f *testing.F) {
	for header := range valid() {
		f.Add([]byte(header + "behind"))
	}
	f.Add([]byte("PROXY TCP4 1.2.3.4 1.2.3.4 1 1 \r\n"))
	f.Add([]byte("\x00\x00\x00\x08\x04\xd2\x16\x2f"))
	f.Fuzz(func(t *testing.T, data []byte) {
		whole, parts := bytes.NewReader(data), bytes.NewReader(data)
		h, err := proxyproto.Read(whole)
		h2, err2 := proxyproto.Read(iotest.OneByteReader(parts))
		require.Equal(t, h, h2)
		require.Equal(t, err, err2)
		if err != nil {
			require.Zero(t, h)
			return
		}
		require.Equal(t, whole.Len(), parts.Len())
		n := len(data) - whole.Len()
		if data[0] == 'P' {
			require.LessOrEqual(t, n, 107)
			require.True(t, bytes.HasSuffix(data[:n], []byte("\r\n")))
		} else {
			require.Equal(t, 16+int(binary.BigEndian.Uint16(data[14:])), n)
		}
		if h.Local {
			require.Nil(t, h.Source)
		}
	})
}
