package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/recovery"
)

// documentRecovery is the kind of the documents that hold the last recovery of
// each machine, named by its id.
const documentRecovery = "recovery"

// maxRecovery is how long a recovery may take from its opening to the code, and
// how long the code is good for.
const maxRecovery = time.Hour

// recoveryState is a recovery as it is stored: with what tells people apart.
type recoveryState struct {
	api.Recovery
	// Credentials are those of By, and of each approval at its place.
	Credential  string   `json:"credential,omitempty"`
	Credentials []string `json:"credentials,omitempty"`
}

// person is who asks: the operator, and the digest of the key that authenticated
// them, if they showed a certificate, or of their token's subject. One name with
// two keys is one person, and so are two names with one key or subject. Of other
// names, people says it.
type person struct {
	Operator
	credential string
}

func personOf(op Operator, r *http.Request) person {
	p := person{Operator: op}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 && len(r.TLS.VerifiedChains[0]) > 0 {
		d := sha256.Sum256(r.TLS.VerifiedChains[0][0].RawSubjectPublicKeyInfo)
		p.credential = hex.EncodeToString(d[:])
	} else if op.Subject != "" {
		d := sha256.Sum256([]byte("sealift token subject v1\x00" + op.Subject))
		p.credential = hex.EncodeToString(d[:])
	}
	return p
}

// is reports whether p is known to be who had a name and a credential.
func (s *Server) is(p person, name, credential string) bool {
	return s.people.same(p.Name, name) || p.credential != "" && p.credential == credential
}

// isAnother reports whether p is known not to be who had a name and a credential.
// What neither says is for neither to decide.
func (s *Server) isAnother(p person, name, credential string) bool {
	return s.people.differ(p.Name, name) && (p.credential == "" || p.credential != credential)
}

// handleRecovery registers the operations of a recovery.
func (s *Server) handleRecovery(handle func(pattern string, need api.Role, work func(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure))) {
	at := api.PathMachines + "/{id}"
	handle("GET "+at+api.PathRecovery, api.RoleViewer, s.getRecovery)
	handle("POST "+at+api.PathRecovery, api.RoleOperator, recoveryStep(s.openRecovery))
	handle("POST "+at+api.PathRecoveryApprove, api.RoleApprover, recoveryStep(s.approveRecovery))
	handle("POST "+at+api.PathRecoveryCode, api.RoleOperator, recoveryStep(s.takeRecovery))
}

// recoveryStep reads the machine and the body of a step.
func recoveryStep[T any](work func(ctx context.Context, p person, id attest.MachineID, req *T) (any, *failure)) func(Operator, http.ResponseWriter, *http.Request) (any, *failure) {
	return func(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
		id, f := machineID(r)
		if f != nil {
			return nil, f
		}
		req := new(T)
		if f := readBody(w, r, maxOperatorBody, bodyTimeout, req); f != nil {
			return nil, f
		}
		return work(r.Context(), personOf(op, r), id, req)
	}
}

// loadRecovery returns a machine's last recovery and the document that it is
// in. Without one the state is nil, and the document a new one.
func (s *Server) loadRecovery(ctx context.Context, id attest.MachineID) (*recoveryState, *Document, *failure) {
	d, err := s.c.Store.Document(ctx, documentRecovery, id.String())
	if errors.Is(err, ErrNotFound) {
		return nil, &Document{Kind: documentRecovery, Name: id.String()}, nil
	}
	if err != nil {
		return nil, nil, unavailable("the store", err)
	}
	st := new(recoveryState)
	if err := json.Unmarshal(d.Body, st); err != nil {
		return nil, nil, internal(fmt.Errorf("recovery of machine %s: %w", id, err))
	}
	return st, d, nil
}

func (s *Server) getRecovery(_ Operator, _ http.ResponseWriter, r *http.Request) (any, *failure) {
	id, f := machineID(r)
	if f != nil {
		return nil, f
	}
	st, _, f := s.loadRecovery(r.Context(), id)
	if f != nil {
		return nil, f
	}
	if st == nil {
		return nil, notFound(fmt.Sprintf("machine %s has no recovery", id))
	}
	return &st.Recovery, nil
}

