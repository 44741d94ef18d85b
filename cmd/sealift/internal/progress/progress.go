// Package progress tells a person or a program how far long steps are: one
// live line on a terminal, plain lines elsewhere, or one JSON object per event.
package progress

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Mode is a way of telling.
type Mode int

// Modes. The zero Mode writes plain lines.
const (
	Plain    Mode = iota
	Terminal      // a live line, redrawn in place
	JSON          // one Event a line
)

// Event is what JSON mode writes, one object a line.
type Event struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"` // start, progress, done, failed, note
	Step  string    `json:"step,omitempty"`
	Done  int64     `json:"done,omitempty"`  // bytes or items
	Total int64     `json:"total,omitempty"` // 0: unknown
	Rate  float64   `json:"rate,omitempty"`  // per second
	Left  float64   `json:"left,omitempty"`  // seconds
	Took  float64   `json:"took,omitempty"`  // seconds
	Text  string    `json:"text,omitempty"`
}

// Reporter writes the progress of steps to one writer. It is safe for
// concurrent use.
type Reporter struct {
	mode Mode
	now  func() time.Time

	mu   sync.Mutex
	w    io.Writer // guarded by mu
	live bool      // guarded by mu; a live line is on the terminal
}

// New returns a Reporter that writes to w.
func New(w io.Writer, mode Mode, now func() time.Time) *Reporter {
	return &Reporter{w: w, mode: mode, now: now}
}

// Step is one long operation. Its methods are safe for concurrent use.
type Step struct {
	r       *Reporter
	name    string
	started time.Time

	mu   sync.Mutex
	last time.Time // guarded by mu; of the last update shown
}

// Step begins a step.
func (r *Reporter) Step(name string) *Step {
	s := &Step{r: r, name: name, started: r.now()}
	switch r.mode {
	case JSON:
		r.event(Event{Event: "start", Step: name})
	case Terminal:
		r.redraw(name + " ...")
	}
	return s
}

// Update says how far the step is, in bytes, or in items if the total is less
// than 1000. A total of 0 is unknown. Updates that come too fast are dropped.
func (s *Step) Update(done, total int64) {
	now := s.r.now()
	every := 100 * time.Millisecond
	if s.r.mode != Terminal {
		every = 5 * time.Second
	}
	s.mu.Lock()
	drop := now.Sub(s.last) < every || (s.last.IsZero() && now.Sub(s.started) < every)
	if !drop {
		s.last = now
	}
	s.mu.Unlock()
	if drop {
		return
	}
	e := Event{Event: "progress", Step: s.name, Done: done, Total: total}
	if took := now.Sub(s.started).Seconds(); took > 0 {
		e.Rate = float64(done) / took
	}
	if e.Rate > 0 && total > done {
		e.Left = float64(total-done) / e.Rate
	}
	switch s.r.mode {
	case JSON:
		s.r.event(e)
	case Terminal:
		s.r.redraw(describe(e))
	default:
		s.r.line(describe(e))
	}
}

// Done ends the step well; detail may be empty.
func (s *Step) Done(detail string) { s.end("done", "ok", detail) }

// Fail ends the step badly. The error itself is the caller's to report.
func (s *Step) Fail(err error) { s.end("failed", "FAILED", err.Error()) }

func (s *Step) end(event, mark, detail string) {
	took := s.r.now().Sub(s.started)
	if s.r.mode == JSON {
		s.r.event(Event{Event: event, Step: s.name, Took: took.Seconds(), Text: detail})
		return
	}
	if detail != "" {
		detail = "  " + detail
	}
	s.r.line(fmt.Sprintf("%-6s %7.1fs  %s%s", mark, took.Seconds(), s.name, detail))
}

// Note says one thing that belongs to no step.
func (r *Reporter) Note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if r.mode == JSON {
		r.event(Event{Event: "note", Text: text})
		return
	}
	r.line(text)
}

func describe(e Event) string {
	if e.Total > 0 && e.Total < 1000 {
		return fmt.Sprintf("%s: %d of %d", e.Step, e.Done, e.Total)
	}
	out := fmt.Sprintf("%s: %s", e.Step, Bytes(e.Done))
	if e.Total > 0 {
		out = fmt.Sprintf("%s of %s (%d%%)", out, Bytes(e.Total), e.Done*100/e.Total)
	}
	if e.Rate > 0 {
		out += fmt.Sprintf(", %s/s", Bytes(int64(e.Rate)))
	}
	if e.Left > 0 {
		out += fmt.Sprintf(", %s left", (time.Duration(e.Left) * time.Second).Round(time.Second))
	}
	return out
}

// Bytes renders a size for people, in powers of ten.
func Bytes(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.0f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}

func (r *Reporter) event(e Event) {
	e.Time = r.now().UTC()
	b, err := json.Marshal(e)
	if err != nil {
		panic("progress: BUG: " + err.Error())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.w.Write(append(b, '\n'))
}

func (r *Reporter) line(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live {
		fmt.Fprint(r.w, "\r\x1b[K")
		r.live = false
	}
	fmt.Fprintln(r.w, text)
}

func (r *Reporter) redraw(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r := []rune(text); len(r) > 100 {
		text = string(r[:100])
	}
	fmt.Fprint(r.w, "\r\x1b[K"+text)
	r.live = true
}
