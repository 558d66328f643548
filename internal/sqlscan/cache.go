package sqlscan

import (
	"hash/maphash"
	"sync/atomic"
)

// Info is what is known of a text. It is shared and must not be changed.
type Info struct {
	Effects     Effect
	Verb        Verb // of the first statement that is not empty
	Statements  int  // those that are not empty
	Settings    []SettingRef
	Refs        []StatementRef // prepared statements made, used or dropped by SQL
	AllSettings bool           // RESET ALL or DISCARD ALL is among the statements
	// Channels are those of LISTEN and UNLISTEN; UnknownChannels says that not all of them are told.
	Channels        []ChannelRef
	UnknownChannels bool
}

// Cache remembers what it found out about texts. It is safe for concurrent use.
type Cache struct {
	seed   maphash.Seed
	sets   []cacheSet
	seen   []atomic.Uint32 // by hash, part of the hash of a text that was seen once
	listed map[string]struct{}
	sizes  uint64 // bit n is set if there is a name of n bytes in listed
}

// A cacheSet holds the texts of the same hash, as far as it counts; the one that came last is in front.
type cacheSet [2]atomic.Pointer[cacheEntry]

// A cacheEntry is not changed once it is in a Cache.
type cacheEntry struct {
	hash uint64
	std  bool
	text string
	info *Info
}

const (
	maxCachedText = 4 << 10 // bytes of a text that is remembered
	seenPerEntry  = 4
)

// NewCache returns a Cache that remembers some entries texts; none if that is zero. A text is remembered when it comes for
// the second time and has at most 4 KiB. An entry takes the memory of its text, and as much again and 4 KiB at most if it
// changes settings or prepares statements: in all less than 12 KiB for each entry, some hundred bytes as a rule.
//
// Texts that mention one of the functions have the effect Listed: as a word in any case, or in double quotes exactly as it
// is given here. Of a name with a schema only what stands behind the last dot counts.
func NewCache(entries int, functions ...string) *Cache {
	c := &Cache{seed: maphash.MakeSeed(), listed: lastParts(functions)}
	for name := range c.listed {
		c.sizes |= 1 << len(name)
	}
	if entries > 0 {
		n := 1
		for n*len(cacheSet{}) < entries {
			n *= 2
		}
		c.sets = make([]cacheSet, n)
		c.seen = make([]atomic.Uint32, n*len(cacheSet{})*seenPerEntry)
	}
	return c
}

// Inspect returns what is known of a text, of which it keeps no reference. The answer stays valid.
func (c *Cache) Inspect(text []byte, standardConformingStrings bool) *Info {
	if len(text) > maxCachedText || len(c.sets) == 0 {
		return c.inspect(text, standardConformingStrings)
	}
	h := maphash.Bytes(c.seed, text)
	set := &c.sets[h&uint64(len(c.sets)-1)]
	for i := range set {
		if e := set[i].Load(); e != nil && e.hash == h && e.std == standardConformingStrings && e.text == string(text) {
			return e.info
		}
	}
	info := c.inspect(text, standardConformingStrings)
	if c.seenBefore(h) {
		set[1].Store(set[0].Load())
		set[0].Store(&cacheEntry{hash: h, std: standardConformingStrings, text: string(text), info: info})
	}
	return info
}

// seenBefore reports whether a text of this hash came lately, and remembers that it came.
func (c *Cache) seenBefore(h uint64) bool {
	mark := uint32(h>>32) | 1
	return c.seen[h>>8&uint64(len(c.seen)-1)].Swap(mark) == mark
}

// inspect finds out what there is to know of a text. For everyday ones it takes no memory.
func (c *Cache) inspect(text []byte, standardConformingStrings bool) *Info {
	var s Scanner
	s.Reset(standardConformingStrings)
	s.Feed(text)
	e := s.Finish()
	if c.lists(text, standardConformingStrings, e) {
		e |= Listed
	}
	if mentionsLexical(text) {
		e |= Lexical
	}
	if info := everyday(e, s.Verb(), s.Statements()); info != nil {
		return info
	}
	info := &Info{Effects: e, Verb: s.Verb(), Statements: s.Statements()}
	if e&(Prepare|Execute|Deallocate|Discard) != 0 {
		var ok bool
		if info.Refs, ok = Refs(text, standardConformingStrings); !ok {
			info.Effects |= Unsure
		}
	}
	if e&(Setting|Discard) != 0 {
		var ok bool
		if info.Settings, info.AllSettings, ok = Settings(text, standardConformingStrings); ok && e&Unsure == 0 {
			info.Effects &^= UnknownSetting
		}
	}
	if e&(Listen|Unlisten) != 0 {
		var ok bool
		info.Channels, ok = Channels(text, standardConformingStrings)
		info.UnknownChannels = !ok || e&Unsure != 0
	}
	return info
}

// mentionsLexical looks for the letters alone, so that no quoting hides them.
func mentionsLexical(text []byte) bool {
	for i, c := range text {
		switch c | 0x20 {
		case 'c':
			if startsWith(text[i:], "conforming") {
				return true
			}
		case 'e':
			if startsWith(text[i:], "encoding") {
				return true
			}
		case 'n':
			if startsWith(text[i:], "names") {
				return true
			}
		case 's':
			if startsWith(text[i:], "set_config") {
				return true
			}
		}
	}
	return false
}

func startsWith(w []byte, text string) bool { return len(w) >= len(text) && equalFold(w, text) }

const everydayStatements = 4

// everydayInfos holds, by effects, verb and number of statements, what is said of most texts.
var everydayInfos = makeEveryday()

func makeEveryday() (t [3][verbCount][everydayStatements]Info) {
	for i, e := range [...]Effect{0, TxnBegin, TxnEnd} {
		for v := range verbCount {
			for n := range everydayStatements {
				t[i][v][n] = Info{Effects: e, Verb: v, Statements: n}
			}
		}
	}
	return t
}

// everyday returns an Info that is there already, or nil.
func everyday(e Effect, v Verb, statements int) *Info {
	if statements >= everydayStatements {
		return nil
	}
	switch e {
	case 0:
		return &everydayInfos[0][v][statements]
	case TxnBegin:
		return &everydayInfos[1][v][statements]
	case TxnEnd:
		return &everydayInfos[2][v][statements]
	}
	return nil
}

// lastParts returns the set of names without their schemas.
func lastParts(names []string) map[string]struct{} {
	m := make(map[string]struct{}, len(names))
	for _, n := range names {
		for i := len(n) - 1; i >= 0; i-- {
			if n[i] == '.' {
				n = n[i+1:]
				break
			}
		}
		m[n[:min(len(n), maxName)]] = struct{}{}
	}
	return m
}

// lists reports whether a text mentions a listed name. Where names may be missed, by the effects, it may.
func (c *Cache) lists(text []byte, standardConformingStrings bool, e Effect) bool {
	if len(c.listed) == 0 {
		return false
	}
	if e&Unsure != 0 {
		return true
	}
	l := lexer{text: text, backslash: !standardConformingStrings}
	for {
		switch t := l.next(); t.kind {
		case tokEnd, tokLost:
			return false
		case tokWord, tokName:
			if c.isListed(&t) {
				return true
			}
		}
	}
}

func (c *Cache) isListed(t *token) bool {
	if c.sizes>>min(len(t.val), maxName)&1 == 0 {
		return false
	}
	var buf [maxName]byte
	w := buf[:copy(buf[:], t.val)]
	if t.kind == tokWord {
		for i, b := range w {
			if 'A' <= b && b <= 'Z' {
				w[i] = b | 0x20
			}
		}
	}
	_, ok := c.listed[string(w)]
	return ok
}
