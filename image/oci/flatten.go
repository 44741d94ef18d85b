package oci

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/image/tree"
)

// Bounds of an image that is flattened: of all its layers together. A
// distribution's base image has some ten thousand entries.
const (
	maxLayerEntries = 500_000
	maxNodes        = 1_000_000 // of the tree, with the directories that no entry names
	maxNames        = 64 << 20  // bytes of names and of links' targets, which are held in memory
	maxReplaced     = 4         // content of all layers, in multiples of what the tree may have
	maxOverhead     = 4 << 30   // bytes beside the content: headers, padding, what stays out
	maxZstdWindow   = 128 << 20
)

// Names of whiteouts (image-spec 1.1, layer.md).
const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// Layer is one layer of an image.
type Layer struct {
	File      string // compressed as MediaType says
	MediaType types.MediaType
}

// Flatten applies layers, the lowest first, and returns the file tree of the
// image. left says which paths stay out; it is called with clean relative
// paths, and what is below such a path stays out as well. A tree whose files
// have more than limit bytes is refused.
//
// It refuses
//   - absolute names, and names with ".." or longer than Linux takes,
//   - devices, pipes and whatever is neither file, directory nor link,
//   - symbolic links whose target climbs above the root,
//   - hard links to what is not a regular file of the tree.
//
// The tree holds no owners: what belonged to another user or group than root
// belongs to root, and loses its setuid or setgid bit, which would give away
// more than before. /bin, /sbin, /lib and /lib64 are merged into /usr, as they
// are in every image that is built here.
func Flatten(ctx context.Context, dir string, layers []Layer, limit int64, left func(name string) bool) (_ *tree.Tree, err error) {
	f := newFlattener(ctx, dir, limit, left)
	defer func() {
		if err != nil {
			err = errors.Join(err, f.spool.close())
		}
	}()
	for i, l := range layers {
		if err := f.layer(l); err != nil {
			return nil, fmt.Errorf("base image: layer %d of %d: %w", i+1, len(layers), err)
		}
		if n := f.tree.Stats().Bytes; n > limit {
			return nil, fmt.Errorf("base image: layer %d of %d: the files have %d bytes, at most %d allowed", i+1, len(layers), n, limit)
		}
	}
	return f.tree, nil
}

type flattener struct {
	ctx   context.Context
	tree  *tree.Tree
	spool spool
	limit int64
	left  func(string) bool

	// Of all layers:
	entries int
	names   int   // bytes
	nodes   int   // of trees that were emptied
	content int64 // bytes that may still come
	unpack  int64 // bytes that may still be unpacked
}

func newFlattener(ctx context.Context, dir string, limit int64, left func(string) bool) *flattener {
	return &flattener{
		ctx: ctx, tree: tree.New(), spool: spool{dir: dir}, limit: limit, left: left,
		content: maxReplaced * limit, unpack: maxReplaced*limit + maxOverhead,
	}
}

// spool is a file without a name in which content waits. It is closed when
// nothing refers to it any more.
type spool struct {
	dir  string
	f    *os.File // made for the first content
	w    *bufio.Writer
	size int64
}

// add puts away n bytes of r, to be read once flush was called.
func (s *spool) add(r io.Reader, n int64) (*io.SectionReader, error) {
	if s.f == nil {
		f, err := os.CreateTemp(s.dir, "layer-")
		if err != nil {
			return nil, err
		}
		if err := os.Remove(f.Name()); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		s.f, s.w = f, bufio.NewWriterSize(f, 256<<10)
	}
	at := s.size
	got, err := io.CopyN(s.w, r, n)
	s.size += got
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return io.NewSectionReader(s.f, at, n), err
}

func (s *spool) flush() error {
	if s.f == nil {
		return nil
	}
	return s.w.Flush()
}

func (s *spool) close() error {
	if s.f == nil {
		return nil
	}
	return s.f.Close()
}

// readerContext is a reader that fails once its context has ended.
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

// entry is one checked entry of a layer.
type entry struct {
	raw  string // clean and relative
	name string // the same with /usr merged; empty for what that makes meaningless
	mode fs.FileMode
	link string            // target of a symbolic link
	hard string            // name of the file that this is another name of
	data *io.SectionReader // content of a file
}

func (f *flattener) layer(l Layer) (err error) {
	file, err := os.Open(l.File)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	r, done, err := decompress(file, l.MediaType)
	if err != nil {
		return err
	}
	defer done()
	return f.add(r)
}

// add applies one layer: first its whiteouts, which are about lower layers
// only, wherever in the archive they stand; then its entries.
func (f *flattener) add(r io.Reader) error {
	entries, whiteouts, err := f.read(readerContext{f.ctx, r})
	if err != nil {
		return err
	}
	if err := mergeable(entries); err != nil {
		return err
	}
	for _, w := range whiteouts {
		if err := f.remove(w); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if err := f.ctx.Err(); err != nil {
			return err
		}
		if err := f.apply(e); err != nil {
			return err
		}
		if f.nodes+f.tree.Added() > maxNodes {
			return fmt.Errorf("more than %d files and directories in all", maxNodes)
		}
	}
	return nil
}

