package inspect

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/qcow2"
)

// Disk is the raw content of a disk.
type Disk interface {
	io.ReaderAt
	Size() int64 // bytes
}

// holes is what a Disk may offer on top: it knows where nothing was written.
type holes interface {
	// NextData returns the first run of bytes at or behind off that may be
	// other than zero, at most up to the disk's end. from is the disk's size if
	// there is none.
	NextData(off int64) (from, to int64, err error)
}

// OpenDisk opens a block device, or a file with a disk: raw, compressed with
// zstd (RFC 8878) as package disk writes it, or a qcow2 image as package qcow2
// writes it, told by its first bytes. Nothing is read ahead: memory does not grow
// with the disk.
func OpenDisk(path string) (*DiskFile, error) { return openDisk(path, "") }

// OpenArtifact opens the disk in an artifact of a kind: KindDisk, KindDiskZstd,
// KindQCOW2 or KindISO, whose disk is the compressed one on the medium. A file of
// another form is not taken for one of that kind.
func OpenArtifact(path, kind string) (*DiskFile, error) { return openDisk(path, kind) }

func openDisk(path, kind string) (_ *DiskFile, err error) {
	// A pipe would make a blocking open wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	device := info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
	if !info.Mode().IsRegular() && !device {
		return nil, fmt.Errorf("open disk %s: it is neither a regular file nor a block device", path)
	}
	size := info.Size()
	if device {
		if size, err = f.Seek(0, io.SeekEnd); err != nil {
			return nil, fmt.Errorf("open disk %s: find its size: %w", path, err)
		}
	}
	d := &DiskFile{f: f, Device: device, Kind: kind}
	if kind == "" {
		if d.Kind, err = kindOf(f, device); err != nil {
			return nil, fmt.Errorf("open disk %s: %w", path, err)
		}
	}
	raw := &rawDisk{f: f, size: size, whole: device}
	switch d.Kind {
	case manifest.KindDisk:
		d.disk = raw
	case manifest.KindDiskZstd:
		d.disk, err = openZstd(f, size)
	case manifest.KindQCOW2:
		d.disk, err = qcow2.Open(f, size)
	case manifest.KindISO:
		d.disk, err = openMediumDisk(raw)
	default:
		err = fmt.Errorf("a file of kind %.40q holds no disk", kind)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	return d, nil
}

// kindOf tells the kind of a disk by its first bytes. What a device holds is the
// disk, whatever it looks like.
func kindOf(f *os.File, device bool) (string, error) {
	var magic [4]byte
	n, err := f.ReadAt(magic[:], 0)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return "", err
	case n < len(magic) || device:
	case isZstd(magic):
		return manifest.KindDiskZstd, nil
	case string(magic[:]) == qcow2.Magic:
		return manifest.KindQCOW2, nil
	}
	return manifest.KindDisk, nil
}

// DiskFile is an opened disk.
type DiskFile struct {
	Device bool   // a block device
	Kind   string // of artifact that it was read as

	disk Disk
	f    *os.File
}

// ReadAt implements io.ReaderAt. It may be called by several goroutines.
func (d *DiskFile) ReadAt(p []byte, off int64) (int, error) { return d.disk.ReadAt(p, off) }

// Size returns the size of the raw content, bytes.
func (d *DiskFile) Size() int64 { return d.disk.Size() }

// NextData returns the next run of bytes that may be other than zero.
func (d *DiskFile) NextData(off int64) (from, to int64, err error) {
	if h, ok := d.disk.(holes); ok {
		return h.NextData(off)
	}
	return min(off, d.Size()), d.Size(), nil
}

// Close closes the file.
func (d *DiskFile) Close() error { return d.f.Close() }

// rawDisk is a file or device with the disk's very bytes.
type rawDisk struct {
	f     *os.File
	size  int64
	whole bool // a device: it has no holes to ask for
}

func (d *rawDisk) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(d.f, 0, d.size).ReadAt(p, off)
}

func (d *rawDisk) Size() int64 { return d.size }

// NextData asks the file system, which vouches that holes read as zero. One
// that cannot tell says that all is data.
func (d *rawDisk) NextData(off int64) (from, to int64, err error) {
	if off >= d.size {
		return d.size, d.size, nil
	}
	if d.whole {
		return off, d.size, nil
	}
	fd := int(d.f.Fd())
	from, err = unix.Seek(fd, off, unix.SEEK_DATA)
	if errors.Is(err, syscall.ENXIO) {
		return d.size, d.size, nil
	}
	if err != nil {
		return off, d.size, nil
	}
	to, err = unix.Seek(fd, from, unix.SEEK_HOLE)
	if err != nil || from < off || to <= from {
		return off, d.size, nil
	}
	return min(from, d.size), min(to, d.size), nil
}

// section is a part of a disk, such as a partition.
type section struct {
	disk Disk
	off  int64
	size int64
}

// sectionOf returns the part of d that begins at off; it must lie within d.
func sectionOf(d Disk, off, size int64) (*section, error) {
	if off < 0 || size < 0 || off > d.Size() || size > d.Size()-off {
		return nil, fmt.Errorf("bytes %d to %d are outside of the disk's %d", off, off+size, d.Size())
	}
	return &section{disk: d, off: off, size: size}, nil
}

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(s.disk, s.off, s.size).ReadAt(p, off)
}

func (s *section) Size() int64 { return s.size }

func (s *section) NextData(off int64) (from, to int64, err error) {
	h, ok := s.disk.(holes)
	if !ok {
		return min(off, s.size), s.size, nil
	}
	from, to, err = h.NextData(s.off + off)
	if err != nil {
		return 0, 0, err
	}
	return min(from-s.off, s.size), min(to-s.off, s.size), nil
}

// nextData is NextData of any disk.
func nextData(d Disk, off int64) (from, to int64, err error) {
	if h, ok := d.(holes); ok {
		return h.NextData(off)
	}
	return min(off, d.Size()), d.Size(), nil
}

// readAll reads exactly n bytes at off.
func readAll(r io.ReaderAt, off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	if err := readFull(r, b, off); err != nil {
		return nil, err
	}
	return b, nil
}

// readFull fills b from off on.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(b), off, err)
}

// zeroUnit is how much is read at a time where only zeros are expected, bytes.
const zeroUnit = 256 << 10

// firstNonZero returns the offset of the first byte in [off, end) that is not
// zero, or -1.
func firstNonZero(d Disk, off, end int64) (int64, error) {
	var buf []byte
	for off < end {
		from, to, err := nextData(d, off)
		if err != nil {
			return 0, err
		}
		if off = from; off >= end {
			break
		}
		if buf == nil {
			buf = make([]byte, zeroUnit)
		}
		b := buf[:min(int64(len(buf)), min(to, end)-off)]
		if len(b) == 0 {
			return 0, fmt.Errorf("read at %d: no progress", off)
		}
		if err := readFull(d, b, off); err != nil {
			return 0, err
		}
		if i := nonZero(b); i >= 0 {
			return off + int64(i), nil
		}
		off += int64(len(b))
	}
	return -1, nil
}

// nonZero returns the index of the first byte that is not zero, or -1.
func nonZero(b []byte) int {
	if allZero(b) {
		return -1
	}
	for i, c := range b {
		if c != 0 {
			return i
		}
	}
	return -1
}
