package inspect

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/inspect/inspecttest"
	"github.com/sealift/sealift/image/manifest"
)

// gptEdit changes both copies of the table and makes their checksums right.
func gptEdit(d *memory, edit func(header, array []byte)) {
	le := binary.LittleEndian
	size := d.Size()
	for _, c := range []struct{ header, array int64 }{{SectorSize, 2 * SectorSize}, {size - SectorSize, size - gptBackupTail*SectorSize}} {
		h, a := d.get(c.header, SectorSize), d.get(c.array, gptArraySectors*SectorSize)
		edit(h, a)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(a))
		le.PutUint32(h[16:], 0)
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:gptHeaderSize]))
		d.put(c.header, h...)
		d.put(c.array, a...)
	}
}

// onESP changes the ESP with a program that takes the image's name.
func onESP(t *testing.T, f *fixture, d *memory, change func(esp string)) {
	t.Helper()
	off, size := f.partition(t, manifest.RoleESP)
	esp := filepath.Join(t.TempDir(), "esp")
	d.save(t, esp, off, size)
	change(esp)
	b, err := os.ReadFile(esp)
	if err != nil {
		t.Fatal(err)
	}
	for i := int64(0); i < size; i += page {
		if p := b[i : i+page]; !bytes.Equal(p, d.get(off+i, page)) {
			d.put(off+i, p...)
		}
	}
}

