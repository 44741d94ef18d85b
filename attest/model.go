package attest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/image/manifest"
)

// ModelRule is what a policy asks of the machines of one model, beside known
// firmware. The model is a claim, see FirmwareReference.
type ModelRule struct {
	Vendor  string // SMBIOS type 1 manufacturer; empty matches any
	Product string // SMBIOS type 1 product name; empty matches any

	// Version finds in a firmware version what is compared: its first group.
	// Optional; the whole version.
	Version *regexp.Regexp
	Minimum []FirmwareMinimum // that are in force; each counts
	Denied  []FirmwareDenial
	// NotBefore refuses firmware that was released before. Optional.
	NotBefore time.Time

	// Components are events that the rules of this package would refuse.
	Components []Component
	// Configuration requires each event of PCR 1 to be one of Components.
	Configuration bool
}

// FirmwareMinimum is the oldest version that is allowed, in the order of
// CompareVersions.
type FirmwareMinimum struct {
	Version string
	Reason  string // Optional.
}

// FirmwareDenial denies one version, however it is written.
type FirmwareDenial struct {
	Version string
	Reason  string
}

// Component is an event that is allowed in a PCR: the option ROM of a device
// (PCR 2), its configuration (3), a setting (1), the table of another disk (5),
// something of the maker's (6), or the certificate that verified an option ROM
// (7, EV_EFI_VARIABLE_AUTHORITY).
type Component struct {
	PCR    int
	SHA256 manifest.SHA256 // of the event in the SHA-256 bank
	Name   string          // for people
}

// releases reports whether secrets are released with a verdict.
func (p *FirmwarePolicy) releases(v FirmwareVerdict) bool {
	switch {
	case v == FirmwareUnknown || v == FirmwareVerdictDenied:
		return false
	case len(p.Release) == 0:
		return v == FirmwareMeasured || v == FirmwareCrossChecked
	}
	return slices.Contains(p.Release, v)
}

// FirmwareDate reads the date of a release: 2006-01-02, or 01/02/2006 as SMBIOS
// type 0 has it (DSP0134 7.1).
func FirmwareDate(s string) (time.Time, error) {
	for _, layout := range []string{time.DateOnly, "01/02/2006"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("firmware date %s: want YYYY-MM-DD or MM/DD/YYYY", printable([]byte(s), 16))
}

// forModel reports whether the rule is of the model that is claimed.
func (r *ModelRule) forModel(s *SMBIOS) bool {
	return (r.Vendor == "" || r.Vendor == s.Manufacturer) && (r.Product == "" || r.Product == s.Product)
}

// Compared returns what of a firmware version the rule compares.
func (r *ModelRule) Compared(version string) (string, error) {
	if r.Version == nil {
		return version, nil
	}
	m := r.Version.FindStringSubmatch(version)
	if len(m) < 2 || m[1] == "" {
		return "", fmt.Errorf("version %q is not of the form %s", version, r.Version)
	}
	return m[1], nil
}

// compare orders a firmware version against one that stands in the rule, which
// may be written as the version is or as the part of it that is compared.
func (r *ModelRule) compare(version, ruled string) (int, error) {
	v, err := r.Compared(version)
	if err != nil {
		return 0, err
	}
	if w, err := r.Compared(ruled); err == nil {
		ruled = w
	}
	return CompareVersions(v, ruled)
}

// Judge says why the rule refuses a firmware build that was released at date,
// as FirmwareDate reads it, and what it wants instead. It returns nothing for a
// build that it allows.
func (r *ModelRule) Judge(version, date string) (reason, want string) {
	because := func(s string) string {
		if s == "" {
			return ""
		}
		return ": " + s
	}
	for _, d := range r.Denied {
		if c, err := r.compare(version, d.Version); err == nil && c == 0 || version == d.Version {
			return fmt.Sprintf("firmware %s is denied by the policy%s", version, because(d.Reason)), ""
		}
	}
	for _, m := range r.Minimum {
		switch c, err := r.compare(version, m.Version); {
		case err != nil:
			return fmt.Sprintf("firmware %s cannot be compared with the minimum %s: %v", version, m.Version, err), m.Version
		case c < 0:
			return fmt.Sprintf("firmware %s is below the minimum %s%s", version, m.Version, because(m.Reason)), m.Version
		}
	}
	if r.NotBefore.IsZero() {
		return "", ""
	}
	want = "released " + r.NotBefore.Format(time.DateOnly) + " or later"
	switch t, err := FirmwareDate(date); {
	case date == "":
		return fmt.Sprintf("the date of firmware %s is not known, and the policy wants one from %s on", version, r.NotBefore.Format(time.DateOnly)), want
	case err != nil:
		return fmt.Sprintf("firmware %s: %v", version, err), want
	case t.Before(r.NotBefore):
		return fmt.Sprintf("firmware %s was released on %s, before %s", version, t.Format(time.DateOnly), r.NotBefore.Format(time.DateOnly)), want
	}
	return "", ""
}

// applyModelRules holds a build that is known against the rules for the model.
func (v *verification) applyModelRules(ref *FirmwareReference, verdict FirmwareVerdict, s *SMBIOS) {
	date := ref.Date
	if date == "" && verdict == FirmwareClaimedOnly {
		date = s.BIOSDate // no less proven than the version
	}
	for i := range v.p.Models {
		r := &v.p.Models[i]
		if !r.forModel(s) {
			continue
		}
		reason, want := r.Judge(ref.Version, date)
		if reason == "" {
			continue
		}
		v.r.Firmware.Verdict = FirmwareVerdictDenied
		v.findPCR(0, Finding{
			Code: CodeFirmwareDenied, Message: fmt.Sprintf("PCR 0, %s: %s", verdict, reason), Got: ref.Version, Want: want,
			Hint: "update the firmware, or move the fleet with: sealift firmware campaign create",
		})
	}
}

// component returns the policy's name for an event that it allows in a PCR on
// this model, or false.
func (v *verification) component(pcr int, d manifest.SHA256) (string, bool) {
	for i := range v.p.Models {
		r := &v.p.Models[i]
		if v.smbios == nil || d.IsZero() || !r.forModel(v.smbios) {
			continue
		}
		for _, c := range r.Components {
			if c.PCR == pcr && c.SHA256 == d {
				return c.Name, true
			}
		}
	}
	return "", false
}

// appraiseConfiguration compares PCR 1 with what the policy lists, if it says
// that it lists all of it for this model.
func (b *measuredBoot) appraiseConfiguration() {
	listed := slices.ContainsFunc(b.v.p.Models, func(r ModelRule) bool { return r.Configuration && r.forModel(b.v.smbios) })
	if !b.sound[1] || !listed {
		return
	}
	for _, e := range b.log.ForPCR(1) {
		if e.isSeparator() {
			continue
		}
		if _, ok := b.v.component(1, e.reference()); !ok {
			b.unknown(e, "a setting or table that the policy does not list for this model", "set the firmware's setup back, or add the event to the policy: sealift attest log shows it")
		}
	}
}

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
