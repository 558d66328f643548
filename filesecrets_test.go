package pgmoor_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

// writeAged writes a file that was complete a while ago.
func writeAged(t *testing.T, path, text string, age time.Duration) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	at := time.Now().Add(-age)
	require.NoError(t, os.Chtimes(path, at, at))
}

func TestSecretsAreReadFromFiles(t *testing.T) {
	for name, c := range map[string]struct {
		path  string
		files map[string]string
		want  map[string]string
		err   string
	}{
		"userlist":     {"users.txt", map[string]string{"users.txt": "\"a\" \"x\"\n\"b\" \"y z\"\n"}, map[string]string{"a": "x", "b": "y z"}, ""},
		"one object":   {"a.json", map[string]string{"a.json": `{"username":"a","password":"x","engine":"postgres","port":5432}`}, map[string]string{"a": "x"}, ""},
		"a list":       {"l.json", map[string]string{"l.json": ` [{"username":"a","password":"x"},{"password":"y\u00e9","username":"b"}]`}, map[string]string{"a": "x", "b": "yé"}, ""},
		"basic-auth":   {".", map[string]string{"username": "a\n", "password": "x\n"}, map[string]string{"a": "x"}, ""},
		"directory":    {".", map[string]string{"a": "x\n", "b": " y\r\n", "c.json": `{"username":"cc","password":"z"}`, ".hidden": "no", "sub/d": "no"}, map[string]string{"a": "x", "b": " y", "cc": "z"}, ""},
		"nothing":      {"missing", nil, nil, "no such file"},
		"no user":      {"users.txt", map[string]string{"users.txt": "; nobody\n"}, nil, "it holds no users"},
		"an empty one": {".", map[string]string{"a": ""}, nil, "a is empty"},
		"half a line":  {"users.txt", map[string]string{"users.txt": "\"a\" \"sesame"}, nil, "line 1"},
		"half JSON":    {"a.json", map[string]string{"a.json": `{"username":"a","password":"sesame`}, nil, "not a secret in JSON"},
		"a number":     {"a.json", map[string]string{"a.json": `{"username":"a","password":1234567}`}, nil, "not a secret in JSON"},
		"twice":        {".", map[string]string{"a": "sesame", "b.json": `{"username":"a","password":"sesame"}`}, nil, "a second secret"},
		"a NUL":        {".", map[string]string{"a": "ses\x00ame"}, nil, "NUL"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range c.files {
				writeAged(t, filepath.Join(dir, file), text, time.Minute)
			}
			f := &pgmoor.FileSecrets{Path: filepath.Join(dir, c.path)}
			err := f.Validate()
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				require.NotContains(t, err.Error(), "sesame")
				require.NotContains(t, err.Error(), "1234567")
				_, err = f.Secret(t.Context(), "a")
				require.Error(t, err)
				require.NotErrorIs(t, err, pgmoor.ErrNoSecret)
				return
			}
			require.NoError(t, err)
			require.Equal(t, len(c.want), f.Users())
			for user, pw := range c.want {
				says(t, f, user, pgmoor.NewSecret(pw))
			}
			_, err = f.Secret(t.Context(), "nobody")
			require.ErrorIs(t, err, pgmoor.ErrNoSecret)
		})
	}
}

