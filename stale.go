package pgmoor

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/pgmoor/pgmoor/internal/stmts"
	"github.com/pgmoor/pgmoor/internal/wire"
)

// This file keeps shared prepared statements from meaning something else than when they were prepared: under other settings, or
// after a change of the database's tables.

// check asks for the shape of a statement, in front of the next message.
func (s *Session) check(p *stmts.Prepared) {
	s.front()
	s.prefix = wire.AppendHeader(s.prefix, wire.Describe, len(p.Name)+2)
	s.prefix = append(append(append(s.prefix, 'S'), p.Name...), 0)
	s.turn.InjectDescribe()
	s.enter(stmtOp{kind: opCheck, p: p})
}

// noteShape takes a message of the answer to a Describe of a statement into account.
func (s *Session) noteShape(msg []byte) {
	body := msg[wire.HeaderLen:]
	var h maphash.Hash
	h.SetSeed(shapeSeed)
	if msg[0] == wire.ParameterDescription {
		_, _ = h.Write(body)
		s.shape = h.Sum64() | 1
		return
	}
	var prior [8]byte
	binary.BigEndian.PutUint64(prior[:], s.shape)
	_, _ = h.Write(prior[:])
	for len(body) > 2 && msg[0] == wire.RowDescription && len(msg) > int(wire.Length(msg)) {
		name, rest, ok := wire.CString(body[2:])
		if !ok || len(rest) < columnLen {
			break
		}
		_, _ = h.Write(name)
		_, _ = h.Write(rest[6:columnLen]) // the table may be another one of the same kind
		body = rest[columnLen-2:]
	}
	s.shape = h.Sum64() | 1
}

// columnLen is what stands behind the name of a column in a RowDescription.
const columnLen = 18

var shapeSeed = maphash.MakeSeed()

// newest returns the statement of a Parse. A client that prepares again what it has closed before wants it as the database is now:
// from then on everybody's is a new one.
func (s *Session) newest(tail []byte, under string) stmts.Statement {
	base := stmts.Intern(tail, under)
	of := func(generation uint64) stmts.Statement {
		if generation == 0 {
			return base
		}
		return stmts.Intern(tail, under+string(generationMark)+strconv.FormatUint(generation, 10))
	}
	st := of(s.pool.renewed.get(base))
	if i := slices.Index(s.closed, st); i >= 0 {
		s.closed = slices.Delete(s.closed, i, i+1)
		st = of(s.pool.renewed.next(base))
	}
	return st
}

// maxClosed bounds how many statements a session remembers to have closed.
const maxClosed = 8

// noteClosed remembers that the session closed a statement.
func (s *Session) noteClosed(name string) {
	st, known := s.names.Find([]byte(name))
	if !known || st == (stmts.Statement{}) {
		return
	}
	if len(s.closed) >= maxClosed {
		s.closed = slices.Delete(s.closed, 0, 1)
	}
	s.closed = append(s.closed, st)
}

// A renewals counts how often statements were prepared anew because the database may have changed under them. It is safe for
// concurrent use. The zero value is ready.
type renewals struct {
	mu    sync.Mutex
	last  uint64
	count map[stmts.Statement]uint64
}

// maxRenewals bounds what is remembered. A statement that is forgotten is at worst prepared as it was before.
const maxRenewals = 4096

func (r *renewals) get(st stmts.Statement) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count[st]
}

func (r *renewals) next(st stmts.Statement) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count == nil || len(r.count) >= maxRenewals {
		r.count = make(map[stmts.Statement]uint64)
	}
	r.last++
	r.count[st] = r.last
	return r.last
}

// outdated are statements that the server has refused, with the time of that. It is safe for concurrent use. The zero value is ready.
type outdated struct {
	some atomic.Bool
	mu   sync.Mutex
	at   map[stmts.Statement]uint64
}

// set takes note that what was prepared of a statement before a time is not to be used.
func (o *outdated) set(st stmts.Statement, at uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.at == nil || len(o.at) >= maxRenewals {
		o.at = make(map[stmts.Statement]uint64)
	}
	o.at[st] = at
	o.some.Store(true)
}

