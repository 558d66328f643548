package main

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// metric is a kind of figure and how it is printed.
type metric struct {
	key, format, unit, title string
}

var metrics = []metric{
	{keyCPUTx, "%.1f", "µs CPU/tx", "The pooler's own CPU, µs per transaction (lower is better)"},
	{keyTPS, "%.0f", "tps", "Transactions per second (higher is better)"},
	{keyP50, "%.0f", "µs p50", "Latency p50, µs"},
	{keyP99, "%.0f", "µs p99", "Latency p99, µs"},
	{keyP999, "%.0f", "µs p99.9", "Latency p99.9, µs"},
	{keyCPUGB, "%.2f", "s CPU/GB", "The pooler's own CPU, seconds per GB moved (lower is better)"},
	{keyMBs, "%.0f", "MB/s", "Bulk throughput, MB/s (higher is better)"},
	{keyRSSShare, "%.2f", "KiB/client", "Resident memory per idle client, KiB (lower is better)"},
	{keyRSS, "%.0f", "KiB", "Resident memory of the pooler, KiB"},
	{keyLoginCPU, "%.1f", "µs CPU/login", "The pooler's own CPU, µs per login (lower is better)"},
	{keyLoaderCPU, "%.1f", "µs client CPU/login", "The CPU of the client that logs in, µs per login"},
	{keyLogins, "%.0f", "logins/s", "Logins per second"},
	{keyLoginsFailed, "%.0f", "failed", "Logins that failed"},
	{keyLoginP50, "%.0f", "µs login p50", "Login p50, µs"},
	{keyLoginP99, "%.0f", "µs login p99", "Login p99, µs"},
	{keyLoginP999, "%.0f", "µs login p99.9", "Login p99.9, µs"},
	{keyQuietP50, "%.0f", "µs quiet p50", "Latency p50 without logins beside, µs"},
	{keyQuietP99, "%.0f", "µs quiet p99", "Latency p99 without logins beside, µs"},
	{keyQuietP999, "%.0f", "µs quiet p99.9", "Latency p99.9 without logins beside, µs"},
	{keyRise, "%.2f", "× quiet p99", "Latency p99 with logins beside over that without (lower is better)"},
}

// comparisons are the ratios that are printed, numerator first.
var comparisons = [][2]string{{pgmoor, pgbouncer}, {pgmoor, direct}}

// The marks in docs/benchmarks.md between which the report stands.
const (
	beginMark = "<!-- figures: begin (written by go run . report) -->"
	endMark   = "<!-- figures: end -->"
)

func reportCommand(args []string) error {
	f := flag.NewFlagSet("report", flag.ContinueOnError)
	doc := f.String("doc", "../docs/benchmarks.md", "document whose figures are replaced; - prints them instead")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() == 0 {
		return errors.New("no figures named: go run . report FILE.jsonl [FILE.jsonl]")
	}
	body, err := renderFiles(f.Args()...)
	if err != nil {
		return err
	}
	if *doc == "-" {
		_, err = os.Stdout.WriteString(body)
		return err
	}
	old, err := os.ReadFile(*doc)
	if err != nil {
		return err
	}
	text, err := replaceFigures(string(old), body)
	if err != nil {
		return fmt.Errorf("%s: %w", *doc, err)
	}
	return os.WriteFile(*doc, []byte(text), 0o644)
}

// replaceFigures puts body between the marks of a document.
func replaceFigures(doc, body string) (string, error) {
	before, rest, ok := strings.Cut(doc, beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", fmt.Errorf("it must hold the lines %q and %q, in this order", beginMark, endMark)
	}
	return before + beginMark + "\n\n" + body + "\n" + endMark + after, nil
}

func writeReport(path string, raw ...string) error {
	body, err := renderFiles(raw...)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(body), 0o644)
}

func renderFiles(raw ...string) (string, error) {
	var fs figures
	for _, path := range raw {
		if err := fs.load(path); err != nil {
			return "", err
		}
	}
	if len(fs.results) == 0 {
		return "", errors.New("no results in " + strings.Join(raw, ", "))
	}
	return fs.render(), nil
}

