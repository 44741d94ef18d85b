package gpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is a disk or an image file that is open for writing; *os.File is one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error // returns when everything written is durable
}

// Write stores the table on a disk of that size in bytes: the backup at the
// disk's end, then the protective MBR and the primary, each made durable
// before the next. At every moment one whole copy is on the disk: the old
// primary until the backup is durable, then the new backup. A table that was
// read from the backup because the primary is damaged has the backup written
// last.
func Write(d Device, size int64, t *Table) error {
	if size < 3*SectorSize {
		return fmt.Errorf("write partition table: a disk of %d bytes is too small", size)
	}
	last := uint64(size/SectorSize) - 1
	primary, backup, err := t.encode(last)
	if err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	mbr := make([]byte, SectorSize)
	if _, err := d.ReadAt(mbr, 0); err != nil {
		return fmt.Errorf("write partition table: read LBA 0: %w", err)
	}
	protect(mbr, last)
	type write struct {
		what string
		data []byte
		at   int64
	}
	parts := []write{
		{"backup", backup, size/SectorSize*SectorSize - int64(len(backup))},
		{"protective MBR", mbr, 0},
		{"primary", primary, SectorSize},
	}
	if t.backupOnly {
		parts = append(parts[1:], parts[0])
	}
	for _, part := range parts {
		if _, err := d.WriteAt(part.data, part.at); err != nil {
			return fmt.Errorf("write partition table: %s: %w", part.what, err)
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("write partition table: sync %s: %w", part.what, err)
		}
	}
	return nil
}

// protect makes the partition records of an MBR protective (UEFI 2.10, 5.2.3)
// and keeps the boot code before them.
func protect(mbr []byte, last uint64) {
	clear(mbr[446:510])
	record := mbr[446:]
	copy(record[1:], []byte{0x00, 0x02, 0x00}) // CHS of LBA 1
	record[4] = 0xee
	copy(record[5:], []byte{0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(record[8:], 1)
	binary.LittleEndian.PutUint32(record[12:], uint32(min(last, 0xffffffff)))
	mbr[510], mbr[511] = 0x55, 0xaa
}

// Announce tells the kernel of a partition that was added to a disk in use
// (BLKPG_ADD_PARTITION). Reread does not work while another partition of the
// disk is open. A partition that the kernel knows already is no error if it
// is in the same place.
func Announce(disk *os.File, p Partition) error {
	arg := unix.BlkpgPartition{Start: p.Offset(), Length: p.Size(), Pno: int32(p.Number)}
	op := unix.BlkpgIoctlArg{
		Op:      unix.BLKPG_ADD_PARTITION,
		Datalen: int32(unsafe.Sizeof(arg)),
		Data:    (*byte)(unsafe.Pointer(&arg)),
	}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&op)))
	// EBUSY means that the number is taken or the space overlaps.
	if e == unix.EBUSY && known(disk, p) {
		return nil
	}
	if e != 0 {
		return fmt.Errorf("add partition %d of %s to the kernel: %w", p.Number, disk.Name(), e)
	}
	return nil
}

// known reports whether the kernel has that partition of the disk, by sysfs.
func known(disk *os.File, p Partition) bool {
	var st unix.Stat_t
	if err := unix.Fstat(int(disk.Fd()), &st); err != nil {
		return false
	}
	dirs, err := filepath.Glob(fmt.Sprintf("/sys/dev/block/%d:%d/*/partition", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return false
	}
	for _, f := range dirs {
		same := true
		for name, want := range map[string]uint64{
			"partition": uint64(p.Number),
			"start":     p.First,
			"size":      p.Last - p.First + 1,
		} {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(f), name))
			same = same && err == nil && strings.TrimSpace(string(b)) == strconv.FormatUint(want, 10)
		}
		if same {
			return true
		}
	}
	return false
}

// Reread makes the kernel read a disk's table again (BLKRRPART). It fails
// with EBUSY while a partition of the disk is open.
func Reread(disk *os.File) error {
	if _, err := unix.IoctlRetInt(int(disk.Fd()), unix.BLKRRPART); err != nil && !errors.Is(err, unix.ENOTTY) {
		return fmt.Errorf("reread partition table of %s: %w", disk.Name(), err)
	}
	return nil
}
