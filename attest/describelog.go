package attest

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of the words about an event.
const (
	maxEventText   = 300 // characters
	maxPathNodes   = 32
	maxShownValue  = 16 // bytes in hex
	maxBootOptions = 16
)

// describe says what an event's data is, in printable ASCII. Where the data
// does not decode as its type, it is shown as text or by its size.
func (l *UntrustedLog) describe(e *LoggedEvent) string {
	text, err := l.describeAs(e)
	if err != nil {
		l.quirk(QuirkUnreadable, e.Number, "the data does not decode as that of its type, %s: %s", e.UntrustedType, cleanTo(maxEventText, err.Error()))
	}
	if text == "" {
		text = describeData(e.UntrustedData)
	}
	return cleanTo(maxEventText, text)
}

// describeAs reads the data as its type says, or returns nothing if the type
// has no structure.
func (l *UntrustedLog) describeAs(e *LoggedEvent) (string, error) {
	data := e.UntrustedData
	switch e.UntrustedType {
	case EventNoAction:
		return l.describeNoAction(e), nil
	case EventSeparator:
		return fmt.Sprintf("separator %x", data[:min(len(data), maxShownValue)]), nil
	case EventSCRTMVersion:
		if text, ok := textOf(data); ok {
			return fmt.Sprintf("version %q", text), nil
		}
		return "", nil
	case EventVariableConfig, EventVariableBoot, EventVariableBoot2, EventAuthority:
		v, rest, err := cutVariable(data)
		if err != nil {
			return "", err
		}
		if len(rest) > 0 && e.UntrustedType != EventAuthority { // see QuirkShimCertificate
			return "", fmt.Errorf("%d bytes follow the variable", len(rest))
		}
		return v.describe(e.UntrustedType == EventAuthority), nil
	case EventBootApplication, EventBootDriver, EventRuntimeDriver:
		return describeImageLoad(data)
	case EventGPT, EventGPT2:
		guid, err := gptDiskGUID(data)
		if err != nil {
			return "", err
		}
		return "partition table of the disk " + guid, nil
	case EventFirmwareBlob, EventFirmwareBlob2, EventPostCode, EventPostCode2, EventSCRTMContents:
		return describeBlob(data), nil
	case EventHandoff, EventHandoff2:
		return describeTables(data, e.UntrustedType == EventHandoff2)
	case EventTag:
		return describeTag(data)
	}
	return "", nil
}

func (l *UntrustedLog) describeNoAction(e *LoggedEvent) string {
	value, isLocality := bytes.CutPrefix(e.UntrustedData, []byte(localitySignature))
	switch {
	case e.Number == 0 && l.Spec != nil:
		return fmt.Sprintf("%s, version %d.%d errata %d", l.Spec.Signature, l.Spec.Major, l.Spec.Minor, l.Spec.Errata)
	case isLocality && len(value) > 0:
		return fmt.Sprintf("the TPM was started from locality %d", value[0])
	case len(e.UntrustedData) >= minNoAction:
		signature, _, _ := bytes.Cut(e.UntrustedData[:minNoAction], []byte{0})
		if text, ok := textOf(signature); ok {
			return fmt.Sprintf("%s, %d bytes", text, len(e.UntrustedData))
		}
	}
	return ""
}

// describe names a variable and its value. An authority event has one entry of
// a signature list as value, or shim's SBAT level.
func (v *variable) describe(authority bool) string {
	name := cleanText(v.Name)
	switch text, isText := textOf(v.Data); {
	case authority && v.lacksOwner():
		return (&variable{Name: v.Name, Data: append(make([]byte, 16), v.Data...)}).describeEntry()
	case authority && !isText && len(v.Data) > 16:
		return v.describeEntry()
	case v.GUID == guidGlobal && (name == "PK" || name == "KEK"), v.GUID == guidSecurity:
		return fmt.Sprintf("variable %s holds %s", name, describeSignatures(v.Data))
	case v.GUID == guidGlobal && name == "BootOrder":
		return "variable BootOrder is " + describeBootOrder(v.Data)
	case v.GUID == guidGlobal && strings.HasPrefix(name, "Boot") && len(name) == len("Boot0000"):
		if option, ok := describeBootOption(v.Data); ok {
			return fmt.Sprintf("variable %s is %s", name, option)
		}
	case len(v.Data) == 0:
		return fmt.Sprintf("variable %s is empty", name)
	case isText && len(v.Data) > 1:
		return fmt.Sprintf("variable %s is %q", name, text)
	case len(v.Data) <= maxShownValue:
		return fmt.Sprintf("variable %s is %x", name, v.Data)
	}
	return fmt.Sprintf("variable %s has %d bytes", name, len(v.Data))
}

