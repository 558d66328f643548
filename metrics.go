package pgmoor

import (
	"sync/atomic"
	"time"
)

// Stats is a snapshot of what a [Proxy] does and has done, as [Proxy.Stats] returns it. Counters start at zero with the
// Proxy.
type Stats struct {
	Clients     int // clients that are logged in
	ClientsTLS  int // of those, how many with TLS
	Handshaking int // clients that are logging in, also those that wait for a first server connection
	Waiting     int // clients that wait for a server connection
	// OldestWait is how long the one that waits longest has waited. As JSON it is a number of nanoseconds.
	OldestWait time.Duration

	Paused      bool // see Proxy.Pause
	Servers     int  // pooled server connections, open or being opened
	ServersIdle int  // of those, how many nobody uses
	// ServersGranted is the limit on Servers that counts: the smallest of Config.MaxConnections, what Config.MaxConnectionsPercent comes
	// to, and what Config.Budget has granted.
	ServersGranted int
	Pinned         int // clients that keep their server connection
	// PinnedBy counts the pinned clients by the first reason for which each was pinned: the name of one of [Effects],
	// "requested" for SET pgmoor.pin, or a policy's [Decision].Reason. Of reasons only 64 are counted apart, the
	// rest as "policy".
	PinnedBy map[string]int
	// PinsTotal counts by reason how often a client was pinned, once for each time from multiplexed to multiplexed again.
	PinsTotal map[string]int64

	// Unpins counts how often a pin ended, also because its client left.
	Unpins int64
	// SettingsMoved counts how often a server connection was brought into the settings of a session that it did not
	// have already.
	SettingsMoved int64
	// Verifications counts how often a server was asked what a session has left behind (see [VerifyMode]).
	Verifications int64

	// StatementsPrepared counts how often a named statement was prepared on a server connection, for a client's Parse or because
	// a client used one on another connection than the one where it prepared it; StatementsShared how often a client's Parse needed
	// nothing of the server, because the connection had the statement; StatementsEvicted how often one was closed to make room (see
	// Config.MaxStatements) or for a name; StatementsHealed how often one that the server refused was prepared and run again, because
	// the client had prepared it after the database had changed and the connection before.
	StatementsPrepared, StatementsShared, StatementsEvicted, StatementsHealed int64
	// Listeners counts the connections that listen for sessions, one for each database, user and set of startup parameters of
	// which a session listens.
	// They are not in Servers, and not limited by [Config.MaxConnections].
	Listeners int
	// ListenersLost counts how often one was lost: its sessions are told that notifications may be missing, or
	// end where it cannot be made again.
	ListenersLost int64
	// Notifications counts those that such connections have heard and clients were sent.
	Notifications int64

	Transactions   int64 // times that a server connection was given back by a client, by a pinned one when its pin had ended
	ClientsTotal   int64 // clients that ever logged in
	ServersOpened  int64
	ServersClosed  int64
	BorrowTimeouts int64
	Cancels        int64 // cancel requests that were forwarded to a server
	// CancelsPassedOn counts cancel requests that were passed on to another instance (see Config.Peers).
	CancelsPassedOn int64
	LoginFailures   int64 // clients that were refused or not done in time; not those that hung up
	OpenFailures    int64 // logins to servers that failed
}

// counters are the parts of Stats that are counted where they happen, outside of any transaction.
type counters struct {
	clients, servers, serversClosed       atomic.Int64
	borrowTimeouts, cancels, passedOn     atomic.Int64
	loginFailures, openFailures, recycled atomic.Int64
	setUps, verifications                 atomic.Int64
	stmtsPrepared, stmtsShared            atomic.Int64
	stmtsHealed                           atomic.Int64
	stmtsEvicted                          atomic.Int64
	listeners, listenersLost              atomic.Int64
	notifications                         atomic.Int64
}
