package inspect

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pe"
	"github.com/sealift/sealift/image/uki/ukitest"
)

func TestAGoodImagePassesEveryCheck(t *testing.T) {
	f := small(t)
	in := f.in
	in.Disk = f.clean
	var names []string
	n, err := Verify(t.Context(), in, func(c Check) {
		names = append(names, c.Name)
		if !c.OK {
			t.Errorf("%s: %s", c.Name, c.Detail)
		}
		if c.OK && c.Detail == "" {
			t.Errorf("%s says nothing", c.Name)
		}
	})
	if n != 0 || err != nil {
		t.Errorf("%d failed, error %v", n, err)
	}
	if len(names) < 30 {
		t.Errorf("only %d checks: %q", len(names), names)
	}
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] {
			t.Errorf("%s is there twice", name)
		}
		seen[name] = true
	}
}

// altered builds an image like the fixture's but for an edit, and returns the
// checks that fail.
func altered(t *testing.T, edit func(in *image.BuildInput) error) map[string]Check {
	t.Helper()
	f := small(t)
	b, err := f.keys.Input(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	b.Outputs = []image.Output{image.OutputRaw, image.OutputNetboot}
	if err := edit(b); err != nil {
		t.Fatal(err)
	}
	if _, err := image.Build(t.Context(), *b); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDisk(filepath.Join(b.Output, image.FileDisk))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	in := f.in
	in.Dir, in.Disk, in.DiskName = b.Output, d, image.FileDisk
	in.Manifest, in.Bundle = read(t, b.Output, FileManifest), read(t, b.Output, FileBundle)
	return failures(t, in)
}

func TestKernelAndModulesAreOfOneRelease(t *testing.T) {
	const module = "usr/lib/modules/6.1.1/kernel/fs/ext4/ext4.ko"
	for name, c := range map[string]struct {
		edit func(in *image.BuildInput) error
		want []string
	}{
		"as they should be":           {func(*image.BuildInput) error { return nil }, nil},
		"another kernel":              {func(in *image.BuildInput) error { in.Kernel = ukitest.Kernel(pe.MachineAMD64, "6.1.1"); return nil }, []string{"uki.uname"}},
		"a module in the root":        {func(in *image.BuildInput) error { return in.Root.WriteFile(module, nil, 0o644) }, []string{"uki.uname"}},
		"a module in the initramfs":   {func(in *image.BuildInput) error { return in.Boot.WriteFile(module, nil, 0o644) }, []string{"uki.uname"}},
		"a module of the installer's": {func(in *image.BuildInput) error { return in.Installer.WriteFile(module, nil, 0o644) }, []string{"installer.uname"}},
	} {
		t.Run(name, func(t *testing.T) {
			failed := altered(t, c.edit)
			if got := slices.Sorted(maps.Keys(failed)); !slices.Equal(got, c.want) {
				t.Errorf("failed: %q, want %q", names(failed), c.want)
			}
		})
	}
}

func TestTheDebugMarkIsTheSameEverywhere(t *testing.T) {
	f := small(t)
	// A debug image is a good image, and says what it is.
	debug := func(in *image.BuildInput) error {
		b, err := f.keys.DebugInput(in.Output)
		if err == nil {
			b.Outputs = in.Outputs
			*in = *b
		}
		return err
	}
	if failed := altered(t, debug); len(failed) != 0 {
		t.Errorf("a debug image: %q", names(failed))
	}
	in := f.signed(t, func(m *manifest.Manifest) { m.Debug = true })
	in.Disk = f.clean
	failed := failures(t, in)
	for _, name := range []string{"uki.debug", "installer.debug"} {
		if c := failed[name]; c.Got != `"not marked debug"` || c.Want != `"marked debug"` {
			t.Errorf("%s of an image whose manifest alone is marked: %+v", name, c)
		}
	}
	for name, c := range map[string]struct {
		edit func(in *image.BuildInput) error
		want []string
	}{
		"agents": {func(in *image.BuildInput) error {
			other, err := f.keys.DebugInput(in.Output)
			if err == nil {
				in.Boot, in.Installer = other.Boot, other.Installer
			}
			return err
		}, []string{"installer.debug", "uki.debug"}},
		"root": {func(in *image.BuildInput) error {
			other, err := f.keys.DebugInput(in.Output)
			if err == nil {
				in.Root = other.Root
			}
			return err
		}, []string{"uki.debug"}},
		"agents of a debug image": {func(in *image.BuildInput) error {
			boot, installer := in.Boot, in.Installer
			err := debug(in)
			in.Boot, in.Installer = boot, installer
			return err
		}, []string{"installer.debug", "uki.debug"}},
	} {
		t.Run(name, func(t *testing.T) {
			failed := altered(t, c.edit)
			if got := slices.Sorted(maps.Keys(failed)); !slices.Equal(got, c.want) {
				t.Errorf("failed: %q, want %q", names(failed), c.want)
			}
		})
	}
}

// positions returns offsets in pages that hold anything and, for every tenth, in
// one that does not.
func (d *memory) positions(r *rand.Rand, n int) []int64 {
	var used, free []int64
	for i, u := range d.used {
		if u {
			used = append(used, int64(i)*page)
		} else {
			free = append(free, int64(i)*page)
		}
	}
	var out []int64
	for i := range n {
		pages := used
		if i%10 == 9 {
			pages = free
		}
		out = append(out, pages[r.IntN(len(pages))]+r.Int64N(page))
	}
	return out
}

func TestAFlippedByteAnywhereIsFound(t *testing.T) {
	t.Parallel()
	f := small(t)
	const positions = 500
	r := rand.New(rand.NewPCG(3, 14))
	// With small chunks there is less to hash around each flip. All else is the
	// whole verification.
	in := f.signed(t, func(m *manifest.Manifest) {
		m.Disk.ChunkSize = 64 << 10
		m.Disk.Chunks = nil
		for off := int64(0); off < m.Disk.Size; off += m.Disk.ChunkSize {
			var digest manifest.SHA256
			if c := f.clean.get(off, m.Disk.ChunkSize); !allZero(c) {
				digest = sha256.Sum256(c)
			}
			m.Disk.Chunks = append(m.Disk.Chunks, digest)
		}
	})
	in.DiskOnly = true
	var byChunkOnly int
	for _, at := range f.clean.positions(r, positions) {
		d := f.fork()
		d.flip(at, byte(1+r.IntN(255)))
		in.Disk = d
		failed := failures(t, in)
		if len(failed) == 0 {
			t.Errorf("a flipped byte at %d (%s) was not found", at, place(f, at))
		}
		if _, ok := failed["disk.chunks"]; !ok {
			t.Errorf("a flipped byte at %d (%s): no chunk differs", at, place(f, at))
		}
		if len(failed) == 1 {
			byChunkOnly++
			t.Logf("at %d (%s) only the chunk's digest differs", at, place(f, at))
		}
	}
	if byChunkOnly > positions/100 {
		t.Errorf("%d of %d flips are seen by nothing but a chunk's digest", byChunkOnly, positions)
	}
	in.Disk = f.clean
	if failed := failures(t, in); len(failed) != 0 {
		t.Errorf("without a flip: %v", failed)
	}
}

// place says where a byte is, for people.
func place(f *fixture, at int64) string {
	for _, p := range f.m.Disk.Partitions {
		from := int64(p.FirstLBA) * SectorSize
		if at >= from && at < from+int64(p.Sectors)*SectorSize {
			return fmt.Sprintf("byte %d of %s", at-from, p.Role)
		}
	}
	return "outside of partitions"
}

func TestEveryFieldOfTheManifestIsChecked(t *testing.T) {
	t.Parallel()
	f := small(t)
	leaves, err := flatten("", f.m)
	if err != nil {
		t.Fatal(err)
	}
	// One leaf of each kind: digests of two events are the same to a check.
	index := regexp.MustCompile(`\[\d+\]`)
	kinds := map[string]string{}
	for path := range leaves {
		kind := index.ReplaceAllString(path, "[]")
		if old, ok := kinds[kind]; !ok || path > old {
			kinds[kind] = path
		}
	}
	if len(kinds) < 50 {
		t.Fatalf("only %d kinds of fields", len(kinds))
	}
	for _, path := range slices.Sorted(maps.Values(kinds)) {
		if kinds := leaves[path]; kinds == "[]" || kinds == "{}" {
			continue
		}
		m, err := alter(f.in.Manifest, path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		in := f.signed(t, func(to *manifest.Manifest) { *to = *m })
		in.Disk = f.clean
		failed := failures(t, in)
		if c, ok := failed["manifest.signature"]; ok {
			t.Errorf("%s: the test's own signature: %s", path, c.Detail)
		}
		if len(failed) == 0 {
			t.Errorf("%s was altered, and every check passed", path)
		}
	}
}

// alter changes one leaf of a manifest and nothing else.
func alter(document []byte, path string) (*manifest.Manifest, error) {
	var tree any
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return nil, err
	}
	steps := regexp.MustCompile(`[^.\[\]]+`).FindAllString(path, -1)
	if err := replace(tree, steps); err != nil {
		return nil, err
	}
	b, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	m := new(manifest.Manifest)
	return m, json.Unmarshal(b, m)
}

// replace changes the leaf that the steps lead to.
func replace(tree any, steps []string) error {
	set := func(value any) {}
	value := tree
	for _, step := range steps {
		switch v := value.(type) {
		case map[string]any:
			value = v[step]
			set = func(value any) { v[step] = value }
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(v) {
				return fmt.Errorf("no element %s", step)
			}
			value = v[i]
			set = func(value any) { v[i] = value }
		}
	}
	switch v := value.(type) {
	case string:
		set(another(v))
	case bool:
		set(!v)
	case json.Number:
		n, err := v.Int64()
		if err != nil {
			return err
		}
		set(n + 1)
	default:
		return fmt.Errorf("leaf is %v", value)
	}
	return nil
}

// another returns a text of the same form.
func another(s string) string {
	if s == "" {
		return strings.Repeat("1", 64) // an unset digest
	}
	b := []byte(s)
	switch last := &b[len(b)-1]; {
	case *last == '0':
		*last = '1'
	case *last >= '1' && *last <= '9':
		*last = '0'
	case *last == 'a':
		*last = 'b'
	default:
		*last = 'a'
	}
	return string(b)
}
