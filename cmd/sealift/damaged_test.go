package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

// failing is a store whose disk fails: body takes the place of what a row holds.
type failing struct {
	server.Archive
	machine  func(id attest.MachineID, body string)
	release  func(body string) // all of them
	document func(kind, name, body string)
}

// onFailingStores runs a test on SQLite and PostgreSQL while a service has them open.
func onFailingStores(t *testing.T, test func(t *testing.T, store *failing)) {
	t.Parallel()
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "s.db")
		store := open(t, file)
		db, err := sql.Open("sqlite", file+"?_pragma=busy_timeout(10000)")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		d := database{t, db}
		test(t, &failing{
			Archive: store,
			machine: func(id attest.MachineID, body string) {
				d.exec("UPDATE machine SET body = ? WHERE id = ?", body, id[:])
			},
			release: func(body string) { d.exec("UPDATE release SET body = ?", body) },
			document: func(kind, name, body string) {
				d.exec("INSERT INTO document (kind, name, revision, body) VALUES (?, ?, 9, ?) ON CONFLICT DO UPDATE SET body = excluded.body", kind, name, []byte(body))
			},
		})
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		pg := pgtest.Start(t)
		dsn := pg.Database(t)
		at, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		do := func(format string, args ...any) {
			for i, a := range args {
				args[i] = `'\x` + hex.EncodeToString([]byte(a.(string))) + `'`
			}
			pg.SQL(t, strings.TrimPrefix(at.Path, "/"), fmt.Sprintf(format, args...))
		}
		test(t, &failing{
			Archive: open(t, dsn),
			machine: func(id attest.MachineID, body string) {
				do("UPDATE sealift.machine SET body = %s WHERE id = %s", body, string(id[:]))
			},
			release: func(body string) { do("UPDATE sealift.release SET body = %s", body) },
			document: func(kind, name, body string) {
				do("INSERT INTO sealift.document (kind, name, revision, body) VALUES (%s, %s, 9, %s) ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body", kind, name, body)
			},
		})
	})
}

// ownSerial gives the box a serial number that no other has.
func (b *standingBox) ownSerial(serial string) *standingBox {
	b.boot.SMBIOS, b.serial = papertpm.EncodeSMBIOS("1.0", "Paper", "Box", serial), serial
	return b
}

const damaged = string(attest.CodeRecordDamaged)

func (r *replica) approve(t *testing.T, id attest.MachineID) (m *api.Machine) {
	t.Helper()
	r.operate(t, func(c *operator.Client) (err error) {
		m, err = c.Approve(t.Context(), id, "the disk failed")
		return err
	})
	return m
}

// writtenAnew returns what the log has of a machine's records that were written anew.
func writtenAnew(t *testing.T, store server.Store, id attest.MachineID) (out []string) {
	t.Helper()
	for e, err := range store.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindState && e.Machine == id && strings.Contains(string(e.Data), "written anew") {
			out = append(out, string(e.Data))
		}
	}
	return out
}

