package attest_test

import (
	"crypto"
	"crypto/x509"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

const cannot = "it has no TPM2_GetSessionAuditDigest"

// A policy that only asks takes what it would take unasked, and tells what it was
// answered. Where SHA-256 is off, the proof is needed all the same.
func TestAPolicyThatAsksForTheBanksRefusesNobodyForTheAnswer(t *testing.T) {
	without := func(s *scene) { s.ev.Banks = nil }
	list := func(on bool, bank tpm2.TPMAlgID) func(*scene) {
		return func(s *scene) { s.tpm.OnList = active(on, bank) }
	}
	for name, c := range map[string]struct {
		banks   []string
		unasked bool
		before  func(*scene)
		after   func(*scene)
		want    []Code
		answer  BankAnswer
		fact    string
	}{
		"it proves them":                     {banks: []string{"sha256", "sha384"}, answer: BanksProven, fact: "pcr.banks=sha256 sha384 quoted"},
		"it was not asked":                   {banks: []string{"sha256"}, unasked: true, after: without},
		"it was not asked, and proves them":  {banks: []string{"sha256"}, unasked: true, answer: BanksProven},
		"its agent is too old":               {banks: []string{"sha256"}, after: without, answer: BanksSilent},
		"its TPM cannot":                     {banks: []string{"sha256"}, before: func(s *scene) { s.tpm.Unable = cannot }, answer: BanksUnable, fact: "pcr.banks.unable=" + cannot + " claimed"},
		"a bank that nobody can quote is on": {banks: []string{"sha256"}, before: list(true, tpm2.TPMAlgSHA384), answer: BanksFailed, fact: "pcr.banks.failed=bank.hidden: bank sha384"},
		"the list is another's":              {banks: []string{"sha256"}, after: func(s *scene) { s.proveBy(newTPM(s.t, s.ca)) }, answer: BanksFailed, fact: "pcr.banks.failed=quote.signature: "},
		"the proof is nothing":               {banks: []string{"sha256"}, after: func(s *scene) { s.ev.Banks = &BankProof{} }, answer: BanksFailed, fact: "pcr.banks.failed=evidence.malformed: "},
		"the list lacks a quoted bank":       {banks: []string{"sha256", "sha384"}, before: list(false, tpm2.TPMAlgSHA384), answer: BanksFailed, fact: "pcr.banks.failed=bank.unproven: "},

		"SHA-256 is off, and it proves that":     {banks: []string{"sha384"}, answer: BanksProven},
		"SHA-256 is off, and it proves nothing":  {banks: []string{"sha384"}, after: without, want: []Code{CodeBankUnproven}, answer: BanksSilent},
		"SHA-256 is off, and its TPM cannot":     {banks: []string{"sha384"}, before: func(s *scene) { s.tpm.Unable = cannot }, want: []Code{CodeBankUnproven}, answer: BanksUnable},
		"SHA-256 is said to be off, and is not":  {banks: []string{"sha384"}, before: list(true, tpm2.TPMAlgSHA256), want: []Code{CodeBankHidden}, answer: BanksFailed},
		"SHA-256 was turned off":                 {banks: []string{"sha384"}, before: func(s *scene) { s.known.Banks = []string{"sha256"} }, want: []Code{CodeBankTurnedOff}, answer: BanksProven},
		"SHA-256 is not quoted, the list is bad": {banks: []string{"sha256", "sha384"}, after: func(s *scene) { s.ev.Banks, s.ev.Quotes = &BankProof{}, s.ev.Quotes[1:] }, want: []Code{CodeMalformed, CodeQuoteMissing}, answer: BanksFailed},
		"the reason takes too much room":         {banks: []string{"sha256"}, before: func(s *scene) { s.tpm.Unable = strings.Repeat("x", MaxNoBanks+1) }, want: []Code{CodeMalformed}},
		"nobody vouches for its TPM":             {banks: []string{"sha256"}, before: func(s *scene) { s.policy.TPM.Roots = nil }, want: []Code{CodeEKCertificate}},
	} {
		t.Run(name, func(t *testing.T) {
			s := sha384Scene(t, c.banks...)
			s.policy.TPM.AskBanks, s.ch.AsksBanks, s.tpm.Prove = true, !c.unasked, true
			if c.before != nil {
				c.before(s)
			}
			s.collect()
			if c.after != nil {
				c.after(s)
			}
			r := s.verify()
			if got := codesOf(r); !slices.Equal(got, c.want) || r.Allowed != (len(c.want) == 0) || r.Banks != c.answer {
				t.Errorf("codes are %q, want %q; the answer is %q, want %q: %+v", got, c.want, r.Banks, c.answer, r.Findings)
			}
			if c.fact != "" && !slices.ContainsFunc(r.Facts, func(f Fact) bool { return strings.HasPrefix(f.Name+"="+f.Value+" "+string(f.Trust), c.fact) }) {
				t.Errorf("no fact is %q: %+v", c.fact, r.Facts)
			}
			// Required, what was wrong under ask is refused.
			s.policy.TPM.ProveBanks = true
			if r := s.verify(); r.Allowed != (c.answer == BanksProven && len(c.want) == 0) {
				t.Errorf("required: allowed is %t: %+v", r.Allowed, r.Findings)
			}
		})
	}
}

// An exemption is keyed on what is proven of the TPM, and on nothing that the
// machine says.
func TestATPMIsExemptByWhatIsProvenOfIt(t *testing.T) {
	const maker = TPMVendor(0x53544D00) // "STM ", as its certificates have it
	stm := tpmName(t, []tpmAttribute{{1, "id:53544D20"}}, []tpmAttribute{{2, "ST33"}}, []tpmAttribute{{3, "id:00010101"}})
	by := func(x TPMRule) func(*scene) {
		return func(s *scene) { x.Reason = "too old"; s.policy.TPM.BankExemptions = []TPMRule{x} }
	}
	line := `tpm.bankExemptions: [{vendor: "STM", model: "ST33", reason: TEXT}]`
	for name, c := range map[string]struct {
		exempt func(*scene)
		change func(*scene) // after the exemption, before the evidence
		after  func(*scene)
		ok     bool
		hint   string
		says   string
	}{
		"nobody":                                 {hint: line, says: "it has no TPM2_GetSessionAuditDigest"},
		"the maker":                              {exempt: by(TPMRule{Vendor: maker}), ok: true},
		"the maker and the model":                {exempt: by(TPMRule{Vendor: maker, Model: "ST33"}), ok: true},
		"another model of the maker":             {exempt: by(TPMRule{Vendor: maker, Model: "ST34"}), hint: line},
		"a model of another maker":               {exempt: by(TPMRule{Vendor: 0x49465800, Model: "ST33"}), hint: line},
		"a TPM firmware above":                   {exempt: by(TPMRule{Vendor: maker, Below: 0x2019102300163637}), ok: true},
		"a TPM firmware that is the bound":       {exempt: by(TPMRule{Vendor: maker, Below: 0x2019102300163636}), hint: line},
		"the machine":                            {exempt: func(s *scene) { by(TPMRule{Machine: s.machine()})(s) }, ok: true},
		"another machine":                        {exempt: by(TPMRule{Machine: MachineID{1}}), hint: line},
		"the machine, and a vendor beside it":    {exempt: func(s *scene) { by(TPMRule{Machine: s.machine(), Vendor: maker})(s) }, hint: line},
		"an exemption of nothing":                {exempt: by(TPMRule{}), hint: line},
		"a silent agent on an exempt TPM":        {exempt: by(TPMRule{Vendor: maker}), change: func(s *scene) { s.tpm.Prove = false }, ok: true},
		"one that claims to be unable, unexempt": {exempt: by(TPMRule{Vendor: 0x49465800}), hint: line, says: "the TPM cannot sign it, says the machine"},
		"a TPM that proved its banks before":     {exempt: by(TPMRule{Vendor: maker}), change: func(s *scene) { s.known.BanksProven = true }, hint: "sealift machine approve", says: "the policy exempts this TPM (too old), which does not count"},
		"a machine that proved its banks before": {exempt: func(s *scene) { by(TPMRule{Machine: s.machine()})(s) }, change: func(s *scene) { s.known.BanksProven = true }, hint: "sealift machine approve"},
		"a root that may vouch for any maker":    {exempt: by(TPMRule{Vendor: maker}), change: func(s *scene) { s.policy.TPM.Roots[0].Vendors = nil }, hint: "tpm.bankExemptions: [{machine: "},
		"the same, of the machine":               {exempt: func(s *scene) { by(TPMRule{Machine: s.machine()})(s) }, change: func(s *scene) { s.policy.TPM.Roots[0].Vendors = nil }, ok: true},
		"a root that is there twice, once for any": {exempt: by(TPMRule{Vendor: maker}), change: func(s *scene) {
			s.policy.TPM.Roots = append(s.policy.TPM.Roots, TPMRoot{Class: TPMSoftware, Certificate: s.ca.Root})
		}, hint: "tpm.bankExemptions: [{machine: "},
		"the same, in the other order": {exempt: by(TPMRule{Vendor: maker}), change: func(s *scene) {
			s.policy.TPM.Roots = append([]TPMRoot{{Class: TPMSoftware, Certificate: s.ca.Root}}, s.policy.TPM.Roots...)
		}, hint: "tpm.bankExemptions: [{machine: "},
		"a certificate without a maker": {exempt: by(TPMRule{Vendor: maker}), change: func(s *scene) {
			s.policy.TPM.Roots[0].Vendors = nil
			s.recertify(tpmName(s.t))
		}, hint: "tpm.bankExemptions: [{machine: "},
		"a proof that hides a bank, on an exempt TPM": {exempt: by(TPMRule{Vendor: maker}), change: func(s *scene) {
			s.tpm.Unable, s.tpm.OnList = "", active(true, tpm2.TPMAlgSHA384)
		}, hint: "deactivate in the firmware's setup", says: "bank sha384 is active"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.policy.TPM.ProveBanks, s.ch.AsksBanks, s.tpm.Prove, s.tpm.Unable = true, true, true, cannot
			s.policy.TPM.Roots[0].Vendors = []TPMVendor{maker}
			s.recertify(stm)
			if c.exempt != nil {
				c.exempt(s)
			}
			if c.change != nil {
				c.change(s)
			}
			s.collect()
			r := s.verify()
			if r.Allowed != c.ok || !c.ok && len(r.Findings) != 1 {
				t.Fatalf("allowed is %t: %+v", r.Allowed, r.Findings)
			}
			exempt := slices.Contains(r.Facts, Fact{Name: "pcr.banks.exempt", Value: "too old", Trust: TrustRecorded})
			if exempt != c.ok {
				t.Errorf("that it is exempt is told: %t", exempt)
			}
			if !c.ok && (!strings.Contains(r.Findings[0].Hint, c.hint) || !strings.Contains(r.Findings[0].Message, c.says)) {
				t.Errorf("the finding is %+v, want the hint %q and the words %q", r.Findings[0], c.hint, c.says)
			}
		})
	}
}

