package pgmoor

import (
	"fmt"
	"strconv"
	"time"
)

// This file has the bounds of Config's numbers and durations. docs/configuration.md has a table that a test makes of them.

// A parameter is a number or a duration of [Config].
type parameter struct {
	name         string
	rds, bouncer string // what RDS Proxy and PgBouncer call it; may be empty
	count        func(*Config) int
	span         func(*Config) time.Duration // nil: it is a number
	def          int64                       // what zero stands for; 0: nothing
	least, most  int64                       // of values beyond zero; 0: any
	negative     string                      // what such a value means; "": it is refused
	only         int64                       // the only negative value; 0: any
	zero         string                      // what zero means, where that is more than def says
	edge         string                      // what happens beyond
	unit         string                      // of a number that is none of things
}

const (
	noLimit    = "no limit"
	tooMany    = "the next gets 53300 at once"
	waitsInRow = "requests wait, in order, for BorrowTimeout"
)

// parameters are in the order of Config.
var parameters = []parameter{
	{
		name: "MaxConnections", bouncer: "max_db_connections, over all databases", count: func(c *Config) int { return c.MaxConnections },
		def: DefaultMaxConnections, edge: waitsInRow + "; idle connections of other users and databases make room, and none may keep more than its share",
	},
	{
		name: "MaxConnectionsPercent", rds: "MaxConnectionsPercent", count: func(c *Config) int { return c.MaxConnectionsPercent },
		least: 1, most: 100, zero: "none: MaxConnections alone", edge: "as MaxConnections; connections beyond a limit that has shrunk are closed when nobody uses them",
	},
	{
		name: "MaxIdleConnectionsPercent", rds: "MaxIdleConnectionsPercent", count: func(c *Config) int { return c.MaxIdleConnectionsPercent },
		least: 1, most: 100, negative: "NoIdle (none is kept; RDS Proxy's 0)", only: NoIdle, zero: "half of MaxConnectionsPercent",
		edge: "those idle for IdleTimeout are closed, the longest idle first",
	},
	{
		name: "MaxConnectionsPerDatabase", bouncer: "max_db_connections", count: func(c *Config) int { return c.MaxConnectionsPerDatabase },
		zero: noLimit, edge: "as MaxConnections, among the database's users",
	},
	{
		name: "MaxConnectionsPerUser", bouncer: "max_user_connections", count: func(c *Config) int { return c.MaxConnectionsPerUser },
		zero: noLimit, edge: "as MaxConnections, among the user's databases",
	},
	{
		name: "MinConnections", bouncer: "min_pool_size", count: func(c *Config) int { return c.MinConnections },
		zero: "none", edge: "below it connections are opened, where MaxConnections has room",
	},
	{
		name: "MaxOpening", count: func(c *Config) int { return c.MaxOpening },
		def: DefaultMaxOpening, edge: "logins wait for their turn",
	},
	{
		name: "MaxWaiting", count: func(c *Config) int { return c.MaxWaiting },
		zero: noLimit, edge: tooMany,
	},
	{
		name: "BorrowTimeout", rds: "ConnectionBorrowTimeout", bouncer: "query_wait_timeout", span: func(c *Config) time.Duration { return c.BorrowTimeout },
		def: int64(DefaultBorrowTimeout), most: int64(MaxBorrowTimeout), negative: "NoWait (an error unless one is idle; RDS Proxy's 0)", only: int64(NoWait),
		edge: "the request fails with 08000",
	},
	{
		name: "IdleTimeout", rds: "fixed at 5 minutes", bouncer: "server_idle_timeout", span: func(c *Config) time.Duration { return c.IdleTimeout },
		def: int64(DefaultIdleTimeout), negative: noLimit, edge: "the server connection is closed, unless MaxIdleConnectionsPercent keeps it",
	},
	{
		name: "MaxServerLifetime", rds: "fixed at 24 hours", bouncer: "server_lifetime", span: func(c *Config) time.Duration { return c.MaxServerLifetime },
		def: int64(DefaultMaxServerLifetime), negative: noLimit, edge: "the server connection is closed when nobody uses it, up to a tenth earlier",
	},
	{
		name: "IdleClientTimeout", rds: "IdleClientTimeout", bouncer: "client_idle_timeout, idle_transaction_timeout", span: func(c *Config) time.Duration { return c.IdleClientTimeout },
		def: int64(DefaultIdleClientTimeout), least: int64(MinIdleClientTimeout), most: int64(MaxIdleClientTimeout), negative: noLimit,
		edge: "57P05, and the transaction is rolled back",
	},
	{
		name: "MaxClientLifetime", rds: "fixed at 24 hours", span: func(c *Config) time.Duration { return c.MaxClientLifetime },
		def: int64(DefaultMaxClientLifetime), negative: noLimit, edge: "57P01 at the end of the transaction",
	},
	{
		name: "MaxClients", rds: "not published", bouncer: "max_client_conn", count: func(c *Config) int { return c.MaxClients },
		zero: noLimit, edge: tooMany,
	},
	{
		name: "ConnectionRate", rds: "not published", count: func(c *Config) int { return c.ConnectionRate },
		zero: noLimit, edge: tooMany,
	},
	{
		name: "MaxHandshakes", count: func(c *Config) int { return c.MaxHandshakes },
		def: DefaultMaxHandshakes, edge: "connections wait in the listener's backlog",
	},
	{
		name: "HandshakeTimeout", bouncer: "client_login_timeout", span: func(c *Config) time.Duration { return c.HandshakeTimeout },
		def: int64(DefaultHandshakeTimeout), edge: "57014",
	},
	{
		name: "InitQuery", rds: "InitQuery", bouncer: "connect_query", count: func(c *Config) int { return len(c.InitQuery) },
		most: MaxInitQuery, unit: " bytes", zero: "nothing is run", edge: "where it fails, the server connection is closed, and clients that wait for the first get its error",
	},
	{
		name: "MaxStatements", bouncer: "max_prepared_statements", count: func(c *Config) int { return c.MaxStatements },
		def: DefaultMaxStatements, edge: "the statement unused for longest is closed",
	},
	{
		name: "UnpinInterval", span: func(c *Config) time.Duration { return c.UnpinInterval },
		def: int64(DefaultUnpinInterval), negative: "no time makes the server asked", edge: "the server is asked what is left of the pin's reason",
	},
	{
		name: "Upstream.ConnectTimeout", bouncer: "server_connect_timeout", span: func(c *Config) time.Duration { return c.Upstream.ConnectTimeout },
		def: int64(DefaultConnectTimeout), edge: "the login fails and is tried again",
	},
}

func (p *parameter) get(c *Config) int64 {
	if p.span != nil {
		return int64(p.span(c))
	}
	return int64(p.count(c))
}

// check returns an error where c has a value that makes no sense.
func (p *parameter) check(c *Config) error {
	v := p.get(c)
	switch {
	case v == 0, v < 0 && p.negative != "" && (p.only == 0 || v == p.only):
		return nil
	case v > 0 && v >= p.least && (p.most == 0 || v <= p.most):
		return nil
	}
	return fmt.Errorf("pgmoor: Config.%s is %s: it must be %s", p.name, p.show(v), p.bounds())
}

func (p *parameter) show(v int64) string {
	if p.span != nil {
		return time.Duration(v).String()
	}
	return strconv.FormatInt(v, 10) + p.unit
}

// bounds says which values are allowed.
func (p *parameter) bounds() string {
	text := p.show(0) + " or more"
	switch {
	case p.least > 0 && p.most > 0:
		text = "between " + p.show(p.least) + " and " + p.show(p.most)
	case p.most > 0:
		text = "at most " + p.show(p.most)
	}
	switch {
	case p.negative == "":
		return text
	case p.only != 0:
		return text + ", or " + p.negative
	}
	return text + ", or negative: " + p.negative
}
