package pgmoor_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
	"github.com/pgmoor/pgmoor/internal/pgtest"
)

// granted is a configuration whose budget the test decides about, and what it does that with. What Share returns comes from the
// channel.
func granted() (pgmoor.Config, chan *pgmoor.Share) {
	shares := make(chan *pgmoor.Share, 1)
	return pgmoor.Config{Budget: pgmoor.BudgetFunc(func(ctx context.Context, s *pgmoor.Share) error {
		shares <- s
		<-ctx.Done()
		return nil
	})}, shares
}

func TestNothingIsOpenedBeforeTheBudgetGrantsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, shares := granted()
		server := new(fake)
		r := newRig(t, cfg, server)
		s := <-shares
		c := r.dialClient(t)
		told := make(chan reply, 1)
		go func() { told <- c.startup("u") }()
		time.Sleep(10 * time.Second)
		open, _, _, _ := server.counts()
		require.Zero(t, open)
		require.Equal(t, pgmoor.Demand{Waiting: 1}, s.Demand())
		s.Grant(1)
		require.EqualValues(t, 'I', (<-told).status)
		c.ok("SELECT 1")
		synctest.Wait()
		require.Equal(t, pgmoor.Demand{Granted: 1, Open: 1, Idle: 1}, s.Demand())
	})
}

func TestALesserGrantClosesIdleConnectionsAtOnceAndOthersWhenTheyComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, shares := granted()
		server := new(fake)
		r := newRig(t, cfg, server)
		s := <-shares
		s.Grant(5)
		all := make([]*client, 5)
		for i := range all {
			all[i] = r.connect(t, fmt.Sprint("u", i%2))
			all[i].ok("BEGIN")
		}
		for _, c := range all[:2] {
			c.ok("COMMIT")
		}
		synctest.Wait()
		require.Equal(t, pgmoor.Demand{Granted: 5, Open: 5, Idle: 2}, s.Demand())
		s.Grant(1)
		synctest.Wait()
		require.Equal(t, pgmoor.Demand{Granted: 1, Open: 3}, s.Demand())
		all[2].ok("SELECT 1", "COMMIT")
		all[3].ok("COMMIT")
		synctest.Wait()
		require.Equal(t, pgmoor.Demand{Granted: 1, Open: 1}, s.Demand())
		all[4].ok("COMMIT")
		synctest.Wait()
		require.Equal(t, pgmoor.Demand{Granted: 1, Open: 1, Idle: 1}, s.Demand())
		for _, c := range all { // one after the other, by turns of two users
			c.ok("SELECT 1")
			synctest.Wait()
			require.LessOrEqual(t, s.Demand().Open, 1)
		}
		s.Grant(0)
		synctest.Wait()
		require.Equal(t, pgmoor.Demand{}, s.Demand())
		open, _, _, _ := server.counts()
		require.Zero(t, open)
	})
}

func TestAGreaterGrantWakesThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, shares := granted()
		r := newRig(t, cfg, new(fake))
		s := <-shares
		s.Grant(1)
		holder, other := r.connect(t, "u"), r.connect(t, "u")
		holder.ok("BEGIN")
		<-s.Changed()
		other.ask("SELECT 1")
		synctest.Wait()
		<-s.Changed() // it was wanted in vain
		require.Equal(t, pgmoor.Demand{Granted: 1, Open: 1, Waiting: 1}, s.Demand())
		s.Grant(2)
		require.Nil(t, other.reply().err)
	})
}

func TestAGrantIsBoundedByMaxConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, shares := granted()
		cfg.MaxConnections = 3
		newRig(t, cfg, new(fake))
		s := <-shares
		s.Grant(10)
		require.Equal(t, 3, s.Demand().Granted)
		require.Equal(t, 3, s.Most())
		s.Grant(-1)
		require.Zero(t, s.Demand().Granted)
	})
}

func TestACutEndsWhatIsInUseAndLoginsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, shares := granted()
		server := new(fake)
		r := newRig(t, cfg, server)
		s := <-shares
		s.Grant(4)
		busy, txn, kept := r.connect(t, "u"), r.connect(t, "u"), r.connect(t, "u")
		busy.ask("hang")
		txn.ok("BEGIN")
		synctest.Wait()
		server.setSlow(20 * time.Second)
		kept.ask("SELECT 1")
		time.Sleep(time.Second)
		require.Equal(t, pgmoor.Demand{Granted: 4, Open: 3, Waiting: 1}, s.Demand())
		s.Grant(0)
		require.Equal(t, 3, s.Demand().Open)
		before := time.Now()
		s.Cut()
		synctest.Wait()
		require.Equal(t, pgmoor.Demand{Waiting: 1}, s.Demand())
		require.Less(t, time.Since(before), time.Second)
		require.Equal(t, "08007", busy.reply().code())
		require.Equal(t, "40001", txn.query("SELECT 1").code())
		txn.ok("ROLLBACK")
		server.setSlow(0)
		s.Grant(1)
		require.Nil(t, kept.reply().err)
		busy.ok("SELECT 1")
	})
}

func TestTheBudgetEndsBehindTheLastConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last pgmoor.Demand
		server := new(fake)
		r := newRig(t, pgmoor.Config{Budget: pgmoor.BudgetFunc(func(ctx context.Context, s *pgmoor.Share) error {
			s.Grant(2)
			<-ctx.Done()
			last = s.Demand()
			return ctx.Err()
		})}, server)
		r.connect(t, "u").ok("BEGIN")
		require.NoError(t, r.Close())
		require.Equal(t, pgmoor.Demand{Granted: 2}, last)
	})
}

