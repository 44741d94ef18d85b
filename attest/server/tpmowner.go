package server

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// A TPM can have several endorsement keys, each with a certificate: RSA and ECC,
// those of the high range, one that an update of its firmware brought. A machine's
// id is that of one of them. No certificate says that two keys are in one TPM. What
// proves it is an attestation key that was activated with both: it never leaves its
// TPM. So the service remembers
//
//   - whose the TPM of an attestation key is. An agent makes the same attestation
//     key whichever endorsement key it uses, as that follows from the TPM's seed and
//     the service's URL;
//   - whose the TPM of an endorsement key is which is not its machine's id. An agent
//     proves its others when the service asks, once.
//
// A TPM that is an enrolled, quarantined or revoked machine is no other machine.

// tpmKind is the kind of the documents that say so. Their names are those of
// akDocument and keyDocument.
const tpmKind = audit.BindingTPM

// tpmIndexed is the document that says that there is one for the attestation key of
// each machine that an earlier version released.
const tpmIndexed = "indexed"

// maxTakeovers bounds how many re-enrolments of one machine are followed.
const maxTakeovers = 16

// tpmKey says whose a TPM is, by a key that is in it.
type tpmKey struct {
	Machine attest.MachineID `json:"machine"`
	// KeysProven, of an attestation key: the TPM's other endorsement keys were
	// proven since its firmware was last changed.
	KeysProven bool `json:"keysProven,omitempty"`
}

func akDocument(name []byte) string          { return "ak-" + hex.EncodeToString(name) }
func keyDocument(id attest.MachineID) string { return "ek-" + id.String() }
func tpmBindings(d []*Document) []audit.Binding {
	return bindings(slices.DeleteFunc(slices.Clone(d), func(d *Document) bool { return d.Kind != tpmKind }))
}

// keyOfDocument is the inverse of keyDocument.
func keyOfDocument(name string) (attest.MachineID, bool) {
	text, ok := strings.CutPrefix(name, "ek-")
	id, err := attest.ParseMachineID(text)
	return id, ok && err == nil
}

// hasKeys notes other endorsement keys of the machine's TPM.
func (m *Machine) hasKeys(ids ...attest.MachineID) {
	for _, id := range ids {
		if id != m.ID && !slices.Contains(m.OtherKeys, id) && len(m.OtherKeys) < api.MaxKeys {
			m.OtherKeys = append(m.OtherKeys, id)
		}
	}
}

// provenKey is an endorsement key that was proven to be in one TPM with an
// attestation key.
type provenKey struct {
	id     attest.MachineID
	akName []byte
}

// prove notes a key. What there is no room for is asked for again in the next boot.
func (c *connection) prove(k provenKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.ContainsFunc(c.proven, func(p provenKey) bool { return p.id == k.id && bytes.Equal(p.akName, k.akName) }) {
		return true
	}
	if len(c.proven) == api.MaxKeys {
		return false
	}
	c.proven = append(c.proven, k)
	return true
}

// keys returns the endorsement keys that were proven with an attestation key, but
// for one.
func (c *connection) keys(akName []byte, but attest.MachineID) []attest.MachineID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []attest.MachineID
	for _, p := range c.proven {
		if bytes.Equal(p.akName, akName) && p.id != but {
			out = append(out, p.id)
		}
	}
	return out
}

