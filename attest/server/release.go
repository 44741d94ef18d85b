package server

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// diskKeySize is the length of the service's half of a disk key, bytes.
const diskKeySize = 32

// maxTokenLife bounds how long a join token may be good for.
const maxTokenLife = 10 * time.Minute

// release makes, commits and answers with the release that accepted evidence
// earns. Everything is made before the commit and nothing is sent before it;
// what was made and not committed is taken back.
func (s *Server) release(ctx context.Context, sub *submission, m *Machine, policy *attest.Policy, result *attest.Result, prf *proof, stored []byte) (status int, body any, f *failure) {
	id, err := randomID()
	if err != nil {
		return 0, nil, internal(err)
	}
	transport, err := newSecret(api.TransportSecretSize)
	if err != nil {
		return 0, nil, internal(err)
	}
	defer clear(transport)
	// A machine that a person approved has no install record: the disk of its
	// first release is its disk from then on.
	disk := sub.request.Evidence.Disk.GUID
	if m.sameBoot(prf) {
		// attest.Verify sees it too, unless the counters do not bind this
		// evidence.
		return s.repeated(ctx, sub, policy, result, stored)
	}
	if f := s.held(ctx); f != nil {
		return 0, nil, f
	}
	if m.Restored {
		return s.forfeit(ctx, sub, m, policy, result, prf, stored)
	}
	var promoted []audit.Event
	switch {
	case m.fromCandidate(disk):
		serial := m.Serial
		promoted = append(promoted, m.promote(sub.now))
		if m.Listed {
			m.Serial = serial
		} else if f := s.owns(ctx, sub.documents, m, m.Serial, m.names()); f != nil {
			return 0, nil, f
		}
	case m.Rebased && m.countsAnew(prf):
		m.Generation++
	}
	if m.DiskGUID != "" && m.DiskGUID != disk {
		return 0, nil, internal(fmt.Errorf("machine %s: accepted evidence of disk %s, on record is %s", m.ID, disk, m.DiskGUID))
	}
	m.DiskGUID = disk
	diskKey, newKey, err := s.diskKey(m)
	if err != nil {
		return 0, nil, noDiskKey(fmt.Errorf("disk key of machine %s: %w", m.ID, err))
	}
	defer clear(diskKey)
	nextKey, rotation, err := s.nextKey(m, sub.request.Evidence.Disk.StateExists)
	if err != nil {
		return 0, nil, noDiskKey(fmt.Errorf("next disk key of machine %s: %w", m.ID, err))
	}
	defer clear(nextKey)
	secrets := &api.Secrets{DiskKey: diskKey, NextDiskKey: nextKey, NodeName: m.NodeName}
	entry := audit.Release{
		ID: id, ChallengeID: sub.challenge.ID, Policy: result.Policy, Image: result.Image,
		ResetCount: prf.resetCount, RestartCount: prf.restartCount,
		NodeName: m.NodeName, DiskGUID: m.DiskGUID, NewDiskKey: newKey, Secrets: []string{audit.SecretDiskKey},
		Rotation: rotation, Generation: m.Generation,
	}
	if prf.boot != nil {
		entry.Banks = slices.Sorted(maps.Keys(prf.boot.PCRs))
	}
	if rotation != "" {
		entry.Secrets = append(entry.Secrets, audit.SecretNextDiskKey)
	}
	if f := s.bindTPM(ctx, sub, m, prf); f != nil {
		return 0, nil, f
	}
	entry.Bindings = tpmBindings(sub.documents.dirty)
	evidence := digestOf(stored)
	events := []audit.Event{{Time: sub.now, Kind: audit.KindVerdict, Machine: m.ID, Data: audit.Verdict{
		ChallengeID: sub.challenge.ID, Address: sub.peer.address, Evidence: evidence, Result: bounded(result),
	}}}
	events = append(append(events, sub.events...), promoted...)
	committed := false
	if !m.Joined && s.c.Tokens != nil {
		token, f := s.mint(ctx, m, sub.now)
		if f != nil {
			return 0, nil, f
		}
		defer func() {
			if !committed {
				s.takeBack(ctx, m.ID, token.ID)
			}
		}()
		secrets.Join = &api.Join{Server: token.Server, CA: token.CA, Token: token.Secret, Expires: token.Expires}
		entry.Secrets = append(entry.Secrets, audit.SecretJoinToken)
		entry.TokenID, m.TokenID = token.ID, token.ID
		events = append(events, audit.Event{Time: sub.now, Kind: audit.KindToken, Machine: m.ID, Data: audit.Token{
			Event: audit.TokenMinted, ID: token.ID, NodeName: m.NodeName, Expires: token.Expires,
		}})
	}
	events = append(events, audit.Event{Time: sub.now, Kind: audit.KindRelease, Machine: m.ID, Data: entry})

	envelope, err := s.envelope(id, sub, result, prf, transport, secrets)
	if err != nil {
		return 0, nil, internal(fmt.Errorf("release for machine %s: %w", m.ID, err))
	}
	kept, err := s.keys.seal(transport, "transport", id)
	if err != nil {
		return 0, nil, internal(err)
	}
	m.AKName, m.Clock, m.TPMFirmware = prf.akName, prf.clock, prf.tpmFirmware
	m.ResetCount, m.RestartCount, m.Released = prf.resetCount, prf.restartCount, true
	m.answered(result, sub.now)
	m.Rebased = false
	m.ReleaseID = id
	m.StateMade = m.StateMade || sub.request.Evidence.Disk.StateExists
	m.LastSeen, m.LastAllowed, m.Address, m.Firmware, m.Image = sub.now, true, sub.peer.address, result.Firmware, result.Image
	m.Boot, m.Banks = prf.boot, entry.Banks
	events = append(events, s.heardOf(m, sub.now)...)
	alarms, raised := s.banksAlarm(sub, m, result)
	events = append(events, alarms...)
	m.LastEvidence, m.AcceptedEvidence = evidence, evidence
	if s.c.PolicyHolds != nil {
		// Minting a token takes its time, and another policy may count since.
		if err := s.c.PolicyHolds(policy); err != nil {
			return 0, nil, unavailable("the policy", fmt.Errorf("policy of machine %s: %w", m.ID, err))
		}
	}
	// So may what the log says of the machine, and somebody else have written its record.
	still := &attest.Known{State: m.State}
	if f := s.proveEnrolment(ctx, sub, m, still); f != nil {
		return 0, nil, f
	}
	if still.Unproven != "" {
		return 0, nil, unavailable("the decision log", fmt.Errorf("machine %s: it says %s: %w", m.ID, still.Unproven, ErrConflict))
	}
	f = s.commitFor(ctx, &Change{
		Machine: m,
		Release: &Release{
			ID: id, Machine: m.ID, Generation: m.Generation, ResetCount: prf.resetCount, RestartCount: prf.restartCount,
			Issued: sub.now, Transport: kept, Rotation: rotation, StateMade: m.StateMade,
		},
		Documents: sub.documents.dirty,
		Evidence:  stored,
		Events:    events,
	})
	if f != nil {
		if errors.Is(f.cause, ErrReleased) {
			// The record did not know of the release that the store has: it
			// was restored from a copy, or is being written now. Either way
			// this boot has had its secrets.
			return s.repeated(ctx, sub, policy, result, stored)
		}
		return 0, nil, f
	}
	committed = true
	raised()
	s.c.Log.Info("released", "request", sub.peer.request, "machine", m.ID.Short(), "release", id, "image", result.Image, "secrets", entry.Secrets)
	if s.c.Firmware != nil {
		if err := s.c.Firmware.Accepted(ctx, m.ID, sub.now, result); err != nil {
			s.c.Log.Error("firmware observer failed", "machine", m.ID.Short(), "error", err)
		}
	}
	return http.StatusOK, &api.EvidenceResponse{Result: result, Release: envelope}, nil
}

