package attest_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/papertpm"
)

// active has the TPM list banks as active, or not.
func active(on bool, algs ...tpm2.TPMAlgID) func(*tpm2.TPMLPCRSelection) {
	return func(l *tpm2.TPMLPCRSelection) {
		for i := range l.PCRSelections {
			if s := &l.PCRSelections[i]; slices.Contains(algs, s.Hash) {
				s.PCRSelect = []byte{0, 0, 0}
				if on {
					s.PCRSelect = []byte{0xff, 0xff, 0xff}
				}
			}
		}
	}
}

// qualifying is the extraData of the quotes that were collected.
func (s *scene) qualifying() []byte {
	name := sha256.Sum256(s.ev.Transport.Public)
	return QualifyingData(Binding{Purpose: s.ch.Purpose, Nonce: s.ch.Nonce, Exporter: s.ses.Exporter, TransportID: append([]byte{0, 0x0b}, name[:]...)}, s.ev)
}

// prove makes the proof of the active banks anew.
func (s *scene) prove() {
	s.t.Helper()
	var err error
	if s.ev.Banks, err = s.tpm.ProveBanks(s.qualifying()); err != nil {
		s.t.Fatal(err)
	}
}

func TestThatSHA256IsOffIsTheTPMsWord(t *testing.T) {
	// statement has the proof's statement say something else, before it is signed.
	statement := func(change func(*tpm2.TPMSAttest)) func(*scene) {
		return func(s *scene) { s.tpm.OnBanks = change }
	}
	// listedAt has the TPM count otherwise when it gives the list.
	listedAt := func(change func(*tpm2.TPMSClockInfo)) func(*scene) {
		return func(s *scene) { s.tpm.OnTime = func(now *tpm2.TPMSTimeInfo) { change(&now.ClockInfo) } }
	}
	// earlier has all of the proof be of another boot than the quotes.
	earlier := func(change func(*tpm2.TPMSClockInfo)) func(*scene) {
		return func(s *scene) {
			listedAt(change)(s)
			statement(func(a *tpm2.TPMSAttest) { change(&a.ClockInfo) })(s)
		}
	}
	digest := func(change func([]byte) []byte) func(*scene) {
		return statement(func(a *tpm2.TPMSAttest) {
			info, _ := a.Attested.SessionAudit()
			info.SessionDigest.Buffer = change(info.SessionDigest.Buffer)
		})
	}
	cases := map[string]struct {
		banks  []string // sha384
		before func(*scene)
		after  func(*scene)
		want   []Code
		says   string
	}{
		"as it is":           {},
		"beside SHA-1":       {banks: []string{"sha1", "sha384"}},
		"beside SHA-512":     {banks: []string{"sha384", "sha512"}},
		"other commands ran": {before: statement(func(a *tpm2.TPMSAttest) { info, _ := a.Attested.SessionAudit(); info.ExclusiveSession = false })},
		"a bank whose PCRs are named in four bytes": {before: func(s *scene) {
			s.tpm.OnList = func(l *tpm2.TPMLPCRSelection) { l.PCRSelections[2].PCRSelect = []byte{0xff, 0xff, 0xff, 0} }
		}},
		"a TPM that does not list what is off": {before: func(s *scene) {
			s.tpm.OnList = func(l *tpm2.TPMLPCRSelection) { l.PCRSelections = l.PCRSelections[2:3] }
		}},
		"banks of the last boot that did not count": {before: func(s *scene) { s.known.Banks = []string{"sha1", "sha384"} }},

		"no proof": {after: func(s *scene) { s.ev.Banks = nil }, want: []Code{CodeBankUnproven}, says: "nothing proves it"},
		"SHA-256 is active": {
			before: func(s *scene) { s.tpm.OnList = active(true, tpm2.TPMAlgSHA256) }, want: []Code{CodeBankHidden}, says: "bank sha256 is active, says the TPM"},
		"one PCR of SHA-256 is active": {before: func(s *scene) {
			s.tpm.OnList = func(l *tpm2.TPMLPCRSelection) { l.PCRSelections[1].PCRSelect[2] = 0x80 }
		}, want: []Code{CodeBankHidden}},
		"SHA-1 is active, and not quoted": {before: func(s *scene) { s.tpm.OnList = active(true, tpm2.TPMAlgSHA1) }, want: []Code{CodeBankHidden}, says: "bank sha1"},
		"a bank is active that nobody can quote": {before: func(s *scene) {
			s.tpm.OnList = func(l *tpm2.TPMLPCRSelection) {
				l.PCRSelections = append(l.PCRSelections, tpm2.TPMSPCRSelection{Hash: 0x12, PCRSelect: []byte{1, 0, 0}})
			}
		}, want: []Code{CodeBankHidden}, says: "bank 0x0012"},
		"a bank is quoted that is not active": {
			before: func(s *scene) { s.tpm.OnList = active(false, tpm2.TPMAlgSHA384) }, want: []Code{CodeBankUnproven}, says: "does not list it"},
		"the list is altered": {
			before: func(s *scene) { s.tpm.OnList = active(true, tpm2.TPMAlgSHA256) },
			after: func(s *scene) {
				l, err := tpm2.Unmarshal[tpm2.TPMLPCRSelection](s.ev.Banks.List)
				if err != nil {
					t.Fatal(err)
				}
				active(false, tpm2.TPMAlgSHA256)(l)
				s.ev.Banks.List = tpm2.Marshal(l)
			}, want: []Code{CodeBankUnproven}, says: "did not give the time and the list"},
		"the time is altered":                      {after: func(s *scene) { s.ev.Banks.Time[15] ^= 1 }, want: []Code{CodeBankUnproven}},
		"the time is missing":                      {after: func(s *scene) { s.ev.Banks.Time = nil }, want: []Code{CodeMalformed}},
		"the time has a byte behind it":            {after: func(s *scene) { s.ev.Banks.Time = append(s.ev.Banks.Time, 0) }, want: []Code{CodeMalformed}},
		"the time ends early":                      {after: func(s *scene) { s.ev.Banks.Time = s.ev.Banks.Time[:20] }, want: []Code{CodeMalformed}},
		"the time's clock is neither safe nor not": {after: func(s *scene) { s.ev.Banks.Time[24] = 2 }, want: []Code{CodeMalformed}},
		"the TPM was reset after the list":         {before: listedAt(func(c *tpm2.TPMSClockInfo) { c.ResetCount-- }), want: []Code{CodeClock}, says: "started after it gave the list"},
		"the TPM was restarted after the list":     {before: listedAt(func(c *tpm2.TPMSClockInfo) { c.RestartCount-- }), want: []Code{CodeClock}},
		"the clock went back after the list":       {before: listedAt(func(c *tpm2.TPMSClockInfo) { c.Clock++ }), want: []Code{CodeClock}},
		"the clock went on after the list":         {before: listedAt(func(c *tpm2.TPMSClockInfo) { c.Clock -= 100 })},
		"the list is of no bank":                   {after: func(s *scene) { s.ev.Banks.List = make([]byte, 4) }, want: []Code{CodeBankUnproven}},
		"the list is missing":                      {after: func(s *scene) { s.ev.Banks.List = nil }, want: []Code{CodeMalformed}},
		"the list has a byte behind it":            {after: func(s *scene) { s.ev.Banks.List = append(s.ev.Banks.List, 0) }, want: []Code{CodeMalformed}},
		"the list ends early":                      {after: func(s *scene) { s.ev.Banks.List = s.ev.Banks.List[:9] }, want: []Code{CodeMalformed}},
		"the list is of millions":                  {after: func(s *scene) { copy(s.ev.Banks.List, []byte{0xff, 0xff, 0xff, 0xff}) }, want: []Code{CodeMalformed}},
		"the session has another digest":           {before: digest(func(d []byte) []byte { return slices.Concat([]byte{d[0] ^ 1}, d[1:]) }), want: []Code{CodeBankUnproven}},
		"the session is of SHA-1":                  {before: digest(func(d []byte) []byte { return d[:20] }), want: []Code{CodeBankUnproven}},
		"the session has no digest":                {before: digest(func([]byte) []byte { return nil }), want: []Code{CodeBankUnproven}},
		"the clock was read after the list":        {after: func(s *scene) { s.proveLate() }, want: []Code{CodeBankUnproven}},
		"the statement is missing":                 {after: func(s *scene) { s.ev.Banks.Attest = nil }, want: []Code{CodeMalformed}},
		"all of it is missing":                     {after: func(s *scene) { s.ev.Banks = &BankProof{} }, want: []Code{CodeMalformed}},
		"the statement has no magic":               {before: statement(func(a *tpm2.TPMSAttest) { a.Magic ^= 1 }), want: []Code{CodeQuoteFormat}},
		"the statement is for another":             {before: statement(func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = make([]byte, 32) }), want: []Code{CodeQuoteEvidence}},
		"of another hierarchy":                     {before: statement(func(a *tpm2.TPMSAttest) { a.QualifiedSigner.Buffer = []byte{0, 0x0b} }), want: []Code{CodeAKAttributes}},
		"of the reset before":                      {before: earlier(func(c *tpm2.TPMSClockInfo) { c.ResetCount-- }), want: []Code{CodeClock}, says: "not of one boot of one TPM"},
		"of the restart before":                    {before: earlier(func(c *tpm2.TPMSClockInfo) { c.RestartCount-- }), want: []Code{CodeClock}, says: "not of one boot of one TPM"},
		"of another firmware of the TPM":           {before: statement(func(a *tpm2.TPMSAttest) { a.FirmwareVersion++ }), want: []Code{CodeClock}},
		"exclusive is neither yes nor no":          {after: func(s *scene) { s.resign(func(b []byte) { b[len(b)-35] = 2 }) }, want: []Code{CodeMalformed}},
		"a quote in place of it":                   {after: func(s *scene) { q := s.ev.Quotes[0]; s.ev.Banks.Attest, s.ev.Banks.Signature = q.Attest, q.Signature }, want: []Code{CodeQuoteFormat}},
		"it is in place of a quote": {after: func(s *scene) {
			p := s.ev.Banks
			s.ev.Quotes[1].Attest, s.ev.Quotes[1].Signature = p.Attest, p.Signature
		}, want: []Code{CodeQuoteFormat}},
		"of another key":                  {after: func(s *scene) { s.ev.Banks.Signature = sign(t, newTPM(t, s.ca), s.ev.Banks.Attest) }, want: []Code{CodeQuoteSignature}},
		"the statement is of another TPM": {after: func(s *scene) { s.proveBy(newTPM(t, s.ca)) }, want: []Code{CodeQuoteSignature}},
		"the policy does not say so": {
			before: func(s *scene) { s.policy.Bank = "" }, want: []Code{CodeQuoteMissing}},
		"neither proven nor allowed": {
			before: func(s *scene) { s.policy.Bank = "" }, after: func(s *scene) { s.ev.Banks = nil }, want: []Code{CodeBankUnproven, CodeQuoteMissing}},
		"it was on in the last boot": {
			before: func(s *scene) { s.known.Banks = []string{"sha256", "sha384"} }, want: []Code{CodeBankTurnedOff}, says: "active in the last accepted boot"},
		"it was on, and nothing proves that it is off": {
			before: func(s *scene) { s.known.Banks = []string{"sha256"} }, after: func(s *scene) { s.ev.Banks = nil }, want: []Code{CodeBankTurnedOff, CodeBankUnproven}},

		"SHA-256 is on, and nothing is proven":                    {banks: []string{"sha256", "sha384"}},
		"SHA-256 is on, and was":                                  {banks: []string{"sha256"}, before: func(s *scene) { s.known.Banks = []string{"sha256"} }},
		"SHA-256 is on, with a proof that is not needed":          {banks: []string{"sha256", "sha384"}, after: (*scene).prove},
		"SHA-256 is on, with a proof that another bank is hidden": {banks: []string{"sha256"}, before: func(s *scene) { s.tpm.OnList = active(true, tpm2.TPMAlgSHA1) }, after: (*scene).prove, want: []Code{CodeBankHidden}},
		"SHA-256 is on, with a proof that is none":                {banks: []string{"sha256"}, after: func(s *scene) { s.ev.Banks = &BankProof{Time: make([]byte, 25), List: make([]byte, 4)} }, want: []Code{CodeMalformed}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if c.banks == nil {
				c.banks = []string{"sha384"}
			}
			s := sha384Scene(t, c.banks...)
			if c.before != nil {
				c.before(s)
			}
			s.collect()
			if c.after != nil {
				c.after(s)
			}
			r := s.verify()
			if got := codesOf(r); !slices.Equal(got, c.want) || r.Allowed != (len(c.want) == 0) {
				t.Errorf("codes are %q, want %q: %+v", got, c.want, r.Findings)
			}
			var all []string
			for _, f := range r.Findings {
				all = append(all, f.Message)
				if f.Hint == "" {
					t.Errorf("finding %s has no hint", f.Code)
				}
			}
			if text := strings.Join(all, "\n"); !strings.Contains(text, c.says) {
				t.Errorf("no message says %q:\n%s", c.says, text)
			}
		})
	}
}

