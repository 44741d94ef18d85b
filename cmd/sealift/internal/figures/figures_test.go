// Package figures compares what the image builder does with what a user would
// otherwise run, on the same input in one run. It has no code of its own:
// "make bench" runs its test, which writes the table that is in docs/figures.md.
package figures

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/image/verity"
	"github.com/sealift/sealift/profiles"
)

// TestFigures builds the demo image and measures. It takes minutes, so it runs
// only where SEALIFT_BENCH names the file to write the table to; SEALIFT_BIN is
// the directory of the built programs.
func TestFigures(t *testing.T) {
	out := os.Getenv("SEALIFT_BENCH")
	if out == "" {
		t.Skip("figures: make bench")
	}
	root, err := filepath.Abs("../../../..")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{T: t, dir: t.TempDir(), root: root, bin: os.Getenv("SEALIFT_BIN")}
	b.buildImage()
	b.extract()
	b.contents()
	b.fileSystems()
	b.hashing()
	b.compression()
	if err := os.WriteFile(out, []byte(b.table()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", b.table())
}

// bench collects the rows.
type bench struct {
	*testing.T
	dir, root, bin string
	manifest       *manifest.Manifest
	rows           []string
}

// cost is what a program or a function took.
type cost struct {
	took  time.Duration
	bytes int64 // of its result; 0 if that does not matter
	rss   int64 // bytes at its peak; 0 if unknown
}

// image is a path in the built image.
func (b *bench) image(name string) string { return filepath.Join(b.dir, "image", name) }

// must ends the test on an error.
func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// run runs a program and measures it. result is the file that it makes, if any.
func (b *bench) run(result, program string, args ...string) cost {
	b.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = b.root
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	began := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, log.String())
	}
	c := cost{took: time.Since(began)}
	if ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		c.rss = ru.Maxrss << 10
	}
	if result != "" {
		st, err := os.Stat(result)
		b.must(err)
		c.bytes = st.Size()
	}
	return c
}

// measure runs a function that makes the file result.
func (b *bench) measure(result string, f func(out *os.File) error) cost {
	b.Helper()
	file, err := os.Create(result)
	b.must(err)
	began := time.Now()
	b.must(f(file))
	c := cost{took: time.Since(began)}
	st, err := file.Stat()
	b.must(err)
	c.bytes = st.Size()
	b.must(file.Close())
	return c
}

// goal adds a row that compares with a goal.
func (b *bench) goal(what, got, want string) {
	b.rows = append(b.rows, fmt.Sprintf("| %s | %s | %s | |", what, got, want))
}

// atMost adds a row with a size or a number that must not grow past its goal,
// whatever machine it is on.
func (b *bench) atMost(what string, got, most int64, shown, goal string) {
	b.goal(what, shown, goal)
	if got > most {
		b.Errorf("%s: %s, want at most %s", what, shown, goal)
	}
}

// versus adds a row that compares with another program.
func (b *bench) versus(what string, ours cost, other string, theirs cost) {
	ratio := fmt.Sprintf("%.2f of the time", ours.took.Seconds()/theirs.took.Seconds())
	if ours.bytes > 0 && theirs.bytes > 0 {
		ratio += fmt.Sprintf(", %.2f of the size", float64(ours.bytes)/float64(theirs.bytes))
	}
	b.rows = append(b.rows, fmt.Sprintf("| %s | %s | %s: %s | %s |", what, ours, other, theirs, ratio))
}

