package pgmoor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// This file reads pg_hba.conf (PostgreSQL documentation, "The pg_hba.conf File").

// maxHBA is the length in bytes above which a file is refused.
const maxHBA = 1 << 20

// ParseHBA reads the lines of a pg_hba.conf, for [HBA]. For each method but trust and reject, which need nothing, it calls
// methods with its name and options; [StandardMethods] knows those that a proxy can do. The option clientcert it sees to itself,
// as [RequireCertificate] does.
//
// What the proxy cannot do is an error and not passed over: host names, samehost, samenet, roles' members (+role, samerole), other files
// (include, @file), GSSAPI, masks that no CIDR length stands for, and trust for all addresses. Errors begin with the number of the line, and
// are about all wrong lines, joined. Names with a slash in front are regular expressions, as from PostgreSQL 16 on, but Go's.
func ParseHBA(r io.Reader, methods func(method string, options map[string]string) (Authenticator, error)) ([]Rule, error) {
	lines, err := readHBA(r)
	var rules []Rule
	errs := []error{err}
	for _, l := range lines {
		rule, err := l.rule(methods)
		if err == nil {
			_, err = compileRule(rule)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", l.number, err))
			continue
		}
		rules = append(rules, rule)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return rules, nil
}

// StandardMethods returns the methods of pg_hba.conf that need no more than secrets and maps, for [ParseHBA]: scram-sha-256,
// md5, password, which is asked for over an encrypted connection only, and cert, whose option map names one of maps.
func StandardMethods(secrets SecretSource, maps map[string]UserMap) func(string, map[string]string) (Authenticator, error) {
	scram, md5, password := SCRAM(secrets), MD5(secrets), Cleartext(secrets)
	return func(method string, options map[string]string) (Authenticator, error) {
		a := map[string]Authenticator{"scram-sha-256": scram, "md5": md5, "password": password}[method]
		if method == "cert" {
			return certMethod(options, maps)
		}
		if a == nil {
			return nil, fmt.Errorf("the proxy does not know the method %q: use scram-sha-256, md5, password, cert, trust or reject", method)
		}
		for name := range options {
			return nil, fmt.Errorf("the option %s is not one of the method %s", name, method)
		}
		return a, nil
	}
}

func certMethod(options map[string]string, maps map[string]UserMap) (Authenticator, error) {
	name, err := clientName(options)
	if err != nil {
		return nil, err
	}
	var users UserMap
	for option, value := range options {
		var known bool
		switch option {
		case "clientname":
		case "map":
			if users, known = maps[value]; !known {
				return nil, fmt.Errorf("there is no map %q", value)
			}
		default:
			return nil, fmt.Errorf("the option %s is not one of the method cert", option)
		}
	}
	return Certificate(name, users), nil
}

// clientName returns which name the option clientname means.
func clientName(options map[string]string) (CertificateName, error) {
	switch v, ok := options["clientname"]; {
	case !ok, v == "CN":
		return CommonName, nil
	case v == "DN":
		return DistinguishedName, nil
	default:
		return 0, fmt.Errorf("invalid value for clientname: %q", v)
	}
}

// hbaToken is a word of a line.
type hbaToken struct {
	text   string
	quoted bool
}

// String returns the token as Rule has it.
func (t hbaToken) String() string {
	if t.quoted {
		return `"` + t.text + `"`
	}
	return t.text
}

// hbaLine is a line that is not empty: fields of one or more tokens with commas between them.
type hbaLine struct {
	number int
	fields [][]hbaToken
}

// readHBA takes a file apart. A backslash at the end of a line continues it.
func readHBA(r io.Reader) (lines []hbaLine, err error) {
	s := bufio.NewScanner(io.LimitReader(r, maxHBA))
	s.Buffer(nil, maxHBA)
	text, begin, size := "", 1, 0
	for n := 1; s.Scan(); n++ {
		size += len(s.Bytes()) + 1
		part, more := strings.CutSuffix(strings.TrimRight(s.Text(), "\r"), `\`)
		if text += part; more {
			continue
		}
		if f := fieldsOf(text); len(f) > 0 {
			lines = append(lines, hbaLine{begin, f})
		}
		text, begin = "", n+1
	}
	if f := fieldsOf(text); len(f) > 0 {
		lines = append(lines, hbaLine{begin, f})
	}
	if err = s.Err(); err == nil && size >= maxHBA {
		err = fmt.Errorf("the file is longer than %d bytes", maxHBA-1)
	}
	return lines, err
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' }

// fieldsOf is PostgreSQL's next_field_expand, over a whole line.
func fieldsOf(s string) (fields [][]hbaToken) {
	var field []hbaToken
	for {
		t, rest, ok, comma := nextToken(s)
		if ok {
			field = append(field, t)
		}
		if s = rest; ok && comma {
			continue
		}
		if len(field) > 0 {
			fields, field = append(fields, field), nil
		}
		if !ok {
			return fields
		}
	}
}

// nextToken is PostgreSQL's next_token: quotes may begin and end anywhere in a token, and two within quotes stand for one.
func nextToken(s string) (t hbaToken, rest string, ok, comma bool) {
	s = strings.TrimLeft(s, " \t\r,")
	var b strings.Builder
	inQuote, wasQuote, sawQuote := false, false, false
	i := 0
loop:
	for ; i < len(s) && (inQuote || !isBlank(s[i])); i++ {
		c := s[i]
		switch {
		case c == '#' && !inQuote:
			i = len(s)
			break loop
		case c == ',' && !inQuote:
			comma = true
			i++
			break loop
		}
		if c != '"' || wasQuote {
			b.WriteByte(c)
		}
		wasQuote = inQuote && c == '"' && !wasQuote
		if c == '"' {
			t.quoted = t.quoted || b.Len() == 0
			inQuote, sawQuote = !inQuote, true
		}
	}
	t.text = b.String()
	return t, s[i:], sawQuote || t.text != "", comma
}

// take removes the first field; what is the error where there is none.
func (l *hbaLine) take(what string) ([]hbaToken, error) {
	if len(l.fields) == 0 {
		return nil, fmt.Errorf("end-of-line before %s", what)
	}
	f := l.fields[0]
	l.fields = l.fields[1:]
	return f, nil
}

// takeOne removes the first field, which must be a single token.
func (l *hbaLine) takeOne(what, many string) (hbaToken, error) {
	f, err := l.take(what)
	switch {
	case err != nil:
		return hbaToken{}, err
	case len(f) > 1:
		return hbaToken{}, fmt.Errorf("multiple values specified for %s", many)
	}
	return f[0], nil
}

func (l hbaLine) rule(methods func(string, map[string]string) (Authenticator, error)) (r Rule, err error) {
	kind, err := l.takeOne("connection type", "connection type")
	if err != nil {
		return r, err
	}
	if r.Type, err = ruleType(kind.text); err != nil {
		return r, err
	}
	for _, part := range []struct {
		to   *[]string
		what string
	}{{&r.Databases, "database"}, {&r.Users, "role"}} {
		tokens, err := l.take(part.what + " specification")
		if err != nil {
			return r, err
		}
		for _, t := range tokens {
			*part.to = append(*part.to, t.String())
		}
	}
	if r.Type != RuleLocal {
		if r.Networks, err = l.networks(); err != nil {
			return r, err
		}
	}
	r.Method, err = l.method(&r, methods)
	return r, err
}

func ruleType(s string) (RuleType, error) {
	switch s {
	case "local":
		return RuleLocal, nil
	case "host", "hostnogssenc": // the proxy has no GSSAPI
		return RuleHost, nil
	case "hostssl":
		return RuleHostSSL, nil
	case "hostnossl":
		return RuleHostNoSSL, nil
	case "hostgssenc":
		return 0, errors.New("hostgssenc record cannot match, because the proxy has no GSSAPI: remove it")
	case "include", "include_if_exists", "include_dir":
		return 0, fmt.Errorf("%s is not supported: put the lines of the other file here", s)
	}
	return 0, fmt.Errorf("invalid connection type %q: it has to be local, host, hostssl or hostnossl", s)
}

// networks takes the address and the mask that may follow it; nil is all addresses.
func (l *hbaLine) networks() ([]netip.Prefix, error) {
	t, err := l.takeOne("IP address specification", "host address")
	if err != nil {
		return nil, err
	}
	if !t.quoted {
		switch t.text {
		case "all":
			return nil, nil
		case "samehost", "samenet":
			return nil, fmt.Errorf("%s is not supported: write the networks", t.text)
		}
	}
	host, length, cidr := strings.Cut(t.text, "/")
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil && cidr:
		return nil, fmt.Errorf("specifying both host name and CIDR mask is invalid: %q", t.text)
	case err != nil:
		return nil, fmt.Errorf("host names are not supported: write the networks instead of %q", t.text)
	case ip.Zone() != "":
		return nil, fmt.Errorf("an address with a zone is not supported: %q", t.text)
	}
	bits := 0
	if cidr {
		if bits, err = strconv.Atoi(length); err != nil || bits < 0 || bits > ip.BitLen() {
			return nil, fmt.Errorf("invalid CIDR mask in address %q", t.text)
		}
	} else if bits, err = l.mask(ip); err != nil {
		return nil, err
	}
	return []netip.Prefix{netip.PrefixFrom(ip, bits).Masked()}, nil
}

// mask takes the mask of ip and returns its length.
func (l *hbaLine) mask(ip netip.Addr) (bits int, err error) {
	t, err := l.takeOne("netmask specification", "netmask")
	if err != nil {
		return 0, err
	}
	m, err := netip.ParseAddr(t.text)
	switch {
	case err != nil || m.Zone() != "":
		return 0, fmt.Errorf("invalid IP mask %q", t.text)
	case m.BitLen() != ip.BitLen():
		return 0, errors.New("IP address and mask do not match")
	}
	for _, b := range m.AsSlice() {
		for ; b&0x80 != 0; b <<= 1 {
			bits++
		}
	}
	if p, _ := m.Prefix(bits); p.Addr() != m {
		return 0, fmt.Errorf("the mask %q has gaps, which is not supported: write several networks", t.text)
	}
	return bits, nil
}

// method takes the method and its options.
func (l *hbaLine) method(r *Rule, methods func(string, map[string]string) (Authenticator, error)) (Authenticator, error) {
	t, err := l.takeOne("authentication method", "authentication type")
	if err != nil {
		return nil, err
	}
	options, err := l.options()
	if err != nil {
		return nil, err
	}
	wrap, err := clientCert(t.text, r, options)
	if err != nil {
		return nil, err
	}
	var a Authenticator
	switch t.text {
	case "trust":
		a, err = trustIn(r, options)
	case "reject":
		for name := range options {
			err = fmt.Errorf("the option %s is not one of the method reject", name)
		}
		return nil, err
	case "cert":
		if r.Type != RuleHostSSL {
			return nil, errors.New("cert authentication is only supported on hostssl connections")
		}
		fallthrough
	default:
		a, err = methods(t.text, options)
	}
	if err == nil && a == nil {
		err = fmt.Errorf("invalid authentication method %q", t.text)
	}
	if err != nil {
		return nil, err
	}
	return wrap(a), nil
}

func (l *hbaLine) options() (map[string]string, error) {
	options := make(map[string]string)
	for _, f := range l.fields {
		for _, t := range f {
			name, value, ok := strings.Cut(t.text, "=")
			if !ok {
				return nil, fmt.Errorf("authentication option not in name=value format: %s", t.text)
			}
			options[name] = value
		}
	}
	return options, nil
}

// clientCert takes the option clientcert, with clientname where that belongs to it, and returns what it makes of a method.
func clientCert(method string, r *Rule, options map[string]string) (wrap func(Authenticator) Authenticator, err error) {
	v, ok := options["clientcert"]
	_, named := options["clientname"]
	wrap = func(a Authenticator) Authenticator { return a }
	switch {
	case (ok || named) && r.Type != RuleHostSSL:
		return nil, errors.New(`clientcert and clientname can only be configured for "hostssl" rows`)
	case !ok:
		return wrap, nil
	case v != "verify-full" && v != "verify-ca":
		return nil, fmt.Errorf("invalid value for clientcert: %q", v)
	case method == "cert" && v == "verify-ca":
		return nil, errors.New(`clientcert only accepts "verify-full" when using "cert" authentication`)
	}
	delete(options, "clientcert")
	if method == "cert" {
		return wrap, nil
	}
	name, err := clientName(options)
	delete(options, "clientname")
	if v == "verify-ca" {
		name = AnyCertificate
	}
	return func(a Authenticator) Authenticator { return RequireCertificate(name, nil, a) }, err
}

// trustIn returns the Authenticator of a line with trust.
func trustIn(r *Rule, options map[string]string) (Authenticator, error) {
	for name := range options {
		return nil, fmt.Errorf("the option %s is not one of the method trust", name)
	}
	if r.Type == RuleLocal {
		return Trust(), nil
	}
	a, err := TrustNetworks(r.Networks...)
	if err != nil {
		return nil, errors.New("trust for all addresses is not supported: name the networks that are meant")
	}
	return a, nil
}
