package pgmoor

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file verifies the tokens of `aws rds generate-db-auth-token`: URLs without a scheme that ask for nothing, signed by Signature
// Version 4 (AWS documentation, "Create a signed AWS API request").

const (
	maxToken      = 16 << 10 // those of AWS are of 1 to 2 KB
	maxTokenLife  = 15 * time.Minute
	maxTokenAhead = time.Minute // how much a client's clock may be fast
	amzTime       = "20060102T150405Z"
	amzAlgorithm  = "AWS4-HMAC-SHA256"
)

// RDSKey is a key that tokens are signed with.
type RDSKey struct {
	SecretAccessKey Secret
	SessionToken    Secret // of temporary credentials; the zero Secret: the key has none, and tokens with one are refused
}

// RDSTokens is a [TokenVerifier] for the tokens that `aws rds generate-db-auth-token` and the AWS SDKs make. It verifies them by itself,
// with keys that the application supplies: no request goes to AWS, and what IAM's policies say is not known. A token
// is valid for one of Endpoints and for the user that it was made for, from one minute before the time it bears, since clocks differ, until as
// long after as it says, 15 minutes at most.
type RDSTokens struct {
	// Endpoints are where tokens may be made for, as "host:port": what clients connect to, whatever it is called there. Required.
	Endpoints []string

	// Region is the region that tokens are made for, such as "eu-central-1". Required.
	Region string

	// Key returns the key with an ID, where it may log in as user, which the token and the client agree about. For an unknown one, or
	// one that may not, it returns ErrNoSecret. It is called from several goroutines at once. Required.
	Key func(ctx context.Context, accessKeyID, user string) (RDSKey, error)
}

// check looks for what is missing.
func (v *RDSTokens) check(*Config) error {
	if len(v.Endpoints) == 0 || v.Region == "" || v.Key == nil {
		return errors.New("pgmoor: RDSTokens needs Endpoints, a Region and a Key")
	}
	for _, e := range v.Endpoints {
		if _, port, err := net.SplitHostPort(e); err != nil || port == "" {
			return fmt.Errorf(`pgmoor: RDSTokens: endpoint %q has to be "host:port"`, e)
		}
	}
	return nil
}

// IsToken reports whether password is signed as a token is.
func (v *RDSTokens) IsToken(password string) bool {
	return strings.Contains(password, "X-Amz-Signature=") && strings.Contains(password, "Action=connect")
}

// VerifyToken checks a token. Its errors name no more of it than the endpoint, the user, the region and the time.
func (v *RDSTokens) VerifyToken(ctx context.Context, token string, c *Client) error {
	t, err := parseRDSToken(token)
	if err != nil {
		return err
	}
	if err := v.isMeant(t, c.User(), time.Now()); err != nil {
		return err
	}
	key, err := v.Key(ctx, t.accessKey, c.User())
	unknown := errors.Is(err, ErrNoSecret)
	if err != nil && !unknown {
		return err
	}
	signed := t.signedBy(key.SecretAccessKey.reveal()) // of nobody's key too
	switch {
	case unknown || key.SecretAccessKey.IsZero():
		return badToken("no such key may log in as %q", c.User())
	case subtle.ConstantTimeCompare([]byte(t.sessionToken), []byte(key.SessionToken.reveal())) != 1:
		return badToken("its session token is not the key's")
	case !signed:
		return badToken("its signature is wrong")
	}
	return nil
}

// isMeant checks everything but the signature.
func (v *RDSTokens) isMeant(t *rdsToken, user string, now time.Time) error {
	switch age := now.Sub(t.date); {
	case !slices.ContainsFunc(v.Endpoints, func(e string) bool { return strings.EqualFold(e, t.endpoint) }):
		return badToken("it was made for the endpoint %q", t.endpoint)
	case t.user != user:
		return badToken("it was made for the user %q", t.user)
	case t.region != v.Region:
		return badToken("it was made for the region %q", t.region)
	case age >= t.life:
		return badToken("it expired %v ago", (age - t.life).Truncate(time.Second))
	case age < -maxTokenAhead:
		return badToken("it is from the future, by %v: see to the clocks", (-age).Truncate(time.Second))
	}
	return nil
}

// rdsToken is a token that was taken apart.
type rdsToken struct {
	endpoint     string
	user         string
	accessKey    string
	scope        string // day/region/rds-db/aws4_request
	region       string
	date         time.Time
	life         time.Duration
	sessionToken string
	signature    string
	query        string // as it was signed
}

// rdsParameters are those of a token, in the order in which they are signed.
var rdsParameters = []string{
	"Action", "DBUser", "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-Security-Token", "X-Amz-SignedHeaders",
	"X-Amz-Signature",
}

