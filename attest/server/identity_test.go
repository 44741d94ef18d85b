package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/backup"
	"github.com/sealift/sealift/image/manifest"
)

// whoIsWho are the documents about serial numbers and expected machines, as a
// store has them.
func whoIsWho(t testing.TB, store server.Store) []string {
	t.Helper()
	var out []string
	for _, kind := range []string{audit.BindingSerial, audit.BindingExpected, audit.BindingTPM} {
		docs, err := store.Documents(context.Background(), kind, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range docs {
			out = append(out, fmt.Sprintf("%s %s revision %d: %s", d.Kind, d.Name, d.Revision, d.Body))
		}
	}
	return out
}

// sameMachines compares the machines of two stores, but for what the log does
// not hold, and evidence that is lost.
func sameMachines(t *testing.T, got, want server.Store) {
	t.Helper()
	text := func(s server.Store) (out []string) {
		all, err := s.Machines(t.Context(), server.Query{})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if m.State == attest.StateQuarantined && strings.HasPrefix(m.Reason, "its disk key was made after") {
				m.State, m.Reason = attest.StateEnrolled, ""
			}
			if m.State == attest.StateEnrolled {
				m.Reason = ""
			}
			m.LastEvidence, m.AcceptedEvidence, m.LastReport, m.ReportDue = manifest.SHA256{}, manifest.SHA256{}, time.Time{}, time.Time{}
			m.AKName, m.Clock, m.DiskKey, m.Former, m.Boot, m.StateMade, m.Stale = nil, 0, nil, nil, nil, false, false
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(b))
		}
		return out
	}
	a, b := text(got), text(want)
	if len(a) != len(b) {
		t.Fatalf("%d machines, want %d", len(a), len(b))
	}
	for i := range a {
		if a[i] != b[i] {
			t.Errorf("machine %d:\ngot  %s\nwant %s", i, a[i], b[i])
		}
	}
}

