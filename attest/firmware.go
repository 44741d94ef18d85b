package attest

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/sealift/sealift/image/manifest"
)

// maxCRTMVersion bounds the text of EV_S_CRTM_VERSION, in bytes. What is larger
// is taken for code, not for a text.
const maxCRTMVersion = 512

// measuredFirmware is what PCR 0 proves of the firmware.
type measuredFirmware struct {
	crtm   string   // text of EV_S_CRTM_VERSION, empty if it was not measured as text
	blobs  []digest // digest of every other event but the separator, in order, in the bank that is appraised
	events []*Event // of blobs
	// elsewhere has the digests of blobs in the other appraisal banks, as far as
	// they are known: unset where not.
	elsewhere map[string][]digest
}

// readFirmware decodes PCR 0. A type is not authenticated, so whatever is not
// proven to be the version text or a separator counts as firmware code: a
// blob that hides under another type has to be in the reference all the same.
func readFirmware(l *EventLog) *measuredFirmware {
	f := &measuredFirmware{}
	text := false
	for _, e := range l.ForPCR(0) {
		if e.isSeparator() {
			continue
		}
		data, verified := e.VerifiedData()
		if e.UntrustedType == EventSCRTMVersion && verified && !text && len(data) <= maxCRTMVersion {
			text = true
			f.crtm = versionText(data)
			continue
		}
		f.events = append(f.events, e)
		f.blobs = append(f.blobs, e.digest())
	}
	return f
}

// readElsewhere finds what the digests of the blobs are in the other appraisal banks:
// those in the log, if the bank is quoted, or those of the data that was measured. Of
// a firmware volume the log has no data.
func (f *measuredFirmware) readElsewhere(l *EventLog, banks []*quoted) {
	f.elsewhere = map[string][]digest{}
	for _, bank := range appraisalBanks() {
		hash, ok := bankHash(bank)
		if bank == l.main || !ok {
			continue
		}
		index := slices.Index(l.Banks, bank)
		if !slices.ContainsFunc(banks, func(q *quoted) bool { return q.bank == bank }) {
			index = -1
		}
		ds := make([]digest, len(f.events))
		for i, e := range f.events {
			if index >= 0 {
				ds[i] = digest(e.digests[index])
			} else if data, verified := e.VerifiedData(); verified {
				ds[i] = hashOf(hash, data)
			}
		}
		f.elsewhere[bank] = ds
	}
}

// versionText reads a version that is UTF-16 (edk2) or ASCII.
func versionText(b []byte) string {
	if len(b) >= 2 && len(b)%2 == 0 && b[1] == 0 {
		return cleanText(strings.TrimRight(decodeUTF16(b), "\x00"))
	}
	return cleanText(strings.TrimRight(string(b), "\x00"))
}

// digests returns the build's digests in a bank, none if they are not known.
func (r *FirmwareReference) digests(bank string) []digest {
	var out []digest
	if bank == "sha384" {
		for _, text := range r.SHA384 {
			d, err := hex.DecodeString(text)
			if err != nil || len(d) != 48 {
				return nil
			}
			out = append(out, digest(d))
		}
		return out
	}
	for _, d := range r.Digests {
		if d.IsZero() {
			return nil
		}
		out = append(out, digest(d[:]))
	}
	return out
}

// matches reports whether the measured blobs are the build's: each of its
// digests once, and as many others as the build leaves unpinned.
func (r *FirmwareReference) matches(bank string, blobs []digest) bool {
	want := r.digests(bank)
	if len(want) == 0 || len(blobs) != len(want)+r.Unpinned {
		return false
	}
	_, missing := remove(blobs, want)
	return missing == 0
}

// forModel reports whether the reference is of the model that is claimed.
func (r *FirmwareReference) forModel(s *SMBIOS) bool {
	return (r.Vendor == "" || r.Vendor == s.Manufacturer) && (r.Product == "" || r.Product == s.Product)
}

// textOnly reports whether a build is known by its version alone.
func (r *FirmwareReference) textOnly() bool { return len(r.Digests) == 0 && len(r.SHA384) == 0 }

// comparable reports whether a build is known by digests in a bank.
func (r *FirmwareReference) comparable(bank string) bool { return len(r.digests(bank)) > 0 }