// A bank that is kept back beside SHA-256 can be the only one that the firmware
// extends (CVE-2021-42299): a policy that wants the proof takes no evidence in which
// it could be.
func TestAPolicyMayWantTheBanksProven(t *testing.T) {
	both := []string{"sha256", "sha384"}
	hidden := func(bank tpm2.TPMAlgID) func(*scene) {
		return func(s *scene) { s.tpm.OnList = active(true, bank) }
	}
	unquoted := func(s *scene) { // as TPM2_Quote of no PCR of the bank is
		s.tpm.OnQuote = func(bank string, a *tpm2.TPMSAttest) {
			if info, _ := a.Attested.Quote(); bank == "sha384" {
				none := sha256.Sum256(nil)
				info.PCRSelect, info.PCRDigest.Buffer = papertpm.Selection(tpm2.TPMAlgSHA384, nil), none[:]
			}
		}
	}
	without := func(s *scene) { s.ev.Banks = nil }
	for name, c := range map[string]struct {
		banks  []string
		idle   bool // the policy does not want it
		before func(*scene)
		after  func(*scene)
		want   []Code
		says   string
	}{
		"SHA-256 alone":            {banks: []string{"sha256"}},
		"two banks":                {banks: both},
		"beside SHA-1 and SHA-512": {banks: []string{"sha1", "sha256", "sha512"}},
		"SHA-256 is off":           {banks: []string{"sha384"}},
		"by SHA-384":               {banks: both, before: func(s *scene) { s.policy.Bank = "sha384" }},

		"no proof of SHA-256 alone":       {banks: []string{"sha256"}, after: without, want: []Code{CodeBankUnproven}, says: "the policy wants proof"},
		"no proof of two banks":           {banks: both, after: without, want: []Code{CodeBankUnproven}},
		"no proof where SHA-256 is off":   {banks: []string{"sha384"}, after: without, want: []Code{CodeBankUnproven}, says: "said to be off"},
		"a proof of nothing":              {banks: both, after: func(s *scene) { s.ev.Banks = &BankProof{} }, want: []Code{CodeMalformed}},
		"SHA-384 is kept back":            {banks: []string{"sha256"}, before: hidden(tpm2.TPMAlgSHA384), want: []Code{CodeBankHidden}, says: "bank sha384 is active, says the TPM"},
		"SHA-1 is kept back":              {banks: []string{"sha256"}, before: hidden(tpm2.TPMAlgSHA1), want: []Code{CodeBankHidden}, says: "bank sha1"},
		"SHA-512 is kept back":            {banks: both, before: hidden(tpm2.TPMAlgSHA512), want: []Code{CodeBankHidden}, says: "bank sha512"},
		"SHA-384 is kept back, no proof":  {banks: []string{"sha256"}, before: hidden(tpm2.TPMAlgSHA384), after: without, want: []Code{CodeBankUnproven}},
		"SHA-384 is quoted without a PCR": {banks: both, before: unquoted, after: func(s *scene) { s.ev.Quotes[1].PCRs = nil }, want: []Code{CodeBankHidden}},
		"the quote of SHA-384 is taken out": {banks: both, after: func(s *scene) { s.ev.Quotes = s.ev.Quotes[:1] },
			want: []Code{CodeBankHidden, CodeQuoteMissing}},

		"nobody wants it, and it is not there":                    {idle: true, banks: both, after: without},
		"nobody wants it, and SHA-384 is kept back without it":    {idle: true, banks: []string{"sha256"}, before: hidden(tpm2.TPMAlgSHA384), after: without},
		"nobody wants it, and it is there":                        {idle: true, banks: both},
		"nobody wants it, and it says that SHA-384 is kept back":  {idle: true, banks: []string{"sha256"}, before: hidden(tpm2.TPMAlgSHA384), want: []Code{CodeBankHidden}},
		"nobody wants it, and SHA-384 is quoted without its PCRs": {idle: true, banks: both, before: unquoted, after: func(s *scene) { s.ev.Quotes[1].PCRs = nil }, want: []Code{CodeBankHidden}},
	} {
		t.Run(name, func(t *testing.T) {
			s := sha384Scene(t, c.banks...)
			s.policy.TPM.ProveBanks, s.tpm.Prove = !c.idle, true
			if c.before != nil {
				c.before(s)
			}
			s.collect()
			if c.after != nil {
				c.after(s)
			}
			r := s.verify()
			if got := codesOf(r); !slices.Equal(got, c.want) || r.Allowed != (len(c.want) == 0) {
				t.Errorf("codes are %q, want %q: %+v", got, c.want, r.Findings)
			}
			var all []string
			for _, f := range r.Findings {
				all = append(all, f.Message)
				if f.Hint == "" {
					t.Errorf("finding %s has no hint", f.Code)
				}
			}
			if text := strings.Join(all, "\n"); !strings.Contains(text, c.says) {
				t.Errorf("no message says %q:\n%s", c.says, text)
			}
			fact := Fact{Name: "pcr.banks", Value: strings.Join(c.banks, " "), Trust: TrustQuoted}
			if r.Allowed && s.ev.Banks != nil && !slices.Contains(r.Facts, fact) {
				t.Errorf("the active banks are no fact: %+v", r.Facts)
			}
		})
	}
}

