package inputs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sealift/sealift/image/manifest"
)

// Kinds of memo: what was made from inputs whose digests are the key.
const (
	memoGoBuild = "go-build" // program, by build.key
	memoUnpack  = "unpack"   // data archive as zstd, by the package's digest
	memoMember  = "member"   // one file of an archive, by the archive's digest and its path
	memoImage   = "image"    // archive of a container image, by its name and digest
)

// memo is what a finished piece of work leaves in the cache: the digest of its
// output. Like the Go build cache, it is believed: a cache must be writable
// only for those who may decide what goes into images.
type memo struct {
	SHA256 manifest.SHA256 `json:"sha256"`
}

func (c Cache) memoPath(kind, key string) string { return filepath.Join(c.Dir, kind, key+".json") }

// recall returns the file that was remembered under the key. The error wraps
// fs.ErrNotExist if there is none, and is a *MismatchError as Lookup's is.
func (c Cache) recall(ctx context.Context, kind, key string) (string, error) {
	raw, err := os.ReadFile(c.memoPath(kind, key))
	if err != nil {
		return "", err
	}
	var m memo
	if err := json.Unmarshal(raw, &m); err != nil || m.SHA256.IsZero() {
		return "", fmt.Errorf("memo %s of %s is damaged: %w", key, kind, fs.ErrNotExist)
	}
	return c.Lookup(ctx, m.SHA256)
}

// remember writes down the digest of a file that is in the cache.
func (c Cache) remember(kind, key string, d manifest.SHA256) error {
	raw, err := json.Marshal(memo{SHA256: d})
	if err != nil {
		return err
	}
	return c.writeMemo(c.memoPath(kind, key), raw)
}

// writeMemo writes a small file so that it is there whole or not at all.
func (c Cache) writeMemo(path string, b []byte) (err error) {
	f, err := c.temp()
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Sync())
	if err == nil {
		err = c.publish(f, path)
	}
	if err != nil {
		return fmt.Errorf("write cache: %w", errors.Join(err, os.Remove(f.Name()), f.Close()))
	}
	return nil
}
