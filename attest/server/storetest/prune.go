package storetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// pruneTests are the contract of server.Pruner.
var pruneTests = map[string]func(*testing.T, server.Pruner){
	"old evidence that nothing needs is pruned":             pruneOld,
	"evidence that is needed meanwhile stays":               pruneNeeded,
	"evidence of a release without an outcome goes in time": pruneUnconfirmed,
	"evidence that was pruned can be stored again":          pruneAgain,
	"what evidence shares stays as long as it is shared":    pruneShared,
	"evidence is whole while others prune":                  pruneRace,
	"what a machine's record names is never pruned":         pruneNamed,
	"a run of prune ends, and says what it did":             pruneRun,
	"a store says what it holds":                            usage,
	"machines are found by when something is due":           due,
	"documents are read in pages":                           documentPages,
	"a dump while others prune is of one moment":            dumpPrune,
	"evidence that does not say when it is from is not old": pruneUnknown,
}

// evidenceOf makes stored evidence.
func evidenceOf(m *server.Machine, received time.Time, log []byte) []byte {
	b, err := json.Marshal(&api.StoredEvidence{
		Version: api.Version, Received: received, Address: "10.0.0.1", Machine: m.ID, Evidence: attest.Evidence{EventLog: log},
	})
	if err != nil {
		panic("storetest: BUG: " + err.Error())
	}
	return b
}

// eventLog is one that all of a model have, but for its end.
func eventLog(model, end int) []byte {
	var b []byte
	for i := range 400 {
		d := sha256.Sum256(fmt.Appendf(nil, "%d %d", model, i))
		b = append(b, d[:]...)
	}
	return fmt.Appendf(b, "%d", end)
}

func digest(b []byte) manifest.SHA256 { return sha256.Sum256(b) }

func pruneEntry(refs []server.EvidenceRef) audit.Event {
	d := audit.Prune{By: "ops", Before: epoch}
	for _, r := range refs {
		d.Evidence = append(d.Evidence, r.Digest)
	}
	return audit.Event{Time: epoch, Kind: audit.KindPrune, Data: d}
}

// oldOf reads all pages of old evidence.
func oldOf(t *testing.T, s server.Pruner, before time.Time, limit int) (all []server.EvidenceRef) {
	t.Helper()
	for after := (*server.EvidenceRef)(nil); ; after = &all[len(all)-1] {
		page, err := s.OldEvidence(t.Context(), before, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page...)
		if len(page) < limit {
			return all
		}
	}
}

func wantPruned(t *testing.T, s server.Store, b []byte, entry int64) {
	t.Helper()
	_, err := s.Evidence(t.Context(), digest(b))
	var gone *server.PrunedError
	if !errors.As(err, &gone) || !errors.Is(err, server.ErrNotFound) || gone.Digest != digest(b) || gone.Entry != entry {
		t.Errorf("got %v, want it pruned by entry %d", err, entry)
		return
	}
	if id, received, ok := server.EvidenceAbout(b); !ok || gone.Machine != id || !gone.Received.Equal(received) {
		t.Errorf("got %+v, want machine %s and %s", gone, id, received)
	}
}