// parseRDSToken takes a token apart, of which nothing may be missing, double or unknown but the session token.
func parseRDSToken(token string) (*rdsToken, error) {
	if len(token) > maxToken {
		return nil, badToken("it is longer than %d bytes", maxToken)
	}
	endpoint, query, _ := strings.Cut(token, "?")
	params, err := rdsQuery(query)
	if err != nil {
		return nil, err
	}
	t := &rdsToken{
		endpoint: strings.TrimSuffix(endpoint, "/"), user: params["DBUser"], sessionToken: params["X-Amz-Security-Token"],
		signature: params["X-Amz-Signature"], query: canonicalQuery(params),
	}
	if _, port, err := net.SplitHostPort(t.endpoint); err != nil || port == "" || strings.ContainsAny(t.endpoint, "/@#\r\n") {
		return nil, badToken("it does not begin with host:port")
	}
	switch {
	case params["Action"] != "connect":
		return nil, badToken("its action is not connect")
	case params["X-Amz-Algorithm"] != amzAlgorithm:
		return nil, badToken("its algorithm is not " + amzAlgorithm)
	case params["X-Amz-SignedHeaders"] != "host":
		return nil, badToken("other headers than host are signed")
	}
	return t, t.readScope(params)
}

// readScope reads the credential, the date and for how long they are good.
func (t *rdsToken) readScope(params map[string]string) error {
	accessKey, scope, _ := strings.Cut(params["X-Amz-Credential"], "/")
	parts := strings.Split(scope, "/")
	date, err := time.Parse(amzTime, params["X-Amz-Date"])
	seconds, errLife := strconv.ParseUint(params["X-Amz-Expires"], 10, 16)
	switch {
	case accessKey == "" || len(parts) != 4 || parts[2] != "rds-db" || parts[3] != "aws4_request":
		return badToken("its credential is not for rds-db")
	case err != nil || parts[0] != date.Format("20060102"):
		return badToken("its date cannot be read, or is not that of its credential")
	case errLife != nil || seconds == 0 || time.Duration(seconds)*time.Second > maxTokenLife:
		return badToken("it has to expire within %v", maxTokenLife)
	}
	t.accessKey, t.scope, t.region, t.date = accessKey, scope, parts[1], date
	t.life = time.Duration(seconds) * time.Second
	return nil
}

// rdsQuery reads the parameters. A plus sign is refused, since it would be a space for one reader and itself for another.
func rdsQuery(query string) (map[string]string, error) {
	params := make(map[string]string, len(rdsParameters))
	for pair := range strings.SplitSeq(query, "&") {
		name, value, ok := strings.Cut(pair, "=")
		plain, err := url.PathUnescape(value)
		_, double := params[name]
		switch {
		case !ok || err != nil || strings.Contains(value, "+"):
			return nil, badToken("a parameter of it cannot be read")
		case !slices.Contains(rdsParameters, name):
			return nil, badToken("it has a parameter that no such token has")
		case double:
			return nil, badToken("%s is there twice", name)
		case plain == "":
			return nil, badToken("%s is empty", name)
		}
		params[name] = plain
	}
	for _, name := range rdsParameters {
		if params[name] == "" && name != "X-Amz-Security-Token" {
			return nil, badToken("%s is missing", name)
		}
	}
	return params, nil
}

// canonicalQuery returns the parameters as they are signed.
func canonicalQuery(params map[string]string) string {
	var b strings.Builder
	for _, name := range rdsParameters {
		value, ok := params[name]
		if !ok || name == "X-Amz-Signature" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(name + "=" + strings.ReplaceAll(url.QueryEscape(value), "+", "%20"))
	}
	return b.String()
}

// signedBy reports whether the signature is that of a secret key, in a time that depends on neither.
func (t *rdsToken) signedBy(secret string) bool {
	key := sign([]byte("AWS4"+secret), t.date.Format("20060102"))
	for _, part := range strings.Split(t.scope, "/")[1:] {
		key = sign(key, part)
	}
	match := 0
	for _, host := range t.hosts() {
		want := hex.EncodeToString(sign(key, t.toSign(host)))
		match |= subtle.ConstantTimeCompare([]byte(want), []byte(t.signature))
	}
	return match == 1
}

func sign(key []byte, data string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(data))
	return h.Sum(nil)
}

// toSign returns what is signed of a GET without a body and with one header.
func (t *rdsToken) toSign(host string) string {
	nothing := sha256.Sum256(nil)
	request := sha256.Sum256([]byte("GET\n/\n" + t.query + "\nhost:" + host + "\n\nhost\n" + hex.EncodeToString(nothing[:])))
	return amzAlgorithm + "\n" + t.date.Format(amzTime) + "\n" + t.scope + "\n" + hex.EncodeToString(request[:])
}

// hosts returns what the header may have been: SDKs leave out the port of https, and some write capital letters small.
func (t *rdsToken) hosts() []string {
	hosts := []string{t.endpoint}
	if host, ok := strings.CutSuffix(t.endpoint, ":443"); ok {
		hosts = append(hosts, host)
	}
	for _, h := range hosts {
		if small := strings.ToLower(h); small != h {
			hosts = append(hosts, small)
		}
	}
	return hosts
}
