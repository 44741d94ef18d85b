package audit

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
)

func TestAReportTellsOfChangesOfKeys(t *testing.T) {
	machine := attest.MachineID{1}
	var entries []Entry
	var head Head
	for _, ev := range []Event{
		{Kind: KindStart, Data: Start{KEK: "b", FormerKEKs: []string{"a"}, LostKEKs: []string{"z"}}},
		{Kind: KindKEK, Data: KEKRewrap{Event: KEKStarted, To: "b", From: []string{"a"}, Keys: 3, By: "ana", Reason: "known"}},
		{Kind: KindKEK, Data: KEKRewrap{Event: KEKFinished, To: "b", From: []string{"a"}, Keys: 3}},
		{Kind: KindDiskKey, Machine: machine, Data: DiskKey{Event: DiskKeyAsked, Rotation: "r1", DiskGUID: "d", By: "ana", Reason: "yearly"}},
		{Kind: KindRelease, Machine: machine, Data: Release{ID: "rel", Rotation: "r1", Secrets: []string{SecretDiskKey, SecretNextDiskKey}}},
		{Kind: KindConfirm, Machine: machine, Data: Confirm{ReleaseID: "rel", Outcome: "unlocked, rekeyed"}},
		{Kind: KindDiskKey, Machine: machine, Data: DiskKey{Event: DiskKeyChanged, Rotation: "r1", DiskGUID: "d", ReleaseID: "rel"}},
		{Kind: KindRelease, Machine: machine, Data: Release{ID: "rel2"}},
		{Kind: KindConfirm, Machine: machine, Data: Confirm{ReleaseID: "rel2", Outcome: "unlocked by luck"}},
	} {
		ev.Time = time.Unix(100, 0)
		e, err := Next(head, ev)
		if err != nil {
			t.Fatal(err)
		}
		entries, head = append(entries, e), e.Head()
	}
	r, err := Build(func(yield func(Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}, ReportOptions{Machine: machine})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Chain.Intact || r.Summary.Confirmed != 1 || len(r.Machines) != 1 {
		t.Fatalf("got %+v", r.Summary)
	}
	for i, want := range []string{
		"also opens what is wrapped by a, what is wrapped by z is given up",
		"3 disk keys go from key-encryption key a to b, by ana: known",
		"3 disk keys went from key-encryption key a to b, none is left",
	} {
		if !strings.Contains(r.Service[i].Text, want) {
			t.Errorf("got %q, want %q", r.Service[i].Text, want)
		}
	}
	history := r.Machines[0].History
	for i, want := range []string{
		"disk d is to get another key, by ana: yearly (rotation r1)", "disk-key, next-disk-key", "unlocked, rekeyed", "disk d has another key, the old one is forgotten (rotation r1, release rel)",
	} {
		if !strings.Contains(history[i].Text, want) || history[i].Bad {
			t.Errorf("got %q (bad %t), want %q", history[i].Text, history[i].Bad, want)
		}
	}
	if i := slices.IndexFunc(history, func(l Line) bool { return strings.Contains(l.Text, "by luck") }); i < 0 || !history[i].Bad {
		t.Error("an outcome that only begins like a good one counts as one")
	}
}