// TestAReplayedLogGivesWhoIsWho lets a service bind serial numbers to machines
// in every way there is, takes a backup anywhere in between, and compares what
// backup and log give with what the service has.
func TestAReplayedLogGivesWhoIsWho(t *testing.T) {
	var mu sync.Mutex
	happened := map[string]int{} // after the backup
	t.Run("seeds", func(t *testing.T) {
		for seed := range uint64(16) {
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
				t.Parallel()
				rnd := rand.New(rand.NewPCG(seed, 13))
				s := knowing(t, func(c *server.Config) { c.IgnoreSerials = []string{"spare"} })
				op, ctx := s.operatorClient(), context.Background()
				serials := []string{"SN-1", "sn-1", "SN-2", "SN-3", "SN-4", "SN-5", "To be filled by O.E.M.", "SPARE", ""}
				boxes := make([]*box, 9)
				boots := make([]server.Boot, len(boxes))
				disks, claimed := make([]string, len(boxes)), make([]string, len(boxes))
				for i := range boxes {
					boxes[i] = newBox(t, s.tpmCA)
					boots[i].Reset = 1
					disks[i] = fmt.Sprintf("6a0d1e0c-3b1f-4a56-9d0e-%012d", i+1)
					claimed[i] = serials[rnd.IntN(len(serials))]
				}
				var listed []api.Expected
				// What is refused is as good as what is done: nothing may come of it.
				step := func() {
					i := rnd.IntN(len(boxes))
					b := boxes[i]
					if rnd.IntN(8) == 0 {
						claimed[i] = serials[rnd.IntN(len(serials))]
					}
					switch n := rnd.IntN(20); {
					case n < 3:
						if rnd.IntN(2) == 0 {
							disks[i] = fmt.Sprintf("6a0d1e0c-3b1f-4a56-9d0e-%012d", rnd.IntN(1<<20)+100)
						}
						rec := record(b)
						rec.DiskGUID, rec.Serial = disks[i], claimed[i]
						_, _ = s.srv.Enrol(ctx, "line-1", rec)
					case n < 10:
						if rnd.IntN(4) > 0 {
							boots[i].Reset++
						}
						s.set(func() { s.boot = boots[i] })
						c := s.httpClient()
						req := s.answer(b, s.challenge(c, b))
						req.Evidence.SMBIOS, req.Evidence.Disk = smbios(claimed[i]), attest.Disk{GUID: disks[i], StateExists: true}
						s.send(c, req)
					case n < 14:
						serial := serials[rnd.IntN(6)]
						if rnd.IntN(2) == 0 {
							serial = claimed[i]
						}
						e := api.Expected{Serial: serial, EK: b.digests(t)[rnd.IntN(2)], Note: "<store>"}
						if listed = append(listed, e); rnd.IntN(3) == 0 {
							e = listed[rnd.IntN(len(listed))]
							e.Withdrawn = true
						}
						s.expects(rnd.IntN(2) == 0, e)
					case n < 15:
						if rnd.IntN(3) == 0 {
							_, _ = op.ReEnrol(ctx, boxes[rnd.IntN(len(boxes))].id, b.id, "board exchanged")
						}
					default:
						s.post(b, []string{"approve", "approve", "revoke", "reinstate", "reinstate"}[n-15])
					}
				}
				for range rnd.IntN(60) {
					step()
				}
				file := s.backUp()
				before := len(strings.Fields(s.kinds()))
				for range 90 {
					step()
				}
				memory, report := s.restored(func(o *backup.Order) {
					o.Log, o.Head = bytes.NewReader(s.exportLog(1)), s.head()
				}, file)
				if !report.Complete || len(report.NotReplayed) > 0 {
					t.Errorf("not complete: %+v", report)
				}
				sameMachines(t, memory, s.memory)
				got, want := whoIsWho(t, memory), whoIsWho(t, s.memory)
				if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b {
					t.Errorf("got\n%s\nwant\n%s", a, b)
				}
				complete := s.restoresAsOfAnEarlierVersion(file, int64(before+1))
				mu.Lock()
				defer mu.Unlock()
				if complete {
					happened["nothing was missing without it"]++
				}
				for e, err := range s.memory.Audit(ctx, int64(before+1)) {
					if err != nil {
						t.Fatal(err)
					}
					for _, what := range []string{
						`"enrolled beforehand with`, "install record said", "takes over the node name", `"from":"pending","to":"enrolled","by":"alice"`,
						`"from":"revoked","to":"enrolled"`, `"to":"pending"`, `"outcome":"added"`, `"outcome":"changed"`, `"outcome":"withdrawn"`, "no longer held against",
					} {
						if strings.Contains(string(e.Data), what) {
							happened[what]++
						}
					}
					if e.Kind == audit.KindInstall {
						happened["an install"]++
					}
				}
			})
		}
	})
	if len(happened) != 12 {
		t.Errorf("not everything happened: %v", happened)
	}
}

