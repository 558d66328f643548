package pgmoor

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/pgmoor/pgmoor/internal/scram"
	"github.com/pgmoor/pgmoor/internal/userlist"
)

// Secret is a user's password, or what PostgreSQL stores instead of one: a SCRAM-SHA-256 verifier or an MD5 hash. It does
// not show itself: every verb of fmt, slog and encoding/json prints a placeholder. The zero Secret is none. While a password
// is changed, the Secret has a previous version besides; see [Secret.WithPrevious].
type Secret struct{ v **version } // fmt follows no pointer to a pointer, whatever the verb, in whatever it is a field of

// NewSecret returns a Secret that holds s: a password in clear, a verifier as it stands in pg_authid
// ("SCRAM-SHA-256$…"), or an MD5 hash ("md5" and 32 hexadecimal digits).
func NewSecret(s string) Secret { return newSecret(version{value: s}) }

const redacted = "[secret]"

// String returns a placeholder.
func (s Secret) String() string { return redacted }

// GoString returns a placeholder.
func (s Secret) GoString() string { return redacted }

// Format prints a placeholder for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns a placeholder.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a placeholder.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.v == nil }

func (s Secret) reveal() string {
	if s.v == nil {
		return ""
	}
	return (*s.v).value
}

func (s Secret) isVerifier() bool { return strings.HasPrefix(s.reveal(), "SCRAM-SHA-256$") }

func (s Secret) isMD5() bool {
	v := s.reveal()
	return len(v) == 35 && strings.HasPrefix(v, "md5") && strings.Trim(v[3:], "0123456789abcdef") == ""
}

// password returns the secret where it is a password in clear.
func (s Secret) password() (string, bool) {
	if s.v == nil || s.isVerifier() || s.isMD5() {
		return "", false
	}
	return (*s.v).value, true
}

// ErrNoSecret is returned by a [SecretSource] for a user that it does not know.
var ErrNoSecret = errors.New("pgmoor: no secret for this user")

// SecretSource gives the secret of a user. It is called from several goroutines at once, at a client's login and when a
// server connection is opened, and should answer from memory where it can. For a user that it does not know it returns
// [ErrNoSecret]: the client then sees what it would see after a wrong password. A [Secret] that is a SCRAM verifier or an
// MD5 hash lets the client in, but the proxy cannot log in with it to a server that asks for a password: such users need
// theirs in clear, or a verifier that is the server's own, for which the proofs of clients serve that log in by SCRAM.
type SecretSource interface {
	Secret(ctx context.Context, user string) (Secret, error)
}

// SecretSourceFunc is a function that is a [SecretSource].
type SecretSourceFunc func(ctx context.Context, user string) (Secret, error)

// Secret calls f.
func (f SecretSourceFunc) Secret(ctx context.Context, user string) (Secret, error) {
	return f(ctx, user)
}

// StaticSecrets maps users to their secrets, and is a [SecretSource]; [ReadUserList] reads one from a file. It must not be
// changed while a [Proxy] uses it.
type StaticSecrets map[string]Secret

// Secret returns the user's secret, or ErrNoSecret.
func (m StaticSecrets) Secret(_ context.Context, user string) (Secret, error) {
	s, ok := m[user]
	if !ok {
		return Secret{}, ErrNoSecret
	}
	return s, nil
}

// ReadUserList reads a file in the format of PgBouncer's userlist.txt: one "user" "secret" pair a line. As PgBouncer does,
// it ignores the rest of a line; unlike PgBouncer, it refuses a second line for the same user.
func ReadUserList(path string) (StaticSecrets, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("pgmoor: %w", err)
	}
	defer f.Close()
	entries, err := userlist.Parse(f)
	if err != nil {
		return nil, fmt.Errorf("pgmoor: %s: %w", path, err)
	}
	m := make(StaticSecrets, len(entries))
	for _, e := range entries {
		m[e.User] = NewSecret(e.Secret)
	}
	return m, nil
}

// Authenticator decides whether a client may come in. It may ask the client for its password ([Client.Password]) and look
// at what it said ([Client.User], [Client.Parameter], [Client.TLS] with the certificate), and returns nil to let it in. An
// *[Error] is sent to the client as it is, and what wraps it is for the log only; any other error is logged, and the client is
// told that its authentication failed. The context ends with the handshake timeout. Authenticate is called from several goroutines at once, each with
// its own client. [SCRAM], [MD5], [Cleartext] and [Trust] return Authenticators.
type Authenticator interface {
	Authenticate(ctx context.Context, c *Client) error
}

// AuthenticatorFunc is a function that is an [Authenticator].
type AuthenticatorFunc func(ctx context.Context, c *Client) error

// Authenticate calls f.
func (f AuthenticatorFunc) Authenticate(ctx context.Context, c *Client) error { return f(ctx, c) }

