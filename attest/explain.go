package attest

import (
	"crypto"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/sealift/sealift/image/manifest"
)

// maxDifferences bounds an Explanation. What is beyond it is counted.
const maxDifferences = 64

// Explanation says for people why evidence was refused and what is other than
// it was. No verdict rests on it.
type Explanation struct {
	Machine MachineID `json:"machine"`
	Policy  string    `json:"policy"`
	Allowed bool      `json:"allowed"`
	// Refusals are the findings: the differences from the reference values and
	// from the service's record.
	Refusals []Refusal `json:"refusals"`
	// Differences are what changed since the last boot that was accepted.
	Differences []Difference `json:"differences"`
	Compared    bool         `json:"compared"` // there was such a boot to compare with
	Omitted     int          `json:"omitted,omitempty"`
	Facts       []Fact       `json:"facts"`
}

// Refusal is a finding with what it is about.
type Refusal struct {
	Finding
	Trust   Trust  `json:"trust"`   // how far what was found is proven
	Command string `json:"command"` // the command that mends it, or that shows more
}

// Difference is one thing that is other than in the last accepted boot. Event
// is its number in the present log, 0 if it is not in there.
type Difference struct {
	PCR       *int   `json:"pcr,omitempty"`
	Event     int    `json:"event,omitempty"`
	Component string `json:"component"`
	Text      string `json:"text"`
	Was       string `json:"was,omitempty"`
	Is        string `json:"is,omitempty"`
	Trust     Trust  `json:"trust"`
}

// Explain explains the result that Verify gave for ev under p. last is the
// evidence of the machine that was accepted last, or nil.
func Explain(r *Result, ev *Evidence, p *Policy, last *Evidence) *Explanation {
	x := &explainer{r: r, p: p, extends: maxExtends, out: &Explanation{
		Machine: r.Machine, Policy: r.Policy, Allowed: r.Allowed, Refusals: []Refusal{}, Differences: []Difference{}, Facts: r.Facts,
	}}
	if x.out.Facts == nil {
		x.out.Facts = []Fact{}
	}
	x.rooted = slices.ContainsFunc(r.Facts, func(f Fact) bool { return f.Trust == TrustQuoted })
	if ev != nil && checkSizes(ev) == nil {
		x.now = readBoot(ev)
	}
	if last != nil && x.now != nil && checkSizes(last) == nil {
		x.out.Compared = true
		x.was = readBoot(last)
	}
	for _, f := range r.Findings {
		x.refusal(f, ev)
	}
	if x.out.Compared {
		x.compare(ev, last)
	}
	return x.out
}

type explainer struct {
	r        *Result
	p        *Policy
	rooted   bool // a trusted TPM signed the quotes
	now, was *loggedBoot
	extends  int // how many more hashes leftOut may compute
	out      *Explanation
}

// loggedBoot is the log of one piece of evidence, read twice: strictly for the
// digests, and leniently for the words. log is nil if it cannot be read.
type loggedBoot struct {
	log   *EventLog
	words map[int]*LoggedEvent // by number
}

func readBoot(ev *Evidence) *loggedBoot {
	b := &loggedBoot{words: map[int]*LoggedEvent{}}
	l, err := ParseEventLog(ev.EventLog)
	if err != nil {
		return b
	}
	// As Verify: by SHA-384 where SHA-256 is off, whose digests are no one's word then.
	off := slices.ContainsFunc(ev.Quotes, func(q Quote) bool { return q.Bank == "sha256" && len(q.PCRs) == 0 })
	if off && slices.Contains(l.Banks, "sha384") {
		l.appraiseBy("sha384")
	}
	b.log = l
	if d, err := DecodeLog(ev.EventLog); err == nil {
		for i := range d.Events {
			b.words[d.Events[i].Number] = &d.Events[i]
		}
	}
	return b
}

// text returns what an event says, for people.
func (b *loggedBoot) text(e *Event) string {
	if w := b.words[e.Number]; w != nil && w.Text != "" {
		return w.Text
	}
	return "a " + e.UntrustedType.String() + " event"
}

