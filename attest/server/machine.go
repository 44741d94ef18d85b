package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/image/manifest"
)

// Effects of operators' decisions that change no state. A restore reads them in
// the audit log and repeats them.
const (
	effectRebase = "the TPM's attestation key, counters, clock and firmware version are taken anew from its next evidence"
	effectRejoin = "its next release has a join token"
	// effectUnlisted goes with an effectRebase.
	effectUnlisted = "its serial number is no longer held against the list"
)

// Bounds of what an operator or an install record says, bytes.
const (
	maxReason = 1024
	maxClaim  = 256
)

// checkGUID accepts a GUID in lower case, as the agent and the installer write
// it; the all-zero one names no disk.
func checkGUID(s string) error {
	ok := len(s) == 36
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		ok = ok && (dash && c == '-' || !dash && (c >= '0' && c <= '9' || c >= 'a' && c <= 'f'))
	}
	if !ok {
		return errors.New("the GUID is not of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx in lower-case hex digits")
	}
	if strings.Trim(s, "0-") == "" {
		return errors.New("the GUID is all zero")
	}
	return nil
}

// chooseName gives a new machine a node name that no other has. Ten digits are
// enough for almost every machine of a large fleet, not for all.
func (s *Server) chooseName(ctx context.Context, m *Machine) *failure {
	for _, digits := range []int{10, 16, 32, 59} {
		name := api.NodeName(m.ID, digits)
		others, err := s.c.Store.Machines(ctx, Query{NodeName: name, Limit: 1})
		if err != nil {
			return unavailable("the store", err)
		}
		if len(others) == 0 || others[0].ID == m.ID {
			m.NodeName = name
			return nil
		}
	}
	return internal(fmt.Errorf("machine %s: no node name is free", m.ID))
}

// Enrol takes an install record from by, an operator or a provisioner, and
// enrols the machine, if the policy trusts its endorsement certificate. For a machine that is enrolled already the record is a
// candidate: it counts, with a new disk key, no state and a new join, once
// evidence from its disk is accepted. A record never brings back a revoked or
// quarantined machine.
func (s *Server) Enrol(ctx context.Context, by string, rec *api.InstallRecord) (*api.Machine, error) {
	m, f := s.enrol(ctx, by, rec)
	if f != nil {
		return nil, f.asError("enrol machine")
	}
	return m, nil
}

// asError makes a failure an error for callers inside the program.
func (f *failure) asError(doing string) error {
	if f.cause != nil {
		return fmt.Errorf("%s: %s: %w", doing, f.text, f.cause)
	}
	return fmt.Errorf("%s: %w: %s", doing, ErrRefused, f.text)
}

func checkRecord(rec *api.InstallRecord) *failure {
	if len(rec.EKPublic) == 0 || len(rec.EKPublic) > maxPublic {
		return badRequest("ekPublic has %d bytes, want 1 to %d", len(rec.EKPublic), maxPublic)
	}
	if err := checkGUID(rec.DiskGUID); err != nil {
		return badRequest("diskGUID: %v", err)
	}
	for name, v := range map[string]string{
		"serial": rec.Serial, "uuid": rec.UUID, "mac": rec.MAC, "image": rec.Image, "manifestDigest": rec.ManifestDigest, "secureBoot": rec.SecureBoot,
	} {
		if len(v) > maxClaim {
			return badRequest("%s has %d bytes, at most %d allowed", name, len(v), maxClaim)
		}
	}
	return nil
}

