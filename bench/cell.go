package main

import (
	"fmt"
	"path"
	"strings"
)

// kind says how a cell is measured.
type kind int

const (
	load    kind = iota // pgbench -S with lasting connections
	storm               // pgbench -S -C: a connection per transaction
	result              // a large result read by one client
	copyOut             // COPY TO STDOUT read by one client
	copyIn              // COPY FROM STDIN written by one client
	latency             // round trips of one client, timed here rather than by pgbench
	idle                // memory with authenticated clients that do nothing
	logins              // clients that log in by SCRAM and leave, next to pgbench -S at a fixed rate
)

// cell is one point of the matrix; every target is measured in it in turn.
type cell struct {
	name    string
	kind    kind
	mode    string // pgbench's -M
	clients int
	tls     bool
	sets    bool // every client says the SETs of an ORM first
	asks    bool // every idle client has had one query answered
	rate    int  // clients a second that log in
}

// appliesTo reports whether the cell means anything for a target: without a pooler there is no process whose memory or
// CPU could be attributed to clients.
func (c cell) appliesTo(target string) bool {
	return c.kind != idle && c.kind != logins || target != direct
}

// access is how the cell's clients come in.
func (c cell) access() access { return access{tls: c.tls, scram: c.kind == logins} }

func allCells() []cell {
	var all []cell
	for _, mode := range []string{"simple", "extended", "prepared"} {
		for _, n := range []int{1, 10, 50, 200, 1000} {
			all = append(all, cell{name: fmt.Sprintf("%s-%d", mode, n), kind: load, mode: mode, clients: n})
		}
	}
	all = append(all,
		cell{name: "sets-200", kind: load, mode: "simple", clients: 200, sets: true},
		cell{name: "latency", kind: latency, clients: 1},
		cell{name: "storm-10", kind: storm, mode: "simple", clients: 10},
		cell{name: "result", kind: result, clients: 1},
		cell{name: "copy-out", kind: copyOut, clients: 1},
		cell{name: "copy-in", kind: copyIn, clients: 1},
		cell{name: "tls-simple-1", kind: load, mode: "simple", clients: 1, tls: true},
		cell{name: "tls-simple-50", kind: load, mode: "simple", clients: 50, tls: true},
		cell{name: "tls-storm-10", kind: storm, mode: "simple", clients: 10, tls: true},
	)
	for _, n := range []int{1, 1000, 10000} {
		all = append(all, cell{name: fmt.Sprintf("idle-%d", n), kind: idle, clients: n})
	}
	for _, n := range []int{1000, 10000} {
		all = append(all, cell{name: fmt.Sprintf("idle-tls-%d", n), kind: idle, clients: n, tls: true, asks: true})
	}
	return append(all,
		cell{name: "logins-1000", kind: logins, mode: "prepared", clients: 50, rate: 1000},
		cell{name: "tls-logins-200", kind: logins, mode: "prepared", clients: 50, rate: 200, tls: true},
	)
}

// selectCells returns the cells that match any of the comma-separated patterns, in the matrix's order.
func selectCells(patterns string) ([]cell, error) {
	matched := map[string]bool{}
	for _, p := range strings.Split(patterns, ",") {
		found := false
		for _, c := range allCells() {
			ok, err := path.Match(p, c.name)
			if err != nil {
				return nil, fmt.Errorf("-cells: %q: %w", p, err)
			}
			if ok {
				found, matched[c.name] = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("-cells: no cell matches %q; there are %s", p, strings.Join(cellNames(), ", "))
		}
	}
	var out []cell
	for _, c := range allCells() {
		if matched[c.name] {
			out = append(out, c)
		}
	}
	return out, nil
}

func cellNames() []string {
	var names []string
	for _, c := range allCells() {
		names = append(names, c.name)
	}
	return names
}
