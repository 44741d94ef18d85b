// Package console writes what a person at the machine, or at its serial
// line, is to read: milestones (Printer.Step), failures with a hint
// (Printer.Fatal), and log records (Printer.Handler). Every line starts with
// "sealift: " and the seconds since the kernel started, and is written with
// one write(2), so that it does not break a line of the kernel in two.
package console

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Device is where the kernel's console is, once /dev is mounted.
const Device = "/dev/console"

// maxLine bounds a line, in bytes: what comes from the network is cut there.
const maxLine = 1000

// Printer writes lines to one console. It is safe for concurrent use. A write
// error is dropped: a machine with a broken serial line must still boot.
type Printer struct {
	now func() time.Duration

	mu sync.Mutex
	w  io.Writer // guarded by mu
}

// New returns a printer that writes to w. The clock gives the time since the
// kernel started; see Uptime.
func New(w io.Writer, clock func() time.Duration) *Printer {
	return &Printer{w: w, now: clock}
}

// Open returns a printer for the kernel's console. A machine without one
// prints into the kernel's log instead, and one without either prints nowhere.
func Open() *Printer {
	for _, name := range []string{Device, "/dev/kmsg"} {
		f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NOCTTY, 0)
		if err == nil {
			return New(f, Uptime)
		}
	}
	return New(io.Discard, Uptime)
}

// Uptime returns the time since the kernel started its monotonic clock, which
// is within some milliseconds of the time in the kernel's own messages.
func Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Step prints a milestone.
func (p *Printer) Step(format string, args ...any) {
	p.line(fmt.Sprintf("[%6.2f] ", p.now().Seconds()) + fmt.Sprintf(format, args...))
}

// Refused prints one reason why the machine was not given its secrets.
func (p *Printer) Refused(code, message string) {
	p.Step("refused: %s: %s", code, message)
}

// Fatal prints an error that ends this boot, and what a person can do about
// it. The lines have no time stamp so that they stand out.
func (p *Printer) Fatal(err error, hint string) {
	p.line("fatal: " + err.Error())
	if hint != "" {
		p.line("hint: " + hint)
	}
}

// Write prints each line of b as it is, so that a Printer can be the sink of
// another program's output. It never fails.
func (p *Printer) Write(b []byte) (int, error) {
	for l := range strings.SplitSeq(strings.TrimRight(string(b), "\n"), "\n") {
		p.Step("%s", l)
	}
	return len(b), nil
}

func (p *Printer) line(s string) {
	s = "sealift: " + clean(s) + "\n"
	p.mu.Lock()
	defer p.mu.Unlock()
	io.WriteString(p.w, s) //nolint:errcheck // see Printer
}

// clean cuts a line to maxLine bytes and replaces control characters, so that
// text from the network can neither forge a line nor drive the terminal.
func clean(s string) string {
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfffd {
			return '?'
		}
		return r
	}, s)
}
