package keyring

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/cmd/sealift/internal/mounttest"
)

// TestAFullDiskLeavesAllKeysOrNone makes keys on file systems that have room for the
// first so many files, and notes certificates until there is room for a part of a line.
func TestAFullDiskLeavesAllKeysOrNone(t *testing.T) { mounttest.Run(t, full) }

// full runs in a mount namespace of its own.
func full(dir string) error {
	const pages = 64
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", pages*os.Getpagesize())); err != nil {
		return err
	}
	filler := filepath.Join(dir, "filler")
	leave := func(free int) error {
		return errors.Join(os.RemoveAll(filler), os.WriteFile(filler, make([]byte, (pages-free)*os.Getpagesize()), 0o600))
	}
	keys := filepath.Join(dir, "keys")
	failed := 0
	var k *Keyring
	for free := 0; k == nil; free += 3 {
		if err := leave(free); err != nil {
			return err
		}
		err := Init(keys, time.Now(), rand.Reader)
		files, listErr := os.ReadDir(dir)
		switch {
		case listErr != nil:
			return listErr
		case err == nil:
			if k, err = Open(keys); err != nil {
				return err
			}
		case !errors.Is(err, syscall.ENOSPC):
			return fmt.Errorf("%d pages free: %w, want ENOSPC", free, err)
		case len(files) != 1:
			return fmt.Errorf("%d pages free: %w, and there is %v", free, err, files)
		default:
			failed++
		}
	}
	if failed < 3 {
		return fmt.Errorf("only %d times there was not enough room", failed)
	}
	_, err1 := k.Release()
	_, err2 := k.DiskKEK()
	_, err3 := k.PCR()
	_, err4 := k.Image()
	issuer, err5 := k.Issuer(time.Now(), rand.Reader)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return err
	}
	crt, err := issuer.IssueOperator("ana", []api.Role{api.RoleViewer})
	if err != nil {
		return err
	}
	count := func(want int) error {
		all, err := k.IssuedTo("ana", time.Now())
		if err != nil || len(all) != want {
			return fmt.Errorf("%d certificates are noted, %w; want %d", len(all), err, want)
		}
		return nil
	}
	if err := leave(pages / 2); err != nil {
		return err
	}
	if err := k.Register(crt.Leaf); err != nil {
		return err
	}
	// Whatever is free but for the page that the list has.
	var left unix.Statfs_t
	if err := unix.Statfs(dir, &left); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "more"), make([]byte, int64(left.Bfree)*left.Bsize), 0o600); err != nil {
		return err
	}
	n := 1
	for ; n < 1000; n++ {
		if err = k.Register(crt.Leaf); err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("after %d lines: %w, want ENOSPC", n, err)
	}
	if err := count(n); err != nil {
		return err
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	if err := k.Register(crt.Leaf); err != nil {
		return err
	}
	return count(n + 1)
}