func (s *Server) enrol(ctx context.Context, by string, rec *api.InstallRecord) (*api.Machine, *failure) {
	if f := checkRecord(rec); f != nil {
		return nil, f
	}
	id, err := attest.EKMachineID(rec.EKPublic)
	if err != nil {
		return nil, badRequest("ekPublic: %v", err)
	}
	policy, err := s.c.Policy(ctx, id)
	if err != nil {
		return nil, unavailable("the policy", fmt.Errorf("policy of machine %s: %w", id, err))
	}
	// What the record claims is not proven by this, but a machine whose
	// evidence will never be accepted is refused where it can be mended.
	if _, findings := attest.VerifyEK(rec.EKPublic, rec.EKCertificates, &policy.TPM, s.c.Clock()); len(findings) > 0 {
		f := findings[0]
		return nil, &failure{status: http.StatusForbidden, code: string(f.Code), text: fmt.Sprintf("machine %s: %s", id, f.Message), hint: f.Hint}
	}
	digests := digestsOf(rec.EKPublic, rec.EKCertificates)
	// An installer may have met another of the TPM's endorsement keys than the one
	// that is the machine's id.
	alias, f := s.aliasOf(ctx, s.documents(), id)
	if f != nil {
		return nil, f
	}
	if alias != nil {
		id = alias.ID
	}
	return s.changeAll(ctx, id, func(m *Machine, now time.Time) (*Change, *failure) {
		if m.State == attest.StateRevoked || m.State == attest.StateQuarantined {
			return nil, conflict(fmt.Sprintf("machine %s is %s: %s", id, m.State, m.Reason), "reinstate it first: sealift machine reinstate "+id.String()+" --reason TEXT")
		}
		owners, err := s.c.Store.Machines(ctx, Query{DiskGUID: rec.DiskGUID, Limit: 1})
		if err != nil {
			return nil, unavailable("the store", err)
		}
		if len(owners) > 0 && owners[0].ID != id {
			return nil, conflict(fmt.Sprintf("disk %s belongs to machine %s", rec.DiskGUID, owners[0].ID), "install the machine again, which gives its disk a new GUID")
		}
		docs := s.documents()
		if m.State == attest.StateEnrolled {
			// Only looked at: what the record says counts once it is proven.
			same := *m
			if f := s.sameIdentity(ctx, docs, &same, rec.Serial, digests); f != nil {
				return nil, f
			}
			return &Change{Events: reinstall(m, by, rec)}, nil
		}
		if f := s.sameIdentity(ctx, docs, m, rec.Serial, digests); f != nil {
			return nil, f
		}
		if m.Revision == 0 {
			if f := s.chooseName(ctx, m); f != nil {
				return nil, f
			}
		}
		events := []audit.Event{
			installEvent(m, by, rec, false),
			stateEvent(m, attest.StateEnrolled, by, "install record"),
		}
		m.Generation++
		if !m.Listed {
			m.Serial = rec.Serial
		}
		m.DiskGUID, m.Installed, m.Next, m.Digests = rec.DiskGUID, rec.Finished, nil, digests
		m.StateMade, m.Joined, m.DiskKey, m.NextKey, m.Rotation = false, false, nil, nil, nil
		m.ResetCount, m.RestartCount, m.Clock, m.Released = 0, 0, 0, false
		m.Boot = nil
		return &Change{Documents: docs.dirty, Events: events}, nil
	})
}

// sameIdentity binds the serial number of an install record, which must be
// neither another's nor other than what was said beforehand of the key.
func (s *Server) sameIdentity(ctx context.Context, docs *documents, m *Machine, serial string, digests []manifest.SHA256) *failure {
	e, f := docs.expectation(ctx, digests)
	if f != nil {
		return f
	}
	if e == nil {
		return s.owns(ctx, docs, m, serial, digests)
	}
	if s.serialKey(e.Serial) != s.serialKey(serial) {
		return &failure{
			status: http.StatusConflict, code: string(attest.CodeSerialMismatch),
			text: fmt.Sprintf("machine %s says that its serial number is %q, it was enrolled beforehand with %q", m.ID, serial, e.Serial),
			hint: "if the list is wrong, import the corrected line with --replace",
		}
	}
	return s.met(ctx, docs, m, e, digests)
}

// stateEvent moves m to another state and returns the event that says so.
func stateEvent(m *Machine, to attest.EnrolmentState, by, reason string) audit.Event {
	ev := audit.Event{Kind: audit.KindState, Machine: m.ID, Data: audit.StateChange{From: m.State, To: to, By: by, Reason: reason}}
	m.State, m.Reason = to, reason
	if to != attest.StateEnrolled {
		m.Stale, m.ReportDue = false, time.Time{}
	}
	m.FenceDue = to == attest.StateQuarantined || to == attest.StateRevoked
	return ev
}

// withEffect adds to a state event what else it changed.
func withEffect(ev audit.Event, effect string) audit.Event {
	if d, ok := ev.Data.(audit.StateChange); ok {
		d.Effect = effect
		ev.Data = d
	}
	return ev
}

// change applies edit to a machine's record until nobody else changed it
// meanwhile. An edit that returns no events changed nothing.
func (s *Server) change(ctx context.Context, id attest.MachineID, edit func(m *Machine, now time.Time) ([]audit.Event, *failure)) (*api.Machine, *failure) {
	return s.changeAll(ctx, id, func(m *Machine, now time.Time) (*Change, *failure) {
		events, f := edit(m, now)
		return &Change{Events: events}, f
	})
}