// authentic reports whether an event's text is what was measured.
func (b *loggedBoot) authentic(e *Event) bool {
	w := b.words[e.Number]
	return w != nil && w.Trust == DataAuthenticated
}

// trust says how far an event is proven.
func (x *explainer) trust(b *loggedBoot, e *Event) Trust {
	switch {
	case !x.rooted || x.unsound(e.PCR):
		return TrustClaimed
	case b.authentic(e):
		return TrustQuoted
	}
	return TrustDigest
}

// unsound reports whether the log does not lead to the quoted value of a PCR.
func (x *explainer) unsound(pcr int) bool {
	return slices.ContainsFunc(x.r.Findings, func(f Finding) bool {
		return f.Code == CodeBankEmpty || f.Code == CodeBankUnlogged || f.Code.breaksReplay() && f.PCR != nil && *f.PCR == pcr
	})
}

// refusal names component, trust and command of a finding about ev.
func (x *explainer) refusal(f Finding, ev *Evidence) {
	component, command := mends(f.Code)
	if f.Component == "" {
		f.Component = component
	}
	if f.Component == "dbx" {
		command = commandDBX
	}
	if f.Code == CodeBankUnproven {
		switch f.Got { // why there is no proof
		case gotUnasked:
			command = commandRestart
		case gotUnable:
			command = commandPolicy
		case gotSilent:
			command = commandBuild
		}
	}
	id := "ID"
	if !x.r.Machine.IsZero() {
		id = x.r.Machine.String()
	}
	trust := TrustQuoted
	switch {
	case strings.HasPrefix(string(f.Code), "machine."), strings.HasPrefix(string(f.Code), "policy."), f.Code == CodeReleaseRepeated:
		trust = TrustRecorded
	case x.rooted && f.Code.breaksReplay() && f.Code != CodeLogReplay:
		trust = TrustDigest // the value was quoted, and the digests lead to it
	case !x.rooted, f.Code == CodeMalformed, f.Code == CodeLogMalformed, f.Code == CodeLogReplay, f.PCR != nil && x.unsound(*f.PCR),
		f.Code == CodeDiskForeign && f.PCR == nil, f.Code == CodeStateLost, f.Code == CodeFirmwareClaim,
		f.Code == CodeBankUnproven, f.Code == CodeBankTurnedOff && !slices.ContainsFunc(x.r.Facts, func(f Fact) bool { return f.Name == factBanks }):
		trust = TrustClaimed
	case f.Code == CodeCmdline || f.Code == CodeSection || f.Code == CodeImageUnknown || f.Code == CodeEventUnknown || f.Code == CodeFirmwareUnknown:
		trust = TrustDigest
	}
	if f.Code == CodeLogReplay {
		if what := x.leftOut(f, ev); what != "" {
			f.Message += "; " + what
		}
	}
	if f.Code == CodeCmdline {
		if words := x.commandLine(f.Got); words != "" {
			f.Message += "; " + words
		}
	}
	x.out.Refusals = append(x.out.Refusals, Refusal{Finding: f, Trust: trust, Command: strings.ReplaceAll(command, "ID", id)})
}

// leftOut says which event of the last accepted boot is left out of the log, if the
// log leads with it to the quoted value of the PCR that the finding is about.
func (x *explainer) leftOut(f Finding, ev *Evidence) string {
	if f.PCR == nil || x.was == nil || x.was.log == nil || x.now.log == nil {
		return ""
	}
	bank := x.now.log.main
	index := slices.Index(x.was.log.Banks, bank)
	i := slices.IndexFunc(ev.Quotes, func(q Quote) bool { return q.Bank == bank })
	if index < 0 || i < 0 || hex.EncodeToString(ev.Quotes[i].PCRs[*f.PCR]) != f.Want {
		return "" // or it is about another bank
	}
	var known []knownEvent
	for _, e := range x.was.log.ForPCR(*f.PCR) {
		known = append(known, knownEvent{digest(e.digests[index]), fmt.Sprintf("in the last good boot %q,", cleanTo(maxEventText, x.was.text(e)))})
	}
	d := &replayDiagnosis{bank: bank, quoted: ev.Quotes[i].PCRs[*f.PCR], extends: &x.extends}
	if len(x.now.log.Events) > x.extends || d.begin(x.now.log, *f.PCR) != nil {
		return ""
	}
	return d.left(known)
}