func wantThere(t *testing.T, s server.Store, b []byte) {
	t.Helper()
	if got, err := s.Evidence(t.Context(), digest(b)); err != nil || !bytes.Equal(got, b) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

func pruneOld(t *testing.T, s server.Pruner) {
	at := func(hours int) time.Time { return epoch.Add(time.Duration(hours)*time.Hour + 123456789) }
	a, quarantined, pending, revoked := machine("a"), machine("q"), machine("p"), machine("r")
	quarantined.State, pending.State, revoked.State = attest.StateQuarantined, attest.StatePending, attest.StateRevoked
	type piece struct {
		body   []byte
		needed api.Need
	}
	pieces := []piece{
		{evidenceOf(a, at(1), nil), ""},
		{evidenceOf(a, at(2), nil), api.NeedRelease},
		{evidenceOf(a, at(3), nil), ""}, // its release is confirmed
		{evidenceOf(a, at(4), nil), api.NeedLast},
		{evidenceOf(a, at(5), nil), api.NeedLast},
		{evidenceOf(quarantined, at(6), nil), api.NeedState},
		{evidenceOf(pending, at(7), nil), api.NeedState},
		{evidenceOf(revoked, at(8), nil), ""},
		{evidenceOf(machine("nobody"), at(9), nil), ""},
	}
	a.AcceptedEvidence, a.LastEvidence = digest(pieces[3].body), digest(pieces[4].body)
	for _, m := range []*server.Machine{a, quarantined, pending, revoked} {
		commit(t, s, &server.Change{Machine: m})
	}
	for i, at := range map[uint32]time.Time{2: at(2), 3: at(3)} {
		r := release(fmt.Sprint("r", i), a, i)
		r.Issued = at
		commit(t, s, &server.Change{Release: r})
		if i == 3 {
			r.Outcome = "unlocked"
			commit(t, s, &server.Change{Confirm: r})
		}
	}
	young := evidenceOf(a, at(20), nil)
	commit(t, s, &server.Change{Evidence: young})
	for _, i := range []int{4, 2, 8, 0, 6, 1, 7, 3, 5} {
		commit(t, s, &server.Change{Evidence: pieces[i].body})
	}
	for _, limit := range []int{1, 4, 100} {
		all := oldOf(t, s, at(20), limit)
		if len(all) != len(pieces) {
			t.Fatalf("%d old pieces, want %d", len(all), len(pieces))
		}
		for i, ref := range all {
			id, received, _ := server.EvidenceAbout(pieces[i].body)
			if ref.Digest != digest(pieces[i].body) || ref.Machine != id || !ref.Received.Equal(received) || ref.Needed != pieces[i].needed || ref.Size <= 0 {
				t.Errorf("piece %d is %+v, needed by %q", i, ref, pieces[i].needed)
			}
		}
	}
	gone, err := s.Prune(t.Context(), oldOf(t, s, at(20), 100), pruneEntry)
	if err != nil || len(gone) != 4 {
		t.Fatalf("%d pruned, %v; want 4", len(gone), err)
	}
	if n := count(t, s); n != 1 {
		t.Errorf("%d audit entries, want 1", n)
	}
	for _, p := range pieces {
		if p.needed == "" {
			wantPruned(t, s, p.body, 1)
		} else {
			wantThere(t, s, p.body)
		}
	}
	wantThere(t, s, young)
	for e, err := range s.Audit(t.Context(), 1) {
		var d audit.Prune
		if err == nil {
			err = json.Unmarshal(e.Data, &d)
		}
		if err != nil || e.Kind != audit.KindPrune || len(d.Evidence) != 4 || !slices.Contains(d.Evidence, digest(pieces[7].body)) {
			t.Errorf("entry %s of %v, %v", e.Kind, d.Evidence, err)
		}
	}
	// Once more finds nothing, and says nothing.
	if again, err := s.Prune(t.Context(), gone, pruneEntry); err != nil || len(again) != 0 {
		t.Errorf("pruned %d again, %v", len(again), err)
	}
	if n := count(t, s); n != 1 {
		t.Errorf("%d audit entries, want 1", n)
	}
	if all := oldOf(t, s, at(20), 3); len(all) != 5 {
		t.Errorf("%d old pieces are left, want 5", len(all))
	}
}

// pruneUnconfirmed has releases that nobody ever confirms: evidence of each is
// kept for a year of the machine's life, and as long as it is the last.
func pruneUnconfirmed(t *testing.T, s server.Pruner) {
	for name, c := range map[string]struct {
		last string // release of the machine
		seen time.Duration
		want api.Need
	}{
		"another release, and heard of a year later": {"other", 365 * 24 * time.Hour, ""},
		"another release, and heard of a day less":   {"other", 364 * 24 * time.Hour, api.NeedRelease},
		"its last release":                           {"r", 9000 * time.Hour, api.NeedRelease},
		"never heard of again":                       {"other", 0, api.NeedRelease},
	} {
		m := machine(name)
		id := "r " + name
		m.ReleaseID, m.LastSeen = c.last, epoch.Add(c.seen)
		if c.last == "r" {
			m.ReleaseID = id
		}
		body := evidenceOf(m, epoch, nil)
		r := release(id, m, 1)
		r.Issued = epoch
		commit(t, s, &server.Change{Machine: m, Release: r, Evidence: body})
		all := oldOf(t, s, epoch.Add(1), 10)
		i := slices.IndexFunc(all, func(r server.EvidenceRef) bool { return r.Digest == digest(body) })
		if i < 0 || all[i].Needed != c.want {
			t.Errorf("%s: needed by %+v, want %q", name, all, c.want)
			continue
		}
		gone, err := s.Prune(t.Context(), all[i:i+1], pruneEntry)
		if err != nil || (len(gone) == 1) != (c.want == "") {
			t.Errorf("%s: %d pruned, %v", name, len(gone), err)
		}
	}
}

// pruneNeeded has evidence become needed between the look and the deed.
func pruneNeeded(t *testing.T, s server.Pruner) {
	a, b := machine("a"), machine("b")
	first, second := evidenceOf(a, epoch, nil), evidenceOf(b, epoch, nil)
	commit(t, s, &server.Change{Machine: a, Evidence: first})
	commit(t, s, &server.Change{Machine: b, Evidence: second})
	refs := oldOf(t, s, epoch.Add(time.Hour), 10)
	a.Revision, a.State = 1, attest.StateQuarantined
	commit(t, s, &server.Change{Machine: a})
	r := release("r", b, 1)
	r.Issued = epoch
	commit(t, s, &server.Change{Release: r})
	if gone, err := s.Prune(t.Context(), refs, pruneEntry); len(refs) != 2 || err != nil || len(gone) != 0 {
		t.Errorf("%d of %d pruned, %v", len(gone), len(refs), err)
	}
	wantThere(t, s, first)
	wantThere(t, s, second)
	if n := count(t, s); n != 0 {
		t.Errorf("%d audit entries, want none", n)
	}
}

func pruneAgain(t *testing.T, s server.Pruner) {
	body := evidenceOf(machine("a"), epoch, eventLog(1, 1))
	for i := range int64(2) {
		commit(t, s, &server.Change{Evidence: body})
		wantThere(t, s, body)
		if gone, err := s.Prune(t.Context(), oldOf(t, s, epoch.Add(1), 10), pruneEntry); err != nil || len(gone) != 1 {
			t.Fatalf("%d pruned, %v", len(gone), err)
		}
		wantPruned(t, s, body, i+1)
		compact(t, s, epoch.Add(1))
	}
}

func compact(t *testing.T, s server.Pruner, since time.Time) (parts int) {
	t.Helper()
	if err := s.Compact(t.Context(), since, func(n int, _ int64) error { parts += n; return nil }); err != nil {
		t.Fatal(err)
	}
	return parts
}

func pruneShared(t *testing.T, s server.Pruner) {
	a := machine("a")
	commit(t, s, &server.Change{Machine: a})
	var bodies [][]byte
	put := func(i int) {
		b := evidenceOf(a, epoch.Add(time.Duration(i)*time.Hour), eventLog(1, i))
		bodies = append(bodies, b)
		commit(t, s, &server.Change{Evidence: b})
	}
	for i := range 12 {
		put(i)
	}
	// One is kept from each of the days that follow: every part of it must stay.
	a.Revision = 1
	kept := bodies[0]
	a.LastEvidence = digest(kept)
	commit(t, s, &server.Change{Machine: a})
	for i := 2; i <= 12; i += 2 {
		before := epoch.Add(time.Duration(i) * time.Hour)
		if _, err := s.Prune(t.Context(), oldOf(t, s, before, 100), pruneEntry); err != nil {
			t.Fatal(err)
		}
		compact(t, s, before)
		compact(t, s, before)
		put(12 + i)
		for j, b := range bodies {
			if _, received, _ := server.EvidenceAbout(b); j == 0 || !received.Before(before) {
				wantThere(t, s, b)
			}
		}
	}
	// In the end nobody needs any.
	a.Revision = 2
	a.LastEvidence = manifest.SHA256{}
	commit(t, s, &server.Change{Machine: a})
	end := epoch.AddDate(1, 0, 0)
	if _, err := s.Prune(t.Context(), oldOf(t, s, end, 100), pruneEntry); err != nil {
		t.Fatal(err)
	}
	parts := compact(t, s, end)
	u, err := s.Usage(t.Context())
	if err != nil || u.Evidence.Count != 0 || u.Parts.Count != 0 {
		t.Errorf("%+v, %v: evidence or parts are left", u, err)
	}
	if _, memory := s.(*Memory); !memory && parts == 0 {
		t.Error("no part was removed")
	}
	bodies = nil
	put(3)
	wantThere(t, s, bodies[0])
}

// pruneRace prunes what is old as fast as it can, while others write old and
// young evidence that shares parts.
func pruneRace(t *testing.T, s server.Pruner) {
	before := epoch.Add(time.Hour)
	var mu sync.Mutex
	var young [][]byte
	done := make(chan struct{})
	var writers, pruner sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			a := machine(fmt.Sprint(w))
			for i := range 40 {
				for _, received := range []time.Time{epoch.Add(time.Duration(i)), before.Add(time.Duration(i))} {
					b := evidenceOf(a, received, eventLog(i%3, i))
					if err := s.Commit(t.Context(), &server.Change{Evidence: b}); err != nil {
						t.Error(err)
						return
					}
					if !received.Before(before) {
						mu.Lock()
						young = append(young, b)
						mu.Unlock()
					}
				}
			}
		})
	}
	pruner.Go(func() {
		for {
			if _, err := server.Prune(t.Context(), s, server.PruneOrder{Before: before, By: "ops", Now: func() time.Time { return epoch }}); err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			check := slices.Clone(young)
			mu.Unlock()
			for _, b := range check[max(0, len(check)-8):] {
				wantThere(t, s, b)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	writers.Wait()
	close(done)
	pruner.Wait()
	if len(young) != 160 {
		t.Errorf("%d pieces were written", len(young))
	}
	for _, b := range young {
		wantThere(t, s, b)
	}
	if all := oldOf(t, s, before, 10); len(all) > 0 {
		// The last run may have looked before the last was written.
		if _, err := s.Prune(t.Context(), all, pruneEntry); err != nil {
			t.Error(err)
		}
	}
	var logged int
	for e, err := range s.Audit(t.Context(), 1) {
		var d audit.Prune
		if err == nil {
			err = json.Unmarshal(e.Data, &d)
		}
		if err != nil {
			t.Fatal(err)
		}
		logged += len(d.Evidence)
	}
	if logged != 160 {
		t.Errorf("%d pieces are logged as pruned, want 160", logged)
	}
}

// pruneNamed prunes all that may be pruned, however young, while machines boot:
// after each boot the evidence that the record names is there and whole, and so
// is that of a release which is open.
func pruneNamed(t *testing.T, s server.Pruner) {
	done := make(chan struct{})
	var boots, pruner sync.WaitGroup
	for w := range 4 {
		boots.Go(func() {
			m := machine(fmt.Sprint("boots ", w))
			for i := range uint32(30) {
				at := epoch.Add(time.Duration(w)*time.Hour + time.Duration(i)*time.Second)
				body := evidenceOf(m, at, eventLog(w%2, int(i)))
				m.LastEvidence, m.LastSeen = digest(body), at
				c := &server.Change{Machine: m, Evidence: body}
				if i%3 == 0 { // accepted; the others are refused
					m.AcceptedEvidence, m.ReleaseID = m.LastEvidence, fmt.Sprintf("%d-%d", w, i)
					c.Release = release(m.ReleaseID, m, i)
					c.Release.Issued = at
				}
				if err := s.Commit(t.Context(), c); err != nil {
					t.Error(err)
					return
				}
				m.Revision++
				now, err := s.Machine(t.Context(), m.ID)
				if err != nil {
					t.Error(err)
					return
				}
				for _, d := range []manifest.SHA256{now.LastEvidence, now.AcceptedEvidence} {
					if _, err := s.Evidence(t.Context(), d); err != nil {
						t.Errorf("machine %d, boot %d: %v", w, i, err)
					}
				}
			}
		})
	}
	pruned := int64(0)
	pruner.Go(func() {
		for last := false; !last; {
			select {
			case <-done:
				last = true
			default:
			}
			r, err := server.Prune(t.Context(), s, server.PruneOrder{Before: epoch.AddDate(1, 0, 0), By: "ops", Now: func() time.Time { return epoch }})
			if err != nil {
				t.Error(err)
				return
			}
			pruned += r.Removed
		}
	})
	boots.Wait()
	close(done)
	pruner.Wait()
	// Of 30 boots of a machine 10 were released, and 1 more is the last.
	if want := int64(4 * 19); pruned != want {
		t.Errorf("%d pieces were pruned, want %d", pruned, want)
	}
}

func pruneRun(t *testing.T, s server.Pruner) {
	a := machine("a")
	commit(t, s, &server.Change{Machine: a})
	for i := range 150 {
		b := evidenceOf(a, epoch.Add(time.Duration(i)*time.Minute), eventLog(1, i))
		c := &server.Change{Evidence: b}
		if i == 70 {
			a.Revision, a.LastEvidence = 1, digest(b)
			c.Machine = a
		}
		commit(t, s, c)
	}
	order := server.PruneOrder{Before: epoch.Add(140 * time.Minute), By: "ops", Reason: "yearly", DryRun: true, Now: func() time.Time { return epoch.AddDate(2, 0, 0) }}
	dry, err := server.Prune(t.Context(), s, order)
	if err != nil || dry.Removed != 139 || dry.Kept[api.NeedLast] != 1 || !dry.Done || !dry.Oldest.Equal(epoch) || !dry.Newest.Equal(epoch.Add(139*time.Minute)) {
		t.Errorf("a dry run: %+v, %v", dry, err)
	}
	if n := count(t, s); n != 0 {
		t.Errorf("a dry run left %d entries", n)
	}
	// Cut off, it goes on where it was.
	stop := errors.New("stop")
	order.DryRun = false
	order.Progress = func(r api.PruneReport) error {
		if r.Removed > 0 {
			return stop
		}
		return nil
	}
	cut, err := server.Prune(t.Context(), s, order)
	wantErr(t, err, stop)
	if cut.Done || cut.Removed == 0 || cut.Removed >= 139 {
		t.Errorf("cut off: %+v", cut)
	}
	order.Progress = nil
	rest, err := server.Prune(t.Context(), s, order)
	if err != nil || rest.Removed+cut.Removed != 139 || rest.Kept[api.NeedLast] != 1 || !rest.Done {
		t.Errorf("the rest: %+v, %v", rest, err)
	}
	u, err := s.Usage(t.Context())
	if err != nil || u.Evidence.Count != 11 || u.Pruned != 139 {
		t.Errorf("%+v, %v", u, err)
	}
	logged := map[manifest.SHA256]bool{}
	for e, err := range s.Audit(t.Context(), 1) {
		var d audit.Prune
		if err == nil {
			err = json.Unmarshal(e.Data, &d)
		}
		if err != nil || d.By != "ops" || d.Reason != "yearly" || !d.Before.Equal(order.Before) || !e.Time.Equal(order.Now()) {
			t.Errorf("entry %+v of %s, %v", d, e.Time, err)
		}
		for _, x := range d.Evidence {
			logged[x] = true
		}
	}
	if len(logged) != 139 {
		t.Errorf("%d pieces are in the log, want 139", len(logged))
	}
}

func usage(t *testing.T, s server.Pruner) {
	u, err := s.Usage(t.Context())
	if err != nil || u.Machines.Count+u.Releases.Count+u.Documents.Count+u.Evidence.Count+u.Parts.Count+u.Audit.Count+u.Pruned+u.OpenReleases != 0 || !u.OldestEvidence.IsZero() {
		t.Errorf("of an empty store: %+v, %v", u, err)
	}
	fill(t, s)
	for i := range 3 {
		commit(t, s, &server.Change{Evidence: evidenceOf(machine("a"), epoch.Add(time.Duration(i)*time.Hour), eventLog(1, i))})
	}
	u, err = s.Usage(t.Context())
	if err != nil || u.Machines.Count != 3 || u.Releases.Count != 3 || u.OpenReleases != 2 || u.Documents.Count != 3 || u.Evidence.Count != 6 ||
		u.Audit.Count != 6 || u.Unindexed != 0 || !u.OldestEvidence.Equal(epoch) || !u.NewestEvidence.Equal(epoch.Add(2*time.Hour)) || u.Store == "" {
		t.Errorf("%+v, %v", u, err)
	}
	if _, memory := s.(*Memory); !memory && (u.Bytes <= 0 || u.Evidence.Bytes <= 0 || u.Parts.Count != 7 || u.Machines.Bytes <= 0 || u.Schema == 0) {
		t.Errorf("%+v", u)
	}
}

func due(t *testing.T, s server.Pruner) {
	at := func(m int) time.Time { return epoch.Add(time.Duration(m)*time.Minute + 1) }
	for i := range 6 {
		m := machine(fmt.Sprint(i))
		m.ReportDue = at(i)
		switch i {
		case 1:
			m.Stale = true
		case 2:
			m.State = attest.StateRevoked
		case 3:
			m.State, m.FenceDue = attest.StateQuarantined, true
		}
		commit(t, s, &server.Change{Machine: m})
	}
	never := machine("never")
	commit(t, s, &server.Change{Machine: never})
	find := func(q server.Query) (names []string) {
		t.Helper()
		ms, err := s.Machines(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range ms {
			if i > 0 && m.ID.String() <= ms[i-1].ID.String() {
				t.Errorf("%+v: not in the order of ids", q)
			}
			names = append(names, m.NodeName)
		}
		slices.Sort(names)
		return names
	}
	for _, c := range []struct {
		q    server.Query
		want []string
	}{
		{server.Query{State: attest.StateEnrolled, Due: at(4)}, []string{"box-0", "box-4"}},
		{server.Query{State: attest.StateEnrolled, Due: at(4).Add(-1)}, []string{"box-0"}},
		{server.Query{State: attest.StateEnrolled, Due: epoch}, nil},
		{server.Query{State: attest.StateQuarantined, Due: epoch}, []string{"box-3"}},
		{server.Query{Due: at(100)}, []string{"box-0", "box-3", "box-4", "box-5"}},
	} {
		if got := find(c.q); !slices.Equal(got, c.want) {
			t.Errorf("%+v: got %v, want %v", c.q, got, c.want)
		}
	}
	q := server.Query{State: attest.StateEnrolled, Due: at(100), Limit: 2}
	first := find(q)
	ms, err := s.Machines(t.Context(), q)
	if err != nil || len(ms) != 2 {
		t.Fatalf("%d machines, %v", len(ms), err)
	}
	q.After = ms[1].ID
	if rest := find(q); len(first) != 2 || len(rest) != 1 || slices.Contains(first, rest[0]) {
		t.Errorf("pages of %v and %v", first, rest)
	}
	// It follows what is stored.
	m := ms[0]
	m.Stale = true
	commit(t, s, &server.Change{Machine: m})
	if got := find(server.Query{State: attest.StateEnrolled, Due: at(100)}); len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

func documentPages(t *testing.T, s server.Pruner) {
	for i := range 7 {
		for _, kind := range []string{"a", "b"} {
			commit(t, s, &server.Change{Documents: []*server.Document{{Kind: kind, Name: fmt.Sprintf("n%d\xff", 9-i), Body: json.RawMessage("{}")}}})
		}
	}
	var got []string
	for after := ""; ; {
		page, err := s.Documents(t.Context(), "a", after, 3)
		if err != nil || len(page) > 3 {
			t.Fatalf("%d documents, %v", len(page), err)
		}
		for _, d := range page {
			got = append(got, d.Name)
			after = d.Name
		}
		if len(page) < 3 {
			break
		}
	}
	if len(got) != 7 || !slices.IsSorted(got) {
		t.Errorf("got %q", got)
	}
}

// dumpPrune dumps while evidence is pruned: what is in the dump is whole.
func dumpPrune(t *testing.T, s server.Pruner) {
	archive, ok := s.(server.Archive)
	if !ok {
		t.Skip("not an archive")
	}
	a := machine("a")
	want := map[manifest.SHA256]bool{}
	for i := range 30 {
		b := evidenceOf(a, epoch.Add(time.Duration(i)), eventLog(i, i))
		commit(t, s, &server.Change{Evidence: b})
		want[digest(b)] = true
	}
	got := map[manifest.SHA256]bool{}
	pruned := make(chan error, 1)
	started := false
	if err := archive.Dump(t.Context(), func(r server.Record) error {
		if r.Evidence == nil {
			return nil
		}
		if !started {
			started = true
			_, err := server.Prune(t.Context(), s, server.PruneOrder{Before: epoch.Add(time.Hour), By: "ops", Now: func() time.Time { return epoch }})
			pruned <- err
		}
		got[digest(r.Evidence)] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-pruned; err != nil {
		t.Fatal(err)
	}
	for d := range want {
		if !got[d] {
			t.Errorf("evidence %s is not in the dump as it was stored", d)
		}
	}
	// The next dump knows what is gone, and so does who loads it.
	n := 0
	for _, r := range dump(t, archive) {
		if r.Pruned != nil && want[r.Pruned.Digest] {
			n++
		}
		if r.Evidence != nil {
			t.Errorf("evidence %s is in the dump after it was pruned", digest(r.Evidence))
		}
	}
	if n != 30 {
		t.Errorf("%d pieces are said to be pruned, want 30", n)
	}
}

func pruneUnknown(t *testing.T, s server.Pruner) {
	for _, body := range []string{"evidence", `{}`, `{"version":1}`, `{"version":1,"received":"2020-01-01T00:00:00Z"}`,
		`{"received":"1200-01-01T00:00:00Z","machine":"` + machine("a").ID.String() + `"}`} {
		commit(t, s, &server.Change{Evidence: []byte(body)})
		if _, err := server.Prune(t.Context(), s, server.PruneOrder{Before: epoch.AddDate(100, 0, 0), By: "ops", Now: time.Now}); err != nil {
			t.Fatal(err)
		}
		wantThere(t, s, []byte(body))
	}
}
