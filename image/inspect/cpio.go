package inspect

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/image/manifest"
)

// Limits of an initramfs that ReadInitrd takes.
const (
	maxArchive    = 1 << 30 // decompressed, bytes
	maxInitrd     = 256 << 20
	maxNodes      = 1 << 20  // files in an archive or a file system
	maxPath       = 4096     // PATH_MAX
	maxNames      = 64 << 20 // of all paths together, bytes
	cpioHeader    = 110
	maxKeptFile   = 4 << 20 // largest file whose content is kept, bytes
	maxKept       = 16 << 20
	initrdWindow  = 8 << 20 // what Linux reserves for the decompressor
	unixTypeMask  = 0o170000
	unixRegular   = 0o100000
	unixDirectory = 0o040000
	unixSymlink   = 0o120000
)

// File is what is known of one file in an image.
type File struct {
	Path   string          `json:"path"` // absolute
	Mode   fs.FileMode     `json:"-"`
	UID    uint32          `json:"uid"`
	GID    uint32          `json:"gid"`
	Size   int64           `json:"size"`             // of regular files, bytes
	Target string          `json:"target,omitempty"` // of symbolic links
	SHA256 manifest.SHA256 `json:"sha256,omitzero"`  // of regular files
	MTime  int64           `json:"-"`                // Unix seconds
}

// ReadInitrd lists the files of an initramfs: one cpio archive in the "newc"
// format (Linux Documentation/driver-api/early-userspace/buffer-format.rst),
// plain or compressed with zstd. keep chooses the files whose content is
// returned; it may be nil. It is an error if
//   - a name is not a clean relative path, or is there twice,
//   - there is anything but zeros behind the archive's trailer,
//   - the archive holds anything but regular files, directories and links.
func ReadInitrd(initrd []byte, keep func(path string) bool) ([]File, map[string][]byte, error) {
	if len(initrd) > maxInitrd {
		return nil, nil, fmt.Errorf("read initramfs: %d bytes, at most %d allowed", len(initrd), maxInitrd)
	}
	var r io.Reader = bytes.NewReader(initrd)
	if len(initrd) >= 4 && isZstd([4]byte(initrd[:4])) {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(initrdWindow), zstd.WithDecoderMaxMemory(initrdWindow))
		if err != nil {
			return nil, nil, fmt.Errorf("read initramfs: %w", err)
		}
		defer z.Close()
		r = z
	}
	c := &cpioReader{r: &io.LimitedReader{R: r, N: maxArchive + 1}, keep: keep, kept: map[string][]byte{}, seen: map[string]bool{}}
	if err := c.read(); err != nil {
		return nil, nil, fmt.Errorf("read initramfs: %w", err)
	}
	return c.files, c.kept, nil
}

type cpioReader struct {
	r     *io.LimitedReader
	at    int64
	keep  func(string) bool
	kept  map[string][]byte
	total int // bytes kept
	names int // bytes of all paths
	seen  map[string]bool
	files []File
}

func (c *cpioReader) read() error {
	for {
		last, err := c.entry()
		if err != nil {
			if c.r.N <= 0 {
				err = fmt.Errorf("more than %d bytes", int64(maxArchive))
			} else if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("entry %d at byte %d: %w", len(c.files)+1, c.at, err)
		}
		if last {
			return c.tail()
		}
	}
}

