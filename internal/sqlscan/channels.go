package sqlscan

// ChannelRef is a channel that a text names in a LISTEN or an UNLISTEN.
type ChannelRef struct {
	// Name is the channel's, as PostgreSQL keeps it: folded and cut. It is empty for UNLISTEN *.
	Name string
	// Off says that the statement is UNLISTEN.
	Off bool
}

// maxChannels bounds the channels that are told of a text.
const maxChannels = 64

// maxWide is up to how many bytes a channel may have that is not of ASCII characters alone: in whatever encoding the server
// keeps it, it is not cut then.
const maxWide = maxName / 3

// Channels returns the channels that a text names in LISTEN and UNLISTEN, in the order of the text. ok is false where one of
// them could not be told, or there are too many.
func Channels(text []byte, standardConformingStrings bool) (refs []ChannelRef, ok bool) {
	l := lexer{text: text, backslash: !standardConformingStrings}
	for ok, begins := true, true; ; {
		t := l.next()
		switch {
		case t.kind == tokEnd:
			return refs, ok
		case t.kind == tokLost:
			return refs, false
		case t.symbol(';'):
			begins = true
			continue
		case begins && (t.is("listen") || t.is("unlisten")):
			r := ChannelRef{Off: t.is("unlisten")}
			if t = l.next(); !r.Off || !t.symbol('*') {
				var known bool
				r.Name, known = channel(&t)
				ok = ok && known
			}
			if ok = ok && len(refs) < maxChannels; ok {
				refs = append(refs, r)
			}
		}
		begins = false
	}
}

// channel returns the channel that a token names. A server folds other letters than those of ASCII only if its encoding has
// one byte for each.
func channel(t *token) (name string, known bool) {
	wide := false
	for _, c := range t.val {
		wide = wide || c >= 0x80
	}
	switch t.kind {
	case tokWord:
		name, known = lower(string(t.val)), !wide
	case tokName:
		name, known = undouble(string(t.val), t.quote), t.exact && len(t.val) > 0
	}
	if wide {
		return name, known && len(name) <= maxWide
	}
	return name[:min(len(name), maxName)], known
}
