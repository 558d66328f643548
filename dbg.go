package pgmoor

import (
	"fmt"
	"os"
	"time"
)

func (e *env) dbg() {
	for {
		time.Sleep(1500 * time.Millisecond)
		for _, s := range e.all() {
			s.mu.Lock()
			if !s.pending.empty() || s.holding || len(s.ops) > 0 {
				fmt.Fprintf(os.Stderr, "DBG s=%d pend=%d hold=%v ops=%+v sql=%d batch=%d srv=%v wait=%v send=%v fin=%v writing=%v held=%v resume=%v body=%d owed=%v ready=%d open=%v skip=%v st=%c unmoor=%v bytes=%q\n", s.id, s.pending.size, s.holding, s.ops, len(s.sqlOps), s.batch, s.srv != nil, s.waiting, s.sending, s.finishing, s.writing, s.held, s.resume, s.body, s.turn.Owed(), s.turn.Ready(), s.turn.Open(), s.turn.Skipping(), s.turn.Status(), s.unmooring, s.pending.bytes()[:min(60, s.pending.size)])
			}
			s.mu.Unlock()
		}
	}
}