func (o *outdated) get(st stmts.Statement) uint64 {
	if !o.some.Load() {
		return 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.at[st]
}

// current returns a statement as the server connection has it, nil if that is older than what is known of a change of the database.
func (s *Session) current(st stmts.Statement) *stmts.Prepared {
	if p := s.srv.prepared.Find(st); p != nil && p.At >= s.pool.outdated.get(st) {
		return p
	}
	return nil
}

// outdate sees to it that who prepares the statement of p from now on gets a new one.
func (s *Session) outdate(p *stmts.Prepared) {
	if name, known := s.nameOf(p.St); !known || !s.madeFor(p) || s.names.Shape([]byte(name)) != 0 { // else PostgreSQL would go on refusing it
		s.pool.outdated.set(p.St, s.env.statementIDs.Add(1))
	}
	if p.St == (stmts.Statement{}) || p.St.SQL() { // PREPARE makes a new one anyhow
		return
	}
	under := p.St.Set()
	if i := strings.LastIndexByte(under, generationMark); i >= 0 {
		if _, err := strconv.ParseUint(under[i+1:], 10, 64); err == nil {
			under = under[:i]
		}
	}
	s.pool.renewed.next(stmts.Intern([]byte(p.St.Tail()), under))
}

// generationMark stands between the settings of a statement and the number of its renewal.
const generationMark = '\x03'

// noteStale takes note that the server has refused a plan because the database has changed under it: what is prepared from now on
// is new to all of the pool, if it is not known what was refused.
func (s *Session) noteStale(sc *server, body []byte) {
	p := sc.kept.refused
	sc.kept.refused = nil
	switch {
	case !refusesPlan(body) || string(wire.ErrorField(body, 'C')) == codeInternal && p == nil:
	case p != nil:
		s.outdate(p)
	default:
		s.pool.statementEpoch.Add(1)
	}
}

// readsDifferently are the settings that decide what a text means when it is prepared: those of the analysis of names and
// constants, of rights, and of what the planner may do with it. A statement is shared among sessions that have them alike.
var readsDifferently = map[string]bool{
	"search_path": true, settingRole: true, settingAuthorization: true, "row_security": true, settingStrings: true, settingEncoding: true,
	"datestyle": true, "intervalstyle": true, "timezone": true, "lc_monetary": true, "lc_numeric": true, "lc_time": true, "lc_messages": true,
	"bytea_output": true, "xmloption": true, "xmlbinary": true, "array_nulls": true, "backslash_quote": true, "escape_string_warning": true,
	"transform_null_equals": true, "default_text_search_config": true, "extra_float_digits": true, "quote_all_identifiers": true,
	"plan_cache_mode": true, "from_collapse_limit": true, "join_collapse_limit": true, "constraint_exclusion": true,
	"default_transaction_isolation": true, "default_transaction_read_only": true, "default_transaction_deferrable": true,
	"default_table_access_method": true, "default_tablespace": true, "cursor_tuple_fraction": true, "jit": true,
	"random_page_cost": true, "seq_page_cost": true, "cpu_tuple_cost": true, "cpu_index_tuple_cost": true, "cpu_operator_cost": true,
	"effective_cache_size": true, "work_mem": true, "hash_mem_multiplier": true, "max_parallel_workers_per_gather": true,
}

// readUnder returns the settings of the session that decide what a text means. While they may be changing it is a value that no
// other session has.
func (s *Session) readUnder() string {
	if len(s.dirty) > 0 || s.allReset || s.candUntold || s.untold {
		return strconv.FormatUint(s.env.statementIDs.Add(1), 10)
	}
	if s.set != s.underOf {
		m := s.set.values()
		for name := range m {
			if !readsDifferently[name] && !strings.HasPrefix(name, "enable_") && !strings.Contains(name, ".") {
				delete(m, name)
			}
		}
		s.underOf, s.under = s.set, ""
		if len(m) > 0 {
			s.under = newSettings(m).text.Value()
		}
	}
	return s.under
}
