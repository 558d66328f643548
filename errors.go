package pgmoor

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// ErrProxyClosed is returned by the methods of [Proxy] after [Proxy.Shutdown] or [Proxy.Close].
var ErrProxyClosed = errors.New("pgmoor: proxy closed")

// SQLSTATEs that the proxy itself reports (PostgreSQL documentation, "PostgreSQL Error Codes").
const (
	codeWarning             = "01000"
	codeConnectionException = "08000"
	codeConnectionFailure   = "08006"
	codeUnknownOutcome      = "08007"
	codeProtocolViolation   = "08P01"
	codeNotSupported        = "0A000"
	codeInternal            = "XX000"
	codeBadText             = "22021"
	codeActiveTransaction   = "25001"
	codeFailedTransaction   = "25P02"
	codeDuplicateStatement  = "42P05"
	codeNoStatement         = "26000"
	codeBadAuthorization    = "28000"
	codeBadPassword         = "28P01"
	codeSerialization       = "40001"
	codeNotInState          = "55000"
	codeTooManyConnections  = "53300"
	codeLimitExceeded       = "54000"
	codeQueryCanceled       = "57014"
	codeAdminShutdown       = "57P01"
	codeCrashShutdown       = "57P02"
	codeCannotConnectNow    = "57P03"
	codeIdleSession         = "57P05"
)

// Error is an ErrorResponse that a client gets. An [Authenticator] may return one to choose what its client is told. The
// zero Severity is ERROR, or FATAL where the connection ends with it.
type Error struct {
	Severity string
	Code     string // SQLSTATE
	Message  string
	Detail   string
	Hint     string

	server *pgconn.PgError // where the server said it: its further fields
	why    string          // for the log only
}

// Error returns the message and the SQLSTATE.
func (e *Error) Error() string { return fmt.Sprintf("pgmoor: %s (SQLSTATE %s)", e.Message, e.Code) }

// append appends the ErrorResponse to dst, with severity unless e has its own.
func (e *Error) append(dst []byte, severity string) []byte {
	sev := orDefault(e.Severity, severity)
	m := pgproto3.ErrorResponse{
		Severity: sev, SeverityUnlocalized: sev, Code: e.Code,
		Message: e.Message, Detail: e.Detail, Hint: e.Hint,
	}
	if pg := e.server; pg != nil {
		m.Position, m.InternalPosition, m.InternalQuery, m.Where = pg.Position, pg.InternalPosition, pg.InternalQuery, pg.Where
		m.SchemaName, m.TableName, m.ColumnName = pg.SchemaName, pg.TableName, pg.ColumnName
		m.DataTypeName, m.ConstraintName = pg.DataTypeName, pg.ConstraintName
		m.File, m.Line, m.Routine = pg.File, pg.Line, pg.Routine
	}
	out, err := m.Encode(dst)
	if err != nil { // a text of the size of a protocol message, which nothing here makes
		return dst
	}
	return out
}

func fatalf(code, format string, args ...any) *Error {
	return &Error{Severity: "FATAL", Code: code, Message: fmt.Sprintf(format, args...)}
}

// asError is the mapping from a cause to what a client is told about it. Causes from the server keep the server's words;
// network errors are reduced to their kind, since a client is not told where the servers are.
func asError(err error) *Error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		e := &Error{Code: pg.Code, Message: pg.Message, Detail: pg.Detail, Hint: pg.Hint, server: pg}
		var open *openError
		if e.Hint == "" && errors.As(err, &open) {
			e.Hint = open.hint
		}
		return e
	}
	if errors.Is(err, ErrProxyClosed) {
		return &Error{Code: codeAdminShutdown, Message: "terminating connection due to administrator command"}
	}
	return &Error{
		Code: codeConnectionFailure, Message: "could not connect to the database server",
		Hint: "The proxy keeps trying; see its log for the cause.",
	}
}

var (
	errFailedTransaction = &Error{
		Code:    codeFailedTransaction,
		Message: "current transaction is aborted, commands ignored until end of transaction block",
	}
	errLostInTransaction = &Error{
		Code:    codeSerialization,
		Message: "the server connection was lost and the transaction was rolled back",
		Hint:    "Nothing of the transaction was committed: it is safe to run it again.",
	}
	errLostUnknown = &Error{
		Code:    codeUnknownOutcome,
		Message: "the server connection was lost while a statement that may have committed was under way",
		Hint:    "Whether it took effect is unknown: look before running it again.",
	}
	errLost = &Error{
		Code:    codeConnectionFailure,
		Message: "the server connection was lost",
		Hint:    "Nothing was committed by the messages since the last Sync.",
	}
	errQueryCanceled = &Error{Code: codeQueryCanceled, Message: "canceling statement due to user request"}
	errShutdown      = &Error{
		Severity: "FATAL", Code: codeAdminShutdown,
		Message: "terminating connection due to administrator command",
	}
	errPipeline = &Error{
		Severity: "FATAL", Code: codeLimitExceeded,
		Message: "too many requests in a pipeline without reading their results",
	}
)

// errShape is what PostgreSQL says of a statement whose result would be another than when it was prepared. Drivers look at the
// routine: the SQLSTATE says too little.
var errShape = &Error{
	Code: codeNotSupported, Message: "cached plan must not change result type",
	server: &pgconn.PgError{File: "plancache.c", Routine: replans},
}

// replans is the function of PostgreSQL's that finds a plan out of date.
const replans = "RevalidateCachedQuery"

// lostPinned is what a pinned client is told when its server connection, and its state with it, is gone.
func lostPinned(reason string) *Error {
	return &Error{
		Severity: "FATAL", Code: codeAdminShutdown,
		Message: "terminating connection because the server connection that held its session state was lost",
		Detail:  "The session was pinned: " + reason + ".",
		Hint:    "Connect again and set the state up anew.",
	}
}