// decompress reads a layer of any media type that registries have.
func decompress(file io.Reader, media types.MediaType) (_ io.Reader, done func(), err error) {
	br := bufio.NewReaderSize(file, 256<<10)
	switch kind := string(media); {
	case !media.IsLayer() || !media.IsDistributable():
		return nil, nil, fmt.Errorf("%.100q is no layer that can be unpacked", media)
	case strings.HasSuffix(kind, "gzip"):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, err
		}
		return z, func() {}, nil
	case strings.HasSuffix(kind, "zstd"):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return br, func() {}, nil
}

// read reads a whole layer, its headers into memory and its content into the
// spool: no more than limit bytes of content, and few enough headers.
func (f *flattener) read(r io.Reader) (entries []entry, whiteouts []removal, err error) {
	budget := &io.LimitedReader{R: r, N: f.unpack}
	defer func() { f.unpack = budget.N }()
	t := tar.NewReader(budget)
	left := f.limit
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return entries, whiteouts, f.spool.flush()
		}
		if err != nil && budget.N <= 0 {
			return nil, nil, fmt.Errorf("with the layers below, unpacks to more than %d bytes", maxReplaced*f.limit+maxOverhead)
		}
		if err != nil {
			return nil, nil, err
		}
		if f.entries++; f.entries > maxLayerEntries {
			return nil, nil, fmt.Errorf("more than %d entries in all", maxLayerEntries)
		}
		if f.names += len(h.Name) + len(h.Linkname); f.names > maxNames {
			return nil, nil, fmt.Errorf("more than %d bytes of names in all", maxNames)
		}
		e, err := layerEntry(h)
		if err != nil {
			return nil, nil, fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
		dir, base := path.Split(e.raw)
		switch {
		case e.name == "", f.out(e.name):
		case base == whiteoutOpaque:
			whiteouts = append(whiteouts, removal{mergeUsr(path.Clean(dir)), true})
		case strings.HasPrefix(base, whiteout):
			name := strings.TrimPrefix(base, whiteout)
			if name == "" || name == "." || name == ".." || strings.HasPrefix(name, whiteout) {
				return nil, nil, fmt.Errorf("entry %.200q: not a whiteout that the image specification has", h.Name)
			}
			if name = path.Join(dir, name); !isMerged(name) {
				whiteouts = append(whiteouts, removal{mergeUsr(name), false})
			}
		default:
			if e.mode.IsRegular() && e.hard == "" {
				if h.Size > left {
					return nil, nil, fmt.Errorf("unpacks to more than %d bytes", f.limit)
				}
				if h.Size > f.content {
					return nil, nil, fmt.Errorf("with the layers below, unpacks to more than %d bytes", maxReplaced*f.limit)
				}
				left, f.content = left-h.Size, f.content-h.Size
				if e.data, err = f.spool.add(t, h.Size); err != nil {
					return nil, nil, fmt.Errorf("entry %.200q: %w", h.Name, err)
				}
			}
			entries = append(entries, e)
		}
	}
}

// out reports whether a path, or one above it, stays out.
func (f *flattener) out(name string) bool {
	for ; name != "."; name = path.Dir(name) {
		if f.left(name) {
			return true
		}
	}
	return false
}

// merged are the directories of the root that are links into /usr.
var merged = [...]string{"bin", "sbin", "lib", "lib64"}

func isMerged(name string) bool { return slices.Contains(merged[:], name) }

// mergeUsr returns where a clean relative path is once /usr is merged.
func mergeUsr(name string) string {
	if top, _, below := strings.Cut(name, "/"); below && isMerged(top) {
		return "usr/" + name
	}
	return name
}

// mergeable refuses a layer in which the merge would put one file over another.
func mergeable(entries []entry) error {
	raw := map[string]string{}
	for _, e := range entries {
		if e.mode.IsDir() || e.link != "" {
			continue
		}
		if other, ok := raw[e.name]; ok && other != e.raw {
			return fmt.Errorf("%s and %s are two files, but %s is where both belong once /usr is merged", other, e.raw, e.name)
		}
		raw[e.name] = e.raw
	}
	return nil
}

