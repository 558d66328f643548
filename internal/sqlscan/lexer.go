package sqlscan

import "bytes"

// A state is what the scanner is in the middle of when a piece of text ends.
type state uint8

const (
	inGround state = iota
	inWord
	inUnicode // after a word U and the character &
	inDash    // after a minus
	inSlash   // after a slash
	inNumber
	inExponent // after a number and a letter E, which is part of it if a digit follows
	inLine     // line comment
	inBlock    // block comment
	inBlockEnd // after an asterisk in a block comment
	inBlockTop // after a slash in a block comment
	inString
	inEscape    // after a backslash in a string
	inStringEnd // after a quote in a string
	inGap       // blanks and line comments behind a string
	inGapDash
	inGapLine
	inName    // quoted identifier
	inNameEnd // after a double quote in a quoted identifier
	inDollar  // after a dollar sign
	inParam   // digits after a dollar sign
	inTag     // tag of an opening dollar quote
	inBody    // dollar-quoted string
	inBodyTag // after a dollar sign in a dollar-quoted string
	inLost    // the rest of the text cannot be followed
)

// A quoteKind says by which rules a quoted string or identifier is read.
type quoteKind uint8

const (
	kindPlain   quoteKind = iota // a doubled quote is a quote
	kindEscape                   // a backslash escapes, too
	kindBits                     // neither: B'' and X''
	kindUnicode                  // U&"", a plain one for all that matters here except that names can be spelled in code
)

// A class is what a byte may begin. Those from classDollar on may continue a word.
type class uint8

const (
	classOther class = iota
	classSpace
	classQuote
	classDoubleQuote
	classDash
	classSlash
	classOpen
	classClose
	classSemicolon
	classDot
	classDollar
	classDigit
	classLetter
)

var classes = classify()

func classify() (t [256]class) {
	for c := range t {
		switch {
		case c >= 0x80, 'a' <= c|0x20 && c|0x20 <= 'z', c == '_':
			t[c] = classLetter
		case '0' <= c && c <= '9':
			t[c] = classDigit
		}
	}
	for _, c := range " \t\n\r\f\v" {
		t[c] = classSpace
	}
	t['\''], t['"'], t['-'], t['/'] = classQuote, classDoubleQuote, classDash, classSlash
	t['('], t[')'], t[';'], t['.'], t['$'] = classOpen, classClose, classSemicolon, classDot, classDollar
	return t
}

// Feed scans the next piece of the text. Where a text is cut into pieces makes no difference.
func (s *Scanner) Feed(p []byte) {
	if bytes.IndexByte(p, 0) >= 0 {
		s.effects |= Unsure
	}
	for i := 0; i < len(p); {
		switch s.state {
		case inGround:
			i = s.ground(p, i)
		case inWord:
			i = s.resumeWord(p, i)
		case inUnicode:
			i += s.unicode(p[i])
		case inDash:
			i += s.dash(p[i])
		case inSlash:
			i += s.slash(p[i])
		case inNumber:
			i = s.number(p, i)
		case inExponent:
			i = s.exponent(p, i)
		case inLine:
			i = s.line(p, i, inGround)
		case inBlock:
			i = s.block(p, i)
		case inBlockEnd:
			i += s.blockEnd(p[i])
		case inBlockTop:
			i += s.blockTop(p[i])
		case inString:
			i = s.text(p, i)
		case inEscape:
			s.escaped()
			s.state = inString
			i++
		case inStringEnd:
			i += s.textEnd(p[i])
		case inGap:
			i += s.gap(p[i])
		case inGapDash:
			i += s.gapDash(p[i])
		case inGapLine:
			i = s.line(p, i, inGap)
		case inName:
			i = s.name(p, i)
		case inNameEnd:
			i += s.nameEnd(p[i])
		case inDollar:
			i += s.dollar(p[i])
		case inParam:
			i = s.param(p, i)
		case inTag:
			i = s.tag(p, i)
		case inBody:
			i = s.body(p, i)
		case inBodyTag:
			i += s.bodyTag(p[i])
		case inLost:
			return
		}
	}
}

// ground scans p from i between tokens, up to where another state takes over, and returns how far it came. Methods below
// that take a single byte return 1 if they used it, 0 if it is to be scanned again in the state they chose.
func (s *Scanner) ground(p []byte, i int) int {
	for i < len(p) {
		c := p[i]
		switch classes[c] {
		case classSpace:
			i++
		case classLetter:
			start := i
			i = skipWord(p, i+1)
			if i == len(p) {
				s.length = 0
				s.keep(p[start:])
				s.state = inWord
				return i
			}
			if i += s.endWord(p[start:i], p[i]); s.state != inGround {
				return i
			}
		case classQuote:
			s.startString(kindPlain)
			return i + 1
		case classDoubleQuote:
			s.startName(kindPlain)
			return i + 1
		case classDash:
			s.state = inDash
			return i + 1
		case classSlash:
			s.state = inSlash
			return i + 1
		case classDollar:
			s.state = inDollar
			return i + 1
		case classSemicolon:
			s.semicolon()
			i++
		case classDigit:
			s.token(c)
			s.state = inNumber
			return i + 1
		default:
			s.token(c)
			i++
		}
	}
	return i
}

