// Package vault lets a pgmoor.Proxy take passwords from HashiCorp Vault: those that people keep there (KV), and those that Vault makes for
// roles of a database (the database secrets engine). Each type is a pgmoor.SecretSource.
//
//	client, err := api.NewClient(api.DefaultConfig()) // VAULT_ADDR, VAULT_TOKEN
//	...
//	secrets := &vault.KV{Client: client, Mount: "secret", Path: vault.Named("db/{user}")}
//	p, err := pgmoor.New(l, pgmoor.Config{Secrets: secrets, ...})
//
// or, where Vault makes the passwords, a new one whenever its lease ends,
//
//	secrets := &vault.Dynamic{Client: client, Role: vault.Named("{user}")}
//	done := make(chan error, 1)
//	go renew(ctx, secrets, done) // func renew(…) { done <- secrets.Run(ctx) }
//
// # Users of the database engine
//
// A proxy logs in to the server as the user that its client is. So Vault has to make passwords for users that are there, and not users with names that
// nobody knows before: either by static roles (Static), or by dynamic roles whose database has a username_template such as "{{.RoleName}}",
// creation_statements such as ALTER ROLE "{{name}}" PASSWORD '{{password}}' VALID UNTIL '{{expiration}}', and revocation_statements that do not drop the
// user. Credentials for another user are an error that says so.
//
// The token that the client has, and its renewal, are the application's: api.LifetimeWatcher or Vault's agent see to that.
package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/pgmoor/pgmoor"
)

// Named returns a function for Path or Role that puts the user in the place of "{user}".
func Named(template string) func(user string) string {
	return func(user string) string { return strings.ReplaceAll(template, "{user}", user) }
}

// isPath reports whether a path stays where it seems to be: users are what clients say, and Vault's client reads "..". No request is made for
// others.
func isPath(path string) bool {
	odd := func(r rune) bool {
		return (r < '0' || r > '9') && (r|0x20 < 'a' || r|0x20 > 'z') && !strings.ContainsRune("/_+=.@-", r)
	}
	if strings.ContainsFunc(path, odd) || len(path) > 512 {
		return false
	}
	for part := range strings.SplitSeq(path, "/") {
		if strings.Trim(part, ".") == "" {
			return false
		}
	}
	return true
}

// passwordOf reads credentials. Nothing of them is in the errors but the name.
func passwordOf(data map[string]any, user string) (pgmoor.Secret, error) {
	name, ok := data["username"].(string)
	password, _ := data["password"].(string)
	switch {
	case !ok || password == "":
		return pgmoor.Secret{}, errors.New("it should have a username and a password, both of them text")
	case name != user:
		return pgmoor.Secret{}, fmt.Errorf("its username is %q, and not %q", name, user)
	}
	return pgmoor.NewSecret(password), nil
}

// failed returns the error of a read: pgmoor.ErrNoSecret where there is nothing to be read.
func failed(path string, err error) error {
	var response *api.ResponseError
	switch {
	case errors.Is(err, api.ErrSecretNotFound):
		return pgmoor.ErrNoSecret
	case !errors.As(err, &response):
	case response.StatusCode == http.StatusNotFound, response.StatusCode == http.StatusBadRequest && isUnknownRole(response.Errors):
		return pgmoor.ErrNoSecret
	}
	return fmt.Errorf("pgmoor/vault: %s: %w", path, err)
}

// isUnknownRole reports whether the database engine says that it does not know the role, which has no status of its own.
func isUnknownRole(texts []string) bool {
	for _, t := range texts {
		if strings.HasPrefix(t, "unknown role") {
			return true
		}
	}
	return false
}

// KV is a pgmoor.SecretSource of passwords in a key-value store of version 2, each with the keys username and password. Every call is a request:
// put a cache in front. It must not be changed while a Proxy uses it.
type KV struct {
	Client *api.Client              // of Vault. Required
	Mount  string                   // of the store. If empty, "secret"
	Path   func(user string) string // where a user's secret is; "": nowhere. Required; see Named

	// PreviousFor is how long after the newest version was written the one from before it counts as well (see pgmoor.Secret.WithPrevious), for
	// clients, servers and other instances that have not heard of the new one. Within that time a call is two requests. Where the second one
	// fails, or has no password of the user, the newest version counts alone. If zero, it does not count, and is not asked for; a
	// pgmoor.CachedSecrets in front has its own Grace then, for changes that it has seen itself.
	PreviousFor time.Duration

	// Logger is told where the version from before cannot be had. If nil, slog.Default.
	Logger *slog.Logger
}

