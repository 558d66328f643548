package pgmoor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file prepares server connections before anybody gets them: Config.InitQuery is run, and what it has set is where sessions begin
// and what RESET returns to. To the server such settings are the session's own, and RESET returns to those of the login: at the
// next boundary the session is given back what it has reset, as settings that are carried like those that clients make.

// initial is what is run on every new connection of a pool.
type initial struct {
	text  string
	query []byte   // it, as a message; nil: nothing is run
	named []string // settings that it may make and that the server does not list
}

func newInitial(text string) initial {
	if strings.Trim(text, " \t\r\n;") == "" {
		return initial{}
	}
	in := initial{text: text, query: wire.AppendQuery(nil, text)}
	for _, r := range sqlscan.NewCache(1).Inspect([]byte(text), true).Settings {
		if strings.Contains(r.Name, ".") || r.Name == settingRole || r.Name == settingAuthorization {
			in.named = append(in.named, r.Name)
		}
	}
	slices.Sort(in.named)
	in.named = slices.Compact(in.named)
	return in
}

// initError is why a connection on which InitQuery did not do what it should is of no use.
type initError struct{ cause error }

// Error returns the cause, and what it is about.
func (e *initError) Error() string { return "Config.InitQuery: " + e.cause.Error() }

// Unwrap returns the cause.
func (e *initError) Unwrap() error { return e.cause }

// initHint says that a login failed because of InitQuery, if it did.
func initHint(err error) string {
	var e *initError
	if !errors.As(err, &e) {
		return ""
	}
	return "The proxy's initialization query failed on the new server connection."
}

// prepare makes a new connection ready for clients.
func (u *upstream) prepare(ctx context.Context, c newConn, li *loggedIn) error {
	if u.asksMax {
		var err error
		if li.available, err = availableOn(ctx, c); err != nil {
			return err
		}
	}
	if u.initial.query == nil {
		return nil
	}
	li.initial = &u.initial
	if err := u.initialize(ctx, c, li); err != nil {
		return &initError{cause: err}
	}
	li.statuses = renewed(li.statuses, c)
	return nil
}

// initialize runs InitQuery and reads what it has set.
func (u *upstream) initialize(ctx context.Context, c newConn, li *loggedIn) error {
	if _, err := c.run(ctx, u.initial.text); err != nil {
		return err
	}
	if c.pc.TxStatus() != 'I' {
		return &Error{Code: codeActiveTransaction, Message: "the initialization query leaves a transaction open"}
	}
	m, err := u.initial.read(ctx, c)
	if err != nil {
		return err
	}
	size := 0
	for k, v := range m {
		size += len(k) + len(v)
	}
	if size > maxSettings/2 {
		return &Error{Code: codeLimitExceeded, Message: fmt.Sprintf("the initialization query sets parameters of more than %d bytes", maxSettings/2)}
	}
	li.set = newSettings(m)
	return nil
}

// read asks for all settings that are not those of the login.
func (in *initial) read(ctx context.Context, c newConn) (map[string]string, error) {
	q := `SELECT name, ` + fmt.Sprintf(`pg_catalog.left(pg_catalog.current_setting(name),%d)`, maxSettings) +
		` FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session'`
	for _, n := range in.named {
		q += ` UNION ALL SELECT ` + quote(n) + `, ` + shown(n)
	}
	rows, err := c.run(ctx, q)
	if err != nil {
		return nil, err
	}
	m := make(map[string]string)
	for _, r := range rows {
		if name := foldName(r[0]); len(r) == 2 && r[1] != nil && !ofTransaction[name] && (name != settingRole || string(r[1]) != "none") {
			m[name] = string(r[1])
		}
	}
	return m, nil
}

// availableOn returns how many connections the server has for ordinary users.
func availableOn(ctx context.Context, c newConn) (int, error) {
	rows, err := c.run(ctx, availableQuery)
	if err != nil || len(rows) != 1 {
		return 0, err
	}
	n := 0
	for i, v := range rows[0] { // the first less the others, of which one is new in PostgreSQL 16
		k, err := strconv.Atoi(string(v))
		switch {
		case i == 0 && err != nil:
			return 0, fmt.Errorf("max_connections: %w", err)
		case i == 0:
			n = k
		default:
			n -= k
		}
	}
	return max(n, 1), nil
}

const availableQuery = `SELECT pg_catalog.current_setting('max_connections'), pg_catalog.current_setting('superuser_reserved_connections'), ` +
	`pg_catalog.current_setting('reserved_connections', true)`

// renewed returns ParameterStatus messages with the values that the connection has now.
func renewed(statuses []byte, c newConn) (out []byte) {
	for b := statuses; len(b) >= wire.HeaderLen; {
		n := int(wire.Length(b)) + 1
		if name, value, ok := status(b[:n]); ok {
			if now := c.pc.ParameterStatus(string(name)); now != "" {
				value = []byte(now)
			}
			out = wire.AppendStatus(out, string(name), string(value))
		}
		b = b[n:]
	}
	return out
}

// begin gives a new session the settings that a connection of the pool begins with.
func (s *Session) begin() {
	s.pool.mu.Lock()
	s.base = s.pool.base
	s.pool.mu.Unlock()
	s.set = s.base
}

// resetsBase reports whether settings may have been reset that InitQuery had set: the session's next message waits until they are known,
// and goes to a connection that has them.
func (s *Session) resetsBase(dirty map[string]touch) bool {
	if s.base == (settings{}) {
		return false
	}
	base := s.base.values()
	for name, t := range dirty {
		if _, ok := base[name]; ok && t&touchReset != 0 {
			return true
		}
	}
	return false
}

// restored returns what the session has set after a query of the proxy's own has shown what the server has: that, and what
// InitQuery set and the session has reset. The client is told of such values that the server reports. The caller holds mu.
func (s *Session) restored(sc *server, shown settings, dirty map[string]touch) settings {
	if s.base == (settings{}) {
		return shown
	}
	m := shown.values()
	old := maps.Clone(m)
	for name, value := range s.base.values() {
		v, has := m[name]
		if !has || v == "" && strings.Contains(name, ".") && dirty[name] == touchReset {
			m[name] = value
		}
	}
	if maps.Equal(m, old) {
		return shown
	}
	for b := sc.welcome; len(b) >= wire.HeaderLen; {
		n := int(wire.Length(b)) + 1
		if name, _, ok := reported(b[:n]); ok && old[name] != m[name] && sc.reports[name] != m[name] {
			as, _, _ := status(b[:n])
			sc.extra = wire.AppendStatus(sc.extra, string(as), m[name])
		}
		b = b[n:]
	}
	return newSettings(m)
}

// learn takes note of what a new connection has shown of the server.
func (p *pool) learn(li *loggedIn) {
	if li.available == 0 {
		return
	}
	p.env.available.Store(int64(li.available))
	_, was := p.budget.usage()
	p.env.limit(p.budget)
	if _, limit := p.budget.usage(); was != limit {
		p.env.log.Info("pgmoor: limit on server connections", slog.Int("limit", limit), slog.Int("available", li.available), slog.Int("percent", p.env.config().MaxConnectionsPercent))
	}
}

// limit has the budget of all pools follow the configuration and the server.
func (e *env) limit(b *budget) {
	b.setOwn(func(was int) int { return e.config().ownLimit(int(e.available.Load()), was) })
}
