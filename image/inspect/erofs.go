package inspect

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/erofs/go-erofs"

	"github.com/sealift/sealift/image/manifest"
)

// Limits of an EROFS that ReadRoot takes, beyond those of any list of files.
const (
	maxDepth     = 64
	maxDirectory = 16 << 20 // bytes of one directory
	// Files may share blocks on purpose; a file system that would give more
	// than this many times its size is made to keep its reader busy.
	maxSharing = 4
	// dirBatch is how many entries of a directory are taken at a time.
	dirBatch = 1024
)

// Root is the content of a root file system.
type Root struct {
	BuildTime int64  // Unix seconds
	Size      int64  // what the superblock says, bytes
	Files     []File // in path order: each directory before what is in it
	Kept      map[string][]byte
}

// RootOptions say what ReadRoot reads.
type RootOptions struct {
	// Hash makes it read every file to its end.
	Hash bool
	// Keep chooses files whose content is returned. Optional.
	Keep func(path string) bool
}

// ReadRoot lists an uncompressed EROFS (Linux Documentation/filesystems/
// erofs.rst) at the start of d, with github.com/erofs/go-erofs. It refuses what
// would keep it busy or take much memory for nothing: loops, directories and
// files larger than the file system, too many or too deep files.
func ReadRoot(ctx context.Context, d Disk, o RootOptions) (_ *Root, err error) {
	// The library reads bytes of strangers; a slip in it must not take the
	// program down.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read erofs: it is malformed: %v", p)
		}
	}()
	sb, err := readAll(d, 1024, 128)
	if err != nil {
		return nil, fmt.Errorf("read erofs: superblock: %w", err)
	}
	le := binary.LittleEndian
	if magic := le.Uint32(sb); magic != 0xe0f5e1e2 {
		return nil, fmt.Errorf("read erofs: magic is %#08x, want 0xe0f5e1e2", magic)
	}
	if bits := sb[12]; bits != 12 {
		return nil, fmt.Errorf("read erofs: blocks of 2^%d bytes, want 2^12", bits)
	}
	r := &Root{BuildTime: int64(le.Uint64(sb[24:])), Size: int64(le.Uint32(sb[36:])) << 12, Kept: map[string][]byte{}}
	if r.Size > d.Size() {
		return nil, fmt.Errorf("read erofs: it has %d bytes, the partition %d", r.Size, d.Size())
	}
	within, err := sectionOf(d, 0, r.Size)
	if err != nil {
		return nil, err
	}
	fsys, err := erofs.Open(within)
	if err != nil {
		return nil, fmt.Errorf("read erofs: %w", err)
	}
	w := &rootWalk{ctx: ctx, fsys: fsys, root: r, o: o}
	info, err := fs.Stat(fsys, ".")
	if err != nil {
		return nil, fmt.Errorf("read erofs: root directory: %w", err)
	}
	if err := w.node("/", ".", fs.ModeDir, info, 0); err != nil {
		return nil, fmt.Errorf("read erofs: %w", err)
	}
	return r, nil
}

type rootWalk struct {
	ctx     context.Context
	fsys    fs.FS
	root    *Root
	o       RootOptions
	content int64 // bytes of all files
	names   int
	kept    int
	buf     []byte
}

// node notes one file and, for a directory, all below it. kind is what the
// directory says that it is.
func (w *rootWalk) node(at, name string, kind fs.FileMode, info fs.FileInfo, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if w.names += len(at); len(w.root.Files) == maxNodes || w.names > maxNames {
		return fmt.Errorf("more than %d files, or than %d bytes of names", maxNodes, maxNames)
	}
	stat, ok := info.Sys().(*erofs.Stat)
	if !ok {
		return fmt.Errorf("%s: no inode", at)
	}
	if stat.Mode.Type() != kind.Type() {
		return fmt.Errorf("%s: its directory has it as %v, its inode as %v", at, kind.Type(), stat.Mode.Type())
	}
	f := File{Path: at, Mode: stat.Mode, UID: stat.UID, GID: stat.GID, MTime: int64(stat.Mtime)}
	switch {
	case stat.Size < 0 || stat.Size > w.root.Size:
		return fmt.Errorf("%s: it has %d bytes, the file system %d", at, stat.Size, w.root.Size)
	case stat.Mode.IsDir():
		w.root.Files = append(w.root.Files, f)
		return w.directory(at, name, stat.Size, depth)
	case stat.Mode&fs.ModeSymlink != 0:
		if stat.Size == 0 || stat.Size > maxPath {
			return fmt.Errorf("%s: link of %d bytes, want 1 to %d", at, stat.Size, maxPath)
		}
		target, err := fs.ReadLink(w.fsys, name)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		f.Target = target
	case stat.Mode.IsRegular():
		f.Size = stat.Size
		if err := w.file(&f, name); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	w.root.Files = append(w.root.Files, f)
	return nil
}

func (w *rootWalk) directory(at, name string, size int64, depth int) (err error) {
	if depth == maxDepth || size > maxDirectory {
		return fmt.Errorf("%s: directory of %d bytes, %d levels deep; at most %d and %d allowed", at, size, depth, maxDirectory, maxDepth)
	}
	d, err := w.fsys.Open(name)
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	list, ok := d.(fs.ReadDirFile)
	if !ok {
		return fmt.Errorf("%s: it is not a directory", at)
	}
	var before string
	for {
		entries, err := list.ReadDir(dirBatch)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: %w", at, err)
		}
		for _, e := range entries {
			// In this order, names are also unique.
			if !fs.ValidPath(e.Name()) || path.Base(e.Name()) != e.Name() || e.Name() <= before {
				return fmt.Errorf("%s: name %.100q is malformed or not behind %.100q", at, e.Name(), before)
			}
			before = e.Name()
			info, err := e.Info()
			if err != nil {
				return fmt.Errorf("%s: %w", path.Join(at, before), err)
			}
			if err := w.node(path.Join(at, before), path.Join(name, before), e.Type(), info, depth+1); err != nil {
				return err
			}
		}
		if err != nil || len(entries) == 0 {
			return nil
		}
	}
}

// file reads a regular file as far as the options ask for it.
func (w *rootWalk) file(f *File, name string) (err error) {
	if w.content += f.Size; w.content > maxSharing*w.root.Size {
		return fmt.Errorf("the files have %d bytes and more, the file system only %d", w.content, w.root.Size)
	}
	keep := w.o.Keep != nil && w.o.Keep(f.Path)
	if keep {
		if w.kept += int(min(f.Size, maxKept+1)); f.Size > maxKeptFile || w.kept > maxKept {
			return fmt.Errorf("%d bytes are more than is kept of such files", f.Size)
		}
	}
	if !keep && !w.o.Hash {
		return nil
	}
	r, err := w.fsys.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if w.buf == nil {
		w.buf = make([]byte, zeroUnit)
	}
	h := sha256.New()
	var kept bytes.Buffer
	for left := f.Size; left > 0; {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		b := w.buf[:min(int64(len(w.buf)), left)]
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		h.Write(b)
		if keep {
			kept.Write(b)
		}
		left -= int64(len(b))
	}
	f.SHA256 = manifest.SHA256(h.Sum(nil))
	if keep {
		w.root.Kept[f.Path] = kept.Bytes()
	}
	return nil
}
