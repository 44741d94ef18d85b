package uki

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pe"
)

// pcr replays one SHA-256 PCR from its reset value, zero.
type pcr struct{ value [32]byte }

func newPCR() *pcr { return new(pcr) }

// extend does TPM2_PCR_Extend with a digest.
func (p *pcr) extend(digest [32]byte) {
	p.value = sha256.Sum256(append(p.value[:], digest[:]...))
}

// extendSection does what systemd-stub does for one section: its name with a
// NUL, then its content.
func (p *pcr) extendSection(name string, content []byte) {
	p.extend(sha256.Sum256(append([]byte(name), 0)))
	p.extend(sha256.Sum256(content))
}

func (p *pcr) String() string { return hex.EncodeToString(p.value[:]) }

// Predict returns the reference values of a finished UKI, signed or not.
//
// The PCRs are those with Secure Boot on, started from a boot entry: firmware
// that tries another entry first leaves a different PCR 4, which a verifier
// sees in the event log. PCR 12 and 13 stay zero because nothing from outside
// the image is accepted with Secure Boot on and a command line inside.
func Predict(image []byte) (*manifest.UKI, error) {
	u, err := predict(image)
	if err != nil {
		return nil, fmt.Errorf("predict measurements of UKI: %w", err)
	}
	return u, nil
}

func predict(image []byte) (*manifest.UKI, error) {
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
		if slices.Contains(knownSections(), s.Name) && !slices.Contains(does.measured, s.Name) {
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

	u := &manifest.UKI{
		StubVersion:  version,
		Cmdline:      cmdline,
		Authenticode: f.Authenticode(),
		Kernel:       kernel.Authenticode(),
		Initrd:       sha256.Sum256(initrd(does, content)),
	}
	pcr11 := newPCR()
	for _, name := range does.measured {
		data := content[name]
		if len(data) == 0 {
			continue
		}
		pcr11.extendSection(name, data)
		u.Sections = append(u.Sections, manifest.Section{Name: name, Size: int64(len(data)), SHA256: sha256.Sum256(data)})
	}

	pcr4 := newPCR()
	pcr4.extend(sha256.Sum256([]byte("Calling EFI Application from Boot Option")))
	pcr4.extend(sha256.Sum256(make([]byte, 4))) // EV_SEPARATOR
	pcr4.extend(u.Authenticode)

	pcr9 := newPCR()
	pcr9.extend(sha256.Sum256(loadOptions(cmdline)))
	pcr9.extend(u.Initrd)

	zero := newPCR().String()
	u.PCRs = map[string]map[int]string{"sha256": {
		4: pcr4.String(), 9: pcr9.String(), 11: pcr11.String(), 12: zero, 13: zero,
	}}
	return u, nil
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
