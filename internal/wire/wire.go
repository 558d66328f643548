// Package wire knows the framing of PostgreSQL's protocol, version 3: message headers, their bounds, and no more of a
// body than the few inspected messages need. Nothing here allocates.
package wire

import "encoding/binary"

// Message types of the frontend (PostgreSQL documentation, "Message Formats").
const (
	Query        = 'Q'
	Parse        = 'P'
	Bind         = 'B'
	Describe     = 'D'
	Execute      = 'E'
	Close        = 'C'
	Flush        = 'H'
	Sync         = 'S'
	FunctionCall = 'F'
	CopyData     = 'd'
	CopyDone     = 'c'
	CopyFail     = 'f'
	Terminate    = 'X'
	Password     = 'p'
)

// Message types of the backend.
const (
	Authentication       = 'R'
	BackendKeyData       = 'K'
	BindComplete         = '2'
	CloseComplete        = '3'
	CommandComplete      = 'C'
	CopyInResponse       = 'G'
	CopyOutResponse      = 'H'
	CopyBothResponse     = 'W'
	DataRow              = 'D'
	EmptyQueryResponse   = 'I'
	ErrorResponse        = 'E'
	FunctionCallResponse = 'V'
	NegotiateVersion     = 'v'
	NoData               = 'n'
	NoticeResponse       = 'N'
	NotificationResponse = 'A'
	ParameterDescription = 't'
	ParameterStatus      = 'S'
	ParseComplete        = '1'
	PortalSuspended      = 's'
	ReadyForQuery        = 'Z'
	RowDescription       = 'T'
)

// HeaderLen is the length in bytes of a message's header: its type and its length word.
const HeaderLen = 5

// MaxMessage is the greatest value of a length word, as PostgreSQL's PQ_LARGE_MESSAGE_LIMIT allows it for messages
// that carry data: one byte less than 1 GiB.
const MaxMessage = 1<<30 - 1

// maxSmall is PostgreSQL's PQ_SMALL_MESSAGE_LIMIT, for messages that carry no data.
const maxSmall = 10000

// Length returns the value of the length word of the message whose header begins at b[0]; it counts itself but not the
// type byte. b must hold HeaderLen bytes.
func Length(b []byte) uint32 { return binary.BigEndian.Uint32(b[1:HeaderLen]) }

// FrontendLimit returns the greatest length word that PostgreSQL's SocketBackend accepts for a frontend message of type
// t, and false for a type that it does not know. At least 4 is always required.
func FrontendLimit(t byte) (limit uint32, known bool) {
	switch t {
	case Query, Parse, Bind, FunctionCall, CopyData:
		return MaxMessage, true
	case Describe, Execute, Close, Flush, Sync, CopyDone, CopyFail, Terminate:
		return maxSmall, true
	}
	return 0, false
}

// CString returns the zero-terminated string at the start of b, without its terminator, and what follows the
// terminator. ok is false when there is no terminator.
func CString(b []byte) (s, rest []byte, ok bool) {
	for i, c := range b {
		if c == 0 {
			return b[:i], b[i+1:], true
		}
	}
	return nil, nil, false
}

// ErrorField returns the value of the field with code k of an ErrorResponse's or NoticeResponse's body, nil when it is not there.
func ErrorField(body []byte, k byte) []byte {
	for len(body) > 1 && body[0] != 0 {
		v, rest, ok := CString(body[1:])
		if !ok {
			return nil
		}
		if body[0] == k {
			return v
		}
		body = rest
	}
	return nil
}

// AppendHeader appends a header of type t for a body of n bytes.
func AppendHeader(dst []byte, t byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(dst, t), uint32(n+4))
}

// AppendReady appends a ReadyForQuery with transaction status st.
func AppendReady(dst []byte, st byte) []byte { return append(dst, ReadyForQuery, 0, 0, 0, 5, st) }

// AppendQuery appends a simple Query.
func AppendQuery(dst []byte, sql string) []byte {
	dst = AppendHeader(dst, Query, len(sql)+1)
	return append(append(dst, sql...), 0)
}

// AppendComplete appends a CommandComplete with the given tag.
func AppendComplete(dst []byte, tag string) []byte {
	dst = AppendHeader(dst, CommandComplete, len(tag)+1)
	return append(append(dst, tag...), 0)
}

// AppendStatus appends a ParameterStatus.
func AppendStatus(dst []byte, name, value string) []byte {
	dst = AppendHeader(dst, ParameterStatus, len(name)+len(value)+2)
	dst = append(append(dst, name...), 0)
	return append(append(dst, value...), 0)
}

// WithoutErrorField returns an ErrorResponse with the body of another but for the field with code k.
func WithoutErrorField(body []byte, k byte) []byte {
	out := AppendHeader(nil, ErrorResponse, len(body))
	for len(body) > 1 && body[0] != 0 {
		v, rest, ok := CString(body[1:])
		if !ok {
			break
		}
		if body[0] != k {
			out = append(append(append(out, body[0]), v...), 0)
		}
		body = rest
	}
	out = append(out, 0)
	binary.BigEndian.PutUint32(out[1:], uint32(len(out)-1))
	return out
}
