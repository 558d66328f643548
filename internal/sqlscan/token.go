package sqlscan

import "bytes"

// A tokenKind says what a token is.
type tokenKind uint8

const (
	tokEnd    tokenKind = iota // the text is at its end
	tokLost                    // or cannot be followed to it
	tokWord                    // identifier or keyword
	tokName                    // quoted identifier
	tokString                  // string of any kind
	tokNumber
	tokParam  // number of a bound parameter
	tokSymbol // one byte of an operator, or a byte that stands for itself
)

// A token is a piece of a text that is at hand as a whole.
type token struct {
	kind  tokenKind
	blank bool   // blanks or comments stand in front of it
	exact bool   // val is what the string or identifier says, but for doubled quotes
	quote byte   // around val, if doubling it stands for one
	val   []byte // what is between the quotes, the digits of a parameter, or else all of it
}

// is reports whether the token is the keyword, which is given in lower case.
func (t *token) is(keyword string) bool {
	return t.kind == tokWord && len(t.val) == len(keyword) && equalFold(t.val, keyword)
}

// names reports whether the token is the name, which is given in lower case.
func (t *token) names(name string) bool {
	return t.is(name) || t.kind == tokName && t.exact && string(t.val) == name
}

func (t *token) symbol(c byte) bool { return t.kind == tokSymbol && t.val[0] == c }

// A lexer takes a text apart, by the rules that the Scanner follows.
type lexer struct {
	text      []byte
	pos       int
	backslash bool // backslash escapes in plain strings, too
}

// next returns the next token, and tokEnd again and again once the text is at its end or was lost.
func (l *lexer) next() (t token) {
	start := l.pos
	if !l.skipBlanks() {
		l.pos = len(l.text)
		return token{kind: tokLost}
	}
	if l.pos == len(l.text) {
		return token{kind: tokEnd}
	}
	blank := l.pos > start
	t = l.token()
	t.blank = blank
	return t
}

// token returns the token that begins at pos.
func (l *lexer) token() token {
	switch classes[l.text[l.pos]] {
	case classLetter:
		return l.word()
	case classQuote:
		return l.string(l.pos, kindPlain)
	case classDoubleQuote:
		return l.name(l.pos, kindPlain)
	case classDollar:
		return l.dollar()
	case classDigit:
		return l.number()
	case classDot:
		if l.pos+1 < len(l.text) && classes[l.text[l.pos+1]] == classDigit {
			return l.number()
		}
	}
	l.pos++
	return token{kind: tokSymbol, val: l.text[l.pos-1 : l.pos]}
}

// skipBlanks goes to the next token. It reports false if the text ends within a comment.
func (l *lexer) skipBlanks() bool {
	for l.pos < len(l.text) {
		switch classes[l.text[l.pos]] {
		case classSpace:
			l.pos++
		case classDash:
			if !l.at("--") {
				return true
			}
			l.skipLine()
		case classSlash:
			if !l.at("/*") {
				return true
			}
			if !l.skipBlock() {
				return false
			}
		default:
			return true
		}
	}
	return true
}

func (l *lexer) at(s string) bool {
	return len(l.text)-l.pos >= len(s) && string(l.text[l.pos:l.pos+len(s)]) == s
}

func (l *lexer) skipLine() {
	for l.pos < len(l.text) && l.text[l.pos] != '\n' && l.text[l.pos] != '\r' {
		l.pos++
	}
}

func (l *lexer) skipBlock() bool {
	nested := 0
	for l.pos < len(l.text) {
		switch {
		case l.at("/*"):
			nested++
			l.pos += 2
		case !l.at("*/"):
			l.pos++
		default:
			l.pos += 2
			if nested--; nested == 0 {
				return true
			}
		}
	}
	return false
}

// word returns a word, or the quoted string of which a word of one letter is the prefix.
func (l *lexer) word() token {
	start := l.pos
	l.pos = skipWord(l.text, start+1)
	w := l.text[start:l.pos]
	if len(w) == 1 {
		switch letter := w[0] | 0x20; {
		case letter == 'e' && l.at("'"):
			return l.string(l.pos, kindEscape)
		case (letter == 'b' || letter == 'x') && l.at("'"):
			return l.string(l.pos, kindBits)
		case letter == 'u' && l.at("&'"):
			return l.string(l.pos+1, kindUnicode)
		case letter == 'u' && l.at(`&"`):
			return l.name(l.pos+1, kindUnicode)
		}
	}
	return token{kind: tokWord, val: w}
}

