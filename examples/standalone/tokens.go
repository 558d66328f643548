package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/pgmoor/pgmoor"
)

// This file has the flags of IAM-style tokens. The keys that they are signed with stand in a file or in the environment, never in a flag,
// which other users of the machine see in ps.

// keysVariable is where the keys are if no file is named.
const keysVariable = "PGMOOR_TOKEN_KEYS"

// tokens is what the flags say of them.
type tokens struct {
	modes     tokenModes
	endpoints names
	region    string
	keyFile   string

	verifier *pgmoor.RDSTokens // nil: none are taken
}

func (t *tokens) flags(f *flag.FlagSet) {
	f.Var(&t.modes, "token-auth", "let users log in with tokens as of 'aws rds generate-db-auth-token' in the place of passwords: `MODES` required, enabled\n"+
		"(a token or a password) or disabled, for all users, and then for those who are named, as in disabled,app=required.\n"+
		"Over TLS only. With -hba, which method token needs, it counts for the clients of that method, for whom it is required by default")
	f.Var(&t.endpoints, "token-endpoints", "take tokens that were made for `HOST:PORT`: what clients connect to; more with commas between them")
	f.StringVar(&t.region, "token-region", "", "take tokens that were made for `REGION`")
	f.StringVar(&t.keyFile, "token-keys", "", "`FILE` with the keys that tokens are signed with, in JSON: a list of {\"access_key_id\", \"secret_access_key\",\n"+
		"\"session_token\" of temporary ones, \"users\": a list of those who may log in with it, or [\"*\"]}; read again at SIGHUP.\n"+
		"Without it, "+keysVariable+" has the same text")
}

// modeNames are the values of -token-auth, which are those of RDS Proxy's IAMAuth.
var modeNames = map[string]pgmoor.TokenMode{
	"required": pgmoor.TokenRequired, "enabled": pgmoor.TokenEnabled, "disabled": pgmoor.TokenDisabled,
}

// tokenModes is a flag of modes.
type tokenModes struct {
	text string
	all  pgmoor.TokenMode            // of users that are not named
	one  map[string]pgmoor.TokenMode // by user
}

// String returns what was given.
func (m *tokenModes) String() string { return m.text }

// Set reads it.
func (m *tokenModes) Set(s string) error {
	next := tokenModes{text: s, one: make(map[string]pgmoor.TokenMode)}
	for i, part := range strings.Split(s, ",") {
		user, name, named := strings.Cut(strings.TrimSpace(part), "=")
		if !named {
			name = user
		}
		mode, ok := modeNames[strings.ToLower(name)]
		_, twice := next.one[user]
		switch {
		case !ok:
			return errors.New("not one of required, enabled, disabled")
		case named && (twice || user == ""):
			return errors.New("a user is named twice, or not at all")
		case named:
			next.one[user] = mode
		case i > 0:
			return errors.New("the mode of all users comes first, and those of users are written as user=mode")
		default:
			next.all = mode
		}
	}
	*m = next
	return nil
}

func (m *tokenModes) of(user string) pgmoor.TokenMode {
	if mode, ok := m.one[user]; ok {
		return mode
	}
	return m.all
}

// needPasswords reports whether anybody may log in with a password.
func (m *tokenModes) needPasswords() bool {
	for _, mode := range m.one {
		if mode != pgmoor.TokenRequired {
			return true
		}
	}
	return m.all != pgmoor.TokenRequired
}

// only reports whether nobody can log in but with a token, where tokens are taken.
func (t *tokens) only() bool { return t.verifier != nil && !t.modes.needPasswords() }

// resolve reads the keys, if tokens are taken.
func (t *tokens) resolve(withRules bool) error {
	given := len(t.endpoints) > 0 || t.region != "" || t.keyFile != ""
	switch {
	case t.modes.text == "" && !given:
		return nil
	case t.modes.text == "" && !withRules:
		return errors.New("-token-endpoints, -token-region and -token-keys need -token-auth, or -hba with the method token")
	case len(t.endpoints) == 0 || t.region == "":
		return errors.New("tokens need -token-endpoints and -token-region")
	}
	for _, e := range t.endpoints {
		if !isHostPort(e) {
			return fmt.Errorf("-token-endpoints %s is not HOST:PORT", e)
		}
	}
	keys, err := t.readKeys()
	if err != nil {
		return err
	}
	t.verifier = &pgmoor.RDSTokens{Endpoints: t.endpoints, Region: t.region, Key: keys.key}
	return nil
}

