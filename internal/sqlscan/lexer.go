package sqlscan

import "bytes"

// A state is what the scanner is in the middle of when a piece of text ends.
type state uint8

const (
	inGround state = iota
	inWord
	inUnicode  // after a word U and the character &
	inDash     // after a minus
	inSlash    // after a slash
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

func (s *Scanner) startString(k quoteKind) {
	s.token('\'')
	if k == kindPlain && s.backslash {
		k = kindEscape
	}
	s.kind = k
	s.state = inString
}

func (s *Scanner) text(p []byte, i int) int {
	if s.kind != kindEscape {
		n := bytes.IndexByte(p[i:], '\'')
		if n < 0 {
			return len(p)
		}
		s.state = inStringEnd
		return i + n + 1
	}
	for ; i < len(p); i++ {
		switch p[i] {
		case '\'':
			s.state = inStringEnd
			return i + 1
		case '\\':
			s.state = inEscape
			return i + 1
		}
	}
	return i
}

func (s *Scanner) textEnd(c byte) int {
	if c == '\'' && s.kind != kindBits {
		s.state = inString
		return 1
	}
	s.gapLine = false
	s.state = inGap
	return 0
}

// gap looks for the continuation of a string: a quote after blanks and line comments that have a newline among them. A
// continued string keeps its kind. A block comment ends the literal.
func (s *Scanner) gap(c byte) int {
	switch {
	case c == '\n' || c == '\r':
		s.gapLine = true
		return 1
	case classes[c] == classSpace:
		return 1
	case c == '-':
		s.state = inGapDash
		return 1
	case c == '\'' && s.gapLine:
		s.state = inString
		return 1
	}
	s.state = inGround
	return 0
}

func (s *Scanner) gapDash(c byte) int {
	if c == '-' {
		s.state = inGapLine
		return 1
	}
	s.state = inDash
	return 0
}

func (s *Scanner) startName(k quoteKind) {
	s.length = 0
	s.kind = k
	s.state = inName
}

func (s *Scanner) name(p []byte, i int) int {
	part := p[i:]
	n := bytes.IndexByte(part, '"')
	if n >= 0 {
		part = part[:n]
		s.state = inNameEnd
		i++
	}
	s.keep(part)
	if s.kind == kindUnicode && bytes.IndexByte(part, '\\') >= 0 {
		s.effects |= Unsure
	}
	return i + len(part)
}

func (s *Scanner) nameEnd(c byte) int {
	if c == '"' {
		s.keep([]byte{c})
		s.state = inName
		return 1
	}
	s.word(findQuoted(s.kept()))
	s.state = inGround
	return 0
}

func (s *Scanner) dollar(c byte) int {
	switch classes[c] {
	case classDollar:
		s.startBody(0)
		return 1
	case classLetter:
		s.length = 0
		s.state = inTag
		return 0
	}
	s.token('$') // of a parameter
	s.state = inGround
	return 0
}

func (s *Scanner) tag(p []byte, i int) int {
	end := i
	for end < len(p) && classes[p[end]] > classDollar {
		end++
	}
	s.keep(p[i:end])
	switch {
	case s.length > bufSize:
		s.effects |= Unsure
		s.state = inLost
	case end == len(p):
	case p[end] == '$':
		s.startBody(s.length)
		end++
	default: // a dollar sign alone, which no statement has
		s.effects |= Unsure
		s.state = inLost
	}
	return end
}

func (s *Scanner) startBody(tag uint8) {
	s.token('$')
	s.length = tag
	s.state = inBody
}

func (s *Scanner) body(p []byte, i int) int {
	n := bytes.IndexByte(p[i:], '$')
	if n < 0 {
		return len(p)
	}
	s.matched = 0
	s.state = inBodyTag
	return i + n + 1
}

// bodyTag compares with the opening tag. The dollar sign that ends another tag may begin the right one.
func (s *Scanner) bodyTag(c byte) int {
	switch {
	case c == '$' && s.matched == s.length:
		s.state = inGround
	case c == '$':
		s.matched = 0
	case s.matched < s.length && c == s.buf[s.matched]:
		s.matched++
	default:
		s.state = inBody
	}
	return 1
}

// endText settles what the end of the text leaves pending.
func (s *Scanner) endText() {
	switch s.state {
	case inGround, inLine, inStringEnd, inGap, inGapLine:
	case inWord:
		s.word(find(s.kept()))
	case inNameEnd:
		s.word(findQuoted(s.kept()))
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
