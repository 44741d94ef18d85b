package server_test

import (
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
)

// A boot is named by both counters of the TPM.
func TestARestartOfTheTPMIsAnotherBoot(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	for range 3 {
		if status, resp := s.attest(b); status != 200 {
			t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
		}
		if status, _ := s.attest(b); status != 403 {
			t.Errorf("the same boot: HTTP %d", status)
		}
		s.set(func() { s.boot.Restart++ })
	}
}

// What a release of the former install says of its state is not said of this one's:
// a disk without a state would be refused for having lost it.
func TestAConfirmationOfAFormerInstallMakesNoState(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	status, resp := s.attest(b)
	if status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	r, _, transport := s.open(resp)
	s.reinstall(b, otherDisk, time.Unix(5000, 0))
	s.set(func() { s.boot.Reset++ })
	if status, resp := s.attestFrom(b, otherDisk, false); status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	confirm := &api.ConfirmRequest{ReleaseID: r.ID, Outcome: api.OutcomeUnlocked, Proof: api.ConfirmProof(transport, r.ID, api.OutcomeUnlocked)}
	if status := s.call(s.httpClient(), "POST", "https://"+s.nodes+api.PathConfirm, confirm, nil); status != 200 {
		t.Errorf("confirm: HTTP %d", status)
	}
	if m := s.machine(b); m.StateMade || m.DiskGUID != otherDisk {
		t.Errorf("record is %+v", m)
	}
}

// A report of a change locks out a machine that is enrolled. One that was revoked
// must not become quarantined by it, which is less.
func TestAReportOfAChangeLeavesARevokedMachineRevoked(t *testing.T) {
	s, b, verdict := reporting(t, nil)
	if _, err := s.operatorClient().Revoke(t.Context(), b.id, "stolen"); err != nil {
		t.Fatal(err)
	}
	verdict(attest.Report{Genuine: true, Changed: true}, attest.CodePCRChanged)
	if status, _ := s.reportPaper(b); status != 403 {
		t.Errorf("HTTP %d", status)
	}
	if m := s.machine(b); m.State != attest.StateRevoked || m.Reason != "stolen" {
		t.Errorf("the machine is %s: %s", m.State, m.Reason)
	}
}
