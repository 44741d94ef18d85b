package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// What is old is a matter of the clock, and evidence that was pruned because a clock
// was years ahead is lost, also when the clock is right again. So each time before
// something is pruned the clock is compared with what it said the last time, which
// is kept in a document of this kind and name. A service notes it once a day.
const (
	pruneClockKind = "prune-clock"
	pruneClockName = "last"
)

// MaxClockStep is how much later than the last time a clock may be for evidence to be
// pruned by it, unless a person says that it is right: a clock that jumped ahead by no
// more has evidence pruned so much too early.
const MaxClockStep = 7 * 24 * time.Hour

// A ClockError says that a clock is so much later than the last that was noted that
// nothing is pruned by it.
type ClockError struct{ Last, Now time.Time }

func (e *ClockError) Error() string {
	return fmt.Sprintf("nothing is pruned: the clock says %s, and said %s the last time: more than %d days later. It is wrong, or the service was off for so long",
		e.Now.UTC().Format(time.RFC3339), e.Last.UTC().Format(time.RFC3339), int(MaxClockStep/(24*time.Hour)))
}

// pruneClock is the body of that document.
type pruneClock struct {
	Time time.Time `json:"time"`
}

// NotePruneClock compares a clock with what was noted the last time, and notes it. It
// gives a *ClockError, and notes nothing, if the clock is too far ahead, unless right:
// a person's word. A clock that was set back is noted. first: nothing was noted
// before, so that nothing could be compared.
func NotePruneClock(ctx context.Context, store Store, now time.Time, right bool) (first bool, err error) {
	body, err := json.Marshal(pruneClock{now.UTC()})
	if err != nil {
		return false, err
	}
	for range attempts {
		d, err := store.Document(ctx, pruneClockKind, pruneClockName)
		switch {
		case errors.Is(err, ErrNotFound):
			d = &Document{Kind: pruneClockKind, Name: pruneClockName}
		case err != nil:
			return false, fmt.Errorf("the clock of the last time that was pruned: %w", err)
		default:
			var last pruneClock
			if err := json.Unmarshal(d.Body, &last); err != nil && !right {
				return false, fmt.Errorf("the clock of the last time that was pruned: %w", err)
			}
			if !right && now.Sub(last.Time) > MaxClockStep {
				return false, &ClockError{Last: last.Time, Now: now}
			}
		}
		first, d.Body = d.Revision == 0, body
		err = store.Commit(ctx, &Change{Documents: []*Document{d}})
		if err == nil {
			return first, nil
		}
		if !errors.Is(err, ErrConflict) {
			return false, fmt.Errorf("note the clock: %w", err)
		}
	}
	return false, fmt.Errorf("note the clock: %w", ErrConflict)
}

// ClockPlausible is a check: whether the retention goes by the clock, as far as that
// was tried.
func (s *Server) ClockPlausible(context.Context) error {
	if e := s.clockFault.Load(); e != nil {
		return e
	}
	return nil
}
