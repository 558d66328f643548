package pgmoor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file stands between pgconn and a server while it logs in: it bounds what pgconn does not.

// loginConn is what pgconn reads and writes while it logs in. It puts our startup packet in the place of pgconn's first
// write, and keeps a copy of what the server says. Only pgconn's goroutine uses it.
type loginConn struct {
	io.Reader
	io.Writer
	startup  []byte // nil once sent
	heard    []byte
	checked  int     // how many bytes of heard are whole messages that were looked at
	done     bool    // nothing more is kept
	prover   *prover // answers what the server asks first; nil: pgconn does
	ahead    []byte  // read by it, and not by pgconn yet
	frontend *pgproto3.Frontend
}

// Bounds on what a server may say before ReadyForQuery.
const (
	maxLoginBytes     = 256 << 10
	maxServerFirst    = 4 << 10   // bytes of a server-first-message of SCRAM; PostgreSQL's has about 90
	maxIterations     = 1_000_000 // of SCRAM, less than a second of CPU; PostgreSQL's default is 4096
	maxMessageOfQuery = 0x3fffffff
)

// newLoginConn returns what pgconn uses in the place of a connection's two directions.
func newLoginConn(r io.Reader, w io.Writer, startup []byte) *loginConn {
	l := &loginConn{Reader: r, Writer: w, startup: startup}
	l.frontend = pgproto3.NewFrontend(l, l)
	l.frontend.SetMaxBodyLen(maxLoginBytes)
	return l
}

func (l *loginConn) Write(p []byte) (int, error) {
	if l.startup == nil {
		return l.Writer.Write(p)
	}
	_, err := l.Writer.Write(l.startup)
	l.startup = nil
	return len(p), err
}

var (
	errLongLogin  = fmt.Errorf("pgmoor: the server says more than %d bytes before ReadyForQuery", maxLoginBytes)
	errLongNonce  = fmt.Errorf("pgmoor: the server's first message of SCRAM is longer than %d bytes", maxServerFirst)
	errIterations = fmt.Errorf("pgmoor: the server wants more than %d iterations of SCRAM: lower its scram_iterations, and set the password anew", maxIterations)
)

func (l *loginConn) Read(p []byte) (int, error) {
	if l.prover != nil {
		ahead, err := l.prover.run()
		if err != nil {
			return 0, err
		}
		l.prover, l.ahead = nil, ahead
	}
	n, err := l.read(p)
	if l.done {
		return n, err
	}
	if len(l.heard)+n > maxLoginBytes {
		return 0, errLongLogin
	}
	l.heard = append(l.heard, p[:n]...)
	if bad := l.check(); bad != nil {
		return 0, bad
	}
	return n, err
}

func (l *loginConn) read(p []byte) (n int, err error) {
	if len(l.ahead) == 0 {
		return l.Reader.Read(p)
	}
	n = copy(p, l.ahead)
	l.ahead = l.ahead[n:]
	return n, nil
}

// check looks at the messages that are whole now.
func (l *loginConn) check() error {
	for b := l.heard[l.checked:]; len(b) >= wire.HeaderLen; b = l.heard[l.checked:] {
		n := int(wire.Length(b)) + 1
		if n < wire.HeaderLen || n > len(b) {
			return nil // pgconn has its own word on what is none
		}
		l.checked += n
		if err := checkSCRAM(b[:n]); err != nil {
			return err
		}
	}
	return nil
}

// checkSCRAM looks at the server's first message of SCRAM, if msg is that.
func checkSCRAM(msg []byte) error {
	const head = wire.HeaderLen + 4
	if msg[0] != 'R' || len(msg) < head || binary.BigEndian.Uint32(msg[wire.HeaderLen:]) != authSASLContinue {
		return nil
	}
	if len(msg) > head+maxServerFirst {
		return errLongNonce
	}
	_, count, _ := bytes.Cut(msg[head:], []byte(",i="))
	if n, err := strconv.Atoi(string(count)); errors.Is(err, strconv.ErrRange) || n > maxIterations { // as pgconn reads it
		return errIterations
	}
	return nil
}

// end is called when the login is over: what follows is the answers to queries. It returns the ParameterStatus messages among
// what was heard.
func (l *loginConn) end() []byte {
	var out []byte
	for b := l.heard; len(b) >= wire.HeaderLen; {
		n := int(wire.Length(b)) + 1
		if n < wire.HeaderLen || n > len(b) {
			break
		}
		if b[0] == wire.ParameterStatus {
			out = append(out, b[:n]...)
		}
		b = b[n:]
	}
	l.heard, l.done = nil, true
	l.frontend.SetMaxBodyLen(maxMessageOfQuery)
	return out
}
