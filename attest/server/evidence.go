package server

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
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
	"github.com/sealift/sealift/image/manifest"
)

const (
	// attempts bounds how often a decision is made again because the machine's
	// record changed under it.
	attempts = 4
	// maxFindings and maxFacts bound what an audit entry keeps of a result.
	maxFindings = 200
	maxFacts    = 400
)

// proof is what only accepted evidence gives, see attest.Verified.
type proof struct {
	akName       []byte
	resetCount   uint32
	restartCount uint32
	clock        uint64
	tpmFirmware  uint64
	boot         *attest.Boot
	wrap         func(attest.Secret) (attest.WrappedKey, error)
}

// appraise verifies evidence. The proof is nil unless it was accepted.
func appraise(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, known *attest.Known, p *attest.Policy) (*attest.Result, *proof) {
	r := attest.Verify(ev, ch, ses, known, p)
	v, ok := r.Verified()
	if !ok {
		return r, nil
	}
	reset, restart := v.Boot()
	return r, &proof{
		akName: v.AKName(), resetCount: reset, restartCount: restart, clock: v.Clock(), tpmFirmware: v.TPMFirmware(), boot: v.BootState(),
		wrap: func(secret attest.Secret) (attest.WrappedKey, error) { return attest.Wrap(v, secret) },
	}
}

// submission is one piece of evidence on its way to a decision.
type submission struct {
	peer      peer
	now       time.Time
	machine   attest.MachineID // of the challenge's endorsement key
	challenge *attest.Challenge
	request   *api.EvidenceRequest
	// proven: the sender's TPM holds the endorsement key of the challenge.
	proven bool
	// counted: the machine's budget for refusals was asked, and said logged
	// and suppressed.
	counted, logged bool
	suppressed      int64

	// What whoIs found out, and what enrolling an expected machine adds to its
	// release. Made anew with each decision.
	documents *documents
	expected  *api.Expected
	akName    []byte             // of the challenge's attestation key, if proven
	keys      []attest.MachineID // other endorsement keys that are proven to be with it
	digests   []manifest.SHA256
	serial    string // claimed
	events    []audit.Event
}

// evidence answers api.PathEvidence. The challenge is taken first, so whatever
// is decided next it was answered once.
func (s *Server) evidence(ctx context.Context, p peer, req *api.EvidenceRequest) (int, any, *failure) {
	now := s.c.Clock()
	if len(req.ChallengeID) == 0 || len(req.ChallengeID) > 64 {
		return 0, nil, badRequest("challengeID has %d characters, want 1 to 64", len(req.ChallengeID))
	}
	if err := checkGUID(req.Evidence.Disk.GUID); err != nil {
		return 0, nil, badRequest("disk: %v", err)
	}
	ch, ok := p.conn.take(req.ChallengeID)
	if !ok {
		if f := s.refusedUnproven(ctx, now, p, "evidence for a challenge that is not open"); f != nil {
			return 0, nil, f
		}
		result := &attest.Result{
			Findings: []attest.Finding{{
				Code:    attest.CodeChallenge,
				Message: "the challenge is not open: it was answered before, or was never given over this connection",
				Hint:    "ask for another challenge over the connection that the evidence goes over",
			}},
			Facts: []attest.Fact{},
		}
		s.c.Meter.Verdict(result)
		return refused(result)
	}
	open := ch
	if waited := p.conn.waited.Truncate(time.Millisecond); waited > 0 {
		later := *ch
		later.Expires = ch.Expires.Add(waited)
		ch = &later
	}
	machine, err := attest.EKMachineID(ch.EKPublic)
	if err != nil {
		// MakeCredential took this key when the challenge was made.
		return 0, nil, internal(fmt.Errorf("challenge %s: %w", ch.ID, err))
	}
	sub := &submission{peer: p, now: now, machine: machine, challenge: ch, request: req}
	decide := s.decideReport
	if ch.Purpose != attest.PurposeReport {
		sub.proven, decide = activated(ch, req), s.decide
	}
	if sub.proven {
		// A proof is made by the TPM that holds the key, for one challenge: nobody
		// else uses this up.
		if ok, wait := s.proven.allow(machine.String(), now); !ok {
			p.conn.giveBack(open) // nothing was judged by it
			return 0, nil, rateLimited(limitProvenEK, wait)
		}
	}
	for range attempts {
		status, body, f := decide(ctx, sub)
		if f != nil && errors.Is(f.cause, ErrConflict) {
			continue
		}
		if resp, ok := body.(*api.EvidenceResponse); ok && f == nil {
			s.c.Meter.Verdict(resp.Result)
			if resp.Release != nil {
				p.conn.released = machine
			}
		}
		return status, body, f
	}
	return 0, nil, unavailable("the machine's record", fmt.Errorf("machine %s: changed %d times while its evidence was decided on", machine, attempts))
}

