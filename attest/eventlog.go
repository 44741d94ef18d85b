package attest

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // replay of the SHA-1 bank, which is never enough by itself
	"crypto/sha256"
	_ "crypto/sha512" // replay of the SHA-384 and SHA-512 banks
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/sealift/sealift/image/manifest"
)

// Limits of an event log, beside MaxEventLog. Real logs have 30 to 400 events.
const (
	maxEvents    = 4096
	maxPCR       = 23
	maxHeader    = 1024 // bytes of the Spec ID event
	maxVendorLen = 255
)

// EventType is the type of an event (TCG PFP, "Event Types"). It is not measured, so
// whoever hands over a log can write any type beside a digest.
type EventType uint32

// The event types that the rules of this package name.
const (
	EventPostCode        EventType = 0x00000001
	EventNoAction        EventType = 0x00000003
	EventSeparator       EventType = 0x00000004
	EventTag             EventType = 0x00000006
	EventSCRTMContents   EventType = 0x00000007
	EventSCRTMVersion    EventType = 0x00000008
	EventIPL             EventType = 0x0000000d
	EventPostCode2       EventType = 0x00000013
	EventVariableConfig  EventType = 0x80000001 // EV_EFI_VARIABLE_DRIVER_CONFIG
	EventVariableBoot    EventType = 0x80000002
	EventBootApplication EventType = 0x80000003 // EV_EFI_BOOT_SERVICES_APPLICATION
	EventBootDriver      EventType = 0x80000004 // EV_EFI_BOOT_SERVICES_DRIVER
	EventRuntimeDriver   EventType = 0x80000005 // EV_EFI_RUNTIME_SERVICES_DRIVER
	EventGPT             EventType = 0x80000006
	EventAction          EventType = 0x80000007 // EV_EFI_ACTION
	EventFirmwareBlob    EventType = 0x80000008 // EV_EFI_PLATFORM_FIRMWARE_BLOB
	EventHandoff         EventType = 0x80000009 // EV_EFI_HANDOFF_TABLES
	EventFirmwareBlob2   EventType = 0x8000000a
	EventHandoff2        EventType = 0x8000000b
	EventVariableBoot2   EventType = 0x8000000c
	EventGPT2            EventType = 0x8000000d
	EventHCRTM           EventType = 0x80000010
	EventAuthority       EventType = 0x800000e0 // EV_EFI_VARIABLE_AUTHORITY
)

// String returns the name of the type in the PFP without "EV_" and "EV_EFI_",
// or its number.
func (t EventType) String() string {
	if _, name := t.names(); name != "" {
		return name
	}
	return fmt.Sprintf("type %#x", uint32(t))
}

// SpecName returns the name of the type as the PFP writes it, or its number.
func (t EventType) SpecName() string {
	if name, _ := t.names(); name != "" {
		return name
	}
	return fmt.Sprintf("%#08x", uint32(t))
}

