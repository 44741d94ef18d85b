package server_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// attestFrom runs the protocol once from another disk than the first.
func (s *scene) attestFrom(b *box, guid string, state bool) (int, *api.EvidenceResponse) {
	s.Helper()
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	req.Evidence.Disk = attest.Disk{GUID: guid, StateExists: state}
	return s.send(c, req)
}

// running returns a machine in its second boot, joined and with a state
// partition, and the service's half of its disk key.
func (s *scene) running() (*box, attest.Secret) {
	s.Helper()
	b := newBox(s, s.tpmCA)
	s.enrol(b)
	status, resp := s.attest(b)
	if status != 200 {
		s.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	m := s.machine(b)
	m.Joined, m.StateMade, m.TPMFirmware = true, true, 7
	if err := s.memory.Commit(s.Context(), &server.Change{Machine: m}); err != nil {
		s.Fatal(err)
	}
	_, secrets, _ := s.open(resp)
	return b, secrets.DiskKey
}

func (s *scene) reinstall(b *box, guid string, finished time.Time) {
	s.Helper()
	rec := record(b)
	rec.DiskGUID, rec.Finished = guid, finished
	if _, err := s.srv.Enrol(s.Context(), "line-1", rec); err != nil {
		s.Fatal(err)
	}
}

// settled is what a forged install record must not touch.
func settled(m *server.Machine) server.Machine {
	c := *m
	c.Next, c.Revision = nil, 0
	return c
}

func TestAForgedInstallRecordChangesNothingThatCounts(t *testing.T) {
	for name, guid := range map[string]string{"of the same disk": disk, "of another disk": otherDisk} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, nil)
			b, key := s.running()
			before := s.machine(b)
			for i := range 3 {
				s.reinstall(b, guid, time.Unix(int64(5000+i), 0))
			}
			if after := s.machine(b); !reflect.DeepEqual(settled(after), settled(before)) {
				t.Errorf("record was %+v\nis %+v", before, after)
			}
			if status, resp := s.attestFrom(b, disk, true); status != 403 || codes(resp.Result) != string(attest.CodeReleaseRepeated) {
				t.Errorf("a second release in this boot: HTTP %d, %s", status, codes(resp.Result))
			}
			if status, resp := s.attestFrom(b, guid, true); status != 403 || codes(resp.Result) != string(attest.CodeReleaseRepeated) {
				t.Errorf("a second release in this boot, from the disk of the record: HTTP %d, %s", status, codes(resp.Result))
			}
			s.set(func() { s.boot.Reset++ })
			status, resp := s.attestFrom(b, disk, true)
			if status != 200 {
				t.Fatalf("next boot: HTTP %d, %s", status, codes(resp.Result))
			}
			if _, secrets, _ := s.open(resp); !bytes.Equal(secrets.DiskKey, key) || secrets.Join != nil {
				t.Error("the disk key is lost, or the node was to join again")
			}
		})
	}
}

func TestARepeatedCandidateIsLoggedOnce(t *testing.T) {
	s := newScene(t, nil)
	b, _ := s.running()
	before := s.kinds()
	for i := range 3 {
		s.reinstall(b, otherDisk, time.Unix(int64(5000+i), 0))
		s.reinstall(b, disk, time.Unix(int64(6000+i), 0))
	}
	if got := s.kinds(); got != before+" machine.install" {
		t.Errorf("log is %s", got)
	}
	if m := s.machine(b); m.Next == nil || m.Next.DiskGUID != otherDisk || !m.Next.Installed.Equal(time.Unix(5000, 0)) {
		t.Errorf("candidate is %+v", m.Next)
	}
}

