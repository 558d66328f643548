package pgmoor

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certCheck is how often files are looked at, at most.
const certCheck = time.Second

// CertificateFiles is a certificate and its key in two files, which are read again when they have changed: its GetCertificate belongs
// into the tls.Config of [Config].TLS. Clients that are connected notice nothing. Its methods may be called from any goroutine.
type CertificateFiles struct {
	cert, key string
	log       *slog.Logger

	mu     sync.Mutex
	now    *tls.Certificate
	read   [2]fileState // of what was read last, whether it was of use or not
	looked time.Time
}

// fileState is how a file is known to be the same.
type fileState struct {
	modified time.Time
	size     int64
	info     os.FileInfo
}

// NewCertificateFiles reads the certificate, with those that issued it behind it, and the key, in PEM. They are looked at when a client
// asks for encryption, at most once a second, through symbolic links as Kubernetes has them. Where they have changed and make
// no pair, which may be because only one was written so far, the ones from before stay in use, and log gets a warning; slog.Default if it is nil.
func NewCertificateFiles(cert, key string, log *slog.Logger) (*CertificateFiles, error) {
	if log == nil {
		log = slog.Default()
	}
	f := &CertificateFiles{cert: cert, key: key, log: log, looked: time.Now()}
	if err := f.reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// GetCertificate returns the certificate.
func (f *CertificateFiles) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.looked) >= certCheck {
		f.looked = now
		if err := f.reload(); err != nil {
			f.log.Warn("pgmoor: the certificate for clients stays as it was", "err", err)
		}
	}
	return f.now, nil
}

// reload reads the files if they are not those that were read last.
func (f *CertificateFiles) reload() error {
	state, err := statesOf(f.cert, f.key)
	if err == nil && state[0].same(f.read[0]) && state[1].same(f.read[1]) {
		return nil
	}
	f.read = state // the zero state where there is an error: they are read again, when they are there
	if err != nil {
		return fmt.Errorf("pgmoor: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("pgmoor: %s, %s: %w", f.cert, f.key, err)
	}
	f.now = &pair
	return nil
}

func statesOf(names ...string) (states [2]fileState, err error) {
	for i, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return [2]fileState{}, err
		}
		states[i] = fileState{info.ModTime(), info.Size(), info}
	}
	return states, nil
}

func (s fileState) same(o fileState) bool {
	return s.info != nil && o.info != nil && s.modified.Equal(o.modified) && s.size == o.size && os.SameFile(s.info, o.info)
}
