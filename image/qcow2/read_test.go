package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func open(t testing.TB, image []byte) (*Disk, error) {
	t.Helper()
	d, err := Open(bytes.NewReader(image), int64(len(image)))
	if err == nil {
		t.Cleanup(d.decoder.Close)
	}
	return d, err
}

// pieces calls do with the whole of d, in pieces that are no clusters. do must not
// keep them.
func pieces(d *Disk, do func(off int64, got []byte) error) error {
	p := make([]byte, 1e5)
	for off := int64(0); off < d.Size(); off += int64(len(p)) {
		p := p[:min(int64(len(p)), d.Size()-off)]
		if n, err := d.ReadAt(p, off); n < len(p) {
			return err
		}
		if err := do(off, p); err != nil {
			return err
		}
	}
	return nil
}

// same reports whether d is the other disk.
func same(d *Disk, other io.ReaderAt, size int64) (bool, error) {
	equal := d.Size() == size
	want := make([]byte, 1e5)
	err := pieces(d, func(off int64, got []byte) error {
		n, err := other.ReadAt(want[:len(got)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		equal = equal && bytes.Equal(want[:n], got)
		return nil
	})
	return equal, err
}

func TestTheReaderReadsWhatQEMUReads(t *testing.T) {
	for name, made := range disks() {
		t.Run(name, func(t *testing.T) {
			image := write(t, made(), 2)
			raw := filepath.Join(t.TempDir(), "disk.raw")
			qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", image, raw)
			want, err := os.Open(raw)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = want.Close() }()
			info, err := want.Stat()
			if err != nil {
				t.Fatal(err)
			}
			file, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			d, err := open(t, file)
			if err != nil {
				t.Fatal(err)
			}
			if equal, err := same(d, want, info.Size()); !equal || err != nil {
				t.Errorf("%d bytes differ from QEMU's %d, %v", d.Size(), info.Size(), err)
			}
			// What is not in a run of data is zero.
			for off := int64(0); off < d.Size(); {
				from, to, err := d.NextData(off)
				if err != nil || from < off || from < d.Size() && to <= from || to > d.Size() {
					t.Fatalf("data from %d to %d behind %d, %v", from, to, off, err)
				}
				hole := make([]byte, from-off) // of at most maxRun clusters
				if _, err := want.ReadAt(hole, off); err != nil || !zero(hole) {
					t.Errorf("there is data between %d and %d, %v", off, from, err)
				}
				off = max(to, from)
			}
			if n, err := d.ReadAt(make([]byte, 10), d.Size()-4); n != 4 || !errors.Is(err, io.EOF) {
				t.Errorf("at the end: %d bytes, %v", n, err)
			}
		})
	}
}

func TestTheReaderRefusesImagesByOthers(t *testing.T) {
	raw := inTurn().file(t)
	for name, args := range map[string][]string{
		"plain":      {"-o", "compat=1.1"},
		"compressed": {"-c", "-o", "compression_type=zstd"},
		"version 2":  {"-o", "compat=0.10"},
	} {
		out := filepath.Join(t.TempDir(), "disk.qcow2")
		qemuImg(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, out)...)
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTheReaderRefusesEveryOtherPlace(t *testing.T) {
	disk := inTurn()
	good, err := os.ReadFile(write(t, disk, 2))
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	l2 := func(b []byte, guest int) []byte { return b[2*clusterSize+8*guest:] }
	table := be.Uint64(good[48:])
	block := be.Uint64(good[table:])
	for name, c := range map[string]struct {
		edit func(b []byte) []byte
		want string
	}{
		"another magic":                {func(b []byte) []byte { b[3]++; return b }, "it begins with"},
		"version 2":                    {func(b []byte) []byte { b[7] = 2; return b }, "byte 7 is 0x02, want 0x03"},
		"a backing file":               {func(b []byte) []byte { b[15] = 112; return b }, "byte 15"},
		"a dirty bit":                  {func(b []byte) []byte { b[79] = 1; return b }, "byte 79"},
		"a header extension":           {func(b []byte) []byte { b[113] = 1; return b }, "byte 113"},
		"an empty disk":                {func(b []byte) []byte { be.PutUint64(b[24:], 0); return b }, "size 0"},
		"half a sector more":           {func(b []byte) []byte { b[31]++; return b }, "not a positive multiple"},
		"a disk beyond all":            {func(b []byte) []byte { be.PutUint64(b[24:], 1<<63); return b }, "not a positive multiple"},
		"tables that are not there":    {func(b []byte) []byte { be.PutUint64(b[24:], maxRead); return b }, "its tables need"},
		"a smaller disk":               {func(b []byte) []byte { be.PutUint64(b[24:], 30<<20); return b }, "behind the end of the disk"},
		"an L2 table elsewhere":        {func(b []byte) []byte { b[clusterSize+5]++; return b }, "byte 65541"},
		"two clusters at one place":    {func(b []byte) []byte { copy(l2(b, 1)[:8], l2(b, 0)); return b }, "cluster 1: its L2 entry"},
		"a cluster less":               {func(b []byte) []byte { be.PutUint64(l2(b, 1), 0); return b }, "where no cluster is"},
		"a cluster of zeros":           {func(b []byte) []byte { be.PutUint64(l2(b, 100), 1); return b }, "cluster 100"},
		"a cluster far behind the end": {func(b []byte) []byte { be.PutUint64(l2(b, 0), flagCompressed|1<<50); return b }, "the file has"},
		"a descriptor with a sector more": {func(b []byte) []byte {
			be.PutUint64(l2(b, 0), be.Uint64(l2(b, 0))+1<<sectorShift)
			return b
		}, "cluster 0: its L2 entry"},
		"another refcount":         {func(b []byte) []byte { b[block+1]++; return b }, "want 0x01"},
		"a refcount table moved":   {func(b []byte) []byte { b[54]++; return b }, "byte 54"},
		"data where no cluster is": {func(b []byte) []byte { b[table-1] = 1; return b }, "where no cluster is"},
		"data behind the end":      {func(b []byte) []byte { return append(b, 0) }, "bytes, want"},
		"an end that is missing":   {func(b []byte) []byte { return b[:len(b)-1] }, "outside of the file's"},
		"no tables":                {func(b []byte) []byte { return b[:clusterSize] }, "its tables need"},
		"nothing":                  {func(b []byte) []byte { return nil }, "outside of the file's"},
		"a frame with a checksum": {func(b []byte) []byte {
			b[int64(be.Uint64(l2(b, 0))&(1<<sectorShift-1))+4] |= 4
			return b
		}, "its header is not that of one segment"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, c.edit(bytes.Clone(good)))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "read qcow2 image: ") {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
	if _, err := open(t, good); err != nil {
		t.Fatal(err)
	}

	// A byte changed anywhere is an error, or another disk.
	r := rand.New(rand.NewPCG(2, 7))
	for i := range 300 {
		at := r.IntN(len(good))
		if i%3 == 0 { // header and tables, without the zeros
			at = r.IntN(112)
		}
		b := bytes.Clone(good)
		b[at] ^= byte(1 + r.IntN(255))
		d, err := open(t, b)
		if err != nil {
			continue
		}
		if equal, err := same(d, disk, disk.size); err == nil && equal {
			t.Errorf("a changed byte at %d of %d does not show", at, len(good))
		}
	}
}

func TestDataBehindTheEndOfTheDiskIsRefused(t *testing.T) {
	image, err := os.ReadFile(write(t, whole(noise(clusterSize)), 1))
	if err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint64(image[24:], clusterSize-sectorSize)
	d, err := open(t, image)
	if err != nil {
		t.Fatal(err)
	}
	if err := pieces(d, func(int64, []byte) error { return nil }); err == nil || !strings.Contains(err.Error(), "data behind the end of the disk") {
		t.Errorf("error is %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	disk := slices.Concat(text(2*clusterSize), noise(clusterSize), make([]byte, clusterSize), text(1000), make([]byte, 24))
	var made buffer
	if _, err := Write(f.Context(), &made, bytes.NewReader(disk), int64(len(disk)), 1, nil); err != nil {
		f.Fatal(err)
	}
	if _, err := open(f, made); err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), bytes.Clone(made[:112]), uint32(0))
	f.Add(uint32(2*clusterSize), bytes.Clone(made[2*clusterSize:2*clusterSize+48]), uint32(1))
	f.Add(uint32(3*clusterSize), bytes.Clone(made[3*clusterSize:3*clusterSize+64]), uint32(100))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte, cut uint32) {
		b := bytes.Clone(made)
		copy(b[min(int(at), len(b)):], patch)
		b = b[:len(b)-int(cut)%len(b)]
		d, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		defer d.decoder.Close()
		if d.Size() <= 0 || d.Size() > maxRead || len(d.l2)*8 > len(b) {
			t.Fatalf("a disk of %d bytes and %d entries in %d", d.Size(), len(d.l2), len(b))
		}
		p := make([]byte, 100)
		for _, off := range []int64{0, clusterSize - 50, d.Size() / 2, d.Size() - 1, d.Size()} {
			if n, err := d.ReadAt(p, off); err == nil && n != len(p) {
				t.Errorf("read %d bytes at %d of %d without an error", n, off, d.Size())
			}
		}
	})
}

// buffer is a file in memory.
type buffer []byte

func (b *buffer) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(*b) {
		*b = append(*b, make([]byte, end-len(*b))...)
	}
	return copy((*b)[off:], p), nil
}
