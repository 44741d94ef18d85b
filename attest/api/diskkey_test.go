package api

import (
	"errors"
	"strings"
	"testing"
)

func TestOutcomesOfAReleaseWithANextKey(t *testing.T) {
	long := OutcomeNotRekeyed(errors.New(strings.Repeat("ä", MaxOutcome)))
	if len(long) > MaxOutcome || !Opened(long) {
		t.Errorf("got %d bytes, opened %t", len(long), Opened(long))
	}
	if why, ok := NotRekeyed(OutcomeNotRekeyed(errors.New("no room"))); !ok || why != "no room" {
		t.Errorf("got %q, %t", why, ok)
	}
	for outcome, want := range map[string]bool{
		OutcomeUnlocked: true, OutcomeRekeyed: true, "": false, "unlocked ": false, "unlocked, rekeyed ": false, "unlocked, not rekeyed": false, "luks: no space": false,
	} {
		if Opened(outcome) != want {
			t.Errorf("%q: opened is %t", outcome, !want)
		}
		if _, ok := NotRekeyed(outcome); ok {
			t.Errorf("%q: it says why the key was not changed", outcome)
		}
	}
}
