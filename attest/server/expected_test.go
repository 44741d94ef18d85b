package server_test

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// smbios is a structure table with a serial number (DSP0134 7.1 and 7.2).
func smbios(serial string) []byte {
	b := append([]byte{0, 24, 0, 0, 1, 2, 0, 0, 3}, make([]byte, 24-9)...)
	b = append(b, "V\x001.0\x0001/01/2026\x00\x00"...)
	b = append(append(b, 1, 27, 1, 0, 1, 2, 0, 3), make([]byte, 27-8)...)
	b = append(b, "Maker\x00Box\x00"+serial+"\x00\x00"...)
	return append(b, 127, 4, 2, 0, 0, 0)
}

// claims attests with a serial number, from a disk.
func (s *scene) claims(b *box, serial, guid string) (int, *api.EvidenceResponse) {
	s.Helper()
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	req.Evidence.SMBIOS, req.Evidence.Disk.GUID = smbios(serial), guid
	return s.send(c, req)
}

// expects imports a list and returns the outcomes.
func (s *scene) expects(replace bool, list ...api.Expected) string {
	s.Helper()
	answer, err := s.operatorClient().Expect(s.Context(), &api.ExpectedList{Machines: list, Apply: true, Replace: replace})
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, r := range answer.Results {
		out = append(out, r.Outcome)
		if r.Problem != "" {
			out[len(out)-1] += ": " + r.Problem
		}
	}
	return strings.Join(out, ", ")
}

// digests are those by which a list may name a box.
func (b *box) digests(t testing.TB) []manifest.SHA256 {
	t.Helper()
	cert, err := x509.ParseCertificate(b.cert)
	if err != nil {
		t.Fatal(err)
	}
	d, err := attest.EKDigests(b.ekPublic, cert)
	if err != nil || len(d) != 4 {
		t.Fatal(d, err)
	}
	return d
}

// knowing starts a service that appraises on paper, serial numbers included.
func knowing(t *testing.T, change func(*server.Config)) *scene {
	s := newScene(t, change)
	s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
		r, boot := s.appraise(ev, ch, ses, k, p)
		// What attest.Verify says of serial numbers is tested there.
		table, err := attest.ParseSMBIOS(ev.SMBIOS)
		if err != nil {
			table = &attest.SMBIOS{}
		}
		add := func(c attest.Code) {
			r.Findings, r.Allowed, boot = append(r.Findings, attest.Finding{Code: c}), false, nil
		}
		if k.Serial != "" && attest.SerialKey(k.Serial) != attest.SerialKey(table.Serial) {
			add(attest.CodeSerialMismatch)
		}
		if !k.SerialOwner.IsZero() && (k.SerialExpected || k.SerialOwner != r.Machine) {
			add(attest.CodeSerialTaken)
		}
		return r, boot
	})
	return s
}

