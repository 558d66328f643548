package vault_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/contrib/vault"
	"github.com/pgmoor/pgmoor/internal/memconn"
)

// store speaks Vault's API, in memory.
type store struct {
	t       testing.TB
	mu      sync.Mutex
	kv      map[string]string // JSON of the answer's data by path and version, "" the newest, which is the second
	written time.Time         // when that was; zero: in 2026
	user    string            // of dynamic credentials; "": the role's name
	down    bool
	renews  bool // leases can be renewed
	most    int  // how often
	made    int  // credentials
	renewed int
	revoked int
	asked   int
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	w.Header().Set("Content-Type", "application/json")
	if r.Header.Get("X-Vault-Token") != "token" || r.Header.Get("X-Vault-Request") != "true" {
		s.t.Errorf("this is no request of Vault's client: %v", r.Header)
	}
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	role, isDynamic := strings.CutPrefix(path, "database/creds/")
	static, isStatic := strings.CutPrefix(path, "database/static-creds/")
	switch {
	case s.down:
		say(w, http.StatusForbidden, `{"errors":["permission denied"]}`)
	case strings.HasPrefix(path, "secret/data/"):
		s.sayKV(w, strings.TrimPrefix(path, "secret/data/")+r.URL.Query().Get("version"))
	case isDynamic && role == "unknown", isStatic && static == "unknown":
		say(w, http.StatusBadRequest, `{"errors":["unknown role: unknown"]}`)
	case isStatic:
		say(w, http.StatusOK, `{"data":{"username":"`+static+`","password":"static","ttl":60,"rotation_period":86400}}`)
	case isDynamic:
		s.sayCredentials(w, role)
	case r.Method == http.MethodPut && path == "sys/leases/renew":
		s.renew(w, r)
	case r.Method == http.MethodPut && path == "sys/leases/revoke":
		s.revoked++
		w.WriteHeader(http.StatusNoContent)
	default:
		s.t.Errorf("unexpected: %s %s", r.Method, r.URL)
	}
}

func say(w http.ResponseWriter, status int, body string) {
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

func (s *store) sayKV(w http.ResponseWriter, path string) {
	written := "2026-01-01T00:00:00Z"
	if !s.written.IsZero() {
		written = s.written.Format(time.RFC3339Nano)
	}
	data, ok := s.kv[path]
	switch {
	case !ok:
		say(w, http.StatusNotFound, `{"errors":[]}`)
	case data == "denied":
		say(w, http.StatusForbidden, `{"errors":["permission denied"]}`)
	case data == "null":
		say(w, http.StatusNotFound, `{"data":{"data":null,"metadata":{"version":2,"created_time":"`+written+`","deletion_time":"2026-01-02T00:00:00Z","destroyed":false}}}`)
	default:
		say(w, http.StatusOK, `{"data":{"data":`+data+`,"metadata":{"version":2,"created_time":"`+written+`","deletion_time":"","destroyed":false}}}`)
	}
}

func (s *store) sayCredentials(w http.ResponseWriter, role string) {
	s.made++
	if s.user != "" {
		role = s.user
	}
	say(w, http.StatusOK, fmt.Sprintf(`{"lease_id":"database/creds/%s/%d","renewable":%v,"lease_duration":600,"data":{"username":%q,"password":"p%d"}}`,
		role, s.made, s.renews, role, s.made))
}

func (s *store) renew(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Lease     string `json:"lease_id"`
		Increment int    `json:"increment"`
	}
	if json.NewDecoder(r.Body).Decode(&in) != nil || in.Lease == "" || in.Increment != 600 {
		s.t.Errorf("this is no renewal: %+v", in)
	}
	s.renewed++
	granted := 600
	if s.renewed >= s.most {
		granted = 100
	}
	say(w, http.StatusOK, fmt.Sprintf(`{"lease_id":%q,"renewable":true,"lease_duration":%d}`, in.Lease, granted))
}

func (s *store) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *store) counts() (made, renewed, revoked int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made, s.renewed, s.revoked
}

