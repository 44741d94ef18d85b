package inputs

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Bounds of a .deb. The largest package that images hold, the kernel with all
// its modules, unpacks to 100 MB (cloud) or 400 MB in 5,000 files.
const (
	maxUnpacked = 4 << 30 // bytes of data.tar
	maxFile     = 1 << 30 // bytes of one file
	maxEntries  = 200_000
	maxNames    = 64 << 20 // bytes of all paths
	maxName     = 4095     // bytes of a path
	maxWindow   = 128 << 20
)

// DebEntry is one file, directory or link of a package.
type DebEntry struct {
	Name string      // clean and relative: usr/bin/runc
	Mode fs.FileMode // type, permission, setuid, setgid and sticky bits
	Size int64       // of a regular file
	// Link is the target of a symbolic link as the package has it. It never
	// leads above the root, though it may be absolute.
	Link string
	// Hard is the Name of an earlier regular file that this is another name
	// of. Empty for everything but hard links.
	Hard string
}

// ReadDebFile is ReadDeb of a file.
func ReadDebFile(file string, fn func(DebEntry, io.Reader) error) (err error) {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return ReadDeb(f, fn)
}

// ReadDeb reads a Debian binary package (deb(5)) and calls fn for each entry of
// its data archive, with the content of a regular file. Maintainer scripts are
// not looked at. It refuses
//   - absolute names, names with "..", and anything that is neither a regular
//     file, a directory nor a link: a package cannot reach outside the root,
//   - symbolic links whose target climbs above the root,
//   - hard links to what is not an earlier regular file,
//   - the same file twice, and whatever passes the bounds above.
//
// An error of fn ends the reading and is returned as it is.
func ReadDeb(r io.Reader, fn func(DebEntry, io.Reader) error) error {
	return dataArchive(r, func(t io.Reader) error { return readTar(t, fn) })
}

// dataArchive finds the data archive of a package and calls fn with its
// uncompressed bytes.
func dataArchive(r io.Reader, fn func(io.Reader) error) error {
	br := bufio.NewReaderSize(r, 256<<10)
	var magic [8]byte
	if _, err := io.ReadFull(br, magic[:]); err != nil || string(magic[:]) != "!<arch>\n" {
		return errors.New("not a Debian package: no ar archive")
	}
	for n := 0; ; n++ {
		name, size, err := arHeader(br)
		if errors.Is(err, io.EOF) {
			return errors.New("no data archive in the package")
		}
		if err != nil {
			return err
		}
		body := &io.LimitedReader{R: br, N: size}
		switch {
		case n == 0:
			if name != "debian-binary" {
				return fmt.Errorf("first member is %q, want debian-binary", name)
			}
			v, err := io.ReadAll(io.LimitReader(body, 16))
			if err != nil || !strings.HasPrefix(string(v), "2.") {
				return fmt.Errorf("package format is %q, want 2.0", v)
			}
		case strings.HasPrefix(name, "data.tar"):
			if err := readData(name, body, fn); err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, body); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if left := body.N; left > 0 {
				return fmt.Errorf("%s: cut short by %d bytes", name, left)
			}
			return nil
		case n > 8:
			return errors.New("too many members before the data archive")
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return fmt.Errorf("member %s: %w", name, err)
		}
		if size%2 == 1 {
			if _, err := br.Discard(1); err != nil {
				return fmt.Errorf("member %s: %w", name, err)
			}
		}
	}
}

// arHeader reads the 60-byte header of a member. io.EOF means a clean end.
func arHeader(r io.Reader) (name string, size int64, err error) {
	var h [60]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return "", 0, io.EOF
		}
		return "", 0, fmt.Errorf("header of an archive member: %w", err)
	}
	if h[58] != '`' || h[59] != '\n' {
		return "", 0, errors.New("header of an archive member is damaged")
	}
	name = strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/")
	size, err = strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
	if err != nil || size < 0 {
		return "", 0, fmt.Errorf("member %.20q: size %.12q is not a number", name, h[48:58])
	}
	return name, size, nil
}

// readData reads data.tar in any compression that dpkg writes.
func readData(name string, r io.Reader, fn func(io.Reader) error) error {
	return readDataLimit(name, r, maxUnpacked, fn)
}

