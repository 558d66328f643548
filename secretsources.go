package pgmoor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"
)

// This file has what secrets look like outside of the program, and those of the environment.

var errSecretJSON = errors.New(`pgmoor: not a secret in JSON: {"username": "…", "password": "…"} with both as strings is wanted, of which the first is not empty`)

// ParseSecretJSON reads a secret in the form in which AWS Secrets Manager has those of databases, and hands them to containers: a JSON
// object with the strings "username" and "password". What else is in it (engine, host, port, dbname) is ignored; where the server is
// says Config.Upstream. The error quotes nothing of it.
func ParseSecretJSON(data []byte) (user string, secret Secret, err error) {
	var fields map[string]json.RawMessage
	if !utf8.Valid(data) || json.Unmarshal(data, &fields) != nil {
		return "", Secret{}, errSecretJSON
	}
	user, ok1 := jsonString(fields["username"])
	password, ok2 := jsonString(fields["password"])
	if !ok1 || !ok2 || user == "" {
		return "", Secret{}, errSecretJSON
	}
	return user, NewSecret(password), nil
}

// jsonString reads a string without a NUL, which no password of PostgreSQL has. null is none.
func jsonString(raw json.RawMessage) (s string, ok bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	return s, json.Unmarshal(raw, &s) == nil && !strings.Contains(s, "\x00")
}

// EnvSecrets maps users to the names of environment variables that hold their secrets, and is a [SecretSource]. A variable holds what
// [NewSecret] takes, or what [ParseSecretJSON] does, as containers of ECS get it, and must be that of the user then. A variable that
// is not set or empty is no secret: the user is unknown. EnvSecrets must not be changed while a [Proxy] uses it.
type EnvSecrets map[string]string

// Secret returns the user's secret, or ErrNoSecret.
func (m EnvSecrets) Secret(_ context.Context, user string) (Secret, error) {
	name, ok := m[user]
	value := os.Getenv(name)
	if !ok || value == "" {
		return Secret{}, ErrNoSecret
	}
	switch in, s, err := ParseSecretJSON([]byte(value)); {
	case err != nil:
		return NewSecret(value), nil
	case in != user:
		return Secret{}, fmt.Errorf("pgmoor: the secret in the environment variable %s is of another user than %q", name, user)
	default:
		return s, nil
	}
}

// Validate returns an error where a variable is not set, or is another user's. [New] and [Proxy.Update] call it.
func (m EnvSecrets) Validate() error {
	for user, name := range m {
		switch _, err := m.Secret(context.Background(), user); {
		case errors.Is(err, ErrNoSecret):
			return fmt.Errorf("pgmoor: the environment variable %q, which is to hold the secret of %q, is not set", name, user)
		case err != nil:
			return err
		}
	}
	return nil
}
