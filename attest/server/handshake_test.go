package server_test

import (
	"slices"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/server"
)

// Of the handshakes that are too slow the first gives way, one for each that waits,
// and none that is slow as everything is slow.
func TestWhichHandshakesAreCut(t *testing.T) {
	t.Parallel()
	second := time.Second
	for name, c := range map[string]struct {
		patience time.Duration
		waiting  int
		ago      []time.Duration
		want     []bool
	}{
		"none is slow":                {3 * second, 5, []time.Duration{2 * second, second}, []bool{false, false}},
		"one for one that waits":      {3 * second, 1, []time.Duration{5 * second, 4 * second, second}, []bool{true, false, false}},
		"all that are slow":           {3 * second, 9, []time.Duration{5 * second, 4 * second, second}, []bool{true, true, false}},
		"where everything takes long": {7 * second, 9, []time.Duration{8 * second, 5 * second, 4 * second}, []bool{true, false, false}},
		"there is none":               {3 * second, 2, nil, nil},
	} {
		if got := server.CutHandshakes(c.patience, c.waiting, c.ago...); !slices.Equal(got, c.want) {
			t.Errorf("%s: cut %v, want %v", name, got, c.want)
		}
	}
}
