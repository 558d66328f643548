package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of the times in /proc/stat and /proc/PID/stat; the kernel has it at 1/100 s on every
// architecture that Go runs on.
const tick = 10 * time.Millisecond

// procStat is the part of /proc/PID/stat that is used.
type procStat struct {
	parent int
	cpu    time.Duration // user and system time of the process
	reaped time.Duration // the same of the children it has waited for
}

func parseProcStat(line string) (procStat, error) {
	// The command name may hold anything, blanks and parentheses too; what follows its last ")" does not.
	i := strings.LastIndexByte(line, ')')
	f := strings.Fields(line[i+1:])
	if i < 0 || len(f) < 15 {
		return procStat{}, errors.New("/proc/PID/stat: too few fields")
	}
	n, err := parseInts(f[1], f[11], f[12], f[13], f[14])
	if err != nil {
		return procStat{}, fmt.Errorf("/proc/PID/stat: %w", err)
	}
	return procStat{
		parent: int(n[0]),
		cpu:    time.Duration(n[1]+n[2]) * tick,
		reaped: time.Duration(n[3]+n[4]) * tick,
	}, nil
}

func parseInts(fields ...string) ([]int64, error) {
	out := make([]int64, len(fields))
	for i, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return nil, err
		}
		out[i] = n
	}
	return out, nil
}

func readProcStat(pid string) (procStat, error) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseProcStat(string(b))
}

// processCPU is the CPU time of a process so far: to the nanosecond from the scheduler's statistics of its
// threads where the kernel keeps them, else in ticks.
func processCPU(pid int) (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that has just ended
		}
		ran, _, _ := bytes.Cut(b, []byte{' '})
		n, err := strconv.ParseInt(string(ran), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f, err)
		}
		sum += time.Duration(n)
	}
	if sum > 0 {
		return sum, nil
	}
	st, err := readProcStat(strconv.Itoa(pid))
	return st.cpu, err
}

// familyCPU is the CPU time so far of a process and all its descendants, the ended ones included.
func familyCPU(root int) time.Duration {
	stats := map[int]procStat{}
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		if st, err := readProcStat(d.Name()); err == nil {
			stats[pid] = st
		}
	}
	var sum time.Duration
	for pid, st := range stats {
		if descends(stats, pid, root) {
			sum += st.cpu + st.reaped
		}
	}
	return sum
}

func descends(stats map[int]procStat, pid, root int) bool {
	for range len(stats) { // pids may be reused while the table is read: never loop for ever
		if pid == root {
			return true
		}
		st, ok := stats[pid]
		if !ok {
			return false
		}
		pid = st.parent
	}
	return false
}

// machineCPU is the machine's CPU time so far.
type machineCPU struct {
	busy  time.Duration // in processes, without interrupts
	steal time.Duration // wanted but not given by the host
}

func parseMachineCPU(stat string) (machineCPU, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return machineCPU{}, errors.New("/proc/stat: unexpected first line")
	}
	n, err := parseInts(f[1], f[2], f[3], f[8])
	if err != nil {
		return machineCPU{}, fmt.Errorf("/proc/stat: %w", err)
	}
	return machineCPU{busy: time.Duration(n[0]+n[1]+n[2]) * tick, steal: time.Duration(n[3]) * tick}, nil
}

func readMachineCPU() (machineCPU, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machineCPU{}, err
	}
	return parseMachineCPU(string(b))
}

// parseRSS finds the resident size, in KiB, in smaps_rollup ("Rss:") or status ("VmRSS:").
func parseRSS(text string) (float64, error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 3 && (f[0] == "Rss:" || f[0] == "VmRSS:") {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, errors.New("no resident size given")
}

// processRSS is the resident size of a process in KiB, from smaps_rollup, which is exact; status, which lags by
// some pages per CPU, stands in where smaps may not be read.
func processRSS(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b, err = os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	}
	if err != nil {
		return 0, err
	}
	return parseRSS(string(b))
}

// describeMachine names processor, memory and kernel.
func describeMachine(cpus int) string {
	model, mem := "unknown processor", ""
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		model = lineValue(string(b), "model name", model)
		if strings.Contains(string(b), " hypervisor") {
			mem = ", virtual machine"
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		kib, _, _ := strings.Cut(lineValue(string(b), "MemTotal", "0"), " ")
		n, _ := strconv.ParseFloat(kib, 64)
		mem = fmt.Sprintf(", %.0f GiB%s", n/(1<<20), mem)
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	release, _, _ := strings.Cut(strings.TrimSpace(string(kernel)), "-")
	return fmt.Sprintf("%s, %d CPUs%s, Linux %s", model, cpus, mem, release)
}

func lineValue(text, key, missing string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return missing
}
