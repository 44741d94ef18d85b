package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// runTeller runs the contract of server.Teller.
func runTeller(t *testing.T, sub Subject) {
	open := func(t *testing.T) server.Teller {
		s, ok := sub.Open(t).(server.Teller)
		if !ok {
			t.Fatal("the store is no server.Teller")
		}
		return s
	}
	for name, test := range map[string]func(*testing.T, server.Teller){
		"what was appended is told when the call returns": tellAppended,
		"what was refused is not told":                    tellRefused,
		"of concurrent commits the log is told":           tellRace,
		"what prune appended is told":                     tellPruned,
		"what was loaded is not told":                     tellLoaded,
		"nobody is told any more":                         tellNobody,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
	if sub.Replica != nil {
		t.Run("what another replica appended is not told", func(t *testing.T) {
			s := open(t)
			tellReplicas(t, s, sub.Replica(t, s).(server.Teller))
		})
	}
}

// line is an entry as it is exported.
func line(t *testing.T, e audit.Entry) string {
	t.Helper()
	b, err := audit.AppendLine(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// entriesFrom reads the log.
func entriesFrom(t *testing.T, s server.Store, from int64) []audit.Entry {
	t.Helper()
	var out []audit.Entry
	for e, err := range s.Audit(t.Context(), from) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// sameEntries compares what was told with what the log has.
func sameEntries(t *testing.T, got, want []audit.Entry) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d entries were told, want %d", len(got), len(want))
	}
	for i := range got {
		if a, b := line(t, got[i]), line(t, want[i]); a != b {
			t.Errorf("told  %s\nstored %s", a, b)
		}
	}
}

func tellAppended(t *testing.T, s server.Teller) {
	// What was there before is not told.
	commit(t, s, &server.Change{Events: []audit.Event{verdict(attest.MachineID{}, "before")}})
	tail := new(audit.Tail)
	s.Tell(tail)
	head := entriesFrom(t, s, 1)[0].Head()
	for i := range 3 {
		// As a database keeps it, too: times without their clock, strings escaped.
		events := []audit.Event{verdict(attest.MachineID{1}, "<&>\u2028 ✓"), {Time: time.Now(), Kind: audit.KindStart, Data: audit.Start{Version: fmt.Sprint(i)}}}
		commit(t, s, &server.Change{Events: events})
		got := tail.After(head)
		sameEntries(t, got, entriesFrom(t, s, head.Seq+1))
		head = got[len(got)-1].Head()
	}
	commit(t, s, &server.Change{Machine: machine("a")})
	if got := tail.After(head); len(got) != 0 {
		t.Errorf("a change without events: %d entries were told", len(got))
	}
}

func tellRefused(t *testing.T, s server.Teller) {
	tail := new(audit.Tail)
	s.Tell(tail)
	m := machine("a")
	commit(t, s, &server.Change{Machine: m, Release: release("r1", m, 1), Events: []audit.Event{verdict(m.ID, "1")}})
	for _, events := range [][]audit.Event{
		{verdict(m.ID, "2"), verdict(m.ID, "3")},
		{verdict(m.ID, "2"), {Time: epoch, Kind: audit.KindStart, Data: "no object"}},
	} {
		if err := s.Commit(t.Context(), &server.Change{Release: release("r2", m, 1), Events: events}); err == nil {
			t.Error("no error")
		}
	}
	if err := s.Commit(t.Context(), &server.Change{Events: []audit.Event{verdict(m.ID, "2"), {Time: epoch, Kind: audit.KindStart, Data: "no object"}}}); err == nil {
		t.Error("what can be no entry: no error")
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	// Memory does not ask; then it is written, and told.
	_ = s.Commit(gone, &server.Change{Events: []audit.Event{verdict(m.ID, "gone")}})
	commit(t, s, &server.Change{Events: []audit.Event{verdict(m.ID, "last")}})
	sameEntries(t, tail.After(audit.Head{}), entriesFrom(t, s, 1))
}

func tellRace(t *testing.T, s server.Teller) {
	tail := new(audit.Tail)
	s.Tell(tail)
	m := machine("a")
	commit(t, s, &server.Change{Machine: m})
	// Half of them are refused, among others in one transaction.
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			c := &server.Change{Events: []audit.Event{verdict(m.ID, fmt.Sprint(i)), verdict(m.ID, "second")}}
			if i%2 == 0 {
				c.Release = release(fmt.Sprint("r", i), m, 1)
			}
			if err := s.Commit(t.Context(), c); err != nil && !errors.Is(err, server.ErrReleased) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want := entriesFrom(t, s, 1)
	if len(want) != 66 {
		t.Errorf("the log has %d entries, want those of 33 commits", len(want))
	}
	sameEntries(t, tail.After(audit.Head{}), want)
}

func tellPruned(t *testing.T, s server.Teller) {
	p, ok := s.(server.Pruner)
	if !ok {
		t.Skip("the store is no server.Pruner")
	}
	tail := new(audit.Tail)
	s.Tell(tail)
	commit(t, s, &server.Change{Evidence: evidenceOf(machine("a"), epoch, eventLog(1, 1))})
	refs := oldOf(t, p, epoch.Add(time.Hour), 10)
	for i := range 2 { // the second time there is nothing left
		if gone, err := p.Prune(t.Context(), refs, pruneEntry); err != nil || len(gone) != 1-i {
			t.Fatalf("%d are gone, %v", len(gone), err)
		}
	}
	got := tail.After(audit.Head{})
	if len(got) != 1 {
		t.Fatalf("%d entries were told, want 1", len(got))
	}
	sameEntries(t, got, entriesFrom(t, s, 1))
}

func tellLoaded(t *testing.T, s server.Teller) {
	into, ok := s.(server.Archive)
	if !ok {
		t.Skip("the store is no server.Archive")
	}
	from := new(Memory)
	commit(t, from, &server.Change{Events: []audit.Event{verdict(attest.MachineID{}, "1"), verdict(attest.MachineID{}, "2")}})
	tail := new(audit.Tail)
	s.Tell(tail)
	if err := into.Load(t.Context(), iter.Seq2[server.Record, error](func(yield func(server.Record, error) bool) {
		for _, e := range entriesFrom(t, from, 1) {
			if !yield(server.Record{Entry: &e}, nil) {
				return
			}
		}
	})); err != nil {
		t.Fatal(err)
	}
	commit(t, s, &server.Change{Events: []audit.Event{verdict(attest.MachineID{}, "3")}})
	all := entriesFrom(t, s, 1)
	if got := tail.After(audit.Head{}); len(got) != 0 {
		t.Errorf("%d entries go on from the start, want none", len(got))
	}
	sameEntries(t, tail.After(all[1].Head()), all[2:])
}

func tellNobody(t *testing.T, s server.Teller) {
	tail := new(audit.Tail)
	s.Tell(tail)
	s.Tell(nil)
	commit(t, s, &server.Change{Events: []audit.Event{verdict(attest.MachineID{}, "1")}})
	if got := tail.After(audit.Head{}); len(got) != 0 {
		t.Errorf("%d entries were told", len(got))
	}
}

func tellReplicas(t *testing.T, a, b server.Teller) {
	stores := []server.Teller{a, b}
	var tails [2]audit.Tail
	for i, s := range stores {
		s.Tell(&tails[i])
	}
	var wg sync.WaitGroup
	for i, s := range stores {
		wg.Go(func() {
			for n := range 20 {
				if err := s.Commit(t.Context(), &server.Change{Events: []audit.Event{verdict(attest.MachineID{byte(i + 1)}, fmt.Sprint(n))}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	want := entriesFrom(t, a, 1)
	if len(want) != 40 {
		t.Fatalf("the log has %d entries, want 40", len(want))
	}
	// Each has its own, and both together the log.
	var head audit.Head
	for len(want) > 0 {
		i := int(want[0].Machine[0]) - 1
		if other := tails[1-i].After(head); len(other) != 0 {
			t.Fatalf("entry %d was told by the replica that did not append it", head.Seq+1)
		}
		got := tails[i].After(head)
		if len(got) == 0 {
			t.Fatalf("entry %d was not told", head.Seq+1)
		}
		sameEntries(t, got, want[:len(got)])
		head, want = want[len(got)-1].Head(), want[len(got):]
	}
}
