package attest

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// SecretSize is the size of a secret that Wrap takes, in bytes.
const SecretSize = 32

// Wrap protects a secret of SecretSize bytes for the machine that v is the
// proof of. The result is a sealed data object, duplicated to the machine's
// transport key (Part 1, "Duplication"): TPM2_Import, TPM2_Load and TPM2_Unseal give
// the secret in that TPM only, until it is reset, and only while its PCRs have
// the values that v's quote has.
func Wrap(v *Verified, secret Secret) (WrappedKey, error) {
	if v == nil || len(v.transport) == 0 {
		return WrappedKey{}, errors.New("wrap: the evidence was not accepted")
	}
	if len(secret) != SecretSize {
		return WrappedKey{}, fmt.Errorf("wrap: secret has %d bytes, want %d", len(secret), SecretSize)
	}
	policy, err := policyPCR(v.bank, v.pcrs)
	if err != nil {
		return WrappedKey{}, fmt.Errorf("wrap: %w", err)
	}
	transport, err := decodePublic("transport key", v.transport)
	if err != nil {
		return WrappedKey{}, fmt.Errorf("wrap: %w", err)
	}
	key, err := tpm2.ImportEncapsulationKey(transport)
	if err != nil {
		return WrappedKey{}, fmt.Errorf("wrap: transport key: %w", err)
	}
	seed := make([]byte, sha256.Size)
	rand.Read(seed)
	// For a KEYEDHASH object, unique is the digest of seed and data (Part 1, "Object Structure Elements").
	unique := sha256.Sum256(append(append([]byte{}, seed...), secret...))
	public := tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgKeyedHash,
		NameAlg: tpm2.TPMAlgSHA256,
		// userWithAuth and adminWithPolicy: nothing is done with the object
		// but what the policy allows. noDA: a wrong policy is no attempt at a
		// password.
		ObjectAttributes: tpm2.TPMAObject{NoDA: true, AdminWithPolicy: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: unique[:]}),
	}
	sensitive := tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgKeyedHash,
		SeedValue:     tpm2.TPM2BDigest{Buffer: seed},
		Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: secret}),
	}
	area := tpm2.Marshal(public)
	duplicate, encSeed, err := tpm2.CreateDuplicate(rand.Reader, key, nameOf(area), tpm2.Marshal(sensitive))
	if err != nil {
		return WrappedKey{}, fmt.Errorf("wrap: %w", err)
	}
	return WrappedKey{Public: area, Duplicate: duplicate, Seed: encSeed}, nil
}