// restoresAsOfAnEarlierVersion restores from the entries from number from on as
// a program wrote them that did not say in them who is who. What is not as it
// was must be said to be missing. It reports whether nothing was.
func (s *scene) restoresAsOfAnEarlierVersion(file []byte, from int64) bool {
	s.Helper()
	var lines []byte
	var head audit.Head
	for e, err := range s.memory.Audit(context.Background(), 1) {
		if err != nil {
			s.Fatal(err)
		}
		if e.Seq >= from {
			var data map[string]json.RawMessage
			if err := json.Unmarshal(e.Data, &data); err != nil {
				s.Fatal(err)
			}
			for _, later := range []string{"identity", "bindings", "generation"} {
				delete(data, later)
			}
			if e, err = audit.Next(head, audit.Event{Time: e.Time, Kind: e.Kind, Machine: e.Machine, Data: data}); err == nil {
				lines, err = audit.AppendLine(lines, e)
			}
			if err != nil {
				s.Fatal(err)
			}
		}
		head = e.Head()
	}
	memory, report := s.restored(func(o *backup.Order) { o.Log, o.Head = bytes.NewReader(lines), head.Hash }, file)
	named := map[string]bool{} // machines, serial numbers, endorsement keys
	for _, m := range report.Missing {
		if _, ek, ok := strings.Cut(m.What, "endorsement key "); ok {
			named[ek[:64]] = true
		}
		named[m.Machine.String()], named[attest.SerialKey(m.Serial)] = true, true
	}
	real, err := s.memory.Machines(context.Background(), server.Query{})
	if err != nil {
		s.Fatal(err)
	}
	for _, want := range real {
		got, err := memory.Machine(context.Background(), want.ID)
		if err != nil {
			s.Fatal(err)
		}
		same := got.NodeName == want.NodeName && attest.SerialKey(got.Serial) == attest.SerialKey(want.Serial) && got.Listed == want.Listed &&
			got.ReplacedBy == want.ReplacedBy && got.Generation == want.Generation
		if !same && !named[want.ID.String()] && !named[attest.SerialKey(want.Serial)] {
			s.Errorf("not said to be missing:\ngot  %+v, generation %d\nwant %+v, generation %d\nmissing %+v", got.Machine, got.Generation, want.Machine, want.Generation, report.Missing)
		}
	}
	docs, err := s.memory.Documents(context.Background(), audit.BindingSerial, "", 0)
	if err != nil {
		s.Fatal(err)
	}
	for _, want := range docs {
		var n, is struct {
			EK      manifest.SHA256
			Machine attest.MachineID
		}
		if err := json.Unmarshal(want.Body, &n); err != nil {
			s.Fatal(err)
		}
		got, err := memory.Document(context.Background(), want.Kind, want.Name)
		if err == nil {
			err = json.Unmarshal(got.Body, &is)
		}
		if named[n.EK.String()] || named[is.EK.String()] {
			continue
		}
		if (err != nil || string(got.Body) != string(want.Body)) && !named[want.Name] && !named[n.Machine.String()] {
			s.Errorf("not said to be missing: %s is %+v, %v, want %s\nmissing %+v", want.Name, got, err, want.Body, report.Missing)
		}
	}
	if report.Complete != (len(report.NotReplayed) == 0) {
		s.Errorf("complete is %t: %+v", report.Complete, report.NotReplayed)
	}
	return report.Complete
}

// recovered is what a recovery gives.
type recovered struct {
	machines  map[attest.MachineID]*server.Machine
	documents map[string]string // by kind and name
	restore   audit.Restore
	status    api.RestoreStatus
	missing   []api.RestoreMissing
	mustStart []api.RestoreMissing
}

