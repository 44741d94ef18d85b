package uki

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/sealift/sealift/image/pe"
)

// sectionSBAT says which generation of revocations a program belongs to
// (shim, SBAT.md).
const sectionSBAT = ".sbat"

// maxStray bounds the text of a section that is found by its content, in bytes.
const maxStray = 4096

// straySections returns the sections that the linker of a stub has left out of
// its headers.
//
// The binutils of Debian 12 cannot write PE images for arm64. Its stub for that
// architecture is a flat dump of the ELF program with a hand-made header of two
// sections, .text and .data. What the linker laid out behind them is in the
// file but belongs to no section: firmware does not load it, a signature
// covers it as trailing data, and no tool finds it. Of that, .sdmagic is how
// every tool, and this package, tells the version of a stub, and .sbat is what
// revocations go by; both are texts with a fixed beginning and become sections
// again. The rest is symbol tables.
func straySections(stub *pe.File, b []byte) ([]named, error) {
	if _, there, err := stub.Section(sectionMagic); err != nil || there {
		return nil, err
	}
	end := uint64(stub.SizeOfHeaders)
	for _, s := range stub.Sections {
		end = max(end, uint64(s.RawOffset)+uint64(s.RawSize))
	}
	tail := b[min(end, uint64(len(b))):]
	var found []named
	for _, s := range []struct{ name, begin string }{
		{sectionSBAT, "sbat,1,SBAT Version,"},
		{sectionMagic, magicPrefix},
	} {
		if _, there, err := stub.Section(s.name); err != nil {
			return nil, err
		} else if there {
			continue
		}
		text, err := strayText(tail, []byte(s.begin))
		if err != nil {
			return nil, fmt.Errorf("section %s behind the image: %w", s.name, err)
		}
		if text != nil {
			found = append(found, named{s.name, text})
		}
	}
	return found, nil
}

// strayText returns the one text that begins so, with the NUL that ends it, or
// nil if there is none.
func strayText(tail, begin []byte) ([]byte, error) {
	at := bytes.Index(tail, begin)
	if at < 0 {
		return nil, nil
	}
	if bytes.Contains(tail[at+1:], begin) {
		return nil, fmt.Errorf("%q is there twice", begin)
	}
	text := tail[at:min(len(tail), at+maxStray)]
	n := bytes.IndexByte(text, 0)
	if n < 0 {
		return nil, errors.New("its text has no end")
	}
	for _, c := range text[:n] {
		if c != '\n' && (c < 0x20 || c > 0x7e) {
			return nil, fmt.Errorf("its text has the byte %#x", c)
		}
	}
	return text[:n+1], nil
}

// versionOf returns the version of a stub with those stray sections.
func versionOf(stub *pe.File, stray []named) (string, error) {
	for _, s := range stray {
		if s.name == sectionMagic {
			return magicVersion(s.data)
		}
	}
	return StubVersion(stub)
}
