package sqlscan

import "bytes"

// This file follows what stands between quotes: strings, quoted identifiers and dollar-quoted strings.

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
		return s.plainText(p, i)
	}
	start := i
	for ; i < len(p); i++ {
		switch p[i] {
		case '\'':
			s.literal(p[start:i])
			s.state = inStringEnd
			return i + 1
		case '\\':
			s.state = inEscape
			return i + 1
		}
	}
	s.literal(p[start:i])
	return i
}

func (s *Scanner) plainText(p []byte, i int) int {
	part := p[i:]
	n := bytes.IndexByte(part, '\'')
	if n >= 0 {
		part = part[:n]
		s.state = inStringEnd
		i++
	}
	s.literal(part)
	if s.kind == kindUnicode && s.cfg == cfgFirst && bytes.IndexByte(part, '\\') >= 0 {
		s.escaped()
	}
	return i + len(part)
}

func (s *Scanner) textEnd(c byte) int {
	if c == '\'' && s.kind != kindBits {
		s.literal([]byte{c})
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
	s.endName()
	s.state = inGround
	return 0
}

// endName takes a whole quoted identifier. The name of a parameter is found in either case, even in quotes.
func (s *Scanner) endName() {
	k := findQuoted(s.kept())
	if s.lead == wordSet && int(s.length) == len(settingSeed) && equalFold(s.kept(), settingSeed) {
		k = wordSeed
	}
	s.word(k)
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
	case classDigit:
		s.state = inParam
	default:
		s.state = inGround
	}
	s.token('$')
	return 0
}

// param takes the rest of a parameter, which has no exponent: up to PostgreSQL 14 a word may follow directly.
func (s *Scanner) param(p []byte, i int) int {
	for i < len(p) && classes[p[i]] == classDigit {
		i++
	}
	if i < len(p) {
		s.state = inGround
	}
	return i
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
		s.literal(p[i:])
		return len(p)
	}
	s.literal(p[i : i+n])
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
