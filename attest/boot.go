package attest

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/sealift/sealift/image/manifest"
)

// Strings that firmware measures as EV_EFI_ACTION events, without a NUL (TCG
// PFP, "EV_EFI_ACTION Event Types").
const (
	actionCalling      = "Calling EFI Application from Boot Option"
	actionReturning    = "Returning from EFI Application from Boot Option"
	actionExit         = "Exit Boot Services Invocation"
	actionExitDone     = "Exit Boot Services Returned with Success"
	actionExitFailed   = "Exit Boot Services Returned with Failure" // the kernel then tries again with a new memory map
	firstUntouched     = 12                                         // PCR 12 to 15 are zero in a boot of a closed image
	exitPCR            = 5                                          // of the end of boot services
	kernelPCR          = 11                                         // of the UKI's sections
	capPCR             = 15
	lastSeparatedPCR   = 7
	maxListed          = 4 // digests of a list that a message shows
	reasonRetyped      = "a known digest under another type: the log was altered"
	hintInspectLog     = "keep the evidence and inspect the firmware: sealift attest log shows the log"
	hintRemoveHardware = "remove or disable the device or firmware option that measures it"
)

// The two valid separators.
const (
	separator0 = "\x00\x00\x00\x00"
	separatorF = "\xff\xff\xff\xff"
)

// isSeparator reports whether the event's digest is that of one of the two valid
// separators. Another value tells of an error in the firmware (PFP, EV_SEPARATOR).
func (e *Event) isSeparator() bool {
	return e.isOf([]byte(separator0)) || e.isOf([]byte(separatorF))
}

// checkSeparators requires exactly one valid separator in each of PCR 0 to 7,
// known by its digest and not by its type, and nothing after it in the PCRs
// that only firmware measures into. A log from which all events of a PCR were
// deleted has none.
func (v *verification) checkSeparators(l *EventLog, sound map[int]bool) {
	for pcr := 0; pcr <= lastSeparatedPCR; pcr++ {
		if !sound[pcr] {
			continue
		}
		bad := func(code Code, e *Event, format string, args ...any) {
			m := fmt.Sprintf("PCR %d: ", pcr) + fmt.Sprintf(format, args...)
			if e != nil {
				m = fmt.Sprintf("PCR %d, event %d: ", pcr, e.Number) + fmt.Sprintf(format, args...)
			}
			v.findPCR(pcr, Finding{Code: code, Message: m, Hint: hintInspectLog})
		}
		n := 0
		for _, e := range l.ForPCR(pcr) {
			valid := e.isSeparator()
			switch {
			case valid && e.UntrustedType != EventSeparator:
				bad(CodeLogRetyped, e, "the digest of a separator in a %s event: %s", e.UntrustedType, reasonRetyped)
				n++ // it was measured
			case !valid && e.UntrustedType == EventSeparator:
				bad(CodeLogStructure, e, "an invalid separator, digest %s: the firmware reports an error, or the log was altered", e.digest())
			case valid:
				n++
			case n > 0 && (pcr == 0 || pcr == 2 || pcr == 3 || pcr == 6):
				bad(CodeLogStructure, e, "a %s event after the separator, digest %s", e.UntrustedType, e.digest())
			}
		}
		if n != 1 {
			bad(CodeLogStructure, nil, "%d separators, want exactly 1", n)
		}
	}
}

// checkUntouched requires PCR 12 to 15 to be zero in every bank: nothing from
// outside the image was taken in (12, 13), no shim ran (14), and no boot that
// was already given its secrets asks again (15, which the agent extends).
func (v *verification) checkUntouched(l *EventLog, banks []*quoted) {
	capped := false
	for _, q := range banks {
		capped = capped || !allBytes(q.values[capPCR], 0)
	}
	for pcr := firstUntouched; pcr <= capPCR; pcr++ {
		for _, q := range banks {
			value := q.values[pcr]
			if allBytes(value, 0) {
				continue
			}
			f := Finding{Code: CodePCRNotZero, Got: fmt.Sprintf("%x", value), Want: "zero"}
			f.Message = fmt.Sprintf("PCR %d, bank %s, is %x, want zero: %s", pcr, q.bank, value, map[int]string{
				12: "a command line, credential or addon from outside the image was used",
				13: "a system extension from outside the image was used",
				14: "a shim or another boot loader ran",
				15: "the boot was already capped",
			}[pcr])
			f.Hint = "boot the image as it was installed: no command line, credentials or extensions from outside"
			if pcr == capPCR || pcr == firstUntouched && capped {
				f.Code = CodePCRCapped
				f.Hint = "restart the machine: secrets are released once in a boot"
			}
			v.findPCR(pcr, f)
			break // one bank is enough to say so
		}
	}
}

