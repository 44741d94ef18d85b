package server_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// A machine that boots over and over, and keeps each confirmation back, leaves room for
// the confirmations of others: nobody has to be cut for them.
func TestOneMachineLeavesRoomForOthersConfirmations(t *testing.T) {
	t.Parallel()
	g := &gauge{all: map[string]int{}}
	s := newScene(t, func(c *server.Config) { c.Meter, c.Limits = g, server.Limits{Concurrent: 3, EKBurst: 1000} })
	release := func(b *box, guid string) *node {
		n, evidence := s.slow(b, guid)
		n.say(string(evidence))
		if resp := new(api.EvidenceResponse); n.answer(resp) != 200 {
			t.Fatalf("not released: %s", codes(resp.Result))
		}
		return n
	}
	b, guid := s.another(0)
	var held []*node
	for range 6 {
		held = append(held, release(b, guid))
		s.set(func() { s.boot.Reset++ })
	}
	var others []*node
	for i := range 3 {
		others = append(others, release(s.another(i+1)))
	}
	for i, n := range held {
		n.say("POST /v1/confirm HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
		if i < 2 { // they are let in
			if resp, err := http.ReadResponse(n.r, nil); err != nil || resp.StatusCode != 100 {
				t.Fatalf("%+v, %v", resp, err)
			}
		}
	}
	for _, n := range others {
		n.say(post(api.PathConfirm, "{}"))
		if status, code := n.hear(); status != 400 {
			t.Errorf("HTTP %d %s, want 400", status, code)
		}
	}
	if n := g.count("limited node slow"); n != 0 {
		t.Errorf("%d were cut, want none", n)
	}
}

// What follows a report has no room of confirmations: a machine may report as often as
// it likes, and over any number of connections.
func TestAReportGivesNoRoomToConfirm(t *testing.T) {
	t.Parallel()
	for name, report := range map[string]bool{"a release does": false, "a report does not": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, b, _ := reporting(t, func(c *server.Config) { c.Limits.Queue = time.Millisecond })
			n := s.node(t)
			purpose := attest.PurposeUnlock
			if report {
				purpose = attest.PurposeReport
			} else {
				s.set(func() { s.boot.Reset++ })
			}
			ch := new(api.Challenge)
			n.say(post(api.PathChallenge, string(mustJSON(t, &api.ChallengeRequest{
				Version: api.Version, Purpose: purpose, EKPublic: b.ekPublic, AKPublic: b.akPublic,
			}))))
			if status := n.answer(ch); status != 200 {
				t.Fatalf("challenge: HTTP %d", status)
			}
			req := &api.EvidenceRequest{ChallengeID: ch.ID, Evidence: attest.Evidence{EKPublic: b.ekPublic, AKPublic: b.akPublic, Disk: attest.Disk{GUID: disk, StateExists: true}}}
			if !report {
				req = s.answer(b, ch)
			}
			n.say(post(api.PathEvidence, string(mustJSON(t, req))))
			if resp := new(api.EvidenceResponse); n.answer(resp) != 200 {
				t.Fatalf("refused: %s", codes(resp.Result))
			}
			// The share of this address is full, and there is no room for a confirmation.
			s.occupy(8)
			n.say(post(api.PathConfirm, "{}"))
			want := 400
			if report {
				want = 503
			}
			if status, code := n.hear(); status != want {
				t.Errorf("HTTP %d %s, want %d", status, code, want)
			}
		})
	}
}
