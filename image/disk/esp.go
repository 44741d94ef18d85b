package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
)

// MinESP is the smallest EFI system partition, in bytes. FAT32 needs 65525
// clusters, and firmware takes a smaller volume for FAT16.
const MinESP = 64 << 20

// espLabel is the volume label, eleven characters.
const espLabel = "SEALIFT ESP"

// ESPFile is a file on the EFI system partition.
type ESPFile struct {
	Path string // absolute, upper case, 8.3 names: /EFI/BOOT/BOOTX64.EFI
	Data []byte
}

// WriteESP makes a FAT32 file system with the given files in the window. The
// serial number is the first 32 bits of serial; every time stamp is epoch.
func WriteESP(w *Window, files []ESPFile, serial [4]byte, epoch time.Time) error {
	if err := writeESP(w, files, serial, epoch); err != nil {
		if w.failed != nil {
			err = w.failed
		}
		return fmt.Errorf("write EFI system partition: %w", err)
	}
	return nil
}

func writeESP(w *Window, files []ESPFile, serial [4]byte, epoch time.Time) error {
	if w.size < MinESP {
		return fmt.Errorf("it has %d bytes, want at least %d", w.size, MinESP)
	}
	var total int64
	for _, f := range files {
		total += int64(len(f.Data))
	}
	// Two FATs and directories take under 2% of the volume.
	if free := w.size - w.size/50; total > free {
		return fmt.Errorf("files of %d bytes do not fit into about %d", total, free)
	}
	if y := epoch.UTC().Year(); y < 1980 || y > 2107 {
		return fmt.Errorf("epoch %s is outside of FAT's years 1980 to 2107", epoch.UTC().Format(time.RFC3339))
	}
	vol, err := fat32.Create(&storage{Window: w}, volumeSize(w.size), 0, SectorSize, espLabel, true)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := vol.Mkdir(path.Dir(f.Path)); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		file, err := vol.OpenFile(f.Path, os.O_CREATE|os.O_RDWR)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		// One Write, because each one rewrites both FATs and searches for
		// free clusters from the start.
		_, err = file.Write(f.Data)
		if err := errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return stampFAT(w, serial, epoch)
}

// volumeSize returns the largest size up to size for which go-diskfs makes a
// FAT that has an entry for each cluster. It sizes the FAT without the two
// reserved entries, so about one size in 64 lacks a sector, and fsck.vfat
// refuses the volume.
func volumeSize(size int64) int64 {
	const reserved, entries = 32, SectorSize / 4 // sectors; FAT entries in one
	for ; size > MinESP/2; size -= 8 * SectorSize {
		perCluster := int64(1) // sectors, as go-diskfs chooses
		switch {
		case size > 32<<30:
			perCluster = 64
		case size > 16<<30:
			perCluster = 32
		case size > 8<<30:
			perCluster = 16
		case size > 260<<20:
			perCluster = 8
		}
		sectors := size / SectorSize
		unit := SectorSize*perCluster + 8
		fat := (4*(sectors-reserved) + unit - 1) / unit
		if clusters := (sectors - reserved - 2*fat) / perCluster; fat*entries >= clusters+2 {
			break
		}
	}
	return size
}

// Offsets in FAT32 boot sectors and directory entries (Microsoft, "FAT: General
// Overview of On-Disk Format", 1.03).
const (
	fatReserved      = 14 // sectors before the first FAT
	fatCount         = 16
	fatPerCluster    = 13 // sectors
	fatSectors       = 36 // per FAT
	fatRoot          = 44 // cluster of the root directory
	fatBackup        = 50 // sector of the backup boot sector
	fatSerial        = 67
	fatEntry         = 32 // size of a directory entry
	fatEnd           = 0x0ffffff8
	attrDirectory    = 0x10
	attrLongName     = 0x0f
	maxDirectories   = 64
	maxDirectorySize = 64 // clusters
)

