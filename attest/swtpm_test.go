package attest_test

import (
	"bytes"
	"crypto/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// extendLog brings a TPM into the state of a boot: it extends each event's
// digests as the firmware did.
func extendLog(t *testing.T, d *tpmtest.TPM, log []byte) {
	t.Helper()
	l, err := attest.ParseEventLog(log)
	if err != nil {
		t.Fatal(err)
	}
	algs := map[string]tpm2.TPMAlgID{"sha1": tpm2.TPMAlgSHA1, "sha256": tpm2.TPMAlgSHA256, "sha384": tpm2.TPMAlgSHA384, "sha512": tpm2.TPMAlgSHA512}
	for i := range l.Events {
		var values tpm2.TPMLDigestValues
		for _, bank := range l.Banks {
			digest, _ := l.Digest(&l.Events[i], bank)
			values.Digests = append(values.Digests, tpm2.TPMTHA{HashAlg: algs[bank], Digest: digest})
		}
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(l.Events[i].PCR), Auth: tpm2.PasswordAuth(nil)},
			Digests:   values,
		}.Execute(d)
		if err != nil {
			t.Fatalf("extend event %d: %v", i, err)
		}
	}
}

// attestation runs the protocol once against a TPM, as service and agent do.
type attestation struct {
	t      *testing.T
	tpm    *tpm.TPM
	policy *attest.Policy
	known  *attest.Known
	sent   *attest.Evidence // log, SMBIOS and disk
	prove  bool             // the challenge asks for the proof of the active banks
	deaf   bool             // it asks, and the agent does not know it
	// bend changes the evidence on its way. Optional.
	bend func(*attest.Evidence)
}

func (a *attestation) run() *attest.Result {
	a.t.Helper()
	id, err := a.tpm.Identify("service")
	if err != nil {
		a.t.Fatal(err)
	}
	credential, secret, activation, err := attest.MakeCredential(id.EK.Public, id.AKPublic)
	if err != nil {
		a.t.Fatal(err)
	}
	nonce, exporter := make([]byte, 32), make([]byte, 32)
	rand.Read(nonce)
	rand.Read(exporter)
	now := time.Now()
	ch := &attest.Challenge{
		ID: "c", Purpose: attest.PurposeUnlock, Nonce: nonce, ActivationSecret: activation,
		AKPublic: id.AKPublic, EKPublic: id.EK.Public, Expires: now.Add(time.Minute),
		AsksBanks: a.prove || a.deaf,
	}
	answer, err := a.tpm.Activate(credential, secret)
	if err != nil {
		a.t.Fatal(err)
	}
	ev, err := a.tpm.Collect(a.t.Context(), tpm.CollectInput{
		Purpose: ch.Purpose, Nonce: nonce, Exporter: exporter, EventLog: a.sent.EventLog, SMBIOS: a.sent.SMBIOS, Disk: a.sent.Disk, ProveBanks: a.prove,
	})
	if err != nil {
		a.t.Fatal(err)
	}
	if a.bend != nil {
		a.bend(ev)
	}
	return attest.Verify(ev, ch, &attest.Session{
		Exporter: exporter, ActivationProof: attest.ActivationProof(answer, ch.ID, nonce, id.AKPublic), Now: now,
	}, a.known, a.policy)
}

// record remembers accepted evidence as the service does.
func (a *attestation) record(v *attest.Verified) {
	a.known.AKName, a.known.Clock, a.known.TPMFirmware = v.AKName(), v.Clock(), v.TPMFirmware()
	a.known.ResetCount, a.known.RestartCount = v.Boot()
	a.known.Released = true
}

func begin(t *testing.T, d *tpmtest.TPM, log string) *attestation {
	t.Helper()
	policy, known, sent := realPolicy(t, log)
	policy.TPM = attest.TPMPolicy{
		Roots:   []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: d.CA.Root}, {Certificate: d.CA.Issuer, Intermediate: true}},
		Allowed: []attest.TPMClass{attest.TPMSoftware},
	}
	extendLog(t, d, sent.EventLog)
	return &attestation{t: t, tpm: tpm.New(d), policy: policy, known: known, sent: sent}
}

