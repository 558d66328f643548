// Package userlist parses PgBouncer's userlist.txt, the file that its auth_file setting names.
package userlist

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// MaxLine is the length in bytes above which a line is refused.
const MaxLine = 64 << 10

// Entry is a user and what is stored of the user's password: the password itself, or an MD5 or SCRAM hash of it.
// Printing an Entry, or encoding it as JSON, leaves the secret out.
type Entry struct {
	User   string
	Secret string `json:"-"`
}

// Format writes the user only, whatever the verb.
func (e Entry) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "user %q", e.User) }

// Parse returns the entries in the order of the file.
//
// An entry is a line of two strings in double quotes, with a doubled quote for each that is part of the string:
//
//	"user" "secret"
//
// As in PgBouncer, what stands between and behind the strings is ignored, and so are blank lines and lines whose
// first character, apart from white space, is a semicolon. A number sign does not start a comment. Where PgBouncer
// would take strings on over the end of a line, stop at a NUL byte and keep the users before it, or use the last of several
// lines for the same user, there is an error instead. Errors name the line, and quote nothing.
func Parse(r io.Reader) ([]Entry, error) {
	var entries []Entry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, MaxLine+len("\r\n"))
	number, seen := 1, map[string]int{}
	for ; lines.Scan(); number++ {
		if len(lines.Bytes()) > MaxLine {
			return nil, tooLong(number)
		}
		line := strings.TrimLeft(lines.Text(), " \t\r\v\f")
		if line == "" || line[0] == ';' {
			continue
		}
		e, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("userlist: line %d: %w", number, err)
		}
		if first, again := seen[e.User]; again {
			return nil, fmt.Errorf("userlist: line %d: the user of line %d again", number, first)
		}
		seen[e.User] = number
		entries = append(entries, e)
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, tooLong(number)
	case err != nil:
		return nil, fmt.Errorf("userlist: %w", err)
	}
	return entries, nil
}

func tooLong(line int) error {
	return fmt.Errorf("userlist: line %d: longer than %d bytes", line, MaxLine)
}

func parseLine(line string) (Entry, error) {
	if strings.IndexByte(line, 0) >= 0 {
		return Entry{}, errors.New("contains a NUL byte")
	}
	if line[0] != '"' {
		return Entry{}, errors.New("does not begin with a double quote")
	}
	user, rest, ok := unquote(line[1:])
	if !ok {
		return Entry{}, errors.New("the user has no closing quote")
	}
	_, rest, ok = strings.Cut(rest, `"`)
	if !ok {
		return Entry{}, errors.New("no secret behind the user")
	}
	secret, _, ok := unquote(rest)
	if !ok {
		return Entry{}, errors.New("the secret has no closing quote")
	}
	return Entry{User: user, Secret: secret}, nil
}

// unquote returns the string that s, which follows an opening quote, begins with, and what follows its closing quote.
func unquote(s string) (value, rest string, ok bool) {
	for i := 0; i < len(s); i++ {
		if s[i] != '"' {
			continue
		}
		if i+1 == len(s) || s[i+1] != '"' {
			return strings.ReplaceAll(s[:i], `""`, `"`), s[i+1:], true
		}
		i++
	}
	return "", "", false
}
