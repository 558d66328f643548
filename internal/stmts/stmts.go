// Package stmts knows which prepared statements a session has, and which of them are on a server connection, where they
// may stand under other names and with those of other sessions.
//
// A statement is known by its text, by the types of its parameters and by the settings under which it was prepared; all of
// that is kept once in the process and goes when nobody refers to it any more.
package stmts

import (
	"cmp"
	"slices"
	"strings"
	"unique"
)

// Statement is a prepared statement, whatever its name. It is comparable; the zero value is none.
type Statement struct{ h unique.Handle[statement] }

type statement struct {
	tail string // behind the name in a Parse message
	set  string // the settings in which the text is read
	sql  bool   // tail is a PREPARE
}

// Intern returns the statement of a Parse whose body, behind the name, is tail. set are the settings that it is prepared under.
func Intern(tail []byte, set string) Statement {
	return Statement{unique.Make(statement{tail: string(tail), set: set})}
}

// InternSQL returns the statement that a PREPARE, without a semicolon, makes.
func InternSQL(text []byte, set string) Statement {
	return Statement{unique.Make(statement{tail: string(text), set: set, sql: true})}
}

// Set returns the settings that the statement is prepared under, as they were given to Intern.
func (st Statement) Set() string { return st.h.Value().set }

// Tail returns what stands behind the name in the Parse of the statement, or the text of its PREPARE.
func (st Statement) Tail() string { return st.h.Value().tail }

// SQL reports whether the statement was made by PREPARE.
func (st Statement) SQL() bool { return st != Statement{} && st.h.Value().sql }

// Spelled returns the statement whose parameters are of given types, in the form of a ParameterDescription's body: what the server
// makes of the text when those that the client left open are what they were once found to be.
func (st Statement) Spelled(params string) Statement {
	v := st.h.Value()
	text, _, _ := strings.Cut(v.tail, "\x00")
	return Statement{unique.Make(statement{tail: text + "\x00" + params, set: v.set, sql: v.sql})}
}

// A Shape is what the server says of a statement when it is asked. The zero value is that of one that it was not asked about.
type Shape struct {
	Params  string // the body of the ParameterDescription; empty if that is long: then Columns stands for it, too
	Columns uint64 // stands for the RowDescription; never 0
}

// MaxName is how many bytes of a name the server looks at (NAMEDATALEN - 1).
const MaxName = 63

// Cut returns the part of a name that the server looks at.
func Cut(name []byte) []byte { return name[:min(len(name), MaxName)] }

// Names are the statements of a session by name. The zero value has none. Each takes eight bytes, besides what sessions
// share that have the same statement under the same name.
type Names struct {
	list  []unique.Handle[binding] // by name
	bytes int
}

type binding struct {
	name  string
	st    Statement
	shape Shape
}

// Len returns the number of names.
func (n *Names) Len() int { return len(n.list) }

// Bytes returns how many bytes all names and statements have together.
func (n *Names) Bytes() int { return n.bytes }

