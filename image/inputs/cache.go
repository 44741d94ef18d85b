package inputs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/image/manifest"
)

// Cache is a content-addressed store in a directory. A file's name is the
// SHA-256 of its content; it appears by rename when it is complete, so that
// builds may share a cache, and may be killed, at any time. The zero value is
// not usable.
type Cache struct {
	// Dir is the cache's directory. It is made if it is missing.
	Dir string
}

func (c Cache) path(d manifest.SHA256) string {
	s := d.String()
	return filepath.Join(c.Dir, "sha256", s[:2], s)
}

// Lookup returns the path of a cached file after reading it whole and
// comparing its digest. The error wraps fs.ErrNotExist if there is none. A file
// with another digest is removed, and is a *MismatchError: the disk is failing
// or someone wrote there, which must not pass for a cache that was cleaned.
func (c Cache) Lookup(ctx context.Context, d manifest.SHA256) (string, error) {
	p := c.path(d)
	f, err := os.Open(p)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	n, err := io.Copy(h, readerContext{ctx, f})
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("read cache: %w", err)
	}
	if sum(h) == d {
		return p, nil
	}
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("remove damaged file from the cache: %w", err)
	}
	return "", &MismatchError{Source: p, Got: sum(h), Want: d, Size: n}
}

// Put stores what r yields and returns its digest and path. If want is set,
// another digest or length is a MismatchError and nothing is stored. At most
// max bytes are read; more is an error.
func (c Cache) Put(ctx context.Context, r io.Reader, want manifest.SHA256, max int64) (_ manifest.SHA256, _ string, err error) {
	var none manifest.SHA256
	f, err := c.temp()
	if err != nil {
		return none, "", fmt.Errorf("write cache: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(cacheWriter{f}, h), io.LimitReader(readerContext{ctx, r}, max+1))
	if err != nil {
		return none, "", errors.Join(err, f.Close())
	}
	// The content must be on disk before its name is: after a power cut the
	// name alone would be taken for a damaged file, which stops a build.
	if err := errors.Join(f.Chmod(0o644), f.Sync()); err != nil {
		return none, "", fmt.Errorf("write cache: %w", errors.Join(err, f.Close()))
	}
	got := sum(h)
	switch {
	case n > max && !want.IsZero():
		err = &MismatchError{Want: want, Size: max, Longer: true}
	case n > max:
		err = fmt.Errorf("more than %d bytes", max)
	case !want.IsZero() && got != want:
		err = &MismatchError{Got: got, Want: want, Size: n}
	default:
		p := c.path(got)
		if err = c.publish(f, p); err == nil {
			return got, p, nil
		}
		err = fmt.Errorf("write cache: %w", err)
	}
	return none, "", errors.Join(err, f.Close())
}

// publish gives a temporary file its name, and closes it after that: once it is
// closed a sweep would take it for an orphan.
func (c Cache) publish(f *os.File, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	// Everything was synced; nothing is left that closing could lose.
	_ = f.Close()
	return nil
}

// temp makes a temporary file, which is locked for as long as it is open. The
// kernel drops the lock of a process that was killed, so a file without one is
// nobody's; see Sweep.
func (c Cache) temp() (*os.File, error) {
	dir := filepath.Join(c.Dir, "tmp")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for {
		f, err := os.CreateTemp(dir, "put-*")
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			var st unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &st); err == nil && st.Nlink > 0 {
				return f, nil
			}
		}
		// A sweep took it for an orphan between its making and its locking.
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// Sweep removes what killed builds have left. Files that another process is
// writing stay.
func (c Cache) Sweep() error {
	dir := filepath.Join(c.Dir, "tmp")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep cache: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		name := filepath.Join(dir, e.Name())
		f, err := os.Open(name)
		if err != nil {
			continue // it has just become complete, or was removed
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		errs = append(errs, f.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep cache: %w", err)
	}
	return nil
}

// cacheWriter says of a write that failed that it was the cache's.
type cacheWriter struct{ f *os.File }

func (w cacheWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err != nil {
		err = fmt.Errorf("write cache: %w", err)
	}
	return n, err
}

// MismatchError says that an input is not what the lock, an index or a vendor's
// checksum says.
type MismatchError struct {
	Artifact  string // what it is, e.g. "package runc 1.1.5"
	Source    string // address or file that it came from
	Got, Want manifest.SHA256
	Size      int64 // bytes of what was got
	// Longer says that it has more than Size bytes, which is as many as it may
	// have. It was not read further, so Got is not known.
	Longer bool
}

func (e *MismatchError) Error() string {
	text := fmt.Sprintf("SHA-256 of the %d bytes is %s, want %s", e.Size, e.Got, e.Want)
	if e.Longer {
		text = fmt.Sprintf("more than %d bytes, so not the file with SHA-256 %s", e.Size, e.Want)
	}
	if e.Source != "" {
		text = "from " + e.Source + ": " + text
	}
	if e.Artifact != "" {
		text = e.Artifact + ": " + text
	}
	return text
}

// named fills in what a MismatchError is about, where it is not said yet.
func named(err error, artifact, source string) error {
	var m *MismatchError
	if errors.As(err, &m) {
		if m.Artifact == "" {
			m.Artifact = artifact
		}
		if m.Source == "" {
			m.Source = source
		}
		return m
	}
	return err
}

func sum(h hash.Hash) manifest.SHA256 { return manifest.SHA256(h.Sum(nil)) }

// parseSum reads a digest that a lock file was checked to hold.
func parseSum(s string) (manifest.SHA256, error) {
	var d manifest.SHA256
	if len(s) != 2*len(d) {
		return d, fmt.Errorf("%.80q is not a SHA-256 digest", s)
	}
	_, err := hex.Decode(d[:], []byte(s))
	return d, err
}

// readerContext ends a long copy when its context ends.
type readerContext struct {
	ctx context.Context
	r   io.Reader
}

func (r readerContext) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
