package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// epoch is when these tests happen.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Subject is an implementation of server.Store as Run needs it.
type Subject struct {
	// Open gives an empty Store.
	Open func(*testing.T) server.Store
	// Replica gives another Store over the state of s, as a second process
	// would have it. Optional; nil if there can be only one.
	Replica func(t *testing.T, s server.Store) server.Store
	// Reopen gives a Store as it is after the process that used s was killed.
	// Optional; nil if nothing is left then.
	Reopen func(t *testing.T, s server.Store) server.Store
}

// Run runs the contract of server.Store, server.Pruner and server.Teller: on one Store, and on several replicas
// of one that take turns, so that what one writes another reads.
func Run(t *testing.T, sub Subject) {
	tests := map[string]func(*testing.T, server.Store){
		"a machine is found as it was stored":            machineRoundTrip,
		"a stale revision changes nothing":               staleRevision,
		"node names and disks are unique":                uniqueNames,
		"machines are found by each field":               query,
		"one release per boot and install":               releaseOnce,
		"of concurrent releases one wins":                releaseRace,
		"a release is confirmed once":                    confirmOnce,
		"of concurrent confirmations one wins":           confirmRace,
		"a change is written as a whole or not at all":   allOrNothing,
		"evidence is found by its digest":                evidence,
		"documents are compared and swapped":             documents,
		"concurrent edits of documents lose no change":   documentRace,
		"the audit log is one chain":                     auditChain,
		"concurrent commits leave one chain":             auditRace,
		"records are copies":                             copies,
		"concurrent edits of one machine lose no change": casRace,
		"of two machines one gets the name":              nameRace,
		"refused changes take none along":                mixedRace,
		"strange names are names":                        strangeNames,
		"a caller that went away writes nothing":         goneCaller,
	}
	for name, test := range pruneTests {
		tests[name] = func(t *testing.T, s server.Store) { test(t, s.(server.Pruner)) }
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, sub.Open(t)) })
	}
	if sub.Replica != nil {
		for name, test := range tests {
			t.Run("on replicas: "+name, func(t *testing.T) {
				s := sub.Open(t)
				test(t, &replicas{all: []server.Store{s, sub.Replica(t, s), sub.Replica(t, s)}})
			})
		}
	}
	runTeller(t, sub)
	runArchive(t, func(t *testing.T) server.Archive {
		s, ok := sub.Open(t).(server.Archive)
		if !ok {
			t.Skip("the store is no server.Archive")
		}
		return s
	})
	if sub.Reopen != nil {
		t.Run("everything written is there after a kill", func(t *testing.T) { durable(t, sub.Open(t), sub.Reopen) })
	}
}

func documents(t *testing.T, s server.Store) {
	_, err := s.Document(t.Context(), "campaign", "bios")
	wantErr(t, err, server.ErrNotFound)
	put := func(kind, name string, revision int64, body string) error {
		return s.Commit(t.Context(), &server.Change{
			Documents: []*server.Document{{Kind: kind, Name: name, Revision: revision, Body: json.RawMessage(body)}},
			Events:    []audit.Event{verdict(attest.MachineID{}, body)},
		})
	}
	wantErr(t, put("campaign", "bios", 0, `{"a":1}`), nil)
	for _, stale := range []int64{0, 2, -1} {
		wantErr(t, put("campaign", "bios", stale, `{"a":2}`), server.ErrConflict)
	}
	wantErr(t, put("campaign", "aged", 1, `{}`), server.ErrConflict)
	if n := count(t, s); n != 1 {
		t.Errorf("%d audit entries, want 1: a refused change logs nothing", n)
	}
	wantErr(t, put("campaign", "bios", 1, `{ "a": 3 }`), nil)
	wantErr(t, put("campaign", "aged", 0, `{}`), nil)
	wantErr(t, put("policy", "bios", 0, `{}`), nil)
	d, err := s.Document(t.Context(), "campaign", "bios")
	if err != nil || d.Kind != "campaign" || d.Name != "bios" || d.Revision != 2 || string(d.Body) != `{ "a": 3 }` {
		t.Errorf("got %+v, %v", d, err)
	}
	// Two in one change: both or none.
	wantErr(t, s.Commit(t.Context(), &server.Change{Documents: []*server.Document{
		{Kind: "policy", Name: "new", Body: json.RawMessage(`{}`)}, {Kind: "policy", Name: "bios", Body: json.RawMessage(`{}`)},
	}}), server.ErrConflict)
	_, err = s.Document(t.Context(), "policy", "new")
	wantErr(t, err, server.ErrNotFound)
	all, err := s.Documents(t.Context(), "campaign", "", 0)
	if err != nil || len(all) != 2 || all[0].Name != "aged" || all[1].Name != "bios" || all[1].Revision != 2 {
		t.Errorf("got %d documents, %v", len(all), err)
	}
	if all, err := s.Documents(t.Context(), "none", "", 0); err != nil || len(all) != 0 {
		t.Errorf("got %d documents, %v", len(all), err)
	}
}

