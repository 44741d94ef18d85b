package server

import (
	"errors"
	"net/http"

	"github.com/sealift/sealift/attest/api"
)

// postPolicyEnable makes another policy that of the service.
func (s *Server) postPolicyEnable(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	var req api.PolicyEnable
	if f := readBody(w, r, api.MaxProposalBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	var f *failure
	if req.Reason, f = checkReason(req.Reason); f != nil {
		return nil, f
	}
	state, err := s.c.EnablePolicy(r.Context(), op.Name, &req)
	switch {
	case errors.Is(err, ErrRefused):
		f := &failure{status: http.StatusConflict, code: "policy-refused", text: clip(err.Error())}
		var h interface{ Hint() string }
		if errors.As(err, &h) {
			f.hint = h.Hint()
		}
		s.c.Log.Warn("policy not enabled", "by", op.Name, "error", err)
		return nil, f
	case err != nil:
		return nil, unavailable("the store", err)
	}
	return state, nil
}
