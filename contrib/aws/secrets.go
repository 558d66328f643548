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
	"strings"

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
}

// Named returns a function for Secrets.ID that puts the user in the place of "{user}".
func Named(template string) func(user string) string {
	return func(user string) string { return strings.ReplaceAll(template, "{user}", user) }
}

// Secret returns the current password of a user (the stage AWSCURRENT), and pgmoor.ErrNoSecret where Secrets Manager has no such secret.
func (s *Secrets) Secret(ctx context.Context, user string) (pgmoor.Secret, error) {
	return s.get(ctx, user, "AWSCURRENT")
}

// Previous returns the password of a user from before the last rotation (the stage AWSPREVIOUS), and pgmoor.ErrNoSecret where there is none. Clients
// that have not heard of the new one yet still use it.
func (s *Secrets) Previous(ctx context.Context, user string) (pgmoor.Secret, error) {
	return s.get(ctx, user, "AWSPREVIOUS")
}

func (s *Secrets) get(ctx context.Context, user, stage string) (pgmoor.Secret, error) {
	if s.Client == nil || s.ID == nil {
		return pgmoor.Secret{}, errors.New("pgmoor/aws: Secrets needs a Client and an ID")
	}
	id := s.ID(user)
	if !isName(id) {
		return pgmoor.Secret{}, pgmoor.ErrNoSecret
	}
	out, err := s.Client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: aws.String(id), VersionStage: aws.String(stage)})
	var missing *types.ResourceNotFoundException
	switch {
	case errors.As(err, &missing):
		return pgmoor.Secret{}, pgmoor.ErrNoSecret
	case err != nil:
		return pgmoor.Secret{}, fmt.Errorf("pgmoor/aws: the secret %q: %w", id, err)
	}
	password, err := passwordOf(out, user)
	if err != nil {
		return pgmoor.Secret{}, fmt.Errorf("pgmoor/aws: the secret %q: %w", id, err)
	}
	return pgmoor.NewSecret(password), nil
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
