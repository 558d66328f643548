package pgmoor_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
	"github.com/pgmoor/pgmoor/internal/scram"
)

// saltedVerifier is a verifier with a salt of its own.
func saltedVerifier(t testing.TB, password, salt string) pgmoor.Secret {
	t.Helper()
	v, err := scram.NewVerifier(password, []byte(salt), 4096)
	require.NoError(t, err)
	return pgmoor.NewSecret(v.Encode())
}

func TestThePreviousVersionOfASecretLetsClientsIn(t *testing.T) {
	clear := func(pw string) pgmoor.Secret { return pgmoor.NewSecret(pw) }
	md5 := func(user, pw string) pgmoor.Secret { return pgmoor.NewSecret(scram.MD5(user, pw)) }
	secrets := pgmoor.StaticSecrets{
		"cc": clear("new").WithPrevious(clear("old")),
		"vc": saltedVerifier(t, "new", "one").WithPrevious(clear("old")),
		"cv": clear("new").WithPrevious(saltedVerifier(t, "old", "two")),
		"vv": saltedVerifier(t, "new", "one").WithPrevious(saltedVerifier(t, "old", "one")),
		"vw": saltedVerifier(t, "new", "one").WithPrevious(saltedVerifier(t, "old", "two")),
		"mm": md5("mm", "new").WithPrevious(md5("mm", "old")),
		"mc": md5("mc", "new").WithPrevious(clear("old")),
		"c0": clear("new").WithPrevious(pgmoor.Secret{}),
		"c3": clear("new").WithPrevious(clear("old").WithPrevious(clear("older"))),
		"ce": clear("new").WithPrevious(clear("")),
	}
	for name, c := range map[string]struct {
		auth pgmoor.Authenticator
		both []string // with either password
		one  []string // with the current one
		mode string
	}{
		"SCRAM":     {pgmoor.SCRAM(secrets), []string{"cc", "vc", "cv", "vv", "c3"}, []string{"vw", "c0", "ce"}, "disable"},
		"MD5":       {pgmoor.MD5(secrets), []string{"cc", "vc", "vv", "mm", "mc", "c3"}, []string{"cv", "vw", "c0", "ce"}, "disable"},
		"Cleartext": {pgmoor.Cleartext(secrets), []string{"cc", "vc", "cv", "vv", "vw", "mm", "mc", "c3"}, []string{"c0", "ce"}, "require"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := pgmoor.Config{Authenticator: c.auth}
			cfg.TLS, _ = certified(t)
			address := newRig(t, cfg, new(fake)).listenTCP(t)
			for _, user := range append(c.both, c.one...) {
				require.NoError(t, logIn(t, address, user, "new", "sslmode="+c.mode), user)
				for _, wrong := range []string{"older", "x"} {
					require.Equal(t, "28P01", codeOf(logIn(t, address, user, wrong, "sslmode="+c.mode)), user)
				}
			}
			for _, user := range c.both {
				require.NoError(t, logIn(t, address, user, "old", "sslmode="+c.mode), user)
			}
			for _, user := range c.one {
				require.Equal(t, "28P01", codeOf(logIn(t, address, user, "old", "sslmode="+c.mode)), user)
			}
		})
	}
}

func TestSecretsStayComparable(t *testing.T) {
	s := pgmoor.NewSecret("x")
	for _, same := range []pgmoor.Secret{s, s.WithPrevious(pgmoor.Secret{}), s.WithPrevious(s), s.WithPrevious(pgmoor.NewSecret("x"))} {
		require.True(t, s == same)
	}
	require.True(t, pgmoor.Secret{}.WithPrevious(s) == pgmoor.Secret{})
	require.False(t, s == s.WithPrevious(pgmoor.NewSecret("y")))
}

// vault is a source that can be changed, and asked anew.
type vault struct {
	mu      sync.Mutex
	current map[string]pgmoor.Secret
	next    map[string]pgmoor.Secret // what it says after a Refresh
	fails   error
	asked   int
	renewed int
	slow    time.Duration
}

func (v *vault) Secret(ctx context.Context, user string) (pgmoor.Secret, error) {
	v.mu.Lock()
	slow := v.slow
	v.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return pgmoor.Secret{}, ctx.Err()
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked++
	s, ok := v.current[user]
	switch {
	case v.fails != nil:
		return pgmoor.Secret{}, v.fails
	case !ok:
		return pgmoor.Secret{}, pgmoor.ErrNoSecret
	}
	return s, nil
}

func (v *vault) set(user string, s pgmoor.Secret) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.current == nil {
		v.current = map[string]pgmoor.Secret{}
	}
	v.current[user] = s
}

func (v *vault) fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fails = err
}

func (v *vault) times() (asked, renewed int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.asked, v.renewed
}

// A renewable vault is a Refresher.
type renewable struct{ *vault }

func (r renewable) Refresh(ctx context.Context, user string) (pgmoor.Secret, error) {
	r.mu.Lock()
	r.renewed++
	if r.next != nil {
		r.current = r.next
	}
	r.mu.Unlock()
	return r.Secret(ctx, user)
}

