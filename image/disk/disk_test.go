package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/manifest"
)

func needTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + name); err == nil {
			return path
		}
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("%s is required: %v", name, err)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(needTool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func pattern(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{2}).Read(b)
	return b
}

var sizes = Sizes{ESP: MinESP, Slot: 8 << 20, Verity: 1 << 20}

func layout(t *testing.T) *Layout {
	t.Helper()
	id, partitions, err := AB("amd64", sizes, [32]byte{0: 0xab, 16: 0xcd, 31: 1})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Plan(id, partitions)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// image writes a whole image: ESP, some data in root-a, the table.
func image(t *testing.T, path string, epoch time.Time, uki []byte) *Layout {
	t.Helper()
	l := layout(t)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(l.Size); err != nil {
		t.Fatal(err)
	}
	esp, err := sizes.Window(f, manifest.RoleESP)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteESP(esp, []ESPFile{{Path: "/EFI/BOOT/BOOTX64.EFI", Data: uki}}, [4]byte{1, 2, 3, 4}, epoch); err != nil {
		t.Fatal(err)
	}
	root, err := sizes.Window(f, manifest.RoleRootA)
	if err != nil {
		t.Fatal(err)
	}
	if p := l.Partitions[1]; p.Role != manifest.RoleRootA || root.off != int64(p.FirstLBA)*SectorSize || root.size != int64(p.Sectors)*SectorSize {
		t.Fatalf("window is at %d+%d, partition is %+v", root.off, root.size, p)
	}
	if _, err := root.Write(pattern(5 << 20)); err != nil {
		t.Fatal(err)
	}
	if err := l.WriteTable(f); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestToolsAcceptTheImage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	uki := pattern(20<<20 + 123)
	epoch := time.Date(2025, 6, 7, 8, 9, 10, 0, time.UTC)
	l := image(t, path, epoch, uki)

	if out := run(t, "sgdisk", "--verify", path); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk --verify:\n%s", out)
	}
	out := run(t, "sgdisk", "--print", path)
	for _, p := range l.Partitions {
		if !strings.Contains(out, p.Label) {
			t.Errorf("sgdisk does not show partition %s:\n%s", p.Label, out)
		}
	}
	if !strings.Contains(out, strings.ToUpper(l.GUID.String())) {
		t.Errorf("sgdisk does not show disk GUID %s:\n%s", l.GUID, out)
	}
	out = run(t, "sgdisk", "--info=2", path)
	for _, want := range []string{"AB000000-0000-0000-0000-000000000000", "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"} {
		if !strings.Contains(out, want) {
			t.Errorf("sgdisk --info=2 does not show %s:\n%s", want, out)
		}
	}
	if out := run(t, "sgdisk", "--info=3", path); !strings.Contains(out, "CD000000-0000-0000-0000-000000000001") {
		t.Errorf("the hash tree's GUID is not the second half of the root hash:\n%s", out)
	}

	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	esp := filepath.Join(dir, "esp")
	first := l.Partitions[0].FirstLBA * SectorSize
	if err := os.WriteFile(esp, b[first:first+l.Partitions[0].Sectors*SectorSize], 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "fsck.vfat", "-n", "-v", esp)
	out = run(t, "mdir", "-i", esp, "-/", "::")
	for _, want := range []string{"SEALIFT ESP", "0403-0201", "BOOTX64  EFI  20971643 2025-06-07   8:09"} {
		if !strings.Contains(out, want) {
			t.Errorf("mdir does not show %q:\n%s", want, out)
		}
	}
	if year := time.Now().Format("2006-"); year != "2025-" && strings.Contains(out, year) {
		t.Errorf("the clock is in the file system:\n%s", out)
	}
	got := filepath.Join(dir, "got")
	run(t, "mcopy", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI", got)
	if b, err := os.ReadFile(got); err != nil || !bytes.Equal(b, uki) {
		t.Errorf("mcopy gives another file (%v)", err)
	}
}

func TestEqualInputGivesEqualImages(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	epoch := time.Unix(1700000000, 0)
	image(t, a, epoch, pattern(1<<20))
	time.Sleep(2 * time.Second) // FAT's resolution: a clock in there would show
	image(t, b, epoch, pattern(1<<20))
	x, err1 := os.ReadFile(a)
	y, err2 := os.ReadFile(b)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Error("two images of the same input differ")
	}
}

func TestSplitIsTheSameForAnyNumberOfWorkers(t *testing.T) {
	data := make([]byte, 5*ChunkSize)
	copy(data, pattern(ChunkSize))
	copy(data[3*ChunkSize+17:], "not zero")
	var first []byte
	for _, workers := range []int{1, 2, 5} {
		var out bytes.Buffer
		var last int64
		d, err := Split(t.Context(), bytes.NewReader(data), int64(len(data)), &out, workers, func(n int64) { last = n })
		if err != nil {
			t.Fatal(err)
		}
		if last != int64(len(data)) {
			t.Errorf("last progress is %d, want %d", last, len(data))
		}
		for i, want := range []bool{false, true, true, false, true} {
			if d.Chunks[i].IsZero() != want {
				t.Errorf("chunk %d: digest unset is %t, want %t", i, d.Chunks[i].IsZero(), want)
			}
		}
		if first == nil {
			first = bytes.Clone(out.Bytes())
		} else if !bytes.Equal(first, out.Bytes()) {
			t.Errorf("%d workers give other bytes", workers)
		}
	}
	r, err := zstd.NewReader(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("decompressed image differs (%v)", err)
	}
	path := filepath.Join(t.TempDir(), "x.zst")
	if err := os.WriteFile(path, first, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "zstd", "-t", path)
}