// in runs f in a bubble, with a client of s.
func in(t *testing.T, s *store, f func(t *testing.T, client *api.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		l := memconn.Listen()
		server := &http.Server{Handler: s}
		served := make(chan struct{})
		go serve(server, l, served)
		transport := &http.Transport{DialContext: l.DialContext}
		cfg := &api.Config{Address: "http://vault.example", HttpClient: &http.Client{Transport: transport}}
		client, err := api.NewClient(cfg)
		require.NoError(t, err)
		client.SetToken("token")
		defer func() {
			transport.CloseIdleConnections()
			require.NoError(t, server.Close())
			<-served
		}()
		f(t, client)
	})
}

func serve(server *http.Server, l *memconn.Listener, served chan<- struct{}) {
	_ = server.Serve(l)
	close(served)
}

func run(ctx context.Context, d *vault.Dynamic, done chan<- error) { done <- d.Run(ctx) }

// requireSecret asks a source for a user's password.
func requireSecret(t *testing.T, want string, source pgmoor.SecretSource, user string) {
	t.Helper()
	s, err := source.Secret(t.Context(), user)
	require.NoError(t, err)
	require.Equal(t, pgmoor.NewSecret(want), s)
}

func TestPasswordsOfAStore(t *testing.T) {
	s := &store{kv: map[string]string{
		"db/app": `{"username":"app","password":"new"}`, "db/app1": `{"username":"app","password":"old"}`, "db/other": `{"username":"app","password":"hunter2"}`,
		"db/half": `{"username":"half"}`, "db/number": `{"username":"number","password":42}`, "db/deleted": "null",
	}}
	in(t, s, func(t *testing.T, client *api.Client) {
		kv := &vault.KV{Client: client, Path: vault.Named("db/{user}")}
		requireSecret(t, "new", kv, "app")
		for user, want := range map[string]string{
			"other": `its username is "app", and not "other"`, "half": "a username and a password", "number": "a username and a password",
		} {
			_, err := kv.Secret(t.Context(), user)
			require.ErrorContains(t, err, want)
			require.NotErrorIs(t, err, pgmoor.ErrNoSecret)
			require.NotContains(t, err.Error(), "hunter2")
		}
		for _, user := range []string{"unknown", "deleted"} {
			_, err := kv.Secret(t.Context(), user)
			require.ErrorIs(t, err, pgmoor.ErrNoSecret, user)
		}
		asked := s.asked
		for _, user := range []string{"../app", "..", "a/../b", "", "a?version=1", "a%2e", "a b", "/app", strings.Repeat("x", 1000)} {
			_, err := kv.Secret(t.Context(), user)
			require.ErrorIs(t, err, pgmoor.ErrNoSecret, user)
		}
		require.Equal(t, asked, s.asked)
		s.change(func() { s.down = true })
		_, err := kv.Secret(t.Context(), "app")
		require.ErrorContains(t, err, "permission denied")
		require.NotErrorIs(t, err, pgmoor.ErrNoSecret)
		_, err = new(vault.KV).Secret(t.Context(), "app")
		require.ErrorContains(t, err, "needs a Client")
		kv.PreviousFor = -1
		require.ErrorContains(t, kv.Validate(), "must not be negative")
	})
}

func TestTheVersionFromBeforeCountsForAWhile(t *testing.T) {
	for name, c := range map[string]struct {
		previous string
		counts   bool
		says     string
	}{
		"one":          {`{"username":"app","password":"old"}`, true, ""},
		"deleted":      {"null", false, ""},
		"none":         {"", false, ""},
		"another user": {`{"username":"other","password":"old"}`, false, "other"},
		"denied":       {"denied", false, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &store{kv: map[string]string{"db/app": `{"username":"app","password":"new"}`}}
			if c.previous != "" {
				s.kv["db/app1"] = c.previous
			}
			in(t, s, func(t *testing.T, client *api.Client) {
				var log bytes.Buffer
				s.change(func() { s.written = time.Now() })
				kv := &vault.KV{Client: client, Path: vault.Named("db/{user}"), PreviousFor: time.Minute, Logger: slog.New(slog.NewTextHandler(&log, nil))}
				want := pgmoor.NewSecret("new")
				if c.counts {
					want = want.WithPrevious(pgmoor.NewSecret("old"))
				}
				got, err := kv.Secret(t.Context(), "app")
				require.NoError(t, err)
				require.Equal(t, want, got)
				require.Contains(t, log.String(), c.says)
				require.NotContains(t, log.String(), "old")
				time.Sleep(time.Minute)
				asked := s.asked
				requireSecret(t, "new", kv, "app")
				require.Equal(t, asked+1, s.asked)
				kv.PreviousFor = 0
				s.change(func() { s.written = time.Now().Add(time.Hour) }) // by a clock that is fast
				requireSecret(t, "new", kv, "app")
			})
		})
	}
}

