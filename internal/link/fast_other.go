//go:build !linux || race

package link

import "net"

// fastIO does not exist on this platform: newFast always says so, and nothing else is called.
type fastIO struct{}

func newFast(net.Conn) *fastIO                   { return nil }
func (l *Link) runFast() error                   { return l.runOrdinary() }
func (f *fastIO) tryWrite(p []byte) (int, error) { return 0, net.ErrClosed }
func (f *fastIO) quiet() bool                    { return true }
func (f *fastIO) broken() bool                   { return false }
func (f *fastIO) gone() bool                     { return false }