// vouched reports whether an authority that the policy trusts vouches for the
// sender's endorsement key.
func (s *Server) vouched(sub *submission, policy *attest.Policy) bool {
	if policy == nil {
		return false
	}
	_, findings := attest.VerifyEK(sub.challenge.EKPublic, sub.request.Evidence.EKCertificates, &policy.TPM, sub.now)
	return len(findings) == 0
}

// activated reports whether the sender's TPM holds both keys of the challenge.
// attest.Verify checks it too; here it decides what may be kept of a refusal.
func activated(ch *attest.Challenge, req *api.EvidenceRequest) bool {
	want := attest.ActivationProof(ch.ActivationSecret, ch.ID, ch.Nonce, ch.AKPublic)
	return hmac.Equal(want, req.ActivationProof) &&
		bytes.Equal(ch.EKPublic, req.Evidence.EKPublic) && bytes.Equal(ch.AKPublic, req.Evidence.AKPublic)
}

// decide appraises the evidence against the machine's present record and
// commits the decision. A record that changed meanwhile gives a failure whose
// cause is ErrConflict; nothing was written then.
func (s *Server) decide(ctx context.Context, sub *submission) (int, any, *failure) {
	m, f := s.load(ctx, sub.machine)
	if f.isDamage() {
		return s.refuseDamaged(ctx, sub, f)
	}
	if f != nil {
		return 0, nil, f
	}
	ev := &sub.request.Evidence
	known, f := s.known(ctx, m, ev.Disk.GUID)
	if f != nil {
		return 0, nil, f
	}
	sub.events = nil
	if f := s.whoIs(ctx, sub, m, known); f != nil {
		return 0, nil, f
	}
	policy, err := s.c.Policy(ctx, sub.machine)
	if err != nil {
		return 0, nil, unavailable("the policy", fmt.Errorf("policy of machine %s: %w", sub.machine, err))
	}
	if f := s.proveEnrolment(ctx, sub, m, known); f != nil {
		return 0, nil, f
	}
	owner, f := s.tpmOwner(ctx, sub, m, policy, known)
	if f != nil {
		return 0, nil, f
	}
	session := &attest.Session{Exporter: sub.peer.exporter, ActivationProof: sub.request.ActivationProof, Now: sub.now}
	result, prf := s.appraise(ev, sub.challenge, session, known, policy)
	stored, err := json.Marshal(&api.StoredEvidence{
		Version: api.Version, Received: sub.now, Address: sub.peer.address, Machine: sub.machine,
		Challenge: *sub.challenge, Session: *session, Known: *known, Evidence: *ev,
	})
	if err != nil {
		return 0, nil, internal(fmt.Errorf("encode evidence: %w", err))
	}
	if owner != nil && m.Revision == 0 && signed(result) {
		// It is no new machine: what it asks for is that one's.
		m = owner
	}
	if prf == nil {
		return s.refuse(ctx, sub, m, policy, result, stored)
	}
	if sub.expected != nil && sub.proven {
		if f := s.enrolExpected(ctx, sub, m); f != nil {
			return 0, nil, f
		}
	}
	if result.Machine != sub.machine || m.ID != sub.machine || owner != nil || !sub.proven || m.State != attest.StateEnrolled || known.Unproven != "" || len(known.Damaged) > 0 {
		// Verify has just checked all of it. Should the two ever differ, no
		// secret leaves.
		return 0, nil, internal(fmt.Errorf("machine %s: accepted evidence of machine %s, the TPM of machine %s, proven %t, state %q", sub.machine, result.Machine, m.ID, sub.proven, m.State))
	}
	return s.release(ctx, sub, m, policy, result, prf, stored)
}

