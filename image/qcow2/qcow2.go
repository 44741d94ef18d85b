// Package qcow2 writes disk images in QEMU's qcow2 format, version 3, with
// zstd-compressed clusters, and reads back what it wrote. Write and Open are the
// ways in. The format is described in QEMU's docs/interop/qcow2.rst.
//
// Only what a finished, read-only base image needs is written: no snapshots,
// no backing file, no encryption, no bitmaps. Clusters of zeros take no space.
// Equal input gives equal bytes, whatever the number of workers.
//
// The format's older compression, raw deflate with a window of 4 KiB, would be
// read by QEMU before 5.1 (2020), too; zstd is smaller and several times faster
// to read.
package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

// Sizes of the format that this package chooses, in bytes.
const (
	clusterBits = 16 // QEMU's default
	clusterSize = 1 << clusterBits
	sectorSize  = 512

	l2Entries    = clusterSize / 8 // in one L2 table
	refcountBits = 16
	refcounts    = clusterSize * 8 / refcountBits // in one refcount block
)

// batch is how many clusters are read and compressed at a time.
const batch = 64

// MaxSize bounds the size of a disk, in bytes: QEMU limits the L1 table to
// 32 MiB, and this package is content with one cluster for it.
const MaxSize = clusterSize / 8 * l2Entries * clusterSize

// Parts of an L2 table entry.
const (
	flagCopied     = 1 << 63 // reference count is exactly one
	flagCompressed = 1 << 62
	// sectorShift is where a compressed cluster's descriptor has the number
	// of additional sectors.
	sectorShift = 62 - (clusterBits - 8)
)

// Write writes the size bytes of disk, a multiple of 512, as an image to out,
// which is empty, and returns the length of the image. progress is called with
// the bytes of the disk done so far, by one goroutine; it may be nil.
func Write(ctx context.Context, out io.WriterAt, disk io.ReaderAt, size int64, workers int, progress func(done int64)) (int64, error) {
	if size <= 0 || size%sectorSize != 0 || size > MaxSize {
		return 0, fmt.Errorf("write qcow2 image: size %d is not a positive multiple of %d up to %d", size, sectorSize, int64(MaxSize))
	}
	if workers < 1 {
		return 0, fmt.Errorf("write qcow2 image: %d workers, want at least 1", workers)
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(workers),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	if err != nil {
		return 0, fmt.Errorf("write qcow2 image: %w", err)
	}
	w := newWriter(out, size)
	err = errors.Join(w.clusters(ctx, disk, encoder, workers, progress), encoder.Close())
	if err == nil {
		err = w.finish()
	}
	if err != nil {
		return 0, fmt.Errorf("write qcow2 image: %w", err)
	}
	return w.end, nil
}

// writer lays an image out as header, L1 table, all L2 tables, data, refcount
// table, refcount blocks. Where data ends is known only when it is written.
type writer struct {
	out  io.WriterAt
	size int64 // of the disk

	l2    []uint64 // all entries of all L2 tables, by guest cluster
	first int64    // offset of the first L2 table
	end   int64    // one behind the last byte in use
	refs  []uint16 // by host cluster
}

func newWriter(out io.WriterAt, size int64) *writer {
	clusters := (size + clusterSize - 1) / clusterSize
	tables := (clusters + l2Entries - 1) / l2Entries
	w := &writer{out: out, size: size, l2: make([]uint64, tables*l2Entries), first: 2 * clusterSize}
	w.end = w.first + tables*clusterSize
	for at := int64(0); at < w.end; at += clusterSize {
		w.refs = append(w.refs, 1)
	}
	return w
}

// cluster is one guest cluster on its way.
type cluster struct {
	data  []byte // as the guest sees it
	frame []byte // compressed; data itself if that does not pay; nil if all zero
}

func (w *writer) clusters(ctx context.Context, disk io.ReaderAt, encoder *zstd.Encoder, workers int, progress func(int64)) error {
	all := make([]cluster, batch)
	buf := make([]byte, batch*clusterSize)
	for at := int64(0); at < w.size; at += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := int(min(int64(len(buf)), w.size-at))
		if m, err := disk.ReadAt(buf[:n], at); m < n {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read disk at byte %d: %w", at, err)
		}
		// The disk may end within a cluster.
		count := (n + clusterSize - 1) / clusterSize
		clear(buf[n : count*clusterSize])
		for i := range count {
			all[i].data = buf[i*clusterSize : (i+1)*clusterSize]
		}
		if err := compress(all[:count], encoder, workers); err != nil {
			return err
		}
		for i, c := range all[:count] {
			if err := w.add(at/clusterSize+int64(i), c); err != nil {
				return err
			}
		}
		if progress != nil {
			progress(at + int64(n))
		}
	}
	return nil
}