func TestAnExpectedMachineIsEnrolledByItsFirstAcceptedEvidence(t *testing.T) {
	for i, form := range []string{"SubjectPublicKeyInfo", "public key", "public area", "certificate"} {
		t.Run(form, func(t *testing.T) {
			s := knowing(t, nil)
			b := newBox(t, s.tpmCA)
			list := api.Expected{Serial: "CZ-17", EK: b.digests(t)[i], Model: "X1", Note: "store 12"}
			if got := s.expects(false, list); got != "added" {
				t.Fatal(got)
			}
			if got := s.expects(false, list); got != "present" {
				t.Fatal(got)
			}
			// Refused evidence enrols nobody.
			s.set(func() { s.refuse = []attest.Finding{{Code: attest.CodeSecureBootOff}} })
			if status, resp := s.claims(b, "CZ-17", disk); status != 403 || codes(resp.Result) != "secureboot.off" {
				t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
			}
			if m := s.machine(b); m.State != attest.StatePending || !strings.Contains(m.Reason, "beforehand") || m.Serial != "CZ-17" {
				t.Errorf("%s: %s, %q", m.State, m.Reason, m.Serial)
			}
			s.set(func() { s.refuse = nil })
			// Neither does another serial number.
			if status, resp := s.claims(b, "CZ-18", disk); status != 403 || codes(resp.Result) != string(attest.CodeSerialMismatch) {
				t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
			}
			status, resp := s.claims(b, "cz-17", disk)
			if status != 200 {
				t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
			}
			m := s.machine(b)
			if m.State != attest.StateEnrolled || m.DiskGUID != disk || !m.Listed || m.Serial != "CZ-17" || !strings.Contains(m.Reason, "CZ-17") {
				t.Errorf("%+v", m.Machine)
			}
			all, err := s.operatorClient().Expected(t.Context())
			if err != nil || len(all) != 1 || all[0].Machine != b.id || all[0].By != "bob" || all[0].At.IsZero() {
				t.Errorf("%+v, %v", all, err)
			}
			// The disk is fixed, and so is what it claims.
			s.set(func() { s.boot.Reset++ })
			if _, resp := s.claims(b, "CZ-17", otherDisk); codes(resp.Result) != string(attest.CodeDiskForeign) {
				t.Errorf("from another disk: %s", codes(resp.Result))
			}
			if _, resp := s.claims(b, "other", disk); codes(resp.Result) != string(attest.CodeSerialMismatch) {
				t.Errorf("with another serial number: %s", codes(resp.Result))
			}
			// Until an operator takes it as it is.
			if _, err := s.operatorClient().Approve(t.Context(), b.id, "board was exchanged"); err != nil {
				t.Fatal(err)
			}
			if status, resp := s.claims(b, "other", disk); status != 200 {
				t.Errorf("HTTP %d, %s", status, codes(resp.Result))
			}
			s.kinds() // the chain verifies
		})
	}
}

