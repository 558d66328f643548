package pgtest_test
import ("testing";"strings";"github.com/pgmoor/pgmoor/internal/pgtest")
func TestZZ(t *testing.T) {
	for _, text := range []string{
		"Query \"begin\"\nQuery \"release a\"\nwait\nExecute \"\" 2\nSync\nwait",
		"Query \"begin\"\nQuery \"release a\"\nwait\nDescribe P \"\"\nSync\nwait",
	} {
	eachVersion(t, func(t *testing.T, c *pgtest.Cluster) {
		tr, err := parse(t, text).Run(timeout(t, 2e9), c.Dial, pgtest.Options{User:"app",Database:"app"})
		out := strings.Join(tr, "\n")
		i := strings.Index(out, "BEGIN"); if i < 0 { i = strings.LastIndex(out, "ParseC") }
		t.Log(text, err, "\n", out[i:])
		if strings.Contains(c.Log(), "terminated by signal") { t.Log("CRASHED") }
	})
	}
}
func TestZZMany(t *testing.T) {
	eachVersion(t, func(t *testing.T, c *pgtest.Cluster) {
		pgtest.Fixture(t, c); defer func() { t.Log("LOG", c.Log()) }()
		n := pgtest.Comparison{Direct: c.Target(), Proxied: c.Target()}.Run(t, pgtest.Random(100000, 5000, 30))
		t.Log(n)
	})
}
