package disk

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/sealift/sealift/image/manifest"
)

// Digests are what Split finds out about an image.
type Digests struct {
	Chunks []manifest.SHA256 // of each chunk; unset if the chunk is all zero
	SHA256 manifest.SHA256   // of the whole image
}

// Split reads size bytes, a multiple of ChunkSize, computes the digests, and
// writes the image to out compressed: each chunk is a zstd frame (RFC 8878) of
// its own, with a checksum. That lets all processors compress, with the same
// bytes whatever their number, and costs under 1% in size. out may be nil, if
// only the digests are wanted. progress is called with the bytes done so far,
// by one goroutine at a time; it may be nil.
func Split(ctx context.Context, image io.ReaderAt, size int64, out io.Writer, workers int, progress func(done int64)) (*Digests, error) {
	if size <= 0 || size%ChunkSize != 0 {
		return nil, fmt.Errorf("split image: size %d is not a positive multiple of %d", size, ChunkSize)
	}
	if workers < 1 {
		return nil, fmt.Errorf("split image: %d workers, want at least 1", workers)
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(workers),
		zstd.WithEncoderCRC(true), zstd.WithSingleSegment(true))
	if err != nil {
		return nil, fmt.Errorf("split image: %w", err)
	}
	d := &Digests{Chunks: make([]manifest.SHA256, size/ChunkSize)}
	if err := split(ctx, image, out, encoder, d, workers, progress); err != nil {
		return nil, errors.Join(fmt.Errorf("split image: %w", err), encoder.Close())
	}
	return d, encoder.Close()
}

// chunk is one on its way through the pipeline: read, then hashed and
// compressed by a worker, then written in order.
type chunk struct {
	index int
	data  []byte
	frame []byte
	done  chan struct{} // closed when frame is there
}

func split(ctx context.Context, image io.ReaderAt, out io.Writer, encoder *zstd.Encoder, d *Digests, workers int, progress func(done int64)) error {
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan *chunk)
	ordered := make(chan *chunk, workers) // bounds the chunks in memory
	free := make(chan []byte, 2*workers+2)
	hole := encoder.EncodeAll(make([]byte, ChunkSize), nil) // most of an image
	g.Go(func() error {
		defer close(work)
		defer close(ordered)
		whole := sha256.New()
		for i := range d.Chunks {
			c := &chunk{index: i, done: make(chan struct{})}
			select {
			case c.data = <-free:
			default:
				c.data = make([]byte, ChunkSize)
			}
			if n, err := image.ReadAt(c.data, int64(i)*ChunkSize); n < ChunkSize {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("read image at byte %d: %w", int64(i)*ChunkSize, err)
			}
			for _, to := range []chan *chunk{work, ordered} {
				select {
				case to <- c:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			whole.Write(c.data)
		}
		d.SHA256 = manifest.SHA256(whole.Sum(nil))
		return nil
	})
	for range workers {
		g.Go(func() error {
			for c := range work {
				if zero(c.data) {
					c.frame = hole
				} else {
					d.Chunks[c.index] = sha256.Sum256(c.data)
					if out != nil {
						c.frame = encoder.EncodeAll(c.data, nil)
					}
				}
				close(c.done)
			}
			return nil
		})
	}
	g.Go(func() error {
		var done int64
		for c := range ordered {
			select {
			case <-c.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if out != nil {
				if _, err := out.Write(c.frame); err != nil {
					return fmt.Errorf("write compressed image: %w", err)
				}
			}
			// The reader may still be hashing these bytes; it is also the one
			// that will overwrite them, after that.
			select {
			case free <- c.data:
			default:
			}
			done += ChunkSize
			if progress != nil {
				progress(done)
			}
		}
		return nil
	})
	return g.Wait()
}
