package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/image/manifest"
)

// maxExplained bounds the refusals and differences that an audit entry keeps.
const maxExplained = 16

// explain explains a result. Without the evidence of the last accepted boot it
// says only what is wrong.
func (s *Server) explain(ctx context.Context, ev *attest.Evidence, r *attest.Result, p *attest.Policy, accepted manifest.SHA256) *attest.Explanation {
	var last *attest.Evidence
	if !accepted.IsZero() {
		b, err := s.c.Store.Evidence(ctx, accepted)
		var stored *api.StoredEvidence
		if err == nil {
			stored, err = api.DecodeEvidence(b)
		}
		var gone *PrunedError
		if errors.As(err, &gone) {
			s.c.Log.Info("last accepted evidence was pruned", "machine", r.Machine.Short(), "evidence", accepted, "entry", gone.Entry)
		} else if err != nil {
			s.c.Log.Error("last accepted evidence not read", "machine", r.Machine.Short(), "evidence", accepted, "error", err)
		} else {
			last = &stored.Evidence
		}
	}
	return attest.Explain(r, ev, p, last)
}

func (s *Server) getExplanation(_ Operator, _ http.ResponseWriter, r *http.Request) (any, *failure) {
	return s.explainStored(r, s.c.Policy)
}

// postExplanation explains under a proposal.
func (s *Server) postExplanation(_ Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	proposal, f := s.proposal(w, r)
	if f != nil {
		return nil, f
	}
	return s.explainStored(r, proposal.Then)
}

// explainStored appraises the evidence that a request names again, and explains
// the result.
func (s *Server) explainStored(r *http.Request, policy func(context.Context, attest.MachineID) (*attest.Policy, error)) (any, *failure) {
	b, f := s.storedEvidence(r)
	if f != nil {
		return nil, f
	}
	stored, err := api.DecodeEvidence(b)
	if err != nil {
		return nil, internal(err)
	}
	p, err := policy(r.Context(), stored.Machine)
	if err != nil {
		return nil, unavailable("the policy", fmt.Errorf("policy of machine %s: %w", stored.Machine, err))
	}
	var accepted manifest.SHA256
	m, err := s.c.Store.Machine(r.Context(), stored.Machine)
	switch {
	case err == nil:
		accepted = m.AcceptedEvidence
	case !errors.Is(err, ErrNotFound) && !errors.As(err, new(*DamagedError)):
		return nil, unavailable("the store", err)
	}
	return s.explain(r.Context(), &stored.Evidence, stored.Appraise(p), p, accepted), nil
}
