// Package bundle reads and writes the sigstore bundles of an image: format
// version 0.3, signed by a key that the verifier has (ECDSA P-256, SHA-256), no
// transparency log entry. A bundle is a signature over a file (Verify) or holds
// a signed in-toto statement (VerifyStatement). The package needs nothing but
// the standard library, because the agent verifies with it before it writes to a
// disk. The bundles are those that `cosign verify-blob --key` and `cosign
// verify-blob-attestation --key` accept.
package bundle

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
)

// MediaType is that of the one bundle format that is read and written.
const MediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// Limits of what is verified, in bytes.
const (
	MaxSize          = 16 << 10 // bundle over a file
	MaxStatementSize = 16 << 20 // bundle with a statement
	maxPublicKey     = 4 << 10
)

const algorithmSHA256 = "SHA2_256"

// PublicKey reads an ECDSA P-256 public key, PKIX in one PEM block.
func PublicKey(pubPEM []byte) (*ecdsa.PublicKey, error) {
	if len(pubPEM) > maxPublicKey {
		return nil, fmt.Errorf("public key: %d bytes, at most %d allowed", len(pubPEM), maxPublicKey)
	}
	block, rest := pem.Decode(pubPEM)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("public key: it is not exactly one PEM block \"PUBLIC KEY\"")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("public key: it is %T, want ECDSA", parsed)
	}
	if key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("public key: curve is %s, want P-256", key.Params().Name)
	}
	return key, nil
}

// Hint returns the name under which a bundle mentions a key: the SHA-256 of
// its PKIX form in base64, as sigstore's clients make it. A verifier that has
// one key takes no notice of it.
func Hint(key *ecdsa.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("public key: %w", err)
	}
	digest := sha256.Sum256(der)
	return base64.StdEncoding.EncodeToString(digest[:]), nil
}

// The parts of a bundle, in the order in which they are written.
type document struct {
	MediaType            string               `json:"mediaType"`
	VerificationMaterial verificationMaterial `json:"verificationMaterial"`
	MessageSignature     messageSignature     `json:"messageSignature"`
}

type verificationMaterial struct {
	PublicKey publicKeyIdentifier `json:"publicKey"`
}

type publicKeyIdentifier struct {
	Hint string `json:"hint"`
}

type messageSignature struct {
	MessageDigest messageDigest `json:"messageDigest"`
	Signature     []byte        `json:"signature"`
}

type messageDigest struct {
	Algorithm string `json:"algorithm"`
	Digest    []byte `json:"digest"`
}

// Encode returns a bundle for a signature (ASN.1 DER) over the SHA-256 of
// message by key.
func Encode(message, signature []byte, key *ecdsa.PublicKey) ([]byte, error) {
	hint, err := Hint(key)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(message)
	b, err := json.Marshal(document{
		MediaType:            MediaType,
		VerificationMaterial: verificationMaterial{PublicKey: publicKeyIdentifier{Hint: hint}},
		MessageSignature: messageSignature{
			MessageDigest: messageDigest{Algorithm: algorithmSHA256, Digest: digest[:]},
			Signature:     signature,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("encode bundle: %w", err)
	}
	return append(b, '\n'), nil
}

// Verify checks that the bundle is a good signature over message by the key in
// pubPEM. It checks that
//   - the bundle has exactly the fields of the format, each once, none unknown,
//   - it names the digest of message,
//   - the signature over that digest is by the key.
//
// Whatever else a bundle could prove (time, presence in a log) is refused
// rather than ignored.
func Verify(message, bundle, pubPEM []byte) error {
	key, err := PublicKey(pubPEM)
	if err != nil {
		return fmt.Errorf("verify bundle: %w", err)
	}
	d, err := decode(bundle)
	if err != nil {
		return fmt.Errorf("verify bundle: %w", err)
	}
	digest := sha256.Sum256(message)
	if got := d.MessageSignature.MessageDigest.Digest; !bytes.Equal(got, digest[:]) {
		return fmt.Errorf("verify bundle: it is for a message with digest %x, got one with %x", got, digest)
	}
	if !ecdsa.VerifyASN1(key, digest[:], d.MessageSignature.Signature) {
		return errors.New("verify bundle: signature is not by the given key")
	}
	return nil
}

func decode(b []byte) (*document, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%d bytes, at most %d allowed", len(b), MaxSize)
	}
	content, err := decodeMaterial(b, "messageSignature")
	if err != nil {
		return nil, err
	}
	var d document
	m := &d.MessageSignature
	signature, err := object(content, "messageDigest", "signature")
	if err != nil {
		return nil, fmt.Errorf("messageSignature: %w", err)
	}
	if m.Signature, err = binary(signature["signature"]); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	digest, err := object(signature["messageDigest"], "algorithm", "digest")
	if err != nil {
		return nil, fmt.Errorf("messageDigest: %w", err)
	}
	if m.MessageDigest.Algorithm, err = text(digest["algorithm"]); err != nil {
		return nil, fmt.Errorf("algorithm: %w", err)
	}
	if m.MessageDigest.Algorithm != algorithmSHA256 {
		return nil, fmt.Errorf("algorithm is %q, want %q", m.MessageDigest.Algorithm, algorithmSHA256)
	}
	if m.MessageDigest.Digest, err = binary(digest["digest"]); err != nil {
		return nil, fmt.Errorf("digest: %w", err)
	}
	return &d, nil
}

// decodeMaterial checks what all bundles have in common and returns the one
// field in which they differ.
func decodeMaterial(b []byte, content string) (json.RawMessage, error) {
	top, err := object(b, "mediaType", "verificationMaterial", content)
	if err != nil {
		return nil, err
	}
	media, err := text(top["mediaType"])
	if err != nil {
		return nil, fmt.Errorf("mediaType: %w", err)
	}
	if media != MediaType {
		return nil, fmt.Errorf("mediaType is %q, want %q", media, MediaType)
	}
	material, err := object(top["verificationMaterial"], "publicKey")
	if err != nil {
		return nil, fmt.Errorf("verificationMaterial: %w", err)
	}
	identifier, err := object(material["publicKey"], "hint")
	if err != nil {
		return nil, fmt.Errorf("publicKey: %w", err)
	}
	if _, err := text(identifier["hint"]); err != nil {
		return nil, fmt.Errorf("hint: %w", err)
	}
	return top[content], nil
}

// object reads a JSON object that has each of the named fields exactly once
// and no other. encoding/json alone would let duplicates and another case pass.
func object(b []byte, names ...string) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	fields := make(map[string]json.RawMessage)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("malformed JSON: %w", err)
		}
		name, ok := t.(string)
		if !ok || !slices.Contains(names, name) {
			return nil, fmt.Errorf("unknown field %.40q", fmt.Sprint(t))
		}
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("field %q is there twice", name)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, fmt.Errorf("field %q: %w", name, err)
		}
		fields[name] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("malformed JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("data behind the JSON object")
	}
	for _, name := range names {
		if _, ok := fields[name]; !ok {
			return nil, fmt.Errorf("no field %q", name)
		}
	}
	return fields, nil
}

func text(b json.RawMessage) (string, error) {
	if len(b) == 0 || b[0] != '"' {
		return "", errors.New("not a string")
	}
	var s string
	err := json.Unmarshal(b, &s)
	return s, err
}

func binary(b json.RawMessage) ([]byte, error) {
	s, err := text(b)
	if err != nil {
		return nil, err
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}
