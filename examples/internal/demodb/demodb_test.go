//go:build unix

package demodb

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// tempDir makes os.MkdirTemp use a directory that every user can enter, as the system's own.
func tempDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "demodb") //nolint:usetesting // no other user gets into t.TempDir
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	t.Setenv("TMPDIR", dir)
	return dir
}

func requireRuns(t *testing.T, s *server, bin programs) {
	require.NoError(t, s.initialize(t.Context(), bin))
	require.NoError(t, s.start(bin))
	require.NoError(t, s.populate(t.Context()))
}

func TestAThrowawayServerRunsAndGoesAway(t *testing.T) {
	dir := tempDir(t)
	db, err := Open(t.Context(), "", func(s string) { t.Log(s) })
	require.NoError(t, err)
	c, err := db.Connect(t.Context())
	require.NoError(t, err)
	var user string
	require.NoError(t, c.QueryRow(t.Context(), "select current_user").Scan(&user))
	require.Equal(t, db.User, user)
	require.NoError(t, db.Close())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestFetchedProgramsRun(t *testing.T) {
	if testing.Short() {
		t.Skip("downloads PostgreSQL")
	}
	as, err := unprivileged()
	require.NoError(t, err)
	s := &server{dir: tempDir(t), as: as}
	bin, err := as.fetchPrograms(t.Context(), s.dir, func(s string) { t.Log(s) })
	require.NoError(t, err)
	require.Equal(t, 18, bin.major)
	requireRuns(t, s, bin)
	require.NoError(t, s.stop())
}

func TestWithoutProgramsTheSearchSaysSo(t *testing.T) {
	as, err := unprivileged()
	require.NoError(t, err)
	_, err = as.findPrograms(t.Context(), []string{t.TempDir()})
	require.ErrorIs(t, err, errNoPrograms)
}

func TestTheConnectionStringMustNameAUser(t *testing.T) {
	_, err := Open(t.Context(), "postgres://db/x", func(string) {})
	require.ErrorContains(t, err, "names no user")
}
