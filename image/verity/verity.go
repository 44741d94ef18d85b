// Package verity writes dm-verity hash trees (kernel documentation,
// "dm-verity"; cryptsetup "DMVerity") over a file system image: hash format 1,
// SHA-256, data and hash blocks of 4096 bytes, a superblock in front. Write is
// the way in. Everything random in the format, salt and UUID, is derived from
// the content or given by the caller, so equal data gives equal trees.
package verity

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/sealift/sealift/image/guid"
)

// BlockSize is the size of data and hash blocks, in bytes.
const BlockSize = 4096

// perBlock is how many digests a hash block holds.
const perBlock = BlockSize / sha256.Size

// batch is how many data blocks one worker hashes at a time: one leaf hash
// block's worth times eight, 4 MiB.
const batch = 8 * perBlock

// Tree says what was written.
type Tree struct {
	RootHash [32]byte
	Salt     [32]byte
	UUID     guid.GUID // of the superblock; derived from the root hash
	DataSize int64     // bytes covered
	Size     int64     // bytes written: superblock and tree
}

// Size returns how many bytes Write writes for dataSize bytes of data.
func Size(dataSize int64) int64 {
	blocks := int64(1) // superblock
	for _, n := range levels(dataSize / BlockSize) {
		blocks += n
	}
	return blocks * BlockSize
}

// levels returns the number of hash blocks of each level, leaves first. A
// single data block needs none: its digest is the root hash.
func levels(dataBlocks int64) []int64 {
	var out []int64
	for n := dataBlocks; n > 1; {
		n = (n + perBlock - 1) / perBlock
		out = append(out, n)
	}
	return out
}

// Write hashes size bytes of data with the given number of workers and writes
// superblock and tree to w, from its present position on. size must be a
// positive multiple of BlockSize. progress is called with the bytes hashed so
// far, by one goroutine at a time; it may be nil.
func Write(ctx context.Context, w io.Writer, data io.ReaderAt, size int64, salt [32]byte, workers int, progress func(done int64)) (*Tree, error) {
	if size <= 0 || size%BlockSize != 0 {
		return nil, fmt.Errorf("write verity tree: data size %d is not a positive multiple of %d", size, BlockSize)
	}
	if workers < 1 {
		return nil, fmt.Errorf("write verity tree: %d workers, want at least 1", workers)
	}
	digests, err := hashData(ctx, data, size/BlockSize, salt, workers, progress)
	if err != nil {
		return nil, fmt.Errorf("write verity tree: %w", err)
	}
	// The level above a level is made of the digests of its blocks. In the
	// file the top level comes first.
	var tree [][]byte
	for range levels(size / BlockSize) {
		level := make([]byte, (len(digests)+BlockSize-1)/BlockSize*BlockSize)
		copy(level, digests)
		tree = append(tree, level)
		digests = hashBlocks(make([]byte, 0, len(level)/perBlock), level, salt)
	}
	t := &Tree{RootHash: [32]byte(digests), Salt: salt, DataSize: size, Size: Size(size)}
	t.UUID = guid.Derive("dev.sealift.verity", t.RootHash[:])
	if _, err := w.Write(t.superblock()); err != nil {
		return nil, fmt.Errorf("write verity tree: %w", err)
	}
	for i := len(tree) - 1; i >= 0; i-- {
		if _, err := w.Write(tree[i]); err != nil {
			return nil, fmt.Errorf("write verity tree: %w", err)
		}
	}
	return t, nil
}

// hashData returns the digests of all data blocks, in order.
func hashData(ctx context.Context, data io.ReaderAt, blocks int64, salt [32]byte, workers int, progress func(done int64)) ([]byte, error) {
	digests := make([]byte, blocks*sha256.Size)
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan int64)
	done := make(chan int64, workers)
	g.Go(func() error {
		defer close(next)
		for first := int64(0); first < blocks; first += batch {
			if err := ctx.Err(); err != nil {
				return err
			}
			select {
			case next <- first:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			buf := make([]byte, batch*BlockSize)
			for first := range next {
				n := min(batch, blocks-first)
				p := buf[:n*BlockSize]
				if got, err := data.ReadAt(p, first*BlockSize); got < len(p) {
					if errors.Is(err, io.EOF) {
						err = io.ErrUnexpectedEOF
					}
					return fmt.Errorf("read data at byte %d: %w", first*BlockSize, err)
				}
				hashBlocks(digests[first*sha256.Size:first*sha256.Size], p, salt)
				select {
				case done <- n * BlockSize:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	}
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		var sum int64
		for n := range done {
			sum += n
			if progress != nil {
				progress(sum)
			}
		}
	}()
	err := g.Wait()
	close(done)
	<-reported
	return digests, err
}

// hashBlocks appends the digest of each block of p to dst: in format 1 the
// salt comes before the block.
func hashBlocks(dst, p []byte, salt [32]byte) []byte {
	h := sha256.New()
	for ; len(p) > 0; p = p[BlockSize:] {
		h.Reset()
		h.Write(salt[:])
		h.Write(p[:BlockSize])
		dst = h.Sum(dst)
	}
	return dst
}

// superblock returns the first hash block, as veritysetup writes it.
func (t *Tree) superblock() []byte {
	b := make([]byte, BlockSize)
	le := binary.LittleEndian
	copy(b, "verity\x00\x00")
	le.PutUint32(b[8:], 1)  // version of the superblock
	le.PutUint32(b[12:], 1) // hash type: salt first
	uuid := t.UUID.Bytes()
	copy(b[16:], uuid[:])
	copy(b[32:], "sha256")
	le.PutUint32(b[64:], BlockSize)
	le.PutUint32(b[68:], BlockSize)
	le.PutUint64(b[72:], uint64(t.DataSize/BlockSize))
	le.PutUint16(b[80:], uint16(len(t.Salt)))
	copy(b[88:], t.Salt[:])
	return b
}
