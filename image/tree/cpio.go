package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"
)

// WriteCPIO writes the tree as an initramfs archive: cpio "newc" (Linux
// Documentation/driver-api/early-userspace/buffer-format.rst) with a trailer.
// Epoch is every node's modification time in Unix seconds; the format holds
// 32 bits of it. Inode numbers count up in path order.
func (t *Tree) WriteCPIO(w io.Writer, epoch int64) error {
	if epoch < 0 || epoch > 1<<32-1 {
		return fmt.Errorf("write cpio: epoch %d does not fit the format", epoch)
	}
	rw := cpio.Newc.Writer(w)
	ino := uint64(0)
	err := t.Walk(func(name string, n *Node) error {
		ino++
		r := cpio.Record{Info: cpio.Info{
			Name:  name,
			Ino:   ino,
			Mode:  uint64(unixMode(n.mode)),
			NLink: 1,
			MTime: uint64(epoch),
		}}
		switch {
		case n.IsDir():
			r.NLink = 2
		case n.mode&fs.ModeSymlink != 0:
			r = cpio.StaticRecord([]byte(n.target), r.Info)
		default:
			if n.size > 1<<32-1 {
				return fmt.Errorf("%s: %d bytes do not fit the format", name, n.size)
			}
			c, err := n.Open()
			if err != nil {
				return err
			}
			r.FileSize = uint64(n.size)
			// The writer closes what it has written whole; a reader of the
			// exact length keeps that, and the file's own Close, in our hands.
			r.ReaderAt = io.NewSectionReader(c, 0, n.size)
			return errors.Join(rw.WriteRecord(r), c.Close())
		}
		return rw.WriteRecord(r)
	})
	if err != nil {
		return fmt.Errorf("write cpio: %w", err)
	}
	if err := rw.WriteRecord(cpio.TrailerRecord); err != nil {
		return fmt.Errorf("write cpio: trailer: %w", err)
	}
	return nil
}

// WriteInitrd is WriteCPIO compressed with zstd (RFC 8878) at its best level.
// One encoder thread, so that the bytes do not depend on the number of CPUs.
// The window is 8 MiB, what Linux reserves for an initramfs.
func (t *Tree) WriteInitrd(w io.Writer, epoch int64) error {
	z, err := zstd.NewWriter(w,
		zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(8<<20))
	if err != nil {
		return fmt.Errorf("write initrd: %w", err)
	}
	if err := t.WriteCPIO(z, epoch); err != nil {
		return fmt.Errorf("write initrd: %w", errors.Join(err, z.Close()))
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("write initrd: %w", err)
	}
	return nil
}

// unixMode returns st_mode.
func unixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	switch {
	case m.IsDir():
		u |= unix.S_IFDIR
	case m&fs.ModeSymlink != 0:
		u |= unix.S_IFLNK
	default:
		u |= unix.S_IFREG
	}
	if m&fs.ModeSetuid != 0 {
		u |= unix.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		u |= unix.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		u |= unix.S_ISVTX
	}
	return u
}
