package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAPoolOfFiftySharesFiveServerConnections(t *testing.T) {
	require.NoError(t, run(t.Context(), ""))
}
