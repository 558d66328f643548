package pgmoor

import "net"

// WithPlainIO returns cfg with every connection on the ordinary path.
func WithPlainIO(cfg Config) Config { cfg.plainIO = true; return cfg }

// WithRotation returns cfg with server connections lent in turn.
func WithRotation(cfg Config) Config { cfg.RoundRobin = true; return cfg }

// ConnOf returns the connection that a client's session reads and writes.
func ConnOf(c *Client) net.Conn { return c.conn }

// A ParameterRow is what the documentation has of a number or duration of Config.
type ParameterRow struct{ Name, RDS, Bouncer, Default, Range, Edge string }

// Parameters returns those rows.
func Parameters() (rows []ParameterRow) {
	for i := range parameters {
		p := &parameters[i]
		def := p.zero
		if p.def != 0 {
			def = p.show(p.def)
		}
		rows = append(rows, ParameterRow{p.name, p.rds, p.bouncer, def, p.bounds(), p.edge})
	}
	return rows
}

// ClientFrom returns a client for an Authenticator that asks it nothing.
func ClientFrom(a net.Addr, user string) *Client {
	return &Client{conn: (*net.TCPConn)(nil), from: a, user: user}
}

// RememberedOrigins returns how many origins a throttle remembers.
func RememberedOrigins(a Authenticator) int { return len(a.(*throttle).seen.Load().known) }

// CleartextCost returns the iterations that each login costs.
func CleartextCost(a Authenticator) int64 { return a.(*cleartextAuth).cost.Load() }

// SpendCleartext does the work that a login of a user with the secret lacks.
func SpendCleartext(a Authenticator, secret Secret, password string) {
	a.(*cleartextAuth).spend(secret, password)
}

// SameSecret reports whether two secrets are the same text.
func SameSecret(a, b Secret) bool { return a.same(b) }

// PreviousOf returns what a secret was before.
func PreviousOf(s Secret) Secret { return s.previous() }

// RememberedUsers returns how many users a cache knows something of.
func RememberedUsers(c *CachedSecrets) int { return len(c.users) }

// Replaces reports whether a is known to have taken the place of b.
func Replaces(a, b Secret) bool { return a.replaces(b) }
