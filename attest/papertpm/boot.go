package papertpm

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // a bank that real logs have
	"crypto/sha256"
	_ "crypto/sha512" // banks
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"unicode/utf16"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// Measurement is one event: what is measured, and what the log says of it.
type Measurement struct {
	PCR  int
	Type attest.EventType
	Data []byte // of the event in the log
	// Measured is what was hashed; nil: Data.
	Measured []byte
	// Digests are instead of Measured, by bank, where only they are known.
	Digests map[string][]byte
}

// Bytes returns what is hashed.
func (m Measurement) Bytes() []byte {
	if m.Measured != nil {
		return m.Measured
	}
	return m.Data
}

// Digest returns the digest for a bank: of Digests, or of Bytes. An event that
// is not measured has zeros unless it says otherwise.
func (m Measurement) Digest(bank string) []byte {
	h := hashOf(bank)
	if m.Type == attest.EventNoAction && m.Measured == nil && m.Digests == nil {
		return make([]byte, h.Size())
	}
	if m.Digests != nil {
		return m.Digests[bank]
	}
	hh := h.New()
	hh.Write(m.Bytes())
	return hh.Sum(nil)
}

// Boot is one boot of a machine: what was measured, and what the machine says
// of it. Where the two differ, the machine lies.
type Boot struct {
	Banks    []string      // active; at least sha256
	Measured []Measurement // extended
	Logged   []Measurement // what the log says instead; nil: the same
	Unlogged []Measurement // extended after the rest, and not in the log
	LogBanks []string      // of the log; nil: Banks
	Locality byte          // from which PCR 0 starts; the log must say the same
	RawLog   []byte        // sent as log, whatever was measured; nil: made from the above

	SMBIOS []byte
	Disk   attest.Disk
}

// Measure sets the PCRs of a TPM to what the boot leaves behind.
func (b *Boot) Measure(t *TPM) {
	t.PCRs = map[string]map[int][]byte{}
	for _, bank := range b.Banks {
		h := hashOf(bank)
		values := zeroPCRs(bank)
		values[0][h.Size()-1] = b.Locality
		for _, events := range [][]Measurement{b.Measured, b.Unlogged} {
			for _, m := range events {
				if m.Type != attest.EventNoAction {
					values[m.PCR] = extend(h, values[m.PCR], m.Digest(bank))
				}
			}
		}
		t.PCRs[bank] = values
	}
}

// Log returns the event log that the machine sends.
func (b *Boot) Log() []byte {
	banks, events := b.Banks, b.Measured
	if b.LogBanks != nil {
		banks = b.LogBanks
	}
	if b.Logged != nil {
		events = b.Logged
	}
	if b.RawLog != nil {
		return b.RawLog
	}
	return EncodeLog(banks, events)
}

// ReadBoot takes a boot from a recorded crypto-agile event log.
func ReadBoot(log []byte) (*Boot, error) {
	l, err := attest.ParseEventLog(log)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: %w", err)
	}
	b := &Boot{Banks: l.Banks, Locality: l.StartupLocality}
	if l.StartupLocality != 0 {
		b.Measured = append(b.Measured, Measurement{Type: attest.EventNoAction, Data: append([]byte("StartupLocality\x00"), l.StartupLocality)})
	}
	for i := range l.Events {
		e := &l.Events[i]
		m := Measurement{PCR: e.PCR, Type: e.UntrustedType, Data: e.UntrustedData}
		if _, ok := e.VerifiedData(); !ok {
			m.Digests = map[string][]byte{}
			for _, bank := range l.Banks {
				m.Digests[bank], _ = l.Digest(e, bank)
			}
		}
		b.Measured = append(b.Measured, m)
	}
	return b, nil
}

// EncodeLog writes a crypto-agile event log (TCG PFP, "Event Logging").
func EncodeLog(banks []string, events []Measurement) []byte {
	var b []byte
	u32 := func(v uint32) { b = binary.LittleEndian.AppendUint32(b, v) }
	u16 := func(v uint16) { b = binary.LittleEndian.AppendUint16(b, v) }
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = binary.LittleEndian.AppendUint32(spec, uint32(len(banks)))
	for _, bank := range banks {
		spec = binary.LittleEndian.AppendUint16(spec, uint16(algOf(bank)))
		spec = binary.LittleEndian.AppendUint16(spec, uint16(hashOf(bank).Size()))
	}
	spec = append(spec, 0)
	u32(0)
	u32(uint32(attest.EventNoAction))
	b = append(b, make([]byte, 20)...)
	u32(uint32(len(spec)))
	b = append(b, spec...)
	for _, e := range events {
		u32(uint32(e.PCR))
		u32(uint32(e.Type))
		u32(uint32(len(banks)))
		for _, bank := range banks {
			u16(uint16(algOf(bank)))
			b = append(b, e.Digest(bank)...)
		}
		u32(uint32(len(e.Data)))
		b = append(b, e.Data...)
	}
	return b
}

