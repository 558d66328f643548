package oidc_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/contrib/oidc"
)

// issuer is an OpenID Connect provider.
type issuer struct {
	*httptest.Server
	rsa   *rsa.PrivateKey
	ecdsa *ecdsa.PrivateKey
	mu    sync.Mutex
	keys  jose.JSONWebKeySet
	down  bool
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := new(issuer)
	var err error
	i.rsa, err = rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	i.ecdsa, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	i.publish("r", "RS256", i.rsa.Public())
	i.publish("e", "ES256", i.ecdsa.Public())
	i.Server = httptest.NewTLSServer(i)
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) publish(id, algorithm string, key crypto.PublicKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys.Keys = append(i.keys.Keys, jose.JSONWebKey{Key: key, KeyID: id, Algorithm: algorithm, Use: "sig"})
}

func (i *issuer) setDown(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case i.down:
		w.WriteHeader(http.StatusServiceUnavailable)
	case r.URL.Path == "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/keys", "authorization_endpoint": i.URL + "/auth", "token_endpoint": i.URL + "/token",
			"id_token_signing_alg_values_supported": []string{"RS256", "ES256"},
		})
	case r.URL.Path == "/keys":
		_ = json.NewEncoder(w).Encode(i.keys)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// claims are those of a good token, with changes: nil takes one away.
func (i *issuer) claims(change map[string]any) map[string]any {
	c := map[string]any{
		"iss": i.URL, "aud": []string{"pgmoor", "other"}, "sub": "jane", "email": "joe@example.com", "email_verified": true,
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}
	for name, value := range change {
		if c[name] = value; value == nil {
			delete(c, name)
		}
	}
	return c
}

// token signs claims with a key.
func token(t testing.TB, algorithm jose.SignatureAlgorithm, key any, id string, claims map[string]any) string {
	t.Helper()
	options := new(jose.SignerOptions).WithType("JWT").WithHeader("kid", id)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, options)
	require.NoError(t, err)
	s, err := jwt.Signed(signer).Claims(claims).Serialize()
	require.NoError(t, err)
	return s
}

// verifier makes one for an issuer.
func verifier(t testing.TB, i *issuer, change func(*oidc.Config)) *oidc.Verifier {
	t.Helper()
	cfg := oidc.Config{Issuer: i.URL, Audience: "pgmoor", HTTP: i.Client()}
	if change != nil {
		change(&cfg)
	}
	v, err := oidc.New(t.Context(), cfg)
	require.NoError(t, err)
	return v
}

func TestTokensLetTheirUserIn(t *testing.T) {
	i := newIssuer(t)
	byEmail := func(c *oidc.Config) {
		c.Claim = "email"
		c.Users = func(email, user string) bool { return email == user+"@example.com" }
	}
	for name, c := range map[string]struct {
		change func(*oidc.Config)
		user   string
	}{"a subject": {nil, "jane"}, "a mapped address": {byEmail, "joe"}} {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, i, c.change)
			bearer := serve(t, pgmoor.Config{Authenticator: v.Bearer("openid")})
			password := serve(t, pgmoor.Config{Authenticator: &pgmoor.TokenAuth{Verifier: v}})
			for _, good := range []string{
				token(t, jose.RS256, i.rsa, "r", i.claims(nil)), token(t, jose.ES256, i.ecdsa, "e", i.claims(nil)),
			} {
				require.Empty(t, logIn(t, bearer, c.user, good))
				require.Empty(t, logIn(t, password, c.user, good))
				require.Equal(t, "invalid_token", logIn(t, bearer, "postgres", good))
				require.Equal(t, "28P01", logIn(t, password, "postgres", good))
			}
			require.Equal(t, "28P01", logIn(t, password, c.user, "password"))
		})
	}
}

