package scram_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor/internal/scram"
)

const bound = "p=tls-server-end-point,,"

// bind runs an exchange of a client with the given header and data behind it, and returns its error.
func bind(t testing.TB, header, clientData, serverData string, chosen bool) error {
	t.Helper()
	c, v := newClient(header)
	s := scram.NewServer(v, false)
	if serverData != "" {
		s.Bind([]byte(serverData), chosen)
	}
	first, err := s.First(c.first())
	if err != nil {
		return err
	}
	c.header += clientData
	final, err := s.Final(c.final(first, ""))
	if err == nil {
		require.True(t, bytes.HasPrefix(final, []byte("v=")))
	}
	return err
}

func TestAChannelIsBoundOrNot(t *testing.T) {
	require.NoError(t, bind(t, bound, "hash", "hash", true))
	require.NoError(t, bind(t, "n,,", "", "hash", false), "the client does not know how")
	require.NoError(t, bind(t, "y,,", "", "", false), "nothing was offered")
}

// The errors are PostgreSQL's; TestChannelsAreRefusedAsPostgreSQLDoes compares them with it.
func TestAChannelThatIsNotTheClientsIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		header, clientData, serverData string
		chosen                         bool
		code, text                     string
	}{
		"another certificate":   {bound, "hush", "hash", true, "28000", "channel binding check failed"},
		"no certificate":        {bound, "", "hash", true, "28000", "channel binding check failed"},
		"downgrade":             {"y,,", "", "hash", false, "28000", "However, this server does support channel binding."},
		"chosen, but not bound": {"n,,", "", "hash", true, "08P01", "does not include channel binding data"},
		"chosen, but unknown":   {"y,,", "", "hash", true, "08P01", "does not include channel binding data"},
		"bound, but not chosen": {bound, "hash", "hash", false, "08P01", "includes channel binding data"},
		"bound, not offered":    {bound, "hash", "", false, "08P01", "includes channel binding data"},
		"another type":          {"p=tls-\x80 ique,,", "hash", "hash", true, "08P01", `type "tls-??ique"`},
		"a long type":           {"p=" + strings.Repeat("x", 40) + ",,", "hash", "hash", true, "08P01", `type "` + strings.Repeat("x", 30) + `"`},
		"no type":               {"p,,", "hash", "hash", true, "08P01", `Expected character "="`},
		"an identity":           {"p=tls-server-end-point,a=me,", "hash", "hash", true, "0A000", "authorization identity"},
	} {
		t.Run(name, func(t *testing.T) {
			err := bind(t, test.header, test.clientData, test.serverData, test.chosen)
			var pe *scram.ProtocolError
			require.ErrorAs(t, err, &pe)
			require.Equal(t, test.code, pe.Code)
			require.ErrorContains(t, err, test.text)
		})
	}
}