// hashOf returns the hash of a bank. A bank of another name than the four of
// the TPM 2.0 Library is a mistake of the caller.
func hashOf(bank string) crypto.Hash {
	switch bank {
	case "sha1":
		return crypto.SHA1
	case "sha256":
		return crypto.SHA256
	case "sha384":
		return crypto.SHA384
	case "sha512":
		return crypto.SHA512
	}
	panic("paper TPM: no bank " + bank)
}

func algOf(bank string) tpm2.TPMAlgID {
	switch bank {
	case "sha1":
		return tpm2.TPMAlgSHA1
	case "sha256":
		return tpm2.TPMAlgSHA256
	case "sha384":
		return tpm2.TPMAlgSHA384
	case "sha512":
		return tpm2.TPMAlgSHA512
	}
	return tpm2.TPMAlgNull
}

func extend(h crypto.Hash, value, digest []byte) []byte {
	hh := h.New()
	hh.Write(value)
	hh.Write(digest)
	return hh.Sum(nil)
}

// zeroPCRs are the values after a reset; those of DRTM have all bits set (PC
// Client Platform TPM Profile, PCR attributes).
func zeroPCRs(bank string) map[int][]byte {
	out := map[int][]byte{}
	for p := range 24 {
		out[p] = make([]byte, hashOf(bank).Size())
		if p >= 17 && p <= 22 {
			out[p] = bytes.Repeat([]byte{0xff}, hashOf(bank).Size())
		}
	}
	return out
}

// EncodeVariable writes UEFI_VARIABLE_DATA (TCG PFP, "Measuring UEFI Variables").
func EncodeVariable(guid [16]byte, name string, data []byte) []byte {
	u := utf16.Encode([]rune(name))
	b := append([]byte{}, guid[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(u)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	for _, c := range u {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return append(b, data...)
}

// blob returns the data of an event of a firmware volume: where it is, and its
// length (TCG PFP, UEFI_PLATFORM_FIRMWARE_BLOB).
func blob(base, length uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, base), length)
}

// imageLoad returns the data of an event of a boot application: address,
// length, link address and the device path, of a file and its end (TCG PFP,
// UEFI_IMAGE_LOAD_EVENT; UEFI 10.3.5.4).
func imageLoad(file string) []byte {
	name := EncodeUTF16(file)
	path := binary.LittleEndian.AppendUint16([]byte{4, 4}, uint16(4+len(name)))
	path = append(append(path, name...), 0x7f, 0xff, 4, 0)
	b := append(blob(0x1000000, 0x800000), make([]byte, 8)...)
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(path))), path...)
}

// tagged returns the data of an event of Linux' EFI stub: what it measured, in
// words (TCG PFP, TCG_PCClientTaggedEvent; the ids are the stub's).
func tagged(id uint32, s string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, id)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)+1))
	return append(append(b, s...), 0)
}

