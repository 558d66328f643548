package main

import "slices"

// percentile is the nearest-rank percentile, q in (0, 1], of a sorted slice that is not empty.
func percentile(sorted []float64, q float64) float64 {
	rank := int(q*float64(len(sorted)) + 0.999999)
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// median is the middle value, or the mean of the two middle ones, of a slice that is not empty.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	m := len(s) / 2
	if len(s)%2 == 1 {
		return s[m]
	}
	return (s[m-1] + s[m]) / 2
}

// values are all figures of one target in one cell.
func (fs *figures) values(cell, target, key string) []float64 {
	var out []float64
	for _, r := range fs.results {
		if v, ok := r.Figures[key]; ok && r.Cell == cell && r.Target == target {
			out = append(out, v)
		}
	}
	return out
}

// ratios pairs what two targets reached in the same repetition of a cell. The machine's speed drifts by more
// between repetitions than the targets differ, so only such pairs are comparable.
func (fs *figures) ratios(cell, key, target, reference string) []float64 {
	type turn struct{ series, run int }
	base := map[turn]float64{}
	for _, r := range fs.results {
		if r.Cell == cell && r.Target == reference && r.Figures[key] > 0 {
			base[turn{r.series, r.Run}] = r.Figures[key]
		}
	}
	var out []float64
	for _, r := range fs.results {
		v, ok := r.Figures[key]
		if b := base[turn{r.series, r.Run}]; ok && b > 0 && r.Cell == cell && r.Target == target {
			out = append(out, v/b)
		}
	}
	return out
}
