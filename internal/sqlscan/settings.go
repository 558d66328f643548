package sqlscan

import (
	"bytes"
	"slices"
	"strings"
)

// SettingRef is a parameter that a text sets or resets for the session.
type SettingRef struct {
	// Name is in lower case, as PostgreSQL compares such names, and empty if the name is that of Param.
	Name string
	// Param is the number, from 1, of the bound parameter whose value is the name; 0 if Name is it.
	Param int
	// Reset says that the parameter goes back to its default, by RESET or by SET TO DEFAULT.
	Reset bool
	// Value is what SET sets it to, if Literal says that this is one word, string or whole number. A word is in lower
	// case. For set_config, which may not be reached, and for lists it is not given.
	Value   string
	Literal bool
}

// Limits of what Settings tells.
const (
	maxSettings = 64      // parameters in a text
	maxName     = 63      // bytes of an identifier that PostgreSQL does not cut (NAMEDATALEN - 1)
	maxParam    = 1 << 16 // bound parameters of a statement
	maxTold     = 1 << 10 // bytes of a name or value
)

// Settings returns the parameters that a text sets or resets for the session, in the order of the text. It reports in all
// that RESET ALL or DISCARD ALL is among its statements, which are not in refs, and in ok whether every name could be
// told. Where Classify reports no UnknownSetting, they could. What ends with the transaction is left out, as by Classify.
// It takes memory in proportion to the number of parameters found, which is bounded.
func Settings(text []byte, standardConformingStrings bool) (refs []SettingRef, all, ok bool) {
	p := settingsParser{lex: lexer{text: text, backslash: !standardConformingStrings}, keep: true, ok: true}
	p.run()
	return p.refs, p.all, p.ok
}

// Mentions reports whether one of the names, which are given in lower case, stands in a text as an identifier.
func Mentions(text []byte, standardConformingStrings bool, names ...string) bool {
	l := lexer{text: text, backslash: !standardConformingStrings}
	for {
		t := l.next()
		if t.kind == tokEnd || t.kind == tokLost {
			return false
		}
		if slices.ContainsFunc(names, t.names) {
			return true
		}
	}
}

// knowsSettings reports whether Settings can tell every name. It takes no memory.
func knowsSettings(text []byte, standardConformingStrings bool) bool {
	p := settingsParser{lex: lexer{text: text, backslash: !standardConformingStrings}, ok: true}
	p.run()
	return p.ok
}

// A settingsParser reads the statements of a text for Settings. Its methods are called with the first token of what they
// are named for in tok, and leave the first one behind it there.
type settingsParser struct {
	lex   lexer
	tok   token
	depth int // open parentheses, that of tok included

	keep    bool // fill refs
	refs    []SettingRef
	count   int // parameters found
	all, ok bool

	deferred bool // the statement is one that runs later, with parameters of its own
	updating bool // it has had the word UPDATE
}

func (p *settingsParser) run() {
	for p.next(); ; p.next() {
		p.statement()
		if p.tok.kind == tokEnd || p.tok.kind == tokLost {
			p.ok = p.ok && p.tok.kind == tokEnd
			return
		}
	}
}

func (p *settingsParser) next() {
	p.tok = p.lex.next()
	switch {
	case p.tok.symbol('('):
		p.depth++
	case p.tok.symbol(')'):
		p.depth = max(p.depth-1, 0)
	}
}

// peek returns the token behind the current one.
func (p *settingsParser) peek() token {
	ahead := p.lex
	return ahead.next()
}

// atEnd reports whether the statement is at its end. Within the body of a function it ends at each statement of that, which
// only makes more statements of the text.
func (p *settingsParser) atEnd() bool {
	return endsStatement(&p.tok) && (p.depth == 0 || p.tok.kind != tokSymbol)
}

func endsStatement(t *token) bool {
	return t.kind == tokEnd || t.kind == tokLost || t.symbol(';')
}

func (p *settingsParser) statement() {
	for !p.atEnd() && p.tok.kind != tokWord && p.tok.kind != tokName {
		p.next()
	}
	p.deferred = p.tok.is("prepare") || p.tok.is("create")
	p.updating = false
	switch {
	case p.tok.is("set"):
		p.next()
		p.set()
	case p.tok.is("reset"):
		p.next()
		p.reset()
	case p.tok.is("discard"):
		p.next()
		p.all = p.all || p.tok.is("all")
	}
	p.rest()
}

// rest goes to the end of the statement and looks for functions that set.
func (p *settingsParser) rest() {
	for !p.atEnd() {
		if p.mention() {
			p.next()
			p.setConfig()
		} else {
			p.next()
		}
	}
}

