package pe

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/sealift/sealift/image/pkcs7"
)

// WIN_CERTIFICATE (UEFI 2.10, 32.2.4).
const (
	certificateHeader   = 8
	certificateRevision = 0x0200
	certificatePKCS     = 0x0002 // WIN_CERT_TYPE_PKCS_SIGNED_DATA
	maxSignatures       = 8
)

// Object identifiers of Microsoft's Authenticode.
var (
	oidIndirectData = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidPEImageData  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
	oidSHA256       = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
)

// Authenticode returns the image's SHA-256 Authenticode digest ("Windows
// Authenticode Portable Executable Signature Format", "Calculating the PE
// image hash"). It is the same for a signed image and its unsigned form,
// because an unsigned one is taken as padded to eight bytes, as Sign pads it.
// Firmware extends PCR 4 with this digest.
func (f *File) Authenticode() [32]byte {
	h := sha256.New()
	f.hash(h)
	return [32]byte(h.Sum(nil))
}

// AuthenticodeWith is Authenticode with another hash: firmware extends each
// bank of PCR 4 with the digest by the bank's own.
func (f *File) AuthenticodeWith(h hash.Hash) []byte {
	h.Reset()
	f.hash(h)
	return h.Sum(nil)
}

func (f *File) hash(h hash.Hash) {
	checksum := f.optional + 64
	directory := f.optional + optionalFixed + 8*certificateEntry
	h.Write(f.data[:checksum])
	if directory+8 <= f.sectionTable && f.hasCertificateEntry() {
		h.Write(f.data[checksum+4 : directory])
		h.Write(f.data[directory+8 : f.SizeOfHeaders])
	} else {
		h.Write(f.data[checksum+4 : f.SizeOfHeaders])
	}
	ordered := slices.Clone(f.Sections)
	slices.SortStableFunc(ordered, func(a, b Section) int { return int(int64(a.RawOffset) - int64(b.RawOffset)) })
	sum := int(f.SizeOfHeaders)
	for _, s := range ordered {
		h.Write(s.data)
		sum += len(s.data)
	}
	// What follows the sections counts too. The algorithm finds it by the sum
	// of sizes, not by the end of the last section; firmware does the same.
	end := len(f.data) - f.certSize
	if sum < end {
		h.Write(f.data[sum:end])
	}
	if f.certSize == 0 {
		h.Write(make([]byte, padding(end)))
	}
}

func (f *File) hasCertificateEntry() bool {
	return binary.LittleEndian.Uint32(f.data[f.optional+108:]) > certificateEntry
}

// padding returns how many bytes make n a multiple of 8.
func padding(n int) int { return -n & 7 }

// Sign returns the image with an Authenticode signature appended as its only
// one. The image must be unsigned. Its checksum field is left alone: firmware
// does not look at it and it is not part of the digest.
func Sign(image []byte, s *pkcs7.Signer) ([]byte, error) {
	f, err := Parse(image)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if f.certSize != 0 {
		return nil, errors.New("sign PE image: it is signed already")
	}
	if !f.hasCertificateEntry() {
		return nil, errors.New("sign PE image: its header has no place for a certificate table")
	}
	content, err := indirectData(f.Authenticode())
	if err != nil {
		return nil, fmt.Errorf("sign PE image: %w", err)
	}
	der, err := s.SignAttached(oidIndirectData, content)
	if err != nil {
		return nil, fmt.Errorf("sign PE image: %w", err)
	}
	offset := len(image) + padding(len(image))
	size := certificateHeader + len(der)
	out := make([]byte, offset+size+padding(size))
	copy(out, image)
	le := binary.LittleEndian
	entry := out[f.optional+optionalFixed+8*certificateEntry:]
	le.PutUint32(entry, uint32(offset))
	le.PutUint32(entry[4:], uint32(len(out)-offset))
	le.PutUint32(out[offset:], uint32(size))
	le.PutUint16(out[offset+4:], certificateRevision)
	le.PutUint16(out[offset+6:], certificatePKCS)
	copy(out[offset+certificateHeader:], der)
	return out, nil
}

// indirectData returns SpcIndirectDataContent for a digest. The link that
// Authenticode wants names no file; its text is the one all signers use.
func indirectData(digest [32]byte) ([]byte, error) {
	var obsolete []byte
	for _, c := range "<<<Obsolete>>>" {
		obsolete = append(obsolete, 0, byte(c))
	}
	context := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific() }
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidPEImageData)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.BIT_STRING, func(b *cryptobyte.Builder) { b.AddUint8(0) })
				b.AddASN1(context(0).Constructed(), func(b *cryptobyte.Builder) {
					b.AddASN1(context(2).Constructed(), func(b *cryptobyte.Builder) {
						b.AddASN1(context(0), func(b *cryptobyte.Builder) { b.AddBytes(obsolete) })
					})
				})
			})
		})
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidSHA256)
				b.AddASN1NULL()
			})
			b.AddASN1OctetString(digest[:])
		})
	})
	return b.Bytes()
}

