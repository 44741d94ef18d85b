package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// File is what an image is written to. *os.File is one.
type File interface {
	io.ReaderAt
	io.WriterAt
}

// Window is the part of an image that belongs to one partition. It writes
// nothing outside of it, and it keeps an image sparse by not writing zeros
// where nothing was written before. It implements io.ReaderAt, io.WriterAt,
// io.WriteSeeker.
type Window struct {
	name string
	f    File
	off  int64
	size int64
	pos  int64
	end  int64 // one behind the last byte written
	// failed is the first error of a write. go-diskfs makes text of errors.
	failed error
}

// NewWindow returns a window on size bytes of f, which are all zero, from off
// on. The name is for errors.
func NewWindow(f File, name string, off, size int64) *Window {
	return &Window{name: name, f: f, off: off, size: size}
}

// Size returns the window's size in bytes.
func (w *Window) Size() int64 { return w.size }

// Written returns the length of the content: one behind the last byte that was
// written, zero or not.
func (w *Window) Written() int64 { return w.end }

// Write writes at the present position.
func (w *Window) Write(p []byte) (int, error) {
	n, err := w.WriteAt(p, w.pos)
	w.pos += int64(n)
	return n, err
}

// sparseUnit is how many zero bytes make a hole: the block of most file systems.
const sparseUnit = 4096

// WriteAt writes at an offset in the window.
func (w *Window) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > w.size || int64(len(p)) > w.size-off {
		return 0, fmt.Errorf("write %d bytes at %d: %s has only %d bytes", len(p), off, w.name, w.size)
	}
	fresh := max(off, w.end) // from here on nothing was written before
	done := 0
	for done < len(p) {
		at := off + int64(done)
		n := min(len(p)-done, int(sparseUnit-at%sparseUnit))
		piece := p[done : done+n]
		if at < fresh || !zero(piece) {
			// Take all pieces up to the next hole in one call.
			for done+n < len(p) {
				m := min(len(p)-done-n, sparseUnit)
				if off+int64(done+n) >= fresh && zero(p[done+n:done+n+m]) {
					break
				}
				n += m
			}
			m, err := w.f.WriteAt(p[done:done+n], w.off+at)
			if err != nil {
				err = fmt.Errorf("write %s: %w", w.name, err)
				if w.failed == nil {
					w.failed = err
				}
				return done + m, err
			}
		}
		done += n
	}
	w.end = max(w.end, off+int64(len(p)))
	return len(p), nil
}

// ReadAt reads at an offset in the window.
func (w *Window) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(w.f, w.off, w.size).ReadAt(p, off)
}

// Seek sets the position of Write. io.SeekEnd is relative to the content.
func (w *Window) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += w.pos
	case io.SeekEnd:
		offset += w.end
	default:
		return 0, errors.New("seek: bad whence")
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek in %s: negative position %d", w.name, offset)
	}
	w.pos = offset
	return offset, nil
}

// zero reports whether all bytes are zero: the first is, and each other one
// equals the one before it.
func zero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:])
}
