package server_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client/operator"
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

func TestARejoinHasTheNextReleaseHoldAToken(t *testing.T) {
	s := newScene(t, nil)
	b, key := s.running()
	next := func() *api.Secrets {
		t.Helper()
		s.set(func() { s.boot.Reset++ })
		status, resp := s.attestFrom(b, disk, true)
		if status != 200 {
			t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
		}
		_, secrets, _ := s.open(resp)
		return secrets
	}
	if next().Join != nil {
		t.Fatal("a joined machine got a token")
	}
	c := s.operatorClient()
	for range 2 {
		if m, err := c.Rejoin(t.Context(), b.id, "certificate ran out"); err != nil || m.Joined {
			t.Fatalf("rejoin: %+v, %v", m, err)
		}
	}
	if !strings.HasSuffix(s.kinds(), "release machine.state") || s.tokens.open() != 0 {
		t.Errorf("log is %s; want the rejoin once, and %d tokens are out", s.kinds(), s.tokens.open())
	}
	// What becomes of the old token is not the new join.
	if err := s.srv.TokenEvent(t.Context(), audit.Token{Event: audit.TokenJoined, ID: "tok001", NodeName: s.machine(b).NodeName}); err != nil {
		t.Fatal(err)
	}
	if secrets := next(); secrets.Join == nil || !bytes.Equal(secrets.DiskKey, key) {
		t.Error("the release has no token, or another disk key")
	}
	for _, bad := range []struct {
		id     attest.MachineID
		reason string
		status int
	}{{b.id, " ", 400}, {attest.MachineID{1}, "r", 404}} {
		var failed *operator.Error
		if _, err := c.Rejoin(t.Context(), bad.id, bad.reason); !errors.As(err, &failed) || failed.Status != bad.status {
			t.Errorf("rejoin of %s for %q: %v, want HTTP %d", bad.id.Short(), bad.reason, err, bad.status)
		}
	}
	s.post(b, "revoke")
	if status := s.post(b, "rejoin"); status != 409 {
		t.Errorf("a revoked machine: HTTP %d", status)
	}
}
