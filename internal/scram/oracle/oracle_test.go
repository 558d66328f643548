package oracle_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	xdg "github.com/xdg-go/scram"

	"github.com/pgmoor/pgmoor/internal/scram"
)

// converse runs an exchange up to its end, and returns whose error it ended with.
func converse(client *xdg.ClientConversation, server *scram.Server) (clients, servers error) {
	first, err := client.Step("")
	if err != nil {
		return err, nil
	}
	challenge, err := server.First([]byte(first))
	if err != nil {
		return nil, err
	}
	final, err := client.Step(string(challenge))
	if err != nil {
		return err, nil
	}
	signature, err := server.Final([]byte(final))
	if err != nil {
		return nil, err
	}
	_, err = client.Step(string(signature)) // verifies the server's signature
	return err, nil
}

func TestAnotherImplementationLogsIn(t *testing.T) {
	binding := xdg.ChannelBinding{Type: xdg.ChannelBindingTLSServerEndpoint, Data: []byte("a certificate's hash")}
	for _, password := range []string{"pencil", "p", "caf\u00e9 \u2168", "a=b,c", "I\u00adX"} {
		v, err := scram.NewVerifier(password, []byte("0123456789abcdef"), 4096)
		require.NoError(t, err)
		for _, right := range []bool{true, false} {
			tried := password
			if !right {
				tried += "x"
			}
			client, err := xdg.SHA256.NewClient("", tried, "")
			require.NoError(t, err)
			plain, advertising, bound := scram.NewServer(v, false), scram.NewServer(v, false), scram.NewServer(v, false)
			bound.Bind(binding.Data, true)
			for name, test := range map[string]struct {
				conversation *xdg.ClientConversation
				server       *scram.Server
			}{
				"no binding":   {client.NewConversation(), plain},
				"advertised":   {client.NewConversationAdvertisingChannelBinding(), advertising},
				"with binding": {client.NewConversationWithChannelBinding(binding), bound},
			} {
				clients, servers := converse(test.conversation, test.server)
				require.NoError(t, clients, name)
				if !right {
					require.ErrorIs(t, servers, scram.ErrAuthFailed, name)
					continue
				}
				require.NoError(t, servers, name)
				require.True(t, test.conversation.Valid(), name)
			}
		}
	}
}

func TestAnotherImplementationIsRefusedWithAnotherChannel(t *testing.T) {
	v, err := scram.NewVerifier("pencil", []byte("0123456789abcdef"), 4096)
	require.NoError(t, err)
	client, err := xdg.SHA256.NewClient("", "pencil", "")
	require.NoError(t, err)
	other := xdg.ChannelBinding{Type: xdg.ChannelBindingTLSServerEndpoint, Data: []byte("the hash of one in between")}
	unique := xdg.NewTLSUniqueBinding([]byte("a certificate's hash"))
	for says, conversation := range map[string]*xdg.ClientConversation{
		"channel binding check failed": client.NewConversationWithChannelBinding(other),
		"unsupported SCRAM":            client.NewConversationWithChannelBinding(unique),
	} {
		server := scram.NewServer(v, false)
		server.Bind([]byte("a certificate's hash"), true)
		_, err := converse(conversation, server)
		require.ErrorContains(t, err, says)
	}
	server := scram.NewServer(v, false)
	server.Bind([]byte("a certificate's hash"), false)
	_, err = converse(client.NewConversationAdvertisingChannelBinding(), server)
	require.ErrorContains(t, err, "negotiation error", "somebody in between has taken the offer away")
}