func TestWhoeverDoesNotProveItsKeyIsNotEnrolled(t *testing.T) {
	s := knowing(t, nil)
	b, other := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	s.expects(false, api.Expected{Serial: "CZ-17", EK: manifest.SHA256(b.id)})
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	req.ActivationProof, req.Evidence.SMBIOS = []byte("guess"), smbios("CZ-17")
	if status, _ := s.send(c, req); status != 403 {
		t.Errorf("HTTP %d", status)
	}
	if _, err := s.memory.Machine(t.Context(), b.id); !errors.Is(err, server.ErrNotFound) {
		t.Errorf("there is a record: %v", err)
	}
	// Another machine with that serial number on its label.
	if status, resp := s.claims(other, "CZ-17", disk); status != 403 || !strings.Contains(codes(resp.Result), string(attest.CodeSerialTaken)) {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
	if _, err := s.operatorClient().Approve(t.Context(), other.id, "looks right"); err == nil || !strings.Contains(err.Error(), "beforehand") {
		t.Errorf("approved: %v", err)
	}
	rec := record(other)
	rec.Serial = "CZ-17"
	if _, err := s.srv.Enrol(t.Context(), "line-1", rec); !errors.Is(err, server.ErrRefused) {
		t.Errorf("installed: %v", err)
	}
	rec = record(b)
	rec.Serial = "CZ-18"
	if _, err := s.srv.Enrol(t.Context(), "line-1", rec); !errors.Is(err, server.ErrRefused) || !strings.Contains(err.Error(), "CZ-17") {
		t.Errorf("installed with another serial number: %v", err)
	}
	rec.Serial = "CZ-17"
	if m, err := s.srv.Enrol(t.Context(), "line-1", rec); err != nil || !m.Listed || m.Serial != "CZ-17" {
		t.Errorf("%+v, %v", m, err)
	}
}

// Each way to the same serial number with another endorsement key.
func TestAnIdentityKeepsItsEndorsementKey(t *testing.T) {
	s := knowing(t, nil)
	op, ctx := s.operatorClient(), t.Context()
	old, board := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	rec := record(old)
	rec.Serial = "SN-1"
	if _, err := s.srv.Enrol(ctx, "line-1", rec); err != nil {
		t.Fatal(err)
	}
	if status, _ := s.claims(old, "SN-1", disk); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	was := s.machine(old)

	rec = record(board)
	rec.Serial, rec.DiskGUID = "sn-1", otherDisk
	if _, err := s.srv.Enrol(ctx, "line-1", rec); !errors.Is(err, server.ErrRefused) || !strings.Contains(err.Error(), old.id.String()) {
		t.Errorf("an install record: %v", err)
	}
	if status, resp := s.claims(board, "SN-1", otherDisk); status != 403 || !strings.Contains(codes(resp.Result), string(attest.CodeSerialTaken)) {
		t.Errorf("evidence: HTTP %d, %s", status, codes(resp.Result))
	}
	if m := s.machine(board); m.State != attest.StatePending || m.Serial != "SN-1" {
		t.Fatalf("%s, serial %q", m.State, m.Serial)
	}
	if _, err := op.Approve(ctx, board.id, "it is the same box"); err == nil || !strings.Contains(err.Error(), "another endorsement key") {
		t.Errorf("an approval: %v", err)
	}
	if got := s.expects(true, api.Expected{Serial: "SN-1", EK: manifest.SHA256(board.id)}); !strings.HasPrefix(got, "conflict: ") {
		t.Errorf("a list: %s", got)
	}
	if _, err := op.ReEnrol(ctx, old.id, old.id, "x"); err == nil {
		t.Error("enrolled in place of itself")
	}
	another := newBox(t, s.tpmCA)
	rec = record(another)
	rec.DiskGUID, rec.Serial = "6c0d1e0c-3b1f-4a56-9d0e-0123456789ab", "SN-7"
	if _, err := s.srv.Enrol(ctx, "line-1", rec); err != nil {
		t.Fatal(err)
	}
	if status, resp := s.claims(another, "SN-7", rec.DiskGUID); status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	if _, err := op.ReEnrol(ctx, old.id, another.id, "x"); err == nil || s.machine(old).State != was.State {
		t.Errorf("a machine that has secrets took the place of another, which is %s: %v", s.machine(old).State, err)
	}
	if _, err := op.ReEnrol(ctx, old.id, board.id, " "); err == nil {
		t.Error("enrolled anew without a reason")
	}

	// Cut off before its commit it has done nothing, after it everything.
	cut := func(persisted bool) {
		t.Helper()
		s.set(func() {
			s.fail = func(method string) (error, bool) {
				if method == "Commit" {
					return errors.New("killed"), persisted
				}
				return nil, false
			}
		})
		if _, err := op.ReEnrol(ctx, old.id, board.id, "mainboard exchanged, ticket 9"); err == nil {
			t.Fatal("want a failure")
		}
		s.set(func() { s.fail = nil })
	}
	cut(false)
	if m := s.machine(board); m.State != attest.StatePending || s.machine(old).State != was.State || s.machine(old).NodeName != was.NodeName {
		t.Errorf("%s, and the machine to be replaced is %s", m.State, s.machine(old).State)
	}
	cut(true)
	if m := s.machine(board); m.State != attest.StateEnrolled || m.NodeName != was.NodeName {
		t.Errorf("%s, named %s", m.State, m.NodeName)
	}
	if status, _ := s.claims(old, "SN-1", disk); status != 403 {
		t.Error("the replaced machine is still served")
	}
	for range 2 { // again is no harm
		m, err := op.ReEnrol(ctx, old.id, board.id, "mainboard exchanged, ticket 9")
		if err != nil || m.NodeName != was.NodeName || m.State != attest.StateEnrolled || m.Serial != "SN-1" || m.Joined {
			t.Fatalf("%+v, %v", m, err)
		}
	}
	gone := s.machine(old)
	if gone.State != attest.StateRevoked || gone.ReplacedBy != board.id || gone.NodeName == was.NodeName || gone.FenceDue || !strings.Contains(gone.Reason, "ticket 9") {
		t.Errorf("%+v", gone.Machine)
	}
	if len(gone.NodeName) > 63 {
		t.Errorf("node name %s is too long", gone.NodeName)
	}
	if _, err := op.Reinstate(ctx, old.id, "sorry"); err == nil || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("reinstated: %v", err)
	}
	if _, err := op.ReEnrol(ctx, old.id, newBox(t, s.tpmCA).id, "x"); err == nil {
		t.Error("replaced twice")
	}
	if status, resp := s.claims(board, "SN-1", otherDisk); status != 200 {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
	n := 0
	for e, err := range s.memory.Audit(ctx, 1) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(e.Data), "ticket 9") && strings.Contains(string(e.Data), `"by":"bob"`) {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d entries tell of it, want one for each machine", n)
	}
}