func TestSplitStopsOnErrors(t *testing.T) {
	data := bytes.NewReader(make([]byte, 3*ChunkSize))
	if _, err := Split(t.Context(), data, 4*ChunkSize, io.Discard, 2, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short image: %v", err)
	}
	r, w := io.Pipe()
	full := errors.New("disk full")
	r.CloseWithError(full)
	if _, err := Split(t.Context(), data, 3*ChunkSize, w, 2, nil); !errors.Is(err, full) {
		t.Errorf("failing output: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Split(ctx, data, 3*ChunkSize, io.Discard, 2, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for _, size := range []int64{0, -ChunkSize, ChunkSize + 1} {
		if _, err := Split(t.Context(), data, size, io.Discard, 1, nil); err == nil {
			t.Errorf("size %d: accepted", size)
		}
	}
}

func TestPlanRefusesBadPartitions(t *testing.T) {
	a, b := guid.Derive("a", nil), guid.Derive("b", nil)
	for name, p := range map[string][]Partition{
		"none":               nil,
		"size zero":          {{Role: "x", GUID: b}},
		"size not aligned":   {{Role: "x", GUID: b, Size: Alignment + 512}},
		"negative size":      {{Role: "x", GUID: b, Size: -Alignment}},
		"no label":           {{GUID: b, Size: Alignment}},
		"label too long":     {{Role: strings.Repeat("x", 37), GUID: b, Size: Alignment}},
		"GUID of the disk":   {{Role: "x", GUID: a, Size: Alignment}},
		"GUID twice":         {{Role: "x", GUID: b, Size: Alignment}, {Role: "y", GUID: b, Size: Alignment}},
		"too many":           make([]Partition, 129),
		"larger than a disk": {{Role: "x", GUID: b, Size: 1 << 60}},
	} {
		if _, err := Plan(a, p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, _, err := AB("riscv64", Sizes{}, [32]byte{}); err == nil {
		t.Error("an architecture without partition types is accepted")
	}
}

func TestEverySizeOfESPPassesFsck(t *testing.T) {
	for _, size := range []int64{MinESP, 65 << 20, 127 << 20, 128 << 20, 260 << 20, 261 << 20, 512 << 20, 1 << 30} {
		path := filepath.Join(t.TempDir(), "esp")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		w := NewWindow(f, "esp", 0, size)
		file := []ESPFile{{Path: "/EFI/BOOT/BOOTX64.EFI", Data: pattern(100000)}}
		err = errors.Join(f.Truncate(size), WriteESP(w, file, [4]byte{}, time.Unix(1700000000, 0)), f.Close())
		if err != nil {
			t.Fatal(err)
		}
		run(t, "fsck.vfat", "-n", path)
	}
}

func TestWriteESPRefusesWhatDoesNotFit(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "esp"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file := []ESPFile{{Path: "/A", Data: make([]byte, MinESP)}}
	epoch := time.Unix(1700000000, 0)
	if err := WriteESP(NewWindow(f, "esp", 0, MinESP), file, [4]byte{}, epoch); err == nil || !strings.Contains(err.Error(), "do not fit") {
		t.Errorf("a file as large as the volume: %v", err)
	}
	if err := WriteESP(NewWindow(f, "esp", 0, MinESP-1), nil, [4]byte{}, epoch); err == nil {
		t.Error("a volume that is too small for FAT32 is accepted")
	}
	if err := WriteESP(NewWindow(f, "esp", 0, MinESP), nil, [4]byte{}, time.Unix(0, 0)); err == nil {
		t.Error("an epoch before FAT's is accepted")
	}
}

func TestAWindowStaysSparseAndInside(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "w"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 256<<10)
	w := NewWindow(f, "test", 8192, int64(len(want)))
	write := func(off int64, p []byte) {
		t.Helper()
		copy(want[off:], p)
		if n, err := w.WriteAt(p, off); err != nil || n != len(p) {
			t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		off := r.Int64N(int64(len(want)))
		p := make([]byte, r.IntN(min(30000, len(want)-int(off))+1))
		if r.IntN(2) == 0 {
			copy(p[len(p)/2:], pattern(len(p)/3))
		}
		write(off, p)
	}
	got := make([]byte, len(want))
	if _, err := w.ReadAt(got, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("content differs from what was written")
	}
	if _, err := w.WriteAt(make([]byte, 2), int64(len(want))-1); err == nil || !strings.Contains(err.Error(), "test has only") {
		t.Errorf("a write over the end: %v", err)
	}
	if _, err := w.Seek(-1, io.SeekStart); err == nil {
		t.Error("a negative position is accepted")
	}
	if n, err := w.Seek(-4, io.SeekEnd); err != nil || n != w.Written()-4 {
		t.Errorf("Seek from the end = %d, %v", n, err)
	}
}

func BenchmarkSplit(b *testing.B) {
	data := make([]byte, 16*ChunkSize)
	copy(data, bytes.Repeat(pattern(3000), 8000))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Split(b.Context(), bytes.NewReader(data), int64(len(data)), io.Discard, 2, nil); err != nil {
			b.Fatal(err)
		}
	}
}
