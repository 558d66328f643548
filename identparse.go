package pgmoor

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// This file reads pg_ident.conf (PostgreSQL documentation, "User Name Maps").

// ParseIdent reads the lines of a pg_ident.conf, for [StandardMethods]: the name of a map, a name in the certificate, or a regular
// expression of package regexp behind a slash, and the user as which such a client may log in: \1 in it is what the first group has
// matched, and "all" is every user. Errors begin with the number of the line.
func ParseIdent(r io.Reader) (map[string]UserMap, error) {
	lines, err := readHBA(r)
	if err != nil {
		return nil, err
	}
	lists := make(map[string][]UserMap)
	for _, l := range lines {
		name, entry, err := l.identity()
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", l.number, err)
		}
		lists[name] = append(lists[name], entry)
	}
	maps := make(map[string]UserMap, len(lists))
	for name, list := range lists {
		maps[name] = anyOf(list)
	}
	return maps, nil
}

// anyOf returns a map that allows what one of list allows.
func anyOf(list []UserMap) UserMap {
	return func(name, user string) bool {
		for _, m := range list {
			if m(name, user) {
				return true
			}
		}
		return false
	}
}

func (l hbaLine) identity() (name string, m UserMap, err error) {
	var t [3]hbaToken
	for i := range t {
		if len(l.fields) == 0 {
			return "", nil, errors.New("missing entry at end of line")
		}
		if t[i], err = l.takeOne("", "ident field"); err != nil {
			return "", nil, err
		}
	}
	system, role := t[1].text, t[2]
	var pattern *regexp.Regexp
	if strings.HasPrefix(system, "/") {
		if pattern, err = compilePattern(system[1:]); err != nil {
			return "", nil, err
		}
	}
	switch groups := pattern != nil && pattern.NumSubexp() > 0; {
	case strings.HasPrefix(system, "@"), strings.HasPrefix(t[0].text, "include"):
		return "", nil, errors.New("other files are not supported: put their lines here")
	case !role.quoted && (strings.HasPrefix(role.text, "+") || strings.HasPrefix(role.text, "/") || strings.HasPrefix(role.text, "@")):
		return "", nil, fmt.Errorf("%s is not supported: write the user", role.text)
	case pattern != nil && strings.Contains(role.text, `\1`) && !groups:
		return "", nil, fmt.Errorf("regular expression %q has no subexpressions as requested by backreference in %q", system[1:], role.text)
	}
	return t[0].text, mapping(system, pattern, role), nil
}

// mapping is a line of pg_ident.conf.
func mapping(system string, pattern *regexp.Regexp, role hbaToken) UserMap {
	all := role.text == "all" && !role.quoted
	return func(name, user string) bool {
		if pattern == nil {
			return name == system && (all || user == role.text)
		}
		groups := pattern.FindStringSubmatch(name)
		if groups == nil {
			return false
		}
		want := role.text
		if len(groups) > 1 {
			want = strings.Replace(want, `\1`, groups[1], 1)
		}
		return all || user == want
	}
}