// names returns the name of the type in the PFP and the one for people, or
// nothing for a type that the PFP does not name.
func (t EventType) names() (spec, plain string) {
	switch t {
	case 0x00000000:
		return "EV_PREBOOT_CERT", "preboot cert"
	case EventPostCode:
		return "EV_POST_CODE", "POST code"
	case 0x00000002:
		return "EV_UNUSED", "unused"
	case EventNoAction:
		return "EV_NO_ACTION", "no action"
	case EventSeparator:
		return "EV_SEPARATOR", "separator"
	case 0x00000005:
		return "EV_ACTION", "platform action"
	case EventTag:
		return "EV_EVENT_TAG", "event tag"
	case EventSCRTMContents:
		return "EV_S_CRTM_CONTENTS", "S-CRTM contents"
	case EventSCRTMVersion:
		return "EV_S_CRTM_VERSION", "S-CRTM version"
	case 0x00000009:
		return "EV_CPU_MICROCODE", "CPU microcode"
	case 0x0000000a:
		return "EV_PLATFORM_CONFIG_FLAGS", "platform config flags"
	case 0x0000000b:
		return "EV_TABLE_OF_DEVICES", "table of devices"
	case 0x0000000c:
		return "EV_COMPACT_HASH", "compact hash"
	case EventIPL:
		return "EV_IPL", "IPL"
	case 0x0000000e:
		return "EV_IPL_PARTITION_DATA", "IPL partition data"
	case 0x0000000f:
		return "EV_NONHOST_CODE", "non-host code"
	case 0x00000010:
		return "EV_NONHOST_CONFIG", "non-host config"
	case 0x00000011:
		return "EV_NONHOST_INFO", "non-host info"
	case 0x00000012:
		return "EV_OMIT_BOOT_DEVICE_EVENTS", "omit boot device events"
	case EventPostCode2:
		return "EV_POST_CODE2", "POST code"
	case EventVariableConfig:
		return "EV_EFI_VARIABLE_DRIVER_CONFIG", "variable driver config"
	case EventVariableBoot:
		return "EV_EFI_VARIABLE_BOOT", "variable boot"
	case EventBootApplication:
		return "EV_EFI_BOOT_SERVICES_APPLICATION", "boot services application"
	case EventBootDriver:
		return "EV_EFI_BOOT_SERVICES_DRIVER", "boot services driver"
	case EventRuntimeDriver:
		return "EV_EFI_RUNTIME_SERVICES_DRIVER", "runtime services driver"
	case EventGPT:
		return "EV_EFI_GPT_EVENT", "GPT"
	case EventAction:
		return "EV_EFI_ACTION", "action"
	case EventFirmwareBlob:
		return "EV_EFI_PLATFORM_FIRMWARE_BLOB", "platform firmware blob"
	case EventHandoff:
		return "EV_EFI_HANDOFF_TABLES", "handoff tables"
	case EventFirmwareBlob2:
		return "EV_EFI_PLATFORM_FIRMWARE_BLOB2", "platform firmware blob"
	case EventHandoff2:
		return "EV_EFI_HANDOFF_TABLES2", "handoff tables"
	case EventVariableBoot2:
		return "EV_EFI_VARIABLE_BOOT2", "variable boot"
	case EventGPT2:
		return "EV_EFI_GPT_EVENT2", "GPT"
	case EventHCRTM:
		return "EV_EFI_HCRTM_EVENT", "H-CRTM"
	case EventAuthority:
		return "EV_EFI_VARIABLE_AUTHORITY", "variable authority"
	case 0x800000e1:
		return "EV_EFI_SPDM_FIRMWARE_BLOB", "SPDM firmware blob"
	case 0x800000e2:
		return "EV_EFI_SPDM_FIRMWARE_CONFIG", "SPDM firmware config"
	case 0x800000e3:
		return "EV_EFI_SPDM_DEVICE_POLICY", "SPDM device policy"
	case 0x800000e4:
		return "EV_EFI_SPDM_DEVICE_AUTHORITY", "SPDM device authority"
	}
	return "", ""
}

// EventLog is a parsed TCG crypto-agile event log (PFP, "Event Logging"). Parsing proves
// nothing: its digests are authentic for a PCR only once Replay gave the value
// that a TPM quoted for that PCR, and even then types and data are hints,
// except where Event.VerifiedData says otherwise.
type EventLog struct {
	Banks           []string // digests of every event, in this order, e.g. sha256
	Events          []Event  // without the header and other EV_NO_ACTION events
	StartupLocality byte     // from which PCR 0 starts: 0, 3 or 4

	main string // bank that it is appraised by
}

// Event is one event that was extended into a PCR.
type Event struct {
	Number        int // position in the log, the header is 0
	PCR           int // authenticated through replay
	UntrustedType EventType
	UntrustedData []byte

	digests [][]byte // one for each of EventLog.Banks; authenticated through replay
	sha256  int      // index of the SHA-256 digest, -1 if the log has none
	main    int      // index of the digest that the event is appraised by
	hash    crypto.Hash
}

// SHA256 returns the digest that was extended into the SHA-256 bank. It is unset
// if the log has no such bank.
func (e *Event) SHA256() manifest.SHA256 {
	if e.sha256 < 0 {
		return manifest.SHA256{}
	}
	return manifest.SHA256(e.digests[e.sha256])
}

