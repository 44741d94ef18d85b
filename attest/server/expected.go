package server

import (
	"bytes"
	"context"
	"crypto/x509"
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

// Kinds of documents about who is who. An expectation's name is the digest of
// its endorsement key, a serial number's name is its attest.SerialKey.
const (
	expectedKind = audit.BindingExpected
	serialKind   = audit.BindingSerial
)

// Effects of a re-enrolment on its two machines, in the audit log: what they
// begin with.
const (
	effectGivesUp   = "gives up its node name and serial number, "
	effectTakesOver = "takes over the node name and serial number, "
)

// reasonExpected is what the reason of an enrolment by a list begins with.
const reasonExpected = "enrolled beforehand with serial number "

// serialNumber says whose a serial number is: a machine's, or, until that shows
// up, an endorsement key's that was enrolled beforehand. With neither it is
// nobody's again.
type serialNumber struct {
	Serial  string           `json:"serial"`
	EK      manifest.SHA256  `json:"ek,omitzero"`
	Machine attest.MachineID `json:"machine,omitzero"`
}

// serialKey returns the name under which a serial number is kept, empty for one
// that names no machine.
func (s *Server) serialKey(serial string) string {
	key := attest.SerialKey(serial)
	if slices.ContainsFunc(s.c.IgnoreSerials, func(other string) bool { return strings.EqualFold(strings.TrimSpace(other), key) }) {
		return ""
	}
	return key
}

// documents is a set of documents on their way from the store and back. What
// was changed of it is written as one.
type documents struct {
	store Store
	read  map[[2]string]*Document
	dirty []*Document
}

func (s *Server) documents() *documents {
	return &documents{store: s.c.Store, read: map[[2]string]*Document{}}
}

// get decodes a document into v, which is left as it is if there is none. One that
// cannot be read is a failure (isDamage), and can be set all the same.
func (d *documents) get(ctx context.Context, kind, name string, v any) (found bool, f *failure) {
	key := [2]string{kind, name}
	doc := d.read[key]
	if doc == nil {
		var err error
		if doc, err = d.store.Document(ctx, kind, name); errors.Is(err, ErrNotFound) {
			doc = &Document{Kind: kind, Name: name}
		} else if err != nil {
			return false, unavailable("the store", err)
		}
		d.read[key] = doc
	}
	if doc.Body == nil {
		return false, nil
	}
	err := json.Unmarshal(doc.Body, v)
	if err == nil && !bytes.HasPrefix(doc.Body, []byte("{")) {
		err = errors.New("it is no JSON object")
	}
	if err != nil {
		return false, damagedDocument(kind, name, err)
	}
	return true, nil
}

// set changes a document that get has read.
func (d *documents) set(kind, name string, v any) {
	doc := d.read[[2]string{kind, name}]
	body, err := json.Marshal(v)
	if err != nil || doc == nil {
		panic(fmt.Sprintf("server: BUG: document %s %s: %v", kind, name, err))
	}
	doc.Body = body
	if !slices.Contains(d.dirty, doc) {
		d.dirty = append(d.dirty, doc)
	}
}

// digestsOf returns the digests by which an endorsement key may be expected.
// The first of the certificates is the key's, if it is any.
func digestsOf(ekPublic []byte, certificates [][]byte) []manifest.SHA256 {
	var cert *x509.Certificate
	if len(certificates) > 0 && len(certificates[0]) <= attest.MaxCertificate {
		// Without a certificate that can be read there is one digest less.
		cert, _ = x509.ParseCertificate(certificates[0])
	}
	digests, err := attest.EKDigests(ekPublic, cert)
	if err != nil {
		return nil
	}
	return digests
}

// names returns the digests by which the machine may be expected, as far as
// they are on record.
func (m *Machine) names() []manifest.SHA256 {
	return append(slices.Clone(m.Digests), manifest.SHA256(m.ID))
}

// expectation returns what was said beforehand of an endorsement key, nil if
// nothing was.
func (d *documents) expectation(ctx context.Context, digests []manifest.SHA256) (*api.Expected, *failure) {
	for _, digest := range digests {
		e := new(api.Expected)
		found, f := d.get(ctx, expectedKind, digest.String(), e)
		if f != nil {
			return nil, f
		}
		if found && !e.Withdrawn {
			return e, nil
		}
	}
	return nil, nil
}

// owns binds a serial number to a machine. A number that names no machine is
// left alone; one that is another's is a conflict.
func (s *Server) owns(ctx context.Context, d *documents, m *Machine, serial string, digests []manifest.SHA256) *failure {
	key := s.serialKey(serial)
	if key == "" {
		return nil
	}
	var n serialNumber
	if _, f := d.get(ctx, serialKind, key, &n); f != nil {
		return f
	}
	switch {
	case n.Machine == m.ID:
		return nil
	case !n.Machine.IsZero():
		return &failure{status: http.StatusConflict, code: string(attest.CodeSerialTaken),
			text: fmt.Sprintf("serial number %q belongs to machine %s, machine %s has another endorsement key", serial, n.Machine, m.ID),
			hint: fmt.Sprintf("if its mainboard or TPM was exchanged: sealift machine re-enrol --old %s --new %s --reason TEXT", n.Machine, m.ID)}
	case !n.EK.IsZero() && !slices.Contains(digests, n.EK):
		return &failure{status: http.StatusConflict, code: string(attest.CodeSerialTaken),
			text: fmt.Sprintf("serial number %q was enrolled beforehand with the endorsement key %s, machine %s has another", serial, n.EK, m.ID),
			hint: "if the list is wrong, import the corrected line with --replace"}
	}
	n.Serial, n.Machine = serial, m.ID
	d.set(serialKind, key, &n)
	return nil
}

// met notes that the machine of an expectation has shown up, and what it must
// claim from now on.
func (s *Server) met(ctx context.Context, d *documents, m *Machine, e *api.Expected, digests []manifest.SHA256) *failure {
	if f := s.owns(ctx, d, m, e.Serial, digests); f != nil {
		return f
	}
	m.Serial, m.Listed = e.Serial, true
	if e.Machine != m.ID {
		e.Machine = m.ID
		d.set(expectedKind, e.EK.String(), e)
	}
	return nil
}

// whoIs tells the verifier what is known of the key and the serial number that
// evidence has. A machine that is expected is as good as enrolled; release makes
// it so.
func (s *Server) whoIs(ctx context.Context, sub *submission, m *Machine, k *attest.Known) *failure {
	sub.documents, sub.expected, sub.digests, sub.serial = s.documents(), nil, nil, ""
	if !sub.proven {
		return nil
	}
	ev := &sub.request.Evidence
	if smbios, err := attest.ParseSMBIOS(ev.SMBIOS); err == nil {
		sub.serial = smbios.Serial
	}
	if m.Listed {
		k.Serial = m.Serial
	}
	key := s.serialKey(sub.serial)
	if m.State == attest.StateEnrolled && key == s.serialKey(m.Serial) {
		return nil // it has been its own since it was enrolled
	}
	sub.digests = digestsOf(ev.EKPublic, ev.EKCertificates)
	if m.State == attest.StateUnknown || m.State == attest.StatePending {
		e, f := sub.documents.expectation(ctx, sub.digests)
		if f = sub.noteDamage(k, f); f != nil {
			return f
		}
		if e != nil {
			sub.expected = e
			k.State, k.StateReason, k.Serial = attest.StateEnrolled, "enrolled beforehand by "+e.By, e.Serial
		}
	}
	if key == "" {
		return nil
	}
	var n serialNumber
	_, f := sub.documents.get(ctx, serialKind, key, &n)
	switch f := sub.noteDamage(k, f); {
	case f != nil:
		return f
	case len(k.Damaged) > 0:
		// n may be half of it.
	case !n.Machine.IsZero():
		k.SerialOwner = n.Machine
	case !n.EK.IsZero() && !slices.Contains(sub.digests, n.EK):
		k.SerialOwner, k.SerialExpected = attest.MachineID(n.EK), true
	}
	return nil
}

// enrolExpected enrols the machine of accepted evidence that was expected. It
// changes only what release commits.
func (s *Server) enrolExpected(ctx context.Context, sub *submission, m *Machine) *failure {
	if m.Revision == 0 {
		if f := s.chooseName(ctx, m); f != nil {
			return f
		}
	}
	if f := s.met(ctx, sub.documents, m, sub.expected, sub.digests); f != nil {
		return f
	}
	ev := stateEvent(m, attest.StateEnrolled, sub.expected.By, reasonExpected+sub.expected.Serial)
	ev.Time = sub.now
	sub.events = append(sub.events, ev)
	m.Generation++
	return nil
}

// listExpected answers GET api.PathExpected.
func (s *Server) listExpected(_ Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	limit, f := pageLimit(r)
	if f != nil {
		return nil, f
	}
	after := r.URL.Query().Get("after")
	if err := new(manifest.SHA256).UnmarshalText([]byte(after)); err != nil {
		return nil, badRequest("after is not 64 hex digits")
	}
	docs, err := s.c.Store.Documents(r.Context(), expectedKind, after, limit+1)
	if err != nil {
		return nil, unavailable("the store", err)
	}
	docs = page(w, docs, limit, func(d *Document) string { return d.Name })
	out := make([]*api.Expected, 0, len(docs))
	for _, d := range docs {
		e := new(api.Expected)
		if err := json.Unmarshal(d.Body, e); err != nil {
			s.c.Log.Error("what is expected cannot be read", "ek", d.Name, "error", err)
			*e = api.Expected{Damaged: err.Error()}
			if err := e.EK.UnmarshalText([]byte(d.Name)); err != nil {
				e.Damaged = fmt.Sprintf("%q is no endorsement key: %v", d.Name, err)
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// postExpected answers POST api.PathExpected.
func (s *Server) postExpected(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	var list api.ExpectedList
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &list); f != nil {
		return nil, f
	}
	if f := checkExpected(&list); f != nil {
		return nil, f
	}
	for range attempts {
		answer, f := s.expect(r.Context(), op.Name, &list)
		if f != nil && errors.Is(f.cause, ErrConflict) {
			continue
		}
		return answer, f
	}
	return nil, unavailable("the list", fmt.Errorf("it was changed %d times meanwhile", attempts))
}

func checkExpected(list *api.ExpectedList) *failure {
	if len(list.Machines) == 0 || len(list.Machines) > api.MaxExpected {
		return badRequest("%d machines, want 1 to %d", len(list.Machines), api.MaxExpected)
	}
	serials, keys := map[string]bool{}, map[manifest.SHA256]bool{}
	for i := range list.Machines {
		e := &list.Machines[i]
		e.Damaged = ""
		if err := CheckExpected(e); err != nil {
			return badRequest("machine %d: %v", i+1, err)
		}
		if serials[attest.SerialKey(e.Serial)] || keys[e.EK] {
			return badRequest("machine %d: its serial number or endorsement key is in the list before", i+1)
		}
		serials[attest.SerialKey(e.Serial)], keys[e.EK] = true, true
	}
	return nil
}

// CheckExpected reports why a machine cannot be enrolled beforehand.
func CheckExpected(e *api.Expected) error {
	if err := attest.CheckSerial(e.Serial); err != nil {
		return err
	}
	if e.EK.IsZero() {
		return errors.New("it has no digest of an endorsement key")
	}
	for _, f := range []struct {
		name, text string
		limit      int
	}{{"model", e.Model, api.MaxModel}, {"note", e.Note, api.MaxNote}} {
		if len(f.text) > f.limit {
			return fmt.Errorf("%s has %d bytes, at most %d allowed", f.name, len(f.text), f.limit)
		}
		if strings.ContainsFunc(f.text, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
			return fmt.Errorf("%s has a control character, or is not UTF-8", f.name)
		}
	}
	return nil
}

// expect decides on a list, and writes it if all of it can be done.
func (s *Server) expect(ctx context.Context, by string, list *api.ExpectedList) (*api.ExpectedAnswer, *failure) {
	now := s.c.Clock()
	d := s.documents()
	answer := &api.ExpectedAnswer{}
	var lines []audit.ExpectedLine
	conflicts := false
	for i := range list.Machines {
		want := list.Machines[i]
		r, f := s.expectOne(ctx, d, by, now, want, list.Replace)
		if f.isDamage() {
			s.c.Log.Error("a list meets a record that cannot be read", "error", f.cause)
			r, f = api.ExpectedResult{Outcome: api.ExpectedConflict, Problem: f.text, Hint: f.hint}, nil
		}
		if f != nil {
			return nil, f
		}
		answer.Results = append(answer.Results, r)
		switch r.Outcome {
		case api.ExpectedConflict:
			conflicts = true
		case api.ExpectedAdded, api.ExpectedChanged, api.ExpectedWithdrawn:
			lines = append(lines, audit.ExpectedLine{Serial: want.Serial, EK: want.EK, Outcome: r.Outcome})
		}
	}
	if conflicts || !list.Apply || len(d.dirty) == 0 {
		return answer, nil
	}
	f := s.commit(ctx, &Change{Documents: d.dirty, Events: []audit.Event{{
		Time: now, Kind: audit.KindExpected, Data: audit.Expected{By: by, Machines: lines, Bindings: bindings(d.dirty)},
	}}})
	if f != nil {
		return nil, f
	}
	s.c.Log.Info("machines enrolled beforehand", "machines", len(lines), "by", by)
	return answer, nil
}

// expectOne decides on one machine of a list and changes d accordingly.
func (s *Server) expectOne(ctx context.Context, d *documents, by string, now time.Time, want api.Expected, replace bool) (api.ExpectedResult, *failure) {
	conflict := func(hint, format string, args ...any) (api.ExpectedResult, *failure) {
		return api.ExpectedResult{Outcome: api.ExpectedConflict, Problem: fmt.Sprintf(format, args...), Hint: hint}, nil
	}
	none := api.ExpectedResult{}
	key := s.serialKey(want.Serial)
	if key == "" {
		return conflict("", "serial number %q is one that the service ignores", want.Serial)
	}
	if replace {
		// What cannot be read is written anew from the other records.
		for _, doc := range [][2]string{{expectedKind, want.EK.String()}, {serialKind, key}} {
			f := d.check(ctx, doc[0], doc[1])
			if f.isDamage() {
				f = s.rewrite(ctx, d, doc[0], doc[1])
			}
			if f != nil {
				return none, f
			}
		}
	}
	var old api.Expected
	known, f := d.get(ctx, expectedKind, want.EK.String(), &old)
	if f != nil {
		f.hint = "--replace writes it anew"
		return none, f
	}
	known = known && !old.Withdrawn
	var n serialNumber
	if _, f := d.get(ctx, serialKind, key, &n); f != nil {
		f.hint = "--replace writes it anew"
		return none, f
	}
	outcome := api.ExpectedAdded
	if want.Withdrawn {
		switch {
		case !known || s.serialKey(old.Serial) != key:
			return conflict("", "no machine with this serial number and endorsement key is expected")
		case !old.Machine.IsZero():
			return conflict("sealift machine revoke "+old.Machine.String()+" --reason TEXT", "it has shown up as machine %s", old.Machine)
		}
		old.Withdrawn, old.By, old.At = true, by, now
		d.set(expectedKind, want.EK.String(), &old)
		d.set(serialKind, key, &serialNumber{Serial: want.Serial})
		return api.ExpectedResult{Outcome: api.ExpectedWithdrawn}, nil
	}
	if known {
		if s.serialKey(old.Serial) == key {
			return api.ExpectedResult{Outcome: api.ExpectedPresent}, nil
		}
		if !old.Machine.IsZero() {
			return conflict("sealift machine approve "+old.Machine.String()+" --reason TEXT takes its serial number anew",
				"machine %s has shown up with this endorsement key, enrolled beforehand with serial number %q", old.Machine, old.Serial)
		}
		if !replace {
			return conflict("--replace corrects it", "this endorsement key was enrolled beforehand with serial number %q", old.Serial)
		}
		// The other number is nobody's again.
		var free serialNumber
		former := s.serialKey(old.Serial)
		if former != "" {
			if _, f := d.get(ctx, serialKind, former, &free); f != nil {
				return none, f
			}
			if free.EK == want.EK && free.Machine.IsZero() {
				d.set(serialKind, former, &serialNumber{Serial: old.Serial})
			}
		}
		outcome = api.ExpectedChanged
	}
	var owner *Machine
	id := n.Machine
	if id.IsZero() {
		id = attest.MachineID(want.EK) // if the digest is of that form
	}
	m, err := s.c.Store.Machine(ctx, id)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return none, storeFailure(err)
	}
	if err == nil {
		owner = m
	}
	switch {
	case owner != nil && (owner.State == attest.StateRevoked || owner.State == attest.StateQuarantined):
		return conflict("sealift machine show "+owner.ID.String(), "machine %s is %s: %s", owner.ID, owner.State, owner.Reason)
	case !n.Machine.IsZero() && (owner == nil || !slices.Contains(owner.names(), want.EK)):
		return conflict(fmt.Sprintf("if its mainboard or TPM was exchanged: sealift machine re-enrol --old %s --new ID --reason TEXT", n.Machine),
			"serial number %q belongs to machine %s, which has another endorsement key", want.Serial, n.Machine)
	case owner != nil && owner.State == attest.StateEnrolled && s.serialKey(owner.Serial) != "" && s.serialKey(owner.Serial) != key:
		return conflict("", "machine %s has this endorsement key and the serial number %q", owner.ID, owner.Serial)
	case n.Machine.IsZero() && !n.EK.IsZero() && n.EK != want.EK && !replace:
		return conflict("--replace corrects it", "serial number %q was enrolled beforehand with the endorsement key %s", want.Serial, n.EK)
	case n.Machine.IsZero() && !n.EK.IsZero() && n.EK != want.EK:
		var other api.Expected
		if found, f := d.get(ctx, expectedKind, n.EK.String(), &other); f != nil {
			return none, f
		} else if found && !other.Withdrawn && s.serialKey(other.Serial) == key {
			other.Withdrawn, other.By, other.At = true, by, now
			d.set(expectedKind, n.EK.String(), &other)
		}
		outcome = api.ExpectedChanged
	}
	want.By, want.At, want.Machine = by, now, attest.MachineID{}
	if owner != nil && owner.State == attest.StateEnrolled {
		want.Machine, n.Machine = owner.ID, owner.ID
	}
	n.Serial, n.EK = want.Serial, want.EK
	d.set(expectedKind, want.EK.String(), &want)
	d.set(serialKind, key, &n)
	return api.ExpectedResult{Outcome: outcome}, nil
}

// postReEnrol answers POST api.PathMachines/{id}/re-enrol.
func (s *Server) postReEnrol(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	old, f := machineID(r)
	if f != nil {
		return nil, f
	}
	var req api.ReEnrol
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	m, f := s.reEnrol(r.Context(), old, req.New, op.Name, req.Reason)
	if f != nil {
		return nil, f
	}
	s.c.Log.Info("machine enrolled in place of another", "machine", m.ID.Short(), "old", old.Short(), "node", m.NodeName, "by", op.Name)
	return m, nil
}

// reEnrol gives the node name and the serial number of a machine to another
// endorsement key, and revokes the machine. It is the only way in which either
// changes its endorsement key. Both records are written with one commit, so that the
// other is never released under a name of its own in between. What an earlier version
// left half done is brought to its end.
//
// If both are proven to be one TPM and both were released, the machine is revoked,
// and the other stays what it is.
func (s *Server) reEnrol(ctx context.Context, old, next attest.MachineID, by, reason string) (*api.Machine, *failure) {
	reason, f := checkReason(reason)
	if f != nil {
		return nil, f
	}
	if next.IsZero() || next == old {
		return nil, badRequest("new names no other machine than the old one")
	}
	var last error
	for range attempts {
		m, f := s.load(ctx, old)
		if f != nil {
			return nil, f
		}
		n, f := s.load(ctx, next)
		if f != nil {
			return nil, f
		}
		token := m.TokenID
		c, f := s.replace(ctx, m, n, by, reason)
		if f != nil {
			return nil, f
		}
		if c == nil {
			return &n.Machine, nil // done before
		}
		now := s.c.Clock()
		for i := range c.Events {
			c.Events[i].Time = now
		}
		f = s.commit(ctx, c)
		if f == nil {
			if token != "" && s.c.Tokens != nil {
				s.takeBack(ctx, old, token)
			}
			return &n.Machine, nil
		}
		if last = f.cause; !errors.Is(last, ErrConflict) {
			return nil, f
		}
	}
	return nil, unavailable("the machine's record", fmt.Errorf("machines %s and %s: changed %d times meanwhile: %w", old, next, attempts, last))
}

// replace returns what puts n in the place of m, nil if it is there.
func (s *Server) replace(ctx context.Context, m, n *Machine, by, reason string) (*Change, *failure) {
	c := new(Change)
	switch {
	case m.Revision == 0:
		return nil, notFound(fmt.Sprintf("there is no machine %s", m.ID))
	case m.ReplacedBy == n.ID && (m.FormerName == "" || n.State == attest.StateEnrolled && n.NodeName == m.FormerName):
		return nil, nil
	case m.ReplacedBy == n.ID && !n.isNew():
		return nil, conflict(fmt.Sprintf("machine %s is %s meanwhile", n.ID, n.State), "")
	case m.ReplacedBy == n.ID: // an earlier version was cut off between its two commits
	case !m.ReplacedBy.IsZero():
		return nil, conflict(fmt.Sprintf("machine %s was replaced by machine %s before", m.ID, m.ReplacedBy), "")
	case n.isNew():
		// The node stays, with another machine.
		c.Gives, c.Events = m, []audit.Event{withEffect(stateEvent(m, attest.StateRevoked, by, "replaced by machine "+n.ID.String()+": "+reason),
			fmt.Sprintf(effectGivesUp+"%s, %q, to machine %s", m.NodeName, m.Serial, n.ID))}
		m.FenceDue, m.TokenID = false, ""
		m.ReplacedBy, m.FormerName = n.ID, m.NodeName
		m.NodeName = "gone-" + m.ID.String()[:50]
	case n.State == attest.StateEnrolled && oneTPM(n, m):
		c.Machine, c.Events = m, []audit.Event{stateEvent(m, attest.StateRevoked, by, "its TPM is that of machine "+n.ID.String()+": "+reason)}
		m.ReplacedBy = n.ID
		return c, nil
	default:
		return nil, conflict(fmt.Sprintf("machine %s is %s: only one that was given nothing yet can take the place of another", n.ID, n.State), "")
	}
	d := s.documents()
	if key := s.serialKey(m.Serial); key != "" {
		var number serialNumber
		if _, f := d.get(ctx, serialKind, key, &number); f != nil && !f.isDamage() {
			return nil, f
		}
		d.set(serialKind, key, &serialNumber{Serial: m.Serial, Machine: n.ID})
	}
	// A new board may have no serial number, or another one: it is held
	// to the old one only if it claims that.
	n.Listed = m.Listed && s.serialKey(n.Serial) == s.serialKey(m.Serial)
	n.Serial, n.NodeName, n.Joined = m.Serial, m.FormerName, false
	c.Machine, c.Documents = n, d.dirty
	c.Events = append(c.Events, withEffect(stateEvent(n, attest.StateEnrolled, by, reason), fmt.Sprintf(effectTakesOver+"%s, %q, of machine %s", m.FormerName, m.Serial, m.ID)))
	return c, nil
}
