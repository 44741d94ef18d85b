package storetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"sync"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// runArchive runs the contract of server.Archive.
func runArchive(t *testing.T, open func(*testing.T) server.Archive) {
	tests := map[string]func(*testing.T, func(*testing.T) server.Archive){
		"a dump that is loaded is the same store":       dumpRoundTrip,
		"a dump is of one moment":                       dumpRace,
		"a dump ends when it is told to":                dumpStops,
		"a store that holds anything is not loaded":     loadIntoUsed,
		"a load that fails leaves nothing":              loadFails,
		"records that cannot be together are not taken": loadConflicts,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, open) })
	}
}

// dump returns the records of s in the order in which they come.
func dump(t *testing.T, s server.Archive) []server.Record {
	t.Helper()
	var all []server.Record
	if err := s.Dump(t.Context(), func(r server.Record) error {
		if r.Damaged != nil {
			return fmt.Errorf("evidence %s is damaged", r.Damaged)
		}
		all = append(all, r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func sequence(all []server.Record) iter.Seq2[server.Record, error] {
	return func(yield func(server.Record, error) bool) {
		for _, r := range all {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// fill writes something of each kind.
func fill(t *testing.T, s server.Store) {
	t.Helper()
	for i, name := range []string{"a", "b", "c"} {
		m := machine(name)
		if name == "c" {
			m.DiskGUID = ""
		}
		commit(t, s, &server.Change{
			Machine: m, Release: release("r-"+name, m, 1<<32-1), Evidence: []byte("evidence of " + name),
			Documents: []*server.Document{{Kind: "k", Name: name, Body: json.RawMessage(`{ "n": 1 }`)}},
			Events:    []audit.Event{verdict(m.ID, name), verdict(m.ID, "again")},
		})
		m.Revision, m.Clock = 1, 1<<64-1
		commit(t, s, &server.Change{Machine: m})
		if i == 0 {
			done := release("r-"+name, m, 1<<32-1)
			done.Transport, done.Outcome = nil, "unlocked"
			commit(t, s, &server.Change{Confirm: done, Documents: []*server.Document{{Kind: "k", Name: name, Revision: 1, Body: json.RawMessage(`{}`)}}})
		}
	}
}

// text names a record with all that it holds.
func text(t *testing.T, r server.Record) string {
	t.Helper()
	var revision int64
	if r.Machine != nil {
		revision = r.Machine.Revision
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s revision %d", b, revision)
}

func dumpRoundTrip(t *testing.T, open func(*testing.T) server.Archive) {
	from, to := open(t), open(t)
	fill(t, from)
	gone := evidenceOf(machine("a"), epoch, eventLog(1, 1))
	commit(t, from, &server.Change{Evidence: gone})
	if p, ok := from.(server.Pruner); ok {
		if _, err := p.Prune(t.Context(), oldOf(t, p, epoch.Add(1), 10), pruneEntry); err != nil {
			t.Fatal(err)
		}
	}
	all := dump(t, from)
	if len(all) != 3*3+3+6+2 {
		t.Errorf("%d records, want 20", len(all))
	}
	if err := to.Load(t.Context(), sequence(all)); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, r := range all {
		want[text(t, r)] = true
	}
	for _, r := range dump(t, to) {
		if !want[text(t, r)] {
			t.Errorf("loaded %s", text(t, r))
		}
		delete(want, text(t, r))
	}
	for r := range want {
		t.Errorf("not loaded: %s", r)
	}
	// What was unique is so still, and revisions and the chain go on.
	a := machine("a")
	wantErr(t, to.Commit(t.Context(), &server.Change{Release: release("new", a, 1<<32-1)}), server.ErrReleased)
	wantErr(t, to.Commit(t.Context(), &server.Change{Release: release("r-b", a, 7)}), server.ErrReleased)
	other := machine("d")
	other.NodeName = a.NodeName
	wantErr(t, to.Commit(t.Context(), &server.Change{Machine: other}), server.ErrConflict)
	confirmed, open3 := release("r-a", a, 1<<32-1), release("r-b", machine("b"), 1<<32-1)
	confirmed.Outcome, open3.Outcome = "again", "unlocked"
	wantErr(t, to.Commit(t.Context(), &server.Change{Confirm: confirmed}), server.ErrConflict)
	wantErr(t, to.Commit(t.Context(), &server.Change{Confirm: open3}), nil)
	a.Revision = 1
	wantErr(t, to.Commit(t.Context(), &server.Change{Machine: a}), server.ErrConflict)
	a.Revision = 2
	wantErr(t, to.Commit(t.Context(), &server.Change{Machine: a, Events: []audit.Event{verdict(a.ID, "goes on")}}), nil)
	if n := count(t, to); n != 8 {
		t.Errorf("%d audit entries, want 8", n)
	}
	wantPruned(t, to, gone, 7)
	if b, err := to.Evidence(t.Context(), sha256.Sum256([]byte("evidence of b"))); err != nil || !bytes.Equal(b, []byte("evidence of b")) {
		t.Errorf("got %q, %v", b, err)
	}
}

// dumpRace dumps while others write pairs: of each pair both are in the dump or
// none.
func dumpRace(t *testing.T, open func(*testing.T) server.Archive) {
	s := open(t)
	stop := make(chan struct{})
	started := make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				m := machine(fmt.Sprintf("%d-%d", w, i))
				if err := s.Commit(t.Context(), &server.Change{Machine: m, Release: release(m.NodeName, m, 1), Events: []audit.Event{verdict(m.ID, "x")}}); err != nil {
					t.Error(err)
					return
				}
				once.Do(func() { close(started) })
			}
		})
	}
	<-started
	for range 5 {
		machines, releases, logged := map[attest.MachineID]bool{}, 0, 0
		var v audit.Verifier
		for _, r := range dump(t, s) {
			switch {
			case r.Machine != nil:
				machines[r.Machine.ID] = true
			case r.Release != nil:
				releases++
				if !machines[r.Release.Machine] {
					t.Errorf("release %s without its machine", r.Release.ID)
				}
			case r.Entry != nil:
				logged++
				if err := v.Add(*r.Entry); err != nil {
					t.Fatal(err)
				}
			}
		}
		if len(machines) != releases || releases != logged {
			t.Errorf("%d machines, %d releases, %d entries", len(machines), releases, logged)
		}
	}
	close(stop)
	wg.Wait()
}

func dumpStops(t *testing.T, open func(*testing.T) server.Archive) {
	s := open(t)
	fill(t, s)
	full := errors.New("disk full")
	n := 0
	wantErr(t, s.Dump(t.Context(), func(server.Record) error {
		if n++; n == 5 {
			return full
		}
		return nil
	}), full)
	if n != 5 {
		t.Errorf("asked %d times, want 5", n)
	}
	commit(t, s, &server.Change{Events: []audit.Event{verdict(attest.MachineID{}, "goes on")}})
}

func loadIntoUsed(t *testing.T, open func(*testing.T) server.Archive) {
	from := open(t)
	fill(t, from)
	all := dump(t, from)
	m := machine("other")
	for name, c := range map[string]*server.Change{
		"machine":  {Machine: m},
		"release":  {Release: release("other", m, 1)},
		"document": {Documents: []*server.Document{{Kind: "other", Name: "other", Body: json.RawMessage(`{}`)}}},
		"evidence": {Evidence: []byte("other")},
		"event":    {Events: []audit.Event{verdict(m.ID, "other")}},
	} {
		to := open(t)
		commit(t, to, c)
		if err := to.Load(t.Context(), sequence(all)); !errors.Is(err, server.ErrConflict) {
			t.Errorf("%s: got %v, want %v", name, err, server.ErrConflict)
		}
		if got := dump(t, to); len(got) != 1 {
			t.Errorf("%s: %d records, want the one that was there", name, len(got))
		}
	}
}

func loadFails(t *testing.T, open func(*testing.T) server.Archive) {
	from, to := open(t), open(t)
	fill(t, from)
	all := dump(t, from)
	broken := errors.New("the backup is broken")
	wantErr(t, to.Load(t.Context(), func(yield func(server.Record, error) bool) {
		for _, r := range all {
			if !yield(r, nil) {
				return
			}
		}
		yield(server.Record{}, broken)
	}), broken)
	if got := dump(t, to); len(got) != 0 {
		t.Errorf("%d records, want none", len(got))
	}
	if err := to.Load(t.Context(), sequence(all)); err != nil {
		t.Error(err) // it can be tried again
	}
}

func loadConflicts(t *testing.T, open func(*testing.T) server.Archive) {
	from := open(t)
	fill(t, from)
	all := dump(t, from)
	one := func(is func(server.Record) bool) server.Record {
		for _, r := range all {
			if is(r) {
				return r
			}
		}
		t.Fatal("no such record")
		return server.Record{}
	}
	first := one(func(r server.Record) bool { return r.Machine != nil }).Machine
	sameName := cloneMachine(first)
	sameName.ID, sameName.DiskGUID = attest.MachineID{9}, ""
	rel := one(func(r server.Record) bool { return r.Release != nil }).Release
	sameBoot := clone(rel)
	sameBoot.ID = "another"
	entry := *one(func(r server.Record) bool { return r.Entry != nil && r.Entry.Seq == 1 }).Entry
	altered := entry
	altered.Seq = 7
	for name, more := range map[string]server.Record{
		"a machine twice":            {Machine: first},
		"a node name twice":          {Machine: sameName},
		"a release twice":            {Release: rel},
		"a boot twice":               {Release: sameBoot},
		"a document twice":           {Document: one(func(r server.Record) bool { return r.Document != nil }).Document},
		"an audit entry twice":       {Entry: &entry},
		"an entry that was altered":  {Entry: &altered},
		"a machine without revision": {Machine: machine("new")},
	} {
		to := open(t)
		if err := to.Load(t.Context(), sequence(append(all[:len(all):len(all)], more))); err == nil {
			t.Errorf("%s: no error", name)
		}
		if got := dump(t, to); len(got) != 0 {
			t.Errorf("%s: %d records, want none", name, len(got))
		}
	}
}
