package papertpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// keys makes one endorsement key of each kind that TPMs have.
func keys(t *testing.T) map[string]crypto.PrivateKey {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]crypto.PrivateKey{"RSA 2048": r}
	for name, c := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384()} {
		if out[name], err = ecdsa.GenerateKey(c, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func equip(t *testing.T, ek crypto.PrivateKey) (*CA, *TPM) {
	t.Helper()
	ca, err := NewCA(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(ek)
	if err == nil {
		err = ca.Equip(d)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ca, d
}

// attested runs the protocol against attest alone, without a network.
func attested(t *testing.T, ca *CA, d *TPM, b *Boot) (*attest.Result, *attest.Challenge, *attest.Evidence) {
	t.Helper()
	ek, ak := tpm2.Marshal(d.EKPublic), tpm2.Marshal(d.AKPublic)
	credential, secret, activation, err := attest.MakeCredential(ek, ak)
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Activate(credential, secret)
	if err != nil {
		t.Fatal(err)
	}
	ch := &attest.Challenge{
		ID: "c", Purpose: attest.PurposeUnlock, Nonce: bytes.Repeat([]byte{9}, 32), ActivationSecret: activation,
		EKPublic: ek, AKPublic: ak, Expires: time.Now().Add(time.Minute),
	}
	ses := &attest.Session{Exporter: bytes.Repeat([]byte{7}, 32), Now: time.Now(), ActivationProof: attest.ActivationProof(got, ch.ID, ch.Nonce, ak)}
	b.Measure(d)
	ev, err := d.Evidence(b, ch.Purpose, ch.Nonce, ses.Exporter)
	if err != nil {
		t.Fatal(err)
	}
	return attest.Verify(ev, ch, ses, &attest.Known{State: attest.StateEnrolled, DiskGUID: b.Disk.GUID}, &attest.Policy{
		ID: "p", Images: []*manifest.Manifest{GoodImage()},
		Firmware: attest.FirmwarePolicy{References: []attest.FirmwareReference{GoodFirmware()}},
		TPM:      attest.TPMPolicy{Roots: []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: ca.Root}}, Allowed: []attest.TPMClass{attest.TPMSoftware}},
	}), ch, ev
}

func TestAPaperTPMIsGivenASecretInTheBootThatItQuotedOnly(t *testing.T) {
	t.Parallel()
	for name, ek := range keys(t) {
		t.Run(name, func(t *testing.T) {
			ca, d := equip(t, ek)
			b := GoodBoot()
			b.Banks = []string{"sha256", "sha384"}
			r, _, _ := attested(t, ca, d, b)
			v, ok := r.Verified()
			if !ok {
				t.Fatalf("refused: %+v", r.Findings)
			}
			secret := attest.Secret(bytes.Repeat([]byte{3}, attest.SecretSize))
			w, err := attest.Wrap(v, secret)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := d.Unwrap(w); err != nil || !bytes.Equal(got, secret) {
				t.Errorf("unwrapped %x, %v", []byte(got), err)
			}
			d.Extend(15, []byte("cap"))
			if _, err := d.Unwrap(w); err == nil {
				t.Error("unwrapped after the cap")
			}
			d.Reset()
			b.Measure(d)
			if _, err := d.Unwrap(w); err == nil {
				t.Error("unwrapped after a reset")
			}
			if _, err := d.MakeTransport(make([]byte, 32), nil); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Unwrap(w); err == nil {
				t.Error("unwrapped with the transport key of another boot")
			}
		})
	}
}

func TestWhatIsBentIsRefused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		bend func(*TPM, *Boot)
		want attest.Code
	}{
		"a quote without magic":      {func(d *TPM, _ *Boot) { d.OnQuote = func(_ string, a *tpm2.TPMSAttest) { a.Magic = 1 } }, attest.CodeQuoteFormat},
		"an attestation key swapped": {func(d *TPM, _ *Boot) { d.AK = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }, attest.CodeQuoteSignature},
		"an event that is not logged": {func(_ *TPM, b *Boot) {
			b.Unlogged = []Measurement{{PCR: 4, Type: attest.EventBootApplication, Measured: []byte("x")}}
		}, attest.CodeLogReplay},
		"an event left out of the log": {func(_ *TPM, b *Boot) { b.Logged = b.Measured[1:] }, attest.CodeLogReplay},
		"another image":                {func(_ *TPM, b *Boot) { b.Measured = append(b.Measured, Section(".efifw", "x")...) }, attest.CodeSection},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca, d := equip(t, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
			b := GoodBoot()
			tt.bend(d, b)
			r, _, _ := attested(t, ca, d, b)
			if !slices.ContainsFunc(r.Findings, func(f attest.Finding) bool { return f.Code == tt.want }) {
				t.Errorf("got %+v, want %s", r.Findings, tt.want)
			}
		})
	}
}

func TestASeedGivesOneTPMAndAnotherSeedAnother(t *testing.T) {
	t.Parallel()
	a, b, c := must(FromSeed([]byte("1"))), must(FromSeed([]byte("1"))), must(FromSeed([]byte("2")))
	if must(a.MachineID()) != must(b.MachineID()) || !bytes.Equal(a.Name(), b.Name()) {
		t.Error("one seed, two TPMs")
	}
	if must(a.MachineID()) == must(c.MachineID()) || bytes.Equal(a.Name(), c.Name()) {
		t.Error("two seeds, one TPM")
	}
}

func TestARecordedLogIsWrittenAndReplayedAsItWas(t *testing.T) {
	t.Parallel()
	log := must(os.ReadFile("../../testdata/eventlogs/ovmf-2022.11-secureboot.bin"))
	b := must(ReadBoot(log))
	d := must(FromSeed(nil))
	b.Measure(d)
	l := must(attest.ParseEventLog(log))
	again := must(attest.ParseEventLog(b.Log()))
	for _, bank := range l.Banks {
		for pcr := range 16 {
			want := must(l.Replay(bank, pcr))
			if got := d.PCRs[bank][pcr]; !bytes.Equal(got, want) || !bytes.Equal(must(again.Replay(bank, pcr)), want) {
				t.Errorf("PCR %d, bank %s: %x, want %x", pcr, bank, got, want)
			}
		}
	}
	const other = "11111111-2222-3333-4444-555555555555"
	moved := must(b.OnDisk(other, true))
	ev := must(attest.ParseEventLog(moved.Log())).ForPCR(5)
	at := slices.IndexFunc(ev, func(e *attest.Event) bool { return e.UntrustedType == attest.EventGPT })
	g := must(ParseGUID(other))
	if at < 0 || !bytes.Equal(ev[at].UntrustedData[56:72], g[:]) {
		t.Error("the boot from another disk has the old disk's GUID")
	}
	if data, ok := ev[at].VerifiedData(); !ok || len(data) == 0 {
		t.Error("the partition table's event is not of its data")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
