package server_test

import (
	"slices"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/server"
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