// remove takes each digest of some out of all, once, and returns what is left of all,
// and how many were not there.
func remove(all, some []digest) (rest []digest, missing int) {
	rest = slices.Clone(all)
	for _, d := range some {
		if i := slices.Index(rest, d); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
		} else {
			missing++
		}
	}
	return rest, missing
}

// couldBe reports whether what was measured could be the build r, whose digests are
// of another bank than the one that is appraised, and whether it is certain. found is
// the build that was found by the bank that is appraised, nil if none was.
func (m *measuredFirmware) couldBe(r *FirmwareReference, main, other string, found *FirmwareReference) (could, certain bool) {
	want := r.digests(other)
	if len(want) == 0 {
		return true, false // its digests cannot be read
	}
	if len(m.blobs) != len(want)+r.Unpinned {
		return false, false
	}
	var known []digest
	for _, d := range m.elsewhere[other] {
		if !d.IsZero() {
			known = append(known, d)
		}
	}
	if len(known) < len(m.blobs) && found != nil && found.comparable(main) && found.comparable(other) {
		// The volumes of the build that was found are known in both banks.
		known = known[:0]
		pinned := found.digests(main)
		for i, d := range m.blobs {
			if k := slices.Index(pinned, d); k >= 0 {
				pinned = slices.Delete(pinned, k, k+1)
			} else if e := m.elsewhere[other][i]; !e.IsZero() {
				known = append(known, e)
			}
		}
		known = append(known, found.digests(other)...)
	}
	unknown := len(m.blobs) - len(known)
	_, missing := remove(known, want)
	return missing <= unknown, unknown == 0
}

// notExcluded returns a denied build for the model that is known by digests of another
// bank than the one that is appraised, and that what was measured is, for certain, or
// could be. A build that could not be compared is not known to be another.
func (m *measuredFirmware) notExcluded(refs []FirmwareReference, main string, found *FirmwareReference, verdict FirmwareVerdict, s *SMBIOS) (ref *FirmwareReference, certain bool) {
	for i := range refs {
		r := &refs[i]
		if r.Status == FirmwareAllowed || r.textOnly() || r.comparable(main) || !r.forModel(s) {
			continue
		}
		if main == "sha256" && len(r.Digests) > 0 || main == "sha384" && len(r.SHA384) > 0 {
			ref = r // it has digests of this bank, which cannot be read
			continue
		}
		for _, other := range appraisalBanks() {
			if other == main || len(r.Digests) == 0 && other == "sha256" || len(r.SHA384) == 0 && other == "sha384" {
				continue
			}
			could, sure := m.couldBe(r, main, other, found)
			switch {
			case could && sure:
				return r, true
			case could && verdict == FirmwareCrossChecked && !sameVersion(m.crtm, r.Version):
				// The version text that was measured is another's.
			case could && ref == nil:
				ref = r
			}
		}
	}
	return ref, false
}

// findReference returns the reference of what was measured, or of what is only
// claimed, and how far that is proven. Denied references win over allowed ones of
// the same build. If what was measured could as well be a denied build that is
// known only in another bank, it is unknown, and that build is returned as unsure.
func findReference(refs []FirmwareReference, bank string, m *measuredFirmware, s *SMBIOS) (ref *FirmwareReference, verdict FirmwareVerdict, unsure *FirmwareReference) {
	ref, verdict = findCompared(refs, bank, m, s)
	if ref != nil && ref.Status != FirmwareAllowed {
		return ref, verdict, nil
	}
	switch denied, certain := m.notExcluded(refs, bank, ref, verdict, s); {
	case denied == nil:
		return ref, verdict, nil
	case certain:
		return denied, FirmwareMeasured, nil
	case ref == nil:
		return nil, verdict, nil
	default:
		return nil, FirmwareUnknown, denied
	}
}

