package disk

import (
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// full is a file on a file system that is full after so many writes.
type full struct{ left int }

func (f *full) ReadAt(p []byte, off int64) (int, error) { clear(p); return len(p), nil }

func (f *full) WriteAt(p []byte, off int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}

var _ io.ReaderAt = (*full)(nil)

func TestAFullFileSystemIsRecognised(t *testing.T) {
	for writes := range 12 {
		w := NewWindow(&full{writes}, "esp", 0, MinESP)
		if err := WriteESP(w, []ESPFile{{"/EFI/BOOT/BOOTX64.EFI", []byte("program")}}, [4]byte{}, time.Unix(1750000000, 0)); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("after %d writes the error is %v", writes, err)
		}
	}
	l := Layout{Size: 4 << 20}
	for writes := range 3 {
		if err := l.WriteTable(&full{writes}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("partition table, after %d writes: %v", writes, err)
		}
	}
}
