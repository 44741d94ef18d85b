package bundle

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// StatementType is the DSSE payload type of an in-toto statement.
const StatementType = "application/vnd.in-toto+json"

// The parts of a bundle with a statement, in the order in which they are written.
type attestation struct {
	MediaType            string               `json:"mediaType"`
	VerificationMaterial verificationMaterial `json:"verificationMaterial"`
	Envelope             envelope             `json:"dsseEnvelope"`
}

// envelope is a DSSE envelope, version 1.
type envelope struct {
	Payload     []byte              `json:"payload"`
	PayloadType string              `json:"payloadType"`
	Signatures  []envelopeSignature `json:"signatures"`
}

// envelopeSignature has no key id, as a bundle names its key elsewhere.
type envelopeSignature struct {
	Sig []byte `json:"sig"`
}

// PreAuth returns what is signed of a statement: its DSSE pre-authentication
// encoding (DSSE v1, protocol.md).
func PreAuth(statement []byte) []byte {
	b := []byte("DSSEv1 " + strconv.Itoa(len(StatementType)) + " " + StatementType + " " + strconv.Itoa(len(statement)) + " ")
	return append(b, statement...)
}

// EncodeStatement returns a bundle with a statement and a signature (ASN.1
// DER) over the SHA-256 of its PreAuth by key.
func EncodeStatement(statement, signature []byte, key *ecdsa.PublicKey) ([]byte, error) {
	hint, err := Hint(key)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(attestation{
		MediaType:            MediaType,
		VerificationMaterial: verificationMaterial{PublicKey: publicKeyIdentifier{Hint: hint}},
		Envelope: envelope{
			Payload: statement, PayloadType: StatementType,
			Signatures: []envelopeSignature{{Sig: signature}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("encode bundle: %w", err)
	}
	if len(b) >= MaxStatementSize {
		return nil, fmt.Errorf("encode bundle: %d bytes, at most %d allowed", len(b), MaxStatementSize)
	}
	return append(b, '\n'), nil
}

// VerifyStatement returns the in-toto statement of a bundle that the key in
// pubPEM has signed. It checks that
//   - the bundle has exactly the fields of the format, each once, none unknown,
//   - the payload is an in-toto statement by its type,
//   - there is one signature, over the statement and its type, by the key.
//
// What the statement says, and about which files, is for the caller to check:
// any statement that the key ever signed verifies.
func VerifyStatement(bundle, pubPEM []byte) ([]byte, error) {
	key, err := PublicKey(pubPEM)
	if err != nil {
		return nil, fmt.Errorf("verify bundle: %w", err)
	}
	statement, signature, err := decodeStatement(bundle)
	if err != nil {
		return nil, fmt.Errorf("verify bundle: %w", err)
	}
	digest := sha256.Sum256(PreAuth(statement))
	if !ecdsa.VerifyASN1(key, digest[:], signature) {
		return nil, errors.New("verify bundle: signature is not by the given key")
	}
	return statement, nil
}

func decodeStatement(b []byte) (statement, signature []byte, err error) {
	if len(b) > MaxStatementSize {
		return nil, nil, fmt.Errorf("%d bytes, at most %d allowed", len(b), MaxStatementSize)
	}
	content, err := decodeMaterial(b, "dsseEnvelope")
	if err != nil {
		return nil, nil, err
	}
	e, err := object(content, "payload", "payloadType", "signatures")
	if err != nil {
		return nil, nil, fmt.Errorf("dsseEnvelope: %w", err)
	}
	kind, err := text(e["payloadType"])
	if err != nil {
		return nil, nil, fmt.Errorf("payloadType: %w", err)
	}
	if kind != StatementType {
		return nil, nil, fmt.Errorf("payloadType is %q, want %q", kind, StatementType)
	}
	if statement, err = binary(e["payload"]); err != nil {
		return nil, nil, fmt.Errorf("payload: %w", err)
	}
	var signatures []json.RawMessage
	if err := json.Unmarshal(e["signatures"], &signatures); err != nil || len(signatures) != 1 {
		return nil, nil, fmt.Errorf("signatures: got %d, want 1", len(signatures))
	}
	s, err := object(signatures[0], "sig")
	if err != nil {
		return nil, nil, fmt.Errorf("signatures: %w", err)
	}
	if signature, err = binary(s["sig"]); err != nil {
		return nil, nil, fmt.Errorf("sig: %w", err)
	}
	return statement, signature, nil
}