// string returns the string whose opening quote is at pos, with what continues it on other lines.
func (l *lexer) string(pos int, k quoteKind) token {
	if k == kindPlain && l.backslash {
		k = kindEscape
	}
	l.pos = pos + 1
	if !l.endString(k) {
		return l.lost()
	}
	t := token{kind: tokString, quote: '\'', val: l.text[pos+1 : l.pos-1]}
	escapes := k == kindEscape || k == kindUnicode
	t.exact = k != kindBits && (!escapes || bytes.IndexByte(t.val, '\\') < 0)
	for l.continues() {
		t.exact = false
		if !l.endString(k) {
			return l.lost()
		}
	}
	return t
}

// endString goes behind the closing quote of the string it is in.
func (l *lexer) endString(k quoteKind) bool {
	for ; l.pos < len(l.text); l.pos++ {
		if k != kindEscape {
			n := bytes.IndexByte(l.text[l.pos:], '\'')
			if n < 0 {
				return false
			}
			l.pos += n
		}
		switch {
		case k == kindEscape && l.text[l.pos] == '\\':
			l.pos++
		case l.text[l.pos] != '\'':
		case k != kindBits && l.pos+1 < len(l.text) && l.text[l.pos+1] == '\'':
			l.pos++
		default:
			l.pos++
			return true
		}
	}
	return false
}

// continues goes behind the quote that continues the string just ended, if there is one: after blanks and line comments
// that have a newline among them.
func (l *lexer) continues() bool {
	line := false
	for ahead := *l; ahead.pos < len(l.text); {
		switch c := l.text[ahead.pos]; {
		case classes[c] == classSpace:
			line = line || c == '\n' || c == '\r'
			ahead.pos++
		case ahead.at("--"):
			ahead.skipLine()
		case c == '\'' && line:
			l.pos = ahead.pos + 1
			return true
		default:
			return false
		}
	}
	return false
}

// name returns the identifier whose opening double quote is at pos.
func (l *lexer) name(pos int, k quoteKind) token {
	for l.pos = pos + 1; l.pos < len(l.text); l.pos++ {
		switch {
		case l.text[l.pos] != '"':
		case l.pos+1 < len(l.text) && l.text[l.pos+1] == '"':
			l.pos++
		default:
			l.pos++
			t := token{kind: tokName, quote: '"', val: l.text[pos+1 : l.pos-1]}
			t.exact = k != kindUnicode || bytes.IndexByte(t.val, '\\') < 0
			return t
		}
	}
	return l.lost()
}

// number returns a number without what PostgreSQL 14 and older take for a word behind it.
func (l *lexer) number() token {
	start := l.pos
	l.skipDigits()
	if l.pos < len(l.text) && l.text[l.pos]|0x20 == 'e' {
		letter := l.pos
		if l.pos++; l.at("+") || l.at("-") {
			l.pos++
		}
		if digits := l.pos; l.pos == len(l.text) || classes[l.text[digits]] != classDigit {
			l.pos = letter
		}
		for l.pos < len(l.text) && classes[l.text[l.pos]] == classDigit {
			l.pos++
		}
	}
	return token{kind: tokNumber, val: l.text[start:l.pos]}
}

func (l *lexer) skipDigits() {
	for l.pos < len(l.text) && (classes[l.text[l.pos]] == classDigit || l.text[l.pos] == '.') {
		l.pos++
	}
}

// dollar returns what begins with a dollar sign: a parameter or a string.
func (l *lexer) dollar() token {
	start := l.pos
	l.pos++
	if l.pos == len(l.text) {
		return l.lost()
	}
	switch classes[l.text[l.pos]] {
	case classDigit:
		for l.pos < len(l.text) && classes[l.text[l.pos]] == classDigit {
			l.pos++
		}
		return token{kind: tokParam, val: l.text[start+1 : l.pos]}
	case classLetter, classDollar:
		return l.body(start)
	}
	return token{kind: tokSymbol, val: l.text[start:l.pos]}
}

// body returns the dollar-quoted string that begins at start.
func (l *lexer) body(start int) token {
	for l.pos < len(l.text) && classes[l.text[l.pos]] > classDollar {
		l.pos++
	}
	if !l.at("$") {
		return l.lost()
	}
	l.pos++
	tag, rest := l.text[start:l.pos], l.text[l.pos:]
	n := bytes.Index(rest, tag)
	if n < 0 {
		return l.lost()
	}
	l.pos += n + len(tag)
	return token{kind: tokString, exact: true, val: rest[:n]}
}

// lost gives up the rest of the text.
func (l *lexer) lost() token {
	l.pos = len(l.text)
	return token{kind: tokLost}
}
