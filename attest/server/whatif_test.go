package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// fleet is a service that appraises for real, and machines with paper TPMs.
type fleet struct {
	*scene
	ca     *papertpm.CA
	policy *attest.Policy // the present one
	then   *attest.Policy // that proposals are
	client *client.Client
	asks   bool // for the proof of the banks
	n      int
}

type paperBox struct {
	tpm  *papertpm.TPM
	boot *papertpm.Boot
	id   attest.MachineID
	deaf bool // its agent does not know the proof of the banks
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	ca, err := papertpm.NewCA(time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{ca: ca}
	f.policy = &attest.Policy{
		ID: "present", Images: []*manifest.Manifest{papertpm.GoodImage()},
		Firmware: attest.FirmwarePolicy{References: []attest.FirmwareReference{papertpm.GoodFirmware()}},
		TPM:      attest.TPMPolicy{Roots: []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: ca.Root}}, Allowed: []attest.TPMClass{attest.TPMSoftware}},
	}
	f.then = f.policy
	f.scene = newScene(t, func(c *server.Config) {
		c.Policy = func(context.Context, attest.MachineID) (*attest.Policy, error) { return f.policy, nil }
		c.Tokens, c.Firmware = nil, nil
		c.ProveBanks = func() bool { return f.asks }
		c.Propose = func(_ context.Context, p *api.PolicyProposal) (*server.Proposal, error) {
			if string(p.Policy) == "broken" {
				return nil, errors.New("it is broken")
			}
			then := func(context.Context, attest.MachineID) (*attest.Policy, error) { return f.then, nil }
			return &server.Proposal{Name: "new version 2", Now: c.Policy, Then: then}, nil
		}
	})
	f.srv.AppraiseForReal()
	f.client = &client.Client{URL: "https://" + f.nodes, CA: f.pool(), ReleaseKey: &f.release.PublicKey}
	return f
}

// box makes a machine, enrolled if so.
func (f *fleet) box(enrolled bool) *paperBox {
	f.Helper()
	f.n++
	t, err := papertpm.New(newKey(f))
	if err == nil {
		err = f.ca.Equip(t)
	}
	var boot *papertpm.Boot
	if err == nil {
		boot, err = papertpm.GoodBoot().OnDisk(fmt.Sprintf("6a0d1e0c-3b1f-4a56-9d0e-%012d", f.n), false)
	}
	b := &paperBox{tpm: t, boot: boot}
	if err == nil {
		b.id, err = t.MachineID()
	}
	if err == nil && enrolled {
		_, err = f.srv.Enrol(f.Context(), "line", &api.InstallRecord{
			EKPublic: tpm2.Marshal(t.EKPublic), EKCertificates: t.EKCertificates, DiskGUID: boot.Disk.GUID, Serial: "S", MAC: "02:00:00:00:00:01", Image: "demo 1", Finished: time.Now(),
		})
	}
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// attest sends evidence of the box's boot and returns the codes of its refusal.
func (f *fleet) attest(b *paperBox) []attest.Code {
	f.Helper()
	fail := func(err error) {
		f.Helper()
		if err != nil {
			f.Fatal(err)
		}
	}
	s, err := f.client.Connect(f.Context())
	fail(err)
	defer s.Close() // nothing is left to be sent
	ek, ak := tpm2.Marshal(b.tpm.EKPublic), tpm2.Marshal(b.tpm.AKPublic)
	ch, err := s.Challenge(f.Context(), &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: ek, EKCertificates: b.tpm.EKCertificates, AKPublic: ak})
	fail(err)
	b.boot.Measure(b.tpm)
	b.tpm.Prove = ch.ProveBanks && !b.deaf
	ev, err := b.tpm.Evidence(b.boot, attest.PurposeUnlock, ch.Nonce, s.Exporter())
	fail(err)
	secret, err := b.tpm.Activate(ch.Credential, ch.Secret)
	fail(err)
	_, _, err = s.Evidence(f.Context(), b.id, &api.EvidenceRequest{ChallengeID: ch.ID, Evidence: *ev, ActivationProof: attest.ActivationProof(secret, ch.ID, ch.Nonce, ak)})
	var refused *client.RefusedError
	if errors.As(err, &refused) {
		return resultCodes(refused.Result)
	}
	fail(err)
	return []attest.Code{}
}

