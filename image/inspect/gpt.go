package inspect

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"unicode/utf16"

	"github.com/sealift/sealift/image/guid"
)

// SectorSize is the logical sector of the disks that are read, bytes.
const SectorSize = 512

// The shape of partition tables that builders of images write (UEFI 2.10,
// 5.3.2 and 5.3.3): 128 entries of 128 bytes, 32 sectors.
const (
	gptEntries      = 128
	gptEntrySize    = 128
	gptHeaderSize   = 92
	gptArraySectors = gptEntries * gptEntrySize / SectorSize
	gptFirstUsable  = 2 + gptArraySectors
	gptBackupTail   = 1 + gptArraySectors // sectors behind the last usable one
)

// Table is what both copies of a GUID partition table say.
type Table struct {
	Disk       guid.GUID
	Partitions []Entry // in use, in the order of the array
	// LastUsable is the last LBA that a partition may use.
	LastUsable uint64
}

// Entry is a GPT entry in use.
type Entry struct {
	Number     int // place in the array, from 1
	Type       guid.GUID
	GUID       guid.GUID
	First      uint64 // first LBA
	Last       uint64 // last LBA, inclusive
	Attributes uint64
	Name       string
}

// ReadTable reads the partition table strictly. Firmware and kernels mend or
// overlook much; what they would mend is an error here:
//   - the protective MBR (5.2.3) covers the whole disk and holds nothing else,
//   - both headers have the right signature, revision, size, checksum and
//     place, point to each other, and say the same,
//   - both arrays have the checksum of their header and are equal,
//   - entries that are not in use, and the rest of each header's sector, are zero,
//   - partitions lie within the usable part, do not overlap, and no GUID is
//     there twice.
func ReadTable(d Disk) (*Table, error) {
	size := d.Size()
	if size%SectorSize != 0 {
		return nil, fmt.Errorf("the disk has %d bytes, not a whole number of sectors of %d", size, SectorSize)
	}
	sectors := uint64(size / SectorSize)
	if sectors < gptFirstUsable+gptBackupTail+1 {
		return nil, fmt.Errorf("the disk has only %d sectors", sectors)
	}
	head, err := readAll(d, 0, gptFirstUsable*SectorSize)
	if err != nil {
		return nil, err
	}
	tail, err := readAll(d, size-gptBackupTail*SectorSize, gptBackupTail*SectorSize)
	if err != nil {
		return nil, err
	}
	if err := checkMBR(head[:SectorSize], sectors); err != nil {
		return nil, fmt.Errorf("protective MBR: %w", err)
	}
	primary := gptCopy{header: head[SectorSize : 2*SectorSize], array: head[2*SectorSize:], at: 1, other: sectors - 1, arrayAt: 2}
	backup := gptCopy{header: tail[gptArraySectors*SectorSize:], array: tail[:gptArraySectors*SectorSize], at: sectors - 1, other: 1, arrayAt: sectors - gptBackupTail}
	if err := primary.check(sectors); err != nil {
		return nil, fmt.Errorf("primary header: %w", err)
	}
	if err := backup.check(sectors); err != nil {
		return nil, fmt.Errorf("backup header: %w", err)
	}
	if !bytes.Equal(primary.header[56:72], backup.header[56:72]) {
		return nil, fmt.Errorf("the disk's GUID is %s in the primary header, %s in the backup", guid.GUID(primary.header[56:72]), guid.GUID(backup.header[56:72]))
	}
	if i := firstDifference(primary.array, backup.array); i >= 0 {
		return nil, fmt.Errorf("the arrays differ in entry %d: the primary has %#02x at byte %d, the backup %#02x", i/gptEntrySize+1, primary.array[i], i, backup.array[i])
	}
	t := &Table{Disk: guid.GUID(primary.header[56:72]), LastUsable: sectors - gptBackupTail - 1}
	if t.Disk == (guid.GUID{}) {
		return nil, fmt.Errorf("the disk's GUID is zero")
	}
	for i := range gptEntries {
		e, used, err := readEntry(primary.array[i*gptEntrySize:][:gptEntrySize])
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i+1, err)
		}
		if used {
			e.Number = i + 1
			t.Partitions = append(t.Partitions, e)
		}
	}
	return t, t.check()
}

// checkMBR wants exactly one partition, of type 0xEE, over the whole disk.
func checkMBR(b []byte, sectors uint64) error {
	le := binary.LittleEndian
	if sig := le.Uint16(b[510:]); sig != 0xaa55 {
		return fmt.Errorf("signature is %#04x, want 0xaa55", sig)
	}
	if i := nonZero(b[:446]); i >= 0 {
		return fmt.Errorf("byte %d is %#02x, want no boot code and no disk signature", i, b[i])
	}
	if i := nonZero(b[462:510]); i >= 0 {
		return fmt.Errorf("byte %d is %#02x: there is more than one partition", 462+i, b[462+i])
	}
	p := b[446:462]
	if p[0] != 0 || p[4] != 0xee {
		return fmt.Errorf("status and type are %#02x and %#02x, want 0 and 0xee", p[0], p[4])
	}
	// The CHS fields are those of the specification, or zero.
	switch chs := [6]byte{p[1], p[2], p[3], p[5], p[6], p[7]}; chs {
	case [6]byte{}, [6]byte{0, 2, 0, 0xff, 0xff, 0xff}:
	default:
		return fmt.Errorf("cylinders, heads and sectors are %x, want 000200ffffff or zero", chs)
	}
	want := uint32(min(sectors-1, 0xffffffff))
	if first, n := le.Uint32(p[8:]), le.Uint32(p[12:]); first != 1 || n != want {
		return fmt.Errorf("it covers %d sectors from %d, want %d from 1", n, first, want)
	}
	return nil
}