// lacksOwner reports whether the value is a certificate without the GUID of its
// owner before it.
func (v *variable) lacksOwner() bool {
	_, err := x509.ParseCertificate(v.Data)
	return err == nil
}

func describeBootOrder(b []byte) string {
	var order []string
	for ; len(b) >= 2; b = b[2:] {
		if len(order) == maxBootOptions {
			order = append(order, "...")
			break
		}
		order = append(order, fmt.Sprintf("%04X", binary.LittleEndian.Uint16(b)))
	}
	return strings.Join(order, " ")
}

// describeBootOption reads an EFI_LOAD_OPTION (UEFI 2.10, 3.1.3).
func describeBootOption(b []byte) (string, bool) {
	r := &logReader{b: b}
	r.u32() // attributes
	size := int(r.u16())
	end := 0
	for end+1 < len(r.b) && (r.b[end] != 0 || r.b[end+1] != 0) {
		end += 2
	}
	name := r.take(end)
	r.u16()
	path := r.take(size)
	if r.bad {
		return "", false
	}
	return fmt.Sprintf("%q, %s", cleanText(decodeUTF16(name)), describePath(path)), true
}

// describeImageLoad reads an UEFI_IMAGE_LOAD_EVENT (PFP, "UEFI_IMAGE_LOAD_EVENT
// Structure"). Its device path is not measured.
func describeImageLoad(b []byte) (string, error) {
	r := &logReader{b: b}
	r.u64() // address in memory
	length := r.u64()
	r.u64() // address at which it was linked
	size := r.u64()
	if r.bad || size > uint64(len(r.b)) {
		return "", fmt.Errorf("image load event: %d bytes for a device path of %d", len(b), size)
	}
	path := describePath(r.take(int(size)))
	if path == "" {
		path = "no device path"
	}
	return fmt.Sprintf("image of %d bytes, %s", length, path), nil
}

// describeBlob reads an UEFI_PLATFORM_FIRMWARE_BLOB, with or without the
// description of its second version. Firmware also measures plain text, and
// POST codes are often that.
func describeBlob(b []byte) string {
	r := &logReader{b: b}
	switch {
	case len(b) == 16:
	case len(b) > 17 && len(b) == 17+int(b[0]):
		if text, ok := textOf(b[1 : 1+int(b[0])]); ok {
			r.take(1 + int(b[0]))
			return fmt.Sprintf("%q, at %#x, %d bytes", text, r.u64(), r.u64())
		}
		return ""
	default:
		return ""
	}
	if text, ok := textOf(b); ok {
		return fmt.Sprintf("%q", text)
	}
	return fmt.Sprintf("at %#x, %d bytes", r.u64(), r.u64())
}

// describeTables reads an UEFI_HANDOFF_TABLE_POINTERS, with or without the
// description of its second version.
func describeTables(b []byte, described bool) (string, error) {
	r := &logReader{b: b}
	name := ""
	if described {
		if text, ok := textOf(r.take(int(r.u8()))); ok {
			name = fmt.Sprintf("%q, ", text)
		}
	}
	n := r.u64()
	if r.bad || n > uint64(len(r.b)/24) {
		return "", fmt.Errorf("handoff tables: %d tables do not fit into %d bytes", n, len(b))
	}
	var guids []string
	for range min(n, maxListed) {
		guids = append(guids, formatGUID(r.take(16)))
		r.u64() // address
	}
	if n > maxListed {
		guids = append(guids, "...")
	}
	return fmt.Sprintf("%s%d configuration tables: %s", name, n, strings.Join(guids, " ")), nil
}

// describeTag reads a TCG_PCClientTaggedEvent.
func describeTag(b []byte) (string, error) {
	r := &logReader{b: b}
	id, size := r.u32(), r.u32()
	if r.bad || int64(size) > int64(len(r.b)) {
		return "", fmt.Errorf("tagged event: %d bytes for %d of data", len(b), size)
	}
	return fmt.Sprintf("tag %#08x, %s", id, describeData(r.take(int(size)))), nil
}

// describeData shows data without a structure as text, or by its size.
func describeData(b []byte) string {
	if text, ok := textOf(b); ok {
		return fmt.Sprintf("%q", text)
	}
	if len(b) > 0 && len(b) <= maxShownValue {
		return fmt.Sprintf("%x", b)
	}
	return fmt.Sprintf("%d bytes", len(b))
}

