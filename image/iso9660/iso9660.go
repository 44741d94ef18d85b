// Package iso9660 finds the files in the root directory of an ISO 9660 volume
// (ECMA-119), under their Rock Ridge names. Read is the way in. It reads what
// `sealift image build` writes onto an installation medium, and no more of the
// standards: no other directories, no links, no volume sets.
//
// Nothing that it reads is trusted. It runs in the agent and in `sealift image
// verify`, not in the kernel, so a damaged or hostile medium can at worst be
// refused.
package iso9660

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

const (
	sectorSize   = 2048
	descriptorAt = 16 * sectorSize // of the primary volume descriptor
	maxDirectory = 1 << 20         // bytes
	maxName      = 255
)

// ErrNone says that there is no ISO 9660 volume.
var ErrNone = errors.New("no ISO 9660 volume")

// Volume is a volume of files in one directory.
type Volume struct {
	Label string
	r     io.ReaderAt
	files map[string]extent // by name
}

// extent is where a file is, in bytes.
type extent struct{ at, size int64 }

// Read reads the volume on a device of size bytes. The error wraps ErrNone if
// there is none.
func Read(r io.ReaderAt, size int64) (*Volume, error) {
	b := make([]byte, sectorSize)
	if size < descriptorAt+sectorSize {
		return nil, fmt.Errorf("%w: only %d bytes", ErrNone, size)
	}
	if _, err := r.ReadAt(b, descriptorAt); err != nil {
		return nil, fmt.Errorf("read volume descriptor: %w", err)
	}
	if string(b[:7]) != "\x01CD001\x01" {
		return nil, fmt.Errorf("%w: no volume descriptor", ErrNone)
	}
	v := &Volume{Label: strings.TrimRight(string(b[40:72]), " "), r: r}
	if block := binary.LittleEndian.Uint16(b[128:]); block != sectorSize {
		return nil, fmt.Errorf("volume %q: logical blocks have %d bytes, want %d", v.Label, block, sectorSize)
	}
	if err := v.directory(b[156:190], size); err != nil {
		return nil, fmt.Errorf("volume %q: %w", v.Label, err)
	}
	return v, nil
}

// Open returns a reader of a file, and false if there is none of that name.
func (v *Volume) Open(name string) (*io.SectionReader, bool) {
	e, ok := v.files[name]
	if !ok {
		return nil, false
	}
	return io.NewSectionReader(v.r, e.at, e.size), true
}

// Names returns the names of all files, in order.
func (v *Volume) Names() []string { return slices.Sorted(maps.Keys(v.files)) }

// Extent returns where on the device a file is, in bytes: every file is in one
// piece.
func (v *Volume) Extent(name string) (at, size int64, ok bool) {
	e, ok := v.files[name]
	return e.at, e.size, ok
}

// place returns where the file of a directory record is (ECMA-119, 9.1).
func place(record []byte, size int64) (extent, error) {
	e := extent{int64(binary.LittleEndian.Uint32(record[2:])) * sectorSize, int64(binary.LittleEndian.Uint32(record[10:]))}
	if e.at > size || e.size > size-e.at {
		return e, fmt.Errorf("%d bytes at %d lie outside of the device's %d", e.size, e.at, size)
	}
	return e, nil
}

// Flags of a directory record (ECMA-119, 9.1.6).
const (
	flagDirectory = 0x02
	flagMore      = 0x80 // another record of the same file follows
)

func (v *Volume) directory(root []byte, size int64) error {
	e, err := place(root, size)
	if err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	if e.size%sectorSize != 0 || e.size > maxDirectory {
		return fmt.Errorf("root directory: %d bytes, want whole sectors up to %d", e.size, maxDirectory)
	}
	b := make([]byte, e.size)
	if _, err := v.r.ReadAt(b, e.at); err != nil {
		return fmt.Errorf("read root directory: %w", err)
	}
	v.files = make(map[string]extent)
	open := "" // name of a file of which another record follows
	for at := 0; at < len(b); {
		n := int(b[at])
		if n == 0 { // the rest of the sector is unused
			at = (at/sectorSize + 1) * sectorSize
			continue
		}
		if n < 34 || n > sectorSize-at%sectorSize || 33+int(b[at+32]) > n {
			return fmt.Errorf("root directory: bad record at byte %d", at)
		}
		record := b[at : at+n]
		at += n
		if record[25]&flagDirectory != 0 {
			continue
		}
		name := fileName(record)
		part, err := place(record, size)
		if err != nil {
			return fmt.Errorf("file %.80q: %w", name, err)
		}
		before, twice := v.files[name]
		switch {
		case open != "" && (name != open || part.at != before.at+before.size):
			return fmt.Errorf("file %.80q: it is in several pieces", open)
		case open == "" && twice:
			return fmt.Errorf("file %.80q is there twice", name)
		case open != "":
			part = extent{before.at, before.size + part.size}
		}
		v.files[name] = part
		open = ""
		if record[25]&flagMore != 0 {
			open = name
		}
	}
	if open != "" {
		return fmt.Errorf("file %.80q: its last record is missing", open)
	}
	return nil
}

// fileName returns the Rock Ridge name (RRIP 1.10, 4.1.4) of a record, or else
// the ISO 9660 one in lower case and without version.
func fileName(record []byte) string {
	n := 33 + int(record[32])
	name := strings.ToLower(string(record[33:n]))
	name, _, _ = strings.Cut(name, ";")
	// Names of even length are padded.
	use := record[min(n+1-int(record[32])%2, len(record)):]
	var ridge strings.Builder
	for len(use) >= 4 {
		size := int(use[2])
		if size < 4 || size > len(use) {
			break
		}
		if string(use[:2]) == "NM" && size > 5 && ridge.Len()+size-5 <= maxName {
			ridge.Write(use[5:size])
		}
		use = use[size:]
	}
	if ridge.Len() > 0 {
		return ridge.String()
	}
	return name
}
