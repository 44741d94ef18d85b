package imagetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/inspect"
)

// Layout of a GPT (UEFI 2.10, tables 5.5 and 5.7).
const (
	sector     = 512
	gptHeader  = 92
	gptArray   = 32 // sectors of the entry array
	tableBytes = (1 + gptArray) * sector
)

// copyChunk is how much of a disk is copied at once, bytes.
const copyChunk = 1 << 20

// writeDisk does to a blank disk of size bytes what an installer does: it
// copies the image, gives the disk its own GUID and moves the backup of the
// partition table to the disk's end. Empty places stay holes.
func writeDisk(ctx context.Context, path, image string, size int64, id guid.GUID) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write the disk: %w", err)
		}
	}()
	from, err := inspect.OpenDisk(image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if from.Size() > size {
		return fmt.Errorf("the image has %d bytes, the disk %d", from.Size(), size)
	}
	if err := copyData(ctx, to, from); err != nil {
		return err
	}
	return ownTable(to, size, id)
}

// source is a disk that knows its holes.
type source interface {
	io.ReaderAt
	Size() int64
	NextData(off int64) (from, to int64, err error)
}

func copyData(ctx context.Context, to io.WriterAt, from source) error {
	b := make([]byte, copyChunk)
	for at := int64(0); at < from.Size(); {
		start, end, err := from.NextData(at)
		if err != nil {
			return err
		}
		for start < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := b[:min(end-start, copyChunk)]
			if _, err := from.ReadAt(part, start); err != nil {
				return err
			}
			if !allZero(part) {
				if _, err := to.WriteAt(part, start); err != nil {
					return err
				}
			}
			start += int64(len(part))
		}
		at = max(end, at+1)
	}
	return nil
}

func allZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// readWriterAt is a disk.
type readWriterAt interface {
	io.ReaderAt
	io.WriterAt
}

// ownTable changes the primary partition table as an installer does, and writes
// its backup. It takes the image's own header and array, so that a prediction
// from the manifest is compared with what the image holds.
func ownTable(disk readWriterAt, size int64, id guid.GUID) error {
	table := make([]byte, tableBytes)
	if _, err := disk.ReadAt(table, sector); err != nil {
		return fmt.Errorf("read the partition table: %w", err)
	}
	h, array := table[:gptHeader], table[sector:]
	if string(h[:8]) != "EFI PART" {
		return errors.New("the image has no partition table")
	}
	le := binary.LittleEndian
	last := uint64(size/sector) - 1
	seal := func() {
		le.PutUint32(h[16:], 0)
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	}
	le.PutUint64(h[32:], last)
	le.PutUint64(h[48:], last-gptArray-1)
	copy(h[56:72], id[:])
	seal()
	if _, err := disk.WriteAt(table, sector); err != nil {
		return fmt.Errorf("write the partition table: %w", err)
	}
	le.PutUint64(h[24:], last)
	le.PutUint64(h[32:], 1)
	le.PutUint64(h[72:], last-gptArray)
	seal()
	backup := append(bytes.Clone(array), table[:sector]...)
	if _, err := disk.WriteAt(backup, size-tableBytes); err != nil {
		return fmt.Errorf("write the backup of the partition table: %w", err)
	}
	return nil
}
