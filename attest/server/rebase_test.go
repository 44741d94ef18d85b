package server_test

import (
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// post asks the operator API to change a machine's standing.
func (s *scene) post(b *box, verb string) int {
	s.Helper()
	return s.call(s.operator(), "POST", "https://"+s.operators+api.PathMachines+"/"+b.id.String()+"/"+verb, api.StateChange{Reason: "because"}, nil)
}

func TestApprovalOfAnEnrolledMachineForgetsItsTPM(t *testing.T) {
	s := newScene(t, nil)
	b, _ := s.running()
	s.set(func() { s.boot = server.Boot{Reset: 9, Restart: 2, Clock: 5000} })
	if status, _ := s.attestFrom(b, disk, true); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	before := s.machine(b)
	for range 2 {
		if status := s.post(b, "approve"); status != 200 {
			t.Fatalf("approve: HTTP %d", status)
		}
	}
	if !strings.HasSuffix(s.kinds(), "release machine.state") {
		t.Errorf("log is %s; want the approval once", s.kinds())
	}
	var known attest.Known
	s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
		known = *k
		return s.appraise(ev, ch, ses, k, p)
	})
	s.set(func() { s.boot.Clock = 6000 })
	for range 2 {
		if status, resp := s.attestFrom(b, disk, true); status != 403 || codes(resp.Result) != string(attest.CodeReleaseRepeated) {
			t.Errorf("a second release in the boot: HTTP %d, %s", status, codes(resp.Result))
		}
	}
	if known.AKName != nil || known.TPMFirmware != 0 || known.ResetCount != 0 || known.RestartCount != 0 || known.Clock != 0 || !known.StateMade || known.DiskGUID != disk {
		t.Errorf("evidence is held against %+v", known)
	}
	// The TPM was cleared, and counts its boots by numbers that it has used.
	for _, boot := range []server.Boot{{Reset: 1, Clock: 7}, {Reset: 2, Clock: 8}, {Reset: 9, Restart: 2, Clock: 9}} {
		s.set(func() { s.boot = boot })
		if status, resp := s.attestFrom(b, disk, true); status != 200 {
			t.Errorf("boot %+v: HTTP %d, %s", boot, status, codes(resp.Result))
		}
		if status, _ := s.attestFrom(b, disk, true); status != 403 {
			t.Errorf("boot %+v, a second release: HTTP %d", boot, status)
		}
	}
	if known.AKName == nil || known.Clock == 0 {
		t.Errorf("the approval still holds after evidence was accepted: %+v", known)
	}
	m := s.machine(b)
	if m.Rebased || !m.StateMade || !m.Joined || m.Generation != before.Generation+1 {
		t.Errorf("record is %+v", m)
	}
}

// The record that knows the boot's release may be an older copy; the store
// still has the release.
func TestApprovalDoesNotForgetReleases(t *testing.T) {
	s := newScene(t, nil)
	b, _ := s.running()
	m := s.machine(b)
	m.Rebased, m.Released = true, false
	if err := s.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	if status, resp := s.attestFrom(b, disk, true); status != 403 || codes(resp.Result) != string(attest.CodeReleaseRepeated) {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
}
