package attest

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MaxDecodedLog bounds a log that DecodeLog reads, in bytes. It is more than
// MaxEventLog: firmware may give a log's whole area, with its padding.
const MaxDecodedLog = 4 << 20

const (
	maxDecodedEvents = 1 << 16
	maxListedEvents  = 16 // events that a quirk names
	maxDigestSize    = 128
)

// DataTrust says what the digest of a logged event is of. It presumes that the
// digests lead to PCR values that a TPM quoted, which a log alone cannot show.
type DataTrust string

// The three kinds of data in a log.
const (
	DataAuthenticated DataTrust = "authenticated" // the digest is that of the data, or of the part that Covers names
	DataDigestOnly    DataTrust = "digest-only"   // the digest is of something else, the data only says of what
	DataHint          DataTrust = "hint"          // nothing was measured
)

// CoversAll is what LoggedEvent.Covers says where all data was measured.
const CoversAll = "all"

// UntrustedLog is an event log as DecodeLog read it, for people. No decision
// may rest on it: Verify reads the log itself, with ParseEventLog.
type UntrustedLog struct {
	Format          string // FormatCryptoAgile or FormatSHA1
	Size            int    // bytes of the log
	Spec            *LogSpec
	Banks           []LogBank
	StartupLocality byte // from which PCR 0 starts
	Events          []LoggedEvent
	Quirks          []LogQuirk // what a strict reader refuses or a person should know
	Damage          *LogDamage // where reading ended early, nil if it did not

	gaps map[gap]bool
}

// gap is a PCR of a bank whose value the log does not tell.
type gap struct{ bank, pcr int }

// Formats of a log (PFP, "Event Logging").
const (
	FormatCryptoAgile = "crypto-agile" // TCG_PCR_EVENT2
	FormatSHA1        = "sha1"         // TCG_PCClientPCREvent
)

// LogSpec is what the Spec ID event says of the log.
type LogSpec struct {
	Signature     string
	Major, Minor  byte
	Errata        byte
	PlatformClass uint32 // 0 client, 1 server
	VendorInfo    []byte
}

// LogBank is a bank of a log.
type LogBank struct {
	Name      string
	Algorithm uint16 // TPM_ALG_ID
	Size      int    // of a digest, bytes

	hash crypto.Hash // 0 if the bank cannot be computed
}

// Replayed reports whether the values of the bank's PCRs can be computed.
func (b *LogBank) Replayed() bool { return b.hash != 0 }

// LoggedEvent is one event of an UntrustedLog.
type LoggedEvent struct {
	Number        int    // position in the log, from 0
	Offset        int    // in the log, bytes
	PCR           uint32 // authenticated through replay, for what is measured
	UntrustedType EventType
	UntrustedData []byte
	Digests       [][]byte // one for each of UntrustedLog.Banks, nil where the log has none
	Trust         DataTrust
	Covers        string // for authenticated data: what of it was measured
	Text          string // the data in words, printable ASCII
}

// QuirkCode names something unusual in a log. Codes are stable.
type QuirkCode string

// What DecodeLog says of a log beside its events. docs/event-logs.md explains
// each.
const (
	QuirkHeader           QuirkCode = "header"
	QuirkVendorInfo       QuirkCode = "vendor-info"
	QuirkBankUnknown      QuirkCode = "bank.unknown"
	QuirkBankSize         QuirkCode = "bank.size"
	QuirkBankTwice        QuirkCode = "bank.twice"
	QuirkDigests          QuirkCode = "event.digests"
	QuirkPCR              QuirkCode = "event.pcr"
	QuirkType             QuirkCode = "event.type"
	QuirkBanksDisagree    QuirkCode = "event.banks-disagree"
	QuirkUnreadable       QuirkCode = "event.unreadable"
	QuirkNoActionShort    QuirkCode = "no-action.short"
	QuirkNoActionUnknown  QuirkCode = "no-action.unknown"
	QuirkNoActionDigest   QuirkCode = "no-action.digest"
	QuirkLocality         QuirkCode = "startup-locality"
	QuirkLocalityInvalid  QuirkCode = "startup-locality.invalid"
	QuirkHCRTM            QuirkCode = "h-crtm"
	QuirkSeparatorError   QuirkCode = "separator.error"
	QuirkSeparatorCount   QuirkCode = "separator.count"
	QuirkExitBootServices QuirkCode = "exit-boot-services.missing"
	QuirkOptionROM        QuirkCode = "option-rom"
	QuirkPostCode         QuirkCode = "post-code"
	QuirkShimCertificate  QuirkCode = "shim-certificate"
	QuirkPadding          QuirkCode = "padding"
)

