// Package uki assembles unified kernel images (UAPI Group, "Unified Kernel
// Image (UKI)") from systemd-stub and predicts what booting one leaves in the
// TPM. Assemble makes an image, package pe signs it, and Predict derives the
// reference values from the finished bytes alone, so that an image that was
// built elsewhere can be checked the same way.
//
// What systemd-stub measures depends on its version. The table in this package
// lists only versions whose predictions were compared with booted machines; any
// other stub is refused.
package uki

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/sealift/sealift/image/pe"
)

// Names of the sections that this package writes or handles by name.
const (
	sectionLinux   = ".linux"
	sectionOSRel   = ".osrel"
	sectionCmdline = ".cmdline"
	sectionInitrd  = ".initrd"
	sectionUname   = ".uname"
	sectionPCRKey  = ".pcrpkey"
	sectionPCRSig  = ".pcrsig"
	sectionMagic   = ".sdmagic"
)

// behaviour is what one major version of systemd-stub does with its sections.
type behaviour struct {
	major int
	// measured lists the sections that go into PCR 11, in the stub's order,
	// which is not the order in the file.
	measured []string
	// extras are the sections that the stub hands to the initramfs, each as
	// a cpio archive of its own behind .initrd, in this order. They are
	// measured as part of the initrd, by the kernel, into PCR 9.
	extras []extra
}

// extra is a section and the file in the initramfs that it becomes.
type extra struct {
	section string
	dir     string
	name    string
}

// behaviours is the table of known stubs. Version 252 has the kernel loaded by
// firmware (LoadImage) but vouches for it itself, so firmware measures the
// kernel into PCR 4 only when Secure Boot is off. It does not know .uname, nor
// does it measure its own .sbat.
func behaviours() []behaviour {
	return []behaviour{{
		major:    252,
		measured: []string{sectionLinux, sectionOSRel, sectionCmdline, sectionInitrd, ".splash", ".dtb", sectionPCRKey},
		extras: []extra{
			{section: sectionPCRSig, dir: ".extra", name: "tpm2-pcr-signature.json"},
			{section: sectionPCRKey, dir: ".extra", name: "tpm2-pcr-public-key.pem"},
		},
	}}
}

// knownSections are all section names that some version of systemd-stub looks
// at. One that the stub at hand does not measure must not be in an image: it
// would be there to be misread by a later tool, and bound to nothing but the
// Authenticode digest. Only .uname may: tools want it (UAPI.5), nothing that
// boots acts on it, and it can be held against the kernel (CheckUname).
func knownSections() []string {
	return []string{
		sectionLinux, sectionOSRel, sectionCmdline, sectionInitrd, ".ucode", ".splash", ".dtb", sectionUname,
		sectionPCRKey, ".profile", ".dtbauto", ".hwids", ".efifw",
	}
}

// magicPrefix and magicSuffix are what a stub's version stands between in its
// .sdmagic section.
const (
	magicPrefix = "#### LoaderInfo: systemd-stub "
	magicSuffix = " ####"
)

// StubVersion returns the version of systemd-stub that an image contains, as
// its .sdmagic section has it: "252.39-1~deb12u2".
func StubVersion(image *pe.File) (string, error) {
	s, ok, err := image.Section(sectionMagic)
	if err != nil {
		return "", err
	}
	if !ok {
		return "", errors.New("image has no section .sdmagic, so it is not systemd-stub")
	}
	return magicVersion(s.Data())
}

// magicVersion reads the content of .sdmagic.
func magicVersion(b []byte) (string, error) {
	text := string(bytes.TrimRight(b, "\x00"))
	version, ok1 := strings.CutPrefix(text, magicPrefix)
	version, ok2 := strings.CutSuffix(version, magicSuffix)
	if !ok1 || !ok2 || version == "" || len(version) > 64 {
		return "", fmt.Errorf("section .sdmagic holds %.100q, want %q, a version, %q", text, magicPrefix, magicSuffix)
	}
	return version, nil
}

func behaviourOf(version string) (behaviour, error) {
	end := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(version)
	}
	major, err := strconv.Atoi(version[:end])
	if err != nil {
		return behaviour{}, fmt.Errorf("systemd-stub version %q does not begin with a number", version)
	}
	var known []string
	for _, b := range behaviours() {
		if b.major == major {
			return b, nil
		}
		known = append(known, strconv.Itoa(b.major))
	}
	return behaviour{}, fmt.Errorf("systemd-stub %s: what it measures is not known; known versions: %s", version, strings.Join(known, ", "))
}
