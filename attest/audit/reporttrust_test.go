package audit

import (
	"bytes"
	"crypto/elliptic"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
)

// The service signs where its log ends, whoever wrote the entries up to there. So a report
// that has its key does not pass on that somebody else enrolled a machine.
func TestAReportSaysWhatEnrolsNobody(t *testing.T) {
	key := newKey(t, elliptic.P256())
	id, err := keyID(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	box := attest.MachineIDOf([]byte("box"))
	var log []Entry
	add := func(ev Event, sign bool) {
		t.Helper()
		var head Head
		if len(log) > 0 {
			head = log[len(log)-1].Head()
		}
		ev.Time = begin.Add(time.Duration(len(log)) * time.Minute)
		if sign {
			if ev, err = SignTrust(key, ev, ev.Time); err != nil {
				t.Fatal(err)
			}
		}
		e, err := Next(head, ev)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, e)
	}
	state := func(from, to attest.EnrolmentState, reason string) Event {
		return Event{Kind: KindState, Machine: box, Data: StateChange{From: from, To: to, By: "ana", Reason: reason}}
	}
	add(Event{Kind: KindStart, Data: Start{ReleaseKey: id, SignsEnrolments: true}}, false)
	add(state(attest.StateUnknown, attest.StatePending, "asked"), false)
	add(state(attest.StatePending, attest.StateEnrolled, "made up at first"), false)
	add(state(attest.StatePending, attest.StateEnrolled, "ours"), true)
	add(state(attest.StateEnrolled, attest.StateRevoked, "stolen"), false)
	add(Event{Kind: KindState, Machine: box, Data: json.RawMessage(`{"to":7}`)}, false)
	add(state(attest.StateRevoked, attest.StateEnrolled, "made up"), false)
	made := len(log)
	add(state(attest.StateRevoked, attest.StateEnrolled, "found"), true)

	report := func(o ReportOptions, entries []Entry) *MachineReport {
		t.Helper()
		if o.Key != nil {
			o.Signed = signed(t, key, HeadStatement{Head: entries[len(entries)-1].Head(), Time: begin})
		}
		r, err := Build(seq(entries), o)
		if err != nil || len(r.Machines) != 1 || r.Chain.Verified != (o.Key != nil) {
			t.Fatalf("%+v, %v", r, err)
		}
		var page bytes.Buffer
		if err := r.WriteHTML(&page); err != nil || strings.Contains(page.String(), "does not count") != (o.Key != nil) {
			t.Errorf("the page: %v", err)
		}
		return &r.Machines[0]
	}
	with := ReportOptions{Key: &key.PublicKey}
	if m := report(with, log[:3]); m.State != attest.StatePending {
		t.Errorf("what is made up: it is %q", m.State)
	}
	if m := report(with, log[:made]); m.State != attest.StateRevoked {
		t.Errorf("revoked, and what is made up: it is %q", m.State)
	}
	m := report(with, log)
	if m.State != attest.StateEnrolled {
		t.Errorf("reinstated: it is %q", m.State)
	}
	for _, l := range m.History {
		if madeUp := strings.Contains(l.Text, "made up"); madeUp != strings.Contains(l.Text, "does not count") || madeUp && !l.Bad {
			t.Errorf("%+v", l)
		}
	}
	// Without the key nothing can be told.
	if m := report(ReportOptions{}, log[:made]); m.State != attest.StateEnrolled {
		t.Errorf("without the key: %q", m.State)
	}
}
