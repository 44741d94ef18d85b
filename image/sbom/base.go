package sbom

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/tree"
)

// Bounds of a base image's package database, of all its files together. Debian
// with a desktop has some 3,000 packages and 500,000 paths.
const (
	maxStatus     = 64 << 20  // bytes of what lists the packages
	maxLists      = 128 << 20 // bytes of what lists their paths
	maxCopyrights = 256 << 20 // bytes of copyright files
	maxPackages   = 50_000
	maxPaths      = 2_000_000
)

// Base is the container image that a root file system started from.
type Base struct {
	Name   string          // reference, or path beside the profile
	Digest manifest.SHA256 // of its manifest
	Tree   *tree.Tree      // all of it, with the package database
}

// database reads the files of a package database within what is left of each
// bound.
type database struct {
	tree                      *tree.Tree
	status, lists, copyrights int64 // bytes
	paths                     int
}

// read returns a file that takes its size off what is left. A file that is not
// there is nil.
func (d *database) read(name string, left *int64) ([]byte, error) {
	n, _, err := d.tree.Resolve(name)
	if err != nil || !n.Mode().IsRegular() {
		return nil, nil
	}
	if *left -= n.Size(); *left < 0 {
		return nil, fmt.Errorf("%s: the files of the package database are too large", name)
	}
	return d.tree.ReadFile(name, n.Size())
}

// baseContent is what a base image brings: packages, and files of no package.
type baseContent struct {
	packages []Package
	files    map[manifest.SHA256]bool
}

// read lists the files and the packages of a base image by dpkg's database
// (dpkg(1), FILES), or by that of distroless images. A base image with another
// package manager is listed as one component.
func (b *Base) read(ctx context.Context) (*baseContent, error) {
	sums := map[string]manifest.SHA256{}
	c := &baseContent{files: map[manifest.SHA256]bool{}}
	err := b.Tree.Walk(func(name string, n *tree.Node) error {
		if !n.Mode().IsRegular() {
			return nil
		}
		d, err := nodeSum(ctx, n)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		sums[name] = d
		if n.Size() > 0 {
			c.files[d] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	db := &database{tree: b.Tree, status: maxStatus, lists: maxLists, copyrights: maxCopyrights, paths: maxPaths}
	vendor, suite := b.release()
	seen := map[string]bool{}
	for _, file := range b.databases() {
		text, err := db.read(file, &db.status)
		if err != nil {
			return nil, err
		}
		all, err := parseStatus(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, p := range all {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			// dpkg has one of each. What comes again would only list its files again.
			key := p.Name + ":" + p.Arch
			if seen[key] {
				return nil, fmt.Errorf("%s: package %.200q is listed twice", file, key)
			}
			if seen[key] = true; len(seen) > maxPackages {
				return nil, fmt.Errorf("%s: more than %d packages", file, maxPackages)
			}
			p.Vendor, p.Suite = vendor, suite
			if p.Files, err = db.files(ctx, file, &p, sums); err != nil {
				return nil, err
			}
			copyright, err := db.read("usr/share/doc/"+p.Name+"/copyright", &db.copyrights)
			if err != nil {
				return nil, err
			}
			p.Licenses = ParseCopyright(p.Name, copyright)
			c.packages = append(c.packages, p)
		}
	}
	return c, nil
}

// files returns the regular files of a package, by digest.
func (d *database) files(ctx context.Context, file string, p *Package, sums map[string]manifest.SHA256) (map[manifest.SHA256][]string, error) {
	text, column, err := d.list(file, p)
	if err != nil {
		return nil, err
	}
	files, seen := map[manifest.SHA256][]string{}, map[string]bool{}
	for line := range bytes.Lines(text) {
		if d.paths--; d.paths < 0 {
			return nil, fmt.Errorf("%s: more than %d paths of packages", file, maxPaths)
		}
		if d.paths%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		name := strings.TrimRight(string(line), "\n")
		if column {
			_, name, _ = strings.Cut(name, "  ")
		}
		if name = strings.Trim(name, "/"); name == "" || name == "." {
			continue
		}
		_, real, err := d.tree.Resolve(name)
		if err != nil {
			continue // left out of the image, or a link to nothing
		}
		if sum, ok := sums[real]; ok && !seen[real] {
			seen[real] = true
			files[sum] = append(files[sum], real)
		}
	}
	return files, nil
}

func nodeSum(ctx context.Context, n *tree.Node) (_ manifest.SHA256, err error) {
	r, err := n.Open()
	if err != nil {
		return manifest.SHA256{}, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	h := sha256.New()
	_, err = io.Copy(h, readerContext{ctx, r})
	return manifest.SHA256(h.Sum(nil)), err
}

// databases returns the files that list installed packages.
func (b *Base) databases() []string {
	var all []string
	// The callback returns no error, so Walk returns none.
	_ = b.Tree.Walk(func(name string, n *tree.Node) error {
		dir := path.Dir(name)
		if n.Mode().IsRegular() && (name == "var/lib/dpkg/status" || dir == "var/lib/dpkg/status.d" && !strings.HasSuffix(name, ".md5sums")) {
			all = append(all, name)
		}
		return nil
	})
	return all
}

// list returns what lists the paths of an installed package, a line each, in
// the second column if so it says.
func (d *database) list(file string, p *Package) (text []byte, column bool, err error) {
	names := []string{"var/lib/dpkg/info/" + p.Name + ":" + p.Arch + ".list", "var/lib/dpkg/info/" + p.Name + ".list"}
	if file != "var/lib/dpkg/status" {
		names, column = []string{file + ".md5sums"}, true
	}
	for _, name := range names {
		if text, err := d.read(name, &d.lists); text != nil || err != nil {
			return text, column, err
		}
	}
	return nil, column, nil
}

// release returns who made the base image, and which release it is, as package
// URLs have it: "debian", "debian-12".
func (b *Base) release() (vendor, suite string) {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		text, err := b.Tree.ReadFile(name, 64<<10)
		if err != nil {
			continue
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			fields[key] = strings.Trim(value, `"'`)
		}
		if vendor = fields["ID"]; vendor != "" && fields["VERSION_ID"] != "" {
			return vendor, vendor + "-" + fields["VERSION_ID"]
		}
		return vendor, ""
	}
	return "", ""
}

// parseStatus reads dpkg's list of packages (deb-control(5)), and leaves out
// what is not installed.
func parseStatus(b []byte) ([]Package, error) {
	var all []Package
	p, installed := Package{}, true
	flush := func() {
		if p.Name != "" && p.Version != "" && installed {
			if p.Source == "" {
				p.Source = p.Name
			}
			if p.SourceVersion == "" {
				p.SourceVersion = p.Version
			}
			all = append(all, p)
		}
		p, installed = Package{}, true
	}
	s := bufio.NewScanner(bytes.NewReader(b))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := s.Text()
		if strings.TrimSpace(line) == "" {
			flush()
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if line[0] == ' ' || line[0] == '\t' || !ok {
			continue
		}
		value = strings.TrimSpace(value)
		switch name {
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "Architecture":
			p.Arch = value
		case "Homepage":
			p.Homepage = value
		case "Status":
			installed = strings.HasSuffix(value, " installed")
		case "Source":
			source, version, _ := strings.Cut(value, " ")
			p.Source, p.SourceVersion = source, strings.Trim(version, "() ")
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	flush()
	return all, nil
}
