package uki

import (
	"crypto"
	"crypto/sha256"
	_ "crypto/sha512" // the SHA-384 bank
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pe"
)

// banks are the PCR banks that are predicted, by name.
func banks() map[string]crypto.Hash {
	return map[string]crypto.Hash{"sha256": crypto.SHA256, "sha384": crypto.SHA384}
}

// pcr replays one PCR of one bank from its reset value, zero.
type pcr struct {
	hash  crypto.Hash
	value []byte
}

func newPCR(h crypto.Hash) *pcr { return &pcr{h, make([]byte, h.Size())} }

func (p *pcr) sum(parts ...[]byte) []byte {
	h := p.hash.New()
	for _, b := range parts {
		h.Write(b)
	}
	return h.Sum(nil)
}

// extend does TPM2_PCR_Extend with a digest.
func (p *pcr) extend(digest []byte) { p.value = p.sum(p.value, digest) }

// measure extends with the digest of data.
func (p *pcr) measure(data []byte) { p.extend(p.sum(data)) }

// extendSection does what systemd-stub does for one section: its name with a
// NUL, then its content.
func (p *pcr) extendSection(name string, content []byte) {
	p.measure(append([]byte(name), 0))
	p.measure(content)
}

func (p *pcr) String() string { return hex.EncodeToString(p.value) }

// Measured is what booting a UKI measures, as the data that is hashed. Package
// predict turns it into events.
type Measured struct {
	StubVersion string
	UKI         *pe.File  // into PCR 4, by its Authenticode digest
	Kernel      *pe.File  // .linux; likewise, but only with Secure Boot off
	Sections    []Section // into PCR 11, each its name with a NUL and then its content, in this order
	Cmdline     string
	LoadOptions []byte // into PCR 9: the command line as the kernel's EFI stub is given it
	Initrd      []byte // into PCR 9: all initrds, as the stub concatenates them
}

// Section is one section of a UKI.
type Section struct {
	Name    string // with the leading dot
	Content []byte
}

// Measure reads from a finished UKI, signed or not, what booting it measures.
func Measure(image []byte) (*Measured, error) {
	m, err := measure(image)
	if err != nil {
		return nil, fmt.Errorf("predict measurements of UKI: %w", err)
	}
	return m, nil
}

// Predict returns the reference values of a finished UKI, signed or not.
//
// The PCRs are those with Secure Boot on, started from a boot entry: firmware
// that tries another entry first leaves a different PCR 4, which a verifier
// sees in the event log. PCR 12 and 13 stay zero because nothing from outside
// the image is accepted with Secure Boot on and a command line inside.
func Predict(image []byte) (*manifest.UKI, error) {
	m, err := Measure(image)
	if err != nil {
		return nil, err
	}
	u := &manifest.UKI{
		StubVersion:  m.StubVersion,
		Cmdline:      m.Cmdline,
		Authenticode: m.UKI.Authenticode(),
		Kernel:       m.Kernel.Authenticode(),
		Initrd:       sha256.Sum256(m.Initrd),
		PCRs:         make(map[string]map[int]string),
	}
	for _, s := range m.Sections {
		u.Sections = append(u.Sections, manifest.Section{Name: s.Name, Size: int64(len(s.Content)), SHA256: sha256.Sum256(s.Content)})
	}
	for bank, h := range banks() {
		pcr4, pcr9, pcr11 := newPCR(h), newPCR(h), newPCR(h)
		pcr4.measure([]byte("Calling EFI Application from Boot Option"))
		pcr4.measure(make([]byte, 4)) // EV_SEPARATOR
		pcr4.extend(m.UKI.AuthenticodeWith(h.New()))
		pcr9.measure(m.LoadOptions)
		pcr9.measure(m.Initrd)
		for _, s := range m.Sections {
			pcr11.extendSection(s.Name, s.Content)
		}
		zero := newPCR(h).String()
		u.PCRs[bank] = map[int]string{4: pcr4.String(), 9: pcr9.String(), 11: pcr11.String(), 12: zero, 13: zero}
	}
	return u, nil
}

func measure(image []byte) (*Measured, error) {
	f, err := pe.Parse(image)
	if err != nil {
		return nil, err
	}
	version, err := StubVersion(f)
	if err != nil {
		return nil, err
	}
	does, err := behaviourOf(version)
	if err != nil {
		return nil, err
	}
	content := make(map[string][]byte)
	for _, s := range f.Sections {
		if _, twice := content[s.Name]; twice {
			return nil, fmt.Errorf("section %s is there twice", s.Name)
		}
		if slices.Contains(knownSections(), s.Name) && !slices.Contains(does.measured, s.Name) && s.Name != sectionUname {
			return nil, fmt.Errorf("section %s is not measured by systemd-stub %s", s.Name, version)
		}
		content[s.Name] = s.Data()
		if slices.Contains(does.measured, s.Name) && uint64(len(s.Data())) != uint64(s.VirtualSize) {
			return nil, fmt.Errorf("section %s has %d bytes in the file, VirtualSize is %d", s.Name, len(s.Data()), s.VirtualSize)
		}
	}
	for _, name := range []string{sectionLinux, sectionCmdline, sectionInitrd} {
		if len(content[name]) == 0 {
			return nil, fmt.Errorf("section %s is missing or empty", name)
		}
	}
	cmdline := string(content[sectionCmdline])
	if err := checkCmdline(cmdline); err != nil {
		return nil, err
	}
	kernel, err := pe.Parse(content[sectionLinux])
	if err != nil {
		return nil, fmt.Errorf("section .linux: %w", err)
	}
	if kernel.Machine != f.Machine {
		return nil, errors.New("section .linux is for another machine than the stub")
	}

	m := &Measured{
		StubVersion: version, UKI: f, Kernel: kernel,
		Cmdline: cmdline, LoadOptions: loadOptions(cmdline), Initrd: initrd(does, content),
	}
	for _, name := range does.measured {
		if data := content[name]; len(data) > 0 {
			m.Sections = append(m.Sections, Section{name, data})
		}
	}
	return m, nil
}

// initrd returns the initrd as the stub hands it to the kernel: its own, then
// the archives that it makes of other sections.
func initrd(does behaviour, content map[string][]byte) []byte {
	own := content[sectionInitrd]
	var archives []byte
	for _, e := range does.extras {
		if data := content[e.section]; len(data) > 0 {
			archives = append(archives, packExtra(e.dir, e.name, data)...)
		}
	}
	if archives == nil {
		return own
	}
	all := make([]byte, align(uint64(len(own)), 4), len(own)+4+len(archives))
	copy(all, own)
	return append(all, archives...)
}

// loadOptions returns the command line as the stub passes it to the kernel,
// UTF-16 with a NUL, which is how the kernel measures it.
func loadOptions(cmdline string) []byte {
	var b []byte
	for _, c := range append(utf16.Encode([]rune(cmdline)), 0) {
		b = append(b, byte(c), byte(c>>8))
	}
	return b
}