// SCRAM returns an Authenticator that asks for SCRAM-SHA-256 (RFC 7677; PostgreSQL documentation, "SASL
// Authentication"), and over TLS offers SCRAM-SHA-256-PLUS first, which binds the exchange to the certificate that the client
// was shown: a client with channel_binding=require is let down by nobody in between. That is not offered where a certificate's
// signature names no hash function, as Ed25519 does not. Unknown users go through the same exchange as known ones, and see a salt that stays the
// same for as long as the process runs, as do users whose password is known in clear. Users of whom only an MD5 hash is known cannot pass.
func SCRAM(secrets SecretSource) Authenticator {
	return &scramAuth{secrets: secrets}
}

// MD5 returns an Authenticator that asks for an MD5-hashed password as PostgreSQL's md5 method does, and as it does,
// asks a user for SCRAM-SHA-256 of whom a SCRAM verifier is known. It is for clients that know nothing better: who reads along can
// try passwords, and PostgreSQL has deprecated it. The log gets a warning when it is used first.
func MD5(secrets SecretSource) Authenticator {
	return &md5Auth{secrets: secrets, scram: scramAuth{secrets: secrets}}
}

// Cleartext returns an Authenticator that asks for the password in clear. It refuses clients whose connection is not
// encrypted. From the first SCRAM verifier among secrets on, each login costs what checking a password against the costliest that was
// seen costs, with its previous version, milliseconds of CPU: or the time would tell who exists.
func Cleartext(secrets SecretSource) Authenticator { return &cleartextAuth{secrets: secrets} }

// Trust returns an Authenticator that lets clients of the same machine in, as the user that they say they are: those in
// the same process, those whose address is a *net.UnixAddr, and those whose address, of whatever type, reads as a
// loopback IP address. It refuses everyone else. A listener that stands for clients elsewhere, such as one behind a load
// balancer on the same machine, must return connections that have their addresses, as [ProxyProtocol]'s does.
func Trust() Authenticator { return AuthenticatorFunc(trustLocal) }

func trustLocal(_ context.Context, c *Client) error {
	if c.local || isLocal(c.RemoteAddr()) {
		return nil
	}
	return &Error{
		Severity: "FATAL", Code: codeBadAuthorization,
		Message: "trust authentication is for clients of the same machine only",
		Hint:    "Connect to a loopback address or a Unix socket, or let the proxy ask for passwords.",
	}
}

// isLocal reports whether an address cannot be another machine's. What it does not understand can.
func isLocal(a net.Addr) bool {
	if a == nil {
		return false
	}
	if _, ok := a.(*net.UnixAddr); ok {
		return true
	}
	ip, ok := addressOf(a)
	return ok && ip.IsLoopback()
}