func (c cost) String() string {
	s := fmt.Sprintf("%.2f s", c.took.Seconds())
	if c.bytes > 0 {
		s += ", " + megabytes(c.bytes)
	}
	return s
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func (b *bench) table() string {
	return fmt.Sprintf("| what (%d CPUs, %s) | Sealift | goal, or what else there is | ratio |\n| --- | --- | --- | --- |\n%s\n",
		runtime.NumCPU(), runtime.Version(), strings.Join(b.rows, "\n"))
}

// buildImage builds the demo profile twice: the first build fills the cache.
func (b *bench) buildImage() {
	keys := filepath.Join(b.dir, "keys")
	b.run("", filepath.Join(b.bin, "sealift"), "keys", "init", keys)
	args := []string{"image", "build", "profiles/demo.yaml", "--keys", keys, "--cache", "build/cache", "--out", b.image("")}
	b.run("", filepath.Join(b.bin, "sealift"), args...)
	c := b.run("", filepath.Join(b.bin, "sealift"), args...)
	b.goal("image build, cache warm", fmt.Sprintf("%.1f s", c.took.Seconds()), "15 s")
	b.goal("its memory at the peak", megabytes(c.rss), "1074 MB (1 GiB)")
	encoded, err := os.ReadFile(b.image("manifest.json"))
	b.must(err)
	b.manifest, err = manifest.Decode(encoded)
	b.must(err)
	for _, a := range b.manifest.Artifacts {
		if a.Kind == manifest.KindUKI {
			b.atMost("UKI", a.Size, 30e6, megabytes(a.Size), "30 MB")
		}
	}
}

// extract takes the root file system out of the disk, as a file and as a tree.
func (b *bench) extract() {
	i := slices.IndexFunc(b.manifest.Disk.Partitions, func(p manifest.Partition) bool { return p.Role == manifest.RoleRootA })
	if i < 0 {
		b.Fatal("the image has no root partition")
	}
	f, err := os.Open(b.image("disk.raw"))
	b.must(err)
	defer f.Close()
	part := io.NewSectionReader(f, int64(b.manifest.Disk.Partitions[i].FirstLBA)*512, b.manifest.Root.Size)
	b.measure(filepath.Join(b.dir, "root.img"), func(out *os.File) error {
		_, err := io.Copy(out, part)
		return err
	})
	b.run("", "fsck.erofs", "--extract="+filepath.Join(b.dir, "tree"), "--no-preserve-owner", "--preserve-perms", filepath.Join(b.dir, "root.img"))
}

// load makes a tree of the files below dir for which keep is true.
func (b *bench) load(dir string, keep func(name string) bool) *tree.Tree {
	t := tree.New()
	b.must(filepath.WalkDir(dir, func(host string, d fs.DirEntry, err error) error {
		if err != nil || host == dir {
			return err
		}
		name := strings.TrimPrefix(host, dir)
		info, err := d.Info()
		if err != nil || !keep(name) {
			return err
		}
		switch {
		case d.IsDir():
			return t.Mkdir(name, info.Mode())
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(host)
			if err != nil {
				return err
			}
			return t.Symlink(target, name)
		}
		return t.AddFile(name, host, info.Mode())
	}))
	return t
}

// contents counts the programs, and weighs what is left without Kubernetes.
func (b *bench) contents() {
	distro, err := profiles.LoadDistro(b.manifest.Kubernetes.Distro)
	b.must(err)
	own := map[string]bool{}
	for _, p := range distro.Content.Packages {
		for _, f := range p.Files {
			own[merged(f)] = true
		}
	}
	for _, v := range distro.Versions {
		for _, p := range v.Builds {
			own[merged(p.Path)] = true
		}
	}
	var beside []string
	dir := filepath.Join(b.dir, "tree")
	all := b.load(dir, func(string) bool { return true })
	b.must(all.Walk(func(name string, n *tree.Node) error {
		if n.Mode().IsRegular() && n.Mode()&0o111 != 0 && !own[merged("/"+name)] && !strings.Contains(name, ".so") {
			beside = append(beside, filepath.Base(name))
		}
		return nil
	}))
	b.atMost("executables beside the distro's own", int64(len(beside)), 25, fmt.Sprintf("%d: %s", len(beside), strings.Join(beside, ", ")), "25")

	bare := b.load(dir, func(name string) bool {
		return !own[merged(name)] && !strings.HasPrefix(name, profiles.ImagesDir)
	})
	img := filepath.Join(b.dir, "os.img")
	c := b.measure(img, func(out *os.File) error { return bare.WriteEROFS(out, tree.EROFSOptions{TempDir: b.dir}) })
	whole := (c.bytes + disk.ChunkSize - 1) / disk.ChunkSize * disk.ChunkSize
	b.must(os.Truncate(img, whole))
	packed := b.compress(img, whole)
	st, err := os.Stat(b.image("uki.efi"))
	b.must(err)
	b.atMost("OS without Kubernetes, root and UKI, compressed", packed.bytes+st.Size(), 60e6, megabytes(packed.bytes+st.Size()), "60 MB")
}

// merged spells a path as it is in a merged /usr.
func merged(name string) string {
	for _, d := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} {
		if strings.HasPrefix(name, d) {
			return "/usr" + name
		}
	}
	return name
}

