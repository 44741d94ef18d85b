package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MovedMounts go along into the real root. The directories must exist there.
func MovedMounts() []string { return []string{"/dev", "/proc", "/sys", "/run"} }

// SwitchRoot makes newRoot the root directory and executes path in it as the
// same process. It frees the initramfs, which is memory. It returns only with
// an error, after which nothing of the old root can be relied on.
//
// The kernel refuses pivot_root(2) in an initramfs, so newRoot is moved over
// "/" instead (see Documentation/filesystems/ramfs-rootfs-initramfs.rst).
// Threads share the working and root directory, and execve ends the other
// threads, so this is safe in a Go program.
func SwitchRoot(newRoot, path string, argv, env []string) error {
	if !InInitramfs() {
		return errors.New("switch root: the root directory is not an initramfs, refusing to delete it")
	}
	if _, err := os.Stat(filepath.Join(newRoot, path)); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	for _, m := range MovedMounts() {
		if err := unix.Mount(m, filepath.Join(newRoot, m), "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("switch root: move %s: %w", m, err)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return fmt.Errorf("switch root: enter %s: %w", newRoot, err)
	}
	if err := removeFileSystem("/"); err != nil {
		return fmt.Errorf("switch root: free the initramfs: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("switch root: move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("switch root: chroot: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("switch root: enter the root: %w", err)
	}
	return fmt.Errorf("switch root: execute %s: %w", path, unix.Exec(path, argv, env))
}

// removeFileSystem deletes everything below dir that is on dir's own file
// system. Mount points and what is mounted there stay.
func removeFileSystem(dir string) error {
	var top unix.Stat_t
	if err := unix.Lstat(dir, &top); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	return removeBelow(dir, top.Dev)
}

func removeBelow(dir string, dev uint64) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return fmt.Errorf("stat %s: %w", name, err)
		}
		if st.Dev != dev {
			continue
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := removeBelow(name, dev); err != nil {
				return err
			}
		}
		// A directory that still holds a mount point stays.
		if err := os.Remove(name); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}
