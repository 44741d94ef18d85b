package inspect

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

// with is an image of the fixture's keys with other outputs.
func (f *fixture) with(t testing.TB, outputs ...image.Output) *fixture {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	m, err := f.keys.New(t.Context(), dir, outputs...)
	if err != nil {
		t.Fatal(err)
	}
	n := &fixture{keys: f.keys, m: m, dir: dir, in: f.in}
	n.in.Dir = dir
	n.in.Manifest, n.in.Bundle = read(t, dir, FileManifest), read(t, dir, FileBundle)
	return n
}

// verified opens the disk in an artifact, verifies, and returns the details of
// all checks, and those that failed. A disk that cannot be opened is a failure.
func verified(t testing.TB, in Input, a manifest.Artifact) (all map[string]string, failed []string) {
	t.Helper()
	d, err := OpenArtifact(filepath.Join(in.Dir, a.Name), a.Kind)
	if err != nil {
		return nil, []string{err.Error()}
	}
	in.Disk, in.DiskName = d, a.Name
	all = map[string]string{}
	_, err = Verify(t.Context(), in, func(c Check) {
		all[c.Name] = c.Detail
		if !c.OK {
			failed = append(failed, c.Name)
		}
	})
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	return all, failed
}

// places returns offsets of content in an artifact with the bytes b, by what they
// are in.
func places(f *fixture, a manifest.Artifact, b []byte) map[string]int64 {
	// used is the middle of what is not zero.
	used := func(from, to int64) int64 {
		var at []int64
		for i := from; i < to; i++ {
			if b[i] != 0 {
				at = append(at, i)
			}
		}
		return at[len(at)/2]
	}
	out := map[string]int64{}
	switch a.Kind {
	case manifest.KindDisk:
		for _, p := range f.m.Disk.Partitions[:3] { // slot B is empty
			out[p.Role] = used(int64(p.FirstLBA)*SectorSize, int64(p.FirstLBA+p.Sectors)*SectorSize)
		}
	case manifest.KindISO:
		medium := newMemory(b)
		volume, err := readMedium(medium)
		if err != nil {
			panic(err)
		}
		for _, name := range volume.Names() {
			at, n, _ := volume.Extent(name)
			out[name] = used(at, at+n)
		}
		table, err := ReadTable(medium)
		if err != nil {
			panic(err)
		}
		esp := table.Partitions[0]
		out["the ESP"] = used(int64(esp.First)*SectorSize, int64(esp.Last+1)*SectorSize)
		out["the label"] = 16*2048 + 40
	default:
		out["the middle"], out["the end"] = used(0, a.Size), used(a.Size*9/10, a.Size)
	}
	return out
}