func TestAReinstallCountsOnceItIsProven(t *testing.T) {
	s := newScene(t, nil)
	b, key := s.running()
	before := s.machine(b)
	s.reinstall(b, otherDisk, time.Unix(5000, 0))

	// Refused evidence promotes nothing.
	s.set(func() { s.boot.Reset++; s.refuse = []attest.Finding{{Code: attest.CodeCmdline, Message: "m"}} })
	if status, _ := s.attestFrom(b, otherDisk, false); status != 403 {
		t.Errorf("HTTP %d", status)
	}
	if m := s.machine(b); m.DiskGUID != disk || m.DiskKey == nil || !m.Joined || m.Next == nil {
		t.Errorf("record is %+v", m)
	}
	s.set(func() { s.refuse = nil })

	var known *attest.Known
	s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
		known = k
		return s.appraise(ev, ch, ses, k, p)
	})
	status, resp := s.attestFrom(b, otherDisk, false)
	if status != 200 {
		t.Fatalf("the new disk: HTTP %d, %s", status, codes(resp.Result))
	}
	if known.AKName != nil || known.TPMFirmware != 0 || known.ResetCount != 0 || known.StateMade || known.DiskGUID != otherDisk {
		t.Errorf("a TPM that the installer cleared would be refused: %+v", known)
	}
	_, secrets, _ := s.open(resp)
	if bytes.Equal(secrets.DiskKey, key) || secrets.Join == nil {
		t.Error("the new disk got the old disk's key, or the node cannot join")
	}
	m := s.machine(b)
	if m.DiskGUID != otherDisk || m.Next != nil || m.StateMade || m.Joined || m.Generation != before.Generation+1 || m.NodeName != before.NodeName {
		t.Errorf("record is %+v", m)
	}
	if len(m.Former) != 1 || m.Former[0].DiskGUID != disk || !reflect.DeepEqual(m.Former[0].DiskKey, before.DiskKey) {
		t.Errorf("former disks are %+v", m.Former)
	}
	if status, resp := s.attestFrom(b, disk, true); status != 403 || !strings.Contains(codes(resp.Result), string(attest.CodeDiskForeign)) {
		t.Errorf("the old disk: HTTP %d, %s", status, codes(resp.Result))
	}
	var last audit.StateChange
	for e, err := range s.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindState {
			if err := json.Unmarshal(e.Data, &last); err != nil {
				t.Fatal(err)
			}
		}
	}
	if last.By != "service" || !strings.Contains(last.Effect, otherDisk) {
		t.Errorf("the log does not tell of the promotion: %+v", last)
	}

	// The old disk comes back, with a record: it opens.
	s.reinstall(b, disk, time.Unix(100, 0))
	s.set(func() { s.boot.Reset++ })
	if status, resp := s.attestFrom(b, disk, false); status != 403 || codes(resp.Result) != string(attest.CodeStateLost) {
		t.Errorf("the old disk, wiped: HTTP %d, %s", status, codes(resp.Result))
	}
	status, resp = s.attestFrom(b, disk, true)
	if status != 200 {
		t.Fatalf("the old disk with a record: HTTP %d, %s", status, codes(resp.Result))
	}
	if _, secrets, _ := s.open(resp); !bytes.Equal(secrets.DiskKey, key) {
		t.Error("the old disk's key is lost")
	}
}

func TestAPromotionGivesNoSecondReleaseInOneBoot(t *testing.T) {
	s := newScene(t, nil)
	b, _ := s.running()
	s.set(func() { s.boot = server.Boot{Reset: 9, Clock: 5000} })
	if status, _ := s.attestFrom(b, disk, true); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	s.reinstall(b, otherDisk, time.Unix(5000, 0))
	s.set(func() { s.boot.Clock = 6000 })
	for range 2 {
		if status, resp := s.attestFrom(b, otherDisk, false); status != 403 || codes(resp.Result) != string(attest.CodeReleaseRepeated) {
			t.Errorf("HTTP %d, %s", status, codes(resp.Result))
		}
	}
	if n := s.tokens.open(); n != 1 {
		t.Errorf("%d tokens are out, want that of the first release", n)
	}
	// A TPM that was cleared counts anew and can come by the same numbers.
	s.set(func() { s.boot.Clock = 40 })
	if status, resp := s.attestFrom(b, otherDisk, false); status != 200 {
		t.Errorf("a cleared TPM: HTTP %d, %s", status, codes(resp.Result))
	}
	// Back and forth is no way either.
	s.reinstall(b, disk, time.Unix(7000, 0))
	s.set(func() { s.boot.Clock = 50 })
	if status, resp := s.attestFrom(b, disk, true); status != 403 || codes(resp.Result) != string(attest.CodeReleaseRepeated) {
		t.Errorf("back in the same boot: HTTP %d, %s", status, codes(resp.Result))
	}
}

