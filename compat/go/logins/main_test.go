// Package logins_test has real drivers log in to a proxy by every method that they know, and compares what they see with what
// they see of PostgreSQL itself under the same lines of pg_hba.conf. compat/logins.sh runs it.
package logins_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

var update = flag.Bool("update", false, "rewrite the table in docs/authentication.md")

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// TestLogins is the matrix of drivers, methods, encryptions and versions, in one line for each driver.
func TestLogins(t *testing.T) {
	if os.Getenv("COMPAT_PYTHON") == "" {
		t.Skip("run by compat/logins.sh, which says where the drivers are")
	}
	began := time.Now()
	w := newWorld(t)
	drivers := drivers(t)
	t.Run("drivers", func(t *testing.T) {
		for _, d := range drivers {
			t.Run(d.name, func(t *testing.T) {
				t.Parallel()
				runDriver(t, w, d)
			})
		}
		t.Run("servers", func(t *testing.T) {
			t.Parallel()
			runServers(t, w)
		})
	})
	if !t.Failed() {
		requireTable(t, drivers)
	}
	fmt.Printf("compat: logins took %.0f s\n", time.Since(began).Seconds())
}

// runDriver makes a driver log in everywhere.
func runDriver(t *testing.T, w *world, d *driver) {
	d.logIn, d.said = d.start(t), map[string]outcome{}
	n := 0
	for _, version := range pgtest.Versions {
		front := w.listen(t, version)
		for _, c := range cases(d) {
			where := fmt.Sprintf("%s: %s over %s, PostgreSQL %d, %s", d.name, c.method, c.over, version, c.what)
			front.forget()
			got := d.logIn(w.login(c, front.address))
			requireBegun(t, where, c.over, front.began())
			requireSame(t, where, c, w.expect(d, c, version), got)
			n++
		}
	}
	if t.Failed() {
		fmt.Printf("compat: logins: %s: FAILED\n", d.name)
		return
	}
	fmt.Printf("compat: logins: %s: %d logins, as PostgreSQL\n", d.name, n)
}

// requireBegun wants every connection of a login to have begun as it was told to.
func requireBegun(t *testing.T, where, over string, began []string) {
	if len(began) == 0 {
		t.Errorf("%s: the driver has not come to the proxy", where)
	}
	for _, how := range began {
		if how != over {
			t.Errorf("%s: the driver began with %s", where, how)
		}
	}
}

var unknownCA = regexp.MustCompile(`(?i)unknown[ _](ca\b|certificate authority)`)

// requireSame compares what a driver has seen of the proxy with what it has seen of PostgreSQL, or should have.
func requireSame(t *testing.T, where string, c loginCase, want, got outcome) {
	switch {
	case c.fine && want.user != c.user:
		t.Errorf("%s: PostgreSQL itself does not let the driver in: %+v", where, want)
	case c.fine && c.oracle() && want.encrypted != (c.over != plain):
		t.Errorf("%s: PostgreSQL itself says of the encryption: %v", where, want.encrypted)
	case !c.fine && want.user != "":
		t.Errorf("%s: PostgreSQL itself lets the driver in", where)
	case c.cert == "stranger": // of PostgreSQL, drivers may hear of a connection that is reset
		if got.user != "" || !unknownCA.MatchString(got.failure) {
			t.Errorf("%s: the driver does not hear of it: %+v", where, got)
		}
	case got.user != want.user || got.code != want.code || got.message != want.message || got.failure != want.failure:
		t.Errorf("%s:\n      proxy: %+v\n PostgreSQL: %+v", where, got, want)
	case c.fine && !got.encrypted:
		t.Errorf("%s: the connection to the server is not encrypted", where)
	}
}