// What the store has of one machine's TPM, serial number or enrolment is noise: that
// machine is refused, no other is, and an approver has it written anew.
func TestNoiseAboutWhoIsWhoRefusesOneMachineAndIsMended(t *testing.T) {
	onFailingStores(t, func(t *testing.T, store *failing) {
		s := newPolicyScene(t)
		r := s.start(store.Archive, store.Archive, s.images[:], nil, nil)
		other := s.newBox(t, 0).ownSerial("other-0")
		other.install(t, r)
		if got := other.starts(r); got != "released" {
			t.Fatalf("the other machine: %s", got)
		}
		for i, tt := range []struct {
			name, body string
			of         func(b *standingBox) (kind, name string)
		}{
			{"its endorsement key", "noise", func(b *standingBox) (string, string) { return "tpm", "ek-" + b.id.String() }},
			{"its attestation key", "null", func(b *standingBox) (string, string) {
				name, err := attest.AKName(tpm2.Marshal(b.tpm.AKPublic))
				if err != nil {
					t.Fatal(err)
				}
				return "tpm", "ak-" + hex.EncodeToString(name)
			}},
			{"its serial number", `{"machine":7}`, func(b *standingBox) (string, string) { return "serial", attest.SerialKey(b.serial) }},
		} {
			box := s.newBox(t, i+1).ownSerial(fmt.Sprintf("own-%d", i))
			box.install(t, r)
			kind, name := tt.of(box)
			store.document(kind, name, tt.body)
			if got := box.starts(r); got != damaged {
				t.Errorf("%s: %s", tt.name, got)
			}
			if got := other.starts(r); got != "released" {
				t.Errorf("%s: the other machine: %s", tt.name, got)
			}
			r.approve(t, box.id)
			if got := box.starts(r); got != "released" {
				t.Errorf("%s, approved: %s", tt.name, got)
			}
			if got := writtenAnew(t, store, box.id); len(got) != 1 || !strings.Contains(got[0], kind+" "+name) || !strings.Contains(got[0], `"by":"ana"`) {
				t.Errorf("%s: the log has %q", tt.name, got)
			}
		}

		// What is written anew is what the records say: it stays the other machine's.
		thief := s.newBox(t, 7).ownSerial("other-0")
		store.document("serial", "OTHER-0", "noise")
		m, err := store.Machine(t.Context(), other.id)
		if err != nil {
			t.Fatal(err)
		}
		m.Serial = "other-0"
		if err := store.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
			t.Fatal(err)
		}
		if got := thief.starts(r); !strings.Contains(got, damaged) {
			t.Errorf("a machine with another's serial number: %s", got)
		}
		if m := r.approve(t, thief.id); m.State != attest.StatePending {
			t.Errorf("what cannot be read was written anew, and the machine is %s", m.State)
		}
		o := operatorOptions{server: r.operators, identity: r.ana}
		lost := s.newBox(t, 9).ownSerial("lost-9")
		lost.install(t, r)
		store.document("serial", "OTHER-0", "noise")
		store.machine(lost.id, "noise") // it may say that the number is its own
		if err := o.do(func(c *operator.Client) error {
			_, err := c.Approve(t.Context(), thief.id, "the disk failed")
			return err
		}); err == nil || !strings.Contains(err.Error(), "record of machine "+lost.id.String()) {
			t.Errorf("mended with records that cannot be read: %v", err)
		}
		for _, id := range []attest.MachineID{lost.id, thief.id} {
			r.approve(t, id)
		}
		if err := o.do(func(c *operator.Client) error {
			_, err := c.Approve(t.Context(), thief.id, "it is new")
			return err
		}); err == nil || !strings.Contains(err.Error(), "belongs to machine "+other.id.String()) {
			t.Errorf("approved with the serial number of another machine: %v", err)
		}

		// An expectation that is noise is named, refused, and replaced.
		late := s.newBox(t, 8).ownSerial("late-8")
		want := api.Expected{Serial: late.serial, EK: [32]byte(late.id)}
		r.expect(t, want)
		store.document("expected", want.EK.String(), "noise")
		r.operate(t, func(c *operator.Client) error {
			all, err := c.Expected(t.Context())
			if err == nil && !slices.ContainsFunc(all, func(e api.Expected) bool { return e.EK == want.EK && e.Damaged != "" }) {
				t.Errorf("listed as %+v", all)
			}
			return err
		})
		if got := late.starts(r); !strings.Contains(got, damaged) {
			t.Errorf("expected, as noise: %s", got)
		}
		r.operate(t, func(c *operator.Client) error {
			for _, replace := range []bool{false, true} {
				a, err := c.Expect(t.Context(), &api.ExpectedList{Machines: []api.Expected{want}, Apply: true, Replace: replace})
				if err != nil {
					return err
				}
				if conflict := a.Results[0].Outcome == api.ExpectedConflict; conflict == replace {
					t.Errorf("replace %t: %+v", replace, a.Results[0])
				}
			}
			return nil
		})
		if got := late.starts(r); got != "released" {
			t.Errorf("expected again: %s", got)
		}
	})
}

