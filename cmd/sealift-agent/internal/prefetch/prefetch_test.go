package prefetch

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// resident counts the pages of a file that are in memory (mincore(2)).
func resident(t *testing.T, path string) (in, all int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	vec := make([]byte, (len(m)+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, addr(m), uintptr(len(m)), addr(vec)); errno != 0 {
		t.Fatal(errno)
	}
	for _, v := range vec {
		in += int(v & 1)
	}
	return in, len(vec)
}

func TestEveryPageIsInMemoryAfterwards(t *testing.T) {
	root := t.TempDir()
	for _, readers := range []int{1, 2, 3} {
		for _, size := range []int{1, chunk, 5*chunk + 17} {
			path := filepath.Join(root, "program")
			if err := os.WriteFile(path, []byte(strings.Repeat("x", size)), 0o644); err != nil {
				t.Fatal(err)
			}
			evict(t, path)
			if err := Files(t.Context(), root, []string{"/program"}, readers); err != nil {
				t.Fatal(err)
			}
			if in, all := resident(t, path); in != all {
				t.Errorf("%d readers, %d bytes: %d of %d pages are in memory", readers, size, in, all)
			}
		}
	}
}

func TestAMissingFileDoesNotStopTheRest(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "program")
	if err := os.WriteFile(path, make([]byte, 3*chunk), 0o644); err != nil {
		t.Fatal(err)
	}
	evict(t, path)
	if err := Files(t.Context(), root, []string{"/missing", "/program"}, 2); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that a file is missing", err)
	}
	if in, all := resident(t, path); in != all {
		t.Errorf("%d of %d pages of the other file are in memory", in, all)
	}
}

func TestAnEndedContextEndsIt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Files(ctx, t.TempDir(), []string{"/missing"}, 1); err != nil {
		t.Errorf("got %v, want that nothing was tried", err)
	}
}
