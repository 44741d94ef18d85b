package uki

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest/tpm/pcrsig"
	"github.com/sealift/sealift/image/pe"
)

// MaxCmdline bounds the kernel command line, in bytes. The kernel cuts what is
// longer (COMMAND_LINE_SIZE on x86 with its NUL).
const MaxCmdline = 2047

// sectionReadData are the characteristics of a section of initialized,
// readable data (PE/COFF, 4.1).
const sectionReadData = 0x40000040

// memoryPage separates sections in memory. Stubs say less in their section
// alignment, but firmware protects memory by pages.
const memoryPage = 4096

// Input is what a UKI is made of. Stub, Kernel, Initrd and Cmdline are required.
type Input struct {
	Stub      []byte // systemd-stub as Debian ships it
	Kernel    []byte // bzImage or Image with an EFI stub; may be signed. Its release becomes .uname
	Initrd    []byte
	Cmdline   string // printable ASCII, at most MaxCmdline bytes
	OSRelease []byte // os-release(5)
	// PCRKey signs the PCR 11 policy (RSA-2048). Optional: without it the
	// image has neither .pcrpkey nor .pcrsig.
	PCRKey *rsa.PrivateKey
	Epoch  time.Time // time stamp in the COFF header
}

// named is a section to add.
type named struct {
	name string
	data []byte
}

// Assemble returns the unsigned UKI. Equal input gives equal bytes.
func Assemble(in Input) ([]byte, error) {
	b, err := assemble(in)
	if err != nil {
		return nil, fmt.Errorf("assemble UKI: %w", err)
	}
	return b, nil
}

func assemble(in Input) ([]byte, error) {
	stub, err := pe.Parse(in.Stub)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	stray, err := straySections(stub, in.Stub)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	version, err := versionOf(stub, stray)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	does, err := behaviourOf(version)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	kernel, err := pe.Parse(in.Kernel)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	if kernel.Machine != stub.Machine {
		return nil, fmt.Errorf("kernel is for machine %#x, stub for %#x", kernel.Machine, stub.Machine)
	}
	release, err := KernelRelease(in.Kernel)
	if err != nil {
		return nil, err
	}
	if err := checkCmdline(in.Cmdline); err != nil {
		return nil, err
	}
	if len(in.Initrd) == 0 {
		return nil, errors.New("no initrd")
	}
	sections := append(stray,
		named{sectionOSRel, in.OSRelease},
		named{sectionCmdline, []byte(in.Cmdline)},
		named{sectionUname, []byte(release)},
		named{sectionLinux, in.Kernel},
		named{sectionInitrd, in.Initrd},
	)
	if in.PCRKey != nil {
		if sections, err = addPolicy(sections, does, in.PCRKey); err != nil {
			return nil, err
		}
	}
	// The stub takes an empty section for an absent one.
	sections = slices.DeleteFunc(sections, func(s named) bool { return len(s.data) == 0 })
	return appendSections(stub, in.Stub, sections, in.Epoch)
}

// addPolicy appends .pcrpkey, which is measured, and then .pcrsig, which
// cannot be, as it signs the measurement of all the others.
func addPolicy(sections []named, does behaviour, key *rsa.PrivateKey) ([]named, error) {
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("PCR key: %w", err)
	}
	sections = append(sections, named{sectionPCRKey, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})})
	values := map[string][]byte{}
	for bank, hash := range banks() {
		pcr := newPCR(hash)
		for _, name := range does.measured {
			for _, s := range sections {
				if s.name == name && len(s.data) > 0 {
					pcr.extendSection(s.name, s.data)
				}
			}
		}
		values[bank] = pcr.value
	}
	sig, err := pcrsig.Sign(key, values)
	if err != nil {
		return nil, err
	}
	return append(sections, named{sectionPCRSig, sig}), nil
}

func checkCmdline(s string) error {
	if s == "" {
		return errors.New("no kernel command line: with an empty one the stub accepts any from outside")
	}
	if len(s) > MaxCmdline {
		return fmt.Errorf("kernel command line has %d bytes, at most %d allowed", len(s), MaxCmdline)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }); i >= 0 {
		return fmt.Errorf("kernel command line has a character that is not printable ASCII at byte %d", i)
	}
	return nil
}

