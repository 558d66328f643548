// Package report prints what a smoke program saw, one line per check, in a form that is the same on every run.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// Report writes checks to an output that is compared between two runs.
// A failed Report is one whose program could not do what it set out to do, as opposed to having seen an error.
type Report struct {
	out    io.Writer
	failed bool
}

// New returns a Report that writes to out.
func New(out io.Writer) *Report {
	return &Report{out: out}
}

// Check prints one line. Line breaks in the text are escaped, so that a check stays one line.
func (r *Report) Check(name, format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", `\n`)
	fmt.Fprintf(r.out, "- %s: %s\n", name, text)
}

// Run runs one part of the program. An error ends that part only, and makes the program fail in the end.
func (r *Report) Run(name string, part func() error) {
	if err := part(); err != nil {
		r.failed = true
		r.Check(name, "FAILED: %v", err)
	}
}

// Exit ends the program: status 0 and a last line that says so, unless a part has failed.
func (r *Report) Exit() {
	if r.failed {
		os.Exit(1)
	}
	fmt.Fprintln(r.out, "done")
	os.Exit(0)
}

// JSON renders a value: maps with their keys in order, byte slices and times as text.
func JSON(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprintf("unprintable %T", value)
	}
	return string(text)
}
