package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Keys of Result.Figures.
const (
	keyTPS      = "tps"
	keyP50      = "p50_us"
	keyP99      = "p99_us"
	keyP999     = "p999_us"
	keyCPUTx    = "cpu_us_per_tx"
	keyCPUGB    = "cpu_s_per_gb"
	keyMBs      = "mb_per_s"
	keyRSS      = "rss_kib"
	keyRSSShare = "rss_kib_per_client"

	keyLogins       = "logins_per_s"
	keyLoginsFailed = "logins_failed"
	keyLoginCPU     = "cpu_us_per_login"
	keyLoaderCPU    = "loader_us_per_login" // of the client that logs in
	keyLoginP50     = "login_p50_us"
	keyLoginP99     = "login_p99_us"
	keyLoginP999    = "login_p999_us"
	keyQuietP50     = "quiet_p50_us" // of transactions without logins beside them
	keyQuietP99     = "quiet_p99_us"
	keyQuietP999    = "quiet_p999_us"
	keyRise         = "p99_rise" // keyP99 over keyQuietP99
)

// Series describes one invocation: what was measured, where, and by which command.
type Series struct {
	Start    time.Time         `json:"start"`
	Command  string            `json:"command"`
	Machine  string            `json:"machine"`
	Versions map[string]string `json:"versions"`
	Runs     int               `json:"runs"`
	Seconds  float64           `json:"seconds"`
}

// Result is one target measured once in one cell.
type Result struct {
	Time    time.Time          `json:"time"`
	Cell    string             `json:"cell"`
	Target  string             `json:"target"`
	Run     int                `json:"run"`
	Figures map[string]float64 `json:"figures,omitempty"`
	Steal   float64            `json:"steal"`   // cores taken by the host
	Foreign float64            `json:"foreign"` // cores taken by processes that are not ours
	Repeats int                `json:"repeats"` // measurements thrown away as noisy before this one
	Noisy   bool               `json:"noisy,omitempty"`
	Error   string             `json:"error,omitempty"`

	series int // which Series of the file it follows
}

func (r *Result) noise() float64 { return r.Steal + r.Foreign }

// entry is one line of the raw file: exactly one field is set.
type entry struct {
	Series *Series `json:"series,omitempty"`
	Result *Result `json:"result,omitempty"`
}

// appendEntry adds a line to the raw file, so that an interrupted series keeps what it has.
func appendEntry(path string, e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// figures is what one or more raw files hold.
type figures struct {
	series  []Series
	results []Result
}

// load adds the lines of a raw file.
func (fs *figures) load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		var e entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
		switch {
		case e.Series != nil:
			fs.series = append(fs.series, *e.Series)
		case e.Result != nil:
			e.Result.series = len(fs.series)
			fs.results = append(fs.results, *e.Result)
		}
	}
	return lines.Err()
}