// Signatures returns the DER of the PKCS#7 signatures in the certificate
// table, in order. Padding after the DER is removed.
func (f *File) Signatures() ([][]byte, error) {
	var out [][]byte
	rest := f.data[len(f.data)-f.certSize:]
	for len(rest) > 0 {
		if len(out) == maxSignatures {
			return nil, fmt.Errorf("certificate table: more than %d signatures", maxSignatures)
		}
		if len(rest) < certificateHeader {
			return nil, fmt.Errorf("certificate table: %d bytes left, too few for a header", len(rest))
		}
		size := uint64(binary.LittleEndian.Uint32(rest))
		revision, kind := binary.LittleEndian.Uint16(rest[4:]), binary.LittleEndian.Uint16(rest[6:])
		if size < certificateHeader || size > uint64(len(rest)) {
			return nil, fmt.Errorf("certificate table: entry of %d bytes, %d are left", size, len(rest))
		}
		if revision != certificateRevision || kind != certificatePKCS {
			return nil, fmt.Errorf("certificate table: entry has revision %#x and type %#x, want %#x and %#x", revision, kind, certificateRevision, certificatePKCS)
		}
		in := cryptobyte.String(rest[certificateHeader:size])
		var der cryptobyte.String
		if !in.ReadASN1Element(&der, cbasn1.SEQUENCE) {
			return nil, errors.New("certificate table: entry is not a DER sequence")
		}
		if len(bytes.Trim(in, "\x00")) != 0 {
			return nil, errors.New("certificate table: data behind the signature")
		}
		out = append(out, der)
		rest = rest[min(size+uint64(padding(int(size))), uint64(len(rest))):]
	}
	return out, nil
}

// Verify checks that one of the image's signatures is by one of certs and is
// over the image's Authenticode digest, and returns that certificate. Like
// firmware it takes no notice of validity periods.
func (f *File) Verify(certs ...*x509.Certificate) (*x509.Certificate, error) {
	signatures, err := f.Signatures()
	if err != nil {
		return nil, fmt.Errorf("verify PE image: %w", err)
	}
	if len(signatures) == 0 {
		return nil, errors.New("verify PE image: it is not signed")
	}
	want, err := indirectData(f.Authenticode())
	if err != nil {
		return nil, fmt.Errorf("verify PE image: %w", err)
	}
	wantDigest, err := signedDigest(want)
	if err != nil {
		return nil, fmt.Errorf("verify PE image: %w", err)
	}
	var failed []error
	for i, der := range signatures {
		c, err := verifyOne(der, wantDigest, certs)
		if err == nil {
			return c, nil
		}
		failed = append(failed, fmt.Errorf("signature %d: %w", i+1, err))
	}
	return nil, fmt.Errorf("verify PE image: %w", errors.Join(failed...))
}

func verifyOne(der, want []byte, certs []*x509.Certificate) (*x509.Certificate, error) {
	u, err := pkcs7.ParseAttached(der)
	if err != nil {
		return nil, err
	}
	if !u.ContentType.Equal(oidIndirectData) || u.Content == nil {
		return nil, fmt.Errorf("content type is %v, want enclosed SpcIndirectDataContent %v", u.ContentType, oidIndirectData)
	}
	got, err := signedDigest(u.Content)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(got, want) {
		return nil, fmt.Errorf("signed digest is %x, image has %x", got, want)
	}
	return u.Verify(nil, certs...)
}

// signedDigest returns the SHA-256 digest inside SpcIndirectDataContent.
func signedDigest(content []byte) ([]byte, error) {
	in := cryptobyte.String(content)
	var outer, data, info, algorithm cryptobyte.String
	var oid asn1.ObjectIdentifier
	var digest []byte
	if !in.ReadASN1(&outer, cbasn1.SEQUENCE) || !in.Empty() ||
		!outer.ReadASN1(&data, cbasn1.SEQUENCE) || !outer.ReadASN1(&info, cbasn1.SEQUENCE) || !outer.Empty() ||
		!info.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) ||
		!info.ReadASN1Bytes(&digest, cbasn1.OCTET_STRING) || !info.Empty() {
		return nil, errors.New("malformed SpcIndirectDataContent")
	}
	if !oid.Equal(oidSHA256) || len(digest) != sha256.Size {
		return nil, fmt.Errorf("digest of %d bytes by algorithm %v, want SHA-256 %v", len(digest), oid, oidSHA256)
	}
	return digest, nil
}
