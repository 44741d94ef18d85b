package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

// counted is a store that counts the entries of its log that are read.
type counted struct {
	server.Store
	read atomic.Int64
}

func (c *counted) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		for e, err := range c.Store.Audit(ctx, from) {
			c.read.Add(1)
			if !yield(e, err) {
				return
			}
		}
	}
}

// toldWitness is one that a store tells, as that of the only replica.
func toldWitness(t *testing.T, memory *storetest.Memory) (*logWitness, *counted) {
	t.Helper()
	store := &counted{Store: memory}
	w := newWitness(t, store, newReleaseKey(t), "")
	w.tail = newTail()
	memory.Tell(w.tail)
	return w, store
}

// headOfLog is the last entry of a log, which must be one chain.
func headOfLog(t *testing.T, store server.Store) audit.Head {
	t.Helper()
	var v audit.Verifier
	for e, err := range store.Audit(t.Context(), 1) {
		if err == nil {
			err = v.Add(e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return v.Head()
}

// What this process wrote is not read back, whoever else writes. What it is not told,
// and what was left out, is read.
func TestAWitnessReadsWhatOthersWrote(t *testing.T) {
	t.Parallel()
	own, others := func(n int) int { return n }, func(n int) int { return -n }
	for name, c := range map[string]struct {
		written []int
		read    int64 // with the last that was seen, once a step
	}{
		"nothing":                             {nil, 0},
		"all its own":                         {[]int{own(5000)}, 1},
		"all others'":                         {[]int{others(50)}, 50},
		"its own, then others'":               {[]int{own(20), others(10)}, 11},
		"others', then little of its own":     {[]int{others(10), own(20)}, 30},
		"others', then much of its own":       {[]int{others(10), own(witnessJoin)}, 11},
		"others' between":                     {[]int{own(20), others(10), own(witnessJoin)}, 1 + 10 + 1},
		"much and little in turns":            {[]int{own(2000), others(10), own(2000), others(10), own(10)}, 1 + 10 + 1 + 20},
		"more than a tail holds":              {[]int{own(9000)}, 9000 - 8192 + 1},
		"more than a tail holds, and others'": {[]int{own(9000), others(1), own(witnessJoin)}, 9000 - (8192 - witnessJoin) + 1 + 1 + 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			memory := new(storetest.Memory)
			w, store := toldWitness(t, memory)
			for _, n := range c.written {
				if n < 0 {
					n = -n
					memory.Tell(nil)
				}
				long(t, memory, n)
				memory.Tell(w.tail)
			}
			if err := w.catchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if head, _, _ := w.seen(); head != headOfLog(t, memory) {
				t.Errorf("seen to %v, the log ends with %v", head, headOfLog(t, memory))
			}
			if got := store.read.Load(); got != c.read {
				t.Errorf("%d entries were read, want %d", got, c.read)
			}
			// Then one at each look.
			for range 3 {
				before := store.read.Load()
				if err := w.keepUp(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := store.read.Load() - before; len(c.written) > 0 && got != 1 {
					t.Errorf("a look reads %d entries, want 1", got)
				}
			}
		})
	}
}

// Whoever alters the log between what was seen and what this process appends then, in
// a store that takes it, is found out by the store's own log. What was told goes on
// from an entry that nobody here has seen.
func TestALogThatIsAlteredUnderAWitnessIsFound(t *testing.T) {
	t.Parallel()
	const seen = 10
	for name, c := range map[string]struct {
		alter func(h *thief)
		then  int // entries that this process appends after that
		want  string
	}{
		"the last is another":            {func(h *thief) { h.log[seen-1].Time = h.log[seen-1].Time.Add(1) }, 3, "entry 10 was"},
		"one before the last is another": {func(h *thief) { h.log[4].Time = h.log[4].Time.Add(1) }, 3, "entry 10 was"},
		"the last is gone":               {func(h *thief) { h.log = h.log[:seen-1] }, 0, "it ends before entry 10"},
		"it went back":                   {func(h *thief) { h.log = h.log[:5] }, 3, "it ends before entry 10"},
		"it went back, and is as long":   {func(h *thief) { h.log = h.log[:5] }, 5, "entry 10 was"},
		"it went back, and is longer":    {func(h *thief) { h.log = h.log[:5] }, 2000, "entry 10 was"},
		"something was added":            {func(h *thief) { h.log = append(h.log, h.log[0]) }, 2000, ""},
		"an enabling was added": {func(h *thief) {
			h.log = append(h.log, audit.Entry{Time: time.Now(), Kind: audit.KindPolicy, Data: json.RawMessage(`{"signed":true,"by":"x","statement":"` + strings.Repeat("11", 32) + `","counter":-1}`)})
		}, 2000, "statement -1 comes after statement 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			memory := new(storetest.Memory)
			w, _ := toldWitness(t, memory)
			long(t, memory, seen)
			if err := w.keepUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			h := steal(t, memory)
			c.alter(h)
			next := h.store()
			next.Tell(w.tail)
			w.store = next
			long(t, next, c.then)
			err := w.keepUp(t.Context())
			if c.want == "" {
				if head, _, _ := w.seen(); err != nil || head != headOfLog(t, next) {
					t.Errorf("seen to %v, %v", head, err)
				}
				return
			}
			if !errors.Is(err, errAltered) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %v: %q", err, errAltered, c.want)
			}
			// For good, and nothing is signed any more.
			if _, _, err := w.sign(audit.HeadType); !errors.Is(err, errAltered) {
				t.Errorf("sign: %v", err)
			}
			w.store = memory
			if err := w.keepUp(t.Context()); !errors.Is(err, errAltered) {
				t.Errorf("with the log as it was: %v", err)
			}
		})
	}
}

// What this process appended, and is not in the store any more, is missed at the next
// look.
func TestWhatWasToldMustBeThere(t *testing.T) {
	t.Parallel()
	memory := new(storetest.Memory)
	w, _ := toldWitness(t, memory)
	long(t, memory, 10)
	h := steal(t, memory)
	h.log = h.log[:7]
	w.store = h.store()
	if err := w.keepUp(t.Context()); !errors.Is(err, errAltered) || !strings.Contains(err.Error(), "it ends before entry 10") {
		t.Errorf("got %v", err)
	}
}

// What was told says the same of policies as what is read.
func TestAnEnablingThatWasToldCounts(t *testing.T) {
	t.Parallel()
	memory := new(storetest.Memory)
	w, store := toldWitness(t, memory)
	enabling := func(version int, counter int64) {
		t.Helper()
		data := audit.Policy{Name: "fleet", Version: version, Signed: true, By: "ana", Statement: [32]byte{byte(counter)}, Counter: counter}
		if err := memory.Commit(t.Context(), &server.Change{Events: []audit.Event{{Time: time.Now(), Kind: audit.KindPolicy, Data: data}}}); err != nil {
			t.Fatal(err)
		}
	}
	enabling(1, 1)
	long(t, memory, 20)
	enabling(2, 2)
	long(t, memory, 20)
	if err := w.keepUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	reader := newWitness(t, memory, w.key, "")
	if err := reader.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, told, _ := w.seen()
	_, read, _ := reader.seen()
	if told != read || told.Version != 2 || store.read.Load() != 1 {
		t.Errorf("told: %+v, read: %+v; %d entries were read", told, read, store.read.Load())
	}
	enabling(1, 2) // what the service never writes
	if err := w.keepUp(t.Context()); !errors.Is(err, errAltered) || !strings.Contains(err.Error(), "statement 2 comes after statement 2") {
		t.Errorf("got %v", err)
	}
}

// A policy that is enabled after a storm holds at once at the replica that wrote the
// storm, and nobody reads it.
func TestAPolicyIsEnabledDuringAStorm(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	looks := &counted{Store: memory}
	a := s.start(memory, looks, s.images[:], policyText(1, "1"), nil)
	for range 5 { // seconds
		long(t, memory, 4000)
		if err := a.live.watch(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	long(t, memory, 4000)
	looks.read.Store(0)
	if _, err := a.enable(s.request(2, "2")); err != nil {
		t.Fatal(err)
	}
	if err := a.live.check(t.Context()); err != nil {
		t.Error(err)
	}
	if a.live.head.Version != 2 {
		t.Errorf("it goes by %s", a.live.head)
	}
	if n := looks.read.Load(); n > 100 {
		t.Errorf("%d entries of 24,000 were read", n)
	}
}

// Replicas that write at once each read what the others wrote, and see one log.
func TestReplicasThatWriteAtOnceSeeOneLog(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Start(t).Database(t)
	key := newReleaseKey(t)
	stores, witnesses := make([]stateStore, 2), make([]*logWitness, 2)
	for i := range stores {
		var err error
		if stores[i], err = openStore(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stores[i].Close() })
		witnesses[i] = newWitness(t, stores[i], key, filepath.Join(t.TempDir(), "w.json"))
		witnesses[i].tail = newTail()
		stores[i].Tell(witnesses[i].tail)
	}
	write := func(i, n int) error {
		for k := range n {
			if err := stores[i].Commit(t.Context(), &server.Change{Events: []audit.Event{{
				Time: time.Now(), Kind: audit.KindConfirm, Machine: attest.MachineID{byte(i + 1)}, Data: audit.Confirm{ReleaseID: fmt.Sprint(k), Outcome: "o"},
			}}}); err != nil {
				return err
			}
		}
		return nil
	}
	done := make(chan error, 2)
	for i := range stores {
		go func() { done <- write(i, 150) }()
	}
	for running := 2; running > 0; {
		select {
		case err := <-done:
			running--
			if err != nil {
				t.Error(err)
			}
		default:
			for i, w := range witnesses {
				if err := w.keepUp(t.Context()); err != nil {
					t.Fatalf("replica %d: %v", i, err)
				}
			}
		}
	}
	want := headOfLog(t, stores[0])
	if want.Seq != 300 {
		t.Errorf("the log has %d entries, want 300", want.Seq)
	}
	for i, w := range witnesses {
		if err := w.keepUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if head, _, _ := w.seen(); head != want {
			t.Errorf("replica %d has seen %v, want %v", i, head, want)
		}
	}
	// One that reads more than a step does so to the end.
	var events []audit.Event
	for range 2*witnessStep + 10 {
		events = append(events, audit.Event{Time: time.Now(), Kind: audit.KindConfirm, Data: audit.Confirm{ReleaseID: "r", Outcome: "o"}})
	}
	if err := stores[0].Commit(t.Context(), &server.Change{Events: events}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	witnesses[1].clock = func() time.Time { return now }
	if err := witnesses[1].keepUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if head, _, _ := witnesses[1].seen(); head.Seq != want.Seq+int64(len(events)) {
		t.Errorf("read to entry %d of %d", head.Seq, want.Seq+int64(len(events)))
	}
}

// A look that does not get to the end goes on at the next.
func TestALookReadsForAMoment(t *testing.T) {
	t.Parallel()
	memory := new(storetest.Memory)
	long(t, memory, 3*witnessStep)
	w := newWitness(t, memory, newReleaseKey(t), "")
	now := time.Now()
	w.clock = func() time.Time { now = now.Add(witnessBusy + 1); return now }
	for i := range 3 {
		if err := w.keepUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if head, _, _ := w.seen(); head.Seq != int64(i+1)*witnessStep {
			t.Errorf("look %d: read to entry %d", i+1, head.Seq)
		}
	}
}

func TestWhoseDataIsKept(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kind audit.Kind
		data any
		want bool
	}{
		"a verdict":                           {audit.KindVerdict, audit.Verdict{ChallengeID: "c", Result: &attest.Result{}}, false},
		"a verdict that says whose a TPM is":  {audit.KindVerdict, audit.Verdict{ChallengeID: "c", Bindings: []audit.Binding{{}}}, true},
		"a verdict with what a machine wrote": {audit.KindVerdict, audit.Verdict{ChallengeID: `","bindings":[`}, false},
		"a report":                            {audit.KindReport, audit.Reattestation{ChallengeID: "c"}, false},
		"an alarm":                            {audit.KindAlarm, audit.Alarm{What: "w"}, false},
		"a challenge that was refused":        {audit.KindChallengeRefused, audit.ChallengeRefused{Reason: "r"}, false},
		"a state":                             {audit.KindState, audit.StateChange{By: "ana"}, true},
		"an install":                          {audit.KindInstall, audit.Install{By: "ana"}, true},
		"machines that are expected":          {audit.KindExpected, audit.Expected{By: "ana"}, true},
		"a restore":                           {audit.KindRestore, audit.Restore{By: "ana"}, true},
		"a policy":                            {audit.KindPolicy, audit.Policy{By: "ana"}, true},
		"a release":                           {audit.KindRelease, audit.Release{ID: "r"}, true},
	} {
		memory := new(storetest.Memory)
		tail := newTail()
		memory.Tell(tail)
		if err := memory.Commit(t.Context(), &server.Change{Events: []audit.Event{{Time: time.Now(), Kind: c.kind, Data: c.data}}}); err != nil {
			t.Fatal(err)
		}
		got := tail.After(audit.Head{})
		if len(got) != 1 || (got[0].Data != nil) != c.want {
			t.Errorf("%s: %s, want data: %t", name, got[0].Data, c.want)
		}
	}
}

// BenchmarkAWitnessKeepsUp measures the CPU time of following what this process wrote
// in a second at full load, told and read.
func BenchmarkAWitnessKeepsUp(b *testing.B) {
	const entries = 3000
	data := audit.Verdict{ChallengeID: strings.Repeat("c", 1800), Address: "192.0.2.1"} // as long as a usual entry
	for _, told := range []bool{true, false} {
		b.Run(fmt.Sprintf("told=%t", told), func(b *testing.B) {
			store, err := openStore(b.Context(), filepath.Join(b.TempDir(), "s.db"))
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				b.Fatal(err)
			}
			w, err := openWitness(b.Context(), store, key, "", time.Now, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			if told {
				w.tail = newTail()
				store.Tell(w.tail)
			}
			var used time.Duration
			for b.Loop() {
				b.StopTimer()
				for range entries / 100 {
					var events []audit.Event
					for range 100 {
						events = append(events, audit.Event{Time: time.Now(), Kind: audit.KindVerdict, Data: data})
					}
					if err := store.Commit(b.Context(), &server.Change{Events: events}); err != nil {
						b.Fatal(err)
					}
				}
				before := cpuTime(b)
				b.StartTimer()
				if err := w.catchUp(b.Context()); err != nil {
					b.Fatal(err)
				}
				used += cpuTime(b) - before
			}
			b.ReportMetric(float64(used.Nanoseconds())/1000/float64(entries*b.N), "µs-CPU/entry")
		})
	}
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
