package attest

import (
	"bytes"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// TestASealedObjectIsEncodedAsTheLibraryDoes holds the encoding by hand against
// go-tpm's by reflection.
func TestASealedObjectIsEncodedAsTheLibraryDoes(t *testing.T) {
	policy, seed, unique := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{3}, 32)
	secret := Secret(bytes.Repeat([]byte{4}, SecretSize))
	public, sensitive := sealedObject(policy, seed, unique, secret)
	wantPublic := tpm2.Marshal(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{NoDA: true, AdminWithPolicy: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: unique}),
	})
	if !bytes.Equal(public, wantPublic) {
		t.Errorf("the public area is %x, want %x", public, wantPublic)
	}
	wantSensitive := tpm2.Marshal(tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgKeyedHash, SeedValue: tpm2.TPM2BDigest{Buffer: seed},
		Sensitive: tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: secret}),
	})
	if !bytes.Equal(sensitive, wantSensitive) {
		t.Errorf("the sensitive area is %x, want %x", sensitive, wantSensitive)
	}
}
