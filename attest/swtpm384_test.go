package attest_test

import (
	"bytes"
	"crypto/rand"
	"testing"

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
