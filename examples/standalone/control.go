package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/pgmoor/pgmoor"
)

// control does to the Proxy what signals ask for, which are PgBouncer's: SIGUSR1 pauses, SIGUSR2 resumes, SIGHUP reads the files again.
// Its goroutine is that of serve.
type control struct {
	p       *pgmoor.Proxy
	o       *options
	log     *slog.Logger
	signals chan os.Signal
	pausing chan error // brings what becomes of a pause that is not complete; nil: there is none
}

// listenToSignals returns a control that has begun to listen. The caller calls stop.
func listenToSignals(p *pgmoor.Proxy, o *options) *control {
	c := &control{p: p, o: o, log: o.config.Logger, signals: make(chan os.Signal, 8)}
	signal.Notify(c.signals, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	return c
}

func (c *control) stop() { signal.Stop(c.signals) }

// until obeys signals until ctx ends; an error says that clients are not served any more.
func (c *control) until(ctx context.Context, served <-chan error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer c.join()
	defer cancel()
	for {
		select {
		case err := <-served:
			return err
		case s := <-c.signals:
			c.obey(ctx, s)
		case err := <-c.pausing:
			c.paused(err)
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *control) obey(ctx context.Context, s os.Signal) {
	switch s {
	case syscall.SIGUSR1:
		if c.pausing == nil {
			c.pausing = make(chan error, 1)
			go c.pause(ctx, c.pausing)
		}
	case syscall.SIGUSR2:
		c.p.Resume()
	default:
		c.reload()
	}
}

// pause is the goroutine of a pause until it is complete. The end of ctx undoes it.
func (c *control) pause(ctx context.Context, done chan<- error) { done <- c.p.Pause(ctx) }

// paused takes the end of that.
func (c *control) paused(err error) {
	c.pausing = nil
	if err != nil {
		c.log.Warn("pgmoor: not paused: " + plain(err))
		return
	}
	c.log.Info("pgmoor: paused: no server connection is in use; SIGUSR2 resumes")
}

// join waits for the goroutine of a pause that is not complete.
func (c *control) join() {
	if c.pausing != nil {
		c.paused(<-c.pausing)
	}
}

// reload reads what the flags name again. What is wrong with it is said, and nothing is changed then.
func (c *control) reload() {
	next, err := parseOptions(c.o.args, io.Discard)
	if err == nil {
		err = next.keepSources(c.o)
	}
	if err == nil {
		next.config.Logger = c.log
		err = c.p.Update(next.config)
	}
	if err != nil {
		c.log.Error("pgmoor: nothing is changed by SIGHUP: " + plain(err))
		return
	}
	c.log.Info("pgmoor: files were read again", slog.Int("users", c.o.secrets.fileUsers()))
}
