package audit

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sealift/sealift/image/manifest"
)

// DSSE payload types of a HeadStatement.
const (
	// HeadType is that of one that ends an export: nothing was left out at that time.
	HeadType = "application/vnd.sealift.audit-head.v1+json"
	// SeenType is that of one that the service keeps for itself: it had read as far
	// at that time, and there may have been more. It ends no export.
	SeenType = "application/vnd.sealift.audit-seen.v1+json"
)

// maxSkip is how many statements a log may lack. The service itself leaves none out;
// past this, whoever made up an entry could leave no number for the next statement.
const maxSkip = 1 << 20

// maxEnvelope bounds an encoded Envelope of this package's statements, bytes.
const maxEnvelope = 64 << 10

// Envelope is a DSSE envelope (DSSE v1, envelope.md) with one signature, ECDSA
// P-256 with SHA-256 over the pre-authentication encoding (protocol.md).
type Envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []Signature `json:"signatures"`
}

// Signature is the signature of an Envelope.
type Signature struct {
	KeyID string `json:"keyid"` // SHA-256 of the SubjectPublicKeyInfo in hex; a hint
	Sig   []byte `json:"sig"`   // ASN.1 DER
}

// HeadStatement is what the service signs of its log: that it ended so at that
// time (HeadType), and went on from all heads that the service signed before.
type HeadStatement struct {
	Head Head      `json:"head"`
	Time time.Time `json:"time"`
	// Policy is what the log says of policies up to Head.
	Policy PolicyMark `json:"policy,omitzero"`
	// Restored is when the store was last filled from a backup: from then on its
	// log need not go on from heads that were signed before. Unset: never.
	Restored time.Time `json:"restored,omitzero"`
}

// PolicyMark is what a log says of policies up to some entry: what the last entry
// of KindPolicy says. The zero PolicyMark is that of a log that has none.
type PolicyMark struct {
	Seq     int64           `json:"seq"`
	Hash    manifest.SHA256 `json:"hash,omitzero"`  // of that entry
	Name    string          `json:"name,omitempty"` // empty: policies were turned off
	Version int             `json:"version,omitempty"`
	Digest  manifest.SHA256 `json:"digest,omitzero"`
	// Statement is the SHA-256 of the signed statement that the entry belongs to.
	// Unset: it has none, as entries of earlier versions.
	Statement manifest.SHA256 `json:"statement,omitzero"`
	// Counter is the highest of any entry so far. 0: none was ever signed.
	Counter int64 `json:"counter,omitempty"`
}

// Note takes an entry, which must be the one after those that m is of. An entry
// that counts its statement back, or on by more than maxSkip, was not written by the
// service.
func (m *PolicyMark) Note(e Entry) error {
	if e.Kind != KindPolicy {
		return nil
	}
	var p Policy
	if err := json.Unmarshal(e.Data, &p); err != nil {
		return fmt.Errorf("audit entry %d (%s): %w", e.Seq, e.Kind, err)
	}
	next := PolicyMark{Seq: e.Seq, Hash: e.Hash, Name: p.Name, Version: p.Version, Digest: p.Digest, Statement: p.Statement, Counter: m.Counter}
	if !p.Statement.IsZero() {
		if p.Counter <= m.Counter || p.Counter-m.Counter > maxSkip {
			return fmt.Errorf("audit entry %d (%s): statement %d comes after statement %d", e.Seq, e.Kind, p.Counter, m.Counter)
		}
		next.Counter = p.Counter
	}
	*m = next
	return nil
}

// keyID names a public key as the service's start entry does.
func keyID(pub *ecdsa.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("key id: %w", err)
	}
	d := sha256.Sum256(der)
	return hex.EncodeToString(d[:]), nil
}

// preAuth is the DSSE pre-authentication encoding.
func preAuth(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

// Sign encodes v as JSON and signs it with an ECDSA P-256 key, the release key of
// the service. The payload type keeps apart what the key signs.
func Sign(key crypto.Signer, payloadType string, v any) (*Envelope, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("sign %s: key is %T, want ECDSA P-256", payloadType, key.Public())
	}
	id, err := keyID(pub)
	if err != nil {
		return nil, err
	}
	payload, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", payloadType, err)
	}
	digest := sha256.Sum256(preAuth(payloadType, payload))
	sig, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", payloadType, err)
	}
	return &Envelope{PayloadType: payloadType, Payload: payload, Signatures: []Signature{{KeyID: id, Sig: sig}}}, nil
}

// Open decodes the payload of e into v, a pointer to its zero value, if pub signed
// it as that type.
//
// What is checked, in this order: the payload type, that there is exactly one
// signature, that it is pub's, and that the payload is exactly what encodes v.
func (e *Envelope) Open(pub *ecdsa.PublicKey, payloadType string, v any) error {
	switch {
	case e == nil:
		return errors.New("it is not signed")
	case pub == nil || pub.Curve != elliptic.P256():
		return errors.New("the verification key is not ECDSA P-256")
	case e.PayloadType != payloadType:
		return fmt.Errorf("it is signed as %q, want %q", e.PayloadType, payloadType)
	case len(e.Signatures) != 1:
		return fmt.Errorf("it has %d signatures, want 1", len(e.Signatures))
	}
	digest := sha256.Sum256(preAuth(e.PayloadType, e.Payload))
	if !ecdsa.VerifyASN1(pub, digest[:], e.Signatures[0].Sig) {
		want, err := keyID(pub)
		if err != nil {
			return err
		}
		if got := e.Signatures[0].KeyID; got != want {
			return fmt.Errorf("it is signed by another key, %.64q, want %s", got, want)
		}
		return fmt.Errorf("the signature is not that of key %s: it was altered", want)
	}
	return decodeExactly(e.Payload, v)
}

// SignedBy returns the id of the key that e says it is signed by, which proves
// nothing.
func (e *Envelope) SignedBy() string {
	if len(e.Signatures) != 1 {
		return ""
	}
	return e.Signatures[0].KeyID
}

// ParseEnvelope reads an Envelope as AppendSigned writes it, without its newline. Its
// signature is not verified.
func ParseEnvelope(line []byte) (*Envelope, error) {
	if len(line) > maxEnvelope {
		return nil, fmt.Errorf("a signed statement of %d bytes, at most %d allowed", len(line), maxEnvelope)
	}
	e := new(Envelope)
	if err := decodeExactly(line, e); err != nil {
		return nil, fmt.Errorf("not a signed statement: %w", err)
	}
	return e, nil
}

// AppendSigned appends e as one line: what ends an exported log.
func AppendSigned(b []byte, e *Envelope) ([]byte, error) {
	line, err := json.Marshal(e)
	if err != nil {
		return b, fmt.Errorf("encode the signed head: %w", err)
	}
	return append(append(b, line...), '\n'), nil
}

// decodeExactly reads b as the JSON of v, and refuses every other spelling than
// the encoder's.
func decodeExactly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	again, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, b) {
		return errors.New("it is not spelled as it was written")
	}
	return nil
}

// UnverifiedHead returns what e says, if it is of a HeadStatement, before anybody has
// verified who signed it.
func (e *Envelope) UnverifiedHead() (HeadStatement, error) {
	var s HeadStatement
	if e.PayloadType != HeadType {
		return s, fmt.Errorf("it is signed as %q, want %q", e.PayloadType, HeadType)
	}
	err := decodeExactly(e.Payload, &s)
	return s, err
}
