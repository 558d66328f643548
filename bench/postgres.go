package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// serverSettings are those of the cluster we start: nothing is written to disk that need not be, and as many
// connections as the largest direct cell wants.
var serverSettings = map[string]string{
	"listen_addresses":        "127.0.0.1",
	"unix_socket_directories": "",
	"max_connections":         "1200",
	"shared_buffers":          "512MB",
	"fsync":                   "off",
	"synchronous_commit":      "off",
	"full_page_writes":        "off",
	"jit":                     "off",
	"ssl":                     "on",
}

// pgbenchScale is pgbench's -s: a million accounts, which fit into memory.
const pgbenchScale = 10

// postgres is the server behind all targets.
type postgres struct {
	addr string
	bin  string   // directory of its programs
	proc *process // nil for a server that was there before us
}

// findPostgresBin returns the directory of the newest PostgreSQL programs on this machine.
func findPostgresBin(given string) (string, error) {
	if given != "" {
		return given, checkPrograms(given)
	}
	var best string
	newest := -1
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin"} {
		dirs, _ := filepath.Glob(pattern)
		for _, d := range dirs {
			v, _ := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(d)), "pgsql-"))
			if v > newest && checkPrograms(d) == nil {
				best, newest = d, v
			}
		}
	}
	if best != "" {
		return best, nil
	}
	if p, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(p), checkPrograms(filepath.Dir(p))
	}
	return "", fmt.Errorf("no PostgreSQL found: install its server and pgbench (Debian: apt-get install postgresql-15) or name the directory of its programs: -pgbin")
}

func checkPrograms(dir string) error {
	for _, p := range []string{"initdb", "postgres", "pgbench"} {
		if _, err := exec.LookPath(filepath.Join(dir, p)); err != nil {
			return fmt.Errorf("%w: PostgreSQL's server programs and pgbench are both needed; choose another directory with -pgbin", err)
		}
	}
	return nil
}

// startCluster makes and starts a throw-away cluster in dir.
func startCluster(ctx context.Context, bin, dir string, as *account, o *options, tls certificate) (*postgres, error) {
	data := filepath.Join(dir, "data")
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", o.user,
		"--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
	as.prepare(initdb)
	initdb.Dir = dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s\n(the temporary directory must be open to the server's user; TMPDIR chooses another)", err, tail(string(out), 5))
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("port = %d\nssl_cert_file = '%s'\nssl_key_file = '%s'\n", port, tls.cert, tls.key)
	for k, v := range serverSettings {
		conf += fmt.Sprintf("%s = '%s'\n", k, v)
	}
	if err := os.WriteFile(filepath.Join(data, "postgresql.auto.conf"), []byte(conf), 0o600); err != nil {
		return nil, err
	}
	if err := as.own(filepath.Join(data, "postgresql.auto.conf")); err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(bin, "postgres"), "-D", data)
	as.prepare(cmd)
	cmd.Dir = dir
	proc, err := startProcess("PostgreSQL", cmd, filepath.Join(dir, "postgres.log"))
	if err != nil {
		return nil, err
	}
	pg := &postgres{addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), bin: bin, proc: proc}
	return pg, pg.createDatabase(ctx, o)
}

// createDatabase waits for the server and makes the database that is measured.
func (pg *postgres) createDatabase(ctx context.Context, o *options) error {
	maintenance := endpoint{addr: pg.addr, user: o.user, db: "postgres"}
	if err := pg.proc.awaitReady(ctx, maintenance.probe); err != nil {
		pg.stop()
		return err
	}
	if err := maintenance.exec(ctx, `CREATE DATABASE "`+o.db+`"`); err != nil {
		pg.stop()
		return err
	}
	return nil
}

// fill loads pgbench's tables and the one that COPY writes to.
func (pg *postgres) fill(ctx context.Context, o *options) error {
	ep := endpoint{addr: pg.addr, user: o.user, db: o.db}
	if err := ep.exec(ctx, "CREATE UNLOGGED TABLE IF NOT EXISTS pgbench_copy (t text)"); err != nil {
		return fmt.Errorf("%w; the server must let user %q into database %q without a password, and let it make tables (-user, -db)", err, o.user, o.db)
	}
	cmd := pgbenchCommand(ctx, pg.bin, ep, "-i", "-q", "-s", strconv.Itoa(pgbenchScale))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgbench -i: %w\n%s", err, tail(string(out), 5))
	}
	return nil
}

// stop ends a cluster of ours with a fast shutdown.
func (pg *postgres) stop() {
	if pg.proc != nil {
		pg.proc.stop(syscall.SIGINT)
	}
}
