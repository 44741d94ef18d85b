package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// A record in the store may be noise: a disk fails, or somebody wrote to the database.
// Whoever it is about is refused (attest.CodeRecordDamaged), and nobody else. An
// approver has it written anew, with machine approve: a machine's record from the
// decision log, documents about who is who from the records of machines, of which they
// are an index. So does an operator who locks the machine out, with its record, and an
// approver who reinstates it, with the documents.

// Effects of that in the audit log: what they begin with.
const (
	effectRemade = "its record could not be read, and was written anew from the decision log"
	effectMended = "what could not be read was written anew: "
)

// damagedKind is the kind of the documents that keep what a record was that was
// written anew. It may hold keys that somebody can still save.
const damagedKind = "damaged"

const hintDamaged = "an approver has it written anew: sealift machine approve ID --reason TEXT"

// damagedRecord is the answer to who needs a machine's record that cannot be read.
func damagedRecord(d *DamagedError) *failure {
	return &failure{
		status: http.StatusConflict, code: string(attest.CodeRecordDamaged), text: fmt.Sprintf("the service's record of machine %s cannot be read", d.Machine.ID),
		hint: strings.Replace(hintDamaged, "ID", d.Machine.ID.String(), 1), cause: d,
	}
}

// damagedDocument is the same for a document about who is who.
func damagedDocument(kind, name string, err error) *failure {
	return &failure{
		status: http.StatusConflict, code: string(attest.CodeRecordDamaged), text: fmt.Sprintf("what the service has of %s cannot be read", documentName(kind, name)),
		hint: hintDamaged, cause: fmt.Errorf("read %s %s: %w", kind, name, err), document: documentName(kind, name),
	}
}

func (f *failure) isDamage() bool { return f != nil && f.code == string(attest.CodeRecordDamaged) }

// documentName is how a finding names a document about who is who: its kind and its name.
func documentName(kind, name string) string { return kind + " " + name }

// storeFailure is the failure of a read of a machine's record, other than that there
// is none.
func storeFailure(err error) *failure {
	var damaged *DamagedError
	if errors.As(err, &damaged) && damaged.Machine != nil {
		return damagedRecord(damaged)
	}
	return unavailable("the store", err)
}

// refuseDamaged refuses evidence of a machine whose record cannot be read. Nothing of
// it is judged: by what, is not known.
func (s *Server) refuseDamaged(ctx context.Context, sub *submission, f *failure) (int, any, *failure) {
	result := &attest.Result{
		Machine:  sub.machine,
		Findings: []attest.Finding{{Code: attest.CodeRecordDamaged, Message: f.text, Hint: f.hint}},
		Facts:    []attest.Fact{},
	}
	v := audit.Verdict{ChallengeID: sub.challenge.ID, Address: sub.peer.address, Result: result}
	ev := audit.Event{Time: sub.now, Kind: audit.KindVerdict}
	var logged bool
	if sub.proven {
		ev.Machine = sub.machine
		logged, v.Suppressed = s.refusals.log(sub.machine.String(), sub.now)
	} else {
		logged, v.Suppressed = s.unproven.log("", sub.now)
	}
	if !logged {
		return refused(result)
	}
	ev.Data = v
	if f := s.commit(ctx, &Change{Events: []audit.Event{ev}}); f != nil {
		return 0, nil, f
	}
	s.c.Log.Error("a machine's record cannot be read", "machine", sub.machine.Short(), "peer", sub.peer.address, "error", f.cause)
	return refused(result)
}

