// Package report is the running system's side of periodic attestation: Loop
// reports to the attestation service, as often as that wants it, for as long as
// the machine runs. It never ends the machine: a service that is away, a
// refusal and an error of its own are only told.
package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client"
)

const (
	// firstAfter is when the first report is made, at the latest: the boot
	// comes first.
	firstAfter = time.Minute
	// attemptLimit bounds one report. A TPM chip needs seconds.
	attemptLimit = 2 * time.Minute
	// Pauses after an attempt that failed.
	brokenFirst = 5 * time.Second
	brokenMax   = 5 * time.Minute
)

// Loop makes reports. All fields are required.
type Loop struct {
	// Attempt reports once, and returns when the service wants the next
	// report, 0 if it does not say. A *client.RefusedError is the service's
	// verdict; any other error is taken for one of the network, the service or
	// the TPM.
	Attempt func(context.Context) (time.Duration, error)
	Every   time.Duration // until the service says otherwise
	Log     *slog.Logger
	// Sleep waits that long or until the context ends.
	Sleep func(context.Context, time.Duration) error
}

// Run reports until ctx ends.
func (l *Loop) Run(ctx context.Context) {
	every := bounded(l.Every)
	broken, failing := brokenFirst, false
	pause := spread(min(firstAfter, every))
	for l.Sleep(ctx, pause) == nil {
		next, err := l.attempt(ctx)
		if ctx.Err() != nil {
			return
		}
		var refused *client.RefusedError
		if err == nil || errors.As(err, &refused) {
			if refused != nil {
				l.Log.Warn("the attestation service refused a report", "verdict", err)
			} else if failing {
				l.Log.Info("reports are accepted again")
			}
			if next > 0 {
				every = bounded(next)
			}
			pause, broken, failing = spread(every), brokenFirst, false
			continue
		}
		if !failing {
			l.Log.Warn("no report could be made, trying again", "err", err)
		}
		failing = true
		pause, broken = spread(broken), min(2*broken, brokenMax, every)
		var busy *client.ServiceError
		if errors.As(err, &busy) {
			pause = max(pause, min(busy.RetryAfter, every))
		}
	}
}

// attempt makes one report. A panic, which is a bug, must not end PID 1.
func (l *Loop) attempt(ctx context.Context) (next time.Duration, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("report: %v", v)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	defer cancel()
	return l.Attempt(ctx)
}

// bounded keeps to what is sensible, whatever the service says.
func bounded(d time.Duration) time.Duration {
	return min(max(d, api.MinReportAfter*time.Second), api.MaxReportAfter*time.Second)
}

// spread returns between 3/4 and 5/4 of d, so that the boxes of a region do not
// all report in the same second after a power cut.
func spread(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2) }