// gptCopy is one of the two copies of a table.
type gptCopy struct {
	header  []byte // its sector
	array   []byte
	at      uint64 // LBA of the header
	other   uint64 // LBA of the other header
	arrayAt uint64
}

func (c *gptCopy) check(sectors uint64) error {
	le := binary.LittleEndian
	h := c.header
	if string(h[:8]) != "EFI PART" {
		return fmt.Errorf("signature is %q, want \"EFI PART\"", h[:8])
	}
	for _, f := range []struct {
		name      string
		got, want uint64
	}{
		{"revision", uint64(le.Uint32(h[8:])), 0x10000},
		{"header size", uint64(le.Uint32(h[12:])), gptHeaderSize},
		{"reserved field", uint64(le.Uint32(h[20:])), 0},
		{"own LBA", le.Uint64(h[24:]), c.at},
		{"LBA of the other header", le.Uint64(h[32:]), c.other},
		{"first usable LBA", le.Uint64(h[40:]), gptFirstUsable},
		{"last usable LBA", le.Uint64(h[48:]), sectors - gptBackupTail - 1},
		{"LBA of the array", le.Uint64(h[72:]), c.arrayAt},
		{"number of entries", uint64(le.Uint32(h[80:])), gptEntries},
		{"size of an entry", uint64(le.Uint32(h[84:])), gptEntrySize},
	} {
		if f.got != f.want {
			return fmt.Errorf("%s is %d, want %d", f.name, f.got, f.want)
		}
	}
	sum := crc32.NewIEEE()
	sum.Write(h[:16])
	sum.Write(make([]byte, 4))
	sum.Write(h[20:gptHeaderSize])
	if got, want := le.Uint32(h[16:]), sum.Sum32(); got != want {
		return fmt.Errorf("checksum is %08x, its bytes have %08x", got, want)
	}
	if got, want := le.Uint32(h[88:]), crc32.ChecksumIEEE(c.array); got != want {
		return fmt.Errorf("checksum of the array is %08x, its bytes have %08x", got, want)
	}
	if i := nonZero(h[gptHeaderSize:]); i >= 0 {
		return fmt.Errorf("byte %d behind it is %#02x, want zero", gptHeaderSize+i, h[gptHeaderSize+i])
	}
	return nil
}

func readEntry(b []byte) (e Entry, used bool, err error) {
	if guid.GUID(b[:16]) == (guid.GUID{}) {
		if i := nonZero(b); i >= 0 {
			return e, false, fmt.Errorf("it is not in use, but its byte %d is %#02x", i, b[i])
		}
		return e, false, nil
	}
	le := binary.LittleEndian
	e = Entry{
		Type: guid.GUID(b[:16]), GUID: guid.GUID(b[16:32]),
		First: le.Uint64(b[32:]), Last: le.Uint64(b[40:]), Attributes: le.Uint64(b[48:]),
	}
	var units []uint16
	for at := 56; at < gptEntrySize; at += 2 {
		u := le.Uint16(b[at:])
		if u == 0 {
			if i := nonZero(b[at:]); i >= 0 {
				return e, false, fmt.Errorf("byte %d, behind the end of its name, is %#02x", at+i, b[at+i])
			}
			break
		}
		units = append(units, u)
	}
	e.Name = string(utf16.Decode(units))
	return e, true, nil
}

func (t *Table) check() error {
	seen := map[guid.GUID]int{}
	for _, p := range t.Partitions {
		if p.GUID == (guid.GUID{}) || p.GUID == t.Disk {
			return fmt.Errorf("partition %d has the GUID %s, which is zero or the disk's", p.Number, p.GUID)
		}
		if other, twice := seen[p.GUID]; twice {
			return fmt.Errorf("partitions %d and %d have the same GUID %s", other, p.Number, p.GUID)
		}
		seen[p.GUID] = p.Number
		if p.First < gptFirstUsable || p.Last > t.LastUsable || p.First > p.Last {
			return fmt.Errorf("partition %d has LBAs %d to %d, usable are %d to %d", p.Number, p.First, p.Last, gptFirstUsable, t.LastUsable)
		}
	}
	byPlace := slices.SortedFunc(slices.Values(t.Partitions), func(a, b Entry) int { return cmp.Compare(a.First, b.First) })
	for i := 1; i < len(byPlace); i++ {
		if a, b := byPlace[i-1], byPlace[i]; b.First <= a.Last {
			return fmt.Errorf("partitions %d and %d overlap: LBAs %d to %d and %d to %d", a.Number, b.Number, a.First, a.Last, b.First, b.Last)
		}
	}
	return nil
}

// gaps returns the byte ranges outside of both table copies and of every
// partition.
func (t *Table) gaps() [][2]int64 {
	byPlace := slices.SortedFunc(slices.Values(t.Partitions), func(a, b Entry) int { return cmp.Compare(a.First, b.First) })
	var out [][2]int64
	at := uint64(gptFirstUsable)
	for _, p := range byPlace {
		if p.First > at {
			out = append(out, [2]int64{int64(at) * SectorSize, int64(p.First) * SectorSize})
		}
		at = p.Last + 1
	}
	if at <= t.LastUsable {
		out = append(out, [2]int64{int64(at) * SectorSize, int64(t.LastUsable+1) * SectorSize})
	}
	return out
}

// firstDifference returns the index of the first byte that differs, or -1. The
// shorter of the two ends the comparison unless one is a part of the other.
func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
