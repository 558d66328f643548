// Package proxyproto reads the header of the PROXY protocol, version 1 (a line of text) or 2 (binary), with which a load
// balancer begins a connection to say whose it is (haproxy.org, doc/proxy-protocol.txt). It reads exactly the header and not
// one byte of what follows: that may be the beginning of a TLS handshake, and whoever reads it may want the socket itself.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Header is what a header says.
type Header struct {
	// Local is true where the balancer speaks for itself, as its health checks do, and not for a client.
	Local bool
	// Source is where the client connected from: a *net.TCPAddr or a *net.UnixAddr. It is nil where Local is true, and where
	// the balancer cannot say: UNKNOWN and UNSPEC, or a datagram protocol.
	Source net.Addr
}

// FormatError says why what was read is no header. It holds nothing of what the peer sent.
type FormatError struct{ Reason string }

// Error returns the reason.
func (e *FormatError) Error() string { return e.Reason }

func malformed(format string, args ...any) error {
	return &FormatError{Reason: fmt.Sprintf(format, args...)}
}

const (
	signature1 = "PROXY "
	signature2 = "\r\n\r\n\x00\r\nQUIT\n"

	shortest1 = len("PROXY UNKNOWN\r\n") // shorter than a header of version 2 without its addresses
	longest1  = 107                      // with its end of line, as the protocol says
	fixed2    = 16                       // of version 2: signature, command, family, length
)

// Lengths in bytes of the addresses of version 2.
const (
	inetLen  = 4 + 4 + 2 + 2
	inet6Len = 16 + 16 + 2 + 2
	unixPath = 108
	unixLen  = 2 * unixPath
)

// Read reads a header. Its error is a *FormatError for what cannot be one, and otherwise that of r: io.EOF if nothing came,
// io.ErrUnexpectedEOF in the middle. A peer that sends no header at all is found out by its first bytes. What r blocks on, Read
// waits for; deadlines are the caller's. It needs memory of a constant size, whatever length the peer claims.
func Read(r io.Reader) (Header, error) {
	var b [longest1]byte
	for n := 0; n < shortest1; {
		m, err := r.Read(b[n:shortest1])
		n += m
		if !begins(b[:n]) {
			return Header{}, malformed("the connection does not begin with a PROXY protocol header")
		}
		if err != nil && n < shortest1 {
			return Header{}, cut(err, n)
		}
	}
	if b[0] == signature1[0] {
		return readLine(r, &b)
	}
	return readBinary(r, b[:fixed2])
}

// begins reports whether b can be the beginning of a header.
func begins(b []byte) bool {
	for _, s := range []string{signature1, signature2} {
		n := min(len(b), len(s))
		if string(b[:n]) == s[:n] {
			return true
		}
	}
	return false
}

