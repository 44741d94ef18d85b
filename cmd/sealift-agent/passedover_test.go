package main

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// openMisled is a TPM with an RSA certificate, and beside it a persistent key that
// looks like the certificate's and is another.
func openMisled(t *testing.T) *tpmtest.TPM {
	t.Helper()
	d := tpmtest.Open(t)
	d.UndefineNV(0x01c00016)
	const at = tpm2.TPMHandle(0x81010001)
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	there, err := tpm2.ReadPublic{ObjectHandle: at}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.EvictControl{Auth: owner, ObjectHandle: tpm2.NamedHandle{Handle: at, Name: there.Name}, PersistentHandle: at}).Execute(d); err != nil {
		t.Fatal(err)
	}
	p := tpm2.RSAEKTemplate
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(p)}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.EvictControl{Auth: owner, ObjectHandle: tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: at}).Execute(d); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(d); err != nil {
		t.Fatal(err)
	}
	return d
}

// A persistent key saves the time that a chip takes for another. It must not cost a box
// its certificate.
func TestACertificateThatWasPassedOverIsUsedAfterARefusal(t *testing.T) {
	_, c := startService(t)
	d := openMisled(t)
	e := &early{tpm: tpm.New(d), eventLog: []byte("log")}
	s := &service{client: c, log: slog.New(slog.DiscardHandler)}
	if err := s.identify(e.tpm); err != nil {
		t.Fatal(err)
	}
	for attempt, want := range []string{"ECC P-256", "RSA-2048", "RSA-2048"} {
		if machine, err := attest.EKMachineID(s.identity.EK.Public); s.identity.EK.Kind != want || err != nil || machine != s.machine {
			t.Errorf("attempt %d: by %s as machine %s: %v", attempt, s.identity.EK.Kind, s.machine.Short(), err)
		}
		_, err := s.attest(t.Context(), e, attest.Disk{GUID: "00112233-4455-6677-8899-aabbccddeeff"})
		if !errors.As(err, new(*client.RefusedError)) {
			t.Fatalf("attempt %d: %v", attempt, err)
		}
		if n := d.Objects(); n != 0 {
			t.Errorf("attempt %d: %d objects are left in the TPM", attempt, n)
		}
	}
}

func TestNothingElseHasTheKeysMade(t *testing.T) {
	d := openMisled(t)
	dev := tpm.New(d)
	s := &service{log: slog.New(slog.DiscardHandler)}
	if err := s.identify(dev); err != nil {
		t.Fatal(err)
	}
	for claim, err := range map[string]error{
		"a service that is away": errors.New("no route"),
		"another finding":        refusal(attest.CodeCmdline, attest.CodeEKMismatch, attest.CodeMachineRevoked),
		"no result":              &client.RefusedError{Result: &attest.Result{}},
	} {
		if err := s.reconsider(dev, err); err != nil || s.identity.EK.Kind != "ECC P-256" {
			t.Errorf("%s: %s, %v", claim, s.identity.EK.Kind, err)
		}
	}
	if err := s.reconsider(dev, refusal(attest.CodeCmdline, attest.CodeEKCertificate)); err != nil || s.identity.EK.Kind != "RSA-2048" {
		t.Errorf("no certificate: %s, %v", s.identity.EK.Kind, err)
	}
}

// The key that was chosen instead may have a certificate of its own, and the service may
// know the box by the one that was passed over: an install goes by no persistent key.
func TestABoxThatIsNotEnrolledByTheKeyThatItChoseTriesTheOthers(t *testing.T) {
	for _, code := range []attest.Code{attest.CodeMachineUnknown, attest.CodeMachinePending} {
		dev := tpm.New(openMisled(t))
		s := &service{log: slog.New(slog.DiscardHandler)}
		if err := s.identify(dev); err != nil {
			t.Fatal(err)
		}
		chosen := s.machine
		if err := s.reconsider(dev, refusal(code)); err != nil || s.identity.EK.Kind != "RSA-2048" || s.machine == chosen {
			t.Errorf("%s: %s, %v", code, s.identity.EK.Kind, err)
		}
	}
}

// failing is a TPM that makes no keys for a while.
type failing struct {
	*tpmtest.TPM
	fail bool
}

func (f *failing) Send(command []byte) ([]byte, error) {
	if f.fail && binary.BigEndian.Uint32(command[6:]) == uint32(tpm2.TPMCCCreatePrimary) {
		return nil, errors.New("no answer")
	}
	return f.TPM.Send(command)
}

func TestABoxWhoseTPMFailedWhileItsKeysWereMadeMakesThemAgain(t *testing.T) {
	_, c := startService(t)
	d := &failing{TPM: openMisled(t)}
	e := &early{tpm: tpm.New(d), eventLog: []byte("log")}
	s := &service{client: c, log: slog.New(slog.DiscardHandler)}
	if err := s.identify(e.tpm); err != nil {
		t.Fatal(err)
	}
	d.fail = true
	if err := s.reconsider(e.tpm, refusal(attest.CodeEKCertificate)); err == nil {
		t.Fatal("no error")
	}
	disk := attest.Disk{GUID: "00112233-4455-6677-8899-aabbccddeeff"}
	if _, err := s.attest(t.Context(), e, disk); err == nil || errors.As(err, new(*client.RefusedError)) {
		t.Errorf("while it fails: %v", err)
	}
	d.fail = false
	if _, err := s.attest(t.Context(), e, disk); !errors.As(err, new(*client.RefusedError)) {
		t.Errorf("after that: %v", err)
	}
}