func compress(all []cluster, encoder *zstd.Encoder, workers int) error {
	var next atomic.Int64
	var g errgroup.Group
	for range workers {
		g.Go(func() error {
			for i := int(next.Add(1)) - 1; i < len(all); i = int(next.Add(1)) - 1 {
				c := &all[i]
				if zero(c.data) {
					c.frame = nil
					continue
				}
				// A buffer of its own: data stays, in case that it is no gain.
				c.frame = encoder.EncodeAll(c.data, make([]byte, 0, clusterSize/2))
				if len(c.frame) > clusterSize-sectorSize {
					c.frame = c.data
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// add puts a cluster behind all that was added before.
func (w *writer) add(guest int64, c cluster) error {
	switch {
	case c.frame == nil:
		return nil
	case len(c.frame) == clusterSize:
		at := align(w.end)
		w.l2[guest] = uint64(at) | flagCopied
		if err := w.count(at, clusterSize); err != nil {
			return err
		}
		w.end = at + clusterSize
		return w.write(c.frame, at)
	}
	at := w.end
	w.end += int64(len(c.frame))
	// The descriptor counts whole sectors, and so does the reference count.
	last := (w.end - 1) / sectorSize
	w.l2[guest] = flagCompressed | uint64(last-at/sectorSize)<<sectorShift | uint64(at)
	if err := w.count(at, (last+1)*sectorSize-at); err != nil {
		return err
	}
	return w.write(c.frame, at)
}

// count adds one reference to each host cluster that the bytes lie in.
func (w *writer) count(at, n int64) error {
	for c := at / clusterSize; c <= (at+n-1)/clusterSize; c++ {
		for int64(len(w.refs)) <= c {
			w.refs = append(w.refs, 0)
		}
		if w.refs[c] == math.MaxUint16 {
			return fmt.Errorf("cluster %d has more than %d references", c, math.MaxUint16)
		}
		w.refs[c]++
	}
	return nil
}

// finish writes everything but the data.
func (w *writer) finish() error {
	// The refcount blocks count themselves and their table.
	table := align(w.end)
	used := table / clusterSize
	var blocks, tables int64
	for {
		b := (used + tables + blocks + refcounts - 1) / refcounts
		t := (b*8 + clusterSize - 1) / clusterSize
		if b == blocks && t == tables {
			break
		}
		blocks, tables = b, t
	}
	w.end = table + (tables+blocks)*clusterSize
	if err := w.count(table, w.end-table); err != nil {
		return err
	}
	be := binary.BigEndian
	b := make([]byte, (tables+blocks)*clusterSize)
	for i := range blocks {
		be.PutUint64(b[8*i:], uint64(table+(tables+i)*clusterSize))
	}
	for i, n := range w.refs {
		be.PutUint16(b[tables*clusterSize+2*int64(i):], n)
	}
	if err := w.write(b, table); err != nil {
		return err
	}

	b = make([]byte, w.first)
	l1 := b[clusterSize:]
	for i := range len(w.l2) / l2Entries {
		be.PutUint64(l1[8*i:], uint64(w.first+int64(i)*clusterSize)|flagCopied)
	}
	w.header(b, table, tables)
	if err := w.write(b, 0); err != nil {
		return err
	}
	b = make([]byte, 8*len(w.l2))
	for i, e := range w.l2 {
		be.PutUint64(b[8*i:], e)
	}
	return w.write(b, w.first)
}

// header fills in the header of version 3. What is not set is zero: there is
// no backing file, no encryption and no snapshot, and the list of header
// extensions is empty.
func (w *writer) header(b []byte, refcountTable, refcountClusters int64) {
	const (
		version         = 3
		headerLength    = 112
		compressionType = 1 << 3 // incompatible feature: there is a compression type
		typeZstd        = 1
		refcountOrder   = 4 // 1 << 4 bits
	)
	be := binary.BigEndian
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], version)
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], uint64(w.size))
	be.PutUint32(b[36:], uint32(len(w.l2)/l2Entries))
	be.PutUint64(b[40:], clusterSize) // L1 table
	be.PutUint64(b[48:], uint64(refcountTable))
	be.PutUint32(b[56:], uint32(refcountClusters))
	be.PutUint64(b[72:], compressionType)
	be.PutUint32(b[96:], refcountOrder)
	be.PutUint32(b[100:], headerLength)
	b[104] = typeZstd
}

func (w *writer) write(b []byte, at int64) error {
	_, err := w.out.WriteAt(b, at)
	return err
}

func align(n int64) int64 { return (n + clusterSize - 1) / clusterSize * clusterSize }

// zero reports whether all bytes are zero.
func zero(p []byte) bool {
	for ; len(p) >= 8; p = p[8:] {
		if binary.NativeEndian.Uint64(p) != 0 {
			return false
		}
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