// A machine's own record is noise: it is given nothing, and every list goes on.
func TestNoiseAsAMachinesRecordRefusesItAlone(t *testing.T) {
	onFailingStores(t, func(t *testing.T, store *failing) {
		s := newPolicyScene(t)
		r := s.start(store.Archive, store.Archive, s.images[:], nil, nil)
		box, other, stolen := s.newBox(t, 1).ownSerial("own-1"), s.newBox(t, 2).ownSerial("own-2"), s.newBox(t, 3).ownSerial("own-3")
		for _, b := range []*standingBox{box, other, stolen} {
			b.install(t, r)
			if got := b.starts(r); got != "released" {
				t.Fatal(got)
			}
		}
		r.state(t, stolen.id, attest.StateRevoked)
		nobody := func(context.Context, attest.MachineID) (*attest.Policy, error) {
			return new(attest.Policy), nil
		}
		for _, body := range []string{"{", "null", `{"id":"` + other.id.String() + `","state":"enrolled"}`, `{"id":7}`, "noise"} {
			store.machine(box.id, body)
			if got := box.starts(r); got != damaged {
				t.Errorf("%q: %s", body, got)
			}
			if got := other.starts(r); got != "released" {
				t.Errorf("%q: the other machine: %s", body, got)
			}
			for name, q := range map[string]server.Query{"all": {}, "by page": {Limit: 1}, "of a state": {State: attest.StateEnrolled, Limit: 10}} {
				ids := map[attest.MachineID]string{}
				for {
					page, err := store.Machines(t.Context(), q)
					if err != nil {
						t.Fatalf("%q: %s: %v", body, name, err)
					}
					for _, m := range page {
						q.After = m.ID
						ids[m.ID] = m.Damaged
					}
					if len(page) == 0 || q.Limit == 0 {
						break
					}
				}
				if ids[box.id] == "" || ids[other.id] != "" || len(ids) < 2 {
					t.Errorf("%q: %s: %q", body, name, ids)
				}
			}
			r.operate(t, func(c *operator.Client) error {
				m, err := c.Machine(t.Context(), box.id)
				if err == nil && (m.Damaged == "" || m.NodeName != api.NodeName(box.id, 10)) {
					t.Errorf("%q: shown as %+v", body, m)
				}
				return err
			})
			tried := map[attest.MachineID]string{}
			for line, err := range r.service.Replay(t.Context(), &server.Proposal{Name: "none", Now: nobody, Then: nobody}) {
				if err != nil {
					t.Fatal(err)
				}
				if line.Machine != nil {
					tried[line.Machine.ID] = line.Machine.Error
				}
			}
			if len(tried) != 3 || tried[box.id] == "" || tried[other.id] != "" {
				t.Errorf("%q: tried: %q", body, tried)
			}
			refs, err := store.Archive.(server.Pruner).OldEvidence(t.Context(), s.now().Add(24*time.Hour), nil, 1000)
			if err != nil || len(refs) < 3 {
				t.Fatalf("%q: %d pieces of old evidence, %v", body, len(refs), err)
			}
			for _, ref := range refs {
				if ref.Machine == box.id && ref.Needed == "" {
					t.Errorf("%q: evidence of the machine is not needed", body)
				}
			}
			if err := store.Dump(t.Context(), func(server.Record) error { return nil }); err == nil || !strings.Contains(err.Error(), box.id.String()) {
				t.Errorf("%q: dumped: %v", body, err)
			}
		}
		if _, err := r.service.Enrol(t.Context(), "installer", &api.InstallRecord{
			EKPublic: tpm2.Marshal(box.tpm.EKPublic), EKCertificates: box.tpm.EKCertificates, DiskGUID: box.boot.Disk.GUID,
		}); err == nil || !strings.Contains(err.Error(), "cannot be read") {
			t.Errorf("an install record: %v", err)
		}

		// From the log: it was given a disk key, which is lost.
		if m := r.approve(t, box.id); m.State != attest.StateQuarantined || m.Serial != "" && m.Serial != box.serial || m.NodeName != api.NodeName(box.id, 10) {
			t.Errorf("written anew as %+v", m)
		}
		if got := box.starts(r); got != string(attest.CodeQuarantined) {
			t.Errorf("written anew: %s", got)
		}
		if got := writtenAnew(t, store, box.id); len(got) != 1 {
			t.Errorf("the log has %q", got)
		}
		kept, err := store.Documents(t.Context(), "damaged", "", 0)
		if err != nil || len(kept) != 1 || !strings.Contains(string(kept[0].Body), "bm9pc2U=") {
			t.Errorf("what it was is kept as %v, %v", kept, err)
		}
		r.state(t, box.id, attest.StateEnrolled)
		if got := box.starts(r); got != string(attest.CodeReleaseRepeated) {
			t.Errorf("reinstated, in a boot that may have had its secrets: %s", got)
		}
		if got := box.starts(r); got != "released" {
			t.Errorf("reinstated: %s", got)
		}

		// One that is revoked stays so.
		store.machine(stolen.id, "noise")
		if m := r.approve(t, stolen.id); m.State != attest.StateRevoked {
			t.Errorf("a revoked machine's record was written anew as %q", m.State)
		}
		if got := stolen.starts(r); got != string(attest.CodeMachineRevoked) {
			t.Errorf("a revoked machine: %s", got)
		}
	})
}

