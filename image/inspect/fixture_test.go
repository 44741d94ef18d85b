package inspect

import (
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
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
	disk []byte
	// clean is the disk, for tests that change nothing of it.
	clean *memory
}

var built = sync.OnceValues(func() (*fixture, error) {
	keys, err := inspecttest.NewKeys()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sealift-inspect-")
	if err != nil {
		return nil, err
	}
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
	f.disk, err = readAll(d, 0, int(d.Size()))
	f.clean = newMemory(f.disk)
	return f, errors.Join(err, d.Close())
})

func TestMain(m *testing.M) {
	code := m.Run()
	if f, err := built(); err == nil {
		if err := os.RemoveAll(filepath.Dir(f.dir)); err != nil {
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

// memory is a disk in memory that knows its holes by pages, as a file does.
type memory struct {
	data []byte
	used []bool // by page
}

const page = 4096

func newMemory(data []byte) *memory {
	d := &memory{data: append([]byte(nil), data...), used: make([]bool, (len(data)+page-1)/page)}
	for i := range d.used {
		d.used[i] = !allZero(d.data[i*page : min((i+1)*page, len(d.data))])
	}
	return d
}

func (d *memory) Size() int64 { return int64(len(d.data)) }

func (d *memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(d.data).ReadAt(p, off)
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
	return min(max(off, i*page), d.Size()), min(j*page, d.Size()), nil
}

// put writes bytes.
func (d *memory) put(off int64, b ...byte) {
	copy(d.data[off:], b)
	for i := off / page; i*page < off+int64(len(b)); i++ {
		d.used[i] = true
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
