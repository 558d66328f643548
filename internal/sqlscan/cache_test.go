package sqlscan

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

const query250 = "SELECT o.id, o.created_at, c.name, c.email, sum(l.quantity * l.price) AS total FROM orders o JOIN customers c ON c.id = o.customer_id LEFT JOIN order_lines l ON l.order_id = o.id WHERE o.status = $1 AND c.region IN ('eu', 'us') GROUP BY 1, 2, 3, 4"

func TestInspectTellsWhatThereIsToKnow(t *testing.T) {
	cached, plain := NewCache(1000), NewCache(0)
	for range 3 {
		for i, c := range append(append([]sqlCase{}, cases...), oldCases...) {
			std := i < len(cases)
			s := scan(std, c.sql)
			for _, cache := range []*Cache{cached, plain} {
				info := cache.Inspect([]byte(c.sql), std)
				require.Equal(t, c.want.String(), (info.Effects &^ Lexical).String(), c.name)
				require.Equal(t, s.verb, info.Verb, c.name)
				require.Equal(t, s.count, info.Statements, c.name)
			}
		}
	}
	info := cached.Inspect([]byte("SET a = b; DISCARD ALL"), true)
	require.Equal(t, []SettingRef{set("a", "b")}, info.Settings)
	require.True(t, info.AllSettings)
}

func TestATextIsRememberedWhenItComesAgain(t *testing.T) {
	c, text := NewCache(8), []byte("SET a = b")
	first, second := c.Inspect(text, true), c.Inspect(text, true)
	require.NotSame(t, first, second)
	require.Same(t, second, c.Inspect(text, true))
	require.NotSame(t, second, c.Inspect(text, false))
	text[4] = 'c'
	require.Equal(t, "c", c.Inspect(text, true).Settings[0].Name)
	require.Equal(t, "a", second.Settings[0].Name)
}

func TestLargeTextsAreNotRemembered(t *testing.T) {
	c := NewCache(8)
	for size, kept := range map[int]bool{maxCachedText: true, maxCachedText + 1: false} {
		text := []byte("SET a = b" + strings.Repeat(" ", size-9))
		c.Inspect(text, true)
		second := c.Inspect(text, true)
		require.Equal(t, kept, second == c.Inspect(text, true), size)
	}
}

func TestStreamsOfUniqueTextsDoNotDriveOutOthers(t *testing.T) {
	c, text := NewCache(64), []byte("SET a = b")
	c.Inspect(text, true)
	kept := c.Inspect(text, true)
	for i := range 10000 {
		c.Inspect(fmt.Appendf(nil, "SET a = %d", i), true)
	}
	require.Same(t, kept, c.Inspect(text, true))
}

func TestEntriesAreReplaced(t *testing.T) {
	c := NewCache(2)
	for i := range 1000 {
		text := fmt.Appendf(nil, "SET a = %d", i)
		for range 3 {
			require.Equal(t, fmt.Sprint(i), c.Inspect(text, true).Settings[0].Value)
		}
	}
}

func TestACacheIsSharedByMany(t *testing.T) {
	c := NewCache(16)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				n := (i*7 + g) % 64
				info := c.Inspect(fmt.Appendf(nil, "SET a = %d", n), n%2 == 0)
				if info.Settings[0].Value != fmt.Sprint(n) {
					t.Errorf("%d: %v", n, info.Settings)
				}
			}
		})
	}
	wg.Wait()
}

func TestListedFunctionsAreReported(t *testing.T) {
	c := NewCache(8, "audit.log_it", "f", "Mixed", strings.Repeat("l", 70))
	for sql, want := range map[string]bool{
		"SELECT log_it(1)":                           true,
		"SELECT Audit . LOG_IT(1)":                   true,
		`SELECT "log_it"(1)`:                         true,
		`SELECT "Log_It"(1)`:                         false,
		`SELECT "Mixed"(1)`:                          true,
		"SELECT Mixed(1)":                            false,
		"SELECT ff(1), 'f', $$f$$, $f$ $f$ -- f":     false,
		"/* f */ SELECT 1":                           false,
		"SELECT x FROM F()":                          true,
		"SELECT 1f":                                  true,
		"SELECT 1 FROM t; SELECT g(); CALL f()":      true,
		`SELECT U&"f"`:                               true,
		`SELECT U&"\0066"`:                           true, // not known
		"SELECT " + strings.Repeat("L", 63) + "()":   true,
		"SELECT " + strings.Repeat("l", 70) + "a()":  true,
		"SELECT " + strings.Repeat("l", 62) + "m( )": false,
	} {
		for range 3 {
			require.Equal(t, want, c.Inspect([]byte(sql), true).Effects&Listed != 0, sql)
		}
	}
}

func TestInspectTakesNoMemory(t *testing.T) {
	c, text, setting := NewCache(1000), []byte(query250), []byte("SET a = b")
	for range 2 {
		c.Inspect(text, true)
		c.Inspect(setting, true)
	}
	require.Zero(t, testing.AllocsPerRun(100, func() { c.Inspect(text, true) }))
	require.Zero(t, testing.AllocsPerRun(100, func() { c.Inspect(setting, true) }))
	unseen := NewCache(1 << 16)
	require.Zero(t, testing.AllocsPerRun(1000, func() { // each is new
		text[len(text)-1]++
		text[len(text)-3]--
		unseen.Inspect(text, true)
	}))
}

func BenchmarkInspectCached(b *testing.B) {
	c, text := NewCache(1000), []byte(query250)
	c.Inspect(text, true)
	c.Inspect(text, true)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		c.Inspect(text, true)
	}
}

func BenchmarkInspectMissed(b *testing.B) {
	text := []byte(query250)
	for name, c := range map[string]*Cache{"plain": NewCache(0), "listed": NewCache(0, "f", "g")} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				c.Inspect(text, true)
			}
		})
	}
}

func BenchmarkClassify250(b *testing.B) {
	text := []byte(query250)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		Classify(text, true)
	}
}
