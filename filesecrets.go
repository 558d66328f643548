package pgmoor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pgmoor/pgmoor/internal/userlist"
)

// DefaultFileInterval is the zero of [FileSecrets].Interval.
const DefaultFileInterval = time.Second

const (
	maxSecretFile  = 16 << 20 // bytes of a file of many users
	maxSecretFiles = 10000    // in a directory

	// settleTime is how old files must be that take the place of others: they may be written at this moment, and the half of a
	// password looks like one.
	settleTime = 100 * time.Millisecond
)

// FileSecrets is a [SecretSource] that reads secrets from files, and again when they have changed. Its methods may be called from any
// goroutine; use it by pointer, and change no field once it is used.
//
// Path is one of:
//
//   - a file in the format of PgBouncer's userlist.txt (see [ReadUserList]);
//   - a file whose name ends in .json: one object as [ParseSecretJSON] takes it, or a list of such;
//   - a directory with the files "username" and "password", of one user, as Kubernetes has it in secrets of the type
//     kubernetes.io/basic-auth;
//   - any other directory: each file in it is named after a user and holds the secret, or has a name that ends in .json and holds an object
//     as above. What is in directories below it, and files whose names begin with a dot, are not read.
//
// In a file that holds nothing but a secret, one line end at the end does not count. Symbolic links are followed, and all files of a
// directory are those of one moment where they are replaced together by the link ..data, as in volumes of Kubernetes.
//
// Where the files cannot be read, are broken or hold no user at all, what was read before counts, and the log says so. The first time it
// is an error: [New] and [Proxy.Update] read them.
type FileSecrets struct {
	// Path is the file or the directory. Required.
	Path string

	// Interval is how old what is known may be when it is used: only then is looked whether the files have changed. If zero,
	// DefaultFileInterval.
	Interval time.Duration

	// Logger is told of files that cannot be read, and of changes. If nil, slog.Default.
	Logger *slog.Logger

	mu      sync.Mutex // held while files are read: who comes meanwhile waits for them
	looked  time.Time
	read    bool // something was
	mark    string
	secrets map[string]Secret
	failure string // the last one, which was logged
}

// Secret returns the user's secret, or ErrNoSecret.
func (f *FileSecrets) Secret(_ context.Context, user string) (Secret, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); !f.read || now.Sub(f.looked) >= orDefault(f.Interval, DefaultFileInterval) {
		if err := f.lookLocked(now); err != nil {
			return Secret{}, err
		}
	}
	s, ok := f.secrets[user]
	if !ok {
		return Secret{}, ErrNoSecret
	}
	return s, nil
}

// Validate reads the files now, and returns an error where they cannot be read; what was read before then counts all the same. [New] and
// [Proxy.Update] call it.
func (f *FileSecrets) Validate() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.Path == "":
		return errors.New("pgmoor: FileSecrets.Path is missing: name a file or a directory")
	case f.Interval < 0:
		return errors.New("pgmoor: FileSecrets.Interval must not be negative")
	}
	f.mark, f.looked = "", time.Now()
	return f.readLocked("")
}

// Users returns how many users there are, as far as is known.
func (f *FileSecrets) Users() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.secrets)
}

// lookLocked reads the files if they have changed. It fails only where nothing was ever read.
func (f *FileSecrets) lookLocked(now time.Time) error {
	mark, newest, err := markOf(f.Path)
	age := now.Sub(newest)
	switch fresh := age >= 0 && age < settleTime; {
	case err != nil:
		err = f.failed(err)
	case f.read && mark == f.mark:
		f.failure = ""
	case f.read && fresh: // it is looked at again the next time
		return nil
	case fresh: // it may change without looking other, and is read once more
		err = f.readLocked("")
	default: // if it is written meanwhile, the next look finds another mark
		err = f.readLocked(mark)
	}
	f.looked = now
	if err == nil || !f.read {
		return err
	}
	if f.failure != err.Error() {
		f.failure = err.Error()
		f.log().Error("pgmoor: secrets cannot be read, what was read before counts", slog.Any("err", err))
	}
	return nil
}

// readLocked reads the files, which had the mark before.
func (f *FileSecrets) readLocked(mark string) error {
	found, err := readSecrets(f.Path)
	if err == nil && len(found) == 0 {
		err = errors.New("it holds no users")
	}
	if err != nil {
		return f.failed(err)
	}
	f.tookLocked(found, mark)
	return nil
}

func (f *FileSecrets) failed(err error) error {
	return fmt.Errorf("pgmoor: FileSecrets %s: %w", f.Path, err)
}

func (f *FileSecrets) log() *slog.Logger { return orDefault(f.Logger, slog.Default()) }