// guarded makes a fake server ask for a password, which ok judges.
func guarded(f *fake, ok func(password string) bool) {
	f.login = func(c *pgtest.FakeConn) error {
		if err := c.Send(&pgproto3.AuthenticationCleartextPassword{}); err != nil {
			return err
		}
		if err := c.Backend.SetAuthType(pgproto3.AuthTypeCleartextPassword); err != nil {
			return err
		}
		m, err := c.Receive()
		if err != nil {
			return err
		}
		if pw, is := m.(*pgproto3.PasswordMessage); !is || !ok(pw.Password) {
			e := &pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"}
			return fmt.Errorf("%w: %w", errDown, c.Send(e))
		}
		return nil
	}
}

// A lock is the password of a fake server, and what was tried on it.
type lock struct {
	mu    sync.Mutex
	key   string
	tried []string
}

func (l *lock) fits(pw string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried = append(l.tried, pw)
	return pw == l.key
}

func (l *lock) change(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.key = key
}

// log returns what was tried since it was last called.
func (l *lock) log() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.tried
	l.tried = nil
	return out
}

func TestAServerIsTriedWithTheCurrentSecretAFreshOneAndThePreviousOne(t *testing.T) {
	one, two, three := pgmoor.NewSecret("one"), pgmoor.NewSecret("two"), pgmoor.NewSecret("three")
	plain := func(v *vault) pgmoor.SecretSource { return pgmoor.SecretSourceFunc(v.Secret) }
	fresh := func(v *vault) pgmoor.SecretSource { return renewable{v} }
	for name, c := range map[string]struct {
		now, then pgmoor.Secret
		source    func(*vault) pgmoor.SecretSource
		key       string
		tried     []string
		renewed   int
	}{
		"the current one":           {two.WithPrevious(one), three, fresh, "two", []string{"two"}, 0},
		"the previous one":          {two.WithPrevious(one), two.WithPrevious(one), fresh, "one", []string{"two", "one"}, 1},
		"a fresh one":               {one, two, fresh, "two", []string{"one", "two"}, 1},
		"a fresh one's previous":    {one, three.WithPrevious(two), fresh, "two", []string{"one", "three", "two"}, 1},
		"fresh and the previous":    {two.WithPrevious(one), three, fresh, "one", []string{"two", "three", "one"}, 1},
		"previous, never refreshed": {two.WithPrevious(one), three, plain, "one", []string{"two", "one"}, 0},
		"none":                      {two.WithPrevious(one), two.WithPrevious(one), fresh, "four", []string{"two", "one"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := &vault{next: map[string]pgmoor.Secret{"u": c.then}}
				v.set("u", c.now)
				l, server := &lock{key: c.key}, new(fake)
				guarded(server, l.fits)
				r := newRig(t, pgmoor.Config{Secrets: c.source(v)}, server)
				got := r.dialClient(t).startup("u")
				if c.key == "four" {
					require.Equal(t, "28P01", got.code())
				} else {
					require.Nil(t, got.err)
				}
				require.Equal(t, c.tried, l.log())
				_, renewed := v.times()
				require.Equal(t, c.renewed, renewed)
			})
		})
	}
}

// rotating is a rig with two pools of u and one of another user, of which each has an idle connection and one in a transaction.
func rotating(t *testing.T, source pgmoor.SecretSource, l *lock) (r *rig, txn []*client, log *logBuffer) {
	server := new(fake)
	guarded(server, l.fits)
	log = new(logBuffer)
	r = newRig(t, pgmoor.Config{Secrets: source, MaxConnections: 20, Logger: slog.New(slog.NewTextHandler(log, nil))}, server)
	for _, who := range [][]string{{"u", "database", "a"}, {"u", "database", "b"}, {"other", "database", "a"}} {
		one, two := r.connect(t, who[0], who[1:]...), r.connect(t, who[0], who[1:]...)
		one.ok("BEGIN")
		two.ok("BEGIN")
		two.ok("COMMIT")
		txn = append(txn, one)
	}
	synctest.Wait()
	require.GreaterOrEqual(t, r.Stats().Servers, 6)
	require.Zero(t, r.Stats().ServersClosed)
	return r, txn, log
}

func TestServerConnectionsOfAnOldSecretAreRetiredWhenTheServerTakesANewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := new(vault)
		v.set("u", pgmoor.NewSecret("one"))
		v.set("other", pgmoor.NewSecret("one"))
		cache := &pgmoor.CachedSecrets{Source: v}
		l := &lock{key: "one"}
		r, txn, log := rotating(t, cache, l)
		l.log()

		v.set("u", pgmoor.NewSecret("two")) // before the server knows
		time.Sleep(pgmoor.DefaultSecretTTL)
		third := r.connect(t, "u", "database", "a")
		third.ok("BEGIN")
		fourth := r.connect(t, "u", "database", "a")
		fourth.ok("BEGIN") // a new connection
		synctest.Wait()
		require.Equal(t, []string{"two", "one"}, l.log()[:2])
		require.NotContains(t, log.text(), "new version")

		old := r.Stats()
		l.change("two")
		fifth := r.connect(t, "u", "database", "a")
		fifth.ok("BEGIN")
		synctest.Wait()
		require.NotContains(t, l.log(), "one")
		require.Contains(t, log.text(), "the server took a new version of a user's secret")
		closed := r.Stats().ServersClosed
		require.Positive(t, closed, "idle ones, of the other pool too")
		require.Less(t, closed, old.ServersOpened-4, "those in use are not")
		for _, c := range append(txn, third, fourth, fifth) {
			c.ok("SELECT 1", "COMMIT")
		}
		synctest.Wait()
		require.Equal(t, old.ServersOpened-2, r.Stats().ServersClosed, "all from before, but those of the other user")
		for _, c := range append(txn, third, fourth, fifth) {
			c.ok("SELECT 1")
		}
	})
}