func TestPasswordsOfStaticRoles(t *testing.T) {
	in(t, new(store), func(t *testing.T, client *api.Client) {
		static := &vault.Static{Client: client, Role: vault.Named("{user}")}
		requireSecret(t, "static", static, "app")
		_, err := static.Secret(t.Context(), "unknown")
		require.ErrorIs(t, err, pgmoor.ErrNoSecret)
		static.Role = func(string) string { return "app" }
		_, err = static.Secret(t.Context(), "other")
		require.ErrorContains(t, err, `its username is "app"`)
	})
}

// dynamic is a source without a log.
func dynamic(client *api.Client) *vault.Dynamic {
	return &vault.Dynamic{Client: client, Role: vault.Named("{user}"), Logger: slog.New(slog.DiscardHandler)}
}

func TestALeaseIsRenewedUntilItIsNot(t *testing.T) {
	s := &store{renews: true, most: 5}
	in(t, s, func(t *testing.T, client *api.Client) {
		d := dynamic(client)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go run(ctx, d, done)
		requireSecret(t, "p1", d, "app")
		time.Sleep(1999 * time.Second) // four renewals, each at two thirds, and a second to the last
		requireSecret(t, "p1", d, "app")
		made, renewed, _ := s.counts()
		require.Equal(t, []int{1, 4}, []int{made, renewed})
		time.Sleep(2 * time.Second) // the last is of 100 seconds, of which half are for use
		requireSecret(t, "p1", d, "app")
		time.Sleep(50 * time.Second)
		requireSecret(t, "p2", d, "app")
		made, renewed, _ = s.counts()
		require.Equal(t, []int{2, 5}, []int{made, renewed})
		stop()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

func TestALeaseThatNobodyRenewsIsReplaced(t *testing.T) {
	s := new(store)
	in(t, s, func(t *testing.T, client *api.Client) {
		d := dynamic(client)
		requireSecret(t, "p1", d, "app")
		time.Sleep(299 * time.Second)
		requireSecret(t, "p1", d, "app")
		s.change(func() { s.down = true })
		time.Sleep(2 * time.Second)
		requireSecret(t, "p1", d, "app") // it is good still
		s.change(func() { s.down = false })
		requireSecret(t, "p2", d, "app")
		s.change(func() { s.down = true })
		time.Sleep(time.Hour)
		_, err := d.Secret(t.Context(), "app")
		require.ErrorContains(t, err, "permission denied")
	})
}

func TestALeaseThatCannotBeRenewedNow(t *testing.T) {
	s := &store{renews: true, most: 100}
	in(t, s, func(t *testing.T, client *api.Client) {
		d := dynamic(client)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go run(ctx, d, done)
		requireSecret(t, "p1", d, "app")
		s.change(func() { s.down = true })
		time.Sleep(420 * time.Second)
		s.change(func() { s.down = false })
		time.Sleep(100 * time.Second)
		requireSecret(t, "p1", d, "app")
		made, renewed, _ := s.counts()
		require.Equal(t, []int{1, 1}, []int{made, renewed})
		stop()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

func TestManyLoginsMakeOneLease(t *testing.T) {
	s := &store{renews: true, most: 100}
	in(t, s, func(t *testing.T, client *api.Client) {
		d := dynamic(client)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { _, _ = d.Secret(t.Context(), "app") })
		}
		wg.Wait()
		requireSecret(t, "p1", d, "app")
	})
}

func TestCredentialsOfUsersThatNobodyKnows(t *testing.T) {
	s := &store{user: "v-token-app-x1"}
	in(t, s, func(t *testing.T, client *api.Client) {
		d := dynamic(client)
		_, err := d.Secret(t.Context(), "app")
		require.ErrorContains(t, err, `its username is "v-token-app-x1", and not "app"`)
		made, _, revoked := s.counts()
		require.Equal(t, []int{1, 1}, []int{made, revoked})
		_, err = d.Secret(t.Context(), "unknown")
		require.ErrorIs(t, err, pgmoor.ErrNoSecret)
	})
}
