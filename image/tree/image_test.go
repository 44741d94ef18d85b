package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// needTool skips the test without the program, or fails it where every tool
// has to be there.
func needTool(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("%s is missing: %v", name, err)
		}
		t.Skipf("%s is missing", name)
	}
	return p
}

// sample is a tree with what file system writers get wrong: empty, tiny,
// block-sized and large files, long names and link targets, directories of
// more than one block, special permission bits, names that sort around dots.
func sample(t *testing.T) *Tree {
	t.Helper()
	tr := New()
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, 31, 32, 33, 2000, 4031, 4032, 4064, 4095, 4096, 4097, 8192, 100_000, 2_000_001} {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		must(t, tr.WriteFile(fmt.Sprintf("size/%08d", size), b, 0o644))
	}
	for i := range 700 {
		must(t, tr.WriteFile(fmt.Sprintf("many/%0*d", 1+i%200, i), []byte{byte(i)}, 0o600))
	}
	host := filepath.Join(t.TempDir(), "host")
	must(t, os.WriteFile(host, bytes.Repeat([]byte("host"), 5000), 0o600))
	must(t,
		tr.AddFile("from/host", host, 0o444),
		tr.Mkdir("empty", 0o700),
		tr.Mkdir("tmp", 0o777|fs.ModeSticky),
		tr.WriteFile("modes/suid", []byte("s"), 0o755|fs.ModeSetuid),
		tr.WriteFile("modes/sgid", []byte("s"), 0o755|fs.ModeSetgid),
		tr.WriteFile("modes/none", []byte("s"), 0),
		tr.WriteFile("names/-minus", nil, 0o644),
		tr.WriteFile("names/..dots", nil, 0o644),
		tr.WriteFile("names/ space", nil, 0o644),
		tr.WriteFile("names/"+strings.Repeat("n", MaxName), nil, 0o644),
		tr.WriteFile("names/ünïcödé", nil, 0o644),
		tr.Symlink("nowhere", "links/dangling"),
		tr.Symlink("/run/machine-id", "links/absolute"),
		tr.Symlink(strings.Repeat("t", MaxPath), "links/long"),
	)
	return tr
}

// listing is one line a node: path, mode, size, content digest or target.
func listing(t *testing.T, tr *Tree) map[string]string {
	t.Helper()
	l := map[string]string{}
	must(t, tr.Walk(func(name string, n *Node) error {
		switch {
		case n.IsDir():
			l[name] = n.Mode().String()
		case n.Mode()&fs.ModeSymlink != 0:
			l[name] = "-> " + n.Target()
		default:
			b, err := tr.ReadFile(name, 1<<30)
			if err != nil {
				return err
			}
			d := sha256.Sum256(b)
			l[name] = n.Mode().String() + " " + hex.EncodeToString(d[:])
		}
		return nil
	}))
	return l
}

// hostListing is listing of a directory of the machine. It also checks times.
func hostListing(t *testing.T, dir string, epoch int64) map[string]string {
	t.Helper()
	l := map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		st, err := os.Lstat(p)
		if err != nil {
			return err
		}
		if epoch >= 0 && !st.ModTime().Equal(time.Unix(epoch, 0)) {
			t.Errorf("%s: modification time %v, want %d", rel, st.ModTime(), epoch)
		}
		switch {
		case d.IsDir():
			l[rel] = st.Mode().String()
		case st.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			l[rel] = "-> " + target
		default:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(b)
			l[rel] = st.Mode().String() + " " + hex.EncodeToString(sum[:])
		}
		return nil
	}))
	return l
}

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, w := range want {
		if g, ok := got[name]; !ok || g != w {
			t.Errorf("%.60s: got %.80q, want %.80q", name, g, w)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%.60s: not in the tree", name)
		}
	}
}

func writeEROFS(t *testing.T, tr *Tree, epoch int64) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "root.erofs")
	f, err := os.Create(p)
	must(t, err, tr.WriteEROFS(f, EROFSOptions{Epoch: epoch, TempDir: t.TempDir()}), f.Close())
	return p
}

func TestEROFSIsTheSameTwice(t *testing.T) {
	a, err := os.ReadFile(writeEROFS(t, sample(t), 1700000000))
	must(t, err)
	b, err := os.ReadFile(writeEROFS(t, sample(t), 1700000000))
	must(t, err)
	if !bytes.Equal(a, b) {
		t.Error("two images of one tree differ")
	}
	if len(a)%EROFSBlock != 0 {
		t.Errorf("image of %d bytes is not a whole number of blocks", len(a))
	}
}

func TestEROFSPassesFsckAndUnpacksToTheSameTree(t *testing.T) {
	fsck := needTool(t, "fsck.erofs")
	tr := sample(t)
	img := writeEROFS(t, tr, 1700000000)
	out := filepath.Join(t.TempDir(), "out")
	if b, err := exec.Command(fsck, "--extract="+out, "--preserve", img).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v\n%s", err, b)
	}
	// fsck.erofs 1.5 sets the owner after the mode, which drops setuid and
	// setgid; the mount test holds those.
	must(t, tr.Remove("modes/suid"), tr.Remove("modes/sgid"))
	got := hostListing(t, out, 1700000000)
	delete(got, "modes/suid")
	delete(got, "modes/sgid")
	compare(t, got, listing(t, tr))
}

func TestEROFSMountsAndReadsAsTheSameTree(t *testing.T) {
	mount := needTool(t, "mount")
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !bytes.Contains(b, []byte("\terofs\n")) {
		t.Skip("this kernel has no EROFS")
	}
	tr := sample(t)
	img := writeEROFS(t, tr, 1700000000)
	dir := t.TempDir()
	if b, err := exec.Command(mount, "-o", "loop,ro", "-t", "erofs", img, dir).CombinedOutput(); err != nil {
		t.Skipf("this machine mounts no image: %v: %s", err, b)
	}
	defer func() {
		if b, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, b)
		}
	}()
	compare(t, hostListing(t, dir, 1700000000), listing(t, tr))
}

func TestInitrdIsTheSameTwiceAndUnpacksToTheSameTree(t *testing.T) {
	tool := needTool(t, "cpio")
	tr := sample(t)
	// Linux does not unpack a link target of PATH_MAX bytes; GNU cpio neither.
	must(t, tr.Remove("links/long"))
	var a, b bytes.Buffer
	must(t, tr.WriteInitrd(&a, 1700000000), tr.WriteInitrd(&b, 1700000000))
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives of one tree differ")
	}
	z, err := zstd.NewReader(&a)
	must(t, err)
	defer z.Close()
	out := t.TempDir()
	c := exec.Command(tool, "-i", "-d", "-m", "--quiet", "--no-absolute-filenames")
	c.Dir, c.Stdin = out, z
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, b)
	}
	compare(t, hostListing(t, out, -1), listing(t, tr))
}
