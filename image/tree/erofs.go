package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"

	"github.com/erofs/go-erofs"
)

// EROFSBlock is the block size of the file systems that WriteEROFS makes, in
// bytes. It is the page size of every machine that an image runs on, which is
// the largest block that Linux before 6.4 mounts.
const EROFSBlock = 4096

// EROFSOptions are the parameters of WriteEROFS.
type EROFSOptions struct {
	// Epoch is the build time and every node's modification time, in Unix
	// seconds. It must not be negative.
	Epoch int64
	// TempDir is where file contents are collected before they are laid out:
	// it needs as much room as the image. Optional; os.TempDir if empty.
	TempDir string
}

// WriteEROFS writes the tree as an uncompressed EROFS file system (Linux
// Documentation/filesystems/erofs.rst) from the start of w, a whole number of
// blocks long. Uncompressed, because the disk image as a whole is compressed
// for the wire, where zstd over everything does better than 4 KiB clusters of
// LZ4, and because a page read through dm-verity then needs no decompression.
func (t *Tree) WriteEROFS(w io.WriteSeeker, o EROFSOptions) error {
	if o.Epoch < 0 {
		return fmt.Errorf("write erofs: negative epoch %d", o.Epoch)
	}
	opts := []erofs.CreateOpt{
		erofs.WithBlockSize(EROFSBlock),
		erofs.WithBuildTime(uint64(o.Epoch), 0),
	}
	if o.TempDir != "" {
		opts = append(opts, erofs.WithTempDir(o.TempDir))
	}
	ew := erofs.Create(w, opts...)
	mtime := time.Unix(o.Epoch, 0)
	err := t.Walk(func(name string, n *Node) error {
		at := path.Join("/", name)
		if err := errors.Join(addEROFS(ew, at, n), ew.Chtimes(at, mtime, mtime)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	// Close also removes the temporary file, so it is called on every path.
	if err := errors.Join(err, ew.Close()); err != nil {
		return fmt.Errorf("write erofs: %w", err)
	}
	return nil
}

func addEROFS(w *erofs.Writer, name string, n *Node) (err error) {
	switch {
	case n.IsDir():
		if err := w.Mkdir(name, n.mode.Perm()); err != nil {
			return err
		}
		return w.Chmod(name, n.mode)
	case n.mode&fs.ModeSymlink != 0:
		return w.Symlink(n.target, name)
	}
	c, err := n.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	f, err := w.Create(name)
	if err != nil {
		return err
	}
	got, err := f.ReadFrom(io.NewSectionReader(c, 0, n.size))
	if err != nil {
		return err
	}
	if got != n.size {
		return fmt.Errorf("got %d bytes of content, want %d", got, n.size)
	}
	if err := f.Chmod(n.mode); err != nil {
		return err
	}
	return f.Close()
}