// appendSections lays the stub's own sections and the new ones out afresh,
// without gaps and without what the stub's linker left behind the last one.
func appendSections(stub *pe.File, stubBytes []byte, add []named, epoch time.Time) ([]byte, error) {
	for _, s := range add {
		if _, there, err := stub.Section(s.name); err != nil || there {
			return nil, fmt.Errorf("stub has a section %s already", s.name)
		}
	}
	if t := epoch.Unix(); t < 0 || t > math.MaxUint32 {
		return nil, fmt.Errorf("epoch %s does not fit into the COFF header", epoch.UTC().Format(time.RFC3339))
	}
	at := stub.Offsets()
	count := len(stub.Sections) + len(add)
	if count > pe.MaxSections {
		return nil, fmt.Errorf("%d sections, at most %d allowed", count, pe.MaxSections)
	}
	headers := align(max(uint64(stub.SizeOfHeaders), uint64(at.SectionTable+40*count)), uint64(stub.FileAlignment))

	sections := slices.Clone(stub.Sections)
	var memory uint64
	for _, s := range sections {
		memory = max(memory, uint64(s.VirtualAddress)+uint64(s.VirtualSize))
		if uint64(s.VirtualAddress) < headers {
			return nil, fmt.Errorf("stub has no room for %d more sections: its section %s is at %#x", len(add), s.Name, s.VirtualAddress)
		}
	}
	var added uint64
	contents := make([][]byte, 0, count)
	for _, s := range sections {
		contents = append(contents, s.Raw())
	}
	for _, s := range add {
		address := align(memory, max(memoryPage, uint64(stub.SectionAlignment)))
		memory = address + uint64(len(s.data))
		if memory > math.MaxInt32 {
			return nil, fmt.Errorf("section %s ends at %#x, beyond the 2 GiB that firmware loads", s.name, memory)
		}
		raw := align(uint64(len(s.data)), uint64(stub.FileAlignment))
		added += raw
		sections = append(sections, pe.Section{
			Name: s.name, VirtualSize: uint32(len(s.data)), VirtualAddress: uint32(address),
			RawSize: uint32(raw), Characteristics: sectionReadData,
		})
		contents = append(contents, s.data)
	}
	size := headers
	for i := range sections {
		if sections[i].RawSize == 0 {
			sections[i].RawOffset = 0
			continue
		}
		sections[i].RawSize = uint32(align(uint64(sections[i].RawSize), uint64(stub.FileAlignment)))
		sections[i].RawOffset = uint32(size)
		size += uint64(sections[i].RawSize)
	}

	out := make([]byte, size)
	copy(out, stubBytes[:at.SectionTable])
	le := binary.LittleEndian
	coff, optional := out[at.COFF:], out[at.Optional:]
	le.PutUint16(coff[2:], uint16(count))
	le.PutUint32(coff[4:], uint32(epoch.Unix()))
	le.PutUint64(coff[8:], 0) // symbol table: it was behind the sections
	le.PutUint32(optional[8:], uint32(uint64(le.Uint32(optional[8:]))+added))
	le.PutUint32(optional[56:], uint32(align(memory, uint64(stub.SectionAlignment))))
	le.PutUint32(optional[60:], uint32(headers))
	le.PutUint32(optional[64:], 0) // checksum: no one verifies it on UEFI, and signing would change it
	for i, s := range sections {
		h := out[at.SectionTable+40*i:]
		copy(h[:8], s.Name)
		le.PutUint32(h[8:], s.VirtualSize)
		le.PutUint32(h[12:], s.VirtualAddress)
		le.PutUint32(h[16:], s.RawSize)
		le.PutUint32(h[20:], s.RawOffset)
		le.PutUint32(h[36:], s.Characteristics)
		if s.RawSize > 0 {
			copy(out[s.RawOffset:], contents[i])
		}
	}
	return out, nil
}

func align(n, a uint64) uint64 { return (n + a - 1) &^ (a - 1) }