// cut is the error of a read behind n bytes of the header.
func cut(err error, n int) error {
	if errors.Is(err, io.EOF) && n > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readLine reads the rest of a header of version 1, of which the shortest there is was read.
func readLine(r io.Reader, b *[longest1]byte) (Header, error) {
	n := shortest1
	for !bytes.Contains(b[:n], []byte("\n")) {
		more := missing(b[:n])
		if n+more > longest1 {
			return Header{}, malformed("a PROXY protocol header of version 1 is longer than %d bytes", longest1)
		}
		if _, err := io.ReadFull(r, b[n:n+more]); err != nil {
			return Header{}, cut(err, n)
		}
		n += more
	}
	line, ok := strings.CutSuffix(string(b[:n]), "\r\n")
	if !ok || strings.ContainsAny(line, "\r\n") {
		return Header{}, malformed("a PROXY protocol header of version 1 does not end with CR and LF")
	}
	return parseLine(line)
}

// missing is how many bytes are still to come at least: a few at once, to spare system calls, and never one too many.
func missing(line []byte) int {
	switch fields := 1 + bytes.Count(line, []byte(" ")); {
	case line[len(line)-1] == '\r':
		return 1
	case fields < lineFields && !bytes.HasPrefix(line, []byte(unknown)):
		return 2*(lineFields-fields) + len("\r\n") // a space and a character each
	}
	return len("\r\n")
}

const (
	lineFields = 6 // PROXY TCP4 192.0.2.1 192.0.2.2 54321 5432
	unknown    = "PROXY UNKNOWN"
)

func parseLine(line string) (Header, error) {
	if line == unknown || strings.HasPrefix(line, unknown+" ") {
		return Header{}, nil // what follows is to be ignored
	}
	f := strings.Split(line, " ")
	if len(f) != lineFields || f[1] != "TCP4" && f[1] != "TCP6" {
		return Header{}, malformed("a PROXY protocol header of version 1 is neither UNKNOWN nor TCP4 or TCP6 with two addresses and two ports")
	}
	source, ok1 := lineAddress(f[1], f[2], f[4])
	_, ok2 := lineAddress(f[1], f[3], f[5])
	if !ok1 || !ok2 {
		return Header{}, malformed("a PROXY protocol header of version 1 has an invalid address or port")
	}
	return Header{Source: source}, nil
}

func lineAddress(family, address, port string) (net.Addr, bool) {
	ip, err := netip.ParseAddr(address)
	n, err2 := strconv.ParseUint(port, 10, 16)
	leading := len(port) > 1 && port[0] == '0'
	if err != nil || err2 != nil || leading || ip.Zone() != "" || ip.Is4() != (family == "TCP4") {
		return nil, false
	}
	return tcp(ip, uint16(n)), true
}

func tcp(ip netip.Addr, port uint16) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip.Unmap(), port))
}

// readBinary reads the rest of a header of version 2 whose first bytes, all that versions have in common, stand in b.
func readBinary(r io.Reader, b []byte) (Header, error) {
	if _, err := io.ReadFull(r, b[shortest1:]); err != nil {
		return Header{}, cut(err, shortest1)
	}
	version, command, family, transport := b[12]>>4, b[12]&15, b[13]>>4, b[13]&15
	length := int(binary.BigEndian.Uint16(b[14:]))
	switch {
	case version != 2:
		return Header{}, malformed("version %d of the PROXY protocol is not known", version)
	case command > 1:
		return Header{}, malformed("command %d of the PROXY protocol is not known", command)
	case family > 3 || transport > 2:
		return Header{}, malformed("address family %d with transport %d of the PROXY protocol is not known", family, transport)
	}
	local := command == 0
	var addresses [unixLen]byte
	want := 0
	if !local && transport == 1 {
		want = [...]int{0, inetLen, inet6Len, unixLen}[family]
	}
	if length < want {
		return Header{}, malformed("a PROXY protocol header of version 2 is too short for its addresses")
	}
	if _, err := io.ReadFull(r, addresses[:want]); err != nil {
		return Header{}, cut(err, fixed2)
	}
	if err := skip(r, length-want); err != nil {
		return Header{}, err
	}
	return Header{Local: local, Source: source(addresses[:want])}, nil
}

// skip reads over what may follow the addresses: TLVs, and addresses that are of no interest.
func skip(r io.Reader, n int) error {
	var b [512]byte
	for n > 0 {
		m, err := io.ReadFull(r, b[:min(n, len(b))])
		if err != nil {
			return cut(err, fixed2)
		}
		n -= m
	}
	return nil
}

// source is the first of the addresses of version 2.
func source(b []byte) net.Addr {
	switch len(b) {
	case inetLen:
		return tcp(netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(b[8:]))
	case inet6Len:
		return tcp(netip.AddrFrom16([16]byte(b)), binary.BigEndian.Uint16(b[32:]))
	case unixLen:
		path := b[:unixPath]
		if path[0] == 0 && len(bytes.Trim(path, "\x00")) > 0 { // Linux's abstract namespace, which Go writes with an @
			return &net.UnixAddr{Net: "unix", Name: "@" + string(bytes.TrimRight(path[1:], "\x00"))}
		}
		path, _, _ = bytes.Cut(path, []byte{0})
		return &net.UnixAddr{Net: "unix", Name: string(path)}
	}
	return nil
}
