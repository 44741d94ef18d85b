package attest_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/image/manifest"
)

// at returns where the nth event of a PCR is.
func at(t testing.TB, events []papertpm.Measurement, pcr, n int) int {
	t.Helper()
	for i, m := range events {
		if m.PCR == pcr && m.Type != EventNoAction {
			if n == 0 {
				return i
			}
			n--
		}
	}
	t.Fatalf("PCR %d has too few events", pcr)
	return 0
}

func TestALogSaysWhatIsWrongWithItWhereThatIsProven(t *testing.T) {
	type events = []papertpm.Measurement
	odd := papertpm.Measurement{PCR: 4, Type: EventBootApplication, Data: []byte("path"), Measured: []byte("kexec")}
	for name, c := range map[string]struct {
		banks  []string
		logged func(*testing.T, events) events
		want   []Code
		says   []string
	}{
		"the UKI is left out": {logged: func(t *testing.T, e events) events { i := at(t, e, 4, 2); return slices.Delete(e, i, i+1) },
			want: []Code{CodeLogDeleted}, says: []string{"PCR 4, bank sha256: the event log lacks an event that was measured, the UKI of image demo 1", "at its end"}},
		"an action is left out": {logged: func(t *testing.T, e events) events { i := at(t, e, 5, 2); return slices.Delete(e, i, i+1) },
			want: []Code{CodeLogDeleted}, says: []string{`the action "Exit Boot Services Invocation"`, "before event"}},
		"the command line is left out": {logged: func(t *testing.T, e events) events { i := at(t, e, 9, 0); return slices.Delete(e, i, i+1) },
			want: []Code{CodeLogDeleted}, says: []string{"the command line of image demo 1"}},
		"the initrd is left out": {logged: func(t *testing.T, e events) events { i := at(t, e, 9, 1); return slices.Delete(e, i, i+1) },
			want: []Code{CodeLogDeleted}, says: []string{"the initrd of image demo 1"}},
		"a section is left out": {logged: func(t *testing.T, e events) events { i := at(t, e, 11, 3); return slices.Delete(e, i, i+1) },
			want: []Code{CodeLogDeleted}, says: []string{"section .osrel of image demo 1"}},
		"a separator is left out, in two banks": {banks: []string{"sha256", "sha384"},
			logged: func(t *testing.T, e events) events { i := at(t, e, 6, 0); return slices.Delete(e, i, i+1) },
			want:   []Code{CodeLogMissing}, says: []string{"PCR 6, bank sha256", "PCR 6, bank sha384", "has no event of it"}},
		"what nobody knows is left out": {logged: func(t *testing.T, e events) events { i := at(t, e, 7, 4); return slices.Delete(e, i, i+1) }, want: []Code{CodeLogReplay}},
		"two known events are left out": {logged: func(t *testing.T, e events) events { i := at(t, e, 9, 0); return slices.Delete(e, i, i+2) }, want: []Code{CodeLogMissing}},
		"the end of boot services and the partition table are left out": {logged: func(t *testing.T, e events) events {
			i, j := at(t, e, 5, 1), at(t, e, 5, 2)
			return slices.Delete(slices.Delete(e, j, j+2), i, i+1)
		}, want: []Code{CodeLogReplay}},
		"the end of boot services is logged in part": {logged: func(t *testing.T, e events) events { i := at(t, e, 5, 3); return slices.Delete(e, i, i+1) },
			want: []Code{CodeLogDeleted}, says: []string{`the action "Exit Boot Services Returned with Success"`, "at its end"}},
		"neighbours changed places": {logged: func(t *testing.T, e events) events {
			i, j := at(t, e, 7, 2), at(t, e, 7, 3)
			e[i], e[j] = e[j], e[i]
			return e
		}, want: []Code{CodeLogReordered}, says: []string{"in the other order"}},
		"distant events changed places": {logged: func(t *testing.T, e events) events {
			i, j := at(t, e, 11, 0), at(t, e, 11, 7)
			e[i], e[j] = e[j], e[i]
			return e
		}, want: []Code{CodeLogReordered}, says: []string{"in each other's place"}},
		"three events went round": {logged: func(t *testing.T, e events) events {
			i := at(t, e, 11, 1)
			e[i], e[i+1], e[i+2] = e[i+1], e[i+2], e[i]
			return e
		}, want: []Code{CodeLogReplay}},
		"an event is there twice":        {logged: func(t *testing.T, e events) events { i := at(t, e, 7, 4); return slices.Insert(e, i, e[i]) }, want: []Code{CodeLogDuplicated}},
		"an event is there twice, apart": {logged: func(t *testing.T, e events) events { i := at(t, e, 11, 1); return append(e, e[i]) }, want: []Code{CodeLogDuplicated}},
		"an event is added at the end":   {logged: func(_ *testing.T, e events) events { return append(e, odd) }, want: []Code{CodeLogAdded}, says: []string{"was not measured"}},
		"three are added at the end":     {logged: func(_ *testing.T, e events) events { return append(e, odd, odd, odd) }, want: []Code{CodeLogAdded}, says: []string{"3 in all, were not measured"}},
		"an event is added in between":   {logged: func(t *testing.T, e events) events { return slices.Insert(e, at(t, e, 4, 1), odd) }, want: []Code{CodeLogAdded}},
		"two are added in between":       {logged: func(t *testing.T, e events) events { return slices.Insert(e, at(t, e, 4, 1), odd, odd) }, want: []Code{CodeLogReplay}},
		"one is another": {logged: func(t *testing.T, e events) events { e[at(t, e, 4, 2)] = odd; return e },
			want: []Code{CodeLogReplay}},
		"one is left out and one is twice, of two PCRs": {logged: func(t *testing.T, e events) events {
			i := at(t, e, 4, 0)
			e = slices.Delete(e, i, i+1)
			i = at(t, e, 0, 1)
			return slices.Insert(e, i, e[i])
		}, want: []Code{CodeLogDeleted, CodeLogDuplicated}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			if c.banks != nil {
				s = sha384Scene(t, c.banks...)
			}
			s.Logged = c.logged(t, slices.Clone(s.Measured))
			s.collect()
			r := s.verify()
			slices.Sort(c.want)
			if got := codesOf(r); !slices.Equal(got, c.want) {
				t.Errorf("codes are %q, want %q", got, c.want)
			}
			text := mustText(r)
			for _, want := range append(c.says, "replayed ", "quoted ") {
				if !strings.Contains(text, want) {
					t.Errorf("no message says %q", want)
				}
			}
			if t.Failed() {
				t.Log(text)
			}
			for _, f := range Explain(r, s.ev, s.policy, nil).Refusals {
				if want := TrustDigest; (f.Trust == want) != (f.Code != CodeLogReplay) {
					t.Errorf("the trust of %s is %s", f.Code, f.Trust)
				}
			}
		})
	}
}

