package rootfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/sealift/sealift/image/tree"
)

// Bounds of what is read of a library to know its versions, in bytes. debug/elf
// has none: it follows the counts and offsets of a hostile file.
const (
	maxVersionSection = 1 << 20
	maxStringSection  = 64 << 20
)

// definedVersions returns the versions of symbols that a library defines.
func definedVersions(n *tree.Node) ([]string, error) {
	var out []string
	err := withVersions(n, elf.SHT_GNU_VERDEF, func(data, str []byte) error {
		const head, aux = 20, 8 // Elf64_Verdef, Elf64_Verdaux
		return chain(data, 0, head, -1, func(at int, d []byte) (int, error) {
			if binary.LittleEndian.Uint16(d[6:]) == 0 {
				return 0, errors.New("a version has no name")
			}
			first, err := entryAt(data, at, binary.LittleEndian.Uint32(d[12:]), aux)
			if err != nil {
				return 0, err
			}
			name, err := stringAt(str, binary.LittleEndian.Uint32(first))
			out = append(out, name)
			return int(binary.LittleEndian.Uint32(d[16:])), err
		})
	})
	return out, err
}

// neededVersions returns the versions of a library's symbols that a program, or
// another library, cannot do without.
func neededVersions(n *tree.Node, lib string) ([]string, error) {
	var out []string
	err := withVersions(n, elf.SHT_GNU_VERNEED, func(data, str []byte) error {
		const head, aux = 16, 16 // Elf64_Verneed, Elf64_Vernaux
		left := len(data) / aux
		return chain(data, 0, head, -1, func(at int, d []byte) (int, error) {
			count := int(binary.LittleEndian.Uint16(d[2:]))
			if left -= count; left < 0 {
				return 0, errors.New("more versions than fit")
			}
			file, err := stringAt(str, binary.LittleEndian.Uint32(d[4:]))
			if err != nil {
				return 0, err
			}
			next := int(binary.LittleEndian.Uint32(d[12:]))
			if file != lib || count == 0 {
				return next, nil
			}
			return next, chain(data, at+int(binary.LittleEndian.Uint32(d[8:])), aux, count, func(_ int, d []byte) (int, error) {
				name, err := stringAt(str, binary.LittleEndian.Uint32(d[8:]))
				if elf.DynamicVersionFlag(binary.LittleEndian.Uint16(d[4:]))&elf.VER_FLG_WEAK == 0 {
					out = append(out, name)
				}
				return int(binary.LittleEndian.Uint32(d[12:])), err
			})
		})
	})
	return out, err
}

// chain calls fn for the entries of size bytes from at on, each of which says
// how far away the next one is, until one says 0 or there were count. Entries do
// not overlap, so that there are few enough.
func chain(data []byte, at, size, count int, fn func(at int, d []byte) (next int, err error)) error {
	for ; count != 0; count-- {
		d, err := entryAt(data, at, 0, size)
		if err != nil {
			return err
		}
		next, err := fn(at, d)
		if err != nil || next == 0 {
			return err
		}
		if next < size {
			return errors.New("versions overlap")
		}
		at += next
	}
	return nil
}

func entryAt(data []byte, at int, off uint32, size int) ([]byte, error) {
	if at += int(off); at > len(data)-size {
		return nil, errors.New("a version lies outside of its section")
	}
	return data[at : at+size], nil
}

func stringAt(str []byte, off uint32) (string, error) {
	if int(off) >= len(str) {
		return "", errors.New("the name of a version lies outside of its section")
	}
	s := str[off:]
	end := bytes.IndexByte(s[:min(len(s), tree.MaxName+1)], 0)
	if end < 0 {
		return "", errors.New("the name of a version is too long")
	}
	return string(s[:end]), nil
}

// withVersions calls fn with a section of an ELF file that may be damaged, and
// with the strings that it refers to. A file without such a section is fine,
// one that is not for a 64-bit little-endian machine is not.
func withVersions(n *tree.Node, kind elf.SectionType, fn func(data, str []byte) error) (err error) {
	c, err := n.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	var h elf.Header64
	if err := readStruct(c, 0, &h); err != nil {
		return err
	}
	if string(h.Ident[:4]) != elf.ELFMAG || elf.Class(h.Ident[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(h.Ident[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return errors.New("not an ELF file for a 64-bit little-endian machine")
	}
	if h.Shoff == 0 {
		return nil
	}
	if h.Shnum == 0 || int(h.Shentsize) != binary.Size(elf.Section64{}) {
		return fmt.Errorf("ELF file has %d sections with headers of %d bytes", h.Shnum, h.Shentsize)
	}
	sections := make([]elf.Section64, h.Shnum)
	if err := readStruct(c, h.Shoff, sections); err != nil {
		return err
	}
	for _, s := range sections {
		if elf.SectionType(s.Type) != kind {
			continue
		}
		if int(s.Link) >= len(sections) || elf.SectionType(sections[s.Link].Type) != elf.SHT_STRTAB {
			return errors.New("section of versions has no strings")
		}
		data, err := readSection(c, s, maxVersionSection)
		if err != nil {
			return err
		}
		str, err := readSection(c, sections[s.Link], maxStringSection)
		if err != nil {
			return err
		}
		return fn(data, str)
	}
	return nil
}

// readStruct reads structures of fixed size.
func readStruct(r io.ReaderAt, off uint64, v any) error {
	if off > 1<<62 {
		return errors.New("ELF file is damaged")
	}
	if err := binary.Read(io.NewSectionReader(r, int64(off), int64(binary.Size(v))), binary.LittleEndian, v); err != nil {
		return fmt.Errorf("read ELF headers: %w", err)
	}
	return nil
}

func readSection(r io.ReaderAt, s elf.Section64, max uint64) ([]byte, error) {
	switch {
	case elf.SectionFlag(s.Flags)&elf.SHF_COMPRESSED != 0 || s.Off > 1<<62:
		return nil, errors.New("section of versions is damaged")
	case s.Size > max:
		return nil, fmt.Errorf("section of versions has %d bytes, at most %d allowed", s.Size, max)
	}
	b := make([]byte, s.Size)
	if _, err := io.ReadFull(io.NewSectionReader(r, int64(s.Off), int64(s.Size)), b); err != nil {
		return nil, fmt.Errorf("read section of versions: %w", err)
	}
	return b, nil
}
