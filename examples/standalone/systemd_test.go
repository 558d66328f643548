//go:build linux

package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheUnitsSayWhatTheDaemonUnderstands(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "userlist.txt"), []byte("\"app\" \"correct horse\"\n"), 0o600))
	service, err := os.ReadFile("systemd/pgmoor.service")
	require.NoError(t, err)
	command := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindSubmatch(service)
	require.NotNil(t, command)
	t.Setenv("PGMOOR_UPSTREAM", "postgres://db1,db2")
	_, err = parseOptions(strings.Fields(strings.ReplaceAll(string(command[1]), "%d", dir))[1:], io.Discard)
	require.NoError(t, err)

	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	verify := []string{"verify"}
	for _, name := range []string{"pgmoor.socket", "pgmoor.service"} {
		unit, err := os.ReadFile(filepath.Join("systemd", name))
		require.NoError(t, err)
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(unit), "/usr/local/bin/pgmoor", "/bin/sh")), 0o600))
		verify = append(verify, path)
	}
	out, err := exec.Command(analyze, verify...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
}
