// Package aws lets a pgmoor.Proxy use what AWS has: passwords from Secrets Manager, as RDS Proxy takes them; IAM tokens for logging in to RDS; and
// clients that show who they are by a presigned request to STS. What verifies the tokens of `aws rds generate-db-auth-token` is pgmoor.RDSTokens.
//
//	import pgmooraws "github.com/pgmoor/pgmoor/contrib/aws"
//
//	cfg, err := config.LoadDefaultConfig(ctx)
//	...
//	passwords := &pgmooraws.Secrets{
//		Client: secretsmanager.NewFromConfig(cfg),
//		ID:     pgmooraws.Named("prod/db/{user}"),
//	}
//	who := &pgmooraws.CallerIdentity{
//		Audience: "pgmoor.example",
//		Hosts:    []string{"sts.eu-central-1.amazonaws.com"},
//		Users: func(id pgmooraws.Identity, user string) bool {
//			return user == "app" && id.Role() == "arn:aws:iam::123456789012:role/app"
//		},
//	}
//	p, err := pgmoor.New(l, pgmoor.Config{
//		Secrets:       passwords,
//		Authenticator: &pgmoor.TokenAuth{Verifier: who},
//		TLS:           serverTLS,
//		Upstream:      pgmoor.Upstream{Hosts: []string{"db.abc.eu-central-1.rds.amazonaws.com"}, SSLMode: "verify-full"},
//	})
//
// With tokens to the server too there are no passwords at all:
//
//	Secrets: &pgmooraws.ServerTokens{
//		Endpoint: "db.abc.eu-central-1.rds.amazonaws.com:5432", Region: "eu-central-1", Credentials: cfg.Credentials,
//	},
package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/rds/auth"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"

	"github.com/pgmoor/pgmoor"
)

// SecretsManager is what is used of a *secretsmanager.Client.
type SecretsManager interface {
	GetSecretValue(context.Context, *secretsmanager.GetSecretValueInput, ...func(*secretsmanager.Options)) (*secretsmanager.GetSecretValueOutput, error)
}

// Secrets is a pgmoor.SecretSource: secrets in Secrets Manager, in the form that RDS Proxy and rotation by AWS use,
//
//	{"username": "app", "password": "…"}
//
// Every call is a request to AWS, which costs money and time: put a cache in front. It must not be changed while a Proxy uses it.
type Secrets struct {
	// Client asks Secrets Manager. Required.
	Client SecretsManager

	// ID returns the name or ARN of a user's secret; the empty string where there is none. Users are what clients say: whatever ID makes of a
	// name, only a secret whose username is the user's is taken. Required; see Named.
	ID func(user string) string

	// PreviousFor is how long after a rotation the password from before it counts as well (the stage AWSPREVIOUS, see
	// pgmoor.Secret.WithPrevious), for clients, servers and other instances that have not heard of the new one. Within that time a call is two
	// requests. Where the second one fails, or has no password of the user, the current password counts alone. If zero, it does not count, and is not
	// asked for; a pgmoor.CachedSecrets in front has its own Grace then, for changes that it has seen itself.
	PreviousFor time.Duration

	// Logger is told where the password from before cannot be had. If nil, slog.Default.
	Logger *slog.Logger
}

// Named returns a function for Secrets.ID that puts the user in the place of "{user}".
func Named(template string) func(user string) string {
	return func(user string) string { return strings.ReplaceAll(template, "{user}", user) }
}

// Validate returns an error where a field makes no sense. pgmoor.New and Update call it.
func (s *Secrets) Validate() error {
	switch {
	case s.Client == nil || s.ID == nil:
		return errors.New("pgmoor/aws: Secrets needs a Client and an ID")
	case s.PreviousFor < 0:
		return errors.New("pgmoor/aws: Secrets.PreviousFor must not be negative")
	}
	return nil
}

