package attest_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// A real TPM on which SHA-256 is off: from the quotes to the cap.
func TestARealTPMWithoutSHA256IsGivenItsSecretOnceInABoot(t *testing.T) {
	for _, banks := range [][]string{{"sha384"}, {"sha1", "sha384"}} {
		d := tpmtest.Config{Banks: banks, P256Certificate: true}.Open(t)
		s := sha384Scene(t, banks...)
		a := sha384Machine(t, d, d, s)
		r := a.run()
		wantCodes(t, r)
		v, ok := r.Verified()
		if !ok {
			t.Fatal("no proof")
		}
		secret := make(attest.Secret, attest.SecretSize)
		rand.Read(secret)
		wrapped, err := attest.Wrap(v, secret)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := a.tpm.Unwrap(wrapped); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("unwrap: %v", err)
		}
		if err := a.tpm.Cap("state", secret, "c4f1ae57-0000-4000-8000-000000000001"); err != nil {
			t.Fatal(err)
		}
		if _, err := a.tpm.Unwrap(wrapped); err == nil {
			t.Error("a secret was unwrapped after the cap")
		}
		wantCodes(t, a.run(), attest.CodePCRCapped)
	}
}

// sha384Machine is a machine with a real TPM that boots by SHA-384, and what the
// service knows of it.
func sha384Machine(t *testing.T, d *tpmtest.TPM, dev transport.TPM, s *scene) *attestation {
	s.policy.TPM = attest.TPMPolicy{
		Roots:   []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: d.CA.Root}, {Certificate: d.CA.Issuer, Intermediate: true}},
		Allowed: []attest.TPMClass{attest.TPMSoftware},
	}
	extendLog(t, d, s.Log())
	return &attestation{t: t, tpm: tpm.New(dev), policy: s.policy, known: &attest.Known{State: attest.StateEnrolled, DiskGUID: s.Disk.GUID},
		sent: &attest.Evidence{EventLog: s.Log(), SMBIOS: s.SMBIOS, Disk: s.Disk}}
}

// A TPM quotes a bank that is active without any PCR, if it is asked for none:
// the quote is the same as that of a bank that is off. Whoever fills an active
// SHA-384 bank that the firmware leaves empty (CVE-2021-42299) must not be able
// to keep SHA-256 to himself with it: neither without the TPM's list of its banks,
// nor with it, nor with another.
func TestAnActiveBankCannotBeHidden(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha256", "sha384"}, P256Certificate: true}.Open(t)
	// The firmware measured something else into SHA-256; the log is what the
	// attacker wrote into SHA-384.
	a := sha384Machine(t, d, &blindfold{TPM: d, hidden: tpm2.TPMAlgSHA256}, sha384Scene(t, "sha384"))
	wantCodes(t, a.run(), attest.CodeBankHidden)
	a.bend = func(ev *attest.Evidence) { ev.Banks = nil }
	wantCodes(t, a.run(), attest.CodeBankUnproven)
	a.bend = func(ev *attest.Evidence) {
		i := bytes.Index(ev.Banks.List, []byte{0, 0x0b, 3, 0xff, 0xff, 0xff})
		if i < 0 {
			t.Fatalf("the list %x does not name SHA-256", ev.Banks.List)
		}
		clear(ev.Banks.List[i+3 : i+6])
	}
	wantCodes(t, a.run(), attest.CodeBankUnproven)
	a.policy.Bank = ""
	wantCodes(t, a.run(), attest.CodeBankUnproven, attest.CodeQuoteMissing)
}

// The same beside SHA-256: the log is what the attacker wrote into that, and nobody
// sees what the firmware measured into SHA-384. Only a policy that wants the proof
// refuses it.
func TestABankCannotBeKeptBackBesideSHA256(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha256", "sha384"}, P256Certificate: true}.Open(t)
	a := sha384Machine(t, d, &blindfold{TPM: d, hidden: tpm2.TPMAlgSHA384}, sha384Scene(t, "sha256"))
	wantCodes(t, a.run())
	a.policy.TPM.ProveBanks = true
	wantCodes(t, a.run(), attest.CodeBankUnproven)
	a.prove = true
	wantCodes(t, a.run(), attest.CodeBankHidden)
	a.bend = func(ev *attest.Evidence) {
		i := bytes.Index(ev.Banks.List, []byte{0, 0x0c, 3, 0xff, 0xff, 0xff})
		if i < 0 {
			t.Fatalf("the list %x does not name SHA-384", ev.Banks.List)
		}
		clear(ev.Banks.List[i+3 : i+6])
	}
	wantCodes(t, a.run(), attest.CodeBankUnproven)
}

// An honest machine with the same banks.
func TestTwoActiveBanksAreProven(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha256", "sha384"}, P256Certificate: true}.Open(t)
	a := sha384Machine(t, d, d, sha384Scene(t, "sha256", "sha384"))
	a.policy.TPM.ProveBanks, a.prove = true, true
	r := a.run()
	wantCodes(t, r)
	if !slices.Contains(r.Facts, attest.Fact{Name: "pcr.banks", Value: "sha256 sha384", Trust: attest.TrustQuoted}) {
		t.Errorf("the active banks are no fact: %+v", r.Facts)
	}
}