func resultCodes(r *attest.Result) []attest.Code {
	out := []attest.Code{}
	for _, f := range r.Findings {
		if !slices.Contains(out, f.Code) {
			out = append(out, f.Code)
		}
	}
	return out
}

// whatIf tries the fleet's proposal, and fails if anything was written.
func (f *fleet) whatIf() (map[attest.MachineID]*api.WhatIfMachine, *api.WhatIfSummary) {
	f.Helper()
	before := f.kinds()
	f.set(func() {
		f.fail = func(method string) (error, bool) {
			f.Errorf("the replay writes: %s", method)
			return nil, false
		}
	})
	defer f.set(func() { f.fail = nil })
	status, body := f.raw(f.operator(), "POST", "https://"+f.operators+api.PathPolicy+"/whatif", &api.PolicyProposal{Policy: []byte("new")})
	if status != 200 {
		f.Fatalf("HTTP %d: %s", status, body)
	}
	rows := map[attest.MachineID]*api.WhatIfMachine{}
	for lines := bufio.NewScanner(bytes.NewReader(body)); lines.Scan(); {
		var line api.WhatIf
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			f.Fatal(err)
		}
		if line.Summary != nil {
			if after := f.kinds(); after != before {
				f.Errorf("the audit log grew: %s", after)
			}
			return rows, line.Summary
		}
		rows[line.Machine.ID] = line.Machine
	}
	f.Fatal("no summary")
	return nil, nil
}

// bent changes what the first measurement for which match holds is of.
func (b *paperBox) bent(match func(papertpm.Measurement) bool, measured string) *paperBox {
	i := slices.IndexFunc(b.boot.Measured, match)
	b.boot.Measured = slices.Clone(b.boot.Measured)
	b.boot.Measured[i].Measured = []byte(measured)
	return b
}

func measured(s string) func(papertpm.Measurement) bool {
	return func(m papertpm.Measurement) bool { return string(m.Bytes()) == s }
}

func TestTryingThePresentPolicyGivesExactlyTheStoredResults(t *testing.T) {
	f := newFleet(t)
	boxes := map[string]*paperBox{
		"good":         f.box(true),
		"pending":      f.box(false),
		"other UKI":    f.box(true).bent(measured("uki"), "other"),
		"firmware":     f.box(true).bent(measured("dxe volume"), "evil"),
		"repeated":     f.box(true),
		"revoked":      f.box(true),
		"after a good": f.box(true),
		"silent":       f.box(true),
	}
	for name, b := range boxes {
		if name != "silent" {
			f.attest(b)
		}
	}
	f.attest(boxes["repeated"]) // in the same boot
	f.call(f.operator(), "POST", "https://"+f.operators+api.PathMachines+"/"+boxes["revoked"].id.String()+"/revoke", api.StateChange{Reason: "test"}, nil)
	boxes["revoked"].tpm.Reset()
	f.attest(boxes["revoked"])
	boxes["after a good"].tpm.Reset()
	f.attest(boxes["after a good"].bent(measured("uki"), "other"))

	last := map[attest.MachineID]*attest.Result{}
	for e, err := range f.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindVerdict && !e.Machine.IsZero() {
			var v audit.Verdict
			if err := json.Unmarshal(e.Data, &v); err != nil {
				t.Fatal(err)
			}
			last[e.Machine] = v.Result
		}
	}
	rows, sum := f.whatIf()
	if len(rows) != len(boxes) || sum.Machines != len(boxes) || sum.Effects[api.EffectRefused] != 0 || sum.Effects[api.EffectAllowed] != 0 || sum.Effects[api.EffectFailed] != 0 {
		t.Errorf("%d rows, %+v", len(rows), sum)
	}
	for name, b := range boxes {
		row := rows[b.id]
		if name == "silent" {
			if row.Effect != api.EffectNoEvidence {
				t.Errorf("silent: %+v", row)
			}
			continue
		}
		if want := resultCodes(last[b.id]); !slices.Equal(row.Then, want) || !slices.Equal(row.Now, want) {
			t.Errorf("%s: replayed %q and %q, stored was %q", name, row.Now, row.Then, want)
		}
		if allowed := row.Effect == api.EffectNone; allowed != last[b.id].Allowed {
			t.Errorf("%s: effect %q, stored allowed %t", name, row.Effect, last[b.id].Allowed)
		}
	}
	for name, want := range map[string]attest.Code{"repeated": attest.CodeReleaseRepeated, "revoked": attest.CodeMachineRevoked, "firmware": attest.CodeFirmwareUnknown, "other UKI": attest.CodeImageUnknown} {
		if !slices.Contains(rows[boxes[name].id].Then, want) {
			t.Errorf("%s: %q, want %q", name, rows[boxes[name].id].Then, want)
		}
	}
}

