package pgmoor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// This file is the server's side of OAUTHBEARER (RFC 7628), as PostgreSQL 18 has it (its documentation, "OAuth
// Authorization/Authentication" and "SASL OAUTHBEARER Authentication").

const oauthBearer = "OAUTHBEARER"

// kvsep separates the parts of a client's message, and is all that it says when it is refused.
const kvsep = "\x01"

// OAuthBearer is an [Authenticator] that asks for a bearer token by the SASL mechanism OAUTHBEARER, as PostgreSQL 18's method oauth does. A client
// without a token is told where to get one, and comes back with it; one whose token does not do is told the same. Clients are
// asked over TLS only. It must not be changed while a [Proxy] uses it.
type OAuthBearer struct {
	// Issuer is the URL of who issues tokens, exactly as its own metadata has it; clients find that by appending
	// "/.well-known/openid-configuration". One that contains "/.well-known/" is the URL of the metadata itself. libpq wants https. Required.
	Issuer string

	// Scope is what tokens have to be good for, for clients to ask for: names with spaces between them. Whether a token is good for them,
	// Validate has to see. Required.
	Scope string

	// Validate returns whom a token is for, such as its subject, after it has made sure that the token is valid, and meant for this
	// service: that a token can be read is no reason to trust it. An error that wraps ErrInvalidToken is the client's, any other is logged as
	// an error of the validator's. The token is a secret: nothing of it belongs into an error. It is called from several goroutines at once,
	// and should end when ctx does. Required; contrib/oidc has one.
	Validate func(ctx context.Context, token string, c *Client) (identity string, err error)

	// Users says as which users an identity may log in. If nil, as the one of the same name. An empty identity is nobody.
	Users UserMap
}

// check looks for what is missing, or impossible under cfg.
func (o *OAuthBearer) check(cfg *Config) error {
	u, err := url.Parse(o.Issuer)
	switch {
	case o.Issuer == "" || o.Scope == "" || o.Validate == nil:
		return errors.New("pgmoor: OAuthBearer needs an Issuer, a Scope and a function that validates tokens")
	case err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return errors.New(`pgmoor: OAuthBearer: Issuer has to be a URL such as "https://issuer.example"`)
	case cfg.TLS == nil:
		return errors.New("pgmoor: OAuthBearer takes tokens over TLS only: set Config.TLS")
	}
	return nil
}

