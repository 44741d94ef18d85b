package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// A restore leaves a document of this kind and name in the store.
const (
	restoreKind = "restore"
	restoreName = "last"
)

// restoreState is the body of that document.
type restoreState struct {
	Status api.RestoreStatus `json:"status"`
	Entry  audit.Head        `json:"entry"` // of the audit.Restore
}

// restoreDocument reads it, or returns the zero state of revision 0.
func (s *Server) restoreDocument(ctx context.Context) (*restoreState, int64, error) {
	d, err := s.c.Store.Document(ctx, restoreKind, restoreName)
	if errors.Is(err, ErrNotFound) {
		return new(restoreState), 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	state := new(restoreState)
	if err := json.Unmarshal(d.Body, state); err != nil {
		return nil, 0, fmt.Errorf("decode what is known of the restore: %w", err)
	}
	return state, d.Revision, nil
}

// held fails while nothing may be released, because the store came from a
// backup that may be older than a revocation. A store is restored only when it
// is empty, so one that is free once stays so, and the question costs nothing. A
// Store that was emptied for it is not written any more (Archive.Load).
func (s *Server) held(ctx context.Context) *failure {
	if s.free.Load() {
		return nil
	}
	state, _, err := s.restoreDocument(ctx)
	if err != nil {
		return unavailable("the store", err)
	}
	if !state.Status.Held {
		s.free.Store(true)
		return nil
	}
	return &failure{
		status: http.StatusServiceUnavailable, code: "held", wait: time.Minute,
		text: "nothing is released: the service was restored from a backup, and nobody has said that no revocation was lost",
		hint: "sealift restore accept --reason TEXT",
	}
}

// RestoreAccepted is a check: whether the store may release, as it came from no backup,
// or from one that an approver has accepted.
func (s *Server) RestoreAccepted(ctx context.Context) error {
	if f := s.held(ctx); f != nil {
		return errors.Join(errors.New(f.text), f.cause)
	}
	return nil
}

// unsettled reports whether a machine that the store does not know may have had
// a release all the same, in the boot that it is in: the store came from a
// backup that may be older than the machine's enrolment. A store is restored
// only when it is empty, so one that is settled stays so.
func (s *Server) unsettled(ctx context.Context) (bool, *failure) {
	if s.settled.Load() {
		return false, nil
	}
	state, _, err := s.restoreDocument(ctx)
	if err != nil {
		return false, unavailable("the store", err)
	}
	if !state.Status.Unsettled {
		s.settled.Store(true)
	}
	return state.Status.Unsettled, nil
}

// forfeit refuses accepted evidence of a machine whose record is from a backup,
// or was made after a restore that lost some: the boot may have had its release
// already. From the next boot on the record knows. It is no alarm, as it says
// nothing of the machine. What enrols an expected machine is committed with it.
func (s *Server) forfeit(ctx context.Context, sub *submission, m *Machine, policy *attest.Policy, accepted *attest.Result, prf *proof, stored []byte) (int, any, *failure) {
	if m.Rebased && m.countsAnew(prf) {
		m.Generation++
	}
	result, stored, f := withRepeated(accepted, stored, "this boot may have been given its secrets already: the service was restored from a backup since")
	if f != nil {
		return 0, nil, f
	}
	m.ResetCount, m.RestartCount, m.Clock = prf.resetCount, prf.restartCount, prf.clock
	m.Released, m.Restored = true, false
	if m.Revision == 0 {
		m.Firmware, m.Image = result.Firmware, result.Image
	}
	m.answered(result, sub.now)
	m.LastSeen, m.LastAllowed, m.Address, m.LastEvidence = sub.now, false, sub.peer.address, digestOf(stored)
	events := []audit.Event{{Time: sub.now, Kind: audit.KindVerdict, Machine: m.ID, Data: audit.Verdict{
		ChallengeID: sub.challenge.ID, Address: sub.peer.address, Evidence: m.LastEvidence, Result: bounded(result),
		Explanation: s.explain(ctx, &sub.request.Evidence, result, policy, m.AcceptedEvidence).Bounded(maxExplained),
	}}}
	if f := s.commit(ctx, &Change{Machine: m, Documents: sub.documents.dirty, Evidence: stored, Events: append(events, sub.events...)}); f != nil {
		return 0, nil, f
	}
	s.c.Log.Info("nothing released in the first boot after a restore", "request", sub.peer.request, "machine", m.ID.Short(), "peer", sub.peer.address)
	return refused(result)
}

func (s *Server) getRestore(_ Operator, _ http.ResponseWriter, r *http.Request) (any, *failure) {
	state, _, err := s.restoreDocument(r.Context())
	if err != nil {
		return nil, unavailable("the store", err)
	}
	return &state.Status, nil
}

func (s *Server) postAcceptRestore(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	var req api.StateChange
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	reason, f := checkReason(req.Reason)
	if f != nil {
		return nil, f
	}
	state, revision, err := s.restoreDocument(r.Context())
	if err != nil {
		return nil, unavailable("the store", err)
	}
	if revision == 0 {
		return nil, notFound("the store was never restored from a backup")
	}
	if !state.Status.Held {
		return &state.Status, nil
	}
	now := s.c.Clock().UTC()
	state.Status.Held, state.Status.Accepted, state.Status.AcceptedBy = false, now, op.Name
	body, err := json.Marshal(state)
	if err != nil {
		return nil, internal(err)
	}
	f = s.commit(r.Context(), &Change{
		Documents: []*Document{{Kind: restoreKind, Name: restoreName, Revision: revision, Body: body}},
		Events: []audit.Event{{Time: now, Kind: audit.KindAcceptRestore, Data: audit.AcceptRestore{
			By: op.Name, Reason: reason, Restore: state.Entry,
		}}},
	})
	if f != nil && errors.Is(f.cause, ErrConflict) {
		return nil, conflict("somebody else accepted the restore at the same time", "try again")
	}
	if f != nil {
		return nil, f
	}
	s.c.Log.Info("restore accepted, secrets are released again", "by", op.Name)
	return &state.Status, nil
}

// postSettleRestore ends what unsettled is about.
func (s *Server) postSettleRestore(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	var req api.StateChange
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	reason, f := checkReason(req.Reason)
	if f != nil {
		return nil, f
	}
	state, revision, err := s.restoreDocument(r.Context())
	switch {
	case err != nil:
		return nil, unavailable("the store", err)
	case revision == 0:
		return nil, notFound("the store was never restored from a backup")
	case state.Status.Held:
		return nil, conflict("the restore was not accepted yet", "sealift restore accept --reason TEXT")
	case !state.Status.Unsettled:
		return &state.Status, nil
	}
	now := s.c.Clock().UTC()
	state.Status.Unsettled, state.Status.Settled, state.Status.SettledBy = false, now, op.Name
	body, err := json.Marshal(state)
	if err != nil {
		return nil, internal(err)
	}
	f = s.commit(r.Context(), &Change{
		Documents: []*Document{{Kind: restoreKind, Name: restoreName, Revision: revision, Body: body}},
		Events: []audit.Event{{Time: now, Kind: audit.KindAcceptRestore, Data: audit.AcceptRestore{
			By: op.Name, Reason: reason, Restore: state.Entry, Settled: true,
		}}},
	})
	if f != nil && errors.Is(f.cause, ErrConflict) {
		return nil, conflict("somebody else settled the restore at the same time", "try again")
	}
	if f != nil {
		return nil, f
	}
	s.c.Log.Info("restore settled, machines that are not known are new", "by", op.Name)
	return &state.Status, nil
}
