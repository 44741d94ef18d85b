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
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxSize bounds encoded SignedData, in bytes.
const MaxSize = 64 << 10

// maxCertificates bounds the certificates enclosed in SignedData.
const maxCertificates = 8

// Untrusted is parsed SignedData of which nothing has been verified.
type Untrusted struct {
	ContentType asn1.ObjectIdentifier
	Content     []byte // the enclosed DER element; nil if detached

	// Certificates are those enclosed. One of them may be the signer's.
	Certificates []*x509.Certificate

	issuer     []byte
	serial     *big.Int
	attributes []byte // as SET OF; nil if there are none
	signature  []byte
}

// ParseAttached reads SignedData in a ContentInfo.
func ParseAttached(der []byte) (*Untrusted, error) {
	if len(der) > MaxSize {
		return nil, fmt.Errorf("parse PKCS#7: %d bytes, at most %d allowed", len(der), MaxSize)
	}
	in := cryptobyte.String(der)
	var info, explicit cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, errors.New("parse PKCS#7: not one DER sequence")
	}
	if !info.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidSignedData) {
		return nil, fmt.Errorf("parse PKCS#7: content is %v, want SignedData %v", oid, oidSignedData)
	}
	if !info.ReadASN1(&explicit, cbasn1.Tag(0).ContextSpecific().Constructed()) || !info.Empty() {
		return nil, errors.New("parse PKCS#7: malformed ContentInfo")
	}
	return ParseDetached(explicit)
}

// ParseDetached reads SignedData that has no ContentInfo around it.
func ParseDetached(der []byte) (*Untrusted, error) {
	if len(der) > MaxSize {
		return nil, fmt.Errorf("parse PKCS#7: %d bytes, at most %d allowed", len(der), MaxSize)
	}
	in := cryptobyte.String(der)
	var s, algorithms, content, certs, signers cryptobyte.String
	var version int
	if !in.ReadASN1(&s, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, errors.New("parse PKCS#7: SignedData is not one DER sequence")
	}
	if !s.ReadASN1Integer(&version) || version != 1 {
		return nil, fmt.Errorf("parse PKCS#7: SignedData has version %d, want 1", version)
	}
	if !s.ReadASN1(&algorithms, cbasn1.SET) || !readAlgorithm(&algorithms, oidSHA256) || !algorithms.Empty() {
		return nil, errors.New("parse PKCS#7: digest algorithm is not exactly SHA-256")
	}
	u := new(Untrusted)
	if !s.ReadASN1(&content, cbasn1.SEQUENCE) || !content.ReadASN1ObjectIdentifier(&u.ContentType) {
		return nil, errors.New("parse PKCS#7: malformed content")
	}
	if !content.Empty() {
		var explicit, element cryptobyte.String
		var tag cbasn1.Tag
		if !content.ReadASN1(&explicit, cbasn1.Tag(0).ContextSpecific().Constructed()) || !content.Empty() ||
			!explicit.ReadAnyASN1Element(&element, &tag) || !explicit.Empty() {
			return nil, errors.New("parse PKCS#7: content is not one DER element")
		}
		u.Content = element
	}
	if !s.ReadASN1(&certs, cbasn1.Tag(0).ContextSpecific().Constructed()) {
		return nil, errors.New("parse PKCS#7: no certificates")
	}
	for !certs.Empty() {
		var raw cryptobyte.String
		if len(u.Certificates) == maxCertificates {
			return nil, fmt.Errorf("parse PKCS#7: more than %d certificates", maxCertificates)
		}
		if !certs.ReadASN1Element(&raw, cbasn1.SEQUENCE) {
			return nil, errors.New("parse PKCS#7: malformed certificates")
		}
		cert, err := x509.ParseCertificate(raw)
		if err != nil {
			return nil, fmt.Errorf("parse PKCS#7: %w", err)
		}
		u.Certificates = append(u.Certificates, cert)
	}
	if !s.ReadASN1(&signers, cbasn1.SET) || !s.Empty() {
		return nil, errors.New("parse PKCS#7: malformed signers")
	}
	if err := u.readSigner(&signers); err != nil {
		return nil, err
	}
	return u, nil
}

func (u *Untrusted) readSigner(signers *cryptobyte.String) error {
	var info, id, issuer cryptobyte.String
	var version int
	if !signers.ReadASN1(&info, cbasn1.SEQUENCE) || !signers.Empty() {
		return errors.New("parse PKCS#7: not exactly one signer")
	}
	if !info.ReadASN1Integer(&version) || version != 1 {
		return fmt.Errorf("parse PKCS#7: signer has version %d, want 1", version)
	}
	u.serial = new(big.Int)
	if !info.ReadASN1(&id, cbasn1.SEQUENCE) || !id.ReadASN1Element(&issuer, cbasn1.SEQUENCE) ||
		!id.ReadASN1Integer(u.serial) || !id.Empty() {
		return errors.New("parse PKCS#7: malformed issuer and serial number")
	}
	u.issuer = issuer
	if !readAlgorithm(&info, oidSHA256) {
		return errors.New("parse PKCS#7: signer's digest algorithm is not SHA-256")
	}
	attributes := cbasn1.Tag(0).ContextSpecific().Constructed()
	if info.PeekASN1Tag(attributes) {
		var raw cryptobyte.String
		if !info.ReadASN1Element(&raw, attributes) {
			return errors.New("parse PKCS#7: malformed attributes")
		}
		u.attributes = bytes.Clone(raw)
		u.attributes[0] = byte(cbasn1.SET)
	}
	// Some signers name the algorithm with the digest, some without.
	if !readAlgorithm(&info, oidRSA, oidSHA256RSA) {
		return errors.New("parse PKCS#7: signature algorithm is not RSA")
	}
	if !info.ReadASN1Bytes(&u.signature, cbasn1.OCTET_STRING) || !info.Empty() {
		return errors.New("parse PKCS#7: malformed signature")
	}
	return nil
}