func TestFormerDisksAreBounded(t *testing.T) {
	s := newScene(t, nil)
	b, _ := s.running()
	for i := range 7 {
		guid := fmt.Sprintf("%08x%s", i+1, disk[8:])
		s.reinstall(b, guid, time.Unix(5000, 0))
		s.set(func() { s.boot.Reset++ })
		if status, resp := s.attestFrom(b, guid, false); status != 200 {
			t.Fatalf("install %d: HTTP %d, %s", i, status, codes(resp.Result))
		}
	}
	if m := s.machine(b); len(m.Former) != 4 || m.Former[3].DiskGUID[:8] != "00000006" {
		t.Errorf("former disks are %+v", m.Former)
	}
}

func TestAnInstallRecordNeedsATrustedEndorsementCertificate(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(s *scene, r *api.InstallRecord)
		code   attest.Code
	}{
		"none":                   {func(_ *scene, r *api.InstallRecord) { r.EKCertificates = nil }, attest.CodeEKCertificate},
		"another authority's":    {func(s *scene, r *api.InstallRecord) { *r = *record(newBox(s, tpmtest.NewCA(s))) }, attest.CodeEKCertificate},
		"another key's":          {func(s *scene, r *api.InstallRecord) { r.EKCertificates = [][]byte{newBox(s, s.tpmCA).cert} }, attest.CodeEKMismatch},
		"one that is over today": {func(s *scene, r *api.InstallRecord) { s.set(func() { s.offset = 48 * time.Hour }) }, attest.CodeEKExpired},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, nil)
			b := newBox(t, s.tpmCA)
			rec := record(b)
			tt.change(s, rec)
			before := s.kinds()
			if _, err := s.srv.Enrol(t.Context(), "line-1", rec); !errors.Is(err, server.ErrRefused) || !strings.Contains(err.Error(), "endorsement certificate") {
				t.Errorf("%v, want %v and what is wrong", err, server.ErrRefused)
			}
			var e api.Error
			if status := s.call(s.operator(), "POST", "https://"+s.operators+api.PathInstalls, rec, &e); status != 403 || e.Code != string(tt.code) || e.Hint == "" {
				t.Errorf("HTTP %d, %+v", status, e)
			}
			if s.kinds() != before {
				t.Errorf("log is %s", s.kinds())
			}
		})
	}
}

// What a release of the former install unlocked is not the state of the present one.
func TestAConfirmationFromBeforeAReinstallSaysNothingOfTheState(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	_, resp := s.attestFrom(b, disk, false)
	r, _, transport := s.open(resp)
	s.reinstall(b, otherDisk, time.Unix(5000, 0))
	s.set(func() { s.boot.Reset++ })
	if status, resp := s.attestFrom(b, otherDisk, false); status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	req := &api.ConfirmRequest{ReleaseID: r.ID, Outcome: api.OutcomeUnlocked, Proof: api.ConfirmProof(transport, r.ID, api.OutcomeUnlocked)}
	if status := s.call(s.httpClient(), "POST", "https://"+s.nodes+api.PathConfirm, req, nil); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	if m := s.machine(b); m.StateMade || m.DiskGUID != otherDisk {
		t.Errorf("state made %t on disk %s", m.StateMade, m.DiskGUID)
	}
}
