package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
)

// hanging is a store whose log, once it hangs, gives nothing until who reads it gives
// up.
type hanging struct {
	*storetest.Memory
	hangs chan struct{} // nil: it does not
}

func (h *hanging) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	if h.hangs == nil {
		return h.Memory.Audit(ctx, from)
	}
	return func(yield func(audit.Entry, error) bool) {
		h.hangs <- struct{}{}
		<-ctx.Done()
		yield(audit.Entry{}, ctx.Err())
	}
}

// A connection to the database that hangs while an auditor exports keeps nobody from
// seeing that the policy is what it was.
func TestALogThatHangsHoldsUpNoDecision(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	store := &hanging{Memory: new(storetest.Memory)}
	live := s.start(store, store, s.images[:], policyText(1, "1"), nil).live
	store.hangs = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	exported := make(chan error)
	go func() {
		_, err := live.auditHead(ctx)
		exported <- err
	}()
	<-store.hangs
	looked := make(chan error)
	go func() { looked <- live.look(t.Context()) }()
	select {
	case err := <-looked:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the replica does not get to see which policy is enabled")
	}
	// Who has less time does not wait for it, either.
	gone, leave := context.WithCancel(t.Context())
	leave()
	watched := make(chan error)
	go func() { watched <- live.watch(gone) }()
	select {
	case err := <-watched:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the replica waits for the export")
	}
	cancel()
	if err := <-exported; !errors.Is(err, context.Canceled) {
		t.Errorf("the export: %v", err)
	}
}

// breaking is a store whose log breaks off after so many entries.
type breaking struct {
	*storetest.Memory
	after int
}

func (b *breaking) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		for e, err := range b.Memory.Audit(ctx, from) {
			if b.after--; b.after < 0 {
				err = errors.New("the process was killed")
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// A log that takes long to read need not be read from its start again after a start
// that was cut short. What was signed on the way does not end an export.
func TestWhatWasReadAtAStartIsKept(t *testing.T) {
	t.Parallel()
	const n = 3*witnessStep + witnessStep/2
	key := newReleaseKey(t)
	for _, file := range []string{"", filepath.Join(t.TempDir(), "witness.json")} {
		t.Run(fmt.Sprintf("file %t", file != ""), func(t *testing.T) {
			memory := new(storetest.Memory)
			change := new(server.Change)
			for range n {
				change.Events = append(change.Events, audit.Event{Time: time.Now(), Kind: audit.KindConfirm, Data: audit.Confirm{ReleaseID: "r", Outcome: "o"}})
			}
			if err := memory.Commit(t.Context(), change); err != nil {
				t.Fatal(err)
			}
			store := &breaking{Memory: memory, after: n}
			w := newWitness(t, store, key, file)
			now := time.Now()
			w.clock = func() time.Time { now = now.Add(10 * time.Second); return now } // a slow machine
			if err := w.catchUp(t.Context()); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("got %v", err)
			}
			again := newWitness(t, memory, key, file)
			if head, _, _ := again.seen(); head.Seq < 3*witnessStep {
				t.Errorf("the next start goes on after entry %d of %d", head.Seq, n)
			}
			if err := again.catchUp(t.Context()); err != nil {
				t.Error(err)
			}
			kept, err := memory.Document(t.Context(), server.KindSignedHead, server.NameSignedHead)
			if err != nil {
				t.Fatal(err)
			}
			e, err := audit.ParseEnvelope(kept.Body)
			if err != nil {
				t.Fatal(err)
			}
			var s audit.HeadStatement
			if err := e.Open(&key.PublicKey, audit.HeadType, &s); err == nil {
				t.Errorf("what was read to entry %d of %d counts as where the log ends", s.Head.Seq, n)
			}
		})
	}
}

// A file that knows of the last restore is gone by, wherever the clock was set since;
// and that there was a restore is not forgotten with what the store has of it.
func TestAClockThatWasSetBackDoesNotHideWhatWasSeen(t *testing.T) {
	t.Parallel()
	memory := new(storetest.Memory)
	long(t, memory, 9)
	var heads []audit.Head
	for e, err := range memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, e.Head())
	}
	key := newReleaseKey(t)
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		filed  audit.HeadStatement
		stored *audit.HeadStatement
		want   int64
		known  time.Time // restore
	}{
		"the clock was set back after the restore": {
			audit.HeadStatement{Head: heads[7], Time: noon.Add(-time.Hour), Restored: noon}, &audit.HeadStatement{Head: heads[2], Time: noon, Restored: noon}, 8, noon,
		},
		"the store has no signed head any more": {audit.HeadStatement{Head: heads[7], Time: noon.Add(time.Hour), Restored: noon}, nil, 8, noon},
		"the store has an older one": {
			audit.HeadStatement{Head: heads[7], Time: noon.Add(time.Hour), Restored: noon}, &audit.HeadStatement{Head: heads[2], Time: noon.Add(-time.Hour)}, 8, noon,
		},
		"there was a restore since": {
			audit.HeadStatement{Head: heads[7], Time: noon.Add(-time.Hour)}, &audit.HeadStatement{Head: heads[2], Time: noon, Restored: noon}, 3, noon,
		},
		"there was another restore since": {
			audit.HeadStatement{Head: heads[7], Time: noon.Add(-time.Hour), Restored: noon.Add(-2 * time.Hour)},
			&audit.HeadStatement{Head: heads[2], Time: noon, Restored: noon}, 3, noon,
		},
	} {
		store := new(storetest.Memory)
		if c.stored != nil {
			d := &server.Document{Kind: server.KindSignedHead, Name: server.NameSignedHead, Body: bytes.TrimSuffix(signedHeadLine(t, key, *c.stored), []byte("\n"))}
			if err := store.Commit(t.Context(), &server.Change{Documents: []*server.Document{d}}); err != nil {
				t.Fatal(err)
			}
		}
		file := filepath.Join(t.TempDir(), "witness.json")
		if err := os.WriteFile(file, signedHeadLine(t, key, c.filed), 0o600); err != nil {
			t.Fatal(err)
		}
		w := newWitness(t, store, key, file)
		if head, _, _ := w.seen(); head.Seq != c.want || !w.restored.Equal(c.known) {
			t.Errorf("%s: goes on after entry %d, restored %v; want %d, %v", name, head.Seq, w.restored, c.want, c.known)
		}
	}
}