func mtools(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(needTool(t, args[0]), args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// oracle is a tool that looks at a damaged disk: it returns nil if the tool
// finds nothing wrong.
type oracle func(t *testing.T, f *fixture, d *memory) error

func partitionFile(t *testing.T, f *fixture, d *memory, role string) string {
	t.Helper()
	off, size := f.partition(t, role)
	name := filepath.Join(t.TempDir(), role)
	d.save(t, name, off, size)
	return name
}

func tool(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	return exec.Command(needTool(t, args[0]), args[1:]...).CombinedOutput()
}

func sgdisk(t *testing.T, _ *fixture, d *memory) error {
	name := filepath.Join(t.TempDir(), "disk")
	d.save(t, name, 0, d.size)
	out, err := tool(t, "sgdisk", "--verify", name)
	// It mends one copy by the other in memory and then finds no problem.
	if err == nil && (!bytes.Contains(out, []byte("No problems found")) || bytes.Contains(out, []byte("Caution")) || bytes.Contains(out, []byte("Warning"))) {
		err = errors.New(string(out))
	}
	return err
}

func fsckVFAT(t *testing.T, f *fixture, d *memory) error {
	_, err := tool(t, "fsck.vfat", "-n", partitionFile(t, f, d, manifest.RoleESP))
	return err
}

func fsckEROFS(t *testing.T, f *fixture, d *memory) error {
	_, err := tool(t, "fsck.erofs", partitionFile(t, f, d, manifest.RoleRootA))
	return err
}

func veritysetup(t *testing.T, f *fixture, d *memory) error {
	_, err := tool(t, "veritysetup", "verify", partitionFile(t, f, d, manifest.RoleRootA), partitionFile(t, f, d, manifest.RoleRootVerityA), f.m.Root.RootHash.String())
	return err
}

func sbverify(t *testing.T, f *fixture, d *memory) error {
	esp, dir := partitionFile(t, f, d, manifest.RoleESP), t.TempDir()
	uki, cert := filepath.Join(dir, "uki"), filepath.Join(dir, "db")
	mtools(t, "mcopy", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI", uki)
	der := f.keys.Enrolment.DB.Raw
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := tool(t, "sbverify", "--cert", cert, uki)
	return err
}

func TestToolsAgreeOnAGoodImage(t *testing.T) {
	f := small(t)
	d := f.clean
	for name, o := range map[string]oracle{"sgdisk": sgdisk, "fsck.vfat": fsckVFAT, "fsck.erofs": fsckEROFS, "veritysetup": veritysetup, "sbverify": sbverify} {
		t.Run(name, func(t *testing.T) {
			if err := o(t, f, d); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDamageIsNamed(t *testing.T) {
	f := small(t)
	esp, _ := f.partition(t, manifest.RoleESP)
	root, rootSize := f.partition(t, manifest.RoleRootA)
	tree, _ := f.partition(t, manifest.RoleRootVerityA)
	rootB, _ := f.partition(t, manifest.RoleRootB)
	for name, c := range map[string]struct {
		damage func(t *testing.T, d *memory)
		checks []string // at least these fail, beside disk.chunks
		oracle oracle   // a tool that sees it, too
		blind  bool     // the tool does not
	}{
		"primary header": {func(_ *testing.T, d *memory) { d.put(SectorSize+60, 1) }, []string{"disk.gpt"}, sgdisk, false},
		"backup header":  {func(_ *testing.T, d *memory) { d.put(d.Size()-SectorSize+17, 1) }, []string{"disk.gpt"}, sgdisk, false},
		"backup array":   {func(_ *testing.T, d *memory) { d.put(d.Size()-gptBackupTail*SectorSize+3, 1) }, []string{"disk.gpt"}, sgdisk, false},
		"boot code":      {func(_ *testing.T, d *memory) { d.put(0, 0xeb) }, []string{"disk.gpt"}, sgdisk, true},
		"a second partition in the MBR": {func(_ *testing.T, d *memory) {
			d.put(462, 0, 0, 2, 0, 0x0c, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0)
		}, []string{"disk.gpt"}, nil, false},
		"duplicated entry": {func(_ *testing.T, d *memory) {
			gptEdit(d, func(_, a []byte) { copy(a[5*gptEntrySize:], a[gptEntrySize:2*gptEntrySize]) })
		}, []string{"disk.gpt"}, sgdisk, false},
		"duplicated entry with another GUID": {func(_ *testing.T, d *memory) {
			gptEdit(d, func(_, a []byte) {
				copy(a[5*gptEntrySize:], a[gptEntrySize:2*gptEntrySize])
				a[5*gptEntrySize+16]++
			})
		}, []string{"disk.gpt"}, sgdisk, false},
		"copies that differ": {func(_ *testing.T, d *memory) {
			before := d.get(0, gptFirstUsable*SectorSize)
			gptEdit(d, func(_, a []byte) { a[56] = 'E' })
			d.put(0, before...)
		}, []string{"disk.gpt"}, sgdisk, false},
		"swapped slots": {func(_ *testing.T, d *memory) {
			gptEdit(d, func(_, a []byte) {
				for i := range gptEntrySize {
					x, y := &a[gptEntrySize+i], &a[3*gptEntrySize+i]
					*x, *y = *y, *x
				}
			})
		}, []string{"disk.partitions"}, sgdisk, true},
		"swapped GUIDs of the slots": {func(_ *testing.T, d *memory) {
			gptEdit(d, func(_, a []byte) {
				for i := 16; i < 32; i++ {
					x, y := &a[gptEntrySize+i], &a[3*gptEntrySize+i]
					*x, *y = *y, *x
				}
			})
		}, []string{"disk.partitions", "root.guids"}, sgdisk, true},
		"another disk GUID": {func(_ *testing.T, d *memory) {
			gptEdit(d, func(h, _ []byte) { h[60]++ })
		}, []string{"disk.layout"}, sgdisk, true},
		"attributes": {func(_ *testing.T, d *memory) {
			gptEdit(d, func(_, a []byte) { a[gptEntrySize+48+7] = 0x80 })
		}, []string{"disk.partitions"}, sgdisk, true},
		"a sixth partition": {func(_ *testing.T, d *memory) {
			gptEdit(d, func(_, a []byte) {
				e := a[5*gptEntrySize:]
				copy(e, a[:32])
				e[16]++
				binary.LittleEndian.PutUint64(e[32:], 34)
				binary.LittleEndian.PutUint64(e[40:], 2047)
			})
		}, []string{"disk.partitions"}, nil, false},
		"data between table and ESP": {func(_ *testing.T, d *memory) { d.put(100*SectorSize, 1) }, []string{"disk.gaps"}, sgdisk, true},
		"data in slot B":             {func(_ *testing.T, d *memory) { d.put(rootB+12345, 1) }, []string{"disk.slot-b"}, nil, false},

		"boot sector":      {func(_ *testing.T, d *memory) { d.put(esp+14, 33) }, []string{"esp.fat"}, fsckVFAT, false},
		"volume serial":    {func(_ *testing.T, d *memory) { d.put(esp+67, 1); d.put(esp+6*SectorSize+67, 1) }, []string{"esp.stamps"}, fsckVFAT, true},
		"boot code in ESP": {func(_ *testing.T, d *memory) { d.put(esp+200, 0x90); d.put(esp+6*SectorSize+200, 0x90) }, []string{"esp.fat"}, fsckVFAT, true},
		"second FAT":       {func(_ *testing.T, d *memory) { d.put(esp+fatSize(f, esp)+32*SectorSize+80, 0x55) }, []string{"esp.fat"}, fsckVFAT, false},
		"lost cluster": {func(_ *testing.T, d *memory) {
			for _, at := range []int64{0, fatSize(f, esp)} {
				d.put(esp+32*SectorSize+at+4*60000, 0xff, 0xff, 0xff, 0x0f)
			}
		}, []string{"esp.fat"}, fsckVFAT, false},
		"data in a free cluster": {func(_ *testing.T, d *memory) { d.put(esp+60<<20, 1) }, []string{"esp.unused"}, fsckVFAT, true},
		"a second file": {func(t *testing.T, d *memory) {
			onESP(t, f, d, func(esp string) {
				extra := filepath.Join(t.TempDir(), "x")
				if err := os.WriteFile(extra, []byte("extra"), 0o600); err != nil {
					t.Fatal(err)
				}
				mtools(t, "mcopy", "-i", esp, extra, "::/EFI/BOOT/GRUB.CFG")
			})
		}, []string{"esp.files"}, fsckVFAT, true},
		"a driver directory": {func(t *testing.T, d *memory) {
			onESP(t, f, d, func(esp string) { mtools(t, "mmd", "-i", esp, "::/LOADER") })
		}, []string{"esp.files"}, fsckVFAT, true},
		"the boot file in another place": {func(t *testing.T, d *memory) {
			onESP(t, f, d, func(esp string) {
				mtools(t, "mmd", "-i", esp, "::/EFI/LINUX")
				mtools(t, "mmove", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI", "::/EFI/LINUX/")
			})
		}, []string{"esp.files", "uki.file"}, fsckVFAT, true},
		"a long name": {func(t *testing.T, d *memory) {
			onESP(t, f, d, func(esp string) {
				extra := filepath.Join(t.TempDir(), "x")
				if err := os.WriteFile(extra, []byte("extra"), 0o600); err != nil {
					t.Fatal(err)
				}
				mtools(t, "mcopy", "-i", esp, extra, "::/a long name.addon.efi")
			})
		}, []string{"esp.fat"}, fsckVFAT, true},
		"a deleted file": {func(t *testing.T, d *memory) {
			onESP(t, f, d, func(esp string) {
				mtools(t, "mmd", "-i", esp, "::/GONE")
				mtools(t, "mrd", "-i", esp, "::/GONE")
			})
		}, []string{"esp.fat"}, fsckVFAT, true},
		"a time stamp": {func(t *testing.T, d *memory) {
			onESP(t, f, d, func(esp string) { mtools(t, "mattrib", "-i", esp, "+a", "::/EFI/BOOT/BOOTX64.EFI") })
			at := int64(bytes.Index(d.get(esp, 16<<20), []byte("BOOTX64 EFI")))
			d.put(esp+at+22, 0, 0)
		}, []string{"esp.stamps"}, fsckVFAT, true},
		"UKI": {func(_ *testing.T, d *memory) {
			at := int64(bytes.Index(d.get(esp, 16<<20), []byte("sealift.roothash=")))
			d.flip(esp+at+20, 1)
		}, []string{"uki.file", "uki.signature", "uki.reference", "uki.cmdline", "uki.policy", "boots.reference"}, sbverify, false},
		"kernel release": {func(_ *testing.T, d *memory) {
			at := int64(bytes.Index(d.get(esp, 16<<20), []byte("\x00"+inspecttest.KernelRelease+"\x00")))
			d.put(esp+at+1, '7')
		}, []string{"uki.file", "uki.signature", "uki.reference", "uki.uname", "boots.reference"}, sbverify, false},

		"superblock of EROFS":    {func(_ *testing.T, d *memory) { d.put(root+1024, 0) }, []string{"root.erofs", "root.verity"}, fsckEROFS, false},
		"a block of the root":    {func(_ *testing.T, d *memory) { d.put(root+40*page+5, 0xa5) }, []string{"root.verity"}, veritysetup, false},
		"a block of the tree":    {func(_ *testing.T, d *memory) { d.flip(tree+page+5, 1) }, []string{"root.verity"}, veritysetup, false},
		"superblock of the tree": {func(_ *testing.T, d *memory) { d.flip(tree+100, 1) }, []string{"root.superblock", "root.salt", "root.verity"}, veritysetup, false},
		"UUID of the tree":       {func(_ *testing.T, d *memory) { d.flip(tree+16, 1) }, []string{"root.superblock", "root.verity"}, veritysetup, true},
		"data behind the root":   {func(_ *testing.T, d *memory) { d.put(root+rootSize-1, 1) }, []string{"root.unused"}, veritysetup, true},
		"data behind the tree":   {func(_ *testing.T, d *memory) { d.put(tree+1<<20-1, 1) }, []string{"root.unused"}, veritysetup, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := f.fork()
			c.damage(t, d)
			in := f.in
			in.Disk, in.DiskOnly = d, true
			failed := failures(t, in)
			for _, want := range append([]string{"disk.chunks"}, c.checks...) {
				if _, ok := failed[want]; !ok {
					t.Errorf("check %s passed; failed: %v", want, names(failed))
				}
			}
			if c.oracle == nil {
				return
			}
			switch err := c.oracle(t, f, d); {
			case err == nil && !c.blind:
				t.Error("the tool finds nothing wrong")
			case err != nil && c.blind:
				t.Errorf("the tool sees it, too: %v", err)
			}
		})
	}
}

func names(failed map[string]Check) []string {
	var out []string
	for name, c := range failed {
		out = append(out, name+": "+c.Detail)
	}
	slices.Sort(out)
	return out
}

// fatSize returns the length of one FAT, bytes.
func fatSize(f *fixture, esp int64) int64 {
	return int64(binary.LittleEndian.Uint32(f.clean.get(esp+36, 4))) * SectorSize
}

func TestAnotherSizeIsFound(t *testing.T) {
	f := small(t)
	size := f.clean.size
	for name, n := range map[string]int64{
		"one byte less": size - 1, "one sector less": size - SectorSize, "half": size / 2, "one chunk": 4 << 20,
		"one sector": SectorSize, "nothing": 0, "one byte more": size + 1, "one sector more": size + SectorSize, "twice": 2 * size,
	} {
		t.Run(name, func(t *testing.T) {
			in := f.in
			in.Disk, in.DiskOnly = f.clean.fork(n), true
			failed := failures(t, in)
			for _, want := range []string{"disk.size", "disk.gpt", "disk.chunks"} {
				if _, ok := failed[want]; !ok {
					t.Errorf("check %s passed", want)
				}
			}
		})
	}
}

func TestMissingKeysAreFailures(t *testing.T) {
	f := small(t)
	for name, c := range map[string]struct {
		edit func(*Input)
		want []string
	}{
		"no image key":      {func(in *Input) { in.Keys.Image = nil }, []string{"manifest.signature", "installer.initrd"}},
		"no db certificate": {func(in *Input) { in.Keys.DB = nil }, []string{"uki.signature", "installer.signature", "secureboot.reference", "boots.reference"}},
		"no PK":             {func(in *Input) { in.Keys.PK = nil }, []string{"secureboot.reference", "boots.reference", "installer.initrd"}},
		"another db":        {func(in *Input) { in.Keys.DB = in.Keys.KEK }, []string{"uki.signature", "secureboot.reference"}},
		"no PCR key":        {func(in *Input) { in.Keys.PCR = nil }, []string{"uki.policy"}},
		"another PCR key":   {func(in *Input) { in.Keys.PCR = in.Keys.DB.PublicKey.(*rsa.PublicKey) }, []string{"uki.policy"}},
		"no directory":      {func(in *Input) { in.Dir = "" }, []string{"files.listed", "file uki.efi", "installer.reference", "boots.reference"}},
		"no signature":      {func(in *Input) { in.Bundle = nil }, []string{"manifest.signature"}},
		"no manifest":       {func(in *Input) { in.Manifest = nil }, []string{"manifest.signature", "manifest.format", "disk"}},
		"a space behind the manifest": {func(in *Input) {
			in.Manifest = append(bytes.Clone(in.Manifest), ' ')
			in.Bundle = f.sign(t, in.Manifest)
		}, []string{"manifest.format"}},
		"a field twice": {func(in *Input) {
			in.Manifest = bytes.Replace(in.Manifest, []byte("{"), []byte(`{"Version":"2",`), 1)
			in.Bundle = f.sign(t, in.Manifest)
		}, []string{"manifest.format"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := f.in
			in.Disk = f.clean
			c.edit(&in)
			failed := failures(t, in)
			for _, want := range c.want {
				if _, ok := failed[want]; !ok {
					t.Errorf("check %s passed; failed: %v", want, names(failed))
				}
			}
		})
	}
}

func TestFilesBesideTheManifestAreChecked(t *testing.T) {
	f := small(t)
	const result = "test.intoto.json"
	tested := []byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"manifest.json","digest":{"sha256":"` +
		manifest.SHA256(sha256.Sum256(f.in.Manifest)).String() + `"}}],"predicateType":"https://sealift.dev/attestation/image-test/v1","predicate":{"result":"passed"}}`)
	// test writes a statement of a test, signed as it is after the edit.
	test := func(old, new string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			b := bytes.Replace(tested, []byte(old), []byte(new), 1)
			write(t, dir, result, b)
			write(t, dir, result+bundleSuffix, f.signStatement(t, b))
		}
	}
	without := func(names ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, name := range names {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	badTest := []string{"file " + result + bundleSuffix}
	for name, c := range map[string]struct {
		edit func(t *testing.T, dir string)
		want []string
	}{
		"nothing":                  {func(*testing.T, string) {}, nil},
		"a passed test":            {test("", ""), nil},
		"a failed test":            {test(`"passed"`, `"failed"`), badTest},
		"a test of another image":  {test(`"sha256":"`, `"sha256":"00`), badTest},
		"a test about no manifest": {test(`[{"name":"manifest.json"`, `[{"name":"uki.efi"`), badTest},
		"a test about nothing": {func(t *testing.T, dir string) {
			b := []byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"https://sealift.dev/attestation/image-test/v1","predicate":{"result":"passed"}}`)
			write(t, dir, result, b)
			write(t, dir, result+bundleSuffix, f.signStatement(t, b))
		}, badTest},
		"another statement as the test": {test("image-test/v1", "image-test/v2"), badTest},
		"a test that is not signed":     {func(t *testing.T, dir string) { write(t, dir, result, tested) }, badTest},
		"a signature without its test": {func(t *testing.T, dir string) {
			write(t, dir, result+bundleSuffix, f.signStatement(t, tested))
		}, badTest},
		"another test than was signed": {func(t *testing.T, dir string) {
			write(t, dir, result, append(bytes.Clone(tested), '\n'))
			write(t, dir, result+bundleSuffix, f.signStatement(t, tested))
		}, badTest},
		"a test signed as a file": {func(t *testing.T, dir string) {
			write(t, dir, result, tested)
			write(t, dir, result+bundleSuffix, f.sign(t, tested))
		}, badTest},
		"some other signed file": {func(t *testing.T, dir string) {
			write(t, dir, "UPDATE.json", []byte("{}"))
			write(t, dir, "UPDATE.json"+bundleSuffix, f.sign(t, []byte("{}")))
		}, []string{"files.listed"}},
		"no provenance":                 {without(fileProvenance, fileProvenance+bundleSuffix), []string{"file " + fileProvenance + bundleSuffix}},
		"provenance that is not signed": {without(fileProvenance + bundleSuffix), []string{"file " + fileProvenance + bundleSuffix}},
		"an SBOM that is not signed":    {without(image.FileSPDX + bundleSuffix), []string{"file " + image.FileSPDX + bundleSuffix}},
		"an SBOM as the provenance": {func(t *testing.T, dir string) {
			write(t, dir, fileProvenance, read(t, dir, image.FileSPDX))
			write(t, dir, fileProvenance+bundleSuffix, read(t, dir, image.FileSPDX+bundleSuffix))
		}, []string{"file " + fileProvenance + bundleSuffix}},
		"another SBOM than was signed": {func(t *testing.T, dir string) {
			write(t, dir, image.FileSPDX, append(read(t, dir, image.FileSPDX), '\n'))
		}, []string{"file " + image.FileSPDX + bundleSuffix, "file " + image.FileSPDX}},
		"an unsigned file": {func(t *testing.T, dir string) { write(t, dir, "notes.txt", []byte("x")) }, []string{"files.listed"}},
		"a changed installer": {func(t *testing.T, dir string) {
			b := read(t, dir, image.FileInstaller)
			b[len(b)/2] ^= 1
			write(t, dir, image.FileInstaller, b)
		}, []string{"file installer.efi", "installer.signature", "installer.reference", "boots.reference"}},
		"no installer": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, image.FileInstaller)); err != nil {
				t.Fatal(err)
			}
		}, []string{"file installer.efi", "installer.layout"}},
		"a link in place of the UKI": {func(t *testing.T, dir string) {
			if err := errors.Join(os.Rename(filepath.Join(dir, image.FileUKI), filepath.Join(dir, "..", "uki")), os.Symlink("../uki", filepath.Join(dir, image.FileUKI))); err != nil {
				t.Fatal(err)
			}
		}, []string{"file uki.efi"}},
		"a truncated zstd": {func(t *testing.T, dir string) {
			b := read(t, dir, image.FileDiskZstd)
			write(t, dir, image.FileDiskZstd, b[:len(b)-1])
		}, []string{"file disk.raw.zst", "file disk.raw.zst: content"}},
		"data behind the zstd": {func(t *testing.T, dir string) {
			write(t, dir, image.FileDiskZstd, append(read(t, dir, image.FileDiskZstd), 0))
		}, []string{"file disk.raw.zst", "file disk.raw.zst: content"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "image")
			if err := os.CopyFS(dir, os.DirFS(f.dir)); err != nil {
				t.Fatal(err)
			}
			c.edit(t, dir)
			in := f.in
			in.Disk, in.Dir = f.clean, dir
			failed := failures(t, in)
			for _, want := range c.want {
				if _, ok := failed[want]; !ok {
					t.Errorf("check %s passed; failed: %v", want, names(failed))
				}
			}
			if len(c.want) == 0 && len(failed) > 0 {
				t.Errorf("failed: %v", names(failed))
			}
		})
	}
}

func artifact(f *fixture, kind string) manifest.Artifact {
	a, _ := f.m.Artifact(kind)
	return a
}

func write(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// installed returns the disk as it is on a machine: larger, with a GUID of its
// own, the backup table at its end, and a state partition if one is wanted.
func installed(f *fixture, state bool) *memory {
	const more = 64 << 20
	old, le := f.clean.size, binary.LittleEndian
	d := f.clean.fork(old + more)
	sectors := uint64(d.size / SectorSize)
	d.put(old-gptBackupTail*SectorSize, make([]byte, gptBackupTail*SectorSize)...)
	d.put(d.size-gptBackupTail*SectorSize, d.get(2*SectorSize, gptArraySectors*SectorSize)...)
	h := d.get(SectorSize, SectorSize)
	le.PutUint64(h[48:], sectors-gptBackupTail-1)
	h[56]++
	le.PutUint64(h[32:], sectors-1)
	d.put(SectorSize, h...)
	le.PutUint64(h[24:], sectors-1)
	le.PutUint64(h[32:], 1)
	le.PutUint64(h[72:], sectors-gptBackupTail)
	d.put(d.size-SectorSize, h...)
	d.put(446+12, le.AppendUint32(nil, uint32(sectors-1))...)
	gptEdit(d, func(_, a []byte) {
		if !state {
			return
		}
		e := a[5*gptEntrySize:]
		kind, err := guid.Parse("0fc63daf-8483-4772-8e79-3d69d8477de4")
		if err != nil {
			panic(err)
		}
		copy(e, kind[:])
		e[16] = 0x77
		end := uint64(0)
		for _, p := range f.m.Disk.Partitions {
			end = max(end, p.FirstLBA+p.Sectors)
		}
		le.PutUint64(e[32:], (end+2047)/2048*2048)
		le.PutUint64(e[40:], sectors-gptBackupTail-1)
		for i, c := range "state" {
			e[56+2*i] = byte(c)
		}
	})
	d.put(d.Size()-1<<20, []byte("LUKS, ext4, whatever")...)
	return d
}

func TestAnInstalledDiskIsTheImagePlusItsOwn(t *testing.T) {
	f := small(t)
	for _, state := range []bool{false, true} {
		d := installed(f, state)
		in := f.in
		in.Disk, in.Installed = d, true
		if failed := failures(t, in); len(failed) > 0 {
			t.Errorf("state %t: %v", state, names(failed))
		}
		in.Installed = false
		if failed := failures(t, in); len(failed) < 3 {
			t.Errorf("state %t, taken for an image: %v", state, names(failed))
		}
	}
	off, _ := f.partition(t, manifest.RoleESP)
	for name, c := range map[string]struct {
		at   int64
		want string
	}{
		"ESP": {off + 3<<20, "disk.chunks"}, "gap": {100 * SectorSize, "disk.gaps"}, "table": {2*SectorSize + 40, "disk.gpt"},
	} {
		d := installed(f, true)
		d.flip(c.at, 1)
		in := f.in
		in.Disk, in.Installed = d, true
		if _, ok := failures(t, in)[c.want]; !ok {
			t.Errorf("%s: check %s passed", name, c.want)
		}
	}
}

func TestACompressedDiskVerifiesLikeTheRawOne(t *testing.T) {
	f := small(t)
	d, err := OpenArtifact(filepath.Join(f.dir, image.FileDiskZstd), manifest.KindDiskZstd)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	in := f.in
	in.Disk, in.DiskName = d, image.FileDiskZstd
	if failed := failures(t, in); len(failed) > 0 {
		t.Error(names(failed))
	}
	if d.Kind != manifest.KindDiskZstd || d.Device {
		t.Errorf("opened as %+v", d)
	}
}