// Authenticate asks for a token.
func (o *OAuthBearer) Authenticate(ctx context.Context, c *Client) error {
	if _, ok := c.TLS(); !ok {
		return &Error{
			Severity: "FATAL", Code: codeBadAuthorization, Message: "OAuth bearer authentication needs an encrypted connection",
			Hint: "Connect with sslmode=require.",
		}
	}
	auth, err := o.ask(c)
	if err != nil {
		return err
	}
	if auth == "" {
		return o.refuse(c, fmt.Errorf("%w: the client asks who issues them", errNoToken))
	}
	token, err := bearerToken(auth)
	if err == nil {
		err = o.validate(ctx, token, c)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return o.refuse(c, err)
}

// ask returns what the client sends as an Authorization header.
func (o *OAuthBearer) ask(c *Client) (auth string, err error) {
	_, first, err := c.offer(oauthBearer)
	if err == nil && first == nil {
		first, err = c.saslContinue(nil)
	}
	if err != nil {
		return "", err
	}
	return parseBearer(first)
}

func (o *OAuthBearer) validate(ctx context.Context, token string, c *Client) error {
	identity, err := o.Validate(ctx, token, c)
	switch {
	case err != nil:
		return err
	case identity == "":
		return badToken("it says of nobody whose it is")
	case !o.Users.allows(identity, c.User()):
		return badToken("it is %q's, who may not log in as %q", identity, c.User())
	}
	return nil
}

// refuse tells a client where to get a token, and hears it out. A client that hangs up instead, as some do, is logged for what was wrong before.
func (o *OAuthBearer) refuse(c *Client, why error) error {
	told := fatalf(codeBadAuthorization, "OAuth bearer authentication failed for user %q", c.User())
	answer, err := c.saslContinue(o.challenge())
	if err == nil {
		err = checkText(answer)
	}
	switch {
	case err != nil && !errors.Is(err, errClientGone):
		return err
	case err == nil && string(answer) != kvsep:
		return malformedBearer("Client did not send a kvsep response.")
	}
	return denied(told, why)
}

// challenge returns PostgreSQL's answer to a client that has no good token, down to the spaces.
func (o *OAuthBearer) challenge() []byte {
	metadata := o.Issuer
	if !strings.Contains(metadata, "/.well-known/") {
		metadata += "/.well-known/openid-configuration"
	}
	return fmt.Appendf(nil, `{ "status": "invalid_token", "openid-configuration": %s, "scope": %s }`, quoteJSON(metadata), quoteJSON(o.Scope))
}

// quoteJSON returns s as a JSON string.
func quoteJSON(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always can be
	return strings.TrimSuffix(b.String(), "\n")
}

func malformedBearer(format string, args ...any) *Error {
	return &Error{Severity: "FATAL", Code: codeProtocolViolation, Message: "malformed OAUTHBEARER message", Detail: fmt.Sprintf(format, args...)}
}

// checkText returns an error for what cannot be a message.
func checkText(b []byte) error {
	switch {
	case len(b) == 0:
		return malformedBearer("The message is empty.")
	case bytes.IndexByte(b, 0) >= 0:
		return malformedBearer("Message length does not match input length.")
	}
	return nil
}

// parseBearer returns the value of auth in a client's first message, which may be empty. Its errors are PostgreSQL's.
func parseBearer(message []byte) (auth string, err error) {
	if err := checkText(message); err != nil {
		return "", err
	}
	rest, err := cutGS2(string(message))
	if err != nil {
		return "", err
	}
	found := false
	for rest != "" {
		pair, behind, ok := strings.Cut(rest, kvsep)
		switch {
		case !ok:
			return "", malformedBearer("Message contains an unterminated key/value pair.")
		case pair == "" && !found:
			return "", malformedBearer("Message does not contain an auth value.")
		case pair == "" && behind != "":
			return "", malformedBearer("Message contains additional data after the final terminator.")
		case pair == "":
			return auth, nil
		}
		key, value, err := parsePair(pair)
		switch {
		case err != nil:
			return "", err
		case key == "auth" && found:
			return "", malformedBearer("Message contains multiple auth values.")
		case key == "auth":
			auth, found = value, true
		}
		rest = behind
	}
	return "", malformedBearer("Message did not contain a final terminator.")
}

// cutGS2 returns what follows the GS2 header: there is no channel to bind, and nobody speaks for somebody else.
func cutGS2(m string) (rest string, err error) {
	switch flag := m[0]; {
	case flag == 'p':
		return "", malformedBearer("The server does not support channel binding for OAuth, but the client message includes channel binding data.")
	case flag != 'y' && flag != 'n':
		return "", malformedBearer("Unexpected channel-binding flag \"%s\".", byteOf(m, 0))
	case at(m, 1) != ',':
		return "", malformedBearer("Comma expected, but found character \"%s\".", byteOf(m, 1))
	case at(m, 2) == 'a':
		return "", fatalf(codeNotSupported, "client uses authorization identity, but it is not supported")
	case at(m, 2) != ',':
		return "", malformedBearer("Unexpected attribute \"%s\" in client-first-message.", byteOf(m, 2))
	case at(m, 3) != kvsep[0]:
		return "", malformedBearer("Key-value separator expected, but found character \"%s\".", byteOf(m, 3))
	}
	return m[4:], nil
}

// at returns a byte of m; 0 behind its end, as in C.
func at(m string, i int) byte {
	if i >= len(m) {
		return 0
	}
	return m[i]
}

// byteOf returns a byte of m as PostgreSQL's errors show it.
func byteOf(m string, i int) string {
	if c := at(m, i); c < 0x21 || c > 0x7e {
		return fmt.Sprintf("0x%02x", c)
	}
	return "'" + m[i:i+1] + "'"
}

// parsePair takes a key and its value apart (RFC 7628, section 3.1).
func parsePair(pair string) (key, value string, err error) {
	key, value, ok := strings.Cut(pair, "=")
	switch {
	case !ok:
		return "", "", malformedBearer("Message contains a key without a value.")
	case key == "":
		return "", "", malformedBearer("Message contains an empty key name.")
	case strings.ContainsFunc(key, func(r rune) bool { return r|0x20 < 'a' || r|0x20 > 'z' }):
		return "", "", malformedBearer("Message contains an invalid key name.")
	case strings.ContainsFunc(value, func(r rune) bool { return (r < 0x20 || r > 0x7e) && !strings.ContainsRune("\t\r\n", r) }):
		return "", "", malformedBearer("Message contains an invalid value.")
	}
	return key, value, nil
}

// bearerToken returns the token of an Authorization header (RFC 6750, section 2.1). Nothing of it is in the error.
func bearerToken(header string) (string, error) {
	const scheme = "Bearer "
	if len(header) < len(scheme) || !strings.EqualFold(header[:len(scheme)], scheme) {
		return "", badToken("the client uses another scheme than Bearer")
	}
	token := strings.TrimLeft(header[len(scheme):], " ")
	body := strings.TrimRight(token, "=")
	switch {
	case token == "":
		return "", badToken("it is empty")
	case strings.Trim(body, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/") != "":
		return "", badToken("it is not in the format of bearer tokens")
	}
	return token, nil
}