// measuredBoot judges what booted, PCR by PCR. A PCR whose digests are
// not authentic is not judged: replay has found it.
type measuredBoot struct {
	v     *verification
	log   *EventLog
	sound map[int]bool
	// in384 has the SHA-384 digests of an image's reference values by their
	// SHA-256 digests, for the images that were asked for.
	in384 map[*manifest.Manifest]map[manifest.SHA256]digest

	secureBootOff bool               // measured as off
	image         *manifest.Manifest // in PCR 4, nil if unknown
	denied        *DeniedImage       // in PCR 4, nil if none is
	reference     *manifest.Manifest // image, or the allowed image that is most like what booted
}

func (b *measuredBoot) appraise() {
	sb := b.readSecureBoot()
	b.secureBootOff = sb != nil && sb.off
	apps := b.appraiseApplications()
	sections := b.readSections()
	b.chooseReference(sections)
	if len(b.v.p.Images) == 0 && b.denied == nil {
		b.v.find(Finding{Code: CodeImageUnknown, Message: "the policy allows no image", Hint: "give the service the signed manifest of an image that the policy allows"})
	}
	if b.image != nil {
		b.v.r.Image, b.v.r.ImageUKI = imageName(b.image), b.image.UKI.Authenticode
		b.v.fact("image", imageName(b.image), TrustQuoted)
	}
	b.findUnknownApplications(apps)
	b.findDeniedImage()
	if b.reference != nil {
		b.appraiseSections(sections)
		b.appraiseKernel()
	}
	if sb != nil {
		b.appraiseSecureBoot(sb)
	}
	b.appraisePartitions()
	b.appraiseConfiguration()
	b.appraisePlatform()
	for _, pcr := range []int{2, 3, 6} {
		b.appraiseNothingElse(pcr)
	}
}

// unknown adds a finding about an event that no rule allows.
func (b *measuredBoot) unknown(e *Event, what, hint string) {
	if b.v.full(CodeEventUnknown, unknownComponents(e.PCR)) {
		b.v.dropped++
		return
	}
	b.v.findPCR(e.PCR, Finding{
		Code: CodeEventUnknown, Component: unknownComponents(e.PCR),
		Message: fmt.Sprintf("PCR %d, event %d: %s, a %s event with the digest %s%s", e.PCR, e.Number, what, e.UntrustedType, e.digest(), dataHint(e)),
		Got:     e.digest().String(), Hint: hint,
	})
}

// retyped adds a finding about a known digest under another type.
func (b *measuredBoot) retyped(e *Event, what string) {
	if b.v.full(CodeLogRetyped, "") {
		b.v.dropped++
		return
	}
	b.v.findPCR(e.PCR, Finding{
		Code:    CodeLogRetyped,
		Message: fmt.Sprintf("PCR %d, event %d: the digest of %s in a %s event: %s", e.PCR, e.Number, what, e.UntrustedType, reasonRetyped),
		Got:     e.digest().String(), Hint: hintInspectLog,
	})
}

// dataHint shows an event's data in a message, and whether it is what was
// measured.
func dataHint(e *Event) string {
	data, verified := e.VerifiedData()
	text := cleanText(string(data))
	if strings.ContainsRune(text, '?') {
		text = cleanText(decodeUTF16(data))
	}
	if text == "" || strings.ContainsRune(text, '?') {
		return ""
	}
	if verified {
		return fmt.Sprintf(", text %q", text)
	}
	return fmt.Sprintf(", said to be %q", text)
}

// isAction reports whether an event is one of the actions. It is known by its
// digest; its type must agree.
func (b *measuredBoot) isAction(e *Event, actions ...string) bool {
	for _, a := range actions {
		if !e.isOf([]byte(a)) {
			continue
		}
		if e.UntrustedType != EventAction {
			b.retyped(e, fmt.Sprintf("the action %q", a))
		}
		return true
	}
	return false
}

