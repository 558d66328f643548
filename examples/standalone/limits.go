package main

import (
	"errors"
	"flag"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pgmoor/pgmoor"
)

// This file has the flags that bound numbers and ages. Each is named as the field of pgmoor.Config that it sets. Where that has a negative
// value for what never happens, the flag has 0, as PgBouncer's settings do.

// share is a flag of how many instances share the server connections.
type share struct {
	instances int
	service   string
}

// String returns what was given.
func (s *share) String() string {
	if s.instances > 0 {
		return strconv.Itoa(s.instances)
	}
	return s.service
}

// Set takes a number or a name.
func (s *share) Set(text string) error {
	*s = share{}
	if n, err := strconv.Atoi(text); err == nil {
		if s.instances = n; n < 1 {
			return errors.New("there is at least one instance")
		}
		return nil
	}
	if s.service = text; strings.Trim(text, "-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" || text == "" {
		return errors.New("neither a number nor a DNS name")
	}
	return nil
}

// idlePercent sets MaxIdleConnectionsPercent: what is not given is not 0.
func (o *options) idlePercent(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 100 {
		return errors.New("not a percentage, between 0 and 100")
	}
	if o.config.MaxIdleConnectionsPercent = n; n == 0 {
		o.config.MaxIdleConnectionsPercent = pgmoor.NoIdle
	}
	return nil
}

func (o *options) limitFlags(f *flag.FlagSet) {
	c := &o.config
	f.IntVar(&c.MaxConnections, "max-connections", pgmoor.DefaultMaxConnections, "open at most `N` server connections, over all databases and users")
	f.IntVar(&c.MaxConnectionsPercent, "max-connections-percent", 0, "open at most `PERCENT` of the connections that the server has for ordinary users, and no more than\n"+
		"-max-connections where that is given too; the server is asked at each login (default none)")
	f.Func("max-idle-connections-percent", "keep idle server connections beyond -idle-timeout, up to `PERCENT` of what -max-connections-percent is one\n"+
		"of, or else of -max-connections; 0: none (default half of -max-connections-percent, or 0)", o.idlePercent)
	f.Var(&o.share, "instances", "share -max-connections with others: evenly among `N` instances, or among those whose addresses the DNS\n"+
		"name N has, as that of a headless Service in Kubernetes")
	f.IntVar(&o.surge, "surge", 0, "count `N` instances more than there are, which may be added at any time; with -instances")
	f.IntVar(&c.MaxConnectionsPerDatabase, "max-connections-per-database", 0, "of these at most `N` for any one database; 0: no limit")
	f.IntVar(&c.MaxConnectionsPerUser, "max-connections-per-user", 0, "and at most `N` for any one user; 0: no limit")
	f.IntVar(&c.MinConnections, "min-connections", 0, "keep `N` server connections open for each database and user that has clients, where nobody waits for others")
	f.IntVar(&c.MaxOpening, "max-opening", pgmoor.DefaultMaxOpening, "log in at most `N` times at once at each of the servers, over all databases and users")
	f.IntVar(&c.MaxWaiting, "max-waiting", 0, "let at most `N` requests wait for a server connection of one database and user; 0: any number")
	f.IntVar(&c.MaxClients, "max-clients", 0, "let in at most `N` clients; 0: any number")
	f.IntVar(&c.ConnectionRate, "connection-rate", 0, "let in at most `N` clients in each second; 0: any number")
	f.IntVar(&c.MaxHandshakes, "max-handshakes", pgmoor.DefaultMaxHandshakes, "let at most `N` clients log in at once; more wait in the listener's backlog")
	f.IntVar(&c.MaxStatements, "max-statements", pgmoor.DefaultMaxStatements, "keep at most `N` prepared statements on a server connection, for all clients together; beyond it the one\n"+
		"that was not used for the longest time is closed, and prepared again where a client uses it")
	f.StringVar(&c.InitQuery, "init-query", "", "run `STATEMENTS`, with semicolons between them, on each new server connection: what they set is the\n"+
		"clients' default. No place for passwords: other users of this machine see flags in ps")
	o.ageFlags(f)
}

// ages are the durations that may be unlimited.
func (o *options) ages() map[string]*time.Duration {
	c := &o.config
	return map[string]*time.Duration{
		"idle-timeout": &c.IdleTimeout, "max-server-lifetime": &c.MaxServerLifetime, "idle-client-timeout": &c.IdleClientTimeout,
		"max-client-lifetime": &c.MaxClientLifetime, "unpin-interval": &c.UnpinInterval,
	}
}

func (o *options) ageFlags(f *flag.FlagSet) {
	c := &o.config
	c.BorrowTimeout, c.HandshakeTimeout, c.UnpinInterval = pgmoor.DefaultBorrowTimeout, pgmoor.DefaultHandshakeTimeout, pgmoor.DefaultUnpinInterval
	c.IdleTimeout, c.MaxServerLifetime = pgmoor.DefaultIdleTimeout, pgmoor.DefaultMaxServerLifetime
	c.IdleClientTimeout, c.MaxClientLifetime = pgmoor.DefaultIdleClientTimeout, pgmoor.DefaultMaxClientLifetime
	f.Var((*duration)(&c.BorrowTimeout), "borrow-timeout", "let a request wait for a server connection for `DURATION`, and a login for the first one; 0: not at all")
	f.Var((*duration)(&c.HandshakeTimeout), "handshake-timeout", "give a client `DURATION` for TLS and its password. While no server can be reached, a login takes\n"+
		"longer: up to -borrow-timeout, or the DSN's connect_timeout where that is 0")
	f.Var((*duration)(&c.IdleTimeout), "idle-timeout", "close a server connection that was idle for `DURATION`, unless -max-idle-connections-percent keeps it; 0: never")
	f.Var((*duration)(&c.MaxServerLifetime), "max-server-lifetime", "close a server connection of the age `DURATION` or a little less, when nobody uses it; 0: never")
	f.Var((*duration)(&c.IdleClientTimeout), "idle-client-timeout", "disconnect a client that sends nothing for `DURATION`, in a transaction too; 0: never")
	f.Var((*duration)(&c.MaxClientLifetime), "max-client-lifetime", "disconnect a client of the age `DURATION` when it is in no transaction; 0: never")
	f.Var((*duration)(&c.UnpinInterval), "unpin-interval", "ask after `DURATION` whether a pinned client still needs its server connection; 0: only when others wait\n"+
		"for one, or behind a statement that may have ended the reason")
}

// resolveLimits makes of the flags what Config understands. given are the flags that were.
func (o *options) resolveLimits(given map[string]bool) error {
	c := &o.config
	if c.HandshakeTimeout <= 0 {
		return errors.New("-handshake-timeout must be positive")
	}
	if c.MaxConnections <= 0 || c.MaxOpening <= 0 || c.MaxStatements <= 0 || c.MaxHandshakes <= 0 {
		return errors.New("-max-connections, -max-opening, -max-statements and -max-handshakes must be positive")
	}
	if c.BorrowTimeout < 0 || c.BorrowTimeout > pgmoor.MaxBorrowTimeout {
		return fmt.Errorf("-borrow-timeout must be between 0 and %v", pgmoor.MaxBorrowTimeout)
	}
	if c.BorrowTimeout == 0 {
		c.BorrowTimeout = pgmoor.NoWait
	}
	for name, d := range o.ages() {
		if *d < 0 {
			return fmt.Errorf("-%s must not be negative; 0 means never", name)
		}
		if *d == 0 {
			*d = -1
		}
	}
	if c.MaxConnectionsPercent != 0 && !given["max-connections"] {
		c.MaxConnections = 0
	}
	return o.resolveShare()
}

func (o *options) resolveShare() error {
	switch {
	case o.share == share{} && o.surge != 0:
		return errors.New("-surge needs -instances")
	case o.share == share{}:
		return nil
	case o.config.MaxConnections == 0:
		return errors.New("-instances needs -max-connections: how many server connections all instances together may open")
	case o.surge < 0:
		return errors.New("-surge must not be negative")
	case o.share.instances+o.surge > o.config.MaxConnections:
		return fmt.Errorf("-max-connections is %d, which %d instances cannot share", o.config.MaxConnections, o.share.instances+o.surge)
	}
	o.config.Budget = &pgmoor.StaticShare{
		Limit: o.config.MaxConnections, Instances: o.share.instances, Service: o.share.service, Surge: o.surge,
	}
	return nil
}

// allowance says how many server connections there may be.
func (o *options) allowance() string {
	c := &o.config
	var all []string
	if c.MaxConnections > 0 {
		all = append(all, fmt.Sprintf("%d server connections", c.MaxConnections))
	}
	if c.MaxConnectionsPercent > 0 {
		all = append(all, fmt.Sprintf("%d%% of what the server has", c.MaxConnectionsPercent))
	}
	text := strings.Join(all, " and ")
	if c.Budget != nil {
		text += ", shared with other instances (-instances " + o.share.String() + ")"
	}
	return text
}

var (
	fieldNames = regexp.MustCompile(`(Config\.)?\b(Max|Min|Idle|Connection|Init)([A-Z][a-z]+)+\b`)
	wordStarts = regexp.MustCompile(`[A-Z]`)
)

// inFlags says what New has against the Config in terms of flags.
func inFlags(err error) error {
	if err == nil {
		return nil
	}
	text := fieldNames.ReplaceAllStringFunc(plain(err), func(field string) string {
		return wordStarts.ReplaceAllStringFunc(strings.TrimPrefix(field, "Config."), func(c string) string { return "-" + strings.ToLower(c) })
	})
	return errors.New(strings.Replace(text, "negative: no limit", "0: never", 1))
}