// refuseAll is what a Proxy does that was told neither how to authenticate nor any secrets.
func refuseAll(context.Context, *Client) error {
	return &Error{
		Severity: "FATAL", Code: codeBadAuthorization,
		Message: "the proxy has no way to authenticate clients",
		Hint:    "Set Config.Secrets or Config.Authenticator.",
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func badPassword(user string) *Error {
	return fatalf(codeBadPassword, "password authentication failed for user %q", user)
}

// wrongPassword is badPassword whose reason, which tells who exists, is for the log.
func wrongPassword(user string, secret Secret) *Error {
	e := badPassword(user)
	switch _, err := scram.ParseVerifier(secret.reveal()); {
	case secret.reveal() == "":
		e.why = "the proxy has no credentials for this role"
	case secret.isVerifier() && err != nil:
		e.why = "the verifier that the proxy has of this role cannot be read"
	default:
		e.why = "the password that was provided for this role is wrong"
	}
	return e
}

// lookup returns the user's secret; unknown users get the zero Secret.
func lookup(ctx context.Context, src SecretSource, user string) (Secret, error) {
	s, err := src.Secret(ctx, user)
	if errors.Is(err, ErrNoSecret) {
		return Secret{}, nil
	}
	return s, err
}

type scramAuth struct {
	secrets SecretSource
	derived verifierCache
}

func (a *scramAuth) Authenticate(ctx context.Context, c *Client) error {
	secret, err := lookup(ctx, a.secrets, c.User())
	if err != nil {
		return err
	}
	return a.exchange(c, secret)
}

func (a *scramAuth) exchange(c *Client, secret Secret) error {
	v, ok := a.verifier(c.User(), secret)
	srv := scram.NewServer(v, !ok)
	if old, has := a.previous(v, secret); ok && has {
		srv.AcceptToo(old)
	}
	first, err := c.offerSCRAM(srv)
	if err != nil {
		return err
	}
	reply, err := srv.First(first)
	if err != nil {
		return scramError(c, err, secret)
	}
	final, err := c.saslContinue(reply)
	if err != nil {
		return err
	}
	reply, err = srv.Final(final)
	if err != nil {
		return scramError(c, err, secret)
	}
	if keys, ok := srv.Proved(); ok && secret.isVerifier() && keys.For(v) { // not those of the previous version: no server is logged in to with it
		c.keys = keys
	}
	return c.saslFinal(reply)
}

// verifier returns the user's SCRAM verifier, and false with one that nothing matches where there is none.
func (a *scramAuth) verifier(user string, secret Secret) (scram.Verifier, bool) {
	if secret.isVerifier() {
		v, err := scram.ParseVerifier(secret.reveal())
		if err == nil {
			return v, true
		}
	}
	if pw, ok := secret.password(); ok && pw != "" {
		v, err := a.derive(user, pw, secret)
		if err == nil {
			return v, true
		}
	}
	return mock(user), false
}

func scramError(c *Client, err error, secret Secret) error {
	var pe *scram.ProtocolError
	if errors.As(err, &pe) {
		return &Error{Severity: "FATAL", Code: pe.Code, Message: pe.Msg, Detail: pe.Detail}
	}
	e := wrongPassword(c.User(), secret)
	if secret.isMD5() {
		e.why = "of this role the proxy knows the MD5 hash only, which does not do for SCRAM"
	}
	return e
}

type md5Auth struct {
	secrets SecretSource
	warned  sync.Once
	scram   scramAuth
}

func (a *md5Auth) Authenticate(ctx context.Context, c *Client) error {
	secret, err := lookup(ctx, a.secrets, c.User())
	if err != nil {
		return err
	}
	if secret.isVerifier() {
		return a.scram.exchange(c, secret)
	}
	salt := [4]byte(randomBytes(4))
	a.warned.Do(c.warnMD5)
	got, err := c.askPassword(authMD5, salt[:])
	if err != nil {
		return err
	}
	current, previous := a.answers(c.User(), secret, salt, got), a.answers(c.User(), secret.previous(), salt, got)
	if !current && !previous {
		return wrongPassword(c.User(), secret)
	}
	return nil
}

// answers reports whether got is the answer of one who knows the secret, and takes as long where there is none.
func (a *md5Auth) answers(user string, secret Secret, salt [4]byte, got []byte) bool {
	stored, known := secret.reveal(), secret.isMD5()
	if pw, ok := secret.password(); ok && pw != "" {
		stored, known = scram.MD5(user, pw), true
	}
	if !known {
		stored = scram.MD5(user, string(mockSeed()))
	}
	want := scram.MD5Response(stored, salt)
	return subtle.ConstantTimeCompare([]byte(want), got) == 1 && known
}

type cleartextAuth struct {
	secrets SecretSource
	cost    atomic.Int64 // iterations of the costliest secret that was seen, both versions together
}

func (a *cleartextAuth) Authenticate(ctx context.Context, c *Client) error {
	got, err := c.Password(ctx)
	if err != nil {
		return err
	}
	secret, err := lookup(ctx, a.secrets, c.User())
	if err != nil {
		return err
	}
	current, previous := secretMatches(secret, c.User(), got), secretMatches(secret.previous(), c.User(), got)
	a.spend(secret, got)
	if !current && !previous {
		return wrongPassword(c.User(), secret)
	}
	return nil
}

// spend does what is missing of the work for the costliest secret.
func (a *cleartextAuth) spend(secret Secret, password string) {
	own := secret.iterations() + secret.previous().iterations()
	most := a.cost.Load()
	for own > most && !a.cost.CompareAndSwap(most, own) {
		most = a.cost.Load()
	}
	if own < most {
		_, _ = scram.NewVerifier(password, []byte(redacted), int(most-own))
	}
}

// iterations returns what it costs to compare a password with the secret.
func (s Secret) iterations() int64 {
	v, err := scram.ParseVerifier(s.reveal())
	if err != nil {
		return 0
	}
	return int64(v.Iterations)
}

// secretMatches compares a password with a secret of any form, in a time that tells neither how much of it is right nor how long it
// has to be. An empty password never matches.
func secretMatches(secret Secret, user, password string) bool {
	equal := func(a, b string) bool {
		x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
		return subtle.ConstantTimeCompare(x[:], y[:]) == 1 && a != ""
	}
	switch {
	case password == "":
		return false
	case secret.isVerifier():
		v, err := scram.ParseVerifier(secret.reveal())
		if err != nil {
			return false
		}
		got, err := scram.NewVerifier(password, v.Salt, v.Iterations)
		return err == nil && subtle.ConstantTimeCompare(got.StoredKey, v.StoredKey) == 1
	case secret.isMD5():
		return equal(secret.reveal(), scram.MD5(user, password))
	}
	return equal(secret.reveal(), password)
}