func TestABudgetThatFailsIsLoggedAndItsLastGrantStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(logBuffer)
		r := newRig(t, pgmoor.Config{Logger: slog.New(slog.NewTextHandler(log, nil)), Budget: pgmoor.BudgetFunc(func(_ context.Context, s *pgmoor.Share) error {
			s.Grant(1)
			return errors.New("gone fishing")
		})}, new(fake))
		r.connect(t, "u").ok("SELECT 1")
		synctest.Wait()
		require.Contains(t, log.text(), "gone fishing")
	})
}

func TestClientsAreToldThatNothingWasGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := granted()
		cfg.BorrowTimeout = time.Second
		r := newRig(t, cfg, new(fake))
		got := r.dialClient(t).startup("u")
		require.Equal(t, "08000", got.code())
		require.Contains(t, got.err.Hint, "This instance was granted no server connection")
	})
}

// TestAConnectionCountsUntilTheServerIsRidOfIt is about what the server still does for clients that were cut off.
func TestAConnectionCountsUntilTheServerIsRidOfIt(t *testing.T) {
	onBoth(t, func(t *testing.T, version int) {
		cluster := pgtest.Shared(t, version)
		cfg, shares := granted()
		cfg.Upstream, cfg.Authenticator, cfg.Logger = trusting(cluster).Upstream, pgmoor.Trust(), quiet
		p := startProxy(t, cfg)
		s := <-shares
		s.Grant(3)
		direct := directly(t, cluster, "postgres")
		name := fmt.Sprintf("counted%d", version)
		all := make([]*client, 3)
		for i := range all {
			all[i] = overAs(t, p, "app", "application_name", name)
			all[i].ok("BEGIN")
		}
		all[0].ask("SELECT pg_sleep(600)")
		all[1].ok("COMMIT")
		requireSoon(t, func() bool {
			return direct.ok("SELECT count(*) FROM pg_stat_activity WHERE application_name = '"+name+"' AND wait_event = 'PgSleep'") == "1"
		})
		s.Grant(0)
		s.Cut()
		for s.Demand().Open > 0 {
			<-s.Changed()
		}
		require.Equal(t, "0", direct.ok("SELECT count(*) FROM pg_stat_activity WHERE application_name = '"+name+"'"))
	})
}

// requireSoon looks until cond is true.
func requireSoon(t testing.TB, cond func() bool) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(limit))
	}
}

func TestStaticShareDividesByAFixedNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := new(fake)
		r := newRig(t, pgmoor.Config{Budget: &pgmoor.StaticShare{Limit: 11, Instances: 3, Surge: 2}, BorrowTimeout: time.Second}, server)
		held := []*client{r.connect(t, "u"), r.connect(t, "u")}
		for _, c := range held {
			c.ok("BEGIN")
		}
		require.Contains(t, r.connect(t, "u").query("SELECT 1").err.Hint, "All 2 of 2 server connections are in use")
	})
}

func TestStaticShareFollowsTheNumberOfInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var there atomic.Int32 // instances; less than 0: nobody knows
		there.Store(-1)
		b := &pgmoor.StaticShare{Limit: 60, Service: "pgmoor.example", Surge: 1, Interval: 10 * time.Second, Window: time.Minute, Logger: quiet}
		b.Lookup = func(_ context.Context, host string) ([]string, error) {
			require.Equal(t, "pgmoor.example", host)
			n := int(there.Load())
			if n < 0 {
				return nil, &net.DNSError{Err: "away", IsTimeout: true}
			}
			addresses := slices.Repeat([]string{"2001:db8::1"}, n) // the same again and again
			for i := range n {
				addresses = append(addresses, fmt.Sprint("10.0.0.", i))
			}
			return addresses, nil
		}
		r := newRig(t, pgmoor.Config{Budget: b, MaxConnections: 100}, new(fake))
		limit := func(wait time.Duration) int {
			time.Sleep(wait)
			synctest.Wait()
			return r.Stats().ServersGranted
		}
		require.Zero(t, limit(0), "nothing is known")
		there.Store(2)
		require.Equal(t, 20, limit(10*time.Second))
		there.Store(3) // one more, as in a rollout
		require.Equal(t, 15, limit(10*time.Second))
		there.Store(2)
		require.Equal(t, 15, limit(50*time.Second), "the greatest number of the window counts")
		require.Equal(t, 20, limit(30*time.Second))
		there.Store(-1)
		require.Equal(t, 20, limit(10*time.Hour), "without the DNS the last number stands")
		there.Store(0)
		require.Equal(t, 20, limit(10*time.Hour), "so it does without addresses")
		there.Store(59)
		require.Equal(t, 1, limit(10*time.Second))
		there.Store(60)
		require.Zero(t, limit(10*time.Second), "there is not one for each")
	})
}

func TestStaticShareRefusesWhatCannotBeDivided(t *testing.T) {
	for want, b := range map[string]*pgmoor.StaticShare{
		"Limit must be positive":         {Instances: 1},
		"must not be negative":           {Limit: 1, Instances: 1, Surge: -1},
		"needs Instances":                {Limit: 1},
		"which 4 instances cannot share": {Limit: 3, Instances: 3, Surge: 1},
	} {
		_, err := pgmoor.New(nil, pgmoor.Config{Upstream: pgmoor.Upstream{Hosts: []string{"h"}}, Budget: b})
		require.ErrorContains(t, err, want)
	}
}
