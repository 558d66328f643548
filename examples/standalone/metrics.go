package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/pgmoor/pgmoor"
)

// metrics is the HTTP server of -metrics.
type metrics struct {
	server *http.Server
	log    *slog.Logger
	done   chan struct{}
}

func startMetrics(addr string, p *pgmoor.Proxy, log *slog.Logger) (*metrics, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, listenError("-metrics", addr, err)
	}
	m := &metrics{
		server: &http.Server{Handler: metricsHandler(p), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second},
		log:    log,
		done:   make(chan struct{}),
	}
	log.Info("pgmoor: metrics", "addr", l.Addr().String())
	go m.serve(l)
	return m, nil
}

func (m *metrics) serve(l net.Listener) {
	defer close(m.done)
	if err := m.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		m.log.Error("pgmoor: metrics", "err", err)
	}
}

func (m *metrics) stop() {
	_ = m.server.Close()
	<-m.done
}

func metricsHandler(p *pgmoor.Proxy) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(p.Stats()) // a client that is gone needs no answer
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	return mux
}
