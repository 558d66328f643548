package sqlscan

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParamsCountsWhatIsMentioned(t *testing.T) {
	for text, want := range map[string]int{
		"":            0,
		"SELECT 1":    0,
		"SELECT $1":   1,
		"SELECT $2+1": 2,
		"SELECT $3, $1 /* $9 */ -- $8\n, '$7', $$ $6 $$, \"$5\"": 3,
		"SELECT $65535":                65535,
		"SELECT $65536":                0,
		"SELECT $99999999999999999999": 0,
	} {
		require.Equal(t, want, Params([]byte(text), true), text)
	}
}