// key answers api.PathKey. That two keys are in one TPM is so whoever passes it on;
// the service acts on it only when it releases to that attestation key.
func (s *Server) key(ctx context.Context, p peer, req *api.KeyRequest) (int, any, *failure) {
	now := s.c.Clock()
	if len(req.ChallengeID) == 0 || len(req.ChallengeID) > 64 {
		return 0, nil, badRequest("challengeID has %d characters, want 1 to 64", len(req.ChallengeID))
	}
	ch, ok := p.conn.take(req.ChallengeID)
	refused := func(code attest.Code, why string) (int, any, *failure) {
		if f := s.refusedUnproven(ctx, now, p, "an endorsement key was not proven: "+why); f != nil {
			return 0, nil, f
		}
		return 0, nil, &failure{status: http.StatusForbidden, code: string(code), text: why, hint: "ask for another challenge over the same connection"}
	}
	switch {
	case !ok:
		return refused(attest.CodeChallenge, "the challenge is not open")
	case ch.Purpose != attest.PurposeUnlock || !now.Before(ch.Expires.Add(p.conn.waited)):
		return refused(attest.CodeChallenge, "the challenge has expired, or is for another purpose")
	case !hmac.Equal(attest.ActivationProof(ch.ActivationSecret, ch.ID, ch.Nonce, ch.AKPublic), req.ActivationProof):
		return refused(attest.CodeActivation, "the activation proof is wrong")
	}
	id, err := attest.EKMachineID(ch.EKPublic)
	if err != nil {
		return 0, nil, internal(fmt.Errorf("challenge %s: %w", ch.ID, err))
	}
	name, err := attest.AKName(ch.AKPublic)
	if err != nil {
		return 0, nil, internal(fmt.Errorf("challenge %s: %w", ch.ID, err))
	}
	if !p.conn.prove(provenKey{id, name}) {
		return 0, nil, badRequest("this connection has proven %d keys, there is room for no more", api.MaxKeys)
	}
	return http.StatusOK, &struct{}{}, nil
}

// advise tells an agent which of its endorsement keys is its machine's, if it is not
// that of the challenge, and whether to prove the others. It is advice, by which an
// honest machine stays the one that it was when its TPM has a new certificate;
// nothing rests on it, so that a store that does not answer gives none.
func (s *Server) advise(ctx context.Context, ch *attest.Challenge) (machine attest.MachineID, proveKeys bool) {
	if ch.Purpose != attest.PurposeUnlock {
		return machine, false
	}
	name, err := attest.AKName(ch.AKPublic)
	if err != nil {
		return machine, false
	}
	var k tpmKey
	doc, err := s.c.Store.Document(ctx, tpmKind, akDocument(name))
	if err != nil || json.Unmarshal(doc.Body, &k) != nil {
		return machine, false
	}
	id, err := attest.EKMachineID(ch.EKPublic)
	if err != nil {
		return machine, false
	}
	if k.Machine == id {
		return machine, !k.KeysProven
	}
	owner, f := s.heldBy(ctx, k.Machine, id)
	if f != nil || owner == nil || owner.State != attest.StateEnrolled {
		return machine, false
	}
	return owner.ID, false
}

// heldBy returns the machine owner, if the TPM that is its can be no other's, and
// not because an operator gave it to id, see reEnrol: if it is on record and not
// pending.
func (s *Server) heldBy(ctx context.Context, owner, id attest.MachineID) (*Machine, *failure) {
	var first *Machine
	for next, n := owner, 0; !next.IsZero() && n < maxTakeovers; n++ {
		if next == id {
			return nil, nil
		}
		m, err := s.c.Store.Machine(ctx, next)
		if errors.Is(err, ErrNotFound) {
			break
		}
		if err != nil {
			return nil, storeFailure(err)
		}
		if first == nil {
			first = m
		}
		next = m.ReplacedBy
	}
	if first == nil || first.State == attest.StateUnknown || first.State == attest.StatePending {
		return nil, nil
	}
	return first, nil
}

// tpmOwner tells the verifier which other machine the sender's TPM is, and returns
// it. Only a TPM for whose key an authority vouches counts: anybody can make a key
// in software and activate with it what he likes.
func (s *Server) tpmOwner(ctx context.Context, sub *submission, m *Machine, policy *attest.Policy, k *attest.Known) (*Machine, *failure) {
	sub.keys, sub.akName = nil, nil
	if !sub.proven {
		return nil, nil
	}
	name, err := attest.AKName(sub.challenge.AKPublic)
	if err != nil {
		return nil, internal(fmt.Errorf("challenge %s: %w", sub.challenge.ID, err))
	}
	sub.akName, sub.keys = name, sub.peer.conn.keys(name, m.ID)
	k.OtherKeys = slices.Clone(m.OtherKeys)
	if m.State == attest.StateEnrolled && m.TPMBound && bytes.Equal(name, m.AKName) && len(sub.keys) == 0 {
		return nil, nil // what there is says so since its last release
	}
	for _, id := range sub.keys {
		if !slices.Contains(k.OtherKeys, id) {
			k.OtherKeys = append(k.OtherKeys, id)
		}
	}
	var owner *Machine
	look := func(id attest.MachineID) (f *failure) {
		if owner == nil && id != m.ID {
			owner, f = s.heldBy(ctx, id, m.ID)
		}
		return f
	}
	documents := []string{akDocument(name), keyDocument(m.ID)}
	for _, id := range sub.keys {
		if f := look(id); f != nil { // a machine with that id
			return nil, f
		}
		documents = append(documents, keyDocument(id))
	}
	for _, doc := range documents {
		var key tpmKey
		found, f := sub.documents.get(ctx, tpmKind, doc, &key)
		f = sub.noteDamage(k, f)
		if f == nil && found {
			f = look(key.Machine)
		}
		if f != nil {
			return nil, f
		}
	}
	if owner == nil || m.Revision == 0 && !s.vouched(sub, policy) {
		return nil, nil
	}
	k.TPMOwner, k.TPMOwnerState = owner.ID, owner.State
	return owner, nil
}