// What is between a statement and its entry may take longer to read than a look may:
// the next one goes on.
func TestWhatIsBetweenAStatementAndItsEntryIsReadOnce(t *testing.T) {
	t.Parallel()
	memory := new(storetest.Memory)
	long(t, memory, 60)
	var all []audit.Entry
	for e, err := range memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	mark := audit.PolicyMark{Seq: 50, Hash: all[49].Hash}
	store := &breaking{Memory: memory}
	w := newWitness(t, store, newReleaseKey(t), "")
	for name, c := range map[string]struct {
		before audit.Head
		want   bool
	}{
		"of this log": {all[1].Head(), true},
		"of another":  {audit.Head{Seq: 2, Hash: all[2].Hash}, false},
	} {
		var ok bool
		var err error
		for range 3 {
			store.after = 20
			if ok, err = w.leadsTo(t.Context(), c.before, mark); err == nil {
				break
			}
		}
		if ok != c.want || err != nil {
			t.Errorf("%s: %t, %v", name, ok, err)
		}
		store.after = 0
		if ok, err = w.leadsTo(t.Context(), c.before, mark); c.want && (!ok || err != nil) {
			t.Errorf("%s, once more: %t, %v", name, ok, err)
		}
	}
}

// silent is a store that has stopped answering, and says so only when it is given up.
type silent struct {
	server.Store
	asked chan struct{}
}

func (s *silent) Document(ctx context.Context, _, _ string) (*server.Document, error) {
	select {
	case s.asked <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// A service ends though its store does not answer.
func TestAReplicaEndsThoughItsStoreDoesNotAnswer(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	r := s.start(memory, memory, s.images[:], policyText(1, "1"), nil)
	long(t, memory, 3)
	if err := r.live.watch(t.Context()); err != nil { // there is something to keep
		t.Fatal(err)
	}
	store := &silent{memory, make(chan struct{}, 1)}
	r.live.store, r.live.witness.store = store, store
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.live.Run(ctx); close(done) }()
	<-store.asked
	cancel()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
}