// readDataLimit is readData with a bound of the uncompressed bytes.
func readDataLimit(name string, r io.Reader, limit int64, fn func(io.Reader) error) error {
	var tr io.Reader
	switch name {
	case "data.tar":
		tr = r
	case "data.tar.xz":
		z, err := newXZReader(r)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		tr = z
	case "data.tar.gz":
		z, err := gzip.NewReader(r)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		tr = z
	case "data.tar.zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer z.Close()
		tr = z
	default:
		return fmt.Errorf("%s: compression is not supported", name)
	}
	limited := &io.LimitedReader{R: tr, N: limit}
	err := fn(limited)
	if err == nil {
		// What follows the last entry is padding, and the compression's checksum.
		_, err = io.Copy(io.Discard, limited)
	}
	switch {
	case limited.N <= 0: // whatever the reader made of the end
		return fmt.Errorf("%s: unpacks to more than %d bytes", name, limit)
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func readTar(r io.Reader, fn func(DebEntry, io.Reader) error) error {
	t := tar.NewReader(r)
	seen := map[string]fs.FileMode{}
	var names, content int64 // bytes
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("data archive: entry %d: %w", n, err)
		}
		if n >= maxEntries {
			return fmt.Errorf("data archive: more than %d entries", maxEntries)
		}
		e, err := debEntry(h, seen)
		if err != nil {
			return fmt.Errorf("data archive: entry %d %.200q: %w", n, h.Name, err)
		}
		names, content = names+int64(len(e.Name)), content+e.Size
		if names > maxNames || content > maxUnpacked {
			return fmt.Errorf("data archive: more than %d bytes of names or %d of content", maxNames, int64(maxUnpacked))
		}
		if e.Name == "." {
			continue
		}
		seen[e.Name] = e.Mode
		if err := fn(e, t); err != nil {
			return err
		}
	}
}

// debEntry checks one header. seen are the entries before it.
func debEntry(h *tar.Header, seen map[string]fs.FileMode) (DebEntry, error) {
	e := DebEntry{Size: h.Size}
	var err error
	if e.Name, err = inside(h.Name); err != nil {
		return e, err
	}
	if h.Mode&^0o7777 != 0 {
		return e, fmt.Errorf("mode %#o has unknown bits", h.Mode)
	}
	e.Mode = fs.FileMode(h.Mode & 0o777)
	for bit, mode := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if h.Mode&bit != 0 {
			e.Mode |= mode
		}
	}
	old, twice := seen[e.Name]
	switch h.Typeflag {
	case tar.TypeDir:
		e.Mode |= fs.ModeDir
		if twice && !old.IsDir() {
			return e, errors.New("a file of that name came before")
		}
		return e, nil
	case tar.TypeReg:
		// A few bytes can stand for any number of zeros; dpkg writes no such file.
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return e, errors.New("sparse files are not supported")
			}
		}
		if h.Size > maxFile {
			return e, fmt.Errorf("%d bytes, at most %d allowed", h.Size, maxFile)
		}
	case tar.TypeSymlink:
		e.Mode, e.Link = fs.ModeSymlink|0o777, h.Linkname
		if err := checkLink(e.Name, e.Link); err != nil {
			return e, err
		}
	case tar.TypeLink:
		if e.Hard, err = inside(h.Linkname); err != nil {
			return e, fmt.Errorf("hard link: %w", err)
		}
		target, ok := seen[e.Hard]
		if !ok || !target.IsRegular() {
			return e, fmt.Errorf("hard link to %.200q, which is no earlier file", e.Hard)
		}
		e.Mode = target
	default:
		return e, fmt.Errorf("type %q is neither file, directory nor link", h.Typeflag)
	}
	if twice {
		return e, errors.New("an entry of that name came before")
	}
	return e, nil
}

// inside turns a name of a data archive, which starts with "./", into a clean
// relative path.
func inside(name string) (string, error) {
	if len(name) > maxName || strings.ContainsRune(name, 0) || strings.HasPrefix(name, "/") {
		return "", errors.New("name is too long or not relative")
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", errors.New("name leads out of the package")
		}
	}
	return path.Clean(name), nil
}

// checkLink refuses a symbolic link that climbs above the root.
func checkLink(name, target string) error {
	if target == "" || len(target) > maxName || strings.ContainsRune(target, 0) {
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
				return fmt.Errorf("link to %.200q leads out of the root", target)
			}
		default:
			depth++
		}
	}
	return nil
}