// bindTPM notes, with a release, that the TPM is m's. It comes before the record
// takes over what the evidence proved.
func (s *Server) bindTPM(ctx context.Context, sub *submission, m *Machine, prf *proof) *failure {
	fresh := !m.TPMBound || !bytes.Equal(m.AKName, sub.akName)
	updated := m.TPMFirmware != prf.tpmFirmware
	if !fresh && !updated && len(sub.keys) == 0 && !sub.request.KeysProven {
		return nil
	}
	var k tpmKey
	doc := akDocument(sub.akName)
	switch _, f := sub.documents.get(ctx, tpmKind, doc, &k); {
	case f.isDamage() && !fresh:
		// It was not asked, as the machine's record says the same.
		s.c.Log.Error("whose a TPM is could not be read, and is written anew", "machine", m.ID.Short(), "error", f.cause)
	case f != nil:
		return f
	}
	k.Machine, k.KeysProven = m.ID, sub.request.KeysProven
	sub.documents.set(tpmKind, doc, &k)
	for _, id := range sub.keys {
		var other tpmKey
		if _, f := sub.documents.get(ctx, tpmKind, keyDocument(id), &other); f != nil {
			return f
		}
		if other.Machine != m.ID {
			sub.documents.set(tpmKind, keyDocument(id), &tpmKey{Machine: m.ID})
		}
	}
	m.hasKeys(sub.keys...)
	m.TPMBound = true
	return nil
}

// signed reports whether the attestation key of the challenge signed evidence that
// answers it. That it was activated with an endorsement key does not say that it is
// in the same TPM, if that endorsement key is not in any: whoever has it in software
// opens the credential, whichever attestation key it names.
func signed(r *attest.Result) bool {
	return slices.ContainsFunc(r.Facts, func(f attest.Fact) bool { return f.Trust == attest.TrustQuoted })
}

// noteTPM notes whose the TPM of a machine is that was given nothing yet, if it is
// nobody's: it may be locked out before it is.
func (s *Server) noteTPM(ctx context.Context, sub *submission, m *Machine, result *attest.Result) *failure {
	taken := slices.ContainsFunc(result.Findings, func(f attest.Finding) bool { return f.Code == attest.CodeTPMTaken })
	if m.TPMBound || m.ID != sub.machine || taken || !signed(result) {
		return nil
	}
	var k tpmKey
	found, f := sub.documents.get(ctx, tpmKind, akDocument(sub.akName), &k)
	if f.isDamage() {
		return nil // for an approver
	}
	if f == nil && !found {
		sub.documents.set(tpmKind, akDocument(sub.akName), &tpmKey{Machine: m.ID})
	}
	return f
}

// aliasOf returns the machine whose TPM is proven to hold the endorsement key id,
// nil if there is none but id's own.
func (s *Server) aliasOf(ctx context.Context, d *documents, id attest.MachineID) (*Machine, *failure) {
	var k tpmKey
	found, f := d.get(ctx, tpmKind, keyDocument(id), &k)
	if f != nil || !found {
		return nil, f
	}
	return s.heldBy(ctx, k.Machine, id)
}

func tpmTaken(m, owner *Machine) *failure {
	return &failure{status: http.StatusConflict, code: string(attest.CodeTPMTaken),
		text: fmt.Sprintf("the TPM of machine %s is that of machine %s, which is %s", m.ID, owner.ID, owner.State),
		hint: fmt.Sprintf("if its endorsement key is to change: sealift machine re-enrol --old %s --new %s --reason TEXT", owner.ID, m.ID)}
}

