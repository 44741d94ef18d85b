package tpm

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/pcrsig"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// credential makes what the service sends to be activated.
func credential(t *testing.T, id *Identity, value []byte) (blob, secret []byte) {
	t.Helper()
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](id.EK.Public)
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		t.Fatal(err)
	}
	blob, secret, err = tpm2.CreateCredential(rand.Reader, key, id.AKName, value)
	if err != nil {
		t.Fatal(err)
	}
	return blob, secret
}

// wrap makes what the service sends to be unwrapped in a state of the PCRs.
func wrap(t *testing.T, transport []byte, pcrs map[int][]byte, secret []byte) attest.WrappedKey {
	t.Helper()
	parent, err := tpm2.Unmarshal[tpm2.TPMTPublic](transport)
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.ImportEncapsulationKey(parent)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := pcrsig.PolicyDigest(pcrs)
	if err != nil {
		t.Fatal(err)
	}
	sensitive := tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgKeyedHash,
		SeedValue:     tpm2.TPM2BDigest{Buffer: random(32)},
		Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: secret}),
	}
	public := sealTemplate(policy)
	public.ObjectAttributes = tpm2.TPMAObject{NoDA: true}
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: hashed(sensitive.SeedValue.Buffer, secret)})
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		t.Fatal(err)
	}
	dup, seed, err := tpm2.CreateDuplicate(rand.Reader, key, name.Buffer, tpm2.Marshal(sensitive))
	if err != nil {
		t.Fatal(err)
	}
	return attest.WrappedKey{Public: tpm2.Marshal(public), Duplicate: dup, Seed: seed}
}

// collected is a TPM that has given evidence.
func collected(t *testing.T, c tpmtest.Config) (*tpmtest.TPM, *TPM, *attest.Evidence, CollectInput) {
	t.Helper()
	d := c.Open(t)
	for i := range 8 {
		d.Extend(i, []byte("firmware"))
	}
	dev := New(d)
	if _, err := dev.Identify("test"); err != nil {
		t.Fatal(err)
	}
	in := CollectInput{
		Purpose: attest.PurposeUnlock, Nonce: random(32), Exporter: random(32),
		EventLog: []byte("log"), SMBIOS: []byte("smbios"), Disk: attest.Disk{GUID: "g", StateExists: true},
	}
	ev, err := dev.Collect(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return d, dev, ev, in
}

func TestIdentifyChoosesAndActivatesEachKindOfEndorsementKey(t *testing.T) {
	for _, tt := range []struct {
		name  string
		conf  tpmtest.Config
		kind  string
		certs int
	}{
		{"P-384 before RSA", tpmtest.Config{}, "ECC P-384", 1},
		{"P-256 before P-384", tpmtest.Config{P256Certificate: true}, "ECC P-256", 1},
		{"with the chain in NV", tpmtest.Config{Chain: true}, "ECC P-384", 2},
		{"P-256 where there is no certificate", tpmtest.Config{NoCertificates: true}, "ECC P-256", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := tt.conf.Open(t)
			dev := New(d)
			id, err := dev.Identify("test")
			if err != nil {
				t.Fatal(err)
			}
			if id.EK.Kind != tt.kind || len(id.EK.Certificates) != tt.certs || len(id.EK.Problems) > 0 {
				t.Fatalf("got %s with %d certificates, problems %v, want %s with %d", id.EK.Kind, len(id.EK.Certificates), id.EK.Problems, tt.kind, tt.certs)
			}
			for i, der := range id.EK.Certificates {
				c, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatalf("certificate %d: %v", i, err)
				}
				if i == 1 && !c.Equal(d.CA.Issuer) {
					t.Errorf("certificate %d: got %s, want the issuer's", i, c.Subject)
				}
			}
			for range 2 {
				want := random(32)
				got, err := dev.Activate(credential(t, id, want))
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("activate: got equal %v, error %v", bytes.Equal(got, want), err)
				}
			}
			again, err := New(d).Identify("test")
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(again.AKName, id.AKName) || !bytes.Equal(again.EK.Public, id.EK.Public) {
				t.Error("the keys are not the same the second time")
			}
		})
	}
}

func TestUnwrap(t *testing.T) {
	secret := random(32)
	d, dev, ev, _ := collected(t, tpmtest.Config{})
	w := wrap(t, ev.Transport.Public, ev.Quotes[1].PCRs, secret)
	got, err := dev.Unwrap(w)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, secret) {
		t.Errorf("got another secret")
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	if n := d.Objects(); n != 0 {
		t.Errorf("%d objects left", n)
	}
}

func hashed(parts ...[]byte) []byte {
	d := sha256.Sum256(bytes.Join(parts, nil))
	return d[:]
}
