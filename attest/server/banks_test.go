package server_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
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

// A machine that was approved without a bank since the backup is not held against it
// after a restore; any other machine is.
func TestARestoreKeepsTheBanksUnlessAnApproverSaidSo(t *testing.T) {
	for name, approved := range map[string]bool{"approved": true, "not approved": false} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, nil)
			b := newBox(s, s.tpmCA)
			s.enrol(b)
			boot := func(reset uint32, bank string) {
				t.Helper()
				s.set(func() {
					s.boot = server.Boot{Reset: reset, Clock: 1, State: &attest.Boot{ResetCount: reset, PCRs: map[string][]byte{bank: {1}}}}
				})
				if status, resp := s.attestFrom(b, disk, true); status != 200 {
					t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
				}
			}
			boot(10, "sha256")
			file := s.backUp()
			if approved {
				if status := s.post(b, "approve"); status != 200 {
					t.Fatalf("approve: HTTP %d", status)
				}
			}
			boot(11, "sha384")
			memory, _ := s.restored(func(o *backup.Order) { o.Log, o.Head = bytes.NewReader(s.exportLog(1)), s.head() }, file)
			m, err := memory.Machine(t.Context(), b.id)
			if err != nil {
				t.Fatal(err)
			}
			if held := slices.Contains(m.Banks, "sha256"); held == approved {
				t.Errorf("the machine is held against %q", m.Banks)
			}
		})
	}
}