// findCompared finds the reference among those that can be compared in a bank, and
// those without digests.
func findCompared(refs []FirmwareReference, bank string, m *measuredFirmware, s *SMBIOS) (*FirmwareReference, FirmwareVerdict) {
	var best *FirmwareReference
	for i := range refs {
		r := &refs[i]
		if r.forModel(s) && r.matches(bank, m.blobs) && (best == nil || r.Status != FirmwareAllowed) {
			best = r
		}
	}
	if best != nil {
		return best, FirmwareMeasured
	}
	// Builds without digests are known by the version text in PCR 0. Makers
	// measure a BIOS id, of which the SMBIOS version is the long form:
	// "N32ET68W" and "N32ET68W (1.44 )".
	for i := range refs {
		r := &refs[i]
		if r.textOnly() && m.crtm != "" && r.forModel(s) && sameVersion(m.crtm, r.Version) && sameVersion(m.crtm, s.BIOSVersion) &&
			(best == nil || r.Status != FirmwareAllowed) {
			best = r
		}
	}
	if best != nil {
		return best, FirmwareCrossChecked
	}
	for i := range refs {
		r := &refs[i]
		if r.forModel(s) && s.BIOSVersion != "" && r.Version == s.BIOSVersion && (best == nil || r.Status != FirmwareAllowed) {
			best = r
		}
	}
	if best != nil && best.Status == FirmwareAllowed {
		return best, FirmwareClaimedOnly
	}
	return nil, FirmwareUnknown
}

// sameVersion reports whether a version is the measured one, alone or followed
// by a space and more.
func sameVersion(measured, version string) bool {
	return version == measured || strings.HasPrefix(version, measured+" ")
}

// appraiseFirmware judges PCR 0 and compares it with what the machine claims.
func (v *verification) appraiseFirmware(l *EventLog, sound map[int]bool, banks []*quoted, s *SMBIOS) {
	fw := &v.r.Firmware
	fw.Claimed, fw.Vendor, fw.Product = s.BIOSVersion, s.Manufacturer, s.Product
	if !sound[0] {
		return
	}
	m := readFirmware(l)
	m.readElsewhere(l, banks)
	v.fact("firmware.crtm", m.crtm, TrustQuoted)
	for _, d := range m.blobs[:min(maxFindings, len(m.blobs))] {
		if l.main == "sha256" {
			fw.Digests = append(fw.Digests, manifest.SHA256([]byte(d)))
		}
		v.fact("firmware.digest", d.String(), TrustDigest)
	}
	ref, verdict, unsure := findReference(v.p.Firmware.References, l.main, m, s)
	fw.Verdict = verdict
	switch released := v.p.Firmware.releases(verdict); {
	case unsure != nil:
		v.findPCR(0, Finding{
			Code: CodeFirmwareUnknown,
			Message: fmt.Sprintf("PCR 0: what was measured (%s) could be firmware version %s, which is denied%s: that build is known by no digest of the bank %s",
				listDigests(m.blobs), unsure.Version, because(unsure.Reason), l.main),
			Got:  listDigests(m.blobs),
			Hint: "add the build's digests of this bank to the catalogue, from the same files: sealift firmware catalogue add",
		})
		return
	case ref == nil || verdict == FirmwareClaimedOnly && !released:
		claim := "claims no version"
		if s.BIOSVersion != "" {
			claim = fmt.Sprintf("claims version %q", s.BIOSVersion)
		}
		v.findPCR(0, Finding{
			Code: CodeFirmwareUnknown,
			Message: fmt.Sprintf("PCR 0: the firmware of %q %q %s, but what was measured (%s) is none of %d known builds%s",
				s.Manufacturer, s.Product, claim, listDigests(m.blobs), len(v.p.Firmware.References), notComparable(v.p.Firmware.References, l.main, s)),
			Got: listDigests(m.blobs), Want: expectedDigests(v.p.Firmware.References, l.main, s),
			Hint: "compare with the known builds: sealift firmware catalogue; add this one if you trust it",
		})
		return
	case !released:
		v.findPCR(0, Finding{
			Code:    CodeFirmwareUnknown,
			Message: fmt.Sprintf("PCR 0: firmware version %s is only %s, and the policy does not release with that", ref.Version, verdict),
			Got:     string(verdict), Want: fmt.Sprint(v.p.Firmware.Release),
			Hint: "add the digests of the build to the catalogue: sealift firmware catalogue add",
		})
	}
	fw.Version = ref.Version
	trust := TrustQuoted
	if verdict == FirmwareClaimedOnly {
		trust = TrustClaimed
	}
	v.fact("firmware.version", ref.Version, trust)
	if ref.Status != FirmwareAllowed {
		fw.Verdict = FirmwareVerdictDenied
		v.findPCR(0, Finding{
			Code:    CodeFirmwareDenied,
			Message: fmt.Sprintf("PCR 0: firmware version %s, as %s, is not allowed%s", ref.Version, verdict, because(ref.Reason)),
			Got:     ref.Version, Want: strings.Join(allowedVersions(v.p.Firmware.References, s), " "),
			Hint: "update the firmware, or allow this version: sealift firmware campaign create",
		})
	}
	v.applyModelRules(ref, verdict, s)
	if verdict == FirmwareMeasured {
		v.checkFirmwareAgreement(l, m, ref, banks)
	}
	// A reference found by version text agrees with the claim already.
	if verdict == FirmwareMeasured && ref.Version != s.BIOSVersion {
		claimed := "says nothing"
		if s.BIOSVersion != "" {
			claimed = fmt.Sprintf("says %q", s.BIOSVersion)
		}
		v.findPCR(0, Finding{
			Code:    CodeFirmwareClaim,
			Message: fmt.Sprintf("the machine's SMBIOS %s, the measured firmware is version %q", claimed, ref.Version),
			Got:     s.BIOSVersion, Want: ref.Version,
			Hint: "the machine lies about its firmware, or the catalogue has a wrong version: sealift firmware catalogue",
		})
	}
}

