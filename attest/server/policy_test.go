package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// policies is a source of policies, one after the other.
type policies struct {
	mu       sync.Mutex
	revision int64  // guarded by mu
	holds    error  // guarded by mu: what PolicyHolds says, if the policy is the present one
	asked    int    // guarded by mu: how often a policy was
	next     func() // guarded by mu: called once when a policy has been given
}

func (p *policies) give(s *scene) *attest.Policy {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	given := &attest.Policy{ID: fmt.Sprint("policy-", p.revision), Revision: p.revision, TPM: attest.TPMPolicy{
		Roots:   []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: s.tpmCA.Root}, {Certificate: s.tpmCA.Issuer, Intermediate: true}},
		Allowed: []attest.TPMClass{attest.TPMSoftware},
	}}
	if p.next != nil {
		p.next()
		p.next = nil
	}
	return given
}

func (p *policies) stillHolds(given *attest.Policy) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if given.Revision != p.revision {
		return fmt.Errorf("another policy was enabled: %w", server.ErrConflict)
	}
	return p.holds
}

func newPolicyScene(t *testing.T) (*scene, *policies) {
	p := &policies{revision: 1}
	var s *scene
	s = newScene(t, func(c *server.Config) {
		c.Policy = func(context.Context, attest.MachineID) (*attest.Policy, error) { return p.give(s), nil }
		c.PolicyHolds = p.stillHolds
	})
	return s, p
}

func TestAReleaseIsDecidedAnewIfThePolicyChangesMeanwhile(t *testing.T) {
	s, p := newPolicyScene(t)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	p.asked = 0
	p.next = func() { p.revision = 2 } // between the verdict and the commit
	status, resp := s.attest(b)
	if status != 200 || resp.Result.Policy != "policy-2" || p.asked != 2 {
		t.Errorf("HTTP %d, %+v, asked %d times", status, resp.Result, p.asked)
	}
	if minted, open := s.tokens.n, s.tokens.open(); minted != 2 || open != 1 {
		t.Errorf("%d tokens minted, %d of them open; want 2, 1", minted, open)
	}
	if kinds := s.kinds(); strings.Count(kinds, string(audit.KindVerdict)) != 1 || strings.Count(kinds+" ", string(audit.KindRelease)+" ") != 1 {
		t.Errorf("the log has %s", kinds)
	}
}

func TestNothingIsReleasedByAPolicyThatNoLongerHolds(t *testing.T) {
	s, p := newPolicyScene(t)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	p.holds = errors.New("the store cannot be read")
	if status, _ := s.attest(b); status != 503 {
		t.Errorf("HTTP %d, want 503", status)
	}
	if kinds := s.kinds(); strings.Contains(kinds, string(audit.KindVerdict)) || s.tokens.open() != 0 {
		t.Errorf("the log has %s; %d tokens are open", kinds, s.tokens.open())
	}
	p.mu.Lock()
	p.holds = nil
	p.mu.Unlock()
	if status, _ := s.attest(b); status != 200 {
		t.Errorf("when it holds again: HTTP %d", status)
	}
}

// hinted is an error with a hint.
type hinted struct{ error }

func (hinted) Hint() string { return "sign it" }

func (h hinted) Unwrap() error { return h.error }

func TestAPolicyIsEnabledOverTheOperatorAPI(t *testing.T) {
	var got *api.PolicyEnable
	var by string
	var answer error
	s := newScene(t, func(c *server.Config) {
		c.EnablePolicy = func(_ context.Context, operator string, req *api.PolicyEnable) (*api.PolicyState, error) {
			got, by = req, operator
			return &api.PolicyState{Name: "fleet", Version: 2}, answer
		}
	})
	post := func(c *http.Client, req *api.PolicyEnable) (int, api.Error, api.PolicyState) {
		var e api.Error
		var state api.PolicyState
		status, body := s.raw(c, "POST", "https://"+s.operators+api.PathPolicy+"/enable", req)
		if err := errors.Join(json.Unmarshal(body, &e), json.Unmarshal(body, &state)); err != nil {
			t.Fatal(err)
		}
		return status, e, state
	}
	good := &api.PolicyEnable{Policy: []byte("text"), Bundle: []byte("signature"), Reason: " ticket "}
	if status, _, state := post(s.operator(), good); status != 200 || state.Version != 2 || by != "alice" || got.Reason != "ticket" || string(got.Policy) != "text" {
		t.Errorf("HTTP %d, %+v; by %q, %+v", status, state, by, got)
	}
	for _, role := range []string{"viewer", "operator", "auditor"} {
		if status, _, _ := post(s.httpClient(s.identity("bob", role)), good); status != 403 {
			t.Errorf("role %s: HTTP %d, want 403", role, status)
		}
	}
	if status, e, _ := post(s.operator(), &api.PolicyEnable{Policy: []byte("text")}); status != 400 || !strings.Contains(e.Message, "reason") {
		t.Errorf("without a reason: HTTP %d, %+v", status, e)
	}
	answer = hinted{fmt.Errorf("it is not signed: %w", server.ErrRefused)}
	if status, e, _ := post(s.operator(), good); status != 409 || e.Code != "policy-refused" || e.Hint != "sign it" || !strings.Contains(e.Message, "it is not signed") {
		t.Errorf("refused: HTTP %d, %+v", status, e)
	}
	answer = errors.New("disk of /var/x is full")
	if status, e, _ := post(s.operator(), good); status != 503 || strings.Contains(e.Message, "/var/x") {
		t.Errorf("a store that fails: HTTP %d, %+v", status, e)
	}
}
