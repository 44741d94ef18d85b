package iso

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/sealift/sealift/image/disk"
)

// writeVolume writes everything of ISO 9660 but the files' content.
func (m *Medium) writeVolume(f disk.File, p *plan) error {
	root := m.directory(p)
	b := make([]byte, (sectorRoot-sectorPrimary)*sectorSize, (sectorRoot-sectorPrimary)*sectorSize+len(root))
	at := func(sector int) []byte { return b[(sector-sectorPrimary)*sectorSize:][:sectorSize] }
	pathL, pathM := pathTable(binary.LittleEndian), pathTable(binary.BigEndian)
	copy(at(sectorPrimary), m.primary(p, len(pathL)))
	copy(at(sectorBoot), bootRecord())
	copy(at(sectorTerminator), "\xffCD001\x01") // ECMA-119, 8.3
	copy(at(sectorCatalogue), catalogue(p))
	copy(at(sectorPathL), pathL)
	copy(at(sectorPathM), pathM)
	b = append(b, root...)
	if _, err := f.WriteAt(b, sectorPrimary*sectorSize); err != nil {
		return fmt.Errorf("write volume descriptors: %w", err)
	}
	return nil
}

// primary returns the primary volume descriptor (ECMA-119, 8.4).
func (m *Medium) primary(p *plan, pathTable int) []byte {
	b := make([]byte, sectorSize)
	copy(b, "\x01CD001\x01")
	pad := func(from, to int, s string) {
		n := copy(b[from:to], s)
		for i := from + n; i < to; i++ {
			b[i] = ' '
		}
	}
	pad(8, 40, "") // system
	pad(40, 72, m.Label)
	both32(b[80:], uint32(p.size/sectorSize))
	both16(b[120:], 1) // volumes in the set
	both16(b[124:], 1) // number of this one
	both16(b[128:], sectorSize)
	both32(b[132:], uint32(pathTable))
	binary.LittleEndian.PutUint32(b[140:], sectorPathL)
	binary.BigEndian.PutUint32(b[148:], sectorPathM)
	copy(b[156:190], m.record(record{name: "\x00", at: sectorRoot * sectorSize, size: int64(p.directory), flags: flagDirectory}))
	pad(190, 318, m.Label) // volume set
	pad(318, 446, "")      // publisher
	pad(446, 574, "")      // data preparer
	pad(574, 702, "SEALIFT")
	pad(702, 813, "") // copyright, abstract and bibliography
	stamp := m.Epoch.UTC().Format("20060102150405") + "00\x00"
	copy(b[813:], stamp) // created
	copy(b[830:], stamp) // modified
	none := strings.Repeat("0", 16) + "\x00"
	copy(b[847:], none) // expires
	copy(b[864:], none) // effective
	b[881] = 1          // version of the structure
	return b
}

// pathTable returns the table for a volume with only a root directory
// (ECMA-119, 9.4).
func pathTable(o binary.ByteOrder) []byte {
	b := make([]byte, 10)
	b[0] = 1 // length of the name
	o.PutUint32(b[2:], sectorRoot)
	o.PutUint16(b[6:], 1)
	return b
}

// bootRecord returns the boot record volume descriptor (El Torito 1.0, figure 7).
func bootRecord() []byte {
	b := make([]byte, sectorSize)
	copy(b, "\x00CD001\x01EL TORITO SPECIFICATION")
	binary.LittleEndian.PutUint32(b[0x47:], sectorCatalogue)
	return b
}

// catalogue returns the boot catalogue: the validation entry for UEFI and the
// default entry, the EFI system partition without emulation (El Torito 1.0,
// figures 2 and 3; UEFI 2.10, 13.3.2.1).
func catalogue(p *plan) []byte {
	le := binary.LittleEndian
	b := make([]byte, 64)
	b[0], b[1] = 1, 0xef
	copy(b[4:28], "SEALIFT")
	b[30], b[31] = 0x55, 0xaa
	var sum uint16
	for i := 0; i < 32; i += 2 {
		sum += le.Uint16(b[i:])
	}
	le.PutUint16(b[28:], -sum)
	e := b[32:]
	e[0] = 0x88 // bootable
	// The count has 16 bits. Zero means that the partition goes on to the end
	// of the medium (UEFI 2.10, 13.3.2.1); its file system knows better.
	if n := p.espSize / disk.SectorSize; n <= 0xffff {
		le.PutUint16(e[6:], uint16(n))
	}
	le.PutUint32(e[8:], uint32(p.esp/sectorSize))
	return b
}

// Flags of a directory record (ECMA-119, 9.1.6).
const (
	flagDirectory = 0x02
	flagMore      = 0x80 // another record of the same file follows
)

// record is one directory record.
type record struct {
	name   string // ISO 9660 file identifier
	at     int64  // bytes
	size   int64
	flags  byte
	system []byte // system use area: Rock Ridge
}

