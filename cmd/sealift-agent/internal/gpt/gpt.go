// Package gpt reads and writes GUID partition tables (UEFI 2.10, chapter 5)
// of disks with 512-byte logical sectors. Read is strict and bounded: a table
// with a wrong checksum, overlapping partitions or a shape that no tool of
// ours writes is refused, and the backup is used where the primary is damaged.
//
// A Table is plain data: Grow and Add change it, and Write stores it, in the
// order in which a power cut leaves at least one of the two copies whole.
package gpt

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
)

// SectorSize is the only logical block size that is supported, in bytes.
const SectorSize = 512

// alignment is where Add lets partitions start and end, in sectors: 1 MiB.
const alignment = 1 << 20 / SectorSize

// LinuxFilesystem returns the partition type for Linux data,
// 0fc63daf-8483-4772-8e79-3d69d8477de4 (UAPI Discoverable Partitions
// Specification).
func LinuxFilesystem() guid.GUID {
	return guid.GUID{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}
}

// ErrNone is returned for a disk without a trace of a GPT.
var ErrNone = errors.New("no partition table")

// Table is a partition table. LBAs are 512-byte sectors.
type Table struct {
	Disk        guid.GUID   // unique GUID of the disk
	FirstUsable uint64      // first LBA that a partition may use
	LastUsable  uint64      // last LBA that a partition may use
	Partitions  []Partition // in use, by ascending Number
	// Damaged says which copy Read could not use and why; nil if both were
	// whole. Write mends it.
	Damaged error

	// backupOnly: the table is from the backup, and the primary is damaged.
	backupOnly bool
	entries    uint32 // number of entries in the array, used or not
}

// Partition is one entry in use. Number is its place in the array, from 1,
// and the number in the name of its device node.
type Partition struct {
	Number     int
	Type       guid.GUID
	GUID       guid.GUID
	First      uint64 // first LBA
	Last       uint64 // last LBA, inclusive
	Attributes uint64
	Name       string // at most 36 UTF-16 code units
}

// New returns an empty table for a disk of that size in bytes.
func New(disk guid.GUID, size int64) (*Table, error) {
	const entries = 128
	first := 2 + arraySectors(entries)
	t := &Table{Disk: disk, FirstUsable: first, LastUsable: first, entries: entries}
	if err := t.Grow(size); err != nil {
		return nil, err
	}
	return t, t.check()
}

// Offset is where the partition starts on the disk, in bytes.
func (p Partition) Offset() int64 { return int64(p.First) * SectorSize }

// Size is the partition's length in bytes.
func (p Partition) Size() int64 { return int64(p.Last-p.First+1) * SectorSize }

// ByGUID returns the partition with that unique GUID, or false.
func (t *Table) ByGUID(g guid.GUID) (Partition, bool) {
	return t.find(func(p Partition) bool { return p.GUID == g })
}

// ByName returns the only partition with that name. Two of the same name are
// as good as none.
func (t *Table) ByName(name string) (Partition, bool) {
	named := func(p Partition) bool { return p.Name == name }
	p, ok := t.find(named)
	if !ok || len(slices.DeleteFunc(slices.Clone(t.Partitions), func(p Partition) bool { return !named(p) })) > 1 {
		return Partition{}, false
	}
	return p, true
}

func (t *Table) find(match func(Partition) bool) (Partition, bool) {
	i := slices.IndexFunc(t.Partitions, match)
	if i < 0 {
		return Partition{}, false
	}
	return t.Partitions[i], true
}

// Grow makes the table fill a disk of that size in bytes: the last usable
// LBA moves so that the backup fits at the disk's end.
func (t *Table) Grow(size int64) error {
	sectors := uint64(size / SectorSize)
	tail := arraySectors(t.entries) + 1
	if size <= 0 || sectors < tail+t.FirstUsable {
		return fmt.Errorf("grow partition table: a disk of %d bytes is too small", size)
	}
	last := sectors - tail - 1
	if last < t.LastUsable {
		return fmt.Errorf("grow partition table: the disk ends at LBA %d, before the last usable LBA %d of its table", last, t.LastUsable)
	}
	t.LastUsable = last
	return nil
}