// appraiseApplications finds the image in PCR 4 and returns the events of
// applications and drivers that are of none. The image is the last allowed UKI
// that was loaded, and its kernel counts only where Secure Boot is off: with
// it on, the stub does not let firmware load the kernel.
func (b *measuredBoot) appraiseApplications() []*Event {
	if !b.sound[4] {
		return nil
	}
	var unknown []*Event
	for _, e := range b.log.ForPCR(4) {
		d := e.digest()
		if e.isSeparator() || b.isAction(e, actionCalling, actionReturning) {
			continue
		}
		if m := b.imageOf(d); m != nil {
			if e.UntrustedType != EventBootApplication {
				b.retyped(e, "the UKI of image "+imageName(m))
			}
			b.image = m
			continue
		}
		if b.isDenied(d) {
			continue
		}
		if b.secureBootOff && b.image != nil && d == b.expected(b.image, b.image.UKI.Kernel) {
			if e.UntrustedType != EventBootApplication {
				b.retyped(e, "the kernel of image "+imageName(b.image))
			}
			continue
		}
		switch e.UntrustedType {
		case EventBootApplication, EventBootDriver, EventRuntimeDriver:
			unknown = append(unknown, e)
		default:
			b.unknown(e, "nothing but boot applications and their actions belongs here", hintInspectLog)
		}
	}
	return unknown
}

// imageOf returns the image whose UKI has this Authenticode digest.
func (b *measuredBoot) imageOf(d digest) *manifest.Manifest {
	for _, m := range b.v.p.Images {
		if m != nil && d == b.expected(m, m.UKI.Authenticode) {
			return m
		}
	}
	return nil
}

func (b *measuredBoot) findUnknownApplications(apps []*Event) {
	var allowed []string
	for _, m := range b.v.p.Images {
		if m == nil {
			continue
		}
		if len(allowed) == maxListed {
			allowed = append(allowed, "...")
			break
		}
		allowed = append(allowed, b.want(m, m.UKI.Authenticode))
	}
	likely := ""
	if b.image == nil && b.reference != nil {
		likely = fmt.Sprintf("; what was measured is most like image %s, whose UKI has %s", imageName(b.reference), b.want(b.reference, b.reference.UKI.Authenticode))
	}
	for _, e := range apps {
		b.v.findPCR(4, Finding{
			Code: CodeImageUnknown,
			Message: fmt.Sprintf("PCR 4, event %d: the boot application or driver with the Authenticode digest %s is the UKI of none of %d allowed images%s",
				e.Number, e.digest(), len(b.v.p.Images), likely),
			Got: e.digest().String(), Want: strings.Join(allowed, " "),
			Hint: "install an allowed image, or give the service the signed manifest of this one",
		})
	}
	if b.sound[4] && b.image == nil && b.denied == nil && len(apps) == 0 {
		b.v.findPCR(4, Finding{
			Code: CodeImageUnknown, Message: "PCR 4: no boot application was measured" + likely,
			Want: strings.Join(allowed, " "), Hint: hintInspectLog,
		})
	}
}

// appraiseKernel allows in PCR 9 what the kernel's EFI stub measures: its
// command line, in UTF-16 with a NUL, and the initrd. Its EV_EVENT_TAG data is
// only a label.
func (b *measuredBoot) appraiseKernel() {
	if !b.sound[9] {
		return
	}
	u := &b.reference.UKI
	cmdline, initrd := encodeUTF16(u.Cmdline), b.expected(b.reference, u.Initrd)
	seen := map[digest]bool{}
	for _, e := range b.log.ForPCR(9) {
		d := e.digest()
		what, code := "", CodeEventUnknown
		switch {
		case e.isOf(cmdline):
			what = "the command line"
		case d == initrd:
			what = "the initrd"
		case bytes.Contains(e.UntrustedData, []byte("LoadOptions")):
			code = CodeCmdline
		}
		switch {
		case what == "" && code == CodeCmdline:
			b.v.findPCR(9, Finding{
				Code: CodeCmdline,
				Message: fmt.Sprintf("PCR 9, event %d: the kernel got another command line than image %s has: digest %s, want %s (%q)",
					e.Number, imageName(b.reference), d, hashOf(e.hash, cmdline), u.Cmdline),
				Got: d.String(), Want: hashOf(e.hash, cmdline).String(), Hint: hintReinstall,
			})
		case what == "":
			b.unknown(e, "neither the initrd nor the command line of image "+imageName(b.reference), hintReinstall)
		case e.UntrustedType != EventTag:
			b.retyped(e, what)
		case seen[d]:
			b.unknown(e, what+" for a second time", hintInspectLog)
		}
		seen[d] = true
	}
}

