package wire_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/wire"
)

func TestLengthReadsTheLengthWord(t *testing.T) {
	require.EqualValues(t, 4, wire.Length([]byte{'S', 0, 0, 0, 4}))
	require.EqualValues(t, 0x01020304, wire.Length([]byte{'Q', 1, 2, 3, 4, 5}))
	require.EqualValues(t, 0xffffffff, wire.Length([]byte{'Q', 0xff, 0xff, 0xff, 0xff}))
}

func TestFrontendLimitsArePostgreSQLs(t *testing.T) {
	for typ := range 256 {
		limit, known := wire.FrontendLimit(byte(typ))
		switch {
		case strings.IndexByte("QPBFd", byte(typ)) >= 0:
			require.EqualValues(t, 1<<30-1, limit)
		case strings.IndexByte("DECHScfX", byte(typ)) >= 0:
			require.EqualValues(t, 10000, limit)
		default:
			require.False(t, known, "%q", typ)
			continue
		}
		require.True(t, known, "%q", typ)
	}
}

func TestCStringSplitsAtTheFirstZero(t *testing.T) {
	for _, c := range []struct {
		in, s, rest string
		ok          bool
	}{
		{"", "", "", false},
		{"abc", "", "", false},
		{"\x00", "", "", true},
		{"abc\x00", "abc", "", true},
		{"abc\x00def\x00", "abc", "def\x00", true},
		{"\x00\x00", "", "\x00", true},
	} {
		s, rest, ok := wire.CString([]byte(c.in))
		require.Equal(t, c.ok, ok, "%q", c.in)
		require.Equal(t, c.s, string(s), "%q", c.in)
		require.Equal(t, c.rest, string(rest), "%q", c.in)
	}
}

func TestErrorFieldFindsWhatIsThere(t *testing.T) {
	const body = "SERROR\x00VERROR\x00C42601\x00M\x00\x00"
	for field, want := range map[byte]string{'S': "ERROR", 'V': "ERROR", 'C': "42601", 'M': ""} {
		got := wire.ErrorField([]byte(body), field)
		require.NotNil(t, got)
		require.Equal(t, want, string(got))
	}
	for _, broken := range []string{body, "", "\x00", "D", "Dabc", "Sx\x00Dabc", "Sx\x00\x00Dabc\x00"} {
		require.Nil(t, wire.ErrorField([]byte(broken), 'D'), "%q", broken)
	}
}

func TestAppendedMessagesAreThoseOfPgproto3(t *testing.T) {
	for _, c := range []struct {
		got  []byte
		want pgproto3.Message
	}{
		{wire.AppendReady(nil, 'T'), &pgproto3.ReadyForQuery{TxStatus: 'T'}},
		{wire.AppendQuery(nil, "select 1"), &pgproto3.Query{String: "select 1"}},
		{wire.AppendQuery(nil, ""), &pgproto3.Query{}},
		{wire.AppendComplete(nil, "SELECT 1"), &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}},
		{wire.AppendStatus(nil, "TimeZone", "UTC"), &pgproto3.ParameterStatus{Name: "TimeZone", Value: "UTC"}},
		{wire.AppendHeader(nil, wire.Sync, 0), &pgproto3.Sync{}},
	} {
		want, err := c.want.Encode(nil)
		require.NoError(t, err)
		require.Equal(t, want, c.got, "%T", c.want)
	}
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	b := []byte("before")
	b = wire.AppendReady(b, 'I')
	b = wire.AppendQuery(b, "q")
	require.Equal(t, "beforeZ\x00\x00\x00\x05IQ\x00\x00\x00\x06q\x00", string(b))
}

func TestNothingAllocates(t *testing.T) {
	buf := make([]byte, 0, 256)
	body := []byte("SERROR\x00C42601\x00\x00")
	require.Zero(t, testing.AllocsPerRun(100, func() {
		b := wire.AppendStatus(wire.AppendComplete(wire.AppendQuery(wire.AppendReady(buf, 'I'), "select 1"), "SELECT 1"), "a", "b")
		_ = wire.Length(b)
		_, _, _ = wire.CString(b)
		_ = wire.ErrorField(body, 'M')
	}))
}

func FuzzErrorField(f *testing.F) {
	for _, seed := range []string{"", "SERROR\x00VERROR\x00C42601\x00Mno\x00\x00", "S", "S\x00", "\x00\x00", "Sx\x00C"} {
		f.Add([]byte(seed), byte('C'))
	}
	f.Fuzz(func(t *testing.T, body []byte, field byte) {
		v := wire.ErrorField(body, field)
		if v == nil {
			return
		}
		require.NotZero(t, field)
		require.NotContains(t, v, byte(0))
		require.True(t, bytes.Contains(body, append(append([]byte{field}, v...), 0)))
	})
}

func FuzzErrorFieldAgreesWithPgproto3(f *testing.F) {
	f.Add("ERROR", "42601", "no", "because")
	f.Fuzz(func(t *testing.T, severity, code, message, detail string) {
		for _, s := range []string{severity, code, message, detail} {
			if s == "" || strings.Contains(s, "\x00") {
				return // left out by Encode, or not to be told from two fields
			}
		}
		m := pgproto3.ErrorResponse{SeverityUnlocalized: severity, Code: code, Message: message, Detail: detail}
		b, err := m.Encode(nil)
		require.NoError(t, err)
		require.Len(t, b, int(wire.Length(b))+1)
		for field, want := range map[byte]string{'V': severity, 'C': code, 'M': message, 'D': detail} {
			require.Equal(t, want, string(wire.ErrorField(b[wire.HeaderLen:], field)))
		}
		require.Nil(t, wire.ErrorField(b[wire.HeaderLen:], 'H'))
	})
}

func FuzzFraming(f *testing.F) {
	f.Add([]byte("select 1\x00rest"), byte('Q'))
	f.Fuzz(func(t *testing.T, body []byte, typ byte) {
		b := append(wire.AppendHeader(nil, typ, len(body)), body...)
		require.Len(t, b, int(wire.Length(b))+1)
		require.Equal(t, typ, b[0])
		s, rest, ok := wire.CString(body)
		require.Equal(t, bytes.IndexByte(body, 0) >= 0, ok)
		if ok {
			require.Equal(t, body, append(append(bytes.Clone(s), 0), rest...))
		}
	})
}
