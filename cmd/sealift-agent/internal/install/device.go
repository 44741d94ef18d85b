package install

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/wipe"
)

// Device is a block device as a Disk.
type Device struct {
	*os.File
	size int64
}

// OpenDevice opens a disk for writing. It takes the disk exclusively, so a
// disk of which a partition is mounted is refused.
func OpenDevice(path string) (*Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return nil, fmt.Errorf("open the disk: %w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("open the disk: size of %s: %w", path, errors.Join(err, f.Close()))
	}
	return &Device{File: f, size: size}, nil
}

// Size returns the length in bytes.
func (d *Device) Size() int64 { return d.size }

// Zero makes n bytes at off read as zero, by the disk's own command where it
// has one.
func (d *Device) Zero(off, n int64) error { return wipe.Range(d.File, off, n) }

// Forget drops the device's clean pages from memory.
func (d *Device) Forget() error {
	if err := unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop the cache of %s: %w", d.Name(), err)
	}
	return nil
}
