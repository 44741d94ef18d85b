package tpm_test

import (
	"errors"
	"strings"
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
		if locked(t, dev) {
			t.Fatalf("boot %d: the TPM is locked", boot)
		}
		if err := activateOnce(t, dev, true); err != nil {
			t.Fatalf("boot %d: %v", boot, err)
		}
		dev.PowerLoss()
	}
}

// locked reports whether the TPM takes no authorization that dictionary attack
// protection watches (TPMA_PERMANENT.inLockout, Part 2, 8.6).
func locked(t *testing.T, dev *tpmtest.TPM) bool {
	t.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTPermanent), PropertyCount: 1}.Execute(dev)
	if err != nil {
		t.Fatal(err)
	}
	props, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		t.Fatal(err)
	}
	return props.TPMProperty[0].Value&(1<<9) != 0
}

// cutUntilLocked is power cuts without Rest, until the TPM has locked.
func cutUntilLocked(t *testing.T, dev *tpmtest.TPM) {
	t.Helper()
	for range 8 {
		if err := activateOnce(t, dev, false); err != nil {
			t.Fatal(err)
		}
		dev.PowerLoss()
		if locked(t, dev) {
			return
		}
	}
	t.Fatal("this TPM does not count power cuts")
}

func TestALockedTPMIsUnlocked(t *testing.T) {
	dev := tpmtest.Open(t)
	for range 2 {
		cutUntilLocked(t, dev)
		if err := activateOnce(t, dev, true); err != nil {
			t.Fatal(err)
		}
		if locked(t, dev) {
			t.Error("the TPM is still locked")
		}
	}
}

func TestALockoutThatOthersGuardIsLeftToThem(t *testing.T) {
	dev := tpmtest.Open(t)
	lockout := func(auth string) tpm2.AuthHandle {
		return tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth([]byte(auth))}
	}
	change := tpm2.HierarchyChangeAuth{AuthHandle: lockout(""), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("theirs")}}
	if _, err := change.Execute(dev); err != nil {
		t.Fatal(err)
	}
	cutUntilLocked(t, dev)
	err := activateOnce(t, dev, false)
	if !errors.Is(err, tpm2.TPMRCLockout) || !strings.Contains(err.Error(), "the lockout hierarchy has an authorization value") {
		t.Errorf("got %v, want TPM_RC_LOCKOUT and who can end it", err)
	}
	// A wrong value would have shut the hierarchy.
	change = tpm2.HierarchyChangeAuth{AuthHandle: lockout("theirs"), NewAuth: tpm2.TPM2BAuth{}}
	if _, err := change.Execute(dev); err != nil {
		t.Errorf("the lockout hierarchy is shut: %v", err)
	}
	if err := activateOnce(t, dev, true); err != nil {
		t.Error(err)
	}
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
