package pgmoor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/scram"
)

// printed returns everything that fmt, slog and encoding/json make of values.
func printed(t *testing.T, log *logBuffer, values ...any) string {
	t.Helper()
	var out strings.Builder
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%t", "%e", "%c", "%U", "%p"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		fmt.Fprintln(&out, v, []any{v}, map[string]any{"k": v}, struct{ inner any }{v})
		if b, err := json.Marshal(v); err == nil { // functions in a Config are none of its business
			out.Write(b)
		}
		slog.New(slog.NewTextHandler(log, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(log, nil)).Info("x", "v", v)
		func() {
			defer func() { fmt.Fprintf(&out, "%v", recover()) }()
			panic(v)
		}()
		fmt.Fprintln(&out, errors.Join(fmt.Errorf("about %v", v)))
	}
	return out.String()
}

// prying is a handler that prints what is within errors, too.
type prying struct {
	slog.Handler
	log *logBuffer
}

func (h prying) Handle(ctx context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		err, _ := a.Value.Any().(error)
		for ; err != nil; err = errors.Unwrap(err) {
			fmt.Fprintf(h.log, "%+v %#v %t %x\n", err, err, err, err)
			if c := (*pgconn.ConnectError)(nil); errors.As(err, &c) {
				fmt.Fprintf(h.log, "pried: %+v\n", c.Config)
			}
		}
		return true
	})
	return h.Handler.Handle(ctx, r)
}

// TestSecretsOfAllSourcesShowThemselvesNowhere has each source give secrets, change them, fail, and be refused, and prints all of them.
func TestSecretsOfAllSourcesShowThemselvesNowhere(t *testing.T) {
	const hidden, before, other = "hunter2 hunter2", "swordfish swordfish", "open sesame"
	var log logBuffer
	logger := slog.New(prying{slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}), &log})
	path := filepath.Join(t.TempDir(), "users.json")
	writeAged(t, path, fmt.Sprintf(`[{"username":"u","password":%q}]`, before), time.Hour)
	t.Setenv("PGMOOR_TEST_SECRET", fmt.Sprintf(`{"username":"x","password":%q}`, other))
	files := &pgmoor.FileSecrets{Path: path, Interval: time.Nanosecond, Logger: logger}
	cache := &pgmoor.CachedSecrets{Source: files, TTL: time.Nanosecond, RefreshInterval: time.Nanosecond, Logger: logger}
	env := pgmoor.EnvSecrets{"u": "PGMOOR_TEST_SECRET"}
	query := &pgmoor.AuthQuery{
		Upstream: pgmoor.Upstream{Hosts: []string{"127.0.0.1:1"}}, User: "asks", Logger: logger,
		Secrets: pgmoor.StaticSecrets{"asks": pgmoor.NewSecret(other)},
	}
	l, server := &lock{key: "none of them"}, new(fake)
	guarded(server, l.fits)
	cfg := pgmoor.Config{Secrets: cache, Logger: logger}
	r := newRig(t, cfg, server)
	address := r.listenTCP(t)
	var errs []any
	try := func(src pgmoor.SecretSource, user string) {
		s, err := src.Secret(t.Context(), user)
		errs = append(errs, s, &s, err)
	}
	try(cache, "u")
	errs = append(errs, errors.New(logIn(t, address, "u", before, "sslmode=disable").Error()))
	writeAged(t, path, fmt.Sprintf(`[{"username":"u","password":%q}]`, hidden), time.Minute)
	try(cache, "u")
	for _, pw := range []string{hidden, before, "wrong"} {
		errs = append(errs, errors.New(logIn(t, address, "u", pw, "sslmode=disable").Error())) // the client's own has its password
	}
	for _, broken := range []string{`{"username":"u","password":"` + hidden, `[{"username":"u","password":["` + hidden + `"]}]`, `"` + hidden + `"`} {
		writeAged(t, path, broken, 30*time.Second)
		try(cache, "u")
		_, _, err := pgmoor.ParseSecretJSON([]byte(broken))
		errs = append(errs, err, (&pgmoor.FileSecrets{Path: path}).Validate(), files.Validate())
	}
	try(env, "u")
	try(query, "u")
	require.Contains(t, l.log(), hidden, "the server was asked with it")
	rotated := pgmoor.NewSecret(hidden).WithPrevious(pgmoor.NewSecret(before))
	md5 := pgmoor.NewSecret(scram.MD5("u", hidden)).WithPrevious(verifierOf(t, before))
	all := printed(t, &log, append(errs, rotated, md5, &rotated, cache, files, env, query, cfg, &cfg, r.Stats(), r.Sessions(), pgmoor.StaticSecrets{"u": rotated})...)
	all += log.text()
	for _, s := range []string{hidden, before, other, fmt.Sprintf("%x", hidden), fmt.Sprintf("%X", before), scram.MD5("u", hidden)[3:], "SCRAM-SHA-256$"} {
		require.False(t, strings.Contains(all, s), "%s shows itself", s)
	}
	require.Contains(t, all, "[secret]")
	require.Contains(t, all, "pried")
}
