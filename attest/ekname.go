package attest

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// TPMVendor is the id of a TPM's manufacturer in the TCG Vendor ID Registry:
// up to four ASCII characters, the first in the highest byte. The registry pads some
// with NUL and some with a space ("STM "), certificates and people do as they like: a
// rule that is written in the other way must not be of nobody. Here it is NUL always.
type TPMVendor uint32

// ParseTPMVendor reads a vendor id: its ASCII form, such as IFX, or "id:" and
// eight hex digits, such as id:49465800.
func ParseTPMVendor(s string) (TPMVendor, error) {
	if digits, ok := strings.CutPrefix(s, "id:"); ok {
		b, err := hex.DecodeString(digits)
		if err != nil || len(b) != 4 {
			return 0, fmt.Errorf("TPM vendor %.40q: want id: and eight hex digits", s)
		}
		return padded(b), nil
	}
	if len(s) == 0 || len(s) > 4 || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 ") != "" {
		return 0, fmt.Errorf("TPM vendor %.40q: want one to four letters and digits, or id: and eight hex digits", s)
	}
	return padded([]byte(s)), nil
}

// padded returns the vendor of at most four bytes, without the spaces at their end.
func padded(id []byte) TPMVendor {
	var b [4]byte
	copy(b[:], bytes.TrimRight(id, " "))
	return TPMVendor(binary.BigEndian.Uint32(b[:]))
}

// String returns the ASCII form where there is one, or "id:" and hex digits.
func (v TPMVendor) String() string {
	b := bytes.TrimRight(binary.BigEndian.AppendUint32(nil, uint32(v)), "\x00")
	text := string(b)
	if p, err := ParseTPMVendor(text); err == nil && p == v {
		return text
	}
	return fmt.Sprintf("id:%08X", uint32(v))
}

// MarshalText encodes the id as String does.
func (v TPMVendor) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText decodes what ParseTPMVendor reads.
func (v *TPMVendor) UnmarshalText(b []byte) error {
	p, err := ParseTPMVendor(string(b))
	*v = p
	return err
}

// TPMModel is what an endorsement certificate says of its TPM (TCG EK
// Credential Profile, "Subject Alternative Name").
type TPMModel struct {
	Vendor  TPMVendor // 2.23.133.2.1, 0 if the certificate does not say
	Model   string    // 2.23.133.2.2
	Version string    // 2.23.133.2.3, of the firmware at the time of issue
}

// Quirks of endorsement certificates that are tolerated because nothing that
// is checked depends on them. The signature is over the bytes as they are.
const (
	// QuirkSetOrder is a SET OF whose elements are not in DER order (X.690,
	// 11.6), as some makers write the names of TPM and issuer.
	QuirkSetOrder = "set-order"
)

// Object identifiers of the attributes in the name of a TPM (TCG OID registry,
// tcg-attribute).
const (
	oidTPMManufacturer = "2.23.133.2.1"
	oidTPMModel        = "2.23.133.2.2"
	oidTPMVersion      = "2.23.133.2.3"
)

// maxNameParts bounds the elements of a name that are looked at.
const maxNameParts = 64