const (
	minSpecID              = 28 // bytes of a Spec ID event before its banks
	minNoAction            = 16 // bytes of the signature of an EV_NO_ACTION event
	algSM3                 = 0x0012
	localityHCRTM          = 4
	exitBootServicesPrefix = "Exit Boot Services"
	coversShim             = "all but the last byte"
)

// LogQuirk is one quirk with the events that have it.
type LogQuirk struct {
	Code   QuirkCode
	Text   string // of the first event that has it
	Count  int    // of events, 0 if it is of the log
	Events []int  // their numbers, at most 16
}

// LogDamage says where a log could not be read on.
type LogDamage struct {
	Offset int // of the event that could not be read
	Event  int // its number
	Reason string
}

// DecodeLog reads what can be read of a crypto-agile or SHA-1 log. What a
// strict reader refuses is a quirk; what cannot be read is the damage, at which
// it stops. Only a log that is too large is an error.
func DecodeLog(b []byte) (*UntrustedLog, error) {
	if len(b) > MaxDecodedLog {
		return nil, fmt.Errorf("event log: got %d bytes, at most %d allowed", len(b), MaxDecodedLog)
	}
	l := &UntrustedLog{Format: FormatSHA1, Size: len(b), gaps: map[gap]bool{}}
	l.Banks = []LogBank{{Name: "sha1", Algorithm: 0x0004, Size: 20, hash: crypto.SHA1}}
	r, padding := &logReader{b: b}, paddingAt(b)
	for n := 0; len(r.b) > 0 || n == 0; n++ {
		offset := len(b) - len(r.b)
		if n > 0 && offset >= padding {
			l.quirk(QuirkPadding, -1, "%d bytes of %02x follow the last event, from offset %d", len(r.b), r.b[0], offset)
			break
		}
		e := LoggedEvent{Number: n, Offset: offset}
		var err error
		switch {
		case n == maxDecodedEvents:
			err = fmt.Errorf("more than %d events", maxDecodedEvents)
		case n == 0:
			if err = l.decodeOldEvent(r, &e); err == nil {
				err = l.decodeSpecID(&e)
			}
		case l.Format == FormatSHA1:
			err = l.decodeOldEvent(r, &e)
		default:
			err = l.decodeEvent(r, &e)
		}
		if err == nil && e.isZero() {
			err = errors.New("zeros, and then something else: this is no event")
		}
		if err != nil {
			l.Damage = &LogDamage{Offset: offset, Event: n, Reason: err.Error()}
			break
		}
		l.Events = append(l.Events, e)
	}
	for i := range l.Events {
		l.classify(&l.Events[i])
		l.Events[i].Text = l.describe(&l.Events[i])
	}
	l.findStart()
	l.findWhole()
	return l, nil
}

// paddingAt returns where the zeros or ones begin that a log ends with.
func paddingAt(b []byte) int {
	n := len(b)
	for n > 0 && b[n-1] == b[len(b)-1] && (b[n-1] == 0 || b[n-1] == 0xff) {
		n--
	}
	return n
}

// isZero reports whether an event is nothing but zeros.
func (e *LoggedEvent) isZero() bool {
	return e.PCR == 0 && e.UntrustedType == 0 && len(e.UntrustedData) == 0 &&
		!slices.ContainsFunc(e.Digests, func(d []byte) bool { return !allBytes(d, 0) })
}