// recovers replays entries on a backup.
func recovers(t *testing.T, backup []server.Record, entries ...audit.Event) *recovered {
	t.Helper()
	r := server.NewRecovery()
	for _, rec := range backup {
		r.Add(rec)
	}
	var head audit.Head
	for _, ev := range entries {
		e, err := audit.Next(head, ev)
		if err == nil {
			err = r.Replay(e)
		}
		if err != nil {
			t.Fatal(err)
		}
		head = e.Head()
	}
	all, end, err := r.Finish(head, audit.Restore{Complete: true, By: "root"}, time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	out := &recovered{machines: map[attest.MachineID]*server.Machine{}, documents: map[string]string{}, missing: r.Missing(), mustStart: r.MustStart()}
	for _, rec := range all {
		switch {
		case rec.Machine != nil:
			out.machines[rec.Machine.ID] = rec.Machine
		case rec.Document != nil && rec.Document.Kind == "restore":
			var state struct{ Status api.RestoreStatus }
			if err := json.Unmarshal(rec.Document.Body, &state); err != nil {
				t.Fatal(err)
			}
			out.status = state.Status
		case rec.Document != nil:
			out.documents[rec.Document.Kind+" "+rec.Document.Name] = string(rec.Document.Body)
		}
	}
	if err := json.Unmarshal(end[0].Data, &out.restore); err != nil {
		t.Fatal(err)
	}
	if out.status.Held == out.restore.Complete {
		t.Errorf("held is %t, complete is %t", out.status.Held, out.restore.Complete)
	}
	return out
}

func TestEntriesOfAnEarlierVersionBindSerialNumbersOrAreMissed(t *testing.T) {
	id, other := attest.MachineID{1}, attest.MachineID{2}
	ek := manifest.SHA256{9}
	on := func(kind audit.Kind, m attest.MachineID, data any) audit.Event {
		return audit.Event{Time: time.Unix(5, 0), Kind: kind, Machine: m, Data: data}
	}
	enrolled := func(m attest.MachineID, from attest.EnrolmentState, reason string) audit.Event {
		return on(audit.KindState, m, audit.StateChange{From: from, To: attest.StateEnrolled, By: "alice", Reason: reason})
	}
	machine := func(state attest.EnrolmentState, serial string) server.Record {
		return server.Record{Machine: &server.Machine{
			Machine: api.Machine{ID: id, NodeName: "box-1", State: state, Serial: serial, DiskGUID: disk}, DiskKey: &server.SealedKey{}, Generation: 1,
		}}
	}
	expected := func(machine string) []server.Record {
		return []server.Record{
			{Document: &server.Document{Kind: "serial", Name: "SN-1", Revision: 1, Body: json.RawMessage(`{"serial":"SN-1","ek":"` + ek.String() + `"}`)}},
			{Document: &server.Document{Kind: "expected", Name: ek.String(), Revision: 1, Body: json.RawMessage(`{"serial":"SN-1","ek":"` + ek.String() + `"` + machine + `}`)}},
		}
	}
	mine := `{"serial":"sn-1","machine":"` + id.String() + `"}`
	tests := map[string]struct {
		backup  []server.Record
		entries []audit.Event
		serial  string // document of SN-1
		missing []string
		listed  bool
	}{
		"an install": {
			entries: []audit.Event{on(audit.KindInstall, id, audit.Install{DiskGUID: disk, Serial: "sn-1"}), enrolled(id, "", "install record")},
			serial:  mine,
		},
		"an install of a machine that waited": {
			entries: []audit.Event{
				on(audit.KindState, id, audit.StateChange{To: attest.StatePending}),
				on(audit.KindInstall, id, audit.Install{DiskGUID: disk, Serial: "sn-1"}), enrolled(id, attest.StatePending, "install record"),
			},
			serial: mine,
		},
		"an install of one that was expected": {
			backup:  expected(""),
			entries: []audit.Event{on(audit.KindInstall, id, audit.Install{DiskGUID: disk, Serial: "sn-1"}), enrolled(id, "", "install record")},
			serial:  `{"serial":"SN-1","ek":"` + ek.String() + `","machine":"` + id.String() + `"}`, listed: true,
		},
		"the first evidence of one that was expected": {
			backup:  expected(""),
			entries: []audit.Event{enrolled(id, "", "enrolled beforehand with serial number SN-1")},
			serial:  `{"serial":"SN-1","ek":"` + ek.String() + `","machine":"` + id.String() + `"}`, listed: true,
		},
		"an approval": {
			backup:  []server.Record{machine(attest.StatePending, "sn-1")},
			entries: []audit.Event{enrolled(id, attest.StatePending, "looks right")},
			serial:  mine,
		},
		"an approval of one that the backup does not have": {
			entries: []audit.Event{on(audit.KindState, id, audit.StateChange{To: attest.StatePending}), enrolled(id, attest.StatePending, "looks right")},
			missing: []string{"its serial number"},
		},
		"a promotion": {
			backup: []server.Record{machine(attest.StateEnrolled, "x")},
			entries: []audit.Event{
				on(audit.KindInstall, id, audit.Install{DiskGUID: otherDisk, Serial: "sn-1", Candidate: true}),
				on(audit.KindState, id, audit.StateChange{From: attest.StateEnrolled, To: attest.StateEnrolled, Effect: `disk b replaces disk "a", as the install record said`}),
				on(audit.KindRelease, id, audit.Release{ID: "r", NodeName: "box-1", DiskGUID: otherDisk, NewDiskKey: true}),
			},
			serial: mine, missing: []string{"its disk key"},
		},
		"a re-enrolment": {
			backup: []server.Record{machine(attest.StateEnrolled, "SN-1")},
			entries: []audit.Event{
				on(audit.KindState, id, audit.StateChange{From: attest.StateEnrolled, To: attest.StateRevoked, Effect: `gives up its node name and serial number, x`}),
				on(audit.KindState, other, audit.StateChange{To: attest.StateEnrolled, Effect: `takes over the node name and serial number, x`}),
			},
			missing: []string{"whose its node name", "whose its node name"},
		},
		"a list": {
			entries: []audit.Event{on(audit.KindExpected, attest.MachineID{}, audit.Expected{Machines: []audit.ExpectedLine{{Serial: "SN-1", EK: ek, Outcome: "added"}}})},
			missing: []string{"its enrolment beforehand"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := recovers(t, tt.backup, tt.entries...)
			if got.documents["serial SN-1"] != tt.serial {
				t.Errorf("SN-1 is %s, want %s", got.documents["serial SN-1"], tt.serial)
			}
			if len(got.missing) != len(tt.missing) || len(got.status.Missing) != len(tt.missing) {
				t.Fatalf("missing is %+v, in the store %+v", got.missing, got.status.Missing)
			}
			for i, want := range tt.missing {
				if m := got.missing[i]; !strings.HasPrefix(m.What, want) || m.Mend == "" || m.Serial == "" && m.NodeName == "" {
					t.Errorf("missing is %+v, want %s", m, want)
				}
			}
			lost := len(tt.missing) > 0 && name != "a promotion" // whose machine is quarantined
			if got.restore.Complete == lost {
				t.Errorf("complete is %t", got.restore.Complete)
			}
			if tt.listed {
				if m := got.machines[id]; !m.Listed || m.Serial != "SN-1" || !strings.Contains(got.documents["expected "+ek.String()], id.String()) {
					t.Errorf("got %+v, %s", m.Machine, got.documents["expected "+ek.String()])
				}
			}
		})
	}
}

func TestWhatIsMissingOfAMachineIsNamed(t *testing.T) {
	id := attest.MachineID{1}
	key := &server.SealedKey{KEK: "k"}
	base := server.Machine{
		Machine: api.Machine{ID: id, NodeName: "box-1", Serial: "SN-1", State: attest.StateEnrolled, DiskGUID: disk}, DiskKey: key,
		Released: true, ResetCount: 1, Generation: 1, Boot: &attest.Boot{ResetCount: 1},
	}
	on := func(kind audit.Kind, data any) audit.Event {
		return audit.Event{Time: time.Unix(5, 0), Kind: kind, Machine: id, Data: data}
	}
	release := func(reset uint32, change func(*audit.Release)) audit.Event {
		d := audit.Release{ID: fmt.Sprint("r", reset), NodeName: "box-1", DiskGUID: disk, ResetCount: reset, Generation: 1}
		if change != nil {
			change(&d)
		}
		return on(audit.KindRelease, d)
	}
	asked := on(audit.KindDiskKey, audit.DiskKey{Event: audit.DiskKeyAsked, Rotation: "y", DiskGUID: disk})
	given := release(2, func(d *audit.Release) { d.Rotation = "y" })
	changed := on(audit.KindDiskKey, audit.DiskKey{Event: audit.DiskKeyChanged, Rotation: "y", DiskGUID: disk})
	candidate := on(audit.KindInstall, audit.Install{DiskGUID: otherDisk, Serial: "SN-1", Candidate: true})
	moved := release(3, func(d *audit.Release) { d.DiskGUID, d.NewDiskKey = otherDisk, true })
	first := on(audit.KindReport, audit.Reattestation{Result: &attest.Result{Allowed: true}, Volume: map[string][]byte{"sha256": {7}}})
	old := on(audit.KindReport, audit.Reattestation{Result: &attest.Result{Allowed: true}})
	for name, tt := range map[string]struct {
		entries  []audit.Event
		missing  string // What begins with
		mend     string // and Mend holds
		complete bool
		start    bool // must start anew
	}{
		"nothing":                               {nil, "", "", true, false},
		"a release":                             {[]audit.Event{release(2, nil)}, "", "", true, true},
		"that a disk key was to change":         {[]audit.Event{asked}, "that its disk key was to change", "rotate-key " + id.String(), true, false},
		"a next disk key":                       {[]audit.Event{asked, given}, "its next disk key", "rotate-key " + id.String(), false, true},
		"a disk key that was changed":           {[]audit.Event{asked, given, changed}, "its disk key", "reinstate " + id.String(), true, false},
		"a next key of a disk that it left":     {[]audit.Event{asked, given, candidate, moved}, "its disk key", "reinstate " + id.String(), true, false},
		"a first report":                        {[]audit.Event{first}, "", "", true, false},
		"a first report, by an earlier version": {[]audit.Event{old}, "", "", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			m, boot := base, *base.Boot
			m.Boot = &boot
			got := recovers(t, []server.Record{{Machine: &m}}, tt.entries...)
			if (len(got.missing) > 0) != (tt.missing != "") || len(got.missing) > 1 {
				t.Fatalf("missing is %+v", got.missing)
			}
			for _, x := range got.missing {
				if !strings.HasPrefix(x.What, tt.missing) || !strings.Contains(x.Mend, tt.mend) || x.Machine != id || x.NodeName != "box-1" || x.Serial != "SN-1" {
					t.Errorf("missing is %+v", x)
				}
			}
			if got.restore.Complete != tt.complete {
				t.Errorf("complete is %t", got.restore.Complete)
			}
			if (len(got.mustStart) > 0) != tt.start {
				t.Errorf("must start anew: %+v", got.mustStart)
			}
			is := got.machines[id].Boot
			if known := len(tt.entries) == 0 || name == "a first report" || name == "that a disk key was to change"; (is != nil) != known {
				t.Errorf("its boot is %+v", is)
			}
			if name == "a first report" && is.Volume["sha256"][0] != 7 {
				t.Errorf("PCR 15 is %v", is.Volume)
			}
		})
	}
}