// commandLine says in words how the command line with a digest differs from
// that of the images that may run. A digest does not tell the text; it is found
// among those of known images and in what the log says that was measured.
func (x *explainer) commandLine(digest string) string {
	if x.p == nil {
		return ""
	}
	type text struct{ is, from string }
	var known []text
	for _, d := range x.p.DeniedImages {
		if d.Manifest != nil {
			known = append(known, text{d.Manifest.UKI.Cmdline, "image " + imageName(d.Manifest) + ", which the policy refuses"})
		}
	}
	var want *manifest.Manifest
	for _, m := range x.p.Images {
		if m == nil {
			continue
		}
		if want == nil || imageName(m) == x.r.Image {
			want = m
		}
		known = append(known, text{m.UKI.Cmdline, "image " + imageName(m)})
	}
	if want == nil {
		return ""
	}
	if x.now != nil && x.now.log != nil {
		for i := range x.now.log.Events {
			e := &x.now.log.Events[i]
			if s, ok := textOf(e.UntrustedData); ok && len(e.UntrustedData) <= 2*maxDecodedText {
				known = append(known, text{s, "a text in the event log"})
			}
		}
	}
	for _, k := range known {
		for _, measured := range [][]byte{[]byte(k.is), []byte(k.is + "\x00"), encodeUTF16(k.is)} {
			if hashOf(crypto.SHA256, measured).String() == digest || hashOf(crypto.SHA384, measured).String() == digest {
				return fmt.Sprintf("it is that of %s: %s", k.from, diffWords(want.UKI.Cmdline, k.is))
			}
		}
	}
	return ""
}

// maxDecodedText bounds a text of a log that is tried as a command line, in
// characters.
const maxDecodedText = 4096

// diffWords names the words that only one of two command lines has.
func diffWords(was, is string) string {
	count := map[string]int{}
	for _, w := range strings.Fields(was) {
		count[w]--
	}
	for _, w := range strings.Fields(is) {
		count[w]++
	}
	var gone, added []string
	for _, w := range strings.Fields(was) {
		if count[w] < 0 {
			count[w]++
			gone = append(gone, cleanTo(maxEventText, w))
		}
	}
	for _, w := range strings.Fields(is) {
		if count[w] > 0 {
			count[w]--
			added = append(added, cleanTo(maxEventText, w))
		}
	}
	var parts []string
	if len(added) > 0 {
		parts = append(parts, "has "+listWords(added))
	}
	if len(gone) > 0 {
		parts = append(parts, "lacks "+listWords(gone))
	}
	if len(parts) == 0 {
		return "the words are the same in another order"
	}
	return strings.Join(parts, ", ")
}

func listWords(words []string) string {
	if n := len(words) - 2*maxListed; n > 0 {
		words = append(words[:2*maxListed:2*maxListed], fmt.Sprintf("and %d more", n))
	}
	return strings.Join(words, " ")
}

// add adds a difference.
func (x *explainer) add(d Difference) {
	if len(x.out.Differences) == maxDifferences {
		x.out.Omitted++
		return
	}
	x.out.Differences = append(x.out.Differences, d)
}