// readAlgorithm reads an AlgorithmIdentifier with one of the given OIDs and
// absent or NULL parameters.
func readAlgorithm(s *cryptobyte.String, allowed ...asn1.ObjectIdentifier) bool {
	var a cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1(&a, cbasn1.SEQUENCE) || !a.ReadASN1ObjectIdentifier(&oid) {
		return false
	}
	if !a.Empty() {
		var null cryptobyte.String
		if !a.ReadASN1(&null, cbasn1.NULL) || !null.Empty() || !a.Empty() {
			return false
		}
	}
	for _, o := range allowed {
		if oid.Equal(o) {
			return true
		}
	}
	return false
}

// Verify checks that one of certs made the signature over message, and returns
// that certificate. For enclosed content, message must be nil. It checks that
//   - the signer's issuer and serial number are those of the certificate,
//   - signed attributes, if there are any, name the content's type and digest,
//   - the RSA PKCS#1 v1.5 signature with SHA-256 is valid.
//
// It looks at no validity period and builds no chain: like an entry in db, a
// certificate in certs is trusted as it stands.
func (u *Untrusted) Verify(message []byte, certs ...*x509.Certificate) (*x509.Certificate, error) {
	if u.Content != nil {
		if message != nil {
			return nil, errors.New("verify PKCS#7: content is both enclosed and given")
		}
		in := cryptobyte.String(u.Content)
		var value cryptobyte.String
		var tag cbasn1.Tag
		if !in.ReadAnyASN1(&value, &tag) {
			return nil, errors.New("verify PKCS#7: content is not a DER element")
		}
		message = value
	}
	digest := sha256.Sum256(message)
	tbs := digest
	if u.attributes != nil {
		if err := u.checkAttributes(digest[:]); err != nil {
			return nil, err
		}
		tbs = sha256.Sum256(u.attributes)
	}
	for _, c := range certs {
		if !bytes.Equal(c.RawIssuer, u.issuer) || c.SerialNumber.Cmp(u.serial) != 0 {
			continue
		}
		pub, ok := c.PublicKey.(*rsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("verify PKCS#7: the key of %q is %T, want RSA", c.Subject, c.PublicKey)
		}
		if err := rsa.VerifyPKCS1v15(pub, crypto.SHA256, tbs[:], u.signature); err != nil {
			return nil, fmt.Errorf("verify PKCS#7: signature of %q: %w", c.Subject, err)
		}
		return c, nil
	}
	return nil, fmt.Errorf("verify PKCS#7: signed by certificate number %x, which is none of the %d trusted ones", u.serial, len(certs))
}

// checkAttributes compares contentType and messageDigest. Each must be there
// exactly once; other attributes are of no consequence.
func (u *Untrusted) checkAttributes(digest []byte) error {
	in := cryptobyte.String(u.attributes)
	var set cryptobyte.String
	if !in.ReadASN1(&set, cbasn1.SET) || !in.Empty() {
		return errors.New("verify PKCS#7: malformed attributes")
	}
	var types, digests int
	for !set.Empty() {
		var a, values cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !set.ReadASN1(&a, cbasn1.SEQUENCE) || !a.ReadASN1ObjectIdentifier(&oid) ||
			!a.ReadASN1(&values, cbasn1.SET) || !a.Empty() {
			return errors.New("verify PKCS#7: malformed attribute")
		}
		switch {
		case oid.Equal(oidContentType):
			var got asn1.ObjectIdentifier
			if !values.ReadASN1ObjectIdentifier(&got) || !values.Empty() || !got.Equal(u.ContentType) {
				return fmt.Errorf("verify PKCS#7: attributes are for content type %v, content is %v", got, u.ContentType)
			}
			types++
		case oid.Equal(oidMessageDigest):
			var got []byte
			if !values.ReadASN1Bytes(&got, cbasn1.OCTET_STRING) || !values.Empty() || !bytes.Equal(got, digest) {
				return fmt.Errorf("verify PKCS#7: attributes are for digest %x, content has %x", got, digest)
			}
			digests++
		}
	}
	if types != 1 || digests != 1 {
		return fmt.Errorf("verify PKCS#7: %d contentType and %d messageDigest attributes, want one of each", types, digests)
	}
	return nil
}
