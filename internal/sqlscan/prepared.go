package sqlscan

import (
	"bytes"
	"slices"
)

// RefKind says what a text does with a prepared statement.
type RefKind uint8

const (
	// RefPrepare is PREPARE.
	RefPrepare RefKind = iota + 1
	// RefExecute is EXECUTE, alone or within EXPLAIN or CREATE TABLE AS.
	RefExecute
	// RefDeallocate is DEALLOCATE of a name.
	RefDeallocate
	// RefDeallocateAll is DEALLOCATE ALL or DISCARD ALL.
	RefDeallocateAll
)

// StatementRef is a prepared statement that a text makes, uses or drops.
type StatementRef struct {
	Kind RefKind
	Name string // as the server knows it
	Text string // of a PREPARE: all of the text, as the server shows it, if there is no other statement in it, else without the semicolon behind it
}

// maxRefs bounds how many prepared statements of a text are told.
const maxRefs = 64

// Refs returns the prepared statements that a text makes, uses or drops by SQL, in order, and whether every one could be told.
func Refs(text []byte, standardConformingStrings bool) (refs []StatementRef, ok bool) {
	p := refParser{lex: lexer{text: text, backslash: !standardConformingStrings}, ok: true}
	for p.next(); p.tok.kind != tokEnd && p.tok.kind != tokLost; p.next() {
		if !p.tok.symbol(';') {
			p.count++
		}
		p.statement()
	}
	if p.count == 1 && len(p.refs) == 1 && p.refs[0].Kind == RefPrepare {
		p.refs[0].Text = string(text)
	}
	return p.refs, p.ok && p.tok.kind == tokEnd
}

// A refParser reads the statements of a text for Refs.
type refParser struct {
	lex   lexer
	tok   token
	start int // of tok in the text
	depth int
	count int // statements
	refs  []StatementRef
	ok    bool
}

func (p *refParser) next() {
	p.lex.skipBlanks()
	p.start = p.lex.pos
	p.tok = p.lex.next()
	switch {
	case p.tok.symbol('('):
		p.depth++
	case p.tok.symbol(')'):
		p.depth = max(p.depth-1, 0)
	}
}

func (p *refParser) atEnd() bool {
	return endsStatement(&p.tok) && (p.depth == 0 || p.tok.kind != tokSymbol)
}

func (p *refParser) statement() {
	from := p.start
	switch {
	case p.tok.is("prepare"):
		p.next()
		if p.tok.is("transaction") && p.peekWord() != "" || !p.named(RefPrepare) {
			break
		}
		p.rest()
		p.refs[len(p.refs)-1].Text = string(bytes.TrimSpace(p.lex.text[from:p.start]))
	case p.tok.is("execute"):
		p.next()
		p.named(RefExecute)
	case p.tok.is("deallocate"):
		p.deallocate()
	case p.tok.is("discard"):
		if p.next(); p.tok.is("all") {
			p.add(StatementRef{Kind: RefDeallocateAll})
		}
	case p.tok.is("explain"), p.tok.is("create"):
		p.within()
	}
	p.rest()
}

// peekWord returns the next token, if it is a string: that is what follows PREPARE TRANSACTION.
func (p *refParser) peekWord() string {
	ahead := p.lex
	if t := ahead.next(); t.kind == tokString {
		return "string"
	}
	return ""
}

func (p *refParser) deallocate() {
	p.next()
	if p.tok.is("prepare") {
		ahead := p.lex
		if t := ahead.next(); !endsStatement(&t) { // else a statement of that name
			p.next()
		}
	}
	if p.tok.is("all") {
		p.add(StatementRef{Kind: RefDeallocateAll})
		return
	}
	p.named(RefDeallocate)
}

// within looks for an EXECUTE in EXPLAIN or CREATE TABLE AS.
func (p *refParser) within() {
	create, as := p.tok.is("create"), false
	for p.next(); !p.atEnd(); p.next() {
		if p.tok.is("execute") && p.depth == 0 && (as || !create) {
			p.next()
			p.named(RefExecute)
			return
		}
		as = p.tok.is("as")
	}
}

// named adds a statement whose name is the current token. How other letters than those of ASCII are folded, converted and cut depends on
// encodings: a name with such is known to the server only.
func (p *refParser) named(k RefKind) bool {
	switch t := &p.tok; {
	case (t.kind == tokWord || t.kind == tokName) && isWide(t.val):
		p.ok = false
		return false
	case t.kind == tokWord:
		p.add(StatementRef{Kind: k, Name: cutName(bytes.ToLower(t.val))})
	case t.kind == tokName && t.exact:
		p.add(StatementRef{Kind: k, Name: cutName(bytes.ReplaceAll(t.val, []byte(`""`), []byte(`"`)))})
	case t.kind == tokName:
		p.ok = false
		return false
	default: // no statement that the server accepts
		return false
	}
	return true
}

func isWide(b []byte) bool {
	return slices.ContainsFunc(b, func(c byte) bool { return c >= 0x80 })
}

func cutName(b []byte) string { return string(b[:min(len(b), maxName)]) }

func (p *refParser) add(r StatementRef) {
	p.refs = append(p.refs, r)
	p.ok = p.ok && len(p.refs) <= maxRefs
}

func (p *refParser) rest() {
	for !p.atEnd() {
		p.next()
	}
}
