package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	bulkRows     = 100_000
	bulkRowBytes = 1000
	copyBlock    = 50 // rows per write of COPY in
	idleDialers  = 32 // clients that log in at the same time
)

var (
	bulkSelect  = fmt.Sprintf("SELECT repeat('x',%d) FROM generate_series(1,%d)", bulkRowBytes, bulkRows)
	bulkCopyOut = "COPY (" + bulkSelect + ") TO STDOUT"
	// The rows are parsed and dropped, so that the table does not grow and no run pays for another's.
	bulkCopyIn = "COPY pgbench_copy FROM STDIN WHERE t IS NULL"
)

// copyRows is a block of CopyData messages, a row each.
func copyRows() []byte {
	row := binary.BigEndian.AppendUint32([]byte{'d'}, bulkRowBytes+1+4)
	row = append(append(row, bytes.Repeat([]byte{'x'}, bulkRowBytes)...), '\n')
	return bytes.Repeat(row, copyBlock)
}

// bulkTransfer moves 100 MB once and returns the bytes on the wire.
func bulkTransfer(c *client, k kind, block []byte) (int64, error) {
	switch k {
	case copyOut:
		return c.query(bulkCopyOut)
	case copyIn:
		return c.copyIn(bulkCopyIn, block, bulkRows/copyBlock)
	default:
		return c.query(bulkSelect)
	}
}

// measureBulk moves 100 MB again and again until the time is up; the first is a warm-up.
func (b *bench) measureBulk(ctx context.Context, c cell, s *started, r *Result) error {
	conn, err := s.connect(ctx, readBuffer)
	if err != nil {
		return err
	}
	defer conn.close()
	block := copyRows()
	if _, err := bulkTransfer(conn, c.kind, block); err != nil {
		return err
	}
	eyes := b.watcher(s)
	from, err := eyes.take()
	if err != nil {
		return err
	}
	var moved int64
	for time.Since(from.at) < b.o.window {
		n, err := bulkTransfer(conn, c.kind, block)
		moved += n
		if err != nil {
			return err
		}
		b.show(fmt.Sprintf("%.0f MB/s", float64(moved)/1e6/time.Since(from.at).Seconds()))
	}
	to, err := eyes.take()
	if err != nil {
		return err
	}
	eyes.disturbance(r, from, to)
	r.Figures[keyMBs] = float64(moved) / 1e6 / to.at.Sub(from.at).Seconds()
	if s.proc != nil {
		r.Figures[keyCPUGB] = (to.pooler - from.pooler).Seconds() / (float64(moved) / 1e9)
	}
	return nil
}

// measureLatency times round trips of one client without pgbench in the way.
func (b *bench) measureLatency(ctx context.Context, s *started, r *Result) error {
	conn, err := s.connect(ctx, readBuffer)
	if err != nil {
		return err
	}
	defer conn.close()
	query := queryMessage("SELECT 1")
	if _, err := roundTrips(conn, query, b.o.window/10); err != nil {
		return err
	}
	eyes := b.watcher(s)
	from, err := eyes.take()
	if err != nil {
		return err
	}
	taken, err := roundTrips(conn, query, b.o.window)
	if err != nil {
		return err
	}
	to, err := eyes.take()
	if err != nil {
		return err
	}
	eyes.disturbance(r, from, to)
	r.Figures[keyTPS] = float64(len(taken)) / to.at.Sub(from.at).Seconds()
	if s.proc != nil {
		r.Figures[keyCPUTx] = micros(to.pooler-from.pooler) / float64(len(taken))
	}
	addPercentiles(r, taken)
	return nil
}

// roundTrips repeats a query for a while and returns how long each took, in microseconds.
func roundTrips(c *client, query []byte, span time.Duration) ([]float64, error) {
	taken := make([]float64, 0, 1<<17)
	begin := time.Now()
	for last := begin; last.Sub(begin) < span; {
		if _, err := c.send(query); err != nil {
			return nil, err
		}
		now := time.Now()
		taken = append(taken, micros(now.Sub(last)))
		last = now
	}
	return taken, nil
}

// crowd is a number of clients that have logged in and do nothing.
type crowd struct {
	ep      endpoint
	asks    bool // each has had one query answered
	clients []*client
	next    atomic.Int64 // index of the next client to connect
	mu      sync.Mutex
	err     error // the first failure; guarded by mu
}

// gather connects n clients, or none.
func gather(ctx context.Context, ep endpoint, n int, asks bool) (*crowd, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &crowd{ep: ep, asks: asks, clients: make([]*client, n)}
	var wg sync.WaitGroup
	for range min(n, idleDialers) {
		wg.Go(func() { c.dial(ctx, cancel) })
	}
	wg.Wait()
	if c.err != nil {
		c.disperse()
		return nil, c.err
	}
	return c, nil
}

// dial connects clients until all are there or one fails, which calls the others off.
func (c *crowd) dial(ctx context.Context, callOff func()) {
	for {
		i := int(c.next.Add(1)) - 1
		if i >= len(c.clients) {
			return
		}
		conn, err := c.enter(ctx)
		if err != nil {
			c.mu.Lock()
			if c.err == nil {
				c.err = err
			}
			c.mu.Unlock()
			callOff()
			return
		}
		conn.detach() // a crowd outlives the context it was gathered under
		c.clients[i] = conn
	}
}

// enter connects one client.
func (c *crowd) enter(ctx context.Context) (*client, error) {
	conn, err := c.ep.connect(ctx, 512) // a small buffer: our own memory is not what is measured
	if err != nil || !c.asks {
		return conn, err
	}
	if _, err := conn.query("SELECT 1"); err != nil {
		conn.close()
		return nil, err
	}
	return conn, nil
}

func (c *crowd) disperse() {
	for _, conn := range c.clients {
		if conn != nil {
			conn.close()
		}
	}
}

// measureIdle weighs the pooler with one client and with all of the cell's.
func (b *bench) measureIdle(ctx context.Context, c cell, s *started, r *Result) error {
	one, err := gather(ctx, s.endpoint, 1, c.asks)
	if err != nil {
		return err
	}
	defer one.disperse()
	alone, err := settledRSS(ctx, s.pid())
	if err != nil {
		return err
	}
	r.Figures[keyRSS] = alone
	if c.clients == 1 {
		return nil
	}
	b.show(fmt.Sprintf("connecting %d clients", c.clients))
	rest, err := gather(ctx, s.endpoint, c.clients-1, c.asks)
	if err != nil {
		return err
	}
	defer rest.disperse()
	full, err := settledRSS(ctx, s.pid())
	if err != nil {
		return err
	}
	r.Figures[keyRSS] = full
	r.Figures[keyRSSShare] = (full - alone) / float64(c.clients-1)
	return nil
}

const (
	settleStep = 500 * time.Millisecond
	settleMin  = 4  // steps before a size is believed
	settleMax  = 20 // steps after which it is taken as it is
	settleNear = 0.005
)

// settledRSS waits until the process's resident size, in KiB, has stopped changing.
func settledRSS(ctx context.Context, pid int) (float64, error) {
	last := math.Inf(1)
	for step := 1; ; step++ {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(settleStep):
		}
		now, err := processRSS(pid)
		if err != nil {
			return 0, err
		}
		if step >= settleMax || step >= settleMin && math.Abs(now-last) <= settleNear*now {
			return now, nil
		}
		last = now
	}
}
