// Package tree holds a file tree that is on its way into an image, and writes
// it as an EROFS file system (WriteEROFS) or as an initramfs (WriteCPIO,
// WriteInitrd).
//
// A Tree knows what an image needs and nothing else: directories, regular
// files and symbolic links, each with permission bits. Everything belongs to
// root, every time stamp is the build's epoch, and nodes are written in path
// order, so equal trees give equal bytes on every machine, whatever the user,
// the umask or the order in which the nodes were added. Device nodes, sockets
// and hard links do not exist here: devtmpfs makes the first at boot, nothing
// needs the second, and a hard link read from a package becomes a second file.
package tree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Limits of a tree. The smaller of what EROFS and Linux accept.
const (
	MaxName    = 255  // bytes of one path component
	MaxPath    = 4095 // bytes of a path or of a symbolic link's target
	MaxDepth   = 128  // components of a path, and directories above a node
	maxSymlink = 40   // links followed in one path, as in Linux
	maxSteps   = 1024 // components walked for one path, those of its links among them
)

// permMask is what a Node may carry beside its type: the permission bits,
// setuid, setgid and sticky.
const permMask = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

// Tree is a file tree. The zero value is not usable; see New. It is not safe
// for concurrent use.
type Tree struct {
	root  *Node
	added int
}

// Node is a directory, a regular file or a symbolic link.
type Node struct {
	mode     fs.FileMode
	target   string           // symbolic link
	children map[string]*Node // directory

	// A regular file's content is data, or size bytes of the file at host, or
	// the first size bytes of src.
	data []byte
	host string
	src  io.ReaderAt
	size int64
}

// New returns a tree that holds only the root directory, mode 0755.
func New() *Tree { return &Tree{root: newDir(0o755)} }

func newDir(perm fs.FileMode) *Node {
	return &Node{mode: fs.ModeDir | perm&permMask, children: map[string]*Node{}}
}

// Mode returns the type and permission bits.
func (n *Node) Mode() fs.FileMode { return n.mode }

// IsDir reports whether the node is a directory.
func (n *Node) IsDir() bool { return n.mode.IsDir() }

// Target returns the target of a symbolic link, or the empty string.
func (n *Node) Target() string { return n.target }

// Size returns the length of a regular file in bytes, or 0.
func (n *Node) Size() int64 { return n.size }