// EncodeUTF16 returns s as UTF-16LE with a final NUL, as an EFI stub measures
// a command line.
func EncodeUTF16(s string) []byte {
	var b []byte
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// EncodeSMBIOS writes a structure table with types 0, 1 and 127 (DSP0134).
func EncodeSMBIOS(version, manufacturer, product, serial string) []byte {
	var b bytes.Buffer
	b.Write([]byte{0, 24, 0, 0, 1, 2, 0, 0, 3})
	b.Write(make([]byte, 24-9))
	b.WriteString("EDK II\x00" + version + "\x0002/06/2015\x00\x00")
	b.Write([]byte{1, 27, 1, 0, 1, 2, 0, 3})
	b.Write(make([]byte, 27-8))
	b.WriteString(manufacturer + "\x00" + product + "\x00" + serial + "\x00\x00")
	b.Write([]byte{127, 4, 2, 0, 0, 0})
	return b.Bytes()
}

// GlobalGUID and SecurityGUID are the vendor GUIDs of the Secure Boot variables
// in their binary form: EFI_GLOBAL_VARIABLE and EFI_IMAGE_SECURITY_DATABASE_GUID
// (UEFI 2.10, 3.3 and 32.6.1).
func GlobalGUID() [16]byte {
	return [16]byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
}

// SecurityGUID is described with GlobalGUID.
func SecurityGUID() [16]byte {
	return [16]byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
}

// Disk is the GUID of the disk that GoodBoot boots from.
const Disk = "01020304-0506-0708-090a-0b0c0d0e0f10"

// EncodeGPT writes the data of an EV_EFI_GPT_EVENT with no partitions: a header
// with the disk's GUID (UEFI 2.10, 5.3.2), which is in its binary form.
func EncodeGPT(disk [16]byte) []byte {
	b := make([]byte, 92+8)
	copy(b, "EFI PART")
	copy(b[56:], disk[:])
	return b
}

// ParseGUID returns the binary form of a GUID in text, whose first three fields
// are little-endian.
func ParseGUID(s string) ([16]byte, error) {
	var a uint32
	var b, c, d uint16
	var e uint64
	if _, err := fmt.Sscanf(s, "%08x-%04x-%04x-%04x-%012x", &a, &b, &c, &d, &e); err != nil || len(s) != 36 {
		return [16]byte{}, fmt.Errorf("paper TPM: %q is no GUID", s)
	}
	var g [16]byte
	binary.LittleEndian.PutUint32(g[0:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	binary.BigEndian.PutUint64(g[8:], uint64(d)<<48|e)
	return g, nil
}

// OnDisk returns a copy of the boot from another disk: the GUID in the
// partition table that firmware measured, and in what the machine says.
func (b *Boot) OnDisk(guid string, stateExists bool) (*Boot, error) {
	g, err := ParseGUID(guid)
	if err != nil {
		return nil, err
	}
	c := *b
	c.Disk = attest.Disk{GUID: guid, StateExists: stateExists}
	c.Measured = append([]Measurement{}, b.Measured...)
	for i, m := range c.Measured {
		if m.Type == attest.EventGPT && len(m.Data) >= 72 {
			m.Data = append([]byte{}, m.Data...)
			copy(m.Data[56:72], g[:])
			m.Measured, m.Digests = nil, nil
			c.Measured[i] = m
		}
	}
	return &c, nil
}

// Cmdline is the kernel command line of GoodBoot.
const Cmdline = "console=ttyS0 sealift.roothash=00"

// sections of GoodBoot's UKI, each with "contents of " and its name in it.
func sections() []string { return []string{".linux", ".osrel", ".cmdline", ".initrd"} }

// Section returns what systemd-stub measures of a section.
func Section(name, contents string) []Measurement {
	return []Measurement{
		{PCR: 11, Type: attest.EventIPL, Data: EncodeUTF16(name), Measured: []byte(name + "\x00")},
		{PCR: 11, Type: attest.EventIPL, Data: EncodeUTF16(name), Measured: []byte(contents)},
	}
}

// GoodBoot is the boot of the image GoodImage in the SHA-256 bank, laid out as
// OVMF's, on a machine "Box" of the maker "Paper" with firmware 1.0.
func GoodBoot() *Boot {
	config := func(guid [16]byte, name, data string) Measurement {
		return Measurement{PCR: 7, Type: attest.EventVariableConfig, Data: EncodeVariable(guid, name, []byte(data))}
	}
	separator := func(pcr int) Measurement {
		return Measurement{PCR: pcr, Type: attest.EventSeparator, Data: make([]byte, 4)}
	}
	action := func(pcr int, s string) Measurement {
		return Measurement{PCR: pcr, Type: attest.EventAction, Data: []byte(s)}
	}
	events := []Measurement{
		{PCR: 0, Type: attest.EventSCRTMVersion, Data: []byte{0, 0}},
		{PCR: 0, Type: attest.EventFirmwareBlob, Data: blob(0x820000, 0xe0000), Measured: []byte("pei volume")},
		{PCR: 0, Type: attest.EventFirmwareBlob, Data: blob(0x900000, 0xc00000), Measured: []byte("dxe volume")},
		config(GlobalGUID(), "SecureBoot", "\x01"),
		config(GlobalGUID(), "PK", "pk"),
		config(GlobalGUID(), "KEK", "kek"),
		config(SecurityGUID(), "db", "db"),
		config(SecurityGUID(), "dbx", "dbx"),
		separator(7),
		{PCR: 1, Type: attest.EventVariableBoot, Data: EncodeVariable(GlobalGUID(), "BootOrder", []byte("order")), Measured: []byte("order")},
		action(4, "Calling EFI Application from Boot Option"),
	}
	for pcr := range 7 {
		events = append(events, separator(pcr))
	}
	guid, err := ParseGUID(Disk)
	if err != nil {
		panic(err) // a constant of this file
	}
	events = append(events,
		Measurement{PCR: 7, Type: attest.EventAuthority, Data: EncodeVariable(SecurityGUID(), "db", []byte("owner and certificate"))},
		Measurement{PCR: 5, Type: attest.EventGPT, Data: EncodeGPT(guid)},
		Measurement{PCR: 4, Type: attest.EventBootApplication, Data: imageLoad(`\EFI\BOOT\BOOTX64.EFI`), Measured: []byte("uki")},
	)
	for _, s := range sections() {
		events = append(events, Section(s, "contents of "+s)...)
	}
	events = append(events,
		Measurement{PCR: 9, Type: attest.EventTag, Data: tagged(0x8f3b22ed, "LOADED_IMAGE::LoadOptions"), Measured: EncodeUTF16(Cmdline)},
		Measurement{PCR: 9, Type: attest.EventTag, Data: tagged(0x8f3b22ec, "Linux initrd"), Measured: []byte("initrd")},
		action(5, "Exit Boot Services Invocation"), action(5, "Exit Boot Services Returned with Success"),
	)
	return &Boot{
		Banks: []string{"sha256"}, Measured: events,
		SMBIOS: EncodeSMBIOS("1.0", "Paper", "Box", "serial-1"), Disk: attest.Disk{GUID: Disk, StateExists: true},
	}
}

// GoodImage holds the reference values of GoodBoot.
func GoodImage() *manifest.Manifest {
	variable := func(guid [16]byte, name, data string) manifest.SHA256 {
		return sha256.Sum256(EncodeVariable(guid, name, []byte(data)))
	}
	digest := func(s string) manifest.SHA256 { return sha256.Sum256([]byte(s)) }
	m := &manifest.Manifest{
		Schema: manifest.Schema, Name: "demo", Version: "1", Arch: "amd64",
		Disk: manifest.Disk{Size: 4096, ChunkSize: 4096, Chunks: make([]manifest.SHA256, 1)},
	}
	m.SecureBoot = manifest.SecureBoot{
		PK: variable(GlobalGUID(), "PK", "pk"), KEK: variable(GlobalGUID(), "KEK", "kek"), DB: variable(SecurityGUID(), "db", "db"),
		Authority: variable(SecurityGUID(), "db", "owner and certificate"),
	}
	m.UKI = manifest.UKI{Cmdline: Cmdline, Authenticode: digest("uki"), Kernel: digest("kernel"), Initrd: digest("initrd")}
	for _, s := range sections() {
		m.UKI.Sections = append(m.UKI.Sections, manifest.Section{Name: s, SHA256: digest("contents of " + s)})
	}
	return m
}

// Predicted gives an image the references in SHA-256 and SHA-384 that a build of it
// predicts of a boot.
func Predicted(m *manifest.Manifest, b *Boot) *manifest.Manifest {
	boot := manifest.Boot{Way: manifest.BootDisk, Artifact: manifest.KindUKI, SecureBoot: true}
	for _, pcr := range []int{4, 7, 9, 11} {
		p := manifest.PCR{Index: pcr}
		for _, e := range b.Measured {
			if e.PCR == pcr {
				p.Events = append(p.Events, manifest.Event{Type: e.Type.SpecName(), Digests: manifest.Digests{
					"sha256": hex.EncodeToString(e.Digest("sha256")), "sha384": hex.EncodeToString(e.Digest("sha384")),
				}})
			}
		}
		boot.PCRs = append(boot.PCRs, p)
	}
	m.Boots = []manifest.Boot{boot}
	return m
}

// GoodFirmware is the reference of GoodBoot's firmware.
func GoodFirmware() attest.FirmwareReference {
	return attest.FirmwareReference{
		Vendor: "Paper", Product: "Box", Version: "1.0",
		Digests: []manifest.SHA256{sha256.Sum256([]byte("dxe volume"))}, Unpinned: 1, Status: attest.FirmwareAllowed,
		SHA384: []string{hex.EncodeToString(Measurement{Data: []byte("dxe volume")}.Digest("sha384"))},
	}
}