// mend writes anew those documents about m that cannot be read, and returns their
// names: those that its last evidence met, and those that its record names.
func (s *Server) mend(ctx context.Context, d *documents, m *Machine) ([]string, *failure) {
	names := [][2]string{{tpmKind, keyDocument(m.ID)}}
	serials := []string{m.Serial}
	if m.Next != nil {
		serials = append(serials, m.Next.Serial)
	}
	for _, serial := range serials {
		if key := s.serialKey(serial); key != "" {
			names = append(names, [2]string{serialKind, key})
		}
	}
	if len(m.AKName) > 0 {
		names = append(names, [2]string{tpmKind, akDocument(m.AKName)})
	}
	for _, id := range m.OtherKeys {
		names = append(names, [2]string{tpmKind, keyDocument(id)})
	}
	for _, digest := range m.names() {
		names = append(names, [2]string{expectedKind, digest.String()})
	}
	if b, err := s.c.Store.Evidence(ctx, m.LastEvidence); err == nil {
		// What cannot be read of it names nothing.
		if stored, err := api.DecodeEvidence(b); err == nil && stored.Machine == m.ID {
			for _, text := range stored.Known.Damaged {
				if kind, name, ok := strings.Cut(text, " "); ok && (kind == tpmKind || kind == serialKind || kind == expectedKind) {
					names = append(names, [2]string{kind, name})
				}
			}
		}
	} else if !errors.Is(err, ErrNotFound) {
		return nil, unavailable("the store", err)
	}
	var mended []string
	for _, n := range names {
		f := d.check(ctx, n[0], n[1])
		if f.isDamage() {
			mended = append(mended, documentName(n[0], n[1]))
			f = s.rewrite(ctx, d, n[0], n[1])
		}
		if f != nil {
			return nil, f
		}
	}
	return mended, nil
}

// check reads a document about who is who.
func (d *documents) check(ctx context.Context, kind, name string) (f *failure) {
	switch kind {
	case tpmKind:
		_, f = d.get(ctx, kind, name, new(tpmKey))
	case serialKind:
		_, f = d.get(ctx, kind, name, new(serialNumber))
	default:
		_, f = d.get(ctx, kind, name, new(api.Expected))
	}
	return f
}

// rewrite makes a document that cannot be read anew from the records of machines. What
// none of them says is nobody's; whose endorsement key was expected must be said again.
// If one of the records cannot be read, that one may be the owner's: it is mended first.
func (s *Server) rewrite(ctx context.Context, d *documents, kind, name string) *failure {
	if kind == expectedKind {
		e := &api.Expected{By: "service", At: s.c.Clock(), Withdrawn: true}
		if err := e.EK.UnmarshalText([]byte(name)); err != nil {
			return internal(fmt.Errorf("%s %s: %w", kind, name, err))
		}
		d.set(kind, name, e)
		return nil
	}
	has := func(m *Machine) bool {
		if kind == serialKind {
			// What a pending machine says is a claim.
			return s.serialKey(m.Serial) == name && m.State != attest.StatePending && m.ReplacedBy.IsZero()
		}
		if id, ok := keyOfDocument(name); ok {
			return slices.Contains(m.OtherKeys, id)
		}
		return len(m.AKName) > 0 && akDocument(m.AKName) == name
	}
	var owner *Machine
	for q := (Query{Limit: rewrapPage}); ; {
		page, err := s.c.Store.Machines(ctx, q)
		if err != nil {
			return unavailable("the store", err)
		}
		if len(page) == 0 {
			break
		}
		for _, m := range page {
			q.After = m.ID
			switch {
			case m.Damaged != "":
				return damagedRecord(&DamagedError{Machine: m, Reason: errors.New(m.Damaged)})
			case has(m) && (owner == nil || claims(m, owner)):
				owner = m
			}
		}
	}
	if owner == nil {
		owner = new(Machine)
	}
	if kind == tpmKind {
		d.set(kind, name, &tpmKey{Machine: owner.ID})
		return nil
	}
	n := serialNumber{Serial: name, Machine: owner.ID}
	if owner.ID.IsZero() {
		var err error
		if n.EK, err = s.expectedWith(ctx, name); err != nil {
			return unavailable("the store", err)
		}
	}
	d.set(kind, name, &n)
	return nil
}

