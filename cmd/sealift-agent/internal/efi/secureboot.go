package efi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// pkcs7GUID is EFI_CERT_TYPE_PKCS7_GUID, 4aafd29d-68df-49ee-8aa9-347d375665a7,
// as it lies in a payload.
const pkcs7GUID = "\x9d\xd2\xaf\x4a\xdf\x68\xee\x49\x8a\xa9\x34\x7d\x37\x56\x65\xa7"

// SecureBoot reports whether this boot was under Secure Boot. It stays false
// after an enrolment until the machine is reset.
func (v Vars) SecureBoot() (bool, error) { return v.flag("SecureBoot") }

// SetupMode reports whether the firmware takes keys without checking them: it
// has no PK. It turns false at once when a PK is enrolled.
func (v Vars) SetupMode() (bool, error) { return v.flag("SetupMode") }

func (v Vars) flag(name string) (bool, error) {
	b, err := v.read(name, global)
	if err != nil {
		return false, err
	}
	if len(b) != 1 || b[0] > 1 {
		return false, fmt.Errorf("EFI variable %s is %x, want 00 or 01", name, b)
	}
	return b[0] == 1, nil
}

// Keys are the payloads of a Secure Boot enrolment: each an
// EFI_VARIABLE_AUTHENTICATION_2 followed by a signature list (UEFI 2.10,
// 8.2.2 and 32.4.1). PK is self-signed, KEK signed by PK, db by KEK.
type Keys struct {
	PK  []byte
	KEK []byte
	DB  []byte
}

// Enrol writes db, KEK and PK in this order; the last one ends setup mode, so
// a power cut before it leaves a firmware that can be enrolled again. What an
// interrupted enrolment has written already is not written again: firmware may
// refuse a time that is not newer. Enrol refuses a firmware that is not in
// setup mode.
func (v Vars) Enrol(k Keys) error {
	setup, err := v.SetupMode()
	if err != nil {
		return fmt.Errorf("enrol Secure Boot keys: %w", err)
	}
	if !setup {
		return errors.New("enrol Secure Boot keys: the firmware is not in setup mode")
	}
	order := []struct {
		name, vendor  string
		payload, list []byte
	}{{"db", security, k.DB, nil}, {"KEK", global, k.KEK, nil}, {"PK", global, k.PK, nil}}
	for i, w := range order {
		if order[i].list, err = signatureList(w.payload); err != nil {
			return fmt.Errorf("enrol Secure Boot keys: payload of %s: %w", w.name, err)
		}
	}
	for _, w := range order {
		if have, err := v.read(w.name, w.vendor); err == nil && bytes.Equal(have, w.list) {
			continue
		}
		if err := v.write(w.name, w.vendor, nonVolatile|bootService|runtime|timeAuthenticated, w.payload); err != nil {
			return fmt.Errorf("enrol Secure Boot keys: %w", err)
		}
	}
	if setup, err = v.SetupMode(); err != nil {
		return fmt.Errorf("enrol Secure Boot keys: %w", err)
	}
	if setup {
		return errors.New("enrol Secure Boot keys: the firmware took the PK and is still in setup mode")
	}
	return nil
}

// signatureList returns the signature list of a payload. It refuses what
// cannot be an authenticated variable, such as a bare signature list or a file
// with the attributes in front: EFI_TIME (16 bytes), then
// WIN_CERTIFICATE_UEFI_GUID of type PKCS#7, then at least one byte of a list.
func signatureList(b []byte) ([]byte, error) {
	const certificate = 16 // offset of WIN_CERTIFICATE
	if len(b) < certificate+24 {
		return nil, fmt.Errorf("%d bytes are too few for an authenticated variable", len(b))
	}
	c := b[certificate:]
	n := binary.LittleEndian.Uint32(c)
	revision, typ := binary.LittleEndian.Uint16(c[4:]), binary.LittleEndian.Uint16(c[6:])
	if revision != 0x0200 || typ != 0x0ef1 || !bytes.Equal(c[8:24], []byte(pkcs7GUID)) {
		return nil, errors.New("it does not start with a time and a PKCS#7 certificate (EFI_VARIABLE_AUTHENTICATION_2)")
	}
	if n < 24 || uint64(n) >= uint64(len(c)) {
		return nil, fmt.Errorf("the certificate has %d bytes of %d, and a signature list must follow", n, len(c))
	}
	return c[n:], nil
}
