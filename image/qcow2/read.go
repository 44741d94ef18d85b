package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Magic is what every qcow2 image begins with.
const Magic = "QFI\xfb"

// Limits of an image that is read.
const (
	// maxRead bounds the size of the disk, in bytes: 8 bytes for each cluster
	// are kept in memory.
	maxRead = 512 << 30
	// maxCached is how many decompressed clusters are kept: neighbours are read
	// one after the other, by a few goroutines.
	maxCached = 16
	maxRun    = 1024 // clusters of a run or a hole that are looked at in one go
)

// Disk gives random access to the disk in an image.
type Disk struct {
	r       io.ReaderAt
	length  int64 // of the image
	size    int64 // of the disk
	l2      []uint64
	decoder *zstd.Decoder

	mu    sync.Mutex
	cache []cached // the latest last; guarded by mu
}

type cached struct {
	guest int64
	data  []byte
}

// Open reads an image of length bytes that Write has made. Anything else is an
// error, be it a good image by another program: each byte of the file must be
// where Write puts it. So nothing hides between clusters, no two clusters are
// in one place, and neither time nor memory depends on what the tables claim.
// Clusters are decompressed only when they are read.
func Open(r io.ReaderAt, length int64) (*Disk, error) {
	d := &Disk{r: r, length: length}
	if err := d.open(); err != nil {
		return nil, fmt.Errorf("read qcow2 image: %w", err)
	}
	return d, nil
}

// open does what Write did, with the clusters as they are in the image, and
// compares.
func (d *Disk) open() error {
	head, err := d.read(0, 32)
	if err != nil {
		return err
	}
	if string(head[:len(Magic)]) != Magic {
		return fmt.Errorf("it begins with %q, want %q", head[:len(Magic)], Magic)
	}
	size := binary.BigEndian.Uint64(head[24:])
	if size == 0 || size%sectorSize != 0 || size > maxRead {
		return fmt.Errorf("size %d of the disk is not a positive multiple of %d up to %d", size, sectorSize, int64(maxRead))
	}
	d.size = int64(size)
	// Memory for the tables is taken only if the file has them.
	if need := 2*clusterSize + d.size/(clusterSize/8); need > d.length {
		return fmt.Errorf("its tables need %d bytes, the file has %d", need, d.length)
	}
	w := newWriter(discard{}, d.size)
	d.l2 = make([]uint64, len(w.l2))
	for i := 0; i < len(d.l2); i += l2Entries {
		b, err := d.read(w.first+8*int64(i), clusterSize)
		if err != nil {
			return err
		}
		for j := range l2Entries {
			d.l2[i+j] = binary.BigEndian.Uint64(b[8*j:])
		}
	}
	for guest, entry := range d.l2 {
		if entry == 0 {
			continue
		}
		if err := d.replay(w, int64(guest), entry); err != nil {
			return fmt.Errorf("cluster %d: %w", guest, err)
		}
	}
	if err := d.wantZeros(w.end, align(w.end)); err != nil {
		return err
	}
	w.out = comparer{d}
	if err := w.finish(); err != nil {
		return err
	}
	if w.end != d.length {
		return fmt.Errorf("it has %d bytes, want %d", d.length, w.end)
	}
	d.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(clusterSize), zstd.WithDecoderMaxWindow(clusterSize))
	return err
}

// replay adds the next cluster in the image to the writer, which must put it
// where the L2 entry has it.
func (d *Disk) replay(w *writer, guest int64, entry uint64) error {
	if guest*clusterSize >= d.size {
		return errors.New("it is behind the end of the disk")
	}
	c := cluster{frame: make([]byte, clusterSize)}
	if entry&flagCompressed != 0 {
		frame, err := d.frame(entry)
		if err != nil {
			return err
		}
		c.frame = frame
	} else if err := d.wantZeros(w.end, align(w.end)); err != nil {
		return err
	}
	if err := w.add(guest, c); err != nil {
		return err
	}
	if w.l2[guest] != entry {
		return fmt.Errorf("its L2 entry is %#x, want %#x", entry, w.l2[guest])
	}
	if w.end > d.length {
		return fmt.Errorf("it ends at byte %d, the file has %d", w.end, d.length)
	}
	return nil
}

