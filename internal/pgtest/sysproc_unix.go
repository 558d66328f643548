//go:build unix && !linux

package pgtest

import (
	"bytes"
	"os/exec"
	"strconv"
	"syscall"
)

// sysProcAttr runs a child as the account, in a process group of its own.
func (a account) sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: a.credential(), Setpgid: true}
}

// children lists the processes that pid has started. A postmaster's children leave its process group, so the group
// cannot be signalled instead.
func children(pid int) ([]int, error) {
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output()
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range bytes.FieldsSeq(out) {
		child, err := strconv.Atoi(string(field))
		if err != nil {
			return nil, err
		}
		pids = append(pids, child)
	}
	return pids, nil
}

// removeSegment leaves the shared memory of a killed server to whoever starts it again.
func removeSegment(string) error { return nil }