func TestAProposalTellsWhoWouldBeRefusedAndWhy(t *testing.T) {
	f := newFleet(t)
	good, lapsed, silent := f.box(true), f.box(true), f.box(true)
	other := f.box(true).bent(measured("dxe volume"), "volume 2")
	for _, b := range []*paperBox{good, lapsed, other} {
		f.attest(b)
	}
	lapsed.tpm.Reset()
	f.attest(lapsed.bent(measured("uki"), "other")) // its last boot is refused, the one before was not
	next := *f.policy
	next.Models = []attest.ModelRule{{Minimum: []attest.FirmwareMinimum{{Version: "1.5", Reason: "CVE-1"}}}}
	f.then = &next
	rows, sum := f.whatIf()
	for name, c := range map[string]struct {
		box    *paperBox
		effect api.Effect
		why    string
	}{
		"a good one":                       {good, api.EffectRefused, "firmware 1.0 is below the minimum 1.5: CVE-1"},
		"one that was good before":         {lapsed, api.EffectRefused, "firmware 1.0 is below the minimum 1.5: CVE-1"},
		"one that is refused all the same": {other, api.EffectStillRefused, ""},
		"one that never asked":             {silent, api.EffectNoEvidence, ""},
	} {
		row := rows[c.box.id]
		if row.Effect != c.effect {
			t.Errorf("%s: effect %q, want %q: %+v", name, row.Effect, c.effect, row)
		}
		if c.why != "" && (len(row.Reasons) != 1 || !strings.Contains(row.Reasons[0].Message, c.why)) {
			t.Errorf("%s: reasons %+v", name, row.Reasons)
		}
		if row.NodeName == "" || row.State != attest.StateEnrolled {
			t.Errorf("%s: %+v", name, row)
		}
	}
	if sum.Policy != "new version 2" || sum.Effects[api.EffectRefused] != 2 || len(sum.Models) != 2 {
		t.Errorf("%+v", sum)
	}

	// Who was locked out since is not lost by a policy, and told all the same.
	f.call(f.operator(), "POST", "https://"+f.operators+api.PathMachines+"/"+good.id.String()+"/revoke", api.StateChange{Reason: "test"}, nil)
	rows, sum = f.whatIf()
	if row := rows[good.id]; row.Effect != api.EffectStillRefused || !slices.Equal(row.Now, []attest.Code{attest.CodeMachineRevoked}) || len(row.Reasons) != 1 || !strings.Contains(row.Reasons[0].Message, "below the minimum 1.5") || sum.Effects[api.EffectRefused] != 1 {
		t.Errorf("revoked since: %+v, %+v", row, sum)
	}
	f.call(f.operator(), "POST", "https://"+f.operators+api.PathMachines+"/"+good.id.String()+"/reinstate", api.StateChange{Reason: "test"}, nil)

	// A policy that takes the unknown build lets its machine in.
	next = *f.policy
	next.Firmware.Release = []attest.FirmwareVerdict{attest.FirmwareMeasured, attest.FirmwareClaimedOnly}
	if rows, _ = f.whatIf(); rows[other.id].Effect != api.EffectAllowed || rows[good.id].Effect != api.EffectNone {
		t.Errorf("%+v, %+v", rows[other.id], rows[good.id])
	}
}