func machine(name string) *server.Machine {
	return &server.Machine{Machine: api.Machine{
		ID: attest.MachineIDOf([]byte(name)), State: attest.StateEnrolled, NodeName: "box-" + name, DiskGUID: "disk-" + name,
	}}
}

func verdict(id attest.MachineID, text string) audit.Event {
	return audit.Event{Time: epoch, Kind: audit.KindConfirm, Machine: id, Data: audit.Confirm{ReleaseID: text, Outcome: "x"}}
}

func commit(t *testing.T, s server.Store, c *server.Change) {
	t.Helper()
	if err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("got error %v, want %v", got, want)
	}
}

func machineRoundTrip(t *testing.T, s server.Store) {
	m := machine("a")
	_, err := s.Machine(t.Context(), m.ID)
	wantErr(t, err, server.ErrNotFound)
	m.Reason, m.Serial, m.Installed, m.LastSeen = "r", "s", epoch, epoch.Add(time.Hour)
	m.LastAllowed, m.Joined, m.StateMade, m.Released = true, true, true, true
	m.Firmware = attest.Firmware{Verdict: attest.FirmwareMeasured, Version: "v", Digests: []manifest.SHA256{{1}}}
	m.Image, m.AKName, m.Generation = "i", []byte{1, 2}, 3
	m.ResetCount, m.RestartCount, m.Clock, m.TPMFirmware = 1<<32-1, 2, 1<<64-1, 1<<63
	m.DiskKey, m.TokenID = &server.SealedKey{KEK: "k", Box: []byte{9}}, "abcdef"
	commit(t, s, &server.Change{Machine: m})
	got, err := s.Machine(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.Revision != 1 {
		t.Errorf("got revision %d, want 1", got.Revision)
	}
	a, _ := json.Marshal(m)
	b, _ := json.Marshal(got)
	if !bytes.Equal(a, b) {
		t.Errorf("got  %s\nwant %s", b, a)
	}
	got.Reason = "again"
	commit(t, s, &server.Change{Machine: got})
	if got, err = s.Machine(t.Context(), m.ID); err != nil || got.Revision != 2 || got.Reason != "again" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func staleRevision(t *testing.T, s server.Store) {
	m := machine("a")
	commit(t, s, &server.Change{Machine: m})
	for _, revision := range []int64{0, 2, -1} {
		m.Revision, m.Reason = revision, "stale"
		wantErr(t, s.Commit(t.Context(), &server.Change{Machine: m, Evidence: []byte("e"), Events: []audit.Event{verdict(m.ID, "1")}}), server.ErrConflict)
	}
	other := machine("b")
	other.Revision = 1
	wantErr(t, s.Commit(t.Context(), &server.Change{Machine: other}), server.ErrConflict)
	if got, err := s.Machine(t.Context(), m.ID); err != nil || got.Reason != "" {
		t.Errorf("got %+v, %v", got, err)
	}
	if n := count(t, s); n != 0 {
		t.Errorf("%d audit entries of refused changes", n)
	}
}

func uniqueNames(t *testing.T, s server.Store) {
	commit(t, s, &server.Change{Machine: machine("a")})
	sameNode := machine("b")
	sameNode.NodeName = "box-a"
	wantErr(t, s.Commit(t.Context(), &server.Change{Machine: sameNode}), server.ErrConflict)
	sameDisk := machine("b")
	sameDisk.DiskGUID = "disk-a"
	wantErr(t, s.Commit(t.Context(), &server.Change{Machine: sameDisk}), server.ErrConflict)
	for _, name := range []string{"b", "c"} {
		m := machine(name)
		m.DiskGUID = ""
		commit(t, s, &server.Change{Machine: m}) // no disk is not a disk that two share
	}
}

func query(t *testing.T, s server.Store) {
	var all []*server.Machine
	for i, name := range []string{"a", "b", "c", "d"} {
		m := machine(name)
		if i%2 == 1 {
			m.State = attest.StatePending
		}
		commit(t, s, &server.Change{Machine: m})
		all = append(all, m)
	}
	ids := func(q server.Query) []attest.MachineID {
		ms, err := s.Machines(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		var out []attest.MachineID
		for i, m := range ms {
			if i > 0 && m.ID.String() <= ms[i-1].ID.String() {
				t.Errorf("%+v: not in the order of ids", q)
			}
			if m.Revision != 1 {
				t.Errorf("%+v: revision %d, want 1", q, m.Revision)
			}
			out = append(out, m.ID)
		}
		return out
	}
	every := ids(server.Query{})
	if len(every) != 4 {
		t.Fatalf("got %d machines, want 4", len(every))
	}
	if got := ids(server.Query{State: attest.StatePending}); len(got) != 2 {
		t.Errorf("pending: got %v", got)
	}
	if got := ids(server.Query{DiskGUID: "disk-c"}); len(got) != 1 || got[0] != all[2].ID {
		t.Errorf("by disk: got %v", got)
	}
	if got := ids(server.Query{NodeName: "box-b", State: attest.StateEnrolled}); len(got) != 0 {
		t.Errorf("fields that do not all match: got %v", got)
	}
	if got := ids(server.Query{After: every[1], Limit: 1}); len(got) != 1 || got[0] != every[2] {
		t.Errorf("page: got %v, want %v", got, every[2])
	}
}

// race runs f n times at once and returns how many calls gave no error. Any
// error but want fails the test.
func race(t *testing.T, n int, want error, f func(i int) error) int {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, want) {
			t.Errorf("got error %v, want %v", err, want)
		}
	}
	return won
}

func release(id string, m *server.Machine, reset uint32) *server.Release {
	return &server.Release{
		ID: id, Machine: m.ID, Generation: m.Generation, ResetCount: reset, Issued: epoch,
		Transport: &server.SealedKey{KEK: "k", Box: []byte(id)},
	}
}

func releaseOnce(t *testing.T, s server.Store) {
	m := machine("a")
	r := release("r1", m, 1)
	commit(t, s, &server.Change{Release: r})
	got, err := s.Release(t.Context(), "r1")
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(r)
	b, _ := json.Marshal(got)
	if !bytes.Equal(a, b) {
		t.Errorf("got %s, want %s", b, a)
	}
	wantErr(t, s.Commit(t.Context(), &server.Change{Release: release("r2", m, 1)}), server.ErrReleased)
	wantErr(t, s.Commit(t.Context(), &server.Change{Release: release("r1", m, 2)}), server.ErrReleased)
	_, err = s.Release(t.Context(), "r2")
	wantErr(t, err, server.ErrNotFound)
	commit(t, s, &server.Change{Release: release("r3", m, 2)})
	restart := release("r4", m, 2)
	restart.RestartCount = 1
	commit(t, s, &server.Change{Release: restart})
	again := release("r5", m, 1)
	again.Generation = 1
	commit(t, s, &server.Change{Release: again})
	commit(t, s, &server.Change{Release: release("r6", machine("b"), 1)})
}

func releaseRace(t *testing.T, s server.Store) {
	m := machine("a")
	commit(t, s, &server.Change{Machine: m})
	won := race(t, 8, server.ErrReleased, func(i int) error {
		return s.Commit(t.Context(), &server.Change{Release: release(fmt.Sprintf("r%d", i), m, 7), Events: []audit.Event{verdict(m.ID, "r")}})
	})
	if n := count(t, s); won != 1 || n != 1 {
		t.Errorf("%d releases and %d audit entries for one boot", won, n)
	}
}

func confirmOnce(t *testing.T, s server.Store) {
	m := machine("a")
	commit(t, s, &server.Change{Release: release("r1", m, 1)})
	done := release("r1", m, 1)
	done.Transport, done.Outcome, done.Confirmed = nil, "unlocked", epoch
	commit(t, s, &server.Change{Confirm: done})
	got, err := s.Release(t.Context(), "r1")
	if err != nil || got.Outcome != "unlocked" || got.Transport != nil || !got.Confirmed.Equal(epoch) {
		t.Errorf("got %+v, %v", got, err)
	}
	wantErr(t, s.Commit(t.Context(), &server.Change{Confirm: done}), server.ErrConflict)
	never := release("never", m, 1)
	never.Outcome = "unlocked"
	wantErr(t, s.Commit(t.Context(), &server.Change{Confirm: never}), server.ErrConflict)
}

func allOrNothing(t *testing.T, s server.Store) {
	a, b := machine("a"), machine("b")
	commit(t, s, &server.Change{Release: release("r1", a, 1)})
	blob := []byte("evidence")
	bad := map[string]*server.Change{
		"release taken":   {Release: release("r2", a, 1)},
		"confirm unknown": {Confirm: release("none", a, 9)},
		"event too large": {Events: []audit.Event{{Time: epoch, Kind: audit.KindConfirm, Data: audit.Confirm{Outcome: string(make([]byte, audit.MaxData))}}}},
		"event no object": {Events: []audit.Event{verdict(a.ID, "x"), {Time: epoch, Kind: audit.KindConfirm, Data: "no object"}}},
	}
	for name, c := range bad {
		c.Machine, c.Evidence, c.Events = b, blob, append([]audit.Event{verdict(b.ID, "y")}, c.Events...)
		if err := s.Commit(t.Context(), c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	_, err := s.Machine(t.Context(), b.ID)
	wantErr(t, err, server.ErrNotFound)
	_, err = s.Evidence(t.Context(), sha256.Sum256(blob))
	wantErr(t, err, server.ErrNotFound)
	if n := count(t, s); n != 0 {
		t.Errorf("%d audit entries of refused changes", n)
	}
}

func evidence(t *testing.T, s server.Store) {
	blob := bytes.Repeat([]byte("evidence"), 10_000)
	for range 2 {
		commit(t, s, &server.Change{Evidence: blob})
	}
	got, err := s.Evidence(t.Context(), sha256.Sum256(blob))
	if err != nil || !bytes.Equal(got, blob) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// count verifies the whole log and returns the number of its entries.
func count(t *testing.T, s server.Store) int64 {
	t.Helper()
	var v audit.Verifier
	var n int64
	for e, err := range s.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Add(e); err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

func auditChain(t *testing.T, s server.Store) {
	if n := count(t, s); n != 0 {
		t.Fatalf("an empty store has %d entries", n)
	}
	a := machine("a")
	for i := range 5 {
		commit(t, s, &server.Change{Events: []audit.Event{verdict(a.ID, fmt.Sprint(i, "a")), verdict(attest.MachineID{}, fmt.Sprint(i, "b"))}})
	}
	if n := count(t, s); n != 10 {
		t.Errorf("got %d entries, want 10", n)
	}
	var seqs []int64
	for e, err := range s.Audit(t.Context(), 4) {
		if err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, e.Seq)
		if len(seqs) == 3 {
			break
		}
	}
	if fmt.Sprint(seqs) != "[4 5 6]" {
		t.Errorf("from 4: got %v", seqs)
	}
	commit(t, s, &server.Change{Events: []audit.Event{verdict(a.ID, "after a reader that stopped early")}})
}

func auditRace(t *testing.T, s server.Store) {
	a := machine("a")
	won := race(t, 16, nil, func(i int) error {
		return s.Commit(t.Context(), &server.Change{Events: []audit.Event{verdict(a.ID, fmt.Sprint(i)), verdict(a.ID, "second")}})
	})
	if n := count(t, s); won != 16 || n != 32 {
		t.Errorf("%d commits, %d entries; want 16 and 32", won, n)
	}
}

func copies(t *testing.T, s server.Store) {
	m := machine("a")
	m.AKName = []byte{1}
	commit(t, s, &server.Change{Machine: m})
	m.AKName[0] = 9
	got, err := s.Machine(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.AKName[0] != 1 {
		t.Error("the store shares memory with who wrote")
	}
	got.AKName[0] = 9
	if got, err = s.Machine(t.Context(), m.ID); err != nil || got.AKName[0] != 1 {
		t.Errorf("the store shares memory with who read: %v", err)
	}
}

// documentRace counts in two documents at once, which are always changed
// together and in one order or the other.
func documentRace(t *testing.T, s server.Store) {
	names := []string{"left", "right"}
	for _, name := range names {
		commit(t, s, &server.Change{Documents: []*server.Document{{Kind: "n", Name: name, Body: json.RawMessage("0")}}})
	}
	won := race(t, 8, nil, func(i int) error {
		for {
			var both []*server.Document
			for j := range names {
				d, err := s.Document(t.Context(), "n", names[(i+j)%2])
				if err != nil {
					return err
				}
				var n int
				if err := json.Unmarshal(d.Body, &n); err != nil {
					return err
				}
				d.Body = json.RawMessage(fmt.Sprint(n + 1))
				both = append(both, d)
			}
			err := s.Commit(t.Context(), &server.Change{Documents: both, Events: []audit.Event{verdict(attest.MachineID{}, "n")}})
			if !errors.Is(err, server.ErrConflict) {
				return err
			}
		}
	})
	all, err := s.Documents(t.Context(), "n", "", 0)
	if err != nil || won != 8 || len(all) != 2 || string(all[0].Body) != "8" || string(all[1].Body) != "8" || all[0].Revision != 9 {
		t.Errorf("%d edits gave %+v, %v", won, all, err)
	}
	if n := count(t, s); n != 8 {
		t.Errorf("%d audit entries, want 8", n)
	}
}

func confirmRace(t *testing.T, s server.Store) {
	m := machine("a")
	commit(t, s, &server.Change{Release: release("r1", m, 1)})
	won := race(t, 8, server.ErrConflict, func(i int) error {
		done := release("r1", m, 1)
		done.Transport, done.Outcome, done.Confirmed = nil, fmt.Sprint("outcome ", i), epoch
		return s.Commit(t.Context(), &server.Change{Confirm: done, Events: []audit.Event{verdict(m.ID, "c")}})
	})
	if n := count(t, s); won != 1 || n != 1 {
		t.Errorf("%d confirmations and %d audit entries of one release", won, n)
	}
}

// nameRace has machines that are on record take one name and one disk.
func nameRace(t *testing.T, s server.Store) {
	for i := range 8 {
		commit(t, s, &server.Change{Machine: machine(fmt.Sprint(i))})
	}
	for what, set := range map[string]func(*server.Machine){
		"node name": func(m *server.Machine) { m.NodeName = "wanted" },
		"disk":      func(m *server.Machine) { m.DiskGUID = "wanted" },
	} {
		won := race(t, 8, server.ErrConflict, func(i int) error {
			m, err := s.Machine(t.Context(), machine(fmt.Sprint(i)).ID)
			if err != nil {
				return err
			}
			set(m)
			return s.Commit(t.Context(), &server.Change{Machine: m, Events: []audit.Event{verdict(m.ID, what)}})
		})
		if won != 1 {
			t.Errorf("%d machines got one %s", won, what)
		}
	}
	if n := count(t, s); n != 2 {
		t.Errorf("%d audit entries, want 2", n)
	}
}

// mixedRace writes what must be refused beside what must not.
func mixedRace(t *testing.T, s server.Store) {
	taken := machine("taken")
	commit(t, s, &server.Change{Machine: taken, Release: release("taken", taken, 1)})
	var good, conflicts, released, failed sync.Map
	race(t, 40, nil, func(i int) error {
		m := machine(fmt.Sprint("new", i))
		c := &server.Change{
			Machine: m, Release: release(fmt.Sprint("r", i), m, 1), Evidence: []byte(m.NodeName),
			Events: []audit.Event{verdict(m.ID, m.NodeName)},
		}
		switch i % 4 {
		case 1:
			m.NodeName = taken.NodeName
		case 2:
			c.Release = release(fmt.Sprint("r", i), taken, 1)
		case 3:
			c.Events = append(c.Events, audit.Event{Time: epoch, Kind: audit.KindConfirm, Data: "no object"})
		}
		err := s.Commit(t.Context(), c)
		switch {
		case err == nil:
			good.Store(m.NodeName, c)
		case errors.Is(err, server.ErrConflict):
			conflicts.Store(i, c)
		case errors.Is(err, server.ErrReleased):
			released.Store(i, c)
		default:
			failed.Store(i, c)
		}
		return nil
	})
	for name, m := range map[string]*sync.Map{"written": &good, "conflicts": &conflicts, "released": &released, "failed": &failed} {
		n := 0
		m.Range(func(_, v any) bool {
			n++
			c := v.(*server.Change)
			_, err := s.Machine(t.Context(), c.Machine.ID)
			if (err == nil) != (m == &good) {
				t.Errorf("%s: machine %s: %v", name, c.Machine.NodeName, err)
			}
			_, err = s.Evidence(t.Context(), sha256.Sum256(c.Evidence))
			if (err == nil) != (m == &good) {
				t.Errorf("%s: evidence of %s: %v", name, c.Machine.NodeName, err)
			}
			return true
		})
		if n != 10 {
			t.Errorf("%d %s, want 10", n, name)
		}
	}
	if n := count(t, s); n != 10 {
		t.Errorf("%d audit entries, want 10", n)
	}
}

// strangeNames looks for what peers may ask for: any bytes.
func strangeNames(t *testing.T, s server.Store) {
	for _, id := range []string{"", "\x00", "a\x00b", "\xff\xfe", "'; DROP TABLE machine; --", "%", "\\x00"} {
		_, err := s.Release(t.Context(), id)
		wantErr(t, err, server.ErrNotFound)
		_, err = s.Document(t.Context(), id, id)
		wantErr(t, err, server.ErrNotFound)
		if id == "" {
			continue // matches all
		}
		ms, err := s.Machines(t.Context(), server.Query{NodeName: id, DiskGUID: id, State: attest.EnrolmentState(id)})
		if err != nil || len(ms) != 0 {
			t.Errorf("%q: got %d machines, %v", id, len(ms), err)
		}
	}
}

func goneCaller(t *testing.T, s server.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := s.(*Memory); ok {
		t.Skip("Memory has nobody to wait for")
	}
	m := machine("a")
	wantErr(t, s.Commit(ctx, &server.Change{Machine: m}), context.Canceled)
	_, err := s.Machine(t.Context(), m.ID)
	wantErr(t, err, server.ErrNotFound)
}

func casRace(t *testing.T, s server.Store) {
	m := machine("a")
	commit(t, s, &server.Change{Machine: m})
	won := race(t, 8, nil, func(int) error {
		for {
			m, err := s.Machine(t.Context(), m.ID)
			if err != nil {
				return err
			}
			m.Clock++
			err = s.Commit(t.Context(), &server.Change{Machine: m})
			if !errors.Is(err, server.ErrConflict) {
				return err
			}
		}
	})
	got, err := s.Machine(t.Context(), m.ID)
	if err != nil || won != 8 || got.Clock != 8 || got.Revision != 9 {
		t.Errorf("%d edits gave %+v, %v", won, got, err)
	}
}

func durable(t *testing.T, s server.Store, reopen func(*testing.T, server.Store) server.Store) {
	m := machine("a")
	blob := []byte("evidence")
	commit(t, s, &server.Change{Machine: m, Release: release("r1", m, 1), Evidence: blob, Events: []audit.Event{verdict(m.ID, "1")}})
	s = reopen(t, s)
	if _, err := s.Machine(t.Context(), m.ID); err != nil {
		t.Error(err)
	}
	if _, err := s.Release(t.Context(), "r1"); err != nil {
		t.Error(err)
	}
	wantErr(t, s.Commit(t.Context(), &server.Change{Release: release("r2", m, 1)}), server.ErrReleased)
	if _, err := s.Evidence(t.Context(), sha256.Sum256(blob)); err != nil {
		t.Error(err)
	}
	commit(t, s, &server.Change{Events: []audit.Event{verdict(m.ID, "2")}})
	if n := count(t, s); n != 2 {
		t.Errorf("got %d audit entries, want 2", n)
	}
}
