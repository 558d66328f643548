// Package dsn reads the connection strings of PostgreSQL's tools, as far as a pooler needs them.
package dsn

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgmoor/pgmoor"
)

// DSN is a connection string taken apart. Nothing in it comes from the environment.
type DSN struct {
	Hosts          []string // as pgmoor.Upstream has them
	User           string
	Password       string
	Database       string
	SSLMode        string
	SSLNegotiation string
	SSLRootCert    string
	ChannelBinding string
	ConnectTimeout time.Duration
}

// Parse reads a URL ("postgres://user:password@host1:5432,host2/database?sslmode=require") or libpq's keywords
// ("host=host1,host2 port=5432 user=app"). Its errors do not repeat the string, which may hold a password.
func Parse(s string) (*DSN, error) {
	parse := keywords
	if strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://") {
		parse = fromURL
	}
	values, err := parse(s)
	if err != nil {
		return nil, err
	}
	return build(values)
}

// Upstream returns what a Proxy has to know of the servers.
func (d *DSN) Upstream() (pgmoor.Upstream, error) {
	up := pgmoor.Upstream{
		Hosts: d.Hosts, SSLMode: d.SSLMode, SSLNegotiation: d.SSLNegotiation, ChannelBinding: d.ChannelBinding, ConnectTimeout: d.ConnectTimeout,
	}
	if d.SSLRootCert == "" || d.SSLRootCert == "system" {
		return up, nil
	}
	pem, err := os.ReadFile(d.SSLRootCert)
	if err != nil {
		return up, fmt.Errorf("sslrootcert: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return up, fmt.Errorf("sslrootcert: %s holds no certificate in PEM form", d.SSLRootCert)
	}
	up.TLSConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	return up, nil
}

// sslModes are libpq's.
var sslModes = []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

func build(values map[string]string) (*DSN, error) {
	d := &DSN{}
	for k, v := range values {
		switch k {
		case "host", "port":
		case "user":
			d.User = v
		case "password":
			d.Password = v
		case "dbname":
			d.Database = v
		case "sslmode":
			if !slices.Contains(sslModes, v) {
				return nil, fmt.Errorf("sslmode is none of %s", strings.Join(sslModes, ", "))
			}
			d.SSLMode = v
		case "sslnegotiation":
			if v != "postgres" && v != "direct" {
				return nil, errors.New("sslnegotiation is none of postgres, direct")
			}
			d.SSLNegotiation = v
		case "sslrootcert":
			d.SSLRootCert = v
		case "channel_binding":
			if v != "disable" && v != "prefer" && v != "require" {
				return nil, errors.New("channel_binding is none of disable, prefer, require")
			}
			d.ChannelBinding = v
		case "connect_timeout":
			n, err := strconv.ParseUint(v, 10, 31)
			if err != nil {
				return nil, errors.New("connect_timeout is not a number of seconds")
			}
			d.ConnectTimeout = time.Duration(n) * time.Second
		default:
			return nil, fmt.Errorf("parameter %q is not understood: leave it out; known are host, port, user, password, dbname, sslmode, sslnegotiation, sslrootcert, channel_binding, connect_timeout", k)
		}
	}
	if err := d.checkTLS(); err != nil {
		return nil, err
	}
	var err error
	d.Hosts, err = hosts(values["host"], values["port"])
	return d, err
}

// checkTLS wants of sslmode what libpq does besides other parameters: with the system's certificates anybody could have one, unless
// the name is verified.
func (d *DSN) checkTLS() error {
	switch {
	case d.SSLRootCert == "system" && d.SSLMode == "":
		d.SSLMode = "verify-full"
	case d.SSLRootCert == "system" && d.SSLMode != "verify-full":
		return errors.New("sslrootcert=system needs sslmode=verify-full")
	case d.SSLNegotiation == "direct" && slices.Contains([]string{"disable", "allow", "prefer"}, d.SSLMode):
		return errors.New("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full")
	}
	return nil
}

// hosts joins libpq's two lists: as many ports as hosts, or one for all of them, or none.
func hosts(host, port string) ([]string, error) {
	if host == "" {
		return nil, errors.New("it names no host")
	}
	names, ports := strings.Split(host, ","), strings.Split(port, ",")
	if len(ports) != 1 && len(ports) != len(names) {
		return nil, fmt.Errorf("%d ports for %d hosts", len(ports), len(names))
	}
	for i, name := range names {
		p := ports[min(i, len(ports)-1)]
		if name == "" {
			return nil, errors.New("one of its hosts is empty")
		}
		if p == "" {
			p = "5432"
		}
		if err := checkPort(p); err != nil {
			return nil, err
		}
		if strings.Contains(name, ":") {
			name = "[" + name + "]"
		}
		names[i] = name + ":" + p
	}
	return names, nil
}

// checkPort shows a port only if it cannot be a part of a password.
func checkPort(p string) error {
	if strings.Trim(p, "0123456789") != "" {
		return errors.New("a port is not a number: in a URL, the characters / @ : ? % of a user or password have to be written as %2F %40 %3A %3F %25")
	}
	if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %s is not between 1 and 65535", p)
	}
	return nil
}