// Whatever differs, a finding says no more than what was done to the log.
func TestADiagnosisIsNeverAnotherThanWhatWasDone(t *testing.T) {
	s := newScene(t)
	r := rand.New(rand.NewPCG(1, 8))
	seen := map[Code]int{}
	for range 300 {
		events := slices.Clone(s.Boot.Measured)
		pcr := []int{0, 4, 5, 7, 9, 11}[r.IntN(6)]
		var places []int
		for i, m := range events {
			if m.PCR == pcr && m.Type != EventNoAction {
				places = append(places, i)
			}
		}
		var allowed []Code
		i, j := places[r.IntN(len(places))], places[r.IntN(len(places))]
		switch r.IntN(4) {
		case 0:
			events = slices.Delete(events, i, i+1)
			allowed = []Code{CodeLogDeleted, CodeLogReplay}
		case 1:
			if i == j {
				continue
			}
			events[i], events[j] = events[j], events[i]
			allowed = []Code{CodeLogReordered}
		case 2:
			events = slices.Insert(events, j, events[i])
			allowed = []Code{CodeLogDuplicated}
		case 3:
			events = slices.Insert(events, i, papertpm.Measurement{PCR: pcr, Type: EventAction, Data: fmt.Appendf(nil, "added %d", i)})
			allowed = []Code{CodeLogAdded}
		}
		b := *s.Boot
		b.Logged = events
		s.ev = nil
		next := *s
		next.Boot = &b
		next.collect()
		for _, f := range next.verify().Findings {
			if !slices.Contains(allowed, f.Code) {
				t.Fatalf("%s: %s, want one of %q", f.Code, f.Message, allowed)
			}
			seen[f.Code]++
		}
	}
	for _, c := range []Code{CodeLogDeleted, CodeLogReplay, CodeLogReordered, CodeLogDuplicated, CodeLogAdded} {
		if seen[c] == 0 {
			t.Errorf("%s was never found", c)
		}
	}
}

