package provenance

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

func sha256Set(d manifest.SHA256) map[string]string {
	return map[string]string{"sha256": d.String()}
}

func digestOf(b []byte) map[string]string { return sha256Set(sha256.Sum256(b)) }

// FromLock lists everything that a lock pins, in its order, with addresses and
// digests. What has no address of its own gets a relative one in the lock's
// words, such as "profile:../testdata/workload".
func FromLock(l *profiles.Lock) ([]Resource, error) {
	var all []Resource
	add := func(name, uri, digest string, annotations map[string]string) {
		all = append(all, Resource{Name: name, URI: uri, Digest: map[string]string{"sha256": digest}, Annotations: annotations})
	}
	for _, r := range l.Debian.Releases {
		add(r.Archive+" "+r.Suite+" InRelease", "debian:"+r.Archive+"/dists/"+r.Suite+"/InRelease", r.SHA256,
			map[string]string{"date": r.Date})
	}
	for _, p := range l.Debian.Packages {
		uri := "debian:" + p.Name
		if len(p.URLs) > 0 {
			uri = p.URLs[0]
		}
		add(p.Name+" "+p.Version+" "+p.Arch, uri, p.SHA256, nil)
	}
	g := &l.Go
	if g.ModSHA256 != "" {
		add("go.mod of the distro", "distro:go.mod", g.ModSHA256, nil)
		add("go.sum of the distro", "distro:go.sum", g.SumSHA256, nil)
	}
	for _, m := range g.Modules {
		sum, err := dirHash(m.Sum)
		if err != nil {
			return nil, fmt.Errorf("provenance: lock: module %s: %w", m.Path, err)
		}
		all = append(all, Resource{
			Name: m.Path + " " + m.Version, URI: "pkg:golang/" + strings.ToLower(m.Path) + "@" + m.Version,
			Digest: map[string]string{"dirHash": sum},
		})
	}
	for _, b := range g.Builds {
		if b.MainSHA256 != "" {
			add("main package of "+b.Name, "distro:"+b.Package, b.MainSHA256, nil)
		}
	}
	for _, a := range l.Archives {
		add("image "+a.Name, "profile:"+a.Path, a.SHA256, nil)
	}
	for _, s := range l.Sources {
		// The digest is over file names and digests, so no sha256 of a file.
		all = append(all, Resource{
			Name: "source of image " + s.Name, URI: "profile:" + s.Path,
			Digest: map[string]string{"sealiftSourceSum": s.Sum},
		})
	}
	if g.Toolchain != "" {
		all = append(all, Resource{Name: "Go toolchain", URI: "pkg:golang/toolchain@" + g.Toolchain})
	}
	return all, nil
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
