// Package install puts a signed image onto a blank machine: Flow.Run gets a
// manifest from its Source, which is the provisioner (Network) or an
// installation medium (Medium), verifies the signature before it takes anything
// else, puts the firmware into Secure Boot user mode, streams the image to the
// disk chunk by chunk (Writer), and leaves a record.
//
// A source is trusted with nothing: what is written was compared with a
// digest of the signed manifest first. A disk that is not completely written
// and read back has no partition table, so it never boots.
package install

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/sealift/sealift/image/manifest"
)

// Disk is the disk to write. Offsets and lengths are multiples of 512.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	// Zero makes n bytes at off read as zero.
	Zero(off, n int64) error
	// Sync returns when everything written is on stable storage.
	Sync() error
	// Forget makes later reads come from the disk itself and not from memory.
	Forget() error
	Size() int64 // bytes
}

// Writer writes one image to one disk.
type Writer struct {
	Disk   Disk
	Layout manifest.Disk // of a verified manifest
	// Progress is told after each chunk how many bytes of the image are done.
	// Optional.
	Progress func(done, total int64)
}

// tableSize is wiped at both ends of a disk, bytes. It covers the protective
// MBR and both GPTs (UEFI 2.10, 5.3) with sectors of up to 4096 bytes, and the
// superblocks of most things that a disk may have held.
const tableSize = 1 << 20

// sampleOneIn is how many written chunks outside the ESP share one read-back.
const sampleOneIn = 8

// Write writes the image, which it reads from r, uncompressed.
//
// It first wipes the partition tables. Each chunk is compared with its digest
// before it is written. The first chunk, which holds the partition table, and
// the last, which may hold its backup, are written after everything else is on
// stable storage and was read back. On any error the tables are wiped again.
func (w *Writer) Write(r io.Reader) (err error) {
	if w.Layout.Size > w.Disk.Size() {
		return fmt.Errorf("write image: it has %d bytes, the disk has %d", w.Layout.Size, w.Disk.Size())
	}
	if err := w.wipe(); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write image: %w", errors.Join(err, w.wipe()))
		}
	}()
	held, err := w.body(r)
	if err != nil {
		return err
	}
	if err := w.settle(); err != nil {
		return err
	}
	if err := w.readBack(func(i int) bool { return held[i] == nil && w.sampled(i) }); err != nil {
		return err
	}
	// Chunk 0 last: it makes the disk bootable.
	for _, i := range []int{len(w.Layout.Chunks) - 1, 0} {
		if err := w.put(i, held[i]); err != nil {
			return err
		}
		if err := w.settle(); err != nil {
			return err
		}
	}
	return w.readBack(func(i int) bool { return held[i] != nil })
}

// body writes every chunk but the first and the last, which it returns.
func (w *Writer) body(r io.Reader) (held map[int][]byte, err error) {
	// The decompressor works on the next chunk while this one is hashed and
	// written: two cores are what an edge box has.
	free := make(chan []byte, 3)
	for range cap(free) {
		free <- make([]byte, w.Layout.ChunkSize)
	}
	full := make(chan []byte, 1)
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		defer close(full)
		done <- read(r, len(w.Layout.Chunks), free, full, stop)
	}()
	defer func() {
		close(stop)
		for range full {
		}
		// What ended the reading is the cause; a short image is its symptom.
		if rerr := <-done; rerr != nil && (err == nil || errors.Is(err, errShort)) {
			err = rerr
		}
	}()
	held = map[int][]byte{}
	zeros := make([]byte, w.Layout.ChunkSize)
	last := len(w.Layout.Chunks) - 1
	for i, want := range w.Layout.Chunks {
		b, ok := <-full
		if !ok {
			return nil, errShort
		}
		if err := check(i, b, want, zeros); err != nil {
			return nil, err
		}
		switch {
		case i == 0 || i == last:
			held[i] = bytes.Clone(b)
		default:
			if err := w.put(i, b); err != nil {
				return nil, err
			}
		}
		free <- b
		if w.Progress != nil {
			w.Progress(int64(i+1)*w.Layout.ChunkSize, w.Layout.Size)
		}
	}
	return held, nil
}