func (t *tokens) readKeys() (tokenKeys, error) {
	name, text := keysVariable, []byte(os.Getenv(keysVariable))
	if t.keyFile != "" {
		var err error
		if text, err = os.ReadFile(t.keyFile); err != nil {
			return nil, fmt.Errorf("-token-keys: %w", err)
		}
		name = "-token-keys " + t.keyFile
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, fmt.Errorf("tokens need the keys that they are signed with: name a file with -token-keys, or set %s", keysVariable)
	}
	keys, err := parseTokenKeys(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return keys, nil
}

// tokenKeys are keys by their IDs.
type tokenKeys map[string]tokenKey

// tokenKey is a key, and who may log in with it.
type tokenKey struct {
	pgmoor.RDSKey
	users []string // "*": everybody
}

// parseTokenKeys reads keys. Its errors quote nothing of them.
func parseTokenKeys(text []byte) (tokenKeys, error) {
	var list []struct {
		ID      string   `json:"access_key_id"`
		Secret  string   `json:"secret_access_key"`
		Session string   `json:"session_token"`
		Users   []string `json:"users"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if d.Decode(&list) != nil || d.More() {
		return nil, errors.New(`it has to be a list in JSON: [{"access_key_id": "…", "secret_access_key": "…", "users": ["…"]}], with nothing else but "session_token" in it`)
	}
	keys := make(tokenKeys, len(list))
	for i, k := range list {
		_, twice := keys[k.ID]
		switch {
		case k.ID == "" || k.Secret == "":
			return nil, fmt.Errorf("key %d has no access_key_id, or no secret_access_key", i+1)
		case twice:
			return nil, fmt.Errorf("key %d has the access_key_id of another one", i+1)
		case len(k.Users) == 0:
			return nil, fmt.Errorf(`key %d has no users: name those who may log in with it, or ["*"]`, i+1)
		}
		key := tokenKey{users: k.Users}
		key.SecretAccessKey = pgmoor.NewSecret(k.Secret)
		if k.Session != "" {
			key.SessionToken = pgmoor.NewSecret(k.Session)
		}
		keys[k.ID] = key
	}
	if len(keys) == 0 {
		return nil, errors.New("it has no key: nobody could log in")
	}
	return keys, nil
}

// key is an RDSTokens.Key.
func (k tokenKeys) key(_ context.Context, id, user string) (pgmoor.RDSKey, error) {
	key, ok := k[id]
	if !ok || !slices.Contains(key.users, "*") && !slices.Contains(key.users, user) {
		return pgmoor.RDSKey{}, pgmoor.ErrNoSecret
	}
	return key.RDSKey, nil
}

// authenticator takes tokens, and has passwords ask those who need none; nil: nobody gets in with a password.
func (t *tokens) authenticator(passwords pgmoor.Authenticator, secrets pgmoor.SecretSource) pgmoor.Authenticator {
	a := &pgmoor.TokenAuth{Verifier: t.verifier, Mode: t.modes.of}
	if passwords != nil {
		a.Passwords = &eitherWay{modes: &t.modes, passwords: passwords, clear: pgmoor.Cleartext(secrets)}
	}
	return a
}

// eitherWay compares the passwords of clients that could have sent a token in their place, and has passwords ask the others.
type eitherWay struct {
	modes            *tokenModes
	passwords, clear pgmoor.Authenticator
}

// Authenticate asks.
func (e *eitherWay) Authenticate(ctx context.Context, c *pgmoor.Client) error {
	if _, encrypted := c.TLS(); encrypted && e.modes.of(c.User()) == pgmoor.TokenEnabled {
		return e.clear.Authenticate(ctx, c)
	}
	return e.passwords.Authenticate(ctx, c)
}

// method is the method token of -hba.
func (t *tokens) method(options map[string]string, passwords pgmoor.Authenticator, secrets pgmoor.SecretSource) (pgmoor.Authenticator, error) {
	if t.verifier == nil {
		return nil, errors.New("the method token needs -token-endpoints, -token-region and -token-keys")
	}
	for name := range options {
		return nil, fmt.Errorf("the option %s is not one of the method token", name)
	}
	return t.authenticator(passwords, secrets), nil
}