// repeated turns an accepted result into the refusal of a second release.
func (s *Server) repeated(ctx context.Context, sub *submission, policy *attest.Policy, accepted *attest.Result, stored []byte) (int, any, *failure) {
	m, f := s.load(ctx, sub.machine)
	if f != nil {
		return 0, nil, f
	}
	r, stored, f := withRepeated(accepted, stored, "secrets were already released in this boot")
	if f != nil {
		return 0, nil, f
	}
	return s.refuse(ctx, sub, m, policy, r, stored)
}

// withRepeated makes of an accepted result the refusal of a second release,
// because of what is known beside it, which is stored with the evidence so that
// the verdict can be computed again.
func withRepeated(accepted *attest.Result, stored []byte, why string) (*attest.Result, []byte, *failure) {
	r := *accepted
	r.Allowed = false
	r.Findings = []attest.Finding{api.RepeatedFinding(why)}
	ev, err := api.DecodeEvidence(stored)
	if err != nil {
		return nil, nil, internal(err)
	}
	ev.Repeated = why
	if stored, err = json.Marshal(ev); err != nil {
		return nil, nil, internal(fmt.Errorf("encode evidence: %w", err))
	}
	return &r, stored, nil
}

// mint gets a join token for m's node.
func (s *Server) mint(ctx context.Context, m *Machine, now time.Time) (*Token, *failure) {
	ctx, cancel := context.WithTimeout(ctx, s.c.Limits.Mint)
	defer cancel()
	t, err := s.c.Tokens.Mint(ctx, m.NodeName)
	if err != nil {
		return nil, unavailable("a join token", fmt.Errorf("mint a join token for node %s: %w", m.NodeName, err))
	}
	if life := t.Expires.Sub(now); life > maxTokenLife+time.Minute {
		s.takeBack(ctx, m.ID, t.ID)
		return nil, internal(fmt.Errorf("join token %s for node %s lives %v, at most %v allowed", t.ID, m.NodeName, life, maxTokenLife))
	}
	return t, nil
}

