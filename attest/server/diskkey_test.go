package server_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// reboot attests in a new boot from the disk, whose state exists, and returns
// what was released.
func (s *scene) reboot(b *box, guid string) (*api.Release, *api.Secrets, attest.Secret) {
	s.Helper()
	s.set(func() { s.boot.Reset++ })
	status, resp := s.attestFrom(b, guid, true)
	if status != 200 {
		s.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	return s.open(resp)
}

// confirm tells how a release ended.
func (s *scene) confirm(r *api.Release, transport attest.Secret, outcome string) int {
	s.Helper()
	return s.call(s.httpClient(), "POST", "https://"+s.nodes+api.PathConfirm,
		&api.ConfirmRequest{ReleaseID: r.ID, Outcome: outcome, Proof: api.ConfirmProof(transport, r.ID, outcome)}, nil)
}

// rotate asks for another disk key.
func (s *scene) rotate(b *box, reason string) (int, *api.Machine) {
	s.Helper()
	m := new(api.Machine)
	return s.call(s.operator(), "POST", "https://"+s.operators+api.PathMachines+"/"+b.id.String()+"/rotate-key", api.StateChange{Reason: reason}, m), m
}

func TestADiskKeyIsChangedOnceTheMachineConfirmsIt(t *testing.T) {
	s := newScene(t, nil)
	b, old := s.running()
	before := s.kinds()
	status, shown := s.rotate(b, "lost laptop")
	if status != 200 || shown.Rotation == nil || shown.Rotation.By != "alice" || shown.Rotation.Reason != "lost laptop" {
		t.Fatalf("HTTP %d, %+v", status, shown)
	}
	var next attest.Secret
	// An agent that does not know of the next key, or whose confirmation is
	// lost, or which could not: the machine has both halves, boot after boot.
	for name, outcome := range map[string]string{
		"says what agents say that do not know of it": api.OutcomeUnlocked,
		"says nothing":        "",
		"could not do it":     api.OutcomeNotRekeyed(errors.New("input/output error")),
		"did not open":        "luks: no space",
		"says almost as much": api.OutcomeRekeyed + " ",
	} {
		r, secrets, transport := s.reboot(b, disk)
		if !bytes.Equal(secrets.DiskKey, old) || len(secrets.NextDiskKey) != 32 || bytes.Equal(secrets.NextDiskKey, old) {
			t.Fatalf("%s: the present half is not the old one, or the next one is missing", name)
		}
		if next != nil && !bytes.Equal(next, secrets.NextDiskKey) {
			t.Fatalf("%s: another next half than before", name)
		}
		next = secrets.NextDiskKey
		if outcome != "" {
			if status := s.confirm(r, transport, outcome); status != 200 {
				t.Errorf("%s: HTTP %d", name, status)
			}
		}
		if m := s.machine(b); m.Rotation == nil || m.NextKey == nil {
			t.Fatalf("%s: the rotation ended", name)
		}
	}
	if m := s.machine(b); m.Rotation.Failure != "input/output error" {
		t.Errorf("the failure is %q", m.Rotation.Failure)
	}

	r, _, transport := s.reboot(b, disk)
	for range 2 { // the answer to the first was lost
		if status := s.confirm(r, transport, api.OutcomeRekeyed); status != 200 {
			t.Errorf("confirm: HTTP %d", status)
		}
	}
	if m := s.machine(b); m.Rotation != nil || m.NextKey != nil || m.DiskKey.Volume != "state" {
		t.Errorf("record is %+v", m)
	}
	_, secrets, _ := s.reboot(b, disk)
	if !bytes.Equal(secrets.DiskKey, next) || secrets.NextDiskKey != nil {
		t.Error("the next half did not become the present one")
	}
	if got := strings.Count(s.kinds(), string(audit.KindDiskKey)); got != 2 {
		t.Errorf("the log has %d entries of the change, want 2: %s", got, strings.TrimPrefix(s.kinds(), before))
	}
}

func TestARotationOfADiskKeyIsRefusedOrAlreadyAsked(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	if status, _ := s.rotate(b, "x"); status != 404 {
		t.Errorf("an unknown machine: HTTP %d", status)
	}
	s.enrol(b)
	if status, _ := s.rotate(b, "x"); status != 409 {
		t.Errorf("a machine without a disk key: HTTP %d", status)
	}
	if status, _ := s.attest(b); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	if status, _ := s.rotate(b, " "); status != 400 {
		t.Errorf("no reason: HTTP %d", status)
	}
	var wg sync.WaitGroup
	ids := make([]string, 4)
	for i := range ids {
		wg.Go(func() {
			if status, m := s.rotate(b, "twice at once"); status == 200 && m.Rotation != nil {
				ids[i] = m.Rotation.ID
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Errorf("rotations are %q, want one", ids)
		}
	}
	if n := strings.Count(s.kinds(), string(audit.KindDiskKey)); n != 1 {
		t.Errorf("%d entries in the log, want 1", n)
	}
}

func TestADiskWithoutAStateGetsNoNextKey(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	if status, _ := s.attest(b); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	if status, _ := s.rotate(b, "early"); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	s.set(func() { s.boot.Reset++ })
	status, resp := s.attestFrom(b, disk, false)
	if status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	r, secrets, transport := s.open(resp)
	if secrets.NextDiskKey != nil {
		t.Error("the state could be made with either half")
	}
	// A release that did not hold the next key cannot confirm it.
	if status := s.confirm(r, transport, api.OutcomeRekeyed); status != 200 {
		t.Errorf("HTTP %d", status)
	}
	if m := s.machine(b); m.Rotation == nil || m.NextKey == nil {
		t.Error("the key was changed for a machine that does not have it")
	}
}

// Whatever becomes of the write of a confirmation, the machine has the half
// that opens its disk.
func TestAConfirmationThatIsLostLosesNoKey(t *testing.T) {
	for name, persisted := range map[string]bool{"and not written": false, "but written": true} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, nil)
			b, old := s.running()
			if status, _ := s.rotate(b, "x"); status != 200 {
				t.Fatalf("HTTP %d", status)
			}
			r, secrets, transport := s.reboot(b, disk)
			next := secrets.NextDiskKey
			s.set(func() { s.fail = func(string) (error, bool) { return errors.New("disk full"), persisted } })
			if status := s.confirm(r, transport, api.OutcomeRekeyed); status != 503 {
				t.Errorf("HTTP %d", status)
			}
			s.set(func() { s.fail = nil })
			r, secrets, transport = s.reboot(b, disk)
			has := bytes.Equal(secrets.DiskKey, next) || bytes.Equal(secrets.DiskKey, old) && bytes.Equal(secrets.NextDiskKey, next)
			if !has {
				t.Fatal("the half that opens the disk is lost")
			}
			if secrets.NextDiskKey == nil {
				return
			}
			if status := s.confirm(r, transport, api.OutcomeRekeyed); status != 200 {
				t.Errorf("HTTP %d", status)
			}
			if _, secrets, _ = s.reboot(b, disk); !bytes.Equal(secrets.DiskKey, next) || secrets.NextDiskKey != nil {
				t.Error("the next half did not become the present one")
			}
		})
	}
}

