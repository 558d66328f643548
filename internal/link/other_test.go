//go:build !linux && !race

package link_test

const (
	raceEnabled = false
	fastPath    = false
)
