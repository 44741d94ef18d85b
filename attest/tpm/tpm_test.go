package tpm

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/pcrsig"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// credential makes what the service sends to be activated, and what is in it.
func credential(t testing.TB, id *Identity) (blob, secret []byte, want attest.Secret) {
	t.Helper()
	blob, secret, want, err := attest.MakeCredential(id.EK.Public, id.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	return blob, secret, want
}

// wrap makes what the service sends to be unwrapped in a state of the PCRs.
func wrap(t testing.TB, transport []byte, pcrs map[int][]byte, secret []byte) attest.WrappedKey {
	t.Helper()
	parent, err := tpm2.Unmarshal[tpm2.TPMTPublic](transport)
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.ImportEncapsulationKey(parent)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := pcrsig.PolicyDigest("sha256", pcrs)
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

// input is a well-formed CollectInput.
func input() CollectInput {
	return CollectInput{
		Purpose: attest.PurposeUnlock, Nonce: random(32), Exporter: random(32),
		EventLog: []byte("log"), SMBIOS: []byte("smbios"), Disk: attest.Disk{GUID: "g", StateExists: true},
	}
}

// sha256Quote is the quote of the SHA-256 bank.
func sha256Quote(t testing.TB, ev *attest.Evidence) attest.Quote {
	t.Helper()
	for _, q := range ev.Quotes {
		if q.Bank == "sha256" {
			return q
		}
	}
	t.Fatal("no quote of the sha256 bank")
	return attest.Quote{}
}

// empty fails the test if the TPM holds any object or session.
func empty(t testing.TB, d *tpmtest.TPM, dev *TPM) {
	t.Helper()
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	if n := d.Objects(); n != 0 {
		t.Errorf("%d objects or sessions are left in the TPM, want none", n)
	}
}

// interposed calls before for each command on its way to the TPM.
type interposed struct {
	transport.TPM
	before func(command tpm2.TPMCC)
}

func (i *interposed) Send(b []byte) ([]byte, error) {
	i.before(tpm2.TPMCC(binary.BigEndian.Uint32(b[6:10])))
	return i.TPM.Send(b)
}

// collected is a TPM that has given evidence.
func collected(t testing.TB, c tpmtest.Config) (*tpmtest.TPM, *TPM, *attest.Evidence, CollectInput) {
	t.Helper()
	d := c.Open(t)
	for i := range 8 {
		d.Extend(i, []byte("firmware"))
	}
	dev := New(d)
	if _, err := dev.Identify("test"); err != nil {
		t.Fatal(err)
	}
	in := input()
	ev, err := dev.Collect(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return d, dev, ev, in
}

func hashed(parts ...[]byte) []byte {
	d := sha256.Sum256(bytes.Join(parts, nil))
	return d[:]
}
