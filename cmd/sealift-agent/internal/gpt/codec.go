package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"unicode/utf16"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
)

// Header layout (UEFI 2.10, table 5.5) and entry layout (table 5.7).
const (
	signature  = "EFI PART"
	revision   = 0x00010000
	headerSize = 92
	entrySize  = 128
	maxEntries = 1024 // bounds the array at 128 KiB; every common tool writes 128
)

// arraySectors is how many sectors an entry array takes.
func arraySectors(entries uint32) uint64 {
	return (uint64(entries)*entrySize + SectorSize - 1) / SectorSize
}

// Read reads the table of a disk, or of an image, of that size in bytes. It
// takes the primary, and the backup at the disk's end if the primary is not
// whole; Table.Damaged tells. A disk with neither gives ErrNone, a disk whose
// tables are both damaged another error.
//
// An image that was written to a larger disk has its backup where the image
// ended. Read accepts that; Grow and Write move it.
func Read(r io.ReaderAt, size int64) (*Table, error) {
	if size < 3*SectorSize {
		return nil, fmt.Errorf("read partition table: a disk of %d bytes is too small", size)
	}
	last := uint64(size/SectorSize) - 1
	t, alternate, perr := readCopy(r, 1, last)
	if perr == nil {
		if alternate > last {
			t.Damaged = fmt.Errorf("the backup is at LBA %d, behind the disk's last LBA %d", alternate, last)
		} else if _, _, err := readCopy(r, alternate, last); err != nil {
			t.Damaged = fmt.Errorf("backup at LBA %d: %w", alternate, err)
		}
		return t, nil
	}
	t, _, berr := readCopy(r, last, last)
	if berr == nil {
		t.Damaged, t.backupOnly = fmt.Errorf("primary: %w", perr), true
		return t, nil
	}
	if errors.Is(perr, ErrNone) && errors.Is(berr, ErrNone) {
		return nil, ErrNone
	}
	return nil, fmt.Errorf("read partition table: primary: %w; backup: %w", perr, berr)
}

// readCopy reads the header at that LBA of a disk whose last LBA is given, and
// its entry array. It also returns where the header says that the other copy is.
func readCopy(r io.ReaderAt, lba, last uint64) (*Table, uint64, error) {
	h := make([]byte, SectorSize)
	if _, err := r.ReadAt(h, int64(lba)*SectorSize); err != nil {
		return nil, 0, fmt.Errorf("read header: %w", err)
	}
	if string(h[:8]) != signature {
		return nil, 0, ErrNone
	}
	if v := binary.LittleEndian.Uint32(h[8:]); v != revision {
		return nil, 0, fmt.Errorf("header: revision is %#x, want %#x", v, revision)
	}
	if n := binary.LittleEndian.Uint32(h[12:]); n != headerSize {
		return nil, 0, fmt.Errorf("header: size is %d, want %d", n, headerSize)
	}
	want := binary.LittleEndian.Uint32(h[16:])
	if got := headerCRC(h); got != want {
		return nil, 0, fmt.Errorf("header: checksum is %#08x, want %#08x", got, want)
	}
	if my := binary.LittleEndian.Uint64(h[24:]); my != lba {
		return nil, 0, fmt.Errorf("header: it is at LBA %d and says LBA %d", lba, my)
	}
	alternate := binary.LittleEndian.Uint64(h[32:])
	if alternate == lba || (lba != 1 && alternate != 1) {
		return nil, 0, fmt.Errorf("header: it is at LBA %d and its other copy at LBA %d", lba, alternate)
	}
	t := &Table{
		FirstUsable: binary.LittleEndian.Uint64(h[40:]),
		LastUsable:  binary.LittleEndian.Uint64(h[48:]),
		Disk:        guid.GUID(h[56:72]),
		entries:     binary.LittleEndian.Uint32(h[80:]),
	}
	if n := binary.LittleEndian.Uint32(h[84:]); n != entrySize {
		return nil, 0, fmt.Errorf("header: entries have %d bytes, want %d", n, entrySize)
	}
	if t.entries == 0 || t.entries > maxEntries {
		return nil, 0, fmt.Errorf("header: %d entries, want 1 to %d", t.entries, maxEntries)
	}
	// The array lies between the header and the usable space, on either side.
	array, length := binary.LittleEndian.Uint64(h[72:]), arraySectors(t.entries)
	if lba == 1 && (array < 2 || array >= t.FirstUsable || length > t.FirstUsable-array) ||
		lba != 1 && (array <= t.LastUsable || array >= lba || length > lba-array) {
		return nil, 0, fmt.Errorf("header: the entry array at LBA %d is not between header and usable space", array)
	}
	if t.LastUsable >= last {
		return nil, 0, fmt.Errorf("header: the last usable LBA is %d, the disk's last LBA %d", t.LastUsable, last)
	}
	b := make([]byte, int(t.entries)*entrySize)
	if _, err := r.ReadAt(b, int64(array)*SectorSize); err != nil {
		return nil, 0, fmt.Errorf("read entries: %w", err)
	}
	if got, want := crc32.ChecksumIEEE(b), binary.LittleEndian.Uint32(h[88:]); got != want {
		return nil, 0, fmt.Errorf("entries: checksum is %#08x, want %#08x", got, want)
	}
	for i := range int(t.entries) {
		e := b[i*entrySize:][:entrySize]
		if guid.GUID(e[:16]).IsZero() {
			continue
		}
		t.Partitions = append(t.Partitions, Partition{
			Number:     i + 1,
			Type:       guid.GUID(e[:16]),
			GUID:       guid.GUID(e[16:32]),
			First:      binary.LittleEndian.Uint64(e[32:]),
			Last:       binary.LittleEndian.Uint64(e[40:]),
			Attributes: binary.LittleEndian.Uint64(e[48:]),
			Name:       decodeName(e[56:128]),
		})
	}
	if err := t.check(); err != nil {
		return nil, 0, err
	}
	return t, alternate, nil
}

