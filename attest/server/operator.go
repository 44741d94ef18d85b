package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/image/manifest"
)

// maxOperatorBody bounds an operator's request body, bytes.
const maxOperatorBody = 256 << 10

// OperatorHandler serves the operator API to those whom authenticate knows.
func (s *Server) OperatorHandler() http.Handler {
	nodes := s.nodeRoutes()
	return s.guard(apiOperators, s.operatorRoutes(), func(r *http.Request) *failure {
		if serves(nodes, r) {
			return wrongListener("node")
		}
		return nil
	})
}

// operatorRoutes are the requests of the operator API, each with the role that
// it needs.
func (s *Server) operatorRoutes() *http.ServeMux {
	mux := http.NewServeMux()
	handle := func(pattern string, need api.Role, work func(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			op, done, f := s.admit(need, r)
			if f != nil {
				s.fail(w, r, f)
				return
			}
			defer done()
			body, f := work(op, w, r)
			if f != nil {
				s.fail(w, r, f)
			} else if body != nil {
				reply(w, http.StatusOK, body)
			}
		})
	}
	handle("GET "+api.PathMachines, api.RoleViewer, s.listMachines)
	handle("GET "+api.PathMachines+"/{id}", api.RoleViewer, s.getMachine)
	for _, t := range transitions() {
		handle("POST "+api.PathMachines+"/{id}/"+t.verb, t.need, func(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
			return s.postState(t, op, w, r)
		})
	}
	handle("POST "+api.PathMachines+"/{id}/rejoin", api.RoleOperator, s.postRejoin)
	handle("POST "+api.PathMachines+"/{id}/re-enrol", api.RoleApprover, s.postReEnrol)
	s.handleStore(handle)
	handle("GET "+api.PathExpected, api.RoleViewer, s.listExpected)
	handle("POST "+api.PathExpected, api.RoleOperator, s.postExpected)
	s.handleRecovery(handle)
	handle("POST "+api.PathMachines+"/{id}/rotate-key", api.RoleOperator, s.postRotateKey)
	handle("GET "+api.PathKEK, api.RoleViewer, s.getKEK)
	handle("POST "+api.PathKEKRewrap, api.RoleOperator, s.postRewrap)
	handle("POST "+api.PathInstalls, api.RoleOperator, s.postInstall)
	handle("GET "+api.PathRestore, api.RoleViewer, s.getRestore)
	handle("POST "+api.PathRestore+"/accept", api.RoleApprover, s.postAcceptRestore)
	handle("POST "+api.PathRestore+"/settle", api.RoleApprover, s.postSettleRestore)
	handle("GET "+api.PathAudit, api.RoleAuditor, s.getAudit)
	if s.c.AuditHead != nil {
		handle("GET "+api.PathAuditHead, api.RoleAuditor, s.getAuditHead)
	}
	handle("GET "+api.PathEvidenceLog+"/{digest}", api.RoleAuditor, s.getEvidence)
	handle("GET "+api.PathEvidenceLog+"/{digest}/explanation", api.RoleAuditor, s.getExplanation)
	if s.c.Propose != nil {
		handle("POST "+api.PathEvidenceLog+"/{digest}/explanation", api.RoleAuditor, s.postExplanation)
		handle("POST "+api.PathPolicy+"/whatif", api.RoleAuditor, s.postWhatIf)
	}
	if s.c.PolicyState != nil {
		handle("GET "+api.PathPolicy, api.RoleViewer, func(_ Operator, _ http.ResponseWriter, r *http.Request) (any, *failure) {
			state, err := s.c.PolicyState(r.Context())
			if err != nil {
				return nil, unavailable("the policy", err)
			}
			return state, nil
		})
	}
	if s.c.EnablePolicy != nil {
		handle("POST "+api.PathPolicy+"/enable", api.RoleApprover, s.postPolicyEnable)
	}
	if s.c.Campaigns != nil {
		campaigns := func(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
			r.Body = http.MaxBytesReader(w, r.Body, maxOperatorBody)
			s.c.Campaigns(op.Name, w, r)
			return nil, nil
		}
		for _, path := range []string{api.PathCampaigns, api.PathCampaigns + "/"} {
			handle("GET "+path, api.RoleViewer, campaigns)
			handle(path, api.RoleOperator, campaigns)
		}
	}
	return mux
}