// fromURL takes a URL apart by hand up to its query: net/url knows one host and port, here there may be several.
func fromURL(s string) (map[string]string, error) {
	_, rest, _ := strings.Cut(s, "://")
	rest, query, _ := strings.Cut(rest, "?")
	authority, database, _ := strings.Cut(rest, "/")
	values := map[string]string{}
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		user, password, hasPassword := strings.Cut(authority[:i], ":")
		authority = authority[i+1:]
		values["user"] = user
		if hasPassword {
			values["password"] = password
		}
	}
	values["dbname"] = database
	for _, hp := range strings.Split(authority, ",") {
		host, port := splitPort(hp)
		values["host"] += "," + host
		values["port"] += "," + port
	}
	values["host"], values["port"] = values["host"][1:], values["port"][1:]
	for k, v := range values {
		var err error
		if values[k], err = url.PathUnescape(v); err != nil {
			return nil, fmt.Errorf("its %s has a %% that is not followed by two hexadecimal digits", k)
		}
	}
	return values, addQuery(values, query)
}

// splitPort takes "host:port" apart; an IPv6 address stands in brackets.
func splitPort(s string) (host, port string) {
	if strings.HasPrefix(s, "[") {
		host, rest, _ := strings.Cut(s[1:], "]")
		return host, strings.TrimPrefix(rest, ":")
	}
	host, port, _ = strings.Cut(s, ":")
	return host, port
}

func addQuery(values map[string]string, query string) error {
	q, err := url.ParseQuery(query)
	if err != nil {
		return errors.New("its parameters behind the question mark cannot be read")
	}
	for k := range q {
		values[k] = q.Get(k)
	}
	return nil
}

// keywords reads libpq's "keyword = value" form: values may stand in single quotes, a backslash takes the next character
// as it is.
func keywords(s string) (map[string]string, error) {
	values := map[string]string{}
	for s = strings.TrimLeft(s, " \t\n"); s != ""; s = strings.TrimLeft(s, " \t\n") {
		key, rest, ok := strings.Cut(s, "=")
		key = strings.TrimRight(key, " \t\n")
		if !ok || key == "" || strings.ContainsAny(key, " \t\n") {
			return nil, errors.New("it is neither a postgres:// URL nor a list of keyword=value")
		}
		value, rest, err := keywordValue(strings.TrimLeft(rest, " \t\n"))
		if err != nil {
			return nil, fmt.Errorf("its %s: %w", key, err)
		}
		values[key], s = value, rest
	}
	return values, nil
}

func keywordValue(s string) (value, rest string, err error) {
	quoted := strings.HasPrefix(s, "'")
	if quoted {
		s = s[1:]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\'':
			return b.String(), s[i+1:], nil
		case !quoted && strings.IndexByte(" \t\n", c) >= 0:
			return b.String(), s[i:], nil
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	if quoted {
		return "", "", errors.New("the closing quote is missing")
	}
	return b.String(), "", nil
}
