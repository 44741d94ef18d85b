package install

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/sealift/sealift/image/manifest"
)

const (
	testChunk = 64 << 10
	testDisk  = 8 << 20
)

// memory is a disk in memory with a fault to come.
type memory struct {
	data   []byte
	log    []string // operations in order
	failAt string   // the operation that fails
	flip   int64    // a byte that the disk does not keep; -1: none
}

func newMemory() *memory {
	d := make([]byte, testDisk)
	for i := range d {
		d[i] = 0xee // what was there before
	}
	return &memory{data: d, flip: -1}
}

var errDisk = errors.New("medium error")

func (d *memory) did(format string, args ...any) error {
	op := fmt.Sprintf(format, args...)
	d.log = append(d.log, op)
	if op == d.failAt {
		return errDisk
	}
	return nil
}

func (d *memory) ReadAt(b []byte, off int64) (int, error) {
	if err := d.did("read %d", off/testChunk); err != nil {
		return 0, err
	}
	return copy(b, d.data[off:]), nil
}

func (d *memory) WriteAt(b []byte, off int64) (int, error) {
	if err := d.did("write %d", off/testChunk); err != nil {
		return 0, err
	}
	copy(d.data[off:], b)
	if d.flip >= off && d.flip < off+int64(len(b)) {
		d.data[d.flip] ^= 1
	}
	return len(b), nil
}

func (d *memory) Zero(off, n int64) error {
	if err := d.did("zero %d", off/testChunk); err != nil {
		return err
	}
	clear(d.data[off : off+n])
	return nil
}

func (d *memory) Sync() error   { return d.did("sync") }
func (d *memory) Forget() error { return nil }
func (d *memory) Size() int64   { return int64(len(d.data)) }

// testImage returns an image of n chunks and its layout. Chunk 2 is zeros, and
// the ESP is in chunks 3 and 4.
func testImage(n int) ([]byte, manifest.Disk) {
	r := rand.NewChaCha8([32]byte{1})
	img := make([]byte, n*testChunk)
	r.Read(img)
	clear(img[2*testChunk : 3*testChunk])
	layout := manifest.Disk{
		Size: int64(len(img)), ChunkSize: testChunk,
		Partitions: []manifest.Partition{{
			Number: 1, Role: manifest.RoleESP, Type: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", GUID: "00000000-0000-4000-8000-000000000001",
			FirstLBA: 3 * testChunk / 512, Sectors: 2 * testChunk / 512,
		}},
	}
	for c := range slices.Chunk(img, testChunk) {
		d := manifest.SHA256(sha256.Sum256(c))
		if len(bytes.Trim(c, "\x00")) == 0 {
			d = manifest.SHA256{}
		}
		layout.Chunks = append(layout.Chunks, d)
	}
	return img, layout
}

func TestWritePutsTheWholeImageOnTheDisk(t *testing.T) {
	img, layout := testImage(40)
	d := newMemory()
	var last int64
	w := Writer{Disk: d, Layout: layout, Progress: func(done, total int64) { last = done }}
	if err := w.Write(bytes.NewReader(img)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.data[:len(img)], img) {
		t.Error("the disk does not hold the image")
	}
	if len(bytes.Trim(d.data[testDisk-tableSize:], "\x00")) != 0 {
		t.Error("an old backup partition table is left at the disk's end")
	}
	if last != layout.Size {
		t.Errorf("progress ended at %d of %d", last, layout.Size)
	}
	// The chunk with the partition table is the last thing written.
	first := slices.Index(d.log, "write 0")
	for _, op := range d.log[first+1:] {
		if strings.HasPrefix(op, "write") || strings.HasPrefix(op, "zero") {
			t.Errorf("%q came after the partition table", op)
		}
	}
	for _, op := range []string{"read 3", "read 4", "read 0", "read 39"} {
		if !slices.Contains(d.log, op) {
			t.Errorf("%s was never read back", op)
		}
	}
	if i := slices.Index(d.log[:first], "read 3"); i < 0 {
		t.Error("the ESP was not read back before the partition table was written")
	}
}

// brokenReader fails after n bytes.
type brokenReader struct {
	r io.Reader
	n int64
}

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.n <= 0 {
		return 0, errors.New("connection reset")
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.n)])
	b.n -= int64(n)
	return n, err
}