// A disk that comes back has the key that it had, and gets no other one.
func TestAKeyLostBeforeADiskCameBackIsLost(t *testing.T) {
	id := attest.MachineID{1}
	on := func(kind audit.Kind, data any) audit.Event { return audit.Event{Kind: kind, Machine: id, Data: data} }
	installed := func(guid string) audit.Event {
		return on(audit.KindInstall, audit.Install{DiskGUID: guid, Candidate: true})
	}
	released := func(id, guid string, made bool) audit.Event {
		return on(audit.KindRelease, audit.Release{ID: id, NodeName: "box-1", DiskGUID: guid, NewDiskKey: made})
	}
	got := recovers(t, nil,
		on(audit.KindInstall, audit.Install{DiskGUID: disk}), on(audit.KindState, audit.StateChange{To: attest.StateEnrolled, Identity: &audit.Identity{NodeName: "box-1"}}),
		released("a", disk, true), installed(otherDisk), released("b", otherDisk, true), installed(disk), released("c", disk, false))
	if m := got.machines[id]; m.State != attest.StateQuarantined || len(got.missing) != 1 {
		t.Errorf("%s, missing %+v", m.State, got.missing)
	}
}

// An installer may have cleared the TPM, after which its clock starts anew and its
// attestation key may be another.
func TestAReinstallAfterTheBackupIsNotHeldAgainstTheOldTPM(t *testing.T) {
	id := attest.MachineID{1}
	for name, tt := range map[string]struct {
		guid       string
		generation int64
		kept       bool
	}{"reinstalled": {otherDisk, 2, false}, "started": {disk, 1, true}} {
		got := recovers(t, []server.Record{{Machine: &server.Machine{
			Machine: api.Machine{ID: id, NodeName: "box-1", State: attest.StateEnrolled, DiskGUID: disk, Next: &api.Candidate{DiskGUID: otherDisk}},
			DiskKey: &server.SealedKey{}, AKName: []byte("ak"), Clock: 5000, TPMFirmware: 7, Released: true, ResetCount: 8, Generation: 1,
		}}}, audit.Event{Kind: audit.KindRelease, Machine: id, Data: audit.Release{ID: "r", NodeName: "box-1", DiskGUID: tt.guid, ResetCount: 9, Generation: tt.generation}})
		m := got.machines[id]
		if kept := m.AKName != nil && m.Clock == 5000 && m.TPMFirmware == 7; kept != tt.kept || m.Generation != tt.generation || !m.Released || m.ResetCount != 9 {
			t.Errorf("%s: got %+v", name, m)
		}
	}
}