// load returns a machine's record, or a new one that was never stored.
func (s *Server) load(ctx context.Context, id attest.MachineID) (*Machine, *failure) {
	m, err := s.c.Store.Machine(ctx, id)
	if errors.Is(err, ErrNotFound) {
		unsettled, f := s.unsettled(ctx)
		if f != nil {
			return nil, f
		}
		return &Machine{Machine: api.Machine{ID: id, NodeName: api.NodeName(id, 10)}, Restored: unsettled}, nil
	}
	if err != nil {
		return nil, storeFailure(err)
	}
	if m.ID != id {
		// The keys in a record are sealed for the machine that it names: whoever
		// can write to the database could have them opened for another.
		return nil, internal(fmt.Errorf("machine %s: its row holds the record of machine %s", id, m.ID))
	}
	return m, nil
}

// known tells the verifier what the record says.
func (s *Server) known(ctx context.Context, m *Machine, disk string) (*attest.Known, *failure) {
	k := m.recorded(disk)
	if m.Revision > 0 && m.DiskGUID == disk {
		k.DiskOwner = m.ID // a disk has one owner
		return k, nil
	}
	owners, err := s.c.Store.Machines(ctx, Query{DiskGUID: disk, Limit: 1})
	if err != nil {
		return nil, unavailable("the store", err)
	}
	if len(owners) > 0 {
		k.DiskOwner = owners[0].ID
	}
	return k, nil
}

// refuse commits a refusal and answers with it.
//
// What is kept depends on what is proven. Of a machine on record, or of a TPM
// with a trusted endorsement certificate, everything; of any other sender only
// the verdict. Of both only so many, because a machine may ask without end and
// such senders can be made without end. The next that is logged counts those
// that were not. A sign of tampering (signs) and the first second request of a boot are
// not held back by that. Nothing is kept of a machine for which there is no room among
// those that wait for approval.
func (s *Server) refuse(ctx context.Context, sub *submission, m *Machine, policy *attest.Policy, result *attest.Result, stored []byte) (int, any, *failure) {
	v := audit.Verdict{ChallengeID: sub.challenge.ID, Address: sub.peer.address, Result: bounded(result)}
	change := &Change{}
	trusted := sub.proven && s.vouched(sub, policy)
	raised := func() {}
	switch {
	case sub.proven && (m.Revision > 0 || trusted):
		// Taken once, however often the decision is made again.
		if !sub.counted {
			sub.counted = true
			sub.logged, sub.suppressed = s.refusals.log(m.ID.String(), sub.now)
		}
		var alarms []audit.Event
		alarms, raised = s.raise(sub, m, result)
		if !sub.logged && len(alarms) == 0 {
			return refused(result)
		}
		full, f := s.refusedRecord(ctx, sub, m, result, change)
		if f != nil {
			return 0, nil, f
		}
		if full {
			return refused(result)
		}
		if m.Revision > 0 {
			v.Bindings = tpmBindings(change.Documents)
		}
		m.answered(result, sub.now)
		change.Evidence, v.Evidence, v.Suppressed = stored, digestOf(stored), sub.suppressed
		change.Machine.LastEvidence = v.Evidence
		v.Explanation = s.explain(ctx, &sub.request.Evidence, result, policy, m.AcceptedEvidence).Bounded(maxExplained)
		change.Events = append([]audit.Event{{Time: sub.now, Kind: audit.KindVerdict, Machine: m.ID, Data: v}}, change.Events...)
		change.Events = append(change.Events, alarms...)
	default:
		ok, n := s.unproven.log("", sub.now)
		if !ok {
			return refused(result)
		}
		v.Suppressed = n
		change.Events = []audit.Event{{Time: sub.now, Kind: audit.KindVerdict, Data: v}}
	}
	if f := s.commit(ctx, change); f != nil {
		return 0, nil, f
	}
	raised()
	s.c.Log.Info("evidence refused", "request", sub.peer.request, "machine", m.ID.Short(), "peer", sub.peer.address, "codes", codesOf(result))
	return refused(result)
}

// refused answers with a refusal.
func refused(result *attest.Result) (int, any, *failure) {
	return http.StatusForbidden, &api.EvidenceResponse{Result: result}, nil
}