// textOf returns data that is text in UTF-8 or UTF-16, without final NULs, as
// printable ASCII.
func textOf(b []byte) (string, bool) {
	s := string(bytes.TrimRight(b, "\x00"))
	if len(b) >= 2 && len(b)%2 == 0 && b[1] == 0 {
		s = strings.TrimRight(decodeUTF16(b), "\x00")
	}
	if s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool {
		return r == unicode.ReplacementChar || !unicode.IsPrint(r) && !slices.Contains([]rune("\t\n\r"), r)
	}) {
		return "", false
	}
	return cleanTo(maxEventText, strings.NewReplacer("\t", " ", "\n", " ", "\r", " ").Replace(s)), true
}

// describePath returns a device path in the text form of UEFI 2.10, 10.6.1, for
// the nodes that boot disks, networks and option ROMs have.
func describePath(b []byte) string {
	var nodes []string
	for len(b) >= 4 && b[0] != 0x7f {
		n := int(binary.LittleEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) || len(nodes) == maxPathNodes {
			nodes = append(nodes, "...")
			break
		}
		nodes = append(nodes, describeNode(b[0], b[1], b[4:n]))
		b = b[n:]
	}
	return strings.Join(nodes, "/")
}

func describeNode(typ, sub byte, b []byte) string {
	le := binary.LittleEndian
	switch kind := int(typ)<<8 | int(sub); {
	case kind == 0x0101 && len(b) == 2: // 10.3.2.1
		return fmt.Sprintf("Pci(%#x,%#x)", b[1], b[0])
	case kind == 0x0103 && len(b) == 20: // memory mapped, 10.3.2.3
		return fmt.Sprintf("MemoryMapped(%#x,%#x)", le.Uint64(b[4:]), le.Uint64(b[12:]))
	case kind == 0x0201 && len(b) == 8: // 10.3.3
		if hid := le.Uint32(b); hid == 0x0a0341d0 || hid == 0x0a0841d0 {
			return fmt.Sprintf("PciRoot(%#x)", le.Uint32(b[4:]))
		}
		return fmt.Sprintf("Acpi(%#08x,%#x)", le.Uint32(b), le.Uint32(b[4:]))
	case kind == 0x0302 && len(b) == 4:
		return fmt.Sprintf("Scsi(%#x,%#x)", le.Uint16(b), le.Uint16(b[2:]))
	case kind == 0x0305 && len(b) == 2:
		return fmt.Sprintf("USB(%#x,%#x)", b[0], b[1])
	case kind == 0x030b && len(b) == 33: // 10.3.4.10
		return fmt.Sprintf("MAC(%x,%#x)", b[:6], b[32])
	case kind == 0x030c && len(b) >= 15:
		return fmt.Sprintf("IPv4(%d.%d.%d.%d)", b[4], b[5], b[6], b[7])
	case kind == 0x030d && len(b) >= 36:
		return fmt.Sprintf("IPv6(%x)", b[16:32])
	case kind == 0x0312 && len(b) == 6:
		return fmt.Sprintf("Sata(%#x,%#x,%#x)", le.Uint16(b), le.Uint16(b[2:]), le.Uint16(b[4:]))
	case kind == 0x0317 && len(b) == 12:
		return fmt.Sprintf("NVMe(%#x,%x)", le.Uint32(b), b[4:])
	case kind == 0x0318: // 10.3.4.23
		return "Uri(" + cleanText(string(b)) + ")"
	case kind == 0x0401 && len(b) == 38: // 10.3.5.1
		if b[37] == 2 {
			return fmt.Sprintf("HD(%d,GPT,%s)", le.Uint32(b), formatGUID(b[20:36]))
		}
		return fmt.Sprintf("HD(%d,%#x)", le.Uint32(b), le.Uint32(b[20:]))
	case kind == 0x0402 && len(b) == 20:
		return fmt.Sprintf("CDROM(%#x)", le.Uint32(b))
	case kind == 0x0404: // 10.3.5.4
		return cleanTo(maxEventText, strings.TrimRight(decodeUTF16(b), "\x00"))
	case kind == 0x0406 && len(b) == 16:
		return "FvFile(" + formatGUID(b) + ")"
	case kind == 0x0407 && len(b) == 16:
		return "Fv(" + formatGUID(b) + ")"
	case kind == 0x0408 && len(b) == 20:
		return fmt.Sprintf("Offset(%#x,%#x)", le.Uint64(b[4:]), le.Uint64(b[12:]))
	}
	return fmt.Sprintf("Path(%d,%d,%x)", typ, sub, b[:min(len(b), maxShownValue)])
}
