package sign

import (
	"crypto"
	"crypto/ecdsa"
	"io"

	"github.com/sigstore/sigstore/pkg/signature"
)

// repeatable signs by RFC 6979: the same key gives the same signature over the
// same message. An installation medium holds a signature, and its digest
// stands in a manifest; with a random signature no two builds would have the
// same manifest. For verifiers it is a signature like any other.
type repeatable struct {
	*signature.ECDSASigner
	key *ecdsa.PrivateKey
}

// SignMessage implements signature.Signer.
func (r repeatable) SignMessage(message io.Reader, opts ...signature.SignOption) ([]byte, error) {
	digest, hash, err := signature.ComputeDigestForSigning(message, crypto.SHA256, []crypto.Hash{crypto.SHA256}, opts...)
	if err != nil {
		return nil, err
	}
	return r.key.Sign(nil, digest, hash) // without randomness it is RFC 6979's
}
