package server

import (
	"context"
	"errors"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
)

// claim returns which machine the sender of a request for a challenge says it is:
// one that is enrolled, pending or expected. Nothing but its connection's worth rests
// on that (crowd), so a store that does not answer makes it none.
func (s *Server) claim(ctx context.Context, p peer, req *api.ChallengeRequest) claim {
	id, err := attest.EKMachineID(req.EKPublic)
	if err != nil {
		return claim{}
	}
	m, err := s.c.Store.Machine(ctx, id)
	if errors.Is(err, ErrNotFound) {
		docs := s.documents()
		alias, f := s.aliasOf(ctx, docs, id)
		if f != nil {
			return claim{}
		}
		if alias == nil {
			if e, f := docs.expectation(ctx, digestsOf(req.EKPublic, req.EKCertificates)); f != nil || e == nil {
				return claim{}
			}
			return claim{machine: id}
		}
		m, err = alias, nil
	}
	if err != nil || m.State != attest.StateEnrolled && m.State != attest.StatePending {
		return claim{}
	}
	return claim{machine: m.ID, home: sameNetwork(m.Address, p.address)}
}