func (s *Server) listMachines(_ Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	limit, f := pageLimit(r)
	if f != nil {
		return nil, f
	}
	v := r.URL.Query()
	q := Query{State: attest.EnrolmentState(v.Get("state")), NodeName: v.Get("node"), Limit: limit + 1}
	if after := v.Get("after"); after != "" {
		var err error
		if q.After, err = attest.ParseMachineID(after); err != nil {
			return nil, badRequest("after: %v", err)
		}
	}
	ms, err := s.c.Store.Machines(r.Context(), q)
	if err != nil {
		return nil, unavailable("the store", err)
	}
	ms = page(w, ms, limit, func(m *Machine) string { return m.ID.String() })
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

func (s *Server) getMachine(_ Operator, _ http.ResponseWriter, r *http.Request) (any, *failure) {
	id, f := machineID(r)
	if f != nil {
		return nil, f
	}
	m, err := s.c.Store.Machine(r.Context(), id)
	if errors.Is(err, ErrNotFound) {
		return nil, notFound(fmt.Sprintf("there is no machine %s", id))
	}
	var damaged *DamagedError
	if errors.As(err, &damaged) && damaged.Machine != nil {
		return &damaged.Machine.Machine, nil
	}
	if err != nil {
		return nil, unavailable("the store", err)
	}
	if m.Unproven, f = s.unprovenMachine(r.Context(), m); f != nil {
		return nil, f
	}
	return &m.Machine, nil
}

func (s *Server) postState(t transition, op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	id, f := machineID(r)
	if f != nil {
		return nil, f
	}
	var req api.StateChange
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	m, f := s.setState(r.Context(), id, t, op.Name, req.Reason)
	if f != nil {
		return nil, f
	}
	s.c.Log.Info("machine state set", "machine", id.Short(), "state", m.State, "by", op.Name)
	return m, nil
}

func (s *Server) postRejoin(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	id, f := machineID(r)
	if f != nil {
		return nil, f
	}
	var req api.StateChange
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	m, f := s.rejoin(r.Context(), id, op.Name, req.Reason)
	if f != nil {
		return nil, f
	}
	s.c.Log.Info("machine may join again", "machine", id.Short(), "by", op.Name)
	return m, nil
}

func (s *Server) postInstall(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	var rec api.InstallRecord
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &rec); f != nil {
		return nil, f
	}
	m, f := s.enrol(r.Context(), op.Name, &rec)
	if f != nil {
		return nil, f
	}
	s.c.Log.Info("machine enrolled", "machine", m.ID.Short(), "node", m.NodeName, "by", op.Name)
	return m, nil
}

// getAudit streams the log as JSON lines. With a machine only its entries are
// sent; such a part cannot be verified as a chain.
func (s *Server) getAudit(_ Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
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

func (s *Server) getEvidence(_ Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	b, f := s.storedEvidence(r)
	if f != nil {
		return nil, f
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b)
	return nil, nil
}

// storedEvidence returns the evidence that a request names.
func (s *Server) storedEvidence(r *http.Request) ([]byte, *failure) {
	var digest manifest.SHA256
	if err := digest.UnmarshalText([]byte(r.PathValue("digest"))); err != nil || digest.IsZero() {
		return nil, badRequest("digest is not 64 hex digits")
	}
	b, err := s.c.Store.Evidence(r.Context(), digest)
	var gone *PrunedError
	if errors.As(err, &gone) {
		return nil, s.prunedEvidence(r.Context(), gone)
	}
	if errors.Is(err, ErrNotFound) {
		return nil, notFound(fmt.Sprintf("there is no evidence %s", digest))
	}
	if err != nil {
		return nil, unavailable("the store", err)
	}
	return b, nil
}