// render is the Markdown of all figures.
func (fs *figures) render() string {
	var b strings.Builder
	for _, s := range fs.series {
		fmt.Fprintf(&b, "%s, %d runs of %g s: `%s`  \n%s. ", s.Start.Format("2006-01-02 15:04 MST"), s.Runs, s.Seconds, s.Command, s.Machine)
		var versions []string
		for _, name := range slices.Sorted(maps.Keys(s.Versions)) {
			versions = append(versions, versionText(name, s.Versions[name]))
		}
		fmt.Fprintf(&b, "%s.\n\n", strings.Join(versions, ", "))
	}
	b.WriteString("Medians over the runs. A ratio is the median of the ratios of single runs, with the lowest and the highest of them.\n")
	for _, m := range metrics {
		fs.renderTable(&b, m)
	}
	fs.renderTroubles(&b)
	return b.String()
}

// versionText avoids naming a program twice: some print their name with their version.
func versionText(name, version string) string {
	if strings.HasPrefix(strings.ToLower(version), strings.ToLower(name)) {
		return version
	}
	return name + " " + version
}

// renderTable prints one metric: a row per cell, a column per target and comparison that have figures.
func (fs *figures) renderTable(b *strings.Builder, m metric) {
	cells := slices.DeleteFunc(cellNames(), func(c string) bool { return !fs.has(m.key, func(r Result) bool { return r.Cell == c }) })
	if len(cells) == 0 {
		return
	}
	targets := slices.DeleteFunc(slices.Clone(targetNames), func(t string) bool { return !fs.has(m.key, func(r Result) bool { return r.Target == t }) })
	pairs := slices.DeleteFunc(slices.Clone(comparisons), func(p [2]string) bool {
		return !slices.Contains(targets, p[0]) || !slices.Contains(targets, p[1])
	})
	fmt.Fprintf(b, "\n### %s\n\n| cell | %s |", m.title, strings.Join(targets, " | "))
	for _, p := range pairs {
		fmt.Fprintf(b, " %s / %s |", p[0], p[1])
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(targets)+len(pairs)) + "\n")
	for _, c := range cells {
		fmt.Fprintf(b, "| %s |", c)
		for _, t := range targets {
			fmt.Fprintf(b, " %s |", medianText(fs.values(c, t, m.key), m.format))
		}
		for _, p := range pairs {
			fmt.Fprintf(b, " %s |", ratioText(fs.ratios(c, m.key, p[0], p[1])))
		}
		b.WriteByte('\n')
	}
}

func (fs *figures) has(key string, match func(Result) bool) bool {
	return slices.ContainsFunc(fs.results, func(r Result) bool {
		_, ok := r.Figures[key]
		return ok && match(r)
	})
}

func medianText(values []float64, format string) string {
	if len(values) == 0 {
		return "–"
	}
	return fmt.Sprintf(format, median(values))
}

func ratioText(ratios []float64) string {
	switch len(ratios) {
	case 0:
		return "–"
	case 1:
		return fmt.Sprintf("%.2f", ratios[0])
	}
	return fmt.Sprintf("**%.2f** (%.2f–%.2f)", median(ratios), slices.Min(ratios), slices.Max(ratios))
}

// renderTroubles says which figures deserve less trust, and which are missing.
func (fs *figures) renderTroubles(b *strings.Builder) {
	noisy := 0
	var failed []string
	for _, r := range fs.results {
		if r.Noisy {
			noisy++
		}
		if r.Error != "" {
			first, _, _ := strings.Cut(r.Error, "\n")
			failed = append(failed, fmt.Sprintf("- %s, %s, run %d: %s\n", r.Cell, r.Target, r.Run+1, first))
		}
	}
	fmt.Fprintf(b, "\n%d of %d measurements stayed disturbed by the host or by other processes after their repeats; they are counted all the same.\n", noisy, len(fs.results))
	if len(failed) > 0 {
		fmt.Fprintf(b, "\nFailed:\n\n%s", strings.Join(failed, ""))
	}
}