// A board that was approved already must not be released, under a name of its own,
// while it takes the place of another.
func TestNothingIsReleasedWhileAMachineTakesThePlaceOfAnother(t *testing.T) {
	s := knowing(t, nil)
	ctx, op := t.Context(), s.operatorClient()
	old, board := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	s.enrol(old)
	name := s.machine(old).NodeName
	rec := record(board)
	rec.DiskGUID, rec.Serial = otherDisk, "SN-8"
	if _, err := s.srv.Enrol(ctx, "line-1", rec); err != nil {
		t.Fatal(err)
	}
	// The board asks with each commit that there is.
	asked := 0
	s.set(func() {
		s.fail = func(method string) (error, bool) {
			if method == "Commit" {
				asked++
			}
			if method == "Commit" && asked > 1 {
				return errors.New("killed"), false
			}
			return nil, false
		}
	})
	_, err := op.ReEnrol(ctx, old.id, board.id, "ticket 9")
	s.set(func() { s.fail = nil })
	if err != nil {
		t.Fatalf("it took more than one commit: %v", err)
	}
	if m := s.machine(board); m.NodeName != name {
		t.Errorf("named %s, want %s", m.NodeName, name)
	}
	if status, resp := s.claims(board, "SN-8", otherDisk); status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	if m := s.machine(board); m.NodeName != name || m.ReleaseID == "" {
		t.Errorf("released as %s, want %s", m.NodeName, name)
	}
	if _, err := op.ReEnrol(ctx, old.id, board.id, "again"); err != nil {
		t.Error(err)
	}
}

// An earlier version wrote the two records with two commits.
func TestAReEnrolmentThatAnEarlierVersionLeftHalfDoneIsFinished(t *testing.T) {
	s := knowing(t, nil)
	op := s.operatorClient()
	old, board := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	s.enrol(old)
	m := s.machine(old)
	name := m.NodeName
	m.State, m.ReplacedBy, m.FormerName, m.NodeName = attest.StateRevoked, board.id, name, "gone-x"
	if err := s.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got, err := op.ReEnrol(t.Context(), old.id, board.id, "ticket 9")
		if err != nil || got.NodeName != name || got.State != attest.StateEnrolled {
			t.Fatalf("%+v, %v", got, err)
		}
	}
}

