package logins_test

import (
	"fmt"
	"regexp"
	"slices"
)

// How a client begins.
const (
	plain  = "TCP"
	tls    = "TLS"
	direct = "direct TLS"
)

// A loginCase is one way to log in, right or wrong.
type loginCase struct {
	method   string
	over     string
	what     string // is right or wrong
	fine     bool   // it has to succeed
	user     string
	password string
	database string
	cert     string // name of the client's certificate
	bind     bool
	token    string
	require  string // libpq's require_auth
}

func (c loginCase) direct() bool { return c.over == direct }

// oracle reports whether PostgreSQL has the method.
func (c loginCase) oracle() bool { return c.method != tokenMethod }

// The methods, as the table names them.
const (
	trustMethod  = "trust"
	passMethod   = "password"
	md5Method    = "md5"
	scramMethod  = "scram-sha-256"
	plusMethod   = "scram-sha-256-plus"
	certMethod   = "cert"
	bothMethod   = "scram-sha-256 and a certificate"
	tokenMethod  = "RDS token as password"
	oauthMethod  = "oauth"
	rejectMethod = "reject"
)

var methods = []string{trustMethod, passMethod, md5Method, scramMethod, plusMethod, certMethod, bothMethod, tokenMethod, oauthMethod}

// ways returns what the driver can have under a method.
func (d *driver) ways(method string) []string {
	all := []string{plain, tls}
	if d.direct {
		all = append(all, direct)
	}
	switch method {
	case trustMethod, md5Method, scramMethod, rejectMethod:
		return all
	case plusMethod:
		if !d.binds {
			return nil
		}
	case oauthMethod:
		if !d.bearer {
			return nil
		}
	}
	return all[1:]
}

const right = "pä ss'=\"w\\ord"

// cases returns everything that a driver is to try.
func cases(d *driver) (all []loginCase) {
	add := func(method string, ways []string, change ...loginCase) {
		for _, over := range ways {
			for _, c := range change {
				c.method, c.over = method, over
				if c.database == "" {
					c.database = "app"
				}
				all = append(all, c)
			}
		}
	}
	add(trustMethod, d.ways(trustMethod),
		loginCase{what: "no password", fine: true, user: "by_trust", require: "none"},
		loginCase{what: "no such database", user: "by_trust", database: "nowhere"},
		loginCase{what: "no such role", user: "by_trust_gone"})
	for method, user := range map[string]string{passMethod: "by_password", md5Method: "by_md5", scramMethod: "by_scram"} {
		add(method, d.ways(method),
			loginCase{what: "the password", fine: true, user: user, password: right, require: method},
			loginCase{what: "a wrong password", user: user, password: "wrong"},
			loginCase{what: "no password", user: user},
			loginCase{what: "no such role", user: user + "_gone", password: right})
	}
	add(plusMethod, d.ways(plusMethod),
		loginCase{what: "the password", fine: true, user: "by_scram", password: right, bind: true, require: scramMethod},
		loginCase{what: "a wrong password", user: "by_scram", password: "wrong", bind: true},
		loginCase{what: "no such role", user: "by_scram_gone", password: right, bind: true})
	add(certMethod, d.ways(certMethod),
		loginCase{what: "the certificate", fine: true, user: "by_cert", cert: "by_cert", require: "none"},
		loginCase{what: "another's certificate", user: "by_cert", cert: "by_scram"},
		loginCase{what: "a stranger's certificate", user: "by_cert", cert: "stranger"},
		loginCase{what: "no certificate", user: "by_cert"},
		loginCase{what: "no such role", user: "by_cert_gone", cert: "by_cert_gone"})
	add(bothMethod, d.ways(bothMethod),
		loginCase{what: "both", fine: true, user: "by_both", password: right, cert: "by_both", require: scramMethod},
		loginCase{what: "a wrong password", user: "by_both", password: "wrong", cert: "by_both"},
		loginCase{what: "no certificate", user: "by_both", password: right},
		loginCase{what: "another's certificate", user: "by_both", password: right, cert: "by_cert"})
	add(tokenMethod, d.ways(tokenMethod),
		loginCase{what: "the token", fine: true, user: "by_token", password: rdsToken("by_token", 0, "key"), require: passMethod},
		loginCase{what: "a forged token", user: "by_token", password: rdsToken("by_token", 0, "another key")},
		loginCase{what: "another's token", user: "by_token", password: rdsToken("by_scram", 0, "key")},
		loginCase{what: "an old token", user: "by_token", password: rdsToken("by_token", 16, "key")})
	add(oauthMethod, d.ways(oauthMethod),
		loginCase{what: "the token", fine: true, user: "by_oauth", token: "for-by_oauth", require: oauthMethod},
		loginCase{what: "a bad token", user: "by_oauth", token: "nonsense"},
		loginCase{what: "another's token", user: "by_oauth", token: "for-by_scram"},
		loginCase{what: "a token that is none", user: "by_oauth", token: "for by_oauth"},
		loginCase{what: "no such role", user: "by_oauth_gone", token: "for-by_oauth_gone"})
	add(rejectMethod, d.ways(rejectMethod), loginCase{what: "any", user: "by_nobody", password: right})
	add(passMethod, []string{plain}, loginCase{what: "without TLS", user: "by_password", password: right})
	add(certMethod, []string{plain}, loginCase{what: "without TLS", user: "by_cert"})
	add(tokenMethod, []string{plain}, loginCase{what: "without TLS", user: "by_token", password: rdsToken("by_token", 0, "key")})
	if !d.bearer {
		add(oauthMethod, []string{tls}, loginCase{what: "which it does not know", user: "by_oauth", password: right})
	}
	slices.SortStableFunc(all, func(a, b loginCase) int { return slices.Index(methods, a.method) - slices.Index(methods, b.method) })
	return all
}

// An outcome is what a driver has to say of a login.
type outcome struct {
	user          string
	encrypted     bool   // says the server
	code, message string // of the server's error; libpq does not tell the code
	failure       string // the driver's own
}

var ports = regexp.MustCompile(`\b(port |:)\d{4,5}\b`)

// outcomeOf reads what a program has written about a login.
func outcomeOf(fields map[string]string) outcome {
	return outcome{
		user: fields["user"], encrypted: fields["encrypted"] == "true", code: fields["code"], message: fields["message"],
		failure: ports.ReplaceAllString(fields["failure"], "${1}N"),
	}
}

// expect returns what a login has to come to: what PostgreSQL says, where it has the method.
func (w *world) expect(d *driver, c loginCase, version int) outcome {
	switch {
	case c.oracle():
		if c.direct() || c.method == oauthMethod { // which PostgreSQL 18 has
			version = 18
		}
		key := fmt.Sprintf("%d %+v", version, c)
		if _, known := d.said[key]; !known {
			d.said[key] = d.logIn(w.login(c, w.clusters[version].Addr()))
		}
		return d.said[key]
	case c.fine:
		return outcome{user: c.user}
	case c.over == plain:
		return d.tells("28000", "IAM authentication is allowed only with SSL connections.")
	}
	return d.tells("28P01", fmt.Sprintf("IAM authentication failed for user %q", c.user))
}

// tells returns an error of the server's as the driver shows it.
func (d *driver) tells(code, message string) outcome {
	if !d.codes {
		code = ""
	}
	return outcome{code: code, message: message}
}