// quirk notes a quirk of an event, or of the whole log if event is negative.
func (l *UntrustedLog) quirk(code QuirkCode, event int, format string, args ...any) {
	i := slices.IndexFunc(l.Quirks, func(q LogQuirk) bool { return q.Code == code })
	if i < 0 {
		i = len(l.Quirks)
		l.Quirks = append(l.Quirks, LogQuirk{Code: code, Text: fmt.Sprintf(format, args...)})
	}
	q := &l.Quirks[i]
	if event < 0 || len(q.Events) > 0 && q.Events[len(q.Events)-1] == event {
		return
	}
	q.Count++
	if len(q.Events) < maxListedEvents {
		q.Events = append(q.Events, event)
	}
}

// decodeOldEvent reads one TCG_PCClientPCREvent, which the header of a
// crypto-agile log is too.
func (l *UntrustedLog) decodeOldEvent(r *logReader, e *LoggedEvent) error {
	pcr, typ, digest := r.u32(), EventType(r.u32()), r.take(20)
	if r.bad {
		return errors.New("it ends inside the event's header")
	}
	e.PCR, e.UntrustedType, e.Digests = pcr, typ, [][]byte{digest}
	return e.decodeData(r)
}

// decodeEvent reads one TCG_PCR_EVENT2. A digest that is missing, there twice
// or of a bank that was not declared is a quirk as long as its size is known.
func (l *UntrustedLog) decodeEvent(r *logReader, e *LoggedEvent) error {
	pcr, typ, count := r.u32(), EventType(r.u32()), r.u32()
	if r.bad {
		return errors.New("it ends inside the event's header")
	}
	if count > MaxBanks {
		return fmt.Errorf("it says that it has %d digests, at most %d are read: this is no event", count, MaxBanks)
	}
	e.PCR, e.UntrustedType = pcr, typ
	e.Digests = make([][]byte, len(l.Banks))
	for range count {
		alg := r.u16()
		if r.bad {
			return fmt.Errorf("it ends inside the digests of an event of type %q in PCR %d", typ, pcr)
		}
		i := slices.IndexFunc(l.Banks, func(b LogBank) bool { return b.Algorithm == alg })
		size := 0
		if i >= 0 {
			size = l.Banks[i].Size
		} else if _, h := bankOf(alg); h != 0 {
			size = h.Size()
		} else {
			return fmt.Errorf("a digest of the algorithm %#04x, which the header does not declare: its size is unknown", alg)
		}
		d := r.take(size)
		switch {
		case r.bad:
			return fmt.Errorf("it ends inside the digests of an event of type %q in PCR %d", typ, pcr)
		case i < 0:
			l.quirk(QuirkDigests, e.Number, "a digest of the algorithm %#04x, which the header does not declare", alg)
		case e.Digests[i] != nil:
			l.quirk(QuirkDigests, e.Number, "two digests for the bank %s, of which the first counts", l.Banks[i].Name)
		default:
			e.Digests[i] = d
		}
	}
	if err := e.decodeData(r); err != nil {
		return err
	}
	for i, d := range e.Digests {
		if d == nil && typ != EventNoAction {
			l.quirk(QuirkDigests, e.Number, "no digest for the bank %s: the log does not tell what PCR %d of that bank holds", l.Banks[i].Name, pcr)
			if pcr <= maxPCR {
				l.gaps[gap{i, int(pcr)}] = true
			}
		}
	}
	return nil
}

func (e *LoggedEvent) decodeData(r *logReader) error {
	size := r.u32()
	if r.bad || int64(size) > int64(len(r.b)) {
		return fmt.Errorf("the data of an event of type %q in PCR %d has %d bytes, the log only %d more", e.UntrustedType, e.PCR, size, len(r.b))
	}
	e.UntrustedData = r.take(int(size))
	return nil
}

