package unlock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/client"
)

// ErrBootSpent says that this boot can never be released again and only a new
// one can: a release was made and its answer was lost on the way, or a PCR was
// capped.
var ErrBootSpent = errors.New("this boot was released or capped before: only a new boot can be released")

// Spent reports whether every reason would be gone after a reboot.
func Spent(r *attest.Result) bool {
	for _, f := range r.Findings {
		if f.Code != attest.CodeReleaseRepeated && f.Code != attest.CodePCRCapped {
			return false
		}
	}
	return len(r.Findings) > 0
}

// Pauses between attempts. A refusal is mended by people, so it is asked about
// less and less often; a network comes back by itself.
const (
	refusedFirst = 5 * time.Second
	refusedMax   = 5 * time.Minute
	brokenFirst  = time.Second
	brokenMax    = time.Minute
)

// Screen is where the loop tells what happens; console.Printer is one.
type Screen interface {
	Step(format string, args ...any)
	Refused(code, message string)
}

// Loop calls Attempt until it succeeds. All fields are required.
type Loop struct {
	// Attempt attests once. A *client.RefusedError is the service's verdict;
	// any other error is taken for one of the network or the service.
	Attempt func(context.Context) error
	Screen  Screen
	// Sleep waits that long or until the context ends.
	Sleep func(context.Context, time.Duration) error
}

// Run returns nil once Attempt has succeeded, ErrBootSpent if it never can in
// this boot, or the context's error.
func (l *Loop) Run(ctx context.Context) error {
	refused, broken := refusedFirst, brokenFirst
	for {
		err := l.Attempt(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("attest: %w", ctx.Err())
		}
		var pause time.Duration
		var r *client.RefusedError
		var busy *client.ServiceError
		if errors.As(err, &r) && r.Result != nil {
			l.show(r.Result)
			if Spent(r.Result) {
				return ErrBootSpent
			}
			pause, refused, broken = jitter(refused), min(2*refused, refusedMax), brokenFirst
		} else {
			pause, broken = jitter(broken), min(2*broken, brokenMax)
			if errors.As(err, &busy) {
				pause = max(pause, min(busy.RetryAfter, refusedMax))
			}
			l.Screen.Step("attestation failed: %v", err)
		}
		l.Screen.Step("trying again in %s", pause.Round(time.Second/10))
		if err := l.Sleep(ctx, pause); err != nil {
			return fmt.Errorf("attest: %w", err)
		}
	}
}

// show prints each finding, and the hint under it.
func (l *Loop) show(r *attest.Result) {
	if len(r.Findings) == 0 {
		l.Screen.Refused("unknown", "the attestation service gave no reason")
		return
	}
	for _, f := range r.Findings {
		l.Screen.Refused(string(f.Code), f.Message)
		if f.Hint != "" {
			l.Screen.Step("hint: %s", f.Hint)
		}
	}
}

// jitter returns between 3/4 and 5/4 of d, so that the boxes of a region do
// not all come back in the same second after a power cut.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2)
}

// Sleep is the Loop.Sleep of a real machine.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