// expectedWith returns the endorsement key that is expected with a serial number, none
// if there is none.
func (s *Server) expectedWith(ctx context.Context, serialKey string) (ek [32]byte, err error) {
	for after := ""; ; {
		docs, err := s.c.Store.Documents(ctx, expectedKind, after, rewrapPage)
		if err != nil || len(docs) == 0 {
			return ek, err
		}
		for _, doc := range docs {
			var e api.Expected
			if json.Unmarshal(doc.Body, &e) == nil && !e.Withdrawn && s.serialKey(e.Serial) == serialKey && e.EK.String() == doc.Name {
				return e.EK, nil
			}
			after = doc.Name
		}
	}
}

// remake writes a machine's record anew that cannot be read, from what the decision log
// says of it. What that does not hold is lost: a machine that was given a disk key is
// quarantined, as after a restore that lost it, and must be installed again. The boot
// that it is in counts as released. Its node is to be fenced if it was before, and if
// it is quarantined and fence is set. m is nil if there was nothing to do.
func (s *Server) remake(ctx context.Context, id attest.MachineID, by, reason string, fence bool) (m *Machine, f *failure) {
	var last error
	for range attempts {
		_, err := s.c.Store.Machine(ctx, id)
		var damaged *DamagedError
		if !errors.As(err, &damaged) || damaged.Machine == nil {
			return m, nil
		}
		r := NewRecovery()
		for e, err := range s.c.Store.Audit(ctx, 1) {
			if err != nil {
				return nil, unavailable("the decision log", err)
			}
			if e.Machine != id {
				continue
			}
			if err := r.Replay(e); err != nil {
				return nil, internal(err)
			}
		}
		m = r.machine(id)
		m.Revision, m.Restored, m.Boot = damaged.Machine.Revision, true, nil
		if m.State == attest.StateUnknown {
			m.State, m.Reason, m.NodeName = attest.StatePending, "its record could not be read, and the decision log says nothing of it", damaged.Machine.NodeName
		}
		why, due := m.Reason, m.FenceDue
		c := &Change{Machine: m, Events: []audit.Event{withEffect(stateEvent(m, m.State, by, reason), effectRemade)}}
		m.Reason, m.FenceDue = why, due
		if disk := r.lost[id]; disk != "" && disk == m.DiskGUID && m.State == attest.StateEnrolled {
			c.Events = append(c.Events, stateEvent(m, attest.StateQuarantined, by, "its disk key was in its record, which could not be read: reinstate it and install it again"))
			m.FenceDue = fence // else its node does nothing wrong
		}
		body, err := json.Marshal(map[string]string{"record": base64.StdEncoding.EncodeToString(damaged.Body), "reason": damaged.Reason.Error()})
		if err != nil {
			return nil, internal(err)
		}
		// No name that somebody could have taken before.
		name, err := randomID()
		if err != nil {
			return nil, internal(err)
		}
		c.Documents = []*Document{{Kind: damagedKind, Name: fmt.Sprintf("machine-%s-%s", id, name), Body: body}}
		now := s.c.Clock()
		for i := range c.Events {
			c.Events[i].Time = now
		}
		f := s.commit(ctx, c)
		if f == nil {
			s.c.Log.Info("a machine's record was written anew from the decision log", "machine", id.Short(), "state", m.State, "by", by)
			m.Revision++
			return m, nil
		}
		if last = f.cause; !errors.Is(last, ErrConflict) {
			return nil, f
		}
	}
	return nil, unavailable("the machine's record", fmt.Errorf("machine %s: changed %d times meanwhile: %w", id, attempts, last))
}

// noteDamage has the verifier refuse evidence because a document about who is who
// cannot be read, and returns any other failure.
func (sub *submission) noteDamage(k *attest.Known, f *failure) *failure {
	if !f.isDamage() {
		return f
	}
	k.Damaged = append(k.Damaged, f.document)
	return nil
}