// Secret returns the current password of a user (the stage AWSCURRENT), for a while with the one from before, and pgmoor.ErrNoSecret where
// Secrets Manager has no such secret.
func (s *Secrets) Secret(ctx context.Context, user string) (pgmoor.Secret, error) {
	if err := s.Validate(); err != nil {
		return pgmoor.Secret{}, err
	}
	current, made, err := s.get(ctx, user, "AWSCURRENT")
	if err != nil || s.PreviousFor == 0 || time.Since(made) >= s.PreviousFor {
		return current, err
	}
	previous, _, err := s.get(ctx, user, "AWSPREVIOUS")
	if err != nil && !errors.Is(err, pgmoor.ErrNoSecret) {
		s.logger().Warn("pgmoor/aws: the password from before a rotation cannot be had, so it does not count", "user", user, "err", err)
	}
	return current.WithPrevious(previous), nil
}

func (s *Secrets) logger() *slog.Logger {
	if s.Logger == nil {
		return slog.Default()
	}
	return s.Logger
}

// get returns a user's password in a stage, and when that version was made; the zero time if that is not known.
func (s *Secrets) get(ctx context.Context, user, stage string) (password pgmoor.Secret, made time.Time, err error) {
	id := s.ID(user)
	if !isName(id) {
		return password, made, pgmoor.ErrNoSecret
	}
	out, err := s.Client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: aws.String(id), VersionStage: aws.String(stage)})
	var missing *types.ResourceNotFoundException
	switch {
	case errors.As(err, &missing):
		return password, made, pgmoor.ErrNoSecret
	case err != nil:
		return password, made, fmt.Errorf("pgmoor/aws: the secret %q: %w", id, err)
	}
	text, err := passwordOf(out, user)
	if err != nil {
		return password, made, fmt.Errorf("pgmoor/aws: the secret %q: %w", id, err)
	}
	return pgmoor.NewSecret(text), aws.ToTime(out.CreatedDate), nil
}

// isName reports whether a secret may have that name or ARN: no request is made for others.
func isName(id string) bool {
	odd := func(r rune) bool {
		return (r < '0' || r > '9') && (r|0x20 < 'a' || r|0x20 > 'z') && !strings.ContainsRune("/_+=.@-:", r)
	}
	return id != "" && len(id) <= 2048 && !strings.ContainsFunc(id, odd)
}

// passwordOf reads a secret. Nothing of it is in the errors.
func passwordOf(out *secretsmanager.GetSecretValueOutput, user string) (string, error) {
	var v struct {
		Username *string `json:"username"`
		Password *string `json:"password"`
	}
	switch {
	case out.SecretString == nil:
		return "", errors.New("it is binary, and should be JSON")
	case json.Unmarshal([]byte(*out.SecretString), &v) != nil:
		return "", errors.New(`it should be JSON as {"username": "…", "password": "…"}`)
	case v.Username == nil || v.Password == nil || *v.Password == "":
		return "", errors.New("it should have a username and a password")
	case *v.Username != user:
		return "", fmt.Errorf("its username is %q, and not %q", *v.Username, user)
	}
	return *v.Password, nil
}

// ServerTokens is a pgmoor.SecretSource for logging in to RDS, Aurora or RDS Proxy with IAM tokens in the place of passwords: every call
// makes a token of its own, from what Credentials has, without a request. Upstream.SSLMode has to be "require" or more, and Authenticator to be
// set, since clients do not know these tokens. Where Upstream has several hosts, Endpoint has to be good for all of them, as a cluster's is not: use a Proxy
// for each.
type ServerTokens struct {
	Endpoint    string                  // of the server, as "host:port": its own, no other name of it. Required
	Region      string                  // of the server. Required
	Credentials aws.CredentialsProvider // as aws.Config has them; they may rds-db:connect. Required
}

// Secret returns a token for user, which is good for 15 minutes.
func (s *ServerTokens) Secret(ctx context.Context, user string) (pgmoor.Secret, error) {
	if s.Endpoint == "" || s.Region == "" || s.Credentials == nil {
		return pgmoor.Secret{}, errors.New("pgmoor/aws: ServerTokens needs an Endpoint, a Region and Credentials")
	}
	token, err := auth.BuildAuthToken(ctx, s.Endpoint, s.Region, user, s.Credentials)
	if err != nil {
		return pgmoor.Secret{}, fmt.Errorf("pgmoor/aws: no token for %q: %w", user, err)
	}
	return pgmoor.NewSecret(token), nil
}