// Open opens a regular file's content. A file of the build machine that
// changed its length after it was added is an error here or while reading.
func (n *Node) Open() (Content, error) {
	if !n.mode.IsRegular() {
		return nil, fmt.Errorf("open content: %w", errNotRegular)
	}
	if n.src != nil {
		return section{io.NewSectionReader(n.src, 0, n.size)}, nil
	}
	if n.host == "" {
		return memory{bytes.NewReader(n.data)}, nil
	}
	f, err := os.Open(n.host)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.Size() != n.size {
		err = fmt.Errorf("open %s: length is %d, was %d when it was added", n.host, st.Size(), n.size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Content is an open regular file.
type Content interface {
	io.Reader
	io.ReaderAt
	io.Closer
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

var (
	errNotRegular = errors.New("not a regular file")
	errNotDir     = errors.New("not a directory")
)

// Mkdir makes the directory and those above it that are missing, which get
// mode 0755. An existing directory takes the new permission bits; anything
// else in its place is an error.
func (t *Tree) Mkdir(name string, perm fs.FileMode) error {
	parts, err := split(name)
	if err != nil {
		return fmt.Errorf("make directory %s: %w", name, err)
	}
	d, err := t.makeDirs(parts)
	if err != nil {
		return fmt.Errorf("make directory %s: %w", name, err)
	}
	d.mode = fs.ModeDir | perm&permMask
	return nil
}

// WriteFile adds a regular file. The tree keeps data, which the caller must
// not change afterwards. An existing file or link of that name is replaced, a
// directory is not. Directories above it are made as by Mkdir.
func (t *Tree) WriteFile(name string, data []byte, perm fs.FileMode) error {
	return t.put(name, &Node{mode: perm & permMask, data: data, size: int64(len(data))})
}

// AddFile adds a regular file whose content is a file of the build machine.
// It is read when the tree is written, not now, and must not change until then.
func (t *Tree) AddFile(name, host string, perm fs.FileMode) error {
	st, err := os.Stat(host)
	if err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("add %s: %s: %w", name, host, errNotRegular)
	}
	return t.put(name, &Node{mode: perm & permMask, host: host, size: st.Size()})
}

// AddReader adds a regular file whose content is the first size bytes of r. It
// is read when the tree is written, not now, and must not change until then.
func (t *Tree) AddReader(name string, r io.ReaderAt, size int64, perm fs.FileMode) error {
	return t.put(name, &Node{mode: perm & permMask, src: r, size: size})
}

// Symlink adds a symbolic link. The target is not looked up: it may dangle,
// as a link into a directory that is mounted at run time does.
func (t *Tree) Symlink(target, name string) error {
	if target == "" || len(target) > MaxPath || strings.ContainsRune(target, 0) {
		return fmt.Errorf("add link %s: target of %d bytes is not usable", name, len(target))
	}
	return t.put(name, &Node{mode: fs.ModeSymlink | 0o777, target: target})
}

// Graft adds the node of another tree, with all that is below it, at name.
// The two trees share the nodes afterwards.
func (t *Tree) Graft(name string, n *Node) error { return t.put(name, n) }

// Remove takes a node and all that is below it out of the tree. A missing one
// is an error, since a path that is removed by name was expected to be there.
func (t *Tree) Remove(name string) error {
	parts, err := split(name)
	if err == nil && len(parts) == 0 {
		err = errors.New("the root stays")
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	d, _, err := t.resolve(parts[:len(parts)-1], true, false)
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	last := parts[len(parts)-1]
	if d.children[last] == nil {
		return fmt.Errorf("remove %s: %w", name, fs.ErrNotExist)
	}
	delete(d.children, last)
	return nil
}

func (t *Tree) put(name string, n *Node) error {
	parts, err := split(name)
	if err == nil && len(parts) == 0 {
		err = errors.New("the root is a directory")
	}
	if err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	d, err := t.makeDirs(parts[:len(parts)-1])
	if err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	last := parts[len(parts)-1]
	if old := d.children[last]; old != nil && old.IsDir() {
		return fmt.Errorf("add %s: a directory is in its place", name)
	}
	d.children[last] = n
	t.added++
	return nil
}

// Added returns how many nodes were ever added, the directories that were made
// above them among them. It only grows, and bounds what the tree takes.
func (t *Tree) Added() int { return t.added }

// Lookup finds a node. Symbolic links in the directories above it are
// followed inside the tree; the node itself may be a link. The error wraps
// fs.ErrNotExist if there is none.
func (t *Tree) Lookup(name string) (*Node, error) {
	n, _, err := t.lookup(name, false)
	return n, err
}

// Resolve is Lookup that also follows the last component. It returns the path
// at which the node really is, without a leading slash.
func (t *Tree) Resolve(name string) (*Node, string, error) { return t.lookup(name, true) }

func (t *Tree) lookup(name string, followLast bool) (*Node, string, error) {
	parts, err := split(name)
	if err != nil {
		return nil, "", fmt.Errorf("look up %s: %w", name, err)
	}
	n, real, err := t.resolve(parts, followLast, false)
	if err != nil {
		return nil, "", fmt.Errorf("look up %s: %w", name, err)
	}
	return n, real, nil
}

// ReadFile returns a regular file's content; symbolic links are followed
// inside the tree. A file of more than max bytes is refused.
func (t *Tree) ReadFile(name string, max int64) (_ []byte, err error) {
	n, _, err := t.Resolve(name)
	if err != nil {
		return nil, err
	}
	if n.size > max {
		return nil, fmt.Errorf("read %s: %d bytes, at most %d allowed", name, n.size, max)
	}
	c, err := n.Open()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	b := make([]byte, n.size)
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// Walk calls fn for every node in path order, each directory before what is
// in it, the root first with the path ".". Paths have no leading slash.
func (t *Tree) Walk(fn func(name string, n *Node) error) error { return walk(".", t.root, fn) }

func walk(name string, n *Node, fn func(string, *Node) error) error {
	if err := fn(name, n); err != nil {
		return err
	}
	names := make([]string, 0, len(n.children))
	for c := range n.children {
		names = append(names, c)
	}
	slices.Sort(names)
	for _, c := range names {
		if err := walk(path.Join(name, c), n.children[c], fn); err != nil {
			return err
		}
	}
	return nil
}

// Stats is what a tree holds.
type Stats struct {
	Files, Dirs, Links int
	Bytes              int64 // of all regular files
	Executables        int   // regular files with an execute bit
}

// Stats counts the nodes.
func (t *Tree) Stats() Stats {
	var s Stats
	// The callback returns no error, so Walk returns none.
	_ = t.Walk(func(_ string, n *Node) error {
		switch {
		case n.IsDir():
			s.Dirs++
		case n.mode&fs.ModeSymlink != 0:
			s.Links++
		default:
			s.Files++
			s.Bytes += n.size
			if n.mode&0o111 != 0 {
				s.Executables++
			}
		}
		return nil
	})
	return s
}

// makeDirs walks down, following links, and makes the directories that are missing.
func (t *Tree) makeDirs(parts []string) (*Node, error) {
	d, real, err := t.resolve(parts, true, true)
	if err == nil && !d.IsDir() {
		err = fmt.Errorf("%s: %w", real, errNotDir)
	}
	return d, err
}

// resolve walks down from the root. Links cannot lead out of the tree: ".."
// stops at the root and an absolute target starts there. With create, it makes
// the directories of parts that are missing, but none that a link leads to.
func (t *Tree) resolve(parts []string, followLast, create bool) (*Node, string, error) {
	nodes, names := []*Node{t.root}, []string{"."}
	at := func(more ...string) string { return path.Join(append(slices.Clone(names), more...)...) }
	todo := slices.Clone(parts)
	own := len(parts) // how many of todo, the last ones, are of parts
	via := ""         // where the last link of parts is
	for links, steps := 0, 0; len(todo) > 0; steps++ {
		if steps >= maxSteps {
			return nil, "", fmt.Errorf("%s: its links have more than %d components", at(), maxSteps)
		}
		part, mine := todo[0], len(todo) == own
		todo = todo[1:]
		if mine {
			own--
		}
		cur := nodes[len(nodes)-1]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(nodes) > 1 {
				nodes, names = nodes[:len(nodes)-1], names[:len(names)-1]
			}
			continue
		}
		if !cur.IsDir() {
			return nil, "", fmt.Errorf("%s: %w", at(), errNotDir)
		}
		if len(nodes) > MaxDepth {
			return nil, "", fmt.Errorf("%.100s...: more than %d directories deep", at(), MaxDepth)
		}
		next := cur.children[part]
		switch {
		case next == nil && create && mine:
			next = newDir(0o755)
			cur.children[part] = next
			t.added++
		case next == nil && create:
			return nil, "", fmt.Errorf("%s is a link to nothing", via)
		case next == nil:
			return nil, "", fmt.Errorf("%s: %w", at(part), fs.ErrNotExist)
		}
		if next.mode&fs.ModeSymlink != 0 && (followLast || len(todo) > 0) {
			if links++; links > maxSymlink {
				return nil, "", fmt.Errorf("%s: more than %d symbolic links", at(part), maxSymlink)
			}
			if mine {
				via = at(part)
			}
			if strings.HasPrefix(next.target, "/") {
				nodes, names = nodes[:1], names[:1]
			}
			todo = append(strings.Split(next.target, "/"), todo...)
			continue
		}
		nodes, names = append(nodes, next), append(names, part)
	}
	return nodes[len(nodes)-1], at(), nil
}

// split checks a path and cuts it into its components. A leading slash means
// nothing; "..", "." and empty components are refused rather than cleaned,
// since every path here comes from our own code or has been checked.
func split(name string) ([]string, error) {
	if len(name) > MaxPath {
		return nil, fmt.Errorf("path of %d bytes, at most %d allowed", len(name), MaxPath)
	}
	rel := strings.TrimPrefix(name, "/")
	if rel == "" || rel == "." {
		return nil, nil
	}
	parts := strings.Split(rel, "/")
	if len(parts) > MaxDepth {
		return nil, fmt.Errorf("path of %d components, at most %d allowed", len(parts), MaxDepth)
	}
	for _, p := range parts {
		if p == "" || p == "." || p == ".." || len(p) > MaxName || strings.ContainsRune(p, 0) {
			return nil, fmt.Errorf("component %.40q of a path is not usable", p)
		}
	}
	return parts, nil
}
