package demo

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
)

// logged is an entry of a log of writes: a write, or a flush after which what was
// written before is durable.
type logged struct {
	at    int64 // on the disk, bytes
	data  []byte
	flush bool
}

// readWriteLog reads a log in the form of the kernel's dm-log-writes
// (drivers/md/dm-log-writes.c), as QEMU writes it: a sector with magic and sector
// size, then for each entry a sector with place, length and flags, and the data.
// Discards are left out. A log that was cut off ends there.
func readWriteLog(t *testing.T, file string) []logged {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // only read
	const (
		magic     = 0x6a736677736872
		flush     = 1 << 0
		fua       = 1 << 1
		discard   = 1 << 2
		maxLength = 64 << 20
	)
	super := make([]byte, 28)
	if _, err := io.ReadFull(f, super); err != nil {
		t.Fatal(err)
	}
	sector := int64(binary.LittleEndian.Uint32(super[24:]))
	if binary.LittleEndian.Uint64(super) != magic || sector < 512 || sector > 4096 {
		t.Fatalf("%s begins with %x", file, super)
	}
	var all []logged
	for next := sector; ; {
		header := make([]byte, 32)
		_, err := f.ReadAt(header, next)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		at, n, flags := binary.LittleEndian.Uint64(header), int64(binary.LittleEndian.Uint64(header[8:])), binary.LittleEndian.Uint64(header[16:])
		if n < 0 || n*sector > maxLength || flags&^(flush|fua|discard) != 0 || n == 0 && flags == 0 {
			t.Fatalf("%s: the entry at %d is %x", file, next, header)
		}
		next += sector
		if flags&discard != 0 {
			continue
		}
		// A flush comes before the data of its entry, FUA after it.
		if flags&flush != 0 {
			all = append(all, logged{flush: true})
		}
		if n > 0 {
			e := logged{at: int64(at) * sector, data: make([]byte, n*sector)}
			if _, err := f.ReadAt(e.data, next); errors.Is(err, io.EOF) {
				return all
			} else if err != nil {
				t.Fatal(err)
			}
			next += n * sector
			all = append(all, e)
		}
		if flags&fua != 0 {
			all = append(all, logged{flush: true})
		}
	}
}