func TestProposalsAreForAuditorsAndOneAtATime(t *testing.T) {
	f := newFleet(t)
	url := "https://" + f.operators + api.PathPolicy + "/whatif"
	ask := func(c *http.Client, policy string) (int, string) {
		status, body := f.raw(c, "POST", url, &api.PolicyProposal{Policy: []byte(policy)})
		return status, string(body)
	}
	viewer := f.httpClient(f.certificate(pkix.Name{CommonName: "bob", Organization: []string{api.OperatorOrganization}, OrganizationalUnit: []string{"viewer", "operator"}}, x509.ExtKeyUsageClientAuth))
	if status, _ := ask(viewer, "new"); status != http.StatusForbidden {
		t.Errorf("an operator who is no auditor: HTTP %d", status)
	}
	if status, body := ask(f.operator(), "broken"); status != http.StatusBadRequest || !strings.Contains(body, "it is broken") {
		t.Errorf("a broken policy: HTTP %d: %s", status, body)
	}
	f.box(true)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := &server.Proposal{Now: func(context.Context, attest.MachineID) (*attest.Policy, error) { return f.policy, nil }}
	p.Then = p.Now
	for _, err := range f.srv.Replay(ctx, p) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after the reader left: %v", err)
		}
	}
}

func TestMoreMachinesThanAPageAreAllJudgedOnce(t *testing.T) {
	f := newFleet(t)
	const n = 600
	for i := range n {
		id := attest.MachineID{byte(i >> 8), byte(i), 1}
		m := &server.Machine{Machine: api.Machine{ID: id, NodeName: fmt.Sprintf("n%d", i), State: attest.StateEnrolled}}
		if i%3 == 0 {
			m.LastEvidence = manifest.SHA256{9} // which is not there
		}
		if err := f.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
			t.Fatal(err)
		}
	}
	rows, sum := f.whatIf()
	if len(rows) != n || sum.Machines != n || sum.Effects[api.EffectFailed] != n/3 || sum.Effects[api.EffectNoEvidence] != n-n/3 {
		t.Errorf("%d rows, %+v", len(rows), sum)
	}
}

func TestStoredEvidenceIsExplained(t *testing.T) {
	f := newFleet(t)
	b := f.box(true)
	f.attest(b)
	b.tpm.Reset()
	f.attest(b.bent(measured("uki"), "other"))
	m, err := f.memory.Machine(t.Context(), b.id)
	if err != nil {
		t.Fatal(err)
	}
	if m.LastEvidence.IsZero() || m.AcceptedEvidence.IsZero() || m.LastEvidence == m.AcceptedEvidence {
		t.Fatalf("last %s, accepted %s", m.LastEvidence, m.AcceptedEvidence)
	}
	url := "https://" + f.operators + api.PathEvidenceLog + "/" + m.LastEvidence.String() + "/explanation"
	var x attest.Explanation
	if status := f.call(f.operator(), "GET", url, nil, &x); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	if x.Allowed || !x.Compared || len(x.Refusals) != 1 || x.Refusals[0].Code != attest.CodeImageUnknown || len(x.Differences) != 1 || x.Differences[0].Component != "the boot application" {
		t.Errorf("%+v", x)
	}
	next := *f.policy
	next.DeniedImages = []attest.DeniedImage{{Manifest: papertpm.GoodImage(), Reason: "old"}}
	next.Images = nil
	f.then = &next
	good := strings.Replace(url, m.LastEvidence.String(), m.AcceptedEvidence.String(), 1)
	if status := f.call(f.operator(), "POST", good, &api.PolicyProposal{Policy: []byte("new")}, &x); status != 200 || x.Allowed || !slices.ContainsFunc(x.Refusals, func(r attest.Refusal) bool { return r.Code == attest.CodeImageDenied }) {
		t.Errorf("under a proposal: HTTP %d, %+v", status, x.Refusals)
	}
	if status, _ := f.raw(f.operator(), "GET", strings.Replace(url, m.LastEvidence.String(), strings.Repeat("ab", 32), 1), nil); status != http.StatusNotFound {
		t.Errorf("evidence that is not there: HTTP %d", status)
	}
	var kept *attest.Explanation
	for e, err := range f.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		var v audit.Verdict
		if e.Kind == audit.KindVerdict && json.Unmarshal(e.Data, &v) == nil && v.Explanation != nil {
			kept = v.Explanation
		}
	}
	if kept == nil || len(kept.Differences) != 1 || len(kept.Facts) != 0 {
		t.Errorf("the audit log has %+v", kept)
	}
}