// proveBy has another TPM make the proof.
func (s *scene) proveBy(d *papertpm.TPM) {
	s.t.Helper()
	d.PCRs = s.tpm.PCRs
	var err error
	if s.ev.Banks, err = d.ProveBanks(s.qualifying()); err != nil {
		s.t.Fatal(err)
	}
}

// proveLate makes a proof of a session that read the clock after it listed the
// banks.
func (s *scene) proveLate() {
	s.t.Helper()
	l, err := tpm2.Unmarshal[tpm2.TPMLPCRSelection](s.ev.Banks.List)
	if err != nil {
		s.t.Fatal(err)
	}
	now, err := tpm2.Unmarshal[tpm2.TPMSTimeInfo](s.ev.Banks.Time)
	if err != nil {
		s.t.Fatal(err)
	}
	session, err := tpm2.NewAudit(tpm2.TPMAlgSHA256)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := tpm2.AuditCommand(session, tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}, &tpm2.GetCapabilityResponse{
		CapabilityData: tpm2.TPMSCapabilityData{Capability: tpm2.TPMCapPCRs, Data: tpm2.NewTPMUCapabilities(tpm2.TPMCapPCRs, l)},
	}); err != nil {
		s.t.Fatal(err)
	}
	if err := tpm2.AuditCommand(session, tpm2.ReadClock{}, &tpm2.ReadClockResponse{CurrentTime: *now}); err != nil {
		s.t.Fatal(err)
	}
	s.resign(func(b []byte) { copy(b[len(b)-sha256.Size:], session.Digest()) })
}

