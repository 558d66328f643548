// Package pgmoor is a connection pooler for PostgreSQL that a program links instead of running.
//
// A [Proxy] wraps a net.Listener and an upstream dialer. Thousands of clients connect to the listener, with any driver and
// any client program; their transactions share a few server connections:
//
//	l, err := net.Listen("tcp", "127.0.0.1:6432")
//	...
//	p, err := pgmoor.New(l, pgmoor.Config{
//		Upstream: pgmoor.Upstream{Hosts: []string{"127.0.0.1:5432"}},
//		Secrets:  pgmoor.StaticSecrets{"app": pgmoor.NewSecret("correct horse")},
//	})
//	...
//	err = p.Serve(ctx)
//
// A server connection is lent to a client at its first message and taken back when the server reports that no
// transaction is open and no reply is owed. What the client has SET and prepared, and what it listens to, follows it to
// whatever connection it gets next.
//
// # Pinning
//
// A client that leaves something behind which only that server connection has (it created a temporary object, took a
// session-level advisory lock, opened a holdable cursor) is pinned: it keeps the connection until the server says, asked
// between transactions, that nothing of it is left, or else until it disconnects. The connection is reset, or closed, before anyone else gets it. A WARN in the log says who is pinned
// for what and how to avoid it; [Stats].PinnedBy counts, and [Session.Pinned] tells of one client.
//
// [Config.Pinning] takes a [PinningPolicy], which may pin for more, share what all clients have in common, or refuse a
// statement. [Config.Verify] says how often the server is asked; by it state is found, too, that functions make. docs/pinning.md
// says it all.
//
// # Life cycle
//
// A Proxy has the life cycle of [net/http.Server]: [Proxy.Serve] runs until [Proxy.Shutdown] or [Proxy.Close] and then
// returns [ErrProxyClosed]; Shutdown lets transactions finish, Close does not; no goroutine of the proxy is left when Close
// returns. A Proxy is itself a net.Listener whose [Proxy.Accept] returns clients that have logged in, as *[Session], for
// programs that want to look at a client before serving it.
//
// # At run time
//
// [Proxy.Pause] stops all sessions between two transactions, for a server that is to be restarted or replaced, and [Proxy.Resume]
// lets them go on: clients notice nothing but the wait. [Proxy.Reconnect] replaces server connections as they become free, and
// [Proxy.Update] the configuration. [Proxy.Sessions] shows who is there, and [Proxy.Kill] ends one.
//
// # Who may come in
//
// [Config.Secrets] is where passwords are: for clients, who are asked for SCRAM-SHA-256, and for the proxy's own logins as
// the same users. [FileSecrets], [EnvSecrets], [AuthQuery] and any function are sources of them, [CachedSecrets] goes in front, and while a
// password changes the one from before counts too ([Secret.WithPrevious]). [Config.Authenticator] asks for something else:
// [HBA] for ordered rules, [Certificate] for certificates, [TokenAuth] and [OAuthBearer] for tokens; [Throttle] bounds guessing. [Upstream].ChannelBinding binds the proxy's own logins.
// docs/authentication.md says it all.
//
// # In the same process
//
// [Proxy.DialContext] has the signature of pgconn.DialFunc: a pgx pool in the same process reaches the pooler without a
// port, over a buffered in-memory connection, and without a password. Its configuration needs DialFunc, a LookupFunc that
// returns the host, and sslmode=disable; and somebody has to run [Proxy.Serve], or its first query hangs.
package pgmoor
