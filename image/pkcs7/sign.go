// Package pkcs7 makes and checks the form of PKCS#7 SignedData (RFC 2315) that
// UEFI firmware knows: one signer, SHA-256, RSA with PKCS#1 v1.5 padding, the
// signer's certificate enclosed. Signing depends on nothing but its arguments:
// there is no clock and no randomness in it, so that equal input gives equal
// bytes. Package pe uses it for Authenticode and package efivar for
// authenticated variables.
package pkcs7

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Object identifiers of RFC 2315, PKCS#9 (RFC 2985) and their algorithms.
var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSigningTime   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSA           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidSHA256RSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
)

// Data is the content type of bytes without further structure (RFC 2315, 8).
func Data() asn1.ObjectIdentifier { return slices.Clone(oidData) }

// Signer is a key and its certificate. Both are required.
type Signer struct {
	Key         crypto.Signer // RSA; any crypto.Signer that does PKCS#1 v1.5 will do, so it may be in an HSM
	Certificate *x509.Certificate
	// Time is the signing-time attribute. With the zero Time there are no
	// signed attributes at all, and the signature is over the content itself.
	Time time.Time
}

// Check reports whether the signer can be used: an RSA key of at least 2048
// bits that belongs to the certificate.
func (s *Signer) Check() error {
	if s == nil || s.Key == nil || s.Certificate == nil {
		return errors.New("signer: key and certificate are required")
	}
	pub, ok := s.Key.Public().(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("signer: key is %T, want an RSA key, the only kind all firmware verifies", s.Key.Public())
	}
	if n := pub.N.BitLen(); n < 2048 || n > 4096 {
		return fmt.Errorf("signer: RSA key has %d bits, want 2048 to 4096", n)
	}
	if !pub.Equal(s.Certificate.PublicKey) {
		return fmt.Errorf("signer: the certificate %q is not of this key", s.Certificate.Subject)
	}
	return nil
}

// SignAttached returns SignedData in a ContentInfo that holds content, one DER
// element of the given type.
func (s *Signer) SignAttached(contentType asn1.ObjectIdentifier, content []byte) ([]byte, error) {
	in := cryptobyte.String(content)
	var value cryptobyte.String
	var tag cbasn1.Tag
	// The digest is over the content's value, without tag and length (RFC 2315, 9.3).
	if !in.ReadAnyASN1(&value, &tag) || !in.Empty() {
		return nil, errors.New("sign: content is not one DER element")
	}
	signed, err := s.signedData(contentType, content, value)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddBytes(signed)
		})
	})
	return b.Bytes()
}

// SignDetached returns SignedData, without a ContentInfo around it, over a
// message that is not enclosed.
func (s *Signer) SignDetached(message []byte) ([]byte, error) {
	return s.signedData(oidData, nil, message)
}

func (s *Signer) signedData(contentType asn1.ObjectIdentifier, content, message []byte) ([]byte, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	digest := sha256.Sum256(message)
	tbs := digest
	var attributes []byte
	if !s.Time.IsZero() {
		set, err := signedAttributes(contentType, digest[:], s.Time)
		if err != nil {
			return nil, err
		}
		// Signed is the SET OF, enclosed is the same with an implicit tag (RFC 2315, 9.3).
		tbs = sha256.Sum256(set)
		attributes = set
		attributes[0] = byte(cbasn1.Tag(0).ContextSpecific().Constructed())
	}
	sig, err := s.Key.Sign(nil, tbs[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign with the key of %q: %w", s.Certificate.Subject, err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { addAlgorithm(b, oidSHA256) })
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(contentType)
			if content != nil {
				b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
					b.AddBytes(content)
				})
			}
		})
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddBytes(s.Certificate.Raw)
		})
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddBytes(s.Certificate.RawIssuer)
					b.AddASN1BigInt(s.Certificate.SerialNumber)
				})
				addAlgorithm(b, oidSHA256)
				b.AddBytes(attributes)
				addAlgorithm(b, oidRSA)
				b.AddASN1OctetString(sig)
			})
		})
	})
	return b.Bytes()
}

// signedAttributes returns the DER SET OF contentType, signingTime and
// messageDigest, in DER's order: by encoded bytes.
func signedAttributes(contentType asn1.ObjectIdentifier, digest []byte, at time.Time) ([]byte, error) {
	at = at.UTC().Truncate(time.Second)
	if y := at.Year(); y < 1950 || y > 2049 {
		return nil, fmt.Errorf("sign: signing time %s is outside of UTCTime's years 1950 to 2049", at.Format(time.RFC3339))
	}
	attribute := func(oid asn1.ObjectIdentifier, add func(*cryptobyte.Builder)) ([]byte, error) {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(cbasn1.SET, add)
		})
		return b.Bytes()
	}
	a1, err1 := attribute(oidContentType, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(contentType) })
	a2, err2 := attribute(oidSigningTime, func(b *cryptobyte.Builder) { b.AddASN1UTCTime(at) })
	a3, err3 := attribute(oidMessageDigest, func(b *cryptobyte.Builder) { b.AddASN1OctetString(digest) })
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("sign: encode attributes: %w", err)
	}
	all := [][]byte{a1, a2, a3}
	slices.SortFunc(all, bytes.Compare)
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
		for _, a := range all {
			b.AddBytes(a)
		}
	})
	return b.Bytes()
}

func addAlgorithm(b *cryptobyte.Builder, oid asn1.ObjectIdentifier) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1NULL()
	})
}
