package pgmoor_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgmoor/pgmoor"
)

// A pooler in front of a server, for one user.
func Example() {
	l, err := net.Listen("tcp", "127.0.0.1:6432")
	if err != nil {
		log.Fatal(err)
	}
	p, err := pgmoor.New(l, pgmoor.Config{
		Upstream: pgmoor.Upstream{Hosts: []string{"db1:5432"}},
		Secrets:  pgmoor.StaticSecrets{"app": pgmoor.NewSecret("correct horse")},
	})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(p.Serve(context.Background()))
}

// A pooler for the users of a file, in front of two servers. Ctrl-C lets transactions finish, for half a minute.
func ExampleProxy_Shutdown() {
	l, err := net.Listen("tcp", "127.0.0.1:6432")
	if err != nil {
		log.Fatal(err)
	}
	users, err := pgmoor.ReadUserList("userlist.txt")
	if err != nil {
		log.Fatal(err)
	}
	p, err := pgmoor.New(l, pgmoor.Config{
		Upstream:       pgmoor.Upstream{Hosts: []string{"db1:5432", "db2:5432"}, SSLMode: "verify-full"},
		Secrets:        users,
		MaxConnections: 50,
	})
	if err != nil {
		log.Fatal(err)
	}
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	go p.Serve(context.Background())
	<-interrupted.Done()

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := p.Shutdown(ctx); err != nil {
		log.Print("not everybody was done: ", err)
		_ = p.Close()
	}
}

// A pgx pool in the same process needs no port and no password.
func ExampleProxy_DialContext() {
	p, err := pgmoor.New(nil, pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{"/var/run/postgresql"}}})
	if err != nil {
		log.Fatal(err)
	}
	go p.Serve(context.Background()) // without it the first query hangs
	defer p.Close()

	cfg, err := pgxpool.ParseConfig("host=pgmoor user=app dbname=shop sslmode=disable pool_max_conns=50")
	if err != nil {
		log.Fatal(err)
	}
	cfg.ConnConfig.DialFunc = p.DialContext
	cfg.ConnConfig.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(context.Background(), "select 1"); err != nil {
		log.Print(err)
	}
}

// An Authenticator of one's own: it asks for the password over TLS and lets a directory decide.
func ExampleClient_Password() {
	cert, err := tls.LoadX509KeyPair("server.crt", "server.key")
	if err != nil {
		log.Fatal(err)
	}
	_ = pgmoor.Config{
		Upstream: pgmoor.Upstream{Hosts: []string{"127.0.0.1:5432"}},
		TLS:      &tls.Config{Certificates: []tls.Certificate{cert}},
		Authenticator: pgmoor.AuthenticatorFunc(func(ctx context.Context, c *pgmoor.Client) error {
			password, err := c.Password(ctx)
			if err != nil {
				return err
			}
			return bind(ctx, c.User(), password)
		}),
	}
}

// bind stands for a directory.
func bind(context.Context, string, string) error { return errors.New("no such user") }

// A Proxy is a net.Listener: a program can look at every client that has logged in before it is served.
func ExampleProxy_Accept() {
	l, err := net.Listen("tcp", "127.0.0.1:6432")
	if err != nil {
		log.Fatal(err)
	}
	p, err := pgmoor.New(l, pgmoor.Config{
		Upstream:      pgmoor.Upstream{Hosts: []string{"127.0.0.1:5432"}},
		Authenticator: pgmoor.Trust(),
	})
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := p.Accept()
		if err != nil {
			log.Fatal(err)
		}
		s := conn.(*pgmoor.Session)
		log.Printf("%s uses %s", s.Client().User(), s.Client().Database())
		go s.Serve(context.Background())
	}
}

// A policy of one's own: nobody of the web application may keep a server connection for a temporary table, and it
// never asks for currval or lastval, so that they need not be kept apart.
func ExamplePinningPolicyFunc() {
	policy := pgmoor.PinningPolicyFunc(func(s *pgmoor.Session, st *pgmoor.Statement) pgmoor.Decision {
		d := pgmoor.DefaultPinning{}.Decide(s, st)
		if s.Client().User() == "web" {
			d.Share |= pgmoor.EffectSequence
			if st.Effects&pgmoor.EffectTempObject != 0 {
				d.Refuse = &pgmoor.Error{Code: "0A000", Message: "temporary tables are not for the web", Hint: "Use ON COMMIT DROP."}
			}
		}
		return d
	})
	_ = pgmoor.Config{
		Upstream: pgmoor.Upstream{Hosts: []string{"127.0.0.1:5432"}},
		Pinning:  policy,
	}
}

// A container gets a secret as AWS Secrets Manager has it, with more in it than is needed.
func ExampleParseSecretJSON() {
	user, secret, err := pgmoor.ParseSecretJSON([]byte(`{"username": "app", "password": "correct horse", "engine": "postgres"}`))
	fmt.Println(user, secret, err)
	// Output: app [secret] <nil>
}

// Passwords of a volume that Kubernetes mounts, and of a database for those who are not in it. A change of either lets clients in with
// the password from before for a minute.
func ExampleCachedSecrets() {
	files := &pgmoor.CachedSecrets{Source: &pgmoor.FileSecrets{Path: "/etc/pgmoor/users"}, TTL: time.Second, Grace: time.Minute}
	query := &pgmoor.AuthQuery{
		Upstream: pgmoor.Upstream{Hosts: []string{"db1:5432"}, SSLMode: "verify-full"}, User: "asks", Secrets: files,
		Query: "SELECT name, secret FROM pgmoor.secret_of($1)",
	}
	defer query.Close()
	database := &pgmoor.CachedSecrets{Source: query, Grace: time.Minute}
	either := pgmoor.SecretSourceFunc(func(ctx context.Context, user string) (pgmoor.Secret, error) {
		s, err := files.Secret(ctx, user)
		if errors.Is(err, pgmoor.ErrNoSecret) {
			return database.Secret(ctx, user)
		}
		return s, err
	})
	p, err := pgmoor.New(nil, pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{"db1:5432"}}, Secrets: either})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(p.Serve(context.Background()))
}