// isNew reports whether a machine was given nothing yet, and is not locked out.
func (m *Machine) isNew() bool {
	return m.State == attest.StateUnknown || m.State == attest.StatePending || m.State == attest.StateEnrolled && m.ReleaseID == ""
}

// oneTPM reports whether two machines are proven to be one TPM.
func oneTPM(a, b *Machine) bool {
	return len(a.AKName) > 0 && bytes.Equal(a.AKName, b.AKName) || slices.Contains(a.OtherKeys, b.ID) || slices.Contains(b.OtherKeys, a.ID)
}

// indexTPMs notes, once, whose the TPMs are of the machines that an earlier version
// released. If one is two machines, that which is locked out is the one, or else
// that which was seen last; an alarm says so.
func (s *Server) indexTPMs(ctx context.Context) error {
	_, err := s.c.Store.Document(ctx, tpmKind, tpmIndexed)
	if errors.Is(err, ErrNotFound) {
		err = s.index(ctx)
	}
	if err != nil {
		return fmt.Errorf("note whose the TPMs are: %w", err)
	}
	return nil
}

// note commits documents that are not there. One that another replica wrote
// meanwhile, which does the same or has released, stays.
func (s *Server) note(ctx context.Context, docs []*Document) error {
	if len(docs) == 0 {
		return nil
	}
	err := s.c.Store.Commit(ctx, &Change{Documents: docs})
	if !errors.Is(err, ErrConflict) {
		return err
	}
	for _, d := range docs {
		if err := s.c.Store.Commit(ctx, &Change{Documents: []*Document{d}}); err != nil && !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return nil
}

func (s *Server) index(ctx context.Context) error {
	owners := map[string]*Machine{}
	var events []audit.Event
	for query := (Query{Limit: 1000}); ; {
		some, err := s.c.Store.Machines(ctx, query)
		if err != nil {
			return err
		}
		if len(some) == 0 {
			break
		}
		for _, m := range some {
			if len(m.AKName) == 0 {
				continue
			}
			name := akDocument(m.AKName)
			o := owners[name]
			if o != nil && o.ReplacedBy != m.ID && m.ReplacedBy != o.ID {
				events = append(events, alarm(m.ID, s.c.Clock(), audit.Alarm{
					Name: misused, What: fmt.Sprintf("%s: machine %s and machine %s are one TPM", attest.CodeTPMTaken, o.ID, m.ID),
				}))
			}
			if o == nil || claims(m, o) {
				owners[name] = &Machine{Machine: api.Machine{ID: m.ID, State: m.State, LastSeen: m.LastSeen, ReplacedBy: m.ReplacedBy}}
			}
		}
		query.After = some[len(some)-1].ID
	}
	var docs []*Document
	for _, name := range slices.Sorted(maps.Keys(owners)) {
		body, err := json.Marshal(&tpmKey{Machine: owners[name].ID})
		if err != nil {
			return err
		}
		if docs = append(docs, &Document{Kind: tpmKind, Name: name, Body: body}); len(docs) == 100 {
			if err := s.note(ctx, docs); err != nil {
				return err
			}
			docs = nil
		}
	}
	if err := s.note(ctx, docs); err != nil {
		return err
	}
	body, err := json.Marshal(map[string]time.Time{"at": s.c.Clock().UTC()})
	if err != nil {
		return err
	}
	err = s.c.Store.Commit(ctx, &Change{Documents: []*Document{{Kind: tpmKind, Name: tpmIndexed, Body: body}}, Events: events})
	if errors.Is(err, ErrConflict) {
		return nil // another replica has told the alarms
	}
	if err == nil {
		s.sound(events)
	}
	return err
}

// claims reports whether m rather than o is the machine that their TPM is.
func claims(m, o *Machine) bool {
	locked := func(m *Machine) bool { return m.State == attest.StateRevoked || m.State == attest.StateQuarantined }
	switch {
	case o.ReplacedBy == m.ID:
		return true
	case m.ReplacedBy == o.ID:
		return false
	case locked(m) != locked(o):
		return locked(m)
	}
	return m.LastSeen.After(o.LastSeen)
}