// tpmModel reads the TPM's name in a certificate's subject alternative name,
// and which quirks its names have. A certificate without the extension, or
// without a TPM's name in it, gives a zero TPMModel. What is there must be
// well-formed and must name each attribute once.
func tpmModel(c *x509.Certificate) (TPMModel, []string, error) {
	m := TPMModel{}
	ordered := setsOrdered(c.RawSubject) && setsOrdered(c.RawIssuer)
	quirks := func() []string {
		if ordered {
			return nil
		}
		return []string{QuirkSetOrder}
	}
	var san []byte
	for _, e := range c.Extensions {
		if !isOID(oidSubjectAlt)(e.Id) {
			continue
		}
		if san != nil {
			return m, nil, errors.New("subject alternative name: it is there twice")
		}
		san = e.Value
	}
	if san == nil {
		return m, quirks(), nil
	}
	names, err := elements(san, asn1.ClassUniversal, asn1.TagSequence)
	if err != nil {
		return m, nil, fmt.Errorf("subject alternative name: %w", err)
	}
	seen := map[string]bool{}
	for _, n := range names {
		if n.Class != asn1.ClassContextSpecific || n.Tag != 4 { // directoryName, RFC 5280, 4.2.1.6
			continue
		}
		ordered = ordered && setsOrdered(n.Bytes)
		rdns, err := elements(n.Bytes, asn1.ClassUniversal, asn1.TagSequence)
		if err != nil {
			return m, nil, fmt.Errorf("subject alternative name: directory name: %w", err)
		}
		for _, rdn := range rdns {
			if err := m.readAttributes(rdn, seen); err != nil {
				return m, nil, fmt.Errorf("subject alternative name: %w", err)
			}
		}
	}
	return m, quirks(), nil
}

// readAttributes reads the attributes of one RelativeDistinguishedName.
func (m *TPMModel) readAttributes(rdn asn1.RawValue, seen map[string]bool) error {
	attributes, err := elements(rdn.FullBytes, asn1.ClassUniversal, asn1.TagSet)
	if err != nil {
		return err
	}
	for _, a := range attributes {
		var attribute struct {
			Type  asn1.ObjectIdentifier
			Value asn1.RawValue
		}
		if rest, err := asn1.Unmarshal(a.FullBytes, &attribute); err != nil || len(rest) > 0 {
			return fmt.Errorf("an attribute of it does not decode: %d bytes left, %v", len(rest), err)
		}
		oid := attribute.Type.String()
		switch oid {
		case oidTPMManufacturer, oidTPMModel, oidTPMVersion:
		default:
			continue
		}
		if seen[oid] {
			return fmt.Errorf("attribute %s is there twice", oid)
		}
		seen[oid] = true
		switch attribute.Value.Tag {
		case asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String:
		default:
			return fmt.Errorf("attribute %s is of ASN.1 type %d, want a string", oid, attribute.Value.Tag)
		}
		text := string(attribute.Value.Bytes)
		switch oid {
		case oidTPMManufacturer:
			if m.Vendor, err = ParseTPMVendor(text); err != nil {
				return err
			}
		case oidTPMModel:
			m.Model = cleanText(text)
		case oidTPMVersion:
			m.Version = cleanText(text)
		}
	}
	return nil
}

// elements returns what is inside a constructed DER value that is alone in b.
func elements(b []byte, class, tag int) ([]asn1.RawValue, error) {
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(b, &outer)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 || outer.Class != class || outer.Tag != tag || !outer.IsCompound {
		return nil, fmt.Errorf("got a value of class %d and tag %d with %d bytes after it, want %d, %d, 0", outer.Class, outer.Tag, len(rest), class, tag)
	}
	var out []asn1.RawValue
	for b := outer.Bytes; len(b) > 0; {
		var v asn1.RawValue
		if b, err = asn1.Unmarshal(b, &v); err != nil {
			return nil, err
		}
		if len(out) == maxNameParts {
			return nil, fmt.Errorf("more than %d elements", maxNameParts)
		}
		out = append(out, v)
	}
	return out, nil
}

// setsOrdered reports whether the sets of a Name are in DER order. What does
// not decode is not for it to judge.
func setsOrdered(name []byte) bool {
	rdns, err := elements(name, asn1.ClassUniversal, asn1.TagSequence)
	if err != nil {
		return true
	}
	for _, rdn := range rdns {
		attributes, err := elements(rdn.FullBytes, asn1.ClassUniversal, asn1.TagSet)
		if err != nil {
			continue
		}
		for i := 1; i < len(attributes); i++ {
			if bytes.Compare(attributes[i-1].FullBytes, attributes[i].FullBytes) > 0 {
				return false
			}
		}
	}
	return true
}