// Add puts a partition into the largest free space, which it fills from one
// 1 MiB boundary to the next, and returns it with its number and place. The
// space must have at least min bytes. First, Last and Number of p are ignored.
func (t *Table) Add(p Partition, min int64) (Partition, error) {
	if p.Type.IsZero() || p.GUID.IsZero() {
		return Partition{}, fmt.Errorf("add partition %q: its type or unique GUID is zero", p.Name)
	}
	if _, taken := t.ByGUID(p.GUID); taken {
		return Partition{}, fmt.Errorf("add partition %q: GUID %s is taken", p.Name, p.GUID)
	}
	if _, err := encodeName(p.Name); err != nil {
		return Partition{}, fmt.Errorf("add partition: %w", err)
	}
	p.Number = 1
	for _, q := range t.Partitions {
		if q.Number == p.Number {
			p.Number++
		}
	}
	if p.Number > int(t.entries) {
		return Partition{}, fmt.Errorf("add partition %q: all %d entries are in use", p.Name, t.entries)
	}
	var found bool
	for _, s := range t.free() {
		first := (s.First + alignment - 1) / alignment * alignment
		end := (s.Last + 1) / alignment * alignment
		if end <= first {
			continue
		}
		if !found || end-first > p.Last-p.First+1 {
			p.First, p.Last, found = first, end-1, true
		}
	}
	if !found || p.Size() < min {
		var have int64
		if found {
			have = p.Size()
		}
		return Partition{}, fmt.Errorf("add partition %q: the largest free space has %d bytes, want %d", p.Name, have, min)
	}
	t.Partitions = append(t.Partitions, p)
	slices.SortFunc(t.Partitions, func(a, b Partition) int { return cmp.Compare(a.Number, b.Number) })
	return p, nil
}

// free returns the unused spaces as partitions without identity.
func (t *Table) free() []Partition {
	byPlace := slices.Clone(t.Partitions)
	slices.SortFunc(byPlace, func(a, b Partition) int { return cmp.Compare(a.First, b.First) })
	var spaces []Partition
	next := t.FirstUsable
	for _, p := range byPlace {
		if p.First > next {
			spaces = append(spaces, Partition{First: next, Last: p.First - 1})
		}
		next = p.Last + 1
	}
	if next <= t.LastUsable {
		spaces = append(spaces, Partition{First: next, Last: t.LastUsable})
	}
	return spaces
}

// check refuses a table that does not hold together.
func (t *Table) check() error {
	if t.Disk.IsZero() {
		return errors.New("the disk GUID is zero")
	}
	if t.entries == 0 || t.entries > maxEntries {
		return fmt.Errorf("%d entries, want 1 to %d", t.entries, maxEntries)
	}
	if t.FirstUsable < 2+arraySectors(t.entries) || t.FirstUsable > t.LastUsable {
		return fmt.Errorf("usable LBAs are %d to %d", t.FirstUsable, t.LastUsable)
	}
	byPlace := slices.Clone(t.Partitions)
	slices.SortFunc(byPlace, func(a, b Partition) int { return cmp.Compare(a.First, b.First) })
	guids := make(map[guid.GUID]int)
	numbers := make(map[int]bool)
	var before Partition
	for i, p := range byPlace {
		if p.Number < 1 || p.Number > int(t.entries) || numbers[p.Number] {
			return fmt.Errorf("partition number %d is out of range or twice", p.Number)
		}
		numbers[p.Number] = true
		if p.Type.IsZero() || p.GUID.IsZero() {
			return fmt.Errorf("partition %d has a zero GUID", p.Number)
		}
		if n, taken := guids[p.GUID]; taken {
			return fmt.Errorf("partitions %d and %d have the same GUID %s", n, p.Number, p.GUID)
		}
		guids[p.GUID] = p.Number
		if p.First > p.Last || p.First < t.FirstUsable || p.Last > t.LastUsable {
			return fmt.Errorf("partition %d has LBAs %d to %d, usable are %d to %d", p.Number, p.First, p.Last, t.FirstUsable, t.LastUsable)
		}
		if i > 0 && p.First <= before.Last {
			return fmt.Errorf("partitions %d and %d overlap", before.Number, p.Number)
		}
		before = p
	}
	return nil
}