// resign changes the bytes of the statement and has the attestation key sign them.
func (s *scene) resign(change func([]byte)) {
	s.t.Helper()
	s.ev.Banks.Attest = bytes.Clone(s.ev.Banks.Attest)
	change(s.ev.Banks.Attest)
	s.ev.Banks.Signature = sign(s.t, s.tpm, s.ev.Banks.Attest)
}

// What was stored before agents proved their banks is judged, too: it is not
// accepted again where SHA-256 is off, and it is where it is on.
func TestStoredEvidenceIsJudgedWithAndWithoutAProof(t *testing.T) {
	for _, c := range []struct {
		banks []string
		proof bool
		want  []Code
	}{
		{[]string{"sha384"}, true, nil},
		{[]string{"sha384"}, false, []Code{CodeBankUnproven}},
		{[]string{"sha1", "sha256"}, false, nil},
	} {
		s := sha384Scene(t, c.banks...)
		s.collect()
		if !c.proof {
			s.ev.Banks = nil
		}
		b, err := json.Marshal(&api.StoredEvidence{Version: api.Version, Machine: MachineID{1}, Challenge: *s.ch, Session: *s.ses, Known: *s.known, Evidence: *s.ev})
		if err != nil {
			t.Fatal(err)
		}
		// No other field of a name like this is there.
		if bytes.Contains(b, []byte(`"banks":`)) != c.proof {
			t.Errorf("%s: stored as %s", c.banks, b)
		}
		stored, err := api.DecodeEvidence(b)
		if err != nil {
			t.Fatal(err)
		}
		r := stored.Appraise(s.policy)
		if got := codesOf(r); !slices.Equal(got, c.want) {
			t.Errorf("%s, proof %t: codes are %q, want %q", c.banks, c.proof, got, c.want)
		}
		x := Explain(r, &stored.Evidence, s.policy, nil)
		if len(x.Refusals) != len(c.want) {
			t.Errorf("explained as %+v", x.Refusals)
		}
		for _, f := range x.Refusals {
			if f.Trust != TrustClaimed || f.Component != "the PCR banks" || f.Command == "" {
				t.Errorf("explained as %+v", f)
			}
		}
	}
}

