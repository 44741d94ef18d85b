package inspect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Limits of a compressed disk.
const (
	maxFrame  = 64 << 20 // content of one frame, bytes: the largest chunk that a manifest may have
	maxFrames = 1 << 20
	// frameCache is how many decompressed frames are kept: neighbours are read
	// one after the other, by a few goroutines.
	frameCache = 4
)

const zstdMagic = 0xfd2fb528 // RFC 8878, 3.1.1

func isZstd(b [4]byte) bool { return binary.LittleEndian.Uint32(b[:]) == zstdMagic }

// frame is one zstd frame: where it is in the file and in the content.
type frame struct {
	at, length int64 // compressed
	off, size  int64 // content
}

// zstdDisk gives random access to a disk that is compressed frame by frame.
type zstdDisk struct {
	r       io.ReaderAt
	frames  []frame
	size    int64
	decoder *zstd.Decoder

	mu    sync.Mutex
	cache []cached // the latest last; guarded by mu
}

type cached struct {
	index int
	data  []byte
}

// openZstd finds the frames, by their headers and block headers alone. A frame
// must say how large its content is, and that must not be over maxFrame, so
// that no frame asks for much memory. There may be nothing between or behind
// the frames.
func openZstd(r io.ReaderAt, length int64) (*zstdDisk, error) {
	d := &zstdDisk{r: r}
	for at := int64(0); at < length; {
		if len(d.frames) == maxFrames {
			return nil, fmt.Errorf("more than %d zstd frames", maxFrames)
		}
		f, err := readFrame(r, at, length)
		if err != nil {
			return nil, fmt.Errorf("zstd frame %d at byte %d: %w", len(d.frames), at, err)
		}
		f.off = d.size
		d.size += f.size
		at += f.length
		d.frames = append(d.frames, f)
	}
	if len(d.frames) == 0 {
		return nil, errors.New("no zstd frame")
	}
	var err error
	d.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxFrame), zstd.WithDecoderMaxWindow(maxFrame))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return d, nil
}

// readFrame walks one frame (RFC 8878, 3.1.1) without decompressing it.
func readFrame(r io.ReaderAt, at, end int64) (frame, error) {
	f := frame{at: at}
	b := make([]byte, min(zstd.HeaderMaxSize, end-at))
	if err := readFull(r, b, at); err != nil {
		return f, err
	}
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return f, err
	}
	switch {
	case h.Skippable:
		return f, errors.New("it is a skippable frame, which holds no content")
	case h.DictionaryID != 0:
		return f, errors.New("it needs a dictionary")
	case !h.HasFCS:
		return f, errors.New("it does not say how large its content is")
	case h.FrameContentSize > maxFrame:
		return f, fmt.Errorf("its content has %d bytes, at most %d allowed; decompress the image first", h.FrameContentSize, int64(maxFrame))
	case h.FrameContentSize == 0:
		return f, errors.New("it is empty")
	}
	f.size = int64(h.FrameContentSize)
	pos := at + int64(h.HeaderSize)
	for last := false; !last; {
		var block [3]byte
		if err := readFull(r, block[:], pos); err != nil {
			return f, err
		}
		v := uint32(block[0]) | uint32(block[1])<<8 | uint32(block[2])<<16
		last = v&1 != 0
		n := int64(v >> 3)
		switch v >> 1 & 3 {
		case 1:
			n = 1 // one byte that is repeated
		case 3:
			return f, errors.New("it has a block of the reserved type")
		}
		pos += int64(len(block)) + n
		if pos > end {
			return f, fmt.Errorf("it ends at byte %d, the file has %d", pos, end)
		}
	}
	if h.HasCheckSum {
		pos += 4
	}
	if pos > end {
		return f, fmt.Errorf("it ends at byte %d, the file has %d", pos, end)
	}
	f.length = pos - at
	// Without this bound, a frame of empty blocks would take as much memory as
	// the file has.
	if most := f.size + f.size/8 + 64<<10; f.length > most {
		return f, fmt.Errorf("it has %d bytes for a content of %d", f.length, f.size)
	}
	return f, nil
}

func (d *zstdDisk) Size() int64 { return d.size }

func (d *zstdDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read zstd disk: negative offset")
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= d.size {
			return done, io.EOF
		}
		i, found := slices.BinarySearchFunc(d.frames, at, func(f frame, at int64) int {
			switch {
			case f.off+f.size <= at:
				return -1
			case f.off > at:
				return 1
			}
			return 0
		})
		if !found {
			return done, fmt.Errorf("read zstd disk: no frame has byte %d", at)
		}
		data, err := d.content(i)
		if err != nil {
			return done, err
		}
		done += copy(p[done:], data[at-d.frames[i].off:])
	}
	return done, nil
}

// content returns the decompressed frame, which must not be changed.
func (d *zstdDisk) content(i int) ([]byte, error) {
	d.mu.Lock()
	for _, c := range d.cache {
		if c.index == i {
			d.mu.Unlock()
			return c.data, nil
		}
	}
	d.mu.Unlock()
	f := d.frames[i]
	packed, err := readAll(d.r, f.at, int(f.length))
	if err != nil {
		return nil, err
	}
	data, err := d.decoder.DecodeAll(packed, make([]byte, 0, f.size))
	if err != nil {
		return nil, fmt.Errorf("decompress zstd frame %d: %w", i, err)
	}
	if int64(len(data)) != f.size {
		return nil, fmt.Errorf("zstd frame %d has %d bytes, its header says %d", i, len(data), f.size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.cache) == frameCache {
		d.cache = slices.Delete(d.cache, 0, 1)
	}
	d.cache = append(d.cache, cached{i, data})
	return data, nil
}

// allZero reports whether all bytes are zero: the first is, and each other one
// equals the one before it.
func allZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:])
}