// Validate returns an error where a field makes no sense. pgmoor.New and Update call it.
func (k *KV) Validate() error {
	switch {
	case k.Client == nil || k.Path == nil:
		return errors.New("pgmoor/vault: KV needs a Client and a Path")
	case k.PreviousFor < 0:
		return errors.New("pgmoor/vault: KV.PreviousFor must not be negative")
	}
	return nil
}

// Secret returns the password of a user, for a while with the one from before, and pgmoor.ErrNoSecret where there is none or the newest version
// is deleted.
func (k *KV) Secret(ctx context.Context, user string) (pgmoor.Secret, error) {
	if err := k.Validate(); err != nil {
		return pgmoor.Secret{}, err
	}
	path := k.Path(user)
	if !isPath(path) {
		return pgmoor.Secret{}, pgmoor.ErrNoSecret
	}
	newest, version, err := k.read(user, path, func(store *api.KVv2) (*api.KVSecret, error) { return store.Get(ctx, path) })
	if err != nil || k.PreviousFor == 0 || version == nil || version.Version < 2 || time.Since(version.CreatedTime) >= k.PreviousFor {
		return newest, err
	}
	previous, _, err := k.read(user, path, func(store *api.KVv2) (*api.KVSecret, error) {
		return store.GetVersion(ctx, path, version.Version-1)
	})
	if err != nil && !errors.Is(err, pgmoor.ErrNoSecret) {
		orDefault(k.Logger).Warn("pgmoor/vault: the password from before a change cannot be had, so it does not count", "user", user, "err", err)
	}
	return newest.WithPrevious(previous), nil
}

// read returns what a version has for a user, and which that is.
func (k *KV) read(user, path string, get func(*api.KVv2) (*api.KVSecret, error)) (s pgmoor.Secret, version *api.KVVersionMetadata, err error) {
	mount := k.Mount
	if mount == "" {
		mount = "secret"
	}
	found, err := get(k.Client.KVv2(mount))
	if err != nil {
		return s, nil, failed(mount+"/"+path, err)
	}
	if found.Data == nil {
		return s, nil, pgmoor.ErrNoSecret
	}
	if s, err = passwordOf(found.Data, user); err != nil {
		return s, nil, fmt.Errorf("pgmoor/vault: %s/%s: %w", mount, path, err)
	}
	return s, found.VersionMetadata, nil
}

// orDefault returns the Logger that counts.
func orDefault(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.Default()
	}
	return log
}

// Static is a pgmoor.SecretSource of the database engine's static roles: users whose passwords Vault changes now and then. Every call is
// a request: put a cache in front. It must not be changed while a Proxy uses it.
type Static struct {
	Client *api.Client              // of Vault. Required
	Mount  string                   // of the engine. If empty, "database"
	Role   func(user string) string // Vault's static role for a user; "": none. Required; see Named
}

// Secret returns the password of a user, and pgmoor.ErrNoSecret where Vault has no such role.
func (s *Static) Secret(ctx context.Context, user string) (pgmoor.Secret, error) {
	found, err := credentials(ctx, s.Client, s.Mount, "static-creds", s.Role, user)
	if err != nil {
		return pgmoor.Secret{}, err
	}
	return passwordOf(found.Data, user)
}

// credentials reads what the database engine has for a user. What is for another user is returned with an error.
func credentials(ctx context.Context, client *api.Client, mount, kind string, role func(string) string, user string) (*api.Secret, error) {
	if client == nil || role == nil {
		return nil, errors.New("pgmoor/vault: a Client and a Role are needed")
	}
	if mount == "" {
		mount = "database"
	}
	name := role(user)
	if !isPath(name) {
		return nil, pgmoor.ErrNoSecret
	}
	path := mount + "/" + kind + "/" + name
	found, err := client.Logical().ReadWithContext(ctx, path)
	switch {
	case err != nil:
		return nil, failed(path, err)
	case found == nil:
		return nil, pgmoor.ErrNoSecret
	}
	if _, err := passwordOf(found.Data, user); err != nil {
		return found, fmt.Errorf("pgmoor/vault: %s: %w: see the package's documentation, \"Users of the database engine\"", path, err)
	}
	return found, nil
}