// recoverable returns the record of a machine for which there may be a
// recovery. A quarantined one is not: that it may have secrets again is for
// `machine reinstate` to say, which is in the log as such.
func (s *Server) recoverable(ctx context.Context, id attest.MachineID, p person) (*Machine, *failure) {
	if f := s.held(ctx); f != nil {
		return nil, f
	}
	m, f := s.load(ctx, id)
	switch {
	case f != nil:
		return nil, f
	case m.Revision == 0:
		return nil, notFound(fmt.Sprintf("there is no machine %s", id))
	case m.State == attest.StateRevoked:
		return nil, s.refuseRecovery(ctx, p, id, "", conflict(fmt.Sprintf("machine %s is revoked: %s", id, m.Reason), ""))
	case m.State != attest.StateEnrolled:
		return nil, conflict(fmt.Sprintf("machine %s is %s: only an enrolled one can be recovered", id, m.State), "if it may have secrets again: sealift machine reinstate "+id.String()+" --reason TEXT")
	case m.DiskKey == nil || m.DiskGUID == "":
		return nil, conflict(fmt.Sprintf("machine %s was never given a disk key: there is nothing to recover", id), "")
	case nameDigits(m) == 0:
		return nil, conflict(fmt.Sprintf("machine %s has the node name of the machine that it replaced, %s, for which a code has no room", id, m.NodeName),
			"mend what keeps it from a release (sealift attest explain "+id.String()+"), or install it again, which loses its state")
	}
	if f := s.refuseUnproven(ctx, p, m); f != nil {
		return nil, f
	}
	return m, nil
}

// nameDigits returns how many digits of its id a machine's node name has, or 0 for
// the name of a machine that it replaced (reEnrol).
func nameDigits(m *Machine) int {
	n := len(m.NodeName) - len(api.NodeName(m.ID, 0))
	if n < 1 || api.NodeName(m.ID, n) != m.NodeName {
		return 0
	}
	return n
}

// refuseRecovery records a refusal that is an alarm, and returns it.
func (s *Server) refuseRecovery(ctx context.Context, p person, id attest.MachineID, request string, refusal *failure) *failure {
	now := s.c.Clock()
	f := s.commit(ctx, &Change{Events: []audit.Event{
		{Time: now, Kind: audit.KindRecovery, Machine: id, Data: audit.Recovery{Event: audit.RecoveryRefused, Request: request, By: p.Name, Reason: refusal.text}},
		alarm(id, now, audit.Alarm{Name: audit.AlarmRecoveryRefused, What: refusal.text, Peer: p.Name}),
	}})
	if f != nil {
		return f
	}
	return refusal
}

// commitRecovery writes a recovery with the events of its change. The machine's
// record is written with it, unchanged, so that a change of its state and this
// one do not pass each other.
func (s *Server) commitRecovery(ctx context.Context, m *Machine, st *recoveryState, d *Document, events ...audit.Event) *failure {
	body, err := json.Marshal(st)
	if err != nil {
		return internal(fmt.Errorf("recovery of machine %s: %w", m.ID, err))
	}
	d.Body = body
	return s.commit(ctx, &Change{Machine: m, Documents: []*Document{d}, Events: events})
}

// retryRecovery makes a step again while others change what it is about.
func (s *Server) retryRecovery(id attest.MachineID, step func() (any, *failure)) (any, *failure) {
	var last error
	for range attempts {
		v, f := step()
		if f == nil || !errors.Is(f.cause, ErrConflict) {
			return v, f
		}
		last = f.cause
	}
	return nil, unavailable("the machine's recovery", fmt.Errorf("machine %s: changed %d times meanwhile: %w", id, attempts, last))
}

func recoveryEvent(now time.Time, st *recoveryState, e audit.RecoveryEvent, by, reason string) audit.Event {
	return audit.Event{Time: now, Kind: audit.KindRecovery, Machine: st.Machine, Data: audit.Recovery{
		Event: e, Request: st.ID, By: by, Reason: reason, BootKey: hex.EncodeToString(st.BootKey), Expires: st.Expires,
	}}
}

