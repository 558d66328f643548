package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// display shows what goes on: a line that is rewritten in place on a terminal, and a line that stays for
// each measurement. It is used by one goroutine.
type display struct {
	w        *os.File
	terminal bool
	total    int
	finished int
	start    time.Time
	current  string
}

func newDisplay(w *os.File, total int) display {
	st, err := w.Stat()
	return display{w: w, terminal: err == nil && st.Mode()&os.ModeCharDevice != 0, total: total, start: time.Now(), current: "preparing"}
}

// begin names the measurement that status lines belong to.
func (d *display) begin(what string) {
	d.current = what
	d.status("starting")
}

func (d *display) status(what string) {
	if !d.terminal {
		return
	}
	_, _ = fmt.Fprintf(d.w, "\r\x1b[K[%d/%d]%s %s: %s", d.finished, d.total, d.remaining(), d.current, what)
}

// remaining guesses the time left from the measurements so far.
func (d *display) remaining() string {
	if d.finished == 0 {
		return ""
	}
	per := time.Since(d.start) / time.Duration(d.finished)
	return fmt.Sprintf(" %s left,", (per * time.Duration(d.total-d.finished)).Round(time.Second))
}

func (d *display) clear() {
	if d.terminal {
		_, _ = fmt.Fprint(d.w, "\r\x1b[K")
	}
}

// done leaves a line with the result.
func (d *display) done(r *Result) {
	d.clear()
	d.finished++
	_, _ = fmt.Fprintf(d.w, "[%*d/%d] %-14s %-9s %s\n", len(fmt.Sprint(d.total)), d.finished, d.total, r.Cell, r.Target, summary(r))
}

func summary(r *Result) string {
	if r.Error != "" {
		return "FAILED: " + strings.ReplaceAll(r.Error, "\n", "; ")
	}
	var parts []string
	for _, m := range metrics {
		if v, ok := r.Figures[m.key]; ok {
			parts = append(parts, fmt.Sprintf(m.format, v)+" "+m.unit)
		}
	}
	if r.Noisy {
		parts = append(parts, fmt.Sprintf("(noisy: %.2f cores taken by others)", r.noise()))
	}
	return strings.Join(parts, ", ")
}