func TestSecretsThatAreOthersEachTimeRetireNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		var mu sync.Mutex
		l := &lock{}
		source := pgmoor.SecretSourceFunc(func(context.Context, string) (pgmoor.Secret, error) {
			mu.Lock()
			defer mu.Unlock()
			n++
			l.change(fmt.Sprint("token ", n))
			return pgmoor.NewSecret(fmt.Sprint("token ", n)), nil
		})
		r, _, _ := rotating(t, source, l)
		require.Zero(t, r.Stats().ServersClosed)
		require.GreaterOrEqual(t, n, 6)
	})
}

func TestASecretThatUpdateHasChangedRetiresServerConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lock{key: "one"}
		r, txn, _ := rotating(t, pgmoor.StaticSecrets{"u": pgmoor.NewSecret("one"), "other": pgmoor.NewSecret("one")}, l)
		r.change(t, pgmoor.Config{MaxConnections: 20, Secrets: pgmoor.StaticSecrets{"u": pgmoor.NewSecret("two"), "other": pgmoor.NewSecret("one")}})
		l.change("two")
		a, b := r.connect(t, "u", "database", "b"), r.connect(t, "u", "database", "b")
		a.ok("BEGIN")
		b.ok("BEGIN")
		for _, c := range txn {
			c.ok("COMMIT")
		}
		synctest.Wait()
		closed := r.Stats().ServersClosed // one more where one was opened by which the change was found
		require.GreaterOrEqual(t, closed, int64(3), "the idle one of the other pool, and those of both transactions")
		a.ok("COMMIT") // on what was idle in this pool
		synctest.Wait()
		require.Equal(t, closed+1, r.Stats().ServersClosed)
	})
}

func TestAPasswordThatIsChangedOnTheServerFirstIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := new(vault)
		v.set("u", pgmoor.NewSecret("one"))
		cache := &pgmoor.CachedSecrets{Source: v}
		l, server := &lock{key: "one"}, new(fake)
		guarded(server, l.fits)
		r := newRig(t, pgmoor.Config{Secrets: cache, MaxConnections: 1}, server)
		c := r.connect(t, "u")
		c.ok("SELECT 1")
		l.change("two")
		require.NoError(t, r.Reconnect(t.Context()))
		synctest.Wait()
		start := time.Now()
		c.ask("SELECT 2")
		time.Sleep(5 * time.Second)
		v.set("u", pgmoor.NewSecret("two"))
		require.Nil(t, c.reply().err)
		require.Less(t, time.Since(start), 9*time.Second)

		l.change("three") // and nobody says so
		require.NoError(t, r.Reconnect(t.Context()))
		start = time.Now()
		require.Equal(t, "28P01", c.query("SELECT 3").code())
		require.InDelta(t, 10, time.Since(start).Seconds(), 4)
	})
}

func TestAClientThatKnowsOfAChangeFirstIsLetInTheNextTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := new(vault)
		v.set("u", pgmoor.NewSecret("one"))
		cache := &pgmoor.CachedSecrets{Source: v, TTL: time.Hour}
		cfg := pgmoor.Config{Secrets: cache, Authenticator: pgmoor.MD5(cache)}
		r := newRig(t, cfg, new(fake))
		l := r.listenInMemory(t)
		try := func(pw string) string {
			conn, err := l.DialContext(t.Context(), "", "")
			require.NoError(t, err)
			defer conn.Close()
			c := newClient(t, conn)
			c.send(&pgproto3.StartupMessage{ProtocolVersion: version30, Parameters: map[string]string{"user": "u"}})
			m, err := c.Receive()
			require.NoError(t, err)
			salt := m.(*pgproto3.AuthenticationMD5Password).Salt
			c.send(&pgproto3.PasswordMessage{Password: scram.MD5Response(scram.MD5("u", pw), salt)})
			code := c.reply().code()
			synctest.Wait()
			return code
		}
		require.Empty(t, try("one"))
		time.Sleep(2 * time.Second)
		v.set("u", pgmoor.NewSecret("two"))
		require.Equal(t, "28P01", try("two"))
		require.Empty(t, try("two"))
		require.Empty(t, try("one"), "within its grace")
		asked, _ := v.times()
		for range 10 {
			require.Equal(t, "28P01", try("guess"))
		}
		more, _ := v.times()
		require.LessOrEqual(t, more, asked+1, "guesses do not reach the source")
	})
}
