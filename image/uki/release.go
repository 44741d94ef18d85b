package uki

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/sealift/sealift/image/pe"
)

// maxRelease bounds a kernel release, in bytes (Linux __NEW_UTS_LEN).
const maxRelease = 64

// KernelRelease returns the release of a kernel, as uname -r prints it, from
// the kernel's own bytes.
//
// A bzImage has it in its setup header. An arm64 Image has no such field, but
// it is not compressed, so that the banner with which it boots is there to be
// read.
func KernelRelease(kernel []byte) (string, error) {
	f, err := pe.Parse(kernel)
	if err != nil {
		return "", fmt.Errorf("kernel release: %w", err)
	}
	read := setupRelease
	if f.Machine == pe.MachineARM64 {
		read = bannerRelease
	}
	release, err := read(kernel)
	if err != nil {
		return "", fmt.Errorf("kernel release: %w", err)
	}
	return release, nil
}

// setupRelease reads the setup header of a bzImage (Linux
// Documentation/arch/x86/boot.rst): kernel_version at 0x20e is where the text
// begins, counted from 0x200, and lies within the setup's sectors.
func setupRelease(kernel []byte) (string, error) {
	const sectors, magic, version, pointer, header = 0x1f1, 0x202, 0x206, 0x20e, 0x210
	le := binary.LittleEndian
	if len(kernel) < header || string(kernel[magic:magic+4]) != "HdrS" || le.Uint16(kernel[version:]) < 0x200 {
		return "", errors.New("it is not a bzImage: no setup header")
	}
	setup := 0x200 * int(kernel[sectors])
	if setup == 0 {
		setup = 0x200 * 4
	}
	at := int(le.Uint16(kernel[pointer:]))
	if at == 0 || at >= setup || 0x200+setup > len(kernel) {
		return "", fmt.Errorf("the setup header has its text at %#x, outside of the setup's %#x bytes", at, setup)
	}
	text, _, ok := bytes.Cut(kernel[0x200+at:0x200+setup], []byte{0})
	if !ok {
		return "", errors.New("the text of the setup header has no end")
	}
	release, _, _ := strings.Cut(string(text), " ")
	if !isRelease(release) {
		return "", fmt.Errorf("the setup header says %.100q, which is no release", text)
	}
	return release, nil
}

// bannerRelease reads the banner in an arm64 Image (Linux init/version.c). It
// may be there several times, with the same release.
func bannerRelease(kernel []byte) (string, error) {
	if len(kernel) < 0x40 || string(kernel[0x38:0x3c]) != "ARM\x64" {
		return "", errors.New("it is not an uncompressed arm64 Image")
	}
	const banner = "Linux version "
	var found string
	for rest := kernel; ; {
		i := bytes.Index(rest, []byte(banner))
		if i < 0 {
			break
		}
		rest = rest[i+len(banner):]
		release, _, ok := strings.Cut(string(rest[:min(len(rest), maxRelease+2)]), " (")
		if !ok || !isRelease(release) {
			continue
		}
		if found != "" && found != release {
			return "", fmt.Errorf("its banners name two releases, %q and %q", found, release)
		}
		found = release
	}
	if found == "" {
		return "", errors.New("it has no banner with a release")
	}
	return found, nil
}

// isRelease reports whether s has the form of a kernel release.
func isRelease(s string) bool {
	return s != "" && len(s) <= maxRelease && s[0] >= '0' && s[0] <= '9' &&
		strings.IndexFunc(s, func(r rune) bool { return r <= 0x20 || r > 0x7e }) < 0
}

// CheckUname returns what section .uname of a UKI says. It is an error if that
// is not the release of the kernel in .linux, to the byte.
func CheckUname(image []byte) (string, error) {
	f, err := pe.Parse(image)
	if err != nil {
		return "", err
	}
	content := map[string][]byte{}
	for _, name := range []string{sectionUname, sectionLinux} {
		s, ok, err := f.Section(name)
		if err != nil {
			return "", err
		}
		if !ok {
			return "", fmt.Errorf("the UKI has no section %s", name)
		}
		content[name] = s.Data()
	}
	release, err := KernelRelease(content[sectionLinux])
	if err != nil {
		return "", fmt.Errorf("section %s: %w", sectionLinux, err)
	}
	if uname := string(content[sectionUname]); uname != release {
		return "", &UnameError{Uname: uname, Kernel: release}
	}
	return release, nil
}

// UnameError says that a UKI names another kernel release than its kernel does.
type UnameError struct {
	Uname  string // of section .uname
	Kernel string // of the kernel itself
}

func (e *UnameError) Error() string {
	return fmt.Sprintf("section %s says %.100q, the kernel in %s is %q", sectionUname, e.Uname, sectionLinux, e.Kernel)
}
