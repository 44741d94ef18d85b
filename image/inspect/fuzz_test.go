package inspect

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/image/verity"
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
	n := int(min(int64(len(b)), max(0, p.size-off)))
	clear(b[:n])
	if off < int64(len(p.base)) {
		copy(b[:n], p.base[off:])
	}
	if end := p.at + int64(len(p.patch)); off < end && off+int64(n) > p.at {
		copy(b[max(0, p.at-off):n], p.patch[max(0, off-p.at):])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// FuzzReadTable, like the others, starts from a small table made on the spot:
// every worker makes it.
func FuzzReadTable(f *testing.F) {
	l, err := disk.Plan(guid.Derive("disk", nil), []disk.Partition{
		{Role: "a", Type: guid.Derive("type", nil), GUID: guid.Derive("a", nil), Size: 1 << 20},
		{Role: "b", Type: guid.Derive("type", nil), GUID: guid.Derive("b", nil), Size: 1 << 20},
	})
	if err != nil {
		f.Fatal(err)
	}
	d := zeroMemory(l.Size)
	if err := l.WriteTable(d); err != nil {
		f.Fatal(err)
	}
	if _, err := ReadTable(d); err != nil {
		f.Fatal(err)
	}
	f.Add(d.get(0, gptFirstUsable*SectorSize), d.get(l.Size-gptBackupTail*SectorSize, gptBackupTail*SectorSize), uint16(l.Size/SectorSize))
	f.Add([]byte{}, []byte{}, uint16(0))
	f.Add(make([]byte, 34*512), make([]byte, 33*512), uint16(100))
	f.Fuzz(func(t *testing.T, head, tail []byte, sectors uint16) {
		sectors %= 1 << 14
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
	const size = disk.MinESP
	made := zeroMemory(size)
	files := []disk.ESPFile{{Path: "/EFI/BOOT/BOOTX64.EFI", Data: bytes.Repeat([]byte("uki"), 1000)}}
	if err := disk.WriteESP(disk.NewWindow(made, "ESP", 0, size), files, [4]byte{1}, time.Unix(1e9, 0)); err != nil {
		f.Fatal(err)
	}
	if _, err := ReadFAT(made); err != nil {
		f.Fatal(err)
	}
	esp := made.get(0, 4<<20)
	data := int(32*SectorSize + 2*SectorSize*binary.LittleEndian.Uint32(esp[36:]))
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
	var b bytes.Buffer
	if _, err := verity.Write(f.Context(), &b, bytes.NewReader(make([]byte, 2*verity.BlockSize)), 2*verity.BlockSize, [32]byte{1}, 1, nil); err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Clone(b.Bytes()[:512]))
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
	tr := tree.New()
	for i := range 50 {
		if err := tr.WriteFile(fmt.Sprintf("usr/%d/file", i), bytes.Repeat([]byte{1}, 100*i), 0o755); err != nil {
			f.Fatal(err)
		}
	}
	if err := tr.Symlink("1/file", "usr/link"); err != nil {
		f.Fatal(err)
	}
	made := zeroMemory(1 << 20)
	w := disk.NewWindow(made, "root", 0, made.Size())
	if err := tr.WriteEROFS(w, tree.EROFSOptions{Epoch: 1, TempDir: f.TempDir()}); err != nil {
		f.Fatal(err)
	}
	root := made.get(0, w.Written())
	f.Add(uint32(1024), bytes.Clone(root[1024:1152]))
	f.Add(uint32(4096), bytes.Clone(root[4096:4096+256]))
	f.Add(uint32(len(root)-4096), bytes.Clone(root[len(root)-4096:]))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		data := newMemory(root)
		if int64(at) > data.Size() {
			return
		}
		data.put(int64(at), patch[:min(int64(len(patch)), data.size-int64(at))]...)
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
	f.Add(e.EncodeAll(make([]byte, 100), nil))
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

func FuzzAuthData(f *testing.F) {
	list := []byte("a signature list")
	made := make([]byte, 16, 64) // the time
	made = binary.LittleEndian.AppendUint32(made, 24+5)
	made = binary.LittleEndian.AppendUint32(made, 0x0ef10200) // revision and type of the certificate
	made = append(made, make([]byte, 16)...)                  // its GUID
	made = append(append(made, "PKCS7"...), list...)
	if got, err := authData(made); err != nil || !bytes.Equal(got, list) {
		f.Fatalf("got %q, %v, want %q", got, err, list)
	}
	f.Add(made)
	f.Add(made[:16+24])
	f.Add(append(bytes.Repeat([]byte{0xff}, 20), made[20:]...)) // a length beyond every file
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := authData(b)
		if err != nil {
			return
		}
		if len(got) > len(b)-16-24 || !bytes.HasSuffix(b, got) {
			t.Errorf("%d bytes of data in %d", len(got), len(b))
		}
		if n := binary.LittleEndian.Uint32(b[16:]); int(n) != len(b)-16-len(got) {
			t.Errorf("certificate of %d bytes before %d of %d", n, len(got), len(b))
		}
	})
}
