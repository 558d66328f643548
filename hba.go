package pgmoor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// RuleType says which connections a [Rule] is about, as the first word of a line of pg_hba.conf.
type RuleType uint8

const (
	// RuleHost is about connections from a network, encrypted or not: "host".
	RuleHost RuleType = iota
	// RuleHostSSL is about connections from a network with TLS: "hostssl".
	RuleHostSSL
	// RuleHostNoSSL is about connections from a network without TLS: "hostnossl".
	RuleHostNoSSL
	// RuleLocal is about Unix sockets: "local".
	RuleLocal
)

// Rule is a line of pg_hba.conf as a value: [HBA] makes an [Authenticator] of rules, [ParseHBA] reads them.
//
// Databases and Users are as in pg_hba.conf: names; "all"; "sameuser" and "replication" among Databases; and regular
// expressions of package regexp behind a slash, as "/^app_". A name in double quotes is only a name, as in `"all"`. None
// given means all. Membership in roles, as "+role" and "samerole", cannot be known to a proxy and is an error of HBA.
// Replication connections that name no database are only meant by "replication".
type Rule struct {
	Type      RuleType
	Databases []string
	Users     []string

	// Networks are where the client may connect from; none means from anywhere. An IPv4 client's address is never taken for one
	// of IPv6. They do not matter to RuleLocal.
	Networks []netip.Prefix

	// Method lets the client in or not. If nil, it is refused, as by "reject".
	Method Authenticator
}

// hba is an ordered list of rules.
type hba []hbaRule

type hbaRule struct {
	Rule
	databases, users []hbaName
}

// hbaName is an element of Databases or Users.
type hbaName struct {
	text    string
	keyword bool // it may be one
	pattern *regexp.Regexp
}

// HBA returns an Authenticator that does what pg_hba.conf does: the Method of the first rule that is about a client decides, and
// no other is tried. A client that no rule is about is refused with SQLSTATE 28000 and PostgreSQL's words. Its error names the
// rule, counted from 1, that cannot be meant as it is.
func HBA(rules ...Rule) (Authenticator, error) {
	h := make(hba, 0, len(rules))
	for i, r := range rules {
		c, err := compileRule(r)
		if err != nil {
			return nil, fmt.Errorf("pgmoor: rule %d: %w", i+1, err)
		}
		h = append(h, c)
	}
	return h, nil
}

func compileRule(r Rule) (c hbaRule, err error) {
	if r.Type > RuleLocal {
		return c, fmt.Errorf("type %d is none", r.Type)
	}
	for _, n := range r.Networks {
		if !n.IsValid() {
			return c, errors.New("a network is not valid")
		}
	}
	c.Rule = r
	if c.databases, err = compileNames(r.Databases); err == nil {
		c.users, err = compileNames(r.Users)
	}
	return c, err
}

func compileNames(list []string) ([]hbaName, error) {
	if len(list) == 0 {
		list = []string{"all"}
	}
	names := make([]hbaName, 0, len(list))
	for _, s := range list {
		n, err := compileName(s)
		if err != nil {
			return nil, err
		}
		names = append(names, n)
	}
	return names, nil
}

func compileName(s string) (n hbaName, err error) {
	n = hbaName{text: s, keyword: true}
	if len(s) > 1 && s[0] == '"' && s[len(s)-1] == '"' {
		n.text, n.keyword = s[1:len(s)-1], false
	}
	switch {
	case n.text == "":
		err = errors.New("a name is empty")
	case strings.HasPrefix(n.text, "/"):
		n.pattern, err = compilePattern(n.text[1:])
	case !n.keyword:
	case s[0] == '+', s == "samerole", s == "samegroup":
		err = fmt.Errorf("%s asks for membership in a role, which the proxy does not know: list the users", s)
	case s[0] == '@':
		err = fmt.Errorf("%s names a file: list the names instead", s)
	}
	return n, err
}

func compilePattern(s string) (*regexp.Regexp, error) {
	p, err := regexp.Compile(s)
	if err != nil {
		return nil, fmt.Errorf("regular expression /%s: %w: it has to be one of Go's package regexp", s, err)
	}
	return p, nil
}

func (n *hbaName) is(keyword string) bool { return n.keyword && n.text == keyword }

func (n *hbaName) matches(name string) bool {
	if n.pattern != nil {
		return n.pattern.MatchString(name)
	}
	return n.text == name
}

// check looks for what makes a method impossible under cfg.
func (h hba) check(cfg *Config) error {
	for i := range h {
		if err := checkPart(h[i].Method, cfg); err != nil {
			return err
		}
	}
	return nil
}

// Authenticate finds the rule.
func (h hba) Authenticate(ctx context.Context, c *Client) error {
	for i := range h {
		if r := &h[i]; r.isAbout(c) {
			if r.Method == nil {
				return hbaRefusal(c, true)
			}
			return r.Method.Authenticate(ctx, c)
		}
	}
	return hbaRefusal(c, false)
}