func TestWriteFaultsLeaveNoPartitionTable(t *testing.T) {
	img, layout := testImage(40)
	damaged := slices.Clone(img)
	damaged[7*testChunk+5] ^= 1
	dataInZeros := slices.Clone(img)
	dataInZeros[2*testChunk+9] = 1
	damagedFirst := slices.Clone(img)
	damagedFirst[600] ^= 1
	tests := map[string]struct {
		stream io.Reader
		disk   func(*memory)
		err    string
		kept   int // chunk that must not have been written, or 0
	}{
		"a chunk with a wrong digest is never written": {
			stream: bytes.NewReader(damaged), err: "chunk 7: got digest", kept: 7,
		},
		"data in a chunk of zeros is never written": {
			stream: bytes.NewReader(dataInZeros), err: "chunk 2: got data",
		},
		"a forged partition table is never written": {
			stream: bytes.NewReader(damagedFirst), err: "chunk 0: got digest",
		},
		"an image that ends early":              {stream: bytes.NewReader(img[:20*testChunk]), err: "the image ended early: in chunk 20 of 40"},
		"an image that ends within a chunk":     {stream: bytes.NewReader(img[:20*testChunk+1]), err: "the image ended early: in chunk 20 of 40"},
		"an image that is too long":             {stream: bytes.NewReader(append(slices.Clone(img), 0)), err: "longer than its 40 chunks"},
		"a stream that breaks":                  {stream: &brokenReader{bytes.NewReader(img), 9*testChunk + 3}, err: "read chunk 9 of 40: connection reset"},
		"a write error in the middle":           {stream: bytes.NewReader(img), disk: func(d *memory) { d.failAt = "write 11" }, err: "write chunk 11: medium error"},
		"a write error at the partition table":  {stream: bytes.NewReader(img), disk: func(d *memory) { d.failAt = "write 0" }, err: "write chunk 0: medium error"},
		"a zero error":                          {stream: bytes.NewReader(img), disk: func(d *memory) { d.failAt = "zero 2" }, err: "zero chunk 2: medium error"},
		"an ESP that the disk does not keep":    {stream: bytes.NewReader(img), disk: func(d *memory) { d.flip = 3*testChunk + 77 }, err: "read back: the disk does not keep what is written: chunk 3"},
		"a table that the disk does not keep":   {stream: bytes.NewReader(img), disk: func(d *memory) { d.flip = 520 }, err: "read back: the disk does not keep what is written: chunk 0"},
		"a read error while reading the ESP":    {stream: bytes.NewReader(img), disk: func(d *memory) { d.failAt = "read 4" }, err: "read back chunk 4: medium error"},
		"an image that is larger than the disk": {stream: bytes.NewReader(img), disk: func(d *memory) { d.data = d.data[:20*testChunk] }, err: "it has 2621440 bytes, the disk has 1310720"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := newMemory()
			if tt.disk != nil {
				tt.disk(d)
			}
			touched := d.Size() >= layout.Size
			err := (&Writer{Disk: d, Layout: layout}).Write(tt.stream)
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("got error %v, want one with %q", err, tt.err)
			}
			if touched && len(bytes.Trim(d.data[:tableSize], "\x00")) != 0 {
				t.Error("a partition table is left on the disk")
			}
			if !touched && d.data[0] != 0xee {
				t.Error("a disk that is too small was written to")
			}
			if tt.kept != 0 && slices.Contains(d.log, fmt.Sprintf("write %d", tt.kept)) {
				t.Errorf("chunk %d was written", tt.kept)
			}
		})
	}
}

// A power cut at any moment before the last step must leave a disk without a
// partition table.
func TestPowerCutLeavesNoPartitionTable(t *testing.T) {
	img, layout := testImage(40)
	whole := newMemory()
	if err := (&Writer{Disk: whole, Layout: layout}).Write(bytes.NewReader(img)); err != nil {
		t.Fatal(err)
	}
	changes := 0 // before the partition table is written
	for _, op := range whole.log[:slices.Index(whole.log, "write 0")] {
		if strings.HasPrefix(op, "write") || strings.HasPrefix(op, "zero") {
			changes++
		}
	}
	for n := range changes + 1 {
		cut := &cutDisk{memory: newMemory(), left: n}
		if err := (&Writer{Disk: cut, Layout: layout}).Write(bytes.NewReader(img)); err == nil {
			t.Fatalf("after %d changes: no error", n)
		}
		if b := cut.data[:34*512]; len(bytes.Trim(b, "\x00")) != 0 && b[0] != 0xee {
			t.Fatalf("after %d changes the disk has a partition table", n)
		}
	}
}

// cutDisk makes so many changes and then none.
type cutDisk struct {
	*memory
	left int
}

func (d *cutDisk) alive() bool { d.left--; return d.left >= 0 }

func (d *cutDisk) WriteAt(b []byte, off int64) (int, error) {
	if !d.alive() {
		return 0, errDisk
	}
	return d.memory.WriteAt(b, off)
}

func (d *cutDisk) Zero(off, n int64) error {
	if !d.alive() {
		return errDisk
	}
	return d.memory.Zero(off, n)
}
