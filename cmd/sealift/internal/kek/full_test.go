package kek

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/mounttest"
)

// TestAFullDiskLeavesAWholeKeyOrNone makes keys on file systems that have room for
// nothing, for a file and not for its content, for the content and not for its name, and
// for all.
func TestAFullDiskLeavesAWholeKeyOrNone(t *testing.T) { mounttest.Run(t, full) }

// full runs in a mount namespace of its own.
func full(dir string) error {
	failed, made := 0, 0
	for _, inodes := range []int{2, 3, 4, 5} { // the directory, the filler, a file, its second name
		for free := range 3 { // pages
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,nr_inodes=%d", 16*os.Getpagesize(), inodes)); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, (16-free)*os.Getpagesize()), 0o600); err != nil {
				return err
			}
			path := filepath.Join(dir, "kek.key")
			id, err := Init(path)
			files, listErr := os.ReadDir(dir)
			if listErr != nil {
				return listErr
			}
			at := fmt.Sprintf("%d inodes, %d pages free", inodes, free)
			if err != nil {
				failed++
				if len(files) != 1 {
					return fmt.Errorf("%s: %w, and there is %v", at, err, files)
				}
				if _, err := ReadFile(path); !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("%s: a key that was not made: %w", at, err)
				}
			} else {
				made++
				key, err := ReadFile(path)
				if err != nil || server.KEKID(key) != id || len(files) != 2 {
					return fmt.Errorf("%s: made %s, read %w, beside %v", at, id, err, files)
				}
				// A second one does not take its place, whatever room there is.
				if _, err := Init(path); err == nil {
					return fmt.Errorf("%s: made again", at)
				}
				if again, err := ReadFile(path); err != nil || server.KEKID(again) != id {
					return fmt.Errorf("%s: the key is another after a second one was to be made: %w", at, err)
				}
			}
			if err := unix.Unmount(dir, 0); err != nil {
				return err
			}
		}
	}
	if failed == 0 || made == 0 {
		return fmt.Errorf("%d failed, %d were made: want some of each", failed, made)
	}
	return nil
}