// tail wants only zeros to the end.
func (c *cpioReader) tail() error {
	buf := make([]byte, 4096)
	for {
		n, err := c.r.Read(buf)
		if i := nonZero(buf[:n]); i >= 0 {
			return fmt.Errorf("data behind the trailer, at byte %d", c.at+int64(i))
		}
		c.at += int64(n)
		switch {
		case c.r.N <= 0:
			return fmt.Errorf("more than %d bytes", int64(maxArchive))
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// take reads n bytes, and the padding behind them up to a multiple of 4.
func (c *cpioReader) take(n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return nil, err
	}
	c.at += int64(n)
	return b, c.pad()
}

func (c *cpioReader) pad() error {
	var b [3]byte
	p := b[:-c.at&3]
	if _, err := io.ReadFull(c.r, p); err != nil {
		return err
	}
	c.at += int64(len(p))
	if nonZero(p) >= 0 {
		return errors.New("padding is not zero")
	}
	return nil
}

func (c *cpioReader) entry() (last bool, err error) {
	header := make([]byte, cpioHeader)
	if _, err := io.ReadFull(c.r, header); err != nil {
		return false, err
	}
	c.at += cpioHeader
	if string(header[:6]) != "070701" {
		return false, fmt.Errorf("magic is %q, want \"070701\"", header[:6])
	}
	var v [13]uint32
	for i := range v {
		digits := string(header[6+8*i:][:8])
		n, err := strconv.ParseUint(digits, 16, 32)
		if err != nil {
			return false, fmt.Errorf("field %d is %q, want hex digits", i+1, digits)
		}
		v[i] = uint32(n)
	}
	mode, uid, gid, links, mtime, size, length, sum := v[1], v[2], v[3], v[4], v[5], v[6], v[11], v[12]
	if length < 2 || length > maxPath {
		return false, fmt.Errorf("name of %d bytes, want 2 to %d", length, maxPath)
	}
	// The name's padding is counted from the header on, whose length is even
	// but not a multiple of 4; c.at takes care of that.
	raw, err := c.take(int(length))
	if err != nil {
		return false, err
	}
	name, ok := strings.CutSuffix(string(raw), "\x00")
	if !ok || strings.Contains(name, "\x00") {
		return false, fmt.Errorf("name %q does not end with its only NUL", raw)
	}
	if name == "TRAILER!!!" {
		if size != 0 {
			return false, fmt.Errorf("trailer of %d bytes", size)
		}
		return true, nil
	}
	if len(c.files) == maxNodes {
		return false, fmt.Errorf("more than %d files", maxNodes)
	}
	if path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") {
		return false, fmt.Errorf("name %q is not a clean path within the archive", name)
	}
	f := File{Path: path.Join("/", name), UID: uid, GID: gid, MTime: int64(mtime)}
	if c.names += len(f.Path); c.names > maxNames {
		return false, fmt.Errorf("more than %d bytes of names", maxNames)
	}
	if c.seen[f.Path] {
		return false, fmt.Errorf("%s is there twice", f.Path)
	}
	c.seen[f.Path] = true
	if sum != 0 || mode > 0xffff {
		return false, fmt.Errorf("%s: checksum %d and mode %o, want 0 and 16 bits", f.Path, sum, mode)
	}
	f.Mode = goMode(uint16(mode))
	switch mode & unixTypeMask {
	case unixDirectory:
		if size != 0 {
			return false, fmt.Errorf("%s: directory of %d bytes", f.Path, size)
		}
	case unixSymlink:
		if size == 0 || size > maxPath {
			return false, fmt.Errorf("%s: link of %d bytes, want 1 to %d", f.Path, size, maxPath)
		}
		target, err := c.take(int(size))
		if err != nil {
			return false, err
		}
		f.Target = string(target)
	case unixRegular:
		if links != 1 {
			return false, fmt.Errorf("%s: it has %d links, want 1", f.Path, links)
		}
		if err := c.content(&f, int64(size)); err != nil {
			return false, err
		}
	default:
		return false, fmt.Errorf("%s: mode %o is not that of a file, a directory or a link", f.Path, mode)
	}
	c.files = append(c.files, f)
	return false, nil
}

// content hashes a file's content and keeps it if it is wanted.
func (c *cpioReader) content(f *File, size int64) error {
	f.Size = size
	h := sha256.New()
	var w io.Writer = h
	var kept bytes.Buffer
	if c.keep != nil && c.keep(f.Path) {
		if c.total += int(min(size, maxKept+1)); size > maxKeptFile || c.total > maxKept {
			return fmt.Errorf("%s: %d bytes are more than is kept of such files", f.Path, size)
		}
		w = io.MultiWriter(h, &kept)
	}
	if n, err := io.CopyN(w, c.r, size); err != nil {
		c.at += n
		return err
	}
	c.at += size
	f.SHA256 = manifest.SHA256(h.Sum(nil))
	if w != h {
		c.kept[f.Path] = kept.Bytes()
	}
	return c.pad()
}

// goMode returns Unix st_mode as Go has it.
func goMode(m uint16) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & unixTypeMask {
	case unixDirectory:
		mode |= fs.ModeDir
	case unixSymlink:
		mode |= fs.ModeSymlink
	case 0o020000:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case 0o060000:
		mode |= fs.ModeDevice
	case 0o010000:
		mode |= fs.ModeNamedPipe
	case 0o140000:
		mode |= fs.ModeSocket
	case unixRegular:
	default:
		mode |= fs.ModeIrregular
	}
	for bit, flag := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

// modeText returns type and permissions as ls(1) and chmod(1) have them:
// "file 0644", "dir 1777".
func modeText(m fs.FileMode) string {
	kind := "file"
	switch {
	case m&fs.ModeDir != 0:
		kind = "dir"
	case m&fs.ModeSymlink != 0:
		kind = "link"
	case m&fs.ModeType != 0:
		kind = "special"
	}
	bits := uint16(m.Perm())
	for bit, flag := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&flag != 0 {
			bits |= bit
		}
	}
	return fmt.Sprintf("%s %04o", kind, bits)
}