func TestAConfirmationOfAnEarlierRotationChangesNothing(t *testing.T) {
	s := newScene(t, nil)
	b, _ := s.running()
	s.rotate(b, "first")
	early, _, earlyTransport := s.reboot(b, disk)
	r, _, transport := s.reboot(b, disk)
	if status := s.confirm(r, transport, api.OutcomeRekeyed); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	s.rotate(b, "second")
	before := s.machine(b)
	if status := s.confirm(early, earlyTransport, api.OutcomeRekeyed); status != 200 {
		t.Errorf("HTTP %d", status)
	}
	if m := s.machine(b); m.Rotation == nil || m.Rotation.ID != before.Rotation.ID || !bytes.Equal(m.DiskKey.Box, before.DiskKey.Box) {
		t.Errorf("record is %+v", m)
	}
}

func TestADiskThatWasReplacedDuringARotationComesBackWithBothKeys(t *testing.T) {
	s := newScene(t, nil)
	b, old := s.running()
	s.rotate(b, "x")
	_, secrets, _ := s.reboot(b, disk)
	next := secrets.NextDiskKey
	s.reinstall(b, otherDisk, time.Unix(5000, 0))
	s.set(func() { s.boot.Reset++ })
	status, resp := s.attestFrom(b, otherDisk, false)
	if status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	if _, secrets, _ := s.open(resp); bytes.Equal(secrets.DiskKey, old) || bytes.Equal(secrets.DiskKey, next) || secrets.NextDiskKey != nil {
		t.Error("the new disk has a key of the old one")
	}
	if m := s.machine(b); m.Rotation != nil || m.NextKey != nil {
		t.Errorf("the rotation went to the new disk: %+v", m)
	}
	s.reinstall(b, disk, time.Unix(6000, 0))
	r, secrets, transport := s.reboot(b, disk)
	if !bytes.Equal(secrets.DiskKey, old) || !bytes.Equal(secrets.NextDiskKey, next) {
		t.Fatal("a half of the disk that came back is lost")
	}
	if status := s.confirm(r, transport, api.OutcomeRekeyed); status != 200 {
		t.Errorf("HTTP %d", status)
	}
	if _, secrets, _ := s.reboot(b, disk); !bytes.Equal(secrets.DiskKey, next) {
		t.Error("the next half did not become the present one")
	}
}

func TestADiskKeyOpensForItsMachineDiskAndVolumeOnly(t *testing.T) {
	for name, spoil := range map[string]func(*server.Machine){
		"of another machine's disk":  func(m *server.Machine) { m.DiskKey, m.NextKey = m.NextKey, m.DiskKey; m.DiskKey.Volume = "other" },
		"of a disk without a volume": func(m *server.Machine) { m.DiskKey.Volume = "" },
		"altered":                    func(m *server.Machine) { m.DiskKey.Box[20] ^= 1 },
		"cut":                        func(m *server.Machine) { m.DiskKey.Box = m.DiskKey.Box[:5] },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, nil)
			b, _ := s.running()
			s.rotate(b, "x")
			m := s.machine(b)
			spoil(m)
			if err := s.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
				t.Fatal(err)
			}
			s.set(func() { s.boot.Reset++ })
			if status, resp := s.attestFrom(b, disk, true); status != 500 || resp.Release != nil {
				t.Errorf("HTTP %d", status)
			}
			if after := s.machine(b); !bytes.Equal(after.DiskKey.Box, m.DiskKey.Box) {
				t.Error("the machine got another key")
			}
		})
	}
}
