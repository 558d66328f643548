package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/pgmoor/pgmoor"
)

// metrics is the HTTP server of -metrics; nil is none.
type metrics struct {
	server *http.Server
	shared bool // a successor serves on the same port
	log    *slog.Logger
	done   chan struct{}

	leaving atomic.Bool // no clients are accepted any more
}

// startMetrics serves figures on l, or where that is nil on the address of -metrics, if there is one.
func startMetrics(o *options, l net.Listener, p *pgmoor.Proxy) (*metrics, error) {
	m := &metrics{log: o.config.Logger, shared: l != nil || o.reusePort, done: make(chan struct{})}
	if l == nil && o.metrics == "" {
		return nil, nil
	}
	if l == nil {
		var err error
		if l, err = o.listenTCP(o.metrics); err != nil {
			return nil, listenError("-metrics", o.metrics, err)
		}
	}
	m.server = &http.Server{Handler: m.handler(p), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	m.log.Info("pgmoor: metrics", "addr", l.Addr().String())
	go m.serve(l)
	return m, nil
}

func (m *metrics) serve(l net.Listener) {
	defer close(m.done)
	if err := m.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		m.log.Error("pgmoor: metrics", "err", err)
	}
}

// leave says that the daemon accepts no clients any more: by /readyz, or by leaving the port to a successor that has it too.
func (m *metrics) leave() {
	if m == nil {
		return
	}
	m.leaving.Store(true)
	if m.shared {
		_ = m.server.Close()
	}
}

func (m *metrics) stop() {
	if m != nil {
		_ = m.server.Close()
		<-m.done
	}
}

func (m *metrics) handler(p *pgmoor.Proxy) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(p.Stats()) // a client that is gone needs no answer
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if m.leaving.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	return mux
}
