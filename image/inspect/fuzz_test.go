package inspect

import (
	"bytes"
	"encoding/binary"
	"io"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/tree"
)

// patched is a disk of which the fuzzer writes a part. The rest is that of a
// good one, so that the reader gets beyond the first check.
type patched struct {
	base  []byte
	at    int64
	patch []byte
	size  int64
}

func (p *patched) Size() int64 { return p.size }

func (p *patched) ReadAt(b []byte, off int64) (int, error) {
	for i := range b {
		at := off + int64(i)
		if at >= p.size {
			return i, io.EOF
		}
		b[i] = 0
		switch {
		case at >= p.at && at < p.at+int64(len(p.patch)):
			b[i] = p.patch[at-p.at]
		case at < int64(len(p.base)):
			b[i] = p.base[at]
		}
	}
	return len(b), nil
}

func FuzzReadTable(f *testing.F) {
	x := small(f)
	size := int64(len(x.disk))
	f.Add(bytes.Clone(x.disk[:gptFirstUsable*SectorSize]), bytes.Clone(x.disk[size-gptBackupTail*SectorSize:]), uint16(200))
	f.Add([]byte{}, []byte{}, uint16(0))
	f.Add(make([]byte, 34*512), make([]byte, 33*512), uint16(100))
	f.Fuzz(func(t *testing.T, head, tail []byte, sectors uint16) {
		data := make([]byte, int(sectors)*SectorSize)
		copy(data, head)
		if len(tail) <= len(data) {
			copy(data[len(data)-len(tail):], tail)
		}
		table, err := ReadTable(newMemory(data))
		if err != nil {
			return
		}
		for _, p := range table.Partitions {
			if p.First > p.Last || p.Last >= uint64(sectors) {
				t.Errorf("partition %+v on %d sectors", p, sectors)
			}
		}
		for _, g := range table.gaps() {
			if g[0] >= g[1] || g[1] > int64(len(data)) {
				t.Errorf("gap %v in %d bytes", g, len(data))
			}
		}
	})
}

func FuzzReadFAT(f *testing.F) {
	x := small(f)
	off, size := x.partition(f, manifest.RoleESP)
	esp := x.disk[off : off+size]
	data := 32*SectorSize + 2*fatSize(x, off)
	f.Add(bytes.Clone(esp[:512]), []byte{}, uint32(0))
	f.Add([]byte{}, bytes.Clone(esp[data:data+2048]), uint32(data))
	f.Add([]byte{}, bytes.Clone(esp[32*SectorSize:32*SectorSize+64]), uint32(32*SectorSize))
	f.Fuzz(func(t *testing.T, boot, patch []byte, at uint32) {
		d := &patched{base: bytes.Clone(esp[:data+8192]), at: int64(at), patch: patch, size: size}
		copy(d.base[:min(len(boot), 512)], boot)
		copy(d.base[6*SectorSize:], d.base[:SectorSize])
		v, err := ReadFAT(d)
		if err != nil {
			return
		}
		for _, e := range v.Entries {
			if e.Size > size || int64(len(e.chain))*v.cluster > size+v.cluster {
				t.Errorf("%s has %d bytes in %d clusters", e.Path, e.Size, len(e.chain))
			}
			if b, err := v.ReadFile(e, 1<<20); err == nil && int64(len(b)) != e.Size {
				t.Errorf("%s: read %d of %d bytes", e.Path, len(b), e.Size)
			}
		}
	})
}

func FuzzReadSuperblock(f *testing.F) {
	x := small(f)
	off, _ := x.partition(f, manifest.RoleRootVerityA)
	f.Add(bytes.Clone(x.disk[off : off+512]))
	f.Add([]byte("verity\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		data := make([]byte, 4096)
		copy(data, b)
		if sb, err := ReadSuperblock(newMemory(data)); err == nil && (sb.DataSize <= 0 || sb.DataSize%4096 != 0) {
			t.Errorf("data size %d", sb.DataSize)
		}
	})
}

func FuzzReadRoot(f *testing.F) {
	x := small(f)
	off, size := x.partition(f, manifest.RoleRootA)
	root := x.disk[off : off+size]
	blocks := int64(binary.LittleEndian.Uint32(root[1024+36:]))
	root = root[:blocks*4096]
	f.Add(uint32(1024), bytes.Clone(root[1024:1152]))
	f.Add(uint32(4096), bytes.Clone(root[4096:4096+256]))
	f.Add(uint32(len(root)-4096), bytes.Clone(root[len(root)-4096:]))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		data := newMemory(root)
		if int64(at) > data.Size() {
			return
		}
		copy(data.data[at:], patch)
		r, err := ReadRoot(t.Context(), data, RootOptions{Hash: true, Keep: func(path string) bool { return len(path) < 12 }})
		if err != nil {
			return
		}
		var total int64
		for _, file := range r.Files {
			total += file.Size
		}
		if total > maxSharing*r.Size || len(r.Files) > maxNodes {
			t.Errorf("%d files of %d bytes in %d", len(r.Files), total, r.Size)
		}
	})
}

func FuzzReadInitrd(f *testing.F) {
	for _, name := range []string{"init", "etc/x"} {
		tr := tree.New()
		if err := tr.WriteFile(name, []byte("content"), 0o755); err != nil {
			f.Fatal(err)
		}
		if err := tr.Symlink("init", "link"); err != nil {
			f.Fatal(err)
		}
		var plain, packed bytes.Buffer
		if err := tr.WriteCPIO(&plain, 1); err != nil {
			f.Fatal(err)
		}
		if err := tr.WriteInitrd(&packed, 1); err != nil {
			f.Fatal(err)
		}
		f.Add(plain.Bytes())
		f.Add(packed.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		files, kept, err := ReadInitrd(b, func(path string) bool { return len(path) < 8 })
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, file := range files {
			if seen[file.Path] || !filepath.IsAbs(file.Path) || filepath.Clean(file.Path) != file.Path {
				t.Errorf("path %q", file.Path)
			}
			seen[file.Path] = true
			if k, ok := kept[file.Path]; ok && int64(len(k)) != file.Size {
				t.Errorf("%s: kept %d of %d bytes", file.Path, len(k), file.Size)
			}
		}
	})
}

func FuzzOpenZstd(f *testing.F) {
	e, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	if err != nil {
		f.Fatal(err)
	}
	defer e.Close()
	one := e.EncodeAll(bytes.Repeat([]byte("disk"), 1000), nil)
	f.Add(one)
	f.Add(append(bytes.Clone(one), one...))
	f.Add(read(f, small(f).dir, image.FileDiskZstd)[:4096])
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := openZstd(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		defer d.decoder.Close()
		if d.Size() <= 0 || d.Size() > int64(len(d.frames))*maxFrame {
			t.Fatalf("%d bytes in %d frames", d.Size(), len(d.frames))
		}
		p := make([]byte, 100)
		for _, off := range []int64{0, d.Size() / 2, d.Size() - 1, d.Size()} {
			n, err := d.ReadAt(p, off)
			if err == nil && n != len(p) {
				t.Errorf("read %d bytes at %d of %d without an error", n, off, d.Size())
			}
		}
	})
}
