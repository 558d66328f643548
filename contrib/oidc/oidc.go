// Package oidc lets clients in to a pgmoor.Proxy by JSON Web Tokens of an OpenID Connect provider, either as PostgreSQL 18's clients send them, by OAUTHBEARER,
//
//	verifier, err := oidc.New(ctx, oidc.Config{
//		Issuer: "https://issuer.example", Audience: "pgmoor", Claim: "email",
//		Users: func(email, user string) bool { return email == user+"@example.com" },
//	})
//	...
//	p, err := pgmoor.New(l, pgmoor.Config{
//		Authenticator: verifier.Bearer("openid email"),
//		Secrets:       secrets, // for the server
//		TLS:           serverTLS,
//		...
//	})
//
// or in the place of a password, which every client can send:
//
//	Authenticator: &pgmoor.TokenAuth{Verifier: verifier},
package oidc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/pgmoor/pgmoor"
)

// maxToken bounds tokens: nothing longer is looked at.
const maxToken = 16 << 10

// Config says which tokens are good, and for whom.
type Config struct {
	// Issuer is the URL of the provider, exactly as its metadata and its tokens have it. Required.
	Issuer string

	// Audience is what tokens have to be for, such as the client ID that this service has at the provider: a token for another service is none for
	// this one. Required.
	Audience string

	// Claim is the claim that tells who somebody is. If empty, "sub", which is the only one that providers promise never to give to somebody
	// else. It has to be text; of "email", email_verified has to be true.
	Claim string

	// Users says as which users an identity may log in. If nil, as the one of the same name.
	Users pgmoor.UserMap

	// Algorithms are those that tokens may be signed by. If empty, RS256 and ES256. Symmetric ones and "none" are an error.
	Algorithms []string

	// HTTP asks the provider. If nil, http.DefaultClient.
	HTTP *http.Client
}

// Verifier verifies tokens of one provider. It asks the provider for its keys when it meets one that it does not know. It is a pgmoor.TokenVerifier, and may be
// used from several goroutines at once.
type Verifier struct {
	cfg      Config
	verifier *oidc.IDTokenVerifier
}

// asymmetric are the algorithms for which a provider publishes keys.
var asymmetric = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
}

// New asks the provider for its metadata, for which ctx counts.
func New(ctx context.Context, cfg Config) (*Verifier, error) {
	if cfg.Issuer == "" || cfg.Audience == "" {
		return nil, errors.New("pgmoor/oidc: an Issuer and an Audience are needed")
	}
	if cfg.Claim == "" {
		cfg.Claim = "sub"
	}
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = []string{oidc.RS256, oidc.ES256}
	}
	for _, a := range cfg.Algorithms {
		if !slices.Contains(asymmetric, a) {
			return nil, fmt.Errorf("pgmoor/oidc: algorithm %q: it has to be one of %s", a, strings.Join(asymmetric, ", "))
		}
	}
	if cfg.HTTP == nil {
		cfg.HTTP = http.DefaultClient
	}
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, cfg.HTTP), cfg.Issuer)
	if err != nil {
		return nil, fmt.Errorf("pgmoor/oidc: %w", err)
	}
	var metadata struct {
		Keys string `json:"jwks_uri"`
	}
	if err := provider.Claims(&metadata); err != nil || metadata.Keys == "" {
		return nil, errors.New("pgmoor/oidc: the provider's metadata has no jwks_uri")
	}
	keys := &keySet{oidc.NewRemoteKeySet(oidc.ClientContext(context.WithoutCancel(ctx), cfg.HTTP), metadata.Keys)}
	return &Verifier{cfg: cfg, verifier: oidc.NewVerifier(cfg.Issuer, keys, &oidc.Config{
		ClientID: cfg.Audience, SupportedSigningAlgs: cfg.Algorithms,
	})}, nil
}

// outageKey is the key of an *error in a context, for what go-oidc tells as text only: that the provider could not be asked.
type outageKey struct{}

type keySet struct{ *oidc.RemoteKeySet }

// VerifySignature takes note where it is not the token's fault.
func (k *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := k.RemoteKeySet.VerifySignature(ctx, token)
	if outage, ok := ctx.Value(outageKey{}).(*error); ok && err != nil && strings.HasPrefix(err.Error(), "fetching keys") {
		*outage = err
	}
	return payload, err
}

// Bearer returns an Authenticator that asks for tokens by OAUTHBEARER. Clients are told the scope, and ask the provider for it.
func (v *Verifier) Bearer(scope string) *pgmoor.OAuthBearer {
	return &pgmoor.OAuthBearer{Issuer: v.cfg.Issuer, Scope: scope, Validate: v.Validate, Users: v.cfg.Users}
}

// Validate returns whom a token is for, as pgmoor.OAuthBearer wants it: the claim of a token that this provider has signed, for this audience and
// for now.
func (v *Verifier) Validate(ctx context.Context, token string, _ *pgmoor.Client) (identity string, err error) {
	if len(token) > maxToken {
		return "", fmt.Errorf("%w: it is longer than %d bytes", pgmoor.ErrInvalidToken, maxToken)
	}
	var outage error
	verified, err := v.verifier.Verify(context.WithValue(ctx, outageKey{}, &outage), token)
	switch {
	case outage != nil:
		return "", fmt.Errorf("pgmoor/oidc: %w", outage)
	case err != nil:
		return "", fmt.Errorf("%w: %w", pgmoor.ErrInvalidToken, err)
	}
	var claims map[string]any
	if err := verified.Claims(&claims); err != nil {
		return "", fmt.Errorf("%w: its claims cannot be read", pgmoor.ErrInvalidToken)
	}
	identity, _ = claims[v.cfg.Claim].(string)
	switch {
	case identity == "":
		return "", fmt.Errorf("%w: it has no claim %s that is text", pgmoor.ErrInvalidToken, v.cfg.Claim)
	case v.cfg.Claim == "email" && claims["email_verified"] != true:
		return "", fmt.Errorf("%w: its email address was not verified", pgmoor.ErrInvalidToken)
	}
	return identity, nil
}

// IsToken reports whether password looks like a signed token: three parts, of which the first begins as a header does.
func (v *Verifier) IsToken(password string) bool {
	return strings.HasPrefix(password, "eyJ") && strings.Count(password, ".") == 2
}

// VerifyToken checks a token that came in the place of a password.
func (v *Verifier) VerifyToken(ctx context.Context, token string, c *pgmoor.Client) error {
	identity, err := v.Validate(ctx, token, c)
	if err != nil {
		return err
	}
	if v.cfg.Users == nil && identity == c.User() || v.cfg.Users != nil && v.cfg.Users(identity, c.User()) {
		return nil
	}
	return fmt.Errorf("%w: it is %q's, who may not log in as %q", pgmoor.ErrInvalidToken, identity, c.User())
}