// mention looks at the current token. It reports whether that is set_config.
func (p *settingsParser) mention() bool {
	switch t := &p.tok; {
	case t.kind == tokName && !t.exact, t.is("uescape"):
		p.ok = false
	case t.is("update"):
		p.updating = true
	case t.names("set_config"):
		return true
	case t.names("set_limit"):
		p.add(SettingRef{Name: "pg_trgm.similarity_threshold"})
	case t.names("pg_settings"):
		p.ok = p.ok && !p.updating
	}
	return false
}

func (p *settingsParser) add(r SettingRef) {
	if p.count++; p.count > maxSettings {
		p.ok = false
		return
	}
	if p.keep {
		p.refs = append(p.refs, r)
	}
	if r.Name == "session_authorization" { // which ends the role
		p.add(SettingRef{Name: "role", Reset: true})
	}
}

// set reads what stands behind SET, up to the value.
func (p *settingsParser) set() {
	if p.scoped() {
		return
	}
	for p.form("session") {
		p.next()
	}
	switch {
	case p.form("transaction"):
	case p.form("authorization"):
		p.special("session_authorization")
	case p.form("characteristics"):
		p.characteristics()
	case p.form("time"):
		p.timeZone()
	case p.form("names"):
		p.special("client_encoding")
	case p.form("schema"):
		p.special("search_path")
	case p.form("role"):
		p.special("role")
	case p.form("xml"):
		p.next()
		p.special("xmloption")
	default:
		p.generic()
	}
}

// scoped reports whether the SET ends with the transaction.
func (p *settingsParser) scoped() bool {
	if !p.tok.is("local") && !p.tok.is("transaction") && !p.tok.is("constraints") {
		return false
	}
	t := p.peek()
	return !qualifies(&t)
}

// qualifies reports whether t, behind a word, makes it the class of a parameter.
func qualifies(t *token) bool {
	return t.symbol('.') || t.kind == tokNumber && t.val[0] == '.'
}

// form reports whether the current token is the keyword of a special form, and not a name that is spelled like that.
func (p *settingsParser) form(keyword string) bool {
	if !p.tok.is(keyword) {
		return false
	}
	t := p.peek()
	return !qualifies(&t) && !t.symbol('=') && !t.is("to") && !t.is("from")
}

// special reads the last keyword of a special form and the value.
func (p *settingsParser) special(name string) {
	p.next()
	p.value(SettingRef{Name: name})
}

func (p *settingsParser) timeZone() {
	p.next()
	p.next()
	p.value(SettingRef{Name: "timezone", Reset: p.tok.is("local")})
}

func (p *settingsParser) value(r SettingRef) {
	switch {
	case r.Reset:
	case p.atEnd(), p.tok.is("default"):
		r.Reset = true
	default:
		r.Value, r.Literal = p.literal()
	}
	p.add(r)
}

// literal returns the value, if it is the last token and says exactly what it is.
func (p *settingsParser) literal() (string, bool) {
	last := p.peek()
	t := &p.tok
	switch {
	case !endsStatement(&last):
		return "", false
	case t.kind == tokString && t.exact && len(t.val) <= maxTold:
	case t.kind == tokNumber && isInteger(t.val):
	case !isIdentifier(t):
		return "", false
	}
	return p.content(), true
}

// isInteger reports whether a number is one that PostgreSQL would write in the same way.
func isInteger(b []byte) bool {
	if len(b) > 9 || b[0] == '0' && len(b) > 1 {
		return false
	}
	for _, c := range b {
		if classes[c] != classDigit {
			return false
		}
	}
	return true
}

// isIdentifier reports whether the token is an identifier that is known exactly. A server folds other letters than those
// of ASCII only if its encoding has one byte for each.
func isIdentifier(t *token) bool {
	switch t.kind {
	case tokWord:
		return len(t.val) <= maxName && !bytes.ContainsFunc(t.val, func(r rune) bool { return r >= 0x80 })
	case tokName:
		return len(t.val) <= maxName && len(t.val) > 0 && t.exact
	}
	return false
}

// content returns what the current token says, if that is kept.
func (p *settingsParser) content() string {
	if !p.keep {
		return ""
	}
	val := string(p.tok.val)
	switch {
	case p.tok.kind == tokWord:
		return lower(val)
	case p.tok.quote != 0:
		return undouble(val, p.tok.quote)
	}
	return val
}

// undouble returns what is between quotes with the doubled ones single.
func undouble(val string, quote byte) string {
	q := string(quote)
	return strings.ReplaceAll(val, q+q, q)
}

