package pgtest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Password is the password of the roles pw_scram, pw_md5 and pw_plain.
const Password = "secret"

const serverConfig = `
listen_addresses = '127.0.0.1'
max_connections = 200
max_prepared_transactions = 20
shared_buffers = 32MB
fsync = off
synchronous_commit = off
full_page_writes = off
wal_level = logical
ssl = on
ssl_cert_file = 'server.crt'
ssl_key_file = 'server.key'
ssl_ca_file = 'root.crt'
password_encryption = 'scram-sha-256'
log_line_prefix = '%m [%p] %q%u@%d '
timezone = 'UTC'
log_timezone = 'UTC'
autovacuum = off
jit = off
max_parallel_workers_per_gather = 0
dynamic_shared_memory_type = mmap
`

const serverHBA = `
local all all trust
host all pw_scram all scram-sha-256
host all pw_md5 all md5
host all pw_plain all password
host all all all trust
host replication all all trust
local replication all trust
`

// setup is run by the server in single-user mode, which takes one statement a line.
const setup = `create role app login
create role other login
set password_encryption = 'scram-sha-256'
create role pw_scram login password 'secret'
create role pw_plain login password 'secret'
set password_encryption = 'md5'
create role pw_md5 login password 'secret'
create database app
create database other
alter database app owner to app
alter database other owner to other
`

// template returns the directory of an initialised cluster that is only ever copied. It is made once per server
// version and kept beside the other things that tests fetch; processes that want it at the same time take turns.
func template(b Binaries, a account) (string, error) {
	root := filepath.Join(cacheDirs()[0], "templates")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(b.Version + b.Dir + serverConfig + serverHBA + setup))
	dir := filepath.Join(root, fmt.Sprintf("%x-%d", sum[:8], a.uid))
	unlock, err := lockFile(dir + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err = os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	return dir, makeTemplate(b, a, dir)
}

// lockFile waits for an exclusive lock that ends with unlock, or with the process.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// makeTemplate builds the cluster beside dir and moves it there once it is complete.
func makeTemplate(b Binaries, a account, dir string) error {
	work := dir + ".new"
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := a.mkdir(work); err != nil {
		return err
	}
	if err := a.run(b, "", "initdb", "-D", work, "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8", "--no-sync"); err != nil {
		return err
	}
	if err := a.run(b, setup, "postgres", "--single", "-D", work, "-c", "log_min_messages=fatal", "postgres"); err != nil {
		return err
	}
	if err := appendFile(filepath.Join(work, "postgresql.conf"), serverConfig); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "pg_hba.conf"), []byte(serverHBA), 0o600); err != nil {
		return err
	}
	return os.Rename(work, dir)
}

// run executes one of the programs as the account and puts its output into the error.
func (a account) run(b Binaries, stdin, program string, args ...string) error {
	cmd := b.command(program, args...)
	cmd.SysProcAttr = a.sysProcAttr()
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("pgtest: %s: %w\n%s", program, err, out.Bytes())
	}
	if bytes.Contains(out.Bytes(), []byte("ERROR:")) {
		return fmt.Errorf("pgtest: %s:\n%s", program, out.Bytes())
	}
	return nil
}

func appendFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err = f.WriteString(text); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