// reference returns the SHA-256 digest by which a policy names the event: that of
// the SHA-256 bank if the log is appraised by it, or else of the event's data if
// that was proven to be what was measured. It is unset if neither is.
func (e *Event) reference() manifest.SHA256 {
	if e.main == e.sha256 {
		return e.SHA256()
	}
	if data, verified := e.VerifiedData(); verified {
		return sha256.Sum256(data)
	}
	return manifest.SHA256{}
}

// digest is a digest in the bank that a log is appraised by. The unset digest
// is equal to none that an event has.
type digest string

// String returns the digest in hex.
func (d digest) String() string { return hex.EncodeToString([]byte(d)) }

// IsZero reports whether the digest is unset.
func (d digest) IsZero() bool { return d == "" }

// digest returns the digest in the bank that the log is appraised by.
func (e *Event) digest() digest { return digest(e.digests[e.main]) }

// isOf reports whether the event's digest is that of the data.
func (e *Event) isOf(data []byte) bool { return e.digest() == hashOf(e.hash, data) }

func hashOf(hash crypto.Hash, data []byte) digest {
	if hash == crypto.SHA256 { // nearly always, for each event; and without garbage
		d := sha256.Sum256(data)
		return digest(d[:])
	}
	h := hash.New()
	h.Write(data)
	return digest(h.Sum(nil))
}

// appraiseBy chooses the bank whose digests the rules look at. The log must have
// it.
func (l *EventLog) appraiseBy(bank string) {
	main := slices.Index(l.Banks, bank)
	hash, ok := bankHash(bank)
	if main < 0 || !ok {
		panic("attest: BUG: a log is appraised by a bank that it does not have")
	}
	l.main = bank
	for i := range l.Events {
		l.Events[i].main, l.Events[i].hash = main, hash
	}
}

// Digest returns the digest that an event of the log extended into a bank, or
// false if the log has no such bank.
func (l *EventLog) Digest(e *Event, bank string) ([]byte, bool) {
	i := slices.Index(l.Banks, bank)
	if i < 0 || i >= len(e.digests) {
		return nil, false
	}
	return e.digests[i], true
}

// VerifiedData returns the event's data if it is what was measured, that is if
// its hash is the digest, in the bank that the log is appraised by (SHA-256
// where the log has it). For firmware blobs and boot applications it never is:
// their digest is of something else than the data.
func (e *Event) VerifiedData() ([]byte, bool) {
	return e.UntrustedData, e.isOf(e.UntrustedData)
}

// bankHash maps a bank's name to its hash.
func bankHash(name string) (crypto.Hash, bool) {
	switch name {
	case "sha1":
		return crypto.SHA1, true
	case "sha256":
		return crypto.SHA256, true
	case "sha384":
		return crypto.SHA384, true
	case "sha512":
		return crypto.SHA512, true
	}
	return 0, false
}

// bankName maps a TPM_ALG_ID to a bank's name (TPM 2.0 Library Part 2, 6.3).
func bankName(alg uint16) (string, bool) {
	switch alg {
	case 0x0004:
		return "sha1", true
	case 0x000b:
		return "sha256", true
	case 0x000c:
		return "sha384", true
	case 0x000d:
		return "sha512", true
	}
	return "", false
}

// Replay computes the value that a PCR has in a bank after the log's events.
func (l *EventLog) Replay(bank string, pcr int) ([]byte, error) {
	index := -1
	for i, b := range l.Banks {
		if b == bank {
			index = i
		}
	}
	hash, ok := bankHash(bank)
	if index < 0 || !ok {
		return nil, fmt.Errorf("event log: it has the banks %q, want %s", l.Banks, bank)
	}
	value := make([]byte, hash.Size())
	switch {
	case pcr >= 17 && pcr <= 22: // DRTM PCRs start with all bits set (PC Client Platform TPM Profile, PCR attributes)
		for i := range value {
			value[i] = 0xff
		}
	case pcr == 0:
		value[len(value)-1] = l.StartupLocality
	}
	h := hash.New()
	for i := range l.Events {
		if l.Events[i].PCR != pcr {
			continue
		}
		h.Reset()
		h.Write(value)
		h.Write(l.Events[i].digests[index])
		value = h.Sum(value[:0])
	}
	return value, nil
}