// tookLocked puts what was found in the place of what was known.
func (f *FileSecrets) tookLocked(found map[string]Secret, mark string) {
	changed := 0
	for user, s := range found {
		if was := f.secrets[user]; was.same(s) {
			found[user] = was
		} else {
			found[user] = s.toldBy(f)
			changed++
		}
	}
	if f.read && (changed > 0 || len(found) != len(f.secrets)) {
		f.log().Info("pgmoor: secrets were read again", slog.String("path", f.Path), slog.Int("users", len(found)), slog.Int("changed", changed))
	}
	f.secrets, f.mark, f.failure, f.read = found, mark, "", true
}

// root follows the links that lead to the files.
func root(path string) (string, fs.FileInfo, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", nil, err
	}
	if data, err := filepath.EvalSymlinks(filepath.Join(real, "..data")); err == nil {
		real = data
	}
	info, err := os.Stat(real)
	return real, info, err
}

// markOf returns what is different when the files are, and when the last of them was written.
func markOf(path string) (m string, newest time.Time, err error) {
	real, info, err := root(path)
	if err != nil {
		return "", newest, err
	}
	if !info.IsDir() {
		return mark(real, info), info.ModTime(), nil
	}
	names, err := secretFiles(real)
	if err != nil {
		return "", newest, err
	}
	var b strings.Builder
	b.WriteString(real)
	for _, name := range names {
		info, err := os.Stat(filepath.Join(real, name))
		if err != nil {
			return "", newest, err
		}
		b.WriteString(mark(name, info))
		if t := info.ModTime(); t.After(newest) {
			newest = t
		}
	}
	return b.String(), newest, nil
}

func mark(name string, info fs.FileInfo) string {
	return fmt.Sprintf("%q %d %d\n", name, info.Size(), info.ModTime().UnixNano())
}

// secretFiles returns the names of the files in a directory, in order.
func secretFiles(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if info, err := os.Stat(filepath.Join(dir, e.Name())); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if names = append(names, e.Name()); len(names) > maxSecretFiles {
			return nil, fmt.Errorf("more than %d files in it", maxSecretFiles)
		}
	}
	return names, nil
}

// readSecrets reads a file or a directory.
func readSecrets(path string) (map[string]Secret, error) {
	real, info, err := root(path)
	if err != nil {
		return nil, err
	}
	switch {
	case info.IsDir():
		return readSecretDir(real)
	case !info.Mode().IsRegular():
		return nil, errors.New("neither a file nor a directory")
	}
	data, err := readFile(real)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(path, ".json") {
		return parseSecretsJSON(data)
	}
	entries, err := userlist.Parse(bytes.NewReader(data))
	m := make(map[string]Secret, len(entries))
	for _, e := range entries {
		m[e.User] = NewSecret(e.Secret)
	}
	return m, err
}

// readSecretDir reads a directory whose links are followed.
func readSecretDir(dir string) (map[string]Secret, error) {
	names, err := secretFiles(dir)
	if err != nil {
		return nil, err
	}
	all := make(map[string]string, len(names))
	for _, name := range names {
		data, err := readFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		all[name] = strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	}
	user, ok1 := all["username"]
	password, ok2 := all["password"]
	if ok1 && ok2 {
		all = map[string]string{user: password}
	}
	return fromFiles(all)
}

// fromFiles makes secrets of what is in files, by name.
func fromFiles(files map[string]string) (map[string]Secret, error) {
	m := make(map[string]Secret, len(files))
	for name, text := range files {
		user, s := name, NewSecret(text)
		if strings.HasSuffix(name, ".json") {
			var err error
			if user, s, err = ParseSecretJSON([]byte(text)); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		switch _, again := m[user]; {
		case again:
			return nil, fmt.Errorf("%s: a second secret for the same user", name)
		case text == "", user == "":
			return nil, fmt.Errorf("%s is empty", name)
		case strings.Contains(text, "\x00"):
			return nil, fmt.Errorf("%s contains a NUL byte", name)
		}
		m[user] = s
	}
	return m, nil
}

// parseSecretsJSON reads one object or a list of them.
func parseSecretsJSON(data []byte) (map[string]Secret, error) {
	list := []json.RawMessage{data}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("[")) {
		list = nil
		if json.Unmarshal(data, &list) != nil {
			return nil, errSecretJSON
		}
	}
	m := make(map[string]Secret, len(list))
	for i, one := range list {
		user, s, err := ParseSecretJSON(one)
		if err != nil {
			return nil, fmt.Errorf("number %d: %w", i+1, err)
		}
		if _, again := m[user]; again {
			return nil, fmt.Errorf("number %d: a second secret for the same user", i+1)
		}
		m[user] = s
	}
	return m, nil
}

// readFile reads a file of reasonable size.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err == nil && len(data) > maxSecretFile {
		err = fmt.Errorf("%s is larger than %d bytes", filepath.Base(path), maxSecretFile)
	}
	return data, err
}
