package iso9660

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// volume makes an image with another implementation than the builder's.
func volume(t testing.TB, files map[string][]byte, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("xorriso"); err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip("xorriso is not installed")
	}
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "x.iso")
	args = append([]string{"-as", "mkisofs", "-quiet", "-V", "SEALIFT", "-o", out}, append(args, dir)...)
	if text, err := exec.Command("xorriso", args...).CombinedOutput(); err != nil {
		t.Fatalf("xorriso %q: %v\n%s", args, err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func contents() map[string][]byte {
	big := make([]byte, 300000)
	rand.NewChaCha8([32]byte{}).Read(big)
	return map[string][]byte{
		"manifest.json": []byte("{}"), "manifest.json.sigstore.json": []byte("[]"), "disk.raw.zst": big, "empty": {}, "ab": {1}, "abc": {2},
	}
}

func TestFilesOfAVolumeThatXorrisoMade(t *testing.T) {
	for name, args := range map[string][]string{
		"with Rock Ridge": {"-R"}, "with Rock Ridge and Joliet": {"-R", "-J"}, "with long records": {"-R", "-iso-level", "3"},
	} {
		t.Run(name, func(t *testing.T) {
			b := volume(t, contents(), args...)
			v, err := Read(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if v.Label != "SEALIFT" || !slices.Equal(v.Names(), slices.Sorted(maps.Keys(contents()))) {
				t.Errorf("got label %q and files %v", v.Label, v.files)
			}
			for name, want := range contents() {
				r, ok := v.Open(name)
				if !ok {
					t.Errorf("no file %s", name)
					continue
				}
				if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: got %d bytes, want %d (%v)", name, len(got), len(want), err)
				}
			}
			if _, ok := v.Open("sub"); ok {
				t.Error("a directory was taken for a file")
			}
		})
	}
}

func TestWithoutRockRidgeNamesAreInLowerCase(t *testing.T) {
	b := volume(t, map[string][]byte{"manifest.json": []byte("{}")}, "-iso-level", "2")
	v, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := v.Open("manifest.json"); !ok {
		t.Errorf("got %v", v.files)
	}
}

// small is a volume made by hand: descriptor, and a root directory in sector 20
// with these records.
func small(records ...[]byte) []byte {
	b := make([]byte, 30*sectorSize)
	copy(b[descriptorAt:], "\x01CD001\x01")
	copy(b[descriptorAt+40:], "SEALIFT                         ")
	b[descriptorAt+129] = sectorSize >> 8
	copy(b[descriptorAt+156:], record("\x00", 20, sectorSize, flagDirectory))
	at := 20 * sectorSize
	for _, r := range records {
		at += copy(b[at:], r)
	}
	return b
}

func record(name string, block, size uint32, flags byte) []byte {
	b := make([]byte, (34+len(name))/2*2)
	b[0] = byte(len(b))
	b[2], b[3], b[4], b[5] = byte(block), byte(block>>8), byte(block>>16), byte(block>>24)
	b[10], b[11], b[12], b[13] = byte(size), byte(size>>8), byte(size>>16), byte(size>>24)
	b[25], b[32] = flags, byte(len(name))
	copy(b[33:], name)
	return b
}

func TestAFileOfSeveralRecordsIsOne(t *testing.T) {
	b := small(record("BIG.;1", 21, sectorSize, flagMore), record("BIG.;1", 22, 5, 0))
	v, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if at, size, ok := v.Extent("big."); !ok || at != 21*sectorSize || size != sectorSize+5 {
		t.Errorf("got %d bytes at %d, %t", size, at, ok)
	}
}

func TestDamagedVolumesAreRefused(t *testing.T) {
	edit := func(at int, v ...byte) []byte {
		b := small(record("A.;1", 21, 5, 0))
		copy(b[at:], v)
		return b
	}
	for name, c := range map[string]struct {
		image []byte
		err   string
	}{
		"too short":                          {make([]byte, 1000), "only 1000 bytes"},
		"another magic":                      {edit(descriptorAt+1, 'x'), "no volume descriptor"},
		"blocks of 512 bytes":                {edit(descriptorAt+128, 0, 2), "512 bytes, want 2048"},
		"a root directory outside":           {edit(descriptorAt+156+4, 1), "root directory: "},
		"a root directory of 4 GiB":          {edit(descriptorAt+156+13, 0xff), "root directory: "},
		"a root directory of half a sector":  {edit(descriptorAt+156+10, 0, 4), "whole sectors"},
		"a record that is too short":         {edit(20*sectorSize, 10), "bad record"},
		"a record over the sector's end":     {small(append(bytes.Repeat(record("D", 21, 0, flagDirectory), 60), record("D", 21, 0, flagDirectory)...)), "bad record"},
		"a name longer than its record":      {edit(20*sectorSize+32, 200), "bad record"},
		"a file outside of the device":       {small(record("A.;1", 29, sectorSize+1, 0)), `file "a."`},
		"a file behind 4 Gi blocks":          {small(record("A.;1", 0xffffffff, 1, 0)), `file "a."`},
		"a name twice":                       {small(record("A.;1", 21, 1, 0), record("A.;1", 22, 1, 0)), "is there twice"},
		"pieces that are apart":              {small(record("A.;1", 21, 2048, flagMore), record("A.;1", 23, 1, 0)), "in several pieces"},
		"a piece of another file in between": {small(record("A.;1", 21, 2048, flagMore), record("B.;1", 22, 1, 0)), "in several pieces"},
		"a last piece that is missing":       {small(record("A.;1", 21, 2048, flagMore)), "last record is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read(bytes.NewReader(c.image), int64(len(c.image)))
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("error is %v, want one with %q", err, c.err)
			}
		})
	}
	if _, err := Read(bytes.NewReader(make([]byte, 1<<20)), 1<<20); !errors.Is(err, ErrNone) {
		t.Errorf("an empty disk gives %v", err)
	}
}

// FuzzRead puts the input into the root directory, whose place and size in the
// descriptor are taken from the first bytes of it.
func FuzzRead(f *testing.F) {
	root := record("\x00", 20, sectorSize, flagDirectory)[2:18]
	f.Add(slices.Concat(root, record("A.;1", 21, 5, 0)))
	f.Add(slices.Concat(root, record("BIG.;1", 21, sectorSize, flagMore), record("BIG.;1", 22, 5, 0)))
	f.Add(slices.Concat(root, record("AB", 21, 5, 0), []byte("NM\x07\x01\x00xy")))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < len(root) || len(in) > 2*sectorSize {
			return
		}
		b := small(in[len(root):])
		copy(b[descriptorAt+156+2:], in[:len(root)])
		v, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for name := range v.files {
			r, ok := v.Open(name)
			if !ok {
				t.Fatalf("no file %q", name)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Errorf("%q: %v", name, err)
			}
		}
	})
}
