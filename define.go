package pgmoor

import (
	"strconv"
	"sync/atomic"
)

// This file keeps apart statements that are the same text but were prepared before and behind a statement that defines something:
// PostgreSQL goes on with what a name stood for when a statement was analysed, as long as that is there, although a table that was
// made since stands earlier in the search_path, or a function fits better (src/backend/utils/cache/plancache.c). A client that prepares
// a text gets what the names stand for then. What is defined by functions, or not through this proxy, is not seen.

// meaningsOf returns what counts the definitions that sessions of the proxy have made in a database.
func (e *env) meaningsOf(database string) *atomic.Uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.meanings[database]
	if m == nil {
		if m = new(atomic.Uint64); e.meanings == nil {
			e.meanings = make(map[string]*atomic.Uint64)
		}
		e.meanings[database] = m
	}
	return m
}

// define takes note that a definition is run, one that others see when it is committed, or only the session. The caller holds mu.
func (s *Session) define(others bool) {
	s.defined = s.env.statementIDs.Add(1)
	s.defines = s.defines || others
}

// publish makes what the session may have defined count for all, if it may be committed: what is prepared from now on is another statement
// than before.
func (s *Session) publish(committed bool) {
	if s.defines && committed {
		s.pool.meanings.Add(1)
	}
}

// meaning returns under with what tells statements apart that names stood for something else for.
func (s *Session) meaning(under string) string {
	if s.defined != 0 {
		return under + "\x05" + strconv.FormatUint(s.defined, 10)
	}
	if n := s.pool.meanings.Load(); n != 0 {
		return under + "\x06" + strconv.FormatUint(n, 10)
	}
	return under
}