// flip changes one byte of a file, or changes it back.
func flip(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	_, err1 := f.ReadAt(b[:], at)
	b[0] ^= 0x10
	_, err2 := f.WriteAt(b[:], at)
	if err := errors.Join(err1, err2, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestEverySetOfOutputsIsVerified(t *testing.T) {
	t.Parallel()
	f := small(t)
	none := "none to verify"
	for name, c := range map[string]struct {
		outputs []image.Output
		// disks are the kinds of files that hold the disk.
		disks     []string
		installer bool
	}{
		"raw":             {[]image.Output{image.OutputRaw}, []string{manifest.KindDisk}, false},
		"raw.zst":         {[]image.Output{image.OutputRawZstd}, []string{manifest.KindDiskZstd}, false},
		"qcow2":           {[]image.Output{image.OutputQCOW2}, []string{manifest.KindQCOW2}, false},
		"iso":             {[]image.Output{image.OutputISO}, []string{manifest.KindISO}, true},
		"netboot and raw": {[]image.Output{image.OutputNetboot, image.OutputRaw}, []string{manifest.KindDisk}, true},
		"all": {[]image.Output{image.OutputRaw, image.OutputRawZstd, image.OutputQCOW2, image.OutputISO, image.OutputNetboot},
			[]string{manifest.KindDisk, manifest.KindDiskZstd, manifest.KindQCOW2, manifest.KindISO}, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := f.with(t, c.outputs...)
			for _, kind := range c.disks {
				all, failed := verified(t, f.in, artifact(f, kind))
				if len(failed) > 0 {
					t.Errorf("from %s: failed %q", kind, failed)
				}
				if line, ok := all["installer"]; ok == c.installer || ok && !strings.HasPrefix(line, none) {
					t.Errorf("from %s: installer: %q, want it: %t", kind, line, !c.installer)
				}
				for _, check := range []string{"installer.layout", "installer.signature", "installer.reference", "installer.initrd"} {
					if _, ok := all[check]; ok != c.installer {
						t.Errorf("from %s: %s is there: %t", kind, check, ok)
					}
				}
			}
			disk := artifact(f, c.disks[0])
			for _, a := range f.m.Artifacts {
				path := filepath.Join(f.dir, a.Name)
				b := read(t, f.dir, a.Name)
				first := true
				for place, at := range places(f, a, b) {
					flip(t, path, at)
					if first { // any other is found by the same digest
						if _, failed := verified(t, f.in, disk); len(failed) == 0 {
							t.Errorf("a byte of %s in %s was changed, and every check passed", place, a.Name)
						}
						first = false
					}
					// Were that file what was signed, its content would tell.
					b[at] ^= 0x10
					in := f.signed(t, func(m *manifest.Manifest) {
						i := slices.IndexFunc(m.Artifacts, func(x manifest.Artifact) bool { return x.Kind == a.Kind })
						m.Artifacts[i].SHA256 = sha256.Sum256(b)
					})
					// The provenance tells of every change of the manifest.
					_, failed := verified(t, in, disk)
					b[at] ^= 0x10
					flip(t, path, at)
					failed = slices.DeleteFunc(failed, func(name string) bool { return strings.HasPrefix(name, "file provenance.") })
					text := a.Kind == manifest.KindSPDX || a.Kind == manifest.KindCycloneDX // of which not all is derived
					if len(failed) == 0 && !text {
						t.Errorf("a byte of %s in %s was changed before it was signed, and every check passed", place, a.Name)
					}
				}
				if err := os.Rename(path, filepath.Join(f.dir, "..", a.Name)); err != nil {
					t.Fatal(err)
				}
				if _, failed := verified(t, f.in, disk); len(failed) == 0 {
					t.Errorf("%s was removed, and every check passed", a.Name)
				}
				if err := os.Rename(filepath.Join(f.dir, "..", a.Name), path); err != nil {
					t.Fatal(err)
				}
			}
			if _, failed := verified(t, f.in, disk); len(failed) > 0 {
				t.Errorf("put back: failed %q", failed)
			}
		})
	}
}

func TestOnlyTheManifestSaysThatThereIsNoInstaller(t *testing.T) {
	t.Parallel()
	f := small(t)
	raw := f.with(t, image.OutputRaw)
	disk := artifact(raw, manifest.KindDisk)
	_, network := f.m.Boot(manifest.KindInstaller, manifest.BootNetwork)
	if !network {
		t.Fatal("the fixture has no boot of the installer")
	}
	for name, c := range map[string]struct {
		image *fixture
		edit  func(m *manifest.Manifest)
		want  []string
	}{
		"values of an installer that is nowhere": {raw, func(m *manifest.Manifest) { m.Installer = f.m.Installer }, []string{"installer"}},
		"one value of it":                        {raw, func(m *manifest.Manifest) { m.Installer.Cmdline = "x" }, []string{"installer"}},
		"boots of it":                            {raw, func(m *manifest.Manifest) { m.Boots = f.m.Boots }, []string{"boots.reference"}},
		"an installer that is listed and not there": {raw, func(m *manifest.Manifest) {
			m.Artifacts = append(m.Artifacts, artifact(f, manifest.KindInstaller))
		}, []string{"file installer.efi", "installer.layout", "installer.signature", "installer.reference", "installer.initrd", "boots.reference", "file sbom.spdx.json: content"}},
		"a medium that is listed and not there": {raw, func(m *manifest.Manifest) {
			m.Artifacts = append(m.Artifacts, manifest.Artifact{Kind: manifest.KindISO, Name: image.FileISO, Size: 1, SHA256: manifest.SHA256{1}})
		}, []string{"file installer.iso", "file installer.iso: content", "installer.layout", "boots.reference"}},
	} {
		in := c.image.signed(t, c.edit)
		_, failed := verified(t, in, disk)
		for _, want := range c.want {
			if !slices.Contains(failed, want) {
				t.Errorf("%s: check %s passed; failed: %q", name, want, failed)
			}
		}
	}
	// The SBOMs of an image with an installer, beside a manifest without.
	in := f.signed(t, func(m *manifest.Manifest) {
		m.Artifacts = slices.DeleteFunc(m.Artifacts, func(a manifest.Artifact) bool { return a.Kind == manifest.KindInstaller })
	})
	in.Disk = f.clean
	for _, want := range []string{"files.listed", "installer", "boots.reference", "file sbom.spdx.json: content", "file sbom.cdx.json: content"} {
		if _, ok := failures(t, in)[want]; !ok {
			t.Errorf("an installer that the manifest does not list: check %s passed", want)
		}
	}
}

func TestAFileIsReadAsWhatItIsListedFor(t *testing.T) {
	t.Parallel()
	f := small(t).with(t, image.OutputRaw, image.OutputRawZstd, image.OutputQCOW2, image.OutputISO)
	good := map[string][]byte{}
	kinds := []string{manifest.KindDisk, manifest.KindDiskZstd, manifest.KindQCOW2, manifest.KindISO}
	for _, kind := range kinds {
		good[kind] = read(t, f.dir, artifact(f, kind).Name)
	}
	for _, kind := range kinds {
		a := artifact(f, kind)
		for _, other := range kinds {
			if other == kind {
				continue
			}
			write(t, f.dir, a.Name, good[other])
			if _, failed := verified(t, f.in, a); len(failed) == 0 {
				t.Errorf("%s in place of %s: every check passed", other, kind)
			}
		}
		write(t, f.dir, a.Name, good[kind])
	}
	for _, kind := range kinds[:3] {
		d, err := OpenDisk(filepath.Join(f.dir, artifact(f, kind).Name))
		if err != nil {
			t.Fatal(err)
		}
		if d.Kind != kind || d.Size() != f.m.Disk.Size {
			t.Errorf("%s: opened as %s with %d bytes", kind, d.Kind, d.Size())
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := OpenArtifact(filepath.Join(f.dir, image.FileUKI), manifest.KindUKI); err == nil {
		t.Error("a UKI was opened as a disk")
	}
}

// What the medium says of itself is compared with the image before anything of it
// is believed.
func TestAMediumOfAnotherImageIsFound(t *testing.T) {
	t.Parallel()
	f := small(t).with(t, image.OutputRaw, image.OutputISO)
	b := read(t, f.dir, image.FileISO)
	volume, err := readMedium(newMemory(b))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := volume.Open(profiles.MediumManifest)
	own, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	at, _, _ := volume.Extent(profiles.MediumManifest)
	copy(b[at:], bytes.Replace(own, []byte(`"version": "1"`), []byte(`"version": "0"`), 1))
	write(t, f.dir, image.FileISO, b)
	in := f.signed(t, func(m *manifest.Manifest) {
		i := slices.IndexFunc(m.Artifacts, func(x manifest.Artifact) bool { return x.Kind == manifest.KindISO })
		m.Artifacts[i].SHA256 = sha256.Sum256(b)
	})
	all, failed := verified(t, in, artifact(f, manifest.KindDisk))
	if !slices.Contains(failed, "file installer.iso: content") || !strings.Contains(all["file installer.iso: content"], "manifest.json on it is not the image's") {
		t.Errorf("failed: %q; %s", failed, all["file installer.iso: content"])
	}
}
