package main

import (
	"os"
	"time"
)

// watcher observes one measurement: the pooler's process and the machine around it.
type watcher struct {
	pooler   int  // pid, 0 without a pooler
	complete bool // everything we cause runs below us, so other CPU time is foreign
}

// snapshot is the CPU time used up to an instant.
type snapshot struct {
	at      time.Time
	pooler  time.Duration
	machine machineCPU
	ours    time.Duration
}

func (w watcher) take() (snapshot, error) {
	var s snapshot
	var err error
	if w.pooler != 0 {
		if s.pooler, err = processCPU(w.pooler); err != nil {
			return s, err
		}
	}
	s.at = time.Now()
	if s.machine, err = readMachineCPU(); err != nil {
		return s, err
	}
	if w.complete {
		s.ours = familyCPU(os.Getpid())
	}
	return s, nil
}

// disturbance notes in r how many cores the host and other processes took between two snapshots.
func (w watcher) disturbance(r *Result, from, to snapshot) {
	span := to.at.Sub(from.at).Seconds()
	if span <= 0 {
		return
	}
	r.Steal = (to.machine.steal - from.machine.steal).Seconds() / span
	if w.complete {
		busy := to.machine.busy - from.machine.busy - (to.ours - from.ours)
		r.Foreign = max(0, busy.Seconds()/span)
	}
}
