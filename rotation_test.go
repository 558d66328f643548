package pgmoor_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// rotated is a crowd that knows the password of the moment, or the one of a moment ago.
type rotated struct {
	addr     string
	password atomic.Value
}

func (r *rotated) connect(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("postgres://pw_scram:%s@%s/app?sslmode=disable", r.password.Load(), r.addr))
}

// comes logs in anew each time, and runs a transaction.
func (r *rotated) comes(c *crowd, _ int) error {
	ctx := context.Background()
	for !c.stop.Load() {
		conn, err := r.connect(ctx)
		if err != nil {
			return fmt.Errorf("login: %w", err)
		}
		_, err = conn.Exec(ctx, "SELECT 1")
		_ = conn.Close(ctx)
		if err != nil {
			return err
		}
		c.trips.Add(1)
	}
	return nil
}

// transacts stays, and runs transactions.
func (r *rotated) transacts(c *crowd, _ int) error {
	ctx := context.Background()
	conn, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for !c.stop.Load() {
		if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "SELECT pg_sleep(0.001)")
			return err
		}); err != nil {
			return fmt.Errorf("transaction: %w", err)
		}
		c.trips.Add(1)
	}
	return nil
}

// TestAPasswordIsChangedTwentyTimesUnderLoad changes it on the server before or after the source and the clients know of it, and has server
// connections end all the time, so that others are opened at every moment.
func TestAPasswordIsChangedTwentyTimesUnderLoad(t *testing.T) {
	for _, version := range pgtest.Versions {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			cluster := pgtest.Start(t, version)
			path := filepath.Join(t.TempDir(), "users.txt")
			tell := func(pw string) { writeAged(t, path, fmt.Sprintf("\"pw_scram\" %q\n", pw), time.Second) }
			tell(pgtest.Password)
			cfg := pgmoor.Config{
				Upstream: pgmoor.Upstream{Hosts: []string{cluster.Addr()}, SSLMode: "disable"}, MaxConnections: 6, Logger: quiet,
				Secrets: &pgmoor.CachedSecrets{
					Source: &pgmoor.FileSecrets{Path: path, Interval: 5 * time.Millisecond, Logger: quiet},
					TTL:    20 * time.Millisecond, RefreshInterval: 5 * time.Millisecond, Logger: quiet,
				},
			}
			p := startProxy(t, cfg)
			r := &rotated{addr: p.Addr().String()}
			r.password.Store(pgtest.Password)
			c := gather(t, r.addr, 4, r.comes, r.transacts)
			var stop atomic.Bool
			var wg sync.WaitGroup
			wg.Go(func() {
				for !stop.Load() {
					_ = within(5*time.Millisecond, p.Reconnect)
					c.progress()
				}
			})
			for i := range 20 {
				c.progress()
				pw := fmt.Sprintf("%s-%d", pgtest.Password, i)
				steps := []func(){
					func() { cluster.Exec(t, fmt.Sprintf("ALTER ROLE pw_scram PASSWORD '%s'", pw)) },
					func() { tell(pw) },
				}
				if i%2 == 0 {
					steps[0], steps[1] = steps[1], steps[0]
				}
				steps[0]()
				time.Sleep(20 * time.Millisecond) // one knows, the other does not
				steps[1]()
				time.Sleep(30 * time.Millisecond) // and the clients a moment later
				r.password.Store(pw)
			}
			c.progress()
			stop.Store(true)
			wg.Wait()
			require.GreaterOrEqual(t, c.disperse(), int64(21*20), "20 for each progress")
			require.Zero(t, p.Stats().LoginFailures)
			require.Zero(t, p.Stats().BorrowTimeouts)
		})
	}
}