// takeBack revokes a token that must not be used. A failure is logged, not
// returned: the token runs out by itself.
func (s *Server) takeBack(ctx context.Context, id attest.MachineID, tokenID string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.c.Limits.Mint)
	defer cancel()
	if err := s.c.Tokens.Revoke(ctx, tokenID); err != nil {
		s.c.Log.Error("join token not revoked", "machine", id.Short(), "token", tokenID, "error", err)
	}
}

// envelope builds and signs the release.
func (s *Server) envelope(id string, sub *submission, result *attest.Result, prf *proof, transport attest.Secret, secrets *api.Secrets) (*api.Envelope, error) {
	wrapped, err := prf.wrap(transport)
	if err != nil {
		return nil, fmt.Errorf("wrap the transport secret: %w", err)
	}
	sealed, err := api.SealSecrets(transport, id, secrets)
	if err != nil {
		return nil, err
	}
	return api.SignRelease(s.c.ReleaseKey, &api.Release{
		ID: id, Machine: sub.machine, ChallengeID: sub.challenge.ID, Policy: result.Policy, Issued: sub.now, ReportAfter: s.c.Reports.seconds(),
		Key: wrapped, Sealed: sealed,
	})
}

// confirm answers api.PathConfirm. The same confirmation again is no error:
// the first answer may have been lost.
func (s *Server) confirm(ctx context.Context, p peer, req *api.ConfirmRequest) (int, any, *failure) {
	now := s.c.Clock()
	switch {
	case len(req.ReleaseID) == 0 || len(req.ReleaseID) > 64:
		return 0, nil, badRequest("releaseID has %d characters, want 1 to 64", len(req.ReleaseID))
	case len(req.Outcome) == 0 || len(req.Outcome) > api.MaxOutcome:
		return 0, nil, badRequest("outcome has %d bytes, want 1 to %d", len(req.Outcome), api.MaxOutcome)
	}
	// One answer for an unknown release and a wrong proof: release ids are
	// not to be guessed by asking.
	refused := &failure{status: http.StatusForbidden, code: "confirm-refused", text: "no open release has this id and proof"}
	for range attempts {
		rel, err := s.c.Store.Release(ctx, req.ReleaseID)
		if errors.Is(err, ErrNotFound) {
			return 0, nil, refused
		}
		if errors.As(err, new(*DamagedError)) {
			// The next boot's evidence tells the same.
			s.c.Log.Error("confirmation cannot be checked", "release", req.ReleaseID, "error", err)
			return 0, nil, refused
		}
		if err != nil {
			return 0, nil, unavailable("the store", err)
		}
		if rel.Transport == nil {
			if rel.Outcome == req.Outcome {
				return http.StatusOK, struct{}{}, nil
			}
			if f := s.contradicted(ctx, p, rel, req.Outcome, now); f != nil {
				return 0, nil, f
			}
			return 0, nil, refused
		}
		transport, err := s.keys.open(rel.Transport, "transport", rel.ID)
		if errors.Is(err, ErrNoKEK) {
			// The next boot's evidence tells the same.
			s.c.Log.Warn("confirmation cannot be checked", "machine", rel.Machine.Short(), "release", rel.ID, "error", err)
			return 0, nil, refused
		}
		if err != nil {
			return 0, nil, internal(fmt.Errorf("release %s: %w", rel.ID, err))
		}
		genuine := hmac.Equal(api.ConfirmProof(transport, rel.ID, req.Outcome), req.Proof)
		clear(transport)
		if !genuine {
			return 0, nil, refused
		}
		change := &Change{Confirm: rel, Events: []audit.Event{{
			Time: now, Kind: audit.KindConfirm, Machine: rel.Machine, Data: audit.Confirm{ReleaseID: rel.ID, Outcome: req.Outcome},
		}}}
		rel.Transport, rel.Outcome, rel.Confirmed = nil, req.Outcome, now
		if api.Opened(req.Outcome) && (!rel.StateMade || rel.Rotation != "") {
			m, f := s.load(ctx, rel.Machine)
			if f != nil {
				return 0, nil, f
			}
			// Not of a release from before the last install.
			if m.Revision > 0 && m.Generation == rel.Generation {
				if !m.StateMade {
					m.StateMade = true
					change.Machine = m
				}
				if events, changed := m.rekeyed(rel, req.Outcome, now); changed {
					change.Machine = m
					change.Events = append(change.Events, events...)
				}
			}
		}
		f := s.commit(ctx, change)
		if f != nil && errors.Is(f.cause, ErrConflict) {
			continue
		}
		if f != nil {
			return 0, nil, f
		}
		s.c.Log.Info("release confirmed", "request", p.request, "machine", rel.Machine.Short(), "release", rel.ID, "outcome", req.Outcome, "peer", p.address)
		return http.StatusOK, struct{}{}, nil
	}
	return 0, nil, unavailable("the release's record", fmt.Errorf("release %s: changed %d times while it was confirmed", req.ReleaseID, attempts))
}
