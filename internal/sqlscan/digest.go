package sqlscan

import (
	"strconv"
	"unicode/utf8"
)

// MaxDigest bounds the bytes of a digest, not counting the ellipsis of one that is cut.
const MaxDigest = 200

const ellipsis = "…"

// AppendDigest appends to dst a text for log lines. Literals are replaced by $1, $2 and so on, bound parameters among them
// are counted with them. Words are in lower case, except for those in double quotes; comments are dropped and blanks
// collapsed. It never holds a byte of a literal: what cannot be followed, because a quote is not closed, is cut off.
func AppendDigest(dst, text []byte, standardConformingStrings bool) []byte {
	l := lexer{text: text, backslash: !standardConformingStrings}
	start, literals := len(dst), 0
	for last := tokSymbol; ; {
		t := l.next()
		switch {
		case t.kind == tokEnd:
			return dst
		case t.kind == tokLost:
			return append(dst, ellipsis...)
		case len(dst) > start && (t.blank || last != tokSymbol && t.kind != tokSymbol):
			dst = append(dst, ' ')
		}
		if t.isLiteral() {
			literals++
			dst = strconv.AppendInt(append(dst, '$'), int64(literals), 10)
			l.skipJunk(t.kind)
		} else {
			dst = t.appendTo(dst)
		}
		if len(dst)-start > MaxDigest {
			return append(dst[:start+wholeRunes(dst[start:], MaxDigest)], ellipsis...)
		}
		last = t.kind
	}
}

func (t *token) isLiteral() bool {
	return t.kind == tokString || t.kind == tokNumber || t.kind == tokParam
}

// skipJunk skips a word directly behind a number, which newer servers take for part of it.
func (l *lexer) skipJunk(k tokenKind) {
	if start := l.pos; k == tokNumber && start < len(l.text) && classes[l.text[start]] == classLetter {
		if t := l.word(); t.kind != tokWord {
			l.pos = start
		}
	}
}

// appendTo appends what is shown of a token that is no literal, at most some more bytes than a digest has.
func (t *token) appendTo(dst []byte) []byte {
	val := t.val[:min(len(t.val), MaxDigest+utf8.UTFMax)]
	if t.kind == tokName {
		dst = append(dst, '"')
	}
	for _, c := range val {
		switch {
		case c < ' ' || c == 0x7f: // would break the line
			c = '?'
		case t.kind == tokWord && 'A' <= c && c <= 'Z':
			c |= 0x20
		}
		dst = append(dst, c)
	}
	if t.kind == tokName {
		dst = append(dst, '"')
	}
	return dst
}

// wholeRunes returns the largest number of bytes up to n after which b can be cut without cutting a character.
func wholeRunes(b []byte, n int) int {
	for i := n; i > n-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			return i
		}
	}
	return n
}
