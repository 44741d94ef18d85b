package api

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/sealift/sealift/attest"
)

// TransportSecretSize is the length of a release's transport secret, bytes.
const TransportSecretSize = 32

// MaxOutcome bounds ConfirmRequest.Outcome, bytes.
const MaxOutcome = 512

// KeyID names a public key: the hex SHA-256 of its SubjectPublicKeyInfo.
func KeyID(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("key id: %w", err)
	}
	d := sha256.Sum256(der)
	return hex.EncodeToString(d[:]), nil
}

// preAuth is the DSSE pre-authentication encoding, protocol.md of DSSE v1.
func preAuth(payloadType string, payload []byte) []byte {
	b := []byte("DSSEv1 " + strconv.Itoa(len(payloadType)) + " " + payloadType + " " + strconv.Itoa(len(payload)) + " ")
	return append(b, payload...)
}

// SignRelease encodes r and signs it with an ECDSA P-256 key.
func SignRelease(key crypto.Signer, r *Release) (*Envelope, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("sign release %s: key is %T, want ECDSA P-256", r.ID, key.Public())
	}
	id, err := KeyID(pub)
	if err != nil {
		return nil, fmt.Errorf("sign release %s: %w", r.ID, err)
	}
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode release %s: %w", r.ID, err)
	}
	digest := sha256.Sum256(preAuth(ReleaseType, payload))
	sig, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign release %s: %w", r.ID, err)
	}
	return &Envelope{PayloadType: ReleaseType, Payload: payload, Signatures: []Signature{{KeyID: id, Sig: sig}}}, nil
}

// VerifyRelease returns the release in e if it was signed by pub, an ECDSA
// P-256 key. The caller must still compare ChallengeID and Machine with its
// own: any release that pub ever signed verifies.
//
// What is checked, in this order: the payload type, that there is exactly one
// signature, the signature over the DSSE pre-authentication encoding, and that
// the payload is one JSON document. The key id is a hint and not
// compared.
func VerifyRelease(e *Envelope, pub *ecdsa.PublicKey) (*Release, error) {
	if e == nil {
		return nil, errors.New("release envelope: none")
	}
	if pub == nil || pub.Curve != elliptic.P256() {
		return nil, errors.New("release envelope: the verification key is not ECDSA P-256")
	}
	if e.PayloadType != ReleaseType {
		return nil, fmt.Errorf("release envelope: payload type is %q, want %q", e.PayloadType, ReleaseType)
	}
	if len(e.Signatures) != 1 {
		return nil, fmt.Errorf("release envelope: got %d signatures, want 1", len(e.Signatures))
	}
	digest := sha256.Sum256(preAuth(e.PayloadType, e.Payload))
	if !ecdsa.VerifyASN1(pub, digest[:], e.Signatures[0].Sig) {
		return nil, errors.New("release envelope: the signature is not of the release key")
	}
	var r Release
	if err := decodeOne(e.Payload, &r); err != nil {
		return nil, fmt.Errorf("release envelope: %w", err)
	}
	return &r, nil
}

// sealer returns the AEAD under which a release's secrets are sealed.
func sealer(transport attest.Secret, releaseID string) (cipher.AEAD, error) {
	if len(transport) != TransportSecretSize {
		return nil, fmt.Errorf("release %s: transport secret has %d bytes, want %d", releaseID, len(transport), TransportSecretSize)
	}
	key, err := hkdf.Key(sha256.New, transport, nil, "sealift release v1 "+releaseID, 32)
	if err != nil {
		return nil, fmt.Errorf("release %s: derive key: %w", releaseID, err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", releaseID, err)
	}
	return cipher.NewGCM(block)
}

// SealSecrets returns s as Release.Sealed of the release with that id.
func SealSecrets(transport attest.Secret, releaseID string, s *Secrets) ([]byte, error) {
	aead, err := sealer(transport, releaseID)
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("release %s: encode secrets: %w", releaseID, err)
	}
	defer clear(plain)
	nonce := make([]byte, aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("release %s: %w", releaseID, err)
	}
	return aead.Seal(nonce, nonce, plain, []byte(releaseID)), nil
}

// OpenSecrets decrypts r.Sealed with the transport secret that the TPM
// unsealed from r.Key. r must come from VerifyRelease.
func OpenSecrets(transport attest.Secret, r *Release) (*Secrets, error) {
	aead, err := sealer(transport, r.ID)
	if err != nil {
		return nil, err
	}
	if len(r.Sealed) < aead.NonceSize() {
		return nil, fmt.Errorf("release %s: sealed secrets have %d bytes, want at least %d", r.ID, len(r.Sealed), aead.NonceSize())
	}
	nonce, box := r.Sealed[:aead.NonceSize()], r.Sealed[aead.NonceSize():]
	plain, err := aead.Open(nil, nonce, box, []byte(r.ID))
	if err != nil {
		return nil, fmt.Errorf("release %s: the sealed secrets do not open with this transport secret", r.ID)
	}
	defer clear(plain)
	var s Secrets
	if err := decodeOne(plain, &s); err != nil {
		// The decoder's error may quote what it read.
		return nil, fmt.Errorf("release %s: the secrets are not in the form of protocol version %d", r.ID, Version)
	}
	return &s, nil
}

// ConfirmProof returns ConfirmRequest.Proof: HMAC-SHA256 under the transport
// secret over a domain, the release id and the outcome, each with its length.
func ConfirmProof(transport attest.Secret, releaseID, outcome string) []byte {
	m := hmac.New(sha256.New, transport)
	for _, f := range []string{"sealift confirm v1", releaseID, outcome} {
		fmt.Fprintf(m, "%d:%s", len(f), f)
	}
	return m.Sum(nil)
}

// decodeOne decodes exactly one document. Releases are decoded without
// DisallowUnknownFields: they are authenticated, and a service that was
// upgraded must not lock out the agents that are older.
func decodeOne(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decode JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("decode JSON: data after the document")
	}
	return nil
}
