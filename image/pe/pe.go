// Package pe reads PE32+ images (Microsoft PE/COFF specification; UEFI 2.10,
// 2.1.1), computes their Authenticode digest, and signs and verifies them for
// UEFI Secure Boot. Parse is the way in; it accepts only what it can account
// for byte by byte, because a digest over a misread file is worth nothing.
//
// The signing code is our own. github.com/foxboron/go-uefi does the same, but
// it puts the present time into every signature, so that no two builds are
// alike, and it brings a file system abstraction with it.
package pe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits of what Parse accepts.
const (
	MaxSize     = 2 << 30 // bytes; firmware loads nothing larger
	MaxSections = 96
)

// Machine types (PE/COFF, 3.3.1).
const (
	MachineAMD64 = 0x8664
	MachineARM64 = 0xaa64
)

// Fixed sizes and offsets of the format.
const (
	dosHeaderSize     = 64
	coffHeaderSize    = 20
	sectionHeaderSize = 40
	optionalFixed     = 112 // PE32+ optional header before its data directories
	certificateEntry  = 4   // index of the certificate table's data directory
)

// File is a parsed image. It shares its bytes with what was given to Parse.
type File struct {
	Machine          uint16
	EntryPoint       uint32 // RVA
	SectionAlignment uint32
	FileAlignment    uint32
	SizeOfImage      uint32
	SizeOfHeaders    uint32
	Subsystem        uint16 // 10 is an EFI application
	Sections         []Section

	data         []byte
	coff         int // file offsets of the headers
	optional     int
	sectionTable int
	certOffset   int // of the certificate table; 0 if there is none
	certSize     int
}

// Section is one section header and its place in the file.
type Section struct {
	Name            string
	VirtualSize     uint32
	VirtualAddress  uint32
	RawSize         uint32 // SizeOfRawData
	RawOffset       uint32 // PointerToRawData
	Characteristics uint32

	data []byte
}

// Data returns what the section is in memory as far as the file has it: the
// first VirtualSize bytes, without the padding to the file alignment. It is
// shorter than VirtualSize if the section has fewer bytes in the file.
func (s Section) Data() []byte { return s.data[:min(uint64(s.VirtualSize), uint64(len(s.data)))] }

// Raw returns all bytes of the section in the file.
func (s Section) Raw() []byte { return s.data }

// Parse reads the headers of b. It refuses an image
//   - that is not PE32+ or not for amd64 or arm64,
//   - with headers, sections or a certificate table outside the file,
//   - with sections that overlap each other or the headers, in the file or in memory,
//   - with a certificate table that is not the last thing in the file,
//   - with a NUL inside a section name or with COFF long names.
func Parse(b []byte) (*File, error) {
	f, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("parse PE image: %w", err)
	}
	return f, nil
}

func parse(b []byte) (*File, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%d bytes, at most %d allowed", len(b), MaxSize)
	}
	if len(b) < dosHeaderSize || b[0] != 'M' || b[1] != 'Z' {
		return nil, errors.New("no MZ header")
	}
	le := binary.LittleEndian
	lfanew := uint64(le.Uint32(b[0x3c:]))
	if lfanew < dosHeaderSize || lfanew+4+coffHeaderSize > uint64(len(b)) {
		return nil, fmt.Errorf("PE header at %#x is outside of the file's %#x bytes", lfanew, len(b))
	}
	if string(b[lfanew:lfanew+4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("signature at %#x is %q, want \"PE\\0\\0\"", lfanew, b[lfanew:lfanew+4])
	}
	f := &File{data: b, coff: int(lfanew) + 4}
	f.optional = f.coff + coffHeaderSize
	f.Machine = le.Uint16(b[f.coff:])
	if f.Machine != MachineAMD64 && f.Machine != MachineARM64 {
		return nil, fmt.Errorf("machine is %#x, want amd64 %#x or arm64 %#x", f.Machine, MachineAMD64, MachineARM64)
	}
	count := int(le.Uint16(b[f.coff+2:]))
	optionalSize := int(le.Uint16(b[f.coff+16:]))
	if count == 0 || count > MaxSections {
		return nil, fmt.Errorf("%d sections, want 1 to %d", count, MaxSections)
	}
	f.sectionTable = f.optional + optionalSize
	if optionalSize < optionalFixed || f.sectionTable+count*sectionHeaderSize > len(b) {
		return nil, fmt.Errorf("optional header of %d bytes and %d sections do not fit into the file's %d bytes", optionalSize, count, len(b))
	}
	o := b[f.optional:f.sectionTable]
	if magic := le.Uint16(o); magic != 0x20b {
		return nil, fmt.Errorf("optional header's magic is %#x, want PE32+ 0x20b", magic)
	}
	f.EntryPoint = le.Uint32(o[16:])
	f.SectionAlignment = le.Uint32(o[32:])
	f.FileAlignment = le.Uint32(o[36:])
	f.SizeOfImage = le.Uint32(o[56:])
	f.SizeOfHeaders = le.Uint32(o[60:])
	f.Subsystem = le.Uint16(o[68:])
	directories := le.Uint32(o[108:])
	if directories > 16 || optionalFixed+8*int(directories) > optionalSize {
		return nil, fmt.Errorf("%d data directories in an optional header of %d bytes", directories, optionalSize)
	}
	for name, a := range map[string]uint32{"section": f.SectionAlignment, "file": f.FileAlignment} {
		if a == 0 || a&(a-1) != 0 || a > 1<<21 {
			return nil, fmt.Errorf("%s alignment %#x is not a power of two up to 2 MiB", name, a)
		}
	}
	if end := f.sectionTable + count*sectionHeaderSize; int64(f.SizeOfHeaders) < int64(end) || int64(f.SizeOfHeaders) > int64(len(b)) {
		return nil, fmt.Errorf("SizeOfHeaders is %#x, but headers end at %#x and the file at %#x", f.SizeOfHeaders, end, len(b))
	}
	if directories > certificateEntry {
		e := o[optionalFixed+8*certificateEntry:]
		if err := f.setCertificates(uint64(le.Uint32(e)), uint64(le.Uint32(e[4:]))); err != nil {
			return nil, err
		}
	}
	for i := range count {
		s, err := f.section(b[f.sectionTable+i*sectionHeaderSize:])
		if err != nil {
			return nil, fmt.Errorf("section %d: %w", i+1, err)
		}
		f.Sections = append(f.Sections, s)
	}
	return f, f.checkOverlaps()
}