// stampFAT sets the serial number in both boot sectors and every time stamp in
// every directory, and mends the entries that lead back to the root directory.
func stampFAT(w *Window, serial [4]byte, epoch time.Time) error {
	boot := make([]byte, SectorSize)
	if _, err := w.ReadAt(boot, 0); err != nil {
		return fmt.Errorf("read boot sector: %w", err)
	}
	le := binary.LittleEndian
	for _, sector := range []int64{0, int64(le.Uint16(boot[fatBackup:]))} {
		if _, err := w.WriteAt(serial[:], sector*SectorSize+fatSerial); err != nil {
			return err
		}
	}
	v := fatVolume{
		w:        w,
		fat:      int64(le.Uint16(boot[fatReserved:])) * SectorSize,
		cluster:  int64(boot[fatPerCluster]) * SectorSize,
		dateTime: fatTime(epoch),
	}
	v.data = v.fat + int64(boot[fatCount])*int64(le.Uint32(boot[fatSectors:]))*SectorSize
	v.root = le.Uint32(boot[fatRoot:])
	todo := []uint32{v.root}
	for n := 0; len(todo) > 0; n++ {
		if n == maxDirectories {
			return fmt.Errorf("more than %d directories", maxDirectories)
		}
		sub, err := v.stampDirectory(todo[0])
		if err != nil {
			return fmt.Errorf("set time stamps: %w", err)
		}
		todo = append(todo[1:], sub...)
	}
	return nil
}

type fatVolume struct {
	w        *Window
	fat      int64 // offset of the first FAT
	data     int64 // offset of cluster 2
	cluster  int64 // bytes
	root     uint32
	dateTime [4]byte
}

// stampDirectory does that for one directory and returns the first clusters of
// its subdirectories.
func (v *fatVolume) stampDirectory(cluster uint32) (sub []uint32, err error) {
	le := binary.LittleEndian
	for n := 0; cluster >= 2 && cluster < fatEnd; n++ {
		if n == maxDirectorySize {
			return nil, fmt.Errorf("directory has more than %d clusters", maxDirectorySize)
		}
		b := make([]byte, v.cluster)
		at := v.data + int64(cluster-2)*v.cluster
		if _, err := v.w.ReadAt(b, at); err != nil {
			return nil, err
		}
		for e := b; len(e) >= fatEntry && e[0] != 0; e = e[fatEntry:] {
			if e[11]&attrLongName == attrLongName {
				continue
			}
			e[13] = 0 // tenths of a second
			copy(e[14:18], v.dateTime[:])
			copy(e[18:20], v.dateTime[2:])
			copy(e[22:26], v.dateTime[:])
			if e[11]&attrDirectory == 0 {
				continue
			}
			first := uint32(le.Uint16(e[20:]))<<16 | uint32(le.Uint16(e[26:]))
			switch {
			case e[0] != '.':
				sub = append(sub, first)
			case e[1] == '.' && first == v.root:
				// By the specification the root directory is cluster 0 here.
				le.PutUint16(e[20:], 0)
				le.PutUint16(e[26:], 0)
			}
		}
		if _, err := v.w.WriteAt(b, at); err != nil {
			return nil, err
		}
		var next [4]byte
		if _, err := v.w.ReadAt(next[:], v.fat+4*int64(cluster)); err != nil {
			return nil, err
		}
		cluster = le.Uint32(next[:]) & 0x0fffffff
	}
	return sub, nil
}

// fatTime returns time and date as a directory entry has them, with the two
// seconds that FAT can tell apart.
func fatTime(t time.Time) (b [4]byte) {
	t = t.UTC()
	le := binary.LittleEndian
	le.PutUint16(b[0:], uint16(t.Hour()<<11|t.Minute()<<5|t.Second()/2))
	le.PutUint16(b[2:], uint16((t.Year()-1980)<<9|int(t.Month())<<5|t.Day()))
	return b
}

// storage offers a Window to go-diskfs. It has no Sync method on purpose: the
// library would call it after each small write.
type storage struct{ *Window }

var _ backend.Storage = (*storage)(nil)

func (s *storage) Stat() (fs.FileInfo, error)              { return nil, backend.ErrNotSuitable }
func (s *storage) Read([]byte) (int, error)                { return 0, backend.ErrNotSuitable }
func (s *storage) Close() error                            { return nil }
func (s *storage) Sys() (*os.File, error)                  { return nil, backend.ErrNotSuitable }
func (s *storage) Writable() (backend.WritableFile, error) { return s, nil }
func (s *storage) Path() string                            { return "" }

var _ io.WriteSeeker = (*Window)(nil)

// BootPath is the file on an ESP that firmware of an architecture, in GOARCH's
// spelling, starts from a disk without a boot entry (UEFI 2.10, 3.5.1.1).
func BootPath(arch string) (string, error) {
	switch arch {
	case "amd64":
		return "/EFI/BOOT/BOOTX64.EFI", nil
	case "arm64":
		return "/EFI/BOOT/BOOTAA64.EFI", nil
	}
	return "", fmt.Errorf("architecture is %.40q, want amd64 or arm64", arch)
}
