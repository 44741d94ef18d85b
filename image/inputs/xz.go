package inputs

import (
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz"
)

// maxDictionary bounds the dictionary of an xz stream, in bytes. xz -9 has
// 64 MiB; the format goes to 4 GiB, which a decoder has to set aside.
const maxDictionary = 128 << 20

// newXZReader reads one xz stream (The .xz File Format 1.2) within the memory
// of maxDictionary.
func newXZReader(r io.Reader) (io.Reader, error) {
	return xz.ReaderConfig{SingleStream: true}.NewReader(&xzGuard{r: r})
}

// xzGuard passes an xz stream on and refuses a block whose header asks for a
// larger dictionary, before a decoder behind it has seen the header: the
// decoder sets the memory aside as soon as it has. For that it follows the
// framing of blocks and of the LZMA2 chunks in them, without decoding any.
type xzGuard struct {
	r io.Reader

	state  func(*xzGuard) error // what to do with buf when it is full; nil: pass on the rest
	buf    []byte               // what of the present field was read
	want   int                  // length of the field
	skip   int64                // bytes of chunk data to pass over first
	check  int                  // length of a block's check
	packed int64                // bytes of the present block's data
	begun  bool
	err    error // of the framing; it sticks
}

func (g *xzGuard) Read(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	if !g.begun {
		g.begun = true
		g.expect(12, (*xzGuard).streamHeader)
	}
	n, err := g.r.Read(p)
	if g.err = g.follow(p[:n]); g.err != nil {
		return 0, g.err
	}
	return n, err
}

// expect makes state run once n more bytes were read.
func (g *xzGuard) expect(n int, state func(*xzGuard) error) {
	g.buf, g.want, g.state = g.buf[:0], n, state
}

func (g *xzGuard) follow(b []byte) error {
	for len(b) > 0 && g.state != nil {
		if g.skip > 0 {
			n := min(g.skip, int64(len(b)))
			g.skip, b = g.skip-n, b[n:]
			continue
		}
		n := min(g.want-len(g.buf), len(b))
		g.buf, b = append(g.buf, b[:n]...), b[n:]
		// A field of no bytes is complete as soon as it is expected.
		for g.state != nil && g.skip == 0 && len(g.buf) == g.want {
			if err := g.state(g); err != nil {
				return fmt.Errorf("xz: %w", err)
			}
		}
	}
	return nil
}

// streamHeader: section 2.1.1.
func (g *xzGuard) streamHeader() error {
	if string(g.buf[:6]) != "\xfd7zXZ\x00" {
		return errors.New("not an xz stream")
	}
	// Section 2.1.1.2: the size of each kind of check.
	sizes := []int{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}
	g.check = sizes[g.buf[7]&0x0f]
	g.expect(1, (*xzGuard).blockHeaderSize)
	return nil
}

// blockHeaderSize: section 3.1.1. Zero begins the index, after which no block
// can come.
func (g *xzGuard) blockHeaderSize() error {
	size := int(g.buf[0])
	if size == 0 {
		g.state = nil
		return nil
	}
	g.expect((size+1)*4-1, (*xzGuard).blockHeader)
	return nil
}

// blockHeader: sections 3.1.2 to 3.1.5.
func (g *xzGuard) blockHeader() error {
	b := g.buf
	flags := b[0]
	b = b[1:]
	next := func() (uint64, error) {
		v, n := uvarint(b)
		if n == 0 {
			return 0, errors.New("block header is damaged")
		}
		b = b[n:]
		return v, nil
	}
	for _, present := range []byte{0x40, 0x80} { // compressed and uncompressed size
		if flags&present != 0 {
			if _, err := next(); err != nil {
				return err
			}
		}
	}
	for range flags&3 + 1 {
		id, err := next()
		if err != nil {
			return err
		}
		size, err := next()
		if err != nil || size > uint64(len(b)) {
			return errors.New("block header is damaged")
		}
		props := b[:size]
		b = b[size:]
		if id != 0x21 || len(props) != 1 { // LZMA2
			return fmt.Errorf("filter %#x is not supported", id)
		}
		if dict := dictionary(props[0]); dict > maxDictionary {
			return fmt.Errorf("dictionary of %d bytes, at most %d allowed", dict, maxDictionary)
		}
	}
	g.packed = 0
	g.expect(1, (*xzGuard).control)
	return nil
}

// uvarint reads a multibyte integer: section 1.2. n is 0 if there is none.
func uvarint(b []byte) (v uint64, n int) {
	for i := range min(len(b), 9) {
		v |= uint64(b[i]&0x7f) << (7 * i)
		if b[i]&0x80 == 0 {
			return v, i + 1
		}
	}
	return 0, 0
}

// dictionary is the size that an LZMA2 property means: section 5.3.1.
func dictionary(p byte) int64 {
	switch {
	case p > 40:
		return 1 << 62
	case p == 40:
		return 1<<32 - 1
	}
	return (2 | int64(p&1)) << (p/2 + 11)
}

// control is the first byte of an LZMA2 chunk.
func (g *xzGuard) control() error {
	g.packed++
	switch c := g.buf[0]; {
	case c == 0: // the end of the block
		padding := int((4 - g.packed%4) % 4)
		g.expect(padding+g.check, (*xzGuard).blockEnd)
	case c == 1 || c == 2: // not compressed: size
		g.expect(2, (*xzGuard).plainChunk)
	case c >= 0x80: // low bits of the unpacked size, packed size, properties
		n := 4
		if c >= 0xc0 {
			n = 5
		}
		g.expect(n, (*xzGuard).packedChunk)
	default:
		return fmt.Errorf("chunk of unknown kind %#x", c)
	}
	return nil
}

func (g *xzGuard) plainChunk() error {
	g.chunk(len(g.buf), int64(g.buf[0])<<8|int64(g.buf[1])+1)
	return nil
}

func (g *xzGuard) packedChunk() error {
	g.chunk(len(g.buf), int64(g.buf[2])<<8|int64(g.buf[3])+1)
	return nil
}

// chunk passes over the data of a chunk with a header of that length.
func (g *xzGuard) chunk(header int, data int64) {
	g.packed += int64(header) + data
	g.skip = data
	g.expect(1, (*xzGuard).control)
}

func (g *xzGuard) blockEnd() error {
	g.expect(1, (*xzGuard).blockHeaderSize)
	return nil
}
