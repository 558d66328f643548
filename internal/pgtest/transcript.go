package pgtest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A Transcript is what a client has received, one message a line, and the steps at which it waited.
type Transcript []string

// backendNames are the types of the messages that a server sends.
var backendNames = map[byte]string{
	'R': "Authentication", 'K': "BackendKeyData", '2': "BindComplete", '3': "CloseComplete", 'C': "CommandComplete",
	'd': "CopyData", 'c': "CopyDone", 'G': "CopyInResponse", 'H': "CopyOutResponse", 'W': "CopyBothResponse",
	'D': "DataRow", 'I': "EmptyQueryResponse", 'E': "ErrorResponse", 'V': "FunctionCallResponse",
	'v': "NegotiateProtocolVersion", 'n': "NoData", 'N': "NoticeResponse", 'A': "NotificationResponse",
	't': "ParameterDescription", 'S': "ParameterStatus", '1': "ParseComplete", 's': "PortalSuspended",
	'Z': "ReadyForQuery", 'T': "RowDescription",
}

// message is one message from a server.
type message struct {
	kind byte
	body []byte
}

func (m message) name() string {
	if name, ok := backendNames[m.kind]; ok {
		return name
	}
	return fmt.Sprintf("Unknown(%q)", m.kind)
}

// String renders the message, without what differs between any two connections: keys and process ids.
func (m message) String() string {
	switch {
	case m.kind == 'K':
		return fmt.Sprintf("BackendKeyData (%d bytes)", len(m.body))
	case m.kind == 'A' && len(m.body) >= 4:
		return m.name() + " (pid)" + strconv.Quote(string(m.body[4:]))
	case len(m.body) == 0:
		return m.name()
	}
	return m.name() + " " + strconv.Quote(string(tuple.ReplaceAll(m.body, []byte("index tuple"))))
}

// tuple is where an error came from in an index, which is another place in every run.
var tuple = regexp.MustCompile(`index tuple \(\d+,\d+\)`)

// tables numbers the tables whose columns a session has been told of, by OID: a table that a script creates anew has another one in every
// run.
type tables map[uint32]uint32

// firstOID is the first that tables of users have (PostgreSQL's access/transam.h).
const firstOID = 16384

// number puts the numbers of tables in the place of their OIDs in a RowDescription.
func (t tables) number(m message) message {
	if m.kind != 'T' || len(m.body) < 2 {
		return m
	}
	const afterName = 18 // length of what follows a column's name
	for rest := m.body[2:]; ; {
		_, column, ok := bytes.Cut(rest, []byte{0})
		if !ok || len(column) < afterName {
			return m
		}
		if oid := binary.BigEndian.Uint32(column); oid >= firstOID {
			if t[oid] == 0 {
				t[oid] = firstOID + uint32(len(t))
			}
			binary.BigEndian.PutUint32(column, t[oid])
		}
		rest = column[afterName:]
	}
}

// A Difference is one that is accepted between a server's answers and those through the proxy.
type Difference struct {
	pattern *regexp.Regexp
	reason  string
}

// ReadDifferences reads accepted differences, one a line: a regular expression, a tab, the reason. Blank lines and those
// that start with # do not count. The expression is matched against "-line" for a line that the direct transcript alone
// has, "+line" for one that only the other has, and "-line +line" for a line that differs.
func ReadDifferences(r io.Reader) ([]Difference, error) {
	var list []Difference
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		line := scanner.Text()
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pattern, reason, ok := strings.Cut(line, "\t")
		if !ok || strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("pgtest: a difference without a reason: %s", line)
		}
		re, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("pgtest: accepted differences: %w", err)
		}
		list = append(list, Difference{re, reason})
	}
	return list, scanner.Err()
}

// parametersFirst puts what is told of parameters in front of the notifications that it came between or behind: through the proxy a
// parameter that a transaction has changed is told before its notifications.
func (t Transcript) parametersFirst() Transcript {
	const parameter, notification = "ParameterStatus", "NotificationResponse"
	sorted := make(Transcript, 0, len(t))
	notes := 0 // notifications at the end of sorted
	for _, line := range t {
		switch {
		case strings.HasPrefix(line, parameter):
			sorted = slices.Insert(sorted, len(sorted)-notes, line)
		case strings.HasPrefix(line, notification):
			sorted, notes = append(sorted, line), notes+1
		default:
			sorted, notes = append(sorted, line), 0
		}
	}
	return sorted
}

// Diff says where a transcript first differs from the direct one in a way that is not accepted, or "".
func Diff(direct, proxied Transcript, allow []Difference) string {
	direct, proxied = direct.parametersFirst(), proxied.parametersFirst()
	i, j := 0, 0
	for i < len(direct) || j < len(proxied) {
		var minus, plus string
		if i < len(direct) {
			minus = "-" + direct[i]
		}
		if j < len(proxied) {
			plus = "+" + proxied[j]
		}
		switch {
		case minus != "" && plus != "" && (minus[1:] == plus[1:] || allowed(minus+" "+plus, allow)):
			i, j = i+1, j+1
		case minus != "" && allowed(minus, allow):
			i++
		case plus != "" && allowed(plus, allow):
			j++
		default:
			return describe(direct[:i], minus, plus)
		}
	}
	return ""
}

func allowed(change string, allow []Difference) bool {
	for _, d := range allow {
		if d.pattern.MatchString(change) {
			return true
		}
	}
	return false
}

// describe shows a difference below the lines that led to it.
func describe(before Transcript, minus, plus string) string {
	var b strings.Builder
	for _, line := range before[max(0, len(before)-12):] {
		fmt.Fprintf(&b, " %s\n", shorten(line, 0))
	}
	at := 0
	for at < min(len(minus), len(plus)) && (at == 0 || minus[at] == plus[at]) {
		at++
	}
	for _, line := range []string{minus, plus} {
		if line != "" {
			fmt.Fprintf(&b, "%s\n", shorten(line, at))
		}
	}
	return b.String()
}

// shorten cuts a long line down to its start and what is around at.
func shorten(line string, at int) string {
	const most = 240
	if len(line) <= most {
		return line
	}
	if at < most/2 {
		return fmt.Sprintf("%s… (%d characters)", line[:most], len(line))
	}
	return fmt.Sprintf("%s…%s… (%d characters)", line[:40], line[min(len(line), at-60):min(len(line), at+140)], len(line))
}
