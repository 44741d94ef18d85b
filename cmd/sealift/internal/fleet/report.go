package fleet

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/sealift/sealift/attest/client"
)

// step is a part of a boot whose latency is kept.
type step int

const (
	stepConnect step = iota
	stepChallenge
	stepEvidence
	stepConfirm
	stepWhole
	stepReleased
	steps
)

// String names a step in reports.
func (s step) String() string {
	return [...]string{"connect", "challenge", "evidence", "confirm", "whole", "released"}[s]
}

// stats is what a run counts. It is used by many goroutines.
type stats struct {
	releases, retries, lost, second, unconfirmed atomic.Int64

	mu      sync.Mutex
	took    [steps][]time.Duration // guarded by mu
	codes   map[string]int64       // guarded by mu
	wrongs  int64                  // guarded by mu
	first   string                 // the first wrong refusal; guarded by mu
	broken  string                 // the first failed connection; guarded by mu
	maxOpen int64                  // guarded by mu
	maxLate time.Duration          // guarded by mu
}

func newStats() *stats { return &stats{codes: map[string]int64{}} }

func (s *stats) add(what step, d time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.took[what] = append(s.took[what], d)
	return d
}

func (s *stats) opened(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maxOpen = max(s.maxOpen, n)
}

func (s *stats) late(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maxLate = max(s.maxLate, d)
}

func (s *stats) refused(code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.codes[code]++
}

// failed counts an answer, or none, after which the machine comes again.
func (s *stats) failed(err error) error {
	var e *client.ServiceError
	if errors.As(err, &e) {
		s.refused(e.Answer.Code)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.codes["connection"]++
	if s.broken == "" {
		s.broken = err.Error()
	}
	return err
}

// wrong counts what must not happen and ends the boot.
func (s *stats) wrong(code string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrongs++
	if s.first == "" {
		s.first = code + ": " + err.Error()
	}
	return errWrong
}

// Latency is of one step, milliseconds.
type Latency struct {
	Step  string  `json:"step"`
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
}

// Report is what a run found.
type Report struct {
	Machines  int     `json:"machines"`
	Enrolment float64 `json:"enrolmentSeconds"`
	Seconds   float64 `json:"seconds"`  // from the first boot to the last confirmation
	Releases  int64   `json:"releases"` // opened
	Rate      float64 `json:"releasesPerSecond"`

	Latency []Latency        `json:"latency"` // of the steps, of them together, and from power-on to the release
	Codes   map[string]int64 `json:"codes"`   // answers after which a machine came again, and findings
	Retries int64            `json:"retries"`
	// SecondReleases must be 0: releases in a boot that was released before.
	SecondReleases int64 `json:"secondReleases"`
	// WrongRefusals must be 0: verdicts against a machine that is good, and
	// releases that are not what they should be. Wrong is the first.
	WrongRefusals int64   `json:"wrongRefusals"`
	Wrong         string  `json:"wrong,omitempty"`
	Broken        string  `json:"broken,omitempty"` // the first connection that failed
	Unserved      int     `json:"unserved"`         // machines that were never released
	Unconfirmed   int64   `json:"unconfirmed"`      // releases whose confirmation was lost
	Rebooted      int64   `json:"rebooted"`         // boots whose release was lost on the way
	Open          int64   `json:"open"`             // machines between connection and confirmation, at the most
	Late          float64 `json:"lateMilliseconds"` // how far the simulator fell behind its rate, at the most

	// Of the service's process, where it is known.
	Service *Usage  `json:"service,omitempty"`
	Load    float64 `json:"load"` // of the system at the end, over one minute
}

// Usage is what the service's process used during the boots.
type Usage struct {
	CPU        float64 `json:"cpuSeconds"`      // user and system
	PerRelease float64 `json:"cpuMilliseconds"` // of CPU for each release
	RSS        int64   `json:"rssBytes"`        // resident at the end
	PeakRSS    int64   `json:"peakRSSBytes"`    // resident at the most, with the enrolment
	Idle       int64   `json:"idleRSSBytes"`    // resident before the boots
	Database   int64   `json:"databaseBytes"`   // with its write-ahead log, at the end
	PerBoot    int64   `json:"bytesPerRelease"` // that the database grew by for each release
}

func (s *stats) report(took time.Duration) *Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &Report{
		Seconds: took.Seconds(), Releases: s.releases.Load(), Retries: s.retries.Load(), Rebooted: s.lost.Load(),
		SecondReleases: s.second.Load(), WrongRefusals: s.wrongs, Wrong: s.first, Broken: s.broken, Unconfirmed: s.unconfirmed.Load(),
		Codes: maps.Clone(s.codes), Open: s.maxOpen, Late: ms(s.maxLate), Load: load(),
	}
	r.Rate = float64(r.Releases) / r.Seconds
	for what, all := range s.took {
		if len(all) == 0 {
			continue
		}
		slices.Sort(all)
		at := func(q float64) float64 { return ms(all[min(len(all)-1, int(q*float64(len(all))))]) }
		r.Latency = append(r.Latency, Latency{Step: step(what).String(), Count: len(all), P50: at(0.5), P99: at(0.99), P999: at(0.999), Max: ms(all[len(all)-1])})
	}
	return r
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Good reports whether nothing happened that must not.
func (r *Report) Good() bool {
	return r.SecondReleases == 0 && r.WrongRefusals == 0 && r.Unserved == 0
}

// Write writes the report for people.
func (r *Report) Write(w io.Writer) error {
	fmt.Fprintf(w, "%d machines, enrolled in %.1f s\n", r.Machines, r.Enrolment)
	fmt.Fprintf(w, "%d releases in %.1f s: %.0f a second\n", r.Releases, r.Seconds, r.Rate)
	fmt.Fprintf(w, "second releases %d, wrong refusals %d, never served %d\n", r.SecondReleases, r.WrongRefusals, r.Unserved)
	if r.Wrong != "" {
		fmt.Fprintf(w, "the first wrong refusal: %s\n", r.Wrong)
	}
	fmt.Fprintf(w, "open at once %d, attempts again %d, boots again after a lost answer %d, not confirmed %d\n", r.Open, r.Retries, r.Rebooted, r.Unconfirmed)
	for _, c := range slices.Sorted(maps.Keys(r.Codes)) {
		fmt.Fprintf(w, "  answered %-14s %d times\n", c, r.Codes[c])
	}
	if r.Broken != "" {
		fmt.Fprintf(w, "the first failed connection: %s\n", r.Broken)
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "STEP\tCOUNT\tP50 MS\tP99 MS\tP99.9 MS\tMAX MS\t")
	for _, l := range r.Latency {
		fmt.Fprintf(t, "%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t\n", l.Step, l.Count, l.P50, l.P99, l.P999, l.Max)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if u := r.Service; u != nil {
		fmt.Fprintf(w, "service: %.2f ms of CPU a release; memory %.0f MB, at most %.0f MB; database %.1f MB, %.1f kB a release\n",
			u.PerRelease, mb(u.RSS), mb(u.PeakRSS), mb(u.Database), float64(u.PerBoot)/1e3)
	}
	_, err := fmt.Fprintf(w, "load of the system %.1f; the simulator fell behind by at most %.0f ms\n", r.Load, r.Late)
	return err
}

func mb(n int64) float64 { return float64(n) / 1e6 }
