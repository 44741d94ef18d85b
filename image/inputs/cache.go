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
// comparing its digest. A file that was damaged is removed and reported as
// missing, as fs.ErrNotExist, so that it is fetched again.
func (c Cache) Lookup(ctx context.Context, d manifest.SHA256) (string, error) {
	p := c.path(d)
	f, err := os.Open(p)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.Copy(h, readerContext{ctx, f})
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("read cache: %w", err)
	}
	if sum(h) == d {
		return p, nil
	}
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("remove damaged file from the cache: %w", err)
	}
	return "", fmt.Errorf("cached file %s was damaged: %w", d, fs.ErrNotExist)
}

// Put stores what r yields and returns its digest and path. If want is set,
// another digest or length is a MismatchError and nothing is stored. At most
// max bytes are read; more is an error.
func (c Cache) Put(ctx context.Context, r io.Reader, want manifest.SHA256, max int64) (_ manifest.SHA256, _ string, err error) {
	var none manifest.SHA256
	tmpDir := filepath.Join(c.Dir, "tmp")
	if err := os.MkdirAll(tmpDir, 0o755); err != nil {
		return none, "", fmt.Errorf("write cache: %w", err)
	}
	f, err := os.CreateTemp(tmpDir, "put-*")
	if err != nil {
		return none, "", fmt.Errorf("write cache: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(readerContext{ctx, r}, max+1))
	if err != nil {
		return none, "", errors.Join(err, f.Close())
	}
	// The content must be on disk before its name is: after a power cut the
	// name alone would be taken for a damaged file, which costs a download.
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return none, "", fmt.Errorf("write cache: %w", err)
	}
	if n > max {
		return none, "", fmt.Errorf("more than %d bytes", max)
	}
	got := sum(h)
	if !want.IsZero() && got != want {
		return none, "", &MismatchError{Got: got, Want: want, Size: n}
	}
	p := c.path(got)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return none, "", fmt.Errorf("write cache: %w", err)
	}
	if err := os.Rename(f.Name(), p); err != nil {
		return none, "", fmt.Errorf("write cache: %w", err)
	}
	return got, p, nil
}

// MismatchError says that an input is not what the lock, or an index, pins.
type MismatchError struct {
	Artifact  string // what it is, e.g. "package runc 1.1.5"
	Got, Want manifest.SHA256
	Size      int64 // bytes of what was got
}

func (e *MismatchError) Error() string {
	if e.Artifact == "" {
		return fmt.Sprintf("SHA-256 of the %d bytes is %s, want %s", e.Size, e.Got, e.Want)
	}
	return fmt.Sprintf("%s: SHA-256 of the %d bytes is %s, want %s", e.Artifact, e.Size, e.Got, e.Want)
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