// fileSystems makes the root file system in other ways.
func (b *bench) fileSystems() {
	dir := filepath.Join(b.dir, "tree")
	ours := b.measure(filepath.Join(b.dir, "ours.erofs"), func(out *os.File) error {
		return b.load(dir, func(string) bool { return true }).WriteEROFS(out, tree.EROFSOptions{TempDir: b.dir})
	})
	for _, o := range []struct{ name, file, program string }{
		{"mkfs.erofs", "plain.erofs", "mkfs.erofs -T0 --all-root %[1]s %[2]s"},
		{"mkfs.erofs -zlz4hc", "lz4.erofs", "mkfs.erofs -zlz4hc -C65536 -T0 --all-root %[1]s %[2]s"},
		{"mksquashfs -comp zstd", "zstd.squashfs", "mksquashfs %[2]s %[1]s -quiet -no-progress -all-root -noappend -comp zstd"},
	} {
		file := filepath.Join(b.dir, o.file)
		args := strings.Fields(fmt.Sprintf(o.program, file, dir))
		b.versus("root file system", ours, o.name, b.run(file, args[0], args[1:]...))
	}
}

// hashing makes the dm-verity tree of the root in two ways, which must agree.
func (b *bench) hashing() {
	root, err := os.Open(filepath.Join(b.dir, "root.img"))
	b.must(err)
	defer root.Close()
	m := b.manifest.Root
	ours := b.measure(filepath.Join(b.dir, "ours.verity"), func(out *os.File) error {
		t, err := verity.Write(context.Background(), out, root, m.Size, m.Salt, runtime.NumCPU(), nil)
		if err == nil && t.RootHash != m.RootHash {
			err = fmt.Errorf("root hash %x, the image has %s", t.RootHash, m.RootHash)
		}
		return err
	})
	file := filepath.Join(b.dir, "theirs.verity")
	theirs := b.run("", "veritysetup", "format", "--salt="+m.Salt.String(), "--root-hash-file="+file+".hash", root.Name(), file)
	got, err := os.ReadFile(file + ".hash")
	b.must(err)
	if string(got) != m.RootHash.String() {
		b.Fatalf("veritysetup: root hash %s, the image has %s", got, m.RootHash)
	}
	ours.bytes = 0
	b.versus("dm-verity tree of "+megabytes(m.Size), ours, "veritysetup format", theirs)
}

// compression packs the disk in two ways.
func (b *bench) compression() {
	size := b.manifest.Disk.Size
	ours := b.compress(b.image("disk.raw"), size)
	file := filepath.Join(b.dir, "theirs.zst")
	theirs := b.run(file, "zstd", "-q", "-3", fmt.Sprintf("-T%d", runtime.NumCPU()), b.image("disk.raw"), "-o", file)
	b.versus("disk image of "+megabytes(size)+", with chunk digests", ours, "zstd -3", theirs)
}

// compress packs a file as the builder packs disks.
func (b *bench) compress(name string, size int64) cost {
	f, err := os.Open(name)
	b.must(err)
	defer f.Close()
	return b.measure(name+".zst", func(out *os.File) error {
		_, err := disk.Split(context.Background(), f, size, out, runtime.NumCPU(), nil)
		return err
	})
}
