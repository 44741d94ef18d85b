package attest

import (
	"crypto"
	"fmt"
	"regexp"
	"slices"
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
	// SHA384 is its digest in the SHA-384 bank, 48 bytes, for machines that are
	// appraised by it. Optional; without it the event is known there only if its data
	// is what was measured.
	SHA384 []byte
	Name   string // for people
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
// this model, or false. What cannot be compared is not allowed.
func (v *verification) component(pcr int, e *Event) (string, bool) {
	d := e.reference()
	for i := range v.p.Models {
		r := &v.p.Models[i]
		if v.smbios == nil || !r.forModel(v.smbios) {
			continue
		}
		for _, c := range r.Components {
			if c.PCR == pcr && (!d.IsZero() && c.SHA256 == d || e.hash == crypto.SHA384 && len(c.SHA384) > 0 && e.digest() == digest(c.SHA384)) {
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
		if _, ok := b.v.component(1, e); !ok {
			b.unknown(e, "a setting or table that the policy does not list for this model", "set the firmware's setup back, or add the event to the policy: sealift attest log shows it")
		}
	}
}