// decodeSpecID looks at the first event of a log. If it is a Spec ID Event03
// the log is crypto-agile. Logs for TPM 1.2 may begin with one of an older
// signature, or with none.
func (l *UntrustedLog) decodeSpecID(e *LoggedEvent) error {
	sig, ok := bytes.CutPrefix(e.UntrustedData, []byte("Spec ID Event0"))
	if e.UntrustedType != EventNoAction || !ok || len(sig) < 2 {
		return nil
	}
	h := &logReader{b: e.UntrustedData[len(specIDSignature):]}
	s := &LogSpec{Signature: cleanText(strings.TrimRight(string(e.UntrustedData[:len(specIDSignature)]), "\x00"))}
	s.PlatformClass, s.Minor, s.Major, s.Errata = h.u32(), h.u8(), h.u8(), h.u8()
	uintn := h.u8()
	l.Spec = s
	header := func(format string, args ...any) { l.quirk(QuirkHeader, e.Number, format, args...) }
	if string(e.UntrustedData[:len(specIDSignature)]) != specIDSignature {
		s.VendorInfo = h.take(int(h.u8()))
		l.quirkVendorInfo(e, h)
		return nil
	}
	l.Format = FormatCryptoAgile
	if e.PCR != 0 || !allBytes(e.Digests[0], 0) {
		header("the Spec ID event is in PCR %d with the digest %x, want PCR 0 and zeros", e.PCR, e.Digests[0])
	}
	if s.Major != 2 || uintn < 1 || uintn > 2 {
		header("the specification version is %d.%d errata %d with UINTN size %d, want 2.x and 1 or 2", s.Major, s.Minor, s.Errata, uintn)
	}
	n := h.u32()
	if h.bad || n == 0 || n > MaxBanks {
		return fmt.Errorf("the Spec ID event declares %d banks, want 1 to %d", n, MaxBanks)
	}
	l.Banks = nil
	for range n {
		b := LogBank{Algorithm: h.u16(), Size: int(h.u16())}
		if h.bad {
			return errors.New("the Spec ID event ends inside its banks")
		}
		b.Name, b.hash = bankOf(b.Algorithm)
		switch {
		case b.Size == 0 || b.Size > maxDigestSize:
			return fmt.Errorf("the Spec ID event declares %s digests of %d bytes, at most %d are read", b.Name, b.Size, maxDigestSize)
		case slices.ContainsFunc(l.Banks, func(o LogBank) bool { return o.Algorithm == b.Algorithm }):
			l.quirk(QuirkBankTwice, e.Number, "the bank %s is declared twice", b.Name)
			continue
		case b.hash == 0:
			l.quirk(QuirkBankUnknown, e.Number, "the bank %s is not replayed: its algorithm is not known here", b.Name)
		case b.Size != b.hash.Size():
			l.quirk(QuirkBankSize, e.Number, "the bank %s is not replayed: it is declared with digests of %d bytes, want %d", b.Name, b.Size, b.hash.Size())
			b.hash = 0
		}
		l.Banks = append(l.Banks, b)
	}
	e.Digests = make([][]byte, len(l.Banks)) // that of the header is of no bank
	s.VendorInfo = h.take(int(h.u8()))
	l.quirkVendorInfo(e, h)
	return nil
}

// quirkVendorInfo says what stands in the vendor info, and where the size of
// the Spec ID event disagrees with its fields.
func (l *UntrustedLog) quirkVendorInfo(e *LoggedEvent, h *logReader) {
	if v := l.Spec.VendorInfo; len(v) > 0 {
		text, ok := textOf(v)
		if !ok {
			text = fmt.Sprintf("%x", v[:min(len(v), 32)])
		}
		l.quirk(QuirkVendorInfo, e.Number, "the Spec ID event has %d bytes of vendor info: %s", len(v), text)
	}
	switch {
	case h.bad:
		l.quirk(QuirkHeader, e.Number, "the Spec ID event is shorter than its fields")
	case len(h.b) > 0:
		l.quirk(QuirkHeader, e.Number, "%d bytes follow the fields of the Spec ID event", len(h.b))
	}
}

