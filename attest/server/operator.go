package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/image/manifest"
)

// maxOperatorBody bounds an operator's request body, bytes.
const maxOperatorBody = 256 << 10

// OperatorHandler serves the operator API to holders of a client certificate
// that the TLS listener verified and whose subject names the organization
// api.OperatorOrganization.
func (s *Server) OperatorHandler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, work func(operator string, w http.ResponseWriter, r *http.Request) (any, *failure)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			name, err := operatorOf(r.TLS)
			if err != nil {
				s.fail(w, r, &failure{status: http.StatusForbidden, code: "forbidden", text: err.Error()})
				return
			}
			if !s.operatorSlots.take(r.Context(), s.c.Limits.Queue) {
				s.fail(w, r, busy())
				return
			}
			defer s.operatorSlots.release()
			body, f := work(name, w, r)
			if f != nil {
				s.fail(w, r, f)
			} else if body != nil {
				reply(w, http.StatusOK, body)
			}
		})
	}
	handle("GET "+api.PathMachines, s.listMachines)
	handle("GET "+api.PathMachines+"/{id}", s.getMachine)
	for _, t := range transitions() {
		handle("POST "+api.PathMachines+"/{id}/"+t.verb, func(operator string, w http.ResponseWriter, r *http.Request) (any, *failure) {
			return s.postState(t, operator, w, r)
		})
	}
	handle("POST "+api.PathMachines+"/{id}/rejoin", s.postRejoin)
	handle("POST "+api.PathInstalls, s.postInstall)
	handle("GET "+api.PathAudit, s.getAudit)
	handle("GET "+api.PathEvidenceLog+"/{digest}", s.getEvidence)
	if s.c.Campaigns != nil {
		campaigns := func(operator string, w http.ResponseWriter, r *http.Request) (any, *failure) {
			r.Body = http.MaxBytesReader(w, r.Body, maxOperatorBody)
			s.c.Campaigns(operator, w, r)
			return nil, nil
		}
		handle(api.PathCampaigns, campaigns)
		handle(api.PathCampaigns+"/", campaigns)
	}
	return s.guard(mux)
}

// operatorOf returns the name of the operator at the other end, who must have
// shown a certificate that the listener verified.
func operatorOf(c *tls.ConnectionState) (string, error) {
	if c == nil || c.Version != tls.VersionTLS13 {
		return "", errors.New("the connection is not TLS 1.3")
	}
	if len(c.VerifiedChains) == 0 || len(c.VerifiedChains[0]) == 0 {
		return "", errors.New("no client certificate was verified")
	}
	subject := c.VerifiedChains[0][0].Subject
	if !slices.Contains(subject.Organization, api.OperatorOrganization) {
		return "", fmt.Errorf("the client certificate is not of the organization %q", api.OperatorOrganization)
	}
	if subject.CommonName == "" {
		return "", errors.New("the client certificate has no common name")
	}
	return subject.CommonName, nil
}

func (s *Server) listMachines(_ string, _ http.ResponseWriter, r *http.Request) (any, *failure) {
	q := r.URL.Query()
	ms, err := s.c.Store.Machines(r.Context(), Query{State: attest.EnrolmentState(q.Get("state")), NodeName: q.Get("node")})
	if err != nil {
		return nil, unavailable("the store", err)
	}
	out := make([]*api.Machine, 0, len(ms))
	for _, m := range ms {
		out = append(out, &m.Machine)
	}
	return out, nil
}

func machineID(r *http.Request) (attest.MachineID, *failure) {
	id, err := attest.ParseMachineID(r.PathValue("id"))
	if err != nil {
		return id, badRequest("%v", err)
	}
	return id, nil
}

func (s *Server) getMachine(_ string, _ http.ResponseWriter, r *http.Request) (any, *failure) {
	id, f := machineID(r)
	if f != nil {
		return nil, f
	}
	m, err := s.c.Store.Machine(r.Context(), id)
	if errors.Is(err, ErrNotFound) {
		return nil, notFound(fmt.Sprintf("there is no machine %s", id))
	}
	if err != nil {
		return nil, unavailable("the store", err)
	}
	return &m.Machine, nil
}

