// Package sign signs manifests, SBOMs and provenance with a key loaded by
// sigstore: a file, a key management service or a PKCS #11 token (Load). A Signer
// makes sigstore bundles; package image/sign/bundle verifies them with the
// standard library alone.
//
// Bundles are put together here and not by sigstore-go: a signature by a key is
// a few fixed fields, and sigstore-go links the clients of Fulcio, Rekor and TUF
// for it. Its verifier and cosign are the oracles in the tests.
package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/sealift/sealift/image/sign/bundle"
)

// BundleSuffix is what a bundle's file name has more than that of the signed file.
const BundleSuffix = ".sigstore.json"

// Signer signs with one ECDSA P-256 key.
type Signer struct {
	signer signature.Signer
	public *ecdsa.PublicKey
	close  func() error // may be nil
}

// New returns a Signer for any signer that sigstore can load: a file, a
// PKCS #11 token or a key management service.
func New(s signature.Signer) (*Signer, error) {
	if s == nil {
		return nil, errors.New("image signer: no key")
	}
	key, err := s.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("image signer: public key: %w", err)
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("image signer: key is %T, want ECDSA P-256", key)
	}
	if public.Curve != elliptic.P256() {
		return nil, fmt.Errorf("image signer: key is on curve %s, want P-256", public.Params().Name)
	}
	return &Signer{signer: s, public: public}, nil
}

// FromKey returns a Signer for a private key in memory. Its signatures are
// repeatable.
func FromKey(key *ecdsa.PrivateKey) (*Signer, error) {
	s, err := signature.LoadECDSASigner(key, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("image signer: %w", err)
	}
	return New(repeatable{s, key})
}

// maxKeyFile bounds a key file, in bytes.
const maxKeyFile = 64 << 10

// FromFile returns a Signer for a private key in a PEM file. password is
// called if the file is encrypted; it may be nil. Its signatures are repeatable.
func FromFile(path string, password func() ([]byte, error)) (*Signer, error) {
	s, err := fromFile(path, password)
	if err != nil {
		return nil, fmt.Errorf("image signer: load %s: %w", path, err)
	}
	return s, nil
}

func fromFile(path string, password func() ([]byte, error)) (*Signer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, fmt.Errorf("it is not a regular file of at most %d bytes", maxKeyFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	private, err := cryptoutils.UnmarshalPEMToPrivateKey(b, func(bool) ([]byte, error) {
		if password == nil {
			return nil, errors.New("the key file is encrypted and there is no password")
		}
		return password()
	})
	if err != nil {
		return nil, err
	}
	key, ok := private.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key is %T, want ECDSA P-256", private)
	}
	return FromKey(key)
}

// Public returns the key that verifies.
func (s *Signer) Public() *ecdsa.PublicKey { return s.public }

// PublicPEM returns the key that verifies, PKIX in PEM.
func (s *Signer) PublicPEM() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(s.public)
	if err != nil {
		return nil, fmt.Errorf("image signer: public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// Close lets go of what the key is in. The Signer is not usable after it.
func (s *Signer) Close() error {
	if s.close == nil {
		return nil
	}
	return s.close()
}

// Sign returns the bundle for message. Where the key is not in memory (FromKey),
// ECDSA signatures are randomised, so two bundles for one message differ.
func (s *Signer) Sign(ctx context.Context, message []byte) ([]byte, error) {
	sig, err := s.sign(ctx, message)
	if err != nil {
		return nil, err
	}
	return bundle.Encode(message, sig, s.public)
}

// SignStatement returns a bundle that holds an in-toto statement in a DSSE
// envelope.
func (s *Signer) SignStatement(ctx context.Context, statement []byte) ([]byte, error) {
	sig, err := s.sign(ctx, bundle.PreAuth(statement))
	if err != nil {
		return nil, err
	}
	return bundle.EncodeStatement(statement, sig, s.public)
}

// sign returns an ASN.1 signature that verifies. What a token or a service
// answers is not trusted to be one.
func (s *Signer) sign(ctx context.Context, message []byte) ([]byte, error) {
	sig, err := s.signer.SignMessage(bytes.NewReader(message), options.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	digest := sha256.Sum256(message)
	if !ecdsa.VerifyASN1(s.public, digest[:], sig) {
		return nil, errors.New("sign: the signature that was made does not verify with the signer's public key")
	}
	return sig, nil
}