// frame returns the zstd frame (RFC 8878, 3.1.1) of a compressed cluster. Its
// descriptor says only in which sectors it is, the frame itself how long it is.
func (d *Disk) frame(entry uint64) ([]byte, error) {
	at := int64(entry & (1<<sectorShift - 1))
	sectors := int64(entry&^flagCompressed>>sectorShift) + 1
	if at >= d.length {
		return nil, fmt.Errorf("it begins at byte %d, the file has %d", at, d.length)
	}
	b, err := d.read(at, min(sectors*sectorSize-at%sectorSize, clusterSize, d.length-at))
	if err != nil {
		return nil, err
	}
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return nil, fmt.Errorf("zstd frame: %w", err)
	}
	if h.Skippable || h.DictionaryID != 0 || h.HasCheckSum || !h.SingleSegment || !h.HasFCS || h.FrameContentSize != clusterSize {
		return nil, fmt.Errorf("zstd frame: its header is not that of one segment of %d bytes", clusterSize)
	}
	pos := h.HeaderSize
	for last := false; !last; {
		if pos+3 > len(b) {
			return nil, io.ErrUnexpectedEOF
		}
		v := int(b[pos]) | int(b[pos+1])<<8 | int(b[pos+2])<<16
		last = v&1 != 0
		n := v >> 3
		switch v >> 1 & 3 {
		case 1:
			n = 1 // one byte that is repeated
		case 3:
			return nil, errors.New("zstd frame: a block of the reserved type")
		}
		pos += 3 + n
	}
	if pos > len(b) || pos > clusterSize-sectorSize {
		return nil, fmt.Errorf("zstd frame: %d bytes, want at most %d", pos, min(len(b), clusterSize-sectorSize))
	}
	return b[:pos], nil
}

// read reads exactly n bytes of the image.
func (d *Disk) read(at, n int64) ([]byte, error) {
	if at < 0 || n > d.length || at > d.length-n {
		return nil, fmt.Errorf("bytes %d to %d are outside of the file's %d", at, at+n, d.length)
	}
	b := make([]byte, n)
	if m, err := d.r.ReadAt(b, at); int64(m) < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %d bytes at %d: %w", n, at, err)
	}
	return b, nil
}

// wantZeros wants zeros in less than a cluster of the image.
func (d *Disk) wantZeros(from, to int64) error {
	b, err := d.read(from, to-from)
	if err == nil && !zero(b) {
		err = fmt.Errorf("there is data between bytes %d and %d, where no cluster is", from, to)
	}
	return err
}

// discard is the out of a writer of which only the tables matter.
type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// comparer is the out of a writer of what must be in the image already.
type comparer struct{ d *Disk }

func (c comparer) WriteAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); done += clusterSize {
		want := p[done:min(len(p), done+clusterSize)]
		got, err := c.d.read(off+int64(done), int64(len(want)))
		if err != nil {
			return done, err
		}
		for i := range got {
			if got[i] != want[i] {
				return done, fmt.Errorf("byte %d is %#02x, want %#02x", off+int64(done+i), got[i], want[i])
			}
		}
	}
	return len(p), nil
}

// Size returns the size of the disk, bytes.
func (d *Disk) Size() int64 { return d.size }

// ReadAt implements io.ReaderAt on the disk. It may be called by several
// goroutines.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read qcow2 image: negative offset")
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= d.size {
			return done, io.EOF
		}
		part := p[done:min(int64(len(p)), int64(done)+clusterSize-at%clusterSize, int64(done)+d.size-at)]
		if d.l2[at/clusterSize] == 0 {
			clear(part)
		} else {
			data, err := d.content(at / clusterSize)
			if err != nil {
				return done, fmt.Errorf("read qcow2 image: cluster %d: %w", at/clusterSize, err)
			}
			copy(part, data[at%clusterSize:])
		}
		done += len(part)
	}
	return done, nil
}

// content returns a cluster of the disk, which must not be changed.
func (d *Disk) content(guest int64) ([]byte, error) {
	d.mu.Lock()
	for _, c := range d.cache {
		if c.guest == guest {
			d.mu.Unlock()
			return c.data, nil
		}
	}
	d.mu.Unlock()
	var data []byte
	var err error
	if entry := d.l2[guest]; entry&flagCompressed == 0 {
		data, err = d.read(int64(entry&^flagCopied), clusterSize)
	} else if data, err = d.frame(entry); err == nil {
		data, err = d.decoder.DecodeAll(data, make([]byte, 0, clusterSize))
	}
	if err != nil {
		return nil, err
	}
	if len(data) != clusterSize {
		return nil, fmt.Errorf("it has %d bytes, want %d", len(data), clusterSize)
	}
	if end := min(clusterSize, d.size-guest*clusterSize); !zero(data[end:]) {
		return nil, errors.New("there is data behind the end of the disk")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.cache) == maxCached {
		d.cache = slices.Delete(d.cache, 0, 1)
	}
	d.cache = append(d.cache, cached{guest, data})
	return data, nil
}

// NextData returns the first run of bytes at or behind off that may be other
// than zero. from is the disk's size if there is none. It looks at no more than
// maxRun clusters, and says of the next that it may be.
func (d *Disk) NextData(off int64) (from, to int64, err error) {
	begin := off / clusterSize
	i := begin
	for i < int64(len(d.l2)) && i < begin+maxRun && d.l2[i] == 0 {
		i++
	}
	j := min(i+1, int64(len(d.l2)))
	for j < int64(len(d.l2)) && j < i+maxRun && d.l2[j] != 0 {
		j++
	}
	return min(max(off, i*clusterSize), d.size), min(j*clusterSize, d.size), nil
}
