package server_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// afterRestore repeats events after what a backup holds, and returns the records of a
// restore that lost nothing, if the recovery itself knows of nothing.
func afterRestore(t *testing.T, held []server.Record, events ...audit.Event) (machines map[attest.MachineID]*server.Machine, releases map[string]*server.Release) {
	t.Helper()
	r := server.NewRecovery()
	for _, rec := range held {
		r.Add(rec)
	}
	var head audit.Head
	for _, ev := range events {
		ev.Time = time.Unix(100+head.Seq, 0)
		e, err := audit.Next(head, ev)
		if err == nil {
			err = r.Replay(e)
		}
		if err != nil {
			t.Fatal(err)
		}
		head = e.Head()
	}
	records, _, err := r.Finish(head, audit.Restore{Complete: true}, time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	machines, releases = map[attest.MachineID]*server.Machine{}, map[string]*server.Release{}
	for _, rec := range records {
		if rec.Machine != nil {
			machines[rec.Machine.ID] = rec.Machine
		}
		if rec.Release != nil {
			releases[rec.Release.ID] = rec.Release
		}
	}
	return machines, releases
}

func released(id attest.MachineID, release string, reset uint32, generation int64) audit.Event {
	return audit.Event{Kind: audit.KindRelease, Machine: id, Data: audit.Release{ID: release, ResetCount: reset, DiskGUID: disk, NodeName: "n", Generation: generation}}
}

func onRecord(id attest.MachineID) server.Record {
	return server.Record{Machine: &server.Machine{
		Machine:  api.Machine{ID: id, NodeName: "n", State: attest.StateEnrolled, DiskGUID: disk},
		Revision: 1, Generation: 1, AKName: []byte("ak"), Clock: 1000, TPMFirmware: 7, ResetCount: 5, Released: true, DiskKey: &server.SealedKey{KEK: "k"},
	}}
}

// A TPM that was cleared has other keys and a clock that begins anew: what the
// backup knows of it would refuse the machine for good.
func TestARepeatedReleaseOfAnotherGenerationForgetsTheTPM(t *testing.T) {
	id := attest.MachineID{1}
	m, _ := afterRestore(t, []server.Record{onRecord(id)}, released(id, "a", 6, 1))
	if m := m[id]; m.Clock != 1000 || string(m.AKName) != "ak" || m.TPMFirmware != 7 || m.ResetCount != 6 {
		t.Errorf("of the same generation: %+v", m)
	}
	m, _ = afterRestore(t, []server.Record{onRecord(id)}, released(id, "a", 1, 2))
	if m := m[id]; m.Clock != 0 || m.AKName != nil || m.TPMFirmware != 0 || m.Generation != 2 {
		t.Errorf("of another generation: %+v", m)
	}
}

// Entries of an earlier version do not say the generation. Counters that do not go
// on have started anew, and boots that they name are other boots.
func TestRepeatedReleasesOfCountersThatStartedAnewAreOfOtherBoots(t *testing.T) {
	id := attest.MachineID{1}
	_, r := afterRestore(t, []server.Record{onRecord(id)}, released(id, "a", 6, 0), released(id, "b", 1, 0), released(id, "c", 6, 0), released(id, "d", 6, 0))
	for i, want := range []int64{1, 2, 2, 3} {
		if got := r[string(rune('a'+i))].Generation; got != want {
			t.Errorf("release %d is of generation %d, want %d", i, got, want)
		}
	}
}

// After a restore that was never settled a machine that is not known may be in a
// boot that had its release, also if the log tells of it and nothing more was lost.
func TestAMachineThatTheLogAddsToAnUnsettledStoreForfeitsItsBoot(t *testing.T) {
	id := attest.MachineID{2}
	for _, unsettled := range []bool{true, false} {
		body, err := json.Marshal(map[string]any{"status": api.RestoreStatus{Unsettled: unsettled}})
		if err != nil {
			t.Fatal(err)
		}
		m, _ := afterRestore(t, []server.Record{{Document: &server.Document{Kind: "restore", Name: "last", Revision: 1, Body: body}}},
			audit.Event{Kind: audit.KindState, Machine: id, Data: audit.StateChange{To: attest.StateEnrolled, Identity: &audit.Identity{NodeName: "n"}}})
		if m[id].Restored != unsettled {
			t.Errorf("unsettled %t: restored %t", unsettled, m[id].Restored)
		}
		m, _ = afterRestore(t, []server.Record{{Document: &server.Document{Kind: "restore", Name: "last", Revision: 1, Body: body}}},
			audit.Event{Kind: audit.KindState, Machine: id, Data: audit.StateChange{To: attest.StateEnrolled, Identity: &audit.Identity{NodeName: "n"}}},
			released(id, "a", 1, 1))
		if m[id].Restored {
			t.Error("it had a release since, and is in no boot of before")
		}
	}
}

// The log may be somebody's forgery as long as nobody has compared its head: what it
// says of serial numbers must not be able to write any other document.
func TestABindingOfAnotherKindIsNotRepeated(t *testing.T) {
	for _, b := range []audit.Binding{
		{Kind: "restore", Name: "last", Body: json.RawMessage(`{}`)},
		{Kind: "policy", Name: "enabled", Body: json.RawMessage(`{}`)},
		{Kind: "serial", Body: json.RawMessage(`{}`)},
		{Kind: "serial", Name: "s"},
	} {
		for kind, data := range map[audit.Kind]any{
			audit.KindExpected: audit.Expected{Bindings: []audit.Binding{b}},
			audit.KindState:    audit.StateChange{To: attest.StatePending, Identity: &audit.Identity{NodeName: "n", Bindings: []audit.Binding{b}}},
		} {
			e, err := audit.Next(audit.Head{}, audit.Event{Kind: kind, Machine: attest.MachineID{1}, Data: data})
			if err != nil {
				t.Fatal(err)
			}
			if err := server.NewRecovery().Replay(e); err == nil {
				t.Errorf("%s with a binding %+v: no error", kind, b)
			}
		}
	}
}

// What cannot be rebuilt holds the service, whatever was said of the log's end: a
// disk that opens with a key alone that the backup does not have, and a machine of
// which entries of an earlier version do not say who it is.
func TestWhatCannotBeRepeatedHoldsTheService(t *testing.T) {
	id := attest.MachineID{1}
	rotated := released(id, "a", 6, 1)
	d := rotated.Data.(audit.Release)
	d.Rotation = "other"
	rotated.Data = d
	unreadable := server.NewRecovery()
	unreadable.Add(server.Record{Document: &server.Document{Kind: "restore", Name: "last", Revision: 1, Body: json.RawMessage(`{"status":7}`)}})
	if _, _, err := unreadable.Finish(audit.Head{}, audit.Restore{Complete: true}, time.Unix(1000, 0)); err != nil {
		t.Fatal(err)
	}
	if held, unsettled := unreadable.Held(); !held || !unsettled {
		t.Errorf("an earlier restore that cannot be read: held %t, unsettled %t", held, unsettled)
	}
	for name, tt := range map[string]struct {
		event audit.Event
		held  bool
	}{
		"a release":                  {released(id, "a", 6, 1), false},
		"a release with a next key":  {rotated, true},
		"who it is, of a former one": {audit.Event{Kind: audit.KindState, Machine: attest.MachineID{9}, Data: audit.StateChange{To: attest.StatePending}}, true},
		"a policy":                   {audit.Event{Kind: audit.KindPolicy, Data: map[string]string{}}, true},
		"a kind of a later version":  {audit.Event{Kind: "later", Data: map[string]string{}}, true},
	} {
		r := server.NewRecovery()
		r.Add(onRecord(id))
		e, err := audit.Next(audit.Head{}, tt.event)
		if err == nil {
			err = r.Replay(e)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, entries, err := r.Finish(e.Head(), audit.Restore{Complete: true}, time.Unix(1000, 0))
		if err != nil {
			t.Fatal(err)
		}
		var got audit.Restore
		if err := json.Unmarshal(entries[0].Data, &got); err != nil {
			t.Fatal(err)
		}
		if held, unsettled := r.Held(); held != tt.held || unsettled != tt.held || got.Complete == tt.held {
			t.Errorf("%s: held %t, unsettled %t, complete %t", name, held, unsettled, got.Complete)
		}
	}
}

// Nobody confirms a release of before a restore, not even with a backup that has
// what it takes.
func TestAReleaseThatWasOpenIsVoid(t *testing.T) {
	_, r := afterRestore(t, []server.Record{onRecord(attest.MachineID{1}), {Release: &server.Release{ID: "r", Machine: attest.MachineID{1}, Transport: &server.SealedKey{KEK: "k"}}}})
	if got := r["r"]; got.Transport != nil || got.Outcome != server.OutcomeRestored {
		t.Errorf("got %+v", got)
	}
}
