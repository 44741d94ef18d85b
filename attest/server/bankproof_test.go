package server_test

import (
	"encoding/json"
	"errors"
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
)

// record returns what the service knows of a machine.
func (f *fleet) record(b *paperBox) *server.Machine {
	f.Helper()
	m, err := f.memory.Machine(f.Context(), b.id)
	if err != nil {
		f.Fatal(err)
	}
	return m
}

// again boots the box and wants it released, or refused with the codes.
func (f *fleet) again(b *paperBox, want ...attest.Code) {
	f.Helper()
	b.tpm.Reset()
	if got := f.attest(b); !slices.Equal(got, want) {
		f.Errorf("codes are %q, want %q", got, want)
	}
}

func hidesSHA384(b *paperBox) {
	b.tpm.OnList = func(l *tpm2.TPMLPCRSelection) {
		for i := range l.PCRSelections {
			if l.PCRSelections[i].Hash == tpm2.TPMAlgSHA384 {
				l.PCRSelections[i].PCRSelect = []byte{0xff, 0xff, 0xff}
			}
		}
	}
}

// The way from a policy that does not ask to one that requires: nobody whose answer
// is not known is shown as accepted or as refused, and the counts say so.
func TestAPolicyThatRequiresTheBanksIsTriedBeforeItRefuses(t *testing.T) {
	f := newFleet(t)
	require, ask := *f.policy, *f.policy
	require.TPM.ProveBanks, ask.TPM.AskBanks = true, true
	able, old, unable, hides, off, stranger, never := f.box(true), f.box(true), f.box(true), f.box(true), f.box(true), f.box(true), f.box(true)
	old.deaf, unable.tpm.Unable = true, "it has no TPM2_GetSessionAuditDigest"
	hidesSHA384(hides)
	bad := stranger.bent(measured("uki"), "other")
	all := map[string]*paperBox{"able": able, "old agent": old, "unable": unable, "hides": hides, "off since": off, "refused": bad, "never seen": never}
	check := func(step string, want map[string]api.Effect) {
		t.Helper()
		rows, sum := f.whatIf()
		counts := map[api.Effect]int{}
		for name, b := range all {
			counts[want[name]]++
			if rows[b.id].Effect != want[name] {
				t.Errorf("%s: %s: effect %q, want %q: %+v", step, name, rows[b.id].Effect, want[name], rows[b.id])
			}
		}
		for e, n := range counts {
			if sum.Effects[e] != n {
				t.Errorf("%s: %d are counted as %q, want %d", step, sum.Effects[e], e, n)
			}
		}
	}
	for name, b := range all {
		if name != "never seen" {
			f.attest(b)
		}
	}
	for name, b := range all {
		if f.record(b).BankProof != nil {
			t.Errorf("%s: was not asked, and answered %+v", name, f.record(b).BankProof)
		}
	}
	unasked := map[string]api.Effect{
		"able": api.EffectNotAsked, "old agent": api.EffectNotAsked, "unable": api.EffectNotAsked, "hides": api.EffectNotAsked, "off since": api.EffectNotAsked,
		"refused": api.EffectStillRefused, "never seen": api.EffectNoEvidence,
	}
	f.then = &require
	check("required at once", unasked)
	f.then = &ask
	check("asked", map[string]api.Effect{
		"able": api.EffectNone, "old agent": api.EffectNone, "unable": api.EffectNone, "hides": api.EffectNone, "off since": api.EffectNone,
		"refused": api.EffectStillRefused, "never seen": api.EffectNoEvidence,
	})

	// It asks; nobody is refused for it.
	f.policy, f.asks = &ask, true
	for _, b := range []*paperBox{able, old, unable, hides} {
		f.again(b)
	}
	for name, want := range map[string]string{
		"able": "proven sha256", "old agent": "silent ", "unable": "unable it has no TPM2_GetSessionAuditDigest", "hides": "failed bank.hidden: bank sha384 is active", "off since": "",
	} {
		p := f.record(all[name]).BankProof
		if want == "" {
			if p != nil {
				t.Errorf("%s: answered %+v", name, p)
			}
			continue
		}
		if p == nil || !strings.HasPrefix(string(p.Answer)+" "+p.Detail, want) || p.Vendor != "PAPR" || p.At.IsZero() || p.Proven.IsZero() != (p.Answer != attest.BanksProven) {
			t.Errorf("%s: answered %+v, want %q", name, p, want)
		}
	}
	answered := map[string]api.Effect{
		"able": api.EffectNone, "old agent": api.EffectRefused, "unable": api.EffectRefused, "hides": api.EffectRefused, "off since": api.EffectNotAsked,
		"refused": api.EffectStillRefused, "never seen": api.EffectNoEvidence,
	}
	f.then = &require
	check("required, after they were asked", answered)
	rows, _ := f.whatIf()
	for b, want := range map[*paperBox]string{old: "older than this, or was altered", unable: "it has no TPM2_GetSessionAuditDigest", off: "was not asked for it"} {
		if r := rows[b.id].Reasons; len(r) != 1 || r[0].Code != attest.CodeBankUnproven || !strings.Contains(r[0].Message, want) {
			t.Errorf("reasons are %+v, want %q", r, want)
		}
	}

	// What is not known to be refused for the proof alone is refused.
	both := require
	both.Models = []attest.ModelRule{{Minimum: []attest.FirmwareMinimum{{Version: "1.5"}}}}
	f.then = &both
	if rows, _ := f.whatIf(); rows[off.id].Effect != api.EffectRefused {
		t.Errorf("refused for its firmware in any case: %+v", rows[off.id])
	}

	// With the TPMs of this kind exempt, those that cannot are taken, too, but not one
	// that shows that it hides a bank.
	exempt := require
	exempt.TPM.Roots = []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: f.ca.Root, Vendors: []attest.TPMVendor{0x50415052}}}
	exempt.TPM.BankExemptions = []attest.TPMRule{{Vendor: 0x50415052, Reason: "too old"}}
	f.then = &exempt
	check("required but of these TPMs", map[string]api.Effect{
		"able": api.EffectNone, "old agent": api.EffectNone, "unable": api.EffectNone, "hides": api.EffectRefused, "off since": api.EffectNone,
		"refused": api.EffectStillRefused, "never seen": api.EffectNoEvidence,
	})

	// And it is as it was said.
	f.policy = &require
	f.again(able)
	f.again(old, attest.CodeBankUnproven)
	f.again(unable, attest.CodeBankUnproven)
	f.again(hides, attest.CodeBankHidden)
	f.again(off)
	if p := f.record(off).BankProof; p == nil || p.Answer != attest.BanksProven {
		t.Errorf("answered %+v", p)
	}
	f.policy = &exempt
	f.again(unable)
	f.again(old)
	// One that proved its banks is not taken at its word that it no longer can.
	able.tpm.Unable = "it has no TPM2_GetSessionAuditDigest"
	f.again(able, attest.CodeBankUnproven)
	if p := f.record(able).BankProof; p.Answer != attest.BanksUnable || p.Proven.IsZero() {
		t.Errorf("answered %+v", p)
	}
	// An approver ends that.
	if status := f.call(f.operator(), "POST", "https://"+f.operators+api.PathMachines+"/"+able.id.String()+"/approve", api.StateChange{Reason: "board exchanged"}, nil); status != 200 {
		t.Fatalf("approve: HTTP %d", status)
	}
	f.again(able)
	if p := f.record(able).BankProof; p.Answer != attest.BanksUnable || !p.Proven.IsZero() {
		t.Errorf("answered %+v", p)
	}
	f.again(able)
}