// headerCRC is the checksum of a header with its checksum field zero.
func headerCRC(h []byte) uint32 {
	b := bytes.Clone(h[:headerSize])
	clear(b[16:20])
	return crc32.ChecksumIEEE(b)
}

// encode returns the two copies of the table for a disk with that last LBA:
// the primary from LBA 1 on, and the backup up to the last LBA.
func (t *Table) encode(last uint64) (primary, backup []byte, err error) {
	if err := t.check(); err != nil {
		return nil, nil, err
	}
	length := arraySectors(t.entries)
	if last < length+1 || t.LastUsable >= last-length {
		return nil, nil, fmt.Errorf("the backup does not fit between the last usable LBA %d and the disk's last LBA %d", t.LastUsable, last)
	}
	array := make([]byte, length*SectorSize)
	for _, p := range t.Partitions {
		e := array[(p.Number-1)*entrySize:][:entrySize]
		name, err := encodeName(p.Name)
		if err != nil {
			return nil, nil, fmt.Errorf("partition %d: %w", p.Number, err)
		}
		copy(e, p.Type[:])
		copy(e[16:], p.GUID[:])
		binary.LittleEndian.PutUint64(e[32:], p.First)
		binary.LittleEndian.PutUint64(e[40:], p.Last)
		binary.LittleEndian.PutUint64(e[48:], p.Attributes)
		copy(e[56:], name)
	}
	crc := crc32.ChecksumIEEE(array[:int(t.entries)*entrySize])
	primary = slices.Concat(t.header(1, last, 2, crc), array)
	backup = slices.Concat(array, t.header(last, 1, last-length, crc))
	return primary, backup, nil
}

func (t *Table) header(my, alternate, array uint64, crc uint32) []byte {
	h := make([]byte, SectorSize)
	copy(h, signature)
	binary.LittleEndian.PutUint32(h[8:], revision)
	binary.LittleEndian.PutUint32(h[12:], headerSize)
	binary.LittleEndian.PutUint64(h[24:], my)
	binary.LittleEndian.PutUint64(h[32:], alternate)
	binary.LittleEndian.PutUint64(h[40:], t.FirstUsable)
	binary.LittleEndian.PutUint64(h[48:], t.LastUsable)
	copy(h[56:], t.Disk[:])
	binary.LittleEndian.PutUint64(h[72:], array)
	binary.LittleEndian.PutUint32(h[80:], t.entries)
	binary.LittleEndian.PutUint32(h[84:], entrySize)
	binary.LittleEndian.PutUint32(h[88:], crc)
	binary.LittleEndian.PutUint32(h[16:], headerCRC(h))
	return h
}

func decodeName(b []byte) string {
	var u []uint16
	for i := 0; i+1 < len(b); i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

func encodeName(s string) ([]byte, error) {
	u := utf16.Encode([]rune(s))
	if len(u) > 36 || slices.Contains(u, 0) {
		return nil, fmt.Errorf("name %q has a NUL or more than 36 UTF-16 code units", s)
	}
	b := make([]byte, 72)
	for i, c := range u {
		binary.LittleEndian.PutUint16(b[2*i:], c)
	}
	return b, nil
}