// changeAll is change for an edit that writes documents, too.
func (s *Server) changeAll(ctx context.Context, id attest.MachineID, edit func(m *Machine, now time.Time) (*Change, *failure)) (*api.Machine, *failure) {
	var last error
	for range attempts {
		m, f := s.load(ctx, id)
		if f != nil {
			return nil, f
		}
		now := s.c.Clock()
		c, f := edit(m, now)
		if f != nil {
			return nil, f
		}
		if c == nil || len(c.Events) == 0 {
			return &m.Machine, nil
		}
		for i := range c.Events {
			c.Events[i].Time = now
		}
		c.Machine = m
		f = s.commit(ctx, c)
		if f == nil {
			return &m.Machine, nil
		}
		if last = f.cause; !errors.Is(last, ErrConflict) {
			return nil, f
		}
	}
	return nil, unavailable("the machine's record", fmt.Errorf("machine %s: changed %d times meanwhile: %w", id, attempts, last))
}

// transition is one of the operator's changes of state.
type transition struct {
	verb string
	need api.Role
	from []attest.EnrolmentState
	to   attest.EnrolmentState
	// settle is done if the machine is in that state already. Optional.
	settle func(m *Machine, by, reason string) []audit.Event
}

// transitions are what an operator can ask for. An install record is the
// other way to become enrolled.
func transitions() []transition {
	return []transition{
		{"approve", api.RoleApprover, []attest.EnrolmentState{attest.StatePending}, attest.StateEnrolled, rebase},
		{"revoke", api.RoleOperator, []attest.EnrolmentState{attest.StatePending, attest.StateEnrolled, attest.StateQuarantined}, attest.StateRevoked, nil},
		{"quarantine", api.RoleOperator, []attest.EnrolmentState{attest.StatePending, attest.StateEnrolled}, attest.StateQuarantined, nil},
		{"reinstate", api.RoleApprover, []attest.EnrolmentState{attest.StateRevoked, attest.StateQuarantined}, attest.StateEnrolled, nil},
	}
}

// rebase forgets, when an operator approves an enrolled machine, what its TPM
// was when it was last accepted: the attestation key, the firmware's version,
// and where the counters stood. The counters stay on record to tell the boot of
// the last release, see sameBoot.
func rebase(m *Machine, by, reason string) []audit.Event {
	if !m.Listed && (m.Rebased || len(m.AKName) == 0 && m.TPMFirmware == 0 && !m.Released) {
		return nil
	}
	listed := m.Listed
	m.AKName, m.TPMFirmware, m.Rebased, m.Listed = nil, 0, true, false
	events := []audit.Event{withEffect(stateEvent(m, m.State, by, reason), effectRebase)}
	if listed {
		events = append(events, withEffect(stateEvent(m, m.State, by, reason), effectUnlisted))
	}
	return events
}

// setState makes a transition. Asking for the state that a machine is in
// changes nothing and is no error, but for what the transition settles. The open
// join token of a machine that is locked out is taken back, and its node fenced.
//
// A record that cannot be read is written anew first, see remake. Approving that, or
// what cannot be read about who the machine is, does nothing else: whoever could spoil
// it would choose what an approver who mends it decides.
func (s *Server) setState(ctx context.Context, id attest.MachineID, t transition, by, reason string) (*api.Machine, *failure) {
	reason, f := checkReason(reason)
	if f != nil {
		return nil, f
	}
	locks := t.to != attest.StateEnrolled
	if locks || t.settle != nil {
		remade, f := s.remake(ctx, id, by, reason, locks)
		if f != nil {
			return nil, f
		}
		if remade != nil && !locks {
			return &remade.Machine, nil // what it is, the log says; what it is to be is another decision
		}
	}
	token := ""
	m, f := s.changeAll(ctx, id, func(m *Machine, now time.Time) (*Change, *failure) {
		if m.Revision == 0 {
			return nil, notFound(fmt.Sprintf("there is no machine %s", id))
		}
		token = m.TokenID
		docs := s.documents()
		var mended []string
		if !locks {
			var f *failure
			if mended, f = s.mend(ctx, docs, m); f != nil {
				return nil, f
			}
		}
		if len(mended) > 0 && t.settle != nil && slices.Contains(append(t.from, t.to), m.State) {
			// Who mends may not know what else it would be that he approves.
			why := m.Reason
			ev := withEffect(stateEvent(m, m.State, by, reason), effectMended+strings.Join(mended, ", "))
			m.Reason = why
			return &Change{Documents: docs.dirty, Events: []audit.Event{ev}}, nil
		}
		if m.State == t.to {
			if t.settle == nil {
				return nil, nil
			}
			again, f := s.unlogged(ctx, m)
			if f != nil {
				return nil, f
			}
			if !again {
				return &Change{Events: t.settle(m, by, reason)}, nil
			}
			m.State = attest.StatePending // as far as the log knows
		}
		if t.to == attest.StateEnrolled && slices.Contains(t.from, m.State) {
			// Its serial number may be another's: an identity keeps its
			// endorsement key.
			if !m.ReplacedBy.IsZero() {
				return nil, conflict(fmt.Sprintf("machine %s was replaced by machine %s, which has its name and serial number", id, m.ReplacedBy), "")
			}
			if f := s.owns(ctx, docs, m, m.Serial, m.names()); f != nil {
				return nil, f
			}
			if alias, f := s.aliasOf(ctx, docs, id); f != nil {
				return nil, f
			} else if alias != nil {
				return nil, tpmTaken(m, alias)
			}
		}
		for _, from := range t.from {
			if m.State == from {
				ev := stateEvent(m, t.to, by, reason)
				if len(mended) > 0 {
					ev = withEffect(ev, effectMended+strings.Join(mended, ", "))
				}
				return &Change{Documents: docs.dirty, Events: []audit.Event{ev}}, nil
			}
		}
		hint := ""
		for _, o := range transitions() {
			if o.to == t.to && slices.Contains(o.from, m.State) {
				hint = fmt.Sprintf("what does it from there: sealift machine %s %s --reason TEXT", o.verb, id)
			}
		}
		return nil, conflict(fmt.Sprintf("machine %s is %s: it cannot be made %s by %s", id, m.State, t.to, t.verb), hint)
	})
	if f == nil && locks {
		s.lockedOut(ctx, id, token)
	}
	return m, f
}