// skipWord returns where the word of which p[i-1] is part ends.
func skipWord(p []byte, i int) int {
	for i < len(p) && classes[p[i]] >= classDollar {
		i++
	}
	return i
}

func (s *Scanner) resumeWord(p []byte, i int) int {
	end := skipWord(p, i)
	s.keep(p[i:end])
	if end == len(p) {
		return end
	}
	s.state = inGround
	return end + s.endWord(s.kept(), p[end])
}

// keep appends to what is in the buffer, as far as there is room.
func (s *Scanner) keep(b []byte) {
	if s.length > bufSize {
		return
	}
	n := copy(s.buf[s.length:], b)
	s.length += uint8(n)
	if n < len(b) {
		s.length = bufSize + 1
	}
}

func (s *Scanner) kept() []byte { return s.buf[:min(s.length, bufSize)] }

// endWord takes a whole word and the byte behind it, which makes a word of one letter the prefix of a quoted string.
func (s *Scanner) endWord(w []byte, next byte) int {
	if len(w) == 1 && (next == '\'' || next == '&') {
		return s.prefix(w[0], next)
	}
	s.word(find(w))
	return 0
}

func (s *Scanner) prefix(letter, next byte) int {
	letter |= 0x20
	switch {
	case letter == 'u' && next == '&':
		s.state = inUnicode
		return 1
	case next == '&':
		s.word(plain)
		return 0
	case letter == 'e':
		s.startString(kindEscape)
		return 1
	case letter == 'b' || letter == 'x':
		s.startString(kindBits)
		return 1
	}
	s.word(plain) // N'' is a word and a string
	return 0
}

func (s *Scanner) unicode(c byte) int {
	switch c {
	case '\'':
		s.startString(kindUnicode)
		return 1
	case '"':
		s.startName(kindUnicode)
		return 1
	}
	s.word(plain)
	s.token('&')
	s.state = inGround
	return 0
}

func (s *Scanner) dash(c byte) int {
	if c == '-' {
		s.state = inLine
		return 1
	}
	s.token('-')
	s.state = inGround
	return 0
}

func (s *Scanner) slash(c byte) int {
	if c == '*' {
		s.state = inBlock
		return 1
	}
	s.token('/')
	s.state = inGround
	return 0
}

// number takes the rest of a number. A word may follow directly, up to PostgreSQL 14.
func (s *Scanner) number(p []byte, i int) int {
	for i < len(p) && (classes[p[i]] == classDigit || p[i] == '.') {
		i++
	}
	switch {
	case i == len(p):
	case p[i]|0x20 == 'e':
		s.length = 0
		s.keep(p[i : i+1])
		s.state = inExponent
		return i + 1
	default:
		s.state = inGround
	}
	return i
}

func (s *Scanner) exponent(p []byte, i int) int {
	start := i
	for i < len(p) && classes[p[i]] == classDigit {
		i++
	}
	if i > start {
		s.length = 0
	}
	switch {
	case i == len(p):
	case s.length == 0:
		s.state = inGround
	default: // the letter begins a word
		s.state = inWord
	}
	return i
}

func (s *Scanner) line(p []byte, i int, next state) int {
	for i < len(p) && p[i] != '\n' && p[i] != '\r' {
		i++
	}
	if i < len(p) {
		s.state = next
	}
	return i
}

func (s *Scanner) block(p []byte, i int) int {
	for ; i < len(p); i++ {
		switch p[i] {
		case '*':
			s.state = inBlockEnd
			return i + 1
		case '/':
			s.state = inBlockTop
			return i + 1
		}
	}
	return i
}

func (s *Scanner) blockEnd(c byte) int {
	switch {
	case c == '*':
		return 1
	case c != '/':
		s.state = inBlock
		return 0
	case s.nested == 0:
		s.state = inGround
	default:
		s.nested--
		s.state = inBlock
	}
	return 1
}

func (s *Scanner) blockTop(c byte) int {
	s.state = inBlock
	if c != '*' {
		return 0
	}
	s.nested++
	return 1
}

// endText settles what the end of the text leaves pending.
func (s *Scanner) endText() {
	switch s.state {
	case inGround, inNumber, inParam, inLine, inStringEnd, inGap, inGapLine:
	case inWord:
		s.word(find(s.kept()))
	case inExponent:
		if s.length > 0 {
			s.word(plain)
		}
	case inNameEnd:
		s.endName()
	case inUnicode:
		s.word(plain)
		s.token('&')
	case inDash, inGapDash:
		s.token('-')
	case inSlash:
		s.token('/')
	default:
		s.open = true
		s.effects |= Unsure
	}
	s.state = inGround
}