func TestTokensThatDoNotDo(t *testing.T) {
	i := newIssuer(t)
	stranger := newIssuer(t)
	byEmail := verifier(t, i, func(c *oidc.Config) { c.Claim = "email" })
	v := verifier(t, i, nil)
	good := token(t, jose.RS256, i.rsa, "r", i.claims(nil))
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + "."
	public, err := json.Marshal(i.keys.Keys[0])
	require.NoError(t, err)
	for name, c := range map[string]struct {
		v     *oidc.Verifier
		token string
	}{
		"none":                    {v, none},
		"HS256 by the public key": {v, token(t, jose.HS256, public, "r", i.claims(nil))},
		"RS512":                   {v, token(t, jose.RS512, i.rsa, "r", i.claims(nil))},
		"another key":             {v, token(t, jose.RS256, stranger.rsa, "r", i.claims(nil))},
		"an unknown key":          {v, token(t, jose.RS256, stranger.rsa, "unknown", i.claims(nil))},
		"a key of another kind":   {v, token(t, jose.ES256, stranger.ecdsa, "r", i.claims(nil))},
		"a changed claim":         {v, parts[0] + "." + strings.Split(token(t, jose.RS256, stranger.rsa, "r", i.claims(map[string]any{"sub": "postgres"})), ".")[1] + "." + parts[2]},
		"expired":                 {v, token(t, jose.RS256, i.rsa, "r", i.claims(map[string]any{"exp": time.Now().Add(-time.Second).Unix()}))},
		"never expires":           {v, token(t, jose.RS256, i.rsa, "r", i.claims(map[string]any{"exp": nil}))},
		"not yet":                 {v, token(t, jose.RS256, i.rsa, "r", i.claims(map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}))},
		"another audience":        {v, token(t, jose.RS256, i.rsa, "r", i.claims(map[string]any{"aud": "other"}))},
		"no audience":             {v, token(t, jose.RS256, i.rsa, "r", i.claims(map[string]any{"aud": nil}))},
		"another issuer":          {v, token(t, jose.RS256, i.rsa, "r", i.claims(map[string]any{"iss": stranger.URL}))},
		"no subject":              {v, token(t, jose.RS256, i.rsa, "r", i.claims(map[string]any{"sub": nil}))},
		"an unverified address":   {byEmail, token(t, jose.RS256, i.rsa, "r", i.claims(map[string]any{"email_verified": false}))},
		"an address said to be":   {byEmail, token(t, jose.RS256, i.rsa, "r", i.claims(map[string]any{"email_verified": "true"}))},
		"an address as a list":    {byEmail, token(t, jose.RS256, i.rsa, "r", i.claims(map[string]any{"email": []string{"joe@example.com"}}))},
		"no token":                {v, "password"},
		"an empty":                {v, ""},
		"a long one":              {v, token(t, jose.RS256, i.rsa, "r", i.claims(map[string]any{"x": strings.Repeat("x", 16<<10)}))},
	} {
		identity, err := c.v.Validate(t.Context(), c.token, new(pgmoor.Client))
		require.ErrorIs(t, err, pgmoor.ErrInvalidToken, name)
		require.Empty(t, identity, name)
		require.NotContains(t, err.Error(), parts[2], name)
	}
}

// requireJane looks until a token is good: go-oidc gives the answer of a request to those, too, who ask for a moment after it has ended.
func requireJane(t *testing.T, v *oidc.Verifier, token string) {
	t.Helper()
	require.Eventually(t, func() bool {
		identity, err := v.Validate(t.Context(), token, new(pgmoor.Client))
		return err == nil && identity == "jane"
	}, time.Minute, time.Millisecond)
}

func TestAKeyThatIsNew(t *testing.T) {
	i, next := newIssuer(t), newIssuer(t)
	v := verifier(t, i, nil)
	fresh := token(t, jose.RS256, next.rsa, "next", i.claims(nil))
	_, err := v.Validate(t.Context(), fresh, new(pgmoor.Client))
	require.ErrorIs(t, err, pgmoor.ErrInvalidToken)
	i.publish("next", "RS256", next.rsa.Public())
	requireJane(t, v, fresh)
}

func TestAnIssuerThatIsAway(t *testing.T) {
	i := newIssuer(t)
	v := verifier(t, i, nil)
	i.setDown(true)
	_, err := v.Validate(t.Context(), token(t, jose.RS256, i.rsa, "r", i.claims(nil)), new(pgmoor.Client))
	require.ErrorContains(t, err, "fetching keys")
	require.NotErrorIs(t, err, pgmoor.ErrInvalidToken)
	_, err = oidc.New(t.Context(), oidc.Config{Issuer: i.URL, Audience: "pgmoor", HTTP: i.Client()})
	require.ErrorContains(t, err, "503")
	i.setDown(false)
	requireJane(t, v, token(t, jose.RS256, i.rsa, "r", i.claims(nil)))
}

func TestConfigurationsThatCannotBe(t *testing.T) {
	i := newIssuer(t)
	for want, cfg := range map[string]oidc.Config{
		"an Issuer and an Audience": {Issuer: i.URL},
		`algorithm "HS256"`:         {Issuer: i.URL, Audience: "x", Algorithms: []string{"HS256"}},
		`algorithm "none"`:          {Issuer: i.URL, Audience: "x", Algorithms: []string{"none"}},
		"issuer":                    {Issuer: i.URL + "/", Audience: "x", HTTP: i.Client()},
	} {
		_, err := oidc.New(t.Context(), cfg)
		require.ErrorContains(t, err, want)
	}
}
