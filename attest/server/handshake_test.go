package server_test

import (
	"slices"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/server"
)

// Of the handshakes that are too slow the first gives way, one for each that waits,
// and none that is slow as all are.
func TestWhichHandshakesAreCut(t *testing.T) {
	t.Parallel()
	second := time.Second
	for name, c := range map[string]struct {
		usual   time.Duration // of those before
		waiting int
		ago     []time.Duration
		want    []bool
	}{
		"none is slow":             {0, 5, []time.Duration{2 * second, second}, []bool{false, false}},
		"one for one that waits":   {0, 1, []time.Duration{5 * second, 4 * second, second}, []bool{true, false, false}},
		"all that are slow":        {0, 9, []time.Duration{5 * second, 4 * second, second}, []bool{true, true, false}},
		"where all take a second":  {second, 9, []time.Duration{8 * second, 6 * second, 4 * second}, []bool{true, false, false}},
		"where all take very long": {time.Hour, 9, []time.Duration{8 * second, 6 * second}, []bool{true, false}}, // on purpose
		"there is none":            {0, 2, nil, nil},
	} {
		if got := server.CutHandshakes(c.usual, c.waiting, c.ago...); !slices.Equal(got, c.want) {
			t.Errorf("%s: cut %v, want %v", name, got, c.want)
		}
	}
}