// Whoever can spoil what the service has of his machine does not choose what an approver
// who mends it decides: that is all that his approval does.
func TestAnApprovalThatMendsDoesNothingElse(t *testing.T) {
	onFailingStores(t, func(t *testing.T, store *failing) {
		s := newPolicyScene(t)
		r := s.start(store.Archive, store.Archive, s.images[:], nil, nil)
		stranger, known := s.newBox(t, 1).ownSerial("own-1"), s.newBox(t, 2).ownSerial("own-2")

		// One that nobody has approved, and a record of one that nobody has heard of.
		if got := stranger.starts(r); got != string(attest.CodeMachineUnknown) {
			t.Fatal(got)
		}
		unheard := &server.Machine{Machine: api.Machine{ID: attest.MachineID{7}, NodeName: "node-7", State: attest.StateEnrolled}}
		if err := store.Commit(t.Context(), &server.Change{Machine: unheard}); err != nil {
			t.Fatal(err)
		}
		for _, id := range []attest.MachineID{stranger.id, unheard.ID} {
			store.machine(id, "noise")
			if m := r.approve(t, id); m.State != attest.StatePending {
				t.Errorf("written anew as %s", m.State)
			}
		}
		if got := stranger.starts(r); got != string(attest.CodeMachinePending) {
			t.Errorf("written anew: %s", got)
		}
		if m := r.approve(t, stranger.id); m.State != attest.StateEnrolled {
			t.Errorf("approved: %s", m.State)
		}

		// One whose serial number's owner is noise keeps what its TPM was.
		known.install(t, r)
		if got := known.starts(r); got != "released" {
			t.Fatal(got)
		}
		before, err := store.Machine(t.Context(), known.id)
		if err != nil {
			t.Fatal(err)
		}
		store.document("serial", attest.SerialKey(known.serial), "noise")
		if got := known.starts(r); got != damaged {
			t.Fatal(got)
		}
		r.approve(t, known.id)
		after, err := store.Machine(t.Context(), known.id)
		if err != nil {
			t.Fatal(err)
		}
		if len(before.AKName) == 0 || !bytes.Equal(after.AKName, before.AKName) || after.Rebased || after.Reason != before.Reason {
			t.Errorf("it was attestation key %x, %q; it is %x, %q, rebased %t", before.AKName, before.Reason, after.AKName, after.Reason, after.Rebased)
		}
		if got := known.starts(r); got != "released" {
			t.Errorf("mended: %s", got)
		}
	})
}

// A record that cannot be read keeps nobody from locking the machine out, and its node
// from being fenced.
func TestAMachineWhoseRecordCannotBeReadIsLockedOut(t *testing.T) {
	onFailingStores(t, func(t *testing.T, store *failing) {
		s := newPolicyScene(t)
		r := s.start(store.Archive, store.Archive, s.images[:], nil, nil)
		for i, to := range []attest.EnrolmentState{attest.StateRevoked, attest.StateQuarantined} {
			box := s.newBox(t, i+1).ownSerial(fmt.Sprintf("own-%d", i))
			box.install(t, r)
			if got := box.starts(r); got != "released" {
				t.Fatal(got)
			}
			// That somebody took the names which there could be for what is kept of the
			// noise is in nobody's way.
			m, err := store.Machine(t.Context(), box.id)
			if err != nil {
				t.Fatal(err)
			}
			store.document("damaged", fmt.Sprintf("machine-%s-%d", box.id, m.Revision), "{}")
			store.machine(box.id, "noise")
			r.state(t, box.id, to)
			want := map[attest.EnrolmentState]attest.Code{attest.StateRevoked: attest.CodeMachineRevoked, attest.StateQuarantined: attest.CodeQuarantined}[to]
			if got := box.starts(r); got != string(want) {
				t.Errorf("%s: %s", to, got)
			}
			// Also if it is noise once more before the node was fenced.
			for range 2 {
				m, err := store.Machine(t.Context(), box.id)
				if err != nil {
					t.Fatal(err)
				}
				if m.State != to || !m.FenceDue {
					t.Errorf("%s: it is %s, to be fenced: %t", to, m.State, m.FenceDue)
				}
				store.machine(box.id, "noise")
				r.approve(t, box.id)
			}
		}
	})
}

// A release's record is noise: the store says so, and the machine's next boot is
// released as always.
func TestNoiseAsAReleasesRecordKeepsNobodyFromTheNextBoot(t *testing.T) {
	onFailingStores(t, func(t *testing.T, store *failing) {
		s := newPolicyScene(t)
		r := s.start(store.Archive, store.Archive, s.images[:], nil, nil)
		box := s.newBox(t, 1)
		box.install(t, r)
		if got := box.starts(r); got != "released" {
			t.Fatal(got)
		}
		m, err := store.Machine(t.Context(), box.id)
		if err != nil {
			t.Fatal(err)
		}
		for _, body := range []string{"noise", "null", `{"id":"another"}`} {
			store.release(body)
			var damage *server.DamagedError
			if _, err := store.Release(t.Context(), m.ReleaseID); !errors.As(err, &damage) || damage.Release != m.ReleaseID || damage.Machine != nil {
				t.Errorf("%q: got %v", body, err)
			}
		}
		if got := box.starts(r); got != "released" {
			t.Errorf("its next boot: %s", got)
		}
	})
}
