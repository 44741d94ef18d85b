package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrBusy says that another build writes the same output directory.
var ErrBusy = errors.New("another build is writing it")

// staging is a directory beside the output in which a build takes shape. It
// takes the output's place when it is complete.
//
// A directory is replaced, not a file after the other, so that at no time a
// manifest stands beside a disk that it does not describe. Nothing is synced:
// a file that a power failure cut short does not match its digest.
type staging struct {
	output string
	dir    string
	lock   *os.File // locked while the build runs
}

// outputFiles are the names that an output directory may hold.
func outputFiles() []string {
	return []string{FileManifest, FileBundle, FileDisk, FileDiskZstd, FileUKI, FileInstaller, FileQCOW2, FileISO,
		FileSPDX, BundleOf(FileSPDX), FileCycloneDX, BundleOf(FileCycloneDX), FileProvenance, BundleOf(FileProvenance)}
}

// stage makes the directory. It removes what a killed build for the same
// output has left, and refuses with ErrBusy while another build is under way.
func stage(output string) (*staging, error) {
	s, err := newStaging(output)
	if err != nil {
		return nil, fmt.Errorf("output directory %s: %w", output, err)
	}
	return s, nil
}

func newStaging(output string) (*staging, error) {
	output, err := filepath.Abs(output)
	if err != nil {
		return nil, err
	}
	// The directory is replaced, not a link to it.
	if real, err := filepath.EvalSymlinks(output); err == nil {
		output = real
	}
	if err := checkOutput(output); err != nil {
		return nil, err
	}
	parent, base := filepath.Dir(output), filepath.Base(output)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	s := &staging{output: output, dir: filepath.Join(parent, "."+base+".building")}
	if s.lock, err = lock(filepath.Join(parent, "."+base+".lock")); err != nil {
		return nil, err
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, s.discard())
	}
	return s, nil
}

// prepare makes an empty directory out of what a killed build has left.
func (s *staging) prepare() error {
	if _, err := os.Lstat(s.output); errors.Is(err, fs.ErrNotExist) {
		// It was killed between the two renames of publish.
		if err := os.Rename(s.old(), s.output); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("put back the image that a killed build replaced: %w", err)
		}
	}
	if err := errors.Join(os.RemoveAll(s.dir), os.RemoveAll(s.old())); err != nil {
		return fmt.Errorf("remove what an earlier build left: %w", err)
	}
	// Images are not secret, whatever the umask.
	return errors.Join(os.Mkdir(s.dir, 0o755), os.Chmod(s.dir, 0o755))
}

// old is where an image waits for its removal on file systems that cannot
// exchange two directories.
func (s *staging) old() string { return s.dir + ".old" }

// lock makes and locks a file that says which process has it. It is removed
// when the build ends. One that a killed process left is not locked any more.
// What is not a file is somebody else's; a link would lead to one.
func lock(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
		if errors.Is(err, unix.ELOOP) {
			return nil, fmt.Errorf("%s is a link: remove it", path)
		}
		if err != nil {
			return nil, err
		}
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			return nil, errors.Join(err, fmt.Errorf("%s is not a regular file: remove it", path), f.Close())
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = ErrBusy
				pid := make([]byte, 20)
				if n, rerr := f.ReadAt(pid, 0); n > 0 && errors.Is(rerr, io.EOF) {
					err = fmt.Errorf("%w: process %s", err, strings.TrimSpace(string(pid[:n])))
				}
			}
			return nil, errors.Join(err, f.Close())
		}
		// A build that has just ended may have removed the file between the
		// two steps; then the lock is on a file that nobody else finds.
		here, err1 := os.Lstat(path)
		locked, err2 := f.Stat()
		if err := errors.Join(err1, err2); err != nil || !os.SameFile(here, locked) {
			if err := f.Close(); err != nil {
				return nil, err
			}
			continue
		}
		if err := errors.Join(f.Truncate(0), writeAll(f, fmt.Appendf(nil, "%d\n", os.Getpid()))); err != nil {
			return nil, errors.Join(err, os.Remove(path), f.Close())
		}
		return f, nil
	}
}

func writeAll(f *os.File, b []byte) error {
	_, err := f.Write(b)
	return err
}

// checkOutput refuses a directory with anything but an image in it, as it will
// be replaced.
func checkOutput(output string) error {
	entries, err := os.ReadDir(output)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains(slices.Concat(outputFiles(), policyFiles(), []string{FileTest, FileTestBundle}), e.Name()) || !e.Type().IsRegular() {
			return fmt.Errorf("it holds %s, which is not part of an image: choose a directory of its own", e.Name())
		}
	}
	return nil
}

func (s *staging) create(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("create output file: %w", err)
	}
	return f, nil
}

// open opens a file that was created before, for reading.
func (s *staging) open(name string) (*os.File, error) {
	f, err := os.Open(filepath.Join(s.dir, name))
	if err != nil {
		return nil, fmt.Errorf("open output file: %w", err)
	}
	return f, nil
}

func (s *staging) write(name string, data []byte) error {
	f, err := s.create(name)
	if err != nil {
		return err
	}
	if err := errors.Join(writeAll(f, data), f.Close()); err != nil {
		return fmt.Errorf("write output file %s: %w", name, err)
	}
	return nil
}

// publish puts the directory into the output's place. Where an image is
// already, the two change places at once, and discard removes the old one.
func (s *staging) publish() error {
	if err := checkOutput(s.output); err != nil {
		return fmt.Errorf("output directory %s: %w", s.output, err)
	}
	err := unix.Renameat2(unix.AT_FDCWD, s.dir, unix.AT_FDCWD, s.output, unix.RENAME_EXCHANGE)
	switch {
	case errors.Is(err, unix.ENOENT):
		err = os.Rename(s.dir, s.output)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		// The file system cannot exchange: for a moment there is no output.
		if err = os.Rename(s.output, s.old()); err == nil {
			if err = os.Rename(s.dir, s.output); err != nil {
				err = errors.Join(err, os.Rename(s.old(), s.output))
			}
		}
	}
	if err != nil {
		return fmt.Errorf("put image into output directory %s: %w", s.output, err)
	}
	return nil
}

// explain adds to an error that says that the disk is full what room the build
// had: what is free, and what its files take.
func (s *staging) explain(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	var st unix.Statfs_t
	if unix.Statfs(s.dir, &st) != nil {
		return err
	}
	room := int64(st.Bavail) * st.Bsize
	entries, rerr := os.ReadDir(s.dir)
	if rerr != nil {
		return err
	}
	for _, e := range entries {
		var f unix.Stat_t
		if unix.Lstat(filepath.Join(s.dir, e.Name()), &f) == nil {
			room += f.Blocks * 512 // on the disk: files have holes
		}
	}
	return fmt.Errorf("%w: the file system of %s had %d MiB for this build, which needs more", err, filepath.Dir(s.output), room/mib)
}

// discard removes what is left in the staging directory's place, and the lock.
func (s *staging) discard() error {
	return errors.Join(os.RemoveAll(s.dir), os.RemoveAll(s.old()), os.Remove(s.lock.Name()), s.lock.Close())
}