// openRecovery opens a recovery. The same person's request for the boot that
// the open one is for changes nothing. One for another boot takes its place.
func (s *Server) openRecovery(ctx context.Context, p person, id attest.MachineID, req *api.RecoveryOpen) (any, *failure) {
	reason, f := checkReason(req.Reason)
	if f != nil {
		return nil, f
	}
	life := time.Duration(req.Minutes) * time.Minute
	if req.Minutes == 0 {
		life = maxRecovery
	}
	if req.Minutes < 0 || life > maxRecovery {
		return nil, badRequest("minutes is %d, want 1 to %d", req.Minutes, int(maxRecovery/time.Minute))
	}
	return s.retryRecovery(id, func() (any, *failure) {
		m, f := s.recoverable(ctx, id, p)
		if f != nil {
			return nil, f
		}
		bootKey, err := recovery.ParseRequest(req.Request, id, m.DiskGUID)
		if err != nil {
			return nil, &failure{status: http.StatusBadRequest, code: "bad-request", text: err.Error(), hint: "compare the request with the machine's screen, line by line; after a restart it has another"}
		}
		now := s.c.Clock().UTC().Truncate(time.Second)
		old, d, f := s.loadRecovery(ctx, id)
		if f != nil {
			return nil, f
		}
		var events []audit.Event
		if old != nil && old.Given.IsZero() && now.Before(old.Expires) {
			same := slices.Equal(old.BootKey, bootKey) && old.DiskGUID == m.DiskGUID
			if same && s.is(p, old.By, old.Credential) {
				return &old.Recovery, nil
			}
			if same {
				return nil, conflict(fmt.Sprintf("recovery %s of this boot was opened by %s", old.ID, old.By), "the code is for who opened it")
			}
			events = append(events, recoveryEvent(now, old, audit.RecoverySuperseded, p.Name, ""))
		}
		rid, err := randomID()
		if err != nil {
			return nil, internal(err)
		}
		st := &recoveryState{Recovery: api.Recovery{
			ID: rid[:12], Machine: id, NodeName: m.NodeName, BootKey: bootKey, DiskGUID: m.DiskGUID,
			By: p.Name, Reason: reason, Opened: now, Expires: now.Add(life),
		}, Credential: p.credential}
		events = append(events, recoveryEvent(now, st, audit.RecoveryOpened, p.Name, reason))
		if f := s.commitRecovery(ctx, m, st, d, events...); f != nil {
			return nil, f
		}
		s.c.Log.Warn("recovery opened", "machine", id.Short(), "request", st.ID, "by", p.Name)
		return &st.Recovery, nil
	})
}

// current returns the machine's recovery of that id, which must be open.
func (s *Server) current(ctx context.Context, m *Machine, request string, now time.Time) (*recoveryState, *Document, *failure) {
	st, d, f := s.loadRecovery(ctx, m.ID)
	switch {
	case f != nil:
		return nil, nil, f
	case st == nil || st.ID != request:
		return nil, nil, notFound(fmt.Sprintf("machine %s has no recovery %q: a later one took its place, or there is none", m.ID, clip(request)))
	case !st.Given.IsZero():
		return nil, nil, conflict(fmt.Sprintf("the code of recovery %s was given to %s at %s, and is given once", st.ID, st.By, st.Given.Format(time.RFC3339)), "if it is lost, open another recovery")
	case !now.Before(st.Expires):
		return nil, nil, conflict(fmt.Sprintf("recovery %s was over at %s", st.ID, st.Expires.Format(time.RFC3339)), "open another recovery")
	case st.DiskGUID != m.DiskGUID:
		return nil, nil, conflict(fmt.Sprintf("machine %s was installed anew since recovery %s was opened", m.ID, st.ID), "open another recovery")
	}
	return st, d, nil
}

