package pgtest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// maxLiteral bounds what a repetition such as "x"*1000 may grow to.
const maxLiteral = 64 << 20

// args reads the arguments of one script line from left to right. The first mistake sticks in err, and everything after
// it reads as zero.
type args struct {
	rest string
	err  error
}

func (a *args) fail(format string, v ...any) {
	if a.err == nil {
		a.err = fmt.Errorf(format, v...)
	}
	a.rest = ""
}

// more tells whether anything but blanks and a comment is left.
func (a *args) more() bool {
	a.rest = strings.TrimLeft(a.rest, " \t")
	return a.err == nil && a.rest != "" && a.rest[0] != '#'
}

// peek tells whether the next thing starts with prefix.
func (a *args) peek(prefix string) bool { return a.more() && strings.HasPrefix(a.rest, prefix) }

// word reads a run of characters up to a blank, a bracket or a comma.
func (a *args) word() string {
	if !a.more() {
		a.fail("a word is missing")
		return ""
	}
	end := strings.IndexAny(a.rest, " \t,[]")
	if end < 0 {
		end = len(a.rest)
	}
	w := a.rest[:end]
	a.rest = a.rest[end:]
	return w
}

func (a *args) number() int {
	w := a.word()
	n, err := strconv.ParseInt(w, 0, 64)
	if err != nil && a.err == nil {
		a.fail("%q is not a number", w)
	}
	return int(n)
}

// optional reads a number if there is one.
func (a *args) optional(otherwise int) int {
	if !a.more() {
		return otherwise
	}
	return a.number()
}

// str reads a Go string literal, which *N repeats N times.
func (a *args) str() string {
	if !a.more() {
		a.fail("a string is missing")
		return ""
	}
	quoted, err := strconv.QuotedPrefix(a.rest)
	if err != nil {
		a.fail("not a string: %s", a.rest)
		return ""
	}
	s, err := strconv.Unquote(quoted)
	if err != nil {
		a.fail("not a string: %s", quoted)
		return ""
	}
	a.rest = a.rest[len(quoted):]
	return a.repeated(s)
}

func (a *args) repeated(s string) string {
	if !strings.HasPrefix(a.rest, "*") {
		return s
	}
	a.rest = a.rest[1:]
	n := a.number()
	if n < 0 || len(s) > 0 && n > maxLiteral/len(s) {
		a.fail("%d repetitions are too many", n)
		return ""
	}
	return strings.Repeat(s, n)
}

// list reads [a, b, c], calling item for each element; a list that is not there has no elements.
func (a *args) list(item func()) {
	if !a.peek("[") {
		return
	}
	a.rest = a.rest[1:]
	for a.more() && !a.peek("]") {
		item()
		if a.peek(",") {
			a.rest = a.rest[1:]
		}
	}
	if !a.peek("]") {
		a.fail("] is missing")
		return
	}
	a.rest = a.rest[1:]
}

// values reads a list of strings and nulls.
func (a *args) values() [][]byte {
	var values [][]byte
	a.list(func() {
		if a.peek("null") {
			a.word()
			values = append(values, nil)
			return
		}
		values = append(values, []byte(a.str()))
	})
	return values
}

// formats reads a list of format codes.
func (a *args) formats() []int16 {
	var formats []int16
	a.list(func() { formats = append(formats, int16(a.number())) })
	return formats
}

// oids reads a list of type OIDs.
func (a *args) oids() []uint32 {
	var oids []uint32
	a.list(func() { oids = append(oids, uint32(a.number())) })
	return oids
}

// hex reads bytes up to the end of the line.
func (a *args) hex() []byte {
	var raw []byte
	for a.more() {
		w := a.word()
		b, err := strconv.ParseUint(w, 16, 8)
		if err != nil {
			a.fail("%q is not a byte in hexadecimal", w)
			return nil
		}
		raw = append(raw, byte(b))
	}
	return raw
}

// end refuses anything that is left over.
func (a *args) end() error {
	if a.err == nil && a.more() {
		return errors.New("too much: " + a.rest)
	}
	return a.err
}
