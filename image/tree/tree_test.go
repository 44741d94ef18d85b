package tree

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// must fails the test at the first error.
func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func paths(t *Tree) []string {
	var p []string
	_ = t.Walk(func(name string, _ *Node) error {
		p = append(p, name)
		return nil
	})
	return p
}

func TestTreeWalksInPathOrderWhateverTheOrderOfAdding(t *testing.T) {
	names := []string{"usr/bin/b", "usr/bin/a", "etc/x", "usr/lib/m/n/o", "b", "a.d/z", "a"}
	want := []string{".", "a", "a.d", "a.d/z", "b", "etc", "etc/x", "usr", "usr/bin", "usr/bin/a", "usr/bin/b",
		"usr/lib", "usr/lib/m", "usr/lib/m/n", "usr/lib/m/n/o"}
	for range 2 {
		tr := New()
		for _, n := range names {
			must(t, tr.WriteFile(n, nil, 0o644))
		}
		if got := paths(tr); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		slices.Reverse(names)
	}
}

func TestTreeFollowsLinksInsideItself(t *testing.T) {
	tr := New()
	must(t,
		tr.Mkdir("usr/lib", 0o755),
		tr.Symlink("usr/lib", "lib"),
		tr.Symlink("/usr", "u"),
		tr.Symlink("../../../usr/lib", "usr/up"),
		tr.Symlink("loop2", "loop1"),
		tr.Symlink("loop1", "loop2"),
		tr.WriteFile("/lib/libc.so.6", []byte("c"), 0o755),
		tr.Symlink("libc.so.6", "usr/lib/libc.so"),
	)
	for _, name := range []string{"usr/lib/libc.so.6", "/lib/libc.so.6", "u/lib/libc.so.6", "usr/up/libc.so"} {
		n, real, err := tr.Resolve(name)
		if err != nil || n.Size() != 1 || real != "usr/lib/libc.so.6" {
			t.Errorf("Resolve(%s) = %v at %q, %v", name, n, real, err)
		}
	}
	if n, err := tr.Lookup("lib/libc.so"); err != nil || n.Target() != "libc.so.6" {
		t.Errorf("Lookup follows the last component: %v, %v", n, err)
	}
	if _, _, err := tr.Resolve("loop1"); err == nil {
		t.Error("a loop of links was resolved")
	}
	if _, err := tr.Lookup("lib/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v, want fs.ErrNotExist", err)
	}
}

func TestTreeRefusesPathsThatLeaveIt(t *testing.T) {
	for _, name := range []string{"../x", "a/../../x", "a//b", "a/./b", "", "/", ".", "a\x00b", strings.Repeat("n", MaxName+1), strings.Repeat("d/", MaxPath)} {
		if err := New().WriteFile(name, nil, 0o644); err == nil {
			t.Errorf("path %.20q was accepted", name)
		}
	}
}

func TestTreeIsNotDeep(t *testing.T) {
	tr := New()
	deepest := strings.Repeat("a/", MaxDepth-1)
	must(t, tr.WriteFile(deepest+"f", nil, 0o644))
	if err := tr.WriteFile(deepest+"a/f", nil, 0o644); err == nil {
		t.Error("a path of too many components was accepted")
	}
	must(t, tr.Symlink("/"+deepest, "l"), tr.WriteFile("l/d/f", nil, 0o644))
	if err := tr.WriteFile("l/d/d/f", nil, 0o644); err == nil || !strings.Contains(err.Error(), "directories deep") {
		t.Errorf("a link made the tree deeper: %v", err)
	}
}