func (s *Server) postState(t transition, operator string, w http.ResponseWriter, r *http.Request) (any, *failure) {
	id, f := machineID(r)
	if f != nil {
		return nil, f
	}
	var req api.StateChange
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	m, f := s.setState(r.Context(), id, t, operator, req.Reason)
	if f != nil {
		return nil, f
	}
	s.c.Log.Info("machine state set", "machine", id.Short(), "state", m.State, "by", operator)
	return m, nil
}

func (s *Server) postRejoin(operator string, w http.ResponseWriter, r *http.Request) (any, *failure) {
	id, f := machineID(r)
	if f != nil {
		return nil, f
	}
	var req api.StateChange
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	m, f := s.rejoin(r.Context(), id, operator, req.Reason)
	if f != nil {
		return nil, f
	}
	s.c.Log.Info("machine may join again", "machine", id.Short(), "by", operator)
	return m, nil
}

func (s *Server) postInstall(operator string, w http.ResponseWriter, r *http.Request) (any, *failure) {
	var rec api.InstallRecord
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &rec); f != nil {
		return nil, f
	}
	m, f := s.enrol(r.Context(), operator, &rec)
	if f != nil {
		return nil, f
	}
	s.c.Log.Info("machine enrolled", "machine", m.ID.Short(), "node", m.NodeName, "by", operator)
	return m, nil
}

// getAudit streams the log as JSON lines. With a machine only its entries are
// sent; such a part cannot be verified as a chain.
func (s *Server) getAudit(_ string, w http.ResponseWriter, r *http.Request) (any, *failure) {
	q := r.URL.Query()
	from := int64(1)
	if v := q.Get("from"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 1 {
			return nil, badRequest("from is %q, want a number from 1", v)
		}
		from = n
	}
	var machine attest.MachineID
	if v := q.Get("machine"); v != "" {
		id, err := attest.ParseMachineID(v)
		if err != nil {
			return nil, badRequest("%v", err)
		}
		machine = id
	}
	return nil, s.streamAudit(r.Context(), w, from, machine)
}

// streamAudit writes entries as they are read. An error after the first byte
// cuts the connection, so that the reader cannot take a part for the whole.
func (s *Server) streamAudit(ctx context.Context, w http.ResponseWriter, from int64, machine attest.MachineID) *failure {
	rc := http.NewResponseController(w)
	var line []byte
	started := false
	for e, err := range s.c.Store.Audit(ctx, from) {
		if err == nil && !machine.IsZero() && e.Machine != machine {
			continue
		}
		if err == nil {
			line, err = audit.AppendLine(line[:0], e)
		}
		if err != nil {
			if !started {
				return unavailable("the store", err)
			}
			s.c.Log.Error("audit log not sent to its end", "error", err)
			panic(http.ErrAbortHandler)
		}
		if !started {
			started = true
			w.Header().Set("Content-Type", "application/jsonl")
			w.Header().Set("Cache-Control", "no-store")
		}
		// Not every ResponseWriter has deadlines; those of tests do not.
		_ = rc.SetWriteDeadline(time.Now().Add(bodyTimeout))
		if _, err := w.Write(line); err != nil {
			return nil // the reader went away
		}
	}
	if !started {
		w.Header().Set("Content-Type", "application/jsonl")
		w.WriteHeader(http.StatusOK)
	}
	_ = rc.SetWriteDeadline(time.Time{})
	return nil
}

func (s *Server) getEvidence(_ string, w http.ResponseWriter, r *http.Request) (any, *failure) {
	var digest manifest.SHA256
	if err := digest.UnmarshalText([]byte(r.PathValue("digest"))); err != nil || digest.IsZero() {
		return nil, badRequest("digest is not 64 hex digits")
	}
	b, err := s.c.Store.Evidence(r.Context(), digest)
	if errors.Is(err, ErrNotFound) {
		return nil, notFound(fmt.Sprintf("there is no evidence %s", digest))
	}
	if err != nil {
		return nil, unavailable("the store", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b)
	return nil, nil
}