// ForPCR returns the events of one PCR in their order.
func (l *EventLog) ForPCR(pcr int) []*Event {
	var out []*Event
	for i := range l.Events {
		if l.Events[i].PCR == pcr {
			out = append(out, &l.Events[i])
		}
	}
	return out
}

// logReader takes little-endian fields off a byte slice and remembers the
// first failure.
type logReader struct {
	b   []byte
	bad bool
}

func (r *logReader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad = true
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *logReader) u8() byte {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *logReader) u16() uint16 {
	if p := r.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (r *logReader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (r *logReader) u64() uint64 {
	if p := r.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// Signatures of EV_NO_ACTION events (PFP, "EV_NO_ACTION Event Types"). They are not extended, so
// all of them but the first two are skipped: they are pointers to documents
// and NV indices that this package does not use.
const (
	specIDSignature   = "Spec ID Event03\x00"
	localitySignature = "StartupLocality\x00"
)

var errTruncated = errors.New("it ends inside an event")

// ParseEventLog reads a crypto-agile log strictly. It refuses another format
// than Spec ID Event03, a log with neither SHA-256 nor SHA-384, an event that lacks a digest of
// a declared bank or has one too many, a PCR beyond 23, an EV_NO_ACTION event
// that the PFP does not name, StartupLocality after the first measurement or a
// second time, and trailing bytes.
func ParseEventLog(b []byte) (*EventLog, error) {
	if len(b) > MaxEventLog {
		return nil, fmt.Errorf("event log: got %d bytes, at most %d allowed", len(b), MaxEventLog)
	}
	r := &logReader{b: b}
	l, algs, err := parseHeader(r)
	if err != nil {
		return nil, fmt.Errorf("event log: header: %w", err)
	}
	sha256Index := slices.Index(l.Banks, "sha256")
	main := "sha256"
	if sha256Index < 0 {
		main = "sha384"
	}
	if !slices.Contains(l.Banks, main) {
		return nil, fmt.Errorf("event log: it has the banks %q, want sha256 or sha384 among them", l.Banks)
	}
	locality := false
	for n := 1; len(r.b) > 0; n++ {
		if n > maxEvents {
			return nil, fmt.Errorf("event log: more than %d events", maxEvents)
		}
		e := Event{Number: n, sha256: sha256Index}
		if err := l.parseEvent(r, algs, &e); err != nil {
			return nil, fmt.Errorf("event log: event %d: %w", n, err)
		}
		if e.UntrustedType != EventNoAction {
			l.Events = append(l.Events, e)
			continue
		}
		switch {
		case bytes.HasPrefix(e.UntrustedData, []byte(localitySignature)):
			if locality || len(l.Events) > 0 || e.PCR != 0 || len(e.UntrustedData) != len(localitySignature)+1 {
				return nil, fmt.Errorf("event log: event %d: StartupLocality must be the only one, in PCR 0, before the first measurement", n)
			}
			locality = true
			switch v := e.UntrustedData[len(localitySignature)]; v {
			case 0, 3, 4:
				l.StartupLocality = v
			default:
				return nil, fmt.Errorf("event log: event %d: startup locality is %d, want 0, 3 or 4", n, v)
			}
		case !knownNoAction(e.UntrustedData):
			return nil, fmt.Errorf("event log: event %d: EV_NO_ACTION event with the unknown signature %s", n, printable(e.UntrustedData, 16))
		}
	}
	l.appraiseBy(main)
	return l, nil
}

// knownNoAction reports whether data is of an unmeasured event that the PFP
// defines beside StartupLocality.
func knownNoAction(data []byte) bool {
	for _, s := range []string{"SP800-155 Event\x00", "SP800-155 Event2", "SP800-155 Event3", "NvIndexInstance\x00", "NvIndexDynamic\x00\x00"} {
		if bytes.HasPrefix(data, []byte(s)) {
			return true
		}
	}
	return false
}

// parseHeader reads the first event, a TCG_PCR_EVENT with a
// TCG_EfiSpecIdEvent (PFP, "Specification ID Version Event"), and returns the algorithm ids declared.
func parseHeader(r *logReader) (*EventLog, []uint16, error) {
	pcr, typ := r.u32(), EventType(r.u32())
	digest, size := r.take(20), r.u32()
	if r.bad || size > maxHeader {
		return nil, nil, errTruncated
	}
	if pcr != 0 || typ != EventNoAction || !allBytes(digest, 0) {
		return nil, nil, fmt.Errorf("got a %s event in PCR %d, want an EV_NO_ACTION event in PCR 0", typ, pcr)
	}
	h := &logReader{b: r.take(int(size))}
	if sig := h.take(len(specIDSignature)); string(sig) != specIDSignature {
		return nil, nil, fmt.Errorf("signature is %s, want %q", printable(sig, 16), specIDSignature[:15])
	}
	h.u32() // platform class
	minor, major, errata, uintn := h.u8(), h.u8(), h.u8(), h.u8()
	if major != 2 || uintn < 1 || uintn > 2 {
		return nil, nil, fmt.Errorf("specification version is %d.%d errata %d with UINTN size %d, want 2.x and 1 or 2", major, minor, errata, uintn)
	}
	n := h.u32()
	if n == 0 || n > MaxBanks {
		return nil, nil, fmt.Errorf("declares %d banks, want 1 to %d", n, MaxBanks)
	}
	l := &EventLog{}
	var algs []uint16
	for range n {
		alg, size := h.u16(), h.u16()
		if h.bad {
			return nil, nil, errTruncated
		}
		name, ok := bankName(alg)
		if !ok {
			return nil, nil, fmt.Errorf("declares a bank of the unknown algorithm %#04x", alg)
		}
		if hash, _ := bankHash(name); int(size) != hash.Size() {
			return nil, nil, fmt.Errorf("declares %s digests of %d bytes, want %d", name, size, hash.Size())
		}
		for _, b := range l.Banks {
			if b == name {
				return nil, nil, fmt.Errorf("declares the bank %s twice", name)
			}
		}
		l.Banks = append(l.Banks, name)
		algs = append(algs, alg)
	}
	vendor := h.take(int(h.u8()))
	if h.bad || len(vendor) > maxVendorLen || len(h.b) != 0 {
		return nil, nil, errors.New("its size and its fields disagree")
	}
	return l, algs, nil
}

// parseEvent reads one TCG_PCR_EVENT2 (PFP, "Event Logging").
func (l *EventLog) parseEvent(r *logReader, algs []uint16, e *Event) error {
	pcr, typ, count := r.u32(), EventType(r.u32()), r.u32()
	if r.bad {
		return errTruncated
	}
	if pcr > maxPCR {
		return fmt.Errorf("PCR is %d, want at most %d", pcr, maxPCR)
	}
	if int64(count) != int64(len(algs)) {
		return fmt.Errorf("got %d digests, want one for each of the banks %q", count, l.Banks)
	}
	e.PCR, e.UntrustedType = int(pcr), typ
	e.digests = make([][]byte, len(algs))
	for range algs {
		alg := r.u16()
		if r.bad {
			return errTruncated
		}
		index := -1
		for i, a := range algs {
			if a == alg {
				index = i
			}
		}
		if index < 0 || e.digests[index] != nil {
			return fmt.Errorf("digest of the algorithm %#04x, want one for each of the banks %q", alg, l.Banks)
		}
		hash, _ := bankHash(l.Banks[index])
		if e.digests[index] = r.take(hash.Size()); r.bad {
			return errTruncated
		}
	}
	size := r.u32()
	if r.bad || int64(size) > int64(len(r.b)) {
		return fmt.Errorf("its data has %d bytes, the log only %d more: %w", size, len(r.b), errTruncated)
	}
	e.UntrustedData = r.take(int(size))
	return nil
}

// allBytes reports whether every byte of p is b.
func allBytes(p []byte, b byte) bool {
	for _, v := range p {
		if v != b {
			return false
		}
	}
	return true
}

// printable quotes foreign bytes for a message, at most n of them.
func printable(b []byte, n int) string {
	cut := ""
	if len(b) > n {
		b, cut = b[:n], "..."
	}
	return fmt.Sprintf("%q%s", b, cut)
}