// bankOf names an algorithm and returns its hash, 0 if it is not known here.
func bankOf(alg uint16) (string, crypto.Hash) {
	if name, ok := bankName(alg); ok {
		h, _ := bankHash(name)
		return name, h
	}
	if alg == algSM3 {
		return "sm3_256", 0
	}
	return fmt.Sprintf("alg_%#04x", alg), 0
}

// measuredParts returns what of an event's data firmware and boot loaders are
// known to measure, the most of it first.
func measuredParts(e *LoggedEvent) []part {
	data := e.UntrustedData
	parts := []part{{CoversAll, data}}
	switch e.UntrustedType {
	case EventVariableBoot, EventVariableBoot2: // edk2 and older versions of the PFP
		if v, err := parseVariable(data); err == nil {
			parts = append(parts, part{"the variable's value", v.Data})
		}
	case EventAuthority: // see QuirkShimCertificate
		if len(data) > 0 {
			parts = append(parts, part{coversShim, data[:len(data)-1]})
		}
	case EventIPL:
		text := bytes.TrimSuffix(data, []byte{0})
		if _, after, ok := bytes.Cut(text, []byte(": ")); ok { // GRUB: grub_cmd, kernel_cmdline, module_cmdline
			parts = append(parts, part{"the text after the colon", after})
		}
		if word, after, ok := bytes.Cut(data, []byte(" ")); ok && bytes.HasPrefix(word, []byte("grub_")) {
			// GRUB of RHEL 8: grub_cmd with the NUL, grub_kernel_cmdline without.
			const covers = "the text after the space"
			parts = append(parts, part{covers, after}, part{covers, bytes.TrimSuffix(after, []byte{0})})
		}
		if s, ok := textOf(data); ok && len(data) > 1 && data[1] == 0 { // systemd-stub: the name of a section
			parts = append(parts, part{"the text as ASCII with a NUL", []byte(s + "\x00")})
		}
		parts = append(parts, part{"the text without its NUL", text})
	}
	return parts
}

type part struct {
	name string
	data []byte
}

// classify says what the event's digests are of: authenticated is what all
// digests agree on that can be computed.
func (l *UntrustedLog) classify(e *LoggedEvent) {
	if e.UntrustedType == EventNoAction {
		e.Trust = DataHint
		return
	}
	e.Trust = DataDigestOnly
	for _, p := range measuredParts(e) {
		equal, other := "", ""
		for i, d := range e.Digests {
			if d == nil || l.Banks[i].hash == 0 {
				continue
			}
			h := l.Banks[i].hash.New()
			h.Write(p.data)
			if bytes.Equal(h.Sum(nil), d) {
				equal = l.Banks[i].Name
			} else {
				other = l.Banks[i].Name
			}
		}
		if equal != "" && other != "" {
			l.quirk(QuirkBanksDisagree, e.Number, "the %s digest is that of the event's data, the %s digest is not", equal, other)
		}
		if equal == "" || other != "" {
			continue
		}
		e.Trust, e.Covers = DataAuthenticated, p.name
		if p.name == coversShim {
			l.quirk(QuirkShimCertificate, e.Number, "the data has a byte more than was measured, a fault of older versions of shim")
		}
		return
	}
}

