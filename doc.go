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
// transaction is open, no reply is owed, and the client left nothing behind that lives in the server session. A client
// that did leave something behind (it said SET or LISTEN, created a temporary object, took a session-level advisory lock,
// opened a holdable cursor, prepared a named statement) is pinned: it keeps its server connection until it disconnects,
// and the connection is reset before anyone else gets it.
//
// # Life cycle
//
// A Proxy has the life cycle of [net/http.Server]: [Proxy.Serve] runs until [Proxy.Shutdown] or [Proxy.Close] and then
// returns [ErrProxyClosed]; Shutdown lets transactions finish, Close does not; no goroutine of the proxy is left when Close
// returns. A Proxy is itself a net.Listener whose [Proxy.Accept] returns clients that have logged in, as *[Session], for
// programs that want to look at a client before serving it.
//
// # Who may come in
//
// [Config.Secrets] is where passwords are: for clients, who are asked for SCRAM-SHA-256, and for the proxy's own logins as
// the same users. [Config.Authenticator] asks for something else.
//
// # In the same process
//
// [Proxy.DialContext] has the signature of pgconn.DialFunc: a pgx pool in the same process reaches the pooler without a
// port, over a buffered in-memory connection, and without a password. Its configuration needs DialFunc, a LookupFunc that
// returns the host, sslmode=disable, and DefaultQueryExecMode pgx.QueryExecModeExec; and somebody has to run
// [Proxy.Serve], or its first query hangs.
package pgmoor