var errShort = errors.New("the image ended early")

// read cuts r into n chunks, and fails if r is longer or shorter.
func read(r io.Reader, n int, free <-chan []byte, full chan<- []byte, stop <-chan struct{}) error {
	for i := range n {
		var b []byte
		select {
		case b = <-free:
		case <-stop:
			return nil
		}
		if _, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("%w: in chunk %d of %d", errShort, i, n)
			}
			return fmt.Errorf("read chunk %d of %d: %w", i, n, err)
		}
		select {
		case full <- b:
		case <-stop:
			return nil
		}
	}
	var more [1]byte
	switch _, err := io.ReadFull(r, more[:]); {
	case err == nil:
		return fmt.Errorf("the image is longer than its %d chunks", n)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("read the end of the image: %w", err)
	}
	return nil
}

// check compares a chunk with its digest; an unset digest stands for zeros.
func check(i int, b []byte, want manifest.SHA256, zeros []byte) error {
	if want.IsZero() {
		if !bytes.Equal(b, zeros) {
			return fmt.Errorf("chunk %d: got data, want only zero bytes", i)
		}
		return nil
	}
	if got := manifest.SHA256(sha256.Sum256(b)); got != want {
		return fmt.Errorf("chunk %d: got digest %s, want %s", i, got, want)
	}
	return nil
}

func (w *Writer) put(i int, b []byte) error {
	off := int64(i) * w.Layout.ChunkSize
	if w.Layout.Chunks[i].IsZero() {
		if err := w.Disk.Zero(off, w.Layout.ChunkSize); err != nil {
			return fmt.Errorf("zero chunk %d: %w", i, err)
		}
		return nil
	}
	if _, err := w.Disk.WriteAt(b, off); err != nil {
		return fmt.Errorf("write chunk %d: %w", i, err)
	}
	return nil
}

// settle makes what was written durable and the next reads honest.
func (w *Writer) settle() error {
	if err := w.Disk.Sync(); err != nil {
		return fmt.Errorf("sync the disk: %w", err)
	}
	if err := w.Disk.Forget(); err != nil {
		return fmt.Errorf("drop the disk's cache: %w", err)
	}
	return nil
}

// sampled chooses the chunks to read back: the whole ESP, because firmware
// reads it without any check of its own, and some of the rest, whose every
// block dm-verity checks at each read.
func (w *Writer) sampled(i int) bool {
	from := uint64(i) * uint64(w.Layout.ChunkSize) / 512
	to := from + uint64(w.Layout.ChunkSize)/512
	for _, p := range w.Layout.Partitions {
		if p.Role == manifest.RoleESP && from < p.FirstLBA+p.Sectors && p.FirstLBA < to {
			return true
		}
	}
	return rand.N(sampleOneIn) == 0
}

func (w *Writer) readBack(want func(i int) bool) error {
	b := make([]byte, w.Layout.ChunkSize)
	zeros := make([]byte, w.Layout.ChunkSize)
	for i, digest := range w.Layout.Chunks {
		if !want(i) {
			continue
		}
		if n, err := w.Disk.ReadAt(b, int64(i)*w.Layout.ChunkSize); n != len(b) {
			return fmt.Errorf("read back chunk %d: %w", i, err)
		}
		if err := check(i, b, digest, zeros); err != nil {
			return fmt.Errorf("read back: the disk does not keep what is written: %w", err)
		}
	}
	return nil
}

// wipe makes the disk unbootable: no MBR, no GPT, no backup GPT at the end of
// the disk or of the image.
func (w *Writer) wipe() error {
	for _, end := range []int64{tableSize, w.Layout.Size, w.Disk.Size()} {
		off := max(0, end-tableSize)
		if err := w.Disk.Zero(off, min(tableSize, w.Disk.Size()-off)); err != nil {
			return fmt.Errorf("wipe the partition table: %w", err)
		}
	}
	if err := w.Disk.Sync(); err != nil {
		return fmt.Errorf("wipe the partition table: sync: %w", err)
	}
	return nil
}