// What an operator reads of a machine that lost its SHA-256 bank.
func TestAnExplanationNamesTheBanksThatWereTurnedOff(t *testing.T) {
	was := sha384Scene(t, "sha256", "sha384")
	was.policy.Bank = "sha384"
	was.collect()
	if r := was.verify(); !r.Allowed {
		t.Fatalf("refused: %+v", r.Findings)
	}
	s := sha384Scene(t, "sha384")
	s.known.Banks = []string{"sha256", "sha384"}
	s.collect()
	r := s.verify()
	x := Explain(r, s.ev, s.policy, was.ev)
	if len(x.Refusals) != 1 || x.Refusals[0].Code != CodeBankTurnedOff || x.Refusals[0].Trust != TrustQuoted ||
		x.Refusals[0].Command != "sealift machine approve "+r.Machine.String()+" --reason TEXT" {
		t.Errorf("refusals: %+v", x.Refusals)
	}
	if !slices.ContainsFunc(x.Differences, func(d Difference) bool {
		return d.Component == "the list of PCR banks" && d.Was == "sha256 sha384" && d.Is == "sha384" && d.Trust == TrustQuoted
	}) {
		t.Errorf("differences: %+v", x.Differences)
	}
}

// FuzzBankProof gives Verify a proof with evidence in which SHA-256 is off.
// Nothing is allowed with a list or a statement that is not the TPM's.
func FuzzBankProof(f *testing.F) {
	s := sha384Scene(f, "sha1", "sha384")
	s.collect()
	good := *s.ev.Banks
	quote := s.ev.Quotes[0]
	f.Add(good.Time, good.List, good.Attest, good.Signature, false)
	f.Add(good.Time, good.List, good.Attest, good.Signature, true)
	f.Add(good.Time, good.List, quote.Attest, quote.Signature, false)
	f.Add(good.Time, []byte{0, 0, 0, 1, 0, 0x0c, 3, 0xff, 0xff, 0xff}, good.Attest, []byte{}, true)
	f.Add(make([]byte, 25), []byte{0, 0, 0, 16}, good.Attest[:100], []byte{0, 0x18}, true)
	f.Fuzz(func(t *testing.T, now, list, statement, signature []byte, signed bool) {
		ev := *s.ev
		ev.Banks = &BankProof{Time: now, List: list, Attest: statement, Signature: signature}
		if signed { // reach what is behind the signature
			ev.Banks.Signature = sign(t, s.tpm, statement)
		}
		r := Verify(&ev, s.ch, s.ses, s.known, s.policy)
		if r.Allowed && !(bytes.Equal(now, good.Time) && bytes.Equal(list, good.List) && listed(t, statement, s.qualifying())) {
			t.Errorf("allowed with the list %x and the statement %x", list, statement)
		}
		if !r.Allowed && len(r.Findings) == 0 {
			t.Error("refused without a finding")
		}
	})
}

