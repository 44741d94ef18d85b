// Package efivar makes the EFI variables of Secure Boot: signature lists
// (EFI_SIGNATURE_LIST, UEFI 2.10, 32.4.1), the authenticated payloads with
// which an installer enrols them (EFI_VARIABLE_AUTHENTICATION_2, 8.2.2), and
// the bytes that firmware measures of them into PCR 7 (UEFI_VARIABLE_DATA of
// the TCG PC Client Platform Firmware Profile).
//
// An Enrolment is the set of certificates that one key directory stands for.
// Its owner GUID is derived from PK, so the same certificates always give the
// same variables and the same measurements.
package efivar

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf16"

	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pkcs7"
)

// Attributes are those that enrolled variables have and that the installer
// puts, as a 32-bit little-endian number, before an authenticated payload:
// non-volatile, boot service access, runtime access, time-based authenticated
// write access.
const Attributes = 0x27

// Text forms of the GUIDs of the formats.
const (
	certX509  = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072" // EFI_CERT_X509_GUID
	certPKCS7 = "4aafd29d-68df-49ee-8aa9-347d375665a7" // EFI_CERT_TYPE_PKCS7_GUID
)

const (
	listHeader         = 28     // EFI_SIGNATURE_LIST up to its entries
	certificateHeader  = 24     // WIN_CERTIFICATE_UEFI_GUID without data
	winCertRevision    = 0x0200 // WIN_CERTIFICATE.wRevision
	winCertTypeEFIGUID = 0x0ef1 // WIN_CERT_TYPE_EFI_GUID
)

// Variable names one of the variables that hold signature lists.
type Variable string

// The variables that an Enrolment fills.
const (
	PK  Variable = "PK"
	KEK Variable = "KEK"
	DB  Variable = "db"
	DBX Variable = "dbx"
)

// SecureBoot is the variable in which firmware says whether it enforces Secure
// Boot. It is measured with the others; only firmware writes it.
const SecureBoot Variable = "SecureBoot"

// vendor returns the variable's vendor GUID.
func (v Variable) vendor() (guid.GUID, error) {
	switch v {
	case PK, KEK, SecureBoot:
		return guid.Parse(guid.GlobalVariable)
	case DB, DBX:
		return guid.Parse(guid.ImageSecurityDatabase)
	}
	return guid.GUID{}, fmt.Errorf("EFI variable %q: want PK, KEK, db, dbx or SecureBoot", string(v))
}

// Owner returns the GUID that stands as the owner of every entry in the
// enrolment whose platform key is pk.
func Owner(pk *x509.Certificate) guid.GUID {
	return guid.Derive("dev.sealift.secureboot.owner", pk.Raw)
}

// signatureData is one entry of a list: owner and certificate.
func signatureData(owner guid.GUID, cert *x509.Certificate) []byte {
	return append(owner[:], cert.Raw...)
}

// SignatureList returns signature lists with certs in order, one list for each
// because a list's entries have to be of one size.
func SignatureList(owner guid.GUID, certs ...*x509.Certificate) ([]byte, error) {
	kind, err := guid.Parse(certX509)
	if err != nil {
		return nil, err
	}
	var b []byte
	for _, c := range certs {
		entry := signatureData(owner, c)
		b = append(b, kind[:]...)
		b = binary.LittleEndian.AppendUint32(b, uint32(listHeader+len(entry)))
		b = binary.LittleEndian.AppendUint32(b, 0) // no header
		b = binary.LittleEndian.AppendUint32(b, uint32(len(entry)))
		b = append(b, entry...)
	}
	return b, nil
}

