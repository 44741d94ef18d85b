package qcow2

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip("qemu-img is not installed")
	}
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
	return out
}

// noise is data that does not compress, text data that does.
func noise(n int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	r.Read(b)
	return b
}

func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString([]string{"seal", "lift ", "edge\n", "a", "0123456789"}[r.IntN(5)])
	}
	return b.Bytes()[:n]
}

// disk is what is not zero of a disk, by offset. Most of the largest is a hole, which
// must not take memory: under the race detector each byte takes several.
type disk struct {
	size  int64
	parts map[int64][]byte
}

// ReadAt implements io.ReaderAt.
func (d disk) ReadAt(p []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(p)), d.size-off)))
	clear(p[:n])
	for at, part := range d.parts {
		if from, to := max(at, off), min(at+int64(len(part)), off+int64(n)); from < to {
			copy(p[from-off:to-off], part[from-at:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// file returns the path of the disk as a raw image, with holes.
func (d disk) file(t *testing.T) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	err = f.Truncate(d.size)
	for at, part := range d.parts {
		_, failed := f.WriteAt(part, at)
		err = errors.Join(err, failed)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func whole(b []byte) disk { return disk{int64(len(b)), map[int64][]byte{0: b}} }

// inTurn has both kinds of data, and holes.
func inTurn() disk {
	return disk{40 << 20, map[int64][]byte{0: text(70000), 3 << 20: noise(200000), 3<<20 + 200000: text(3 << 20), 30 << 20: noise(1), 40<<20 - 7: noise(7)}}
}

// disks are the cases, by what they show.
func disks() map[string]func() disk {
	return map[string]func() disk{
		"nothing but zeros":             func() disk { return disk{size: 4 << 20} },
		"one sector":                    func() disk { return whole(noise(512)) },
		"an end within a cluster":       func() disk { return whole(text(5*clusterSize + 3*512)) },
		"what does not compress":        func() disk { return whole(noise(9 << 20)) },
		"what compresses, densely":      func() disk { return whole(text(20 << 20)) },
		"both kinds in turn, and holes": inTurn,
		"several L2 tables": func() disk {
			return disk{1200 << 20, map[int64][]byte{0: text(100), 512<<20 - 50: text(100), 1100 << 20: noise(clusterSize)}}
		},
	}
}

func write(t *testing.T, d disk, workers int) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	var last int64
	n, err := Write(t.Context(), f, d, d.size, workers, func(done int64) { last = done })
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if info.Size() != n || last != d.size {
		t.Errorf("the file has %d bytes, Write said %d; progress ended at %d of %d", info.Size(), n, last, d.size)
	}
	return f.Name()
}

func TestQEMUFindsTheDiskInTheImage(t *testing.T) {
	for name, made := range disks() {
		t.Run(name, func(t *testing.T) {
			disk := made()
			image := write(t, disk, 2)
			qemuImg(t, "compare", "-f", "raw", "-F", "qcow2", disk.file(t), image)
			if out := qemuImg(t, "check", image); !bytes.Contains(out, []byte("No errors were found on the image.")) {
				t.Errorf("qemu-img check: %s", out)
			}
			var check struct {
				Leaks       int `json:"leaks"`
				Corruptions int `json:"corruptions"`
				Errors      int `json:"check-errors"`
			}
			if err := json.Unmarshal(qemuImg(t, "check", "--output=json", image), &check); err != nil || check.Leaks+check.Corruptions+check.Errors != 0 {
				t.Errorf("qemu-img check: %+v, %v", check, err)
			}
			var info struct {
				Size int64 `json:"virtual-size"`
			}
			if err := json.Unmarshal(qemuImg(t, "info", "--output=json", image), &info); err != nil || info.Size != disk.size {
				t.Errorf("the disk has %d bytes, want %d (%v)", info.Size, disk.size, err)
			}
			if info := string(qemuImg(t, "info", image)); !strings.Contains(info, "compression type: zstd") || !strings.Contains(info, "refcount bits: 16") {
				t.Errorf("qemu-img info: %s", info)
			}
		})
	}
}

func TestTheNumberOfWorkersDoesNotShow(t *testing.T) {
	disk := inTurn()
	one, err1 := os.ReadFile(write(t, disk, 1))
	seven, err2 := os.ReadFile(write(t, disk, 7))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, seven) {
		t.Error("images by one and by seven workers differ")
	}
	if len(one) > 6*clusterSize+200000+2<<20 {
		t.Errorf("the image has %d bytes: holes or compression are missing", len(one))
	}
}

func TestWhatCannotBeWrittenIsRefused(t *testing.T) {
	full := errors.New("no space left on device")
	for name, c := range map[string]struct {
		size    int64
		workers int
		out     writerAt
		want    string
	}{
		"no size":              {0, 1, nil, "size 0"},
		"half a sector":        {256, 1, nil, "size 256"},
		"more than one L1":     {MaxSize + 512, 1, nil, "up to"},
		"no workers":           {512, 0, nil, "0 workers"},
		"a disk that is short": {4096, 1, func([]byte, int64) (int, error) { return 0, nil }, "unexpected EOF"},
		"a full file system":   {512, 1, func([]byte, int64) (int, error) { return 0, full }, full.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Write(t.Context(), c.out, bytes.NewReader(noise(512)), c.size, c.workers, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "write qcow2 image: ") {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Write(ctx, nil, bytes.NewReader(noise(512)), 512, 1, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

type writerAt func([]byte, int64) (int, error)

func (w writerAt) WriteAt(p []byte, off int64) (int, error) { return w(p, off) }

func BenchmarkWrite(b *testing.B) {
	disk := text(20 << 20)
	b.SetBytes(int64(len(disk)))
	for b.Loop() {
		if _, err := Write(b.Context(), writerAt(func(p []byte, _ int64) (int, error) { return len(p), nil }), bytes.NewReader(disk), int64(len(disk)), 2, nil); err != nil {
			b.Fatal(err)
		}
	}
}