// findStart sets the locality from which PCR 0 starts. It is 0 unless a
// StartupLocality event says otherwise, or an H-CRTM event is the first
// measurement in PCR 0: then the hash sequence that came before TPM2_Startup
// has set it to 4 (TPM 2.0 Library Part 1, "H-CRTM before TPM2_Startup").
func (l *UntrustedLog) findStart() {
	told, measured, hcrtm := false, false, -1
	for i := range l.Events {
		e := &l.Events[i]
		value, isLocality := bytes.CutPrefix(e.UntrustedData, []byte(localitySignature))
		switch {
		case e.UntrustedType == EventHCRTM && e.PCR == 0 && !measured:
			hcrtm, measured = e.Number, true
		case e.UntrustedType != EventNoAction:
			measured = measured || e.PCR == 0
		case !isLocality:
		case len(value) == 0 || value[0] != 0 && value[0] != 3 && value[0] != 4:
			l.quirk(QuirkLocalityInvalid, e.Number, "a StartupLocality event with the value %x, want 0, 3 or 4: it does not count", value[:min(len(value), 8)])
		case told:
			l.quirk(QuirkLocalityInvalid, e.Number, "a second StartupLocality event, with %d: it does not count", value[0])
		default:
			if measured || e.PCR != 0 || len(value) != 1 {
				l.quirk(QuirkLocalityInvalid, e.Number, "a StartupLocality event of %d bytes in PCR %d, want %d bytes, PCR 0, and none measured before it: it counts",
					len(e.UntrustedData), e.PCR, len(localitySignature)+1)
			}
			told, l.StartupLocality = true, value[0]
			if value[0] != 0 {
				l.quirk(QuirkLocality, e.Number, "the TPM was started from locality %d, so PCR 0 starts from %d", value[0], value[0])
			}
		}
	}
	if hcrtm >= 0 {
		switch {
		case !told:
			l.StartupLocality = localityHCRTM
			l.quirk(QuirkHCRTM, hcrtm, "an H-CRTM was measured before the TPM was started, and no StartupLocality event says from where: PCR 0 starts from 4")
		case l.StartupLocality != localityHCRTM:
			l.quirk(QuirkHCRTM, hcrtm, "an H-CRTM was measured first, from which PCR 0 would start from 4; the StartupLocality event says %d, which counts", l.StartupLocality)
		default:
			l.quirk(QuirkHCRTM, hcrtm, "an H-CRTM was measured before the TPM was started")
		}
	}
}

// findWhole notes the quirks that the log as a whole shows.
func (l *UntrustedLog) findWhole() {
	uefi, left := false, false
	separators := map[uint32]int{}
	for i := range l.Events {
		e := &l.Events[i]
		uefi = uefi || e.UntrustedType >= 0x80000000
		if spec, _ := e.UntrustedType.names(); spec == "" {
			l.quirk(QuirkType, e.Number, "%#08x is no event type of the PFP", uint32(e.UntrustedType))
		}
		if e.PCR > maxPCR && e.UntrustedType != EventNoAction {
			l.quirk(QuirkPCR, e.Number, "PCR is %d, want at most %d: it is not replayed", e.PCR, maxPCR)
		}
		switch e.UntrustedType {
		case EventNoAction:
			l.findNoAction(e)
		case EventSeparator:
			if e.PCR > lastSeparatedPCR {
				break // Windows has its own, with the text WBCL
			}
			separators[e.PCR]++
			if d := e.UntrustedData; len(d) != 4 || !allBytes(d, 0) && !allBytes(d, 0xff) {
				l.quirk(QuirkSeparatorError, e.Number, "the separator in PCR %d is %x, want 00000000 or ffffffff: firmware tells of an error", e.PCR, d[:min(len(d), 16)])
			} else if e.Trust != DataAuthenticated {
				l.quirk(QuirkSeparatorError, e.Number, "the digest of the separator in PCR %d is not that of its data: firmware tells of an error, or the log was altered", e.PCR)
			}
		case EventBootDriver, EventRuntimeDriver:
			if e.PCR == 2 {
				l.quirk(QuirkOptionROM, e.Number, "a driver that is not the firmware's own, as of an option ROM: %s", e.Text)
			}
		case EventPostCode, EventPostCode2:
			l.quirk(QuirkPostCode, e.Number, "firmware code measured as a POST code: the digest is of the code that the text names")
		case EventAuthority:
			if v, _, err := cutVariable(e.UntrustedData); err == nil && v.lacksOwner() && e.Covers != coversShim {
				l.quirk(QuirkShimCertificate, e.Number, "the certificate has no owner's GUID before it, a fault of older versions of shim")
			}
		}
		if e.PCR == 5 && strings.HasPrefix(string(e.UntrustedData), exitBootServicesPrefix) {
			left = true
		}
	}
	if l.Damage != nil || len(l.Events) == 0 {
		return // what is missing may stand after the damage
	}
	if uefi && !left {
		l.quirk(QuirkExitBootServices, -1, "PCR 5 has no Exit Boot Services event: the log ends before the operating system started, and the TPM's PCR 5 may hold more")
	}
	var odd []string
	for pcr := range uint32(lastSeparatedPCR + 1) {
		if n := separators[pcr]; n != 1 {
			odd = append(odd, fmt.Sprintf("%d in PCR %d", n, pcr))
		}
	}
	if len(odd) > 0 {
		l.quirk(QuirkSeparatorCount, -1, "PCR 0 to 7 have one separator each, but there are %s", strings.Join(odd, ", "))
	}
}

