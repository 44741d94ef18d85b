package server_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// replayed returns the records that a recovery with a machine, its open release
// and that entry gives, and whether the entry was counted as not replayed.
func replayed(t *testing.T, kind audit.Kind, data any) (records string, counted bool) {
	t.Helper()
	id := attest.MachineID{1}
	r := server.NewRecovery()
	r.Add(server.Record{Machine: &server.Machine{Machine: api.Machine{
		ID: id, State: attest.StateEnrolled, NodeName: "box-1", DiskGUID: otherDisk, Rotation: &api.DiskKeyRotation{ID: "x"},
	}, TokenID: "t", NextKey: &server.SealedKey{KEK: "k"}}})
	r.Add(server.Record{Release: &server.Release{ID: "r", Machine: id}})
	if kind != "" {
		body, err := json.Marshal(data)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Replay(audit.Entry{Seq: 1, Time: time.Unix(1, 0), Kind: kind, Machine: id, Data: body}); err != nil {
			t.Fatal(err)
		}
	}
	all, entries, err := r.Finish(audit.Head{}, audit.Restore{Complete: true}, time.Unix(2, 0))
	if err != nil {
		t.Fatal(err)
	}
	var d audit.Restore
	if err := json.Unmarshal(entries[0].Data, &d); err != nil {
		t.Fatal(err)
	}
	if d.NotReplayed[kind] > 0 {
		return "", true
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), false
}

func TestEachKindOfEntryIsRepeatedCountedOrChangesNothing(t *testing.T) {
	const repeated, counted, nothing = "repeated", "counted", "changes nothing"
	tests := map[audit.Kind]struct {
		data any
		want string
	}{
		audit.KindStart:            {audit.Start{}, nothing},
		audit.KindChallengeRefused: {audit.ChallengeRefused{}, nothing},
		audit.KindVerdict:          {audit.Verdict{Result: &attest.Result{Allowed: true}}, repeated},
		audit.KindRelease:          {audit.Release{ID: "new", NodeName: "box-1", DiskGUID: otherDisk, ResetCount: 1}, repeated},
		audit.KindConfirm:          {audit.Confirm{ReleaseID: "r", Outcome: api.OutcomeUnlocked}, repeated},
		audit.KindState:            {audit.StateChange{From: attest.StateEnrolled, To: attest.StateRevoked}, repeated},
		audit.KindInstall:          {audit.Install{DiskGUID: otherDisk}, repeated},
		audit.KindToken:            {audit.Token{Event: audit.TokenJoined, ID: "t", NodeName: "box-1"}, repeated},
		audit.KindDiskKey:          {audit.DiskKey{Event: audit.DiskKeyChanged, Rotation: "x", DiskGUID: otherDisk}, repeated},
		audit.KindCampaign:         {audit.Campaign{Name: "bios", Detail: json.RawMessage(`{}`)}, repeated},
		audit.KindPolicy:           {audit.Policy{}, counted},
		audit.KindExpected:         {audit.Expected{Bindings: []audit.Binding{{Kind: audit.BindingSerial, Name: "S", Body: json.RawMessage(`{}`)}}}, repeated},
		audit.KindReport:           {audit.Reattestation{Result: &attest.Result{Allowed: true}}, repeated},
		audit.KindStale:            {audit.Stale{Stale: true}, nothing},
		audit.KindKEK:              {audit.KEKRewrap{}, nothing},
		audit.KindRestore:          {audit.Restore{}, repeated},
		audit.KindAcceptRestore:    {audit.AcceptRestore{}, repeated},
		audit.KindPrune:            {audit.Prune{}, nothing},
		audit.KindAlarm:            {audit.Alarm{}, nothing},
		audit.KindRecovery:         {audit.Recovery{}, nothing},
		"of a later program":       {struct{}{}, counted},
	}
	before, _ := replayed(t, "", nil)
	kinds := audit.Kinds()
	if len(kinds) != len(tests)-1 {
		t.Errorf("%d kinds, and %d are tested", len(kinds), len(tests)-1)
	}
	for _, k := range kinds {
		if _, ok := tests[k]; !ok {
			t.Errorf("entries of kind %s: say what a restore does with them, in Recovery.Replay and here", k)
		}
	}
	for k, tt := range tests {
		after, skipped := replayed(t, k, tt.data)
		got := nothing
		switch {
		case skipped:
			got = counted
		case after != before:
			got = repeated
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", k, got, tt.want)
		}
	}
}

