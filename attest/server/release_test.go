package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

func TestAnEnrolledMachineGetsItsSecretsAndTheLogTellsIt(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	status, resp := s.attest(b)
	if status != 200 || !resp.Result.Allowed {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	r, secrets, transport := s.open(resp)
	if r.Machine != b.id || len(secrets.DiskKey) != 32 || secrets.NodeName != "box-"+b.id.String()[:10] {
		t.Errorf("release %+v, secrets %+v", r, secrets)
	}
	if secrets.Join == nil || string(secrets.Join.Token) != s.tokens.secrets[0] || secrets.Join.Server == "" {
		t.Errorf("join is %+v", secrets.Join)
	}
	if len(s.accepted) != 1 || s.accepted[0] != b.id {
		t.Errorf("the firmware observer was told of %v", s.accepted)
	}
	confirm := &api.ConfirmRequest{ReleaseID: r.ID, Outcome: api.OutcomeUnlocked, Proof: api.ConfirmProof(transport, r.ID, api.OutcomeUnlocked)}
	for range 2 { // the second is what a client sends whose first answer was lost
		if status := s.call(s.httpClient(), "POST", "https://"+s.nodes+api.PathConfirm, confirm, nil); status != 200 {
			t.Errorf("confirm: HTTP %d", status)
		}
	}
	if m := s.machine(b); !m.StateMade || !m.Released || !m.LastAllowed || m.Image != "demo 1" {
		t.Errorf("record is %+v", m)
	}
	if got, want := s.kinds(), "service.start machine.install machine.state evidence.verdict token release release.confirm"; got != want {
		t.Errorf("log is  %s\nwant    %s", got, want)
	}

	// The next boot: the same disk key.
	s.set(func() { s.boot.Reset++ })
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	req.Evidence.Disk.StateExists = true
	status, resp = s.send(c, req)
	if status != 200 {
		t.Fatalf("next boot: HTTP %d, %s", status, codes(resp.Result))
	}
	if _, again, _ := s.open(resp); !bytes.Equal(again.DiskKey, secrets.DiskKey) {
		t.Error("the disk key changed between boots")
	}
}

func TestAChallengeIsAnsweredOnce(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	if status, resp := s.send(c, req); status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	s.set(func() { s.boot.Reset++ }) // so that nothing but the challenge refuses
	status, resp := s.send(c, req)
	if status != 403 || codes(resp.Result) != string(attest.CodeChallenge) || resp.Release != nil {
		t.Errorf("replay: HTTP %d, %s", status, codes(resp.Result))
	}
	if !strings.HasSuffix(s.kinds(), "challenge.refused") {
		t.Errorf("log is %s", s.kinds())
	}
}

func TestARefusedChallengeIsGoneToo(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	s.set(func() { s.refuse = []attest.Finding{{Code: attest.CodeCmdline, Message: "m"}} })
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	if status, resp := s.send(c, req); status != 403 || codes(resp.Result) != string(attest.CodeCmdline) {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	s.set(func() { s.refuse = nil })
	if status, resp := s.send(c, req); status != 403 || codes(resp.Result) != string(attest.CodeChallenge) {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
}

func TestOfConcurrentEvidenceForOneChallengeOneIsReleased(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	for round := range 5 {
		s.set(func() { s.boot.Reset = uint32(10 + round) })
		c := s.httpClient()
		req := s.answer(b, s.challenge(c, b))
		s.releasesOf(8, func() (int, *api.EvidenceResponse) { return s.send(c, req) }, string(attest.CodeChallenge))
	}
}

func TestOfConcurrentChallengesInOneBootOneIsReleased(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	for round := range 5 {
		s.set(func() { s.boot.Reset = uint32(10 + round) })
		s.releasesOf(8, func() (int, *api.EvidenceResponse) { return s.attest(b) }, string(attest.CodeReleaseRepeated))
	}
	if n := s.tokens.open(); n != 5 {
		t.Errorf("%d tokens are out after 5 releases", n)
	}
}

// releasesOf makes n calls at once and wants one release and refusals.
func (s *scene) releasesOf(n int, call func() (int, *api.EvidenceResponse), code string) {
	s.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	released := 0
	for range n {
		wg.Go(func() {
			status, resp := call()
			mu.Lock()
			defer mu.Unlock()
			switch {
			case status == 200 && resp.Release != nil:
				released++
			case status == 503: // gave up on a record that changed under it
			case status != 403 || codes(resp.Result) != code:
				s.Errorf("HTTP %d, %s", status, codes(resp.Result))
			}
		})
	}
	wg.Wait()
	if released != 1 {
		s.Errorf("%d releases, want 1", released)
	}
}

// A record restored from an older copy does not know of the release, but the
// releases do.
func TestAReleaseIsUniqueEvenIfTheRecordForgot(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	if status, _ := s.attest(b); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	m := s.machine(b)
	m.Released = false
	if err := s.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	status, resp := s.attest(b)
	if status != 403 || codes(resp.Result) != string(attest.CodeReleaseRepeated) || resp.Result.Allowed || resp.Release != nil {
		t.Errorf("HTTP %d, %+v", status, resp)
	}
	if n := s.tokens.open(); n != 1 {
		t.Errorf("%d tokens are out, want 1", n)
	}
}

func TestNoSecretLeavesWhenTheStoreFails(t *testing.T) {
	for _, persisted := range []bool{false, true} {
		t.Run(fmt.Sprintf("persisted %t", persisted), func(t *testing.T) {
			s := newScene(t, nil)
			b := newBox(t, s.tpmCA)
			s.enrol(b)
			c := s.httpClient()
			req := s.answer(b, s.challenge(c, b))
			s.set(func() {
				s.fail = func(method string) (error, bool) {
					if method == "Commit" {
						return errors.New("disk on fire"), persisted
					}
					return nil, false
				}
			})
			status, body := s.raw(c, "POST", "https://"+s.nodes+api.PathEvidence, req)
			if status != 503 || bytes.Contains(body, []byte("release\"")) || bytes.Contains(body, []byte("fire")) {
				t.Errorf("HTTP %d: %s", status, body)
			}
			if n := s.tokens.open(); n != 0 {
				t.Errorf("%d tokens are out that nobody got", n)
			}
			if !strings.Contains(s.log.String(), "disk on fire") {
				t.Error("the cause is not in the log")
			}
			s.set(func() { s.fail = nil })
			s.kinds() // the chain holds

			// A release that was persisted counts, although nobody got it.
			want := 200
			if persisted {
				want = 403
			}
			if status, resp := s.attest(b); status != want {
				t.Errorf("again in this boot: HTTP %d, %s; want %d", status, codes(resp.Result), want)
			}
			s.set(func() { s.boot.Reset++ })
			if status, resp := s.attest(b); status != 200 {
				t.Errorf("next boot: HTTP %d, %s", status, codes(resp.Result))
			}
		})
	}
}

func TestAChallengeIsAnsweredOnceAndOverItsConnection(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	c := s.httpClient()
	first := s.answer(b, s.challenge(c, b))
	if status, resp := s.send(s.httpClient(), first); status != 403 || codes(resp.Result) != string(attest.CodeChallenge) {
		t.Errorf("over another connection: HTTP %d, %s", status, codes(resp.Result))
	}
	second := s.answer(b, s.challenge(c, b))
	if status, resp := s.send(c, first); status != 403 || codes(resp.Result) != string(attest.CodeChallenge) {
		t.Errorf("the one before the last: HTTP %d, %s", status, codes(resp.Result))
	}
	if status, resp := s.send(c, second); status != 200 {
		t.Errorf("the last one: HTTP %d, %s", status, codes(resp.Result))
	}
	if status, resp := s.send(c, second); status != 403 || codes(resp.Result) != string(attest.CodeChallenge) {
		t.Errorf("the last one again: HTTP %d, %s", status, codes(resp.Result))
	}
}

func TestOfConcurrentTakesOfAChallengeOneGetsIt(t *testing.T) {
	conn := server.NewConnection(&attest.Challenge{ID: "c"})
	var won atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if conn("c") {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("taken %d times", won.Load())
	}
}

func TestATokenThatCannotBeMintedHoldsTheReleaseBack(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	s.tokens.fail = errors.New("no cluster")
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	var e api.Error
	if status := s.call(c, "POST", "https://"+s.nodes+api.PathEvidence, req, &e); status != 503 || e.Code != "unavailable" {
		t.Errorf("HTTP %d, %+v", status, e)
	}
	if m := s.machine(b); m.Released || m.DiskKey != nil {
		t.Errorf("record is %+v", m)
	}
	s.tokens.fail = nil
	s.tokens.life = time.Hour
	c = s.httpClient()
	if status, body := s.raw(c, "POST", "https://"+s.nodes+api.PathEvidence, s.answer(b, s.challenge(c, b))); status != 500 {
		t.Errorf("a token that lives too long: HTTP %d: %s", status, body)
	}
	if n := s.tokens.open(); n != 0 {
		t.Errorf("%d tokens are out", n)
	}
	s.tokens.life = time.Minute
	if status, resp := s.attest(b); status != 200 {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
}

func TestAMachineThatJoinedGetsNoToken(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	_, resp := s.attest(b)
	_, secrets, _ := s.open(resp)
	name := secrets.NodeName
	for _, ev := range []audit.Token{
		{Event: audit.TokenJoined, ID: "another", NodeName: name},
		{Event: audit.TokenUsed, ID: "tok001", NodeName: name},
	} {
		if err := s.srv.TokenEvent(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
		if s.machine(b).Joined {
			t.Errorf("joined by %+v", ev)
		}
	}
	for _, e := range []audit.TokenEvent{audit.TokenJoined, audit.TokenRevoked} {
		if err := s.srv.TokenEvent(t.Context(), audit.Token{Event: e, ID: "tok001", NodeName: name}); err != nil {
			t.Fatal(err)
		}
	}
	if m := s.machine(b); !m.Joined || m.TokenID != "" {
		t.Errorf("record is %+v", m)
	}
	if err := s.srv.TokenEvent(t.Context(), audit.Token{NodeName: "box-none"}); !errors.Is(err, server.ErrNotFound) {
		t.Errorf("an unknown node: %v", err)
	}
	s.set(func() { s.boot.Reset++ })
	_, resp = s.attest(b)
	if _, secrets, _ := s.open(resp); secrets.Join != nil {
		t.Error("a joined machine got another token")
	}
}

func TestConfirmNeedsTheTransportSecret(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	_, resp := s.attest(b)
	r, _, transport := s.open(resp)
	good := api.ConfirmProof(transport, r.ID, api.OutcomeUnlocked)
	for name, req := range map[string]*api.ConfirmRequest{
		"another outcome":  {ReleaseID: r.ID, Outcome: "failed", Proof: good},
		"another release":  {ReleaseID: strings.Repeat("0", 32), Outcome: api.OutcomeUnlocked, Proof: good},
		"no proof":         {ReleaseID: r.ID, Outcome: api.OutcomeUnlocked},
		"no outcome":       {ReleaseID: r.ID, Proof: good},
		"an endless one":   {ReleaseID: r.ID, Outcome: strings.Repeat("x", api.MaxOutcome+1), Proof: good},
		"an endless id":    {ReleaseID: strings.Repeat("x", 65), Outcome: api.OutcomeUnlocked, Proof: good},
		"another's secret": {ReleaseID: r.ID, Outcome: api.OutcomeUnlocked, Proof: api.ConfirmProof(make(attest.Secret, 32), r.ID, api.OutcomeUnlocked)},
	} {
		if status := s.call(s.httpClient(), "POST", "https://"+s.nodes+api.PathConfirm, req, nil); status != 403 && status != 400 {
			t.Errorf("%s: HTTP %d", name, status)
		}
	}
	if m := s.machine(b); m.StateMade {
		t.Error("a false confirmation counts")
	}
	failed := &api.ConfirmRequest{ReleaseID: r.ID, Outcome: "luks: no space", Proof: api.ConfirmProof(transport, r.ID, "luks: no space")}
	if status := s.call(s.httpClient(), "POST", "https://"+s.nodes+api.PathConfirm, failed, nil); status != 200 {
		t.Errorf("HTTP %d", status)
	}
	if m := s.machine(b); m.StateMade {
		t.Error("a state partition is believed to exist after a failure")
	}
	late := &api.ConfirmRequest{ReleaseID: r.ID, Outcome: api.OutcomeUnlocked, Proof: good}
	if status := s.call(s.httpClient(), "POST", "https://"+s.nodes+api.PathConfirm, late, nil); status != 403 {
		t.Errorf("a second, different confirmation: HTTP %d", status)
	}
	stored, err := s.memory.Release(t.Context(), r.ID)
	if err != nil || stored.Transport != nil {
		t.Errorf("the transport secret is kept after the confirmation: %+v, %v", stored, err)
	}
}

// TestSecretsStayWhereTheyBelong looks for every secret in everything that is
// kept or said.
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	status, resp := s.attest(b)
	if status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	r, secrets, transport := s.open(resp)
	var kept bytes.Buffer
	add := func(v any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if raw, ok := v.([]byte); ok {
			kept.Write(raw)
			return
		}
		j, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		kept.Write(j)
	}
	add(s.memory.Machines(t.Context(), server.Query{}))
	add(s.memory.Release(t.Context(), r.ID))
	for e, err := range s.memory.Audit(t.Context(), 1) {
		add(e, err)
		if e.Kind == audit.KindVerdict {
			var v audit.Verdict
			if err := json.Unmarshal(e.Data, &v); err != nil {
				t.Fatal(err)
			}
			add(s.memory.Evidence(t.Context(), v.Evidence))
		}
	}
	kept.WriteString(s.log.String())
	add(resp.Result, nil)
	text := kept.Bytes()
	for name, secret := range map[string][]byte{"disk key": secrets.DiskKey, "transport secret": transport, "join token": secrets.Join.Token} {
		for form, b := range map[string][]byte{"raw": secret, "hex": fmt.Appendf(nil, "%x", []byte(secret)), "base64": bytes.Trim(mustJSON(t, []byte(secret)), `"`)} {
			if bytes.Contains(text, b) {
				t.Errorf("the %s is kept or logged in %s", name, form)
			}
		}
	}
	if _, value, _ := strings.Cut(string(secrets.Join.Token), "."); bytes.Contains(text, []byte(value)) {
		t.Error("the token's secret half is kept or logged")
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestADiskKeyOpensForItsMachineOnly(t *testing.T) {
	s := newScene(t, nil)
	a, b := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	s.enrol(a)
	if status, _ := s.attest(a); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	rec := record(b)
	rec.DiskGUID = strings.Replace(disk, "6a", "6b", 1)
	if _, err := s.srv.Enrol(t.Context(), "line-1", rec); err != nil {
		t.Fatal(err)
	}
	// Whoever can write the database gives b the key of a.
	m := s.machine(b)
	m.DiskKey = s.machine(a).DiskKey
	if err := s.memory.Commit(context.Background(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	req.Evidence.Disk.GUID = rec.DiskGUID
	if status, body := s.raw(c, "POST", "https://"+s.nodes+api.PathEvidence, req); status != 500 {
		t.Errorf("HTTP %d: %s", status, body)
	}
}