// approveRecovery adds one person's approval. Who opened the recovery may be
// one of those who approve it.
func (s *Server) approveRecovery(ctx context.Context, p person, id attest.MachineID, req *api.RecoveryApprove) (any, *failure) {
	reason, f := checkReason(req.Reason)
	if f != nil {
		return nil, f
	}
	return s.retryRecovery(id, func() (any, *failure) {
		m, f := s.recoverable(ctx, id, p)
		if f != nil {
			return nil, f
		}
		now := s.c.Clock().UTC().Truncate(time.Second)
		st, d, f := s.current(ctx, m, req.Request, now)
		if f != nil {
			return nil, f
		}
		for i, a := range st.Approvals {
			if s.isAnother(p, a.By, st.Credentials[i]) {
				continue
			}
			text, hint := fmt.Sprintf("recovery %s has the approval of %s, who cannot approve it twice", st.ID, a.By), "another person must approve"
			if byToken(p.Name) != byToken(a.By) && !s.is(p, a.By, st.Credentials[i]) {
				text = fmt.Sprintf("recovery %s has the approval of %s, and nothing says that %s is another person: one of them showed a certificate, the other a token", st.ID, a.By, p.Name)
				hint = "approve with the same kind of login as the other, or name both under operator.people in the configuration of sealift serve"
			}
			return nil, s.refuseRecovery(ctx, p, id, st.ID, conflict(text, hint))
		}
		if p.credential != "" && p.credential == st.Credential && !s.people.same(p.Name, st.By) {
			return nil, s.refuseRecovery(ctx, p, id, st.ID, conflict(fmt.Sprintf("recovery %s was opened by %s under the name %s", st.ID, p.Name, st.By), "another person must approve"))
		}
		if len(st.Approvals) >= api.RecoveryApprovals {
			return &st.Recovery, nil
		}
		st.Approvals = append(st.Approvals, api.RecoveryApproval{By: p.Name, Reason: reason, Time: now})
		st.Credentials = append(st.Credentials, p.credential)
		if f := s.commitRecovery(ctx, m, st, d, recoveryEvent(now, st, audit.RecoveryApproved, p.Name, reason)); f != nil {
			return nil, f
		}
		s.c.Log.Warn("recovery approved", "machine", id.Short(), "request", st.ID, "by", p.Name, "approvals", len(st.Approvals))
		return &st.Recovery, nil
	})
}

// takeRecovery gives the code to who opened the recovery. That it was given is
// committed before it leaves: a code whose answer is lost is not given again.
func (s *Server) takeRecovery(ctx context.Context, p person, id attest.MachineID, req *api.RecoveryTake) (any, *failure) {
	return s.retryRecovery(id, func() (any, *failure) {
		m, f := s.recoverable(ctx, id, p)
		if f != nil {
			return nil, f
		}
		now := s.c.Clock().UTC().Truncate(time.Second)
		st, d, f := s.current(ctx, m, req.Request, now)
		if f != nil {
			return nil, f
		}
		if !s.is(p, st.By, st.Credential) {
			return nil, &failure{status: http.StatusForbidden, code: "forbidden", text: fmt.Sprintf("recovery %s was opened by %s: the code is for them", st.ID, st.By)}
		}
		if n := len(st.Approvals); n < api.RecoveryApprovals {
			return nil, &failure{
				status: http.StatusConflict, code: "not-approved", text: fmt.Sprintf("recovery %s has %d of %d approvals", st.ID, n, api.RecoveryApprovals),
				hint: fmt.Sprintf("another person: sealift machine recovery-approve %s %s --reason TEXT", id, st.ID),
			}
		}
		diskKey, _, err := s.diskKey(m) // there is one: recoverable
		if err != nil {
			return nil, noDiskKey(fmt.Errorf("disk key of machine %s: %w", id, err))
		}
		defer clear(diskKey)
		// A disk whose key is being changed may be under either.
		next, _, err := s.nextKey(m, true)
		if err != nil {
			return nil, noDiskKey(fmt.Errorf("next disk key of machine %s: %w", id, err))
		}
		defer clear(next)
		code, err := recovery.Seal(st.BootKey, id, st.DiskGUID, &recovery.Secrets{DiskKey: diskKey, NextDiskKey: next, NameDigits: nameDigits(m)}, st.Expires)
		if err != nil {
			return nil, internal(fmt.Errorf("recovery of machine %s: %w", id, err))
		}
		var by []string
		for _, a := range st.Approvals {
			by = append(by, a.By)
		}
		st.Given = now
		f = s.commitRecovery(ctx, m, st, d,
			recoveryEvent(now, st, audit.RecoveryGiven, p.Name, "approved by "+strings.Join(by, ", ")),
			alarm(id, now, audit.Alarm{Name: audit.AlarmRecoveryGiven, Peer: p.Name, What: fmt.Sprintf("the code of recovery %s was given, approved by %s", st.ID, strings.Join(by, ", "))}))
		if f != nil {
			clear(code)
			return nil, f
		}
		return &api.RecoveryCode{Code: code, Recovery: st.Recovery}, nil
	})
}