// appraisePartitions allows in PCR 5 the partition table of the boot disk and
// the end of boot services, and compares the disk's GUID with the claim.
func (b *measuredBoot) appraisePartitions() {
	if !b.sound[5] {
		return
	}
	for _, e := range b.log.ForPCR(5) {
		if e.isSeparator() || b.isAction(e, actionExit, actionExitDone, actionExitFailed) {
			continue
		}
		if name, ok := b.v.component(5, e); ok {
			b.v.fact("component", "PCR 5: "+name, TrustQuoted)
			continue
		}
		data, verified := e.VerifiedData()
		if e.UntrustedType != EventGPT || !verified {
			b.unknown(e, "neither a partition table nor the end of boot services", hintInspectLog)
			continue
		}
		guid, err := gptDiskGUID(data)
		if err != nil {
			b.unknown(e, err.Error(), hintInspectLog)
			continue
		}
		b.v.fact("disk.guid.measured", guid, TrustQuoted)
		if guid != b.v.ev.Disk.GUID {
			b.v.findPCR(5, Finding{
				Code:    CodeDiskForeign,
				Message: fmt.Sprintf("PCR 5: firmware booted from disk %s, the agent says %s", guid, b.v.ev.Disk.GUID),
				Got:     b.v.ev.Disk.GUID, Want: guid,
				Hint: "remove the other disk, or put the right one first in the boot order",
			})
		}
	}
}

// appraiseNothingElse allows the separator and what the policy names for the
// model.
func (b *measuredBoot) appraiseNothingElse(pcr int) {
	if !b.sound[pcr] {
		return
	}
	for _, e := range b.log.ForPCR(pcr) {
		if name, ok := b.v.component(pcr, e); ok {
			b.v.fact("component", fmt.Sprintf("PCR %d: %s", pcr, name), TrustQuoted)
		} else if !e.isSeparator() {
			b.unknown(e, map[int]string{
				2: "a driver or option ROM that no policy allows",
				3: "the configuration of a driver that no policy allows",
				6: "something of the maker's own that no policy allows",
			}[pcr], hintRemoveHardware)
		}
	}
}

// isDenied notes a UKI of an image that the policy knows and refuses.
func (b *measuredBoot) isDenied(d digest) bool {
	for i := range b.v.p.DeniedImages {
		if m := b.v.p.DeniedImages[i].Manifest; m != nil && d == b.expected(m, m.UKI.Authenticode) {
			b.denied = &b.v.p.DeniedImages[i]
			return true
		}
	}
	return false
}

func (b *measuredBoot) findDeniedImage() {
	if b.denied == nil {
		return
	}
	name := imageName(b.denied.Manifest)
	b.v.fact("image.denied", name, TrustQuoted)
	b.v.findPCR(4, Finding{
		Code: CodeImageDenied, Message: fmt.Sprintf("PCR 4: image %s was booted, which the policy refuses: %s", name, b.denied.Reason),
		Got: name, Hint: "install an image that the policy allows",
	})
}

// unknownComponents says what an event that no rule allows is likely of.
func unknownComponents(pcr int) string {
	switch pcr {
	case 1:
		return "the firmware's configuration"
	case 2:
		return "an option ROM or driver"
	case 3:
		return "the configuration of an option ROM"
	case 4:
		return "the boot loader"
	case 5:
		return "the boot loader's configuration or the partition table"
	case 6:
		return "something of the maker's own"
	case 7:
		return "the Secure Boot policy"
	case 9:
		return "the kernel's command line or initrd"
	case 11:
		return "the UKI"
	}
	return ""
}
