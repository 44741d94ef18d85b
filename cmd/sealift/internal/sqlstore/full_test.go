package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// TestDiskFull has a process write until its files may not grow any more, which
// is what a full disk looks like to it. Its writes then fail whole, what was
// written stays and can be read, and with space again they succeed.
func TestDiskFull(t *testing.T) {
	if path := os.Getenv("SQLSTORE_TEST_FULL"); path != "" {
		if err := fillDisk(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	path := filepath.Join(t.TempDir(), "state.db")
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiskFull$")
	cmd.Env = append(os.Environ(), "SQLSTORE_TEST_FULL="+path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// And another process finds the same.
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var v audit.Verifier
	for e, err := range s.Audit(t.Context(), 1) {
		if err == nil {
			err = v.Add(e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if v.Head().Seq < 2 {
		t.Errorf("the log ends at entry %d", v.Head().Seq)
	}
}

// limitFiles bounds the size of files that this process writes; 0 is no bound.
func limitFiles(size uint64) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
		return err
	}
	if l.Cur = size; size == 0 {
		l.Cur = l.Max
	}
	return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l)
}

func fillDisk(path string) error {
	signal.Ignore(syscall.SIGXFSZ) // a write then fails with EFBIG
	ctx := context.Background()
	s, err := Create(ctx, path)
	if err != nil {
		return err
	}
	write := func(i int) (*server.Change, error) {
		id := fmt.Sprint("r", i)
		c := &server.Change{
			Release: &server.Release{ID: id, Machine: attest.MachineID{1}, ResetCount: uint32(i)}, Evidence: append(make([]byte, 60<<10), id...),
			Events: []audit.Event{{Time: time.Unix(1, 0), Kind: audit.KindRelease, Data: audit.Release{ID: id}}},
		}
		return c, s.Commit(ctx, c)
	}
	if err := limitFiles(2 << 20); err != nil {
		return err
	}
	written, failed := 0, 0
	for i := range 400 {
		c, err := write(i)
		_, found := s.Release(ctx, c.Release.ID)
		switch {
		case err == nil && found != nil:
			return fmt.Errorf("release %d was written, and cannot be read: %w", i, found)
		case err != nil && (errors.Is(err, server.ErrReleased) || errors.Is(err, server.ErrConflict)):
			return fmt.Errorf("a full disk is taken for an answer: %w", err)
		case err != nil && !errors.Is(found, server.ErrNotFound):
			return fmt.Errorf("release %d failed (%v), and there is something of it: %w", i, err, found)
		case err == nil:
			written = i + 1
		default:
			failed++
		}
		if failed == 5 {
			break
		}
	}
	if written == 0 || failed < 5 {
		return fmt.Errorf("%d written, %d failed: the disk was never full", written, failed)
	}
	for i := range written {
		if _, err := s.Release(ctx, fmt.Sprint("r", i)); err != nil {
			return fmt.Errorf("on the full disk: %w", err)
		}
	}
	if err := limitFiles(0); err != nil {
		return err
	}
	for i := range 10 {
		if _, err := write(1000 + i); err != nil {
			return fmt.Errorf("with space again: %w", err)
		}
	}
	return s.Close()
}
