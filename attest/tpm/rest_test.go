package tpm_test

import (
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// activateOnce is what one boot does with keys that dictionary attack
// protection watches.
func activateOnce(t *testing.T, dev *tpmtest.TPM, rest bool) error {
	t.Helper()
	m := tpm.New(dev)
	id, err := m.Identify("https://attest.example")
	if err != nil {
		return err
	}
	credential, secret, want, err := attest.MakeCredential(id.EK.Public, id.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Activate(credential, secret)
	if err != nil {
		return err
	}
	if string(got) != string(want) {
		t.Fatal("another secret was activated")
	}
	if rest {
		return m.Rest()
	}
	return nil
}

func TestRestKeepsPowerCutsFromLockingTheTPM(t *testing.T) {
	dev := tpmtest.Open(t)
	for boot := range 8 {
		if err := activateOnce(t, dev, true); err != nil {
			t.Fatalf("boot %d: %v", boot, err)
		}
		dev.PowerLoss()
	}
	// The danger is real: without Rest the same TPM locks.
	for range 8 {
		if err := activateOnce(t, dev, false); err != nil {
			if !errors.Is(err, tpm2.TPMRCLockout) {
				t.Fatalf("got %v, want TPM_RC_LOCKOUT", err)
			}
			return
		}
		dev.PowerLoss()
	}
	t.Log("this TPM does not count power cuts")
}

func TestRestIsNoEnd(t *testing.T) {
	dev := tpmtest.Open(t)
	m := tpm.New(dev)
	id, err := m.Identify("https://attest.example")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Rest(); err != nil {
			t.Fatal(err)
		}
		if n := dev.Objects(); n != 0 {
			t.Errorf("%d objects stay loaded", n)
		}
		credential, secret, _, err := attest.MakeCredential(id.EK.Public, id.AKPublic)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Activate(credential, secret); err != nil {
			t.Fatal(err)
		}
	}
}
