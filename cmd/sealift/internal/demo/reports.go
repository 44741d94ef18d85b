package demo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// reportsEvery is how often the demo's boxes report: often enough to be seen.
func reportsEvery(off bool) string {
	if off {
		return "off"
	}
	return "15s"
}

// attestedAgain waits until the service has accepted two reports of the box that
// is running: the second is held against what the first one pinned.
func (d *Demo) attestedAgain(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("the reports took too long"))
	defer cancel()
	var first, second time.Time
	err := d.poll(ctx, d.running, "two reports", func() (bool, string) {
		m, err := d.known(ctx, d.machine.ID)
		if err != nil {
			return false, err.Error()
		}
		if first.IsZero() && m.LastReport.After(d.running.Started) {
			first = m.LastReport
		}
		second = m.LastReport
		return !first.IsZero() && second.After(first) && m.State == "enrolled" && !m.Stale,
			fmt.Sprintf("%s, last report %s, stale %t: %s", m.State, m.LastReport, m.Stale, m.Reason)
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("reports accepted %.0f s and %.0f s after power-on", first.Sub(d.running.Started).Seconds(), second.Sub(d.running.Started).Seconds()), nil
}