// refusedRecord adds to change what a refusal does to the machine's record: a
// machine never heard of, whose TPM is a trusted one, becomes pending, unless
// too many others wait.
func (s *Server) refusedRecord(ctx context.Context, sub *submission, m *Machine, result *attest.Result, change *Change) (full bool, f *failure) {
	if m.Revision > 0 {
		if f := s.noteTPM(ctx, sub, m, result); f != nil {
			return false, f
		}
		change.Documents = sub.documents.dirty
		m.LastSeen, m.LastAllowed, m.Address = sub.now, false, sub.peer.address
		change.Machine = m
		return false, nil
	}
	waiting, err := s.c.Store.Machines(ctx, Query{State: attest.StatePending, Limit: s.c.Limits.MaxPending})
	if err != nil {
		return false, unavailable("the store", err)
	}
	if len(waiting) >= s.c.Limits.MaxPending {
		s.c.Log.Error("too many machines wait for approval", "machine", sub.machine.Short(), "limit", s.c.Limits.MaxPending)
		return true, nil
	}
	if f := s.chooseName(ctx, m); f != nil {
		return false, f
	}
	m.State, m.Reason = attest.StatePending, "asked for a release without an install record"
	if sub.expected != nil {
		m.Reason = "enrolled beforehand, but its evidence was refused"
	}
	m.Serial, m.Digests = clip(sub.serial), sub.digests
	if f := s.noteTPM(ctx, sub, m, result); f != nil {
		return false, f
	}
	change.Documents = sub.documents.dirty
	m.LastSeen, m.Address, m.Firmware, m.Image = sub.now, sub.peer.address, result.Firmware, result.Image
	change.Machine = m
	change.Events = append(change.Events, audit.Event{
		Time: sub.now, Kind: audit.KindState, Machine: sub.machine,
		Data: audit.StateChange{To: attest.StatePending, By: "service", Reason: m.Reason},
	})
	return false, nil
}

// commit writes a decision. It is not given up because the peer went away: a
// verdict stands whether or not anyone hears it.
func (s *Server) commit(ctx context.Context, c *Change) *failure {
	return s.commitFor(context.WithoutCancel(ctx), c)
}

// commitFor writes a decision that is of use only to a peer that hears of it: a
// release, which spends the machine's boot. It is given up if ctx has ended before
// the store begins with it, because the peer went away or the service ends; then
// the peer can ask again in the same boot. What the store has begun is finished,
// and counts.
func (s *Server) commitFor(ctx context.Context, c *Change) *failure {
	if err := ctx.Err(); err != nil {
		return unavailable("an answer", fmt.Errorf("not decided: %w", err))
	}
	ctx, cancel := context.WithTimeout(ctx, workTimeout)
	defer cancel()
	identify(c)
	if err := s.signTrust(ctx, c); err != nil {
		return internal(err)
	}
	if err := s.c.Store.Commit(ctx, c); err != nil {
		return unavailable("the store", err)
	}
	s.sound(c.Events)
	return nil
}

// bounded returns r for the audit log, which does not grow with what a
// hostile event log makes of findings and facts.
func bounded(r *attest.Result) *attest.Result {
	b := *r
	if n := len(b.Findings) - maxFindings; n > 0 {
		b.Findings = append(slices.Clone(b.Findings[:maxFindings]), attest.Finding{
			Code: b.Findings[maxFindings].Code, Message: fmt.Sprintf("and %d more findings; the stored evidence gives them again", n),
		})
	}
	if len(b.Facts) > maxFacts {
		b.Facts = slices.Clone(b.Facts[:maxFacts])
	}
	b.Findings = slices.Clone(b.Findings)
	for i := range b.Findings {
		f := &b.Findings[i]
		f.Message, f.Got, f.Want, f.Hint = clip(f.Message), clip(f.Got), clip(f.Want), clip(f.Hint)
	}
	b.Facts = slices.Clone(b.Facts)
	for i := range b.Facts {
		b.Facts[i].Value = clip(b.Facts[i].Value)
	}
	return &b
}

// clip bounds a text that may come from the machine.
func clip(s string) string {
	const limit = 1024
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

func codesOf(r *attest.Result) []string {
	var codes []string
	for _, f := range r.Findings {
		if c := string(f.Code); !slices.Contains(codes, c) {
			codes = append(codes, c)
		}
	}
	return codes
}

func digestOf(b []byte) manifest.SHA256 { return sha256.Sum256(b) }
