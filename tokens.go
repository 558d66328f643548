package pgmoor

import (
	"context"
	"errors"
	"fmt"
)

// ErrInvalidToken is wrapped by the errors that say why a token does not let its client in. They are for the log, which has them as it has a
// wrong password; what else a verifier returns is an error of its own, such as an issuer that cannot be reached, and is logged as one.
// No client is told either.
var ErrInvalidToken = errors.New("pgmoor: invalid token")

// errNoToken is wrapped by the errors of clients that have sent nothing to look at: those are no guesses.
var errNoToken = errors.New("pgmoor: no token")

// badToken returns an error that wraps ErrInvalidToken. Nothing of the token belongs into it but names.
func badToken(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalidToken, fmt.Errorf(format, args...))
}

// TokenVerifier checks tokens that clients send in the place of a password. It is called from several goroutines at once. [RDSTokens] is
// one; contrib/aws and contrib/oidc have others.
type TokenVerifier interface {
	// IsToken reports whether what a client sent has the form of a token at all, valid or not: whatever has not is a password.
	IsToken(password string) bool

	// VerifyToken returns nil if the token lets c in, as the user that c says it is and as nobody else. An error that wraps
	// ErrInvalidToken says for the log what is wrong with the token. It should end when ctx does.
	VerifyToken(ctx context.Context, token string, c *Client) error
}

// TokenMode says whether a user logs in with a token, as RDS Proxy's IAMAuth does.
type TokenMode uint8

const (
	// TokenRequired lets a user in with a token only: "REQUIRED".
	TokenRequired TokenMode = iota
	// TokenEnabled lets a user in with a token or a password: "ENABLED".
	TokenEnabled
	// TokenDisabled lets a user in without tokens only: "DISABLED".
	TokenDisabled
)

// TokenAuth is an [Authenticator] that takes a token in the place of a password: clients send it as they would send a password in clear.
// They are asked over TLS only; others are refused with SQLSTATE 28000 and RDS Proxy's words. A token that does not do is refused
// with SQLSTATE 28P01, whatever is wrong with it; the log has the reason. It must not be changed while a [Proxy] uses it.
type TokenAuth struct {
	// Verifier checks the tokens. Required.
	Verifier TokenVerifier

	// Mode says what a user needs, who may exist or not. If nil, everybody needs a token.
	Mode func(user string) TokenMode

	// Passwords lets those in who have no token: users of TokenDisabled, who are asked as it likes, and users of TokenEnabled who
	// send a password. For the latter it has to ask by [Client.Password], as [Cleartext] does, since they have been asked already: anything else
	// keeps them out. If nil, nobody gets in without a token.
	Passwords Authenticator
}

// check looks for what makes it impossible under cfg.
func (a *TokenAuth) check(cfg *Config) error {
	switch {
	case a.Verifier == nil:
		return errors.New("pgmoor: TokenAuth needs a Verifier")
	case cfg.TLS == nil:
		return errors.New("pgmoor: TokenAuth takes tokens over TLS only: set Config.TLS")
	}
	if v, ok := a.Verifier.(interface{ check(*Config) error }); ok {
		if err := v.check(cfg); err != nil {
			return err
		}
	}
	return checkPart(a.Passwords, cfg)
}

// Authenticate asks for a token, or has a.Passwords ask.
func (a *TokenAuth) Authenticate(ctx context.Context, c *Client) error {
	mode := TokenRequired
	if a.Mode != nil {
		mode = a.Mode(c.User())
	}
	_, encrypted := c.TLS()
	switch {
	case mode == TokenDisabled, mode == TokenEnabled && !encrypted && a.Passwords != nil:
		return a.askPassword(ctx, c)
	case !encrypted:
		return &Error{
			Severity: "FATAL", Code: codeBadAuthorization, Message: "IAM authentication is allowed only with SSL connections.",
			Hint: "Connect with sslmode=require.",
		}
	}
	token, err := c.Password(ctx)
	switch {
	case err != nil:
		return err
	case a.Verifier.IsToken(token):
		return a.verify(ctx, c, token)
	case mode == TokenEnabled:
		return a.tryPassword(ctx, c, token)
	}
	return denied(tokenFailed(c), badToken("what the client sent is none, and this user needs one"))
}

func (a *TokenAuth) verify(ctx context.Context, c *Client, token string) error {
	err := a.Verifier.VerifyToken(ctx, token, c)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return denied(tokenFailed(c), err)
}

func (a *TokenAuth) askPassword(ctx context.Context, c *Client) error {
	if a.Passwords == nil {
		return denied(badPassword(c.User()), fmt.Errorf("%w is taken from this client, and TokenAuth.Passwords is not set", errNoToken))
	}
	return a.Passwords.Authenticate(ctx, c)
}

// tryPassword has a.Passwords decide about a password that the client has sent already.
func (a *TokenAuth) tryPassword(ctx context.Context, c *Client, password string) error {
	if a.Passwords == nil {
		return denied(badPassword(c.User()), badToken("what the client sent is none, and TokenAuth.Passwords is not set"))
	}
	c.given = &password
	defer func() { c.given = nil }()
	err := a.Passwords.Authenticate(ctx, c)
	if err == nil && c.given != nil {
		return errNotAsked
	}
	return err
}

var errNotAsked = errors.New("pgmoor: TokenAuth.Passwords let a client in without a look at its password: " +
	"for users of TokenEnabled it has to ask by Client.Password, as Cleartext does")

func tokenFailed(c *Client) *Error {
	e := fatalf(codeBadPassword, "IAM authentication failed for user %q", c.User())
	e.Hint = "Check the token for this user and try again."
	return e
}

// denied returns the error of a client whose token does not let it in: the client is told one thing, the log why.
func denied(told *Error, why error) error {
	if errors.Is(why, ErrInvalidToken) || errors.Is(why, errNoToken) {
		return fmt.Errorf("%w: %w", told, why)
	}
	return &authFailure{cause: why, told: told}
}