func (f *File) setCertificates(offset, size uint64) error {
	if offset == 0 && size == 0 {
		return nil
	}
	if offset < uint64(f.SizeOfHeaders) || offset%8 != 0 || offset+size != uint64(len(f.data)) || size < 8 {
		return fmt.Errorf("certificate table at %#x with %#x bytes is not the aligned end of the file's %#x bytes", offset, size, len(f.data))
	}
	f.certOffset, f.certSize = int(offset), int(size)
	return nil
}

func (f *File) section(h []byte) (Section, error) {
	le := binary.LittleEndian
	name := strings.TrimRight(string(h[:8]), "\x00")
	s := Section{
		Name:            name,
		VirtualSize:     le.Uint32(h[8:]),
		VirtualAddress:  le.Uint32(h[12:]),
		RawSize:         le.Uint32(h[16:]),
		RawOffset:       le.Uint32(h[20:]),
		Characteristics: le.Uint32(h[36:]),
	}
	if strings.Contains(name, "\x00") || strings.HasPrefix(name, "/") {
		return s, fmt.Errorf("name %q is not a plain one", name)
	}
	if uint64(s.VirtualAddress)+uint64(s.VirtualSize) > uint64(f.SizeOfImage) {
		return s, fmt.Errorf("%s: memory %#x+%#x is outside of SizeOfImage %#x", name, s.VirtualAddress, s.VirtualSize, f.SizeOfImage)
	}
	if s.RawSize == 0 {
		return s, nil
	}
	end := uint64(s.RawOffset) + uint64(s.RawSize)
	limit := uint64(len(f.data) - f.certSize)
	if s.RawOffset < f.SizeOfHeaders || end > limit {
		return s, fmt.Errorf("%s: bytes %#x+%#x are outside of %#x to %#x", name, s.RawOffset, s.RawSize, f.SizeOfHeaders, limit)
	}
	s.data = f.data[s.RawOffset:end:end]
	return s, nil
}

func (f *File) checkOverlaps() error {
	byFile := slices.Clone(f.Sections)
	byFile = slices.DeleteFunc(byFile, func(s Section) bool { return s.RawSize == 0 })
	slices.SortFunc(byFile, func(a, b Section) int { return int(int64(a.RawOffset) - int64(b.RawOffset)) })
	for i := 1; i < len(byFile); i++ {
		a, b := byFile[i-1], byFile[i]
		if uint64(a.RawOffset)+uint64(a.RawSize) > uint64(b.RawOffset) {
			return fmt.Errorf("sections %s and %s overlap in the file at %#x", a.Name, b.Name, b.RawOffset)
		}
	}
	byAddress := slices.Clone(f.Sections)
	byAddress = slices.DeleteFunc(byAddress, func(s Section) bool { return s.VirtualSize == 0 })
	slices.SortFunc(byAddress, func(a, b Section) int { return int(int64(a.VirtualAddress) - int64(b.VirtualAddress)) })
	for i := 1; i < len(byAddress); i++ {
		a, b := byAddress[i-1], byAddress[i]
		if uint64(a.VirtualAddress)+uint64(a.VirtualSize) > uint64(b.VirtualAddress) {
			return fmt.Errorf("sections %s and %s overlap in memory at %#x", a.Name, b.Name, b.VirtualAddress)
		}
	}
	return nil
}

// Section returns the section of that name. It is an error if there are
// several, because readers would not agree on which one counts.
func (f *File) Section(name string) (s Section, found bool, err error) {
	for _, c := range f.Sections {
		if c.Name != name {
			continue
		}
		if found {
			return Section{}, false, fmt.Errorf("PE image has several sections %s", name)
		}
		s, found = c, true
	}
	return s, found, nil
}

// Offsets tells a writer where the headers of the image are.
type Offsets struct {
	COFF         int // COFF file header
	Optional     int // optional header
	SectionTable int
}

// Offsets returns the file offsets of the headers.
func (f *File) Offsets() Offsets {
	return Offsets{COFF: f.coff, Optional: f.optional, SectionTable: f.sectionTable}
}