// What it may cost to find out is bounded: whoever sends logs of thousands of events
// gets no more than that they do not replay.
func TestTheSearchForWhatIsWrongIsBounded(t *testing.T) {
	s := newScene(t)
	var many []papertpm.Measurement
	for i := range 1000 {
		many = append(many, papertpm.Measurement{PCR: 1, Type: EventVariableBoot, Data: []byte("x"), Measured: fmt.Appendf(nil, "%d", i)})
	}
	s.Measured = slices.Insert(slices.Clone(s.Measured), at(t, s.Measured, 1, 0), many...)
	s.Logged = slices.Clone(s.Measured)
	i, j := at(t, s.Logged, 1, 10), at(t, s.Logged, 1, 900)
	s.Logged[i], s.Logged[j] = s.Logged[j], s.Logged[i]
	s.collect()
	if got := codesOf(s.verify()); !slices.Equal(got, []Code{CodeLogReplay}) {
		t.Errorf("codes are %q", got)
	}
	// What costs nothing is found all the same.
	s.Logged = append(slices.Clone(s.Measured), papertpm.Measurement{PCR: 1, Type: EventVariableBoot, Data: []byte("x")})
	s.collect()
	if got := codesOf(s.verify()); !slices.Equal(got, []Code{CodeLogAdded}) {
		t.Errorf("codes are %q", got)
	}
}

// A policy may have the images of many years. What is known of them all is not tried.
func TestTheSearchForWhatIsWrongIsBoundedWithManyImages(t *testing.T) {
	cost := func(added int) float64 {
		s := newScene(t)
		base := s.policy.Images[0]
		for i := range 500 {
			m := *base
			m.UKI.Cmdline = fmt.Sprint("image ", i)
			p := manifest.PCR{Index: 9}
			for n := range 20 {
				p.Events = append(p.Events, manifest.Event{Digests: map[string]string{"sha256": fmt.Sprintf("%064x", 1000*i+n+1)}})
			}
			m.Boots = []manifest.Boot{{PCRs: []manifest.PCR{p}}}
			s.policy.Images = append(s.policy.Images, &m)
		}
		for i := range 55 {
			s.Measured = append(s.Measured, papertpm.Measurement{PCR: 9, Type: EventIPL, Data: fmt.Append(nil, i)})
		}
		s.Logged = slices.Clone(s.Measured)
		for i := range added {
			s.Logged = slices.Insert(s.Logged, at(t, s.Logged, 9, 20*i), papertpm.Measurement{PCR: 9, Type: EventIPL, Data: []byte("x")})
		}
		s.collect()
		return testing.AllocsPerRun(1, func() { s.verify() })
	}
	if good, bad := cost(0), cost(2); bad > good+50_000 {
		t.Errorf("a log that does not replay costs %.0f allocations, one that does %.0f", bad, good)
	}
}

// BenchmarkVerifyOfALogThatDoesNotReplay is what the search costs at most, in all
// PCRs and banks.
func BenchmarkVerifyOfALogThatDoesNotReplay(b *testing.B) {
	s := realBoot(b)
	for _, pcr := range PolicyPCRs() {
		for i := range 100 {
			s.Measured = append(s.Measured, papertpm.Measurement{PCR: pcr, Type: EventIPL, Data: fmt.Append(nil, i)})
		}
	}
	s.Logged = slices.Clone(s.Measured)
	for _, pcr := range PolicyPCRs() {
		s.Logged = append(s.Logged, papertpm.Measurement{PCR: pcr, Type: EventIPL, Data: []byte("x")})
	}
	s.Logged = slices.Insert(s.Logged, 0, papertpm.Measurement{PCR: 0, Type: EventIPL, Data: []byte("x")})
	s.collect()
	b.ReportAllocs()
	for b.Loop() {
		s.verify()
	}
}