// lower returns s with the letters of ASCII in lower case.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return string(b)
}

// characteristics reads SESSION CHARACTERISTICS AS TRANSACTION and its modes.
func (p *settingsParser) characteristics() {
	before := p.count
	for ; !p.atEnd(); p.next() {
		switch {
		case p.tok.is("isolation"):
			p.add(SettingRef{Name: "default_transaction_isolation"})
		case p.tok.is("only"), p.tok.is("write"):
			p.add(SettingRef{Name: "default_transaction_read_only"})
		case p.tok.is("deferrable"):
			p.add(SettingRef{Name: "default_transaction_deferrable"})
		}
	}
	p.ok = p.ok && p.count > before
}

// generic reads the name of a parameter and its value.
func (p *settingsParser) generic() {
	name, ok := p.name()
	r := SettingRef{Name: name}
	switch {
	case !ok:
		p.ok = false
	case p.tok.is("to"), p.tok.symbol('='):
		p.next()
		p.value(r)
	case p.tok.is("from"):
		p.add(r)
	default:
		p.ok = false
	}
}

// name reads the name of a parameter.
func (p *settingsParser) name() (name string, ok bool) {
	for size := 0; ; size++ {
		if size += len(p.tok.val); size > maxTold || !isIdentifier(&p.tok) {
			return "", false
		}
		name += p.content()
		if p.next(); !p.tok.symbol('.') {
			return canonical(name), true
		}
		if p.keep {
			name += "."
		}
		p.next()
	}
}

// canonical returns the name under which PostgreSQL keeps a parameter, for one without a dot also if that is an old name
// (map_old_guc_names in its guc.c).
func canonical(name string) string {
	name = lower(name)
	switch name {
	case "sort_mem":
		return "work_mem"
	case "vacuum_mem":
		return "maintenance_work_mem"
	}
	return name
}

// reset reads what stands behind RESET.
func (p *settingsParser) reset() {
	second := p.peek()
	switch {
	case p.tok.is("all"):
		p.all = true
	case p.tok.is("time") && second.is("zone"):
		p.add(SettingRef{Name: "timezone", Reset: true})
	case p.tok.is("transaction") && second.is("isolation"):
		p.add(SettingRef{Name: "transaction_isolation", Reset: true})
	case p.tok.is("session") && second.is("authorization"):
		p.add(SettingRef{Name: "session_authorization", Reset: true})
	default:
		name, ok := p.name()
		if p.ok = p.ok && ok; ok {
			p.add(SettingRef{Name: name, Reset: true})
		}
	}
}

// setConfig reads the arguments of set_config.
func (p *settingsParser) setConfig() {
	if !p.tok.symbol('(') {
		p.ok = false
		return
	}
	open := p.depth
	p.next()
	r, known := p.configName()
	switch local, closed := p.arguments(open); {
	case closed && local:
	case closed && known:
		p.add(r)
	default:
		p.ok = false
	}
}

// configName reads the first argument of set_config, if it is a string or a parameter, perhaps with a cast to text.
func (p *settingsParser) configName() (r SettingRef, known bool) {
	switch p.tok.kind {
	case tokString:
		known = p.tok.exact && 0 < len(p.tok.val) && len(p.tok.val) <= maxTold
		if known {
			r.Name = canonical(p.content())
		}
	case tokParam:
		r.Param, known = p.param()
	default:
		return r, false
	}
	p.next()
	if p.tok.symbol(':') {
		p.next()
		p.next()
		known = known && (p.tok.is("text") || p.tok.is("varchar"))
		p.next()
	}
	return r, known && p.tok.symbol(',')
}

// param returns the number of a bound parameter. Those of a statement that runs later are not bound with this text.
func (p *settingsParser) param() (n int, ok bool) {
	for _, c := range p.tok.val[:min(len(p.tok.val), 6)] {
		n = n*10 + int(c-'0')
	}
	return n, 0 < n && n < maxParam && !p.deferred
}

// arguments goes to the parenthesis that closes the arguments of set_config, which are open to the depth given, and of
// which the first may have been read in part. It reports whether the third is the word true alone.
func (p *settingsParser) arguments(open int) (local, closed bool) {
	comma, third := 0, 0 // commas, tokens of the third argument
	for ; !p.atEnd() && p.depth >= open; p.next() {
		if p.tok.symbol(',') && p.depth == open {
			comma++
			continue
		}
		if comma == 2 {
			third++
			local = third == 1 && p.tok.is("true")
		}
		if p.mention() { // too rare to be followed
			p.ok = false
		}
	}
	return local && comma == 2, p.depth < open
}
