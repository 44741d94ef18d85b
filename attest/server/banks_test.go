package server_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/backup"
)

// What banks a machine had is of its last release, and is forgotten when an approver
// says so, not when an install record does.
func TestEvidenceIsHeldAgainstTheBanksOfTheLastRelease(t *testing.T) {
	s := newScene(t, nil)
	var known *attest.Known
	s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
		known = k
		return s.appraise(ev, ch, ses, k, p)
	})
	resets := uint32(10)
	boot := func(b *box, guid string, want []string, banks ...string) {
		t.Helper()
		resets++
		s.set(func() {
			s.boot = server.Boot{Reset: resets, Clock: 1000 * uint64(resets), State: &attest.Boot{ResetCount: resets, PCRs: map[string][]byte{}}}
			for _, bank := range banks {
				s.boot.State.PCRs[bank] = []byte{1}
			}
		})
		if status, resp := s.attestFrom(b, guid, true); status != 200 {
			t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
		}
		if !slices.Equal(known.Banks, want) {
			t.Errorf("held against the banks %q, want %q", known.Banks, want)
		}
	}
	b := newBox(s, s.tpmCA)
	s.enrol(b)
	boot(b, disk, nil, "sha256", "sha1")
	boot(b, disk, []string{"sha1", "sha256"}, "sha256", "sha384")
	s.reinstall(b, otherDisk, time.Unix(200, 0))
	boot(b, otherDisk, []string{"sha256", "sha384"}, "sha256", "sha384")
	if status := s.post(b, "approve"); status != 200 {
		t.Fatalf("approve: HTTP %d", status)
	}
	boot(b, otherDisk, nil, "sha384")
	boot(b, otherDisk, []string{"sha384"}, "sha384")
}

// After a restore a machine is held against the banks of its last release, which the
// log has.
func TestARestoreKeepsTheBanksOfTheLastRelease(t *testing.T) {
	s := newScene(t, nil)
	old, later := newBox(s, s.tpmCA), newBox(s, s.tpmCA)
	boot := func(b *box, guid string, reset uint32, banks ...string) {
		t.Helper()
		s.set(func() {
			s.boot = server.Boot{Reset: reset, Clock: 1, State: &attest.Boot{ResetCount: reset, PCRs: map[string][]byte{}}}
			for _, bank := range banks {
				s.boot.State.PCRs[bank] = []byte{1}
			}
		})
		if status, resp := s.attestFrom(b, guid, true); status != 200 {
			t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
		}
	}
	s.enrol(old)
	boot(old, disk, 10, "sha256")
	file := s.backUp()
	boot(old, disk, 11, "sha384", "sha256")
	s.reinstall(later, otherDisk, time.Unix(100, 0))
	boot(later, otherDisk, 10, "sha256")
	memory, _ := s.restored(func(o *backup.Order) { o.Log, o.Head = bytes.NewReader(s.exportLog(1)), s.head() }, file)
	for b, want := range map[*box][]string{old: {"sha256", "sha384"}, later: {"sha256"}} {
		m, err := memory.Machine(t.Context(), b.id)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(m.Banks, want) {
			t.Errorf("held against %q, want %q", m.Banks, want)
		}
	}
}

// Entries of an earlier version do not say which banks were active. A machine that
// was approved without one since the backup is not held against it; any other is.
func TestAReleaseOfAnEarlierVersionKeepsTheBanksUnlessAnApproverSaidSo(t *testing.T) {
	for _, approved := range []bool{true, false} {
		r := server.NewRecovery()
		r.Add(server.Record{Machine: &server.Machine{
			Machine: api.Machine{ID: attest.MachineID{1}, State: attest.StateEnrolled, NodeName: "box-1", DiskGUID: disk},
			Banks:   []string{"sha256"}, Rebased: approved,
		}})
		body, err := json.Marshal(audit.Release{ID: "r", ResetCount: 11, DiskGUID: disk})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Replay(audit.Entry{Seq: 1, Time: time.Unix(1, 0), Kind: audit.KindRelease, Machine: attest.MachineID{1}, Data: body}); err != nil {
			t.Fatal(err)
		}
		all, _, err := r.Finish(audit.Head{}, audit.Restore{Complete: true}, time.Unix(2, 0))
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range all {
			if rec.Machine != nil && slices.Contains(rec.Machine.Banks, "sha256") == approved {
				t.Errorf("approved %t: held against %q", approved, rec.Machine.Banks)
			}
		}
	}
}

// A record of an earlier version has the banks of its last release in what reports
// are held against.
func TestARecordOfAnEarlierVersionIsHeldAgainstItsBanks(t *testing.T) {
	s := newScene(t, nil)
	var known *attest.Known
	s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
		known = k
		return s.appraise(ev, ch, ses, k, p)
	})
	b := newBox(s, s.tpmCA)
	s.enrol(b)
	s.set(func() {
		s.boot = server.Boot{Reset: 10, Clock: 1, State: &attest.Boot{ResetCount: 10, PCRs: map[string][]byte{"sha256": {1}, "sha1": {1}}}}
	})
	if status, resp := s.attestFrom(b, disk, true); status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	m, err := s.memory.Machine(t.Context(), b.id)
	if err != nil {
		t.Fatal(err)
	}
	m.Banks = nil
	if err := s.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.boot.Reset = 11 })
	if status, resp := s.attestFrom(b, disk, true); status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	if want := []string{"sha1", "sha256"}; !slices.Equal(known.Banks, want) {
		t.Errorf("held against the banks %q, want %q", known.Banks, want)
	}
}