// layerEntry checks one header.
func layerEntry(h *tar.Header) (entry, error) {
	var e entry
	if h.Typeflag == tar.TypeXGlobalHeader {
		return e, nil
	}
	var err error
	if e.raw, err = inside(h.Name); err != nil {
		return e, err
	}
	if h.Mode&^0o177777 != 0 { // the upper bits are the type of the file, which some tools put in
		return e, fmt.Errorf("mode %#o has unknown bits", h.Mode)
	}
	e.mode = fs.FileMode(h.Mode & 0o777)
	if h.Mode&0o1000 != 0 {
		e.mode |= fs.ModeSticky
	}
	if h.Mode&0o4000 != 0 && h.Uid == 0 {
		e.mode |= fs.ModeSetuid
	}
	if h.Mode&0o2000 != 0 && h.Gid == 0 {
		e.mode |= fs.ModeSetgid
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
	case tar.TypeDir:
		e.mode |= fs.ModeDir
	case tar.TypeSymlink:
		e.mode, e.link = fs.ModeSymlink|0o777, h.Linkname
		err = checkLink(e.raw, e.link)
	case tar.TypeLink:
		e.hard, err = inside(h.Linkname)
		e.hard = mergeUsr(e.hard)
	default:
		err = fmt.Errorf("type %q is neither file, directory nor link", h.Typeflag)
	}
	if err != nil {
		return e, err
	}
	e.name = mergeUsr(e.raw)
	switch {
	case e.raw == ".":
		e.name = ""
	case isMerged(e.raw) && (e.mode.IsDir() || e.link != ""):
		e.name = "" // every image has these links
	case isMerged(e.raw):
		return e, fmt.Errorf("neither directory nor link")
	case e.link != "":
		to := e.link
		if !path.IsAbs(to) {
			to = path.Join("/", path.Dir(e.raw), to)
		}
		switch {
		case mergeUsr(strings.TrimPrefix(path.Clean(to), "/")) == e.name:
			e.name = "" // /bin/x -> /usr/bin/x would lead to itself
		case e.raw != e.name:
			e.link = to // what it is relative to has moved
		}
	}
	return e, nil
}

// inside turns a name of a layer into a clean relative path.
func inside(name string) (string, error) {
	switch {
	case name == "" || len(name) > tree.MaxPath || strings.ContainsRune(name, 0):
		return "", errors.New("name is empty or too long")
	case strings.HasPrefix(name, "/"):
		return "", errors.New("name is absolute")
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", errors.New("name leads out of the image")
		}
		if len(part) > tree.MaxName {
			return "", fmt.Errorf("component of %d bytes, at most %d allowed", len(part), tree.MaxName)
		}
	}
	name = path.Clean(name)
	if n := strings.Count(name, "/") + 1; n > tree.MaxDepth {
		return "", fmt.Errorf("name of %d components, at most %d allowed", n, tree.MaxDepth)
	}
	return name, nil
}

// checkLink refuses a symbolic link that climbs above the root.
func checkLink(name, target string) error {
	if target == "" || len(target) > tree.MaxPath || strings.ContainsRune(target, 0) {
		return errors.New("target of the link is empty or too long")
	}
	depth := strings.Count(name, "/")
	if strings.HasPrefix(target, "/") {
		depth = 0
	}
	for _, part := range strings.Split(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return fmt.Errorf("link to %.200q leads out of the image", target)
			}
		default:
			depth++
		}
	}
	return nil
}

// removal is what a whiteout takes away.
type removal struct {
	name   string
	opaque bool // what is in the directory, and not the directory
}

// remove applies a whiteout. One of a path that is not there means nothing.
func (f *flattener) remove(w removal) error {
	n, err := f.tree.Lookup(w.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !w.opaque:
		return f.tree.Remove(w.name)
	case !n.IsDir():
		return nil
	case w.name == ".":
		f.nodes += f.tree.Added()
		f.tree = tree.New()
		return nil
	}
	return errors.Join(f.tree.Remove(w.name), f.tree.Mkdir(w.name, n.Mode()))
}

// apply puts an entry into the tree. Links in the directories above it are
// followed inside of the tree, as container runtimes do.
func (f *flattener) apply(e entry) error {
	old, err := f.tree.Lookup(e.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		old = nil
	case err != nil:
		return err
	}
	if e.mode.IsDir() {
		if old != nil && !old.IsDir() {
			if err := f.tree.Remove(e.name); err != nil {
				return err
			}
		}
		return f.tree.Mkdir(e.name, e.mode)
	}
	if old != nil && old.IsDir() {
		if err := f.tree.Remove(e.name); err != nil {
			return err
		}
	}
	switch {
	case e.link != "":
		return f.tree.Symlink(e.link, e.name)
	case e.hard != "":
		n, err := f.tree.Lookup(e.hard)
		if err != nil {
			return fmt.Errorf("hard link %s: %w", e.name, err)
		}
		if !n.Mode().IsRegular() {
			return fmt.Errorf("hard link %s: %s is no regular file", e.name, e.hard)
		}
		return f.tree.Graft(e.name, n)
	}
	return f.tree.AddReader(e.name, e.data, e.data.Size(), e.mode)
}