// rejoin has an enrolled machine's next release hold a join token, for a node
// whose certificate was lost or ran out. A token that is still out is taken
// back, so that what becomes of it does not count as the new join.
func (s *Server) rejoin(ctx context.Context, id attest.MachineID, by, reason string) (*api.Machine, *failure) {
	reason, f := checkReason(reason)
	if f != nil {
		return nil, f
	}
	token := ""
	m, f := s.change(ctx, id, func(m *Machine, now time.Time) ([]audit.Event, *failure) {
		token = ""
		switch {
		case m.Revision == 0:
			return nil, notFound(fmt.Sprintf("there is no machine %s", id))
		case m.State != attest.StateEnrolled:
			return nil, conflict(fmt.Sprintf("machine %s is %s: only an enrolled one can join", id, m.State), "")
		case !m.Joined:
			return nil, nil // its next release has a token anyway
		}
		m.Joined, token, m.TokenID = false, m.TokenID, ""
		return []audit.Event{{Kind: audit.KindState, Machine: id, Data: audit.StateChange{
			From: m.State, To: m.State, By: by, Reason: reason, Effect: effectRejoin,
		}}}, nil
	})
	if f == nil && token != "" && s.c.Tokens != nil {
		s.takeBack(ctx, id, token)
	}
	return m, f
}

// checkReason returns an operator's reason without the space around it.
func checkReason(reason string) (string, *failure) {
	reason = strings.TrimSpace(reason)
	if reason == "" || len(reason) > maxReason {
		return "", badRequest("reason has %d bytes, want 1 to %d", len(reason), maxReason)
	}
	return reason, nil
}

// TokenEvent logs what became of the join token of a node, for whoever minted
// it. audit.TokenJoined ends the machine's need for tokens.
func (s *Server) TokenEvent(ctx context.Context, t audit.Token) error {
	owners, err := s.c.Store.Machines(ctx, Query{NodeName: t.NodeName, Limit: 1})
	if err != nil {
		return fmt.Errorf("join token %s: find node %s: %w", t.ID, t.NodeName, err)
	}
	if len(owners) == 0 {
		return fmt.Errorf("join token %s: node %s: %w", t.ID, t.NodeName, ErrNotFound)
	}
	_, f := s.change(ctx, owners[0].ID, func(m *Machine, now time.Time) ([]audit.Event, *failure) {
		if m.TokenID == t.ID {
			switch t.Event {
			case audit.TokenJoined:
				m.Joined = true
			case audit.TokenRevoked, audit.TokenExpired:
				m.TokenID = ""
			}
		}
		return []audit.Event{{Kind: audit.KindToken, Machine: m.ID, Data: t}}, nil
	})
	if f != nil {
		return f.asError(fmt.Sprintf("join token %s: record that it was %s", t.ID, t.Event))
	}
	return nil
}