func (n *Names) search(name []byte) (int, bool) {
	lo, hi := 0, len(n.list)
	for lo < hi {
		mid := (lo + hi) / 2
		switch c := cmp.Compare(n.list[mid].Value().name, string(name)); {
		case c == 0:
			return mid, true
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return lo, false
}

// Find returns the statement of a name.
func (n *Names) Find(name []byte) (Statement, bool) {
	i, ok := n.search(name)
	if !ok {
		return Statement{}, false
	}
	return n.list[i].Value().st, true
}

// Lookup is Find and Shape in one.
func (n *Names) Lookup(name []byte) (st Statement, told Shape, ok bool) {
	i, ok := n.search(name)
	if !ok {
		return Statement{}, Shape{}, false
	}
	b := n.list[i].Value()
	return b.st, b.shape, true
}

// Shape returns what the session was told of the statement of a name.
func (n *Names) Shape(name []byte) Shape {
	i, ok := n.search(name)
	if !ok {
		return Shape{}
	}
	return n.list[i].Value().shape
}

// SetShape changes it.
func (n *Names) SetShape(name []byte, shape Shape) {
	if i, ok := n.search(name); ok {
		b := n.list[i].Value()
		b.shape = shape
		n.list[i] = unique.Make(b)
	}
}

// Set gives a statement a name. The zero Statement may have one, too.
func (n *Names) Set(name string, st Statement) {
	n.Delete(name)
	i, _ := n.search([]byte(name))
	if len(n.list) == cap(n.list) { // Insert would double it
		n.list = append(make([]unique.Handle[binding], 0, len(n.list)+1+len(n.list)/16), n.list...)
	}
	n.list = slices.Insert(n.list, i, unique.Make(binding{name: name, st: st}))
	n.bytes += size(name, st)
}

func size(name string, st Statement) int {
	if st == (Statement{}) {
		return len(name)
	}
	return len(name) + len(st.Tail())
}

// Delete takes a name away.
func (n *Names) Delete(name string) {
	i, ok := n.search([]byte(name))
	if !ok {
		return
	}
	n.bytes -= size(name, n.list[i].Value().st)
	n.list = slices.Delete(n.list, i, i+1)
}

// Clear takes all names away.
func (n *Names) Clear() { *n = Names{} }

// All calls f for each name, in their order, until it returns false. f must not change n.
func (n *Names) All(f func(name string, st Statement) bool) {
	for _, h := range n.list {
		if b := h.Value(); !f(b.name, b.st) {
			return
		}
	}
}

// Keep takes away the names for which f returns false.
func (n *Names) Keep(f func(name string, st Statement) bool) {
	var gone []string
	n.All(func(name string, st Statement) bool {
		if !f(name, st) {
			gone = append(gone, name)
		}
		return true
	})
	for _, name := range gone {
		n.Delete(name)
	}
}

// Prepared is a statement on a server connection.
type Prepared struct {
	Name  string
	St    Statement
	Shape Shape
	// By is the id of the session for which it was prepared; 0 if none may be concluded from when that was.
	By uint64
	// At is when that was, by any clock that the caller likes.
	At uint64

	prev, next *Prepared
}

// Server is what is prepared on one server connection. The zero value is a connection without statements.
type Server struct {
	byName map[string]*Prepared
	bySt   map[Statement]*Prepared
	head   *Prepared // used last
	tail   *Prepared
}

// Len returns the number of statements.
func (s *Server) Len() int { return len(s.byName) }

// Find returns a statement as it is prepared, or nil.
func (s *Server) Find(st Statement) *Prepared { return s.bySt[st] }

// ByName returns what has a name, or nil.
func (s *Server) ByName(name []byte) *Prepared { return s.byName[string(name)] }

// Oldest returns the statement that was not used for the longest time, or nil. Those that are a session's own, under the zero
// Statement, are left out.
func (s *Server) Oldest() *Prepared {
	p := s.tail
	for p != nil && p.St == (Statement{}) {
		p = p.prev
	}
	return p
}

// Add enters a statement, prepared for the session by at some time, under a name that is free.
func (s *Server) Add(name string, st Statement, by, at uint64) *Prepared {
	p := &Prepared{Name: name, St: st, By: by, At: at}
	s.Restore(p)
	return p
}

// Restore enters what Remove took out.
func (s *Server) Restore(p *Prepared) {
	if s.byName == nil {
		s.byName, s.bySt = make(map[string]*Prepared), make(map[Statement]*Prepared)
	}
	if old := s.byName[p.Name]; old != nil {
		s.Remove(old)
	}
	s.byName[strings.Clone(p.Name)] = p
	if _, known := s.bySt[p.St]; !known && p.St != (Statement{}) {
		s.bySt[p.St] = p
	}
	s.pushFront(p)
}

// Remove takes a statement out, if it is there.
func (s *Server) Remove(p *Prepared) {
	if s.byName[p.Name] != p {
		return
	}
	delete(s.byName, p.Name)
	if s.bySt[p.St] == p {
		delete(s.bySt, p.St)
	}
	s.unlink(p)
}

// Clear takes all of them out.
func (s *Server) Clear() { *s = Server{} }

// All calls f for each of them until it returns false. f may remove what it is called with.
func (s *Server) All(f func(p *Prepared) bool) {
	for p := s.head; p != nil; {
		next := p.next
		if !f(p) {
			return
		}
		p = next
	}
}

// Touch takes note that a statement is used.
func (s *Server) Touch(p *Prepared) {
	if s.head != p && s.byName[p.Name] == p {
		s.unlink(p)
		s.pushFront(p)
	}
}

func (s *Server) pushFront(p *Prepared) {
	p.prev, p.next = nil, s.head
	if s.head != nil {
		s.head.prev = p
	} else {
		s.tail = p
	}
	s.head = p
}

func (s *Server) unlink(p *Prepared) {
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		s.head = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		s.tail = p.prev
	}
	p.prev, p.next = nil, nil
}
