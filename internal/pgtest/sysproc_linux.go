package pgtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// sysProcAttr runs a child as the account, in a process group of its own, and takes it down if the test process dies.
func (a account) sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: a.credential(), Setpgid: true, Pdeathsig: syscall.SIGQUIT}
}

// children lists the processes that pid has started. A postmaster's children leave its process group, so the group
// cannot be signalled instead.
func children(pid int) ([]int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(data)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		pids = append(pids, child)
	}
	return pids, nil
}

// removeSegment removes the System V shared memory that a killed server has left behind, of which there is only so much: its id is the last
// word of the seventh line of the lock file.
func removeSegment(lockFile string) error {
	data, err := os.ReadFile(lockFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	const line, ipcRMID = 6, 0
	lines := strings.Split(string(data), "\n")
	if len(lines) <= line {
		return nil // it had not got that far
	}
	words := strings.Fields(lines[line])
	if len(words) != 2 {
		return nil
	}
	id, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall(syscall.SYS_SHMCTL, uintptr(id), ipcRMID, 0)
	if errno != 0 && errno != syscall.EINVAL && errno != syscall.EIDRM {
		return os.NewSyscallError("shmctl", errno)
	}
	return nil
}