func (l *UntrustedLog) findNoAction(e *LoggedEvent) {
	for _, d := range e.Digests {
		if e.Number > 0 && !allBytes(d, 0) {
			l.quirk(QuirkNoActionDigest, e.Number, "an EV_NO_ACTION event with a digest that is not zero: it is not extended all the same")
		}
	}
	isSpecID := e.Number == 0 && l.Spec != nil
	switch n := len(e.UntrustedData); {
	case e.Number == 0 && !isSpecID && n < minSpecID:
		l.quirk(QuirkNoActionShort, e.Number, "the log begins with an EV_NO_ACTION event of %d bytes, too short for a Spec ID event: it is read as a SHA-1 log", n)
	case e.Number == 0 && !isSpecID:
		l.quirk(QuirkHeader, e.Number, "the log begins with an EV_NO_ACTION event that is no Spec ID event: it is read as a SHA-1 log")
	case n < minNoAction:
		l.quirk(QuirkNoActionShort, e.Number, "an EV_NO_ACTION event of %d bytes, want a signature of %d", n, minNoAction)
	case !isSpecID && !bytes.HasPrefix(e.UntrustedData, []byte(localitySignature)) && !knownNoAction(e.UntrustedData):
		l.quirk(QuirkNoActionUnknown, e.Number, "an EV_NO_ACTION event with the signature %s, which the PFP does not name", printable(e.UntrustedData, minNoAction))
	}
}

// PCRs returns the value of each PCR of a bank that the log measures into, and
// of PCR 0 if the log tells from where it starts. A PCR for which the log lacks
// a digest is left out, and so is a bank that cannot be computed.
func (l *UntrustedLog) PCRs(bank string) map[int][]byte {
	out := map[int][]byte{}
	index := slices.IndexFunc(l.Banks, func(b LogBank) bool { return b.Name == bank })
	if index < 0 || !l.Banks[index].Replayed() {
		return out
	}
	hash := l.Banks[index].hash
	if l.StartupLocality != 0 {
		out[0] = make([]byte, hash.Size())
		out[0][hash.Size()-1] = l.StartupLocality
	}
	h := hash.New()
	for i := range l.Events {
		e := &l.Events[i]
		if e.UntrustedType == EventNoAction || e.PCR > maxPCR || e.Digests[index] == nil {
			continue
		}
		// PCR 17 to 22 are extended only after a dynamic launch, which has set
		// them to zero (PC Client Platform TPM Profile, PCR attributes).
		pcr := int(e.PCR)
		if out[pcr] == nil {
			out[pcr] = make([]byte, hash.Size())
		}
		h.Reset()
		h.Write(out[pcr])
		h.Write(e.Digests[index])
		out[pcr] = h.Sum(out[pcr][:0])
	}
	for pcr := range out {
		if l.gaps[gap{index, pcr}] {
			delete(out, pcr)
		}
	}
	return out
}