// A proof is of one challenge, and of the boot of its quotes.
func TestAProofOfTheBanksServesOnce(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha384"}, P256Certificate: true}.Open(t)
	a := sha384Machine(t, d, d, sha384Scene(t, "sha384"))
	var old *attest.BankProof
	a.bend = func(ev *attest.Evidence) { old = ev.Banks }
	r := a.run()
	wantCodes(t, r)
	if !slices.Contains(r.Facts, attest.Fact{Name: "pcr.banks", Value: "sha384", Trust: attest.TrustQuoted}) {
		t.Errorf("the active banks are no fact: %+v", r.Facts)
	}
	a.bend = func(ev *attest.Evidence) { ev.Banks = old }
	wantCodes(t, a.run(), attest.CodeQuoteChallenge)
	d.Reset()
	extendLog(t, d, a.sent.EventLog)
	a.tpm = tpm.New(d)
	wantCodes(t, a.run(), attest.CodeQuoteChallenge)
	a.bend = nil
	wantCodes(t, a.run())
}

// A TPM whose banks are other ones from one boot to the next.
func TestSHA256IsNotTurnedOffBetweenTwoBoots(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha256", "sha384"}, P256Certificate: true}.Open(t)
	s := sha384Scene(t, "sha256", "sha384")
	s.policy.Bank = "sha384"
	a := sha384Machine(t, d, d, s)
	r := a.run()
	wantCodes(t, r)
	v, ok := r.Verified()
	if !ok {
		t.Fatal("no proof")
	}
	a.known.Banks = slices.Collect(maps.Keys(v.BootState().PCRs))
	d.Allocate("sha384")
	d.Reset()
	s.Banks = []string{"sha384"}
	a.sent.EventLog, a.tpm = s.Log(), tpm.New(d)
	extendLog(t, d, s.Log())
	wantCodes(t, a.run(), attest.CodeBankTurnedOff)
	a.known.Banks = nil // an approver said so
	wantCodes(t, a.run())
}

// blindfold is a TPM of which its system does not say that a bank is active: it is
// not in the list of the active banks, and quotes of it are asked for without PCRs.
type blindfold struct {
	transport.TPM
	hidden tpm2.TPMAlgID
}

func (b *blindfold) Send(in []byte) ([]byte, error) {
	code := binary.BigEndian.Uint32(in[6:])
	selection := binary.BigEndian.AppendUint16(nil, uint16(b.hidden)) // of 24 PCRs
	selection = append(selection, 3)
	if code == uint32(tpm2.TPMCCQuote) {
		in = bytes.Clone(in)
		one := append([]byte{0, 0, 0, 1}, selection...) // of the bank alone
		if i := bytes.LastIndex(in, one); i >= 0 {
			clear(in[i+len(one) : i+len(one)+3])
		}
	}
	out, err := b.TPM.Send(in)
	// The answer in an audit session is as it was: an agent refuses another.
	if err == nil && code == uint32(tpm2.TPMCCGetCapability) && binary.BigEndian.Uint16(in) == uint16(tpm2.TPMSTNoSessions) {
		// TPMS_PCR_SELECTION of the bank in TPM_CAP_PCRS.
		if i := bytes.Index(out, append(selection, 0xff, 0xff, 0xff)); i >= 0 {
			out = bytes.Clone(out)
			clear(out[i+3 : i+6])
		}
	}
	return out, err
}

// A rule of a policy for TPMs goes by the certificate that a real TPM brings. What a
// refusal says to write is that rule.
func TestARealTPMIsUnderARuleByItsCertificate(t *testing.T) {
	for _, banks := range [][]string{{"sha256"}, {"sha384"}} {
		d := tpmtest.Config{Banks: banks, P256Certificate: true}.Open(t)
		a := sha384Machine(t, d, d, sha384Scene(t, banks...))
		a.policy.Bank, a.policy.TPM.ProveBanks, a.deaf = "", true, true
		code, list, rules := attest.CodeBankUnproven, "bankExemptions", &a.policy.TPM.BankExemptions
		if banks[0] == "sha384" {
			a.prove, a.deaf, code, list, rules = true, false, attest.CodeQuoteMissing, "withoutSHA256", &a.policy.TPM.WithoutSHA256
		}
		r := a.run()
		wantCodes(t, r, code)
		fact := func(name string) string {
			i := slices.IndexFunc(r.Facts, func(f attest.Fact) bool { return f.Name == name })
			if i < 0 {
				return ""
			}
			return r.Facts[i].Value
		}
		vendor, err := attest.ParseTPMVendor(fact("tpm.vendor"))
		if err != nil {
			t.Fatalf("%v: %+v", err, r.Facts)
		}
		model := fact("tpm.model")
		// Its authority may vouch for any maker: then its word is none.
		if want := fmt.Sprintf("tpm.%s: [{machine: %q, reason: TEXT}]", list, r.Machine); !strings.Contains(r.Findings[0].Hint, want) {
			t.Errorf("the hint is %q, want %q", r.Findings[0].Hint, want)
		}
		*rules = []attest.TPMRule{{Vendor: vendor, Model: model}}
		wantCodes(t, a.run(), code)
		a.policy.TPM.Roots[0].Vendors = []attest.TPMVendor{vendor}
		wantCodes(t, a.run())
		*rules = []attest.TPMRule{{Vendor: vendor, Model: model + "x"}}
		r = a.run()
		wantCodes(t, r, code)
		if want := fmt.Sprintf("tpm.%s: [{vendor: %q, model: %q, reason: TEXT}]", list, vendor, model); model != "" && !strings.Contains(r.Findings[0].Hint, want) {
			t.Errorf("the hint is %q, want %q", r.Findings[0].Hint, want)
		}
		*rules = []attest.TPMRule{{Machine: r.Machine}}
		wantCodes(t, a.run())
	}
}
