package pgtest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
)

// A Script is what one client sends, and where it waits for answers. Its text has one step a line, blank lines and
// comments from # on:
//
//	Query "sql"                              a frontend message; strings are Go literals, "x"*1000 repeats one
//	Parse "name" "sql" [oid, …]              lists at the end may be left out
//	Bind "portal" "name" ["text", null, …] [parameter formats] [result formats]
//	Describe S|P "name"      Close S|P "name"
//	Execute "portal" [max rows]
//	Sync     Flush     CopyData "data"     CopyDone     CopyFail "reason"     Terminate
//	FunctionCall oid ["text", null, …] [argument formats] result format
//	Raw 51 00 00 00 04                       bytes as they are
//	chop N                                   what is sent next goes out in pieces of N bytes
//	wait                                     until every Query, Sync and FunctionCall has had its ReadyForQuery
//	wait CopyInResponse                      until one more message of that type
//	wait EOF                                 until the server closes the connection
//	settle                                   until all is answered, whatever state the session is in
//	interfere simple|extended|visit "sql"    another client runs sql about now
//	change "sql"                             a client on a direct connection runs sql, without waiting for locks; what it is
//	                                         answered stands in the transcript
//
// Messages are gathered and written at once where the script waits. What follows the last wait is settled. A plain wait
// must not be used where the server ignores a Sync or a Query (in COPY, or after an error in the extended protocol);
// settle is always right, but it runs a Query, so the unnamed statement is gone.
type Script struct {
	// Name says where the script came from: a file's name or a seed.
	Name string

	lines []string
	steps []step
}

// A step is one line of a script.
type step struct {
	op     op
	data   []byte // opSend: the encoded message
	owes   bool   // opSend: a ReadyForQuery is due
	name   string // opWait: message type; opInterfere: manner
	sql    string // opInterfere, opChange
	pieces int    // opChop
}

type op int

const (
	opSend op = iota
	opWait
	opSettle
	opChop
	opInterfere
	opChange
)

// Parse reads a script.
func Parse(r io.Reader) (*Script, error) {
	var lines []string
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, maxLiteral)
	for scanner.Scan() {
		lines = append(lines, scanner.Text())
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	return parseLines(lines)
}

// ReadScripts parses all scripts (*.txt) in a directory.
func ReadScripts(dir fs.FS) ([]*Script, error) {
	names, err := fs.Glob(dir, "*.txt")
	if err != nil {
		return nil, err
	}
	var scripts []*Script
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, err
		}
		s, err := Parse(bytes.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		s.Name = path.Base(name)
		scripts = append(scripts, s)
	}
	return scripts, nil
}

// String is the script's text.
func (s *Script) String() string { return strings.Join(s.lines, "\n") + "\n" }

// renamed is the script with one name for another, and whether it has that name at all.
func (s *Script) renamed(old, name string) (*Script, bool) {
	text := s.String()
	if !strings.Contains(text, old) {
		return s, false
	}
	r, err := parseLines(strings.Split(strings.ReplaceAll(text, old, name), "\n"))
	if err != nil {
		panic(fmt.Sprintf("pgtest: %s: %v", s.Name, err)) // it was a script before
	}
	r.Name = s.Name
	return r, true
}

func parseLines(lines []string) (*Script, error) {
	s := &Script{}
	for i, line := range lines {
		a := &args{rest: line}
		if !a.more() {
			continue
		}
		st, err := parseStep(a)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		s.lines = append(s.lines, strings.TrimSpace(line))
		s.steps = append(s.steps, st)
	}
	return s, nil
}

func parseStep(a *args) (step, error) {
	st, known := parseControl(a)
	if !known {
		return parseMessage(a)
	}
	return st, a.end()
}

// parseControl parses a line that is no message.
func parseControl(a *args) (st step, known bool) {
	before := a.rest
	switch a.word() {
	case "wait":
		st = step{op: opWait}
		if a.more() {
			st.name = a.word()
		}
	case "settle":
		st = step{op: opSettle}
	case "chop":
		st = step{op: opChop, pieces: a.number()}
		if st.pieces < 1 {
			a.fail("chop needs a positive number")
		}
	case "interfere":
		st = step{op: opInterfere, name: a.word(), sql: a.str()}
		if st.name != "simple" && st.name != "extended" && st.name != "visit" {
			a.fail("interfere %q is unknown", st.name)
		}
	case "change":
		st = step{op: opChange, sql: a.str()}
	case "Raw":
		st = step{op: opSend, data: a.hex()}
	default:
		a.rest = before
		return step{}, false
	}
	return st, true
}

func parseMessage(a *args) (step, error) {
	name := a.word()
	m := frontendMessage(name, a)
	if err := a.end(); err != nil {
		return step{}, err
	}
	data, err := m.Encode(nil)
	if err != nil {
		return step{}, err
	}
	owes := name == "Query" || name == "Sync" || name == "FunctionCall"
	return step{op: opSend, data: data, owes: owes}, nil
}

// frontendMessage reads the arguments of a message; a mistake shows in a.
func frontendMessage(name string, a *args) pgproto3.FrontendMessage {
	switch name {
	case "Query":
		return &pgproto3.Query{String: a.str()}
	case "Parse":
		return &pgproto3.Parse{Name: a.str(), Query: a.str(), ParameterOIDs: a.oids()}
	case "Bind":
		return &pgproto3.Bind{
			DestinationPortal: a.str(), PreparedStatement: a.str(), Parameters: a.values(),
			ParameterFormatCodes: a.formats(), ResultFormatCodes: a.formats(),
		}
	case "Describe":
		return &pgproto3.Describe{ObjectType: a.object(), Name: a.str()}
	case "Close":
		return &pgproto3.Close{ObjectType: a.object(), Name: a.str()}
	case "Execute":
		return &pgproto3.Execute{Portal: a.str(), MaxRows: uint32(a.optional(0))}
	case "FunctionCall":
		return functionCall(a)
	case "CopyData":
		return &pgproto3.CopyData{Data: []byte(a.str())}
	case "CopyFail":
		return &pgproto3.CopyFail{Message: a.str()}
	case "CopyDone":
		return &pgproto3.CopyDone{}
	case "Sync":
		return &pgproto3.Sync{}
	case "Flush":
		return &pgproto3.Flush{}
	case "Terminate":
		return &pgproto3.Terminate{}
	default:
		a.fail("%q is unknown", name)
		return nil
	}
}

// object reads whether a name is that of a statement (S) or a portal (P).
func (a *args) object() byte {
	w := a.word()
	if len(w) != 1 {
		a.fail("S or P is missing")
		return 0
	}
	return w[0]
}

func functionCall(a *args) *pgproto3.FunctionCall {
	call := &pgproto3.FunctionCall{Function: uint32(a.number()), Arguments: a.values()}
	for _, code := range a.formats() {
		call.ArgFormatCodes = append(call.ArgFormatCodes, uint16(code))
	}
	call.ResultFormatCode = uint16(a.optional(0))
	return call
}
