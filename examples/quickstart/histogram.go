package main

import (
	"math"
	"sync/atomic"
	"time"
)

// histogram counts durations in buckets that grow by an eighth of an octave, nine per cent, from a microsecond on.
type histogram struct {
	buckets [8 * 30]atomic.Int64
	n       atomic.Int64
}

func (h *histogram) add(d time.Duration) {
	i := int(8 * math.Log2(float64(max(d, time.Microsecond))/float64(time.Microsecond)))
	h.buckets[min(i, len(h.buckets)-1)].Add(1)
	h.n.Add(1)
}

func (h *histogram) count() int64 { return h.n.Load() }

// quantile returns the upper end of the bucket in which the q-th part of the durations is reached.
func (h *histogram) quantile(q float64) time.Duration {
	want := int64(math.Ceil(q * float64(h.count())))
	var seen int64
	for i := range h.buckets {
		seen += h.buckets[i].Load()
		if seen >= want && seen > 0 {
			return time.Duration(float64(time.Microsecond) * math.Exp2(float64(i+1)/8))
		}
	}
	return 0
}