func TestReEnrolmentOfAMachineThatWasNeverSeen(t *testing.T) {
	s := knowing(t, nil)
	old, board := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	s.enrol(old)
	name := s.machine(old).NodeName
	m, err := s.operatorClient().ReEnrol(t.Context(), old.id, board.id, "new TPM")
	if err != nil || m.NodeName != name || m.DiskGUID != "" {
		t.Fatalf("%+v, %v", m, err)
	}
	rec := record(board)
	rec.Serial, rec.DiskGUID = m.Serial, otherDisk
	if _, err := s.srv.Enrol(t.Context(), "line-1", rec); err != nil {
		t.Fatal(err)
	}
	if status, resp := s.claims(board, m.Serial, otherDisk); status != 200 {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
	if _, err := s.operatorClient().ReEnrol(t.Context(), newBox(t, s.tpmCA).id, board.id, "x"); err == nil {
		t.Error("an unknown machine was replaced")
	}
}

func TestAListIsTakenWholeOrNotAtAll(t *testing.T) {
	s := knowing(t, func(c *server.Config) { c.IgnoreSerials = []string{"rack-1"} })
	ek := func(n int) manifest.SHA256 { return sha256.Sum256(fmt.Append(nil, n)) }
	e := func(serial string, n int) api.Expected { return api.Expected{Serial: serial, EK: ek(n)} }
	count := func(want int) {
		t.Helper()
		all, err := s.operatorClient().Expected(t.Context())
		n := 0
		for _, one := range all {
			if !one.Withdrawn {
				n++
			}
		}
		if err != nil || n != want {
			t.Errorf("%d machines are expected, want %d: %v", n, want, err)
		}
	}
	if got := s.expects(false, e("A1", 1), e("A2", 2)); got != "added, added" {
		t.Fatal(got)
	}
	if got := s.expects(false, e("A3", 3), e("a1", 4)); got != "added, conflict: serial number \"a1\" was enrolled beforehand with the endorsement key "+ek(1).String() {
		t.Error(got)
	}
	if got := s.expects(false, e("A9", 1)); !strings.HasPrefix(got, "conflict: this endorsement key was enrolled beforehand with serial number \"A1\"") {
		t.Error(got)
	}
	if got := s.expects(false, e("RACK-1", 5)); !strings.HasPrefix(got, "conflict: ") {
		t.Error(got)
	}
	count(2)
	// Two labels were mixed up.
	if got := s.expects(true, e("A2", 1), e("A1", 2)); got != "changed, added" {
		t.Error(got)
	}
	count(2)
	if got := s.expects(false, e("A2", 1), e("A1", 2)); got != "present, present" {
		t.Error(got)
	}
	// A board was exchanged before the machine was delivered.
	if got := s.expects(true, e("A1", 7)); got != "changed" {
		t.Error(got)
	}
	count(2)
	// One was stolen on the way.
	stolen := e("A1", 7)
	stolen.Withdrawn = true
	if got := s.expects(false, stolen); got != "withdrawn" {
		t.Error(got)
	}
	if got := s.expects(false, stolen); !strings.HasPrefix(got, "conflict: no machine") {
		t.Error(got)
	}
	count(1)
	if got := s.expects(false, e("A1", 8)); got != "added" {
		t.Error(got)
	}
	for name, list := range map[string][]api.Expected{
		"none":               {},
		"a placeholder":      {e("Default string", 9)},
		"no key":             {{Serial: "A5"}},
		"a key twice":        {e("A5", 9), e("A6", 9)},
		"a serial twice":     {e("A5", 9), e("a5", 10)},
		"a long note":        {{Serial: "A5", EK: ek(9), Note: strings.Repeat("n", 201)}},
		"a note with escape": {{Serial: "A5", EK: ek(9), Note: "\x1b[2J"}},
		"too many":           make([]api.Expected, api.MaxExpected+1),
	} {
		if got := s.expects(false, list...); !strings.Contains(got, "bad-request") {
			t.Errorf("%s: %s", name, got)
		}
	}
	if answer, err := s.operatorClient().Expect(t.Context(), &api.ExpectedList{Machines: []api.Expected{e("D1", 20)}}); err != nil || answer.Results[0].Outcome != "added" {
		t.Errorf("%+v, %v", answer, err)
	}
	count(2) // that was only asked
	s.kinds()
}

func TestRevokedAndWithdrawnMachinesAreNotEnrolledByAList(t *testing.T) {
	s := knowing(t, nil)
	b := newBox(t, s.tpmCA)
	one := api.Expected{Serial: "Z1", EK: manifest.SHA256(b.id)}
	s.expects(false, one)
	s.set(func() { s.refuse = []attest.Finding{{Code: attest.CodeSecureBootOff}} })
	s.claims(b, "Z1", disk)
	s.set(func() { s.refuse = nil })
	if _, err := s.operatorClient().Revoke(t.Context(), b.id, "stolen"); err != nil {
		t.Fatal(err)
	}
	if status, resp := s.claims(b, "Z1", disk); status != 403 || codes(resp.Result) != string(attest.CodeMachineRevoked) {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
	c := newBox(t, s.tpmCA)
	two := api.Expected{Serial: "Z2", EK: manifest.SHA256(c.id)}
	s.expects(false, two)
	two.Withdrawn = true
	s.expects(false, two)
	if status, resp := s.claims(c, "Z2", otherDisk); status != 403 || codes(resp.Result) != string(attest.CodeMachineUnknown) {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
}

func TestMachinesWithoutASerialNumberAreNobodysDouble(t *testing.T) {
	s := knowing(t, func(c *server.Config) { c.IgnoreSerials = []string{"Lab"} })
	for i, serial := range []string{"", "Default string", "To Be Filled By O.E.M.", "lab", "LAB", "0000"} {
		b := newBox(t, s.tpmCA)
		rec := record(b)
		rec.Serial, rec.DiskGUID = serial, fmt.Sprintf("6a0d1e0c-3b1f-4a56-9d0e-01234567%04x", i)
		if _, err := s.srv.Enrol(t.Context(), "line-1", rec); err != nil {
			t.Error(err)
		}
		if status, resp := s.claims(b, serial, rec.DiskGUID); status != 200 {
			t.Errorf("%q: HTTP %d, %s", serial, status, codes(resp.Result))
		}
	}
}