// Authenticate returns the payload that sets v to the signature lists data: an
// EFI_VARIABLE_AUTHENTICATION_2 with the time at, and data behind it. The
// signer has to be the platform key for PK and KEK, and a KEK for db; firmware
// wants PK signed by the very certificate that is in it. Firmware keeps the
// time and refuses a later payload whose time is not after it.
func Authenticate(v Variable, data []byte, at time.Time, signer *pkcs7.Signer) ([]byte, error) {
	vendor, err := v.vendor()
	if err != nil {
		return nil, err
	}
	if v == SecureBoot {
		return nil, errors.New("authenticate EFI variable SecureBoot: only firmware writes it")
	}
	if !signer.Time.IsZero() {
		return nil, fmt.Errorf("authenticate EFI variable %s: the signature must have no signed attributes (UEFI 2.10, 8.2.2), signer has a signing time", v)
	}
	stamp, err := efiTime(at)
	if err != nil {
		return nil, fmt.Errorf("authenticate EFI variable %s: %w", v, err)
	}
	signed := utf16LE(string(v))
	signed = append(signed, vendor[:]...)
	signed = binary.LittleEndian.AppendUint32(signed, Attributes)
	signed = append(signed, stamp...)
	signed = append(signed, data...)
	der, err := signer.SignDetached(signed)
	if err != nil {
		return nil, fmt.Errorf("authenticate EFI variable %s: %w", v, err)
	}
	kind, err := guid.Parse(certPKCS7)
	if err != nil {
		return nil, err
	}
	b := bytes.Clone(stamp)
	b = binary.LittleEndian.AppendUint32(b, uint32(certificateHeader+len(der)))
	b = binary.LittleEndian.AppendUint16(b, winCertRevision)
	b = binary.LittleEndian.AppendUint16(b, winCertTypeEFIGUID)
	b = append(b, kind[:]...)
	b = append(b, der...)
	return append(b, data...), nil
}

// efiTime returns EFI_TIME with everything zero that an authenticated variable
// must have zero: nanosecond, time zone, daylight, pads.
func efiTime(at time.Time) ([]byte, error) {
	at = at.UTC()
	if y := at.Year(); y < 1998 || y > 2099 {
		return nil, fmt.Errorf("time %s is outside of EFI_TIME's years 1998 to 2099", at.Format(time.RFC3339))
	}
	b := binary.LittleEndian.AppendUint16(nil, uint16(at.Year()))
	b = append(b, byte(at.Month()), byte(at.Day()), byte(at.Hour()), byte(at.Minute()), byte(at.Second()))
	return append(b, make([]byte, 16-len(b))...), nil
}

func utf16LE(s string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}

// Event returns the UEFI_VARIABLE_DATA that firmware measures into PCR 7 for a
// variable's content, which is empty for an unset variable.
func Event(v Variable, data []byte) ([]byte, error) {
	vendor, err := v.vendor()
	if err != nil {
		return nil, err
	}
	name := utf16LE(string(v))
	b := bytes.Clone(vendor[:])
	b = binary.LittleEndian.AppendUint64(b, uint64(len(name)/2))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	b = append(b, name...)
	return append(b, data...), nil
}

// Enrolment is the certificates in PK, KEK and db. All are required.
type Enrolment struct {
	PK  *x509.Certificate
	KEK *x509.Certificate
	DB  *x509.Certificate
}

// Lists returns the content of each variable.
func (e Enrolment) Lists() (map[Variable][]byte, error) {
	if e.PK == nil || e.KEK == nil || e.DB == nil {
		return nil, errors.New("enrolment: certificates for PK, KEK and db are required")
	}
	owner := Owner(e.PK)
	lists := make(map[Variable][]byte)
	for v, c := range map[Variable]*x509.Certificate{PK: e.PK, KEK: e.KEK, DB: e.DB} {
		list, err := SignatureList(owner, c)
		if err != nil {
			return nil, err
		}
		lists[v] = list
	}
	return lists, nil
}

// Authority returns the UEFI_VARIABLE_DATA that firmware measures into PCR 7
// once it has verified an image by the certificate in db: the entry that
// matched, not the list.
func (e Enrolment) Authority() ([]byte, error) {
	if e.PK == nil || e.DB == nil {
		return nil, errors.New("enrolment: certificates for PK and db are required")
	}
	return Event(DB, signatureData(Owner(e.PK), e.DB))
}

// SecureBoot returns the digests of the events that firmware measures into
// PCR 7 for the enrolment, and for verifying an image by its db certificate.
func (e Enrolment) SecureBoot() (manifest.SecureBoot, error) {
	lists, err := e.Lists()
	if err != nil {
		return manifest.SecureBoot{}, err
	}
	var s manifest.SecureBoot
	for _, d := range []struct {
		to   *manifest.SHA256
		v    Variable
		data []byte
	}{
		{&s.PK, PK, lists[PK]},
		{&s.KEK, KEK, lists[KEK]},
		{&s.DB, DB, lists[DB]},
		// The authority event has the matching entry, not the list.
		{&s.Authority, DB, signatureData(Owner(e.PK), e.DB)},
	} {
		event, err := Event(d.v, d.data)
		if err != nil {
			return manifest.SecureBoot{}, err
		}
		*d.to = sha256.Sum256(event)
	}
	return s, nil
}
