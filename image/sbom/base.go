package sbom

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/tree"
)

// Bounds of what is read of a base image's package database, in bytes.
const (
	maxStatus = 64 << 20
	maxList   = 16 << 20
)

// Base is the container image that a root file system started from.
type Base struct {
	Name   string          // reference, or path beside the profile
	Digest manifest.SHA256 // of its manifest
	Tree   *tree.Tree      // all of it, with the package database
}

// baseContent is what a base image brings: packages, and files of no package.
type baseContent struct {
	packages []Package
	files    map[manifest.SHA256]bool
}

// read lists the files and the packages of a base image by dpkg's database
// (dpkg(1), FILES), or by that of distroless images. A base image with another
// package manager is listed as one component.
func (b *Base) read() (*baseContent, error) {
	sums := map[string]manifest.SHA256{}
	c := &baseContent{files: map[manifest.SHA256]bool{}}
	err := b.Tree.Walk(func(name string, n *tree.Node) error {
		if !n.Mode().IsRegular() {
			return nil
		}
		d, err := nodeSum(n)
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
	vendor, suite := b.release()
	for _, db := range b.databases() {
		text, err := b.Tree.ReadFile(db, maxStatus)
		if err != nil {
			return nil, err
		}
		all, err := parseStatus(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", db, err)
		}
		for _, p := range all {
			p.Vendor, p.Suite = vendor, suite
			p.Files = map[manifest.SHA256][]string{}
			for _, name := range b.list(db, &p) {
				_, real, err := b.Tree.Resolve(name)
				if err != nil {
					continue // left out of the image, or a link to nothing
				}
				if d, ok := sums[strings.TrimPrefix(real, "/")]; ok {
					p.Files[d] = append(p.Files[d], strings.TrimPrefix(real, "/"))
				}
			}
			if copyright, err := b.Tree.ReadFile("usr/share/doc/"+p.Name+"/copyright", MaxCopyright); err == nil {
				p.Licenses = ParseCopyright(p.Name, copyright)
			}
			c.packages = append(c.packages, p)
		}
	}
	return c, nil
}

func nodeSum(n *tree.Node) (_ manifest.SHA256, err error) {
	r, err := n.Open()
	if err != nil {
		return manifest.SHA256{}, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	h := sha256.New()
	_, err = io.Copy(h, r)
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

// list returns the paths of an installed package, relative.
func (b *Base) list(db string, p *Package) []string {
	names := []string{"var/lib/dpkg/info/" + p.Name + ":" + p.Arch + ".list", "var/lib/dpkg/info/" + p.Name + ".list"}
	column := false
	if db != "var/lib/dpkg/status" {
		names, column = []string{db + ".md5sums"}, true
	}
	for _, name := range names {
		text, err := b.Tree.ReadFile(name, maxList)
		if err != nil {
			continue
		}
		var out []string
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\n")
			if column {
				_, line, _ = strings.Cut(line, "  ")
			}
			if line = strings.Trim(line, "/"); line != "" && line != "." {
				out = append(out, line)
			}
		}
		return out
	}
	return nil
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
