package server

import (
	"errors"
	"net/http"
)

// The signed head of the audit log, an audit.Envelope of an audit.HeadStatement, is
// kept in a document of this kind and name.
const (
	KindSignedHead = "audit-head"
	NameSignedHead = "last"
)

// getAuditHead signs where the audit log ends.
func (s *Server) getAuditHead(_ Operator, _ http.ResponseWriter, r *http.Request) (any, *failure) {
	e, err := s.c.AuditHead(r.Context())
	if errors.Is(err, ErrRefused) {
		return nil, conflict(clip(err.Error()), "the service does not vouch for this log: keep a copy of the store, and compare it with the last export")
	}
	if err != nil {
		return nil, unavailable("the signed head of the audit log", err)
	}
	return e, nil
}