// record encodes a directory record (ECMA-119, 9.1).
func (m *Medium) record(r record) []byte {
	n := 33 + len(r.name)
	n += n % 2
	b := make([]byte, n, n+len(r.system)+1)
	both32(b[2:], uint32(r.at/sectorSize))
	both32(b[10:], uint32(r.size))
	copy(b[18:], m.stamp())
	b[25] = r.flags
	both16(b[28:], 1) // volume
	b[32] = byte(len(r.name))
	copy(b[33:], r.name)
	b = append(b, r.system...)
	if len(b)%2 != 0 {
		b = append(b, 0)
	}
	b[0] = byte(len(b))
	return b
}

// stamp returns the epoch as a directory record has it (ECMA-119, 9.1.5).
func (m *Medium) stamp() []byte {
	t := m.Epoch.UTC()
	return []byte{byte(t.Year() - 1900), byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()), 0}
}

// directory returns the root directory, padded to whole sectors. No record
// crosses the end of a sector (ECMA-119, 6.8.1.1).
func (m *Medium) directory(p *plan) []byte {
	var b []byte
	add := func(r record) {
		e := m.record(r)
		if room := sectorSize - len(b)%sectorSize; len(e) > room {
			b = append(b, make([]byte, room)...)
		}
		b = append(b, e...)
	}
	dir := record{name: "\x00", at: sectorRoot * sectorSize, size: int64(p.directory), flags: flagDirectory}
	dir.system = slices.Concat(ridgeIndicator(), ridgeReference(), ridgeMode(0o040555, 2), m.ridgeTime())
	add(dir)
	dir.name, dir.system = "\x01", slices.Concat(ridgeMode(0o040555, 2), m.ridgeTime())
	add(dir)

	order := make([]int, len(m.Files))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return strings.Compare(identifier(m.Files[a].Name), identifier(m.Files[b].Name))
	})
	for _, i := range order {
		f := m.Files[i]
		system := slices.Concat(ridgeMode(0o100444, 1), m.ridgeTime(), ridgeName(f.Name))
		for at, left := p.files[i], f.Size; ; {
			r := record{name: identifier(f.Name), at: at, size: min(left, maxExtent), system: system}
			if left > maxExtent {
				r.flags = flagMore
			}
			add(r)
			at, left = at+r.size, left-r.size
			if r.flags == 0 {
				break
			}
		}
	}
	return append(b, make([]byte, (sectorSize-len(b)%sectorSize)%sectorSize)...)
}

// checkName refuses names that ISO 9660 and Rock Ridge could not both have.
func checkName(name string) error {
	if name == "" || len(name) > 100 || strings.Trim(name, ".") == "" {
		return fmt.Errorf("file name %q: want 1 to 100 characters", name)
	}
	for _, c := range name {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", c) {
			return fmt.Errorf("file name %q: want only letters, digits, dots, - and _", name)
		}
	}
	return nil
}

// identifier returns a file's name as ISO 9660 has it: capitals, digits and
// underscores, one dot, 30 characters at most, and the version (ECMA-119, 7.5
// and 10.2).
func identifier(name string) string {
	base, ext := name, ""
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		base, ext = name[:i], name[i+1:]
	}
	plain := func(s string, n int) string {
		s = strings.Map(func(r rune) rune {
			if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
				return r
			}
			return '_'
		}, strings.ToUpper(s))
		return s[:min(len(s), n)]
	}
	ext = plain(ext, 8)
	return plain(base, 30-len(ext)) + "." + ext + ";1"
}

// System use entries (SUSP 1.12, 5; RRIP 1.10, 4.1): a signature, their
// length, a version.

// ridgeIndicator says that system use areas hold such entries.
func ridgeIndicator() []byte { return []byte{'S', 'P', 7, 1, 0xbe, 0xef, 0} }

// ridgeReference says that they are Rock Ridge's.
func ridgeReference() []byte {
	const id = "RRIP_1991A"
	return append([]byte{'E', 'R', byte(8 + len(id)), 1, byte(len(id)), 0, 0, 1}, id...)
}

// ridgeMode holds POSIX file attributes; the owner is root.
func ridgeMode(mode, links uint32) []byte {
	b := make([]byte, 36)
	copy(b, "PX\x24\x01")
	both32(b[4:], mode)
	both32(b[12:], links)
	return b
}

// ridgeTime holds the time of modification.
func (m *Medium) ridgeTime() []byte {
	const modify = 0x02
	return append([]byte{'T', 'F', 12, 1, modify}, m.stamp()...)
}

// ridgeName holds the file's own name.
func ridgeName(name string) []byte {
	return append([]byte{'N', 'M', byte(5 + len(name)), 1, 0}, name...)
}

// both16 and both32 write a number in both byte orders (ECMA-119, 7.2.3 and
// 7.3.3).
func both16(b []byte, n uint16) {
	binary.LittleEndian.PutUint16(b, n)
	binary.BigEndian.PutUint16(b[2:], n)
}

func both32(b []byte, n uint32) {
	binary.LittleEndian.PutUint32(b, n)
	binary.BigEndian.PutUint32(b[4:], n)
}
