package pgmoor

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
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
func noteShape(sh *stmts.Shape, msg []byte) {
	body := msg[wire.HeaderLen:]
	var h maphash.Hash
	h.SetSeed(shapeSeed)
	if msg[0] == wire.ParameterDescription {
		if string(body) != sh.Params { // as a string of its own
			sh.Params = paramsKept(body)
		}
		if sh.Params == "" {
			_, _ = h.Write(body)
		}
		sh.Columns = h.Sum64() | 1
		return
	}
	var prior [8]byte
	binary.BigEndian.PutUint64(prior[:], sh.Columns)
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
	sh.Columns = h.Sum64() | 1
}

// maxShapeParams bounds the types of parameters that are kept of a statement.
const maxShapeParams = 2 + 4*64

// noParams is the body of a ParameterDescription of a statement without parameters.
const noParams = "\x00\x00"

// paramsKept returns what is kept of the body of a ParameterDescription.
func paramsKept(body []byte) string {
	switch {
	case string(body) == noParams: // most are so, and cost nothing
		return noParams
	case len(body) > maxShapeParams:
		return ""
	}
	return string(body)
}

// spell makes a statement of the session's one with the parameters that the session was told, if they are what has changed: PostgreSQL
// finds the types that a client leaves open when it prepares the statement and never again.
func (s *Session) spell(name []byte, p *stmts.Prepared, told stmts.Shape) bool {
	if told.Params == "" || told.Params == p.Shape.Params || p.St.SQL() {
		return false
	}
	st := p.St.Spelled(told.Params)
	if st == p.St {
		return false
	}
	s.noteClosed(string(name)) // the same Parse will mean another one
	s.names.Set(string(name), st)
	s.names.SetShape(name, told)
	return true
}

// failsAnyhow reports whether a Bind or Describe is in a failed transaction block, where the server refuses it whatever the statement
// returns, or describes one that returns nothing: there is nothing to compare, and nothing can be prepared.
func (s *Session) failsAnyhow(typ byte, a act, st stmts.Statement, told stmts.Shape) bool {
	return s.turn.Status() == 'E' && s.turn.Ready() == 0 && (a.info == nil || a.info.Effects&sqlscan.TxnEnd == 0) &&
		(typ == wire.Bind || s.srv.prepared.Find(st) != nil || told.Params != "" && told == withoutColumns(told.Params))
}

// returnsNothing reports whether a Describe is of a statement that is not there and was told to return nothing: the server then answers what
// it knows, even where what the statement works on is gone.
func (s *Session) returnsNothing(typ byte, st stmts.Statement, told stmts.Shape) bool {
	return typ == wire.Describe && told.Params != "" && s.current(st) == nil && told == withoutColumns(told.Params)
}

// provideFailing is provide for what failsAnyhow. A Bind or Describe of what is not there gets an empty statement with as many parameters,
// which the server refuses, or describes, as it would have the other.
func (s *Session) provideFailing(msg, name []byte, at int, st stmts.Statement, told stmts.Shape, first bool) (*stmts.Prepared, stop) {
	p := s.srv.prepared.Find(st)
	if p == nil {
		if !first {
			return nil, stopPrime
		}
		tail := append([]byte{0}, s.paramsOf(msg, name, at, st, told)...)
		if st = stmts.Intern(tail, ""); s.srv.prepared.Find(st) == nil {
			s.prepare(s.freeName(stmts.Cut(name)), st)
		}
		p = s.srv.prepared.Find(st)
		if s.standNames == nil {
			s.standNames = make(map[stmts.Statement]string)
		}
		s.standNames[st] = string(stmts.Cut(name))
	}
	return p, s.rename(msg, name, at, p.Name, first)
}

const oidText = 25 // of the type text

// withoutColumns is what is told of a statement that returns nothing.
func withoutColumns(params string) (sh stmts.Shape) {
	noteShape(&sh, appendParams(nil, params))
	noteShape(&sh, []byte{wire.NoData, 0, 0, 0, 4})
	return sh
}

// paramsOf returns the number and types of the parameters that the statement of a Bind or Describe has, as the session was told; if it was
// not, as many as its text mentions, or, where only PREPARE says how many those are, as the Bind has, of any type.
func (s *Session) paramsOf(msg, name []byte, at int, st stmts.Statement, told stmts.Shape) []byte {
	if told.Params != "" {
		return []byte(told.Params)
	}
	n := min(max(0, boundCount(msg, name, at)), int(wire.Length(msg))/4) // each takes four bytes at least
	if !st.SQL() {
		text, rest, _ := wire.CString([]byte(st.Tail()))
		n = sqlscan.Params(text, s.strings)
		if len(rest) >= 2 {
			n = max(n, int(binary.BigEndian.Uint16(rest)))
		}
	}
	params := make([]byte, 2+4*n)
	binary.BigEndian.PutUint16(params, uint16(n))
	for i := range n {
		binary.BigEndian.PutUint32(params[2+4*i:], oidText)
	}
	return params
}

// boundCount returns how many parameters a Bind has, or -1 if that is not there.
func boundCount(msg, name []byte, at int) int {
	rest := msg[at+len(name)+1:]
	if len(rest) < 2 {
		return -1
	}
	formats := int(binary.BigEndian.Uint16(rest))
	if rest = rest[2:]; len(rest) < 2*formats+2 {
		return -1
	}
	return int(binary.BigEndian.Uint16(rest[2*formats:]))
}

// misfits reports whether a Bind has another number of parameters than the statement, which the server finds before it looks whether the
// statement can be run.
func misfits(msg, name []byte, at int, told stmts.Shape) bool {
	if msg[0] != wire.Bind || told.Params == "" {
		return false
	}
	n := boundCount(msg, name, at)
	return n >= 0 && n != int(told.Params[0])<<8|int(told.Params[1])
}

// toldParams returns what a Describe of a statement of that name is answered before the server looks at its columns.
func (s *Session) toldParams(name []byte) []byte {
	told := s.names.Shape(name)
	if told.Params == "" {
		return nil
	}
	return appendParams(nil, told.Params)
}

func appendParams(dst []byte, params string) []byte {
	return append(wire.AppendHeader(dst, wire.ParameterDescription, len(params)), params...)
}

// isEmpty reports whether there is no statement in the text of a Parse: the server takes that in a failed transaction block, too.
func (s *Session) isEmpty(tail []byte) bool {
	text, _, _ := wire.CString(tail)
	return s.env.config().texts.Inspect(text, s.strings).Statements == 0
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
	i := slices.Index(s.closed, st)
	if i < 0 && !s.closesNow(st) {
		return st
	}
	if i >= 0 {
		s.closed = slices.Delete(s.closed, i, i+1)
	}
	return of(s.pool.renewed.next(base))
}

// closesNow reports whether a Close of a statement is under way.
func (s *Session) closesNow(st stmts.Statement) bool {
	return slices.ContainsFunc(s.ops, func(op stmtOp) bool {
		if op.kind != opClose {
			return false
		}
		closed, known := s.names.Find([]byte(op.name))
		return known && closed == st
	})
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
	if name, known := s.nameOf(p.St); !known || !s.madeFor(p) || s.names.Shape([]byte(name)) != (stmts.Shape{}) { // else PostgreSQL would go on refusing it
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