// compare lists what is other than in the last accepted boot: the TPM, what the
// machine claims, and the log PCR by PCR.
func (x *explainer) compare(ev, last *Evidence) {
	signed := TrustClaimed
	if x.rooted {
		signed = TrustQuoted
	}
	plain := func(component string, t Trust, was, is string) {
		if was != is {
			x.add(Difference{Component: component, Text: fmt.Sprintf("%s was %s, is %s", component, orNothing(was), orNothing(is)), Was: was, Is: is, Trust: t})
		}
	}
	plain("the attestation key", signed, hex.EncodeToString(nameOf(last.AKPublic)), hex.EncodeToString(nameOf(ev.AKPublic)))
	plain("the TPM's firmware version", signed, tpmFirmwareOf(last), tpmFirmwareOf(ev))
	plain("the list of PCR banks", signed, banksOf(last), banksOf(ev))
	was, err1 := ParseSMBIOS(last.SMBIOS)
	is, err2 := ParseSMBIOS(ev.SMBIOS)
	if err1 == nil && err2 == nil {
		plain("the firmware version in SMBIOS", TrustClaimed, was.BIOSVersion, is.BIOSVersion)
		plain("the firmware date in SMBIOS", TrustClaimed, was.BIOSDate, is.BIOSDate)
		plain("the manufacturer in SMBIOS", TrustClaimed, was.Manufacturer, is.Manufacturer)
		plain("the product in SMBIOS", TrustClaimed, was.Product, is.Product)
		plain("the serial number in SMBIOS", TrustClaimed, was.Serial, is.Serial)
	}
	plain("the boot disk's GUID", TrustClaimed, last.Disk.GUID, ev.Disk.GUID)
	if x.now.log == nil || x.was == nil || x.was.log == nil {
		return
	}
	if x.now.log.StartupLocality != x.was.log.StartupLocality {
		plain("the TPM's startup locality", signed, fmt.Sprint(x.was.log.StartupLocality), fmt.Sprint(x.now.log.StartupLocality))
	}
	// By a bank that both logs have and both TPMs quoted with its PCRs.
	has := func(b *loggedBoot, ev *Evidence, bank string) bool {
		return slices.Contains(b.log.Banks, bank) && slices.ContainsFunc(ev.Quotes, func(q Quote) bool { return q.Bank == bank && len(q.PCRs) > 0 })
	}
	for _, bank := range []string{"sha256", "sha384"} {
		if has(x.was, last, bank) && has(x.now, ev, bank) {
			x.was.log.appraiseBy(bank)
			x.now.log.appraiseBy(bank)
			for _, pcr := range PolicyPCRs() {
				x.comparePCR(pcr)
			}
			return
		}
	}
	x.add(Difference{Component: "the event log", Text: "the log has no bank in common with that of the last good boot: its events cannot be compared", Trust: TrustClaimed})
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func tpmFirmwareOf(ev *Evidence) string {
	for i := range ev.Quotes {
		if a, err := decodeAttest("quote", ev.Quotes[i].Attest); err == nil {
			return fmt.Sprintf("%#016x", a.FirmwareVersion)
		}
	}
	return ""
}

func banksOf(ev *Evidence) string {
	var banks []string
	for i := range ev.Quotes {
		if len(ev.Quotes[i].PCRs) > 0 { // else it is off
			banks = append(banks, cleanText(ev.Quotes[i].Bank))
		}
	}
	slices.Sort(banks)
	return strings.Join(banks, " ")
}

// part of a PCR that is compared as a whole: what it is called, and its event.
type measuredPart struct {
	key   string // the same in two boots for the same thing
	event *Event
}

// parts names the events of a PCR.
func (b *loggedBoot) parts(pcr int) []measuredPart {
	var out []measuredPart
	section := ""
	numbers := map[string]int{}
	for _, e := range b.log.ForPCR(pcr) {
		key := b.keyOf(e)
		if pcr == kernelPCR {
			if section == "" {
				section, key = b.text(e), "the name of a section"
			} else {
				key, section = "section "+cleanText(strings.Trim(section, `"`)), ""
			}
		}
		// The second option ROM and the third volume are things of their own.
		numbers[key]++
		if n := numbers[key]; n > 1 {
			key = fmt.Sprintf("%s (%d)", key, n)
		}
		out = append(out, measuredPart{key, e})
	}
	return out
}

// keyOf names what an event is of.
func (b *loggedBoot) keyOf(e *Event) string {
	switch e.UntrustedType {
	case EventVariableConfig, EventVariableBoot, EventVariableBoot2:
		if v, err := parseVariable(e.UntrustedData); err == nil {
			switch name := cleanText(v.Name); {
			case name == "BootOrder":
				return "the boot order"
			case strings.HasPrefix(name, "Boot") && len(name) == len("Boot0000"):
				return "boot option " + name
			case e.PCR == 7:
				return name
			default:
				return "variable " + name
			}
		}
	case EventAuthority:
		return "the certificate that verified an image or driver"
	case EventSCRTMVersion:
		return "the firmware's version text"
	case EventFirmwareBlob, EventFirmwareBlob2, EventSCRTMContents, EventPostCode, EventPostCode2:
		return "firmware volume"
	case EventBootApplication:
		return "the boot application"
	case EventBootDriver, EventRuntimeDriver:
		if e.PCR == 2 {
			return "option ROM"
		}
		return "driver"
	case EventGPT, EventGPT2:
		return "the partition table"
	case EventHandoff, EventHandoff2:
		return "the handoff tables (SMBIOS, ACPI)"
	case EventSeparator:
		return "the separator"
	case EventTag:
		switch text := b.text(e); {
		case strings.Contains(text, "LoadOptions"):
			return "the kernel command line"
		case strings.Contains(text, "initrd"):
			return "the initrd"
		}
	case EventAction:
		return "action " + b.text(e)
	}
	return "a " + e.UntrustedType.String() + " event"
}

// comparePCR lists the differences in one PCR, in the order of the log.
func (x *explainer) comparePCR(pcr int) {
	was, is := x.was.parts(pcr), x.now.parts(pcr)
	gone, added := diffParts(was, is)
	for _, a := range added {
		t := x.trust(x.now, a.event)
		at := fmt.Sprintf("PCR %d: ", pcr)
		d := Difference{PCR: &pcr, Event: a.event.Number, Component: a.key, Is: a.event.digest().String(), Trust: t}
		i := slices.IndexFunc(gone, func(g measuredPart) bool { return g.key == a.key })
		if i < 0 {
			d.Text = fmt.Sprintf("%s%s is new: %s", at, a.key, x.now.text(a.event))
		} else {
			d.Was = gone[i].event.digest().String()
			d.Text = at + x.changed(a.key, gone[i].event, a.event)
			gone = slices.Delete(gone, i, i+1)
		}
		x.add(d)
	}
	for _, g := range gone {
		t := TrustQuoted // that it is not there, the replay proves
		if !x.rooted || x.unsound(pcr) {
			t = TrustClaimed
		}
		x.add(Difference{PCR: &pcr, Component: g.key, Text: fmt.Sprintf("PCR %d: %s is gone: %s", pcr, g.key, x.was.text(g.event)), Was: g.event.digest().String(), Trust: t})
	}
}

// diffParts returns what only the one or the other list has. The order counts:
// what stays is a longest common subsequence, for logs of usual size.
func diffParts(was, is []measuredPart) (gone, added []measuredPart) {
	same := func(a, b measuredPart) bool { return a.key == b.key && a.event.digest() == b.event.digest() }
	for len(was) > 0 && len(is) > 0 && same(was[0], is[0]) {
		was, is = was[1:], is[1:]
	}
	for len(was) > 0 && len(is) > 0 && same(was[len(was)-1], is[len(is)-1]) {
		was, is = was[:len(was)-1], is[:len(is)-1]
	}
	if len(was)*len(is) > 1<<18 {
		return was, is
	}
	// length[i][j] is that of the longest common subsequence of was[i:] and is[j:].
	length := make([][]int, len(was)+1)
	for i := range length {
		length[i] = make([]int, len(is)+1)
	}
	for i := len(was) - 1; i >= 0; i-- {
		for j := len(is) - 1; j >= 0; j-- {
			if same(was[i], is[j]) {
				length[i][j] = length[i+1][j+1] + 1
			} else {
				length[i][j] = max(length[i+1][j], length[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(was) && j < len(is) {
		switch {
		case same(was[i], is[j]):
			i, j = i+1, j+1
		case length[i+1][j] >= length[i][j+1]:
			gone, i = append(gone, was[i]), i+1
		default:
			added, j = append(added, is[j]), j+1
		}
	}
	return append(gone, was[i:]...), append(added, is[j:]...)
}

// changed says how something differs from what it was.
func (x *explainer) changed(key string, was, is *Event) string {
	a, err1 := parseVariable(was.UntrustedData)
	b, err2 := parseVariable(is.UntrustedData)
	before, after := x.was.text(was), x.now.text(is)
	if err1 == nil && err2 == nil && a.Name == b.Name {
		prefix := "variable " + cleanText(a.Name) + " is "
		before, after = strings.TrimPrefix(before, prefix), strings.TrimPrefix(after, prefix)
	}
	switch {
	case err1 == nil && err2 == nil && is.PCR == 7 && key == "SecureBoot":
		on := map[bool]string{true: "on", false: "off"}
		return fmt.Sprintf("Secure Boot was %s, is %s", on[string(a.Data) == "\x01"], on[string(b.Data) == "\x01"])
	case err1 == nil && err2 == nil && is.PCR == 7 && is.UntrustedType == EventVariableConfig:
		if text := diffSignatures(key, a.Data, b.Data); text != "" {
			return text
		}
	case is.UntrustedType == EventGPT:
		if text := diffGPT(was.UntrustedData, is.UntrustedData); text != "" {
			return key + ": " + text
		}
	case key == "the kernel command line":
		if words := x.commandLine(is.digest().String()); words != "" {
			return key + " differs; " + words
		}
	}
	if before != after && x.now.authentic(is) {
		return fmt.Sprintf("%s was %s, is %s", key, before, after)
	}
	return fmt.Sprintf("%s differs (%s)", key, after)
}

// diffSignatures says how a signature database differs.
func diffSignatures(name string, was, is []byte) string {
	a, err1 := SignatureEntries(was)
	b, err2 := SignatureEntries(is)
	if err1 != nil || err2 != nil {
		return ""
	}
	lost, added := diffEntries(b, a)
	var parts []string
	if len(added) > 0 {
		parts = append(parts, "has "+moreEntries(added))
	}
	if len(lost) > 0 {
		parts = append(parts, "lost "+countEntries(lost))
	}
	if len(parts) == 0 {
		return name + " has the same entries in another order or of other owners"
	}
	return name + " " + strings.Join(parts, ", ")
}

// moreEntries is countEntries with "more" where there are hashes only.
func moreEntries(list []SignatureEntry) string {
	if slices.ContainsFunc(list, func(e SignatureEntry) bool { return e.Type == guidX509 }) {
		return countEntries(list)
	}
	return strings.Replace(countEntries(list), " ", " more ", 1)
}

// maxGPTEntries is how many entries of a partition table are compared.
const maxGPTEntries = 128

// Bounded returns x with at most n refusals and differences, of bounded texts and
// without the facts, for a log.
func (x *Explanation) Bounded(n int) *Explanation {
	b := *x
	b.Omitted += max(0, len(b.Refusals)-n) + max(0, len(b.Differences)-n)
	b.Refusals, b.Differences = b.Refusals[:min(n, len(b.Refusals))], b.Differences[:min(n, len(b.Differences))]
	b.Refusals, b.Differences, b.Facts = slices.Clone(b.Refusals), slices.Clone(b.Differences), []Fact{}
	clip := func(texts ...*string) {
		for _, t := range texts {
			if len(*t) > maxBoundedText {
				*t = strings.ToValidUTF8((*t)[:maxBoundedText], "") + "…"
			}
		}
	}
	for i := range b.Refusals {
		r := &b.Refusals[i]
		clip(&r.Component, &r.Message, &r.Got, &r.Want, &r.Hint)
	}
	for i := range b.Differences {
		d := &b.Differences[i]
		clip(&d.Component, &d.Text, &d.Was, &d.Is)
	}
	return &b
}

// Lines returns the explanation in words, the refusals first. Each line ends
// with how far it is proven.
func (x *Explanation) Lines() []string {
	var out []string
	for _, r := range x.Refusals {
		out = append(out, fmt.Sprintf("%s: %s [%s]", r.Code, r.Message, r.Trust))
		if r.Hint != "" {
			out = append(out, "  what to do: "+r.Hint)
		}
		out = append(out, "  command: "+r.Command)
	}
	for _, d := range x.Differences {
		out = append(out, fmt.Sprintf("since the last good boot: %s [%s]", d.Text, d.Trust))
	}
	if x.Omitted > 0 {
		out = append(out, fmt.Sprintf("and %d more that are not listed", x.Omitted))
	}
	return slices.Clip(out)
}
