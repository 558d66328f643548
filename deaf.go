package pgmoor

import (
	"maps"
	"slices"
)

// This file ends sessions that listen where nothing is heard for them any more: the connection that listens was lost and cannot be
// made again. A client that only waits for notifications would never know; directly, it would have noticed the loss at once.

// errDeaf is what such a client is told; err, which may be nil, is why.
func errDeaf(err error) *Error {
	e := &Error{
		Severity: "FATAL", Code: codeAdminShutdown,
		Message: "terminating connection because the server connection that listens for it was lost and cannot be made again",
		Detail:  "The server does not listen.",
		Hint:    "Connect again, LISTEN anew, and look up what notifications may have told meanwhile.",
	}
	if err != nil {
		e.Detail = "The login to the server failed: " + asError(err).Message + "."
	}
	return e
}

// vain is called after an attempt to listen that failed: with err, where that was the login. It ends the sessions that listen where
// another attempt is without hope, or has been for too long.
func (l *listener) vain(err error) {
	now := l.pool.env.now()
	final := isPermanent(err)
	if l.since.IsZero() {
		if l.since = now; !final { // what is lost is tried at least once
			return
		}
	}
	if l.pool.ctx.Err() != nil || !final && now.Sub(l.since) < max(l.pool.env.config().borrowTimeout(), 0) {
		return
	}
	for _, s := range l.committed() {
		s.drain(errDeaf(err))
	}
}

// committed returns the sessions that listen, without those that are only about to.
func (l *listener) committed() (all []*Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := range l.ears {
		if slices.Contains(slices.Collect(maps.Values(e.subs)), true) {
			all = append(all, e.s)
		}
	}
	return all
}