// TestAPathIsWalkedOnce adds below a chain of links: as many as a path may
// have, each back and forth through many directories.
func TestAPathIsWalkedOnce(t *testing.T) {
	tr := New()
	must(t, tr.Mkdir("a", 0o755))
	must(t, tr.Symlink(strings.Repeat("a/../", 800)+"a", "l0"))
	if _, err := tr.Lookup("l0/f"); err == nil || !strings.Contains(err.Error(), "its links have more than 1024 components") {
		t.Errorf("got %v", err)
	}
	must(t, tr.Symlink(strings.Repeat("a/../", 500)+"a", "l1"), tr.WriteFile("l1/b/f", nil, 0o644))
	if _, err := tr.Lookup("a/b/f"); err != nil {
		t.Error(err)
	}
	start := time.Now()
	deep := strings.Repeat(strings.Repeat("d", 30)+"/", MaxDepth-1)
	for i := range 5_000 {
		must(t, tr.WriteFile(deep+strconv.Itoa(i), nil, 0o644))
	}
	if d := time.Since(start); d > 5*time.Second { // some 40 ms; minutes if each prefix is walked anew
		t.Errorf("5000 deep files took %s", d)
	}
	if got, want := tr.Added(), 1+1+1+2+MaxDepth-1+5_000; got != want {
		t.Errorf("added %d nodes, want %d", got, want)
	}
}

func TestTreeMakesNoDirectoryBehindALink(t *testing.T) {
	tr := New()
	must(t, tr.Mkdir("usr", 0o755), tr.Symlink("usr/none", "gone"), tr.Symlink("gone", "away"))
	for _, name := range []string{"gone/a", "away/a/b"} {
		if err := tr.WriteFile(name, nil, 0o644); err == nil || !strings.Contains(err.Error(), "is a link to nothing") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if got := paths(tr); !slices.Equal(got, []string{".", "away", "gone", "usr"}) {
		t.Errorf("the tree holds %v", got)
	}
}

func TestContentMayLieInAReader(t *testing.T) {
	tr := New()
	must(t, tr.AddReader("f", strings.NewReader("one and more"), 3, 0o644))
	if b, err := tr.ReadFile("f", 3); err != nil || string(b) != "one" {
		t.Errorf("got %q, %v", b, err)
	}
	must(t, tr.AddReader("f", strings.NewReader("cut"), 4, 0o644))
	if err := tr.WriteCPIO(&bytes.Buffer{}, 0); err == nil {
		t.Error("a file was written without all of its content")
	}
}

func TestTreeKeepsDirectoriesAndRefusesFilesAsDirectories(t *testing.T) {
	tr := New()
	must(t, tr.WriteFile("etc/a", []byte("1"), 0o600), tr.Symlink("nowhere", "gone"))
	if err := tr.WriteFile("etc", nil, 0o644); err == nil {
		t.Error("a file replaced a directory")
	}
	if err := tr.WriteFile("etc/a/b", nil, 0o644); err == nil {
		t.Error("a file was added below a file")
	}
	if err := tr.WriteFile("gone/b", nil, 0o644); err == nil {
		t.Error("a file was added through a dangling link")
	}
	must(t, tr.WriteFile("etc/a", []byte("22"), 0o640), tr.Mkdir("etc", 0o700))
	if b, err := tr.ReadFile("etc/a", 10); err != nil || string(b) != "22" {
		t.Errorf("got %q, %v, want the replacement", b, err)
	}
	if _, err := tr.ReadFile("etc/a", 1); err == nil {
		t.Error("a file above the limit was read")
	}
	if n, _ := tr.Lookup("etc"); n.Mode() != fs.ModeDir|0o700 {
		t.Errorf("mode is %v, want drwx------", n.Mode())
	}
	must(t, tr.Remove("etc/a"))
	if err := tr.Remove("etc/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("second removal: %v", err)
	}
}

func TestFileThatChangedItsLengthIsAnError(t *testing.T) {
	host := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(host, []byte("one"), 0o600))
	tr := New()
	must(t, tr.AddFile("f", host, 0o644), os.WriteFile(host, []byte("longer"), 0o600))
	if err := tr.WriteCPIO(&bytes.Buffer{}, 0); err == nil {
		t.Error("the changed file was written")
	}
	if err := New().AddFile("d", t.TempDir(), 0o644); err == nil {
		t.Error("a directory was added as a file")
	}
}

func TestStatsCountsNodes(t *testing.T) {
	tr := New()
	must(t, tr.WriteFile("bin/x", []byte("1234"), 0o755), tr.WriteFile("etc/y", []byte("1"), 0o644), tr.Symlink("x", "bin/z"))
	if got, want := tr.Stats(), (Stats{Files: 2, Dirs: 3, Links: 1, Bytes: 5, Executables: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
