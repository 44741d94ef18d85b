package attest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// appraiseDBXSuperset requires that no entry of the policy's dbx is lost.
func (b *measuredBoot) appraiseDBXSuperset(v *measuredVariable) {
	if len(b.v.p.DBXSuperset) == 0 {
		return
	}
	bad := func(format string, args ...any) {
		b.v.findPCR(7, Finding{Code: CodeSecureBootKeys, Component: "dbx", Message: "PCR 7: " + fmt.Sprintf(format, args...), Hint: "update the machine's dbx: fwupdmgr update"})
	}
	want, err := SignatureEntries(b.v.p.DBXSuperset)
	if err != nil {
		bad("the policy's dbx cannot be read: %v", err)
		return
	}
	got, err := SignatureEntries(v.data)
	if err != nil {
		bad("the machine's dbx cannot be read: %v", err)
		return
	}
	lost, _ := diffEntries(got, want)
	if len(lost) > 0 {
		bad("dbx lacks %s of the %d entries that the policy wants", countEntries(lost), len(want))
	}
}

// SignatureEntry is one entry of an EFI_SIGNATURE_LIST. The owner is left out:
// it does not change what is allowed or revoked.
type SignatureEntry struct {
	Type string // GUID of the list: what Data is
	Data string // a hash or a certificate
}

// maxSignatureEntries bounds a signature database. dbx of today has about 450.
const maxSignatureEntries = 1 << 15

var errSignatureList = errors.New("damaged signature list")

// SignatureEntries reads EFI_SIGNATURE_LISTs (UEFI 2.10, 32.4.1), the value of
// db or dbx, strictly: a list whose sizes do not fit is an error.
func SignatureEntries(b []byte) ([]SignatureEntry, error) {
	var out []SignatureEntry
	for len(b) > 0 {
		if len(b) < 28 {
			return nil, errSignatureList
		}
		list, head, size := int64(binary.LittleEndian.Uint32(b[16:])), int64(binary.LittleEndian.Uint32(b[20:])), int64(binary.LittleEndian.Uint32(b[24:]))
		if list < 28+head || list > int64(len(b)) || size <= 16 || (list-28-head)%size != 0 {
			return nil, errSignatureList
		}
		typ := formatGUID(b[:16])
		for e := b[28+head : list]; len(e) > 0; e = e[size:] {
			if len(out) == maxSignatureEntries {
				return nil, fmt.Errorf("more than %d signatures", maxSignatureEntries)
			}
			out = append(out, SignatureEntry{typ, string(e[16:size])})
		}
		b = b[list:]
	}
	return out, nil
}

// SignatureLists returns the EFI_SIGNATURE_LISTs in a file: the lists alone, or
// an update for SetVariable, which has EFI_VARIABLE_AUTHENTICATION_2 before
// them (UEFI 2.10, 8.2.6), as makers publish dbx. The update's signature is not
// verified.
func SignatureLists(b []byte) ([]byte, error) {
	if len(b) >= 40 && binary.LittleEndian.Uint16(b[20:]) == 0x0200 && binary.LittleEndian.Uint16(b[22:]) == 0x0ef1 { // WIN_CERT_TYPE_EFI_GUID
		if n := int64(binary.LittleEndian.Uint32(b[16:])); n >= 24 && n <= int64(len(b))-16 {
			b = b[16+n:]
		}
	}
	entries, err := SignatureEntries(b)
	switch {
	case err != nil:
		return nil, err
	case len(entries) == 0:
		return nil, errors.New("there is no signature in it")
	}
	return bytes.Clone(b), nil
}

// diffEntries returns the entries that only want has, and those that only got
// has, each once.
func diffEntries(got, want []SignatureEntry) (lost, added []SignatureEntry) {
	in := func(list []SignatureEntry) map[SignatureEntry]bool {
		m := make(map[SignatureEntry]bool, len(list))
		for _, e := range list {
			m[e] = true
		}
		return m
	}
	only := func(list []SignatureEntry, not map[SignatureEntry]bool) []SignatureEntry {
		var out []SignatureEntry
		seen := map[SignatureEntry]bool{}
		for _, e := range list {
			if !not[e] && !seen[e] {
				seen[e] = true
				out = append(out, e)
			}
		}
		return out
	}
	return only(want, in(got)), only(got, in(want))
}

// guidX509 is EFI_CERT_X509_GUID in text.
const guidX509 = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"

// countEntries says how many hashes there are and names the certificates.
func countEntries(list []SignatureEntry) string {
	hashes := 0
	var parts []string
	for _, e := range list {
		if e.Type != guidX509 {
			hashes++
			continue
		}
		parts = append(parts, "the certificate "+certificateSubject([]byte(e.Data)))
	}
	if n := len(parts); n > maxListed {
		parts = append(parts[:maxListed], fmt.Sprintf("%d more certificates", n-maxListed))
	}
	switch {
	case hashes == 1:
		parts = append(parts, "1 hash")
	case hashes > 0 || len(parts) == 0:
		parts = append(parts, fmt.Sprintf("%d hashes", hashes))
	}
	return strings.Join(parts, ", ")
}
