// Package wipe fills ranges of block devices and image files with zeros, by
// the device's own command where it has one.
package wipe

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// chunk is the size of one write where zeros must be written out, in bytes.
const chunk = 1 << 20

// Range makes n bytes at offset off of f read as zero. f is open for writing;
// off and n are multiples of 512. On a block device it asks the kernel
// (BLKZEROOUT, which uses the device's WRITE ZEROES command or writes zero
// pages); in a regular file it punches a hole, so that a sparse image stays
// sparse. The result is durable only after f.Sync.
func Range(f *os.File, off, n int64) error {
	if off < 0 || n < 0 || off%512 != 0 || n%512 != 0 || off+n < off {
		return fmt.Errorf("zero %s: %d bytes at %d is not a range of 512-byte sectors", f.Name(), n, off)
	}
	if n == 0 {
		return nil
	}
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("zero %s: %w", f.Name(), err)
	}
	if st.Mode()&os.ModeDevice != 0 {
		err = zeroOut(f, off, n)
	} else if off+n > st.Size() {
		return fmt.Errorf("zero %s: %d bytes at %d end behind its %d bytes", f.Name(), n, off, st.Size())
	} else {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		err = writeOut(f, off, n)
	}
	if err != nil {
		return fmt.Errorf("zero %d bytes at %d of %s: %w", n, off, f.Name(), err)
	}
	return nil
}

func zeroOut(f *os.File, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&arg))); e != 0 {
		return e
	}
	return nil
}

func writeOut(f *os.File, off, n int64) error {
	zeros := make([]byte, min(n, chunk))
	for n > 0 {
		w, err := f.WriteAt(zeros[:min(n, chunk)], off)
		if err != nil {
			return err
		}
		off, n = off+int64(w), n-int64(w)
	}
	return nil
}