// What the backup does not have, and the log only names, makes a restore
// incomplete.
func TestWhatOnlyTheLogNamesIsCounted(t *testing.T) {
	release := func(rotation string) audit.Release {
		return audit.Release{ID: "new", NodeName: "box-1", DiskGUID: otherDisk, ResetCount: 1, Rotation: rotation}
	}
	for name, tt := range map[string]struct {
		kind audit.Kind
		data any
		want bool
	}{
		"the next disk key of the backup":     {audit.KindRelease, release("x"), false},
		"a next disk key that was made later": {audit.KindRelease, release("y"), true},
	} {
		if _, counted := replayed(t, tt.kind, tt.data); counted != tt.want {
			t.Errorf("%s: counted is %t, want %t", name, counted, tt.want)
		}
	}
}

// FuzzReplay replays three entries that anybody may have written: a log whose
// chain is whole is still a file. A machine must never come out of it with a key
// or a release that the backup does not have.
func FuzzReplay(f *testing.F) {
	for _, v := range []struct {
		kind audit.Kind
		data any
	}{
		{audit.KindState, audit.StateChange{To: attest.StateEnrolled, Identity: &audit.Identity{NodeName: "n", Serial: "s", Bindings: []audit.Binding{{Kind: "serial", Name: "S", Body: []byte(`{}`)}}}}},
		{audit.KindState, audit.StateChange{To: attest.StateEnrolled, Reason: "enrolled beforehand with serial number S"}},
		{audit.KindInstall, audit.Install{DiskGUID: disk, Serial: "S", Candidate: true}},
		{audit.KindRelease, audit.Release{ID: "r", NodeName: "n", DiskGUID: disk, Rotation: "x", Generation: 3}},
		{audit.KindExpected, audit.Expected{Machines: []audit.ExpectedLine{{Serial: "S"}}}},
		{audit.KindRestore, audit.Restore{}}, {audit.KindAcceptRestore, audit.AcceptRestore{Settled: true}},
		{audit.KindReport, audit.Reattestation{Result: &attest.Result{Allowed: true}}}, {audit.KindDiskKey, audit.DiskKey{Event: audit.DiskKeyChanged}},
	} {
		b, err := json.Marshal(v.data)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(v.kind), b, string(audit.KindState), []byte(`{"to":"enrolled"}`), string(audit.KindInstall), []byte(`{"serial":"x"}`))
	}
	f.Fuzz(func(t *testing.T, kind1 string, data1 []byte, kind2 string, data2 []byte, kind3 string, data3 []byte) {
		id := attest.MachineID{1}
		r := server.NewRecovery()
		r.Add(server.Record{Machine: &server.Machine{Machine: api.Machine{ID: id, State: attest.StateEnrolled, NodeName: "box-1", DiskGUID: otherDisk, Serial: "S"}}})
		for i, e := range []audit.Entry{{Kind: audit.Kind(kind1), Data: data1}, {Kind: audit.Kind(kind2), Data: data2}, {Kind: audit.Kind(kind3), Data: data3}} {
			e.Seq, e.Machine = int64(i+1), id
			if err := r.Replay(e); err != nil {
				return // refused as a whole
			}
		}
		all, _, err := r.Finish(audit.Head{}, audit.Restore{Complete: true}, time.Unix(2, 0))
		if err != nil {
			return
		}
		for _, rec := range all {
			if m := rec.Machine; m != nil && (m.DiskKey != nil || m.NodeName == "") {
				t.Errorf("got %+v", m)
			}
			if rec.Release != nil && rec.Release.Transport != nil {
				t.Error("a release is open")
			}
		}
	})
}

