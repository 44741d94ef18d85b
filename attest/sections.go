package attest

import (
	"fmt"
	"strings"
)

const hintReinstall = "the image on the disk was altered: install the machine anew, or give the service the signed manifest of this image"

// measuredSection is a UKI section as systemd-stub measured it into PCR 11.
type measuredSection struct {
	name   string
	digest digest
	event  int // number of the event with the digest
}

// sectionNames lists the sections that systemd-stub measures (UAPI.5, "UKI TPM
// PCR Measurements").
func sectionNames() []string {
	return []string{".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat",
		".pcrpkey", ".profile", ".dtbauto", ".hwids", ".efifw"}
}

// readSections decodes PCR 11: for each section its name with a NUL, then its
// contents. The name is known by its digest, never by the event's data. What
// does not fit is a finding, and ends the list.
func (b *measuredBoot) readSections() []measuredSection {
	if !b.sound[11] {
		return nil
	}
	var out []measuredSection
	events := b.log.ForPCR(11)
	names := map[digest]string{}
	for _, n := range sectionNames() {
		if len(events) > 0 {
			names[hashOf(events[0].hash, []byte(n+"\x00"))] = n
		}
	}
	for i := 0; i < len(events); i += 2 {
		e := events[i]
		name, ok := names[e.digest()]
		if !ok || i+1 == len(events) {
			b.unknown(e, fmt.Sprintf("want a section's name and contents after %d sections", len(out)), hintReinstall)
			break
		}
		for _, e := range events[i : i+2] {
			if e.UntrustedType != EventIPL {
				b.retyped(e, "section "+name)
			}
		}
		out = append(out, measuredSection{name, events[i+1].digest(), events[i+1].Number})
	}
	return out
}

// chooseReference sets the image that the measurements are compared with: the
// booted one, or else the allowed image that has the most sections in common
// with what was measured, so that a finding shows the difference.
func (b *measuredBoot) chooseReference(sections []measuredSection) {
	b.reference = b.image
	if b.reference == nil && b.denied != nil {
		b.reference = b.denied.Manifest
		return
	}
	best := -1
	for _, m := range b.v.p.Images {
		if b.image != nil || m == nil {
			continue
		}
		equal := 0
		for _, want := range m.UKI.Sections {
			for _, got := range sections {
				if got.name == want.Name && got.digest == b.expected(m, want.SHA256) {
					equal++
				}
			}
		}
		if equal > best {
			best, b.reference = equal, m
		}
	}
}

// appraiseSections compares PCR 11 with the reference image: the same sections
// with the same contents in the same order, and nothing else.
func (b *measuredBoot) appraiseSections(sections []measuredSection) {
	if !b.sound[11] {
		return
	}
	want := b.reference.UKI.Sections
	image := imageName(b.reference)
	bad := func(code Code, got digest, wanted, format string, args ...any) {
		f := Finding{Code: code, Message: "PCR 11: " + fmt.Sprintf(format, args...), Hint: hintReinstall}
		if strings.HasPrefix(format, "section %s") {
			f.Component = fmt.Sprintf("section %s", args[0])
		}
		if !got.IsZero() {
			f.Got = got.String()
		}
		f.Want = wanted
		b.v.findPCR(11, f)
	}
	const none = ""
	if len(want) == 0 {
		bad(CodeSection, none, none, "the manifest of image %s names no sections to compare with", image)
	}
	measured := map[string]measuredSection{}
	for _, s := range sections {
		if _, dup := measured[s.name]; dup {
			bad(CodeSection, s.digest, none, "section %s was measured twice, again in event %d", s.name, s.event)
			continue
		}
		measured[s.name] = s
	}
	known := map[string]bool{}
	ordered := true
	last := -1
	for _, w := range want {
		known[w.Name] = true
		got, ok := measured[w.Name]
		reference, wanted := b.expected(b.reference, w.SHA256), b.want(b.reference, w.SHA256)
		switch {
		case !ok:
			bad(CodeSection, none, wanted, "section %s of image %s was not measured", w.Name, image)
			continue
		case got.digest != reference && w.Name == ".cmdline":
			bad(CodeCmdline, got.digest, wanted, "the kernel command line (section .cmdline) differs from that of image %s: measured %s, want %s (%q)",
				image, got.digest, wanted, b.reference.UKI.Cmdline)
		case got.digest != reference:
			bad(CodeSection, got.digest, wanted, "section %s differs from that of image %s: measured %s, want %s", w.Name, image, got.digest, wanted)
		}
		ordered = ordered && got.event > last
		last = got.event
	}
	for _, s := range sections {
		if !known[s.name] {
			bad(CodeSection, s.digest, none, "section %s, digest %s, is not in image %s", s.name, s.digest, image)
		}
	}
	if !ordered {
		bad(CodeSection, none, none, "the sections of image %s were measured in another order", image)
	}
}
