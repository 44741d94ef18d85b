package predict

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"unicode/utf16"

	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/manifest"
)

// Layout of a GPT (UEFI 2.10, tables 5.5 and 5.7).
const (
	gptSector     = 512
	gptHeader     = 92
	gptEntry      = 128
	gptEntries    = 128
	gptArray      = gptEntries * gptEntry / gptSector // sectors of an entry array
	gptRevision   = 0x00010000
	gptNameUnits  = 36
	gptFirst      = 2 + gptArray // first usable LBA
	gptAlignment  = 1 << 20 / gptSector
	typeLinuxData = "0fc63daf-8483-4772-8e79-3d69d8477de4" // of the state partition
)

// Installed is what makes the partition table of one installed disk its own.
type Installed struct {
	Disk guid.GUID // drawn by the installer; the install record has it
	Size int64     // of the disk, bytes, a multiple of 512
	// State is the GUID of the state partition, or zero before the first boot
	// has made it.
	State guid.GUID
}

// GPTEvent returns the data of the EV_EFI_GPT_EVENT that firmware measures into
// PCR 5 when it starts the image from an installed disk (PFP,
// "UEFI_GPT_DATA"): the primary header, the number of entries in use and these
// entries. The installer keeps the partitions of the image, gives the disk its
// own GUID and moves the backup table to the disk's end; the first boot puts
// the state partition into the free space behind.
func GPTEvent(image manifest.Disk, on Installed) ([]byte, error) {
	b, err := gptEvent(image, on)
	if err != nil {
		return nil, fmt.Errorf("predict GPT event: %w", err)
	}
	return b, nil
}

func gptEvent(image manifest.Disk, on Installed) ([]byte, error) {
	if on.Size%gptSector != 0 || on.Size < image.Size || on.Size < (gptFirst+gptArray+2)*gptSector {
		return nil, fmt.Errorf("the disk has %d bytes, want a multiple of %d and at least the image's %d", on.Size, gptSector, image.Size)
	}
	if on.Disk == (guid.GUID{}) {
		return nil, errors.New("the disk's GUID is zero")
	}
	last := uint64(on.Size/gptSector) - 1
	lastUsable := last - gptArray - 1
	partitions := slices.Clone(image.Partitions)
	if on.State != (guid.GUID{}) {
		state, err := statePartition(partitions, on.State, lastUsable)
		if err != nil {
			return nil, err
		}
		partitions = append(partitions, state)
	}
	array := make([]byte, gptEntries*gptEntry)
	var used []byte
	slices.SortFunc(partitions, func(a, b manifest.Partition) int { return a.Number - b.Number })
	for i, p := range partitions {
		if p.Number < 1 || p.Number > gptEntries || i > 0 && partitions[i-1].Number == p.Number {
			return nil, fmt.Errorf("partition number %d is out of range or twice", p.Number)
		}
		e := array[(p.Number-1)*gptEntry:][:gptEntry]
		if err := putEntry(e, p); err != nil {
			return nil, fmt.Errorf("partition %d: %w", p.Number, err)
		}
		used = append(used, e...)
	}

	le := binary.LittleEndian
	h := make([]byte, gptHeader, gptHeader+8+len(used))
	copy(h, "EFI PART")
	le.PutUint32(h[8:], gptRevision)
	le.PutUint32(h[12:], gptHeader)
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[32:], last)
	le.PutUint64(h[40:], gptFirst)
	le.PutUint64(h[48:], lastUsable)
	copy(h[56:], on.Disk[:])
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], gptEntries)
	le.PutUint32(h[84:], gptEntry)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(array))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	h = le.AppendUint64(h, uint64(len(partitions)))
	return append(h, used...), nil
}

// statePartition is what the first boot adds: the next number, the free space
// behind the image from one MiB boundary to the next.
func statePartition(image []manifest.Partition, id guid.GUID, lastUsable uint64) (manifest.Partition, error) {
	var number int
	var end uint64
	for _, p := range image {
		number, end = max(number, p.Number), max(end, p.FirstLBA+p.Sectors)
	}
	first := (end + gptAlignment - 1) / gptAlignment * gptAlignment
	behind := (lastUsable + 1) / gptAlignment * gptAlignment
	if behind <= first {
		return manifest.Partition{}, errors.New("the disk has no room for a state partition")
	}
	return manifest.Partition{
		Number: number + 1, Role: manifest.RoleState, Label: manifest.RoleState, Type: typeLinuxData, GUID: id.String(),
		FirstLBA: first, Sectors: behind - first,
	}, nil
}

// putEntry encodes a partition entry. Images set no attributes.
func putEntry(e []byte, p manifest.Partition) error {
	for at, text := range map[int]string{0: p.Type, 16: p.GUID} {
		g, err := guid.Parse(text)
		if err != nil {
			return err
		}
		copy(e[at:], g[:])
	}
	if p.Sectors == 0 {
		return errors.New("it has no sectors")
	}
	name := utf16.Encode([]rune(p.Label))
	if len(name) > gptNameUnits {
		return fmt.Errorf("label %q has more than %d UTF-16 code units", p.Label, gptNameUnits)
	}
	le := binary.LittleEndian
	le.PutUint64(e[32:], p.FirstLBA)
	le.PutUint64(e[40:], p.FirstLBA+p.Sectors-1)
	for i, c := range name {
		le.PutUint16(e[56+2*i:], c)
	}
	return nil
}

// WithGPT returns a boot from the disk as it is on one machine: the digests of
// the partition table's event are those of data, and so PCR 5 has a value.
func WithGPT(b manifest.Boot, data []byte) (manifest.Boot, error) {
	b.PCRs = slices.Clone(b.PCRs)
	for i := range b.PCRs {
		p := &b.PCRs[i]
		if p.Index != 5 {
			continue
		}
		p.Events = slices.Clone(p.Events)
		at := slices.IndexFunc(p.Events, func(e manifest.Event) bool { return e.Type == manifest.TypeGPT })
		if at < 0 {
			break
		}
		p.Events[at].Digests = digests(data)
		return b, settle(p)
	}
	return b, fmt.Errorf("a boot by way of %q reads no partition table", b.Way)
}