// hbaRefusal returns PostgreSQL's error of a client that is let in by no rule, or kept out by one.
func hbaRefusal(c *Client, rejected bool) *Error {
	who := fmt.Sprintf("host %q, user %q", "[local]", c.user)
	if !c.isSocket() {
		who = fmt.Sprintf("host %q, user %q", hostOf(c.RemoteAddr()), c.user)
	}
	var text string
	switch walks := c.walks(); {
	case rejected && walks:
		text = "pg_hba.conf rejects replication connection for " + who
	case rejected:
		text = fmt.Sprintf("pg_hba.conf rejects connection for %s, database %q", who, c.database)
	case walks:
		text = "no pg_hba.conf entry for replication connection from " + who
	default:
		text = fmt.Sprintf("no pg_hba.conf entry for %s, database %q", who, c.database)
	}
	encryption := ", no encryption"
	if c.tls != nil {
		encryption = ", SSL encryption"
	}
	return &Error{
		Severity: "FATAL", Code: codeBadAuthorization, Message: text + encryption,
		Hint: "The rules are the proxy's, not the server's.",
	}
}

// walks reports whether the client asked for a walsender of no database.
func (c *Client) walks() bool { return c.replicates() && c.replicate != "database" }

// isSocket reports whether the client itself came through a Unix socket, and not a load balancer that spoke for it.
func (c *Client) isSocket() bool {
	if c.from != nil {
		_, unix := c.from.(*net.UnixAddr)
		return unix
	}
	return c.isUnix()
}

func (r *hbaRule) isAbout(c *Client) bool {
	return r.fitsConnection(c) && r.fitsDatabase(c) && slices.ContainsFunc(r.users, func(n hbaName) bool {
		return n.is("all") || n.matches(c.user)
	})
}

func (r *hbaRule) fitsConnection(c *Client) bool {
	switch socket := c.isSocket(); {
	case socket || r.Type == RuleLocal:
		return socket && r.Type == RuleLocal
	case r.Type == RuleHostSSL && c.tls == nil, r.Type == RuleHostNoSSL && c.tls != nil:
		return false
	}
	if len(r.Networks) == 0 {
		return true
	}
	ip, ok := addressOf(c.RemoteAddr())
	return ok && inNetworks(ip, r.Networks)
}

func (r *hbaRule) fitsDatabase(c *Client) bool {
	for i := range r.databases {
		switch n := &r.databases[i]; {
		case c.walks():
			if n.is("replication") {
				return true
			}
		case n.is("all"), n.is("sameuser") && c.database == c.user:
			return true
		case n.is("replication"), n.is("sameuser"):
		case n.matches(c.database):
			return true
		}
	}
	return false
}

// addressOf returns the IP address of a network address of whatever type, an IPv4 address as such.
func addressOf(a net.Addr) (netip.Addr, bool) {
	if a == nil {
		return netip.Addr{}, false
	}
	text := a.String()
	ip, err := netip.ParseAddr(text)
	if ap, e := netip.ParseAddrPort(text); e == nil {
		ip, err = ap.Addr(), nil
	}
	return ip.Unmap().WithZone(""), err == nil
}

// hostOf returns an address as errors show it, without the port.
func hostOf(a net.Addr) string {
	if ip, ok := addressOf(a); ok {
		return ip.String()
	}
	return fmt.Sprint(a)
}

func inNetworks(ip netip.Addr, networks []netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// TrustNetworks returns an Authenticator that lets clients in, as the user that they say they are, whose address is in one of the
// networks, encrypted or not; and nobody else, also not through Unix sockets. Anybody who can send from such an address is any
// user. A network of all addresses is an error: name those that are meant.
func TrustNetworks(networks ...netip.Prefix) (Authenticator, error) {
	if len(networks) == 0 {
		return nil, errors.New("pgmoor: TrustNetworks needs a network")
	}
	for _, n := range networks {
		if !n.IsValid() || n.Bits() == 0 {
			return nil, fmt.Errorf("pgmoor: trust needs networks, and %v is not one: name those that are meant", n)
		}
	}
	networks = slices.Clone(networks)
	return AuthenticatorFunc(func(_ context.Context, c *Client) error {
		if ip, ok := addressOf(c.RemoteAddr()); ok && inNetworks(ip, networks) {
			return nil
		}
		return &Error{
			Severity: "FATAL", Code: codeBadAuthorization,
			Message: "trust authentication is for clients of certain networks only",
			Hint:    "Connect from one of them, or let the proxy ask for passwords.",
		}
	}), nil
}

// checkPart looks for what makes an Authenticator or a SecretSource impossible under cfg, where it is one of this package's.
func checkPart(part any, cfg *Config) error {
	if c, ok := part.(interface{ check(*Config) error }); ok {
		return c.check(cfg)
	}
	return nil
}
