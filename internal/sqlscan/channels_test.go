package sqlscan

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func on(name string) ChannelRef  { return ChannelRef{Name: name} }
func off(name string) ChannelRef { return ChannelRef{Name: name, Off: true} }

func TestChannelsAreToldAsPostgreSQLKeepsThem(t *testing.T) {
	long := strings.Repeat("Ab", 40)
	for sql, want := range map[string][]ChannelRef{
		"SELECT 1":                           nil,
		"LISTEN a":                           {on("a")},
		" /* x */ listen -- y\n Abc;":        {on("abc")},
		`LISTEN "Abc"`:                       {on("Abc")},
		`LISTEN "a""b;c"`:                    {on(`a"b;c`)},
		`LISTEN U&"a"`:                       {on("a")},
		"LISTEN listen; UNLISTEN unlisten":   {on("listen"), off("unlisten")},
		"LISTEN a$1":                         {on("a$1")},
		"UNLISTEN *":                         {off("")},
		"unlisten*;LISTEN b":                 {off(""), on("b")},
		"BEGIN; LISTEN a; SELECT 'LISTEN b'": {on("a")},
		"LISTEN " + long:                     {on(strings.ToLower(long)[:63])},
		`LISTEN "` + long + `"`:              {on(long[:63])},
		`LISTEN "ü"`:                         {on("ü")},
		"SELECT listen, unlisten FROM a; SET x TO listen": nil,
	} {
		refs, ok := Channels([]byte(sql), true)
		require.True(t, ok, sql)
		require.Equal(t, want, refs, sql)
	}
}

func TestChannelsThatCannotBeToldAreSaidSo(t *testing.T) {
	for _, sql := range []string{
		"LISTEN ü", `LISTEN "` + strings.Repeat("ü", 11) + `"`, `LISTEN U&"\0061"`, "LISTEN", "LISTEN 'a'", `LISTEN ""`, "UNLISTEN;", `LISTEN "a`,
		strings.Repeat("LISTEN a;", maxChannels+1),
	} {
		_, ok := Channels([]byte(sql), true)
		require.False(t, ok, sql)
	}
	in := NewCache(0).Inspect([]byte("LISTEN a; UNLISTEN b"), true)
	require.Equal(t, []ChannelRef{on("a"), off("b")}, in.Channels)
	require.False(t, in.UnknownChannels)
	require.True(t, NewCache(0).Inspect([]byte("LISTEN ü"), true).UnknownChannels)
}
