//go:build !race

package pgmoor_test

const raceEnabled = false
