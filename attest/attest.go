// Package attest appraises the evidence that a machine's TPM gives of how it
// booted. It is pure: Verify takes Evidence, the Challenge that it answers,
// what is Known of the machine, and a Policy, and returns a Result that lists
// every failed check. It does no I/O. A check that could not run has failed,
// and only an accepted Result yields the Verified for which Wrap protects a
// secret.
//
// The specifications are the TPM 2.0 Library (TCG), the TCG PC Client Platform
// Firmware Profile (PFP) for event logs, and RFC 9334 for the words.
package attest

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"log/slog"
)

// Secret is bytes that must never reach a log, an error or a terminal. It
// prints as REDACTED; its JSON form is base64, for encrypted payloads only.
type Secret []byte

// String hides the secret.
func (Secret) String() string { return "REDACTED" }

// GoString hides the secret.
func (Secret) GoString() string { return "REDACTED" }

// Format hides the secret from every fmt verb.
func (Secret) Format(f fmt.State, _ rune) { f.Write([]byte("REDACTED")) }

// LogValue hides the secret from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue("REDACTED") }

// WrappedKey is a TPM object that only one transport key can import and only
// one PCR state can unseal.
type WrappedKey struct {
	Public    []byte `json:"public"`    // TPM2B_PUBLIC contents: KEYEDHASH with authPolicy PolicyPCR
	Duplicate []byte `json:"duplicate"` // TPM2B_PRIVATE contents for TPM2_Import
	Seed      []byte `json:"seed"`      // TPM2B_ENCRYPTED_SECRET contents for TPM2_Import
}

func activationProof(secret []byte, challengeID string, nonce, akPublic []byte) []byte {
	m := hmac.New(sha256.New, secret)
	for _, f := range [][]byte{[]byte("sealift activation v1"), []byte(challengeID), nonce, akPublic} {
		fmt.Fprintf(m, "%d:", len(f))
		m.Write(f)
	}
	return m.Sum(nil)
}
