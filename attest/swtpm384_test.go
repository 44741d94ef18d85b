package attest_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
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
		s.policy.TPM = attest.TPMPolicy{
			Roots:   []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: d.CA.Root}, {Certificate: d.CA.Issuer, Intermediate: true}},
			Allowed: []attest.TPMClass{attest.TPMSoftware},
		}
		a := &attestation{t, tpm.New(d), s.policy, &attest.Known{State: attest.StateEnrolled, DiskGUID: s.Disk.GUID}, &attest.Evidence{
			EventLog: s.Log(), SMBIOS: s.SMBIOS, Disk: s.Disk,
		}}
		extendLog(t, d, a.sent.EventLog)
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

// A TPM quotes a bank that is active without any PCR, if it is asked for none:
// the quote is the same as that of a bank that is off. Whoever fills an active
// SHA-384 bank that the firmware leaves empty (CVE-2021-42299) must not be able
// to keep SHA-256 to himself with it.
func TestAQuoteWithoutPCRsDoesNotProveThatABankIsOff(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha256", "sha384"}, P256Certificate: true}.Open(t)
	s := sha384Scene(t, "sha384")
	s.policy.Bank = ""
	s.policy.TPM = attest.TPMPolicy{
		Roots:   []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: d.CA.Root}, {Certificate: d.CA.Issuer, Intermediate: true}},
		Allowed: []attest.TPMClass{attest.TPMSoftware},
	}
	// The firmware measured something else into SHA-256; the log is what the
	// attacker wrote into SHA-384.
	extendLog(t, d, s.Log())
	a := &attestation{t, tpm.New(&blindfold{TPM: d}), s.policy, &attest.Known{State: attest.StateEnrolled, DiskGUID: s.Disk.GUID}, &attest.Evidence{
		EventLog: s.Log(), SMBIOS: s.SMBIOS, Disk: s.Disk,
	}}
	wantCodes(t, a.run(), attest.CodeQuoteMissing)
}

// blindfold is a TPM whose SHA-256 bank its system does not speak of: it is not
// among the active banks, and quotes of it are asked for without PCRs.
type blindfold struct{ transport.TPM }

func (b *blindfold) Send(in []byte) ([]byte, error) {
	code := binary.BigEndian.Uint32(in[6:])
	if code == uint32(tpm2.TPMCCQuote) {
		in = bytes.Clone(in)
		one := []byte{0, 0, 0, 1, 0, 0x0b, 3} // a selection of SHA-256 alone, in three bytes
		if i := bytes.LastIndex(in, one); i >= 0 {
			clear(in[i+len(one) : i+len(one)+3])
		}
	}
	out, err := b.TPM.Send(in)
	if err == nil && code == uint32(tpm2.TPMCCGetCapability) {
		// TPMS_PCR_SELECTION of SHA-256 in TPM_CAP_PCRS.
		if i := bytes.Index(out, []byte{0, 0x0b, 3, 0xff, 0xff, 0xff}); i >= 0 {
			out = bytes.Clone(out)
			clear(out[i+3 : i+6])
		}
	}
	return out, err
}
