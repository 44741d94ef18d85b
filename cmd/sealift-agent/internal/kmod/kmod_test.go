package kmod

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadList(t *testing.T) {
	got, err := ReadList(strings.NewReader("# in load order\n/lib/modules/virtio.ko\n\n  /lib/modules/virtio_blk.ko  \n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/lib/modules/virtio.ko", "/lib/modules/virtio_blk.ko"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for name, list := range map[string]string{
		"a relative path":    "virtio.ko\n",
		"a path that climbs": "/lib/modules/../../tmp/evil.ko\n",
		"too long a list":    strings.Repeat("/lib/modules/virtio.ko\n", MaxList/20),
		"too long a line":    "/" + strings.Repeat("x", MaxList),
	} {
		if got, err := ReadList(strings.NewReader(list)); err == nil {
			t.Errorf("%s was accepted: %d paths", name, len(got))
		}
	}
}

func TestLoadSaysWhichFileFailedAndStops(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing.ko")
	err := Load([]string{missing, "/also/missing.ko"})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("got %v", err)
	}
	file := filepath.Join(t.TempDir(), "text.ko")
	if err := os.WriteFile(file, []byte("not a module"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Without the right to load modules the kernel says EPERM before it looks.
	if err := Load([]string{file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("got %v", err)
	}
	if err := Load(nil); err != nil {
		t.Errorf("an empty list: %v", err)
	}
}

func TestErrorsSayWhatTheKernelMeans(t *testing.T) {
	for err, want := range map[error]string{
		unix.ENOEXEC:      "not an uncompressed module",
		unix.EKEYREJECTED: "signature",
		unix.ENOENT:       "not loaded",
		unix.EIO:          "",
	} {
		if got := explain(err); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%v: got %q, want %q", err, got, want)
		}
	}
}

func FuzzReadList(f *testing.F) {
	f.Add("/lib/modules/virtio.ko\n# comment\n")
	f.Fuzz(func(t *testing.T, list string) {
		paths, err := ReadList(strings.NewReader(list))
		if err != nil {
			return
		}
		for _, p := range paths {
			if !filepath.IsAbs(p) || strings.Contains(p, "\n") {
				t.Errorf("accepted %q", p)
			}
		}
	})
}