// recertify gives the scene's TPM a certificate with another name.
func (s *scene) recertify(san []byte) {
	s.t.Helper()
	s.tpm.EKCertificates = [][]byte{certify(s.t, s.ca, s.ekKey(), func(c *x509.Certificate) {
		c.SerialNumber = big.NewInt(3)
		withSAN(san)(c)
	}).Raw}
}

func (s *scene) machine() MachineID {
	s.t.Helper()
	id, err := s.tpm.MachineID()
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// No exemption replaces the proof that SHA-256 is off.
func TestNoExemptionCoversAMachineWithoutSHA256(t *testing.T) {
	s := sha384Scene(t, "sha384")
	s.policy.TPM.ProveBanks, s.policy.TPM.BankExemptions = true, []TPMRule{{Machine: s.machine()}}
	s.tpm.Unable = cannot
	s.collect()
	if r := s.verify(); !slices.Equal(codesOf(r), []Code{CodeBankUnproven}) || r.Allowed {
		t.Errorf("codes are %q", codesOf(r))
	}
}

// The command of an explanation is the one for the reason why the proof is missing.
func TestAMissingProofIsExplainedByItsReason(t *testing.T) {
	for want, change := range map[string]func(*scene){
		"ipmitool -H BMC chassis power cycle":                                              func(s *scene) { s.ch.AsksBanks, s.tpm.Prove = false, false },
		"sealift image build PROFILE --keys KEYS --out DIR":                                func(s *scene) { s.tpm.Prove = false },
		"sealift policy sign FILE --keys KEYS && sealift policy enable FILE --reason TEXT": func(s *scene) { s.tpm.Unable = cannot },
	} {
		s := newScene(t)
		s.policy.TPM.ProveBanks, s.ch.AsksBanks, s.tpm.Prove = true, true, true
		change(s)
		s.collect()
		x := Explain(s.verify(), s.ev, s.policy, nil)
		if len(x.Refusals) != 1 || x.Refusals[0].Command != want {
			t.Errorf("explained as %+v, want the command %q", x.Refusals, want)
		}
	}
}

// One policy serves machines with SHA-256 alone, with SHA-384 alone, and with both. A
// machine without SHA-256 must be one that the policy names, and what holds for such
// machines under tpm.bank holds here.
func TestOnePolicyServesMachinesOfBothBanks(t *testing.T) {
	const paper = TPMVendor(0x50415052)
	named := func(s *scene) { s.policy.TPM.Roots[0].Vendors = []TPMVendor{paper} }
	nobody := func(s *scene) { s.policy.TPM.WithoutSHA256 = nil }
	for name, c := range map[string]struct {
		banks  []string
		bank   string
		change func(*scene)
		after  func(*scene)
		want   []Code
		hint   string
		by     string
	}{
		"SHA-256 alone":                   {banks: []string{"sha256"}, by: "sha256"},
		"SHA-256 alone, as the bank":      {banks: []string{"sha256"}, bank: "sha256", by: "sha256"},
		"SHA-384 alone":                   {banks: []string{"sha384"}, by: "sha384"},
		"SHA-384 alone, SHA-256 the bank": {banks: []string{"sha384"}, bank: "sha256", by: "sha384"},
		"SHA-384 beside SHA-1":            {banks: []string{"sha1", "sha384"}, by: "sha384"},
		"both":                            {banks: []string{"sha256", "sha384"}, by: "sha256"},
		"both, SHA-384 the bank":          {banks: []string{"sha256", "sha384"}, bank: "sha384", by: "sha384"},
		"SHA-256 alone, SHA-384 the bank": {banks: []string{"sha256"}, bank: "sha384", want: []Code{CodeQuoteMissing}},
		"neither":                         {banks: []string{"sha1"}, want: []Code{CodeLogMalformed, CodeQuoteMissing}},

		"the maker is named": {banks: []string{"sha384"}, by: "sha384", change: func(s *scene) {
			named(s)
			s.policy.TPM.WithoutSHA256 = []TPMRule{{Vendor: paper}}
		}},
		"the maker is named, and the root is there for any": {banks: []string{"sha384"}, want: []Code{CodeQuoteMissing}, hint: "tpm.withoutSHA256: [{machine: ", change: func(s *scene) {
			s.policy.TPM.WithoutSHA256 = []TPMRule{{Vendor: paper}}
		}},
		"another maker is named": {banks: []string{"sha384"}, want: []Code{CodeQuoteMissing}, hint: `tpm.withoutSHA256: [{vendor: "PAPR", reason: TEXT}]`, change: func(s *scene) {
			named(s)
			s.policy.TPM.WithoutSHA256 = []TPMRule{{Vendor: 0x49465800}}
		}},
		"nobody is named":                {banks: []string{"sha384"}, change: nobody, want: []Code{CodeQuoteMissing}},
		"SHA-256 alone, nobody is named": {banks: []string{"sha256"}, change: nobody, by: "sha256"},

		"SHA-384 alone, without a proof":   {banks: []string{"sha384"}, after: func(s *scene) { s.ev.Banks = nil }, want: []Code{CodeBankUnproven}},
		"SHA-384, with SHA-256 hidden":     {banks: []string{"sha384"}, change: func(s *scene) { s.tpm.OnList = active(true, tpm2.TPMAlgSHA256) }, want: []Code{CodeBankHidden}},
		"SHA-384, with SHA-256 turned off": {banks: []string{"sha384"}, change: func(s *scene) { s.known.Banks = []string{"sha256"} }, want: []Code{CodeBankTurnedOff}},
		"SHA-384, with no word of SHA-256": {banks: []string{"sha384"}, after: func(s *scene) { s.ev.Quotes = s.ev.Quotes[:1] }, want: []Code{CodeQuoteMissing}},
		"an image without references in SHA-384": {banks: []string{"sha384"}, change: func(s *scene) {
			m := *s.policy.Images[0]
			m.Boots = nil
			s.policy.Images = []*manifest.Manifest{&m}
		}, want: []Code{CodeImageUnknown}},
	} {
		t.Run(name, func(t *testing.T) {
			s := sha384Scene(t, c.banks...)
			s.policy.Bank = c.bank
			s.policy.TPM.WithoutSHA256 = []TPMRule{{Machine: s.machine()}}
			if c.change != nil {
				c.change(s)
			}
			s.collect()
			if c.after != nil {
				c.after(s)
			}
			r := s.verify()
			got := codesOf(r)
			if c.by != "" && (!r.Allowed || !slices.Contains(r.Facts, Fact{Name: "pcr.bank", Value: c.by, Trust: TrustQuoted})) {
				t.Errorf("not accepted by %s: %+v", c.by, r.Findings)
			}
			for _, code := range c.want {
				if !slices.Contains(got, code) || r.Allowed {
					t.Errorf("codes are %q, want %q among them", got, code)
				}
			}
			if c.hint != "" && !slices.ContainsFunc(r.Findings, func(f Finding) bool { return strings.Contains(f.Hint, c.hint) }) {
				t.Errorf("no hint says %q: %+v", c.hint, r.Findings)
			}
			if v, ok := r.Verified(); ok && v.BootState() == nil {
				t.Error("no state to hold reports against")
			}
		})
	}
}

func (s *scene) ekKey() crypto.PublicKey {
	s.t.Helper()
	ek, ok := s.tpm.EK.(crypto.Signer)
	if !ok {
		s.t.Fatalf("endorsement key of type %T", s.tpm.EK)
	}
	return ek.Public()
}
