package inspect

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pe"
	"github.com/sealift/sealift/image/uki/ukitest"
)

func load(t *testing.T, d Disk) *Image {
	t.Helper()
	i, err := Load(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// compared returns all differences as lines.
func compared(t *testing.T, a, b *Image) []string {
	t.Helper()
	var out []string
	bytes, err := CompareBytes(t.Context(), a, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range append(Compare(a, b), bytes...) {
		out = append(out, d.String())
	}
	return out
}

func TestAnImageDoesNotDifferFromItself(t *testing.T) {
	f := small(t)
	d, err := OpenDisk(filepath.Join(f.dir, image.FileDiskZstd))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := compared(t, load(t, f.clean), load(t, d)); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestWhatDiffersIsTold(t *testing.T) {
	f := small(t)
	in, err := f.keys.Input(filepath.Join(t.TempDir(), "other"))
	if err != nil {
		t.Fatal(err)
	}
	in.Outputs = []image.Output{image.OutputRaw, image.OutputNetboot}
	in.Profile.Version = "2"
	in.Profile.Kernel.Cmdline = []string{"quiet"}
	root := in.Root
	for _, change := range []error{
		root.Remove("empty"),
		root.Remove("usr/bin/link"),
		root.Symlink("sudo", "usr/bin/link"),
		root.Remove("usr/bin/sudo"),
		root.WriteFile("usr/bin/sudo", []byte("setuid"), 0o755),
		root.Remove("etc/hostname"),
		root.WriteFile("etc/hostname", []byte("another\n"), 0o644),
		root.WriteFile("etc/new", []byte("new"), 0o600),
		root.Remove("usr/lib/modules/6.1.0/kernel/fs/erofs/erofs.ko"),
		root.WriteFile("usr/lib/modules/6.1.1/kernel/fs/erofs/erofs.ko", []byte("another kernel's"), 0o644),
		root.WriteFile("usr/lib/modules/6.1.1/kernel/fs/ext4/ext4.ko", []byte("ext4"), 0o644),
		root.WriteFile("var/lib/dpkg/status", []byte("Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\n\nPackage: zlib1g\nVersion: 1:1.2\n"), 0o644),
		in.Boot.WriteFile("extra", []byte("x"), 0o644),
	} {
		if change != nil {
			t.Fatal(change)
		}
	}
	m, err := image.Build(t.Context(), *in)
	if err != nil {
		t.Fatal(err)
	}
	d, err := OpenDisk(filepath.Join(in.Output, image.FileDisk))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got := compared(t, load(t, f.clean), load(t, d))
	all := strings.Join(got, "\n") + "\n"
	for _, want := range []string{
		"+ package libc6: version 2.36-9\n",
		"+ package zlib1g: version 1:1.2\n",
		"~ module erofs: root ",
		"+ module ext4: root ",
		"- file /empty: mode file 0600, owner 0:0, size 0, sha256 e3b0c44298fc1c14…\n",
		"+ file /etc/new: mode file 0600, owner 0:0, size 3, ",
		"~ file /etc/hostname: size 4 -> 8, sha256 ",
		"~ file /usr/bin/link: target tool -> sudo\n",
		"~ file /usr/bin/sudo: mode file 4755 -> file 0755\n",
		"+ initrd /extra: mode file 0644, ",
		"~ esp /EFI/BOOT/BOOTX64.EFI: ",
		"~ section .cmdline: sha256 ",
		"~ section .initrd: sha256 ",
		"+ cmdline quiet",
		"~ cmdline sealift.roothash: value ",
		"~ reference PCR 11, sha256: value ",
		"~ reference authenticode: sha256 ",
		"~ partition root-a: GUID ",
		"~ bytes root-a: different bytes 1",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	for _, no := range []string{"erofs.ko", "ext4.ko", "file /usr/bin/tool", "section .linux", "bytes root-b", "cmdline console"} {
		if strings.Contains(all, no) {
			t.Errorf("%q is in\n%s", no, all)
		}
	}
	// The other way round, what was added is removed.
	back := strings.Join(compared(t, load(t, d), load(t, f.clean)), "\n")
	for _, want := range []string{"- package libc6", "+ file /empty", "- file /etc/new", "- module ext4", "- cmdline quiet"} {
		if !strings.Contains(back, want) {
			t.Errorf("no %q in\n%s", want, back)
		}
	}
	fields, err := CompareManifests(f.m, m)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(fields, func(d Difference) bool { return d.Name == "version" && d.Fields[0].A == "1" && d.Fields[0].B == "2" }) {
		t.Errorf("the manifests' versions are not told: %v", fields)
	}
}

func TestKernelReleaseAndDebugMarkAreTold(t *testing.T) {
	f := small(t)
	in, err := f.keys.DebugInput(filepath.Join(t.TempDir(), "other"))
	if err != nil {
		t.Fatal(err)
	}
	in.Outputs = []image.Output{image.OutputRaw}
	in.Kernel = ukitest.Kernel(pe.MachineAMD64, "6.1.1")
	m, err := image.Build(t.Context(), *in)
	if err != nil {
		t.Fatal(err)
	}
	d, err := OpenDisk(filepath.Join(in.Output, image.FileDisk))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	all := Compare(load(t, f.clean), load(t, d))
	fields, err := CompareManifests(f.m, m)
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for _, d := range append(all, fields...) {
		lines.WriteString(d.String() + "\n")
	}
	for _, want := range []string{
		"text 6.1.0 -> 6.1.1\n",
		"text ID=sealift -> ID=sealift VARIANT_ID=debug\n",
		"- cmdline loglevel: value 4\n",
		"+ manifest debug: value true\n",
	} {
		if !strings.Contains(lines.String(), want) {
			t.Errorf("no %q in\n%s", want, lines.String())
		}
	}
}

func TestReadSBOMKnowsBothFormats(t *testing.T) {
	f := small(t)
	for _, name := range []string{image.FileSPDX, image.FileCycloneDX} {
		if _, err := ReadSBOM(read(t, f.dir, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadSBOM([]byte("{}")); err == nil {
		t.Error("an empty object was taken for an SBOM")
	}
}

func TestALargeSparseDiskTakesLittleMemory(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	f := small(t)
	// Good at its beginning, so that readers go on; 1 GiB in all.
	_, err = file.Write(f.clean.get(0, 1<<20))
	for _, err := range []error{err, file.Truncate(1 << 30), file.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d, err := OpenDisk(name)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	in := f.signed(t, func(m *manifest.Manifest) {
		m.Disk.Size = 1 << 30
		m.Disk.Chunks = make([]manifest.SHA256, m.Disk.Size/m.Disk.ChunkSize)
	})
	in.Disk, in.DiskOnly = d, true
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	failed := failures(t, in)
	runtime.ReadMemStats(&after)
	if len(failed) == 0 {
		t.Error("every check passed")
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("%d MiB were allocated", n>>20)
	}
}

func TestFirstNonZeroSkipsHoles(t *testing.T) {
	d := zeroMemory(1 << 20)
	for _, c := range []struct{ put, from, to, want int64 }{
		{5000, 0, 1 << 20, 5000}, {5000, 5001, 1 << 20, -1}, {5000, 0, 5000, -1}, {5000, 5000, 5001, 5000},
		{1<<20 - 1, 0, 1 << 20, 1<<20 - 1}, {0, 0, 1, 0}, {0, 1, 1, -1},
	} {
		d.put(c.put, 7)
		if got, err := firstNonZero(d, c.from, c.to); err != nil || got != c.want {
			t.Errorf("%+v: got %d, %v", c, got, err)
		}
		d.put(c.put, 0)
	}
}
