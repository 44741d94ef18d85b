// Package disk writes GPT disk images: Plan lays partitions out, a Writer fills
// them and writes the partition table and the EFI system partition, and Split
// cuts the result into chunks with digests and compresses it.
//
// Everything that is random elsewhere is derived from content: GUIDs, the FAT
// serial number, time stamps. Images are sparse files.
//
// GPT and FAT32 are written by github.com/diskfs/go-diskfs. Of its FAT32 this
// package mends what fsck.vfat or a second build would find: time stamps from
// the clock or the environment, the serial number zero in every volume, a FAT
// without room for the last clusters, and wrong links to the root directory.
package disk

import (
	"fmt"

	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/manifest"
)

// SectorSize is the logical sector of images, in bytes.
const SectorSize = 512

// Alignment of partitions and the unit of their sizes, in bytes.
const Alignment = 1 << 20

// ChunkSize is how much of an image one chunk digest covers, in bytes.
const ChunkSize = 4 << 20

// backupTable is what follows the last partition: the backup partition array
// of 128 entries and the backup header (UEFI 2.10, 5.3.1), in bytes.
const backupTable = 33 * SectorSize

// Partition is one to be laid out.
type Partition struct {
	Role string // also its label
	Type guid.GUID
	GUID guid.GUID
	Size int64 // bytes, a positive multiple of Alignment
}

// Layout is where everything goes.
type Layout struct {
	GUID       guid.GUID // of the disk
	Size       int64     // bytes, a multiple of ChunkSize
	Partitions []manifest.Partition
}

// Plan lays partitions out in order, without gaps, from the first aligned
// sector on.
func Plan(disk guid.GUID, partitions []Partition) (*Layout, error) {
	if len(partitions) == 0 || len(partitions) > 128 {
		return nil, fmt.Errorf("plan disk: %d partitions, want 1 to 128", len(partitions))
	}
	l := &Layout{GUID: disk}
	at := int64(Alignment)
	seen := map[guid.GUID]string{disk: "the disk"}
	for i, p := range partitions {
		if p.Size <= 0 || p.Size%Alignment != 0 || p.Size > 1<<50 {
			return nil, fmt.Errorf("plan disk: partition %s: size %d is not a positive multiple of 1 MiB up to 1 PiB", p.Role, p.Size)
		}
		if p.Role == "" || len(p.Role) > 36 {
			return nil, fmt.Errorf("plan disk: partition %d: label %q has %d characters, want 1 to 36", i+1, p.Role, len(p.Role))
		}
		if other, twice := seen[p.GUID]; twice {
			return nil, fmt.Errorf("plan disk: partition %s has the GUID %s of %s", p.Role, p.GUID, other)
		}
		seen[p.GUID] = p.Role
		l.Partitions = append(l.Partitions, manifest.Partition{
			Number: i + 1, Role: p.Role, Label: p.Role, Type: p.Type.String(), GUID: p.GUID.String(),
			FirstLBA: uint64(at / SectorSize), Sectors: uint64(p.Size / SectorSize),
		})
		at += p.Size
	}
	l.Size = (at + backupTable + ChunkSize - 1) / ChunkSize * ChunkSize
	return l, nil
}

// Sizes of the partitions of an A/B image, in bytes.
type Sizes struct {
	ESP    int64
	Slot   int64 // root file system, each of two
	Verity int64 // hash tree, each of two
}

// sized is a partition of an A/B image before anything but its size is known.
type sized struct {
	role string
	size int64
}

// order returns the partitions of an A/B image in the order of the disk.
func (s Sizes) order() []sized {
	return []sized{
		{manifest.RoleESP, s.ESP},
		{manifest.RoleRootA, s.Slot}, {manifest.RoleRootVerityA, s.Verity},
		{manifest.RoleRootB, s.Slot}, {manifest.RoleRootVerityB, s.Verity},
	}
}

// Window returns the place of a partition in an A/B image. It depends on sizes
// alone, so a root file system can be written before its hash is known.
func (s Sizes) Window(f File, role string) (*Window, error) {
	at := int64(Alignment)
	for _, p := range s.order() {
		if p.role == role {
			return NewWindow(f, "partition "+role, at, p.size), nil
		}
		at += p.size
	}
	return nil, fmt.Errorf("A/B image has no partition %s", role)
}

// TypeESP is the partition type of the EFI system partition (UEFI 2.10, 5.3.3).
const TypeESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"

// Partition types of the Discoverable Partitions Specification.
const (
	typeRootAMD64       = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
	typeRootVerityAMD64 = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"
	typeRootARM64       = "b921b045-1df0-41c3-af44-4c6f280d3fae"
	typeRootVerityARM64 = "df3300ce-d69f-4c92-978c-9bfb0f38d820"
)

// AB returns the partitions of an image with two slots, the first of which
// holds a root file system with the given verity root hash. By the
// Discoverable Partitions Specification its GUID is the first half of that
// hash, and its hash tree's GUID the second half. All other GUIDs are derived
// from the hash, too; an installer gives the disk a GUID of its own.
func AB(arch string, sizes Sizes, rootHash [32]byte) (disk guid.GUID, _ []Partition, _ error) {
	var root, verity guid.GUID
	var err error
	esp, err := guid.Parse(TypeESP)
	if err != nil {
		return disk, nil, err
	}
	switch arch {
	case "amd64":
		root, verity, err = parseTwo(typeRootAMD64, typeRootVerityAMD64)
	case "arm64":
		root, verity, err = parseTwo(typeRootARM64, typeRootVerityARM64)
	default:
		err = fmt.Errorf("plan disk: architecture is %q, want amd64 or arm64", arch)
	}
	if err != nil {
		return disk, nil, err
	}
	derive := func(what string) guid.GUID { return guid.Derive("dev.sealift.disk."+what, rootHash[:]) }
	var partitions []Partition
	for _, p := range sizes.order() {
		q := Partition{Role: p.role, GUID: derive(p.role), Size: p.size}
		switch p.role {
		case manifest.RoleESP:
			q.Type = esp
		case manifest.RoleRootA:
			q.Type, q.GUID = root, guid.FromBytes([16]byte(rootHash[:16]))
		case manifest.RoleRootB:
			q.Type = root
		case manifest.RoleRootVerityA:
			q.Type, q.GUID = verity, guid.FromBytes([16]byte(rootHash[16:]))
		default:
			q.Type = verity
		}
		partitions = append(partitions, q)
	}
	return derive("disk"), partitions, nil
}

func parseTwo(a, b string) (guid.GUID, guid.GUID, error) {
	first, err := guid.Parse(a)
	if err != nil {
		return guid.GUID{}, guid.GUID{}, err
	}
	second, err := guid.Parse(b)
	return first, second, err
}