func TestFilesThatChangeAreReadAgainAndBrokenOnesAreNot(t *testing.T) {
	var log logBuffer
	path := filepath.Join(t.TempDir(), "users.txt")
	writeAged(t, path, "\"a\" \"one\"\n", time.Hour)
	f := &pgmoor.FileSecrets{Path: path, Interval: time.Nanosecond, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	says(t, f, "a", pgmoor.NewSecret("one"))
	first, err := f.Secret(t.Context(), "a")
	require.NoError(t, err)

	writeAged(t, path, "\"a\" \"sesame", time.Minute)
	for range 3 {
		says(t, f, "a", pgmoor.NewSecret("one"))
	}
	require.Contains(t, log.text(), "what was read before counts")
	require.NotContains(t, log.text(), "sesame")
	require.Equal(t, 1, countLines(log.text()))
	require.NoError(t, os.Remove(path))
	says(t, f, "a", pgmoor.NewSecret("one"))
	writeAged(t, path, "", 59*time.Second)
	says(t, f, "a", pgmoor.NewSecret("one"))

	writeAged(t, path, "\"a\" \"tw", 0) // is being written
	says(t, f, "a", pgmoor.NewSecret("one"))
	writeAged(t, path, "\"a\" \"two\"\n", 58*time.Second)
	says(t, f, "a", pgmoor.NewSecret("two"))
	second, err := f.Secret(t.Context(), "a")
	require.NoError(t, err)
	require.True(t, pgmoor.Replaces(second, first))
	require.False(t, pgmoor.Replaces(first, second))
	require.Contains(t, log.text(), "changed=1")
	require.NotContains(t, log.text(), "two")
}

// TestAVolumeOfKubernetesIsFollowed swaps the link ..data, as a kubelet does.
func TestAVolumeOfKubernetesIsFollowed(t *testing.T) {
	dir := t.TempDir()
	put := func(version, pw string) {
		writeAged(t, filepath.Join(dir, version, "app"), pw, time.Minute)
		require.NoError(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		require.NoError(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	put("..2026_1", "one")
	require.NoError(t, os.Symlink(filepath.Join("..data", "app"), filepath.Join(dir, "app")))
	whole, single := &pgmoor.FileSecrets{Path: dir, Interval: time.Nanosecond, Logger: quiet}, &pgmoor.FileSecrets{Path: dir, Interval: time.Hour}
	says(t, whole, "app", pgmoor.NewSecret("one"))
	says(t, single, "app", pgmoor.NewSecret("one"))
	put("..2026_2", "two") // of the same size, and as old
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "..2026_1")))
	says(t, whole, "app", pgmoor.NewSecret("two"))
	says(t, single, "app", pgmoor.NewSecret("one"))
}

func countLines(s string) (n int) {
	for _, c := range s {
		if c == '\n' {
			n++
		}
	}
	return n
}

func TestSecretsOfTheEnvironment(t *testing.T) {
	t.Setenv("PGMOOR_TEST_A", "plain")
	t.Setenv("PGMOOR_TEST_B", `{"username":"b","password":"in JSON"}`)
	t.Setenv("PGMOOR_TEST_E", "")
	env := pgmoor.EnvSecrets{"a": "PGMOOR_TEST_A", "b": "PGMOOR_TEST_B"}
	require.NoError(t, env.Validate())
	says(t, env, "a", pgmoor.NewSecret("plain"))
	says(t, env, "b", pgmoor.NewSecret("in JSON"))
	env["c"], env["e"] = "PGMOOR_TEST_B", "PGMOOR_TEST_E"
	_, err := env.Secret(t.Context(), "c")
	require.ErrorContains(t, err, "of another user")
	require.NotContains(t, err.Error(), "in JSON")
	for _, user := range []string{"nobody", "e", ""} {
		_, err = env.Secret(t.Context(), user)
		require.ErrorIs(t, err, pgmoor.ErrNoSecret)
	}
	require.Error(t, env.Validate())
}

func TestNewRefusesSourcesThatMakeNoSense(t *testing.T) {
	for says, src := range map[string]pgmoor.SecretSource{
		"Source is missing":       &pgmoor.CachedSecrets{},
		"TTL must not":            &pgmoor.CachedSecrets{Source: pgmoor.StaticSecrets{}, TTL: -1},
		"no such file":            &pgmoor.CachedSecrets{Source: &pgmoor.FileSecrets{Path: "/nonexistent"}},
		"Path is missing":         &pgmoor.FileSecrets{},
		"is not set":              pgmoor.EnvSecrets{"u": "PGMOOR_TEST_NONE"},
		"AuthQuery.User":          &pgmoor.AuthQuery{},
		"Hosts is empty":          &pgmoor.AuthQuery{User: "u"},
		"AuthQuery.Timeout":       &pgmoor.AuthQuery{User: "u", Timeout: -1},
		"not a server: Hosts tak": &pgmoor.AuthQuery{User: "u", Upstream: pgmoor.Upstream{Hosts: []string{"postgres://u:sesame@db"}}},
	} {
		_, err := pgmoor.New(nil, pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{"db"}}, Secrets: src})
		require.ErrorContains(t, err, says)
		require.NotContains(t, err.Error(), "sesame")
	}
}