// listed reports whether go-tpm reads a statement as one of an audit session with
// this extraData.
func listed(t *testing.T, statement, extra []byte) bool {
	t.Helper()
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](statement)
	if err != nil || !bytes.Equal(tpm2.Marshal(a), statement) {
		return false
	}
	_, err = a.Attested.SessionAudit()
	return err == nil && a.Magic == tpm2.TPMGeneratedValue && bytes.Equal(a.ExtraData.Buffer, extra)
}

// The structures of a proof are read as go-tpm reads them, see FuzzDecodePublic.
func TestTheStructuresOfAProofAreDecoded(t *testing.T) {
	s := sha384Scene(t, "sha384")
	s.collect()
	for want, b := range map[string][]byte{"TPMS_TIME_INFO": s.ev.Banks.Time, "TPML_PCR_SELECTION": s.ev.Banks.List, "TPMS_ATTEST": s.ev.Banks.Attest} {
		if got := DecodeStructures(b)[want]; !bytes.Equal(got, b) {
			t.Errorf("%s: %x was read as %x", want, b, got)
		}
	}
	key := newKey(t, elliptic.P256())
	if _, ok := DecodeStructures(tpm2.Marshal(akArea(t, &key.PublicKey)))["TPML_PCR_SELECTION"]; ok {
		t.Error("a key was read as a list")
	}
}