// banksAlarms returns the alarms about proofs that failed.
func (f *fleet) banksAlarms(b *paperBox) []audit.Alarm {
	f.Helper()
	var out []audit.Alarm
	for e, err := range f.memory.Audit(f.Context(), 1) {
		if err != nil {
			f.Fatal(err)
		}
		var a audit.Alarm
		if e.Kind != audit.KindAlarm || e.Machine != b.id {
			continue
		}
		if err := json.Unmarshal(e.Data, &a); err != nil {
			f.Fatal(err)
		}
		out = append(out, a)
	}
	return out
}

// A machine that shows a bank which it keeps back is released where the policy only
// asks. Somebody must look at it.
func TestAProofOfTheBanksThatFailsIsAnAlarm(t *testing.T) {
	f := newFleet(t)
	ask, require := *f.policy, *f.policy
	ask.TPM.AskBanks, require.TPM.ProveBanks = true, true
	f.policy, f.asks = &ask, true
	able, old, hides := f.box(true), f.box(true), f.box(true)
	old.deaf = true
	hidesSHA384(hides)
	for range 2 { // once a day, however often it boots
		for _, b := range []*paperBox{able, old, hides} {
			f.again(b)
		}
	}
	for name, b := range map[string]*paperBox{"proven": able, "silent": old} {
		if got := f.banksAlarms(b); len(got) > 0 {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	got := f.banksAlarms(hides)
	if len(got) != 1 || got[0].Name != audit.AlarmBanksFailed || !strings.Contains(got[0].What, "bank.hidden: bank sha384 is active") || !strings.Contains(got[0].What, "released") || got[0].Peer == "" {
		t.Errorf("got %+v", got)
	}
	// Refused for something else it is told, too.
	both := f.box(true)
	hidesSHA384(both)
	denied := ask
	denied.Models = []attest.ModelRule{{Minimum: []attest.FirmwareMinimum{{Version: "1.5"}}}}
	f.policy = &denied
	if codes := f.attest(both); len(codes) == 0 || slices.Contains(codes, attest.CodeBankHidden) {
		t.Fatalf("codes are %q", codes)
	}
	got = f.banksAlarms(both)
	if len(got) != 1 || got[0].Name != audit.AlarmBanksFailed || strings.Contains(got[0].What, "released") {
		t.Errorf("got %+v", got)
	}
	// Where the policy requires it, it is a finding, which has an alarm.
	f.policy = &require
	other := f.box(true)
	hidesSHA384(other)
	for range 2 { // that is told of once a day, too, and not as another the next time
		if codes := f.attest(other); !slices.Equal(codes, []attest.Code{attest.CodeBankHidden}) {
			t.Fatalf("codes are %q", codes)
		}
	}
	if got := f.banksAlarms(other); len(got) != 1 || got[0].Name != audit.AlarmEvidenceTampered {
		t.Errorf("got %+v", got)
	}
}

// Evidence of a version that did not note whether it asked counts as not asked.
func TestEvidenceThatDoesNotSayWhetherItWasAskedForIsNotJudged(t *testing.T) {
	f := newFleet(t)
	f.asks = true
	b := f.box(true)
	b.deaf = true
	f.attest(b)
	stored, err := f.memory.Evidence(t.Context(), f.record(b).LastEvidence)
	if err != nil {
		t.Fatal(err)
	}
	require := *f.policy
	require.TPM.ProveBanks = true
	for text, want := range map[string]api.Effect{
		string(stored): api.EffectRefused,
		strings.Replace(string(stored), `,"AsksBanks":true`, "", 1): api.EffectNotAsked,
	} {
		ev, err := api.DecodeEvidence([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if row := server.Judge(ev, f.policy, &require); row.Effect != want {
			t.Errorf("asked is %t: effect %q, want %q", ev.Challenge.AsksBanks, row.Effect, want)
		}
	}
}

// A restore has of the log what machines answered, and who proved their banks: an
// exemption does not count for them afterwards either.
func TestARestoreKeepsWhatMachinesAnsweredOnTheirBanks(t *testing.T) {
	f := newFleet(t)
	ask := *f.policy
	ask.TPM.AskBanks = true
	f.policy, f.asks = &ask, true
	able, old := f.box(true), f.box(true)
	old.deaf = true
	f.attest(able)
	f.attest(old)
	r := server.NewRecovery()
	for e, err := range f.memory.Audit(t.Context(), 1) {
		if err == nil {
			err = r.Replay(e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	all, _, err := r.Finish(audit.Head{}, audit.Restore{Complete: true}, time.Unix(2, 0))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, rec := range all {
		if rec.Machine == nil {
			continue
		}
		seen++
		want := f.record(map[bool]*paperBox{true: able, false: old}[rec.Machine.ID == able.id]).BankProof
		a, _ := json.Marshal(rec.Machine.BankProof)
		b, _ := json.Marshal(want)
		if string(a) != string(b) {
			t.Errorf("restored %s, was %s", a, b)
		}
	}
	if seen != 2 {
		t.Errorf("%d machines", seen)
	}
}

// Whoever has no proof of the machine's TPM cannot answer for it.
func TestOnlyTheMachineAnswersOnItsBanks(t *testing.T) {
	f := newFleet(t)
	f.asks = true
	b := f.box(true)
	f.attest(b)
	before := f.record(b).BankProof
	thief, err := papertpm.New(newKey(f))
	if err != nil {
		t.Fatal(err)
	}
	thief.EKPublic, thief.EKCertificates = b.tpm.EKPublic, b.tpm.EKCertificates
	stolen := &paperBox{tpm: thief, boot: b.boot, id: b.id, deaf: true}
	var refused *client.RefusedError
	if err := f.tryAttest(stolen); !errors.As(err, &refused) || !slices.Contains(resultCodes(refused.Result), attest.CodeActivation) {
		t.Errorf("got %v", err)
	}
	if after := f.record(b).BankProof; before == nil || *after != *before {
		t.Errorf("answered %+v, was %+v", after, before)
	}
}

// tryAttest sends evidence of a box that guesses the secret of its challenge.
func (f *fleet) tryAttest(b *paperBox) error {
	f.Helper()
	s, err := f.client.Connect(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	defer s.Close() // nothing is left to be sent
	ek, ak := tpm2.Marshal(b.tpm.EKPublic), tpm2.Marshal(b.tpm.AKPublic)
	ch, err := s.Challenge(f.Context(), &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: ek, EKCertificates: b.tpm.EKCertificates, AKPublic: ak})
	if err != nil {
		f.Fatal(err)
	}
	b.boot.Measure(b.tpm)
	ev, err := b.tpm.Evidence(b.boot, attest.PurposeUnlock, ch.Nonce, s.Exporter())
	if err != nil {
		f.Fatal(err)
	}
	_, _, err = s.Evidence(f.Context(), b.id, &api.EvidenceRequest{ChallengeID: ch.ID, Evidence: *ev, ActivationProof: attest.ActivationProof(make(attest.Secret, 32), ch.ID, ch.Nonce, ak)})
	return err
}
