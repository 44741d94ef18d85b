// Package iso writes installation media: one file that is an ISO 9660 image
// with an El Torito boot catalogue for optical and virtual drives, and at the
// same time a GPT disk for USB sticks. Both lead UEFI firmware to one EFI
// system partition. Write is the way in.
//
// The standards are ECMA-119 (ISO 9660), the Rock Ridge Interchange Protocol
// 1.10 for the files' own names, El Torito 1.0, and UEFI 2.10, 5.3 (GPT) and
// 13.3.2 (boot from optical media). All files are in the root directory.
// Everything that is random elsewhere is derived from content.
//
// The ISO 9660 of go-diskfs is not used: it takes names, owners and times from
// a directory on disk, in the order in which that is read, and knows no hybrid.
package iso

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/manifest"
)

const (
	sectorSize = 2048    // of ISO 9660, bytes
	alignment  = 1 << 20 // of files' area, ESP and end, bytes
	maxFiles   = 64
	// maxExtent is the most that one directory record can hold in whole
	// sectors; a longer file has several records.
	maxExtent = math.MaxUint32 / sectorSize * sectorSize
	// maxSize bounds a medium, bytes: block numbers have 32 bits, but those of
	// the GPT's protective MBR count smaller sectors.
	maxSize = math.MaxUint32 * disk.SectorSize
)

// File is one file in the root directory.
type File struct {
	Name    string // letters, digits, "-", "_" and ".", at most 100
	Size    int64  // bytes
	Content io.Reader
}

// Medium is what to write. All fields are required.
type Medium struct {
	Label string // of the ISO 9660 volume: at most 32 of A-Z, 0-9, _
	// Boot is the program that firmware starts, the EFI system partition's
	// only file.
	Boot  disk.ESPFile
	Files []File
	Epoch time.Time // every time stamp
}

// plan is where everything goes. Offsets are in bytes.
type plan struct {
	files     []int64 // of each file, in the order of Medium.Files
	directory int     // length of the root directory
	esp       int64
	espSize   int64
	size      int64
}

// Sectors of the volume's structures, and the end of their room: the first
// 16 are free for other uses (ECMA-119, 6.2.1), here for MBR and GPT.
const (
	sectorPrimary    = 16
	sectorBoot       = 17
	sectorTerminator = 18
	sectorCatalogue  = 19
	sectorPathL      = 20
	sectorPathM      = 21
	sectorRoot       = 22
	sectorsEnd       = alignment / sectorSize
)

// Write writes the medium to f, which is empty, and returns its length in
// bytes. f must be truncated to that length. The files' contents are read
// once, in order.
func Write(f disk.File, m Medium) (int64, error) {
	size, err := write(f, &m)
	if err != nil {
		return 0, fmt.Errorf("write installation medium: %w", err)
	}
	return size, nil
}

func write(f disk.File, m *Medium) (int64, error) {
	if err := m.check(); err != nil {
		return 0, err
	}
	p, err := m.plan()
	if err != nil {
		return 0, err
	}
	h := sha256.New()
	for i, file := range m.Files {
		w := disk.NewWindow(f, file.Name, p.files[i], file.Size)
		n, err := io.Copy(io.MultiWriter(w, h), file.Content)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file.Name, err)
		}
		if n != file.Size {
			return 0, fmt.Errorf("%s: got %d bytes, want %d", file.Name, n, file.Size)
		}
	}
	h.Write(m.Boot.Data)
	id := h.Sum(nil)
	esp := disk.NewWindow(f, "EFI system partition", p.esp, p.espSize)
	if err := disk.WriteESP(esp, []disk.ESPFile{m.Boot}, [4]byte(id), m.Epoch); err != nil {
		return 0, err
	}
	if err := m.writeVolume(f, p); err != nil {
		return 0, err
	}
	return p.size, p.layout(id).WriteTable(f)
}

func (m *Medium) check() error {
	if m.Label == "" || len(m.Label) > 32 || strings.Trim(m.Label, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
		return fmt.Errorf("label %q: want 1 to 32 of A-Z, 0-9, _", m.Label)
	}
	if y := m.Epoch.UTC().Year(); y < 1980 || y > 2107 {
		return fmt.Errorf("epoch %s is outside of the years 1980 to 2107", m.Epoch.UTC().Format(time.RFC3339))
	}
	if len(m.Files) > maxFiles {
		return fmt.Errorf("%d files, at most %d allowed", len(m.Files), maxFiles)
	}
	if m.Boot.Path == "" || len(m.Boot.Data) == 0 {
		return errors.New("no program to boot")
	}
	seen := map[string]string{}
	for _, f := range m.Files {
		if err := checkName(f.Name); err != nil {
			return err
		}
		if other, twice := seen[identifier(f.Name)]; twice {
			return fmt.Errorf("files %s and %s have the same name in ISO 9660, %s", other, f.Name, identifier(f.Name))
		}
		seen[identifier(f.Name)] = f.Name
		if f.Size < 0 || f.Content == nil {
			return fmt.Errorf("%s: no content", f.Name)
		}
	}
	return nil
}

func (m *Medium) plan() (*plan, error) {
	p := &plan{espSize: disk.MinESP}
	at := int64(alignment)
	for _, f := range m.Files {
		if f.Size > maxSize {
			return nil, fmt.Errorf("%s has %d bytes, a medium has at most %d", f.Name, f.Size, int64(maxSize))
		}
		p.files = append(p.files, at)
		at += up(f.Size, sectorSize)
	}
	// FATs and directories take under 2% of the partition.
	if need := up(int64(len(m.Boot.Data))*51/50, alignment) + alignment; need > p.espSize {
		p.espSize = need
	}
	p.esp = max(up(at, alignment), 2*alignment)
	p.size = p.esp + p.espSize + alignment // the last is for the GPT's backup
	if p.size > maxSize {
		return nil, fmt.Errorf("it would have %d bytes, at most %d can be addressed", p.size, int64(maxSize))
	}
	p.directory = len(m.directory(p))
	if sectorRoot+p.directory/sectorSize > sectorsEnd {
		return nil, fmt.Errorf("a directory of %d bytes does not fit", p.directory)
	}
	return p, nil
}

// layout is the medium as a GPT disk. The files' area is a partition with a
// type of its own, so that no partitioning tool takes it for free space, and
// no system tries to mount it.
func (p *plan) layout(id []byte) *disk.Layout {
	files := guid.Derive("dev.sealift.medium.type.files", nil).String()
	partition := func(number int, role string, typ string, at, size int64) manifest.Partition {
		return manifest.Partition{
			Number: number, Role: role, Label: role, Type: typ, GUID: guid.Derive("dev.sealift.medium."+role, id).String(),
			FirstLBA: uint64(at / disk.SectorSize), Sectors: uint64(size / disk.SectorSize),
		}
	}
	return &disk.Layout{
		GUID: guid.Derive("dev.sealift.medium", id), Size: p.size,
		Partitions: []manifest.Partition{
			partition(1, manifest.RoleESP, disk.TypeESP, p.esp, p.espSize),
			partition(2, "files", files, alignment, p.esp-alignment),
		},
	}
}

func up(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
