package sqlscan

import "strconv"

// maxParams is how many parameters a statement can have.
const maxParams = 65535

// Params returns the highest number of a parameter that a text mentions, 0 if there is none. Of a number that no statement can have it
// returns 0, too.
func Params(text []byte, standardConformingStrings bool) int {
	l := lexer{text: text, backslash: !standardConformingStrings}
	most := 0
	for t := l.next(); t.kind != tokEnd && t.kind != tokLost; t = l.next() {
		if t.kind != tokParam {
			continue
		}
		if n, err := strconv.Atoi(string(t.val)); err == nil && n <= maxParams {
			most = max(most, n)
		}
	}
	return most
}
