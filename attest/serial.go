package attest

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"

	"github.com/sealift/sealift/image/manifest"
)

// maxSerial is the longest serial number that is kept, in characters. SMBIOS
// has no limit; those of real machines have up to 30.
const maxSerial = maxSMBIOSString

// placeholders are what makers leave in SMBIOS in place of a serial number, in
// upper case. They name no machine.
var placeholders = []string{
	"", "0", "NONE", "N/A", "NA", "NULL", "UNKNOWN", "EMPTY", "INVALID", "NOT SPECIFIED", "NOT AVAILABLE", "NOT APPLICABLE", "NOT DEFINED",
	"DEFAULT STRING", "DEFAULT", "SYSTEM SERIAL NUMBER", "CHASSIS SERIAL NUMBER", "BASE BOARD SERIAL NUMBER", "SERIAL NUMBER", "SERIAL", "SERNUM",
	"TO BE FILLED BY O.E.M.", "TO BE FILLED BY OEM", "O.E.M.", "OEM", "SYS-1234567890",
	"123456789", "1234567890", "0123456789", "012345678", "01234567890123456789",
}

// SerialKey returns the form in which serial numbers are compared: SMBIOS type
// 1 (DSP0134 7.2) in upper case. It is empty for a text that names no machine:
// a maker's placeholder, or one character over and over.
func SerialKey(serial string) string {
	s := strings.ToUpper(cleanText(serial))
	if slices.Contains(placeholders, s) || strings.Trim(s, s[:1]) == "" {
		return ""
	}
	return s
}

// CheckSerial reports why a serial number cannot be one that a machine claims:
// it is a placeholder, or not of 1 to 64 printable ASCII characters.
func CheckSerial(serial string) error {
	switch {
	case serial == "" || len(serial) > maxSerial:
		return fmt.Errorf("serial number has %d characters, want 1 to %d", len(serial), maxSerial)
	case cleanText(serial) != serial || strings.Contains(serial, "?"):
		return fmt.Errorf("serial number %q is not of printable ASCII characters without space around them", cleanText(serial))
	case SerialKey(serial) == "":
		return fmt.Errorf("serial number %q is a placeholder: it names no machine", serial)
	}
	return nil
}

// EKDigests returns the SHA-256 digests by which lists name an endorsement
// key: of its SubjectPublicKeyInfo, which is the machine's id; of the
// subjectPublicKey in it, without the algorithm (what Windows shows as
// PublicKeyHash); of its public area, TPMT_PUBLIC, which is its TPM Name
// without the algorithm; and of its certificate, if cert is not nil. An area
// that is no endorsement key gives an error.
func EKDigests(ekPublic []byte, cert *x509.Certificate) ([]manifest.SHA256, error) {
	_, key, err := checkEK(ekPublic)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	bits, err := publicKeyBits(spki)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	out := []manifest.SHA256{sha256.Sum256(spki), sha256.Sum256(bits), sha256.Sum256(ekPublic)}
	if cert != nil && certifiesKey(cert, key) {
		out = append(out, sha256.Sum256(cert.Raw))
	}
	return out, nil
}

// publicKeyBits returns the subjectPublicKey of a SubjectPublicKeyInfo.
func publicKeyBits(spki []byte) ([]byte, error) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &info); err != nil {
		return nil, err
	}
	return info.Key.RightAlign(), nil
}

// checkSerial compares the serial number that the machine claims with what the
// service knows of it. A claim proves nothing, but one that differs tells of a
// wrong list, an exchanged board, or a lie.
func (v *verification) checkSerial(smbios *SMBIOS) {
	if want := v.known.Serial; want != "" && SerialKey(smbios.Serial) != SerialKey(want) {
		v.find(Finding{
			Code:    CodeSerialMismatch,
			Message: fmt.Sprintf("the machine says that its serial number is %q, it was enrolled beforehand with %q", smbios.Serial, want),
			Got:     smbios.Serial, Want: want,
			Hint: "if the list is wrong, import the corrected line with --replace, or, once the machine is enrolled: " + v.command("approve"),
		})
	}
	if owner := v.known.SerialOwner; !owner.IsZero() && v.known.SerialExpected {
		v.find(Finding{
			Code:    CodeSerialTaken,
			Message: fmt.Sprintf("the serial number %q was enrolled beforehand with the endorsement key %s, this machine has another", smbios.Serial, owner),
			Got:     v.r.Machine.String(), Want: owner.String(),
			Hint: "if the list is wrong, import the corrected line with --replace",
		})
	} else if !owner.IsZero() && owner != v.r.Machine {
		v.find(Finding{
			Code:    CodeSerialTaken,
			Message: fmt.Sprintf("the serial number %q belongs to machine %s, which has another endorsement key", smbios.Serial, owner.Short()),
			Got:     v.r.Machine.String(), Want: owner.String(),
			Hint: fmt.Sprintf("if its mainboard or TPM was exchanged: sealift machine re-enrol --old %s --new %s --reason TEXT", owner, v.r.Machine),
		})
	}
}
