package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// staging is a directory beside the output in which a build takes shape. It
// takes the output's place when it is complete.
//
// A directory is replaced, not a file after the other, so that at no time a
// manifest stands beside a disk that it does not describe. Nothing is synced:
// a file that a power failure cut short does not match its digest.
type staging struct {
	output string
	dir    string
	lock   *os.File // holds a lock on dir while the build runs
}

// outputFiles are the names that an output directory may hold.
func outputFiles() []string {
	return []string{FileManifest, FileBundle, FileDisk, FileDiskZstd, FileUKI, FileInstaller}
}

// stage makes the directory. It removes those that killed builds for the same
// output have left.
func stage(output string) (*staging, error) {
	output, err := filepath.Abs(output)
	if err != nil {
		return nil, fmt.Errorf("output directory: %w", err)
	}
	if err := checkOutput(output); err != nil {
		return nil, err
	}
	parent := filepath.Dir(output)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("output directory: %w", err)
	}
	prefix := "." + filepath.Base(output) + ".building-"
	if err := sweep(parent, prefix); err != nil {
		return nil, err
	}
	s := &staging{output: output}
	if s.dir, s.lock, err = lockedTemp(parent, prefix); err != nil {
		return nil, err
	}
	// MkdirTemp gives mode 0700, but images are not secret.
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("output directory: %w", err), s.discard())
	}
	return s, nil
}

// lockedTemp makes a directory and locks it. Another build may sweep it away
// before it is locked, so it tries again a few times.
func lockedTemp(parent, prefix string) (string, *os.File, error) {
	var failed error
	for range 5 {
		dir, err := os.MkdirTemp(parent, prefix)
		if err != nil {
			return "", nil, fmt.Errorf("output directory: %w", err)
		}
		lock, err := lockDir(dir)
		if err != nil {
			failed = err
			continue
		}
		here, err1 := os.Stat(dir)
		locked, err2 := lock.Stat()
		if err := errors.Join(err1, err2); err == nil && os.SameFile(here, locked) {
			return dir, lock, nil
		}
		failed = errors.Join(fmt.Errorf("lock %s: it was removed by another build", dir), lock.Close())
	}
	return "", nil, failed
}

// checkOutput refuses a directory with anything but an image in it, as it will
// be replaced.
func checkOutput(output string) error {
	entries, err := os.ReadDir(output)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("output directory: %w", err)
	}
	for _, e := range entries {
		if !slices.Contains(outputFiles(), e.Name()) || !e.Type().IsRegular() {
			return fmt.Errorf("output directory %s holds %s, which is not part of an image: choose a directory of its own", output, e.Name())
		}
	}
	return nil
}

// sweep removes staging directories whose build has ended without doing so:
// the kernel has dropped their locks.
func sweep(parent, prefix string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return fmt.Errorf("output directory: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		lock, err := lockDir(dir)
		if err != nil {
			continue // in use, or gone in the meantime
		}
		if err := errors.Join(os.RemoveAll(dir), lock.Close()); err != nil {
			return fmt.Errorf("remove what an earlier build left: %w", err)
		}
	}
	return nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

func (s *staging) create(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("create output file: %w", err)
	}
	return f, nil
}

func (s *staging) write(name string, data []byte) error {
	f, err := s.create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write output file %s: %w", name, err)
	}
	return nil
}

// publish puts the directory into the output's place. Where an image is
// already, the two change places at once, and discard removes the old one.
func (s *staging) publish() error {
	if err := checkOutput(s.output); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, s.dir, unix.AT_FDCWD, s.output, unix.RENAME_EXCHANGE)
	switch {
	case errors.Is(err, unix.ENOENT):
		err = os.Rename(s.dir, s.output)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		// The file system cannot exchange: for a moment there is no output.
		old := s.dir + ".old"
		if err = os.Rename(s.output, old); err == nil {
			if err = os.Rename(s.dir, s.output); err == nil {
				s.dir = old
			} else {
				err = errors.Join(err, os.Rename(old, s.output))
			}
		}
	}
	if err != nil {
		return fmt.Errorf("put image into output directory %s: %w", s.output, err)
	}
	return nil
}

// discard removes what is left in the staging directory's place.
func (s *staging) discard() error {
	return errors.Join(os.RemoveAll(s.dir), s.lock.Close())
}