func codes(r *attest.Result) []attest.Code {
	var out []attest.Code
	for _, f := range r.Findings {
		out = append(out, f.Code)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func wantCodes(t *testing.T, r *attest.Result, want ...attest.Code) {
	t.Helper()
	slices.Sort(want)
	if got := codes(r); !slices.Equal(got, want) || r.Allowed != (len(want) == 0) {
		t.Errorf("codes are %q, want %q", got, want)
		for _, f := range r.Findings {
			t.Logf("%s: %s", f.Code, f.Message)
		}
	}
}

// From the first quote to the refusal of a second release: one boot and the
// next, with a real TPM and the measurements of a real boot.
func TestARealTPMIsGivenItsSecretOnceInABoot(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha256"}, P256Certificate: true}.Open(t)
	a := begin(t, d, "ovmf-2022.11-secureboot")

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
	got, err := a.tpm.Unwrap(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, secret) {
		t.Error("the TPM gave another secret than was wrapped")
	}
	a.record(v)
	wantCodes(t, a.run(), attest.CodeReleaseRepeated)

	// Capped: neither the old release nor a new one can be had in this boot.
	wrapped, err = attest.Wrap(v, secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.tpm.Cap("state", secret, "c4f1ae57-0000-4000-8000-000000000001"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.tpm.Unwrap(wrapped); err == nil {
		t.Error("a secret was unwrapped after the cap")
	}
	wantCodes(t, a.run(), attest.CodePCRCapped, attest.CodeReleaseRepeated)

	// The next boot starts anew, and the last boot's release is worthless.
	for name, reset := range map[string]func(){"orderly": d.Reset, "power cut": d.PowerLoss} {
		reset()
		a.tpm = tpm.New(d)
		r = a.run()
		if !slices.Contains(codes(r), attest.CodeBankEmpty) {
			t.Errorf("%s: an empty TPM with the log of a boot: codes are %q", name, codes(r))
		}
		extendLog(t, d, a.sent.EventLog)
		r = a.run()
		wantCodes(t, r)
		if v, ok = r.Verified(); !ok {
			t.Fatalf("%s: the next boot gave no proof", name)
		}
		if _, err := a.tpm.Unwrap(wrapped); err == nil {
			t.Errorf("%s: the release of the boot before was unwrapped", name)
		}
		a.record(v)
	}
}

func TestARealTPMWithAnAlteredImageIsRefused(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha1", "sha256", "sha384", "sha512"}}.Open(t)
	a := begin(t, d, "ovmf-2022.11-cmdline-altered")
	wantCodes(t, a.run(), attest.CodeCmdline, attest.CodeImageUnknown)
	d.Extend(14, []byte("shim"))
	wantCodes(t, a.run(), attest.CodeCmdline, attest.CodeImageUnknown, attest.CodePCRNotZero)
}

func TestABankThatFirmwareLeftEmptyIsRefused(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha256", "sha384"}}.Open(t)
	a := begin(t, d, "ovmf-2022.11-secureboot")
	wantCodes(t, a.run(), attest.CodeBankEmpty)
}

// Which keys swtpm and go-tpm agree about, SHA-384 and AES-256 among them.
func TestCredentialsForEachKindOfEndorsementKeyAreActivated(t *testing.T) {
	cases := map[string]struct {
		config tpmtest.Config
		drop   uint32
		kind   string
	}{
		"P-256":    {config: tpmtest.Config{P256Certificate: true}, kind: "ECC P-256"},
		"P-384":    {kind: "ECC P-384"},
		"RSA-2048": {drop: 0x01c00016, kind: "RSA-2048"},
		"RSA-3072": {config: tpmtest.Config{RSABits: 3072}, drop: 0x01c00016, kind: "RSA-3072"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := c.config.Open(t)
			if c.drop != 0 {
				d.UndefineNV(c.drop)
			}
			dev := tpm.New(d)
			id, err := dev.Identify("service")
			if err != nil {
				t.Fatal(err)
			}
			if id.EK.Kind != c.kind {
				t.Fatalf("the endorsement key is %s, want %s", id.EK.Kind, c.kind)
			}
			if name, err := attest.AKName(id.AKPublic); err != nil || !bytes.Equal(name, id.AKName) {
				t.Errorf("name of the attestation key is %x, %v, the TPM says %x", name, err, id.AKName)
			}
			policy := &attest.TPMPolicy{
				Roots:   []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: d.CA.Root}, {Certificate: d.CA.Issuer, Intermediate: true}},
				Allowed: []attest.TPMClass{attest.TPMSoftware},
			}
			ek, findings := attest.VerifyEK(id.EK.Public, id.EK.Certificates, policy, time.Now())
			if ek == nil {
				t.Errorf("a certificate of swtpm_localca was refused: %+v", findings)
			}
			for range 4 { // often enough to meet a coordinate with a leading zero now and then
				credential, secret, want, err := attest.MakeCredential(id.EK.Public, id.AKPublic)
				if err != nil {
					t.Fatal(err)
				}
				if id, err = dev.Identify("service"); err != nil {
					t.Fatal(err)
				}
				got, err := dev.Activate(credential, secret)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Error("the TPM activated another secret")
				}
			}
		})
	}
}

// The answer to a credential for one attestation key is of no use to another.
func TestACredentialOpensForItsAttestationKeyOnly(t *testing.T) {
	d := tpmtest.Config{P256Certificate: true}.Open(t)
	dev := tpm.New(d)
	id, err := dev.Identify("service")
	if err != nil {
		t.Fatal(err)
	}
	credential, secret, _, err := attest.MakeCredential(id.EK.Public, id.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.Identify("another service"); err != nil {
		t.Fatal(err)
	}
	if _, err := dev.Activate(credential, secret); err == nil {
		t.Error("a credential opened for another attestation key")
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha256"}, P256Certificate: true}.Open(t)
	a := begin(t, d, "ovmf-2022.11-secureboot")
	v, ok := a.run().Verified()
	if !ok {
		t.Fatal("no proof")
	}
	if _, err := attest.Wrap(v, attest.Secret("too short")); err == nil || strings.Contains(err.Error(), "too short") {
		t.Errorf("the error shows the secret: %v", err)
	}
}
