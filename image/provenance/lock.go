package provenance

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

func sha256Set(d manifest.SHA256) map[string]string {
	return map[string]string{"sha256": d.String()}
}

func digestOf(b []byte) map[string]string { return sha256Set(sha256.Sum256(b)) }

// FromLock lists everything that a lock pins, with addresses and digests. What
// has no address of its own gets one in the lock's words: profile: and a path
// beside the profile, distro: and a file of the distro's description.
func FromLock(l *profiles.Lock) ([]Resource, error) {
	c := &collector{}
	c.debian(&l.Debian)
	c.distro(&l.Distro)
	c.golang(&l.Go)
	for _, i := range l.Images {
		uri := "oci:" + i.Name
		switch {
		case i.Layout != "":
			uri = "profile:" + i.Layout
		case i.From != "":
			uri = "oci:" + i.From
		}
		c.image("image "+i.Name, uri, i.Digest)
	}
	for _, a := range l.Archives {
		c.add("image "+a.Name, "profile:"+a.Path, a.SHA256, nil)
	}
	for _, s := range l.Sources {
		c.source("source of image "+s.Name, "profile:"+s.Path, s.Sum)
		c.modules(s.Modules)
	}
	for _, f := range l.Files {
		c.add("file "+f.Path, "profile:"+f.Path, f.SHA256, nil)
	}
	if l.OCI != nil {
		c.image("base image", "oci:"+l.OCI.Source, l.OCI.Digest)
	}
	if c.err != nil {
		return nil, fmt.Errorf("provenance: lock: %w", c.err)
	}
	return c.all, nil
}

// collector gathers resources. The first error sticks.
type collector struct {
	all []Resource
	err error
}

func (c *collector) add(name, uri, digest string, annotations map[string]string) {
	c.all = append(c.all, Resource{Name: name, URI: uri, Digest: map[string]string{"sha256": digest}, Annotations: annotations})
}

// source adds what is pinned by a digest over several files and their names,
// which is no sha256 of a file.
func (c *collector) source(name, uri, digest string) {
	c.all = append(c.all, Resource{Name: name, URI: uri, Digest: map[string]string{"sealiftSourceSum": digest}})
}

// image adds a container image by the digest of its manifest.
func (c *collector) image(name, uri, digest string) {
	hex, ok := strings.CutPrefix(digest, "sha256:")
	if !ok && c.err == nil {
		c.err = fmt.Errorf("%s: digest %.80q has no prefix sha256", name, digest)
	}
	c.add(name, uri, hex, nil)
}

func (c *collector) debian(d *profiles.LockedDebian) {
	for _, r := range d.Releases {
		c.add(r.Archive+" "+r.Suite+" InRelease", "debian:"+r.Archive+"/dists/"+r.Suite+"/InRelease", r.SHA256,
			map[string]string{"date": r.Date})
	}
	for _, p := range d.Packages {
		uri := "debian:" + p.Name
		if len(p.URLs) > 0 {
			uri = p.URLs[0]
		}
		c.add(p.Name+" "+p.Version+" "+p.Arch, uri, p.SHA256, nil)
	}
}

func (c *collector) distro(d *profiles.LockedDistro) {
	for _, a := range d.Artifacts {
		c.add(a.Name, a.URL, a.SHA256, nil)
		if a.ChecksumsSHA256 != "" {
			c.add("checksums of "+a.Name, a.Checksums, a.ChecksumsSHA256, nil)
		}
	}
	if d.Images != nil {
		c.add("images of "+d.Name+" "+d.Version, "distro:"+d.Images.From, d.Images.SHA256, nil)
	}
}

func (c *collector) golang(g *profiles.LockedGo) {
	if g.Toolchain != "" {
		// Which archive of it, by the digests that the go command has built in.
		c.all = append(c.all, Resource{Name: "Go toolchain", URI: "pkg:golang/toolchain@" + g.Toolchain})
	}
	if g.ModSHA256 != "" {
		c.add("go.mod of the distro", "distro:go.mod", g.ModSHA256, nil)
		c.add("go.sum of the distro", "distro:go.sum", g.SumSHA256, nil)
	}
	c.modules(g.Modules)
	for _, b := range g.Builds {
		if b.MainSHA256 != "" {
			c.add("main package of "+b.Name, "distro:"+b.Package, b.MainSHA256, nil)
		}
		if b.ModulesSHA256 != "" {
			c.source("modules of "+b.Name, "distro:"+b.Package, b.ModulesSHA256)
		}
	}
}

func (c *collector) modules(all []profiles.LockedModule) {
	for _, m := range all {
		sum, err := dirHash(m.Sum)
		if err != nil && c.err == nil {
			c.err = fmt.Errorf("module %s: %w", m.Path, err)
		}
		r := Resource{
			Name: m.Path + " " + m.Version, URI: "pkg:golang/" + strings.ToLower(m.Path) + "@" + m.Version,
			Digest: map[string]string{"dirHash": sum},
		}
		if !slices.ContainsFunc(c.all, func(o Resource) bool { return o.Name == r.Name && o.Digest["dirHash"] == sum }) {
			c.all = append(c.all, r)
		}
	}
}

// FromFile returns the resource of a file of the build machine, such as the
// agent's program.
func FromFile(name, file string) (_ Resource, err error) {
	f, err := os.Open(file)
	if err != nil {
		return Resource{}, fmt.Errorf("provenance: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return Resource{}, fmt.Errorf("provenance: %s: %w", name, err)
	}
	return Resource{Name: name, URI: "file:" + name, Digest: sha256Set(manifest.SHA256(h.Sum(nil)))}, nil
}

// dirHash turns an h1: digest of go.sum into what in-toto calls dirHash: the
// same digest in hex.
func dirHash(sum string) (string, error) {
	b64, ok := strings.CutPrefix(sum, "h1:")
	if !ok {
		return "", fmt.Errorf("digest %.80q has no prefix h1", sum)
	}
	b, err := base64.StdEncoding.DecodeString(b64)
	if err != nil || len(b) != sha256.Size {
		return "", fmt.Errorf("digest %.80q is not a SHA-256 in base64", sum)
	}
	return hex.EncodeToString(b), nil
}