// checkFirmwareAgreement requires a build that was found by the digests of one bank
// to be the same by those of another, as checkAgreement does of what images
// measure: the digest of a firmware volume is of nothing that the log has, so that
// only the reference can tell. Of a bank in which the build is not known nothing
// can be said, and a fact says so.
func (v *verification) checkFirmwareAgreement(l *EventLog, m *measuredFirmware, ref *FirmwareReference, banks []*quoted) {
	for _, bank := range appraisalBanks() {
		index := slices.Index(l.Banks, bank)
		if bank == l.main || index < 0 || !slices.ContainsFunc(banks, func(q *quoted) bool { return q.bank == bank }) {
			continue
		}
		if !ref.comparable(bank) {
			v.fact("firmware.bank.uncompared", bank, TrustRecorded)
			continue
		}
		var blobs []digest
		for _, e := range m.events {
			blobs = append(blobs, digest(e.digests[index]))
		}
		if ref.matches(bank, blobs) {
			continue
		}
		v.findPCR(0, Finding{
			Code: CodeLogStructure,
			Message: fmt.Sprintf("PCR 0: by bank %s the firmware is version %s, by bank %s it is not: that has %s, want %s",
				l.main, ref.Version, bank, listDigests(blobs), listDigests(ref.digests(bank))),
			Got: listDigests(blobs), Want: listDigests(ref.digests(bank)),
			Hint: "one of the banks was not extended by the firmware: deactivate all banks but one in the firmware's setup; if it stays, keep the evidence",
		})
	}
}

// because is a reason after a message, if there is one.
func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// notComparable says how many of the builds that are known for the model could not be
// compared, as they have digests in another bank only.
func notComparable(refs []FirmwareReference, bank string, s *SMBIOS) string {
	n := 0
	for i := range refs {
		if r := &refs[i]; r.forModel(s) && !r.textOnly() && !r.comparable(bank) {
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d for this model have no digests of the bank %s)", n, bank)
}

func listDigests(ds []digest) string {
	var parts []string
	for _, d := range ds[:min(maxListed, len(ds))] {
		parts = append(parts, d.String())
	}
	if len(ds) > maxListed {
		parts = append(parts, fmt.Sprintf("and %d more", len(ds)-maxListed))
	}
	if len(ds) == 0 {
		return "nothing"
	}
	return strings.Join(parts, " ")
}

// expectedDigests lists the digests of the allowed builds for the model.
func expectedDigests(refs []FirmwareReference, bank string, s *SMBIOS) string {
	var parts []string
	for i := range refs {
		if r := &refs[i]; r.Status == FirmwareAllowed && r.forModel(s) && len(parts) < maxListed {
			parts = append(parts, fmt.Sprintf("%s: %s", cleanText(r.Version), listDigests(r.digests(bank))))
		}
	}
	return strings.Join(parts, "; ")
}

func allowedVersions(refs []FirmwareReference, s *SMBIOS) []string {
	var out []string
	for i := range refs {
		if r := &refs[i]; r.Status == FirmwareAllowed && r.forModel(s) && len(out) < maxListed {
			out = append(out, cleanText(r.Version))
		}
	}
	return out
}
