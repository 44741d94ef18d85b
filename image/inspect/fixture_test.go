package inspect

import (
	"context"
	"crypto/rsa"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/inspect/inspecttest"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign"
)

func needTool(t testing.TB, name string) string {
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

// fixture is one small image, built once for all tests.
type fixture struct {
	keys *inspecttest.Keys
	m    *manifest.Manifest
	dir  string
	in   Input // with everything but the disk
	// clean is the disk, of which tests change only forks.
	clean *memory
}

// fixtureDir is what TestMain removes, if a test has made it.
var fixtureDir atomic.Pointer[string]

var built = sync.OnceValues(func() (*fixture, error) {
	keys, err := inspecttest.NewKeys()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sealift-inspect-")
	if err != nil {
		return nil, err
	}
	fixtureDir.Store(&dir)
	f := &fixture{keys: keys, dir: filepath.Join(dir, "image")}
	if f.m, err = keys.New(context.Background(), f.dir, image.OutputRawZstd, image.OutputNetboot); err != nil {
		return nil, err
	}
	pub, err := keys.ImagePublic()
	if err != nil {
		return nil, err
	}
	f.in = Input{Dir: f.dir, Keys: Keys{
		Image: pub, PK: keys.Enrolment.PK, KEK: keys.Enrolment.KEK, DB: keys.Enrolment.DB, PCR: keys.PCR.Public().(*rsa.PublicKey),
	}}
	var err1, err2 error
	f.in.Manifest, err1 = os.ReadFile(filepath.Join(f.dir, FileManifest))
	f.in.Bundle, err2 = os.ReadFile(filepath.Join(f.dir, FileBundle))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	d, err := OpenDisk(filepath.Join(f.dir, image.FileDiskZstd))
	if err != nil {
		return nil, err
	}
	f.clean, err = copyMemory(d)
	return f, errors.Join(err, d.Close())
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir := fixtureDir.Load(); dir != nil {
		if err := os.RemoveAll(*dir); err != nil {
			code = 1
		}
	}
	os.Exit(code)
}

func small(t testing.TB) *fixture {
	t.Helper()
	f, err := built()
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("REQUIRE_TOOLS") == "" {
		t.Skipf("the stub is not installed: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// memory is a disk in memory of which only pages with data are kept, so that it
// knows its holes as a file does. Pages are never changed in place: forks share
// them.
type memory struct {
	size  int64
	pages map[int64][]byte // by number
	used  []bool           // by page
}

const page = 4096

func newMemory(data []byte) *memory {
	d := zeroMemory(int64(len(data)))
	for i := int64(0); i < d.size; i += page {
		if p := data[i:min(i+page, d.size)]; !allZero(p) {
			d.put(i, p...)
		}
	}
	return d
}

func zeroMemory(size int64) *memory {
	return &memory{size: size, pages: map[int64][]byte{}, used: make([]bool, (size+page-1)/page)}
}

// copyMemory reads a disk.
func copyMemory(from Disk) (*memory, error) {
	d := zeroMemory(from.Size())
	for off := int64(0); off < d.size; off += 1 << 20 {
		b, err := readAll(from, off, int(min(1<<20, d.size-off)))
		if err != nil {
			return nil, err
		}
		for i := 0; i < len(b); i += page {
			if p := b[i:min(i+page, len(b))]; !allZero(p) {
				d.put(off+int64(i), p...)
			}
		}
	}
	return d, nil
}

// fork returns a disk with the same content, of another size if one is given.
func (d *memory) fork(size int64) *memory {
	n := &memory{size: size, pages: maps.Clone(d.pages), used: make([]bool, (size+page-1)/page)}
	copy(n.used, d.used)
	return n
}

func (d *memory) Size() int64 { return d.size }

func (d *memory) ReadAt(p []byte, off int64) (int, error) {
	n := int64(0)
	for n < int64(len(p)) {
		at := off + n
		if at >= d.size {
			return int(n), io.EOF
		}
		part := p[n:min(int64(len(p)), n+page-at%page, n+d.size-at)]
		clear(part)
		if from := d.pages[at/page]; from != nil {
			copy(part, from[at%page:])
		}
		n += int64(len(part))
	}
	return int(n), nil
}

func (d *memory) NextData(off int64) (from, to int64, err error) {
	i := off / page
	for i < int64(len(d.used)) && !d.used[i] {
		i++
	}
	j := i
	for j < int64(len(d.used)) && d.used[j] {
		j++
	}
	return min(max(off, i*page), d.size), min(j*page, d.size), nil
}

// get returns a copy of n bytes.
func (d *memory) get(off, n int64) []byte {
	b := make([]byte, n)
	if _, err := d.ReadAt(b, off); err != nil {
		panic(err)
	}
	return b
}

// put writes bytes.
func (d *memory) put(off int64, b ...byte) {
	for len(b) > 0 {
		p := make([]byte, page)
		copy(p, d.pages[off/page])
		n := copy(p[off%page:], b)
		d.pages[off/page], d.used[off/page] = p, true
		off, b = off+int64(n), b[n:]
	}
}

// flip changes one byte.
func (d *memory) flip(off int64, by byte) { d.put(off, d.get(off, 1)[0]^by) }

// WriteAt makes a memory what package disk writes to.
func (d *memory) WriteAt(p []byte, off int64) (int, error) {
	d.put(off, p...)
	return len(p), nil
}

// save writes a part of the disk to a file.
func (d *memory) save(t testing.TB, name string, off, size int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(f, io.NewSectionReader(d, off, size))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// signed returns the input with an edited manifest, signed by the image key.
func (f *fixture) signed(t testing.TB, edit func(*manifest.Manifest)) Input {
	t.Helper()
	m, err := manifest.Decode(f.in.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	edit(m)
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	in := f.in
	in.Manifest, in.Bundle = text, f.sign(t, text)
	return in
}

// sign returns the bundle of a message by the image key.
func (f *fixture) sign(t testing.TB, message []byte) []byte {
	t.Helper()
	s, err := sign.FromKey(f.keys.Image)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Sign(t.Context(), message)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signStatement returns the bundle of a statement by the image key.
func (f *fixture) signStatement(t testing.TB, statement []byte) []byte {
	t.Helper()
	s, err := sign.FromKey(f.keys.Image)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.SignStatement(t.Context(), statement)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// partition returns the place of a role.
func (f *fixture) partition(t testing.TB, role string) (off, size int64) {
	t.Helper()
	for _, p := range f.m.Disk.Partitions {
		if p.Role == role {
			return int64(p.FirstLBA) * SectorSize, int64(p.Sectors) * SectorSize
		}
	}
	t.Fatalf("no partition %s", role)
	return 0, 0
}

// fork returns the disk for a test to change.
func (f *fixture) fork() *memory { return f.clean.fork(f.clean.size) }

// failures verifies and returns the checks that failed, by name.
func failures(t testing.TB, in Input) map[string]Check {
	t.Helper()
	failed := map[string]Check{}
	n, err := Verify(t.Context(), in, func(c Check) {
		if !c.OK {
			failed[c.Name] = c
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < len(failed) {
		t.Fatalf("%d failed, %d were reported", n, len(failed))
	}
	return failed
}