func TestARestoredNodeNameIsValid(t *testing.T) {
	id := attest.MachineID{7}
	r := server.NewRecovery()
	// The shorter names are others'.
	for i, digits := range []int{10, 16, 32} {
		r.Add(server.Record{Machine: &server.Machine{Machine: api.Machine{ID: attest.MachineID{byte(i + 1)}, State: attest.StateEnrolled, NodeName: api.NodeName(id, digits)}}})
	}
	if err := r.Replay(audit.Entry{Seq: 1, Kind: audit.KindInstall, Machine: id, Data: json.RawMessage(`{}`)}); err != nil {
		t.Fatal(err)
	}
	all, _, err := r.Finish(audit.Head{}, audit.Restore{Complete: true}, time.Unix(2, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range all {
		// A label of a host name (RFC 1123) has at most 63 characters.
		if m := rec.Machine; m != nil && m.ID == id && (len(m.NodeName) > 63 || !strings.HasPrefix(m.NodeName, api.NodeName(id, 33))) {
			t.Errorf("node name %s has %d characters", m.NodeName, len(m.NodeName))
		}
	}
}

// A policy that was enabled after the backup is about all machines, so it is told
// first, and not cut off behind them.
func TestARestoreTellsWhichPolicyItCouldNotRepeat(t *testing.T) {
	for claim, c := range map[string]struct {
		policy audit.Policy
		want   string
	}{
		"one that was enabled":  {audit.Policy{Name: "fleet", Version: 7, Signed: true}, "policy fleet version 7, enabled after the backup"},
		"that there is no more": {audit.Policy{FromName: "fleet", FromVersion: 7}, "that policies were turned off after the backup"},
	} {
		t.Run(claim, func(t *testing.T) {
			r, seq := server.NewRecovery(), int64(0)
			replay := func(kind audit.Kind, id attest.MachineID, data any) {
				t.Helper()
				body, err := json.Marshal(data)
				if err != nil {
					t.Fatal(err)
				}
				seq++
				if err := r.Replay(audit.Entry{Seq: seq, Time: time.Unix(1, 0), Kind: kind, Machine: id, Data: body}); err != nil {
					t.Fatal(err)
				}
			}
			for i := range api.MaxRestoreMissing + 1 {
				id := attest.MachineIDOf(fmt.Append(nil, i))
				replay(audit.KindState, id, audit.StateChange{To: attest.StateEnrolled, Identity: &audit.Identity{NodeName: fmt.Sprint("n", i)}})
				replay(audit.KindRelease, id, audit.Release{ID: fmt.Sprint("r", i), NodeName: fmt.Sprint("n", i), DiskGUID: fmt.Sprint("d", i), NewDiskKey: true, Secrets: []string{audit.SecretDiskKey}})
			}
			replay(audit.KindPolicy, attest.MachineID{}, c.policy)
			replay("of a later program", attest.MachineID{}, struct{}{})
			all, _, err := r.Finish(audit.Head{}, audit.Restore{Complete: true}, time.Unix(2, 0))
			if err != nil {
				t.Fatal(err)
			}
			var state struct{ Status api.RestoreStatus }
			for _, rec := range all {
				if rec.Document != nil && rec.Document.Kind == "restore" {
					if err := json.Unmarshal(rec.Document.Body, &state); err != nil {
						t.Fatal(err)
					}
				}
			}
			st := state.Status
			if len(st.Missing) != api.MaxRestoreMissing || st.MissingMore != 2 || !st.Held {
				t.Fatalf("%d are named, and %d more; held %t", len(st.Missing), st.MissingMore, st.Held)
			}
			if m := st.Missing[0]; !strings.HasPrefix(m.What, c.want) || !m.Machine.IsZero() || !strings.Contains(m.Mend, "sealift policy enable") {
				t.Errorf("the first is %+v, want %q", m, c.want)
			}
			if st.NotReplayed["policy"] != 1 || st.NotReplayed["of a later program"] != 1 {
				t.Errorf("not repeated: %v", st.NotReplayed)
			}
		})
	}
}
